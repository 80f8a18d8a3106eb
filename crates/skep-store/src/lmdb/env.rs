//! Opening the environment: the only `unsafe` of the store, and its flags.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, EnvOpenOptions, MdbError, WithoutTls};

use crate::StoreError;

pub(super) type Env = heed::Env<WithoutTls>;
pub(super) type Db = Database<'static, Bytes, Bytes>;

/// The format of the tables below. A change of one raises it.
const FORMAT: u32 = 2;
const META_FORMAT: &[u8] = b"format";
pub(super) const META_SEQ: &[u8] = b"seq";
/// The newest log that is wholly in LMDB.
pub(super) const META_GENERATION: &[u8] = b"log";
pub(super) const META_POLICY: &[u8] = b"policy";

/// Readers at once: connections scan one slice at a time on a handful of threads; 1,024 is far beyond them.
const READERS_MAX: u32 = 1_024;

/// The tables. `Pos` is `!created_at | id[..6] | kind | seq`, 24 bytes, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// seq → record
    Events,
    /// id → seq
    Ids,
    /// Pos
    Created,
    /// pubkey | Pos
    Authors,
    /// pubkey | kind | Pos
    AuthorKinds,
    /// kind | Pos
    Kinds,
    /// letter | hash of value | Pos; letter 0 is a word of the content
    Tags,
    /// kind | pubkey | SHA-256 of `d` → seq
    Addresses,
    /// id | author of the deletion
    DeletedIds,
    /// address → deleted up to
    DeletedAddresses,
    /// pubkey → vanished up to
    Vanished,
    /// expiration | seq
    Expirations,
    /// resource → lease
    Leases,
    /// agent → ownership
    Owners,
    Meta,
}

impl Table {
    pub(super) const ALL: [Self; 15] = [
        Self::Events,
        Self::Ids,
        Self::Created,
        Self::Authors,
        Self::AuthorKinds,
        Self::Kinds,
        Self::Tags,
        Self::Addresses,
        Self::DeletedIds,
        Self::DeletedAddresses,
        Self::Vanished,
        Self::Expirations,
        Self::Leases,
        Self::Owners,
        Self::Meta,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Ids => "ids",
            Self::Created => "created",
            Self::Authors => "authors",
            Self::AuthorKinds => "author_kinds",
            Self::Kinds => "kinds",
            Self::Tags => "tags",
            Self::Addresses => "addresses",
            Self::DeletedIds => "deleted_ids",
            Self::DeletedAddresses => "deleted_addresses",
            Self::Vanished => "vanished",
            Self::Expirations => "expirations",
            Self::Leases => "leases",
            Self::Owners => "owners",
            Self::Meta => "meta",
        }
    }
}

/// Creates the directory, private, and makes its own entry durable.
pub(super) fn create_dir(dir: &Path) -> Result<(), StoreError> {
    let io = |cause| StoreError::io("cannot create", dir, cause);
    if !dir.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    Ok(())
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    let file = std::fs::File::open(dir).map_err(|cause| StoreError::io("cannot open", dir, cause))?;
    file.sync_all().map_err(|cause| StoreError::io("cannot flush", dir, cause))
}

pub(super) fn open(dir: &Path, map_bytes: u64) -> Result<(Env, [Db; Table::ALL.len()]), StoreError> {
    let classify = |error| classify(error, map_bytes);
    let env = open_env(dir, map_bytes).map_err(classify)?;
    env.clear_stale_readers().map_err(classify)?;
    let txn = env.write_txn().map_err(classify)?;
    let tables = env
        .create_databases_and_commit(txn, |opener, txn| {
            let mut tables = Vec::with_capacity(Table::ALL.len());
            for table in Table::ALL {
                tables.push(opener.create_database::<Bytes, Bytes>(txn, Some(table.name()))?);
            }
            let tables: [_; Table::ALL.len()] = tables.try_into().expect("invariant: one database for each table");
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(tables))
        })
        .map_err(classify)?
        .commit()
        .ok_or(StoreError::Corrupt("tables"))?;
    check_format(&env, &tables, map_bytes)?;
    // The data file's entry must survive too, or a power cut could take the whole store.
    sync_dir(dir)?;
    Ok((env, tables))
}

#[expect(unsafe_code, reason = "LMDB maps a file: see the safety comment")]
fn open_env(dir: &Path, map_bytes: u64) -> Result<Env, heed::Error> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.max_dbs(Table::ALL.len() as u32).max_readers(READERS_MAX).map_size(map_bytes as usize);
    let flags = heed::EnvFlags::NO_READ_AHEAD;
    // SAFETY: the file is in a private directory, and `DirLock` keeps other processes of ours away, so nobody
    // truncates or rewrites it while it is mapped. No flag here weakens a commit, also not with
    // `durability = "relaxed"`, which leaves out the log's flush only; NO_READ_AHEAD advises the kernel.
    unsafe {
        options.flags(flags);
        options.open(dir)
    }
}

fn check_format(env: &Env, tables: &[Db], map_bytes: u64) -> Result<(), StoreError> {
    let meta = tables[Table::Meta as usize];
    let classify = |error| classify(error, map_bytes);
    let mut txn = env.write_txn().map_err(classify)?;
    let found = meta.get(&txn, META_FORMAT).map_err(classify)?.map(<[u8]>::to_vec);
    match found {
        None => {
            meta.put(&mut txn, META_FORMAT, &FORMAT.to_be_bytes()).map_err(classify)?;
            txn.commit().map_err(classify)
        }
        Some(bytes) => {
            let found = bytes.try_into().map(u32::from_be_bytes).map_err(|_| StoreError::Corrupt("format"))?;
            if found == FORMAT { Ok(()) } else { Err(StoreError::Format { found, known: FORMAT }) }
        }
    }
}

/// Bytes that may still be written to the file system of a directory, if it says.
pub(super) fn room(dir: &Path) -> Option<u64> {
    rustix::fs::statvfs(dir).ok().map(|stat| stat.f_bavail * stat.f_frsize)
}

/// A number of the meta table; 0 without one.
pub(super) fn read_u64(
    env: &Env,
    tables: &[Db; Table::ALL.len()],
    name: &[u8],
    map_bytes: u64,
) -> Result<u64, StoreError> {
    let classify = |error| classify(error, map_bytes);
    let txn = env.read_txn().map_err(classify)?;
    let bytes = tables[Table::Meta as usize].get(&txn, name).map_err(classify)?;
    let number = bytes.map(|bytes| bytes.try_into().map(u64::from_be_bytes)).transpose();
    number.map(Option::unwrap_or_default).map_err(|_| StoreError::Corrupt("number"))
}

/// LMDB's error as ours.
pub(super) fn classify(error: heed::Error, map_bytes: u64) -> StoreError {
    match error {
        heed::Error::Mdb(MdbError::MapFull) => StoreError::MapFull { map_bytes },
        heed::Error::Mdb(error @ (MdbError::Panic | MdbError::MapResized)) => StoreError::Fatal(error.to_string()),
        heed::Error::Mdb(error @ (MdbError::Corrupted | MdbError::PageNotFound | MdbError::Invalid)) => {
            StoreError::Fatal(error.to_string())
        }
        heed::Error::Io(cause) if cause.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) => {
            StoreError::DiskFull
        }
        other => StoreError::Other(other.to_string()),
    }
}
