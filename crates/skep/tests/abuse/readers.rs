//! Subscribers that read slowly or not at all: they cost a fixed amount of memory and nobody else anything.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_proto::{VerifiedEvent, limits};

use crate::load_harness::{Client, Relay};
use crate::{UNHURRIED, alone, cut, notes, publish_all, report, until};

const SLOW: &str = "reads too slowly";
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A receive buffer that hides little, in bytes.
const SMALL: Option<u32> = Some(64 * 1024);

const KIB: usize = 1024;

/// A connection with these subscriptions to new notes.
async fn subscriber(relay: &Relay, subs: &[String], buffer: Option<u32>) -> Client {
    let mut client = Client::connect_from(relay, HERE, buffer).await;
    for sub in subs {
        assert_eq!(client.request(sub, &json!({ "kinds": [1], "limit": 0 })).await, Vec::<Value>::new());
    }
    client
}

fn named(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("s{n}")).collect()
}

/// Reads `count` events, pausing after each, and gives (subscription, id) in order.
async fn read_ids(mut client: Client, count: usize, pause: Duration) -> Vec<(String, String)> {
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let text = client.try_recv().await.unwrap_or_else(|why| panic!("cut after {} events: {why}", ids.len()));
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(message[0], "EVENT", "{message}");
        let part = |value: &Value| value.as_str().unwrap().to_owned();
        ids.push((part(&message[1]), part(&message[2]["id"])));
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    ids
}

/// The ids that one subscription got.
fn of<'a>(got: &'a [(String, String)], sub: &str) -> Vec<&'a str> {
    got.iter().filter(|(to, _)| to == sub).map(|(_, id)| id.as_str()).collect()
}

/// Each subscription got each event once, in the order in which `first` got them.
///
/// Events that are published in a pipeline are committed in an order of the relay's own: it is the same for everyone.
fn assert_each_once(got: &[(String, String)], subs: &[String], events: &[VerifiedEvent], first: &[(String, String)]) {
    let mut wanted: Vec<String> = events.iter().map(|event| event.id.to_hex()).collect();
    let order = of(first, &first[0].0);
    let mut sorted = order.clone();
    sorted.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(sorted, wanted, "the first reader got each once");
    for sub in subs {
        let ids = of(got, sub);
        let differs = ids.iter().zip(&order).position(|(got, wanted)| got != wanted);
        assert_eq!((ids.len(), differs), (order.len(), None), "{sub}: (events, first that differs)");
    }
}

/// A subscriber that keeps up: what it gets is the order that others are held to.
async fn reference(relay: &Relay, count: usize) -> tokio::task::JoinHandle<Vec<(String, String)>> {
    tokio::spawn(read_ids(subscriber(relay, &named(1), None).await, count, Duration::ZERO))
}

