//! Who may act: a leader that slept, a start without leases, a relay's word that nobody heard.

use std::sync::atomic::Ordering;

use skep_proto::lease::{Claim, Op, Request, Resource};
use skep_store::agent::Delivery;

use super::*;
use crate::relay::{Fresh, Lost, Shelf};

/// Waits until a message is in a state.
pub async fn until_is(store: &AgentStore, id: &skep_proto::EventId, name: &str) {
    let found = tokio::time::timeout(Duration::from_secs(30), async {
        while store.message(id).unwrap().is_none_or(|message| message.state.name != name) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let what = || store.message(id).unwrap().map(|message| message.state);
    found.await.unwrap_or_else(|_| panic!("it is not {name}: {:?}", what()));
}

#[tokio::test]
async fn a_leader_that_slept_asks_before_it_acts_and_its_turn_ends_without_a_reply() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let (machine, lead) = (Arc::new(Machine::default()), Arc::new(Lost::default()));
    let go = dir.path().join("go");
    let wait = script(&format!("cat >/dev/null; until [ -e {} ]; do sleep 0.02; done; echo done", go.display()));
    let setup = Setup { host: machine.clone(), lead: lead.clone(), ..setup(dir.path(), "a", wait) };
    let instance = prompter(setup, &relay).await;
    let running = ask(&instance, "runs while we sleep").await;
    relay.wait_for(Kind::REACTION, 1).await;

    // The process is stopped for longer than its claim is good for, and another takes over.
    lead.0.store(true, Ordering::Relaxed);
    machine.ahead_ms.store(20_000, Ordering::Relaxed);
    std::fs::write(&go, "").unwrap();
    let later = ask(&instance, "asked while we sleep").await;
    until_is(&instance.store, &running.id, "queued").await;
    until_is(&instance.store, &later.id, "queued").await;
    let newest = instance.store.newest_turns(9).unwrap();
    assert_eq!(newest.len(), 1, "no turn was begun");
    assert_eq!(newest[0].end.as_ref().unwrap().outcome, "cancelled");
    assert_eq!(relay.accepted(Kind::NOTE), []);
    assert_eq!(relay.accepted(Kind::REACTION).len(), 1, "nor was anything shown");

    // The role that was true when it was sent is not believed either.
    instance.tell(PROMPTER).await;
    instance.flush().await;
    assert_eq!(instance.store.newest_turns(9).unwrap().len(), 1);

    lead.0.store(false, Ordering::Relaxed);
    instance.tell(PROMPTER).await;
    relay.wait_for(Kind::NOTE, 2).await;
}

#[tokio::test]
async fn a_lead_that_has_just_looked_is_not_asked_to_look_again() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let lead = Arc::new(Fresh::default());
    let setup = Setup { lead: lead.clone(), ..setup(dir.path(), "a", script("cat >/dev/null; echo done")) };
    let instance = prompter(setup, &relay).await;
    ask(&instance, "what").await;
    relay.wait_for(Kind::NOTE, 1).await;
    assert_eq!(lead.0.load(Ordering::Relaxed), 0);
}

/// Another instance's answer.
fn answer(event: &RawEvent) -> RawEvent {
    let resource = Resource::new(&format!("turn:{}:{}", pubkey(AGENT), event.id)).unwrap();
    let claim = Claim { resource, epoch: 1, is_final: true };
    let draft = Draft::new(Kind::NOTE, now(), "before").tag(claim.tag()).tag(["e", &event.id.to_hex()]);
    draft.sign(&keys(AGENT), &[0; 32]).raw().clone()
}

