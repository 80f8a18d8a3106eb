//! An agent's records: each message once, nothing half done, replies never dropped.
#![expect(clippy::unwrap_used, reason = "a test")]

use secp256k1::{Keypair, SECP256K1};
use skep_proto::{Draft, Kind, RawEvent};
use skep_store::agent::{Delivery, Hold, Kept, MessageState, SessionRow, TurnEnd, TurnRow};
use skep_store::{AgentStore, StoreError};

fn note(n: u64) -> RawEvent {
    event(Kind(1), n)
}

fn event(kind: Kind, n: u64) -> RawEvent {
    let keys = Keypair::from_seckey_slice(SECP256K1, &[7; 32]).unwrap();
    Draft::new(kind, n, n.to_string()).sign(&keys, &[0; 32]).raw().clone()
}

fn state(name: &str, is_over: bool) -> MessageState {
    MessageState { name: name.into(), at: 5, is_over, detail: "{}".into() }
}

fn open(dir: &tempfile::TempDir) -> AgentStore {
    AgentStore::open(&dir.path().join("agent.db")).unwrap()
}

/// A turn that a message began.
fn turn(name: &str, message: &RawEvent) -> TurnRow {
    TurnRow {
        turn: name.into(),
        trigger: message.id,
        epoch: 4,
        attempt: 1,
        channel: "c".into(),
        author: message.pubkey,
        started_at: 6,
        prompt: "what it sees".into(),
        reserved: None,
        end: None,
    }
}

fn relays(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_message_is_kept_once_and_its_state_survives() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (first, second) = (note(1), note(2));
    assert!(store.receive(&first, "c", "ws://a", 3, &state("stored", false)).unwrap());
    assert!(!store.receive(&first, "c", "ws://b", 4, &state("queued", false)).unwrap(), "it is here already");
    assert!(store.receive(&second, "c", "ws://b", 4, &state("stored", false)).unwrap());
    assert!(store.set_state(&first.id, &state("answered", true)).unwrap());
    assert!(!store.set_state(&note(9).id, &state("answered", true)).unwrap());
    drop(store);
    let store = open(&dir);
    let open: Vec<_> = store.open_messages().unwrap().into_iter().map(|message| message.event).collect();
    assert_eq!(open, std::slice::from_ref(&second));
    let kept = store.message(&first.id).unwrap().unwrap();
    assert_eq!((kept.event, kept.relay.as_str(), kept.state), (first, "ws://a", state("answered", true)));
    assert_eq!(store.message_ids(2).unwrap(), [(2, second.id)]);
    assert_eq!(store.count_states().unwrap(), [("answered".into(), 1), ("stored".into(), 1)]);
}

#[test]
fn records_are_read_beside_their_driver_and_after_it_and_never_written_by_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.db");
    assert!(AgentStore::open_to_read(&path).is_err(), "nothing is made");
    assert!(!path.exists());
    let store = open(&dir);
    for n in 1..=4 {
        store.receive(&note(n), "c", "ws://a", n, &state(if n == 2 { "dead" } else { "queued" }, n == 2)).unwrap();
    }
    let read = |store: &AgentStore| {
        let dead: Vec<_> = store.messages_in("dead", 9).unwrap().into_iter().map(|message| message.event).collect();
        let queued: Vec<_> = store.messages_in("queued", 2).unwrap().into_iter().map(|message| message.event).collect();
        assert_eq!((dead, queued), (vec![note(2)], vec![note(4), note(3)]), "the newest first");
        assert_eq!(store.changed_at().unwrap(), Some(5));
    };
    let beside = AgentStore::open_to_read(&path).unwrap();
    read(&beside);
    assert!(beside.set_fact("paused", Some("x")).is_err());
    drop((beside, store));
    read(&AgentStore::open_to_read(&path).unwrap());
}

#[test]
fn cursors_only_advance_and_a_control_event_acts_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    assert_eq!(store.cursor("ws://a").unwrap(), 0);
    store.advance_cursor("ws://a", 9).unwrap();
    store.advance_cursor("ws://a", 7).unwrap();
    assert!(store.act_once(&note(1).id, 5).unwrap());
    let other = open(&dir);
    assert_eq!(other.cursor("ws://a").unwrap(), 9);
    assert!(!other.act_once(&note(1).id, 6).unwrap(), "also not in another process");
}

