//! The owner's side of agents, over relays: who they are, what they say and ask, what became of a message, what it cost.
//!
//! Job: resolve names (`directory`), follow a relay through lost connections (`feed`), publish until there is a word
//! (`post`), write and read direct messages (`letter`), list and answer permission cards (`cards`), read turn metrics (`bills`),
//! hold agents back and let them go on (`word`).
//! Neighbours: [`crate::client`] speaks to relays; `skep_core::{fate, watch, usage}` decide what it means; the commands
//! of the binary print it.
//! Must not: print, or believe that an agent is the owner's without the owner's signature.

pub mod bills;
pub mod cards;
pub mod directory;
pub mod feed;
pub mod letter;
pub mod post;
pub mod word;

pub use directory::{Agent, Directory, Unknown};
pub use feed::{Feed, Heard};

pub use skep_core::{fate, usage, watch};

use skep_proto::agent::telemetry::Telemetry;
use skep_proto::agent::{self, Direction};
use skep_proto::attestation::Attestation;
use skep_proto::{PubKey, RawEvent, seal};

use crate::keys::{KeyError, Keys};

/// Whether an event carries the owner's attestation of its author, for its kind and time.
pub fn is_attested(event: &RawEvent, owner: &PubKey) -> bool {
    let attestation = Attestation::from_tags(&event.tags, &event.pubkey).and_then(Result::ok);
    attestation.is_some_and(|attestation| {
        attestation.owner == *owner
            && attestation.conditions.allow_kind(event.kind)
            && attestation.conditions.allow_time(event.created_at)
    })
}

/// Random bytes for what is sealed: without any, nothing is.
fn fresh<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(KeyError::Random)?;
    Ok(bytes)
}

/// A tag that makes a message one of its own: two that say the same in one second would be one event, and have one
/// answer.
pub fn salt() -> Result<[String; 2], KeyError> {
    Ok(["salt".to_owned(), faster_hex::hex_string(&fresh::<8>()?)])
}

/// What an agent's frame says inside. `None`: not a telemetry frame to this owner, or not to be opened.
pub fn open_frame(keys: &Keys, event: &RawEvent) -> Option<Telemetry> {
    let frame = agent::frame(event).ok()?;
    if frame.direction != Direction::Telemetry || !frame.known || frame.owner != keys.pubkey() {
        return None;
    }
    let text = seal::open(keys.keypair(), &frame.agent, &event.content).ok()?;
    Telemetry::from_json(&text).ok()
}