#[tokio::test]
async fn without_leases_an_answer_that_is_seen_ends_the_turn_that_begins_or_runs() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::without_leases()));
    let shelf = Arc::new(Shelf::default());
    let setup = setup(dir.path(), "a", script("cat >/dev/null; sleep 60"));
    let setup = Setup { has_leases: false, library: shelf.clone(), ..setup };
    let instance = Instance::start(setup, &relay);
    instance.tell(Input::CaughtUp).await;
    instance.tell(PROMPTER).await;
    let running = ask(&instance, "runs").await;
    until_is(&instance.store, &running.id, "prompted").await;
    instance.event(&answer(&running)).await;
    until_is(&instance.store, &running.id, "answered").await;
    let turns = instance.store.newest_turns(9).unwrap();
    assert_eq!(turns[0].end.as_ref().unwrap().outcome, "cancelled");

    // Whoever is asked what was said before does not answer at once.
    shelf.is_silent.store(true, Ordering::Relaxed);
    let root = running.id.to_hex();
    let begins =
        Draft::new(Kind::NOTE, now(), "begins").tag(["p", &pubkey(AGENT).to_hex()]).tag(["e", &root, "", "root"]);
    let begins = begins.sign(&keys(OWNER), &[0; 32]).raw().clone();
    let looks = shelf.looks.load(Ordering::Relaxed);
    instance.event(&begins).await;
    let looked = tokio::time::timeout(Duration::from_secs(30), async {
        while shelf.looks.load(Ordering::Relaxed) == looks {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    looked.await.unwrap();
    instance.event(&answer(&begins)).await;
    until_is(&instance.store, &begins.id, "answered").await;
    tokio::time::sleep(Duration::from_millis(skep_proto::limits::LOOKUP_MS_MAX + 500)).await;
    assert_eq!(instance.store.newest_turns(9).unwrap().len(), 1, "it was not begun");
    assert_eq!(relay.accepted(Kind::NOTE), []);
}

#[tokio::test]
async fn a_pause_holds_for_a_turn_that_is_about_to_begin() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let shelf = Arc::new(Shelf::default());
    // What was said before is waited for, for a while: the turn cannot begin yet.
    shelf.is_silent.store(true, Ordering::Relaxed);
    let setup = Setup { library: shelf.clone(), ..setup(dir.path(), "a", script("cat >/dev/null; echo done")) };
    let instance = prompter(setup, &relay).await;
    let draft = Draft::new(Kind::CHAT, now(), "hello").tag(["p", &pubkey(AGENT).to_hex()]).tag(["h", "team"]);
    let asked = draft.sign(&keys(OWNER), &[0; 32]).raw().clone();
    instance.event(&asked).await;
    let looks = async {
        while shelf.looks.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looks).await.unwrap();
    let (reply, said) = oneshot::channel();
    instance.tell(Input::Command(Command::Pause("lunch".into()), reply)).await;
    said.await.unwrap().unwrap();
    until_detail(&instance, &asked, "paused").await;
    assert_eq!(instance.store.newest_turns(9).unwrap().len(), 0, "no turn has begun");
    shelf.is_silent.store(false, Ordering::Relaxed);
    let (reply, said) = oneshot::channel();
    instance.tell(Input::Command(Command::Resume, reply)).await;
    said.await.unwrap().unwrap();
    until_is(&instance.store, &asked.id, "answered").await;
}

/// Waits until the state of a message says this.
async fn until_detail(instance: &Instance, event: &RawEvent, text: &str) {
    let found = tokio::time::timeout(Duration::from_secs(30), async {
        while instance.store.message(&event.id).unwrap().is_none_or(|message| !message.state.detail.contains(text)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.expect("its state says so");
}

#[tokio::test]
async fn without_leases_nothing_is_prompted_before_it_is_known_what_has_an_answer() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::without_leases()));
    let setup = Setup { has_leases: false, ..setup(dir.path(), "a", script("cat >/dev/null; echo done")) };
    let instance = prompter(setup, &relay).await;
    let (old, older) = (mention(OWNER, "answered by the one before"), mention(OWNER, "its answer comes first"));
    let fresh = mention(OWNER, "not answered yet");
    instance.event(&old).await;
    instance.event(&answer(&older)).await;
    instance.event(&older).await;
    instance.event(&fresh).await;
    instance.event(&answer(&old)).await;
    instance.tell(Input::CaughtUp).await;
    let replies = relay.wait_for(Kind::NOTE, 1).await;
    assert_eq!(e_tag(&replies[0]), fresh.id.to_hex());
    until_is(&instance.store, &fresh.id, "answered").await;
    for known in [&old, &older] {
        assert_eq!(instance.store.message(&known.id).unwrap().unwrap().state.name, "answered");
    }
    assert_eq!(instance.store.newest_turns(9).unwrap().len(), 1);
}

#[tokio::test]
async fn an_answer_that_lost_to_another_instance_is_taken_back_and_the_others_stands() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::without_leases()));
    let setup = Setup { has_leases: false, ..setup(dir.path(), "a", script("cat >/dev/null; echo done")) };
    let instance = Instance::start(setup, &relay);
    instance.pump.abort();
    instance.tell(PROMPTER).await;
    instance.tell(Input::CaughtUp).await;
    let (known, unknown) = (mention(OWNER, "another answered it"), mention(OWNER, "nobody else did"));
    for event in [&known, &unknown] {
        instance.event(event).await;
        until_is(&instance.store, &event.id, "answered").await;
    }
    let resource = Resource::new(&format!("turn:{}:{}", pubkey(AGENT), known.id)).unwrap();
    let claim = Claim { resource, epoch: 1, is_final: true };
    let theirs = Draft::new(Kind::NOTE, now(), "theirs").tag(claim.tag()).sign(&keys(AGENT), &[0; 32]).raw().clone();
    instance.event(&theirs).await;
    for event in [&known, &unknown] {
        let id = instance.store.answer_to(&event.id).unwrap().unwrap();
        let delivery = Delivery::Refused("conflict: another instance leads".into());
        instance.store.delivered(&id, HOME, &delivery).unwrap();
        instance.tell(Input::Delivered { id, relay: HOME.into(), delivery }).await;
    }
    instance.flush().await;
    until_is(&instance.store, &unknown.id, "answered").await;
    until_is(&instance.store, &known.id, "answered").await;
    assert_eq!(instance.store.newest_turns(9).unwrap().len(), 3, "one was answered anew, one was left as it was");
    assert_eq!(instance.store.answer_to(&known.id).unwrap(), None);
}

