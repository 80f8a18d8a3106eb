//! The thread that forks a child, waits for its end, clears up after it, and reaps it: in this order.
//!
//! A thread of its own for each child, because Linux ties the parent-death signal to the thread that forked, and a
//! runtime's threads come and go. It sleeps in `waitid` and costs a small stack.
//!
//! Must not: reap the child before its group was killed. While it is a zombie its number names nobody else.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::{oneshot, watch};

use super::guard::Guard;
use super::sweep::{MARK, Mark, kill_marked};
use super::{Exit, Program, SpawnError, exec};

/// Two frames deep and a buffer for `/proc`: a tenth of this.
const STACK_BYTES: usize = 256 * 1024;

/// A child's process group while its number is surely its own.
///
/// A lock, because whoever kills must not do so at the moment of reaping: the number could name another group by
/// then. Held for one system call, never over an await.
#[derive(Clone)]
pub struct Group(Arc<Mutex<Option<Pid>>>);

impl Group {
    pub fn kill(&self, signal: Signal) {
        let pid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = *pid {
            // Gone already is what was wanted.
            let _ = kill_process_group(pid, signal);
        }
    }

    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A child that runs.
pub struct Kept {
    pub pid: u32,
    pub group: Group,
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    pub stderr: ChildStderr,
    /// Its end, told when nothing of it is left.
    pub exit: watch::Receiver<Option<Exit>>,
}

/// Starts the thread and, in it, the child.
pub async fn start(program: Program) -> Result<Kept, SpawnError> {
    let (started, answer) = oneshot::channel();
    std::thread::Builder::new()
        .name("skep-child".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || keep(&program, started))
        .map_err(SpawnError::Thread)?;
    answer.await.map_err(|_| SpawnError::Thread(io::Error::other("it ended early")))?
}

fn keep(program: &Program, started: oneshot::Sender<Result<Kept, SpawnError>>) {
    let (told, exit) = watch::channel(None);
    let (kept, mut child, guard, mark) = match spawn(program, exit) {
        Ok(all) => all,
        Err(error) => return drop(started.send(Err(error))),
    };
    let group = kept.group.clone();
    if started.send(Ok(kept)).is_err() {
        group.kill(Signal::KILL);
    }
    wait_without_reaping(&child);
    group.kill(Signal::KILL);
    kill_marked(&mark);
    group.forget();
    let status = child.wait();
    if let Some(guard) = guard {
        guard.release();
    }
    let exit = status.map_or(Exit::default(), |status| Exit { code: status.code(), signal: status.signal() });
    told.send_replace(Some(exit));
}

type Spawned = (Kept, Child, Option<Guard>, Mark);

fn spawn(program: &Program, exit: watch::Receiver<Option<Exit>>) -> Result<Spawned, SpawnError> {
    let mark = Mark::random()?;
    // Without a guard a SIGKILL of ours may leave grandchildren: not a reason to refuse work.
    let mut guard = Guard::start().inspect_err(|error| tracing::warn!(%error, "no guard for a child")).ok();
    let mut child = command(program, &mark).spawn().map_err(|error| SpawnError::Exec {
        command: program.command.clone(),
        cwd: program.cwd.clone(),
        error,
    })?;
    let pid = child.id();
    if let Some(Err(error)) = guard.as_mut().map(|guard| guard.watch(pid, &mark)) {
        tracing::warn!(%error, "the guard of a child is gone");
    }
    let group = Group(Arc::new(Mutex::new(i32::try_from(pid).ok().and_then(Pid::from_raw))));
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
        group.kill(Signal::KILL);
        return Err(SpawnError::Thread(io::Error::other("a child without its pipes")));
    };
    Ok((Kept { pid, group, stdin, stdout, stderr, exit }, child, guard, mark))
}

fn command(program: &Program, mark: &Mark) -> Command {
    let mut command = Command::new(&program.command);
    command.args(&program.args).current_dir(&program.cwd);
    command.env_clear().envs(program.env.iter()).env(MARK, mark.to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    exec::confine(&mut command);
    command
}

fn wait_without_reaping(child: &Child) {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {}
}
