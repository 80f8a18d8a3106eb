//! The tables, and how an older file becomes a newer one.

use rusqlite::Connection;

use super::sql;
use crate::StoreError;

/// `user_version` of the newest schema: the number of steps below.
const STEPS: [&str; 3] = [
    "
CREATE TABLE inbox (
    n          INTEGER PRIMARY KEY AUTOINCREMENT,
    id         BLOB NOT NULL UNIQUE,
    channel    TEXT NOT NULL,
    author     BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    relay      TEXT NOT NULL,
    event      TEXT NOT NULL,
    state      TEXT NOT NULL,
    state_at   INTEGER NOT NULL,
    is_over    INTEGER NOT NULL DEFAULT 0,
    detail     TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE INDEX inbox_open ON inbox (is_over, n);

CREATE TABLE cursors (
    relay TEXT PRIMARY KEY,
    through INTEGER NOT NULL
) STRICT;

CREATE TABLE outbox (
    n         INTEGER PRIMARY KEY AUTOINCREMENT,
    id        BLOB NOT NULL UNIQUE,
    event     TEXT NOT NULL,
    is_passing INTEGER NOT NULL,
    made_at   INTEGER NOT NULL
) STRICT;
CREATE TABLE deliveries (
    id      BLOB NOT NULL REFERENCES outbox (id) ON DELETE CASCADE,
    relay   TEXT NOT NULL,
    state   TEXT NOT NULL,
    tries   INTEGER NOT NULL DEFAULT 0,
    due_ms  INTEGER NOT NULL DEFAULT 0,
    said    TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (id, relay)
) STRICT;
CREATE INDEX deliveries_due ON deliveries (state, relay, due_ms);

CREATE TABLE turns (
    n          INTEGER PRIMARY KEY AUTOINCREMENT,
    turn       TEXT NOT NULL UNIQUE,
    trigger_id BLOB NOT NULL,
    epoch      INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    channel    TEXT NOT NULL,
    author     BLOB NOT NULL,
    started_at INTEGER NOT NULL,
    prompt     TEXT NOT NULL,
    ended_at   INTEGER,
    outcome    TEXT,
    reason     TEXT NOT NULL DEFAULT '',
    reply      TEXT NOT NULL DEFAULT '',
    answer     BLOB,
    metric     TEXT
) STRICT;
CREATE INDEX turns_trigger ON turns (trigger_id);
CREATE INDEX turns_answer ON turns (answer);
CREATE INDEX turns_started ON turns (started_at);

CREATE TABLE sessions (
    channel TEXT PRIMARY KEY,
    session TEXT NOT NULL,
    detail  TEXT NOT NULL
) STRICT;

CREATE TABLE acted (
    id BLOB PRIMARY KEY,
    at INTEGER NOT NULL
) STRICT;

CREATE TABLE facts (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
",
    "
-- The turn whose lease must be ended before this is sent.
ALTER TABLE outbox ADD COLUMN held_by TEXT;
-- JSON: what was set aside for a turn, and what it was charged with in the end.
ALTER TABLE turns ADD COLUMN reserved TEXT;
ALTER TABLE turns ADD COLUMN charge TEXT;
",
    "
-- A look at how an agent stands, and what is trimmed, must not walk the texts of all messages.
CREATE INDEX inbox_state ON inbox (state, n);
CREATE INDEX inbox_state_at ON inbox (state_at);
CREATE INDEX turns_channel ON turns (channel, n);
CREATE INDEX outbox_held ON outbox (held_by) WHERE held_by IS NOT NULL;
",
];

/// Refuses a file that this program cannot read as it is.
pub(super) fn check(db: &Connection) -> Result<(), StoreError> {
    let found: u32 = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(|error| sql(&error))?;
    let known = STEPS.len() as u32;
    if found > known {
        return Err(StoreError::Format { found, known });
    }
    if found < known {
        return Err(StoreError::Other("these records are of an older version; start the agent once".into()));
    }
    Ok(())
}

/// Brings a file to the newest schema, or says that it is newer than this program.
pub(super) fn prepare(db: &mut Connection) -> Result<(), StoreError> {
    let failed = |error: rusqlite::Error| sql(&error);
    db.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    db.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    db.pragma_update(None, "foreign_keys", true).map_err(failed)?;
    let txn = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
    let found: u32 = txn.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let known = STEPS.len() as u32;
    if found > known {
        return Err(StoreError::Format { found, known });
    }
    for step in &STEPS[found as usize..] {
        txn.execute_batch(step).map_err(failed)?;
    }
    txn.pragma_update(None, "user_version", known).map_err(failed)?;
    txn.commit().map_err(failed)
}