#[tokio::test]
async fn a_refusal_that_nobody_heard_before_the_crash_is_heard_at_the_next_start() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let start = |instance: &str| {
        let store = Arc::new(AgentStore::open(&dir.path().join("one.db")).unwrap());
        Instance::start(Setup { store, ..setup(dir.path(), instance, script("cat >/dev/null; echo done")) }, &relay)
    };
    let asked = mention(OWNER, "work");
    // Its relay does not answer about events: the reply stays in the outbox.
    let first = start("first");
    first.pump.abort();
    first.tell(PROMPTER).await;
    first.event(&asked).await;
    until_is(&first.store, &asked.id, "answered").await;
    let (store, answer) = (Arc::clone(&first.store), first.store.answer_to(&asked.id).unwrap().unwrap());
    first.kill();
    // Meanwhile the turn was another's, whose lease runs out; the word of the relay reached the records only.
    let resource = Resource::new(&format!("turn:{}:{}", pubkey(AGENT), asked.id)).unwrap();
    let steal = Request { resource, op: Op::Steal { ttl_secs: 1 }, instance: "other".into() };
    let steal = steal.draft(now()).sign(&keys(AGENT), &[0; 32]);
    skep_core::door::Door::submit(&*relay, steal.raw().clone()).await.unwrap();
    store.delivered(&answer, HOME, &Delivery::Refused("conflict: epoch=1 is not the lease's epoch=2".into())).unwrap();
    let second = start("second");
    second.tell(PROMPTER).await;
    let replies = relay.wait_for(Kind::NOTE, 1).await;
    assert_eq!(e_tag(&replies[0]), asked.id.to_hex(), "it is answered after all");
    assert_ne!(replies[0].id, answer);
}
