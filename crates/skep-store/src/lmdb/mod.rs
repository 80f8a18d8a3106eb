//! The event store on LMDB.
//!
//! Records stand in commit order; each index key ends in `!created_at | first 8 bytes of id | seq`, so that a walk of
//! any index is NIP-01's order and needs no sort. Full sync on commit: two flushes, data pages then the meta page.

mod env;
mod keys;
mod scan;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use heed::{RoTxn, WithoutTls};
use skep_proto::{EventId, EventRef, PubKey, Record, Seq};

use crate::lock::DirLock;
use crate::{EventStore, Op, Outcome, Progress, Scan, StoreError, Visit};
use env::{Db, Env, Table};

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    pub dir: PathBuf,
    /// The most that the file may grow to. Costs address space, not disk.
    pub map_bytes: u64,
    /// `false` (`durability = "relaxed"`): commits are written but not flushed; power loss may take the last ones.
    pub is_durable: bool,
}

impl Options {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), map_bytes: 1 << 40, is_durable: true }
    }
}

/// Numbers that are promised at a time, so that ephemeral events can take numbers without a commit.
const SEQ_BLOCK: u64 = 1 << 20;

/// An open store. Dropping it closes it; nothing needs to be flushed then.
pub struct LmdbStore {
    env: Env,
    tables: [Db; Table::ALL.len()],
    dir: PathBuf,
    map_bytes: u64,
    next_seq: AtomicU64,
    /// Numbers below this are promised on disk.
    reserved: AtomicU64,
    _lock: DirLock,
}

impl LmdbStore {
    pub fn open(options: &Options) -> Result<Self, StoreError> {
        let Options { dir, map_bytes, is_durable } = options;
        env::create_dir(dir)?;
        let lock = DirLock::acquire(dir)?;
        let (env, tables) = env::open(dir, *map_bytes, *is_durable)?;
        let mut store = Self {
            env,
            tables,
            dir: dir.clone(),
            map_bytes: *map_bytes,
            next_seq: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            _lock: lock,
        };
        let first = store.read_reserved()?.max(1);
        store.next_seq = AtomicU64::new(first);
        store.reserved = AtomicU64::new(first);
        Ok(store)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that the data file takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.env.real_disk_size().unwrap_or(0)
    }

    /// How many events are stored.
    pub fn len(&self) -> Result<u64, StoreError> {
        let txn = self.read_txn()?;
        self.db(Table::Events).len(&txn).map_err(|error| self.error(error))
    }

    pub fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.len()? == 0)
    }

    /// Writes a copy without free pages. The store stays open.
    pub fn compact_to(&self, path: &Path) -> Result<u64, StoreError> {
        let file = self
            .env
            .copy_to_path(path, heed::CompactionOption::Enabled)
            .map_err(|error| self.error(error))?;
        file.sync_all().map_err(|cause| StoreError::io("cannot flush", path, cause))?;
        Ok(file.metadata().map_or(0, |meta| meta.len()))
    }

    fn db(&self, table: Table) -> Db {
        self.tables[table as usize]
    }

    fn read_txn(&self) -> Result<RoTxn<'_, WithoutTls>, StoreError> {
        self.env.read_txn().map_err(|error| self.error(error))
    }

    fn error(&self, error: heed::Error) -> StoreError {
        env::classify(error, self.map_bytes)
    }

    fn record_at<'t>(&self, txn: &'t RoTxn<'_, WithoutTls>, seq: Seq) -> Result<Option<EventRef<'t>>, StoreError> {
        let bytes = self.db(Table::Events).get(txn, &seq.0.to_be_bytes()).map_err(|error| self.error(error))?;
        bytes.map(|bytes| EventRef::from_bytes(bytes).ok_or(StoreError::Corrupt("event"))).transpose()
    }

    fn seq_of(&self, txn: &RoTxn<'_, WithoutTls>, id: &EventId) -> Result<Option<Seq>, StoreError> {
        let bytes = self.db(Table::Ids).get(txn, &id.0).map_err(|error| self.error(error))?;
        bytes.map(keys::seq_from).transpose()
    }

    fn read_reserved(&self) -> Result<u64, StoreError> {
        let txn = self.read_txn()?;
        let bytes = self.db(Table::Meta).get(&txn, env::META_SEQ).map_err(|error| self.error(error))?;
        Ok(bytes.map(keys::seq_from).transpose()?.map_or(0, |seq| seq.0))
    }
}

impl std::fmt::Debug for LmdbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LmdbStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl EventStore for LmdbStore {
    fn apply(&self, ops: Vec<Op>) -> Result<Vec<Outcome>, StoreError> {
        write::apply(self, ops)
    }

    fn scan(
        &self,
        scan: &mut Scan,
        budget: usize,
        visit: &mut dyn FnMut(Seq, EventRef<'_>) -> Visit,
    ) -> Result<Progress, StoreError> {
        scan::run(self, scan, budget, visit)
    }

    fn get(&self, id: &EventId) -> Result<Option<(Seq, Record)>, StoreError> {
        let txn = self.read_txn()?;
        let Some(seq) = self.seq_of(&txn, id)? else { return Ok(None) };
        Ok(self.record_at(&txn, seq)?.map(|event| (seq, event.to_record())))
    }

    fn contains(&self, id: &EventId) -> Result<bool, StoreError> {
        let txn = self.read_txn()?;
        Ok(self.seq_of(&txn, id)?.is_some())
    }

    fn read_after(&self, after: Seq, most: usize) -> Result<Vec<(Seq, Record)>, StoreError> {
        let txn = self.read_txn()?;
        let from = after.next().0.to_be_bytes();
        let rows = self.db(Table::Events).range(&txn, &keys::from(&from)).map_err(|error| self.error(error))?;
        rows.take(most)
            .map(|row| {
                let (seq, bytes) = row.map_err(|error| self.error(error))?;
                Ok((keys::seq_from(seq)?, Record::from_bytes(bytes).ok_or(StoreError::Corrupt("event"))?))
            })
            .collect()
    }

    fn next_seq(&self) -> Seq {
        Seq(self.next_seq.load(Ordering::Acquire))
    }

    fn owners(&self) -> Result<Vec<(PubKey, Vec<u8>)>, StoreError> {
        let txn = self.read_txn()?;
        let rows = self.db(Table::Owners).iter(&txn).map_err(|error| self.error(error))?;
        rows.map(|row| {
            let (agent, row) = row.map_err(|error| self.error(error))?;
            Ok((PubKey::from_slice(agent).ok_or(StoreError::Corrupt("owner"))?, row.to_vec()))
        })
        .collect()
    }

    fn policy(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let txn = self.read_txn()?;
        let bytes = self.db(Table::Meta).get(&txn, env::META_POLICY).map_err(|error| self.error(error))?;
        Ok(bytes.map(<[u8]>::to_vec))
    }
}
