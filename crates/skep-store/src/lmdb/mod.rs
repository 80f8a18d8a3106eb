//! The event store: a log in front of LMDB.
//!
//! A batch is decided against everything that is known, appended to the log with one flush, and acknowledged; its rows
//! wait in memory until enough are together, then go to LMDB in sorted transactions. So a commit costs one
//! sequential write, and the random pages of the indexes are written once for thousands of events.
//!
//! Index keys end in `!created_at | first 6 bytes of id | kind | seq`, so that a walk of any index is NIP-01's order.
//!
//! `layers` rows in memory · `wal` the log · `flush` into LMDB · `write` the rules of storing · `scan` queries ·
//! `keys` what is indexed · `env` opening.

mod env;
mod flush;
mod keys;
mod layers;
mod scan;
mod wal;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use skep_proto::{EventId, PubKey, Record, Seq};

use crate::lock::DirLock;
use crate::{EventStore, Op, Outcome, Progress, Scan, StoreError, Visitor};
use env::{Db, Env, Table};
use layers::{Layer, Layers, View};
use rustix::io::Errno;
use wal::Wal;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    pub dir: PathBuf,
    /// The most that the file may grow to. Costs address space, not disk.
    pub map_bytes: u64,
    /// `false` (`durability = "relaxed"`): the log is not flushed at each commit; power loss may take what is not in
    /// LMDB yet, the last seconds.
    pub is_durable: bool,
}

impl Options {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), map_bytes: 1 << 40, is_durable: true }
    }
}

/// Numbers that are promised at a time, so that ephemeral events can take numbers without a commit.
const SEQ_BLOCK: u64 = 1 << 20;

/// An open store. Dropping it carries the log into LMDB; killing the process leaves that to the next opening.
pub struct LmdbStore {
    inner: Arc<Inner>,
    flusher: Option<JoinHandle<()>>,
}

struct Inner {
    env: Env,
    tables: [Db; Table::ALL.len()],
    dir: PathBuf,
    map_bytes: u64,
    is_durable: bool,
    /// A lock, because queries read layers while the writer adds to one. Readers hold it for a slice, and let a writer
    /// go first that waits: with the standard library's lock whoever takes it again at once is faster.
    layers: RwLock<Layers>,
    /// The log, owned by whoever appends. A lock, because the flusher starts a new one when nothing happens.
    wal: Mutex<Wal>,
    /// The logs of the frozen layer: one, or several after a start.
    frozen_from: AtomicU64,
    frozen_generation: AtomicU64,
    next_seq: AtomicU64,
    /// Numbers below this are promised on disk.
    reserved: AtomicU64,
    signal: flush::Signal,
    /// Held for a flush: the flusher's, or one that somebody waits for. With why the last one failed.
    flush: Mutex<Option<StoreError>>,
    _lock: DirLock,
}

impl LmdbStore {
    pub fn open(options: &Options) -> Result<Self, StoreError> {
        let Options { dir, map_bytes, is_durable } = options;
        env::create_dir(dir)?;
        let lock = DirLock::acquire(dir)?;
        let (env, tables) = env::open(dir, *map_bytes)?;
        let flushed = env::read_u64(&env, &tables, env::META_GENERATION, *map_bytes)?;
        wal::remove_up_to(dir, flushed)?;
        let generations = wal::generations(dir)?;
        let oldest = generations.first().copied().unwrap_or(flushed);
        let newest = generations.last().copied().unwrap_or(flushed);
        let mut layer = Layer::default();
        generations.into_iter().try_for_each(|generation| wal::replay(dir, generation, &mut layer))?;
        let frozen = (!layer.is_empty()).then(|| Arc::new(layer));
        if frozen.is_none() {
            wal::remove_up_to(dir, newest)?;
        }
        let inner = Inner {
            env,
            tables,
            dir: dir.clone(),
            map_bytes: *map_bytes,
            is_durable: *is_durable,
            layers: RwLock::new(Layers { active: Layer::default(), frozen }),
            wal: Mutex::new(Wal::new(dir, newest + 1, *is_durable)),
            frozen_from: AtomicU64::new(oldest),
            frozen_generation: AtomicU64::new(newest),
            next_seq: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            signal: flush::Signal::default(),
            flush: Mutex::default(),
            _lock: lock,
        };
        match flush::flush(&inner) {
            // What the log has is served from memory until there is room; the flusher goes on trying.
            Err(error @ (StoreError::DiskFull | StoreError::MapFull { .. })) => {
                tracing::error!(%error, "cannot move the log into the store yet");
            }
            other => other?,
        }
        // Now rather than with the first batch, when descriptors or room may be short.
        if let Err(error) = inner.wal().create() {
            tracing::warn!(%error, "cannot start a log yet; nothing is stored until that succeeds");
        }
        let first = inner.promised()?.max(1);
        inner.next_seq.store(first, Ordering::Release);
        inner.reserved.store(first, Ordering::Release);
        let inner = Arc::new(inner);
        let flusher = Some(flush::start(&inner)?);
        Ok(Self { inner, flusher })
    }

    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Bytes that the data file takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.inner.env.real_disk_size().unwrap_or(0)
    }

    /// How many events are stored. Carries the log into LMDB first.
    pub fn len(&self) -> Result<u64, StoreError> {
        self.inner.settle()?;
        let txn = self.inner.env.read_txn().map_err(|error| self.inner.error(error))?;
        self.inner.db(Table::Events).len(&txn).map_err(|error| self.inner.error(error))
    }

    pub fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.len()? == 0)
    }

    /// Writes a copy without free pages. The store stays open.
    pub fn compact_to(&self, path: &Path) -> Result<u64, StoreError> {
        self.inner.settle()?;
        let file = self
            .inner
            .env
            .copy_to_path(path, heed::CompactionOption::Enabled)
            .map_err(|error| self.inner.error(error))?;
        file.sync_all().map_err(|cause| StoreError::io("cannot flush", path, cause))?;
        Ok(file.metadata().map_or(0, |meta| meta.len()))
    }
}

