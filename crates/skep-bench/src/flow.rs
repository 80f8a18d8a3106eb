//! Publishing: a window of events in flight on each connection, and an OK awaited for each.
//!
//! Neighbours: `ingest`, `preload`, `publish` and `fanout` are this loop with different numbers.
//! Two shapes. *Closed*: the next event leaves when an OK comes, so a slow relay is asked for less; latency is then
//! what one waits with that window, not what a crowd would wait. *Paced*: events leave on a schedule whatever the
//! relay does; how far the sends themselves fell behind is measured too, so that no omission is hidden.
//! Must not: count anything but `OK true` without `duplicate:` as stored.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::JoinSet;

use crate::answer::Answer;
use crate::conn::Conn;
use crate::corpus::Signed;
use crate::latency::Latencies;
use crate::sheet::{Metric, Sheet};

/// Different reasons that are kept apart; the rest are counted together.
const REASONS_MAX: usize = 20;

/// Seen by all tasks of a run: whether anything still comes in.
#[derive(Default)]
pub struct Progress {
    answers: AtomicU64,
    last_notice: Mutex<Option<String>>,
}

impl Progress {
    pub fn add(&self, answers: u64) {
        self.answers.fetch_add(answers, Ordering::Relaxed);
    }

    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Relays explain themselves here when they do not answer otherwise.
    pub fn notice(&self, message: &str) {
        if let Ok(mut last) = self.last_notice.lock() {
            *last = Some(message.chars().take(200).collect());
        }
    }

    pub fn last_notice(&self) -> Option<String> {
        self.last_notice.lock().ok().and_then(|last| last.clone())
    }
}

/// Waits for all tasks; fails when one does, or when nothing comes in for `stall`.
pub async fn join_all<T: 'static>(
    mut tasks: JoinSet<Result<T>>,
    progress: &Progress,
    stall: Duration,
) -> Result<Vec<T>> {
    let mut all = Vec::with_capacity(tasks.len());
    let mut seen = progress.answers();
    loop {
        match tokio::time::timeout(stall, tasks.join_next()).await {
            Ok(None) => return Ok(all),
            Ok(Some(done)) => all.push(done??),
            Err(_) if progress.answers() == seen => {
                let notice = progress.last_notice().map_or(String::new(), |text| format!("; its last NOTICE: {text}"));
                bail!("the relay answered nothing for {} s{notice}", stall.as_secs());
            }
            Err(_) => seen = progress.answers(),
        }
    }
}

/// Events shared by connections: each takes the next one, so that no connection ends long before the others.
pub struct Feed {
    events: Vec<Signed>,
    next: AtomicUsize,
}

impl Feed {
    pub fn new(events: Vec<Signed>) -> Arc<Self> {
        Arc::new(Self { events, next: AtomicUsize::new(0) })
    }

    fn take(&self) -> Option<(usize, &Signed)> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        self.events.get(index).map(|event| (index, event))
    }
}

/// What became of published events.
#[derive(Debug, Default)]
pub struct Tally {
    pub stored: u64,
    pub duplicates: u64,
    pub refused: BTreeMap<String, u64>,
    /// From the send to the OK, of stored events.
    pub latencies: Latencies,
    /// How late each send was, when paced.
    pub lags: Latencies,
}

impl Tally {
    pub fn answered(&self) -> u64 {
        self.stored + self.duplicates + self.refused.values().sum::<u64>()
    }

    pub fn merge(&mut self, other: Self) {
        self.stored += other.stored;
        self.duplicates += other.duplicates;
        other.refused.into_iter().for_each(|(reason, count)| self.refuse(&reason, count));
        self.latencies.merge(other.latencies);
        self.lags.merge(other.lags);
    }

    fn refuse(&mut self, reason: &str, count: u64) {
        let known = self.refused.contains_key(reason) || self.refused.len() < REASONS_MAX;
        let reason: String = if known { reason.chars().take(100).collect() } else { "(other reasons)".into() };
        *self.refused.entry(reason).or_insert(0) += count;
    }

    /// Rates count stored events only; everything else is a fault.
    pub fn write_to(&mut self, sheet: &mut Sheet, seconds: f64) {
        sheet.set_rate(self.stored, seconds);
        sheet.set(Metric::Stored, self.stored as f64);
        sheet.set_latencies(&mut self.latencies);
        if let Some(lags) = self.lags.quantiles() {
            sheet.set(Metric::SendLagP99Ms, lags.p99);
        }
        if self.duplicates > 0 {
            sheet.set(Metric::Duplicates, self.duplicates as f64);
            sheet.fault(format!("{} events were there already (duplicate:)", self.duplicates));
        }
        if !self.refused.is_empty() {
            sheet.set(Metric::Refused, self.refused.values().sum::<u64>() as f64);
        }
        for (reason, count) in &self.refused {
            sheet.fault(format!("{count} events refused: {reason}"));
        }
    }
}

