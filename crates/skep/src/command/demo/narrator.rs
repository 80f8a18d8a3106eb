//! How the story looks: a line with its time for what was seen, for a person or as JSON.

use serde_json::json;
use tokio::time::Instant;

use crate::error::CliError;
use crate::screen::{Output, escape};

/// Columns of who does it.
const WHO: usize = 9;

pub struct Narrator<'a> {
    out: &'a mut Output,
    since: Instant,
}

impl<'a> Narrator<'a> {
    pub fn new(out: &'a mut Output) -> Self {
        Self { out, since: Instant::now() }
    }

    /// A heading; nothing in JSON.
    pub fn head(&mut self, text: &str) -> Result<(), CliError> {
        if self.out.json {
            return Ok(());
        }
        let text = self.out.paint().bold(&escape(text));
        self.out.line("")?;
        self.out.line(&text)?;
        self.out.flush()
    }

    /// Something that was seen. `step` names it for programs, `who` did it.
    pub fn saw(&mut self, step: &str, who: &str, text: &str) -> Result<(), CliError> {
        let ms = self.since.elapsed().as_millis() as u64;
        if self.out.json {
            self.out.json_line(&json!({ "step": step, "ms": ms, "who": who, "text": text }))?;
        } else {
            let paint = self.out.paint();
            let time = paint.dim(&format!("{:5.1} s", ms as f64 / 1_000.0));
            let who = format!("{:WHO$}", escape(who));
            self.out.line(&format!("{time}  {}{}", paint.green(&who), escape(text)))?;
        }
        self.out.flush()
    }

    /// A line without a time; nothing in JSON.
    pub fn line(&mut self, text: &str) -> Result<(), CliError> {
        if self.out.json {
            return Ok(());
        }
        self.out.line(&escape(text))?;
        self.out.flush()
    }

    /// A line that somebody may type.
    pub fn command(&mut self, text: &str) -> Result<(), CliError> {
        if self.out.json {
            return Ok(());
        }
        let text = self.out.paint().bold(&escape(text));
        self.out.line(&format!("  {text}"))?;
        self.out.flush()
    }

    pub fn end(&mut self) {
        if !self.out.json {
            super::aside("stopping …");
        }
    }
}
