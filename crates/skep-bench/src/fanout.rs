//! Fan-out: one publisher, S subscribers, and every delivery that is due counted.
//!
//! The share of subscribers that an event concerns is given in percent: at 100 each hears everything, at 1 each event
//! is for one in a hundred. Latency is from just before the send to the receipt.
//! Must not: end with deliveries missing and call it a result.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use skep_proto::{Draft, Kind};
use tokio::task::JoinSet;

use crate::answer::Answer;
use crate::cli::{Common, at_least_one, unix_now};
use crate::conn::{Buffers, Conn};
use crate::corpus::{Signed, keypair, on_all_cores};
use crate::flow::{Feed, Progress, Publisher, Tally, join_all};
use crate::latency::Latencies;
use crate::meter::Meter;
use crate::sheet::{Metric, Outcome, Sheet};

/// Digits of an event's number in its content.
const DIGITS: usize = 8;

/// From this many subscribers on, each reads into a small buffer.
const NARROW_FROM: usize = 200;

#[derive(Debug, Clone, Args)]
pub struct Fanout {
    #[command(flatten)]
    pub common: Common,
    /// Subscribers, each with a connection and one subscription
    #[arg(long, short, default_value_t = 100, value_parser = at_least_one)]
    pub subscribers: usize,
    /// How many percent of the subscribers each event concerns, 1 to 100
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub matching: u32,
    /// Events published
    #[arg(long, default_value_t = 2_000, value_parser = at_least_one)]
    pub events: usize,
    /// Events in flight of the publisher
    #[arg(long, short, default_value_t = 32, value_parser = at_least_one)]
    pub window: usize,
    /// Publish on a schedule of this many events a second, in place of a window
    #[arg(long)]
    pub rate: Option<f64>,
    /// Kind of the events; 20000 to 29999 are ephemeral
    #[arg(long, default_value_t = 1)]
    pub kind: u16,
    /// Content of each, in bytes
    #[arg(long, default_value_t = 300)]
    pub content_bytes: usize,
}

/// What the run shares: its mark, who gets what, and when each event left.
struct Plan {
    /// In the content of each event, before its number: a text that occurs nowhere else.
    mark: String,
    groups: usize,
    events: usize,
    start: Instant,
    /// Nanoseconds after `start`.
    sent: Vec<AtomicU64>,
}

impl Plan {
    /// Events that one group is to receive.
    fn due(&self, group: usize) -> usize {
        (self.events + self.groups - 1 - group) / self.groups
    }
}

/// What one subscriber heard.
struct Heard {
    group: usize,
    seen: Vec<bool>,
    received: usize,
    /// Twice, or of another group.
    unwanted: u64,
    latencies: Latencies,
    last: Duration,
}

impl Fanout {
    pub fn run(&self) -> Result<Outcome> {
        ensure!(self.rate.is_none_or(|rate| rate > 0.0), "--rate must be above 0");
        ensure!(self.events < 10usize.pow(DIGITS as u32), "--events must be below 10^{DIGITS}");
        self.common.repeat("fanout", || Ok(vec![self.common.block_on(self.measure())?]))
    }

    async fn measure(&self) -> Result<Sheet> {
        let plan = Arc::new(Plan {
            mark: format!("fanout {:016x} ", rand::random::<u64>()),
            groups: (100 / self.matching) as usize,
            events: self.events,
            start: Instant::now(),
            sent: (0..self.events).map(|_| AtomicU64::new(0)).collect(),
        });
        let events = self.sign(&plan)?;
        let mut sheet = Sheet::new(self.label());
        let target = self.common.target()?;
        let buffers = if self.subscribers < NARROW_FROM { Buffers::Wide } else { Buffers::Narrow };
        let mut conns = Conn::open_all(&target, buffers, self.subscribers + 1).await?;
        let publisher = conns.pop().context("the publisher has a connection")?;
        self.subscribe(&mut conns, &plan).await?;

        let progress = Arc::new(Progress::default());
        let meter = Meter::start(self.common.pid);
        let first = plan.start.elapsed();
        let mut listeners = JoinSet::new();
        let mut all = Vec::with_capacity(self.subscribers);
        for (index, conn) in conns.into_iter().enumerate() {
            let heard = Arc::new(Mutex::new(Heard::new(&plan, index % plan.groups)));
            all.push(Arc::clone(&heard));
            listeners.spawn(listen(conn, heard, Arc::clone(&plan), Arc::clone(&progress)));
        }
        let tally = self.publish(publisher, events, &plan, &progress).await?;
        // A listener ends when it has all that is due. One that never does is cut here, and shows on the sheet.
        let ended = join_all(listeners, &progress, self.common.stall()).await;
        self.write(&mut sheet, meter, &plan, &all, tally, first)?;
        if let Err(error) = ended {
            sheet.fault(format!("{error:#}"));
        }
        Ok(sheet)
    }

