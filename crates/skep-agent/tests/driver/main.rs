//! An instance from mention to answer, against real records, a real ledger and real child processes.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../mock_model/mod.rs"]
mod mock_model;

mod budget;
mod cards;
mod earlier;
mod ends;
mod leading;
mod loops;
mod members;
mod model;
mod pause;
mod profile;
mod provider;
mod relay;
mod sealed;
mod several;
mod tools;

use std::sync::Arc;
use std::time::Duration;

use secp256k1::{Keypair, SECP256K1};
use skep_agent::driver::{Command, Input, Setup};
use skep_agent::{Environment, Kind as Backend, Spec};
use skep_core::audience::{Audience, RespondTo};
use skep_core::leader::Role;
use skep_core::{permit, queue, turn};
use skep_proto::agent::control::{Control, control_draft};
use skep_proto::agent::metering::TurnMetric;
use skep_proto::{Draft, Kind, PubKey, RawEvent, attestation, seal};
use skep_store::AgentStore;
use skep_store::agent::Delivery;
use tokio::sync::oneshot;

use relay::{Always, HOME, Instance, Machine, Relay, Shelf, now};

fn keys(n: u8) -> Keypair {
    Keypair::from_seckey_slice(SECP256K1, &[n; 32]).unwrap()
}

fn pubkey(n: u8) -> PubKey {
    PubKey(keys(n).x_only_public_key().0.serialize())
}

const OWNER: u8 = 1;
const AGENT: u8 = 2;
const STRANGER: u8 = 3;

fn demo() -> Backend {
    Backend::Acp { command: env!("CARGO_BIN_EXE_agent-fixture").into(), args: vec!["demo".into()] }
}

fn script(text: &str) -> Backend {
    Backend::Command { command: "/bin/sh".into(), args: vec!["-c".into(), text.into()] }
}

fn setup(dir: &std::path::Path, instance: &str, backend: Backend) -> Setup {
    let env = Environment::allowed(std::env::vars(), &[], &[]).unwrap();
    let conditions = "".parse().unwrap();
    Setup {
        name: "worker".parse().unwrap(),
        keys: keys(AGENT),
        attestation: Some(attestation::attest(&keys(OWNER), &pubkey(AGENT), &conditions, &[0; 32])),
        instance: instance.into(),
        audience: Audience { respond_to: RespondTo::Owner, owner: Some(pubkey(OWNER)), allowlist: Vec::new() },
        queue: queue::Settings { parallel: 4, ..queue::Settings::default() },
        times: turn::Times::default(),
        policy: permit::Policy::default(),
        about: "works".into(),
        system: "You are worker.".into(),
        spec: Spec::new(backend, dir, env),
        tools: skep_core::tools::Grants::none(),
        bridge: None,
        trees: None,
        budget: Default::default(),
        purse: None,
        prices: None,
        relays: vec![HOME.into()],
        has_leases: true,
        hears_owner: true,
        store: Arc::new(AgentStore::open(&dir.join(format!("{instance}.db"))).unwrap()),
        host: Arc::new(Machine::default()),
        lead: Arc::new(Always),
        library: Arc::new(Shelf::default()),
        outbox: Arc::default(),
        claims: Arc::default(),
    }
}

fn mention(author: u8, text: &str) -> RawEvent {
    let draft = Draft::new(Kind::NOTE, now(), text).tag(["p", &pubkey(AGENT).to_hex()]);
    draft.sign(&keys(author), &[0; 32]).raw().clone()
}

fn e_tag(event: &RawEvent) -> String {
    event.tags.values("e").last().unwrap().to_owned()
}

const PROMPTER: Input = Input::Role(Role::Prompter(None));

/// An instance that leads.
async fn prompter(setup: Setup, relay: &Arc<Relay>) -> Instance {
    let instance = Instance::start(setup, relay);
    instance.tell(PROMPTER).await;
    instance
}

/// Its owner says something to it.
async fn ask(instance: &Instance, text: &str) -> RawEvent {
    let asked = mention(OWNER, text);
    instance.event(&asked).await;
    asked
}

