//! What is shown beside the output: dim on a terminal, text as it comes, never more than text.

use std::io::{self, IsTerminal, Write};

use crate::screen::paragraphs;

/// Standard error, as a place to show what happens meanwhile. Nobody listening is fine.
pub struct Aside {
    is_on: bool,
    is_dim: bool,
    /// Whose text the last line is, when it has not ended.
    open: Option<String>,
}

impl Aside {
    /// `is_on`: `false` shows nothing but what must be answered.
    pub fn new(is_on: bool) -> Self {
        let is_dim = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { is_on, is_dim, open: None }
    }

    /// A line of its own.
    pub fn line(&mut self, text: &str) {
        if self.is_on {
            self.must_line(text);
        }
    }

    /// A line that is shown in any case.
    pub fn must_line(&mut self, text: &str) {
        self.end_text();
        self.write(&format!("{}\n", paragraphs(text)));
    }

    /// A piece of what somebody says; pieces of one speaker run on.
    pub fn text(&mut self, who: &str, piece: &str) {
        if !self.is_on || piece.is_empty() {
            return;
        }
        if self.open.as_deref() != Some(who) {
            self.end_text();
            self.write(&format!("{who} "));
        }
        self.write(&paragraphs(piece));
        self.open = (!piece.ends_with('\n')).then(|| who.to_owned());
    }

    /// Leaves the cursor where an answer can be typed.
    pub fn prompt(&mut self, text: &str) {
        self.end_text();
        self.write(&paragraphs(text));
    }

    /// Ends a text that runs on.
    pub fn end_text(&mut self) {
        if self.open.take().is_some() {
            self.write("\n");
        }
    }

    fn write(&self, text: &str) {
        let mut stderr = io::stderr().lock();
        let written = if self.is_dim { write!(stderr, "\u{1b}[2m{text}\u{1b}[0m") } else { write!(stderr, "{text}") };
        // With stderr closed there is nobody left to show it to.
        let _ = written.and_then(|()| stderr.flush());
    }
}
