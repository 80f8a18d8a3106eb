//! Every byte that must survive a crash.
//!
//! Job: commit events and facts in order, durably, and serve them back in NIP-01's order.
//! Neighbours: `skep-proto` below; the relay and the node above. One writer per store; anyone may read.
//! Must not: decide who may write or read (that is `skep-core`), or acknowledge before the commit is on disk.

pub mod agent;
pub mod blob;
pub mod conformance;
mod error;
pub mod ledger;
pub mod lmdb;
pub mod lock;
pub mod mem;
mod op;
pub mod scan;
pub mod tail;
pub mod writer;

pub use agent::AgentStore;
pub use blob::BlobStore;
pub use error::StoreError;
pub use lmdb::{LmdbStore, Options};
pub use mem::MemStore;
pub use op::{Change, Guard, LeaseRows, Op, Outcome};
pub use scan::{Progress, Scan, Visit, Visitor};
pub use tail::Tail;
pub use writer::{Submission, Writer};

use skep_proto::{EventId, EventRef, PubKey, Record, Seq};

/// Where events live. Implementations: [`LmdbStore`] (the product) and [`MemStore`] (the strict, dumb oracle).
///
/// [`conformance`] says what each must do; both pass it.
pub trait EventStore: Send + Sync + 'static {
    /// Applies all operations in one durable transaction: when this returns `Ok`, power may fail.
    /// An `Err` means that none of them happened.
    fn apply(&self, ops: Vec<Op>) -> Result<Vec<Outcome>, StoreError>;

    /// Runs a scan on, looking at about `budget` records. Events come in serve order, each once, and only those
    /// that match a filter and have no larger [`Seq`] than the scan's; the visitor says whether one counts to `limit`.
    fn scan(&self, scan: &mut Scan, budget: usize, visitor: &mut dyn Visitor) -> Result<Progress, StoreError>;

    fn get(&self, id: &EventId) -> Result<Option<(Seq, Record)>, StoreError>;

    fn contains(&self, id: &EventId) -> Result<bool, StoreError>;

    /// Stored events with a larger number than `after`, in commit order: what a tailing reader missed.
    fn read_after(&self, after: Seq, most: usize) -> Result<Vec<(Seq, Record)>, StoreError>;

    /// The number that the next event gets at the earliest.
    fn next_seq(&self) -> Seq;

    /// Ownership rows as they were put (agent, JSON).
    fn owners(&self) -> Result<Vec<(PubKey, Vec<u8>)>, StoreError>;

    /// The policy document as it was put.
    fn policy(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// Everything that a scan finds, at once. For tests and small jobs.
    fn collect(&self, mut scan: Scan, visit: &mut dyn FnMut(EventRef<'_>) -> Visit) -> Result<Vec<Record>, StoreError> {
        let mut found = Vec::new();
        loop {
            let progress = self.scan(&mut scan, 256, &mut |_: Seq, event: EventRef<'_>| {
                let visit = visit(event);
                if visit != Visit::Hide {
                    found.push(event.to_record());
                }
                visit
            })?;
            if progress == Progress::Done {
                return Ok(found);
            }
        }
    }
}
