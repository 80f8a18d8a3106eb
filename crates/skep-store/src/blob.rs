//! Blobs: files named by their SHA-256 (Blossom), each with a sidecar that says who keeps it.
//!
//! ```text
//! blobs/incoming-<n>             being received; removed when the store is opened
//! blobs/<2 hex>/<sha256>         the blob, never changed
//! blobs/<2 hex>/<sha256>.json    its sidecar: type, size, uploaded, owners. The commit point of the blob
//! ```
//!
//! Job: receive, hash, keep durably, serve, and forget a blob with its last owner.
//! Neighbours: the relay's HTTP face calls it. All of it blocks on the disk but [`BlobStore::stat`] and
//! [`BlobStore::list`]: call it from a blocking thread.
//! Lifetime: one per data directory, whose lock the caller holds.
//! Must not: form a path from anything but a parsed [`BlobId`]; say that a blob is kept before file, sidecar and
//! directory are on the disk; leave a temporary file behind.

mod quota;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skep_proto::{EventId, PubKey, Timestamp, id::IdError};

use quota::Incoming;
pub use quota::Quota;

/// Keys that may claim one blob. A sidecar is rewritten for each claim: 1,024 x 67 bytes is 68 KiB at most.
const OWNERS_MAX: usize = 1_024;

const INCOMING: &str = "incoming-";
const SIDECAR: &str = "json";
const SIDECAR_TEMP: &str = "json.tmp";

/// SHA-256 of a blob; as text 64 lowercase hex characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(pub [u8; 32]);

impl FromStr for BlobId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        // The same shape as every 32-byte id of ours, and so the same words about what is wrong with it.
        text.parse::<EventId>().map(|id| Self(id.0))
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        EventId(self.0).fmt(f)
    }
}

/// What is known of a blob: the sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobMeta {
    /// As its first uploader called it; never trusted to be safe to show.
    #[serde(rename = "type")]
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    /// When it was first uploaded.
    pub uploaded: Timestamp,
    pub owners: BTreeSet<PubKey>,
}

/// A blob in a list.
pub type Listed = (BlobId, BlobMeta);

/// Who keeps an upload, and what they call it.
#[derive(Debug, Clone)]
pub struct Claim {
    pub owner: PubKey,
    pub media_type: String,
    pub now: Timestamp,
}

/// A blob that is on the disk.
#[derive(Debug)]
pub struct Stored {
    pub id: BlobId,
    pub meta: BlobMeta,
    pub is_new: bool,
}

/// What dropping a claim led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// Others keep it.
    Claim,
    /// The last claim: the file is gone.
    Blob,
}

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("no such blob")]
    NotFound,
    #[error("this key does not own the blob")]
    NotOwner,
    #[error("the blob is larger than {max} bytes")]
    TooLarge { max: u64 },
    #[error("this key's blobs may have {max} bytes together; delete one to make room")]
    KeyFull { max: u64 },
    #[error("the blobs of this relay may have {max} bytes together, and they do; try again later")]
    Full { max: u64 },
    #[error("the SHA-256 of the bytes received is {found}")]
    WrongHash { found: BlobId },
    #[error("{OWNERS_MAX} keys own this blob already")]
    TooManyOwners,
    #[error("the disk is full; free some space and try again")]
    DiskFull,
    #[error("blob storage: {0}")]
    Io(io::Error),
}

impl From<io::Error> for BlobError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Io(error),
        }
    }
}

/// All blobs of one data directory.
#[derive(Debug)]
pub struct BlobStore {
    root: PathBuf,
    next_incoming: AtomicU64,
    /// Bytes that are being received.
    incoming: Arc<AtomicU64>,
    /// Bytes of all blobs. Beside the index, so that a batch of an upload asks for no lock.
    stored: Arc<AtomicU64>,
    /// Held while a sidecar is read, changed and written, disk included: two claims at once must not lose one.
    writing: Mutex<()>,
    /// What the sidecars say. Held for a look-up only, never while waiting for the disk, so readers do not wait.
    index: Mutex<Index>,
    damaged: usize,
}

