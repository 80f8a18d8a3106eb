//! Everything that a relay serves of one filter, however much it gives at a time: windows of `until` and `limit`.
//!
//! A page may end inside a second, and `until` cannot point into one. So the last second of a page is held back
//! until the next page has gone past it; a second that fills whole pages is listed by reconciliation (NIP-77).

use std::collections::{BTreeMap, VecDeque};

use skep_proto::{EventId, Filter, Timestamp, VerifiedEvent};

use super::TransferError;
use crate::client::{Client, ClientError, Update};
use crate::sync::reconcile;

/// Events that are asked for at a time.
const PAGE: u64 = 500;

/// A shorter page is complete: no relay gives less at a time, whatever there is.
const CAP_MIN: usize = 10;

/// Relays without reconciliation, which cannot be asked otherwise, are taken to give so many at a time.
const CAP_USUAL: usize = 100;

/// Ids in one request: a frame of 14 KiB, within every relay's bounds.
const IDS_MAX: usize = 200;

/// A walk over one filter's events, in serve order, each once.
#[derive(Debug)]
pub struct Pages {
    filter: Filter,
    /// How many may still be given.
    remaining: u64,
    /// In serve order, complete down to its end.
    ready: VecDeque<VerifiedEvent>,
    /// Events of the second `until`, which may have more.
    held: BTreeMap<EventId, VerifiedEvent>,
    until: Option<Timestamp>,
    is_done: bool,
    forged: u64,
}

impl Pages {
    pub fn new(filter: Filter) -> Self {
        let remaining = filter.limit.unwrap_or(u64::MAX);
        let is_done = remaining == 0 || filter.matches_nothing();
        let until = filter.until;
        Self { filter, remaining, ready: VecDeque::new(), held: BTreeMap::new(), until, is_done, forged: 0 }
    }

    /// Events that did not verify and were left out.
    pub fn forged(&self) -> u64 {
        self.forged
    }

    /// Time and id of the next event.
    pub async fn peek(&mut self, client: &mut Client) -> Result<Option<(Timestamp, EventId)>, TransferError> {
        while self.ready.is_empty() && !self.is_done {
            self.turn(client).await?;
        }
        Ok(self.ready.front().filter(|_| self.remaining > 0).map(|event| (event.created_at, event.id)))
    }

    /// The event that was peeked at.
    pub fn take(&mut self) -> Option<VerifiedEvent> {
        self.remaining = self.remaining.checked_sub(1)?;
        self.ready.pop_front()
    }

    /// Asks for one page and sorts it in.
    async fn turn(&mut self, client: &mut Client) -> Result<(), TransferError> {
        let filter = Filter { until: self.until, limit: Some(PAGE), ..self.filter.clone() };
        let page = fetch(client, filter, &mut self.forged).await?;
        let count = page.len();
        let oldest = page.values().map(|event| event.created_at).min();
        let Some(oldest) = oldest else {
            self.release();
            self.is_done = true;
            return Ok(());
        };
        let is_stuck = self.until == Some(oldest) || page.values().all(|event| event.created_at == oldest);
        let (last, newer): (Vec<_>, Vec<_>) = page.into_values().partition(|event| event.created_at == oldest);
        if !is_stuck {
            // The page went past the second that was held back, so that one is complete.
            let same_second = newer.iter().filter(|event| Some(event.created_at) == self.until).cloned();
            self.held.extend(same_second.map(|event| (event.id, event)));
            let (until, mut newer) = (self.until, newer);
            self.release();
            newer.retain(|event| Some(event.created_at) != until);
            self.queue(newer);
            self.held.extend(last.into_iter().map(|event| (event.id, event)));
            self.until = Some(oldest);
            return Ok(());
        }
        self.held.extend(last.into_iter().map(|event| (event.id, event)));
        if count >= CAP_MIN {
            match self.complete(client, oldest).await {
                Err(TransferError::Crowded { .. }) if count < CAP_USUAL => {}
                completed => completed?,
            }
        }
        self.release();
        match oldest.checked_sub(1) {
            Some(before) if count >= CAP_MIN => self.until = Some(before),
            // Short of any cap, and nothing is older.
            _ => self.is_done = true,
        }
        Ok(())
    }

    /// Gets all events of a second that fills whole pages.
    async fn complete(&mut self, client: &mut Client, second: Timestamp) -> Result<(), TransferError> {
        let filter = Filter { since: Some(second), until: Some(second), limit: None, ..self.filter.clone() };
        let found = reconcile(client, &filter, &[]).await.map_err(|error| match error {
            TransferError::NoReconciliation { url, said } => TransferError::Crowded { url, second, said },
            other => other,
        })?;
        let missing: Vec<EventId> = found.need.into_iter().filter(|id| !self.held.contains_key(id)).collect();
        let found = fetch_ids(client, &missing, &mut self.forged).await?;
        self.held.extend(found.into_iter().filter(|(_, event)| event.created_at == second));
        Ok(())
    }

    /// The held second is complete.
    fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.queue(held.into_values().collect());
    }

    fn queue(&mut self, mut events: Vec<VerifiedEvent>) {
        events.sort_by(|a, b| skep_proto::order::serve_order((a.created_at, &a.id), (b.created_at, &b.id)));
        self.ready.extend(events);
    }
}

/// The events of these ids that a relay has, however few it gives at a time.
pub(crate) async fn fetch_ids(
    client: &mut Client,
    ids: &[EventId],
    forged: &mut u64,
) -> Result<BTreeMap<EventId, VerifiedEvent>, TransferError> {
    let mut found = BTreeMap::new();
    for chunk in ids.chunks(IDS_MAX) {
        let mut left = chunk.to_vec();
        while !left.is_empty() {
            let filter = Filter { ids: Some(left.clone()), ..Filter::new() }.normalized();
            let page = fetch(client, filter, forged).await?;
            if page.is_empty() {
                // Deleted meanwhile, or forged.
                break;
            }
            left.retain(|id| !page.contains_key(id));
            found.extend(page);
        }
    }
    Ok(found)
}

/// One answer to one filter, without what does not verify and what was not asked for.
pub(crate) async fn fetch(
    client: &mut Client,
    filter: Filter,
    forged: &mut u64,
) -> Result<BTreeMap<EventId, VerifiedEvent>, TransferError> {
    // What a relay makes of search is its own affair; the rest is checked, or a page could lead us astray.
    let check = Filter { search: None, ..filter.clone() };
    let mut sub = client.subscribe(vec![filter]).await?;
    let mut found = BTreeMap::new();
    loop {
        match client.next_update(&mut sub).await? {
            Update::Event(event) if check.matches(event.record().as_ref()) => drop(found.insert(event.id, *event)),
            Update::Event(_) => {}
            Update::Forged { .. } => *forged += 1,
            Update::CaughtUp => break,
            Update::Closed(message) => {
                return Err(ClientError::Refused { url: client.url().to_string(), message }.into());
            }
        }
    }
    client.unsubscribe(sub).await?;
    Ok(found)
}
