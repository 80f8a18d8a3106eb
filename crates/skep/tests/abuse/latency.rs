//! What others notice of each abuse: a well-behaved client's latency before it and during it.
//!
//! The figures are for a person, and for the benchmark report through `SKEP_REPORT`; a busy machine must not fail a
//! test. What is asserted is that every request was answered, and rightly.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_proto::{Draft, Kind};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use crate::bombs::{bombs, loaded, request};
use crate::load_harness::{Client, Relay, dial, keys, now, publication};
use crate::raw::{Raw, TEXT, frame};
use crate::{alone, notes, report};

const SAMPLES: usize = 300;

/// Time for an abuse to take hold, in samples that are not counted.
const WARM_UP: usize = 30;

/// Publishes a note and looks it up, again and again; the time of each round, shortest first.
async fn sample(client: &mut Client, count: usize) -> Vec<Duration> {
    let mut times = Vec::with_capacity(count);
    for event in notes(count as u64, 100) {
        let (message, filter) = (publication(&event), json!({ "ids": [event.id] }));
        let started = Instant::now();
        client.send(message).await;
        assert_eq!(client.answer_to(&event).await, (true, String::new()));
        let found = client.request("q", &filter).await;
        times.push(started.elapsed());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["id"], json!(event.id));
        client.send(r#"["CLOSE","q"]"#).await;
    }
    times.sort_unstable();
    times
}

fn micros(times: &[Duration], percent: usize) -> u64 {
    times[(times.len() - 1) * percent / 100].as_micros() as u64
}

/// Repeats `once` in `count` tasks until they are aborted.
fn repeat<F>(count: usize, once: impl Fn() -> F) -> Vec<JoinHandle<()>>
where
    F: Future<Output = ()> + Send + 'static,
{
    (0..count).map(|_| tokio::spawn(once())).collect()
}

/// 200 requests of which a byte comes every 50 ms, started again when they are cut.
fn slowloris(relay: &Arc<Relay>) -> Vec<JoinHandle<()>> {
    repeat(200, || {
        let relay = Arc::clone(relay);
        async move {
            loop {
                let mut stream = dial(relay.address, Ipv4Addr::LOCALHOST, None).await.unwrap();
                while stream.write_all(b"G").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    })
}

/// Four connections that send one bomb after another, as fast as they are answered.
fn filter_bombs(relay: &Arc<Relay>) -> Vec<JoinHandle<()>> {
    let requests: Arc<Vec<String>> = Arc::new(bombs().iter().map(|(_, filters, _)| request("s", filters)).collect());
    repeat(4, || {
        let (relay, requests) = (Arc::clone(relay), Arc::clone(&requests));
        async move {
            let mut client = Client::connect(&relay).await;
            for request in requests.iter().cycle() {
                client.send(request.clone()).await;
                while !client.recv_text().await.starts_with("[\"EOSE\"") {}
            }
        }
    })
}

/// Four clients that send noise until they are cut, and come again.
fn malformed_flood(relay: &Arc<Relay>) -> Vec<JoinHandle<()>> {
    // Made once: what this process spends on the flood, the relay cannot have.
    let bushy = format!("[\"EVENT\",{{\"x\":[{}7]}}]", "{\"a\":1},".repeat(60_000));
    let noise = Arc::new(frame(TEXT, true, true, bushy.as_bytes()).repeat(21));
    repeat(4, || {
        let (relay, noise) = (Arc::clone(relay), Arc::clone(&noise));
        async move {
            loop {
                let mut raw = Raw::open(&relay).await;
                raw.bytes(&noise).await;
                assert!(raw.end().await.is_some());
            }
        }
    })
}

/// 20 subscribers that never read, and what they do not read: 8 MB/s for each.
async fn silent_subscribers(relay: &Arc<Relay>) -> Vec<JoinHandle<()>> {
    let tasks = repeat(20, || {
        let relay = Arc::clone(relay);
        async move {
            loop {
                let mut silent = Client::connect_from(&relay, Ipv4Addr::LOCALHOST, Some(64 * 1024)).await;
                silent.request("s", &json!({ "kinds": [2], "limit": 0 })).await;
                // As long as it takes to be cut.
                tokio::time::sleep(Duration::from_secs(12)).await;
            }
        }
    });
    let relay = Arc::clone(relay);
    let traffic = tokio::spawn(async move {
        let (mut client, author) = (Client::connect(&relay).await, keys(9));
        for n in 0u64.. {
            let event = Draft::new(Kind(2), now(), format!("{n:040000}")).sign(&author, &[0; 32]);
            client.publish(&event).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    tasks.into_iter().chain([traffic]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_well_behaved_client_is_answered_rightly_during_every_abuse() {
    let _turn = alone().await;
    let relay = Arc::new(loaded().await);
    let mut client = Client::connect(&relay).await;
    let mut lines = vec![format!(
        "{:<20} {:>10} {:>10} {:>10} {:>10} {:>7}",
        "µs", "p50 before", "during", "p99 before", "during", "p50 x"
    )];
    for abuse in ["slowloris", "filter bombs", "malformed flood", "never-reading"] {
        sample(&mut client, WARM_UP).await;
        let before = sample(&mut client, SAMPLES).await;
        let tasks = match abuse {
            "slowloris" => slowloris(&relay),
            "filter bombs" => filter_bombs(&relay),
            "malformed flood" => malformed_flood(&relay),
            _ => silent_subscribers(&relay).await,
        };
        sample(&mut client, WARM_UP).await;
        let during = sample(&mut client, SAMPLES).await;
        for task in tasks {
            assert!(!task.is_finished(), "{abuse}: an attacker met something unexpected: {:?}", task.await);
            task.abort();
            let _ = task.await;
        }
        lines.push(line(abuse, &before, &during));
    }
    println!("{}", lines.join("\n"));
}

/// One abuse in the table, and in `SKEP_REPORT`.
fn line(abuse: &str, before: &[Duration], during: &[Duration]) -> String {
    let [p50, p50_during] = [before, during].map(|times| micros(times, 50));
    let [p99, p99_during] = [before, during].map(|times| micros(times, 99));
    let ratio = p50_during as f64 / p50 as f64;
    let figures: Value = json!({
        "case": format!("latency during {abuse}"), "samples": SAMPLES, "p50_before_us": p50, "p50_during_us": p50_during,
        "p99_before_us": p99, "p99_during_us": p99_during, "p50_ratio": ratio,
    });
    report(&format!("{abuse}: measured"), &figures);
    format!("{abuse:<20} {p50:>10} {p50_during:>10} {p99:>10} {p99_during:>10} {ratio:>7.2}")
}