#[derive(Debug, Default)]
struct Index {
    blobs: HashMap<BlobId, BlobMeta>,
    by_owner: BTreeSet<(PubKey, Reverse<Timestamp>, BlobId)>,
    /// Bytes of each key's blobs.
    owned: HashMap<PubKey, u64>,
    bytes: u64,
}

impl Index {
    fn insert(&mut self, id: BlobId, meta: BlobMeta) {
        self.remove(&id);
        self.by_owner.extend(meta.owners.iter().map(|owner| (*owner, Reverse(meta.uploaded), id)));
        for owner in &meta.owners {
            *self.owned.entry(*owner).or_default() += meta.size;
        }
        self.bytes += meta.size;
        self.blobs.insert(id, meta);
    }

    fn remove(&mut self, id: &BlobId) {
        if let Some(meta) = self.blobs.remove(id) {
            for owner in meta.owners {
                self.by_owner.remove(&(owner, Reverse(meta.uploaded), *id));
                self.disown(owner, meta.size);
            }
            self.bytes -= meta.size;
        }
    }

    fn disown(&mut self, owner: PubKey, bytes: u64) {
        if let Some(owned) = self.owned.get_mut(&owner) {
            *owned -= bytes;
            if *owned == 0 {
                self.owned.remove(&owner);
            }
        }
    }
}

/// A file that is removed in the end; once it was moved to where it belongs, there is none of its name.
#[derive(Debug)]
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        // Best effort: what stays is removed when the store is opened.
        let _ = fs::remove_file(&self.0);
    }
}

/// A blob on its way in. Dropping it forgets it.
#[derive(Debug)]
pub struct Upload {
    file: File,
    temp: Temp,
    hash: Sha256,
    size: u64,
    max: u64,
    incoming: Incoming,
    stored: Arc<AtomicU64>,
    quota: Quota,
}

impl Upload {
    /// Takes more bytes; [`BlobError::TooLarge`] or [`BlobError::Full`] as soon as there are too many.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.size += bytes.len() as u64;
        if self.size > self.max {
            return Err(BlobError::TooLarge { max: self.max });
        }
        let received = self.incoming.add(bytes.len() as u64);
        self.quota.check_total(self.stored.load(Ordering::Relaxed), received)?;
        self.hash.update(bytes);
        Ok(self.file.write_all(bytes)?)
    }
}

