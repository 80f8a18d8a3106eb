//! The common ledger of a home: one transaction at a time, and no patience with a file that is not one.
#![expect(clippy::unwrap_used, reason = "a test")]

use skep_store::StoreError;
use skep_store::ledger::{Entry, Ledger, Window, Write};

fn entry(turn: &str, at: u64, is_open: bool) -> Entry {
    Entry { turn: turn.into(), began: at, at, is_open, task: None, is_known: false, detail: "{}".into() }
}

const fn since(since: u64) -> Window<'static> {
    Window { since, open_since: since / 2, task: None }
}

fn turns(ledger: &mut Ledger, window: Window<'_>) -> Vec<String> {
    ledger.change(&window, |entries| (entries.iter().map(|entry| entry.turn.clone()).collect(), vec![])).unwrap()
}

#[test]
fn what_is_old_is_forgotten_what_may_run_later_and_the_rest_is_there_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("budget.db");
    let mut ledger = Ledger::open(&path).unwrap();
    for write in [
        Write::Put(entry("old", 10, false)),
        Write::Put(entry("killed", 11, true)),
        Write::Put(entry("open", 25, true)),
        Write::Put(entry("gone", 50, true)),
        Write::Remove("gone".into()),
    ] {
        ledger.change(&since(0), |_| ((), vec![write])).unwrap();
    }
    assert_eq!(turns(&mut ledger, since(40)), ["open"], "the killed one does not count any more");
    let both = vec![Write::Put(entry("new", 60, true)), Write::Put(entry("new", 61, false))];
    ledger.change(&since(40), |_| ((), both)).unwrap();
    drop(ledger);
    let mut ledger = Ledger::open(&path).unwrap();
    assert_eq!(turns(&mut ledger, since(0)), ["open", "new"]);
    assert_eq!(turns(&mut ledger, since(100)), Vec::<String>::new());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn something_is_told_once_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&dir.path().join("budget.db")).unwrap();
    let mut tell = |day| ledger.tell_once(day, "fleet").unwrap();
    assert_eq!([tell(1), tell(1), tell(2), tell(2)], [true, false, true, false]);
}

#[test]
fn a_file_that_is_held_is_not_waited_for_long_and_no_database_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("budget.db");
    let mut ledger = Ledger::open(&path).unwrap();
    let held = rusqlite::Connection::open(&path).unwrap();
    held.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = ledger.change(&since(0), |_| ((), vec![]));
    assert!(matches!(&refused, Err(StoreError::Other(why)) if why.contains("locked")), "{refused:?}");
    held.execute_batch("COMMIT").unwrap();
    assert_eq!(turns(&mut ledger, since(0)), Vec::<String>::new());
    let other = dir.path().join("other.db");
    std::fs::write(&other, "this is no database, whatever it is called".repeat(40)).unwrap();
    assert!(matches!(Ledger::open(&other), Err(StoreError::Corrupt("budget.db"))));
}

#[test]
fn what_turns_cost_is_kept_whatever_its_age_for_each_task_and_no_more_than_is_asked_for() {
    const MOST: usize = skep_proto::limits::ESTIMATE_TURNS_MAX;
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::open(&dir.path().join("budget.db")).unwrap();
    let mut known = |at: u64, task: Option<&str>| {
        let entry = entry(&format!("{}-{at}", task.unwrap_or("none")), at, false);
        let write = Write::Put(Entry { task: task.map(str::to_owned), is_known: true, ..entry });
        ledger.change(&since(1_000_000), |_| ((), vec![write])).unwrap();
    };
    (1..100).for_each(|at| known(at, Some("T1")));
    (100..200).for_each(|at| known(at, None));
    let later = Window { task: Some("T1"), ..since(1_000_000) };
    let found = turns(&mut ledger, later);
    assert_eq!((found.len(), found[0].as_str(), found[MOST].as_str()), (2 * MOST, "T1-80", "none-180"));
    assert_eq!(turns(&mut ledger, since(1_000_000)).len(), MOST, "of all tasks together");
    assert_eq!(turns(&mut ledger, since(0)).len(), 2 * MOST, "the others are gone");
}

#[test]
fn a_ledger_of_the_form_before_is_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("budget.db");
    let before = "CREATE TABLE entries (turn TEXT PRIMARY KEY, began INTEGER NOT NULL, at INTEGER NOT NULL,
            is_open INTEGER NOT NULL, detail TEXT NOT NULL) STRICT;
        CREATE TABLE told (day INTEGER NOT NULL, what TEXT NOT NULL, PRIMARY KEY (day, what)) STRICT;
        INSERT INTO entries VALUES ('a', 10, 10, 0, '{}');
        PRAGMA user_version = 1;";
    rusqlite::Connection::open(&path).unwrap().execute_batch(before).unwrap();
    for _ in 0..2 {
        assert_eq!(turns(&mut Ledger::open(&path).unwrap(), since(5)), ["a"]);
    }
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 3").unwrap();
    assert!(matches!(Ledger::open(&path), Err(StoreError::Format { found: 3, known: 2 })));
}
