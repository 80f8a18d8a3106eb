//! What ended without an answer where it was led is not begun again by whoever leads next, until somebody wants it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::json;
use skep_core::queue::Row;
use skep_proto::agent::control::{Control, ControlResult, Status, control_draft};
use skep_proto::agent::telemetry::Telemetry;
use skep_proto::{Draft, EventId, Kind, RawEvent, seal, wrap};
use tempfile::TempDir;

use crate::hive::{Agent, Hive, Plan, mention, now, pubkey, publish, read, skep, until};
use crate::relay_harness::client::member;

/// A message is `job NAME`. A line of the log is one run; what it does then is in a file.
const SCRIPT: &str = r#"#!/bin/sh
set -- $(grep '^job ' | tail -n 1)
echo "$2" >> DIR/runs
case "$(cat DIR/mode)" in
  wait) sleep 300;;
  fail) exit 1;;
  stubborn) trap '' HUP INT PIPE TERM; while :; do sleep 1; done;;
esac
echo "done $2"
"#;

const MODES: [&str; 4] = ["wait", "fail", "stubborn", "answer"];

/// Two homes on two machines, with one relay in common.
struct Two {
    hive: Hive,
    dir: TempDir,
}

impl Two {
    fn new(n: u8, mode: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script: PathBuf = dir.path().join("model");
        fs::write(&script, SCRIPT.replace("DIR", &dir.path().display().to_string())).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let settings = format!("backend = \"command\"\ncommand = {script:?}");
        let this = Self { hive: Hive::new(Plan::of(Agent::new("scout", n, settings), [0, 1])), dir };
        this.set(mode);
        this
    }

    fn set(&self, mode: &str) {
        assert!(MODES.contains(&mode), "{mode}");
        fs::write(self.dir.path().join("mode"), mode).unwrap();
    }

    fn runs_of(&self, name: &str) -> usize {
        read(&self.dir.path().join("runs")).lines().filter(|line| *line == name).count()
    }

    fn note(&self, name: &str) -> RawEvent {
        mention(&self.hive.agent().pubkey(), None, now(), &format!("job {name}"))
    }

    /// A direct message (NIP-17).
    fn letter(&self, name: &str) -> RawEvent {
        let agent = self.hive.agent().pubkey();
        let draft = Draft::new(Kind::PRIVATE_MESSAGE, now(), format!("job {name}")).tag(["p", &agent.to_hex()]);
        let fresh = wrap::Fresh {
            secret: rand::random(),
            seal_nonce: rand::random(),
            wrap_nonce: rand::random(),
            aux: rand::random(),
            seal_back: 0,
            wrap_back: 0,
        };
        wrap::wrap(&member(), &wrap::rumor(draft, pubkey(&member())), &agent, now(), &fresh).unwrap()
    }

    fn send(&self, event: &RawEvent) {
        publish(&self.hive.upstream(), std::slice::from_ref(event));
    }

    /// The owner's order, sealed (NIP-AO); gives its name.
    fn cancel(&self, channel: &str) -> EventId {
        let agent = self.hive.agent().pubkey();
        let order = Control::CancelTurn { channel_id: channel.to_owned() }.to_json().unwrap();
        let sealed = seal::seal(&member(), &agent, &order, rand::random()).unwrap();
        let order = control_draft(&agent, now(), sealed).sign(&member(), &[0; 32]).raw().clone();
        self.send(&order);
        order.id
    }

    /// Whether the owner was told that an order is obeyed.
    fn is_obeyed(&self, order: &EventId) -> bool {
        let agent = self.hive.agent().pubkey();
        // A relay hands frames over to those only who ask since when.
        let filter = json!({ "kinds": [Kind::AGENT_FRAME], "authors": [agent], "#p": [pubkey(&member())], "since": 0 });
        let frames = self.hive.owner().query(&filter);
        let texts = frames.iter().filter_map(|frame| seal::open(&member(), &agent, &frame.content).ok());
        let items = texts.filter_map(|text| Telemetry::from_json(&text).ok()?.into_items().ok()).flatten();
        let mut results = items.filter_map(|item| item.payload.parse::<ControlResult>().ok());
        results.any(|result| result.control_event_id.as_ref() == Some(order) && result.status == Status::Sent)
    }

