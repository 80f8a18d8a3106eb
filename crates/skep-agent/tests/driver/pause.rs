//! The owner's word holds turns back: only theirs, only the newest, over a start, and beside what was said here.

use skep_agent::driver::{Heeded, note_word, pauses};
use skep_proto::pause::{By, Pause, Reach};
use tempfile::TempDir;

use super::*;
use crate::leading::until_is;

fn word(author: u8, reach: Reach, paused: bool, at: u64) -> RawEvent {
    let draft = Pause { paused, reason: "a holiday".into() }.draft(&reach, at);
    draft.sign(&keys(author), &[0; 32]).raw().clone()
}

fn by(instance: &Instance) -> Vec<By> {
    pauses(&instance.store).unwrap().all().iter().map(|held| held.by).collect()
}

/// One life of the agent with these records.
async fn start(dir: &TempDir, store: &Arc<AgentStore>, relay: &Arc<Relay>, name: &str) -> Instance {
    let setup = setup(dir.path(), name, script("cat >/dev/null; echo done"));
    prompter(Setup { store: Arc::clone(store), ..setup }, relay).await
}

/// The first life, with new records.
async fn begin() -> (TempDir, Arc<Relay>, Arc<AgentStore>, Instance) {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let store = Arc::new(AgentStore::open(&dir.path().join("one.db")).unwrap());
    let instance = start(&dir, &store, &relay, "first").await;
    (dir, relay, store, instance)
}

#[tokio::test]
async fn the_owners_newest_word_holds_over_a_start_and_nobody_elses_does() {
    let (dir, relay, store, instance) = begin().await;
    let at = now();
    for forged in [
        word(STRANGER, Reach::Fleet, true, at),
        word(AGENT, Reach::Fleet, true, at),
        word(OWNER, Reach::Agent(pubkey(STRANGER)), true, at),
    ] {
        instance.event(&forged).await;
    }
    let asked = mention(OWNER, "one");
    instance.event(&asked).await;
    until_is(&store, &asked.id, "answered").await;
    instance.event(&word(OWNER, Reach::Fleet, true, at + 5)).await;
    let waits = mention(OWNER, "two");
    instance.event(&waits).await;
    instance.flush().await;
    instance.kill();

    let instance = start(&dir, &store, &relay, "second").await;
    // A resume from before the pause says nothing any more.
    instance.event(&word(OWNER, Reach::Fleet, false, at + 4)).await;
    instance.flush().await;
    assert_eq!(by(&instance), [By::OwnerOfAll]);
    assert_eq!(store.newest_turns(9).unwrap().len(), 1, "nothing began");
    instance.event(&word(OWNER, Reach::Fleet, false, at + 6)).await;
    until_is(&store, &waits.id, "answered").await;
    // Another relay gives the old pause again.
    instance
        .tell(Input::Event { event: Box::new(word(OWNER, Reach::Fleet, true, at + 5)), relay: "ws://b".into() })
        .await;
    let after = mention(OWNER, "three");
    instance.event(&after).await;
    until_is(&store, &after.id, "answered").await;
    assert_eq!(relay.accepted(Kind::NOTE).len(), 3, "each once");
}

#[tokio::test]
async fn what_the_owner_said_and_what_was_said_here_are_lifted_each_by_itself() {
    let (_dir, relay, store, instance) = begin().await;
    let at = now();
    command(&instance, Command::Pause("by hand".into())).await.unwrap();
    let mine = Box::new(word(OWNER, Reach::Agent(pubkey(AGENT)), true, at));
    let said = command(&instance, Command::Heed(mine.clone())).await.unwrap();
    assert!(said.starts_with("paused by its owner since "), "{said}");
    assert_eq!(relay.wait_for(Kind::APP_DATA, 1).await, [*mine], "what came here is passed on");
    instance.event(&word(OWNER, Reach::Fleet, true, at)).await;
    let asked = mention(OWNER, "one");
    instance.event(&asked).await;
    instance.flush().await;
    assert_eq!(by(&instance), [By::OwnerOfAll, By::Owner, By::Here]);
    let said = command(&instance, Command::Resume).await.unwrap();
    assert!(said.contains("still paused by its owner, with all agents since "), "{said}");
    instance.event(&word(OWNER, Reach::Fleet, false, at + 1)).await;
    instance.flush().await;
    assert_eq!((by(&instance), store.newest_turns(9).unwrap().len()), (vec![By::Owner], 0));
    let stranger = Box::new(word(STRANGER, Reach::Agent(pubkey(AGENT)), false, at + 9));
    assert!(command(&instance, Command::Heed(stranger)).await.is_err());
    instance.event(&word(OWNER, Reach::Agent(pubkey(AGENT)), false, at + 1)).await;
    until_is(&store, &asked.id, "answered").await;
}

