//! A command: the prompt on its stdin, its reply on its stdout, one process a turn.
//!
//! Nothing is known of what it used, so nothing is said of that.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::mpsc;

use skep_core::backend::{BackendError, Ended, Order, Said, Session};

use crate::child::{Child, Exit};
use crate::spec::{Kind, Spec};

/// Read at a time, and the longest piece of a reply: Linux's pipe capacity.
const CHUNK_BYTES: usize = 64 * 1024;

/// A session has no meaning here; all share one name.
const SESSION: &str = "command";

/// Runs turns until it is closed.
pub async fn run(spec: &Spec, mut orders: mpsc::Receiver<Order>, said: mpsc::Sender<Said>) {
    let Kind::Command { command, args } = &spec.kind else { return };
    let program = command.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let session =
        Session { id: SESSION.to_owned(), is_new: true, program, branch: spec.branch.clone(), ..Session::default() };
    // Failures to send below: the harness is gone, and the next order is `None`.
    let _ = said.send(Said::Ready(session)).await;
    while let Some(order) = orders.recv().await {
        match order {
            Order::Prompt { text } => {
                let (ended, next) = turn(spec, command, args, text, &mut orders, &said).await;
                let _ = said.send(Said::Ended(ended)).await;
                if next == Next::Close {
                    break;
                }
            }
            Order::Close => break,
            Order::Cancel | Order::Answer { .. } => {}
        }
    }
    let _ = said.send(Said::Gone("closed".to_owned())).await;
}

#[derive(PartialEq)]
enum Next {
    Turn,
    Close,
}

async fn turn(
    spec: &Spec,
    command: &Path,
    args: &[String],
    prompt: String,
    orders: &mut mpsc::Receiver<Order>,
    said: &mpsc::Sender<Said>,
) -> (Ended, Next) {
    let mut child = match Child::spawn(spec.program(command, args)).await {
        Ok(child) => child,
        Err(error) => return (Ended::Error(BackendError::Other(error.to_string())), Next::Turn),
    };
    let mut next = Next::Turn;
    let (stdin, stdout) = (child.take_stdin(), child.take_stdout());
    let is_cancelled = {
        let work = async { tokio::join!(write(stdin, prompt), read(stdout, said)) };
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Order::Cancel) => break true,
                    Some(Order::Close) => next = Next::Close,
                    None => { next = Next::Close; break true }
                    Some(Order::Prompt { .. } | Order::Answer { .. }) => tracing::warn!("an order that a command cannot take now"),
                },
                _ = &mut work => break false,
            }
        }
    };
    if is_cancelled {
        // Its pipes are closed now, which is how a command is asked.
        child.shutdown(spec.timing.ladder).await;
        return (Ended::Cancelled, next);
    }
    // It closed its stdout; what remains of it may not outlast the ladder.
    let exit = child.shutdown(spec.timing.ladder).await;
    (ended(exit, &child.last_words().await), next)
}

/// A command that reads only a part of its prompt, or nothing, is no failure.
async fn write(stdin: Option<ChildStdin>, prompt: String) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(prompt.as_bytes()).await;
    }
}

/// Its stdout, as text: a character that is cut by a read waits for its other half.
async fn read(stdout: Option<ChildStdout>, said: &mpsc::Sender<Said>) {
    let Some(mut stdout) = stdout else { return };
    let (mut chunk, mut held) = (vec![0; CHUNK_BYTES], Vec::new());
    while let Ok(length @ 1..) = stdout.read(&mut chunk).await {
        held.extend_from_slice(&chunk[..length]);
        let whole = whole_characters(&held);
        let text = String::from_utf8_lossy(&held[..whole]).into_owned();
        held.drain(..whole);
        if !text.is_empty() && said.send(Said::Text(text)).await.is_err() {
            return;
        }
    }
    if !held.is_empty() {
        let _ = said.send(Said::Text(String::from_utf8_lossy(&held).into_owned())).await;
    }
}

/// Up to where no character is left open at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => bytes.len(),
    }
}

fn ended(exit: Exit, words: &str) -> Ended {
    if exit.code == Some(0) {
        return Ended::EndTurn;
    }
    let why = if words.is_empty() { exit.to_string() } else { format!("{exit}: {words}") };
    Ended::Error(BackendError::Other(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_never_cut_in_two() {
        assert_eq!(whole_characters("añ".as_bytes()), 3);
        assert_eq!(whole_characters(&"añ".as_bytes()[..2]), 1);
        assert_eq!(whole_characters(b"a\xff\xc3"), 3, "what is not UTF-8 does not wait for ever");
    }
}
