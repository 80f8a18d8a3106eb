//! What an agent publishes: kept until every relay that is to have it has said its word.

use rusqlite::{Transaction, params};
use skep_proto::{EventId, RawEvent, Timestamp};

use super::AgentStore;
use crate::StoreError;

/// An event that waits for a relay.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    pub event: RawEvent,
    /// Ephemeral: worth nothing later, dropped first.
    pub is_passing: bool,
    /// Part of a turn's reply.
    pub is_reply: bool,
    /// Failed tries so far.
    pub tries: u32,
}

/// What became of one event at one relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    Taken,
    /// For good: the relay will not have it.
    Refused(String),
    /// Try again at this time, milliseconds since 1970.
    Later {
        due_ms: u64,
        said: String,
    },
}

/// What a turn's reply waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    Nothing,
    /// At the other relays, until the first one has taken the whole of it.
    Others,
    /// Until [`AgentStore::release_held`].
    All,
}

pub(super) fn put(txn: &Transaction<'_>, event: &RawEvent, relays: &[String], now: Timestamp) -> rusqlite::Result<()> {
    put_as(txn, event, relays, now, None)
}

/// With the turn that must let it go before it is sent.
pub(super) fn put_as(
    txn: &Transaction<'_>,
    event: &RawEvent,
    relays: &[String],
    now: Timestamp,
    held: Option<(&str, Hold)>,
) -> rusqlite::Result<()> {
    let held_by = held.map(|(turn, _)| turn);
    let sent_to = match held.map(|(_, hold)| hold) {
        None | Some(Hold::Nothing) => relays.len(),
        Some(Hold::Others) => 1,
        Some(Hold::All) => 0,
    };
    let is_passing = event.kind.class() == skep_proto::kind::Class::Ephemeral;
    let insert = "INSERT OR IGNORE INTO outbox (id, event, is_passing, made_at, held_by) VALUES (?, ?, ?, ?, ?)";
    txn.prepare_cached(insert)?.execute(params![event.id.0, event.to_json(), is_passing, now, held_by])?;
    let mut deliver = txn.prepare_cached("INSERT OR IGNORE INTO deliveries (id, relay, state) VALUES (?, ?, ?)")?;
    relays.iter().enumerate().try_for_each(|(n, relay)| {
        let state = if n < sent_to { "waiting" } else { "held" };
        deliver.execute(params![event.id.0, relay, state]).map(drop)
    })
}

/// What a turn held back is not to be sent.
pub(super) fn drop_held(txn: &Transaction<'_>, turn: &str) -> rusqlite::Result<()> {
    let deliveries = "DELETE FROM deliveries WHERE state = 'held' AND id IN (SELECT id FROM outbox WHERE held_by = ?)";
    txn.prepare_cached(deliveries)?.execute(params![turn])?;
    let events = "DELETE FROM outbox WHERE held_by = ?
        AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.id = outbox.id)";
    txn.prepare_cached(events)?.execute(params![turn]).map(drop)
}

impl AgentStore {
    /// Keeps events to be sent.
    pub fn enqueue(&self, events: &[RawEvent], relays: &[String], now: Timestamp) -> Result<(), StoreError> {
        self.write(|txn| events.iter().try_for_each(|event| put(txn, event, relays, now)))
    }

    /// Forgets an event that is to be sent; the relays that did not have their word on it yet are sent this one.
    pub fn replace_outgoing(&self, old: &EventId, new: &RawEvent, now: Timestamp) -> Result<(), StoreError> {
        let select = "SELECT relay FROM deliveries WHERE id = ? AND state IN ('waiting', 'held')";
        self.write(|txn| {
            let mut select = txn.prepare_cached(select)?;
            let relays = select.query_map(params![old.0], |row| row.get(0))?;
            let relays = relays.collect::<rusqlite::Result<Vec<String>>>()?;
            txn.prepare_cached("DELETE FROM outbox WHERE id = ?")?.execute(params![old.0])?;
            if relays.is_empty() { Ok(()) } else { put(txn, new, &relays, now) }
        })
    }

    /// What a turn held back may be sent.
    pub fn release_held(&self, turn: &str) -> Result<(), StoreError> {
        let update = "UPDATE deliveries SET state = 'waiting'
            WHERE state = 'held' AND id IN (SELECT id FROM outbox WHERE held_by = ?)";
        self.write(|txn| txn.prepare_cached(update)?.execute(params![turn]).map(drop))
    }

