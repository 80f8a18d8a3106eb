//! Queries over a preloaded store: requests a second by type, from one connection and from many.
//!
//! Every answer is counted against what the manifest says must come: a fast wrong answer is a fault.

mod pool;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::answer::Answer;
use crate::cli::{Common, FromManifest};
use crate::conn::{Buffers, Conn, within};
use crate::corpus::{Manifest, mix};
use crate::flow::{Progress, join_all};
use crate::latency::Latencies;
use crate::meter::Meter;
use crate::sheet::{Metric, Outcome, Sheet};
use crate::target::Target;

use pool::{Request, requests};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Type {
    /// {"ids":[one]}
    Id,
    /// {"authors":[one],"limit":50}
    Author,
    /// {"kinds":[one],"limit":100}
    Kind,
    /// {"#p":[one],"limit":100}
    P,
    /// {"limit":500}
    Latest,
    /// COUNT {"authors":[one]}
    CountAuthor,
    /// COUNT {"#p":[one]}
    CountP,
    /// COUNT {"kinds":[one]}
    CountKind,
}

impl Type {
    pub const MIX: [Self; 6] = [Self::Id, Self::Author, Self::Kind, Self::P, Self::Latest, Self::CountAuthor];
    const COUNTS: [Self; 3] = [Self::CountAuthor, Self::CountP, Self::CountKind];

    pub fn label(self) -> &'static str {
        match self {
            Self::Id => "id lookup",
            Self::Author => "{author, limit 50}",
            Self::Kind => "{kind, limit 100}",
            Self::P => "{#p, limit 100}",
            Self::Latest => "{limit 500}",
            Self::CountAuthor => "COUNT by author",
            Self::CountP => "COUNT by #p",
            Self::CountKind => "COUNT by kind",
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct Query {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub from: FromManifest,
    /// Types, one after the other [default: all but count-p and count-kind]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub types: Vec<Type>,
    #[command(flatten)]
    pub load: Load,
}

/// How hard to ask.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// Connections, one measurement for each number
    #[arg(long, short, value_delimiter = ',', default_value = "1,32")]
    pub connections: Vec<usize>,
    /// Seconds for each measurement
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Requests for each measurement, in place of seconds
    #[arg(long)]
    pub requests: Option<u64>,
    /// Also CLOSE each subscription, in the same write as the next REQ, in place of using its name again
    #[arg(long)]
    pub close: bool,
}

#[derive(Debug, Clone, Args)]
pub struct Count {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub from: FromManifest,
    #[command(flatten)]
    pub load: Load,
}

impl Count {
    pub fn run(self) -> Result<Outcome> {
        let types = Type::COUNTS.to_vec();
        Query { common: self.common, from: self.from, types, load: self.load }.run_as("count")
    }
}

/// One connection's counts.
#[derive(Default)]
struct Heard {
    requests: u64,
    events: u64,
    refused: u64,
    wrong: u64,
    /// The first wrong or refused answer, for people.
    example: Option<String>,
    latencies: Latencies,
}

impl Query {
    pub fn run(&self) -> Result<Outcome> {
        self.run_as("query")
    }

    fn run_as(&self, mode: &'static str) -> Result<Outcome> {
        let corpus = Manifest::read(&self.from.manifest)?.corpus;
        let authors = corpus.authors()?;
        let shares = pool::Shares::of(&corpus);
        let types = if self.types.is_empty() { Type::MIX.to_vec() } else { self.types.clone() };
        let pools: Vec<_> =
            types.iter().map(|&kind| (kind, Arc::new(requests(kind, &corpus, &authors, &shares)))).collect();
        let target = self.common.target()?;
        self.common.repeat(mode, || {
            let mut sheets = Vec::new();
            for (kind, pool) in &pools {
                for &connections in &self.load.connections {
                    let label = format!("{}, {}", kind.label(), connections_label(connections));
                    sheets.push(self.common.block_on(self.measure(label, &target, pool, connections))?);
                }
            }
            Ok(sheets)
        })
    }

