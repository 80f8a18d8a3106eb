//! The disk form of an event: a fixed head, the indexable tags, and the JSON that is sent to clients as it stands.
//!
//! One form for the store, the memory ring and fan-out, so that a stored event is served by copying bytes.
//!
//! ```text
//!  0  u8   version = 1        4  u64le created_at     20  [32] id        84  u32le length of tags
//!  1  u8   zero              12  u64le expiration     52  [32] pubkey    88  tags: (letter u8, length u16le, value)*
//!  2  u16le kind                 (MAX: none)                              …  JSON, to the end
//! ```

use std::sync::Arc;

use crate::{EventId, Kind, PubKey, RawEvent, Timestamp};

const VERSION: u8 = 1;
const HEAD: usize = 88;

/// An owned event in disk form. Cloning is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct Record(Arc<[u8]>);

/// A borrowed event in disk form: from the memory map of the store, or from a [`Record`].
#[derive(Clone, Copy)]
pub struct EventRef<'a>(&'a [u8]);

impl Record {
    /// `None` when a tag value is longer than 64 KiB - 1 or all of them longer than 4 GiB - 1.
    pub(crate) fn build(event: &RawEvent, tags_json: &[u8], content_json: &[u8]) -> Option<Self> {
        let mut out = Vec::with_capacity(HEAD + 400 + 2 * tags_json.len() + content_json.len());
        write_head(&mut out, event);
        for tag in event.tags.iter() {
            if let (Some(letter), Some(value)) = (tag.letter(), tag.value()) {
                out.push(letter);
                out.extend_from_slice(&u16::try_from(value.len()).ok()?.to_le_bytes());
                out.extend_from_slice(value.as_bytes());
            }
        }
        let tags_len = u32::try_from(out.len() - HEAD).ok()?;
        out[84..88].copy_from_slice(&tags_len.to_le_bytes());
        write_json(&mut out, event, tags_json, content_json);
        Some(Self(out.into()))
    }

    /// A record without indexable tags, for an event of our own that [`Self::build`] refuses. It is never stored.
    pub(crate) fn build_bare(event: &RawEvent) -> Self {
        let mut out = Vec::new();
        write_head(&mut out, event);
        out.extend_from_slice(event.to_json().as_bytes());
        Self(out.into())
    }

    /// Takes bytes that came from a store; `None` when they are not a whole record.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        EventRef::from_bytes(bytes)?;
        Some(Self(bytes.into()))
    }

    /// The bytes, shared with whoever else has this record.
    pub fn into_bytes(self) -> Arc<[u8]> {
        self.0
    }

    pub fn as_ref(&self) -> EventRef<'_> {
        EventRef(&self.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_ref().json())
    }
}

fn write_head(out: &mut Vec<u8>, event: &RawEvent) {
    out.extend_from_slice(&[VERSION, 0]);
    out.extend_from_slice(&event.kind.0.to_le_bytes());
    out.extend_from_slice(&event.created_at.to_le_bytes());
    out.extend_from_slice(&event.expiration().unwrap_or(Timestamp::MAX).to_le_bytes());
    out.extend_from_slice(&event.id.0);
    out.extend_from_slice(&event.pubkey.0);
    out.extend_from_slice(&[0; 4]);
}

