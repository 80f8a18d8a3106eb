//! The flusher: a thread that carries frozen layers into LMDB, sorted, in fully synced transactions.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use heed::{PutFlags, RwTxn};
use skep_proto::limits;

use super::Inner;
use super::env::{META_GENERATION, Table};
use super::layers::{Layer, Slot};
use super::wal;
use crate::StoreError;

/// An active layer with this many rows is frozen: about 8,000 events.
pub(super) const ROWS_TO_FREEZE: usize = 80_000;
pub(super) const BYTES_TO_FREEZE: usize = 24 << 20;

/// Bytes of the active and the frozen layer together; then the writer waits for the flush. No more than the memory
/// ring holds: what is newest is in both, and is shared.
pub(super) const LAYERS_BYTES_MAX: usize = limits::RING_BYTES_MAX;

/// LMDB keeps the pages of a transaction in memory until it commits. Layers of ordinary events are smaller: one each.
const BYTES_IN_TRANSACTION: usize = 16 << 20;

/// While the active layer has room, they are this small: a disk that is told to flush flushes all that it was given, and
/// the writer's next batch waits for that too.
const BYTES_IN_TRANSACTION_UNPRESSED: usize = 1 << 20;

/// Rows written before another thread that has woken on this core has it: a kernel may otherwise let this one run for
/// milliseconds.
const ROWS_IN_A_ROW: usize = 64;

const _: () = assert!(2 * BYTES_TO_FREEZE <= LAYERS_BYTES_MAX);

/// How long rows may stay out of LMDB when nothing presses.
const IDLE: Duration = Duration::from_secs(2);

/// Wait between tries when LMDB takes nothing (a full disk).
const RETRY: Duration = Duration::from_millis(500);

/// Wakes the flusher, and those who wait for it.
#[derive(Debug, Default)]
pub(super) struct Signal {
    pub is_stopping: AtomicBool,
    turn: Mutex<u64>,
    changed: Condvar,
}

impl Signal {
    pub(super) fn notify(&self) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// Waits for the next notice, or for a time.
    pub(super) fn wait(&self, seen: &mut u64, most: Duration) {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *seen;
        let (turn, _) =
            self.changed.wait_timeout_while(turn, most, |turn| *turn == before).unwrap_or_else(PoisonError::into_inner);
        *seen = *turn;
    }
}

pub(super) fn start(inner: &Arc<Inner>) -> Result<JoinHandle<()>, StoreError> {
    let inner = Arc::clone(inner);
    std::thread::Builder::new()
        .name("skep-flush".into())
        .spawn(move || run(&inner))
        .map_err(|cause| StoreError::Other(format!("cannot start the flusher: {cause}")))
}

fn run(inner: &Inner) {
    let mut seen = 0;
    let mut is_failing = false;
    while !inner.signal.is_stopping.load(Ordering::Acquire) {
        inner.signal.wait(&mut seen, IDLE);
        if inner.layers().frozen.is_none() {
            // Nothing pressed for a while, or the writer asked: take what there is.
            if let Err(error) = inner.freeze_if_idle() {
                tracing::debug!(%error, "cannot start a new log");
            }
        }
        let flushed = flush(inner);
        if let Err(error) = &flushed {
            if !is_failing {
                tracing::error!(%error, "cannot move the log into the store; will try again");
            }
            std::thread::sleep(RETRY);
        }
        is_failing = flushed.is_err();
    }
}

/// Carries the frozen layer, if there is one, into LMDB. One flush at a time.
pub(super) fn flush(inner: &Inner) -> Result<(), StoreError> {
    let mut why = inner.flush.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(layer) = inner.layers().frozen.clone() else { return Ok(()) };
    let generation = inner.frozen_generation.load(Ordering::Acquire);
    if let Err(error) = write(inner, &layer, generation) {
        *why = Some(error.again());
        return Err(error);
    }
    *why = None;
    inner.layers_mut().frozen = None;
    let first = inner.frozen_from.load(Ordering::Acquire);
    (first..=generation).for_each(|generation| wal::remove(&inner.dir, generation));
    inner.signal.notify();
    Ok(())
}

/// Every row of a layer, and with the last of them the generation that it had. Between two transactions the layer still
/// hides what is below it, and after a crash its log is replayed: writing a row again changes nothing.
fn write(inner: &Inner, layer: &Layer, generation: u64) -> Result<(), StoreError> {
    let mut rows = layer.iter().peekable();
    loop {
        let mut txn = inner.env.write_txn().map_err(|error| inner.error(error))?;
        let newest =
            inner.db(Table::Events).last(&txn).map_err(|error| inner.error(error))?.map(|(key, _)| key.to_vec());
        let is_pressed = inner.layers().active.rows() > ROWS_TO_FREEZE / 2;
        let most = if is_pressed { BYTES_IN_TRANSACTION } else { BYTES_IN_TRANSACTION_UNPRESSED };
        let mut bytes = 0;
        for n in 1.. {
            let Some((table, key, slot)) = rows.next_if(|_| bytes < most) else { break };
            bytes += key.len() + slot.bytes().len();
            write_row(inner, &mut txn, newest.as_deref(), table, key, slot).map_err(|error| inner.error(error))?;
            if n % ROWS_IN_A_ROW == 0 {
                std::thread::yield_now();
            }
        }
        let is_last = rows.peek().is_none();
        if is_last {
            let generation = generation.to_be_bytes();
            inner.db(Table::Meta).put(&mut txn, META_GENERATION, &generation).map_err(|error| inner.error(error))?;
        }
        txn.commit().map_err(|error| inner.error(error))?;
        if is_last {
            return Ok(());
        }
    }
}

fn write_row(
    inner: &Inner,
    txn: &mut RwTxn<'_>,
    newest: Option<&[u8]>,
    table: Table,
    key: &[u8],
    slot: &Slot,
) -> Result<(), heed::Error> {
    let db = inner.db(table);
    match slot {
        Slot::Gone => db.delete(txn, key).map(drop),
        // Events only ever grow at the end; the hint saves the search. A log that is replayed writes them again.
        _ if table == Table::Events && newest < Some(key) => {
            db.put_with_flags(txn, PutFlags::APPEND, key, slot.bytes())
        }
        slot => db.put(txn, key, slot.bytes()),
    }
}
