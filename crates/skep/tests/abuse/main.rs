#![expect(clippy::unwrap_used, reason = "a test")]
//! Hostile, broken and slow clients against the real binary: each is answered or cut, each is counted, and nobody else
//! notices. Figures (latency, memory) are printed, and appended as JSON lines to the file that `SKEP_REPORT` names.

#[path = "../binary/mod.rs"]
#[expect(dead_code, reason = "other suites use the rest")]
mod binary;
#[path = "../load_harness/mod.rs"]
mod load_harness;

mod attack;
mod bombs;
mod corpus;
mod crowd;
mod frames;
mod http;
mod latency;
mod limits;
mod memory;
mod raw;
mod readers;
mod slow;

use std::fs::File;
use std::io::{Read as _, Write};
use std::time::{Duration, Instant};

use load_harness::{Client, Relay, keys, now, publication};
use serde_json::Value;
use skep_proto::{Draft, Kind, VerifiedEvent};
use tokio::sync::{Mutex, MutexGuard};

/// These tests measure memory and load the machine, so they take turns.
async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// A relay that limits nobody's rate: these tests are faster than any client should be.
const UNHURRIED: &str = "[relay.limits]
events_per_second = 0
events_per_second_per_ip = 0
events_per_second_per_pubkey = 0
requests_per_second = 0
http_requests_per_second_per_ip = 0
malformed_per_minute_per_ip = 0
";

/// Notes of `bytes` of content, all different, one second apart, by one key.
fn notes(count: u64, bytes: usize) -> Vec<VerifiedEvent> {
    static SERIES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let series = SERIES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let (author, first) = (keys(7), now() - count);
    let filling = "x".repeat(bytes);
    let note = |n| Draft::new(Kind(1), first + n, format!("{series}/{n} {filling}")).sign(&author, &[0; 32]);
    (0..count).map(note).collect()
}

/// Publishes in a pipeline, and checks that each is taken.
async fn publish_all(client: &mut Client, events: &[VerifiedEvent]) {
    for batch in events.chunks(50) {
        for event in batch {
            client.feed(publication(event)).await;
        }
        client.flush().await;
        for _ in batch {
            let (id, is_taken, text) = client.next_ok().await;
            assert!(is_taken && text.is_empty(), "{id}: {text}");
        }
    }
}

/// For what must come, on whatever machine: a test that meets it fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a condition that the relay tells nobody about.
async fn until(what: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_true().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{what}: not within {PATIENCE:?}");
}

/// What a rate lets pass at most between `begun` and now: its burst, and what each second since gave back.
fn passed(burst: u64, per_second: f64, begun: Instant) -> u64 {
    burst + (begun.elapsed().as_secs_f64() * per_second) as u64
}

/// Waits until everything was carried from the log into the index, which takes memory: one log, and nothing in it.
async fn until_at_rest(relay: &Relay) {
    until("the store is at rest", async || {
        let entries = std::fs::read_dir(relay.place.path().join("data")).unwrap().map(|entry| entry.unwrap());
        let logs: Vec<_> = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("log-")).collect();
        let [log] = logs.as_slice() else { return false };
        let mut head = [0; 16];
        File::open(log.path()).and_then(|mut log| log.read(&mut head)).is_ok() && head == [0; 16]
    })
    .await;
}

/// How often connections were cut for a reason.
async fn cut(relay: &Relay, reason: &str) -> u64 {
    relay.metric(&format!("cut_total{{reason=\"{reason}\"}}")).await
}

/// A line for the reader of the test's output, and one for `SKEP_REPORT`.
fn report(line: &str, figures: &Value) {
    println!("{line}");
    if let Some(path) = std::env::var_os("SKEP_REPORT") {
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "{figures}").unwrap();
    }
}