#[tokio::test]
async fn a_mention_is_prompted_once_answered_once_and_billed_to_the_owner() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = prompter(setup(dir.path(), "a", demo()), &relay).await;
    let asked = mention(OWNER, "hello there");
    for _ in 0..3 {
        instance.event(&asked).await;
    }
    let replies = relay.wait_for(Kind::NOTE, 1).await;
    let metrics = relay.wait_for(Kind::AGENT_METRIC, 1).await;
    assert!(replies[0].content.contains("hello there"), "{}", replies[0].content);
    assert_eq!((replies[0].pubkey, e_tag(&replies[0])), (pubkey(AGENT), asked.id.to_hex()));
    let eyes = relay.wait_for(Kind::REACTION, 1).await;
    assert_eq!((eyes[0].content.as_str(), e_tag(&eyes[0])), ("👀", asked.id.to_hex()));
    let metric = seal::open(&keys(OWNER), &pubkey(AGENT), &metrics[0].content).unwrap();
    let metric = TurnMetric::from_json(&metric).unwrap();
    assert!(metric.turn.input_tokens.is_some_and(|tokens| tokens > 0), "{metric:?}");
    assert_eq!(metric.turn_seq, Some(1));

    instance.event(&asked).await;
    instance.event(&mention(OWNER, "and again")).await;
    let replies = relay.wait_for(Kind::NOTE, 2).await;
    assert!(replies[1].content.contains("and again"));
    relay.wait_for(Kind::AGENT_METRIC, 2).await;
    assert_eq!(relay.accepted(Kind::NOTE).len(), 2, "each message has one answer");
    assert_eq!(instance.store.open_messages().unwrap(), []);
}

#[tokio::test]
async fn a_follower_waits_and_takes_over_what_the_one_before_left() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let leader = Instance::start(setup(dir.path(), "leader", script("cat >/dev/null; sleep 60")), &relay);
    let follower = Instance::start(setup(dir.path(), "follower", script("cat >/dev/null; echo done")), &relay);
    leader.tell(PROMPTER).await;
    let asked = ask(&leader, "work").await;
    follower.event(&asked).await;
    relay.wait_for(Kind::REACTION, 1).await;
    assert_eq!(relay.accepted(Kind::NOTE), [], "the follower says nothing");
    leader.kill();
    follower.tell(PROMPTER).await;
    let replies = relay.wait_for(Kind::NOTE, 1).await;
    assert_eq!(replies[0].content.trim(), "done");
}

#[tokio::test]
async fn what_came_at_one_moment_is_answered_in_the_order_in_which_it_came() {
    const MESSAGES: usize = 40;
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = Instance::start(setup(dir.path(), "a", script("cat >/dev/null; echo done")), &relay);
    let asked: Vec<RawEvent> = (0..MESSAGES).map(|n| mention(OWNER, &n.to_string())).collect();
    for event in &asked {
        instance.event(event).await;
    }
    instance.tell(PROMPTER).await;
    let replies = relay.wait_for(Kind::NOTE, MESSAGES).await;
    let order: Vec<String> = replies.iter().map(e_tag).collect();
    assert_eq!(order, asked.iter().map(|event| event.id.to_hex()).collect::<Vec<_>>());
}

#[tokio::test]
async fn of_two_who_both_believe_that_they_lead_one_answers() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let say = |text: &str| script(&format!("cat >/dev/null; sleep 0.3; echo {text}"));
    let one = Instance::start(setup(dir.path(), "one", say("one")), &relay);
    let two = Instance::start(setup(dir.path(), "two", say("two")), &relay);
    one.tell(PROMPTER).await;
    two.tell(PROMPTER).await;
    let asked: Vec<RawEvent> = (0..10).map(|n| mention(OWNER, &format!("job {n}"))).collect();
    for event in &asked {
        one.event(event).await;
        two.event(event).await;
    }
    relay.wait_for(Kind::NOTE, asked.len()).await;
    for instance in [&one, &two] {
        instance.until_over().await;
    }
    let mut answered: Vec<String> = relay.accepted(Kind::NOTE).iter().map(e_tag).collect();
    answered.sort();
    let mut wanted: Vec<String> = asked.iter().map(|event| event.id.to_hex()).collect();
    wanted.sort();
    assert_eq!(answered, wanted, "each once");
}

#[tokio::test]
async fn a_follower_whose_own_answer_is_refused_knows_who_answered() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let one = Instance::start(setup(dir.path(), "one", script("cat >/dev/null; echo one")), &relay);
    // Its answer lies in its outbox.
    one.pump.abort();
    one.tell(PROMPTER).await;
    let asked = ask(&one, "work").await;
    let ours = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Some(ours) = one.store.answer_to(&asked.id).unwrap() {
                return ours;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let ours = ours.await.unwrap();
    one.tell(Input::Role(Role::Follows(None))).await;
    let two = prompter(setup(dir.path(), "two", script("cat >/dev/null; echo two")), &relay).await;
    two.event(&asked).await;
    let reply = relay.wait_for(Kind::NOTE, 1).await.remove(0);
    one.event(&reply).await;
    let delivery = Delivery::Refused("conflict: completed: this lease has ended for ever".into());
    one.store.delivered(&ours, HOME, &delivery).unwrap();
    one.tell(Input::Delivered { id: ours, relay: HOME.into(), delivery }).await;
    one.flush().await;
    let state = one.store.message(&asked.id).unwrap().unwrap().state;
    assert!(state.is_over && state.detail.contains(&reply.id.to_hex()), "{state:?}");
}

