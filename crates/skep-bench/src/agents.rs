//! Agents: how fast another instance takes the lead over, how long a mention takes to its prompt, what idle ones cost.
//!
//! Everything is seen from outside: a takeover is the time from a signal, or an owner's order, to the relay's news
//! that another instance has the lease; a prompt is written when the backend's program has read it.
//! Neighbours: `colony` has the processes, `owner` the owner's connection, `program` the backend.

mod colony;
mod owner;
mod program;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::process::Signal;

use crate::cli::at_least_one;
use crate::latency::Latencies;
use crate::meter;
use crate::sheet::{Metric, Outcome, Sheet};

use colony::{Colony, Instance};
pub use program::Program;

/// For an instance to connect and to see who leads, before it is measured.
const SETTLE: Duration = Duration::from_secs(1);

/// For many at once.
const SETTLE_MANY: Duration = Duration::from_secs(5);

/// Measures a relay and agents that it starts itself.
#[derive(Debug, Clone, Args)]
pub struct Agents {
    /// The binary under test: it is the relay, and runs the agents
    #[arg(long)]
    pub skep_bin: PathBuf,
    /// Where homes and stores go
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub dir: PathBuf,
    /// Takeovers of each sort on one machine
    #[arg(long, default_value_t = 30, value_parser = at_least_one)]
    pub takeovers: usize,
    /// Takeovers between machines after kill -9: each waits until a lease of 15 s has run out
    #[arg(long, default_value_t = 5, value_parser = at_least_one)]
    pub lease_takeovers: usize,
    /// Mentions whose way to the prompt is timed
    #[arg(long, default_value_t = 500, value_parser = at_least_one)]
    pub mentions: usize,
    /// Idle agents in one process
    #[arg(long, default_value_t = 50, value_parser = at_least_one)]
    pub idle: usize,
    /// Seconds for which they are watched
    #[arg(long, default_value_t = 30.0)]
    pub idle_s: f64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What happens to whoever leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fall {
    Killed,
    Released,
}

/// Whether the two instances have a lock directory in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    OneMachine,
    TwoMachines,
}

/// It takes minutes: a person is told where it is.
fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("agents: {what}");
    }
}

impl Agents {
    pub fn run(&self) -> Result<Outcome> {
        ensure!(self.idle_s > 0.0, "--idle-s must be above 0");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let sheets = runtime.context("cannot start an event loop")?.block_on(async {
            let mut sheets = Vec::new();
            for (fall, place, count) in [
                (Fall::Killed, Where::OneMachine, self.takeovers),
                (Fall::Released, Where::OneMachine, self.takeovers),
                (Fall::Killed, Where::TwoMachines, self.lease_takeovers),
                (Fall::Released, Where::TwoMachines, self.takeovers),
            ] {
                sheets.push(self.takeovers(fall, place, count).await?);
            }
            sheets.push(self.steals().await?);
            sheets.extend(self.prompts().await?);
            sheets.extend(self.idle().await?);
            Ok::<_, anyhow::Error>(sheets)
        })?;
        Ok(Outcome::new("agents", None, vec![sheets]))
    }

    fn colony(&self) -> Result<Colony> {
        Colony::start(&self.skep_bin, &self.dir)
    }

    async fn takeovers(&self, fall: Fall, place: Where, count: usize) -> Result<Sheet> {
        let what = match fall {
            Fall::Killed => "kill -9",
            Fall::Released => "SIGTERM",
        };
        let between = match place {
            Where::OneMachine => "on one machine",
            Where::TwoMachines => "between machines",
        };
        let mut sheet = Sheet::new(format!("takeover after {what}, {between}"));
        progress(&format!("{count} x {}", sheet.label));
        let colony = self.colony()?;
        let agent = colony.agent(0)?;
        let machines = if place == Where::OneMachine { [0, 0] } else { [0, 1] };
        let homes = [0, 1].map(|n| colony.home(n, machines[n], std::slice::from_ref(&agent), colony::IDLE_BACKEND));
        let [first, second] = homes;
        let homes = [first?, second?];
        let mut owner = colony.owner().await?;
        owner.follow(&[agent.pubkey()]).await?;
        let mut running: [Option<Instance>; 2] = [Some(colony.run(&homes[0])?), None];
        let mut holder = owner.lease_of_another("").await?.instance;
        let (mut leads, mut latencies) = (0, Latencies::default());
        for _ in 0..count {
            running[1 - leads] = Some(colony.run(&homes[1 - leads])?);
            tokio::time::sleep(SETTLE).await;
            let leader = running[leads].take().context("nobody leads")?;
            let begin = Instant::now();
            match fall {
                Fall::Killed => leader.signal(Signal::KILL)?,
                Fall::Released => leader.signal(Signal::TERM)?,
            }
            let lease = owner.lease_of_another(&holder).await?;
            latencies.record(lease.at.saturating_duration_since(begin));
            leader.wait()?;
            (holder, leads) = (lease.instance, 1 - leads);
        }
        sheet.set(Metric::Operations, count as f64);
        sheet.set_latencies(&mut latencies);
        Ok(sheet)
    }

