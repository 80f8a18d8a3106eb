//! Gift wraps (NIP-59): a message that nobody signed (the *rumor*), in a seal by its author, in a wrap by a key that is
//! thrown away. A relay learns to whom it goes, and nothing else.

use secp256k1::{Keypair, SECP256K1};
use serde::{Deserialize, Serialize};

use crate::seal::{self, SealError};
use crate::{Draft, EventId, Kind, PubKey, RawEvent, Sig, Tags, Timestamp};

/// Seals and wraps are dated up to two days back, so that their times tell nothing (NIP-59).
pub const BACK_SECS_MAX: u64 = 2 * 24 * 60 * 60;

/// Fresh random bytes for one wrap.
#[derive(Clone)]
pub struct Fresh {
    /// The key that is thrown away.
    pub secret: [u8; 32],
    pub seal_nonce: [u8; 32],
    pub wrap_nonce: [u8; 32],
    pub aux: [u8; 32],
    /// Any numbers: how far back the seal and the wrap are dated.
    pub seal_back: u64,
    pub wrap_back: u64,
}

/// Why a wrap is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("it does not hold a signed seal")]
    NotASeal,
    #[error("the seal does not hold a message of its signer")]
    NotARumor,
}

/// A rumor as it stands in its seal. Some clients leave the id out.
#[derive(Serialize, Deserialize)]
struct Unsigned {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<EventId>,
    pubkey: PubKey,
    created_at: Timestamp,
    kind: Kind,
    tags: Tags,
    content: String,
}

/// A draft as its author's message that nobody signs: its signature is zeros, which verifies for nothing.
pub fn rumor(draft: Draft, author: PubKey) -> RawEvent {
    let Draft { created_at, kind, tags, content } = draft;
    let (id, sig) = (EventId([0; 32]), Sig([0; 64]));
    let event = RawEvent { id, pubkey: author, created_at, kind, tags, content, sig };
    RawEvent { id: event.computed_id(), ..event }
}

/// Wraps a rumor of ours for `to`.
pub fn wrap(
    keys: &Keypair,
    rumor: &RawEvent,
    to: &PubKey,
    now: Timestamp,
    fresh: &Fresh,
) -> Result<RawEvent, SealError> {
    let RawEvent { id, pubkey, created_at, kind, ref tags, ref content, .. } = *rumor;
    let unsigned = Unsigned { id: Some(id), pubkey, created_at, kind, tags: tags.clone(), content: content.clone() };
    let text = serde_json::to_string(&unsigned).expect("invariant: a rumor is strings and numbers");
    let back = |number: u64| now.saturating_sub(number % BACK_SECS_MAX);
    let sealed = seal::seal(keys, to, &text, fresh.seal_nonce)?;
    let sealed = Draft::new(Kind::SEAL, back(fresh.seal_back), sealed).sign(keys, &fresh.aux);
    let thrown_away = Keypair::from_seckey_slice(SECP256K1, &fresh.secret).map_err(|_| SealError::Key)?;
    let wrapped = seal::seal(&thrown_away, to, &sealed.raw().to_json(), fresh.wrap_nonce)?;
    let draft = Draft::new(Kind::GIFT_WRAP, back(fresh.wrap_back), wrapped).tag(["p", &to.to_hex()]);
    Ok(draft.sign(&thrown_away, &fresh.aux).raw().clone())
}

