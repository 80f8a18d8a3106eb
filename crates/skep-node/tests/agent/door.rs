//! The door to the home relay.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skep_core::door::{Accepted, Door};
use skep_node::agent::door::RemoteDoor;
use skep_node::agent::reconnect::{Connection, Stop};
use skep_node::clock::unix_now;
use skep_proto::{Draft, Kind, Prefix, RawEvent};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::hive::{Hive, until};

fn acquire(hive: &Hive, op: &str, instance: &str) -> RawEvent {
    let draft = Draft::new(Kind::LEASE_REQUEST, unix_now(), "")
        .tag(["resource", &format!("prompter:{}", hive.agent.pubkey())])
        .tag(["op", op])
        .tag(["instance", instance])
        .tag(hive.consent());
    hive.agent.sign(draft).raw().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_answered_and_a_refusal_keeps_its_prefix() {
    let hive = Hive::start().await;
    let door = RemoteDoor::open(hive.url(), hive.credentials());
    until(&mut door.connection(), |now| *now == Connection::Live).await;
    let note = hive.reply("hello");
    assert!(matches!(door.submit(note.clone()).await, Ok(Accepted::Stored(_))));
    assert_eq!(door.submit(note).await, Ok(Accepted::Duplicate));
    let Ok(Accepted::Answered(said)) = door.submit(acquire(&hive, "acquire", "m/1")).await else { panic!("granted") };
    assert!(said.starts_with("lease: epoch=1 expires="), "{said}");
    let refusal = door.submit(acquire(&hive, "acquire", "m/2")).await.unwrap_err();
    assert_eq!(refusal.prefix, Prefix::Conflict);
    assert!(refusal.text.starts_with("held by m/1 epoch=1"), "{refusal}");
    let Ok(Accepted::Answered(said)) = door.submit(acquire(&hive, "steal", "m/2")).await else { panic!("stolen") };
    assert!(said.starts_with("lease: epoch=2 expires="), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_events_are_on_their_way_at_once_and_each_gets_its_own_answer() {
    let hive = Hive::start().await;
    let door = RemoteDoor::open(hive.url(), hive.credentials());
    until(&mut door.connection(), |now| *now == Connection::Live).await;
    let mut sending = tokio::task::JoinSet::new();
    for n in 0..500 {
        let (door, mut event) = (door.clone(), hive.reply(&format!("{n}")));
        if n % 5 == 0 {
            event.content.push('!');
        }
        sending.spawn(async move { (n, door.submit(event).await) });
    }
    while let Some(done) = sending.join_next().await {
        let (n, answer) = done.unwrap();
        match answer {
            Ok(Accepted::Stored(_)) => assert_ne!(n % 5, 0),
            Err(refusal) => assert_eq!((n % 5, refusal.prefix), (0, Prefix::Invalid), "{refusal}"),
            other => panic!("{n}: {other:?}"),
        }
    }
    let mut micros: Vec<u128> = Vec::new();
    for n in 0..200 {
        let event = hive.reply(&format!("one after the other {n}"));
        let since = Instant::now();
        door.submit(event).await.unwrap();
        micros.push(since.elapsed().as_micros());
    }
    micros.sort_unstable();
    println!("door round trip: p50 {} us, p99 {} us", micros[100], micros[198]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_the_answer_is_an_error_at_once_and_afterwards_it_works_again() {
    let mut hive = Hive::start().await;
    let door = RemoteDoor::open(hive.url(), hive.credentials());
    let mut connection = door.connection();
    until(&mut connection, |now| *now == Connection::Live).await;
    hive.down().await;
    until(&mut connection, |now| matches!(now, Connection::Waits { .. })).await;
    let since = Instant::now();
    let refusal = door.submit(hive.reply("while it is down")).await.unwrap_err();
    assert_eq!(refusal.prefix, Prefix::Error);
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    hive.up().await;
    until(&mut connection, |now| *now == Connection::Live).await;
    assert!(matches!(door.submit(hive.reply("it is up")).await, Ok(Accepted::Stored(_))));
}

/// A relay for one connection that refuses AUTH.
fn hostile() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut socket = tungstenite::accept(listener.accept().unwrap().0).unwrap();
        socket.send(Message::text(r#"["AUTH","challenge"]"#)).unwrap();
        while let Ok(message) = socket.read() {
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).unwrap();
            let no = json!(["OK", message[1]["id"], false, "restricted: not you"]);
            let _ = socket.send(Message::text(no.to_string()));
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_does_not_let_the_agent_in_ends_the_attempts_with_its_reason() {
    let hive = Hive::start().await;
    let door = RemoteDoor::open(hostile(), hive.credentials());
    let stopped = until(&mut door.connection(), |now| matches!(now, Connection::Stopped(_))).await;
    assert_eq!(stopped, Connection::Stopped(Stop::Auth("restricted: not you".into())));
    let refusal = door.submit(hive.reply("x")).await.unwrap_err();
    assert!(refusal.text.contains("does not let this agent in"), "{refusal}");
}
