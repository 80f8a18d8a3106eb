//! Index keys. One function says which keys an event has; storing and removing both ask it.

use sha2::{Digest, Sha256};
use skep_proto::kind::Class;
use skep_proto::{EventRef, Kind, PubKey, Seq, Timestamp};

use super::env::Table;
use crate::StoreError;

/// The end of every index key, in serve order: newest first, then lowest id.
///
/// Six bytes of the id decide a tie: two events of one second that share them (2^-48) fall back to kind and commit
/// order. The kind and whether the event expires stand here too, so that an index row often tells enough (ADR 12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pos {
    /// `!created_at`
    age: u64,
    /// First six bytes of the id, then the kind.
    id_kind: u64,
    /// The number, with [`EXPIRES`] when the event has an expiration.
    seq: u64,
}

/// Numbers count commits: they do not get here in ten thousand years of a million a second.
const EXPIRES: u64 = 1 << 63;

pub(super) const POS: usize = 24;

/// The longest prefix: an author and a kind.
pub(super) const PREFIX_MAX: usize = 34;

impl Pos {
    pub(super) fn of(event: EventRef<'_>, seq: Seq) -> Self {
        let id = event.id().0;
        let kind = event.kind().0.to_be_bytes();
        let id_kind = [id[0], id[1], id[2], id[3], id[4], id[5], kind[0], kind[1]];
        let flag = if event.expires_at() == Timestamp::MAX { 0 } else { EXPIRES };
        Self { age: !event.created_at(), id_kind: u64::from_be_bytes(id_kind), seq: seq.0 | flag }
    }

    /// The first position of a time, walking towards older ones.
    pub(super) fn at(newest: Timestamp) -> Self {
        Self { age: !newest, id_kind: 0, seq: 0 }
    }

    pub(super) fn read(key: &[u8]) -> Option<Self> {
        let tail = key.len().checked_sub(POS).map(|from| &key[from..])?;
        let number = |at: usize| tail[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        Some(Self { age: number(0)?, id_kind: number(8)?, seq: number(16)? })
    }

    pub(super) fn created_at(self) -> Timestamp {
        !self.age
    }

    pub(super) fn kind(self) -> Kind {
        Kind(self.id_kind as u16)
    }

    pub(super) fn expires(self) -> bool {
        self.seq & EXPIRES != 0
    }

    pub(super) fn seq(self) -> Seq {
        Seq(self.seq & !EXPIRES)
    }

    /// The next possible position. Numbers never reach the maximum.
    pub(super) fn after(self) -> Self {
        Self { seq: self.seq + 1, ..self }
    }
}

/// A key on the stack.
#[derive(Clone, Copy)]
pub(super) struct Key {
    bytes: [u8; PREFIX_MAX + POS],
    len: u8,
}

impl Key {
    pub(super) fn new(parts: &[&[u8]]) -> Self {
        let mut key = Self { bytes: [0; PREFIX_MAX + POS], len: 0 };
        parts.iter().for_each(|part| key.push(part));
        key
    }

    fn push(&mut self, part: &[u8]) {
        let from = usize::from(self.len);
        self.bytes[from..from + part.len()].copy_from_slice(part);
        self.len += part.len() as u8;
    }

    pub(super) fn with(mut self, pos: Pos) -> Self {
        self.push(&pos.age.to_be_bytes());
        self.push(&pos.id_kind.to_be_bytes());
        self.push(&pos.seq.to_be_bytes());
        self
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

pub(super) fn author(key: &PubKey) -> Key {
    Key::new(&[&key.0])
}

pub(super) fn author_kind(key: &PubKey, kind: Kind) -> Key {
    Key::new(&[&key.0, &kind.0.to_be_bytes()])
}

pub(super) fn kind(kind: Kind) -> Key {
    Key::new(&[&kind.0.to_be_bytes()])
}

/// Tag values are hashed: short keys of one length, and a match is checked on the record anyway.
pub(super) fn tag(letter: u8, value: &[u8]) -> Key {
    let hash = Sha256::digest(value);
    Key::new(&[&[letter], &hash[..12]])
}

/// A word of the content.
pub(super) fn word(word: &str) -> Key {
    tag(0, word.as_bytes())
}

/// The coordinate of a replaceable or addressable event; `d` counts in full, through its hash.
pub(super) fn address(kind: Kind, author: &PubKey, d: &[u8]) -> [u8; 66] {
    let d = if kind.class() == Class::Addressable { d } else { b"" };
    let mut key = [0; 66];
    key[..2].copy_from_slice(&kind.0.to_be_bytes());
    key[2..34].copy_from_slice(&author.0);
    key[34..].copy_from_slice(&Sha256::digest(d));
    key
}

/// The coordinate of a stored event, when it has one.
pub(super) fn address_of(event: EventRef<'_>) -> Option<[u8; 66]> {
    matches!(event.kind().class(), Class::Replaceable | Class::Addressable)
        .then(|| address(event.kind(), &event.pubkey(), event.identifier()))
}

/// Every index row of an event but its words.
pub(super) fn index(event: EventRef<'_>, seq: Seq, mut row: impl FnMut(Table, Key)) {
    let pos = Pos::of(event, seq);
    let (author_key, kind_number) = (event.pubkey(), event.kind());
    row(Table::Created, Key::new(&[]).with(pos));
    row(Table::Authors, author(&author_key).with(pos));
    row(Table::AuthorKinds, author_kind(&author_key, kind_number).with(pos));
    row(Table::Kinds, kind(kind_number).with(pos));
    for (letter, value) in event.tags() {
        row(Table::Tags, tag(letter, value).with(pos));
    }
    if event.expires_at() != Timestamp::MAX {
        row(Table::Expirations, expiration(event.expires_at(), seq));
    }
}

pub(super) fn expiration(at: Timestamp, seq: Seq) -> Key {
    Key::new(&[&at.to_be_bytes(), &seq.0.to_be_bytes()])
}

pub(super) fn seq_from(bytes: &[u8]) -> Result<Seq, StoreError> {
    bytes.try_into().map(|bytes| Seq(u64::from_be_bytes(bytes))).map_err(|_| StoreError::Corrupt("number"))
}
