//! One account for all agents of a home, whatever processes they run in: what each turn set aside, and what it cost.
//!
//! SQLite with a write-ahead log and `synchronous = FULL`. Whoever asks reads, decides and writes in one transaction that
//! no other can begin meanwhile, so two processes never both take the last of something. What an entry means is
//! `skep-core`'s to say.
//! Must not: wait for long (whoever asks is an agent's loop), or be made anew when it cannot be read.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use skep_proto::{Timestamp, limits};

use crate::StoreError;
use crate::agent::{blocking, create_private, in_transaction, sql_of};

/// How long a transaction waits for another process's.
const BUSY: Duration = Duration::from_secs(2);

/// The number of this form.
const FORMAT: u32 = 2;

const SCHEMA: &str = "
CREATE TABLE entries (
    turn     TEXT PRIMARY KEY,
    began    INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    is_open  INTEGER NOT NULL,
    detail   TEXT NOT NULL,
    task     TEXT,
    is_known INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX entries_at ON entries (at);
CREATE TABLE told (
    day  INTEGER NOT NULL,
    what TEXT NOT NULL,
    PRIMARY KEY (day, what)
) STRICT;
PRAGMA user_version = 2;";

/// From the form that forgot each day what turns cost.
const FROM_1: &str = "
ALTER TABLE entries ADD COLUMN task TEXT;
ALTER TABLE entries ADD COLUMN is_known INTEGER NOT NULL DEFAULT 0;
PRAGMA user_version = 2;";

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub turn: String,
    pub began: Timestamp,
    /// When it was written last.
    pub at: Timestamp,
    /// It was not seen to end.
    pub is_open: bool,
    pub task: Option<String>,
    /// It ended, and says what turns cost: the newest of them are kept longer than the others.
    pub is_known: bool,
    pub detail: String,
}

/// Which entries matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window<'a> {
    /// Those that ended, by when they began or were written.
    pub since: Timestamp,
    /// Those that are open, by when they began; not later than `since`.
    pub open_since: Timestamp,
    /// The newest that say what turns cost, of all and of this task, whatever their age.
    pub task: Option<&'a str>,
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// In place of the one of its turn.
    Put(Entry),
    Remove(String),
}

/// An open ledger.
pub struct Ledger {
    db: Connection,
}

impl Ledger {
    /// Opens or makes it, mode 0600.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create_private(path)?;
        // It may wait for another process that opens it, as each transaction may.
        let (db, found) = blocking(|| prepare(path)).map_err(|error| sql(&error))?;
        if found != FORMAT {
            return Err(StoreError::Format { found, known: FORMAT });
        }
        Ok(Self { db })
    }

    /// Gives the entries of the window, the oldest first, to `decide`, and writes what it says, in one transaction that is
    /// durable when this returns. Where something is put, what lies outside of every window is forgotten.
    pub fn change<T>(
        &mut self,
        window: &Window<'_>,
        decide: impl FnOnce(&[Entry]) -> (T, Vec<Write>),
    ) -> Result<T, StoreError> {
        self.write(|txn| {
            let (answer, writes) = decide(&entries(txn, window)?);
            for write in writes {
                match write {
                    Write::Put(entry) => put(txn, window, &entry)?,
                    Write::Remove(turn) => drop(txn.execute("DELETE FROM entries WHERE turn = ?", params![turn])?),
                }
            }
            Ok(answer)
        })
    }

    /// Whether nobody was told this on that day before; from now on somebody was.
    pub fn tell_once(&mut self, day: u64, what: &str) -> Result<bool, StoreError> {
        self.write(|txn| {
            txn.execute("DELETE FROM told WHERE day < ?", params![day])?;
            Ok(txn.execute("INSERT OR IGNORE INTO told (day, what) VALUES (?, ?)", params![day, what])? > 0)
        })
    }

    fn write<T>(&mut self, change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        blocking(|| in_transaction(&mut self.db, change)).map_err(|error| sql(&error))
    }
}

/// Opens it in the newest form that can be made of it; the form that it has.
fn prepare(path: &Path) -> rusqlite::Result<(Connection, u32)> {
    let mut db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    let form = |db: &Connection| db.query_row("PRAGMA user_version", [], |row| row.get(0));
    let mut found: u32 = form(&db)?;
    if found < FORMAT {
        let txn = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have made it meanwhile.
        match form(&txn)? {
            0 => txn.execute_batch(SCHEMA)?,
            1 => txn.execute_batch(FROM_1)?,
            _ => {}
        }
        found = form(&txn)?;
        txn.commit()?;
    }
    Ok((db, found))
}

fn entries(txn: &Transaction<'_>, window: &Window<'_>) -> rusqlite::Result<Vec<Entry>> {
    let select = "SELECT turn, began, at, is_open, task, is_known, detail FROM entries
        WHERE (is_open = 0 AND (at >= ?1 OR began >= ?1)) OR (is_open = 1 AND began >= ?2)
            OR turn IN (SELECT turn FROM entries WHERE is_known = 1 ORDER BY at DESC, turn LIMIT ?3)
            OR turn IN (SELECT turn FROM entries WHERE is_known = 1 AND task = ?4 ORDER BY at DESC, turn LIMIT ?3)
        ORDER BY began, turn";
    let mut select = txn.prepare_cached(select)?;
    let Window { since, open_since, task } = window;
    let rows = select.query_map(params![since, open_since, limits::ESTIMATE_TURNS_MAX, task], |row| {
        Ok(Entry {
            turn: row.get(0)?,
            began: row.get(1)?,
            at: row.get(2)?,
            is_open: row.get(3)?,
            task: row.get(4)?,
            is_known: row.get(5)?,
            detail: row.get(6)?,
        })
    })?;
    rows.collect()
}

/// Writes an entry, and forgets what no window has: of the entry's task the newest are kept, and so many of all tasks.
fn put(txn: &Transaction<'_>, window: &Window<'_>, entry: &Entry) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO entries (turn, began, at, is_open, task, is_known, detail)
        VALUES (?, ?, ?, ?, ?, ?, ?)";
    let Entry { turn, began, at, is_open, task, is_known, detail } = entry;
    txn.execute(insert, params![turn, began, at, is_open, task, is_known, detail])?;
    let forget =
        "DELETE FROM entries WHERE (is_open = 1 AND began < ?2) OR (is_open = 0 AND at < ?1 AND began < ?1 AND (
            is_known = 0
            OR (task IS ?3 AND turn NOT IN
                (SELECT turn FROM entries WHERE is_known = 1 AND task IS ?3 ORDER BY at DESC, turn LIMIT ?4))
            OR at < (SELECT at FROM entries WHERE is_known = 1 ORDER BY at DESC LIMIT 1 OFFSET ?5)))";
    let Window { since, open_since, .. } = window;
    let most = (limits::ESTIMATE_TURNS_MAX, limits::LEDGER_KEPT_MAX);
    txn.execute(forget, params![since, open_since, task, most.0, most.1]).map(drop)
}

fn sql(error: &rusqlite::Error) -> StoreError {
    sql_of("budget.db", error)
}
