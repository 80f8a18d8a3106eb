//! The journal of turns: what exactly a model was given, before it is given, and what came of it.

use rusqlite::{OptionalExtension, Params, Row, params};
use skep_proto::{EventId, PubKey, RawEvent, Timestamp};

use super::inbox::set_state;
use super::outbox::{Hold, drop_held, put, put_as};
use super::{AgentStore, MessageState};
use crate::StoreError;

/// A turn that began.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnRow {
    pub turn: String,
    pub trigger: EventId,
    pub epoch: u64,
    pub attempt: u32,
    pub channel: String,
    /// Who prompted it.
    pub author: PubKey,
    pub started_at: Timestamp,
    /// The text that the model sees, to the letter.
    pub prompt: String,
    /// JSON: what was set aside for it.
    pub reserved: Option<String>,
    pub end: Option<TurnEnd>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TurnEnd {
    pub at: Timestamp,
    /// `answered`, `cancelled`, `failed`, …
    pub outcome: String,
    pub reason: String,
    pub reply: String,
    pub answer: Option<EventId>,
    /// The metric's payload as JSON, when anything was observed.
    pub metric: Option<String>,
    /// JSON: what its budget is charged with. `None`: nothing.
    pub charge: Option<String>,
}

/// The session of a channel, to be taken up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    pub channel: String,
    pub session: String,
    /// JSON: the meter's baseline.
    pub detail: String,
}

const COLUMNS: &str = "turn, trigger_id, epoch, attempt, channel, author, started_at, prompt, ended_at, outcome, reason, \
     reply, answer, metric, reserved, charge";

fn turn(row: &Row<'_>) -> rusqlite::Result<TurnRow> {
    let end = match row.get::<_, Option<Timestamp>>(8)? {
        Some(at) => Some(TurnEnd {
            at,
            outcome: row.get::<_, Option<String>>(9)?.unwrap_or_default(),
            reason: row.get(10)?,
            reply: row.get(11)?,
            answer: row.get::<_, Option<[u8; 32]>>(12)?.map(EventId),
            metric: row.get(13)?,
            charge: row.get(15)?,
        }),
        None => None,
    };
    Ok(TurnRow {
        turn: row.get(0)?,
        trigger: EventId(row.get(1)?),
        epoch: row.get(2)?,
        attempt: row.get(3)?,
        channel: row.get(4)?,
        author: PubKey(row.get(5)?),
        started_at: row.get(6)?,
        prompt: row.get(7)?,
        reserved: row.get(14)?,
        end,
    })
}

impl AgentStore {
    /// Writes what the model will see before it sees it.
    pub fn begin_turn(&self, row: &TurnRow) -> Result<(), StoreError> {
        let insert =
            "INSERT INTO turns (turn, trigger_id, epoch, attempt, channel, author, started_at, prompt, reserved)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
        self.write(|txn| {
            txn.prepare_cached(insert)?
                .execute(params![
                    row.turn,
                    row.trigger.0,
                    row.epoch,
                    row.attempt,
                    row.channel,
                    row.author.0,
                    row.started_at,
                    row.prompt,
                    row.reserved
                ])
                .map(drop)
        })
    }

    /// Ends a turn: its outcome, its reply, what else is to be published, and where its messages stand then, all or
    /// nothing.
    pub fn end_turn(
        &self,
        turn: &str,
        end: &TurnEnd,
        (reply, hold): (&[RawEvent], Hold),
        events: &[RawEvent],
        relays: &[String],
        states: &[(EventId, MessageState)],
    ) -> Result<(), StoreError> {
        self.write(|txn| {
            let update = "UPDATE turns SET ended_at = ?, outcome = ?, reason = ?, reply = ?, answer = ?, metric = ?,
                charge = ? WHERE turn = ?";
            let answer = end.answer.map(|id| id.0);
            let values = params![end.at, end.outcome, end.reason, end.reply, answer, end.metric, end.charge, turn];
            txn.prepare_cached(update)?.execute(values)?;
            reply.iter().try_for_each(|event| put_as(txn, event, relays, end.at, Some((turn, hold))))?;
            events.iter().try_for_each(|event| put(txn, event, relays, end.at))?;
            states.iter().try_for_each(|(message, state)| set_state(txn, message, state).map(drop))
        })
    }

    /// The reply that a turn of this message put into the outbox.
    pub fn answer_to(&self, trigger: &EventId) -> Result<Option<EventId>, StoreError> {
        let select = "SELECT answer FROM turns WHERE trigger_id = ? AND answer IS NOT NULL ORDER BY n DESC LIMIT 1";
        self.read(|db| {
            let id = |row: &Row<'_>| Ok(EventId(row.get(0)?));
            db.prepare_cached(select)?.query_row(params![trigger.0], id).optional()
        })
    }