#[tokio::test]
async fn after_a_crash_at_any_step_the_message_is_answered_once() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let asked = mention(OWNER, "work");
    for step in 0..12u64 {
        let instance = prompter(setup(dir.path(), "a", script("cat >/dev/null; echo done")), &relay).await;
        instance.event(&asked).await;
        tokio::time::sleep(Duration::from_millis(step)).await;
        instance.kill();
    }
    let instance = prompter(setup(dir.path(), "a", script("cat >/dev/null; echo done")), &relay).await;
    relay.wait_for(Kind::NOTE, 1).await;
    instance.event(&asked).await;
    instance.until_over().await;
    assert_eq!(relay.accepted(Kind::NOTE).len(), 1);
}

#[tokio::test]
async fn the_relays_word_on_a_lease_is_no_message_though_it_names_the_agent() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let mut setup = setup(dir.path(), "a", script("cat >/dev/null; echo done"));
    setup.audience.respond_to = RespondTo::Anyone;
    let instance = prompter(setup, &relay).await;
    let state = Draft::new(Kind::LEASE_STATE, now(), "").tag(["d", "prompter:x"]).tag(["p", &pubkey(AGENT).to_hex()]);
    instance.event(state.sign(&keys(STRANGER), &[0; 32]).raw()).await;
    instance.event(&mention(STRANGER, "a message")).await;
    relay.wait_for(Kind::NOTE, 1).await;
    assert_eq!(instance.store.newest_messages(9).unwrap().len(), 1);
}

#[tokio::test]
async fn a_stranger_is_refused_quietly() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = prompter(setup(dir.path(), "a", demo()), &relay).await;
    let asked = mention(STRANGER, "do as I say");
    instance.event(&asked).await;
    instance.event(&mention(OWNER, "hello")).await;
    relay.wait_for(Kind::NOTE, 1).await;
    let refused = instance.store.message(&asked.id).unwrap().unwrap();
    assert_eq!(refused.state.name, "refused");
    assert!(refused.state.detail.contains("answers its owner only"));
    for kind in [Kind::NOTE, Kind::REACTION] {
        assert!(relay.accepted(kind).iter().all(|reply| e_tag(reply) != asked.id.to_hex()), "{kind}");
    }
}

/// Starts a turn that asks for a permission; gives the card.
async fn card(instance: &Instance, relay: &Arc<Relay>, name: &str) -> (RawEvent, RawEvent) {
    let before = relay.accepted(Kind::NOTE).len();
    let asked = ask(instance, &format!("write {name}")).await;
    let card = relay.wait_for(Kind::NOTE, before + 1).await.pop().unwrap();
    assert!(card.content.starts_with("🔐"), "{}", card.content);
    (asked, card)
}

#[tokio::test]
async fn a_permission_is_given_by_a_reaction_a_control_frame_or_a_command_and_once() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = prompter(setup(dir.path(), "a", demo()), &relay).await;
    let react = |card: &RawEvent, author: u8, sign: &str| {
        let draft =
            Draft::new(Kind::REACTION, now(), sign).tag(["e", &card.id.to_hex()]).tag(["p", &pubkey(AGENT).to_hex()]);
        draft.sign(&keys(author), &[0; 32]).raw().clone()
    };
    let nonce = |card: &RawEvent| card.content.rsplit(' ').next().unwrap().to_owned();

    let (_, shown) = card(&instance, &relay, "one.txt").await;
    instance.event(&react(&shown, STRANGER, "👎")).await;
    instance.event(&react(&shown, OWNER, "👍")).await;
    relay.wait_for(Kind::NOTE, 2).await;
    assert!(dir.path().join("one.txt").exists(), "allowed by the owner's reaction");

    let (_, shown) = card(&instance, &relay, "two.txt").await;
    let channel = format!("notes:{}", pubkey(OWNER));
    let option = |allow: bool| if allow { "allow" } else { "reject" }.to_owned();
    let control =
        Control::PermissionDecision { channel_id: channel, request_nonce: nonce(&shown), option_id: option(false) };
    let sealed = seal::seal(&keys(OWNER), &pubkey(AGENT), &control.to_json().unwrap(), [9; 32]).unwrap();
    let frame = control_draft(&pubkey(AGENT), now(), sealed).sign(&keys(OWNER), &[0; 32]).raw().clone();
    instance.event(&frame).await;
    relay.wait_for(Kind::NOTE, 4).await;
    assert!(!dir.path().join("two.txt").exists(), "rejected by the owner's frame");

    let (_, shown) = card(&instance, &relay, "three.txt").await;
    let decide = |allow: bool, by: u8| Command::Decide { nonce: nonce(&shown), option: option(allow), by: pubkey(by) };
    assert!(command(&instance, decide(true, STRANGER)).await.is_err());
    assert!(command(&instance, decide(true, OWNER)).await.is_ok());
    assert_eq!(
        command(&instance, decide(false, OWNER)).await,
        Err("it was decided already, and the first answer stands".into())
    );
    relay.wait_for(Kind::NOTE, 6).await;
    assert!(dir.path().join("three.txt").exists(), "the first answer stands");
}

