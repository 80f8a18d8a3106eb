//! How much room blobs may take: of one key, and in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::BlobError;

/// Bytes that blobs may take; 0 is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// All blobs that one key owns; a blob of several owners counts for each.
    pub per_key: u64,
    /// All blobs on the disk, those that are being received too.
    pub total: u64,
}

impl Quota {
    pub(super) fn check_key(&self, owned: u64, more: u64) -> Result<(), BlobError> {
        if is_over(self.per_key, owned, more) { Err(BlobError::KeyFull { max: self.per_key }) } else { Ok(()) }
    }

    pub(super) fn check_total(&self, used: u64, more: u64) -> Result<(), BlobError> {
        if is_over(self.total, used, more) { Err(BlobError::Full { max: self.total }) } else { Ok(()) }
    }
}

fn is_over(max: u64, used: u64, more: u64) -> bool {
    max > 0 && used.saturating_add(more) > max
}

/// Bytes that are being received, all uploads together; an upload's share is given back when it ends.
#[derive(Debug)]
pub(super) struct Incoming {
    all: Arc<AtomicU64>,
    bytes: u64,
}

impl Incoming {
    pub(super) fn new(all: &Arc<AtomicU64>) -> Self {
        Self { all: Arc::clone(all), bytes: 0 }
    }

    /// Adds to this upload; gives what all uploads have received.
    pub(super) fn add(&mut self, bytes: u64) -> u64 {
        self.bytes += bytes;
        self.all.fetch_add(bytes, Ordering::Relaxed) + bytes
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use sha2::{Digest, Sha256};
    use skep_proto::{PubKey, Timestamp};

    use super::super::{BlobId, BlobStore, Claim};
    use super::*;

    const ANN: PubKey = PubKey([1; 32]);
    const BOB: PubKey = PubKey([2; 32]);

    fn id_of(bytes: &[u8]) -> BlobId {
        BlobId(Sha256::digest(bytes).into())
    }

    fn claim(owner: PubKey, now: Timestamp) -> Claim {
        Claim { owner, media_type: "text/plain".into(), now }
    }

    #[test]
    fn a_key_has_so_much_room_and_a_blob_given_back_makes_room_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let quota = Quota { per_key: 10, total: 0 };
        let put = |bytes: &[u8], owner| {
            let mut upload = store.begin(1_000, quota)?;
            upload.write(bytes)?;
            store.commit(upload, &[id_of(bytes)], claim(owner, 1))
        };
        let id = put(b"123456", ANN).unwrap().id;
        assert!(matches!(put(b"12345", ANN), Err(BlobError::KeyFull { max: 10 })));
        assert!(matches!(store.check_room(&ANN, None, 5, quota), Err(BlobError::KeyFull { .. })));
        assert!(put(b"123456", ANN).is_ok(), "what a key has already takes no more");
        assert!(store.check_room(&ANN, Some(&id), 6, quota).is_ok());
        assert!(put(b"12345", BOB).is_ok(), "another key has its own");
        assert!(matches!(put(b"123456", BOB), Err(BlobError::KeyFull { .. })), "a shared blob counts for each");
        store.release(&id, &ANN).unwrap();
        assert!(put(b"1234567890", ANN).is_ok());
        let store = BlobStore::open(dir.path()).unwrap();
        assert!(matches!(store.check_room(&ANN, None, 1, quota), Err(BlobError::KeyFull { .. })), "after a start too");
    }

    #[test]
    fn all_blobs_together_have_so_much_room_with_what_is_being_received() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let quota = Quota { per_key: 0, total: 10 };
        let mut first = store.begin(1_000, quota).unwrap();
        first.write(b"123456").unwrap();
        let mut second = store.begin(1_000, quota).unwrap();
        assert!(matches!(second.write(b"12345"), Err(BlobError::Full { max: 10 })), "uploads at once share the room");
        drop(second);
        assert!(matches!(store.check_room(&BOB, None, 5, quota), Err(BlobError::Full { .. })));
        let id = store.commit(first, &[id_of(b"123456")], claim(ANN, 1)).unwrap().id;
        assert!(store.check_room(&BOB, Some(&id), 6, quota).is_ok(), "what is here already takes no more");
        let mut third = store.begin(1_000, quota).unwrap();
        third.write(b"1234").unwrap();
        assert!(store.commit(third, &[id_of(b"1234")], claim(BOB, 1)).is_ok());
        assert!(matches!(store.begin(1_000, quota).unwrap().write(b"1"), Err(BlobError::Full { .. })));
        store.release(&id, &ANN).unwrap();
        assert!(store.begin(1_000, quota).unwrap().write(b"123456").is_ok());
    }
}