#[tokio::test]
async fn under_a_lease_nothing_begins_before_the_owner_could_be_heard() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let setup = setup(dir.path(), "a", script("cat >/dev/null; echo done"));
    let instance = prompter(Setup { hears_owner: false, ..setup }, &relay).await;
    let asked = mention(OWNER, "one");
    instance.event(&asked).await;
    instance.flush().await;
    assert_eq!(instance.store.newest_turns(9).unwrap().len(), 0);
    instance.tell(Input::HearsOwner(true)).await;
    until_is(&instance.store, &asked.id, "answered").await;
    // The line is lost: what was asked over another relay waits until it is back.
    instance.tell(Input::HearsOwner(false)).await;
    let second = mention(OWNER, "two");
    instance.event(&second).await;
    instance.flush().await;
    assert_eq!(instance.store.newest_turns(9).unwrap().len(), 1);
    instance.tell(Input::HearsOwner(true)).await;
    until_is(&instance.store, &second.id, "answered").await;
}

#[tokio::test]
async fn a_prompt_begins_after_a_look_for_the_owners_word_though_no_link_gave_it() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let at = now();
    let shelf = Arc::new(Shelf::default());
    shelf.events.lock().unwrap().push(word(OWNER, Reach::Fleet, true, at));
    let setup = setup(dir.path(), "a", script("cat >/dev/null; echo done"));
    let instance = prompter(Setup { library: shelf, ..setup }, &relay).await;
    let asked = mention(OWNER, "one");
    instance.event(&asked).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while by(&instance) != [By::OwnerOfAll] {
        assert!(std::time::Instant::now() < deadline, "the word is never looked for");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    instance.flush().await;
    assert_eq!(instance.store.newest_turns(9).unwrap().len(), 0, "nothing began");
    let row = instance.store.message(&asked.id).unwrap().unwrap().state;
    assert!(row.name == "queued" && row.detail.contains("\"attempts\":0"), "{row:?}");
    instance.event(&word(OWNER, Reach::Fleet, false, at + 1)).await;
    until_is(&instance.store, &asked.id, "answered").await;
}

#[tokio::test]
async fn to_go_on_is_not_heeded_from_far_ahead_and_a_pause_is() {
    let (_dir, _relay, _store, instance) = begin().await;
    let at = now();
    let wrong = word(OWNER, Reach::Fleet, false, at + 100_000);
    instance.event(&wrong).await;
    let said = command(&instance, Command::Heed(Box::new(wrong))).await.unwrap_err();
    assert!(said.contains("s ahead of this machine's clock"), "{said}");
    instance.event(&word(OWNER, Reach::Fleet, true, at)).await;
    instance.flush().await;
    assert_eq!(by(&instance), [By::OwnerOfAll], "it can still be stopped");
    instance.event(&word(OWNER, Reach::Fleet, false, at + 1)).await;
    instance.event(&word(OWNER, Reach::Agent(pubkey(AGENT)), true, at + 100_000)).await;
    instance.flush().await;
    assert_eq!(by(&instance), [By::Owner]);
    let old = word(OWNER, Reach::Agent(pubkey(AGENT)), false, at);
    assert!(command(&instance, Command::Heed(Box::new(old))).await.unwrap_err().contains("newer"));
}

#[test]
fn a_newer_word_takes_the_place_of_the_older_wherever_that_still_waits() {
    let dir = tempfile::tempdir().unwrap();
    let store = AgentStore::open(&dir.path().join("one.db")).unwrap();
    let relays = ["ws://a".to_owned(), "ws://b".to_owned()];
    let (old, new) = (word(OWNER, Reach::Fleet, true, 5), word(OWNER, Reach::Fleet, false, 6));
    let mut all = pauses(&store).unwrap();
    assert_eq!(note_word(&store, &mut all, &Reach::Fleet, &old, 5).unwrap(), Heeded::New);
    store.enqueue(std::slice::from_ref(&old), &relays, 5).unwrap();
    store.delivered(&old.id, "ws://a", &skep_store::agent::Delivery::Taken).unwrap();
    assert_eq!(note_word(&store, &mut all, &Reach::Fleet, &old, 6).unwrap(), Heeded::Again);
    assert_eq!(note_word(&store, &mut all, &Reach::Fleet, &new, 6).unwrap(), Heeded::New);
    let due = |relay: &str| -> Vec<_> {
        store.due(relay, u64::MAX >> 1, 9).unwrap().into_iter().map(|outgoing| outgoing.event.id).collect()
    };
    assert_eq!((due("ws://a"), due("ws://b")), (vec![], vec![new.id]));
    assert_eq!(note_word(&store, &mut all, &Reach::Fleet, &old, 7).unwrap(), Heeded::Old);
    assert_eq!(due("ws://b"), [new.id]);
}

#[test]
fn a_word_that_cannot_be_read_holds_until_another_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let store = AgentStore::open(&dir.path().join("one.db")).unwrap();
    store.set_fact("pause:fleet", Some("{\"of\":\"another version\"}")).unwrap();
    let mut all = pauses(&store).unwrap();
    let held = all.all();
    assert_eq!((held.len(), held[0].by), (1, By::OwnerOfAll));
    assert!(held[0].to_string().contains("cannot be read"), "{}", held[0]);
    let resume = word(OWNER, Reach::Fleet, false, 1);
    assert_eq!(note_word(&store, &mut all, &Reach::Fleet, &resume, 5).unwrap(), Heeded::New);
    assert_eq!(pauses(&store).unwrap().all(), []);
}