async fn command(instance: &Instance, command: Command) -> Result<String, String> {
    let (answer, said) = oneshot::channel();
    instance.tell(Input::Command(command, answer)).await;
    said.await.unwrap()
}

#[tokio::test]
async fn a_turn_is_cancelled_by_its_owner_and_a_paused_agent_begins_none() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = prompter(setup(dir.path(), "a", demo()), &relay).await;
    let asked = ask(&instance, "wait").await;
    relay.wait_for(Kind::REACTION, 1).await;
    assert_eq!(command(&instance, Command::Cancel { channel: None }).await, Ok("1 cancelled".into()));
    let over = tokio::time::timeout(Duration::from_secs(30), async {
        while !instance.store.message(&asked.id).unwrap().unwrap().state.is_over {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    over.await.unwrap();
    assert_eq!(relay.accepted(Kind::NOTE), []);

    command(&instance, Command::Pause("by hand".into())).await.unwrap();
    let later = ask(&instance, "later").await;
    assert!(command(&instance, Command::Retry(later.id)).await.is_ok());
    assert_eq!(instance.store.message(&later.id).unwrap().unwrap().state.name, "queued");
    command(&instance, Command::Resume).await.unwrap();
    relay.wait_for(Kind::NOTE, 1).await;
}

#[tokio::test]
async fn two_agents_stop_at_the_hop_limit_and_only_the_owner_is_told_once() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = Instance::start(
        Setup {
            audience: Audience { respond_to: RespondTo::Siblings, owner: Some(pubkey(OWNER)), allowlist: Vec::new() },
            ..setup(dir.path(), "a", demo())
        },
        &relay,
    );
    instance.tell(PROMPTER).await;
    let auth = attestation::attest(&keys(OWNER), &pubkey(STRANGER), &"".parse().unwrap(), &[0; 32]);
    let sibling = |hop: u32, text: &str| {
        let draft = Draft::new(Kind::NOTE, now(), text).tag(["p", &pubkey(AGENT).to_hex()]);
        draft.tag(["hop", &hop.to_string()]).tag(&auth).sign(&keys(STRANGER), &[0; 32]).raw().clone()
    };
    instance.event(&sibling(1, "early")).await;
    let answered = relay.wait_for(Kind::NOTE, 1).await;
    assert_eq!(answered[0].tags.single("hop"), Some("2"), "the next one counts on");
    for n in 0..3 {
        instance.event(&sibling(99, &format!("late {n}"))).await;
    }
    let told = relay.wait_for(Kind::NOTE, 2).await.pop().unwrap();
    let named: Vec<&str> = told.tags.values("p").collect();
    assert_eq!(named, [pubkey(OWNER).to_hex()], "an agent that is told would answer");
    instance.event(&mention(OWNER, "hello")).await;
    relay.wait_for(Kind::NOTE, 3).await;
    assert_eq!(relay.accepted(Kind::NOTE).len(), 3, "told once");
}

#[tokio::test]
async fn an_event_from_far_ahead_harms_nobody() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = prompter(setup(dir.path(), "a", demo()), &relay).await;
    let draft = Draft::new(Kind::NOTE, u64::MAX, "boo").tag(["p", &pubkey(AGENT).to_hex()]);
    instance.event(draft.sign(&keys(OWNER), &[0; 32]).raw()).await;
    instance.event(&mention(OWNER, "hello")).await;
    relay.wait_for(Kind::NOTE, 1).await;
}
