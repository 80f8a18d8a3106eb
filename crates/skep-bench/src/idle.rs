//! Idle connections: how much of the server's memory each takes, and whether they stay open.
//!
//! What the kernel holds for a socket is not in a process's memory, for any relay.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;

use crate::cli::{Common, at_least_one};
use crate::conn::{Buffers, Conn};
use crate::meter;
use crate::sheet::{Metric, Outcome, Sheet};

/// Files that we have open beside the connections.
const OTHER_FILES: u64 = 64;

#[derive(Debug, Clone, Args)]
pub struct Idle {
    #[command(flatten)]
    pub common: Common,
    /// Connections to hold open
    #[arg(long, short, default_value_t = 1_000, value_parser = at_least_one)]
    pub connections: usize,
    /// Seconds to hold them
    #[arg(long, default_value_t = 5.0)]
    pub hold_s: f64,
    /// Let each open one subscription
    #[arg(long)]
    pub subscribe: bool,
}

impl Idle {
    pub fn run(&self) -> Result<Outcome> {
        raise_file_limit(self.connections as u64 + OTHER_FILES)?;
        self.common.repeat("idle", || Ok(vec![self.common.block_on(self.measure())?]))
    }

    async fn measure(&self) -> Result<Sheet> {
        let target = self.common.target()?;
        // One connection first, so that what a relay allocates once is not counted as a connection's.
        drop(Conn::open(&target, Buffers::Idle, 0).await?);
        let before = self.memory()?;
        let start = Instant::now();
        let mut conns = Conn::open_all(&target, Buffers::Idle, self.connections).await?;
        if self.subscribe {
            for conn in &mut conns {
                conn.subscribe(r#"["REQ","idle",{"kinds":[1],"limit":1}]"#.into(), self.common.stall()).await?;
            }
        }
        let mut sheet = Sheet::new(format!(
            "{} connections{}",
            self.connections,
            if self.subscribe { ", each with a subscription" } else { "" }
        ));
        sheet.set_rate(self.connections as u64, start.elapsed().as_secs_f64());

        let mut held = JoinSet::new();
        for mut conn in conns {
            // Reading is what answers pings.
            held.spawn(async move { while conn.recv().await.is_ok() {} });
        }
        tokio::time::sleep(Duration::from_secs_f64(self.hold_s)).await;
        let after = self.memory()?;
        let mut lost = 0;
        while held.try_join_next().is_some() {
            lost += 1;
        }
        sheet.set(Metric::Open, (self.connections - lost) as f64);
        if lost > 0 {
            sheet.fault(format!("the relay ended {lost} of {} idle connections", self.connections));
        }
        if let (Some(before), Some(after)) = (before, after) {
            sheet.set(Metric::KibPerConnection, (after.resident - before.resident) / self.connections as f64);
            sheet.set(Metric::ServerRssMib, after.resident / 1024.0);
        }
        Ok(sheet)
    }

    fn memory(&self) -> Result<Option<meter::Memory>> {
        let read = |pid| meter::memory(pid).with_context(|| format!("cannot read the memory of process {pid}"));
        self.common.pid.map(read).transpose()
    }
}

/// Raises our soft limit on open files; says so when the hard one is too low.
fn raise_file_limit(files: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= files) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < files) {
        bail!("{files} open files are needed and {} allowed; try `ulimit -n {files}`", limit.maximum.unwrap_or(0));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(files), ..limit })
        .context("cannot raise the limit on open files")
}
