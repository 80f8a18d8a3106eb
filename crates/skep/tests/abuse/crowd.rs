//! Ten thousand connections that do nothing.

use std::net::Ipv4Addr;
use std::process::Command;

use serde_json::{Value, json};

use crate::load_harness::{Client, Relay, dial};
use crate::raw::Raw;
use crate::{alone, notes, report};

const CROWD: usize = 10_000;

/// Handshakes at one time.
const OPENING: usize = 50;

/// Descriptors for the crowd, on either side, with some to spare.
const FILES: u64 = CROWD as u64 + 1_000;

/// The most that one idle connection may cost, in KiB.
const KIB_MAX: u64 = 64;

/// Raises this process's limit of open files; the relay inherits it. An error is the line that says why not.
fn raise_file_limit() -> Result<(), String> {
    let soft_and_hard = || {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
        let number = |text: &str| text.parse().unwrap_or(u64::MAX);
        let numbers: Vec<u64> = line.split_whitespace().skip(3).take(2).map(number).collect();
        (numbers[0], numbers[1])
    };
    let (soft, hard) = soft_and_hard();
    if soft >= FILES {
        return Ok(());
    }
    if hard < FILES {
        return Err(format!("{CROWD} connections need {FILES} open files, and the hard limit is {hard}"));
    }
    // setrlimit as a program: this crate has no `unsafe`, and needs no dependency for one call.
    let pid = std::process::id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={hard}:{hard}")]).status();
    match soft_and_hard() {
        (soft, _) if soft >= FILES => Ok(()),
        _ => Err(format!("{CROWD} connections need {FILES} open files, and prlimit did not raise {soft}: {raised:?}")),
    }
}

/// Connections from a few addresses, so that no address runs out of ports.
async fn open_crowd(relay: &Relay) -> Vec<Raw> {
    let mut crowd = Vec::with_capacity(CROWD);
    for first in (0..CROWD).step_by(OPENING) {
        let opening = (first..first + OPENING).map(async |n| {
            let source = Ipv4Addr::new(127, 0, 0, 2 + (n % 20) as u8);
            let mut raw = Raw::upgrade(dial(relay.address, source, None).await.unwrap()).await.unwrap();
            assert_eq!(raw.recv().await[0], "AUTH");
            raw
        });
        crowd.extend(futures_util::future::join_all(opening).await);
    }
    crowd
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_are_held_cheaply_and_others_are_served() {
    let _turn = alone().await;
    if let Err(why) = raise_file_limit() {
        println!("skipped: {why}");
        return;
    }
    // Nobody in the crowd answers a ping, and opening it may take a while.
    let limits = "[relay.limits]\nconnections = 12000\nconnections_per_ip = 12000\nping_secs = 3600\n";
    let mut relay = Relay::start(limits);
    let mut publisher = Client::connect(&relay).await;
    let mut subscriber = Client::connect(&relay).await;
    assert_eq!(subscriber.request("live", &json!({ "kinds": [1], "limit": 0 })).await, Vec::<Value>::new());
    let before = relay.memory_kib("VmRSS");
    let crowd = open_crowd(&relay).await;
    assert_eq!(relay.metric("connections").await, CROWD as u64 + 2);
    let after = relay.memory_kib("VmRSS");
    let each = (after - before) as f64 / CROWD as f64;
    report(
        &format!("{CROWD} idle connections: {each:.1} KiB of memory each ({before} KiB before, {after} KiB with them)"),
        &json!({ "case": "idle connections", "connections": CROWD, "kib_each": each }),
    );
    for event in &notes(50, 100) {
        assert_eq!(publisher.publish(event).await, (true, String::new()));
        assert_eq!(subscriber.recv().await[2]["id"], json!(event.id));
        assert_eq!(publisher.request("q", &json!({ "ids": [event.id] })).await.len(), 1);
    }
    assert!((after - before) <= KIB_MAX * CROWD as u64, "{each:.1} KiB each");
    assert_eq!(relay.metric("connections").await, CROWD as u64 + 2, "none was cut");
    drop(crowd);
    crate::until("the crowd is gone", async || relay.metric("connections").await == 2).await;
    relay.assert_alive();
}