#[test]
fn a_turn_ends_with_its_reply_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (message, reply) = (note(1), note(2));
    store.receive(&message, "c", "ws://a", 3, &state("stored", false)).unwrap();
    let row = TurnRow { reserved: Some("5".into()), ..turn("t1", &message) };
    store.begin_turn(&row).unwrap();
    assert!(store.begin_turn(&row).is_err(), "one turn of a name");
    assert_eq!(store.newest_turns(5).unwrap(), std::slice::from_ref(&row));
    assert_eq!(store.last_turn_at("c").unwrap(), None, "it has not ended");

    let end = TurnEnd {
        at: 8,
        outcome: "answered".into(),
        answer: Some(reply.id),
        charge: Some("3".into()),
        ..TurnEnd::default()
    };
    store
        .end_turn(
            "t1",
            &end,
            (std::slice::from_ref(&reply), Hold::Nothing),
            &[],
            &relays(&["ws://a", "ws://b"]),
            &[(message.id, state("answered", true))],
        )
        .unwrap();
    drop(store);
    let store = open(&dir);
    assert_eq!(store.message(&message.id).unwrap().unwrap().state, state("answered", true));
    assert_eq!(store.last_turn_at("c").unwrap(), Some(6));
    assert_eq!(store.newest_turns(5).unwrap(), [TurnRow { end: Some(end), ..row }]);
    assert_eq!(store.answer_to(&message.id).unwrap(), Some(reply.id));
    assert_eq!(store.trigger_of(&reply.id).unwrap(), Some(message.id));
    assert_eq!(store.refused_answers("ws://a").unwrap(), []);
    store.delivered(&reply.id, "ws://a", &Delivery::Refused("conflict: no".into())).unwrap();
    assert_eq!(store.refused_answers("ws://a").unwrap(), [(reply.id, "conflict: no".into())]);
    assert_eq!(store.refused_answers("ws://b").unwrap(), []);
    store.take_back(&reply.id, &message.id, &state("queued", false), &[], &[]).unwrap();
    assert_eq!(store.refused_answers("ws://a").unwrap(), [], "once");
    assert_eq!(store.message(&message.id).unwrap().unwrap().state, state("queued", false));
    assert_eq!((store.answer_to(&message.id).unwrap(), store.trigger_of(&reply.id).unwrap()), (None, None));
    assert_eq!(store.due("ws://b", 0, 9).unwrap()[0].event, reply);
}

#[test]
fn a_message_is_over_with_the_word_on_it_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (message, word, other) = (note(1), note(2), note(3));
    store.receive(&message, "c", "ws://a", 3, &state("queued", false)).unwrap();
    let over = state("refused", true);
    let both = relays(&["ws://a", "ws://b"]);
    store.set_state_and_tell(&message.id, &over, std::slice::from_ref(&word), &both).unwrap();
    drop(store);
    let store = open(&dir);
    assert_eq!(store.message(&message.id).unwrap().unwrap().state, over);
    for relay in ["ws://a", "ws://b"] {
        assert_eq!(store.due(relay, 0, 9).unwrap()[0].event, word, "{relay}");
    }
    // A word that cannot be kept leaves the message where it was.
    let db = rusqlite::Connection::open(store.path()).unwrap();
    db.execute_batch("CREATE TRIGGER full BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'full'); END").unwrap();
    let queued = state("queued", false);
    assert!(store.set_state_and_tell(&message.id, &queued, std::slice::from_ref(&other), &both).is_err());
    assert!(store.take_back(&word.id, &message.id, &queued, std::slice::from_ref(&other), &both).is_err());
    assert_eq!(store.message(&message.id).unwrap().unwrap().state, over);
}

#[test]
fn what_a_turn_holds_back_is_sent_when_it_is_let_go_and_not_forgotten_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (held, bill) = (note(2), note(3));
    for (name, held) in [("t1", &held), ("t2", &note(4))] {
        store.begin_turn(&turn(name, &note(1))).unwrap();
        let end = TurnEnd { at: 8, outcome: "answered".into(), answer: Some(held.id), ..TurnEnd::default() };
        let (held, bill) = (std::slice::from_ref(held), std::slice::from_ref(&bill));
        store.end_turn(name, &end, (held, Hold::All), bill, &relays(&["ws://a"]), &[]).unwrap();
    }
    let due = || store.due("ws://a", 0, 9).unwrap().into_iter().map(|outgoing| outgoing.event).collect::<Vec<_>>();
    assert_eq!(due(), std::slice::from_ref(&bill), "what is not held goes");
    store.delivered(&bill.id, "ws://a", &Delivery::Taken).unwrap();
    assert_eq!(store.trim_outbox(10, 1_000).unwrap(), 1, "what is held stays");
    let held_by = || store.held_turns("ws://a").unwrap().into_iter().map(|row| row.turn).collect::<Vec<_>>();
    assert_eq!(held_by(), ["t1", "t2"]);
    store.release_held("t1").unwrap();
    store.receive(&note(1), "c", "ws://a", 3, &state("answered", true)).unwrap();
    store.take_back(&note(4).id, &note(1).id, &state("queued", false), &[], &[]).unwrap();
    assert_eq!(due(), [held], "what is taken back goes with its state");
    assert_eq!(held_by(), Vec::<String>::new());
    assert_eq!(store.open_messages().unwrap().len(), 1);
}

