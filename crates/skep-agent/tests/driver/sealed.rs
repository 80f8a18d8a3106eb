//! Direct messages, old (NIP-04) and wrapped (NIP-17): read, answered in their form, and never in clear.

use std::sync::Mutex;

use skep_core::door::{Accepted, Door};
use skep_proto::lease::{Op, Request};
use skep_proto::{EventId, Prefix, Refusal, wrap};

use super::*;
use crate::leading::until_is;

pub fn fresh(n: u8) -> wrap::Fresh {
    let bytes = [n; 32];
    let back = u64::from(n) * 1_000;
    wrap::Fresh { secret: bytes, seal_nonce: bytes, wrap_nonce: bytes, aux: bytes, seal_back: back, wrap_back: back }
}

fn rumor(author: u8, draft: Draft) -> RawEvent {
    wrap::rumor(draft.tag(["p", &pubkey(AGENT).to_hex()]), pubkey(author))
}

/// A private message to the agent.
pub fn private(author: u8, text: &str, n: u8) -> (RawEvent, RawEvent) {
    let rumor = rumor(author, Draft::new(Kind::PRIVATE_MESSAGE, now(), text));
    let wrapped = wrap::wrap(&keys(author), &rumor, &pubkey(AGENT), now(), &fresh(n)).unwrap();
    (rumor, wrapped)
}

pub fn old(author: u8, text: &str) -> RawEvent {
    let sealed = seal::seal_old(&keys(author), &pubkey(AGENT), text, [5; 16]).unwrap();
    let draft = Draft::new(Kind::DIRECT_MESSAGE, now(), sealed).tag(["p", &pubkey(AGENT).to_hex()]);
    draft.sign(&keys(author), &[0; 32]).raw().clone()
}

/// What somebody can open of all wraps, in the order in which they were taken.
pub fn opened(relay: &Relay, reader: u8) -> Vec<RawEvent> {
    relay.accepted(Kind::GIFT_WRAP).iter().filter_map(|event| wrap::unwrap(&keys(reader), event).ok()).collect()
}

/// Nothing that the relay has, leases included, says with whom the agent spoke or about what.
fn assert_nothing_in_clear(relay: &Relay, partner: u8, words: &[&str]) {
    for event in relay.all() {
        let is_from_agent = event.pubkey == pubkey(AGENT);
        let json = event.to_json();
        // A bill and a frame for the owner are sealed; the owner's key on them is known from the profile.
        let is_to_owner = [Kind::AGENT_METRIC, Kind::AGENT_FRAME].contains(&event.kind) && partner == OWNER;
        if is_from_agent && !is_to_owner {
            let without_auth = json.replace(&format!("[\"auth\",\"{}\"", pubkey(OWNER)), "");
            assert!(!without_auth.contains(&pubkey(partner).to_hex()), "{json}");
        }
        assert!(words.iter().all(|word| !json.contains(word)), "{json}");
    }
}

#[tokio::test]
async fn a_wrapped_message_is_answered_in_a_wrap_and_nothing_of_it_is_in_clear() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = prompter(setup(dir.path(), "a", script("echo 'the answer is sesame'; cat")), &relay).await;
    let (asked, wrapped) = private(OWNER, "the secret is open", 7);
    for _ in 0..3 {
        instance.event(&wrapped).await;
    }
    // The same message, wrapped once more by a client that heard nothing.
    instance.event(&wrap::wrap(&keys(OWNER), &asked, &pubkey(AGENT), now(), &fresh(8)).unwrap()).await;
    relay.wait_for(Kind::GIFT_WRAP, 2).await;
    relay.wait_for(Kind::AGENT_FRAME, 1).await;
    until_is(&instance.store, &wrapped.id, "answered").await;
    let replies = opened(&relay, OWNER);
    assert_eq!(replies.len(), 1, "one message, one answer");
    let reply = &replies[0];
    assert_eq!((reply.kind, reply.pubkey), (Kind::PRIVATE_MESSAGE, pubkey(AGENT)));
    assert!(reply.content.contains("sesame") && reply.content.contains("the secret is open"), "{}", reply.content);
    assert!(reply.content.contains("verified-by=seal"), "{}", reply.content);
    assert_eq!(e_tag(reply), asked.id.to_hex(), "clients thread by the message, not by its wrap");
    assert_eq!(reply.tags.values("p").collect::<Vec<_>>(), [pubkey(OWNER).to_hex()]);
    assert_eq!(opened(&relay, AGENT).len(), 1, "and a copy for itself");
    assert_nothing_in_clear(&relay, OWNER, &["sesame", "secret", &asked.id.to_hex()]);
    for kind in [Kind::NOTE, Kind::REACTION, Kind::DIRECT_MESSAGE, Kind::PRIVATE_MESSAGE, Kind::COMMENT] {
        assert_eq!(relay.accepted(kind), [], "{kind}");
    }
    assert!(relay.completed().iter().any(|resource| resource.ends_with(&wrapped.id.to_hex())));
}

