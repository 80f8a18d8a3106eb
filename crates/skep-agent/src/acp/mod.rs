//! A program that speaks the Agent Client Protocol on stdin and stdout.
//!
//! Job: drive one process and one session: bytes between the program and the machine, words between the machine and
//! the harness.
//! Neighbours: `machine` decides, with `open` (hello, session, model), `turn`, `tool`, `questions`, `usage` and
//! `failure`; `message` is JSON-RPC.
//! Must not: stop listening to orders while the program floods or the harness is slow; wait for a program without a
//! deadline.
//!
//! The official crate (`agent-client-protocol`) is not used: it starts programs in a way of its own, without the care
//! of `child`; its actors queue without bound; and it turns on `serde_json/preserve_order` for the whole binary, which
//! would change the order of members in all JSON of ours.

mod failure;
mod machine;
pub(crate) mod message;
mod open;
mod out;
mod questions;
#[cfg(test)]
mod rules;
mod tool;
mod turn;
mod usage;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use skep_core::backend::{BackendError, Ended, Order, Said};

use crate::child::Child;
use crate::lines::{Line, Lines};
use crate::spec::{Kind, Spec};

use machine::Machine;
pub use message::FRAME_BYTES_MAX;
use out::Stop;

/// Runs one backend until it is closed or gone.
pub async fn run(spec: &Spec, orders: mpsc::Receiver<Order>, said: mpsc::Sender<Said>) {
    let Kind::Acp { command, args } = &spec.kind else { return };
    let child = match Child::spawn(spec.program(command, args)).await {
        Ok(child) => child,
        Err(error) => return tell_failure(&error.to_string(), &said).await,
    };
    if let Some(family) = &spec.family {
        family.begin(child.pid());
    }
    let program = command.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let machine = Machine::start(spec.clone(), program);
    let Some(mut driver) = Driver::new(machine, child, orders, said) else { return };
    driver.run().await;
    driver.finish(spec).await;
}

/// The harness may be gone; then nobody needs to know.
async fn tell_failure(why: &str, said: &mpsc::Sender<Said>) {
    let _ = said.send(Said::Ended(Ended::Error(BackendError::Other(why.to_owned())))).await;
    let _ = said.send(Said::Gone(why.to_owned())).await;
}

struct Driver {
    machine: Machine,
    child: Child,
    /// `None` when it was closed.
    stdin: Option<ChildStdin>,
    lines: Lines<ChildStdout>,
    is_stdout_open: bool,
    orders: mpsc::Receiver<Order>,
    said: mpsc::Sender<Said>,
    deadline: Option<Instant>,
}

enum Event {
    Order(Option<Order>),
    Line(Option<Line>),
    /// Words, or bytes to the program, went out.
    Moved,
    /// The program takes no more bytes.
    Deaf,
    /// The program will say nothing more.
    Silent,
    Deadline,
}

impl Driver {
    fn new(
        machine: Machine,
        mut child: Child,
        orders: mpsc::Receiver<Order>,
        said: mpsc::Sender<Said>,
    ) -> Option<Self> {
        let stdin = child.take_stdin();
        let lines = Lines::new(child.take_stdout()?);
        Some(Self { machine, child, stdin, lines, is_stdout_open: true, orders, said, deadline: None })
    }

    async fn run(&mut self) {
        while self.machine.out.stop.is_none() {
            if let Some(wait) = self.machine.take_wait() {
                self.deadline = wait.map(|wait| Instant::now() + wait);
            }
            match self.event().await {
                Event::Order(Some(order)) => self.machine.handle_order(order),
                Event::Order(None) => self.machine.handle_deaf(),
                Event::Line(Some(line)) => self.machine.handle_line(line),
                Event::Line(None) => self.is_stdout_open = false,
                Event::Moved => {}
                Event::Deaf => self.stdin = None,
                Event::Silent => self.exited().await,
                Event::Deadline => {
                    self.deadline = None;
                    self.machine.handle_deadline();
                }
            }
        }
    }

    /// No line is read while a word waits for the harness: a flood ends in the program's own pipe.
    async fn event(&mut self) -> Event {
        let out = &mut self.machine.out;
        let (has_words, has_bytes) = (!out.said.is_empty(), !out.to_program.is_empty() && self.stdin.is_some());
        tokio::select! {
            biased;
            order = self.orders.recv() => Event::Order(order),
            permit = self.said.reserve(), if has_words => {
                let Ok(permit) = permit else { return Event::Order(None) };
                if let Some(word) = out.said.pop_front() {
                    permit.send(word);
                }
                Event::Moved
            }
            written = write(&mut self.stdin, &mut out.to_program), if has_bytes => {
                if written { Event::Moved } else { Event::Deaf }
            }
            line = self.lines.next(), if !has_words && self.is_stdout_open => Event::Line(line.ok().flatten()),
            () = std::future::ready(()), if !has_words && !self.is_stdout_open => Event::Silent,
            () = wait_until(self.deadline), if self.deadline.is_some() => Event::Deadline,
        }
    }

    /// It closed its stdout: it has ended, or is of no use any more.
    async fn exited(&mut self) {
        let exit = self.child.shutdown(self.machine.ladder()).await;
        let words = self.child.last_words().await;
        let how = if words.is_empty() { format!("it ended: {exit}") } else { format!("it ended: {exit}; {words}") };
        self.machine.handle_end(&how);
    }

    /// Up the ladder, while what it still says is thrown away, and then the last words.
    async fn finish(&mut self, spec: &Spec) {
        if let (Some(stdin), Some(Stop::Orderly)) = (&mut self.stdin, &self.machine.out.stop) {
            let last = self.machine.out.to_program.split();
            let _ = tokio::time::timeout(spec.timing.ladder.ask, stdin.write_all(&last)).await;
        }
        self.stdin = None;
        let drain = async {
            while let Ok(Some(_)) = self.lines.next().await {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = self.child.shutdown(spec.timing.ladder) => {}
            () = drain => {}
        }
        self.orders.close();
        while let Some(word) = self.machine.out.said.pop_front() {
            let _ = self.said.send(word).await;
        }
        let why = match self.machine.out.stop.take() {
            Some(Stop::Broken(why)) => why,
            Some(Stop::Orderly) | None => "closed".to_owned(),
        };
        let _ = self.said.send(Said::Gone(why)).await;
    }
}

/// Some of the bytes; whether it took any. Dropped, nothing is lost.
async fn write(stdin: &mut Option<ChildStdin>, bytes: &mut BytesMut) -> bool {
    match stdin {
        Some(stdin) => stdin.write_buf(bytes).await.is_ok_and(|written| written > 0),
        None => false,
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
