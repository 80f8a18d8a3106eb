//! The common budget in real processes: who gets the last of it, and what one that was killed had set aside.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use skep_agent::driver::{Purse, Refused};
use skep_core::budget::{End, Exhausted, Limits, Scope, Shared, Spent, Start};
use skep_core::turn::TurnId;
use skep_node::agent::purse::HomePurse;
use skep_proto::PubKey;
use skep_store::ledger::{Ledger, Window};

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
fn what_was_set_aside_by_one_that_was_killed_is_spent_and_is_a_tenth_of_the_day() {
    if let Some(dir) = std::env::var_os(WHERE) {
        reserve(&purse(Path::new(&dir)), NOON, "killed", None).unwrap();
        println!("reserved");
        std::thread::sleep(std::time::Duration::from_secs(60));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut killed =
        child("purse::what_was_set_aside_by_one_that_was_killed_is_spent_and_is_a_tenth_of_the_day", dir.path());
    let mut lines = BufReader::new(killed.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("reserved")));
    killed.kill().unwrap();
    killed.wait().unwrap();
    let purse = purse(dir.path());
    // Nobody knows yet that it will say nothing more.
    for n in 1..10 {
        reserve(&purse, NOON, &format!("beside it {n}"), None).unwrap();
    }
    let soon = exhausted(reserve(&purse, NOON + 60, "next", None));
    assert!(soon.is_aside && !soon.is_news && soon.until < NOON + 120, "{soon:?}");
    assert_eq!(soon.to_string(), "budget: tokens_per_day of the fleet is set aside for turns that run");
    (1..10).for_each(|n| settle(&purse, NOON + 60, &format!("beside it {n}"), 100));
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

#[test]
fn an_agent_that_never_says_what_it_used_stops_no_other_at_its_first_turn() {
    let dir = tempfile::tempdir().unwrap();
    let purse = purse(dir.path());
    for n in 0..10 {
        let turn = format!("unmetered-{n}");
        reserve(&purse, NOON, &turn, None).unwrap();
        purse.settle(NOON, &TurnId(turn), Some(Spent::default()));
    }
    let full = exhausted(reserve(&purse, NOON, "next", None));
    assert!(!full.is_aside && full.until == 20_001 * 86_400, "its tenth took the last of the day: {full:?}");
}

#[test]
fn what_turns_cost_is_known_the_next_day() {
    let dir = tempfile::tempdir().unwrap();
    let purse = purse(dir.path());
    reserve(&purse, NOON, "first", None).unwrap();
    settle(&purse, NOON, "first", 1);
    // By the tenth of a day there would be ten.
    for day in 1..4 {
        for n in 0..15 {
            reserve(&purse, NOON + day * 86_400, &format!("{day}-{n}"), None).unwrap();
        }
    }
}

#[test]
fn a_start_gives_back_what_never_began_and_settles_what_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let before = purse(dir.path());
    let turns = ["starting", "ended", "unseen", "free"];
    for turn in turns {
        reserve(&before, NOON, turn, Some(turn)).unwrap();
    }
    let other = PubKey([2; 32]);
    before.reserve(NOON, &TurnId("other's".into()), other, Some("other's")).unwrap();
    drop(before);
    let after = purse(dir.path());
    let end = |turn: &str, spent| End { turn: TurnId(turn.into()), at: NOON, spent };
    let tokens = |tokens| Some(Spent { usd: None, tokens: Some(tokens) });
    let ends = vec![end("ended", tokens(5)), end("unseen", Some(Spent::default())), end("free", None)];
    after.take_up(Start { agent: AGENT, now: NOON + 60, ends });
    for (task, is_free) in [("starting", true), ("ended", false), ("unseen", false), ("free", true), ("other's", false)]
    {
        let found = reserve(&after, NOON + 60, &format!("again {task}"), Some(task));
        assert_eq!(found.is_ok(), is_free, "one turn in an hour of {task}: {found:?}");
    }
}

#[test]
fn what_a_held_ledger_did_not_take_is_kept_and_written_when_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let purse = purse(dir.path());
    reserve(&purse, NOON, "a", Some("T1")).unwrap();
    reserve(&purse, NOON, "b", Some("T2")).unwrap();
    let path = dir.path().join("budget.db");
    let (held, is_held) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        let hold = |_: &[_]| {
            held.send(()).unwrap();
            (released.recv().unwrap(), Vec::new())
        };
        Ledger::open(&path).unwrap().change(&Window { since: 0, open_since: 0, task: None }, hold).unwrap();
    });
    is_held.recv().unwrap();
    purse.settle(NOON, &TurnId("a".into()), None);
    purse.settle(NOON, &TurnId("b".into()), Some(Spent { usd: None, tokens: Some(1_000) }));
    release.send(()).unwrap();
    holder.join().unwrap();
    assert!(matches!(reserve(&purse, NOON + 1, "c", None), Err(Refused::Unusable(_))), "not tried again at once");
    purse.tick(NOON + 10);
    // Another process's look at it.
    let other = self::purse(dir.path());
    let full = exhausted(reserve(&other, NOON + 10, "d", Some("T1")));
    assert!(full.scope == Scope::Fleet && !full.is_aside, "T1 is free again, and all is spent: {full:?}");
}

#[test]
fn a_refusal_is_believed_for_half_a_minute() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (purse(dir.path()), purse(dir.path()));
    reserve(&one, NOON, "a", Some("T1")).unwrap();
    assert!(exhausted(reserve(&two, NOON, "b", Some("T1"))).until > NOON + 3_000);
    one.settle(NOON, &TurnId("a".into()), None);
    exhausted(reserve(&two, NOON + 29, "b", Some("T1")));
    reserve(&two, NOON + 30, "b", Some("T1")).unwrap();
}
