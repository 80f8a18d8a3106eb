//! The binary under test: which it is, what a process of it is started with, how a relay says where it listens, and how
//! a process is ended. What each suite makes of that is its own.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

/// Which it is.
pub fn path() -> String {
    std::env::var("SKEP_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_skep").into())
}

/// A program in a place of its own, which is its user's home, with a home for Skep, and with nothing of the environment
/// of the tests.
pub fn in_place(program: impl AsRef<OsStr>, place: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(place)
        .env_clear()
        .env("HOME", place)
        .env("SKEP_HOME", home)
        .env("TZ", "UTC")
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end, with this on its stdin.
pub fn pipe(mut command: Command, stdin: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that does not read stdin may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

/// What a relay says when it is up.
pub struct Listening {
    pub url: String,
    pub pubkey: String,
    /// To be held open: a process whose stdout is closed could fail at its last line.
    pub stdout: ChildStdout,
}

/// Waits for `listening ws://127.0.0.1:PORT pubkey=HEX`. `Err`: what was said instead.
pub fn listening(child: &mut Child) -> Result<Listening, String> {
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let said = line.trim_end().strip_prefix("listening ").and_then(|rest| rest.split_once(" pubkey="));
    let Some((url, pubkey)) = said else { return Err(line) };
    Ok(Listening { url: url.into(), pubkey: pubkey.into(), stdout: stdout.into_inner() })
}

/// kill -9 of this process alone, and the wait for its end.
pub fn end(child: &mut Child) {
    // It may be gone already, which is as good.
    let _ = child.kill();
    let _ = child.wait();
}
