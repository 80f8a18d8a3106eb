//! What a person sees: untrusted text made harmless, an event on one line, output that may be a pipe.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use skep_node::owner::directory::short;
use skep_proto::{RawEvent, Timestamp, kind};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::error::CliError;

/// Columns of a line where the terminal does not say.
const COLUMNS_DEFAULT: usize = 100;

/// Columns of the kind's name in an event's line.
const KIND_COLUMNS: usize = 16;

/// The last second that has a four-digit year.
const YEAR_9999: Timestamp = 253_402_300_799;

/// Standard output: for a person on a terminal, or for a program.
pub struct Output {
    /// Whether a person asked for a program's form.
    pub json: bool,
    stdout: io::Stdout,
    columns: Option<usize>,
}

impl Output {
    pub fn new(json: bool) -> Self {
        let stdout = io::stdout();
        let columns = stdout.is_terminal().then(|| {
            terminal_size::terminal_size_of(&stdout).map_or(COLUMNS_DEFAULT, |(width, _)| usize::from(width.0))
        });
        Self { json, stdout, columns }
    }

    /// Whether events are shown as lines for a person, and not as JSON.
    pub fn is_for_a_person(&self) -> bool {
        !self.json && self.columns.is_some()
    }

    /// Colours, where they belong.
    pub fn paint(&self) -> Paint {
        Paint { is_on: self.columns.is_some() && !self.json && wants_colour() }
    }

    /// Writes one line. Text from elsewhere must have been escaped.
    pub fn line(&mut self, text: &str) -> Result<(), CliError> {
        let mut stdout = self.stdout.lock();
        stdout.write_all(text.as_bytes())?;
        stdout.write_all(b"\n")?;
        Ok(())
    }

    /// Writes a part of a line. Text from elsewhere must have been made harmless.
    pub fn piece(&mut self, text: &str) -> Result<(), CliError> {
        self.stdout.lock().write_all(text.as_bytes()).map_err(CliError::from)
    }

    /// Writes one line of JSON.
    pub fn json_line(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(io::Error::from)?;
        self.line(&text)
    }

    /// Writes an event, for whoever reads.
    pub fn event(&mut self, event: &RawEvent) -> Result<(), CliError> {
        match self.columns.filter(|_| !self.json) {
            Some(columns) => self.line(&event_line(event, columns)),
            None => self.line(&event.to_json()),
        }
    }

    /// What has been written is on its way.
    pub fn flush(&mut self) -> Result<(), CliError> {
        self.stdout.flush().map_err(CliError::from)
    }
}

/// Colours on a terminal, or nothing at all. What is painted must have been escaped.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    is_on: bool,
}

impl Paint {
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.is_on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Not when the user said so (no-color.org), nor where there is nothing to colour.
fn wants_colour() -> bool {
    let set = |name| std::env::var_os(name).filter(|value: &std::ffi::OsString| !value.is_empty());
    set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// Says something beside the output. Nobody listening is fine.
pub fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "{}", escape(text));
}

/// Text from anybody, safe on a terminal: control characters (C0, C1, DEL), line separators, and characters that
/// reorder or hide text are written as escapes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if is_treacherous(c) => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// The same for text of several lines: line breaks and tabs stay.
pub fn paragraphs(text: &str) -> String {
    text.split_inclusive(['\n', '\t'])
        .map(|part| match part.strip_suffix(['\n', '\t']) {
            // A line break of another system is one.
            Some(line) => escape(line.strip_suffix('\r').unwrap_or(line)) + &part[line.len()..],
            None => escape(part),
        })
        .collect()
}

fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Marks, embeddings, overrides and isolates of the bidirectional algorithm.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Line and paragraph separators.
            | '\u{2028}' | '\u{2029}'
            // Invisible: zero-width space, word joiner and its kin, byte order mark, annotations, tags.
            | '\u{200b}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// `2025-01-31 23:59:59` in UTC.
pub fn time(at: Timestamp) -> String {
    if at > YEAR_9999 {
        return format!("@{at}");
    }
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at)).to_string();
    text.trim_end_matches('Z').replace('T', " ")
}

/// An event on one line: when, who, what kind, the beginning of its id and of its content.
fn event_line(event: &RawEvent, columns: usize) -> String {
    let name = kind::rule(event.kind).name;
    let kind = if name.is_empty() { event.kind.to_string() } else { format!("{} {name}", event.kind) };
    let head = format!(
        "{}  {}  {}  {}  ",
        time(event.created_at),
        short(&event.pubkey),
        &event.id.to_hex()[..8],
        padded(&kind, KIND_COLUMNS)
    );
    let room = columns.saturating_sub(head.width());
    // Escaping only makes text longer, so no more than `room` characters can be shown.
    let beginning: String = event.content.chars().take(room + 1).collect();
    format!("{head}{}", cut(&escape(&beginning), room)).trim_end().to_owned()
}

fn padded(text: &str, columns: usize) -> String {
    let text = cut(text, columns);
    let pad = columns.saturating_sub(text.width());
    format!("{text}{:pad$}", "")
}

/// At most so many columns; `…` at the end says that something is missing.
fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > columns {
            break;
        }
        out.push(c);
    }
    if columns > 0 {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_node::keys::Keys;
    use skep_proto::{Draft, Kind};

    #[test]
    fn text_from_others_cannot_steer_a_terminal() {
        let hostile = "a\u{1b}[2Jb\u{9b}31mc\u{7}\r\nd\u{202e}e\u{2066}f\u{7f}g\u{2028}h\u{200f}";
        let safe = escape(hostile);
        assert_eq!(safe, r"a\u{1b}[2Jb\u{9b}31mc\u{7}\r\nd\u{202e}e\u{2066}f\u{7f}g\u{2028}h\u{200f}");
        assert_eq!(paragraphs("a\r\nb\tc\u{1b}[2J\n\nd\re"), "a\nb\tc\\u{1b}[2J\n\nd\\re");
        assert_eq!(escape("Grüße 🐝 日本 עברית"), "Grüße 🐝 日本 עברית");
    }

    #[test]
    fn an_event_is_one_line_that_fits() {
        let keys = Keys::generate().expect("randomness");
        for content in
            ["short", "", &"long ".repeat(100), &"日本語".repeat(50), "two\nlines\u{1b}[0m", &"\u{1b}".repeat(500)]
        {
            let event = keys.sign(Draft::new(Kind(1), 1_700_000_000, content));
            let line = event_line(&event, 100);
            assert!(line.width() <= 100 && !line.contains(char::is_control), "{line:?}");
            assert!(line.starts_with("2023-11-14 22:13:20  npub1"), "{line}");
        }
    }

    #[test]
    fn any_time_can_be_shown() {
        assert_eq!(time(0), "1970-01-01 00:00:00");
        assert_eq!(time(YEAR_9999), "9999-12-31 23:59:59");
        assert_eq!(time(u64::MAX), "@18446744073709551615");
    }
}
