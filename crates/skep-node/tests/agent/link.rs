//! What a relay has for an agent reaches its driver, all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_agent::driver::{INPUTS_MAX, Input};
use skep_node::agent::link::{self, Feed};
use skep_node::agent::reconnect::{Connection, Stop};
use skep_node::clock::unix_now;
use skep_node::keys::Keys;
use skep_node::transfer::Pipeline;
use skep_proto::{Draft, EventId, Kind, RawEvent};
use skep_store::AgentStore;
use skep_store::agent::MessageState;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::hive::{Hive, PATIENCE, until};

/// A link, and what stands for the driver: it keeps each message in the store, once.
struct Linked {
    store: Arc<AgentStore>,
    inputs: mpsc::Receiver<Input>,
    leases: mpsc::Receiver<RawEvent>,
    connection: watch::Receiver<Connection>,
    stop: CancellationToken,
    /// How often each came.
    came: BTreeMap<EventId, u32>,
}

impl Linked {
    fn start(hive: &Hive) -> Self {
        let store = Arc::new(AgentStore::open(&hive.dir().join("agent.db")).unwrap());
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let (lease_sender, leases) = mpsc::channel(8);
        let (says, connection) = watch::channel(Connection::Connecting);
        let stop = CancellationToken::new();
        let feed = Feed {
            url: hive.url(),
            agent: hive.agent.pubkey(),
            owner: None,
            credentials: hive.credentials(),
            store: Arc::clone(&store),
            inputs: sender,
            leases: Some(lease_sender),
        };
        tokio::spawn(link::run(feed, says, stop.clone()));
        Self { store, inputs, leases, connection, stop, came: BTreeMap::new() }
    }

    async fn next(&mut self) -> RawEvent {
        let (event, relay) = loop {
            match timeout(PATIENCE, self.inputs.recv()).await.expect("in time").unwrap() {
                Input::Event { event, relay } => break (event, relay),
                Input::Flushed(done) => drop(done.send(())),
                other => panic!("{other:?}"),
            }
        };
        let state = MessageState { name: "stored".into(), at: 0, is_over: false, detail: "{}".into() };
        self.store.receive(&event, "c", &relay, unix_now(), &state).unwrap();
        *self.came.entry(event.id).or_default() += 1;
        *event
    }

    /// Reads until everything that is wanted came.
    async fn gather(&mut self, wanted: &[RawEvent]) {
        let mut missing: BTreeSet<EventId> = wanted.iter().map(|event| event.id).collect();
        missing.retain(|id| !self.came.contains_key(id));
        while !missing.is_empty() {
            missing.remove(&self.next().await.id);
        }
    }

    /// Reads until the link is live.
    async fn live(&mut self) {
        let mut connection = self.connection.clone();
        loop {
            tokio::select! {
                _ = until(&mut connection, |now| *now == Connection::Live) => return,
                _ = self.next() => {}
            }
        }
    }

    fn kept(&self) -> usize {
        self.store.message_ids(0).unwrap().len()
    }
}

