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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let mut bytes = vec![0; hex.len() / 2];
        faster_hex::hex_decode(hex.as_bytes(), &mut bytes).unwrap();
        bytes
    }

    fn answer(message: &str) -> String {
        let mut set = Collecting::default();
        for (at, byte) in [(1_700_000_000, 0x11), (1_700_000_001, 0x22)] {
            assert!(set.add(at, EventId([byte; 32])));
        }
        faster_hex::hex_string(&set.seal().unwrap().answer(&bytes(message)).unwrap())
    }

    #[test]
    fn our_answers_to_frozen_messages_are_frozen() {
        let ids = format!("610000020{}{}{}", 2, "11".repeat(32), "22".repeat(32));
        assert_eq!(answer("6100000200"), ids, "to one who has nothing: all that we have");
        assert_eq!(answer(&ids), ids, "ids are answered with ours: the asking side compares");
        assert_eq!(
            answer("61000001cd20b9f83aa18e89dd323257ca0a6e09"),
            "61",
            "to the same fingerprint: nothing more to say"
        );
        assert_eq!(answer(&format!("61000001{}", "ff".repeat(16))), ids, "to another fingerprint: all that we have");
        assert_eq!(answer("6200"), "61", "to another version: ours");
    }
}