#[test]
fn a_reply_goes_to_other_relays_when_the_first_took_the_whole_of_it_and_never_when_that_did_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let row = |name: &str| turn(name, &note(1));
    let both = relays(&["ws://a", "ws://b"]);
    let due = |relay: &str| store.due(relay, 0, 9).unwrap().into_iter().map(|out| out.event).collect::<Vec<_>>();
    let (parts, bill) = ([note(2), note(3)], note(4));
    let end = |answer: &RawEvent| TurnEnd { at: 8, answer: Some(answer.id), ..TurnEnd::default() };
    store.receive(&note(1), "c", "ws://a", 3, &state("answered", true)).unwrap();
    store.begin_turn(&row("t1")).unwrap();
    let bills = std::slice::from_ref(&bill);
    store.end_turn("t1", &end(&parts[1]), (&parts, Hold::Others), bills, &both, &[]).unwrap();
    assert_eq!(due("ws://a").len(), 3);
    assert_eq!(due("ws://b"), bills);
    assert_eq!(store.held_turns("ws://a").unwrap(), [], "nobody has to let it go");
    store.release_strays(Some("ws://a")).unwrap();
    assert!(!store.delivered(&parts[0].id, "ws://a", &Delivery::Taken).unwrap());
    assert_eq!(due("ws://b"), bills, "a part is not the whole");
    assert!(store.delivered(&parts[1].id, "ws://a", &Delivery::Taken).unwrap());
    assert_eq!(due("ws://b"), [parts[0].clone(), parts[1].clone(), bill]);

    let other = note(5);
    store.begin_turn(&row("t2")).unwrap();
    store.end_turn("t2", &end(&other), (std::slice::from_ref(&other), Hold::Others), &[], &both, &[]).unwrap();
    store.delivered(&other.id, "ws://a", &Delivery::Refused("conflict: no".into())).unwrap();
    store.take_back(&other.id, &note(1).id, &state("queued", false), &[], &[]).unwrap();
    assert!(!due("ws://b").contains(&other));

    let stray = note(6);
    store.begin_turn(&row("t3")).unwrap();
    store.end_turn("t3", &end(&stray), (std::slice::from_ref(&stray), Hold::Others), &[], &both, &[]).unwrap();
    store.release_strays(Some("ws://new")).unwrap();
    assert!(due("ws://b").contains(&stray), "its home is ours no more");
}

#[test]
fn each_relay_is_sent_an_event_until_it_says_its_word() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (first, second) = (note(2), note(1));
    store.enqueue(&[first.clone(), second.clone()], &relays(&["a", "b"]), 1).unwrap();
    store.enqueue(std::slice::from_ref(&first), &relays(&["a", "b"]), 2).unwrap();
    let due = |relay: &str, now| -> Vec<_> {
        store.due(relay, now, 9).unwrap().into_iter().map(|outgoing| (outgoing.event, outgoing.tries)).collect()
    };
    assert_eq!(due("a", 0), [(first.clone(), 0), (second.clone(), 0)], "in the order they were made, each once");
    let later = Delivery::Later { due_ms: 500, said: "rate-limited: slow down".into() };
    store.delivered(&first.id, "a", &later).unwrap();
    store.delivered(&second.id, "a", &Delivery::Taken).unwrap();
    assert_eq!(due("a", 499), []);
    assert_eq!(due("a", 500), [(first.clone(), 1)]);
    assert_eq!(store.next_due_ms("a").unwrap(), Some(500));
    store.delivered(&first.id, "a", &Delivery::Refused("blocked: no".into())).unwrap();
    assert_eq!((due("a", 500), store.next_due_ms("a").unwrap()), (vec![], None));
    assert_eq!(due("b", 0).len(), 2, "another relay is another matter");
    assert_eq!(store.outbox_len().unwrap(), (2, 1));
}