    fn label(&self) -> String {
        let pace = self.rate.map_or_else(|| format!("window {}", self.window), |rate| format!("{rate}/s"));
        format!("{} subscribers, {} % matching, {pace}", self.subscribers, self.matching)
    }

    /// Event `n` concerns group `n % groups`, and names it in a `t` tag.
    fn sign(&self, plan: &Plan) -> Result<Vec<Signed>> {
        let keys = keypair(rand::random(), 0)?;
        let now = unix_now();
        Ok(on_all_cores(0..plan.events, |index| {
            let mut content = format!("{}{index:0DIGITS$} ", plan.mark);
            content.extend(std::iter::repeat_n('x', self.content_bytes.saturating_sub(content.len())));
            let tag = ["t", &group_name(plan, index % plan.groups)];
            vec![Signed::new(&Draft::new(Kind(self.kind), now, content).tag(tag).sign(&keys, &[0; 32]))]
        }))
    }

    async fn subscribe(&self, conns: &mut [Conn], plan: &Plan) -> Result<()> {
        for (index, conn) in conns.iter_mut().enumerate() {
            let condition = match plan.groups {
                1 => format!(r#""since":{}"#, unix_now() - 60),
                _ => format!(r##""#t":["{}"]"##, group_name(plan, index % plan.groups)),
            };
            let req = format!(r#"["REQ","f",{{"kinds":[{}],{condition},"limit":1}}]"#, self.kind);
            conn.subscribe(req, self.common.stall()).await?;
        }
        Ok(())
    }

    async fn publish(
        &self,
        conn: Conn,
        events: Vec<Signed>,
        plan: &Arc<Plan>,
        progress: &Arc<Progress>,
    ) -> Result<Tally> {
        let times = Arc::clone(plan);
        let mark = move |index: usize| times.sent[index].store(nanos(times.start.elapsed()), Ordering::Relaxed);
        let publisher = Publisher::new(conn, Feed::new(events), Arc::clone(progress), mark);
        let mut task = JoinSet::new();
        match self.rate {
            Some(rate) => task.spawn(publisher.run_paced(Duration::from_secs_f64(1.0 / rate))),
            None => task.spawn(publisher.run_closed(self.window)),
        };
        let mut total = Tally::default();
        join_all(task, progress, self.common.stall()).await?.into_iter().for_each(|(tally, _)| total.merge(tally));
        Ok(total)
    }

    fn write(
        &self,
        sheet: &mut Sheet,
        meter: Meter,
        plan: &Plan,
        all: &[Arc<Mutex<Heard>>],
        mut tally: Tally,
        first: Duration,
    ) -> Result<()> {
        // The publisher's refusals are faults; its rate and latencies are not what this measures.
        tally.write_to(sheet, 1.0);
        let (mut received, mut missing, mut unwanted) = (0, 0, 0);
        let (mut latencies, mut last) = (Latencies::default(), first);
        for heard in all {
            let mut heard = heard.lock().ok().context("a listener panicked")?;
            received += heard.received as u64;
            missing += plan.due(heard.group) - heard.received;
            unwanted += heard.unwanted;
            last = last.max(heard.last);
            latencies.merge(std::mem::take(&mut heard.latencies));
        }
        meter.stop(received, sheet);
        sheet.set_rate(received, (last - first).as_secs_f64());
        sheet.set_latencies(&mut latencies);
        sheet.set(Metric::Missing, missing as f64);
        if missing > 0 {
            sheet.fault(format!("{missing} of {} deliveries are missing", missing as u64 + received));
        }
        if unwanted > 0 {
            sheet.fault(format!("{unwanted} deliveries came twice or to the wrong subscriber"));
        }
        Ok(())
    }
}

fn group_name(plan: &Plan, group: usize) -> String {
    format!("{}{group}", plan.mark.replace(' ', "-"))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Heard {
    fn new(plan: &Plan, group: usize) -> Self {
        let seen = vec![false; plan.events];
        Self { group, seen, received: 0, unwanted: 0, latencies: Latencies::default(), last: Duration::ZERO }
    }

    fn handle_event(&mut self, index: usize, plan: &Plan) {
        let wanted = index % plan.groups == self.group && !std::mem::replace(&mut self.seen[index], true);
        if !wanted {
            self.unwanted += 1;
            return;
        }
        self.last = plan.start.elapsed();
        let sent = Duration::from_nanos(plan.sent[index].load(Ordering::Relaxed));
        self.latencies.record(self.last.saturating_sub(sent));
        self.received += 1;
    }
}

/// Reads until everything that is due has come.
async fn listen(mut conn: Conn, heard: Arc<Mutex<Heard>>, plan: Arc<Plan>, progress: Arc<Progress>) -> Result<()> {
    let mut finder = Finder { mark: plan.mark.clone(), hint: 0 };
    loop {
        let mut next = Some(conn.recv().await?);
        let mut heard_now = 0;
        while let Some(text) = next {
            heard_now += 1;
            match Answer::read(&text) {
                Answer::Event => {
                    let index = finder.index(&text).filter(|&index| index < plan.events);
                    let mut heard = heard.lock().ok().context("a listener panicked")?;
                    if let Some(index) = index {
                        heard.handle_event(index, &plan);
                    }
                    if heard.received == plan.due(heard.group) {
                        progress.add(heard_now);
                        return Ok(());
                    }
                }
                Answer::Closed { message } => bail!("the relay ended a subscription: {message}"),
                Answer::Notice { message } => progress.notice(message),
                _ => {}
            }
            next = conn.try_recv()?;
        }
        progress.add(heard_now);
    }
}

/// Finds an event's number without parsing: in the same place as in the last message, or wherever the mark is.
struct Finder {
    mark: String,
    hint: usize,
}

impl Finder {
    fn index(&mut self, text: &str) -> Option<usize> {
        let at_hint = text.as_bytes().get(self.hint..).is_some_and(|rest| rest.starts_with(self.mark.as_bytes()));
        if !at_hint {
            self.hint = text.find(&self.mark)?;
        }
        let digits = self.hint + self.mark.len();
        text.get(digits..digits + DIGITS)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_wherever_the_relay_puts_the_content() {
        let mut finder = Finder { mark: "mark ".into(), hint: 0 };
        assert_eq!(finder.index(r#"["EVENT","f",{"content":"mark 00000012 x"}]"#), Some(12));
        assert_eq!(finder.index(r#"["EVENT","f",{"content":"mark 00000013 x"}]"#), Some(13));
        assert_eq!(finder.index(r#"["EVENT","f",{"id":"ab","content":"mark 00000014 x"}]"#), Some(14));
        assert_eq!(finder.index(r#"["EVENT","f",{"content":"other"}]"#), None);
        assert_eq!(finder.index(r#"["EVENT","f",{"content":"mark 12"}]"#), None);
    }

    #[test]
    fn what_is_due_to_all_groups_is_every_event() {
        let plan = Plan { mark: String::new(), groups: 7, events: 100, start: Instant::now(), sent: Vec::new() };
        assert_eq!((0..7).map(|group| plan.due(group)).sum::<usize>(), 100);
    }
}
