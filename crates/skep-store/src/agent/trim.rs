//! What is over and old is forgotten, a little at a time. Ids stay, so that what comes again is still known.

use rusqlite::{Transaction, params};
use skep_proto::Timestamp;

use super::AgentStore;
use crate::StoreError;

/// Rows of each table that one step takes: the driver waits for its turn that long at most.
const STEP: u32 = 256;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Messages and turns that were over before are forgotten. Dead messages wait for their owner.
    pub since: Timestamp,
    /// Turns whose prompts are kept, the newest.
    pub prompts: u64,
    /// Ids that are remembered of what is gone, the newest.
    pub ids: u64,
}

impl AgentStore {
    /// One step; gives how many rows it changed. 0: nothing is left to do.
    pub fn trim_records(&self, kept: &Kept) -> Result<u64, StoreError> {
        self.write(|txn| {
            Ok((turns(txn, kept.since)? + messages(txn, kept.since)? + prompts(txn, kept)? + ids(txn, kept)?) as u64)
        })
    }
}

/// Not those whose reply may still come back, nor the newest of a channel: it says where its conversation stands.
fn turns(txn: &Transaction<'_>, since: Timestamp) -> rusqlite::Result<usize> {
    let delete = "DELETE FROM turns WHERE n IN (SELECT n FROM turns t WHERE started_at < ?1 AND ended_at < ?1
        AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.id = t.answer)
        AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.held_by = t.turn)
        AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.id = t.trigger_id AND i.is_over = 0)
        AND EXISTS (SELECT 1 FROM turns l WHERE l.channel = t.channel AND l.n > t.n AND l.ended_at IS NOT NULL)
        LIMIT ?2)";
    txn.prepare_cached(delete)?.execute(params![since, STEP])
}

/// After their turns, and never the newest: it says when anything came last.
fn messages(txn: &Transaction<'_>, since: Timestamp) -> rusqlite::Result<usize> {
    let over = "SELECT n FROM inbox m WHERE state_at < ?1 AND is_over = 1 AND state != 'dead'
        AND state_at < (SELECT max(state_at) FROM inbox)
        AND NOT EXISTS (SELECT 1 FROM turns t WHERE t.trigger_id = m.id)
        ORDER BY state_at, n LIMIT ?2";
    let keep = format!("INSERT OR IGNORE INTO acted (id, at) SELECT id, state_at FROM inbox WHERE n IN ({over})");
    txn.prepare_cached(&keep)?.execute(params![since, STEP])?;
    txn.prepare_cached(&format!("DELETE FROM inbox WHERE n IN ({over})"))?.execute(params![since, STEP])
}

fn prompts(txn: &Transaction<'_>, kept: &Kept) -> rusqlite::Result<usize> {
    let update = "UPDATE turns SET prompt = '' WHERE n IN (SELECT n FROM turns
        WHERE n <= (SELECT max(n) FROM turns) - ?1 AND ended_at IS NOT NULL AND prompt != '' LIMIT ?2)";
    txn.prepare_cached(update)?.execute(params![kept.prompts, STEP])
}

fn ids(txn: &Transaction<'_>, kept: &Kept) -> rusqlite::Result<usize> {
    let delete = "DELETE FROM acted WHERE rowid IN (SELECT rowid FROM acted
        WHERE rowid <= (SELECT max(rowid) FROM acted) - ?1 LIMIT ?2)";
    txn.prepare_cached(delete)?.execute(params![kept.ids, STEP])
}
