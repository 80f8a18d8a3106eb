//! Waits for as long as answers come. When none has come for too long, it says which messages wait, where each stands in
//! the records of each instance, and who leads: what a test that failed once must not keep to itself.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use skep_core::queue::{Row, State};
use skep_proto::EventId;
use skep_store::AgentStore;

use crate::hive::{Hive, LOOK, PATIENCE, now, read};
use crate::model::{Job, Model, unanswered};

/// Messages that a report shows.
const SHOWN_MAX: usize = 20;

/// More than one inbox holds.
const OUTGOING_MAX: u32 = 10_000;

/// Waits until each of these is answered.
#[track_caller]
pub fn until_answered(hive: &Hive, model: &Model, jobs: &[Job]) {
    until_none(hive, model, jobs, "mentions without an answer", || unanswered(hive, jobs).len());
}

/// Waits until nothing is left of what is counted. The patience is for the next one that goes, not for all of them: a slow
/// machine passes, and one that is stuck fails.
#[track_caller]
pub fn until_none(hive: &Hive, model: &Model, jobs: &[Job], what: &str, mut left: impl FnMut() -> usize) {
    let (mut least, mut since) = (usize::MAX, Instant::now());
    loop {
        let count = left();
        if count == 0 {
            return;
        }
        if count < least {
            (least, since) = (count, Instant::now());
        }
        if since.elapsed() >= PATIENCE {
            let report = report(hive, model, jobs);
            panic!("{what}: {least} are left, and for {PATIENCE:?} it was not one less\n{report}");
        }
        std::thread::sleep(LOOK);
    }
}

/// What waits, and why, as far as the records say. The end of each log follows when the hive is dropped.
fn report(hive: &Hive, model: &Model, jobs: &[Job]) -> String {
    let mut text = String::new();
    let stores: Vec<_> = (0..hive.slots.len()).map(|n| hive.records_as_they_are(n)).collect();
    for (n, store) in stores.iter().enumerate() {
        writeln!(text, "instance {n}: {}; {}", process(hive, n), store.as_ref().map_or_else(said, of_all)).unwrap();
    }
    let left = unanswered(hive, jobs);
    writeln!(text, "{} of {} messages have no answer at the relay", left.len(), jobs.len()).unwrap();
    for job in left.iter().take(SHOWN_MAX) {
        let (id, runs) = (job.event.id, model.runs_of(&job.name).len());
        writeln!(text, "{} {id} in channel {}, {runs} runs began:", job.name, job.channel).unwrap();
        for (n, store) in stores.iter().enumerate() {
            let home = hive.slots[n].proxy.url();
            let state = store.as_ref().map_or_else(said, |store| of_one(store, &home, &id));
            writeln!(text, "    instance {n}: {state}").unwrap();
        }
    }
    text
}

fn said(error: &skep_store::StoreError) -> String {
    format!("its records cannot be read: {error}")
}

/// Whether it runs, and leads.
fn process(hive: &Hive, n: usize) -> String {
    let lock = read(&hive.lock(n, &hive.agent().pubkey()));
    let Some(process) = &hive.slots[n].process else { return format!("stopped; the lock says {lock}") };
    let leads = if hive.prompter() == Some(n) { "has the relay's lease" } else { "has not the relay's lease" };
    let pid = process.pid();
    let status = read(Path::new(&format!("/proc/{pid}/status")));
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("gone");
    format!("process {pid} ({}), {leads}; the lock says {lock}", state.trim())
}

fn of_all(store: &AgentStore) -> String {
    let (waiting, refused) = store.outbox_len().unwrap();
    let states: Vec<String> =
        store.count_states().unwrap().into_iter().map(|(state, count)| format!("{count} {state}")).collect();
    let fact = |name: &str| store.fact(name).unwrap().map(|value| format!(", {name} {value}")).unwrap_or_default();
    let (paused, busy) = (fact("paused"), fact("busy_until"));
    format!("outbox: {waiting} wait, {refused} were refused; messages: {}{paused}{busy}", states.join(", "))
}

fn of_one(store: &AgentStore, home: &str, id: &EventId) -> String {
    let Some(message) = store.message(id).unwrap() else { return "unseen".into() };
    let row: Row = match serde_json::from_str(&message.state.detail) {
        Ok(row) => row,
        Err(error) => return format!("{}, and its row cannot be read: {error}", message.state.name),
    };
    let since = now().saturating_sub(row.since / 1_000);
    let mut text = format!("{} for {since} s, {} attempts, {:?}", row.state.as_str(), row.attempts, row.reason);
    if let State::Prompted { turn, epoch } = &row.state {
        write!(text, ", turn {} of epoch {epoch}", turn.0).unwrap();
    }
    if let Some(at) = row.retry_at {
        write!(text, ", not before {} s", (at / 1_000).cast_signed() - now().cast_signed()).unwrap();
    }
    if let Some(answer) = store.answer_to(id).unwrap() {
        let due = store.due(home, u64::MAX >> 1, OUTGOING_MAX).unwrap();
        let held = store.held_turns(home).unwrap();
        let is_held = held.iter().any(|turn| turn.end.as_ref().is_some_and(|end| end.answer == Some(answer)));
        let place = match due.iter().find(|outgoing| outgoing.event.id == answer) {
            Some(outgoing) => format!("in its outbox after {} tries", outgoing.tries),
            None if is_held => "held until its lease is complete".into(),
            None => "not in its outbox any more".into(),
        };
        write!(text, "; its answer {answer} is {place}").unwrap();
    }
    text
}

#[test]
fn a_test_that_waits_in_vain_says_where_each_message_stands() {
    use crate::hive::{Agent, Plan, publish, skep, until};

    let model = Model::new();
    let mut hive = Hive::new(Plan::of(Agent::new("scout", 24, model.settings()), [0, 1]));
    let job = Job::new(&hive.agent().pubkey(), "j0", 0, now(), 0, "0");
    publish(&hive.upstream(), std::slice::from_ref(&job.event));
    hive.start(0);
    hive.until_led();
    until("it is answered", || unanswered(&hive, std::slice::from_ref(&job)).is_empty());
    assert!(skep(&hive, 0).args(["agent", "pause", "scout", "--here"]).status().unwrap().success());
    let waits = Job::new(&hive.agent().pubkey(), "j1", 0, now() + 1, 0, "0");
    publish(&hive.upstream(), std::slice::from_ref(&waits.event));
    until("it waits", || {
        let message = hive.records(0).message(&waits.event.id).unwrap();
        message.is_some_and(|message| message.state.name == "queued")
    });
    let (id, jobs) = (waits.event.id, [job, waits]);
    let report = report(&hive, &model, &jobs);
    assert!(report.contains("1 of 2 messages have no answer") && report.contains(&format!("j1 {id}")), "{report}");
    let has = |start: &str, part: &str| report.lines().any(|line| line.starts_with(start) && line.contains(part));
    assert!(has("instance 0: process", "the relay's lease"), "{report}");
    assert!(has("instance 0: process", "outbox: ") && has("instance 0: process", "paused"), "{report}");
    assert!(has("instance 1: stopped", "cannot be read"), "it never ran: {report}");
    assert!(has("    instance 0: queued", "0 attempts"), "{report}");
}
