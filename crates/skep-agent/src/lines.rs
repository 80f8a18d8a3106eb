//! Lines of bounded length from a program that may write anything.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// One protocol line. Agents put whole files and images into one; 10 MB is what other ACP clients take.
pub const LINE_BYTES_MAX: usize = 10 * 1024 * 1024;

/// Read from the pipe at a time: Linux's pipe capacity.
const CHUNK_BYTES: usize = 64 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Text(String),
    /// Longer than [`LINE_BYTES_MAX`]; skipped. Its length.
    TooLong(usize),
    /// Not UTF-8; a readable rendering.
    NotText(String),
}

/// Keeps a half-read line, so that [`Lines::next`] may be dropped and called again.
pub struct Lines<R> {
    from: BufReader<R>,
    line: Vec<u8>,
    length: usize,
    bytes_max: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub fn new(from: R) -> Self {
        Self::with_max(from, LINE_BYTES_MAX)
    }

    fn with_max(from: R, bytes_max: usize) -> Self {
        Self { from: BufReader::with_capacity(CHUNK_BYTES, from), line: Vec::new(), length: 0, bytes_max }
    }

    /// The next line that is not blank; `None` at the end. A last line needs no line end.
    pub async fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let chunk = self.from.fill_buf().await?;
            if chunk.is_empty() {
                return Ok(self.take());
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let piece = &chunk[..end.unwrap_or(chunk.len())];
            self.length += piece.len();
            if self.length <= self.bytes_max {
                self.line.extend_from_slice(piece);
            }
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.from.consume(used);
            if end.is_some()
                && let Some(line) = self.take()
            {
                return Ok(Some(line));
            }
        }
    }

    fn take(&mut self) -> Option<Line> {
        let length = std::mem::take(&mut self.length);
        let mut line = std::mem::take(&mut self.line);
        if length > self.bytes_max {
            return Some(Line::TooLong(length));
        }
        line.truncate(line.trim_ascii_end().len());
        if line.trim_ascii().is_empty() {
            return None;
        }
        Some(
            String::from_utf8(line)
                .map_or_else(|error| Line::NotText(String::from_utf8_lossy(error.as_bytes()).into_owned()), Line::Text),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_nothing_is_fatal() {
        let bytes: &[u8] = b"one\r\n\n  \n0123456789x\n\xff\xfe\nlast";
        let mut lines = Lines::with_max(bytes, 10);
        assert_eq!(lines.next().await.expect("a line"), Some(Line::Text("one".into())));
        assert_eq!(lines.next().await.expect("a line"), Some(Line::TooLong(11)));
        assert!(matches!(lines.next().await, Ok(Some(Line::NotText(_)))));
        assert_eq!(lines.next().await.expect("a line"), Some(Line::Text("last".into())));
        assert_eq!(lines.next().await.expect("the end"), None);
    }
}
