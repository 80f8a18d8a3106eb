//! Columns for a person: each as wide as its widest cell, the last one as it is.

use unicode_width::UnicodeWidthStr;

use crate::error::CliError;
use crate::screen::{Output, escape};

/// Between two columns.
const GAP: usize = 2;

pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self { rows: vec![heads.map(str::to_owned).to_vec()] }
    }

    /// Cells may hold anybody's text.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| escape(cell)).collect());
    }

    /// Prints head and rows, each line after `indent`.
    pub fn print(&self, out: &mut Output, indent: &str) -> Result<(), CliError> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widest = |column: usize| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(widest).collect();
        for (n, row) in self.rows.iter().enumerate() {
            let mut line = indent.to_owned();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(width - cell.width() + GAP));
            }
            let line = line.trim_end();
            out.line(&if n == 0 { out.paint().dim(line) } else { line.to_owned() })?;
        }
        Ok(())
    }
}

/// A time ago, as short as can be: `3s`, `12m`, `5h`, `9d`.
pub fn ago(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs}s"),
        60..3_600 => format!("{}m", secs / 60),
        3_600..86_400 => format!("{}h", secs / 3_600),
        _ => format!("{}d", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short_and_rounded_down() {
        let all = [(0, "0s"), (59, "59s"), (60, "1m"), (3_599, "59m"), (3_600, "1h"), (86_399, "23h"), (200_000, "2d")];
        for (secs, text) in all {
            assert_eq!(ago(secs), text);
        }
    }
}
