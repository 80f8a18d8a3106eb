//! The common budget in real processes: who gets the last of it, and what one that was killed had set aside.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use skep_agent::driver::{Purse, Refused};
use skep_core::budget::{Exhausted, Limits, Scope, Shared, Spent};
use skep_core::turn::TurnId;
use skep_node::agent::purse::HomePurse;
use skep_proto::PubKey;

const AGENT: PubKey = PubKey([1; 32]);
/// Noon of some day.
const NOON: u64 = 20_000 * 86_400 + 43_200;

const WHERE: &str = "PURSE_TEST_DIR";

fn purse(dir: &Path) -> HomePurse {
    let fleet = Limits { turns_per_hour: Some(20), tokens_per_day: Some(1_000), ..Limits::default() };
    let task = Limits { turns_per_hour: Some(1), ..Limits::default() };
    HomePurse::new(dir.join("budget.db"), Shared { fleet, task })
}

fn reserve(purse: &HomePurse, now: u64, turn: &str, task: Option<&str>) -> Result<(), Refused> {
    purse.reserve(now, &TurnId(turn.into()), AGENT, task)
}

fn exhausted(refused: Result<(), Refused>) -> Exhausted {
    match refused {
        Err(Refused::Exhausted(exhausted)) => exhausted,
        other => panic!("{other:?}"),
    }
}

fn settle(purse: &HomePurse, now: u64, turn: &str, tokens: u64) {
    purse.settle(now, &TurnId(turn.into()), Some(Spent { usd: None, tokens: Some(tokens) }));
}

/// The same test once more, as another process that is told where the ledger is.
fn child(test: &str, dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(WHERE, dir);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// One of the processes that race.
fn race(dir: &Path) {
    let purse = purse(dir);
    let mut got = 0;
    for n in 0..30 {
        let turn = format!("{}-{n}", std::process::id());
        if reserve(&purse, NOON, &turn, None).is_ok() {
            settle(&purse, NOON, &turn, 1);
            got += 1;
        }
    }
    println!("got {got}");
}

#[test]
fn processes_that_race_never_both_get_the_last_of_it() {
    if let Some(dir) = std::env::var_os(WHERE) {
        return race(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    // One is known already: then what is set aside for a turn is little, and they run beside each other.
    let first = purse(dir.path());
    reserve(&first, NOON, "first", None).unwrap();
    settle(&first, NOON, "first", 1);
    let racers: Vec<Child> =
        (0..3).map(|_| child("purse::processes_that_race_never_both_get_the_last_of_it", dir.path())).collect();
    let got = racers.into_iter().map(|mut racer| {
        let lines = BufReader::new(racer.stdout.take().unwrap()).lines().map_while(Result::ok);
        let got = lines.filter_map(|line| line.split("got ").nth(1)?.trim().parse::<u32>().ok()).last();
        assert!(racer.wait().unwrap().success());
        got.unwrap()
    });
    assert_eq!(got.sum::<u32>(), 19, "with the first, all that an hour has");
    assert_eq!(exhausted(reserve(&first, NOON, "late", None)).scope, Scope::Fleet);
}

#[test]
fn what_was_set_aside_by_one_that_was_killed_is_spent() {
    if let Some(dir) = std::env::var_os(WHERE) {
        reserve(&purse(Path::new(&dir)), NOON, "killed", None).unwrap();
        println!("reserved");
        std::thread::sleep(std::time::Duration::from_secs(60));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut killed = child("purse::what_was_set_aside_by_one_that_was_killed_is_spent", dir.path());
    let mut lines = BufReader::new(killed.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("reserved")));
    killed.kill().unwrap();
    killed.wait().unwrap();
    let purse = purse(dir.path());
    // Nobody knows yet that it will say nothing more.
    let soon = exhausted(reserve(&purse, NOON + 60, "next", None));
    assert!(soon.is_aside && !soon.is_news && soon.until < NOON + 120, "{soon:?}");
    assert_eq!(soon.to_string(), "budget: tokens_per_day of the fleet is set aside for turns that run");
    let later = exhausted(reserve(&purse, NOON + 3 * 3_600, "next", None));
    assert!(!later.is_aside && later.is_news && later.until == 20_001 * 86_400, "{later:?}");
    assert!(!exhausted(reserve(&purse, NOON + 3 * 3_600, "next", None)).is_news, "told once");
    assert!(reserve(&purse, 20_001 * 86_400, "next", None).is_ok(), "the next day has its own");
}

#[test]
fn a_task_is_counted_by_itself_and_a_turn_that_did_not_begin_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let purse = purse(dir.path());
    reserve(&purse, NOON, "a", Some("T1")).unwrap();
    settle(&purse, NOON, "a", 1);
    let full = exhausted(reserve(&purse, NOON, "b", Some("T1")));
    assert!(full.to_string().starts_with("budget: turns_per_hour of task T1 is used up until "), "{full}");
    reserve(&purse, NOON, "c", Some("T2")).unwrap();
    purse.settle(NOON, &TurnId("c".into()), None);
    reserve(&purse, NOON, "d", Some("T2")).unwrap();
}

#[test]
fn a_ledger_that_cannot_be_read_lets_nothing_begin_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("budget.db"), "this is no database, whatever it is called".repeat(40)).unwrap();
    let purse = purse(dir.path());
    for _ in 0..2 {
        match reserve(&purse, NOON, "a", None) {
            Err(Refused::Unusable(why)) => {
                assert!(why.starts_with("budget: ") && why.contains("budget.db cannot be used: "), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
}
