//! What an agent publishes reaches its relays, once.

use std::sync::Arc;

use skep_agent::driver::{INPUTS_MAX, Input};
use skep_core::leader::{LockFile, Mode, Role};
use skep_node::agent::door::RemoteDoor;
use skep_node::agent::lead::{Lead, Settings};
use skep_node::agent::locks::Locks;
use skep_node::agent::outbox::{self, Post};
use skep_node::clock::{unix_now, unix_now_ms};
use skep_proto::lease::{Claim, Resource};
use skep_proto::time::Moment;
use skep_proto::{Draft, Filter, Kind, RawEvent};
use skep_store::AgentStore;
use skep_store::agent::{Delivery, Hold, TurnEnd};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::hive::{Hive, PATIENCE};

struct Posted {
    store: Arc<AgentStore>,
    relay: String,
    news: watch::Sender<u64>,
    inputs: mpsc::Receiver<Input>,
    /// Keeps the inputs open.
    _sender: mpsc::Sender<Input>,
    stop: CancellationToken,
}

impl Posted {
    fn start(hive: &Hive) -> Self {
        Self::led(hive, None)
    }

    fn led(hive: &Hive, lead: Option<Lead>) -> Self {
        let store = Arc::new(AgentStore::open(&hive.dir().join("agent.db")).unwrap());
        let (news, changes) = watch::channel(0);
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let (door, stop) = (RemoteDoor::open(hive.url(), hive.credentials()), CancellationToken::new());
        let (kept, relay) = (Arc::clone(&store), hive.url());
        let (posted, told) = (Arc::default(), sender.downgrade());
        let post = Post { relay: relay.clone(), door, store: kept, lead, news: changes, posted, inputs: told };
        tokio::spawn(outbox::run(post, stop.clone()));
        Self { store, relay, news, inputs, _sender: sender, stop }
    }

    fn put(&self, events: &[RawEvent]) {
        self.store.enqueue(events, std::slice::from_ref(&self.relay), unix_now()).unwrap();
        self.news.send_modify(|n| *n += 1);
    }

    /// What became of each event, in the order in which it was told.
    async fn told(&mut self, how_many: usize) -> Vec<(String, Delivery)> {
        let mut told = Vec::new();
        while told.len() < how_many {
            let input = timeout(PATIENCE, self.inputs.recv()).await.expect("in time").unwrap();
            let Input::Delivered { id, delivery, .. } = input else { panic!("{input:?}") };
            told.push((id.to_hex(), delivery));
        }
        told
    }
}

fn taken(events: &[RawEvent]) -> Vec<(String, Delivery)> {
    events.iter().map(|event| (event.id.to_hex(), Delivery::Taken)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn across_a_restart_of_the_relay_each_event_is_delivered_once_and_in_order() {
    let mut hive = Hive::start().await;
    let mut posted = Posted::start(&hive);
    let first: Vec<RawEvent> = (0..20).map(|n| hive.reply(&format!("first {n}"))).collect();
    posted.put(&first);
    assert_eq!(posted.told(20).await, taken(&first));
    hive.down().await;
    let second: Vec<RawEvent> = (0..30).map(|n| hive.reply(&format!("second {n}"))).collect();
    posted.put(&second);
    hive.up().await;
    assert_eq!(posted.told(30).await, taken(&second));
    assert_eq!(posted.store.outbox_len().unwrap(), (0, 0));
    let filter = Filter { authors: Some(vec![hive.agent.pubkey()]), ..Filter::new() };
    let found = hive.client(&hive.owner).await.query(vec![filter]).await.unwrap();
    assert_eq!(found.len(), 50);
    posted.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_refuses_for_good_is_not_sent_again_and_holds_up_nothing() {
    let hive = Hive::start().await;
    let mut posted = Posted::start(&hive);
    let mut broken = hive.reply("broken");
    broken.content.push('!');
    let good = hive.reply("good");
    // A control frame of an hour ago: nobody would take it.
    let stale = Draft::new(Kind::AGENT_FRAME, unix_now() - 3_600, "x");
    let stale = hive.agent.sign(stale).raw().clone();
    posted.put(&[broken, stale, good.clone()]);
    let told = posted.told(3).await;
    assert!(matches!(&told[0].1, Delivery::Refused(said) if said.starts_with("invalid:")), "{told:?}");
    assert!(matches!(&told[1].1, Delivery::Refused(said) if said.starts_with("not sent:")), "{told:?}");
    assert_eq!(told[2..], taken(&[good]));
    assert_eq!(posted.store.outbox_len().unwrap(), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_relay_sees_to_it_an_answer_is_not_sent_beside_the_one_who_leads() {
    let hive = Hive::start().await;
    let locks = Locks::open(&hive.dir().join("locks"), &hive.agent.pubkey()).unwrap();
    let (sender, _inputs) = mpsc::channel(16);
    let settings = Settings {
        instance: locks.new_instance().unwrap(),
        locks: locks.clone(),
        mode: Mode::Auto,
        lease: None,
        news: mpsc::channel(1).1,
        inputs: sender.downgrade(),
    };
    let lead = Lead::start(settings).unwrap();
    let mut standing = lead.standing();
    let leads = standing.wait_for(|now| matches!(now.role, Role::Prompter(_)));
    timeout(PATIENCE, leads).await.expect("in time").unwrap();
    let mut posted = Posted::led(&hive, Some(lead));
    // While we were stopped, another program took the lead.
    let other = LockFile {
        instance_id: "other".into(),
        pid: std::process::id(),
        claimed_at: Moment(unix_now_ms()),
        holds: false,
    };
    locks.lock().write(&other).unwrap();
    let resource = Resource::new(&format!("turn:{}:{}", hive.agent.pubkey(), "ab".repeat(32))).unwrap();
    let claim = Claim { resource, epoch: 1, is_final: true };
    let answer = hive.agent.sign(Draft::new(Kind::NOTE, unix_now(), "an answer").tag(claim.tag())).raw().clone();
    let word = hive.reply("not an answer");
    let (reply, relays) = (std::slice::from_ref(&answer), std::slice::from_ref(&posted.relay));
    posted.store.end_turn("t", &TurnEnd::default(), (reply, Hold::Nothing), &[], relays, &[]).unwrap();
    posted.put(std::slice::from_ref(&word));
    let mut told = Vec::new();
    while told.len() < 2 {
        told.extend(
            posted.told(1).await.into_iter().filter(|(_, delivery)| !matches!(delivery, Delivery::Later { .. })),
        );
    }
    told.sort_by_key(|(id, _)| *id != word.id.to_hex());
    assert_eq!(told[0], (word.id.to_hex(), Delivery::Taken));
    assert_eq!(told[1], (answer.id.to_hex(), Delivery::Refused("conflict: another instance leads".into())));
}
