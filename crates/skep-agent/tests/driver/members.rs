//! Members may prompt where they may, and a relay that does not answer says neither yes nor no.

use std::sync::atomic::Ordering;

use skep_proto::Timestamp;

use super::*;
use crate::leading::until_is;

const RELAY: u8 = 9;

fn list(signer: u8, at: Timestamp, members: &[u8]) -> RawEvent {
    let draft = Draft::new(Kind::MEMBER_LIST, at, "");
    let draft = members.iter().fold(draft, |draft, n| draft.tag(["member", &pubkey(*n).to_hex()]));
    draft.sign(&keys(signer), &[0; 32]).raw().clone()
}

fn start(dir: &std::path::Path, relay: &Arc<Relay>, shelf: &Arc<Shelf>) -> (Instance, Arc<Machine>) {
    let machine = Arc::new(Machine::default());
    let audience = Audience { respond_to: RespondTo::Members, owner: Some(pubkey(OWNER)), allowlist: Vec::new() };
    let setup = setup(dir, "a", script("cat >/dev/null; echo done"));
    let setup = Setup { audience, library: shelf.clone(), host: machine.clone(), ..setup };
    (Instance::start(setup, relay), machine)
}

#[tokio::test]
async fn a_member_may_prompt_and_others_may_not() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let shelf = Arc::new(Shelf { key: Some(pubkey(RELAY)), ..Shelf::default() });
    // Anybody may say that they are a member; the relay says who is.
    *shelf.events.lock().unwrap() = vec![list(RELAY, 5, &[STRANGER]), list(7, 9, &[7])];
    let (instance, machine) = start(dir.path(), &relay, &shelf);
    instance.tell(PROMPTER).await;
    let (member, other) = (mention(STRANGER, "hello"), mention(7, "I am a member, too"));
    instance.event(&member).await;
    instance.event(&other).await;
    until_is(&instance.store, &member.id, "answered").await;
    until_is(&instance.store, &other.id, "refused").await;

    // Who was let in meanwhile is known after a minute.
    *shelf.events.lock().unwrap() = vec![list(RELAY, 6, &[7])];
    machine.ahead_ms.store(61_000, Ordering::Relaxed);
    let (gone, new) = (mention(STRANGER, "still here?"), mention(7, "and now?"));
    instance.event(&gone).await;
    instance.event(&new).await;
    until_is(&instance.store, &new.id, "answered").await;
    until_is(&instance.store, &gone.id, "refused").await;
}

#[tokio::test]
async fn a_relay_that_does_not_answer_is_asked_again_and_nobody_is_refused_by_its_silence() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let shelf = Arc::new(Shelf { key: Some(pubkey(RELAY)), is_silent: true.into(), ..Shelf::default() });
    *shelf.events.lock().unwrap() = vec![list(RELAY, 5, &[STRANGER])];
    let (instance, _) = start(dir.path(), &relay, &shelf);
    instance.tell(PROMPTER).await;
    let (asked, owner) = (mention(STRANGER, "hello"), mention(OWNER, "mine is not looked up"));
    instance.event(&asked).await;
    instance.event(&owner).await;
    until_is(&instance.store, &owner.id, "answered").await;
    assert_eq!(instance.store.message(&asked.id).unwrap().unwrap().state.name, "stored");
    shelf.is_silent.store(false, Ordering::Relaxed);
    until_is(&instance.store, &asked.id, "answered").await;
}