impl Inner {
    fn db(&self, table: Table) -> Db {
        self.tables[table as usize]
    }

    fn error(&self, error: heed::Error) -> StoreError {
        // LMDB calls a write that came up short EIO: a full disk, mostly.
        let is_short =
            matches!(&error, heed::Error::Io(cause) if cause.raw_os_error() == Some(Errno::IO.raw_os_error()));
        if is_short && env::room(&self.dir).is_some_and(|room| room < wal::RESERVE) {
            return StoreError::DiskFull;
        }
        env::classify(error, self.map_bytes)
    }

    fn layers(&self) -> RwLockReadGuard<'_, Layers> {
        self.layers.read()
    }

    fn layers_mut(&self) -> RwLockWriteGuard<'_, Layers> {
        self.layers.write()
    }

    fn wal(&self) -> MutexGuard<'_, Wal> {
        self.wal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is stored, as of now.
    fn view<'v>(&'v self, layers: &'v Layers) -> Result<View<'v>, StoreError> {
        let txn = self.env.read_txn().map_err(|error| self.error(error))?;
        Ok(View::new(layers, &self.tables, txn, self.map_bytes))
    }

    /// Makes a batch durable, then visible.
    fn commit(&self, wal: &mut Wal, batch: Layer) -> Result<(), StoreError> {
        wal.append(&batch)?;
        let mut layers = self.layers_mut();
        layers.active.absorb(batch);
        let is_full = layers.active.rows() >= flush::ROWS_TO_FREEZE || layers.active.bytes() >= flush::BYTES_TO_FREEZE;
        if is_full && layers.frozen.is_none() {
            match self.next_log(wal) {
                Ok(next) => {
                    self.freeze(wal, next, &mut layers);
                    self.signal.notify();
                }
                // A full disk, or no file descriptor: the log that is open goes on for a while.
                Err(error) => tracing::warn!(%error, "cannot start a new log yet"),
            }
        }
        Ok(())
    }

    /// Waits while the flusher is so far behind that memory would not be bounded.
    fn wait_for_room(&self, wal: &mut Wal) -> Result<(), StoreError> {
        let mut seen = 0;
        for _ in 0..ROOM_TRIES {
            if self.layers().bytes() < flush::LAYERS_BYTES_MAX {
                return Ok(());
            }
            if self.layers().frozen.is_none() {
                // The next log could not be started when the layer was full.
                let next = self.next_log(wal)?;
                self.freeze(wal, next, &mut self.layers_mut());
                self.signal.notify();
            }
            self.signal.wait(&mut seen, std::time::Duration::from_millis(100));
        }
        let why = self.flush.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(why.unwrap_or_else(|| StoreError::Other("the store does not keep up with its log".into())))
    }

    /// The active layer with its log becomes the frozen one; a new log begins.
    fn freeze(&self, wal: &mut Wal, next: Wal, layers: &mut Layers) {
        self.frozen_from.store(wal.generation, Ordering::Release);
        self.frozen_generation.store(wal.generation, Ordering::Release);
        layers.frozen = Some(Arc::new(std::mem::take(&mut layers.active)));
        *wal = next;
    }

    /// The log after this one, ready to be written.
    fn next_log(&self, wal: &Wal) -> Result<Wal, StoreError> {
        let mut next = Wal::new(&self.dir, wal.generation + 1, self.is_durable);
        next.create().map(|()| next)
    }

    fn freeze_if_idle(&self) -> Result<(), StoreError> {
        let Ok(mut wal) = self.wal.try_lock() else { return Ok(()) };
        let has_none = |layers: &Layers| layers.active.is_empty() || layers.frozen.is_some();
        if has_none(&self.layers()) {
            return Ok(());
        }
        // Nobody else freezes meanwhile: that needs the log.
        let next = self.next_log(&wal)?;
        self.freeze(&mut wal, next, &mut self.layers_mut());
        Ok(())
    }

    /// Carries everything into LMDB, now. Writers wait meanwhile.
    fn settle(&self) -> Result<(), StoreError> {
        let mut wal = self.wal();
        flush::flush(self)?;
        let mut layers = self.layers_mut();
        if !layers.active.is_empty() {
            let next = Wal::new(&self.dir, wal.generation + 1, self.is_durable);
            self.freeze(&mut wal, next, &mut layers);
        }
        drop(layers);
        flush::flush(self)
    }

    /// The first number that no event ever had.
    fn promised(&self) -> Result<u64, StoreError> {
        let layers = self.layers();
        let view = self.view(&layers)?;
        Ok(view.get(None, Table::Meta, env::META_SEQ)?.map(keys::seq_from).transpose()?.unwrap_or_default().0)
    }
}

