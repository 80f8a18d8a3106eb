//! `skep-bench`: the load tool. It measures any Nostr relay by its URL, and the machine that both run on.
//!
//! Each mode is a module that turns arguments into sheets of numbers (`sheet`). `flow` publishes, `conn` speaks
//! WebSocket, `corpus` makes events, `meter` reads `/proc`, `report` runs everything and writes the page.
//! Must not: depend on the relay's crates beyond its wire types, or know one relay from another; `agents` alone needs a
//! binary that runs agents as skep does.

mod agents;
mod answer;
mod cli;
mod conn;
mod corpus;
mod fanout;
mod flow;
mod idle;
mod ingest;
mod latency;
mod meter;
mod preload;
mod publish;
mod query;
mod raw;
mod reconcile;
mod report;
mod sheet;
mod target;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::sheet::Outcome;

/// Load tool for Nostr relays.
#[derive(Debug, Parser)]
#[command(name = "skep-bench", version, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

const EXAMPLES: &str = "\
Examples:
  skep-bench ingest --connections 8 --window 64 --runs 5 --pid $(pidof relay)
  skep-bench publish --url ws://127.0.0.1:7778 --rate 100
  skep-bench preload --events 1000000
  skep-bench query --types id,author --connections 1,8,32
  skep-bench fanout --subscribers 1000 --matching 1
  skep-bench idle --connections 10000 --pid $(pidof relay)
  skep-bench raw --dir /var/lib/relay --json
  skep-bench agents --skep-bin target/release/skep
  skep-bench report --relay-bin target/release/skep --quick
  skep-bench report --url ws://127.0.0.1:7777 --beside strfry=ws://127.0.0.1:7778

Exit codes:
  0  measured
  1  could not measure
  2  wrong usage
  3  measured, but the relay did not do all that was asked; the FAULT lines say what

Latencies are of single operations. Where the next operation waits for the last (ingest,
publish without --rate, query), a slow relay is asked for less: compare such latencies
only at equal rates.";

#[derive(Debug, Subcommand)]
enum Mode {
    /// Events stored a second, from N connections with a window each
    Ingest(ingest::Ingest),
    /// Latency from send to OK, one at a time or on a schedule
    Publish(publish::Publish),
    /// Fill a store for query, count and negentropy
    Preload(preload::Preload),
    /// Requests a second by type, over a preloaded store
    Query(query::Query),
    /// COUNT by author, #p and kind, over a preloaded store
    Count(query::Count),
    /// Reconcile with a preloaded store (NIP-77)
    Negentropy(reconcile::Reconcile),
    /// Deliveries a second to many subscribers
    Fanout(fanout::Fanout),
    /// Memory of idle connections
    Idle(idle::Idle),
    /// Agents of a skep binary: takeovers, the way to a prompt, the cost of idle ones
    Agents(agents::Agents),
    /// The backend that `agents` prompts
    #[command(hide = true)]
    Program(agents::Program),
    /// Limits of this machine: signatures, fsync, loopback
    Raw(raw::Raw),
    /// Measure everything and write a page
    Report(report::Report),
}

impl Mode {
    /// `None`: there is nothing to print.
    fn run(self) -> Result<Option<(Outcome, bool)>> {
        Ok(Some(match self {
            Self::Ingest(mode) => (mode.run()?, mode.common.json),
            Self::Publish(mode) => (mode.run()?, mode.common.json),
            Self::Preload(mode) => (mode.run()?, mode.common.json),
            Self::Query(mode) => (mode.run()?, mode.common.json),
            Self::Count(mode) => {
                let json = mode.common.json;
                (mode.run()?, json)
            }
            Self::Negentropy(mode) => (mode.run()?, mode.common.json),
            Self::Fanout(mode) => (mode.run()?, mode.common.json),
            Self::Idle(mode) => (mode.run()?, mode.common.json),
            Self::Raw(mode) => (mode.run()?, mode.json),
            Self::Agents(mode) => (mode.run()?, mode.json),
            Self::Program(mode) => {
                mode.run()?;
                return Ok(None);
            }
            Self::Report(mode) => (mode.run()?, mode.json),
        }))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let run = cli.mode.run().and_then(|ran| match ran {
        Some((outcome, json)) => print(&outcome, json).map(|()| outcome.is_faulty()),
        None => Ok(false),
    });
    match run {
        Ok(true) => ExitCode::from(3),
        Ok(false) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::from(1)
        }
    }
}

fn print(outcome: &Outcome, json: bool) -> Result<()> {
    let text = if json { serde_json::to_string(outcome)? + "\n" } else { outcome.to_text() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
