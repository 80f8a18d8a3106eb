//! The disk form of an event: a fixed head, where the indexable tags are, and the parts of its JSON that the head does
//! not have.
//!
//! One form for the store, the memory ring and fan-out. Nothing stands twice: ids, keys and signatures are bytes here
//! and hex on the wire, which halves an ordinary event (ADR 1, ADR 12).
//!
//! ```text
//!  0  u8   version = 2        20  [32] id          148  u32le length of the tag places
//!  1  u8   zero               52  [32] pubkey      152  u32le length of the tags
//!  2  u16le kind              84  [64] signature   156  tag places
//!  4  u64le created_at                               …  tags, a JSON array
//! 12  u64le expiration (MAX: none)                   …  content, a JSON string, to the end
//!
//! tag place: letter u8, length u16le, then where its value begins in the tags, u32le;
//!            or, when JSON escapes the value: letter | 0x80, length u16le, the value
//! ```

use std::sync::Arc;

use crate::{EventId, Kind, PubKey, RawEvent, Sig, Timestamp};

const VERSION: u8 = 2;
const HEAD: usize = 156;

/// Set in the letter of a tag place whose value follows it.
const IS_INLINE: u8 = 0x80;

/// What an event's JSON has besides tags and content: names, hex and numbers at their longest.
const JSON_FRAME_MAX: usize = 64 + 64 + 128 + 20 + 5 + 80;

/// An owned event in disk form. Cloning is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct Record(Arc<[u8]>);

/// A borrowed event in disk form: from the memory map of the store, or from a [`Record`].
#[derive(Clone, Copy)]
pub struct EventRef<'a>(&'a [u8]);

impl Record {
    /// `None` when a tag value is longer than 64 KiB - 1 or all of them longer than 4 GiB - 1.
    pub(crate) fn build(event: &RawEvent, tags_json: &[u8], content_json: &[u8]) -> Option<Self> {
        let mut out = Vec::with_capacity(HEAD + 128 + tags_json.len() + content_json.len());
        write_head(&mut out, event);
        write_places(&mut out, event, tags_json)?;
        let places_len = out.len() - HEAD;
        Self::finish(out, places_len, tags_json, content_json)
    }

    fn finish(mut out: Vec<u8>, places_len: usize, tags_json: &[u8], content_json: &[u8]) -> Option<Self> {
        out[148..152].copy_from_slice(&u32::try_from(places_len).ok()?.to_le_bytes());
        out[152..156].copy_from_slice(&u32::try_from(tags_json.len()).ok()?.to_le_bytes());
        out.extend_from_slice(tags_json);
        out.extend_from_slice(content_json);
        Some(Self(out.into()))
    }

    /// A record without indexable tags, for an event of our own that [`Self::build`] refuses. It is never stored.
    pub(crate) fn build_bare(event: &RawEvent, tags_json: &[u8], content_json: &[u8]) -> Self {
        let mut out = Vec::new();
        write_head(&mut out, event);
        Self::finish(out, 0, tags_json, content_json).expect("invariant: our own tags are shorter than 4 GiB")
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
        f.write_str(&self.as_ref().to_json())
    }
}

fn write_head(out: &mut Vec<u8>, event: &RawEvent) {
    out.extend_from_slice(&[VERSION, 0]);
    out.extend_from_slice(&event.kind.0.to_le_bytes());
    out.extend_from_slice(&event.created_at.to_le_bytes());
    out.extend_from_slice(&event.expiration().unwrap_or(Timestamp::MAX).to_le_bytes());
    out.extend_from_slice(&event.id.0);
    out.extend_from_slice(&event.pubkey.0);
    out.extend_from_slice(&event.sig.0);
    out.extend_from_slice(&[0; 8]);
}

/// Where the single-letter tags have their values: walks the tags and their JSON side by side.
fn write_places(out: &mut Vec<u8>, event: &RawEvent, json: &[u8]) -> Option<()> {
    // The text has no white space: every element is `"…"`, and one byte (`,` or `]`) or more lies between two.
    let mut at = 0;
    for tag in event.tags.iter() {
        for (i, element) in tag.elements().enumerate() {
            at += json[at..].iter().position(|byte| *byte == b'"')? + 1;
            let is_plain = json[at..].starts_with(element.as_bytes()) && json.get(at + element.len()) == Some(&b'"');
            if let (1, Some(letter)) = (i, tag.letter()) {
                let length = u16::try_from(element.len()).ok()?.to_le_bytes();
                out.push(if is_plain { letter } else { letter | IS_INLINE });
                out.extend_from_slice(&length);
                if is_plain {
                    out.extend_from_slice(&u32::try_from(at).ok()?.to_le_bytes());
                } else {
                    out.extend_from_slice(element.as_bytes());
                }
            }
            at += if is_plain { element.len() } else { string_len(&json[at..])? } + 1;
        }
    }
    Some(())
}