/// One connection's side of a publication.
pub struct Publisher<M> {
    pub conn: Conn,
    pub feed: Arc<Feed>,
    pub progress: Arc<Progress>,
    /// Told the number of each event just before it is sent.
    pub mark: M,
    in_flight: VecDeque<([u8; 64], Instant)>,
    tally: Tally,
}

impl<M: FnMut(usize)> Publisher<M> {
    pub fn new(conn: Conn, feed: Arc<Feed>, progress: Arc<Progress>, mark: M) -> Self {
        Self { conn, feed, progress, mark, in_flight: VecDeque::new(), tally: Tally::default() }
    }

    /// Closed loop: `window` events in flight until the feed is empty.
    pub async fn run_closed(mut self, window: usize) -> Result<(Tally, Conn)> {
        loop {
            while self.in_flight.len() < window && self.feed_next().await? {}
            if self.in_flight.is_empty() {
                return Ok((self.tally, self.conn));
            }
            self.conn.flush().await?;
            self.hear().await?;
        }
    }

    /// Paced: one event every `interval`, whatever is in flight.
    pub async fn run_paced(mut self, interval: Duration) -> Result<(Tally, Conn)> {
        let mut due = tokio::time::Instant::now();
        let mut more = true;
        while more || !self.in_flight.is_empty() {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due), if more => {
                    let now = tokio::time::Instant::now();
                    while more && due <= now {
                        more = self.feed_next().await?;
                        self.tally.lags.record(now - due);
                        due += interval;
                    }
                    self.conn.flush().await?;
                }
                heard = self.hear() => heard?,
            }
        }
        Ok((self.tally, self.conn))
    }

    async fn feed_next(&mut self) -> Result<bool> {
        let Some((index, event)) = self.feed.take() else { return Ok(false) };
        (self.mark)(index);
        self.in_flight.push_back((event.id, Instant::now()));
        self.conn.feed(event.frame.clone()).await?;
        Ok(true)
    }

    /// Waits for one message, then takes all that are there. Cancel-safe: it awaits only the first.
    async fn hear(&mut self) -> Result<()> {
        let mut text = self.conn.recv().await?;
        let mut heard = 0;
        loop {
            heard += self.handle_message(&text, Instant::now())?;
            match self.conn.try_recv()? {
                Some(next) => text = next,
                None => break,
            }
        }
        self.progress.add(heard);
        Ok(())
    }

    /// How many events the message answers: one or none.
    fn handle_message(&mut self, text: &str, now: Instant) -> Result<u64> {
        let (id, accepted, message) = match Answer::read(text) {
            Answer::Ok { id, accepted, message } => (id, accepted, message),
            Answer::Notice { message } => {
                self.progress.notice(message);
                return Ok(0);
            }
            _ => return Ok(0),
        };
        // Most relays answer in order: the first is usually the one.
        let Some(at) = self.in_flight.iter().position(|(sent, _)| sent == id.as_bytes()) else {
            bail!("the relay sent an OK for an event that is not in flight: {}", &text[..text.len().min(160)]);
        };
        let sent = self.in_flight.remove(at).map_or(now, |(_, sent)| sent);
        match (accepted, message.starts_with("duplicate:")) {
            (true, false) => {
                self.tally.stored += 1;
                self.tally.latencies.record(now - sent);
            }
            (_, true) => self.tally.duplicates += 1,
            (false, false) => self.tally.refuse(message, 1),
        }
        Ok(1)
    }
}

/// Publishes `events` over `conns`, and gives the connections back. Also the seconds from first send to last OK.
pub async fn publish_all(
    conns: Vec<Conn>,
    events: Vec<Signed>,
    window: usize,
    stall: Duration,
) -> Result<(Tally, f64, Vec<Conn>)> {
    let progress = Arc::new(Progress::default());
    let feed = Feed::new(events);
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for conn in conns {
        let publisher = Publisher::new(conn, Arc::clone(&feed), Arc::clone(&progress), |_| {});
        tasks.spawn(publisher.run_closed(window));
    }
    let done = join_all(tasks, &progress, stall).await?;
    let seconds = start.elapsed().as_secs_f64();
    let mut total = Tally::default();
    let mut conns = Vec::with_capacity(done.len());
    for (tally, conn) in done {
        total.merge(tally);
        conns.push(conn);
    }
    Ok((total, seconds, conns))
}