/// Times 100 ms that a writer waits for the flusher.
const ROOM_TRIES: u32 = 100;

impl Drop for LmdbStore {
    fn drop(&mut self) {
        self.inner.signal.is_stopping.store(true, Ordering::Release);
        self.inner.signal.notify();
        if let Some(flusher) = self.flusher.take() {
            drop(flusher.join());
        }
        // Best effort: what does not get there is in the log, and the next opening takes it from there.
        if let Err(error) = self.inner.settle() {
            tracing::warn!(%error, "the log stays for the next start");
        }
    }
}

impl std::fmt::Debug for LmdbStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LmdbStore").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl EventStore for LmdbStore {
    fn apply(&self, ops: Vec<Op>) -> Result<Vec<Outcome>, StoreError> {
        write::apply(&self.inner, ops)
    }

    fn scan(&self, scan: &mut Scan, budget: usize, visitor: &mut dyn Visitor) -> Result<Progress, StoreError> {
        let layers = self.inner.layers();
        scan::run(&self.inner.view(&layers)?, scan, budget, visitor)
    }

    fn get(&self, id: &EventId) -> Result<Option<(Seq, Record)>, StoreError> {
        let layers = self.inner.layers();
        let view = self.inner.view(&layers)?;
        let Some(seq) = view.seq_of(None, id)? else { return Ok(None) };
        Ok(view.record(None, seq)?.map(|record| (seq, record)))
    }

    fn contains(&self, id: &EventId) -> Result<bool, StoreError> {
        let layers = self.inner.layers();
        Ok(self.inner.view(&layers)?.seq_of(None, id)?.is_some())
    }

    fn read_after(&self, after: Seq, most: usize) -> Result<Vec<(Seq, Record)>, StoreError> {
        let layers = self.inner.layers();
        let view = self.inner.view(&layers)?;
        let mut rows = Vec::new();
        view.walk(None, Table::Events, &after.next().0.to_be_bytes(), |key, value| {
            if rows.len() < most {
                rows.push((keys::seq_from(key), Record::from_bytes(value)));
            }
            rows.len() < most
        })?;
        rows.into_iter().map(|(seq, record)| Ok((seq?, record.ok_or(StoreError::Corrupt("event"))?))).collect()
    }

    fn next_seq(&self) -> Seq {
        Seq(self.inner.next_seq.load(Ordering::Acquire))
    }

    fn owners(&self) -> Result<Vec<(PubKey, Vec<u8>)>, StoreError> {
        let layers = self.inner.layers();
        let mut rows = Vec::new();
        self.inner.view(&layers)?.walk(None, Table::Owners, &[0], |agent, row| {
            rows.push((PubKey::from_slice(agent), row.to_vec()));
            true
        })?;
        rows.into_iter().map(|(agent, row)| Ok((agent.ok_or(StoreError::Corrupt("owner"))?, row))).collect()
    }

    fn policy(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let layers = self.inner.layers();
        let view = self.inner.view(&layers)?;
        Ok(view.get(None, Table::Meta, env::META_POLICY)?.map(<[u8]>::to_vec))
    }
}
