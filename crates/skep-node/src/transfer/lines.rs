//! The lines of an input, in blocks, read ahead by a thread of its own.
//!
//! Memory is bounded: a block holds a permit until it has been dealt with, a line has at most [`LINE_BYTES_MAX`].

use std::io::{self, BufRead, BufReader, Read};

use super::TransferError;

/// Bytes of one line. An event of 256 KiB whose every byte is a `\u00xx` escape has 1.5 MiB.
pub(super) const LINE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A block ends at so many lines or bytes: enough for a thread to be worth waking, and 32 of them are 32 MiB.
const BLOCK_LINES_MAX: usize = 256;
const BLOCK_BYTES_MAX: usize = 1024 * 1024;

/// Blocks that are being read, judged or committed.
pub(super) const BLOCKS_MAX: usize = 32;

const READ_BYTES: usize = 256 * 1024;

/// A line with its place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1.
    pub number: u64,
    /// Where it begins in the input.
    pub start: u64,
    /// `None`: it is longer than [`LINE_BYTES_MAX`].
    pub text: Option<Vec<u8>>,
}

/// Lines that stand together.
#[derive(Debug)]
pub(super) struct Block {
    /// From 0.
    pub number: u64,
    pub lines: Vec<Line>,
    /// Where it ends: offset, and number of the last line.
    pub end: u64,
    pub last_line: u64,
    pub _permit: Permit,
}

/// Room for one block. Dropped, there is room for another.
#[derive(Debug)]
pub(super) struct Permit(async_channel::Sender<()>);

impl Drop for Permit {
    fn drop(&mut self) {
        // The other end is gone when nothing is read any more.
        let _ = self.0.try_send(());
    }
}

/// Starts to read at `offset`, before which there are `lines` lines. The thread is not waited for: it may hang on a
/// silent pipe, and ends with the process.
pub(super) fn start(
    input: Box<dyn Read + Send>,
    offset: u64,
    lines: u64,
) -> Result<async_channel::Receiver<io::Result<Block>>, TransferError> {
    let (sender, receiver) = async_channel::bounded(BLOCKS_MAX);
    let (give_back, permits) = async_channel::bounded(BLOCKS_MAX);
    for _ in 0..BLOCKS_MAX {
        drop(Permit(give_back.clone()));
    }
    let mut reader =
        Reader { input: BufReader::with_capacity(READ_BYTES, input), offset, line: lines, block: 0, give_back };
    let read = move || {
        while permits.recv_blocking().is_ok() {
            let Some(block) = reader.block().transpose() else { return };
            let is_last = block.is_err();
            // When nobody receives any more, the import has failed and said so.
            if sender.send_blocking(block).is_err() || is_last {
                return;
            }
        }
    };
    std::thread::Builder::new().name("skep-lines".into()).spawn(read).map_err(TransferError::Thread)?;
    Ok(receiver)
}

struct Reader<R> {
    input: BufReader<R>,
    offset: u64,
    line: u64,
    block: u64,
    give_back: async_channel::Sender<()>,
}

impl<R: Read> Reader<R> {
    fn block(&mut self) -> io::Result<Option<Block>> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while lines.len() < BLOCK_LINES_MAX && bytes < BLOCK_BYTES_MAX {
            let start = self.offset;
            let Some(text) = self.line()? else { break };
            let is_blank = text.as_ref().is_some_and(|text| text.trim_ascii().is_empty());
            if !is_blank {
                bytes += text.as_ref().map_or(0, Vec::len);
                lines.push(Line { number: self.line, start, text });
            }
        }
        let number = self.block;
        self.block += 1;
        let permit = Permit(self.give_back.clone());
        let block = Block { number, lines, end: self.offset, last_line: self.line, _permit: permit };
        Ok((!block.lines.is_empty()).then_some(block))
    }

    /// The next line without its end; `Some(None)` when it is too long, `None` at the end of the input.
    fn line(&mut self) -> io::Result<Option<Option<Vec<u8>>>> {
        let mut text = Vec::new();
        let mut is_long = false;
        let mut is_any = false;
        loop {
            let buffer = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if buffer.is_empty() {
                break;
            }
            is_any = true;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            is_long |= text.len() + part.len() > LINE_BYTES_MAX;
            if is_long {
                text = Vec::new();
            } else {
                text.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            self.offset += used as u64;
            if end.is_some() {
                break;
            }
        }
        self.line += u64::from(is_any);
        Ok(is_any.then(|| (!is_long).then_some(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Vec<Line> {
        let blocks = start(Box::new(io::Cursor::new(text.to_vec())), 100, 7).expect("a thread");
        let mut all = Vec::new();
        while let Ok(block) = blocks.recv_blocking() {
            all.extend(block.expect("memory can be read").lines);
        }
        all
    }

    #[test]
    fn lines_keep_their_numbers_and_places() {
        let line = |number, start, text: &str| Line { number, start, text: Some(text.into()) };
        assert_eq!(read(b"a\n\n  \nbc\nd"), [line(8, 100, "a"), line(11, 106, "bc"), line(12, 109, "d")]);
        assert!(read(b"").is_empty() && read(b"\n\n").is_empty());
    }

    #[test]
    fn a_line_without_end_is_not_held_in_memory() {
        let mut text = vec![b'x'; LINE_BYTES_MAX + 1];
        text.extend_from_slice(b"\nshort\n");
        let lines = read(&text);
        assert_eq!((lines[0].text.as_ref(), lines[1].text.as_deref()), (None, Some(&b"short"[..])));
        assert_eq!(lines[1].number, 9);
    }

    #[test]
    fn reading_waits_until_blocks_are_dealt_with() {
        let text = b"{}\n".repeat(BLOCK_LINES_MAX * (BLOCKS_MAX + 10));
        let blocks = start(Box::new(io::Cursor::new(text)), 0, 0).expect("a thread");
        let held: Vec<Block> =
            (0..BLOCKS_MAX).map(|_| blocks.recv_blocking().expect("a block").expect("readable")).collect();
        assert!(blocks.try_recv().is_err(), "every permit is held");
        drop(held);
        assert!(blocks.recv_blocking().is_ok());
    }
}
