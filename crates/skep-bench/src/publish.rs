//! Publish: how long one event takes from send to OK, one at a time or on a schedule.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use tokio::task::JoinSet;

use crate::cli::{Common, Events};
use crate::conn::{Buffers, Conn};
use crate::flow::{Feed, Progress, Publisher, Tally, join_all};
use crate::meter::Meter;
use crate::sheet::{Outcome, Sheet};

#[derive(Debug, Clone, Args)]
pub struct Publish {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub events: Events,
    /// Events a second on a schedule, whatever the relay does; without it the next waits for the OK of the last
    #[arg(long)]
    pub rate: Option<f64>,
}

impl Publish {
    pub fn run(&self) -> Result<Outcome> {
        ensure!(self.rate.is_none_or(|rate| rate > 0.0), "--rate must be above 0");
        let target = self.common.target()?;
        self.common.repeat("publish", || {
            let events = self.events.sign_fresh()?;
            self.common.block_on(async {
                let conn = Conn::open(&target, Buffers::Wide, 0).await?;
                let progress = Arc::new(Progress::default());
                let label = self.rate.map_or("one at a time".into(), |rate| format!("on a schedule of {rate}/s"));
                let mut sheet = Sheet::new(label);
                let publisher = Publisher::new(conn, Feed::new(events), Arc::clone(&progress), |_| {});
                let mut tasks = JoinSet::new();
                let meter = Meter::start(self.common.pid);
                let start = Instant::now();
                match self.rate {
                    Some(rate) => tasks.spawn(publisher.run_paced(Duration::from_secs_f64(1.0 / rate))),
                    None => tasks.spawn(publisher.run_closed(1)),
                };
                let mut tally = Tally::default();
                join_all(tasks, &progress, self.common.stall()).await?.into_iter().for_each(|done| tally.merge(done.0));
                let seconds = start.elapsed().as_secs_f64();
                meter.stop(tally.answered(), &mut sheet);
                tally.write_to(&mut sheet, seconds);
                Ok(vec![sheet])
            })
        })
    }
}