    /// The owner moves the lead between two that run.
    async fn steals(&self) -> Result<Sheet> {
        let mut sheet = Sheet::new("takeover after a claim by the owner, on one machine");
        progress(&format!("{} x {}", self.takeovers, sheet.label));
        let colony = self.colony()?;
        let agent = colony.agent(0)?;
        let homes = [
            colony.home(0, 0, std::slice::from_ref(&agent), colony::IDLE_BACKEND)?,
            colony.home(1, 0, std::slice::from_ref(&agent), colony::IDLE_BACKEND)?,
        ];
        let mut owner = colony.owner().await?;
        owner.follow(&[agent.pubkey()]).await?;
        let _first = colony.run(&homes[0])?;
        let first = owner.lease_of_another("").await?.instance;
        let _second = colony.run(&homes[1])?;
        tokio::time::sleep(SETTLE).await;
        // Whoever another program takes the lock from stands back; when that lets go, the other instance leads.
        colony.claim_lock(0, &agent.pubkey(), "another program")?;
        tokio::time::sleep(SETTLE).await;
        colony.claim_lock(0, &agent.pubkey(), "")?;
        let second = owner.lease_of_another(&first).await?.instance;
        let mut latencies = Latencies::default();
        for n in 0..self.takeovers {
            let (from, to) = if n % 2 == 0 { (&second, &first) } else { (&first, &second) };
            tokio::time::sleep(SETTLE).await;
            let claim = owner.claim(&agent.pubkey(), to)?;
            let begin = Instant::now();
            owner.publish(&claim).await?;
            let lease = owner.lease_of_another(from).await?;
            latencies.record(lease.at.saturating_duration_since(begin));
        }
        sheet.set(Metric::Operations, self.takeovers as f64);
        sheet.set_latencies(&mut latencies);
        Ok(sheet)
    }

    /// From the relay's OK of a mention to the backend's program, and from its sending to the reply.
    async fn prompts(&self) -> Result<Vec<Sheet>> {
        let mut prompt = Sheet::new("mention accepted to prompt read by the backend");
        let mut reply = Sheet::new("mention sent to reply received");
        progress(&format!("{} x {}", self.mentions, prompt.label));
        let colony = self.colony()?;
        let agent = colony.agent(0)?;
        let (backend, log) = colony.program()?;
        let home = colony.home(0, 0, std::slice::from_ref(&agent), &backend)?;
        let mut owner = colony.owner().await?;
        owner.follow(&[agent.pubkey()]).await?;
        let _instance = colony.run(&home)?;
        owner.lease_of_another("").await?;
        tokio::time::sleep(SETTLE).await;
        let (mut to_prompt, mut to_reply) = (Latencies::default(), Latencies::default());
        // The first starts the program.
        for n in 0..=self.mentions {
            let mention = owner.mention(&agent.pubkey(), &format!("mention {n}"))?;
            let begin = Instant::now();
            let accepted = owner.publish(&mention).await?;
            let replied = owner.reply_to(&mention.id).await?;
            let read = program::last_prompt(&log)?;
            if n > 0 {
                // The program may have it before the owner has the OK.
                to_prompt.record(read.duration_since(accepted).unwrap_or_default());
                to_reply.record(replied.saturating_duration_since(begin));
            }
        }
        for (sheet, latencies) in [(&mut prompt, &mut to_prompt), (&mut reply, &mut to_reply)] {
            sheet.set(Metric::Operations, self.mentions as f64);
            sheet.set_latencies(latencies);
        }
        Ok(vec![prompt, reply])
    }

    async fn idle(&self) -> Result<Vec<Sheet>> {
        let label = format!("{} idle agents in one process", self.idle);
        progress(&format!("{label}, {} s", self.idle_s));
        let colony = self.colony()?;
        let agents = (0..self.idle).map(|n| colony.agent(n)).collect::<Result<Vec<_>>>()?;
        let home = colony.home(0, 0, &agents, colony::IDLE_BACKEND)?;
        let mut owner = colony.owner().await?;
        owner.follow(&agents.iter().map(colony::Agent::pubkey).collect::<Vec<_>>()).await?;
        let instance = colony.run(&home)?;
        owner.leases_of_all(self.idle).await?;
        tokio::time::sleep(SETTLE_MANY).await;
        let pids = [instance.pid(), colony.relay_pid()];
        let cpu = |pid: u32| meter::cpu_seconds(&pid.to_string()).context("a process has ended");
        let (before, begin) = ([cpu(pids[0])?, cpu(pids[1])?], Instant::now());
        tokio::time::sleep(Duration::from_secs_f64(self.idle_s)).await;
        let seconds = begin.elapsed().as_secs_f64();
        let labels = [label.clone(), format!("the relay beside {label}")];
        let mut sheets = Vec::new();
        for ((pid, before), label) in pids.into_iter().zip(before).zip(labels) {
            let mut sheet = Sheet::new(label);
            let memory = meter::memory(pid)?;
            sheet.set(Metric::Seconds, seconds);
            sheet.set(Metric::CpuPercent, 100.0 * (cpu(pid)? - before) / seconds);
            sheet.set(Metric::ServerRssMib, memory.resident / 1024.0);
            sheet.set(Metric::ServerAnonMib, memory.anonymous / 1024.0);
            sheets.push(sheet);
        }
        Ok(sheets)
    }
}
