//! Clients that send a byte now and then, or nothing: each is cut in time, and others are served meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load_harness::{Client, Relay, keys};
use crate::raw::{PING, Raw, UPGRADE};
use crate::{UNHURRIED, alone, cut, notes, report, until};

/// Sends these bytes one by one, then nothing. Gives what the relay said and how long it kept the connection.
async fn drip(relay: Arc<Relay>, bytes: Vec<u8>, pause: Duration) -> (String, Duration) {
    let stream = TcpStream::connect(relay.address).await.unwrap();
    let started = Instant::now();
    let (mut from, mut to) = stream.into_split();
    let writing = tokio::spawn(async move {
        for byte in bytes {
            if to.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        // Not dropped: that would close our half.
        to
    });
    let mut said = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(120), from.read_to_end(&mut said)).await;
    let kept = started.elapsed();
    writing.abort();
    // A reset is an end as well.
    let _ = read.expect("the relay ends the connection");
    (String::from_utf8_lossy(&said).into_owned(), kept)
}

/// Starts `count` drips of a kind.
fn start(
    relay: &Arc<Relay>,
    count: usize,
    bytes: &str,
    pause_ms: u64,
) -> Vec<tokio::task::JoinHandle<(String, Duration)>> {
    let one = || tokio::spawn(drip(Arc::clone(relay), bytes.as_bytes().to_vec(), Duration::from_millis(pause_ms)));
    (0..count).map(|_| one()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_byte_by_byte_is_cut_in_time_and_others_are_served() {
    let _turn = alone().await;
    let relay = Arc::new(Relay::start(&format!("{UNHURRIED}connections_per_ip = 1000\n")));
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}", "x".repeat(10_000));
    let body = format!("POST /query HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n{}", " ".repeat(10_000));
    let kinds = [
        ("HTTP head", start(&relay, 200, &head, 100), 60),
        ("silence", start(&relay, 20, "", 100), 60),
        ("half a WebSocket handshake", start(&relay, 20, &UPGRADE[..UPGRADE.len() - 2], 100), 60),
        ("HTTP body", start(&relay, 20, &body, 5), 100),
    ];
    let mut client = Client::connect(&relay).await;
    let mut served = 0;
    // Several times what the relay waits for a head (10 s) or a body (30 s), and less than these take to come.
    for (kind, dripping, seconds_max) in kinds {
        let mut longest = Duration::ZERO;
        for one in dripping {
            while !one.is_finished() {
                let event = &notes(1, 10)[0];
                assert_eq!(client.publish(event).await, (true, String::new()));
                assert_eq!(client.request("q", &json!({ "ids": [event.id] })).await.len(), 1);
                served += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let (said, kept) = one.await.unwrap();
            assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{kind}: {said}");
            longest = longest.max(kept);
        }
        let figures = json!({ "case": kind, "kept_ms_max": longest.as_millis() as u64 });
        report(&format!("{kind} byte by byte: kept {longest:.1?} at most; {served} requests served so far"), &figures);
        assert!(longest < Duration::from_secs(seconds_max), "{kind}: kept for {longest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_answers_no_ping_is_cut() {
    let _turn = alone().await;
    let relay = Relay::start("[relay.limits]\nping_secs = 2\n");
    let started = Instant::now();
    let mut silent = Raw::open(&relay).await;
    assert_eq!(silent.recv().await[0], "AUTH");
    let mut lively = Client::connect(&relay).await;
    // It answers pings while it waits for a message.
    let waiting = tokio::spawn(async move { lively.try_recv().await });
    until("the silent client is cut", async || cut(&relay, "no answer to pings").await == 1).await;
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(6), "cut after {waited:?}: two pings of two seconds must go unanswered");
    assert_eq!(relay.metric("connections").await, 1, "who answers stays");
    assert_eq!(silent.next_frame().await, Some((PING, Vec::new())));
    assert_eq!(silent.next_frame().await, Some((PING, Vec::new())));
    assert_eq!(silent.recv().await, json!(["NOTICE", "closing: no answer to pings"]));
    assert_eq!(silent.end().await, Some((1008, "no answer to pings".into())));
    assert!(!waiting.is_finished());
    waiting.abort();
}

/// As on a machine that has no time for it: the relay does nothing for so long, and goes on.
fn stand_still(relay: &Relay, time: Duration) {
    let pid = Pid::from_child(&relay.child);
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::sleep(time);
    kill_process(pid, Signal::CONT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_pings_is_not_cut_because_the_relay_stood_still() {
    let _turn = alone().await;
    let relay = Relay::start("[relay.limits]\nping_secs = 2\n");
    let mut silent = Raw::open(&relay).await;
    assert_eq!(silent.recv().await[0], "AUTH");
    let mut lively = Client::connect(&relay).await;
    let waiting = tokio::spawn(async move { lively.try_recv().await });
    // Not a wait for anything: longer than the relay waits for who is silent.
    stand_still(&relay, Duration::from_secs(7));
    until("the silent client is cut", async || cut(&relay, "no answer to pings").await >= 1).await;
    assert_eq!(relay.metric("connections").await, 1, "who had no time to answer stays");
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_authenticate_in_time_on_a_closed_relay_is_cut() {
    let _turn = alone().await;
    let member = keys(5);
    let config = format!(
        "[relay]\nclosed = true\nmembers = [\"{}\"]\n[relay.limits]\nauth_timeout_secs = 5\n",
        crate::load_harness::pubkey(&member)
    );
    let relay = Relay::start(&config);
    let mut known = Client::connect(&relay).await;
    known.authenticate(&relay, &member).await;
    let mut unknown = Client::connect(&relay).await;
    // Asking for things is not authenticating, and does not put it off.
    let mut busy = Client::connect(&relay).await;
    let asking = tokio::spawn(async move {
        loop {
            let _ = busy.try_send(r#"["REQ","s",{}]"#).await;
            if let Err(why) = busy.try_recv().await {
                return why;
            }
        }
    });
    let goodbye = unknown.recv().await;
    assert_eq!(goodbye, json!(["NOTICE", "closing: no authentication in time"]));
    assert_eq!(unknown.try_recv().await, Err("1008 no authentication in time".into()));
    let why = asking.await.unwrap_or_else(|error| error.to_string());
    assert!(!why.is_empty());
    assert_eq!(cut(&relay, "no authentication in time").await, 2);
    assert_eq!(known.request("q", &json!({ "limit": 0 })).await.len(), 0, "who did stays");
}
