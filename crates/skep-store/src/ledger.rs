//! One account for all agents of a home, whatever processes they run in: what each turn set aside, and what it cost.
//!
//! SQLite with a write-ahead log and `synchronous = FULL`. Whoever asks reads, decides and writes in one transaction that
//! no other can begin meanwhile, so two processes never both take the last of something. What an entry means is
//! `skep-core`'s to say.
//! Must not: wait for long (whoever asks is an agent's loop), or be made anew when it cannot be read.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use skep_proto::Timestamp;

use crate::StoreError;
use crate::agent::{blocking, create_private};

/// How long a transaction waits for another process's.
const BUSY: Duration = Duration::from_secs(2);

/// The number of this form.
const FORMAT: u32 = 1;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entries (
    turn    TEXT PRIMARY KEY,
    began   INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    is_open INTEGER NOT NULL,
    detail  TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS entries_at ON entries (at);
CREATE TABLE IF NOT EXISTS told (
    day  INTEGER NOT NULL,
    what TEXT NOT NULL,
    PRIMARY KEY (day, what)
) STRICT;
PRAGMA user_version = 1;";

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub turn: String,
    pub began: Timestamp,
    /// When it was written last.
    pub at: Timestamp,
    /// It was not seen to end.
    pub is_open: bool,
    pub detail: String,
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
        let open = || {
            let db = Connection::open(path)?;
            db.busy_timeout(BUSY)?;
            db.pragma_update(None, "journal_mode", "WAL")?;
            db.pragma_update(None, "synchronous", "FULL")?;
            Ok::<_, rusqlite::Error>(db)
        };
        let db = open().map_err(|error| sql(&error))?;
        let found: u32 = db.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|error| sql(&error))?;
        match found {
            0 => db.execute_batch(&format!("BEGIN IMMEDIATE;{SCHEMA}COMMIT;")).map_err(|error| sql(&error))?,
            FORMAT => {}
            found => return Err(StoreError::Format { found, known: FORMAT }),
        }
        Ok(Self { db })
    }

    /// Gives the entries that were written or begun since then, and all that are open, the oldest first, to `decide`, and
    /// writes what it says, in one transaction that is durable when this returns. What is older is forgotten.
    pub fn change<T>(
        &mut self,
        since: Timestamp,
        decide: impl FnOnce(&[Entry]) -> (T, Option<Write>),
    ) -> Result<T, StoreError> {
        let run = |db: &mut Connection| {
            let txn = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let (answer, write) = decide(&entries(&txn, since)?);
            match write {
                Some(Write::Put(entry)) => {
                    let put =
                        "INSERT OR REPLACE INTO entries (turn, began, at, is_open, detail) VALUES (?, ?, ?, ?, ?)";
                    let Entry { turn, began, at, is_open, detail } = entry;
                    txn.execute(put, params![turn, began, at, is_open, detail])?;
                    txn.execute("DELETE FROM entries WHERE at < ?1 AND began < ?1 AND is_open = 0", params![since])?;
                }
                Some(Write::Remove(turn)) => drop(txn.execute("DELETE FROM entries WHERE turn = ?", params![turn])?),
                None => {}
            }
            txn.commit()?;
            Ok(answer)
        };
        blocking(|| run(&mut self.db)).map_err(|error: rusqlite::Error| sql(&error))
    }

    /// Whether nobody was told this on that day before; from now on somebody was.
    pub fn tell_once(&mut self, day: u64, what: &str) -> Result<bool, StoreError> {
        let run = |db: &mut Connection| {
            let txn = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            txn.execute("DELETE FROM told WHERE day < ?", params![day])?;
            let is_new = txn.execute("INSERT OR IGNORE INTO told (day, what) VALUES (?, ?)", params![day, what])? > 0;
            txn.commit()?;
            Ok(is_new)
        };
        blocking(|| run(&mut self.db)).map_err(|error: rusqlite::Error| sql(&error))
    }
}

fn entries(txn: &Transaction<'_>, since: Timestamp) -> rusqlite::Result<Vec<Entry>> {
    let select = "SELECT turn, began, at, is_open, detail FROM entries
        WHERE at >= ?1 OR began >= ?1 OR is_open = 1 ORDER BY began, turn";
    let mut select = txn.prepare_cached(select)?;
    let rows = select.query_map(params![since], |row| {
        Ok(Entry { turn: row.get(0)?, began: row.get(1)?, at: row.get(2)?, is_open: row.get(3)?, detail: row.get(4)? })
    })?;
    rows.collect()
}

fn sql(error: &rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::DiskFull,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt("budget.db"),
        _ => StoreError::Other(error.to_string()),
    }
}