#[test]
fn when_the_outbox_is_full_passing_events_go_and_replies_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let passing: Vec<RawEvent> = (0..10).map(|n| event(Kind(24_200), n)).collect();
    let replies: Vec<RawEvent> = (0..10).map(note).collect();
    store.enqueue(&passing, &relays(&["a"]), 1).unwrap();
    store.enqueue(&replies, &relays(&["a"]), 1).unwrap();
    assert_eq!(store.trim_outbox(15, 0).unwrap(), 5);
    assert_eq!(store.due("a", 0, 1).unwrap()[0].event, passing[5], "the oldest went");
    assert_eq!(store.trim_outbox(5, 0).unwrap(), 5);
    assert_eq!(store.due("a", 0, 99).unwrap().len(), 10, "no reply is dropped, full or not");
    replies.iter().for_each(|reply| assert!(!store.delivered(&reply.id, "a", &Delivery::Taken).unwrap()));
    assert_eq!(store.trim_outbox(5, 1).unwrap(), 0, "not old yet");
    assert_eq!(store.trim_outbox(5, 2).unwrap(), 10);
}

#[test]
fn sessions_and_facts_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let row = SessionRow { channel: "c".into(), session: "s".into(), detail: "{}".into() };
    store.set_session(&row).unwrap();
    let row = SessionRow { session: "s2".into(), ..row };
    store.set_session(&row).unwrap();
    store.set_fact("paused", Some("by hand")).unwrap();
    drop(store);
    let store = open(&dir);
    assert_eq!((store.session("c").unwrap(), store.session("d").unwrap()), (Some(row), None));
    assert_eq!(store.fact("paused").unwrap().as_deref(), Some("by hand"));
    store.set_fact("paused", None).unwrap();
    assert_eq!(store.fact("paused").unwrap(), None);
}

#[test]
fn the_file_is_private_and_a_newer_one_is_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = open(&dir).path().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(AgentStore::open(&path), Err(StoreError::Format { found: 99, known: 3 })));
    std::fs::write(&path, "this is no database, and long enough to be looked at as one would be looked at").unwrap();
    assert!(matches!(AgentStore::open(&path), Err(StoreError::Corrupt(_))));
}

/// A message that was answered by one turn, both over at `at`.
fn answered(store: &AgentStore, n: u64, channel: &str, at: u64) {
    let (message, reply) = (note(n), note(n + 1_000));
    let done = MessageState { at, ..state("answered", true) };
    store.receive(&message, channel, "ws://a", at, &done).unwrap();
    let turn = turn_of(&message, n, channel, at);
    store.begin_turn(&turn).unwrap();
    let end = TurnEnd { at, outcome: "answered".into(), answer: Some(reply.id), ..TurnEnd::default() };
    store.end_turn(&turn.turn, &end, (&[], Hold::Nothing), &[], &[], &[]).unwrap();
}

fn turn_of(message: &RawEvent, n: u64, channel: &str, at: u64) -> TurnRow {
    let (channel, prompt) = (channel.into(), format!("prompt {n}"));
    TurnRow { epoch: 0, channel, started_at: at, prompt, ..turn(&format!("t{n}"), message) }
}

fn trim(store: &AgentStore, kept: &Kept) {
    while store.trim_records(kept).unwrap() > 0 {}
}

#[test]
fn what_is_over_and_old_is_forgotten_and_its_ids_stay_known() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    // More than one step takes.
    (1..=600).for_each(|n| answered(&store, n, "c", n));
    answered(&store, 700, "elsewhere", 7);
    store.receive(&note(701), "c", "ws://a", 1, &MessageState { at: 1, ..state("dead", true) }).unwrap();
    store.receive(&note(702), "c", "ws://a", 1, &MessageState { at: 1, ..state("queued", false) }).unwrap();
    trim(&store, &Kept { since: 590, prompts: 5, ids: 1_000 });
    let kept: Vec<u64> = store.newest_messages(999).unwrap().iter().map(|message| message.event.created_at).collect();
    let newest = [702, 701, 700].into_iter().chain((590..=600).rev());
    assert_eq!(kept, newest.collect::<Vec<_>>(), "what is open, dead, new, or the last of its channel");
    let turns: Vec<String> = store.newest_turns(999).unwrap().into_iter().map(|turn| turn.prompt).collect();
    assert_eq!(turns[..5], ["prompt 700", "prompt 600", "prompt 599", "prompt 598", "prompt 597"]);
    assert!(turns.len() == 12 && turns[5..].iter().all(String::is_empty), "{turns:?}");
    assert_eq!(store.last_turn_at("elsewhere").unwrap(), Some(7));
    assert_eq!(store.count_states().unwrap(), [("answered".into(), 12), ("dead".into(), 1), ("queued".into(), 1)]);
    assert!((1..=600).all(|n| store.has_message(&note(n).id).unwrap()), "one that comes again is known");
    assert!(!store.has_message(&note(999).id).unwrap());
    trim(&store, &Kept { since: 590, prompts: 5, ids: 10 });
    assert!(store.has_message(&note(589).id).unwrap() && !store.has_message(&note(500).id).unwrap(), "of a bound");
}