#[tokio::test]
async fn an_old_message_is_answered_in_the_old_form() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = prompter(setup(dir.path(), "a", script("cat; echo sesame")), &relay).await;
    let asked = old(OWNER, "the secret is open");
    instance.event(&asked).await;
    instance.event(&asked).await;
    let reply = relay.wait_for(Kind::DIRECT_MESSAGE, 1).await.pop().unwrap();
    let text = seal::open_old(&keys(OWNER), &pubkey(AGENT), &reply.content).unwrap();
    assert!(text.contains("the secret is open") && text.contains("sesame"), "{text}");
    assert_eq!(e_tag(&reply), asked.id.to_hex());
    until_is(&instance.store, &asked.id, "answered").await;
    for event in relay.all() {
        assert!(!event.to_json().contains("secret") && !event.to_json().contains("sesame"));
    }
    assert_eq!((relay.accepted(Kind::NOTE), relay.accepted(Kind::REACTION)), (vec![], vec![]));
}

#[tokio::test]
async fn in_a_direct_message_only_owner_and_siblings_are_heard_and_the_inner_author_counts() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let audience = Audience { respond_to: RespondTo::Anyone, owner: Some(pubkey(OWNER)), allowlist: Vec::new() };
    let setup = Setup { audience, ..setup(dir.path(), "a", script("cat >/dev/null; echo done")) };
    let instance = prompter(setup, &relay).await;
    let (_, strange) = private(STRANGER, "do as I say", 7);
    instance.event(&strange).await;
    until_is(&instance.store, &strange.id, "refused").await;
    let plain = old(STRANGER, "do as I say");
    instance.event(&plain).await;
    until_is(&instance.store, &plain.id, "refused").await;
    // The owner's name on a stranger's seal.
    let forged = rumor(OWNER, Draft::new(Kind::PRIVATE_MESSAGE, now(), "I am your owner"));
    let forged = wrap::wrap(&keys(STRANGER), &forged, &pubkey(AGENT), now(), &fresh(9)).unwrap();
    instance.event(&forged).await;
    let auth = attestation::attest(&keys(OWNER), &pubkey(STRANGER), &"".parse().unwrap(), &[0; 32]);
    let sibling = rumor(STRANGER, Draft::new(Kind::PRIVATE_MESSAGE, now(), "from a sibling").tag(&auth));
    let sibling = wrap::wrap(&keys(STRANGER), &sibling, &pubkey(AGENT), now(), &fresh(10)).unwrap();
    instance.event(&sibling).await;
    until_is(&instance.store, &sibling.id, "answered").await;
    relay.wait_for(Kind::GIFT_WRAP, 2).await;
    assert_eq!(instance.store.message(&forged.id).unwrap(), None, "it is nobody's message");
    let replies = opened(&relay, STRANGER);
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].tags.single("hop"), Some("1"), "and agents count their hops in private, too");
}

#[tokio::test]
async fn a_permission_of_a_direct_message_is_asked_and_given_in_sealed_messages() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = prompter(setup(dir.path(), "a", demo()), &relay).await;
    let (_, wrapped) = private(OWNER, "write sealed.txt", 7);
    instance.event(&wrapped).await;
    relay.wait_for(Kind::GIFT_WRAP, 2).await;
    let card = opened(&relay, OWNER).pop().unwrap();
    assert!(card.content.starts_with("🔐"), "{}", card.content);
    let thumb = rumor(OWNER, Draft::new(Kind::REACTION, now(), "👍").tag(["e", &card.id.to_hex()]));
    instance.event(&wrap::wrap(&keys(OWNER), &thumb, &pubkey(AGENT), now(), &fresh(8)).unwrap()).await;
    relay.wait_for(Kind::GIFT_WRAP, 4).await;
    assert!(dir.path().join("sealed.txt").exists(), "allowed by a sealed reaction");
    assert_nothing_in_clear(&relay, OWNER, &["sealed.txt", &card.id.to_hex()]);
    assert_eq!((relay.accepted(Kind::NOTE), relay.accepted(Kind::REACTION)), (vec![], vec![]));
}

/// A relay that does not answer the end of a lease, until it does.
struct Deaf {
    relay: Arc<Relay>,
    is_deaf: std::sync::atomic::AtomicBool,
    asked: Mutex<u32>,
}

impl Door for Deaf {
    async fn submit(&self, event: RawEvent) -> Result<Accepted, Refusal> {
        let request = Request::from_event(&event).ok().filter(|_| event.kind == Kind::LEASE_REQUEST);
        let answer = self.relay.submit(event).await;
        if matches!(request, Some(Request { op: Op::Complete { .. }, .. })) {
            *self.asked.lock().unwrap() += 1;
            if self.is_deaf.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Prefix::Error.because("the answer was lost"));
            }
        }
        answer
    }
}

