//! What a writer is asked to do, and what came of it.

use std::fmt;

use skep_proto::lease::{Lease, Resource};
use skep_proto::{PubKey, Record, Refusal, Seq, Timestamp};

use crate::StoreError;

/// The lease rows, inside the writer's transaction.
pub trait LeaseRows {
    fn get(&self, resource: &Resource) -> Result<Option<Lease>, StoreError>;
    fn put(&mut self, resource: &Resource, lease: &Lease) -> Result<(), StoreError>;
}

/// A last check, made inside the transaction that stores the event; what it writes commits with it.
/// Answers with an event of the relay's own to store beside it (the lease's state), if there is one.
pub type Guard = Box<dyn FnOnce(&mut dyn LeaseRows) -> Result<Result<Option<Record>, Refusal>, StoreError> + Send>;

/// Decides a lease request inside the transaction. Gives the lease and its state event.
pub type LeaseCall = Box<dyn FnOnce(&mut dyn LeaseRows) -> Result<Result<(Lease, Record), Refusal>, StoreError> + Send>;

/// One operation.
pub enum Op {
    /// Store an event by the rules of its class; apply it when it is a deletion or a request to vanish.
    Put {
        record: Record,
        /// Words to be found by; empty where search is off or the kind is not searched.
        words: Vec<String>,
        guard: Option<Guard>,
    },
    /// Give it a number and put it in the memory ring. Never touches the disk.
    Ring(Record),
    Lease(LeaseCall),
    Own {
        agent: PubKey,
        row: Vec<u8>,
    },
    Policy(Vec<u8>),
    /// Remove what has expired, at most so many.
    Sweep {
        now: Timestamp,
        most: usize,
    },
}

impl Op {
    pub fn put(record: Record) -> Self {
        Self::Put { record, words: Vec::new(), guard: None }
    }

    /// Bytes of its event.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { record, .. } | Self::Ring(record) => record.as_bytes().len(),
            _ => 0,
        }
    }

    /// Whether it needs a transaction.
    pub fn is_durable(&self) -> bool {
        !matches!(self, Self::Ring(_))
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Put { .. } => "Put",
            Self::Ring(_) => "Ring",
            Self::Lease(_) => "Lease",
            Self::Own { .. } => "Own",
            Self::Policy(_) => "Policy",
            Self::Sweep { .. } => "Sweep",
        })
    }
}

/// What came of one operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// New; readers of the tail will see these, in order (the event, then what its guard added).
    Stored(Vec<Change>),
    /// It is here already.
    Duplicate,
    /// A newer version of the same replaceable or addressable event is here.
    Superseded,
    /// Its author asked for its deletion.
    Deleted,
    /// Its author asked to vanish.
    Vanished,
    /// The guard said no.
    Refused(Refusal),
    Leased(Lease, Vec<Change>),
    /// How many were removed.
    Swept(usize),
    Done,
}

/// One event that became visible.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub seq: Seq,
    pub record: Record,
}