impl BlobStore {
    /// Opens `<data>/blobs`, creates it if need be, and removes what a crash left half done.
    pub fn open(data: &Path) -> Result<Self, BlobError> {
        let root = data.join("blobs");
        fs::create_dir_all(&root)?;
        sync_dir(data)?;
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(INCOMING) {
                fs::remove_file(entry.path())?;
            }
        }
        let (mut index, mut damaged) = (Index::default(), 0);
        for n in 0..=u8::MAX {
            let shard = root.join(format!("{n:02x}"));
            fs::create_dir_all(&shard)?;
            damaged += load_shard(&shard, &mut index)?;
        }
        sync_dir(&root)?;
        let stored = Arc::new(AtomicU64::new(index.bytes));
        let (next_incoming, writing, index) = (AtomicU64::new(0), Mutex::new(()), Mutex::new(index));
        Ok(Self { root, next_incoming, incoming: Arc::default(), stored, writing, index, damaged })
    }

    /// Blobs that [`Self::open`] found with an unreadable sidecar, or a sidecar without its blob. Not served, not removed.
    pub fn damaged(&self) -> usize {
        self.damaged
    }

    /// What is known of a blob. Does not touch the disk.
    pub fn stat(&self, id: &BlobId) -> Option<BlobMeta> {
        self.index().blobs.get(id).cloned()
    }

    /// A key's blobs, newest first, at most `limit`, after the one named `cursor`. Does not touch the disk.
    ///
    /// [`BlobError::NotFound`] when the key does not own `cursor`.
    pub fn list(&self, owner: &PubKey, cursor: Option<BlobId>, limit: usize) -> Result<Vec<Listed>, BlobError> {
        let index = self.index();
        let start = match cursor {
            None => Bound::Included((*owner, Reverse(Timestamp::MAX), BlobId([0; 32]))),
            Some(id) => {
                let meta = index.blobs.get(&id).filter(|meta| meta.owners.contains(owner));
                Bound::Excluded((*owner, Reverse(meta.ok_or(BlobError::NotFound)?.uploaded), id))
            }
        };
        let end = Bound::Included((*owner, Reverse(0), BlobId([0xff; 32])));
        let found = index.by_owner.range((start, end)).take(limit);
        Ok(found.filter_map(|(_, _, id)| Some((*id, index.blobs.get(id)?.clone()))).collect())
    }

    /// A blob's bytes.
    pub fn read(&self, id: &BlobId) -> Result<File, BlobError> {
        self.stat(id).ok_or(BlobError::NotFound)?;
        File::open(self.blob_path(id)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BlobError::NotFound,
            _ => error.into(),
        })
    }

    /// Whether a key may add a blob of this size. Does not touch the disk. Asked again when the blob is here.
    pub fn check_room(&self, owner: &PubKey, id: Option<&BlobId>, size: u64, quota: Quota) -> Result<(), BlobError> {
        let index = self.index();
        let known = id.and_then(|id| index.blobs.get(id));
        if known.is_some_and(|meta| meta.owners.contains(owner)) {
            return Ok(());
        }
        quota.check_key(index.owned.get(owner).copied().unwrap_or(0), size)?;
        let more = if known.is_some() { 0 } else { size };
        quota.check_total(index.bytes, more + self.incoming.load(Ordering::Relaxed))
    }

    /// Begins to receive a blob of at most `max` bytes.
    pub fn begin(&self, max: u64, quota: Quota) -> Result<Upload, BlobError> {
        let n = self.next_incoming.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join(format!("{INCOMING}{n}"));
        let file = File::create_new(&path)?;
        let (incoming, stored) = (Incoming::new(&self.incoming), Arc::clone(&self.stored));
        Ok(Upload { file, temp: Temp(path), hash: Sha256::new(), size: 0, max, incoming, stored, quota })
    }

    /// Keeps an upload whose hash is one of `expected`. When it returns, the blob and the claim survive a power cut.
    pub fn commit(&self, upload: Upload, expected: &[BlobId], claim: Claim) -> Result<Stored, BlobError> {
        // `_incoming` counts it until it is counted as stored.
        let Upload { file, temp, hash, size, incoming: _incoming, quota, .. } = upload;
        let id = BlobId(hash.finalize().into());
        if !expected.contains(&id) {
            return Err(BlobError::WrongHash { found: id });
        }
        file.sync_all()?;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.stat(&id);
        if known.as_ref().is_none_or(|meta| !meta.owners.contains(&claim.owner)) {
            quota.check_key(self.index().owned.get(&claim.owner).copied().unwrap_or(0), size)?;
        }
        if let Some(meta) = known {
            return self.add_owner(id, meta, claim.owner);
        }
        fs::rename(&temp.0, self.blob_path(&id))?;
        // Before the sidecar, so that after a power cut there is never a sidecar whose blob is missing.
        sync_dir(&self.shard(&id))?;
        let Claim { owner, media_type, now } = claim;
        let meta = BlobMeta { media_type, size, uploaded: now, owners: BTreeSet::from([owner]) };
        if let Err(error) = self.write_sidecar(&id, &meta) {
            let _ = fs::remove_file(self.sidecar_path(&id));
            let _ = fs::remove_file(self.blob_path(&id));
            return Err(error);
        }
        self.insert(id, meta.clone());
        Ok(Stored { id, meta, is_new: true })
    }

    fn add_owner(&self, id: BlobId, mut meta: BlobMeta, owner: PubKey) -> Result<Stored, BlobError> {
        if meta.owners.insert(owner) {
            if meta.owners.len() > OWNERS_MAX {
                return Err(BlobError::TooManyOwners);
            }
            self.write_sidecar(&id, &meta)?;
            self.insert(id, meta.clone());
        }
        Ok(Stored { id, meta, is_new: false })
    }

    /// Drops a key's claim; the blob goes with the last one.
    pub fn release(&self, id: &BlobId, owner: &PubKey) -> Result<Released, BlobError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut meta = self.stat(id).ok_or(BlobError::NotFound)?;
        if !meta.owners.remove(owner) {
            return Err(BlobError::NotOwner);
        }
        if !meta.owners.is_empty() {
            self.write_sidecar(id, &meta)?;
            self.insert(*id, meta);
            return Ok(Released::Claim);
        }
        // The sidecar first: a blob without one does not exist, whenever the power fails.
        fs::remove_file(self.sidecar_path(id))?;
        self.forget(id);
        sync_dir(&self.shard(id))?;
        fs::remove_file(self.blob_path(id))?;
        Ok(Released::Blob)
    }

    fn insert(&self, id: BlobId, meta: BlobMeta) {
        let mut index = self.index();
        index.insert(id, meta);
        self.stored.store(index.bytes, Ordering::Relaxed);
    }

    fn forget(&self, id: &BlobId) {
        let mut index = self.index();
        index.remove(id);
        self.stored.store(index.bytes, Ordering::Relaxed);
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, id: &BlobId) -> PathBuf {
        self.root.join(format!("{:02x}", id.0[0]))
    }

    fn blob_path(&self, id: &BlobId) -> PathBuf {
        self.shard(id).join(id.to_string())
    }

    fn sidecar_path(&self, id: &BlobId) -> PathBuf {
        self.blob_path(id).with_extension(SIDECAR)
    }

    fn write_sidecar(&self, id: &BlobId, meta: &BlobMeta) -> Result<(), BlobError> {
        let temp = Temp(self.blob_path(id).with_extension(SIDECAR_TEMP));
        let mut file = File::create(&temp.0)?;
        file.write_all(&serde_json::to_vec(meta).map_err(io::Error::from)?)?;
        file.sync_all()?;
        fs::rename(&temp.0, self.sidecar_path(id))?;
        Ok(sync_dir(&self.shard(id))?)
    }
}