fn write_json(out: &mut Vec<u8>, event: &RawEvent, tags_json: &[u8], content_json: &[u8]) {
    use std::io::Write;
    let RawEvent { id, pubkey, created_at, kind, sig, .. } = event;
    let head = write!(out, r#"{{"id":"{id}","pubkey":"{pubkey}","created_at":{created_at},"kind":{kind},"tags":"#);
    debug_assert!(head.is_ok(), "writing to memory cannot fail");
    out.extend_from_slice(tags_json);
    out.extend_from_slice(br#","content":"#);
    out.extend_from_slice(content_json);
    out.extend_from_slice(br#","sig":""#);
    let mut hex = [0u8; 128];
    if let Ok(hex) = faster_hex::hex_encode(&sig.0, &mut hex) {
        out.extend_from_slice(hex.as_bytes());
    }
    out.extend_from_slice(br#""}"#);
}

impl<'a> EventRef<'a> {
    /// `None` when the bytes are not a whole record of a version that we know.
    pub fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        let tags_len = u32::from_le_bytes(bytes.get(84..HEAD)?.try_into().ok()?) as usize;
        let json = bytes.get(HEAD.checked_add(tags_len)?..)?;
        // The JSON was written from `str`s; a torn record would not end like this.
        let whole = bytes[0] == VERSION && json.first() == Some(&b'{') && json.last() == Some(&b'}');
        whole.then_some(Self(bytes))
    }

    fn u64_at(self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("invariant: the head is whole"))
    }

    pub fn kind(self) -> Kind {
        Kind(u16::from_le_bytes([self.0[2], self.0[3]]))
    }

    pub fn created_at(self) -> Timestamp {
        self.u64_at(4)
    }

    /// `Timestamp::MAX` when it never expires.
    pub fn expires_at(self) -> Timestamp {
        self.u64_at(12)
    }

    pub fn is_expired(self, now: Timestamp) -> bool {
        self.expires_at() <= now
    }

    pub fn id(self) -> EventId {
        EventId(self.0[20..52].try_into().expect("invariant: the head is whole"))
    }

    pub fn pubkey(self) -> PubKey {
        PubKey(self.0[52..84].try_into().expect("invariant: the head is whole"))
    }

    fn tags_end(self) -> usize {
        HEAD + u32::from_le_bytes(self.0[84..HEAD].try_into().expect("invariant: the head is whole")) as usize
    }

    /// The single-letter tags with their first value, in order.
    pub fn tags(self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut rest = &self.0[HEAD..self.tags_end()];
        std::iter::from_fn(move || {
            let (&[letter, low, high], after) = rest.split_first_chunk::<3>()?;
            let (value, after) = after.split_at_checked(u16::from_le_bytes([low, high]).into())?;
            rest = after;
            Some((letter, value))
        })
    }

    /// The values of one letter.
    pub fn tag_values(self, letter: u8) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.tags().filter(move |tag| tag.0 == letter).map(|tag| tag.1)
    }

    /// Whether a tag of this letter is this key, in hex.
    pub fn names(self, letter: u8, key: &PubKey) -> bool {
        let mut hex = [0u8; 64];
        let Ok(hex) = faster_hex::hex_encode(&key.0, &mut hex) else { return false };
        self.tag_values(letter).any(|value| value == hex.as_bytes())
    }

    /// The value of the first `d` tag, `""` without one.
    pub fn identifier(self) -> &'a [u8] {
        self.tag_values(b'd').next().unwrap_or(b"")
    }

    /// The event as JSON, as it is sent.
    pub fn json(self) -> &'a str {
        std::str::from_utf8(self.json_bytes()).unwrap_or("{}")
    }

    pub fn json_bytes(self) -> &'a [u8] {
        &self.0[self.tags_end()..]
    }

    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub fn to_record(self) -> Record {
        Record(self.0.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Draft;
    use secp256k1::{Keypair, SECP256K1};

    #[test]
    fn a_record_holds_what_the_event_says() {
        let keys = Keypair::from_seckey_slice(SECP256K1, &[9; 32]).expect("a valid secret");
        let event = Draft::new(Kind(30_023), 5, "x")
            .tag(["d", "name"])
            .tag(["expiration", "77"])
            .tag(["T", ""])
            .tag(["long", "not indexed"])
            .tag(["e"])
            .sign(&keys, &[0; 32]);
        let record = Record::from_bytes(event.record().as_bytes()).expect("a whole record");
        let view = record.as_ref();
        assert_eq!((view.id(), view.pubkey(), view.kind()), (event.id, event.pubkey, event.kind));
        assert_eq!((view.created_at(), view.expires_at()), (5, 77));
        assert!(view.is_expired(77) && !view.is_expired(76));
        assert_eq!(view.tags().collect::<Vec<_>>(), [(b'd', &b"name"[..]), (b'T', &b""[..])]);
        assert_eq!(view.json(), event.raw().to_json());
    }

    #[test]
    fn a_torn_record_is_not_taken() {
        let keys = Keypair::from_seckey_slice(SECP256K1, &[9; 32]).expect("a valid secret");
        let event = Draft::new(Kind(1), 5, "x").tag(["t", "bee"]).sign(&keys, &[0; 32]);
        let bytes = event.record().as_bytes();
        for end in 0..bytes.len() {
            assert!(EventRef::from_bytes(&bytes[..end]).is_none(), "{end} bytes");
        }
    }
}