#[test]
fn a_turn_whose_reply_may_come_back_and_the_newest_message_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    answered(&store, 1, "c", 1);
    let (message, reply) = (note(2), note(22));
    store.receive(&message, "c", "ws://a", 1, &MessageState { at: 1, ..state("answered", true) }).unwrap();
    let turn = turn_of(&message, 2, "c", 1);
    store.begin_turn(&turn).unwrap();
    let end = TurnEnd { at: 1, outcome: "answered".into(), answer: Some(reply.id), ..TurnEnd::default() };
    store
        .end_turn(&turn.turn, &end, (std::slice::from_ref(&reply), Hold::Nothing), &[], &relays(&["ws://a"]), &[])
        .unwrap();
    answered(&store, 3, "c", 4);
    let kept = Kept { since: 100, prompts: 10, ids: 10 };
    trim(&store, &kept);
    assert_eq!(store.trigger_of(&reply.id).unwrap(), Some(message.id), "its relay has not said its word");
    assert!(store.message(&message.id).unwrap().is_some() && store.message(&note(1).id).unwrap().is_none());
    store.release_held("t2").unwrap();
    store.delivered(&reply.id, "ws://a", &Delivery::Taken).unwrap();
    store.trim_outbox(10, 100).unwrap();
    trim(&store, &kept);
    assert!(store.message(&message.id).unwrap().is_none());
    assert_eq!(store.changed_at().unwrap(), Some(4), "when anything came last is still known");
}

#[test]
fn a_look_at_the_states_reads_indexes_only_also_in_records_of_an_older_version() {
    let dir = tempfile::tempdir().unwrap();
    let path = open(&dir).path().to_owned();
    let db = rusqlite::Connection::open(&path).unwrap();
    // As the version before left them.
    let older = "DROP INDEX inbox_state; DROP INDEX inbox_state_at; DROP INDEX turns_channel; DROP INDEX outbox_held;
        PRAGMA user_version = 2;";
    db.execute_batch(older).unwrap();
    drop(db);
    open(&dir);
    let db = rusqlite::Connection::open(&path).unwrap();
    for (query, index) in [
        ("SELECT state, count(*) FROM inbox GROUP BY state ORDER BY state", "COVERING INDEX inbox_state"),
        ("SELECT max(state_at) FROM inbox", "COVERING INDEX inbox_state_at"),
        ("SELECT event FROM inbox WHERE state = 'dead' ORDER BY n DESC LIMIT 9", "INDEX inbox_state (state=?)"),
    ] {
        let plan: Vec<String> = db
            .prepare(&format!("EXPLAIN QUERY PLAN {query}"))
            .unwrap()
            .query_map([], |row| row.get(3))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert!(plan.len() == 1 && plan[0].ends_with(index), "{query}: {plan:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_commit_that_waits_for_the_disk_holds_no_other_task_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(open(&dir));
    // Whoever writes waits until another task lets go of the file.
    let other = rusqlite::Connection::open(store.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (begins, begun) = tokio::sync::oneshot::channel();
    let writes = {
        let store = std::sync::Arc::clone(&store);
        tokio::spawn(async move {
            begins.send(()).unwrap();
            store.set_fact("paused", Some("x"))
        })
    };
    begun.await.unwrap();
    let lets_go = tokio::spawn(async move { other.execute_batch("COMMIT").unwrap() });
    writes.await.unwrap().unwrap();
    lets_go.await.unwrap();
    let reads = tokio::spawn(async move { store.fact("paused") });
    assert_eq!(reads.await.unwrap().unwrap().as_deref(), Some("x"));
}