/// Makes the names in a directory survive a power cut.
fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Reads the sidecars of one directory and removes unfinished work. Returns how many blobs are damaged.
fn load_shard(shard: &Path, index: &mut Index) -> io::Result<usize> {
    let mut found: BTreeMap<BlobId, (bool, bool)> = BTreeMap::new();
    for entry in fs::read_dir(shard)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.split_once('.').unwrap_or((&name, "")) {
            (_, SIDECAR_TEMP) => fs::remove_file(entry.path())?,
            (id, SIDECAR) => id.parse().map_or((), |id| found.entry(id).or_default().1 = true),
            (id, "") => id.parse().map_or((), |id| found.entry(id).or_default().0 = true),
            _ => {}
        }
    }
    let mut damaged = 0;
    for (id, (has_blob, has_sidecar)) in found {
        let path = shard.join(id.to_string());
        if !has_sidecar {
            fs::remove_file(path)?;
            continue;
        }
        match serde_json::from_slice::<BlobMeta>(&fs::read(path.with_extension(SIDECAR))?) {
            Ok(meta) if has_blob => index.insert(id, meta),
            _ => damaged += 1,
        }
    }
    Ok(damaged)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::*;

    const ANN: PubKey = PubKey([1; 32]);
    const BOB: PubKey = PubKey([2; 32]);

    fn id_of(bytes: &[u8]) -> BlobId {
        BlobId(Sha256::digest(bytes).into())
    }

    fn put(store: &BlobStore, bytes: &[u8], owner: PubKey, now: Timestamp) -> Result<Stored, BlobError> {
        let mut upload = store.begin(1_000, Quota::default())?;
        upload.write(bytes)?;
        store.commit(upload, &[id_of(bytes)], claim(owner, now))
    }

    fn claim(owner: PubKey, now: Timestamp) -> Claim {
        Claim { owner, media_type: "text/plain".into(), now }
    }

    fn files(path: &Path) -> Vec<String> {
        let mut all = Vec::new();
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let is_dir = entry.file_type().unwrap().is_dir();
            all.extend(if is_dir { files(&entry.path()) } else { vec![entry.file_name().into_string().unwrap()] });
        }
        all.sort();
        all
    }

    #[test]
    fn a_blob_survives_reopening_with_its_owners() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let stored = put(&store, b"honey", ANN, 7).unwrap();
        assert!(stored.is_new && !put(&store, b"honey", BOB, 8).unwrap().is_new);
        let store = BlobStore::open(dir.path()).unwrap();
        assert_eq!(io::read_to_string(store.read(&stored.id).unwrap()).unwrap(), "honey");
        let meta = store.stat(&stored.id).unwrap();
        assert_eq!((meta.size, meta.uploaded, meta.owners), (5, 7, BTreeSet::from([ANN, BOB])));
    }

    #[test]
    fn a_blob_goes_with_its_last_owner_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let id = put(&store, b"wax", ANN, 1).unwrap().id;
        put(&store, b"wax", BOB, 2).unwrap();
        assert_eq!(store.release(&id, &ANN).unwrap(), Released::Claim);
        assert!(matches!(store.release(&id, &ANN), Err(BlobError::NotOwner)));
        assert!(store.read(&id).is_ok());
        assert_eq!(store.release(&id, &BOB).unwrap(), Released::Blob);
        assert!(matches!(store.read(&id), Err(BlobError::NotFound)));
        assert_eq!(files(dir.path()), Vec::<String>::new());
        assert!(put(&store, b"wax", BOB, 3).unwrap().is_new, "it may come again");
    }

    #[test]
    fn a_refused_or_broken_upload_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let mut upload = store.begin(3, Quota::default()).unwrap();
        assert!(matches!(upload.write(b"four"), Err(BlobError::TooLarge { max: 3 })));
        drop(upload);
        let mut upload = store.begin(10, Quota::default()).unwrap();
        upload.write(b"other").unwrap();
        let refused = store.commit(upload, &[id_of(b"this")], claim(ANN, 1)).unwrap_err();
        assert!(matches!(refused, BlobError::WrongHash { found } if found == id_of(b"other")));
        assert_eq!(files(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn at_open_what_a_crash_left_half_done_is_removed_and_what_is_damaged_is_counted_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let kept = put(&store, b"kept", ANN, 1).unwrap().id;
        let orphan = put(&store, b"orphan", ANN, 1).unwrap().id;
        let damaged = put(&store, b"damaged", ANN, 1).unwrap().id;
        fs::write(store.sidecar_path(&damaged), b"not json").unwrap();
        fs::remove_file(store.sidecar_path(&orphan)).unwrap();
        fs::write(store.root.join("incoming-77"), b"half").unwrap();
        fs::write(store.blob_path(&kept).with_extension(SIDECAR_TEMP), b"{").unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let found = [kept, orphan, damaged].map(|id| store.stat(&id).is_some());
        assert_eq!((found, store.damaged()), ([true, false, false], 1));
        let mut names = [kept, damaged].map(|id| [id.to_string(), format!("{id}.json")]).concat();
        names.sort();
        assert_eq!(files(dir.path()), names);
    }

    #[test]
    fn a_list_is_newest_first_and_pages_without_gap_or_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        for (n, at) in [(0u8, 5), (1, 9), (2, 5), (3, 1)] {
            put(&store, &[n], ANN, at).unwrap();
        }
        let theirs = put(&store, b"bob's", BOB, 6).unwrap().id;
        let whole = store.list(&ANN, None, 10).unwrap();
        assert_eq!(whole.iter().map(|(_, meta)| meta.uploaded).collect::<Vec<_>>(), [9, 5, 5, 1]);
        let mut paged = store.list(&ANN, None, 2).unwrap();
        paged.extend(store.list(&ANN, Some(paged[1].0), 2).unwrap());
        assert_eq!(paged, whole);
        assert!(matches!(store.list(&ANN, Some(theirs), 2), Err(BlobError::NotFound)));
    }

    #[test]
    fn a_full_disk_is_told_apart_from_other_failures() {
        let of = |kind| BlobError::from(io::Error::from(kind));
        assert!(matches!(of(io::ErrorKind::StorageFull), BlobError::DiskFull));
        assert!(matches!(of(io::ErrorKind::PermissionDenied), BlobError::Io(_)));
    }

    #[test]
    fn only_64_lowercase_hex_characters_name_a_blob() {
        assert!("ab".repeat(32).parse::<BlobId>().is_ok());
        let bad = ["../../etc/passwd", "", &"AB".repeat(32), &"ab".repeat(31), &format!("{}/..", "a".repeat(61))];
        assert!(bad.iter().all(|bad| bad.parse::<BlobId>().is_err()));
    }
}
