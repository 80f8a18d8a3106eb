//! HTTP: answers of any size, readers that stop reading, and an address that asks too often.

use std::net::Ipv4Addr;

use serde_json::json;
use skep_proto::limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load_harness::{Client, Relay, dial};
use crate::{UNHURRIED, alone, cut, notes, publish_all, report, until, until_at_rest};

const NOTES: u64 = 200;
const NOTE_BYTES: usize = 200 * limits::KIB;
const STALLED: u64 = 8;

fn query() -> String {
    let body = r#"{"kinds":[1]}"#;
    format!("POST /query HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// How many events a chunked answer has, and whether it came to its end.
fn events(answer: &[u8]) -> (usize, bool) {
    let begun = answer.windows(7).filter(|bytes| bytes == b"{\"id\":\"").count();
    (begun, answer.ends_with(b"\r\n0\r\n\r\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_any_size_comes_whole_and_a_reader_that_stops_is_cut_and_holds_no_memory() {
    let _turn = alone().await;
    let relay = Relay::start(UNHURRIED);
    let mut client = Client::connect(&relay).await;
    publish_all(&mut client, &notes(NOTES, NOTE_BYTES)).await;
    let ask = async |buffer| {
        let mut stream = dial(relay.address, Ipv4Addr::LOCALHOST, buffer).await.unwrap();
        stream.write_all(query().as_bytes()).await.unwrap();
        stream
    };
    let whole = rest(ask(None).await).await;
    assert!(whole.len() > NOTES as usize * NOTE_BYTES, "{} bytes", whole.len());
    assert_eq!(events(&whole), (NOTES as usize, true));

    until_at_rest(&relay).await;
    let before = relay.memory_kib("RssAnon");
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled.push(ask(Some(4_096)).await);
    }
    let mut more = 0;
    until("readers that stopped are cut", async || {
        more = more.max(relay.memory_kib("RssAnon").saturating_sub(before));
        cut(&relay, "reads too slowly").await == STALLED
    })
    .await;
    // What an outbox may hold, for each; their answers together are 312 MiB.
    let most = STALLED as usize * (limits::OUTBOX_BYTES_MAX / limits::KIB);
    for stream in stalled {
        let (count, is_whole) = events(&rest(stream).await);
        assert!(count < NOTES as usize && !is_whole, "an answer that broke off must not look whole: {count}");
    }
    let figures = json!({ "case": "stalled HTTP readers", "readers": STALLED, "more_kib": more });
    report(&format!("{STALLED} readers that stopped: {more} KiB more, {most} KiB allowed"), &figures);
    assert!(more < most as u64, "{more} KiB");
    assert_eq!(events(&rest(ask(None).await).await), (NOTES as usize, true), "others are served as before");
}

/// Everything up to the end of the connection; a reset is an end as well.
async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_asks_too_often_is_told_when_to_come_again_and_others_are_served() {
    let _turn = alone().await;
    let relay = Relay::start("[relay.limits]\nhttp_requests_per_second_per_ip = 1\n");
    let ask = async |source, path: &str| {
        let mut stream = dial(relay.address, source, None).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        String::from_utf8(rest(stream).await).unwrap().to_lowercase()
    };
    let (greedy, other) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2));
    let mut refused = String::new();
    // Ten seconds' worth pass at once.
    until("the greedy address is limited", async || {
        refused = ask(greedy, "/health").await;
        refused.starts_with("http/1.1 429 ")
    })
    .await;
    assert!(refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
    assert!(
        refused.ends_with(r#"{"error":"rate-limited: too many requests from this address; slow down"}"#),
        "{refused}"
    );
    let metrics = ask(other, "/metrics").await;
    assert!(metrics.contains("\nskep_relay_limited_requests_total 1\n"), "{metrics}");
    until("it is served again", async || ask(greedy, "/health").await.ends_with("\r\n\r\nok\n")).await;
}
