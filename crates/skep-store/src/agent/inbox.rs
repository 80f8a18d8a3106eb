//! What an agent was sent, each message once, with its state.

use rusqlite::{OptionalExtension, Params, Row, Transaction, params};
use skep_proto::{EventId, RawEvent, Timestamp};

use super::AgentStore;
use super::outbox::put;
use crate::StoreError;

/// A message as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Order of arrival on this machine.
    pub n: u64,
    pub event: RawEvent,
    pub channel: String,
    pub received_at: Timestamp,
    /// The relay that brought it first.
    pub relay: String,
    pub state: MessageState,
}

/// Where a message stands. The words are `skep_core::queue`'s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageState {
    pub name: String,
    pub at: Timestamp,
    /// Nothing more will happen to it by itself.
    pub is_over: bool,
    /// JSON: reason, attempts, turn, answer, as far as there are.
    pub detail: String,
}

const COLUMNS: &str = "n, event, channel, received_at, relay, state, state_at, is_over, detail";

fn message(row: &Row<'_>) -> rusqlite::Result<Option<Message>> {
    let event: String = row.get(1)?;
    // What we stored we can read; a row that somebody altered is passed over.
    let Ok(event) = serde_json::from_str(&event) else { return Ok(None) };
    let state = MessageState { name: row.get(5)?, at: row.get(6)?, is_over: row.get(7)?, detail: row.get(8)? };
    let message =
        Message { n: row.get(0)?, event, channel: row.get(2)?, received_at: row.get(3)?, relay: row.get(4)?, state };
    Ok(Some(message))
}

/// `false`: there is no such message.
pub(super) fn set_state(txn: &Transaction<'_>, id: &EventId, state: &MessageState) -> rusqlite::Result<bool> {
    let update = "UPDATE inbox SET state = ?, state_at = ?, is_over = ?, detail = ? WHERE id = ?";
    let values = params![state.name, state.at, state.is_over, state.detail, id.0];
    Ok(txn.prepare_cached(update)?.execute(values)? == 1)
}

impl AgentStore {
    /// Keeps a message. `false`: it is here already.
    pub fn receive(
        &self,
        event: &RawEvent,
        channel: &str,
        relay: &str,
        now: Timestamp,
        state: &MessageState,
    ) -> Result<bool, StoreError> {
        let insert = "INSERT OR IGNORE INTO inbox
            (id, channel, author, created_at, received_at, relay, event, state, state_at, is_over, detail)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        self.write(|txn| {
            let values = params![
                event.id.0,
                channel,
                event.pubkey.0,
                event.created_at,
                now,
                relay,
                event.to_json(),
                state.name,
                state.at,
                state.is_over,
                state.detail
            ];
            Ok(txn.prepare_cached(insert)?.execute(values)? == 1)
        })
    }

    /// Whether this was received, also if the message itself was trimmed since.
    pub fn has_message(&self, id: &EventId) -> Result<bool, StoreError> {
        let select = "SELECT 1 FROM inbox WHERE id = ?1 UNION ALL SELECT 1 FROM acted WHERE id = ?1";
        self.read(|db| db.prepare_cached(select)?.exists(params![id.0]))
    }

    /// `false`: there is no such message.
    pub fn set_state(&self, id: &EventId, state: &MessageState) -> Result<bool, StoreError> {
        self.write(|txn| set_state(txn, id, state))
    }

    /// Where a message stands now, with what is to be published about that: both or neither.
    pub fn set_state_and_tell(
        &self,
        id: &EventId,
        state: &MessageState,
        events: &[RawEvent],
        relays: &[String],
    ) -> Result<(), StoreError> {
        self.write(|txn| {
            set_state(txn, id, state)?;
            events.iter().try_for_each(|event| put(txn, event, relays, state.at))
        })
    }

    pub fn message(&self, id: &EventId) -> Result<Option<Message>, StoreError> {
        let select = format!("SELECT {COLUMNS} FROM inbox WHERE id = ?");
        let found = self.read(|db| db.prepare_cached(&select)?.query_row(params![id.0], message).optional())?;
        Ok(found.flatten())
    }

