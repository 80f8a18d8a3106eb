//! `tidy`: the rules of docs/style.md and ARCHITECTURE.md that a machine can check. Each finding is one line,
//! `path:line: what is wrong; what to do`.

mod arrows;
mod rust;
mod source;
mod tree;

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};

use tree::File;

/// Lines of a file: past the first it is mentioned, past the second it does not land.
const LINES_WARN: usize = 600;
const LINES_MAX: usize = 1_000;

/// What was found, in order of path.
#[derive(Default)]
pub struct Findings {
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    pub fn error(&mut self, path: &str, line: usize, what: impl fmt::Display) {
        self.errors.push(format!("{path}:{line}: {what}"));
    }

    fn warn(&mut self, path: &str, line: usize, what: impl fmt::Display) {
        self.warnings.push(format!("{path}:{line}: {what}"));
    }
}

pub fn run(root: &Path) -> Result<()> {
    let files = tree::read(root)?;
    let mut found = Findings::default();
    for file in &files {
        check_length(file, &mut found);
        tree::check(root, file, &mut found);
        if file.extension() == "rs" {
            rust::check(file, &mut found);
        }
    }
    arrows::check(&files, &mut found)?;
    found.warnings.iter().for_each(|line| eprintln!("warning: {line}"));
    found.errors.iter().for_each(|line| eprintln!("error: {line}"));
    if !found.errors.is_empty() {
        bail!("tidy: {} problems in {} files", found.errors.len(), files.len());
    }
    println!("tidy: {} files, no problems, {} warnings", files.len(), found.warnings.len());
    Ok(())
}

fn check_length(file: &File, found: &mut Findings) {
    if !file.is_ours_to_read() {
        return;
    }
    let lines = file.text.lines().count();
    if lines > LINES_MAX {
        found.error(&file.path, lines, format_args!("longer than {LINES_MAX} lines; split it by what it does"));
    } else if lines > LINES_WARN {
        found.warn(&file.path, lines, format_args!("longer than {LINES_WARN} lines"));
    }
}
