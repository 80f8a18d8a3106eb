//! How many, and how fast: what is over a limit is refused in words, and counted.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::load_harness::{Client, Relay, dial, publication};
use crate::raw::Raw;
use crate::{alone, notes, until};

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

async fn knock(relay: &Relay, source: Ipv4Addr) -> Result<Raw, u16> {
    Raw::upgrade(dial(relay.address, source, None).await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_limit_of_an_address_are_refused_with_503() {
    let _turn = alone().await;
    let relay = Relay::start("[relay.limits]\nconnections_per_ip = 3\n");
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(knock(&relay, ONE).await.unwrap_or_else(|status| panic!("{status}")));
    }
    for _ in 0..5 {
        assert_eq!(knock(&relay, ONE).await.err(), Some(503));
    }
    // Another address has its own places; and a place is free again once its connection is gone.
    let mut other = knock(&relay, TWO).await.unwrap_or_else(|status| panic!("{status}"));
    assert_eq!(other.recv().await[0], "AUTH");
    drop(open);
    until("a place is free", 10, async || knock(&relay, ONE).await.is_ok()).await;
    let refused = relay.metric("refused_connections_total{reason=\"too many connections from one address\"}").await;
    assert!(refused >= 5, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_limit_of_all_are_refused_with_503() {
    let _turn = alone().await;
    let relay = Relay::start("[relay.limits]\nconnections = 4\n");
    let mut open = Vec::new();
    for n in 0..4 {
        open.push(knock(&relay, Ipv4Addr::new(127, 0, 0, 10 + n)).await.unwrap_or_else(|status| panic!("{status}")));
    }
    assert_eq!(knock(&relay, TWO).await.err(), Some(503));
    // The answer says when to come again.
    let mut stream = dial(relay.address, TWO, None).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: "), "{answer}");
    for mut client in open {
        assert_eq!(client.recv().await[0], "AUTH", "those who are here stay");
    }
    until("a place is free", 10, async || knock(&relay, TWO).await.is_ok()).await;
    assert!(relay.metric("refused_connections_total{reason=\"too many connections\"}").await >= 2);
}

/// Publishes `count` events at once; how many were taken, and what the others were told.
async fn flood(client: &mut Client, count: u64) -> (usize, Vec<String>) {
    let events = notes(count, 10);
    for event in &events {
        client.feed(publication(event)).await;
    }
    client.flush().await;
    let mut answers = Vec::new();
    for _ in &events {
        let answer = client.recv().await;
        assert_eq!(answer[0], "OK", "{answer}");
        answers.push((answer[2] == json!(true), answer[3].as_str().unwrap().to_owned()));
    }
    let taken = answers.iter().filter(|(is_taken, _)| *is_taken).count();
    (taken, answers.into_iter().filter(|(is_taken, _)| !is_taken).map(|(_, text)| text).collect())
}

/// A rate of 3 a second with bursts of 30 takes 30 of 100 at once, and what a few seconds add.
async fn assert_rate_limits(limit: &str, text: &str) {
    let relay = Relay::start(&format!("[relay.limits]\n{limit} = 3\n"));
    let mut client = Client::connect(&relay).await;
    let (taken, refusals) = flood(&mut client, 100).await;
    assert!((30..60).contains(&taken), "{limit}: {taken} were taken");
    assert!(refusals.iter().all(|refusal| refusal == text), "{limit}: {refusals:?}");
    assert_eq!(client.request("q", &json!({ "kinds": [1] })).await.len(), taken, "the connection is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_over_a_rate_get_ok_false_rate_limited() {
    let _turn = alone().await;
    assert_rate_limits("events_per_second", "rate-limited: too many events on this connection; slow down").await;
    assert_rate_limits("events_per_second_per_ip", "rate-limited: too many events from this address; slow down").await;
    assert_rate_limits("events_per_second_per_pubkey", "rate-limited: too many events by this key; slow down").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_the_rate_are_closed_rate_limited() {
    let _turn = alone().await;
    let relay = Relay::start("[relay.limits]\nrequests_per_second = 2\n");
    let mut client = Client::connect(&relay).await;
    let mut answers: Vec<Value> = Vec::new();
    for n in 0..60 {
        client.feed(json!(["REQ", format!("s{n}"), { "kinds": [1] }]).to_string()).await;
    }
    client.flush().await;
    for _ in 0..60 {
        answers.push(client.recv().await);
    }
    let closed: Vec<&Value> = answers.iter().filter(|answer| answer[0] == "CLOSED").collect();
    assert!((20..=40).contains(&closed.len()), "{answers:?}");
    assert!(closed.iter().all(|answer| answer[2].as_str().unwrap().starts_with("rate-limited: ")));
    assert_eq!(client.publish(&notes(1, 10)[0]).await, (true, String::new()), "events are not requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_and_reconciliations_over_the_limit_are_closed_and_the_others_go_on() {
    let _turn = alone().await;
    let relay = Relay::start("[relay.limits]\nsubscriptions = 3\n");
    let mut client = Client::connect(&relay).await;
    for n in 0..3 {
        client.request(&format!("s{n}"), &json!({ "kinds": [1] })).await;
    }
    client.send(r#"["REQ","one more",{}]"#).await;
    let text = "blocked: more than 3 subscriptions on one connection";
    assert_eq!(client.recv().await, json!(["CLOSED", "one more", text]));
    // The same name again replaces; it is not one more.
    client.request("s0", &json!({ "kinds": [1] })).await;
    client.send(r#"["CLOSE","s1"]"#).await;
    client.request("now there is room", &json!({ "kinds": [2] })).await;
    for n in 0..4 {
        client.send(json!(["NEG-OPEN", format!("n{n}"), {}, "61"]).to_string()).await;
        assert_eq!(client.recv().await[0], "NEG-MSG");
    }
    client.send(r#"["NEG-OPEN","n4",{},"61"]"#).await;
    assert_eq!(client.recv().await, json!(["NEG-ERR", "n4", "blocked: more than 4 reconciliations on one connection"]));
    let event = &notes(1, 10)[0];
    Client::connect(&relay).await.publish(event).await;
    let mut heard = [client.recv().await, client.recv().await].map(|message| message[1].as_str().unwrap().to_owned());
    heard.sort_unstable();
    assert_eq!(heard, ["s0", "s2"]);
}
