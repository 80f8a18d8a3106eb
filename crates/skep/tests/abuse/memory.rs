//! What a connection may make the relay hold. Each test gives a hostile client what it needs, and measures.

use std::net::Ipv4Addr;

use serde_json::json;
use skep_proto::{Draft, Kind};

use crate::load_harness::{Client, Relay, dial, keys, now};
use crate::raw::{Raw, TEXT};
use crate::{UNHURRIED, alone, notes, publish_all, report, until, until_at_rest};

const KIB: usize = 1024;

/// The relay's memory at its highest while `condition` does not hold, less `before`, in KiB.
async fn growth(relay: &Relay, before: u64, what: &str, mut condition: impl AsyncFnMut() -> bool) -> u64 {
    let mut most = 0;
    until(what, async || {
        most = most.max(relay.memory_kib("RssAnon"));
        condition().await
    })
    .await;
    most.max(relay.memory_kib("RssAnon")).saturating_sub(before)
}

#[track_caller]
fn assert_bounded(what: &str, grown_kib: u64, bound_kib: u64) {
    report(
        &format!("{what}: memory +{grown_kib} KiB, at most {bound_kib} KiB allowed"),
        &json!({ "case": what, "memory_growth_kib": grown_kib, "bound_kib": bound_kib }),
    );
    assert!(grown_kib < bound_kib, "{what}: memory grew by {grown_kib} KiB, at most {bound_kib} KiB is allowed");
}

/// A relay whose ring, log and allocator have their usual size: 80 MB of large events went through it.
async fn warm() -> (Relay, Client) {
    let relay = Relay::start(&format!("{UNHURRIED}connections_per_ip = 1000\n"));
    let mut publisher = Client::connect(&relay).await;
    publish_all(&mut publisher, &notes(400, 200 * KIB)).await;
    until_at_rest(&relay).await;
    (relay, publisher)
}

/// 40 queries for 12 MB each, answered by nobody's reading.
#[tokio::test(flavor = "multi_thread")]
async fn queries_that_nobody_reads_hold_a_bounded_amount() {
    let _turn = alone().await;
    let (relay, _publisher) = warm().await;
    let before = relay.memory_kib("RssAnon");
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let stream = dial(relay.address, Ipv4Addr::LOCALHOST, Some(64 * KIB as u32)).await.unwrap();
        let mut client = Raw::upgrade(stream).await.unwrap();
        client.send(TEXT, br#"["REQ","s",{"kinds":[1]}]"#).await;
        stalled.push(client);
    }
    let grown =
        growth(&relay, before, "each was cut", async || crate::cut(&relay, "reads too slowly").await == 40).await;
    // For each: an outbox (1 MiB), a slice of a query and what the socket's buffer takes.
    assert_bounded("40 unread queries", grown, 40 * 4 * 1024);
}

/// One connection with the most subscriptions falls behind, so that it is served from the store.
#[tokio::test(flavor = "multi_thread")]
async fn catching_up_holds_a_bounded_amount() {
    let _turn = alone().await;
    let (relay, mut publisher) = warm().await;
    let mut greedy = Client::connect_from(&relay, Ipv4Addr::LOCALHOST, Some(64 * KIB as u32)).await;
    for n in 0..20 {
        greedy.request(&format!("s{n}"), &json!({ "kinds": [1], "limit": 0 })).await;
    }
    let before = relay.memory_kib("RssAnon");
    publish_all(&mut publisher, &notes(100, 200 * KIB)).await;
    // It reads enough to empty its outbox, and then no more.
    for _ in 0..40 {
        greedy.recv_text().await;
    }
    let grown = growth(&relay, before, "it was cut", async || crate::cut(&relay, "reads too slowly").await == 1).await;
    assert_bounded("catching up with 20 subscriptions", grown, 64 * 1024);
}

