//! What the report measures of one relay, in order, and the figures that go on the page.

use std::path::PathBuf;

use anyhow::Result;

use super::relay::RelayProcess;
use super::{Report, reference};
use crate::agents::Agents;
use crate::cli::{Common, Events, FromManifest};
use crate::fanout::Fanout;
use crate::idle::Idle;
use crate::ingest::Ingest;
use crate::latency::median;
use crate::meter;
use crate::preload::Preload;
use crate::publish::Publish;
use crate::query::{Count, Load, Query, Type, connections_label};
use crate::reconcile::{Have, Reconcile};
use crate::sheet::{Metric, Outcome, Sheet};
use crate::target::RelayUrl;

const WRITING: &str = "Writing (300-byte content, an OK awaited for each)";
const STORE: &str = "Store";
const QUERIES: &str = "Queries: requests/s";
const QUERY_COST: &str = "Queries: latency and CPU";
const NEGENTROPY: &str = "Negentropy (NIP-77)";
const FANOUT: &str = "Fan-out";
const IDLE: &str = "Idle connections";
const AGENTS: &str = "Agents";

/// The sections of the page, in its order.
pub const SECTIONS: [&str; 8] = [WRITING, QUERIES, FANOUT, IDLE, STORE, AGENTS, NEGENTROPY, QUERY_COST];

/// The relay of one column.
pub struct Subject {
    pub name: String,
    url: RelayUrl,
    pid: Option<u32>,
    data: Option<PathBuf>,
    process: Option<RelayProcess>,
}

impl Subject {
    pub fn running(name: &str, url: &RelayUrl, pid: Option<u32>, data: Option<PathBuf>) -> Self {
        Self { name: name.into(), url: url.clone(), pid, data, process: None }
    }

    pub fn started(name: &str, process: RelayProcess) -> Self {
        let (url, pid, data) = (process.url.clone(), Some(process.pid()), Some(process.data()));
        Self { name: name.into(), url, pid, data, process: Some(process) }
    }
}

/// A line of the page.
pub struct Figure {
    pub section: &'static str,
    pub what: String,
    /// `None` where it could not be measured.
    pub value: Option<f64>,
    pub reference: Option<&'static str>,
}

/// Everything measured of one relay.
pub struct Column {
    pub name: String,
    pub figures: Vec<Figure>,
    pub outcomes: Vec<Outcome>,
    pub commands: Vec<String>,
}

impl Column {
    fn add(
        &mut self,
        section: &'static str,
        what: impl Into<String>,
        value: Option<f64>,
        reference: Option<&'static str>,
    ) {
        self.figures.push(Figure { section, what: what.into(), value, reference });
    }

    /// Runs a step, and gives its medians.
    fn step(&mut self, command: String, run: impl FnOnce() -> Result<Outcome>) -> Result<Vec<Sheet>> {
        eprintln!("{}: {command}", self.name);
        let outcome = run()?;
        self.commands.push(format!("skep-bench {command}"));
        let sheets = outcome.median.clone();
        self.outcomes.push(outcome);
        Ok(sheets)
    }

    /// Events that were stored, all runs together.
    fn stored(&self) -> f64 {
        let sheets = self.outcomes.iter().flat_map(|outcome| outcome.each.iter().flatten());
        sheets.filter_map(|sheet| sheet.get(Metric::Stored)).sum()
    }

    /// The median over all sheets: whether the machine was ours.
    pub fn cpu_of_others(&self) -> Option<f64> {
        let sheets = self.outcomes.iter().flat_map(|outcome| &outcome.median);
        median(sheets.filter_map(|sheet| sheet.get(Metric::OthersPercent)).collect())
    }

    pub fn faults(&self) -> impl Iterator<Item = String> + '_ {
        self.outcomes.iter().flat_map(|outcome| {
            let lines = |sheet: &Sheet| -> Vec<String> {
                sheet.faults.iter().map(|fault| format!("{}, {}: {fault}", outcome.mode, sheet.label)).collect()
            };
            outcome.median.iter().flat_map(lines).collect::<Vec<_>>()
        })
    }
}

