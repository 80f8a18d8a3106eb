//! Set reconciliation (NIP-77): one session of the `negentropy` crate behind a guard.

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use skep_proto::reconcile::{self, VERSION};
use skep_proto::{EventId, Prefix, Refusal, Timestamp, limits};

/// A reconciliation whose set is complete.
pub(crate) struct Negotiation(Negentropy<'static, NegentropyStorageVector>);

/// A set being collected: the ids that this reader may see, no others.
#[derive(Default)]
pub(crate) struct Collecting {
    items: Vec<(Timestamp, EventId)>,
}

impl Collecting {
    /// `false` when the set is too large.
    pub(crate) fn add(&mut self, at: Timestamp, id: EventId) -> bool {
        if self.items.len() >= limits::NEG_EVENTS_MAX {
            return false;
        }
        self.items.push((at, id));
        true
    }

    pub(crate) fn seal(self) -> Result<Negotiation, Refusal> {
        let mut storage = NegentropyStorageVector::new();
        let failed = |_| Prefix::Error.because("the reconciliation could not be set up");
        for (at, id) in self.items {
            storage.insert(at, Id::from_byte_array(id.0)).map_err(failed)?;
        }
        storage.seal().map_err(failed)?;
        let frame = limits::NEG_FRAME_BYTES as u64;
        Ok(Negotiation(Negentropy::owned(storage, frame).map_err(failed)?))
    }
}

pub(crate) fn too_large() -> Refusal {
    Prefix::Blocked.because(format!("more than {} events match; narrow the filter", limits::NEG_EVENTS_MAX))
}

impl Negotiation {
    /// The answer to one message of the other side.
    pub(crate) fn answer(&mut self, message: &[u8]) -> Result<Vec<u8>, Refusal> {
        match reconcile::guard(message) {
            Ok(true) => self.0.reconcile(message).map_err(|_| Prefix::Invalid.because("the message is not negentropy")),
            Ok(false) => Ok(vec![VERSION]),
            Err(error) => Err(Prefix::Invalid.because(error.to_string())),
        }
    }
}
