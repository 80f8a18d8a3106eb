//! Whole instances, with a driver that answers each message while it leads.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use skep_agent::driver::{Command, Input, Setup};
use skep_core::leader::Role;
use skep_node::agent::door::RemoteDoor;
use skep_node::agent::reconnect::Connection;
use skep_node::agent::settings::{AgentSettings, BackendKind};
use skep_node::agent::{Instance, NotRunning, Plan, State, stop_all};
use skep_node::clock::unix_now;
use skep_proto::{Draft, Filter, Kind, RawEvent, limits};
use skep_store::StoreError;
use skep_store::agent::MessageState;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::hive::{Hive, PATIENCE};

fn plan(hive: &Hive, home: &str) -> Plan {
    let settings = AgentSettings {
        name: "scout".into(),
        auth: hive.consent().into(),
        backend: BackendKind::Command,
        command: "/bin/cat".into(),
        relays: vec![hive.url()],
        ..AgentSettings::default()
    };
    hive.plan(&settings, &hive.agent, home, "locks")
}

/// What goes out behind an answer: any kind that the relay keeps.
const BILL: Kind = Kind::REACTION;

/// Answers each message once while it leads.
async fn answer(setup: Setup, _: Arc<RemoteDoor>, mut inputs: mpsc::Receiver<Input>) -> Result<(), StoreError> {
    let keys = skep_node::keys::StoredKey::parse(&setup.keys.display_secret().to_string(), "a test").unwrap();
    let keys = keys.unlock(|| unreachable!()).unwrap();
    let state = MessageState { name: "stored".into(), at: 0, is_over: false, detail: "{}".into() };
    let (mut leads, mut waiting) = (false, Vec::new());
    while let Some(input) = inputs.recv().await {
        match input {
            Input::Role(role) => leads = matches!(role, Role::Prompter(_)),
            Input::Event { event, relay } => {
                let is_question = event.pubkey != keys.pubkey() && event.kind == Kind::NOTE;
                if is_question && setup.store.receive(&event, "c", &relay, unix_now(), &state)? {
                    waiting.push(event);
                }
            }
            Input::Command(Command::Resume, reply) => drop(reply.send(Ok(setup.instance.clone()))),
            Input::Flushed(done) => drop(done.send(())),
            Input::CaughtUp | Input::HearsOwner(_) | Input::Delivered { .. } | Input::Command(..) => {}
        }
        for message in waiting.drain(..).filter(|_| leads) {
            let reply = Draft::new(Kind::NOTE, unix_now(), format!("to {}", message.content));
            let reply = keys.sign(reply.tag(["e", &message.id.to_hex()])).raw().clone();
            // In one commit with it, as a turn's bill.
            let bill = keys.sign(Draft::new(BILL, unix_now(), message.content.clone())).raw().clone();
            setup.store.enqueue(&[reply, bill], &setup.relays, unix_now())?;
            setup.outbox.notify_one();
        }
    }
    Ok(())
}

async fn leads(instance: &Instance) {
    let mut standing = instance.standing().unwrap();
    let found = timeout(PATIENCE, standing.wait_for(|now| matches!(now.role, Role::Prompter(_)))).await;
    found.expect("in time").unwrap();
}

/// Mentions the agent and waits for its answers.
async fn ask(hive: &Hive, text: &str) -> String {
    let mention = hive.mention(unix_now(), text);
    let mut client = hive.client(&hive.owner).await;
    let filter = Filter { authors: Some(vec![hive.agent.pubkey()]), kinds: Some(vec![Kind::NOTE]), ..Filter::new() };
    let filter = Filter { tags: vec![(b'e', vec![mention.id.to_hex()])], ..filter };
    let mut sub = client.subscribe(vec![filter]).await.unwrap();
    assert!(hive.client(&hive.owner).await.publish(&mention).await.unwrap().accepted);
    let answered = async {
        loop {
            if let skep_node::client::Update::Event(event) = client.next_update(&mut sub).await.unwrap() {
                return event.content.clone();
            }
        }
    };
    timeout(PATIENCE, answered).await.expect("in time")
}

