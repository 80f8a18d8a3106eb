//! The hot end of the store: what was committed last, and the ephemeral events, which live nowhere else.
//!
//! Fan-out and other tailing readers read here while they keep up, and from the store when they do not.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_proto::{EventRef, Record, Seq, Timestamp, limits};
use tokio::sync::watch;

use crate::Change;

/// A bounded ring of changes in commit order. Overflow policy: the oldest leave, and are counted.
#[derive(Debug)]
pub struct Tail {
    /// Locked, because the writer appends while readers copy; held for a copy of handles, never over an await.
    ring: Mutex<Ring>,
    /// The newest number that a reader may read up to. Carries no data.
    moved: watch::Sender<Seq>,
}

#[derive(Debug)]
struct Ring {
    changes: VecDeque<Slot>,
    bytes: usize,
    /// Everything with a larger number than this is in the ring.
    complete_after: Seq,
    dropped: u64,
}

#[derive(Debug, Clone)]
struct Slot {
    seq: Seq,
    at: Timestamp,
    record: Record,
}

impl Tail {
    /// `last`: the newest number of the store as it was opened.
    pub fn new(last: Seq) -> Self {
        let ring = Ring { changes: VecDeque::new(), bytes: 0, complete_after: last, dropped: 0 };
        Self { ring: Mutex::new(ring), moved: watch::Sender::new(last) }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what was committed, then tells the readers.
    pub fn append(&self, changes: impl IntoIterator<Item = Change>, now: Timestamp) {
        let mut ring = self.ring();
        let mut newest = None;
        for Change { seq, record } in changes {
            newest = Some(seq);
            ring.bytes += record.as_bytes().len();
            ring.changes.push_back(Slot { seq, at: now, record });
        }
        while ring.changes.len() > limits::RING_EVENTS_MAX || ring.bytes > limits::RING_BYTES_MAX {
            let Some(old) = ring.changes.pop_front() else { break };
            ring.bytes -= old.record.as_bytes().len();
            ring.complete_after = old.seq;
            ring.dropped += 1;
        }
        drop(ring);
        if let Some(newest) = newest {
            self.moved.send_replace(newest);
        }
    }

    /// Changes after `after`, at most `most`; `None` when the ring no longer reaches back so far.
    pub fn read_after(&self, after: Seq, most: usize) -> Option<Vec<Change>> {
        let ring = self.ring();
        if after < ring.complete_after {
            return None;
        }
        let first = ring.changes.partition_point(|slot| slot.seq <= after);
        let slots = ring.changes.range(first..).take(most);
        Some(slots.map(|slot| Change { seq: slot.seq, record: slot.record.clone() }).collect())
    }

    /// Ephemeral events of the last [`limits::EPHEMERAL_SECS_MAX`] with a number of at most `up_to`, newest first.
    pub fn recent_ephemeral(&self, up_to: Seq, now: Timestamp, wanted: impl Fn(EventRef<'_>) -> bool) -> Vec<Record> {
        let ring = self.ring();
        let fresh = ring.changes.iter().rev().take_while(|slot| slot.at + limits::EPHEMERAL_SECS_MAX >= now);
        fresh
            .filter(|slot| slot.seq <= up_to && slot.record.as_ref().kind().is_ephemeral())
            .filter(|slot| wanted(slot.record.as_ref()))
            .map(|slot| slot.record.clone())
            .collect()
    }

    pub fn watch(&self) -> watch::Receiver<Seq> {
        self.moved.subscribe()
    }

    pub fn newest(&self) -> Seq {
        *self.moved.borrow()
    }

    /// How many left the ring because it was full.
    pub fn dropped(&self) -> u64 {
        self.ring().dropped
    }
}
