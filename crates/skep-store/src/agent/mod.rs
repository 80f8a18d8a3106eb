//! The records of one agent on one machine: what it was sent, what it sends, what it was prompted with.
//!
//! SQLite with `synchronous = FULL`: when a call returns, power may fail. One driver works on it; the commands of a
//! person may read it meanwhile. Rows are facts; what follows from them is `skep-core`'s to say.

mod inbox;
mod outbox;
mod schema;
mod trim;
mod turns;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::StoreError;

pub use inbox::{Message, MessageState};
pub use outbox::{Delivery, Hold, Outgoing};
pub use trim::Kept;
pub use turns::{SessionRow, TurnEnd, TurnRow};

/// How long a statement waits for another process that writes.
const BUSY: Duration = Duration::from_secs(10);

/// An open agent database. Calls block for a commit's time, but no other task of a runtime with several threads.
pub struct AgentStore {
    /// A lock, because the driver and the commands of a person use one connection.
    db: Mutex<Connection>,
    path: PathBuf,
}

impl AgentStore {
    /// Opens or makes the database, mode 0600.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create_private(path)?;
        let mut db = Connection::open(path).map_err(|error| sql(&error))?;
        db.busy_timeout(BUSY).map_err(|error| sql(&error))?;
        schema::prepare(&mut db)?;
        Ok(Self { db: Mutex::new(db), path: path.to_owned() })
    }

    /// Opens records that are there, and never writes: also while their driver runs.
    pub fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags).map_err(|error| sql(&error))?;
        db.busy_timeout(BUSY).map_err(|error| sql(&error))?;
        schema::check(&db)?;
        Ok(Self { db: Mutex::new(db), path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` in one transaction that is durable when this returns.
    fn write<T>(&self, change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        blocking(|| in_transaction(&mut self.db(), change)).map_err(|error| sql(&error))
    }

    fn read<T>(&self, question: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        // A read by itself takes microseconds; one behind a commit waits for the disk.
        let answer = match self.db.try_lock() {
            Ok(db) => question(&db),
            Err(_) => blocking(|| question(&self.db())),
        };
        answer.map_err(|error| sql(&error))
    }
}

impl std::fmt::Debug for AgentStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentStore").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Runs what waits for the disk. A worker of a runtime hands its other tasks to another thread meanwhile: sockets,
/// leases and the relay of the process do not wait for an agent's commit.
pub(crate) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Runs `change` in one transaction. Immediate: one that reads first could not become a writer beside another process.
pub(crate) fn in_transaction<T>(
    db: &mut Connection,
    change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let txn = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let made = change(&txn)?;
    txn.commit()?;
    Ok(made)
}

/// SQLite would make the file with the process's umask.
pub(crate) fn create_private(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    if path.exists() {
        return Ok(());
    }
    let made = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    made.map(drop).map_err(|cause| StoreError::io("cannot create", path, cause))
}

fn sql(error: &rusqlite::Error) -> StoreError {
    sql_of("agent database", error)
}

/// SQLite's error as ours.
pub(crate) fn sql_of(database: &'static str, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::DiskFull,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(database),
        _ => StoreError::Other(error.to_string()),
    }
}