async fn answers(hive: &Hive) -> Vec<RawEvent> {
    let filter = Filter { authors: Some(vec![hive.agent.pubkey()]), kinds: Some(vec![Kind::NOTE]), ..Filter::new() };
    let found = hive.client(&hive.owner).await.query(vec![filter]).await.unwrap();
    found.iter().map(|event| event.raw().clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mention_is_answered_also_after_the_relay_was_away() {
    let mut hive = Hive::start().await;
    let instance = Instance::start_with(plan(&hive, "home"), answer).unwrap();
    leads(&instance).await;
    assert_eq!(ask(&hive, "one").await, "to one");
    hive.down().await;
    let mut lost = instance.standing().unwrap();
    hive.up().await;
    let is_up = |now: &Connection| *now == Connection::Live;
    while !instance.status().unwrap().links.iter().all(|(_, now)| is_up(now)) {
        // The lease is renewed meanwhile, which is as good a reason to look again as any.
        let _ = timeout(Duration::from_millis(20), lost.changed()).await;
    }
    leads(&instance).await;
    assert_eq!(ask(&hive, "two").await, "to two");
    let status = instance.status().unwrap();
    assert_eq!((status.name.as_str(), status.state), ("scout", State::Running));
    let store = Arc::clone(instance.store());
    instance.stop().await;
    assert_eq!(store.outbox_len().unwrap(), (0, 0), "all was delivered");
    let lock = hive.dir().join("locks").join(format!("{}.lock", hive.agent.pubkey()));
    assert_eq!(std::fs::read(lock).unwrap(), b"", "released");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_instances_one_answers_and_after_its_stop_the_other() {
    let hive = Hive::start().await;
    let first = Instance::start_with(plan(&hive, "first"), answer).unwrap();
    leads(&first).await;
    let second = Instance::start_with(plan(&hive, "second"), answer).unwrap();
    let mut standing = second.standing().unwrap();
    let follows = standing.wait_for(|now| matches!(now.role, Role::Follows(Some(_))));
    timeout(PATIENCE, follows).await.expect("in time").unwrap();
    let name = |instance: String| instance.split_once('/').unwrap().0.to_owned();
    let [one, two] = [&first, &second].map(|instance| instance.command(Command::Resume));
    let (one, two) = (one.await.unwrap().unwrap(), two.await.unwrap().unwrap());
    assert!(one != two && name(one) == name(two), "two instances on one machine");
    assert_eq!(ask(&hive, "one").await, "to one");
    first.stop().await;
    leads(&second).await;
    assert_eq!(ask(&hive, "two").await, "to two");
    assert_eq!(answers(&hive).await.len(), 2, "each once");
    second.claim().await.unwrap();
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_fails_is_started_again_with_its_reason_shown() {
    let hive = Hive::start().await;
    let starts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&starts);
    let drive = move |setup, door, inputs| {
        let is_first = counted.fetch_add(1, Ordering::Relaxed) == 0;
        async move { if is_first { Err(StoreError::DiskFull) } else { answer(setup, door, inputs).await } }
    };
    let instance = Instance::start_with(plan(&hive, "home"), drive).unwrap();
    let mut state = instance.state();
    let failed = timeout(PATIENCE, state.wait_for(|now| matches!(now, State::Restarts { .. }))).await;
    let State::Restarts { why, .. } = failed.expect("in time").unwrap().clone() else { panic!("it restarts") };
    assert_eq!(why, StoreError::DiskFull.to_string());
    assert_eq!(instance.claim().await, Err(NotRunning));
    timeout(PATIENCE, state.wait_for(|now| *now == State::Running)).await.expect("in time").unwrap();
    leads(&instance).await;
    assert_eq!(ask(&hive, "again").await, "to again");
    assert_eq!(starts.load(Ordering::Relaxed), 2);
    instance.stop().await;
    assert!(Path::new(&hive.dir().join("home/agents/scout/agent.db")).exists());
}

/// A relay that takes every event and knows no leases.
fn simple_relay() -> String {
    relay_that_thinks(Duration::ZERO)
}

/// The same, and thinks about each note first.
fn relay_that_thinks(before: Duration) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut socket = tungstenite::accept(stream).unwrap();
                while let Ok(message) = socket.read() {
                    let Message::Text(text) = message else { continue };
                    let message: Value = serde_json::from_str(&text).unwrap();
                    let answer = match message[0].as_str().unwrap() {
                        "REQ" => json!(["EOSE", message[1]]),
                        "EVENT" => {
                            if message[1]["kind"] == Kind::NOTE.0 {
                                std::thread::sleep(before);
                            }
                            json!(["OK", message[1]["id"], true, ""])
                        }
                        other => json!(["NOTICE", format!("unknown {other}")]),
                    };
                    let _ = socket.send(Message::text(answer.to_string()));
                }
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_relay_grants_no_leases_the_files_decide_and_the_driver_knows() {
    let hive = Hive::start().await;
    let (says, mut said) = mpsc::channel(8);
    let drive = move |setup: Setup, door, inputs| {
        says.try_send(setup.has_leases).unwrap();
        answer(setup, door, inputs)
    };
    let instance = Instance::start_with(Plan { relays: vec![simple_relay()], ..plan(&hive, "home") }, drive).unwrap();
    assert_eq!(timeout(PATIENCE, said.recv()).await.expect("in time"), Some(true));
    assert_eq!(timeout(PATIENCE, said.recv()).await.expect("in time"), Some(false));
    let mut state = instance.state();
    while instance.standing().is_err() {
        timeout(PATIENCE, state.changed()).await.expect("in time").unwrap();
    }
    leads(&instance).await;
    assert_eq!(instance.status().unwrap().standing.unwrap().role, Role::Prompter(None));
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_stops_right_after_its_answer_leaves_no_bill_behind() {
    const STOPS: usize = 50;
    let hive = Hive::start().await;
    for n in 0..STOPS {
        let instance = Instance::start_with(plan(&hive, "home"), answer).unwrap();
        leads(&instance).await;
        ask(&hive, &n.to_string()).await;
        let store = Arc::clone(instance.store());
        instance.stop().await;
        assert_eq!(store.outbox_len().unwrap(), (0, 0), "stop {n}");
    }
}

/// Says something when it is told to end.
async fn last_words(setup: Setup, _: Arc<RemoteDoor>, mut inputs: mpsc::Receiver<Input>) -> Result<(), StoreError> {
    while inputs.recv().await.is_some() {}
    let keys = skep_node::keys::StoredKey::parse(&setup.keys.display_secret().to_string(), "a test").unwrap();
    let words = keys.unlock(|| unreachable!()).unwrap().sign(Draft::new(Kind::NOTE, unix_now(), "the end"));
    setup.store.enqueue(&[words.raw().clone()], &setup.relays, unix_now())?;
    setup.outbox.notify_one();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_last_is_delivered_before_the_end_also_to_a_relay_that_takes_its_time() {
    let hive = Hive::start().await;
    // Longer than what waits for a connection may take, and shorter than all of it.
    let relay = relay_that_thinks(Duration::from_millis(limits::STOP_OUTBOX_MS + 1_000));
    let plan = Plan { relays: vec![relay], has_leases: false, ..plan(&hive, "home") };
    let instance = Instance::start_with(plan, last_words).unwrap();
    timeout(PATIENCE, async {
        while instance.status().unwrap().door != Some(Connection::Live) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("in time");
    let store = Arc::clone(instance.store());
    instance.stop().await;
    assert_eq!(store.outbox_len().unwrap(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_that_do_not_end_are_cut_off_together() {
    let hive = Hive::start().await;
    let drive = |_, _, _| std::future::pending();
    let start = |home: &str| {
        let plan = plan(&hive, home);
        Instance::start_with(Plan { relays: vec![simple_relay()], has_leases: false, ..plan }, drive).unwrap()
    };
    let instances = ["a", "b", "c", "d", "e"].map(start);
    // One bound for all of them, and not one for each: one after the other they take longer than this waits.
    let bound = Duration::from_millis(2 * limits::STOP_MS);
    timeout(bound, stop_all(instances)).await.expect("in time");
}