    /// The message that a reply of ours answers.
    pub fn trigger_of(&self, answer: &EventId) -> Result<Option<EventId>, StoreError> {
        let select = "SELECT trigger_id FROM turns WHERE answer = ?";
        self.read(|db| {
            let id = |row: &Row<'_>| Ok(EventId(row.get(0)?));
            db.prepare_cached(select)?.query_row(params![answer.0], id).optional()
        })
    }

    /// A reply that its relay does not take is no answer: what is held of it is not sent, and its message stands where
    /// `state` says, with what is to be published about that.
    pub fn take_back(
        &self,
        answer: &EventId,
        message: &EventId,
        state: &MessageState,
        events: &[RawEvent],
        relays: &[String],
    ) -> Result<(), StoreError> {
        let update = "UPDATE turns SET answer = NULL, outcome = 'fenced' WHERE answer = ? RETURNING turn";
        self.write(|txn| {
            let turn = |row: &Row<'_>| row.get::<_, String>(0);
            if let Some(turn) = txn.prepare_cached(update)?.query_row(params![answer.0], turn).optional()? {
                drop_held(txn, &turn)?;
            }
            set_state(txn, message, state)?;
            events.iter().try_for_each(|event| put(txn, event, relays, state.at))
        })
    }

    /// Replies that a relay refused for good, with what it said, and that were not taken back yet.
    pub fn refused_answers(&self, relay: &str) -> Result<Vec<(EventId, String)>, StoreError> {
        let select = "SELECT t.answer, d.said FROM deliveries d JOIN turns t ON t.answer = d.id
            WHERE d.state = 'refused' AND d.relay = ? ORDER BY t.n";
        self.read(|db| {
            let mut select = db.prepare_cached(select)?;
            let rows = select.query_map(params![relay], |row| Ok((EventId(row.get(0)?), row.get(1)?)))?;
            rows.collect()
        })
    }

    /// Turns whose replies are held at this relay.
    pub fn held_turns(&self, home: &str) -> Result<Vec<TurnRow>, StoreError> {
        let is_held = "answer IN (SELECT id FROM deliveries WHERE state = 'held' AND relay = ?)";
        self.turns(&format!("WHERE {is_held} ORDER BY n"), [home])
    }

    pub fn newest_turns(&self, most: u32) -> Result<Vec<TurnRow>, StoreError> {
        self.turns("ORDER BY n DESC LIMIT ?", [most])
    }

    /// When the newest turn of a channel began.
    pub fn last_turn_at(&self, channel: &str) -> Result<Option<Timestamp>, StoreError> {
        let select = "SELECT max(started_at) FROM turns WHERE channel = ? AND ended_at IS NOT NULL";
        self.read(|db| db.prepare_cached(select)?.query_row(params![channel], |row| row.get(0)))
    }

    /// Turns of a window, oldest first: for budgets and usage.
    pub fn turns_since(&self, since: Timestamp) -> Result<Vec<TurnRow>, StoreError> {
        self.turns("WHERE started_at >= ? ORDER BY n", [since])
    }

    fn turns(&self, which: &str, params: impl Params) -> Result<Vec<TurnRow>, StoreError> {
        let select = format!("SELECT {COLUMNS} FROM turns {which}");
        self.read(|db| {
            let mut select = db.prepare_cached(&select)?;
            let rows = select.query_map(params, turn)?;
            rows.collect()
        })
    }

    pub fn session(&self, channel: &str) -> Result<Option<SessionRow>, StoreError> {
        let select = "SELECT session, detail FROM sessions WHERE channel = ?";
        self.read(|db| {
            let row = |row: &Row<'_>| {
                Ok(SessionRow { channel: channel.to_owned(), session: row.get(0)?, detail: row.get(1)? })
            };
            db.prepare_cached(select)?.query_row(params![channel], row).optional()
        })
    }

    pub fn sessions(&self) -> Result<Vec<SessionRow>, StoreError> {
        self.read(|db| {
            let mut select = db.prepare_cached("SELECT channel, session, detail FROM sessions ORDER BY channel")?;
            let row =
                |row: &Row<'_>| Ok(SessionRow { channel: row.get(0)?, session: row.get(1)?, detail: row.get(2)? });
            select.query_map([], row)?.collect()
        })
    }

    pub fn set_session(&self, row: &SessionRow) -> Result<(), StoreError> {
        let upsert = "INSERT INTO sessions (channel, session, detail) VALUES (?, ?, ?)
            ON CONFLICT (channel) DO UPDATE SET session = excluded.session, detail = excluded.detail";
        self.write(|txn| txn.prepare_cached(upsert)?.execute(params![row.channel, row.session, row.detail]).map(drop))
    }
}
