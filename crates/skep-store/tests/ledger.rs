//! The common ledger of a home: one transaction at a time, and no patience with a file that is not one.
#![expect(clippy::unwrap_used, reason = "a test")]

use skep_store::StoreError;
use skep_store::ledger::{Entry, Ledger, Write};

fn entry(turn: &str, at: u64, is_open: bool) -> Entry {
    Entry { turn: turn.into(), began: at, at, is_open, detail: "{}".into() }
}

fn turns(ledger: &mut Ledger, since: u64) -> Vec<String> {
    ledger.change(since, |entries| (entries.iter().map(|entry| entry.turn.clone()).collect(), None)).unwrap()
}

#[test]
fn what_is_old_is_forgotten_unless_it_is_open_and_the_rest_is_there_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("budget.db");
    let mut ledger = Ledger::open(&path).unwrap();
    for write in [
        Write::Put(entry("old", 10, false)),
        Write::Put(entry("open", 11, true)),
        Write::Put(entry("gone", 50, true)),
        Write::Remove("gone".into()),
    ] {
        ledger.change(0, |_| ((), Some(write))).unwrap();
    }
    ledger.change(40, |_| ((), Some(Write::Put(entry("new", 60, true))))).unwrap();
    ledger.change(40, |_| ((), Some(Write::Put(entry("new", 61, false))))).unwrap();
    drop(ledger);
    let mut ledger = Ledger::open(&path).unwrap();
    assert_eq!(turns(&mut ledger, 0), ["open", "new"]);
    assert_eq!(turns(&mut ledger, 100), ["open"]);
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
    let refused = ledger.change(0, |_| ((), None));
    assert!(matches!(&refused, Err(StoreError::Other(why)) if why.contains("locked")), "{refused:?}");
    held.execute_batch("COMMIT").unwrap();
    assert_eq!(turns(&mut ledger, 0), Vec::<String>::new());
    let other = dir.path().join("other.db");
    std::fs::write(&other, "this is no database, whatever it is called".repeat(40)).unwrap();
    assert!(matches!(Ledger::open(&other), Err(StoreError::Corrupt("budget.db"))));
}
