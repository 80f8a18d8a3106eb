//! Results: a sheet of named numbers for each thing measured, medians over runs, and how they are printed.
//!
//! Must not: hide a fault. Whatever was not as it should be is on the sheet, and ends the program with code 1.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Serialize, Serializer};

use crate::latency::{Latencies, median};

macro_rules! metrics {
    ($($name:ident $key:literal $unit:literal $meaning:literal;)*) => {
        /// What a number on a sheet is. The order is the order of printing.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Metric { $(#[doc = $meaning] $name,)* }

        impl Metric {
            /// Its name in JSON, with the unit last.
            pub fn key(self) -> &'static str {
                match self { $(Self::$name => $key,)* }
            }

            pub fn unit(self) -> &'static str {
                match self { $(Self::$name => $unit,)* }
            }

            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

metrics! {
    Operations "operations" "" "operations";
    Seconds "seconds" "s" "time taken";
    PerSecond "per_second" "/s" "operations per second";
    EventsPerSecond "events_per_second" "/s" "events received per second";
    Stored "stored" "" "stored (OK true)";
    Duplicates "duplicates" "" "answered duplicate:";
    Refused "refused" "" "refused (OK false, CLOSED)";
    Missing "missing" "" "missing";
    P50Ms "latency_p50_ms" "ms" "latency p50";
    P99Ms "latency_p99_ms" "ms" "latency p99";
    MaxMs "latency_max_ms" "ms" "latency max";
    SendLagP99Ms "send_lag_p99_ms" "ms" "sent behind schedule, p99";
    ServerCpuUs "server_cpu_us_per_operation" "µs" "server CPU per operation";
    ClientCpuUs "client_cpu_us_per_operation" "µs" "client CPU per operation";
    OthersPercent "cpu_of_others_percent" "%" "CPU taken by other processes";
    CpuPercent "cpu_percent" "%" "CPU, of one core";
    ServerRssMib "server_rss_mib" "MiB" "server memory after, resident";
    ServerAnonMib "server_anonymous_mib" "MiB" "server memory after, its own";
    KibPerConnection "kib_per_connection" "KiB" "server memory per connection";
    Open "open_connections" "" "connections still open";
    Rounds "rounds" "" "rounds";
    SentBytes "sent_bytes" "B" "bytes sent";
    ReceivedBytes "received_bytes" "B" "bytes received";
    BytesPerEvent "bytes_per_event" "B" "disk per event";
    MibPerSecond "mib_per_second" "MiB/s" "throughput";
}

/// The numbers of one thing measured once.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sheet {
    pub label: String,
    #[serde(serialize_with = "by_key")]
    values: BTreeMap<Metric, f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
}

fn by_key<S: Serializer>(values: &BTreeMap<Metric, f64>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(values.iter().map(|(metric, value)| (metric.key(), value)))
}

impl Sheet {
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }

    pub fn set(&mut self, metric: Metric, value: f64) {
        self.values.insert(metric, value);
    }

    pub fn unset(&mut self, metric: Metric) {
        self.values.remove(&metric);
    }

    pub fn get(&self, metric: Metric) -> Option<f64> {
        self.values.get(&metric).copied()
    }

    pub fn fault(&mut self, text: impl Into<String>) {
        self.faults.push(text.into());
    }

    /// Count, time and rate of the operations.
    pub fn set_rate(&mut self, operations: u64, seconds: f64) {
        self.set(Metric::Operations, operations as f64);
        self.set(Metric::Seconds, seconds);
        self.set(Metric::PerSecond, operations as f64 / seconds.max(1e-9));
    }

    pub fn set_latencies(&mut self, latencies: &mut Latencies) {
        if let Some(quantiles) = latencies.quantiles() {
            self.set(Metric::P50Ms, quantiles.p50);
            self.set(Metric::P99Ms, quantiles.p99);
            self.set(Metric::MaxMs, quantiles.max);
        }
    }
}

/// The sheets of all runs of one mode.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    pub runs: usize,
    /// Of each number over the runs; the faults of all runs.
    pub median: Vec<Sheet>,
    pub each: Vec<Vec<Sheet>>,
}

impl Outcome {
    /// Every run has the same sheets in the same order.
    pub fn new(mode: &'static str, relay: Option<String>, each: Vec<Vec<Sheet>>) -> Self {
        let sheets = each.iter().map(Vec::len).min().unwrap_or(0);
        let median = (0..sheets).map(|i| median_of(each.iter().map(|run| &run[i]))).collect();
        Self { mode, relay, runs: each.len(), median, each }
    }

    pub fn is_faulty(&self) -> bool {
        self.median.iter().any(|sheet| !sheet.faults.is_empty())
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for sheet in &self.median {
            let runs = if self.runs > 1 { format!("  (median of {})", self.runs) } else { String::new() };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{}: {}{runs}", self.mode, sheet.label);
            for (metric, value) in &sheet.values {
                let _ = writeln!(out, "  {:<28} {:>14} {}", metric.meaning(), number(*value), metric.unit());
            }
            for fault in &sheet.faults {
                let _ = writeln!(out, "  FAULT: {fault}");
            }
        }
        out
    }
}

fn median_of<'a>(runs: impl Iterator<Item = &'a Sheet>) -> Sheet {
    let runs: Vec<&Sheet> = runs.collect();
    let mut out = Sheet::new(runs.first().map_or("", |sheet| &sheet.label));
    let metrics: std::collections::BTreeSet<Metric> = runs.iter().flat_map(|run| run.values.keys().copied()).collect();
    for metric in metrics {
        if let Some(value) = median(runs.iter().filter_map(|run| run.get(metric)).collect()) {
            out.set(metric, value);
        }
    }
    out.faults = runs.iter().flat_map(|run| run.faults.clone()).collect();
    out.faults.dedup();
    out
}

/// Three significant digits at least, thousands with commas.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
    let mut out = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) && digit.is_ascii_digit() && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction.filter(|fraction| fraction.bytes().any(|digit| digit != b'0')) {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        let texts = [0.0, 0.1234, 2.0, 2.345, 12.34, 123.6, 1234.5, 1_234_567.0].map(number);
        assert_eq!(texts, ["0", "0.123", "2", "2.35", "12.3", "124", "1,234", "1,234,567"]);
    }

    #[test]
    fn a_fault_of_any_run_is_a_fault_of_the_outcome() {
        let mut bad = Sheet::new("x");
        bad.set(Metric::PerSecond, 3.0);
        bad.fault("2 missing");
        let mut good = Sheet::new("x");
        good.set(Metric::PerSecond, 1.0);
        let outcome = Outcome::new("m", None, vec![vec![good.clone()], vec![good], vec![bad]]);
        assert_eq!(outcome.median[0].get(Metric::PerSecond), Some(1.0));
        assert!(outcome.is_faulty());
    }
}
