//! What every [`EventStore`] must do, as checks that any of them can be put through.
//!
//! Each takes a fresh store and panics with what is wrong. Used by the tests of this crate and of later stores.

use std::sync::Arc;

use skep_proto::{Filter, PubKey, Record, Seq};

use crate::{Change, EventStore, Op, Outcome, Scan, Visit};

/// Bounds every filter in the checks.
const MOST: u64 = 10_000;

/// Events that a query serves, everything visible.
///
/// # Panics
/// When the store fails.
pub fn query(store: &dyn EventStore, filters: &[Filter]) -> Vec<Record> {
    let filters: Arc<[Filter]> = filters.iter().cloned().map(Filter::normalized).collect();
    let newest = Seq(store.next_seq().0 - 1);
    store.collect(Scan::new(filters, newest, MOST), &mut |_| Visit::Serve).expect("the store can be read")
}

/// Stores one event.
///
/// # Panics
/// When the store fails.
pub fn put(store: &dyn EventStore, record: &Record) -> Outcome {
    let mut outcomes = store.apply(vec![Op::put(record.clone())]).expect("the store can be written");
    outcomes.pop().expect("one outcome for one operation")
}

/// Numbers only grow, are given in order, and a tailing reader sees each event once.
///
/// # Panics
/// When they are not.
pub fn numbers_only_grow(store: &dyn EventStore, records: &[Record]) {
    let mut last = Seq::ZERO;
    for record in records {
        if let Outcome::Stored(changes) = put(store, record) {
            for Change { seq, .. } in changes {
                assert!(seq > last, "{seq:?} after {last:?}");
                last = seq;
            }
        }
    }
    let mut cursor = Seq::ZERO;
    loop {
        let rows = store.read_after(cursor, 7).expect("the store can be read");
        let Some((newest, _)) = rows.last() else { break };
        assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0), "rows in order");
        cursor = *newest;
    }
}

/// A batch is one transaction: what a guard refuses leaves no trace, and what stands beside it is stored.
///
/// # Panics
/// When it does.
pub fn a_refused_guard_leaves_no_trace(store: &dyn EventStore, refused: &Record, stored: &Record) {
    let refusal = skep_proto::Prefix::Conflict.because("no");
    let guard: crate::Guard = Box::new({
        let refusal = refusal.clone();
        move |_| Ok(Err(refusal))
    });
    let ops = vec![Op::Put { record: refused.clone(), words: Vec::new(), guard: Some(guard) }, Op::put(stored.clone())];
    let outcomes = store.apply(ops).expect("the store can be written");
    assert_eq!(outcomes[0], Outcome::Refused(refusal));
    assert!(matches!(outcomes[1], Outcome::Stored(_)));
    assert!(!store.contains(&refused.as_ref().id()).expect("readable"));
    assert!(store.contains(&stored.as_ref().id()).expect("readable"));
}

/// Facts that are not events come back as they were put.
///
/// # Panics
/// When they do not.
pub fn owners_and_policy_are_kept(store: &dyn EventStore) {
    let agent = PubKey([5; 32]);
    let ops = vec![
        Op::Own { agent, row: b"one".to_vec() },
        Op::Own { agent, row: b"two".to_vec() },
        Op::Policy(b"{}".to_vec()),
    ];
    store.apply(ops).expect("the store can be written");
    assert_eq!(store.owners().expect("readable"), [(agent, b"two".to_vec())]);
    assert_eq!(store.policy().expect("readable").as_deref(), Some(&b"{}"[..]));
}