    async fn measure(
        &self,
        label: String,
        target: &Target,
        pool: &Arc<Vec<Request>>,
        connections: usize,
    ) -> Result<Sheet> {
        let mut conns = Conn::open_all(target, Buffers::Wide, connections.max(1)).await?;
        let progress = Arc::new(Progress::default());
        // One request to each connection before the clock: a first subscription allocates, an accept may be pending.
        let mut heard = Heard::default();
        for conn in &mut conns {
            let first = ask(conn, &pool[0], self.load.close, &mut heard, &progress);
            within(self.common.stall(), first).await.with_context(|| label.clone())?;
        }
        let budget = Arc::new(AtomicU64::new(self.load.requests.unwrap_or(u64::MAX)));
        let meter = Meter::start(self.common.pid);
        let start = Instant::now();
        let end = self.load.requests.is_none().then(|| start + Duration::from_secs_f64(self.load.seconds));
        let mut tasks = JoinSet::new();
        for (index, mut conn) in conns.into_iter().enumerate() {
            let (pool, progress, budget, close) =
                (Arc::clone(pool), Arc::clone(&progress), Arc::clone(&budget), self.load.close);
            tasks.spawn(async move {
                let mut heard = Heard::default();
                let mut at = mix(index as u64) as usize;
                let more = |budget: &AtomicU64| budget.fetch_sub(1, Ordering::Relaxed).cast_signed() > 0;
                while end.map_or_else(|| more(&budget), |end| Instant::now() < end) {
                    at += 1;
                    ask(&mut conn, &pool[at % pool.len()], close, &mut heard, &progress).await?;
                }
                Ok(heard)
            });
        }
        let all = join_all(tasks, &progress, self.common.stall()).await.with_context(|| label.clone())?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(write(label, all, seconds, meter))
    }
}

pub fn connections_label(connections: usize) -> String {
    if connections == 1 { "1 connection".into() } else { format!("{connections} connections") }
}

/// Sends one request and reads to its end.
async fn ask(conn: &mut Conn, request: &Request, close: bool, heard: &mut Heard, progress: &Progress) -> Result<()> {
    let sent = Instant::now();
    if close && heard.requests > 0 {
        conn.feed(Utf8Bytes::from_static(r#"["CLOSE","q"]"#)).await?;
    }
    conn.send(request.frame.clone()).await?;
    let mut events = 0;
    loop {
        let text = conn.recv().await?;
        let found = match Answer::read(&text) {
            Answer::Event => {
                events += 1;
                continue;
            }
            Answer::Eose => events,
            Answer::Count(count) => count,
            Answer::Closed { message } => {
                heard.refused += 1;
                heard.example.get_or_insert_with(|| format!("CLOSED {message}"));
                break;
            }
            Answer::Notice { message } => {
                progress.notice(message);
                continue;
            }
            Answer::Other => continue,
            other => bail!("unexpected answer to a request: {other:?}"),
        };
        heard.latencies.record(sent.elapsed());
        let right = if request.exact { found == request.expected } else { found >= request.expected };
        if !right {
            heard.wrong += 1;
            heard
                .example
                .get_or_insert_with(|| format!("{} gave {found}, expected {}", request.frame, request.expected));
        }
        break;
    }
    heard.requests += 1;
    heard.events += events;
    progress.add(1);
    Ok(())
}

fn write(label: String, all: Vec<Heard>, seconds: f64, meter: Meter) -> Sheet {
    let mut sheet = Sheet::new(label);
    let mut total = Heard::default();
    for heard in all {
        total.requests += heard.requests;
        total.events += heard.events;
        total.refused += heard.refused;
        total.wrong += heard.wrong;
        total.example = total.example.or(heard.example);
        total.latencies.merge(heard.latencies);
    }
    meter.stop(total.requests, &mut sheet);
    // Refused and wrong answers are no answers.
    sheet.set_rate(total.requests - total.refused - total.wrong, seconds);
    sheet.set(Metric::EventsPerSecond, total.events as f64 / seconds);
    sheet.set_latencies(&mut total.latencies);
    if total.refused + total.wrong > 0 {
        let example = total.example.unwrap_or_default();
        sheet.set(Metric::Refused, total.refused as f64);
        sheet.fault(format!(
            "{} requests refused, {} with a wrong answer, such as: {example}",
            total.refused, total.wrong
        ));
    }
    sheet
}
