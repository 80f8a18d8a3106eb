//! Ingest: how many events a second the relay stores, from N connections with a window each.

use anyhow::Result;
use clap::Args;

use crate::cli::{Common, Events, at_least_one, unix_now};
use crate::conn::{Buffers, Conn};
use crate::corpus::{Corpus, Signed};
use crate::flow;
use crate::meter::Meter;
use crate::sheet::{Outcome, Sheet};

#[derive(Debug, Clone, Args)]
pub struct Ingest {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub events: Events,
    /// Connections that publish
    #[arg(long, short, default_value_t = 8, value_parser = at_least_one)]
    pub connections: usize,
    /// Events in flight on each connection
    #[arg(long, short, default_value_t = 64, value_parser = at_least_one)]
    pub window: usize,
}

impl Ingest {
    pub fn run(&self) -> Result<Outcome> {
        let target = self.common.target()?;
        self.common.repeat("ingest", || {
            let events = self.events.sign_fresh()?;
            let stall = self.common.stall();
            self.common.block_on(async {
                let conns = Conn::open_all(&target, Buffers::Wide, self.connections).await?;
                let mut sheet = Sheet::new(format!("connections {}, window {}", self.connections, self.window));
                let meter = Meter::start(self.common.pid);
                let (mut tally, seconds, _conns) = flow::publish_all(conns, events, self.window, stall).await?;
                meter.stop(tally.answered(), &mut sheet);
                tally.write_to(&mut sheet, seconds);
                Ok(vec![sheet])
            })
        })
    }
}

impl Events {
    /// A corpus of the last hour, with new keys at each call unless a seed is given.
    pub fn fresh(&self) -> Corpus {
        let newest = unix_now();
        let seed = self.seed.unwrap_or_else(rand::random);
        let Self { events, authors, content_bytes, .. } = *self;
        Corpus { seed, events, authors, content_bytes, oldest: newest - 3600, newest }
    }

    /// Signed on all cores, before any clock starts.
    pub fn sign_fresh(&self) -> Result<Vec<Signed>> {
        let corpus = self.fresh();
        Ok(corpus.sign(&corpus.authors()?, 0..corpus.events))
    }
}
