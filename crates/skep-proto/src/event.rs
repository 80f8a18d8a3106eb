//! Events on their way in: `RawEvent` (parsed, believed by nobody) → `VerifiedEvent` (id and signature checked).

use std::fmt;

use secp256k1::{Keypair, SECP256K1, XOnlyPublicKey};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};

use crate::record::Record;
use crate::skip::Skip;
use crate::{EventId, Kind, PubKey, Sig, Tags, Timestamp};

/// An event as a client sent it. Fields that NIP-01 does not name are not signed, so they are not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RawEvent {
    pub id: EventId,
    pub pubkey: PubKey,
    pub created_at: Timestamp,
    pub kind: Kind,
    pub tags: Tags,
    pub content: String,
    pub sig: Sig,
}

/// The name of a field of an event.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
pub(crate) enum Field {
    Id,
    Pubkey,
    CreatedAt,
    Kind,
    Tags,
    Content,
    Sig,
    #[serde(other)]
    Unknown,
}

impl<'de> Deserialize<'de> for RawEvent {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = RawEvent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawEvent, A::Error> {
                let (mut id, mut pubkey, mut created_at, mut kind) = (None, None, None, None);
                let (mut tags, mut content, mut sig) = (None, None, None);
                let mut skip = Skip::default();
                while let Some(field) = map.next_key()? {
                    match field {
                        Field::Id => once("id", &mut id, &mut map)?,
                        Field::Pubkey => once("pubkey", &mut pubkey, &mut map)?,
                        Field::CreatedAt => once("created_at", &mut created_at, &mut map)?,
                        Field::Kind => once("kind", &mut kind, &mut map)?,
                        Field::Tags => once("tags", &mut tags, &mut map)?,
                        Field::Content => once("content", &mut content, &mut map)?,
                        Field::Sig => once("sig", &mut sig, &mut map)?,
                        Field::Unknown => map.next_value_seed(&mut skip)?,
                    }
                }
                Ok(RawEvent {
                    id: there("id", id)?,
                    pubkey: there("pubkey", pubkey)?,
                    created_at: there("created_at", created_at)?,
                    kind: there("kind", kind)?,
                    tags: there("tags", tags)?,
                    content: there("content", content)?,
                    sig: there("sig", sig)?,
                })
            }
        }
        d.deserialize_map(Fields)
    }
}

/// Reads the value of a field that may be there once.
fn once<'de, T, A>(name: &'static str, field: &mut Option<T>, map: &mut A) -> Result<(), A::Error>
where
    T: Deserialize<'de>,
    A: MapAccess<'de>,
{
    match field.replace(map.next_value()?) {
        Some(_) => Err(A::Error::duplicate_field(name)),
        None => Ok(()),
    }
}

fn there<T, E: Error>(name: &'static str, field: Option<T>) -> Result<T, E> {
    field.ok_or_else(|| E::missing_field(name))
}

/// Why an event is not what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("the id is not the SHA-256 of the event")]
    Id,
    #[error("the public key is not a point on the curve")]
    PubKey,
    #[error("the signature does not verify")]
    Signature,
    #[error("a tag or the event is too long to be stored")]
    TooLarge,
}

/// An event whose id and signature were checked, with the bytes that are stored and sent.
#[derive(Debug, Clone)]
pub struct VerifiedEvent {
    raw: RawEvent,
    record: Record,
}

/// The parts of an event as JSON text, made once and used for the id, the store and the wire.
struct Parts {
    tags: Vec<u8>,
    content: Vec<u8>,
}

impl Parts {
    fn of(tags: &Tags, content: &str) -> Self {
        let mut parts = Self { tags: Vec::with_capacity(256), content: Vec::with_capacity(content.len() + 16) };
        // Writing strings to memory cannot fail. Escapes: `\" \\ \b \f \n \r \t`, other control characters as
        // `\u00xx`, all else verbatim: what every Nostr library hashes.
        serde_json::to_writer(&mut parts.tags, tags).expect("invariant: tags are strings");
        serde_json::to_writer(&mut parts.content, content).expect("invariant: content is a string");
        parts
    }

    /// SHA-256 of `[0,pubkey,created_at,kind,tags,content]` (NIP-01).
    fn id(&self, pubkey: &PubKey, created_at: Timestamp, kind: Kind) -> EventId {
        let mut hash = Sha256::new();
        hash.update(format!("[0,\"{pubkey}\",{created_at},{kind},"));
        hash.update(&self.tags);
        hash.update(b",");
        hash.update(&self.content);
        hash.update(b"]");
        EventId(hash.finalize().into())
    }
}

impl RawEvent {
    /// The id that this event should have.
    pub fn computed_id(&self) -> EventId {
        Parts::of(&self.tags, &self.content).id(&self.pubkey, self.created_at, self.kind)
    }

    /// Checks id, then signature. About 30 µs of CPU: run it on the pool.
    pub fn verify(self) -> Result<VerifiedEvent, VerifyError> {
        self.hash()?.verify()
    }

    /// Checks the id only: about 1 µs.
    pub fn hash(self) -> Result<HashedEvent, VerifyError> {
        let parts = Parts::of(&self.tags, &self.content);
        if parts.id(&self.pubkey, self.created_at, self.kind) == self.id {
            Ok(HashedEvent { raw: self, parts })
        } else {
            Err(VerifyError::Id)
        }
    }

