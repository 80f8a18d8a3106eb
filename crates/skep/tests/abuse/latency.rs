//! What others notice of each abuse: a well-behaved client's latency before it and during it.
//!
//! The attackers are processes of their own that take from others only what they take through the relay
//! ([`crate::attack`]).
//!
//! The figures are for a person, and for the benchmark report through `SKEP_REPORT`; a busy machine must not fail a
//! test. What is asserted is that every request was answered, and rightly.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::attack::{Attack, Attacker, attack_if_told};
use crate::bombs::loaded;
use crate::load_harness::{Client, publication};
use crate::{alone, notes, report};

/// Rounds before and during each abuse, unless `SKEP_SAMPLES` says: enough to see that all are answered. A 99th
/// percentile to be told of wants thousands.
const SAMPLES: usize = 300;

/// Time for an abuse to take hold, in samples that are not counted.
const WARM_UP: usize = 30;

/// As a relay has them, but for the rates that the measured client itself goes beyond, and the places of one address,
/// which let few connections attack.
const LIMITS: &str = "[relay.limits]
events_per_second = 0
events_per_second_per_ip = 0
events_per_second_per_pubkey = 0
requests_per_second = 0
connections_per_ip = 1000
";

/// What an attacker's process is started with: it takes the first turn in the test below.
const THIS_TEST: &str = "latency::a_well_behaved_client_is_answered_rightly_during_every_abuse";

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

#[tokio::test(flavor = "multi_thread")]
async fn a_well_behaved_client_is_answered_rightly_during_every_abuse() {
    attack_if_told().await;
    let _turn = alone().await;
    let samples = std::env::var("SKEP_SAMPLES").map_or(SAMPLES, |text| text.parse().expect("SKEP_SAMPLES is a number"));
    let relay = loaded(LIMITS).await;
    let mut client = Client::connect(&relay).await;
    let mut lines = vec![format!(
        "{:<20} {:>10} {:>10} {:>7} {:>10} {:>10} {:>7}",
        "µs", "p50 before", "during", "p50 x", "p99 before", "during", "p99 x"
    )];
    for attack in Attack::ALL {
        let start = |attack| Attacker::start(attack, relay.address, THIS_TEST);
        let beside = attack.beside().map(start);
        sample(&mut client, WARM_UP).await;
        let before = sample(&mut client, samples).await;
        let mut attacker = start(attack);
        sample(&mut client, WARM_UP).await;
        let during = sample(&mut client, samples).await;
        attacker.assert_attacks();
        drop((attacker, beside));
        lines.push(line(attack.name(), &before, &during));
    }
    println!("{}", lines.join("\n"));
}

/// One abuse in the table, and in `SKEP_REPORT`.
fn line(abuse: &str, before: &[Duration], during: &[Duration]) -> String {
    let [p50, p50_during] = [before, during].map(|times| micros(times, 50));
    let [p99, p99_during] = [before, during].map(|times| micros(times, 99));
    let ratio = p50_during as f64 / p50 as f64;
    let ratio_99 = p99_during as f64 / p99 as f64;
    let figures: Value = json!({
        "case": format!("latency during {abuse}"), "samples": before.len(), "p50_before_us": p50, "p50_during_us": p50_during,
        "p99_before_us": p99, "p99_during_us": p99_during, "p50_ratio": ratio,
        "p99_ratio": ratio_99,
    });
    report(&format!("{abuse}: measured"), &figures);
    format!("{abuse:<20} {p50:>10} {p50_during:>10} {ratio:>7.2} {p99:>10} {p99_during:>10} {ratio_99:>7.2}")
}
