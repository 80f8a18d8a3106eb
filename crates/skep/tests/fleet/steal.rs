//! The owner moves the lead while a turn runs.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use skep_proto::agent::control::{Control, control_draft};
use skep_proto::agent::metering::{StopReason, TurnMetric};
use skep_proto::{Kind, seal};

use crate::hive::{Agent, Hive, Plan, mention, now, publish, read, until};
use crate::relay_harness::client::member;

/// Who claims in a lock file.
fn claimant(lock: &Path) -> Option<String> {
    let claim: Value = serde_json::from_str(&read(lock)).ok()?;
    claim["instance_id"].as_str().map(str::to_owned)
}

/// What another NIP-LE program does: with the file locked, written in place.
fn write_lock(path: &Path, text: &str) {
    let mut file = File::options().write(true).open(path).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    file.set_len(0).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// The second of two instances on one machine leads now; gives the ids of both.
fn swap(hive: &Hive) -> [String; 2] {
    let lock = hive.lock(0, &hive.agent().pubkey());
    until("the first leads", || hive.prompter() == Some(0));
    let first = claimant(&lock).unwrap();
    // Whoever is stolen from stands back for a while; then nobody claims, and the other takes it.
    let at = humantime::format_rfc3339_millis(std::time::SystemTime::now());
    let pid = std::process::id();
    write_lock(&lock, &format!(r#"{{"instance_id":"somebody else","pid":{pid},"claimed_at":"{at}"}}"#));
    until("the first stands down", || hive.log(0).contains("Follows(Some(\"somebody else\"))"));
    write_lock(&lock, "");
    until("the second leads", || hive.prompter() == Some(1));
    [first, claimant(&lock).unwrap()]
}

#[test]
fn a_steal_ends_the_turn_that_runs_it_is_billed_and_the_message_is_begun_again() {
    let binary = crate::binary::path();
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let script = format!("{binary} agent demo | tee -a {}", said.display());
    let demo = format!("backend = \"acp\"\ncommand = \"/bin/sh\"\nargs = [\"-c\", {script:?}]");
    let mut hive = Hive::new(Plan::of(Agent::new("scout", 51, demo), [0, 0]));
    let agent = hive.agent().pubkey();
    hive.start(0);
    hive.until_led();
    hive.start(1);
    let [first, _] = swap(&hive);
    let asked = mention(&agent, None, now(), "wait");
    publish(&hive.upstream(), std::slice::from_ref(&asked));
    let eyes = json!({ "authors": [agent], "kinds": [Kind::REACTION], "#e": [asked.id] });
    until("it is prompted", || hive.owner().query(&eyes).iter().any(|event| event.content == "👀"));
    // From here on the turn has cost something.
    until("the program works on it", || read(&said).contains("I wait."));

    let sealed = Control::ClaimLeadership { instance_id: first }.to_json().unwrap();
    let sealed = seal::seal(&member(), &agent, &sealed, [7; 32]).unwrap();
    let claim = control_draft(&agent, now(), sealed).sign(&member(), &[0; 32]).raw().clone();
    publish(&hive.upstream(), &[claim]);
    until("the first leads again", || hive.prompter() == Some(0));
    let bills = json!({ "authors": [agent], "kinds": [Kind::AGENT_METRIC] });
    let mut bill = None;
    until("the turn is billed", || {
        bill = hive.owner().query(&bills).pop();
        bill.is_some()
    });
    let metric = TurnMetric::from_json(&seal::open(&member(), &agent, &bill.unwrap().content).unwrap()).unwrap();
    assert_eq!(metric.stop_reason, Some(StopReason::Cancelled));
    assert!(metric.turn.is_observed(), "{metric:?}");
    // The message is not lost: who leads now has begun it anew.
    until("the program works on it again", || read(&said).matches("I wait.").count() == 2);
    hive.stop_all();
    let bills = hive.owner().query(&bills);
    assert_eq!(bills.len(), 2, "each turn once");
}