    /// The event as canonical JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("invariant: an event is strings and numbers")
    }

    /// When it expires (NIP-40); `None` without a well-formed tag.
    pub fn expiration(&self) -> Option<Timestamp> {
        self.tags.values("expiration").find_map(|text| text.parse().ok())
    }
}

/// An event whose id is right: whoever sent it knows all that the id stands for. Its signature was not checked.
pub struct HashedEvent {
    raw: RawEvent,
    parts: Parts,
}

impl HashedEvent {
    pub fn id(&self) -> EventId {
        self.raw.id
    }

    /// Checks the signature.
    pub fn verify(self) -> Result<VerifiedEvent, VerifyError> {
        let Self { raw, parts } = self;
        let key = XOnlyPublicKey::from_slice(&raw.pubkey.0).map_err(|_| VerifyError::PubKey)?;
        let sig = secp256k1::schnorr::Signature::from_slice(&raw.sig.0).map_err(|_| VerifyError::Signature)?;
        SECP256K1.verify_schnorr(&sig, &raw.id.0, &key).map_err(|_| VerifyError::Signature)?;
        let record = Record::build(&raw, &parts.tags, &parts.content).ok_or(VerifyError::TooLarge)?;
        Ok(VerifiedEvent { raw, record })
    }
}

impl VerifiedEvent {
    pub fn raw(&self) -> &RawEvent {
        &self.raw
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    pub fn into_record(self) -> Record {
        self.record
    }
}

impl std::ops::Deref for VerifiedEvent {
    type Target = RawEvent;
    fn deref(&self) -> &RawEvent {
        &self.raw
    }
}

/// An event that nobody has signed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    pub created_at: Timestamp,
    pub kind: Kind,
    #[serde(default)]
    pub tags: Tags,
    #[serde(default)]
    pub content: String,
}

impl Draft {
    pub fn new(kind: Kind, created_at: Timestamp, content: impl Into<String>) -> Self {
        Self { created_at, kind, tags: Tags::new(), content: content.into() }
    }

    #[must_use]
    pub fn tag<S: AsRef<str>>(mut self, elements: impl IntoIterator<Item = S>) -> Self {
        self.tags.push(elements);
        self
    }

    /// Signs with BIP-340. `aux` is 32 fresh random bytes where there are some, zeros are allowed.
    pub fn sign(self, keys: &Keypair, aux: &[u8; 32]) -> VerifiedEvent {
        let pubkey = PubKey(keys.x_only_public_key().0.serialize());
        let parts = Parts::of(&self.tags, &self.content);
        let id = parts.id(&pubkey, self.created_at, self.kind);
        let sig = Sig(sign_bytes(&id.0, keys, aux));
        let Self { created_at, kind, tags, content } = self;
        let raw = RawEvent { id, pubkey, created_at, kind, tags, content, sig };
        let record = Record::build(&raw, &parts.tags, &parts.content)
            .unwrap_or_else(|| Record::build_bare(&raw, &parts.tags, &parts.content));
        VerifiedEvent { raw, record }
    }
}

/// A BIP-340 signature over bytes (a 32-byte hash).
pub fn sign_bytes(message: &[u8], keys: &Keypair, aux: &[u8; 32]) -> [u8; 64] {
    *SECP256K1.sign_schnorr_with_aux_rand(message, keys, aux).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keypair {
        Keypair::from_seckey_slice(SECP256K1, &[7; 32]).expect("a valid secret")
    }

    fn sample() -> VerifiedEvent {
        Draft::new(Kind(1), 1_700_000_000, "line\n\"quoted\" \\ tab\t bell\u{7} del\u{7f} é 🐝")
            .tag(["e", &"ab".repeat(32)])
            .tag(["t", "bees", ""])
            .sign(&keys(), &[0; 32])
    }

    #[test]
    fn the_wire_form_is_frozen() {
        // Frozen: a change of these bytes is a change of every stored event and every id.
        assert_eq!(sample().raw().to_json(), include_str!("../tests/frozen/event.json").trim_end());
    }

    #[test]
    fn what_we_sign_verifies_and_any_change_is_found() {
        let event = sample().raw().clone();
        assert!(event.clone().verify().is_ok());
        let changes: [fn(&mut RawEvent); 6] = [
            |e| e.content.push('x'),
            |e| e.created_at += 1,
            |e| e.kind = Kind(2),
            |e| e.tags.push(["x"]),
            |e| e.pubkey.0[0] ^= 1,
            |e| e.id.0[31] ^= 1,
        ];
        for change in changes {
            let mut altered = event.clone();
            change(&mut altered);
            assert_eq!(altered.verify().err(), Some(VerifyError::Id));
        }
        let mut altered = event;
        altered.sig.0[63] ^= 1;
        assert_eq!(altered.verify().err(), Some(VerifyError::Signature));
    }

    #[test]
    fn numbers_out_of_range_and_missing_fields_are_refused() {
        let good = sample().raw().to_json();
        assert!(serde_json::from_str::<RawEvent>(&good).is_ok());
        for (from, to) in [
            ("\"kind\":1,", "\"kind\":65536,"),
            ("\"kind\":1,", "\"kind\":-1,"),
            ("\"kind\":1,", "\"kind\":1.5,"),
            ("\"kind\":1,", ""),
            ("1700000000", "-5"),
            ("1700000000", "1e400"),
            ("1700000000", "\"1700000000\""),
        ] {
            assert!(serde_json::from_str::<RawEvent>(&good.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
