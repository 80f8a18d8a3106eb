//! Below the messages: frames. What is legal is served; what is not ends the connection with a counted reason.

use std::time::Instant;

use serde_json::json;

use crate::load_harness::Relay;
use crate::raw::{CLOSE, CONTINUATION, PING, Raw, TEXT, frame, frame_head};
use crate::{UNHURRIED, alone, cut, passed};

const STRIKES: &str = "malformed messages";
const TOO_LARGE: &str = "message too large";
const NOT_UTF_8: &str = "text that is not UTF-8";
const PROTOCOL: &str = "not the WebSocket protocol";

#[tokio::test(flavor = "multi_thread")]
async fn more_than_twenty_malformed_messages_in_a_minute_cut_the_connection() {
    let _turn = alone().await;
    let mut relay = Relay::start(UNHURRIED);
    let mut client = Raw::open(&relay).await;
    client.recv().await;
    let (begun, mut sent) = (Instant::now(), 0);
    let end = loop {
        client.send(TEXT, b"noise").await;
        sent += 1;
        assert_eq!(client.recv().await[0], "NOTICE", "noise is answered");
        if sent < 20 {
            continue;
        }
        // The connection is served still, or told why it ends.
        client.send(TEXT, br#"["COUNT","alive",{"kinds":[9]}]"#).await;
        let answer = client.recv().await;
        if answer != json!(["COUNT", "alive", { "count": 0 }]) {
            break answer;
        }
        let most = passed(20, 20.0 / 60.0, begun);
        assert!(sent <= most, "{sent} were let pass, at most {most} may be");
    };
    assert!(sent > 20, "cut at message {sent}");
    assert_eq!(end, json!(["NOTICE", format!("closing: {STRIKES}")]));
    assert_eq!(client.end().await, Some((1008, STRIKES.into())));
    assert_eq!((cut(&relay, STRIKES).await, relay.metric("malformed_total").await), (1, sent));
    relay.assert_alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_in_fragments_is_a_message() {
    let _turn = alone().await;
    let relay = Relay::start(UNHURRIED);
    let mut client = Raw::open(&relay).await;
    client.recv().await;
    let message = br#"["COUNT","s",{"kinds":[7]}]"#;
    let last = message.len() - 1;
    for (at, byte) in message.iter().enumerate() {
        let opcode = if at == 0 { TEXT } else { CONTINUATION };
        client.bytes(&frame(opcode, at == last, true, &[*byte])).await;
        // Control frames may come in between.
        client.send(PING, b"p").await;
    }
    let mut pongs = 0;
    let answer = loop {
        match client.next_frame().await {
            Some((TEXT, payload)) => break payload,
            Some((10, payload)) if payload == b"p" => pongs += 1,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(answer, br#"["COUNT","s",{"count":0}]"#);
    assert!(pongs >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_limit_is_cut_however_it_comes() {
    let _turn = alone().await;
    let mut relay = Relay::start(UNHURRIED);
    let part = vec![b'['; 200 * 1024];
    let fragments = [(TEXT, false), (CONTINUATION, false), (CONTINUATION, true)];
    let fragments: Vec<u8> =
        fragments.iter().flat_map(|(opcode, is_final)| frame(*opcode, *is_final, true, &part)).collect();
    let ways = [
        // A megabyte of nested arrays.
        frame(TEXT, true, true, &vec![b'['; 1024 * 1024]),
        fragments,
        // Only the announcement of more than there is memory.
        [frame_head(TEXT, true, true, 1 << 40), vec![0; 4]].concat(),
        [frame_head(TEXT, true, true, usize::MAX >> 1), vec![0; 4]].concat(),
        [frame_head(TEXT, true, true, 512 * 1024 + 1), vec![0; 4]].concat(),
    ];
    for (done, bytes) in ways.iter().enumerate() {
        let mut client = Raw::open(&relay).await;
        client.recv().await;
        client.bytes(bytes).await;
        assert_eq!(client.end().await, Some((1009, TOO_LARGE.into())), "way {done}");
        assert_eq!(cut(&relay, TOO_LARGE).await, done as u64 + 1);
    }
    relay.assert_alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_websocket_is_cut() {
    let _turn = alone().await;
    let mut relay = Relay::start(UNHURRIED);
    let ways: [(&str, Vec<u8>); 8] = [
        ("an unmasked frame", frame(TEXT, true, false, br#"["REQ","s",{}]"#)),
        ("a reserved opcode", frame(3, true, true, b"x")),
        ("a reserved control opcode", frame(11, true, true, b"x")),
        ("a reserved bit", frame(TEXT | 0x40, true, true, b"x")),
        ("a fragmented ping", frame(PING, false, true, b"x")),
        ("a long ping", frame(PING, true, true, &[b'x'; 126])),
        ("a continuation of nothing", frame(CONTINUATION, true, true, b"x")),
        ("a text in a text", [frame(TEXT, false, true, b"["), frame(TEXT, true, true, b"]")].concat()),
    ];
    for (done, (way, bytes)) in ways.iter().enumerate() {
        let mut client = Raw::open(&relay).await;
        client.recv().await;
        client.bytes(bytes).await;
        assert_eq!(client.end().await, Some((1002, PROTOCOL.into())), "{way}");
        assert_eq!(cut(&relay, PROTOCOL).await, done as u64 + 1, "{way}");
    }
    relay.assert_alive();
}

/// RFC 6455, 8.1. In JSON's own escapes it would be a malformed message like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_is_not_utf_8_is_cut() {
    let _turn = alone().await;
    let mut relay = Relay::start(UNHURRIED);
    let texts: [&[u8]; 4] = [b"[\"REQ\",\"\xff\xfe\",{}]", b"\xc0\x80", b"\xed\xa0\x80", b"\xf0\x9f"];
    for (done, text) in texts.iter().enumerate() {
        let mut client = Raw::open(&relay).await;
        client.recv().await;
        client.send(TEXT, text).await;
        assert_eq!(client.end().await, Some((1007, NOT_UTF_8.into())), "{text:?}");
        assert_eq!(cut(&relay, NOT_UTF_8).await, done as u64 + 1);
    }
    relay.assert_alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_is_answered_and_is_no_cut() {
    let _turn = alone().await;
    let relay = Relay::start(UNHURRIED);
    let mut client = Raw::open(&relay).await;
    client.recv().await;
    client.send(CLOSE, &1000u16.to_be_bytes()).await;
    assert_eq!(client.end().await.map(|(code, _)| code), Some(1000));
    crate::until("the connection is gone", async || relay.metric("connections").await == 0).await;
    assert_eq!(cut(&relay, PROTOCOL).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_is_no_cut() {
    let _turn = alone().await;
    let relay = Relay::start(UNHURRIED);
    let mut client = Raw::open(&relay).await;
    client.recv().await;
    drop(client);
    crate::until("the connection is gone", async || relay.metric("connections").await == 0).await;
    assert_eq!(cut(&relay, PROTOCOL).await, 0, "a line that breaks is no breach of the protocol");
}
