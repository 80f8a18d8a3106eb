//! The report: every mode against one relay, or several side by side, and the page that says what came out.
//!
//! Neighbours: `relay` starts one, `steps` is what is measured, `page` writes it, `reference` is what others measured.
//! Must not: leave out a figure silently. What could not be measured is a dash, and its reason is on the page.

mod machine;
mod page;
mod reference;
pub mod relay;
mod steps;

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cli::at_least_one;
use crate::raw::Raw;
use crate::sheet::{Outcome, Sheet};
use crate::target::RelayUrl;

use relay::RelayProcess;
use steps::Subject;

#[derive(Debug, Clone, Args)]
pub struct Report {
    /// A relay binary to start: `PATH relay --listen 127.0.0.1:0 --data DIR --config FILE`
    #[arg(long, required_unless_present = "url", conflicts_with_all = ["url", "pid", "data"])]
    pub relay_bin: Option<PathBuf>,
    /// A relay that runs already, in place of --relay-bin
    #[arg(long, short)]
    pub url: Option<RelayUrl>,
    /// Its pid, for CPU time and memory
    #[arg(long, requires = "url")]
    pub pid: Option<u32>,
    /// Its data directory, for disk use
    #[arg(long, requires = "url")]
    pub data: Option<PathBuf>,
    /// Its name on the page
    #[arg(long, default_value = "Skep")]
    pub name: String,
    /// Another running relay for one more column: NAME=URL[,pid=PID][,data=DIR]
    #[arg(long)]
    pub beside: Vec<Beside>,
    /// Where the stores of started relays and the fsync test go
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub dir: PathBuf,
    /// The page
    #[arg(long, default_value = "docs/benchmarks.md")]
    pub out: PathBuf,
    /// Events in the store for queries and for the start time [default: 1000000, with --quick 100000]
    #[arg(long, value_parser = at_least_one)]
    pub events: Option<usize>,
    /// A tenth of everything
    #[arg(long)]
    pub quick: bool,
    /// Runs of each measurement; the page has medians
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    pub runs: usize,
    /// Date on the page [default: today, UTC]
    #[arg(long)]
    pub date: Option<String>,
    /// Print JSON too
    #[arg(long)]
    pub json: bool,
}

/// A relay for another column.
#[derive(Debug, Clone)]
pub struct Beside {
    name: String,
    url: RelayUrl,
    pid: Option<u32>,
    data: Option<PathBuf>,
}

impl FromStr for Beside {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or("expected NAME=URL[,pid=PID][,data=DIR]")?;
        let mut parts = rest.split(',');
        let url = parts.next().unwrap_or("").parse()?;
        let mut beside = Self { name: name.into(), url, pid: None, data: None };
        for part in parts {
            match part.split_once('=') {
                Some(("pid", pid)) => beside.pid = Some(pid.parse().map_err(|_| "pid is not a number")?),
                Some(("data", dir)) => beside.data = Some(dir.into()),
                _ => return Err(format!("unknown part {part:?}; known: pid=PID, data=DIR")),
            }
        }
        Ok(beside)
    }
}

impl Report {
    pub fn events(&self) -> usize {
        self.events.unwrap_or(if self.quick { 100_000 } else { 1_000_000 })
    }

    /// A number of the full report, or a tenth of it.
    fn scaled(&self, full: usize) -> usize {
        if self.quick { full / 10 } else { full }
    }

    pub fn run(&self) -> Result<Outcome> {
        // Before anything is measured: an hour of work must not end at a page that cannot be written.
        let folder = self.out.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            bail!("{} does not exist; make it, or give another --out", folder.display());
        }
        let raw = Raw { dir: self.dir.clone(), seconds: 2.0, runs: self.runs, json: false };
        eprintln!("limits of this machine");
        let raw = raw.run()?;
        let mut columns = vec![self.measure_first()?];
        for beside in &self.beside {
            columns.push(self.measure(Subject::running(&beside.name, &beside.url, beside.pid, beside.data.clone()))?);
        }
        let page = page::render(self, &raw, &columns);
        std::fs::write(&self.out, page).with_context(|| format!("cannot write {}", self.out.display()))?;
        eprintln!("wrote {}", self.out.display());
        let sheets =
            columns.into_iter().flat_map(|column| column.outcomes).flat_map(|outcome| labelled(&outcome)).collect();
        Ok(Outcome::new("report", None, vec![sheets]))
    }

    fn measure_first(&self) -> Result<steps::Column> {
        match (&self.relay_bin, &self.url) {
            (Some(bin), _) => self.measure(Subject::started(&self.name, RelayProcess::start(bin, &self.dir)?)),
            (None, Some(url)) => self.measure(Subject::running(&self.name, url, self.pid, self.data.clone())),
            (None, None) => bail!("give --relay-bin or --url"),
        }
    }

    fn measure(&self, subject: Subject) -> Result<steps::Column> {
        let name = subject.name.clone();
        steps::measure(self, subject).with_context(|| format!("measuring {name}"))
    }
}

fn labelled(outcome: &Outcome) -> Vec<Sheet> {
    let mut sheets = outcome.median.clone();
    sheets.iter_mut().for_each(|sheet| sheet.label = format!("{}: {}", outcome.mode, sheet.label));
    sheets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_relay_is_given_by_name_url_and_parts() {
        let beside: Beside = "strfry=ws://127.0.0.1:7778,pid=42,data=/x".parse().expect("a valid column");
        assert_eq!((beside.name.as_str(), beside.pid, beside.data), ("strfry", Some(42), Some("/x".into())));
        for bad in ["strfry", "strfry=http://x", "a=ws://x,pid=y", "a=ws://x,what"] {
            assert!(bad.parse::<Beside>().is_err(), "{bad}");
        }
    }
}
