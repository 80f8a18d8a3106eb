//! Live delivery: one reader of the tail, with its own cursor, that gives each event to the subscriptions it matches.

use std::sync::Arc;

use ahash::AHashMap;
use skep_proto::{Seq, wire};
use skep_store::Change;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::outbox::Delivery;
use crate::shared::{Shared, unix_now};

/// Changes read at a time.
const READ_MAX: usize = 256;

/// Runs until the relay stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut moved = shared.tail.watch();
    // Where the relay began, not where the tail is when this thread comes to run: connections may be ahead of it.
    let mut cursor = shared.live().cursor;
    loop {
        loop {
            // A failure is logged; the next move of the tail tries again.
            let changes = read(&shared, cursor).unwrap_or_default();
            let Some(last) = changes.last().map(|change| change.seq) else { break };
            deliver_all(&shared, &changes);
            cursor = last;
            tokio::task::yield_now().await;
        }
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            changed = moved.changed() => if changed.is_err() { return },
        }
    }
}

/// From the ring, or from the store when fan-out fell so far behind that the ring moved on.
/// `None` when the store could not be read.
pub(crate) fn read(shared: &Shared, after: Seq) -> Option<Vec<Change>> {
    if let Some(changes) = shared.tail.read_after(after, READ_MAX) {
        return Some(changes);
    }
    match shared.store.read_after(after, READ_MAX) {
        Ok(rows) => Some(rows.into_iter().map(|(seq, record)| Change { seq, record }).collect()),
        Err(error) => {
            tracing::error!(%error, "live delivery cannot read the store");
            None
        }
    }
}

fn deliver_all(shared: &Shared, changes: &[Change]) {
    let now = unix_now();
    let mut texts: AHashMap<Arc<str>, Utf8Bytes> = AHashMap::new();
    for Change { seq, record } in changes {
        texts.clear();
        let event = record.as_ref();
        let (mut queued, mut behind) = (0, 0);
        let world = shared.world();
        let mut live = shared.live();
        live.subs.recipients(&world, *seq, event, now, |sub, outbox| {
            let text = match texts.get(&sub.quoted) {
                Some(text) => text.clone(),
                None => {
                    let text = Utf8Bytes::from(wire::event(&sub.quoted, event));
                    texts.insert(Arc::clone(&sub.quoted), text.clone());
                    text
                }
            };
            match outbox.deliver(*seq, &sub.quoted, text) {
                Delivery::Queued => queued += 1,
                Delivery::Behind { is_new } => behind += u64::from(is_new),
            }
        });
        live.cursor = *seq;
        drop(live);
        drop(world);
        shared.metrics.delivered.inc_by(queued);
        shared.metrics.fell_behind.inc_by(behind);
    }
}