/// Opens a wrap for us. What comes out was written by its `pubkey`: the seal's signature says so.
pub fn unwrap(keys: &Keypair, wrap: &RawEvent) -> Result<RawEvent, WrapError> {
    let text = seal::open(keys, &wrap.pubkey, &wrap.content)?;
    let sealed: RawEvent = serde_json::from_str(&text).map_err(|_| WrapError::NotASeal)?;
    let sealed = sealed.verify().ok().filter(|sealed| sealed.kind == Kind::SEAL).ok_or(WrapError::NotASeal)?;
    let text = seal::open(keys, &sealed.pubkey, &sealed.content)?;
    let unsigned: Unsigned = serde_json::from_str(&text).map_err(|_| WrapError::NotARumor)?;
    let Unsigned { id, pubkey, created_at, kind, tags, content } = unsigned;
    let event = rumor(Draft { created_at, kind, tags, content }, pubkey);
    // Whoever could put another's name on a rumor could speak for them.
    let is_whole = pubkey == sealed.pubkey && id.is_none_or(|id| id == event.id);
    if is_whole { Ok(event) } else { Err(WrapError::NotARumor) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;

    fn keys(seed: u8) -> (Keypair, PubKey) {
        let keys = Keypair::from_seckey_slice(SECP256K1, &[seed; 32]).expect("a valid secret");
        (keys, PubKey(keys.x_only_public_key().0.serialize()))
    }

    fn fresh(seed: u8) -> Fresh {
        let bytes = [seed; 32];
        let (seal_back, wrap_back) = (u64::from(seed) * 9_999_991, u64::from(seed) * 77_777_777);
        Fresh { secret: bytes, seal_nonce: bytes, wrap_nonce: bytes, aux: bytes, seal_back, wrap_back }
    }

    const NOW: Timestamp = 1_700_000_000;

    #[test]
    fn a_wrap_shows_its_recipient_and_nothing_else_and_opens_for_that_one_only() {
        let ((ann, ann_key), (bee, bee_key), (eve, _)) = (keys(1), keys(2), keys(3));
        let rumor = rumor(Draft::new(Kind::PRIVATE_MESSAGE, NOW, "meet me").tag(["p", &bee_key.to_hex()]), ann_key);
        let wrapped = wrap(&ann, &rumor, &bee_key, NOW, &fresh(9)).expect("it wraps");
        let json = wrapped.to_json();
        assert!(!json.contains(&ann_key.to_hex()) && !json.contains("meet") && !json.contains(&rumor.id.to_hex()));
        assert_eq!(wrapped.tags.values("p").collect::<Vec<_>>(), [bee_key.to_hex()]);
        assert!(wrapped.created_at <= NOW && NOW - wrapped.created_at < BACK_SECS_MAX);
        assert!(wrapped.clone().verify().is_ok());
        assert_eq!(unwrap(&bee, &wrapped), Ok(rumor));
        assert_eq!(unwrap(&eve, &wrapped), Err(WrapError::Seal(SealError::Content)));
    }

    /// A wrap of any text as a seal.
    fn wrap_of(text: &str, to: &PubKey) -> RawEvent {
        let (other, _) = keys(8);
        let sealed = seal::seal(&other, to, text, [4; 32]).expect("it seals");
        Draft::new(Kind::GIFT_WRAP, NOW, sealed).tag(["p", &to.to_hex()]).sign(&other, &[0; 32]).raw().clone()
    }

    #[test]
    fn nobody_speaks_for_another_from_inside_a_wrap() {
        let ((_, ann_key), (bee, bee_key), (eve, _)) = (keys(1), keys(2), keys(3));
        let text = |id: &str, pubkey: &PubKey| {
            format!(r#"{{{id}"pubkey":"{pubkey}","created_at":5,"kind":14,"tags":[],"content":"pay eve"}}"#)
        };
        let sealed_by = |author: &Keypair, kind: Kind, text: &str| {
            let sealed = seal::seal(author, &bee_key, text, [5; 32]).expect("it seals");
            Draft::new(kind, 5, sealed).sign(author, &[0; 32]).raw().clone()
        };
        let eve_key = keys(3).1;
        let honest = sealed_by(&eve, Kind::SEAL, &text("", &eve_key));
        let opened = unwrap(&bee, &wrap_of(&honest.to_json(), &bee_key)).expect("an id may be left out");
        assert_eq!((opened.pubkey, opened.content.as_str()), (eve_key, "pay eve"));
        let forged = sealed_by(&eve, Kind::SEAL, &text("", &ann_key));
        assert_eq!(unwrap(&bee, &wrap_of(&forged.to_json(), &bee_key)), Err(WrapError::NotARumor));
        let other_id = format!(r#""id":"{}","#, "ab".repeat(32));
        let forged = sealed_by(&eve, Kind::SEAL, &text(&other_id, &eve_key));
        assert_eq!(unwrap(&bee, &wrap_of(&forged.to_json(), &bee_key)), Err(WrapError::NotARumor));
        let mut forged = sealed_by(&eve, Kind::SEAL, &text("", &eve_key));
        forged.pubkey = ann_key;
        assert_eq!(unwrap(&bee, &wrap_of(&forged.to_json(), &bee_key)), Err(WrapError::NotASeal));
        let other_kind = sealed_by(&eve, Kind::NOTE, &text("", &eve_key));
        assert_eq!(unwrap(&bee, &wrap_of(&other_kind.to_json(), &bee_key)), Err(WrapError::NotASeal));
        assert_eq!(unwrap(&bee, &wrap_of("hello", &bee_key)), Err(WrapError::NotASeal));
    }

    #[test]
    fn a_part_of_a_reply_fits_whatever_is_in_it() {
        let ((ann, ann_key), (bee, bee_key)) = (keys(1), keys(2));
        let worst = "\u{1}".repeat(limits::DIRECT_PART_BYTES_MAX);
        let mut draft = Draft::new(Kind::PRIVATE_MESSAGE, NOW, worst);
        for _ in 0..4 {
            draft = draft.tag(["auth", &"a".repeat(64), &"kind=1&".repeat(20), &"b".repeat(128)]);
        }
        let wrapped = wrap(&ann, &rumor(draft, ann_key), &bee_key, NOW, &fresh(1)).expect("it fits");
        assert!(unwrap(&bee, &wrapped).is_ok());
    }
}
