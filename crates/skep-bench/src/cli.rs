//! What all modes take from the command line, and the loop over runs.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;

use crate::sheet::{Outcome, Sheet};
use crate::target::{RelayUrl, Target};

/// The relay, and how the measurement is made.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The relay's address
    #[arg(long, short, default_value = "ws://127.0.0.1:7777")]
    pub url: RelayUrl,
    /// Pid of the relay on this machine, for its CPU time and memory
    #[arg(long)]
    pub pid: Option<u32>,
    /// Measure this many times and print medians
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub runs: usize,
    /// Threads of this program's event loop; it shares the cores with the relay
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub threads: usize,
    /// Give up when nothing comes in for this many seconds
    #[arg(long, default_value_t = 30)]
    pub stall_s: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What is published.
#[derive(Debug, Clone, Args)]
pub struct Events {
    /// How many
    #[arg(long, default_value_t = 100_000, value_parser = at_least_one)]
    pub events: usize,
    /// By how many authors
    #[arg(long, default_value_t = 1_000, value_parser = at_least_one)]
    pub authors: usize,
    /// Content of each, in bytes
    #[arg(long, default_value_t = 300)]
    pub content_bytes: usize,
    /// The same seed makes the same keys; random when left out
    #[arg(long)]
    pub seed: Option<u64>,
}

/// A file that `preload` wrote.
#[derive(Debug, Clone, Args)]
pub struct FromManifest {
    /// The manifest that `preload` wrote
    #[arg(long, default_value = "skep-bench.json")]
    pub manifest: PathBuf,
}

pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.replace('_', "").parse() {
        Ok(0) | Err(_) => Err("expected a number of at least 1".into()),
        Ok(number) => Ok(number),
    }
}

impl Common {
    pub fn target(&self) -> Result<Target> {
        Target::resolve(&self.url)
    }

    pub fn stall(&self) -> Duration {
        Duration::from_secs(self.stall_s.max(1))
    }

    /// Runs a future on an event loop of our own, gone afterwards with all that it holds.
    pub fn block_on<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        use tokio::runtime::Builder;
        let mut builder = match self.threads {
            1 => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        let runtime =
            builder.worker_threads(self.threads).enable_all().build().context("cannot start an event loop")?;
        runtime.block_on(work)
    }

    /// Makes `--runs` runs.
    pub fn repeat(&self, mode: &'static str, mut run: impl FnMut() -> Result<Vec<Sheet>>) -> Result<Outcome> {
        let each = (0..self.runs).map(|_| run()).collect::<Result<_>>()?;
        Ok(Outcome::new(mode, Some(self.url.text.clone()), each))
    }
}

pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
