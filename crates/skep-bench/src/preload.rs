//! Preload: fills a store with a corpus, and writes the manifest that the query modes need.
//!
//! Signs and publishes by turns, so that a million events need no more memory than a slab of them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use crate::cli::{Common, Events, at_least_one, unix_now};
use crate::conn::{Buffers, Conn};
use crate::corpus::{Corpus, Manifest};
use crate::flow::{self, Tally};
use crate::meter::{self, Meter};
use crate::sheet::{Metric, Outcome, Sheet};

/// Events signed at a time: 64 Ki x about 1 KiB is 64 MiB.
const SLAB: usize = 1 << 16;

/// The corpus is spread over this long: 30 days.
const SPAN_SECS: u64 = 30 * 86_400;

#[derive(Debug, Clone, Args)]
pub struct Preload {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub events: Events,
    /// Connections that publish
    #[arg(long, short, default_value_t = 8, value_parser = at_least_one)]
    pub connections: usize,
    /// Events in flight on each connection
    #[arg(long, short, default_value_t = 128, value_parser = at_least_one)]
    pub window: usize,
    /// Where the manifest goes
    #[arg(long, default_value = "skep-bench.json")]
    pub manifest: PathBuf,
    /// The relay's data directory, for the disk that an event takes
    #[arg(long)]
    pub data: Option<PathBuf>,
}

impl Preload {
    /// One run, whatever `--runs` says: the store is there to be queried.
    pub fn run(&self) -> Result<Outcome> {
        let Events { events, authors, content_bytes, seed } = self.events;
        let (newest, seed) = (unix_now(), seed.unwrap_or_else(rand::random));
        let corpus = Corpus { seed, events, authors, content_bytes, oldest: newest - SPAN_SECS, newest };
        let before = self.data.as_deref().map(meter::disk_bytes).transpose()?;
        let mut sheet = self.common.block_on(self.publish(&corpus))?;
        if let (Some(before), Some(data)) = (before, &self.data) {
            sheet.set(Metric::BytesPerEvent, disk_per_event(data, before, corpus.events)?);
        }
        if !sheet.faults.is_empty() {
            bail!("the store is not what the manifest would say: {}", sheet.faults.join("; "));
        }
        let relay = self.common.url.text.clone();
        Manifest::new(relay.clone(), corpus).write(&self.manifest)?;
        Ok(Outcome::new("preload", Some(relay), vec![vec![sheet]]))
    }

    async fn publish(&self, corpus: &Corpus) -> Result<Sheet> {
        let mut conns = Conn::open_all(&self.common.target()?, Buffers::Wide, self.connections).await?;
        let authors = corpus.authors()?;
        let mut sheet = Sheet::new(format!("connections {}, window {}", self.connections, self.window));
        let (mut total, mut seconds) = (Tally::default(), 0.0);
        let meter = Meter::start(self.common.pid);
        for first in (0..corpus.events).step_by(SLAB) {
            let events = corpus.sign(&authors, first..corpus.events.min(first + SLAB));
            let (tally, took, back) = flow::publish_all(conns, events, self.window, self.common.stall()).await?;
            conns = back;
            total.merge(tally);
            seconds += took;
        }
        meter.stop(total.answered(), &mut sheet);
        // Ours is mostly signing here, which is no part of a client's cost of sending.
        sheet.unset(Metric::ClientCpuUs);
        total.write_to(&mut sheet, seconds);
        Ok(sheet)
    }
}

fn disk_per_event(data: &Path, before: u64, events: usize) -> Result<f64> {
    Ok(meter::disk_bytes(data)?.saturating_sub(before) as f64 / events as f64)
}