/// Length of a JSON string's inside, from its first byte to the quote that ends it.
fn string_len(json: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match json.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

impl<'a> EventRef<'a> {
    /// `None` when the bytes are not a whole record of the version that we know.
    pub fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < HEAD || bytes[0] != VERSION {
            return None;
        }
        let event = Self(bytes);
        let tags = bytes.get(event.tags_start()..event.tags_end())?;
        let content = bytes.get(event.tags_end()..)?;
        // The JSON was written from `str`s; a torn record would not end like this.
        let is_whole = tags.first() == Some(&b'[')
            && tags.last() == Some(&b']')
            && content.len() >= 2
            && content.first() == Some(&b'"')
            && content.last() == Some(&b'"');
        is_whole.then_some(event)
    }

    fn u32_at(self, at: usize) -> usize {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("invariant: the head is whole")) as usize
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

    pub fn sig(self) -> Sig {
        Sig(self.0[84..148].try_into().expect("invariant: the head is whole"))
    }

    fn tags_start(self) -> usize {
        HEAD + self.u32_at(148)
    }

    fn tags_end(self) -> usize {
        self.tags_start() + self.u32_at(152)
    }

    /// The single-letter tags with their first value, in order.
    pub fn tags(self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let json = &self.0[self.tags_start()..self.tags_end()];
        let mut rest = &self.0[HEAD..self.tags_start()];
        std::iter::from_fn(move || {
            let (&[letter, low, high], after) = rest.split_first_chunk::<3>()?;
            let length = usize::from(u16::from_le_bytes([low, high]));
            if letter & IS_INLINE != 0 {
                let (value, after) = after.split_at_checked(length)?;
                rest = after;
                return Some((letter & !IS_INLINE, value));
            }
            let (at, after) = after.split_first_chunk::<4>()?;
            let at = u32::from_le_bytes(*at) as usize;
            rest = after;
            Some((letter, json.get(at..at + length)?))
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

    /// The content as a JSON string, quotes and escapes included.
    pub fn content_json(self) -> &'a [u8] {
        &self.0[self.tags_end()..]
    }

    /// Bytes that [`Self::write_json`] adds, at most.
    pub fn json_len_max(self) -> usize {
        JSON_FRAME_MAX + self.0.len() - self.tags_start()
    }

    /// Adds the event as canonical JSON: what `RawEvent::to_json` gives.
    pub fn write_json(self, out: &mut String) {
        use std::fmt::Write;
        // Text that we wrote ourselves; if the disk changed a byte since, the reader sees that nothing is there.
        let (Ok(tags), Ok(content)) = (
            std::str::from_utf8(&self.0[self.tags_start()..self.tags_end()]),
            std::str::from_utf8(self.content_json()),
        ) else {
            return out.push_str("{}");
        };
        out.push_str(r#"{"id":""#);
        push_hex(out, &self.0[20..52]);
        out.push_str(r#"","pubkey":""#);
        push_hex(out, &self.0[52..84]);
        let numbers = write!(out, r#"","created_at":{},"kind":{},"tags":"#, self.created_at(), self.kind().0);
        debug_assert!(numbers.is_ok(), "writing to memory cannot fail");
        out.push_str(tags);
        out.push_str(r#","content":"#);
        out.push_str(content);
        out.push_str(r#","sig":""#);
        push_hex(out, &self.0[84..148]);
        out.push_str(r#""}"#);
    }

    pub fn to_json(self) -> String {
        let mut out = String::with_capacity(self.json_len_max());
        self.write_json(&mut out);
        out
    }

    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub fn to_record(self) -> Record {
        Record(self.0.into())
    }
}

/// At most a signature.
fn push_hex(out: &mut String, bytes: &[u8]) {
    let mut hex = [0u8; 128];
    if let Ok(hex) = faster_hex::hex_encode(bytes, &mut hex) {
        out.push_str(hex);
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
        assert_eq!(view.sig(), event.sig);
        assert_eq!(view.to_json(), event.raw().to_json());
    }

    #[test]
    fn tag_values_are_found_beside_elements_that_json_escapes() {
        let keys = Keypair::from_seckey_slice(SECP256K1, &[9; 32]).expect("a valid secret");
        let values = ["plain", "", "qu\"ote", "\\", "a\\\"b", "\u{1}", "é🐝", ",\"],[\"", "\"", "x\\"];
        let mut draft = Draft::new(Kind(1), 5, "\"");
        for value in values {
            draft = draft.tag(["odd\"name\\", value]).tag(["t", value, value]).tag([value]).tag([] as [&str; 0]);
        }
        let event = draft.sign(&keys, &[0; 32]);
        let view = event.record().as_ref();
        let found: Vec<&[u8]> = view.tag_values(b't').collect();
        assert_eq!(found, values.map(str::as_bytes));
        assert_eq!(view.tags().count(), values.len());
        assert_eq!(view.to_json(), event.raw().to_json());
    }

    #[test]
    fn the_disk_form_is_frozen() {
        let keys = Keypair::from_seckey_slice(SECP256K1, &[9; 32]).expect("a valid secret");
        let event = Draft::new(Kind(30_023), 5, "a \"b\"")
            .tag(["d", "name"])
            .tag(["expiration", "77"])
            .tag(["t", "qu\"ote"])
            .sign(&keys, &[0; 32]);
        let bytes = event.record().as_bytes();
        assert_eq!(faster_hex::hex_string(bytes), include_str!("../tests/frozen/record.hex").trim_end());
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