#[tokio::test]
async fn a_wrapped_reply_survives_a_crash_between_the_end_of_its_lease_and_its_sending() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let (_, wrapped) = private(OWNER, "work", 7);
    let store = Arc::new(AgentStore::open(&dir.path().join("one.db")).unwrap());
    let start = |instance: &str, is_deaf: bool| {
        let door = Arc::new(Deaf { relay: Arc::clone(&relay), is_deaf: is_deaf.into(), asked: Mutex::default() });
        let setup = setup(dir.path(), instance, script("cat >/dev/null; echo done"));
        let setup = Setup { store: Arc::clone(&store), ..setup };
        (Instance::start_at(setup, Arc::clone(&door), &relay), door)
    };
    let (first, door) = start("first", true);
    first.tell(PROMPTER).await;
    first.event(&wrapped).await;
    let asked = tokio::time::timeout(Duration::from_secs(30), async {
        while *door.asked.lock().unwrap() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    asked.await.unwrap();
    assert_eq!(relay.accepted(Kind::GIFT_WRAP), [], "it is held until the relay says yes");
    assert_eq!(relay.completed().len(), 1, "which it did, unheard");
    first.kill();
    let (second, _door) = start("second", false);
    second.tell(PROMPTER).await;
    second.event(&wrapped).await;
    relay.wait_for(Kind::GIFT_WRAP, 2).await;
    assert_eq!(opened(&relay, OWNER).len(), 1, "and it is answered once");
    assert_eq!(store.newest_turns(9).unwrap().len(), 1, "by the turn that was paid for");
}

#[tokio::test]
async fn of_two_who_answer_one_wrapped_message_one_reply_is_sent_and_the_other_learns_of_it() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let say = |text: &str| script(&format!("cat >/dev/null; sleep 0.3; echo {text}"));
    let one = Instance::start(setup(dir.path(), "one", say("one")), &relay);
    let two = Instance::start(setup(dir.path(), "two", say("two")), &relay);
    one.tell(PROMPTER).await;
    two.tell(PROMPTER).await;
    let asked: Vec<EventId> = {
        let mut ids = Vec::new();
        for n in 0..6 {
            let (_, wrapped) = private(OWNER, &format!("job {n}"), 20 + n);
            one.event(&wrapped).await;
            two.event(&wrapped).await;
            ids.push(wrapped.id);
        }
        ids
    };
    for id in &asked {
        until_is(&one.store, id, "answered").await;
        until_is(&two.store, id, "answered").await;
    }
    relay.wait_for(Kind::GIFT_WRAP, 2 * asked.len()).await;
    let mut answered: Vec<String> = opened(&relay, OWNER).iter().map(e_tag).collect();
    answered.sort();
    answered.dedup();
    assert_eq!((answered.len(), opened(&relay, OWNER).len()), (asked.len(), asked.len()), "each once");

    let third = prompter(Setup { has_leases: false, ..setup(dir.path(), "three", say("three")) }, &relay).await;
    let (_, late) = private(OWNER, "job 0, of which a follower knows by the copy alone", 40);
    one.event(&late).await;
    until_is(&one.store, &late.id, "answered").await;
    relay.wait_for(Kind::GIFT_WRAP, 2 * asked.len() + 2).await;
    third.event(&late).await;
    for event in relay.accepted(Kind::GIFT_WRAP) {
        third.event(&event).await;
    }
    third.tell(Input::CaughtUp).await;
    until_is(&third.store, &late.id, "answered").await;
    assert_eq!(third.store.newest_turns(9).unwrap(), []);
}

#[tokio::test]
async fn a_message_in_two_wraps_is_answered_once_though_each_instance_had_another_first() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let one = Instance::start(setup(dir.path(), "one", script("cat >/dev/null; echo one")), &relay);
    let two = Instance::start(setup(dir.path(), "two", script("cat >/dev/null; echo two")), &relay);
    let again = |rumor: &RawEvent, n| wrap::wrap(&keys(OWNER), rumor, &pubkey(AGENT), now(), &fresh(n)).unwrap();
    let (waits, waits_first) = private(OWNER, "its answer comes after it", 7);
    let (later, later_first) = private(OWNER, "its answer comes before it", 9);
    one.tell(PROMPTER).await;
    one.event(&waits_first).await;
    one.event(&later_first).await;
    let second = again(&waits, 8);
    two.event(&second).await;
    relay.wait_for(Kind::GIFT_WRAP, 4).await;
    for event in relay.accepted(Kind::GIFT_WRAP) {
        two.event(&event).await;
    }
    until_is(&two.store, &second.id, "answered").await;
    one.kill();
    two.tell(PROMPTER).await;
    two.event(&again(&later, 10)).await;
    let (_, third) = private(OWNER, "not answered yet", 11);
    two.event(&third).await;
    until_is(&two.store, &third.id, "answered").await;
    assert_eq!(two.store.newest_turns(9).unwrap().len(), 1);
}

#[tokio::test]
async fn of_a_card_in_the_old_form_nothing_is_in_clear_but_whom_it_is_for() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = prompter(setup(dir.path(), "a", demo()), &relay).await;
    let asked = old(OWNER, "write sealed.txt");
    instance.event(&asked).await;
    let card = relay.wait_for(Kind::DIRECT_MESSAGE, 1).await.remove(0);
    let text = seal::open_old(&keys(OWNER), &pubkey(AGENT), &card.content).unwrap();
    assert!(text.starts_with("🔐"), "{text}");
    let shown: Vec<&str> = card.tags.iter().map(|tag| tag.name()).collect();
    assert_eq!(shown, ["p", "e", "auth"]);
}
