//! Child processes that leave nothing behind.
//!
//! Job: start a program with three pipes, a chosen environment and a process group of its own; end it by asking, then
//! SIGTERM, then SIGKILL; see that what it started ends with it, when it ends and when we do.
//! Neighbours: `keeper` (one thread a child: forks, waits, clears up, reaps), `exec` (between fork and exec), `guard`
//! (a shell that outlives us), `sweep` (what left the process group), `family` (who started whom).
//! Lifetime: a [`Child`] that is dropped is killed.
//! Must not: pass on our environment, a key, or a descriptor.

pub mod environment;
mod exec;
mod family;
mod guard;
mod keeper;
mod sweep;
mod tail;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::watch;

pub use environment::{Environment, EnvironmentError};
pub use family::Family;
pub use sweep::MARK;
pub use tail::TAIL_BYTES_MAX;
use tail::Tail;

/// What to run, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// A path, or a name that is looked for on the child's own `PATH`.
    pub command: PathBuf,
    pub args: Vec<String>,
    pub cwd: PathBuf,
    pub env: Environment,
}

/// How long each step of ending a child may take before the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ladder {
    /// After it was asked in its own words, or by the end of its stdin.
    pub ask: Duration,
    /// After SIGTERM to its group.
    pub terminate: Duration,
}

impl Default for Ladder {
    fn default() -> Self {
        Self { ask: Duration::from_secs(5), terminate: Duration::from_secs(5) }
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(signal)) => write!(f, "killed by signal {signal}"),
            (None, None) => f.write_str("ended in a way that nobody saw"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("cannot start {} in {}: {error}. Is it installed, and on the agent's PATH?", command.display(), cwd.display())]
    Exec { command: PathBuf, cwd: PathBuf, error: io::Error },
    #[error("cannot start a thread for a child: {0}")]
    Thread(io::Error),
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

/// A running program. Dropped, it is killed with all that it started.
pub struct Child {
    group: Killer,
    pid: u32,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Tail,
    exit: watch::Receiver<Option<Exit>>,
}

impl Child {
    pub async fn spawn(program: Program) -> Result<Self, SpawnError> {
        let kept = keeper::start(program).await?;
        let group = Killer(kept.group);
        let stdin = ChildStdin::from_std(kept.stdin).map_err(SpawnError::Thread)?;
        let stdout = ChildStdout::from_std(kept.stdout).map_err(SpawnError::Thread)?;
        let stderr = tokio::process::ChildStderr::from_std(kept.stderr).map_err(SpawnError::Thread)?;
        let stderr = Tail::of(stderr);
        Ok(Self { group, pid: kept.pid, stdin: Some(stdin), stdout: Some(stdout), stderr, exit: kept.exit })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its stdin; once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Its stdout; once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// The end of what it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// The same after its end.
    pub async fn last_words(&mut self) -> String {
        self.stderr.last_words().await
    }

    /// Its end, when nothing of it is left. May be awaited again, and dropped without loss.
    pub async fn wait(&mut self) -> Exit {
        match self.exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or_default(),
            Err(_) => Exit::default(),
        }
    }

    /// Up the ladder until it has ended. The caller has asked already, in the program's own words; its stdin is
    /// closed here if the caller did not take it.
    pub async fn shutdown(&mut self, ladder: Ladder) -> Exit {
        drop(self.stdin.take());
        for (patience, next) in [(ladder.ask, Signal::TERM), (ladder.terminate, Signal::KILL)] {
            if let Ok(exit) = tokio::time::timeout(patience, self.wait()).await {
                return exit;
            }
            self.group.0.kill(next);
        }
        self.wait().await
    }

    /// SIGKILL, now.
    pub fn kill(&self) {
        self.group.0.kill(Signal::KILL);
    }
}

/// Kills when dropped.
struct Killer(keeper::Group);

impl Drop for Killer {
    fn drop(&mut self) {
        self.0.kill(Signal::KILL);
    }
}
