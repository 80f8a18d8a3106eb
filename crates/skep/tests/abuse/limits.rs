//! How many, and how fast: what is over a limit is refused in words, and counted.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_proto::{Draft, Kind, limits};
use tokio::io::AsyncReadExt;

use crate::load_harness::{Client, Relay, dial, keys, now, publication};
use crate::raw::{Raw, TEXT};
use crate::{alone, cut, notes, passed, publish_all, until};

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
    until("a place is free", async || knock(&relay, ONE).await.is_ok()).await;
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
    until("a place is free", async || knock(&relay, TWO).await.is_ok()).await;
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

/// A rate of 3 a second with bursts of 30 takes 30 of 100 at once, and what the time adds.
async fn assert_rate_limits(limit: &str, text: &str) {
    let relay = Relay::start(&format!("[relay.limits]\n{limit} = 3\n"));
    let begun = Instant::now();
    let mut client = Client::connect(&relay).await;
    let (taken, refusals) = flood(&mut client, 100).await;
    let most = passed(30, 3.0, begun);
    assert!((30..=most).contains(&(taken as u64)), "{limit}: {taken} were taken, at most {most} may be");
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
    let begun = Instant::now();
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
    let most = passed(20, 2.0, begun);
    assert!((20..=most).contains(&(60 - closed.len() as u64)), "at most {most} are served: {answers:?}");
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

/// Sends noise; whether the connection outlived it.
async fn outlives_noise(client: &mut Raw) -> bool {
    client.send(TEXT, b"noise").await;
    assert_eq!(client.recv().await[0], "NOTICE", "noise is answered");
    client.send(TEXT, br#"["COUNT","c",{"ids":[]}]"#).await;
    client.recv().await == json!(["COUNT", "c", { "count": 0 }])
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_of_an_address_are_counted_over_all_its_connections() {
    const NOISY: &str = "malformed messages from this address";
    let _turn = alone().await;
    let relay = Relay::start("[relay.limits]\nmalformed_per_minute_per_ip = 5\nconnections_per_ip = 4\n");
    let mut well_behaved = Client::connect(&relay).await;
    // Who was here before may still be on their way out.
    let enter = async || {
        loop {
            match knock(&relay, ONE).await {
                Ok(mut client) => {
                    assert_eq!(client.recv().await[0], "AUTH");
                    break client;
                }
                Err(status) => assert_eq!(status, 503),
            }
        }
    };
    let (begun, mut outlived, mut cuts) = (Instant::now(), 0, 0);
    while cuts < 3 {
        let mut noisy = enter().await;
        if outlives_noise(&mut noisy).await {
            outlived += 1;
            let most = passed(5, 5.0 / 60.0, begun);
            assert!(outlived <= most, "{outlived} were let pass, at most {most} may be");
            continue;
        }
        assert!(outlived >= 5, "cut after {outlived}");
        cuts += 1;
        assert_eq!(noisy.end().await, Some((1008, NOISY.into())));
        assert_eq!(cut(&relay, NOISY).await, cuts);
    }
    // Their places stay taken for a while: coming again at once gains nothing.
    let again = knock(&relay, ONE).await.err();
    assert!(again == Some(503) || begun.elapsed() >= Duration::from_secs(limits::COOLING_SECS), "{again:?}");
    assert_eq!(well_behaved.publish(&notes(1, 10)[0]).await, (true, String::new()), "others of the address go on");
    let mut elsewhere = knock(&relay, TWO).await.unwrap_or_else(|status| panic!("{status}"));
    elsewhere.recv().await;
    assert!(outlives_noise(&mut elsewhere).await, "another address has a count of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn recent_ephemeral_events_are_served_up_to_the_limit_of_each_filter() {
    let _turn = alone().await;
    let relay = Relay::start("");
    let mut client = Client::connect(&relay).await;
    let event = |n: u16| Draft::new(Kind(20_500 + n % 2), now(), n.to_string()).sign(&keys(4), &[0; 32]);
    publish_all(&mut client, &(0..10).map(event).collect::<Vec<_>>()).await;
    let mut ask = async |filters: Vec<Value>| {
        let message: Vec<Value> = [json!("REQ"), json!("s")].into_iter().chain(filters).collect();
        client.send(Value::from(message).to_string()).await;
        let mut found = Vec::new();
        loop {
            let message = client.recv().await;
            match message[0].as_str().unwrap() {
                "EVENT" => found.push(message[2]["content"].as_str().unwrap().to_owned()),
                _ => break found,
            }
        }
    };
    let even = |limit: u64| json!({ "kinds": [20_500], "since": 1, "limit": limit });
    let odd = |limit: u64| json!({ "kinds": [20_501], "since": 1, "limit": limit });
    assert_eq!(ask(vec![even(2)]).await, ["8", "6"], "the newest, newest first");
    assert_eq!(ask(vec![even(1), odd(3)]).await, ["9", "8", "7", "5"], "each filter has its own");
    assert_eq!(ask(vec![even(2), even(3)]).await, ["8", "6", "4"], "and none comes twice");
    assert_eq!(ask(vec![even(0)]).await, Vec::<String>::new());
    assert_eq!(ask(vec![json!({ "kinds": [20_500], "since": 1 })]).await.len(), 5);
}