/// All steps against one relay.
pub fn measure(report: &Report, mut subject: Subject) -> Result<Column> {
    let common =
        Common { url: subject.url.clone(), pid: subject.pid, runs: report.runs, threads: 1, stall_s: 60, json: false };
    let column = Column { name: subject.name.clone(), figures: Vec::new(), outcomes: Vec::new(), commands: Vec::new() };
    let scratch = tempfile::Builder::new().prefix("skep-bench-").tempdir_in(&report.dir)?;
    let manifest = scratch.path().join("skep-bench.json");
    let mut steps = Steps { report, common, column, manifest };
    // Before anything else was in the relay's memory: what a load gave back would be used again, and not counted.
    steps.idle(&mut subject)?;
    steps.write()?;
    steps.preload(&subject)?;
    steps.query()?;
    steps.count()?;
    steps.negentropy()?;
    steps.fanout()?;
    steps.start(&mut subject)?;
    steps.agents(&subject)?;
    Ok(steps.column)
}

struct Steps<'r> {
    report: &'r Report,
    common: Common,
    column: Column,
    manifest: PathBuf,
}

impl Steps<'_> {
    fn events(&self, full: usize) -> Events {
        Events { events: self.report.scaled(full), authors: 1_000, content_bytes: 300, seed: None }
    }

    fn from(&self) -> FromManifest {
        FromManifest { manifest: self.manifest.clone() }
    }

    /// Ingest and publish, into a store that is empty at first.
    fn write(&mut self) -> Result<()> {
        for (connections, reference) in [(8, reference::INGEST_8), (1, reference::INGEST_1)] {
            let events = self.events(if connections == 1 { 50_000 } else { 200_000 });
            let command = format!("ingest --connections {connections} --window 64 --events {}", events.events);
            let mode = Ingest { common: self.common.clone(), events, connections, window: 64 };
            let sheets = self.column.step(command, || mode.run())?;
            let name = format!("ingest, {connections} × window 64");
            self.column.add(WRITING, format!("{name}: events/s"), sheets[0].get(Metric::PerSecond), Some(reference));
            self.column.add(WRITING, format!("{name}: server CPU µs/event"), sheets[0].get(Metric::ServerCpuUs), None);
            self.column.add(WRITING, format!("{name}: client CPU µs/event"), sheets[0].get(Metric::ClientCpuUs), None);
            self.column.add(WRITING, format!("{name}: OK p50, ms"), sheets[0].get(Metric::P50Ms), None);
            self.column.add(WRITING, format!("{name}: OK p99, ms"), sheets[0].get(Metric::P99Ms), None);
        }
        for rate in [None, Some(100.0)] {
            let events = self.events(if rate.is_some() { 2_000 } else { 10_000 });
            let (arg, name) =
                rate.map_or(("", "publish, one at a time"), |_| (" --rate 100", "publish, 100/s on a schedule"));
            let command = format!("publish --events {}{arg}", events.events);
            let mode = Publish { common: self.common.clone(), events, rate };
            let sheets = self.column.step(command, || mode.run())?;
            for (metric, label) in [(Metric::P50Ms, "p50"), (Metric::P99Ms, "p99"), (Metric::MaxMs, "max")] {
                self.column.add(WRITING, format!("{name}: {label}, ms"), sheets[0].get(metric), None);
            }
        }
        Ok(())
    }

    fn preload(&mut self, subject: &Subject) -> Result<()> {
        let events = Events { events: self.report.events(), authors: 1_000, content_bytes: 300, seed: None };
        let command = format!("preload --events {}", events.events);
        let mode = Preload {
            common: self.common.clone(),
            events,
            connections: 8,
            window: 128,
            manifest: self.manifest.clone(),
            data: subject.data.clone(),
        };
        let sheets = self.column.step(command, || mode.run())?;
        let name = format!("{} events into a store", crate::sheet::number(self.report.events() as f64));
        self.column.add(STORE, format!("{name}, 8 × window 128: events/s"), sheets[0].get(Metric::PerSecond), None);
        let disk = sheets[0].get(Metric::BytesPerEvent);
        self.column.add(STORE, "disk bytes/event", disk, Some(reference::DISK_PER_EVENT));
        Ok(())
    }

    fn load(&self) -> Load {
        let seconds = if self.report.quick { 1.0 } else { 5.0 };
        Load { connections: vec![1, 32], seconds, requests: None, close: false }
    }

    fn query(&mut self) -> Result<()> {
        let load = self.load();
        let command = format!("query --connections 1,32 --seconds {}", load.seconds);
        let mode = Query { common: self.common.clone(), from: self.from(), types: Vec::new(), load };
        let sheets = self.column.step(command, || mode.run())?;
        let labels = Type::MIX.into_iter().flat_map(|kind| [(kind, 1), (kind, 32)]);
        for ((kind, connections), sheet) in labels.zip(&sheets) {
            let reference = reference::query(kind, connections);
            self.query_figures(kind, connections, sheet, reference);
        }
        Ok(())
    }

    fn count(&mut self) -> Result<()> {
        let load = self.load();
        let command = format!("count --connections 1,32 --seconds {}", load.seconds);
        let mode = Count { common: self.common.clone(), from: self.from(), load };
        let sheets = self.column.step(command, || mode.run())?;
        // The first two are COUNT by author, which the query mix has already.
        let labels = [Type::CountP, Type::CountKind].into_iter().flat_map(|kind| [(kind, 1), (kind, 32)]);
        for ((kind, connections), sheet) in labels.zip(sheets.iter().skip(2)) {
            self.query_figures(kind, connections, sheet, None);
        }
        Ok(())
    }

    fn query_figures(&mut self, kind: Type, connections: usize, sheet: &Sheet, reference: Option<&'static str>) {
        let name = format!("{}, {}", kind.label(), connections_label(connections));
        self.column.add(QUERIES, name.clone(), sheet.get(Metric::PerSecond), reference);
        self.column.add(QUERY_COST, format!("{name}: p50, ms"), sheet.get(Metric::P50Ms), None);
        self.column.add(QUERY_COST, format!("{name}: p99, ms"), sheet.get(Metric::P99Ms), None);
        self.column.add(QUERY_COST, format!("{name}: server CPU µs/request"), sheet.get(Metric::ServerCpuUs), None);
    }

    fn negentropy(&mut self) -> Result<()> {
        let have = vec![Have::Nothing, Have::Half, Have::All];
        let events = 100_000.min(self.report.events());
        let command = format!("negentropy --events {events}");
        let mode = Reconcile { common: self.common.clone(), from: self.from(), have, events, frame_bytes: 61_440 };
        for sheet in self.column.step(command, || mode.run())? {
            let name = sheet.label.clone();
            self.column.add(NEGENTROPY, format!("{name}: seconds"), sheet.get(Metric::Seconds), None);
            self.column.add(NEGENTROPY, format!("{name}: rounds"), sheet.get(Metric::Rounds), None);
            let bytes = sheet.get(Metric::SentBytes).zip(sheet.get(Metric::ReceivedBytes));
            let mib = bytes.map(|(sent, received)| (sent + received) / f64::from(1 << 20));
            self.column.add(NEGENTROPY, format!("{name}: MiB both ways"), mib, None);
        }
        Ok(())
    }

    fn fanout(&mut self) -> Result<()> {
        let cases = [
            (100, 100, 10_000, None),
            (1_000, 100, 1_000, None),
            (1_000, 1, 20_000, None),
            (100, 100, 1_000, Some(50.0)),
        ];
        for (subscribers, matching, events, rate) in cases {
            let events = self.report.scaled(events);
            let pace = rate.map_or(" --window 32".to_owned(), |rate: f64| format!(" --rate {rate}"));
            let command = format!("fanout --subscribers {subscribers} --matching {matching} --events {events}{pace}");
            let common = self.common.clone();
            let mode = Fanout { common, subscribers, matching, events, window: 32, rate, kind: 1, content_bytes: 300 };
            let sheets = self.column.step(command, || mode.run())?;
            let name = &sheets[0].label;
            if rate.is_none() {
                self.column.add(FANOUT, format!("{name}: deliveries/s"), sheets[0].get(Metric::PerSecond), None);
                let cpu = sheets[0].get(Metric::ServerCpuUs);
                self.column.add(FANOUT, format!("{name}: server CPU µs/delivery"), cpu, None);
            }
            self.column.add(FANOUT, format!("{name}: delivery p50, ms"), sheets[0].get(Metric::P50Ms), None);
            self.column.add(FANOUT, format!("{name}: delivery p99, ms"), sheets[0].get(Metric::P99Ms), None);
        }
        Ok(())
    }

    /// Each on a process that has done nothing yet; of a relay that runs already, only the first is.
    fn idle(&mut self, subject: &mut Subject) -> Result<()> {
        for subscribe in [false, true] {
            if subscribe && !self.restart(subject)? {
                continue;
            }
            let connections = self.report.scaled(10_000);
            let arg = if subscribe { " --subscribe" } else { "" };
            let command = format!("idle --connections {connections}{arg}");
            let common = Common { runs: 1, ..self.common.clone() };
            let mode = Idle { common, connections, hold_s: 5.0, subscribe };
            let sheets = self.column.step(command, || mode.run())?;
            let reference = (!subscribe).then_some(reference::KIB_PER_CONNECTION);
            let name = format!("KiB/connection, {}", sheets[0].label);
            self.column.add(IDLE, name, sheets[0].get(Metric::KibPerConnection), reference);
        }
        self.restart(subject)?;
        Ok(())
    }

    /// With a relay and instances of its own, where the relay's binary is one that runs agents.
    fn agents(&mut self, subject: &Subject) -> Result<()> {
        let Some(bin) = self.report.relay_bin.as_ref().filter(|_| subject.process.is_some()) else { return Ok(()) };
        let mode = Agents {
            skep_bin: bin.clone(),
            dir: self.report.dir.clone(),
            takeovers: self.report.scaled(30),
            lease_takeovers: self.report.scaled(10),
            mentions: self.report.scaled(500),
            idle: 50,
            idle_s: if self.report.quick { 5.0 } else { 30.0 },
            json: false,
        };
        let bin = bin.display();
        for sheet in self.column.step(format!("agents --skep-bin {bin}"), || mode.run())? {
            let label = &sheet.label;
            for (metric, unit) in [
                (Metric::P50Ms, "p50, ms"),
                (Metric::P99Ms, "p99, ms"),
                (Metric::MaxMs, "max, ms"),
                (Metric::CpuPercent, "CPU, % of one core"),
                (Metric::ServerRssMib, "resident memory, MiB"),
            ] {
                if let Some(value) = sheet.get(metric) {
                    self.column.add(AGENTS, format!("{label}: {unit}"), Some(value), None);
                }
            }
        }
        Ok(())
    }

    /// Stops and starts the relay, if the report started it; says whether it did.
    fn restart(&mut self, subject: &mut Subject) -> Result<bool> {
        let Some(process) = &mut subject.process else { return Ok(false) };
        process.restart()?;
        // Another port, another pid.
        (self.common.url, self.common.pid) = (process.url.clone(), Some(process.pid()));
        Ok(true)
    }

    fn start(&mut self, subject: &mut Subject) -> Result<()> {
        let mut ms = Vec::new();
        for _ in 0..self.report.runs {
            eprintln!("{}: restart", self.column.name);
            if self.restart(subject)? {
                ms.extend(subject.process.as_ref().map(|process| process.took.as_secs_f64() * 1e3));
            }
        }
        let stored = self.column.stored();
        let name = format!("start to ready with {} events, ms", crate::sheet::number(stored));
        self.column.add(STORE, name, median(ms), None);
        let settled = subject.process.as_ref().map(|process| meter::disk_bytes(&process.data())).transpose()?;
        let per_event = settled.map(|bytes| bytes as f64 / stored.max(1.0));
        self.column.add(STORE, "disk bytes/event, all of them, after the restart", per_event, None);
        Ok(())
    }
}