    /// The signs under a message that tell of its end.
    fn ends_of(&self, message: &EventId) -> usize {
        let agent = self.hive.agent().pubkey();
        let filter = json!({ "kinds": [Kind::REACTION], "authors": [agent], "#e": [message] });
        self.hive.owner().query(&filter).iter().filter(|sign| sign.content == "🚫").count()
    }

    fn row(&self, n: usize, id: &EventId) -> Option<Row> {
        let message = self.hive.records(n).message(id).unwrap()?;
        serde_json::from_str(&message.state.detail).unwrap()
    }

    fn state(&self, n: usize, id: &EventId) -> String {
        self.row(n, id).map(|row| row.state.as_str().to_owned()).unwrap_or_default()
    }

    /// Waits until an instance has ended a message and told it.
    fn until_told(&self, n: usize, id: &EventId, state: &str) {
        until("it is over", || self.state(n, id) == state);
        until("and told", || self.hive.records(n).outbox_len().unwrap().0 == 0);
    }

    /// `skep agent retry` in the home of an instance: what it says.
    fn retry(&self, n: usize, message: Option<&EventId>) -> String {
        let mut command = skep(&self.hive, n);
        command.args(["agent", "retry", "scout"]).args(message.map(|id| id.to_hex()));
        let output = command.stdout(std::process::Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The first is gone; the second leads, answers what comes after, and has not begun what is over.
    fn hand_over(&mut self, over: &RawEvent, state: &str, next: &RawEvent) {
        let runs = self.runs_of("first");
        self.set("answer");
        self.hive.kill(0);
        until("the second leads", || self.hive.prompter() == Some(1));
        self.send(next);
        until("what comes next is answered", || self.state(1, &next.id) == "answered");
        assert_eq!(
            (self.state(1, &over.id).as_str(), self.runs_of("first")),
            (state, runs),
            "in one channel, before it"
        );
    }

    /// The second tries it again, once, and the first hears of the answer when it is back.
    fn try_again(&mut self, message: &RawEvent, which: Option<&EventId>) {
        let runs = self.runs_of("first");
        let said = self.retry(1, which);
        assert!(said.contains("tried again") && !said.contains("machine"), "{said}");
        until("it is answered", || self.state(1, &message.id) == "answered");
        until("and said", || self.hive.records(1).outbox_len().unwrap().0 == 0);
        self.hive.start(0);
        until("the first knows it, too", || self.state(0, &message.id) == "answered");
        self.hive.stop(1);
        until("the first leads", || self.hive.prompter() == Some(0));
        self.hive.stop_all();
        assert_eq!(self.runs_of("first"), runs + 1);
    }
}

fn cancel_and_hand_over(mut two: Two, first: &RawEvent, next: &RawEvent, channel: &str) {
    two.hive.start(0);
    two.hive.until_led();
    two.hive.start(1);
    two.send(first);
    until("the first works on it", || two.runs_of("first") == 1);
    until("the second has it", || two.state(1, &first.id) == "queued");
    two.cancel(channel);
    two.until_told(0, &first.id, "refused");
    two.hand_over(first, "refused", next);
    two.try_again(first, Some(&first.id));
}

#[test]
fn a_turn_that_its_owner_cancelled_on_one_machine_is_not_begun_on_another_until_it_is_tried_again() {
    let two = Two::new(61, "wait");
    let (first, next) = (two.note("first"), two.note("next"));
    let channel = format!("notes:{}", pubkey(&member()));
    cancel_and_hand_over(two, &first, &next, &channel);
}

#[test]
fn the_same_in_a_direct_message() {
    let two = Two::new(62, "wait");
    let (first, next) = (two.letter("first"), two.letter("next"));
    let channel = format!("dm:{}", pubkey(&member()));
    cancel_and_hand_over(two, &first, &next, &channel);
}

#[test]
fn a_dead_letter_of_one_machine_is_dead_on_another_until_it_is_tried_again() {
    let mut two = Two::new(63, "fail");
    let (first, next) = (two.note("first"), two.note("next"));
    two.hive.start(0);
    two.send(&first);
    until("an attempt has failed", || two.row(0, &first.id).is_some_and(|row| row.attempts == 1));
    two.hive.kill(0);
    // Nine attempts take a quarter of an hour: all but the last one are behind it.
    let row = two.row(0, &first.id).unwrap();
    let row = Row { attempts: skep_proto::limits::ATTEMPTS_MAX - 1, retry_at: None, ..row };
    let state = two.hive.records(0).message(&first.id).unwrap().unwrap().state;
    let state = skep_store::agent::MessageState { detail: serde_json::to_string(&row).unwrap(), ..state };
    two.hive.records(0).set_state(&first.id, &state).unwrap();
    two.hive.start(0);
    two.until_told(0, &first.id, "dead");
    two.hive.start(1);
    until("the second knows it", || two.state(1, &first.id) == "dead");
    two.hand_over(&first, "dead", &next);
    two.try_again(&first, None);
}

/// Its program takes seconds to be ended, and nobody waits for that.
#[test]
fn a_cancel_that_was_obeyed_stands_though_the_harness_is_killed_before_the_turn_has_ended() {
    let mut two = Two::new(66, "stubborn");
    let (first, next) = (two.note("first"), two.note("next"));
    two.hive.start(0);
    two.hive.until_led();
    two.send(&first);
    until("it works on it", || two.runs_of("first") == 1);
    let order = two.cancel(&format!("notes:{}", pubkey(&member())));
    until("the owner is told that it is cancelled", || two.is_obeyed(&order));
    two.hive.kill(0);
    two.set("answer");
    two.hive.start(0);
    two.send(&next);
    until("what comes next is answered", || two.state(0, &next.id) == "answered");
    let row = two.row(0, &first.id).unwrap();
    assert_eq!(
        (row.state.as_str(), row.reason.as_str(), two.runs_of("first")),
        ("refused", "cancelled by the owner", 1),
        "in one channel, before it"
    );
    until("all is told", || two.hive.records(0).outbox_len().unwrap().0 == 0);
    assert_eq!(two.ends_of(&first.id), 1);
    let said = two.retry(0, Some(&first.id));
    assert!(said.contains("tried again"), "{said}");
    until("it is answered", || two.state(0, &first.id) == "answered");
    until("and said", || two.hive.replies(&[first.id]).len() == 1);
    two.hive.stop(0);
    assert_eq!((two.runs_of("first"), two.hive.replies(&[first.id])[&first.id].len()), (2, 1));
}

/// The word is among what the relay kept meanwhile, and nobody else is there who leads.
#[test]
fn one_that_was_down_when_the_owner_cancelled_hears_of_it_before_it_begins_anything() {
    let mut two = Two::new(65, "wait");
    let (first, next) = (two.note("first"), two.note("next"));
    two.hive.start(0);
    two.hive.until_led();
    two.hive.start(1);
    two.send(&first);
    until("the first works on it", || two.runs_of("first") == 1);
    until("the second has it", || two.state(1, &first.id) == "queued");
    two.hive.kill(1);
    two.cancel(&format!("notes:{}", pubkey(&member())));
    two.until_told(0, &first.id, "refused");
    two.hive.stop(0);
    two.set("answer");
    two.send(&next);
    two.hive.start(1);
    until("what comes next is answered", || two.state(1, &next.id) == "answered");
    assert_eq!((two.state(1, &first.id).as_str(), two.runs_of("first")), ("refused", 1));
}

#[test]
fn a_retry_where_an_instance_follows_is_done_by_the_one_that_leads() {
    let mut two = Two::new(64, "wait");
    let first = two.note("first");
    two.hive.start(0);
    two.hive.until_led();
    two.hive.start(1);
    two.send(&first);
    until("the first works on it", || two.runs_of("first") == 1);
    two.cancel(&format!("notes:{}", pubkey(&member())));
    two.until_told(0, &first.id, "refused");
    until("the second knows it", || two.state(1, &first.id) == "refused");
    two.set("answer");
    let said = two.retry(1, Some(&first.id));
    assert!(said.contains("by one on another machine: that one leads, and is told through the relay"), "{said}");
    for n in [0, 1] {
        until("both know that it is answered", || two.state(n, &first.id) == "answered");
    }
    assert_eq!(two.hive.prompter(), Some(0), "the lead has not moved");
    two.hive.stop_all();
    assert_eq!(two.runs_of("first"), 2);
}