    /// What waits for another relay than `home` may be sent; without leases (`None`) all of it: no other word is to come.
    pub fn release_strays(&self, home: Option<&str>) -> Result<(), StoreError> {
        let update = "UPDATE deliveries SET state = 'waiting' WHERE state = 'held' AND id IN (
            SELECT o.id FROM outbox o JOIN turns t ON t.turn = o.held_by
            WHERE NOT EXISTS (SELECT 1 FROM deliveries h WHERE h.id = t.answer AND h.relay = ?))";
        self.write(|txn| txn.prepare_cached(update)?.execute(params![home]).map(drop))
    }

    /// What is to be sent to a relay now, in the order it was made.
    pub fn due(&self, relay: &str, now_ms: u64, most: u32) -> Result<Vec<Outgoing>, StoreError> {
        let select =
            "SELECT o.event, o.is_passing, o.held_by IS NOT NULL, d.tries FROM deliveries d JOIN outbox o USING (id)
            WHERE d.state = 'waiting' AND d.relay = ? AND d.due_ms <= ? ORDER BY o.n LIMIT ?";
        self.read(|db| {
            let mut select = db.prepare_cached(select)?;
            let rows = select.query_map(params![relay, now_ms, most], |row| {
                let event: String = row.get(0)?;
                let (is_passing, is_reply, tries) = (row.get(1)?, row.get(2)?, row.get(3)?);
                Ok(serde_json::from_str(&event).ok().map(|event| Outgoing { event, is_passing, is_reply, tries }))
            })?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// When the next event for a relay is due, milliseconds since 1970.
    pub fn next_due_ms(&self, relay: &str) -> Result<Option<u64>, StoreError> {
        let select = "SELECT min(due_ms) FROM deliveries WHERE state = 'waiting' AND relay = ?";
        self.read(|db| db.prepare_cached(select)?.query_row(params![relay], |row| row.get(0)))
    }

    /// Records a relay's word. `true`: others may be sent what waited for it.
    pub fn delivered(&self, id: &EventId, relay: &str, delivery: &Delivery) -> Result<bool, StoreError> {
        let update =
            "UPDATE deliveries SET state = ?, said = ?, due_ms = ?, tries = tries + ? WHERE id = ? AND relay = ?";
        let (state, said, due_ms, tries) = match delivery {
            Delivery::Taken => ("taken", "", 0, 0),
            Delivery::Refused(said) => ("refused", said.as_str(), 0, 1),
            Delivery::Later { due_ms, said } => ("waiting", said.as_str(), *due_ms, 1),
        };
        // The last event of a reply is taken with its turn's lease, and after the others.
        let release = "UPDATE deliveries SET state = 'waiting' WHERE state = 'held' AND id IN (
            SELECT o.id FROM outbox o JOIN turns t ON t.turn = o.held_by WHERE t.answer = ?)";
        self.write(|txn| {
            txn.prepare_cached(update)?.execute(params![state, said, due_ms, tries, id.0, relay])?;
            Ok(*delivery == Delivery::Taken && txn.prepare_cached(release)?.execute(params![id.0])? > 0)
        })
    }

    /// How many events wait, and how many were refused for good.
    pub fn outbox_len(&self) -> Result<(u64, u64), StoreError> {
        let select = "SELECT count(*) FILTER (WHERE state = 'waiting'), count(*) FILTER (WHERE state = 'refused')
            FROM deliveries";
        self.read(|db| db.prepare_cached(select)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?))))
    }

    /// Forgets what no relay needs any more, and passing events beyond the bound, oldest first. Never a reply.
    pub fn trim_outbox(&self, most: u64, older_than: Timestamp) -> Result<u64, StoreError> {
        self.write(|txn| {
            let done = txn.execute(
                "DELETE FROM outbox WHERE made_at < ?
                    AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.id = outbox.id AND d.state IN ('waiting', 'held'))",
                params![older_than],
            )?;
            let waiting: u64 = txn.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0))?;
            let dropped = txn.execute(
                "DELETE FROM outbox WHERE n IN (SELECT n FROM outbox WHERE is_passing ORDER BY n LIMIT ?)",
                params![waiting.saturating_sub(most)],
            )?;
            Ok((done + dropped) as u64)
        })
    }
}