    /// Messages that are not over, in order of arrival.
    pub fn open_messages(&self) -> Result<Vec<Message>, StoreError> {
        self.messages("WHERE is_over = 0 ORDER BY n", [])
    }

    /// The newest messages, newest first.
    pub fn newest_messages(&self, most: u32) -> Result<Vec<Message>, StoreError> {
        self.messages("ORDER BY n DESC LIMIT ?", [most])
    }

    /// The newest messages in one state, newest first.
    pub fn messages_in(&self, state: &str, most: u32) -> Result<Vec<Message>, StoreError> {
        self.messages("WHERE state = ? ORDER BY n DESC LIMIT ?", params![state, most])
    }

    /// When a message came, or went on, last.
    pub fn changed_at(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read(|db| db.query_row("SELECT max(state_at) FROM inbox", [], |row| row.get(0)))
    }

    /// The ids and times of what came since, for reconciliation with a relay.
    pub fn message_ids(&self, since: Timestamp) -> Result<Vec<(Timestamp, EventId)>, StoreError> {
        self.read(|db| {
            let mut select = db.prepare_cached("SELECT created_at, id FROM inbox WHERE created_at >= ?")?;
            let rows = select.query_map(params![since], |row| Ok((row.get(0)?, EventId(row.get(1)?))))?;
            rows.collect()
        })
    }

    fn messages(&self, which: &str, params: impl Params) -> Result<Vec<Message>, StoreError> {
        let select = format!("SELECT {COLUMNS} FROM inbox {which}");
        self.read(|db| {
            let mut select = db.prepare_cached(&select)?;
            let rows = select.query_map(params, message)?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// Up to when everything that a relay had was fetched; 0 for a relay that was never asked.
    pub fn cursor(&self, relay: &str) -> Result<Timestamp, StoreError> {
        let select = "SELECT through FROM cursors WHERE relay = ?";
        let found =
            self.read(|db| db.prepare_cached(select)?.query_row(params![relay], |row| row.get(0)).optional())?;
        Ok(found.unwrap_or(0))
    }

    /// Moves a cursor; never back.
    pub fn advance_cursor(&self, relay: &str, through: Timestamp) -> Result<(), StoreError> {
        let upsert = "INSERT INTO cursors (relay, through) VALUES (?, ?)
            ON CONFLICT (relay) DO UPDATE SET through = max(through, excluded.through)";
        self.write(|txn| txn.prepare_cached(upsert)?.execute(params![relay, through]).map(drop))
    }

    /// Takes the right to act on a control event: `true` once for each id, also after a restart.
    pub fn act_once(&self, id: &EventId, now: Timestamp) -> Result<bool, StoreError> {
        let insert = "INSERT OR IGNORE INTO acted (id, at) VALUES (?, ?)";
        self.write(|txn| Ok(txn.prepare_cached(insert)?.execute(params![id.0, now])? == 1))
    }

    /// Whether [`Self::act_once`] was asked for this id before.
    pub fn has_acted(&self, id: &EventId) -> Result<bool, StoreError> {
        self.read(|db| db.prepare_cached("SELECT 1 FROM acted WHERE id = ?")?.exists(params![id.0]))
    }

    /// How many messages are in each state.
    pub fn count_states(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.read(|db| {
            let mut select = db.prepare_cached("SELECT state, count(*) FROM inbox GROUP BY state ORDER BY state")?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
    }

    /// A named fact of this agent (paused since when and why, the next control number, …).
    pub fn fact(&self, name: &str) -> Result<Option<String>, StoreError> {
        let select = "SELECT value FROM facts WHERE name = ?";
        self.read(|db| db.prepare_cached(select)?.query_row(params![name], |row| row.get(0)).optional())
    }

    /// `None` takes the fact away.
    pub fn set_fact(&self, name: &str, value: Option<&str>) -> Result<(), StoreError> {
        self.write(|txn| match value {
            Some(value) => {
                let upsert = "INSERT INTO facts (name, value) VALUES (?, ?)
                    ON CONFLICT (name) DO UPDATE SET value = excluded.value";
                txn.prepare_cached(upsert)?.execute(params![name, value]).map(drop)
            }
            None => txn.prepare_cached("DELETE FROM facts WHERE name = ?")?.execute(params![name]).map(drop),
        })
    }
}
