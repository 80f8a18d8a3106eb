//! Two relays made equal by set reconciliation (NIP-77): only what one side lacks is moved.
//!
//! Job: learn which ids either side lacks, then fetch, verify and publish those events.
//! Neighbours: [`crate::client`] speaks to relays, [`crate::transfer`] opens the store and publishes in a pipeline.
//! Must not: print, hold events in memory beyond one chunk, or send what the given identity may not read.

mod negotiate;

use std::collections::HashSet;

use skep_core::Readers;
use skep_proto::{EventId, Filter, RawEvent, Timestamp};

use crate::client::Client;
use crate::clock::unix_now;
use crate::transfer::{Fate, Observer, Offline, Pages, Pipeline, Progress, Tally, TransferError, fetch_ids};

pub use negotiate::{Difference, reconcile};
use negotiate::{Window, reconcile_window};

/// Ids in one request; also how many events are in memory at a time.
const CHUNK: usize = 200;

/// Which way events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Up,
    Down,
    Both,
}

/// The local side: a running relay, or the store of one that is down.
pub enum Local<'a> {
    Relay(&'a mut Client),
    /// With the keys in whose name events are taken out of it.
    Store(&'a Offline, Readers),
}

/// What a sync did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synced {
    /// Events that the local side had at the start.
    pub local: u64,
    /// What became of events of the remote.
    pub down: Tally,
    /// What became of ours there.
    pub up: Tally,
    /// Ids that a side listed and then did not give: deleted or expired meanwhile.
    pub gone: u64,
    /// Events of either relay that did not verify.
    pub forged: u64,
}

/// A set of ids with their times, in no order.
pub type Items = Vec<(Timestamp, EventId)>;

impl Local<'_> {
    /// What there is of a filter.
    pub async fn items(&mut self, filter: &Filter, observer: &mut Observer<'_>) -> Result<Items, TransferError> {
        let mut items = Items::new();
        match self {
            Local::Store(store, readers) => {
                let now = unix_now();
                store.each(vec![filter.clone()], now, |event| {
                    if store.may_read(readers, event, now) {
                        items.push((event.created_at(), event.id()));
                    }
                    Ok::<_, TransferError>(())
                })?;
            }
            Local::Relay(client) => {
                let mut pages = Pages::new(filter.clone());
                while let Some(item) = pages.peek(client).await? {
                    items.push(item);
                    pages.take();
                    observer(Progress { bytes: 0, events: items.len() as u64 });
                }
            }
        }
        Ok(items)
    }

    async fn get(&mut self, ids: &[EventId], forged: &mut u64) -> Result<Vec<RawEvent>, TransferError> {
        match self {
            Local::Relay(client) => get(client, ids, forged).await,
            Local::Store(store, _) => ids.iter().filter_map(|id| store.get(id).transpose()).collect(),
        }
    }

    async fn put(&mut self, events: Vec<RawEvent>, tally: &mut Tally) -> Result<(), TransferError> {
        match self {
            Local::Relay(client) => put(client, &events, tally).await,
            Local::Store(store, _) => {
                let now = unix_now();
                let batch: Vec<(u64, Fate)> = events.into_iter().map(|event| (0, store.judge(event, now))).collect();
                store.commit(batch, tally)
            }
        }
    }
}

/// Reconciles `items` (what the local side has of `filter`) with a remote relay and moves what is missing.
///
/// A remote that finds the set too large is asked about one half of the time after the other.
pub async fn sync(
    local: &mut Local<'_>,
    items: Items,
    remote: &mut Client,
    filter: &Filter,
    direction: Direction,
    observer: &mut Observer<'_>,
) -> Result<Synced, TransferError> {
    let mut synced = Synced { local: items.len() as u64, ..Synced::default() };
    let mut moved = 0;
    let mut windows = vec![Window::of(filter)];
    while let Some(window) = windows.pop() {
        let difference = match reconcile_window(remote, filter, window, &items).await? {
            Ok(difference) => difference,
            Err(too_large) => {
                let halves = window.halves(unix_now()).ok_or_else(|| too_large.into_error(remote.url().as_str()))?;
                windows.extend(halves.into_iter().rev());
                continue;
            }
        };
        if direction != Direction::Up {
            for chunk in difference.need.chunks(CHUNK) {
                let events = get(remote, chunk, &mut synced.forged).await?;
                synced.gone += (chunk.len() - events.len()) as u64;
                moved += events.len() as u64;
                local.put(events, &mut synced.down).await?;
                observer(Progress { bytes: 0, events: moved });
            }
        }
        if direction != Direction::Down {
            for chunk in difference.have.chunks(CHUNK) {
                let events = local.get(chunk, &mut synced.forged).await?;
                synced.gone += (chunk.len() - events.len()) as u64;
                moved += events.len() as u64;
                put(remote, &events, &mut synced.up).await?;
                observer(Progress { bytes: 0, events: moved });
            }
        }
    }
    Ok(synced)
}

/// The events of these ids, verified.
async fn get(client: &mut Client, ids: &[EventId], forged: &mut u64) -> Result<Vec<RawEvent>, TransferError> {
    let mut found = fetch_ids(client, ids, forged).await?;
    // In the order of `ids`, oldest first: a deletion comes after what it deletes.
    Ok(ids.iter().filter_map(|id| found.remove(id)).map(|event| event.raw().clone()).collect())
}

async fn put(client: &mut Client, events: &[RawEvent], tally: &mut Tally) -> Result<(), TransferError> {
    let mut pipeline = Pipeline::new(client);
    for event in events {
        pipeline.send((), event).await?;
    }
    pipeline.settle().await?;
    pipeline.answers().for_each(|((), verdict)| tally.verdict(verdict.accepted, &verdict.message));
    Ok(())
}

/// Each id once, in the order in which it came.
fn unique(ids: impl IntoIterator<Item = EventId>) -> Vec<EventId> {
    let mut seen = HashSet::new();
    ids.into_iter().filter(|id| seen.insert(*id)).collect()
}