/// Reads once it has fallen behind, which it then has on a machine of any speed.
async fn read_ids_from_behind(relay: &Relay, client: Client, count: usize, pause: Duration) -> Vec<(String, String)> {
    until("the reader falls behind", async || relay.metric("fell_behind_total").await >= 1).await;
    read_ids(client, count, pause).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_never_reads_is_cut_and_others_receive_every_event_once_in_order() {
    let _turn = alone().await;
    let mut relay = Relay::start(UNHURRIED);
    let mut publisher = Client::connect(&relay).await;
    // The ring, the log's layers and the allocator reach their usual size first.
    publish_all(&mut publisher, &notes(2_000, 40 * KIB)).await;

    let one = named(1);
    let first = reference(&relay, 1_600).await;
    let reading = reference(&relay, 1_600).await;
    let mut silent = subscriber(&relay, &one, SMALL).await;
    let before = relay.memory_kib("RssAnon");
    let (started, events) = (Instant::now(), notes(1_600, 40 * KIB));
    publish_all(&mut publisher, &events).await;
    assert_each_once(&reading.await.unwrap(), &one, &events, &first.await.unwrap());
    let published = started.elapsed();

    let mut most = 0;
    until("the silent subscriber is cut", async || {
        most = most.max(relay.memory_kib("RssAnon"));
        cut(&relay, SLOW).await == 1
    })
    .await;
    let waited = started.elapsed();
    let grown = most.saturating_sub(before);
    report(
        &format!(
            "never reads, 64 MB for it: published in {published:.1?}, cut after {waited:.1?}, memory +{grown} KiB"
        ),
        &json!({ "case": "never reads", "cut_after_ms": waited.as_millis() as u64, "memory_growth_kib": grown }),
    );
    assert!(waited >= Duration::from_secs(limits::OUTBOX_STALL_SECS), "cut after {waited:?}");
    assert!(grown < 64 * 1024, "memory grew by {grown} KiB");
    until("the publisher alone is still there", async || relay.metric("connections").await == 1).await;
    // What the kernels had taken is still to be read, then it ends.
    let mut held = 0;
    while let Ok(text) = silent.try_recv().await {
        held += text.len();
    }
    assert!(held <= 2 * limits::SEND_BUFFER_BYTES + 4 * 64 * KIB, "the kernels held {held} bytes");
    relay.assert_alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steady_slow_reader_receives_every_event_exactly_once() {
    let _turn = alone().await;
    let relay = Relay::start(UNHURRIED);
    let mut publisher = Client::connect(&relay).await;
    // 40 KiB every 4 ms is at most 10 MiB/s; the events come several times as fast, where the machine can.
    let (one, pause) = (named(1), Duration::from_millis(4));
    let slow = subscriber(&relay, &one, SMALL).await;
    let events = notes(1_000, 40 * KIB);
    let first = reference(&relay, events.len()).await;
    let reading = read_ids_from_behind(&relay, slow, events.len(), pause);
    let (got, ()) = tokio::join!(reading, publish_all(&mut publisher, &events));
    assert_each_once(&got, &one, &events, &first.await.unwrap());
    assert_eq!(cut(&relay, SLOW).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_with_many_subscriptions_receives_every_event_once_for_each() {
    let _turn = alone().await;
    let relay = Relay::start(UNHURRIED);
    let mut publisher = Client::connect(&relay).await;
    let (subs, events) = (named(7), notes(400, 20 * KIB));
    let first = reference(&relay, events.len()).await;
    let slow = subscriber(&relay, &subs, SMALL).await;
    let reading = read_ids_from_behind(&relay, slow, subs.len() * events.len(), Duration::from_millis(1));
    let (got, ()) = tokio::join!(reading, publish_all(&mut publisher, &events));
    assert_each_once(&got, &subs, &events, &first.await.unwrap());
}

/// Lines on which what the relay prepares at a time takes more than ten seconds, but which never stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_makes_progress_is_not_cut() {
    let _turn = alone().await;
    let relay = Relay::start(UNHURRIED);
    let mut publisher = Client::connect(&relay).await;
    let stored = notes(64, 200 * KIB);
    publish_all(&mut publisher, &stored).await;
    // 64 stored events of 200 KiB at 2/3 MiB/s.
    let mut asking = Client::connect_from(&relay, HERE, SMALL).await;
    let newest = stored[63].created_at;
    asking.send(json!(["REQ", "s0", { "kinds": [1], "until": newest, "limit": 64 }]).to_string()).await;
    let asking = tokio::spawn(read_ids(asking, 64, Duration::from_millis(300)));
    // 220 live events of 200 KiB at 2 MiB/s.
    let (one, live) = (named(1), notes(220, 200 * KIB));
    let first = reference(&relay, live.len()).await;
    let following =
        tokio::spawn(read_ids(subscriber(&relay, &one, SMALL).await, live.len(), Duration::from_millis(50)));
    publish_all(&mut publisher, &live).await;
    let (asked, followed) = (asking.await, following.await);
    let whole = [asked.is_ok(), followed.is_ok()];
    assert_eq!((cut(&relay, SLOW).await, whole), (0, [true, true]), "(cut, whether [stored, live] came whole)");
    assert_eq!(asked.unwrap().len(), 64);
    assert_each_once(&followed.unwrap(), &one, &live, &first.await.unwrap());
}
