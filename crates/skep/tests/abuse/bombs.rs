//! Filters that cost as much as the limits allow, over a store of ten thousand events.

use serde_json::{Value, json};
use skep_proto::{Draft, Kind, VerifiedEvent};

use crate::load_harness::{Client, Relay, keys, now, pubkey};
use crate::{UNHURRIED, alone, cut, publish_all};

/// Events of a loaded relay.
pub const STORED: usize = 10_000;

/// Authors, kinds and topics among them.
const AUTHORS: u64 = 50;
const KINDS: u16 = 20;
const TOPICS: usize = 500;

/// Ten thousand small events by 50 authors, of 20 kinds, on 500 topics.
pub fn load() -> Vec<VerifiedEvent> {
    let authors: Vec<_> = (1..=AUTHORS).map(keys).collect();
    let first = now() - STORED as u64;
    (0..STORED)
        .map(|n| {
            let kind = Kind(1_000 + n as u16 % KINDS);
            let draft = Draft::new(kind, first + n as u64, format!("event {n}")).tag(["t", &topic(n % TOPICS)]);
            draft.sign(&authors[n / usize::from(KINDS) % authors.len()], &[0; 32])
        })
        .collect()
}

fn topic(n: usize) -> String {
    format!("topic-{n}")
}

/// A relay that holds them; of its limits, for `[relay.limits]`, it has these instead of the usual.
pub async fn loaded(limits: &str) -> Relay {
    let relay = Relay::start(limits);
    publish_all(&mut Client::connect(&relay).await, &load()).await;
    relay
}

/// Each bomb: its name, its filters, and how many stored events it finds.
pub fn bombs() -> Vec<(&'static str, Vec<Value>, usize)> {
    let real: Vec<String> = (1..=AUTHORS).map(|n| pubkey(&keys(n)).to_hex()).collect();
    let strangers = |count: usize| (0..count).map(|n| format!("{:064x}", n + (1 << 20)));
    let all_kinds: Vec<u16> = (0..100).map(|n| 1_000 + n).collect();
    let authors: Vec<String> = strangers(4_850).chain(real.clone()).collect();
    let tags = |from: usize| (0..250).map(move |n| topic(from * 25 + n));
    let unknown_tags = |from: usize| (0..250).map(move |n| format!("none {from}/{n}"));
    vec![
        ("4,900 authors x 100 kinds", vec![json!({ "authors": authors, "kinds": all_kinds })], 5_000),
        ("4,900 authors, one event", vec![json!({ "authors": authors, "limit": 1 })], 1),
        ("5,000 ids that are not here", vec![json!({ "ids": strangers(5_000).collect::<Vec<_>>() })], 0),
        (
            "20 filters x 250 topics",
            (0..20).map(|n| json!({ "#t": tags(n).collect::<Vec<_>>(), "limit": 250 })).collect(),
            // Each filter serves its newest 250; they overlap, so it is counted below and only bounded here.
            usize::MAX,
        ),
        (
            "20 filters x 250 unknown topics",
            (0..20).map(|n| json!({ "#t": unknown_tags(n).collect::<Vec<_>>() })).collect(),
            0,
        ),
        ("20 times everything", vec![json!({}); 20], 5_000),
        (
            "every event, none matches",
            vec![
                json!({ "kinds": all_kinds, "#e": ["no"], "authors": real[..1].to_vec() }),
                json!({ "#t": [topic(0)], "#e": ["no"] }),
            ],
            0,
        ),
    ]
}

/// The REQ of some filters.
pub fn request(sub: &str, filters: &[Value]) -> String {
    let parts: Vec<Value> = [json!("REQ"), json!(sub)].into_iter().chain(filters.iter().cloned()).collect();
    Value::from(parts).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_bomb_is_answered_in_full_and_once() {
    let _turn = alone().await;
    let mut relay = loaded(UNHURRIED).await;
    let before = relay.memory_kib("RssAnon");
    for (name, filters, found) in bombs() {
        let mut client = Client::connect(&relay).await;
        client.send(request("s", &filters)).await;
        let mut ids = Vec::new();
        loop {
            let message = client.recv().await;
            match message[0].as_str().unwrap() {
                "EVENT" => ids.push(message[2]["id"].as_str().unwrap().to_owned()),
                "EOSE" => break,
                _ => panic!("{name}: {message}"),
            }
        }
        let served = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), served, "{name}: an event came twice");
        assert!(served == found || (found == usize::MAX && (250..=5_000).contains(&served)), "{name}: {served} events");
        let ask: Vec<Value> = [json!("COUNT"), json!("c")].into_iter().chain(filters).collect();
        client.send(Value::from(ask).to_string()).await;
        let count = client.recv().await;
        assert!(count[2]["count"].as_u64().unwrap() >= served as u64, "{name}: {count}");
    }
    relay.assert_alive();
    let grown = relay.memory_kib("RssAnon").saturating_sub(before);
    println!("filter bombs: the relay's memory grew by {grown} KiB");
    assert!(grown < 64 * 1024, "memory grew by {grown} KiB");
    assert_eq!(cut(&relay, "malformed messages").await, 0);

    // All of it was reading: what was stored is there, and would be after a crash.
    let key = relay.key.clone();
    relay.kill_and_restart();
    assert_eq!(relay.key, key);
    let mut client = Client::connect(&relay).await;
    client.send(r#"["COUNT","all",{}]"#).await;
    assert_eq!(client.recv().await, json!(["COUNT", "all", { "count": STORED }]));
}