/// Six queries for 80 MB each over HTTP; nobody reads an answer.
#[tokio::test(flavor = "multi_thread")]
async fn http_answers_that_nobody_reads_hold_a_bounded_amount() {
    let _turn = alone().await;
    let (relay, _publisher) = warm().await;
    let before = relay.memory_kib("RssAnon");
    let body = r#"{"kinds":[1]}"#;
    let request = format!("POST /query HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut stalled = Vec::new();
    for _ in 0..6 {
        let mut stream = dial(relay.address, Ipv4Addr::LOCALHOST, Some(64 * KIB as u32)).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        // Its head is here, so the query ran.
        stream.readable().await.unwrap();
        stalled.push(stream);
    }
    let grown = growth(&relay, before, "a look", async || true).await;
    assert_bounded("6 unread HTTP queries", grown, 16 * 1024);
}

/// 24 MB of ephemeral events are in the ring; one connection asks for them many times in one breath.
#[tokio::test(flavor = "multi_thread")]
async fn recent_ephemeral_events_are_served_from_a_bounded_amount() {
    let _turn = alone().await;
    let (relay, mut publisher) = warm().await;
    let author = keys(8);
    let content = "e".repeat(200 * KIB);
    let events: Vec<_> =
        (0..120).map(|n| Draft::new(Kind(20_500), now() - n, content.clone()).sign(&author, &[0; 32])).collect();
    publish_all(&mut publisher, &events).await;
    let before = relay.memory_kib("RssAnon");
    let mut client = Raw::open(&relay).await;
    let requests: Vec<u8> = (0..30)
        .flat_map(|n| {
            let request = json!(["REQ", format!("s{n}"), { "kinds": [20_500], "since": 1 }]).to_string();
            crate::raw::frame(TEXT, true, true, request.as_bytes())
        })
        .collect();
    client.bytes(&requests).await;
    let grown = growth(&relay, before, "it was cut", async || crate::cut(&relay, "reads too slowly").await == 1).await;
    assert_bounded("30 requests for recent ephemeral events", grown, 64 * 1024);
}

/// A connection that once sent a large message, and is idle now.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_keeps_one_message_at_most() {
    let _turn = alone().await;
    let (relay, _publisher) = warm().await;
    let before = relay.memory_kib("RssAnon");
    let noise = vec![b'7'; 500 * KIB];
    let mut idle = Vec::new();
    for _ in 0..200 {
        let mut client = Raw::open(&relay).await;
        client.recv().await;
        client.send(TEXT, &noise).await;
        assert_eq!(client.recv().await[0], "NOTICE");
        idle.push(client);
    }
    let grown = growth(&relay, before, "a look", async || true).await;
    // The WebSocket library keeps the buffer of a connection's largest message: one frame each, and no more.
    assert_bounded("200 idle connections after a message of 500 KiB", grown, 200 * (512 + 64));
}

/// The most subscriptions with the most values: each is served, or closed as too much.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_of_one_connection_hold_a_bounded_amount() {
    let _turn = alone().await;
    let (relay, _publisher) = warm().await;
    let before = relay.memory_kib("RssAnon");
    let mut client = Client::connect(&relay).await;
    let mut open = 0;
    for sub in 0..200 {
        let values: Vec<String> = (0..4_990).map(|n| format!("{sub}/{n:060}")).collect();
        client.send(json!(["REQ", format!("s{sub}"), { "#t": values, "limit": 0 }]).to_string()).await;
        let answer = client.recv().await;
        match answer[0].as_str().unwrap() {
            "EOSE" => open += 1,
            _ => assert!(answer[0] == "CLOSED" && answer[2].as_str().unwrap().starts_with("blocked: "), "{answer}"),
        }
    }
    assert!(open > 0);
    let grown = growth(&relay, before, "a look", async || true).await;
    assert_bounded(&format!("200 subscriptions of 4,990 values ({open} open)"), grown, 128 * 1024);
}

/// Large events from many connections at once, faster than they can be stored.
#[tokio::test(flavor = "multi_thread")]
async fn events_on_their_way_to_the_store_hold_a_bounded_amount() {
    let _turn = alone().await;
    let (relay, _publisher) = warm().await;
    let (senders, each) = (16, 60);
    let events = notes(senders * each, 200 * KIB);
    let before = relay.memory_kib("RssAnon");
    let mut sending = tokio::task::JoinSet::new();
    for batch in events.chunks(each as usize) {
        let (mut client, batch) = (Client::connect(&relay).await, batch.to_vec());
        sending.spawn(async move {
            for event in &batch {
                client.feed(crate::publication(event)).await;
            }
            client.flush().await;
            for _ in &batch {
                assert!(client.next_ok().await.1);
            }
        });
    }
    let all = senders * each + 400;
    let grown = growth(&relay, before, "all are stored", async || relay.metric("accepted_total").await == all).await;
    sending.join_all().await;
    assert_bounded("190 MB of events from 16 connections at once", grown, 128 * 1024);
}
