//! Direct messages between the owner and an agent: written as gift wraps (NIP-17), read in that form and the old one.

use skep_proto::{Draft, Kind, PubKey, RawEvent, Timestamp, seal, thread, wrap};

use super::fresh;
use crate::keys::{KeyError, Keys};

/// A message on its way.
#[derive(Debug, Clone)]
pub struct Letter {
    /// What is said, as both know it. It is signed by nobody and never published.
    pub rumor: RawEvent,
    /// For its reader; agents call the message by its id.
    pub event: RawEvent,
    /// For ourselves, so that our other clients have it too.
    pub copy: RawEvent,
}

/// Why a message cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    #[error(transparent)]
    Random(#[from] KeyError),
    #[error("the message cannot be sealed: {0}")]
    Seal(#[from] seal::SealError),
}

/// Writes to one agent, about a task where there is one.
pub fn write(keys: &Keys, to: &PubKey, text: &str, task: Option<&str>, now: Timestamp) -> Result<Letter, LetterError> {
    let draft = Draft::new(Kind::PRIVATE_MESSAGE, now, text).tag(["p", &to.to_hex()]).tag(super::salt()?);
    let draft = task.into_iter().fold(draft, |draft, task| draft.tag([thread::TASK, task]));
    let rumor = wrap::rumor(draft, keys.pubkey());
    let wrapped = |reader: &PubKey| -> Result<RawEvent, LetterError> {
        let back = || Ok::<u64, KeyError>(u64::from_le_bytes(fresh()?));
        let fresh = wrap::Fresh {
            secret: *keys_of_nobody()?,
            seal_nonce: fresh()?,
            wrap_nonce: fresh()?,
            aux: fresh()?,
            seal_back: back()?,
            wrap_back: back()?,
        };
        Ok(wrap::wrap(keys.keypair(), &rumor, reader, now, &fresh)?)
    };
    let (event, copy) = (wrapped(to)?, wrapped(&keys.pubkey())?);
    Ok(Letter { rumor, event, copy })
}

/// A secret that is used once.
fn keys_of_nobody() -> Result<zeroize::Zeroizing<[u8; 32]>, KeyError> {
    Ok(zeroize::Zeroizing::new(Keys::generate()?.keypair().secret_bytes()))
}

/// What an event says to us: what is inside of a direct message, and any other event as it is. `None`: not for us, or
/// not what it says.
pub fn read(keys: &Keys, event: &RawEvent) -> Option<RawEvent> {
    match event.kind {
        Kind::GIFT_WRAP => wrap::unwrap(keys.keypair(), event).ok(),
        Kind::DIRECT_MESSAGE => {
            let content = seal::open_old(keys.keypair(), &event.pubkey, &event.content).ok()?;
            Some(RawEvent { content, ..event.clone() })
        }
        _ => Some(event.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_read_by_both_and_nobody_else() {
        let keys = || Keys::generate().expect("randomness");
        let (owner, agent, other) = (keys(), keys(), keys());
        let letter = write(&owner, &agent.pubkey(), "quietly", None, 1_700_000_000).expect("it is written");
        assert_eq!(read(&agent, &letter.event).as_ref(), Some(&letter.rumor));
        assert_eq!(read(&owner, &letter.copy).as_ref(), Some(&letter.rumor));
        assert_eq!((read(&other, &letter.event), read(&agent, &letter.copy)), (None, None));
        assert_ne!(letter.event.pubkey, letter.copy.pubkey, "each wrap has a key of its own");
        let note = owner.sign(Draft::new(Kind::NOTE, 5, "aloud"));
        assert_eq!(read(&other, &note).as_ref(), Some(note.raw()));
    }
}