async fn publish(hive: &Hive, by: &Keys, events: &[RawEvent]) {
    let mut client = hive.client(by).await;
    let mut pipeline = Pipeline::new(&mut client);
    for event in events {
        pipeline.send((), event).await.unwrap();
    }
    pipeline.settle().await.unwrap();
    let refused: Vec<String> =
        pipeline.answers().filter(|((), verdict)| !verdict.accepted).map(|((), verdict)| verdict.message).collect();
    assert_eq!(refused, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_messages_of_which_most_share_a_second_come_each_once_across_a_restart() {
    let mut hive = Hive::start().await;
    let now = unix_now();
    // 100 seconds with one each, and one second with 500: as much as a page.
    let before: Vec<RawEvent> = (0..600)
        .map(|n| hive.mention(if n < 100 { now - 3_000 + n } else { now - 2_000 }, &format!("before {n}")))
        .collect();
    publish(&hive, &hive.owner, &before).await;
    let mut linked = Linked::start(&hive);
    linked.gather(&before).await;
    linked.live().await;
    assert_eq!(linked.kept(), 600);
    assert!(linked.store.cursor(&hive.url()).unwrap() >= now);

    hive.down().await;
    until(&mut linked.connection, |now| matches!(now, Connection::Waits { .. })).await;
    hive.up().await;
    // One second with 250, and late ones, written an hour before the cursor.
    let while_away: Vec<RawEvent> = (0..400)
        .map(|n| hive.mention(if n < 250 { now } else { now - 3_600 - n }, &format!("while away {n}")))
        .collect();
    publish(&hive, &hive.owner, &while_away).await;
    linked.gather(&while_away).await;
    linked.live().await;
    let live = [hive.mention(unix_now(), "live"), hive.mention(now - 86_400, "live, of yesterday")];
    publish(&hive, &hive.owner, &live).await;
    linked.gather(&live).await;
    assert_eq!(linked.kept(), 1_002);
    assert_eq!(linked.came.len(), 1_002, "nothing else came");
    let again: u32 = linked.came.values().map(|times| times - 1).sum();
    println!("{again} of 1002 events came again and were recognized");
    linked.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_fits_in_memory_at_once_comes_in_parts_oldest_first() {
    // A relay that gives less than it is asked for.
    let hive = Hive::with(|settings| settings.limits.results = 200).await;
    let now = unix_now();
    // A second with 2,200, which cannot be halved, among 2,200 of other seconds.
    let at = |n: u64| if n.is_multiple_of(2) { now - 5_000 } else { now - 6_000 + n };
    let many: Vec<RawEvent> = (0..4_400).map(|n| hive.mention(at(n), &format!("{n}"))).collect();
    publish(&hive, &hive.owner, &many).await;
    let mut linked = Linked::start(&hive);
    let mut times = Vec::new();
    while times.len() < many.len() {
        let event = linked.next().await;
        if linked.came[&event.id] == 1 {
            times.push(event.created_at);
        }
    }
    assert_eq!(linked.kept(), many.len());
    assert!(times.is_sorted(), "some came before older ones");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_gives_very_little_at_a_time_is_asked_until_all_is_there() {
    let hive = Hive::with(|settings| settings.limits.results = 30).await;
    let now = unix_now();
    // A second with ten pages, and late ones, whose ids are more than one answer holds.
    let many: Vec<RawEvent> = (0..300).map(|n| hive.mention(now - 500, &format!("{n}"))).collect();
    let late: Vec<RawEvent> = (0..150).map(|n| hive.mention(now - 3 * 86_400 - n, &format!("late {n}"))).collect();
    publish(&hive, &hive.owner, &many).await;
    publish(&hive, &hive.owner, &late).await;
    let mut linked = Linked::start(&hive);
    linked.gather(&many).await;
    let mut times = Vec::new();
    while times.len() < late.len() {
        let event = linked.next().await;
        if late.iter().any(|late| late.id == event.id) {
            times.push(event.created_at);
        }
    }
    assert!(times.is_sorted(), "what comes late comes in its order");
    assert_eq!(linked.kept(), many.len() + late.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_live_while_the_gap_is_closed_waits_for_what_was_asked_before() {
    let hive = Hive::start().await;
    let now = unix_now();
    // More than the driver takes unread, so that the link stands in the middle of them.
    let before: Vec<RawEvent> = (0..1_000).map(|n| hive.mention(now - 2_000 + n, &format!("before {n}"))).collect();
    publish(&hive, &hive.owner, &before).await;
    let mut linked = Linked::start(&hive);
    let mut times = Vec::new();
    while times.len() < 10 {
        times.push(linked.next().await.created_at);
    }
    let live: Vec<RawEvent> = (0..5).map(|n| hive.mention(now + n, &format!("live {n}"))).collect();
    publish(&hive, &hive.owner, &live).await;
    while times.len() < before.len() + live.len() {
        let event = linked.next().await;
        if linked.came[&event.id] == 1 {
            times.push(event.created_at);
        }
    }
    assert!(times.is_sorted(), "some came before older ones");
    linked.live().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_second_the_questions_come_before_the_agents_own_words() {
    let hive = Hive::start().await;
    let at = unix_now() - 100;
    let asked: Vec<RawEvent> = (0..20).map(|n| hive.mention(at, &format!("question {n}"))).collect();
    let said = |n: u64| hive.agent.sign(Draft::new(Kind::NOTE, at, format!("answer {n}"))).raw().clone();
    let said: Vec<RawEvent> = (0..20).map(said).collect();
    publish(&hive, &hive.owner, &asked).await;
    publish(&hive, &hive.agent, &said).await;
    let mut linked = Linked::start(&hive);
    let mut order = Vec::new();
    while order.len() < 40 {
        order.push(linked.next().await.pubkey == hive.agent.pubkey());
    }
    assert!(order.is_sorted(), "{order:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn gift_wraps_reactions_and_own_words_come_and_what_others_say_does_not() {
    let hive = Hive::start().await;
    let (now, agent) = (unix_now(), hive.agent.pubkey().to_hex());
    let by_stranger = Keys::generate().unwrap();
    let sign = |keys: &Keys, draft: Draft| keys.sign(draft).raw().clone();
    let wrap = sign(&by_stranger, Draft::new(Kind::GIFT_WRAP, now - 2 * 86_400, "AA==").tag(["p", &agent]));
    let reaction = sign(&hive.owner, Draft::new(Kind::REACTION, now, "+").tag(["p", &agent]));
    let own = sign(&hive.agent, Draft::new(Kind::NOTE, now, "I answer").tag(["p", &hive.owner.pubkey().to_hex()]));
    let other = sign(&hive.owner, Draft::new(Kind::NOTE, now, "to nobody"));
    publish(&hive, &hive.owner, &[wrap.clone(), reaction.clone(), own.clone(), other.clone()]).await;
    let mut linked = Linked::start(&hive);
    linked.gather(&[wrap, reaction, own]).await;
    linked.live().await;
    assert_eq!(linked.came.len(), 3);
    assert!(!linked.came.contains_key(&other.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn news_of_the_lease_reach_whoever_leads() {
    let hive = Hive::start().await;
    let mut linked = Linked::start(&hive);
    linked.live().await;
    let profile = hive.agent.sign(Draft::new(Kind::PROFILE, unix_now(), "{}").tag(hive.consent())).raw().clone();
    let resource = format!("prompter:{}", hive.agent.pubkey());
    let draft = Draft::new(Kind::LEASE_REQUEST, unix_now(), "");
    let draft = draft.tag(["resource", &resource]).tag(["op", "acquire"]).tag(["instance", "m/1"]);
    let request = hive.agent.sign(draft).raw().clone();
    publish(&hive, &hive.agent, &[profile, request]).await;
    let state = timeout(PATIENCE, linked.leases.recv()).await.expect("in time").unwrap();
    assert_eq!(state.tags.single("instance"), Some("m/1"));
    // The driver is told nothing of it: what names an agent would be a message to it.
    let after = hive.mention(unix_now(), "after the news");
    publish(&hive, &hive.owner, std::slice::from_ref(&after)).await;
    linked.gather(&[after]).await;
    assert_eq!(linked.kept(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_does_not_serve_the_agent_stops_the_link_with_its_reason() {
    let mut hive = Hive::with(|settings| settings.closed = true).await;
    hive.owner = Keys::generate().unwrap();
    let mut linked = Linked::start(&hive);
    let stopped = until(&mut linked.connection, |now| matches!(now, Connection::Stopped(_))).await;
    let Connection::Stopped(Stop::Subscription(why)) = stopped else { panic!("{stopped:?}") };
    assert!(why.starts_with("restricted:"), "{why}");
}
