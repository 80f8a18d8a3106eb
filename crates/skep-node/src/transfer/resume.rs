//! How far an import has come, in a small file of the home directory, so that it can go on after any end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{TransferError, file_error};
use crate::home::{self, Existing, Home};

/// How often the file is written: what is lost at a crash is only looked at again.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Bytes at the beginning of the input by which it is known again.
const HEAD_BYTES: u64 = 4_096;

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    input: PathBuf,
    target: String,
    /// Everything before this byte of the input is committed.
    bytes: u64,
    /// Lines before that byte.
    lines: u64,
    /// SHA-256 of the first bytes of the input, as many as `bytes` and [`HEAD_BYTES`] allow.
    head: String,
}

/// The journal of one import. Dropped without [`Self::finish`], the file stays.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    state: State,
    written: Option<Instant>,
}

impl Journal {
    /// The journal of importing `input` into `target`. With `is_resumed` it goes on with what an earlier run left, if
    /// the input still is the same.
    pub fn open(home: &Home, input: &Path, target: &str, is_resumed: bool) -> Result<Self, TransferError> {
        let input = std::fs::canonicalize(input).map_err(file_error("open", input))?;
        let name = faster_hex::hex_string(&Sha256::digest(format!("{}\n{target}", input.display()))[..16]);
        let path = home.directory("imports")?.join(format!("{name}.json"));
        let fresh = State { input, target: target.to_owned(), bytes: 0, lines: 0, head: String::new() };
        let earlier = if is_resumed { Self::earlier(&path) } else { None };
        let state = earlier.filter(is_same_input).unwrap_or(fresh);
        Ok(Self { path, state, written: None })
    }

    fn earlier(path: &Path) -> Option<State> {
        serde_json::from_slice(&home::read_private(path).ok()?).ok()
    }

    /// Bytes and lines that need not be looked at again.
    pub fn done(&self) -> (u64, u64) {
        (self.state.bytes, self.state.lines)
    }

    /// Everything before this byte is committed. Writes at most once a second.
    pub fn note(&mut self, bytes: u64, lines: u64) -> Result<(), TransferError> {
        if bytes <= self.state.bytes || self.written.is_some_and(|at| at.elapsed() < WRITE_EVERY) {
            return Ok(());
        }
        self.state.bytes = bytes;
        self.state.lines = lines;
        self.state.head = head(&self.state.input, bytes).map_err(file_error("read", &self.state.input))?;
        let text = serde_json::to_vec(&self.state).expect("invariant: texts and numbers serialize");
        home::write_private(&self.path, &text, Existing::Replace)?;
        self.written = Some(Instant::now());
        Ok(())
    }

    /// The whole input is in.
    pub fn finish(self) -> Result<(), TransferError> {
        Ok(home::remove(&self.path)?)
    }
}

/// Whether the input still is what was imported up to here: as long, with the same beginning, and a line ends there.
fn is_same_input(state: &State) -> bool {
    let ends_line = || {
        let mut file = File::open(&state.input).ok()?;
        file.seek(SeekFrom::Start(state.bytes.checked_sub(1)?)).ok()?;
        let mut byte = [0];
        file.read_exact(&mut byte).ok()?;
        Some(byte == *b"\n")
    };
    ends_line() == Some(true) && head(&state.input, state.bytes).is_ok_and(|head| head == state.head)
}

fn head(input: &Path, bytes: u64) -> std::io::Result<String> {
    let mut beginning = Vec::new();
    File::open(input)?.take(bytes.min(HEAD_BYTES)).read_to_end(&mut beginning)?;
    Ok(faster_hex::hex_string(&Sha256::digest(&beginning)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_goes_on_only_where_the_input_is_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::at(dir.path().join("home"));
        let input = dir.path().join("in");
        std::fs::write(&input, "one\ntwo\nthree\n").expect("written");
        let open = |target| Journal::open(&home, &input, target, true).expect("a journal");
        let mut journal = open("a");
        assert_eq!(journal.done(), (0, 0));
        journal.note(8, 2).expect("noted");
        journal.note(14, 3).expect("noted: too soon to be written");
        assert_eq!((open("a").done(), open("b").done()), ((8, 2), (0, 0)));
        assert_eq!(Journal::open(&home, &input, "a", false).expect("a journal").done(), (0, 0));
        for (changed, done) in
            [("one\ntwo\nthree\nfour\n", (8, 2)), ("one\ntwo", (0, 0)), ("One\ntwo\nthree\n", (0, 0))]
        {
            std::fs::write(&input, changed).expect("written");
            assert_eq!(open("a").done(), done, "{changed:?}");
        }
        open("a").finish().expect("removed");
        std::fs::write(&input, "one\ntwo\nthree\n").expect("written");
        assert_eq!(open("a").done(), (0, 0));
    }
}
