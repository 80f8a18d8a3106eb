//! What is shown beside the output: dim on a terminal, text as it comes, never more than text.

use std::io::{self, IsTerminal, Write};

use crate::screen::paragraphs;

/// Standard error, as a place to show what happens meanwhile. Nobody listening is fine.
pub struct Aside {
    is_on: bool,
    is_dim: bool,
    /// Whose text the last line is, when it has not ended.
    open: Option<String>,
    /// What waits for an answer at the end of the screen.
    asked: Option<String>,
}

impl Aside {
    /// `is_on`: `false` shows nothing but what must be answered.
    pub fn new(is_on: bool) -> Self {
        let is_dim = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { is_on, is_dim, open: None, asked: None }
    }

    /// A line of its own.
    pub fn line(&mut self, text: &str) {
        if self.is_on {
            let dim = self.is_dim;
            self.show(text, dim);
        }
    }

    /// A line that is shown in any case, and stands out.
    pub fn must_line(&mut self, text: &str) {
        self.show(text, false);
    }

    fn show(&mut self, text: &str, is_dim: bool) {
        self.end_text();
        let before = if self.asked.is_some() { "\n" } else { "" };
        let after = self.asked.as_deref().unwrap_or("");
        write(&format!("{before}{}", styled(&paragraphs(text), is_dim)));
        write(&format!("\n{after}"));
    }

    /// A piece of what somebody says; pieces of one speaker run on. While a question is open they are left out: the
    /// answer has all of them.
    pub fn text(&mut self, who: &str, piece: &str) {
        if !self.is_on || self.asked.is_some() || piece.is_empty() {
            return;
        }
        if self.open.as_deref() != Some(who) {
            self.end_text();
            write(&styled(&format!("{who} "), self.is_dim));
        }
        write(&styled(&paragraphs(piece), self.is_dim));
        self.open = (!piece.ends_with('\n')).then(|| who.to_owned());
    }

    /// Leaves the cursor where an answer can be typed, whatever else comes.
    pub fn ask(&mut self, text: &str) {
        self.end_text();
        write(text);
        self.asked = Some(text.to_owned());
    }

    /// The question was answered: by a line that was typed, or elsewhere.
    pub fn asked(&mut self, is_typed: bool) {
        if self.asked.take().is_some() && !is_typed {
            write("\n");
        }
    }

    /// Ends a text that runs on.
    pub fn end_text(&mut self) {
        if self.open.take().is_some() {
            write("\n");
        }
    }
}

fn styled(text: &str, is_dim: bool) -> String {
    if is_dim { format!("\u{1b}[2m{text}\u{1b}[0m") } else { text.to_owned() }
}

fn write(text: &str) {
    let mut stderr = io::stderr().lock();
    // With stderr closed there is nobody left to show it to.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}
