//! Live subscriptions, indexed so that an event costs what it matches, not what is subscribed.
//!
//! Each filter stands under the values of its most telling condition: ids, else authors, else one tag, else kinds.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use ahash::AHashMap;
use indexmap::IndexSet;
use skep_proto::wire::{self, SubId};
use skep_proto::{EventId, EventRef, Filter, Kind, PubKey, Seq, Timestamp};

use crate::{Readers, World, may_read};

/// A connection, by its number in this process.
pub type ConnId = u64;

type SubKey = u32;
type KeySet = IndexSet<SubKey, ahash::RandomState>;

/// The subscriptions under one value. Mostly it is one, and then it has no memory of its own: a subscription to 5,000
/// authors comes and goes while everybody waits.
#[derive(Debug)]
enum Keys {
    One(SubKey),
    Many(Box<KeySet>),
}

/// One live subscription.
#[derive(Debug)]
pub struct LiveSub {
    pub conn: ConnId,
    /// The client's name for it, as JSON text.
    pub quoted: Arc<str>,
    filters: Arc<[Filter]>,
    /// Events up to here are the scan's to serve.
    after: Seq,
}

/// All live subscriptions of a relay. `O` is where a connection's messages go; this machine never looks into it.
#[derive(Debug)]
pub struct Subs<O> {
    conns: AHashMap<ConnId, Conn<O>>,
    subs: Vec<Option<LiveSub>>,
    free: Vec<SubKey>,
    by_id: AHashMap<EventId, Keys>,
    by_author: AHashMap<PubKey, Keys>,
    by_tag: AHashMap<(u8, Box<[u8]>), Keys>,
    by_kind: AHashMap<Kind, Keys>,
    others: KeySet,
    /// Scratch: the event number at which a subscription was last looked at, so that two filters send once.
    seen: Vec<u64>,
    round: u64,
}

#[derive(Debug)]
struct Conn<O> {
    outbox: O,
    readers: Readers,
    subs: AHashMap<SubId, SubKey>,
}

/// Where one filter stands.
enum Place<'a> {
    Ids(&'a [EventId]),
    Authors(&'a [PubKey]),
    Tag(u8, &'a [String]),
    Kinds(&'a [Kind]),
    Others,
}

impl<O> Default for Subs<O> {
    fn default() -> Self {
        Self {
            conns: AHashMap::new(),
            subs: Vec::new(),
            free: Vec::new(),
            by_id: AHashMap::new(),
            by_author: AHashMap::new(),
            by_tag: AHashMap::new(),
            by_kind: AHashMap::new(),
            others: KeySet::default(),
            seen: Vec::new(),
            round: 0,
        }
    }
}

impl<O> Subs<O> {
    pub fn open(&mut self, conn: ConnId, outbox: O) {
        self.conns.insert(conn, Conn { outbox, readers: Readers::none(), subs: AHashMap::new() });
    }

    /// Ends a connection with all its subscriptions.
    pub fn close(&mut self, conn: ConnId) {
        let Some(gone) = self.conns.remove(&conn) else { return };
        gone.subs.into_values().for_each(|key| self.remove(key));
    }

    pub fn authenticate(&mut self, conn: ConnId, readers: Readers) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.readers = readers;
        }
    }

    /// Begins live delivery of what is committed after `after`. Replaces a subscription of the same name.
    pub fn subscribe(&mut self, conn: ConnId, sub: &SubId, filters: Arc<[Filter]>, after: Seq) {
        self.unsubscribe(conn, sub);
        let Some(owner) = self.conns.get_mut(&conn) else { return };
        let key = self.free.pop().unwrap_or_else(|| {
            self.subs.push(None);
            self.seen.push(0);
            (self.subs.len() - 1) as SubKey
        });
        owner.subs.insert(sub.clone(), key);
        for filter in filters.iter().filter(|filter| !filter.matches_nothing()) {
            self.index(filter, key);
        }
        let quoted = wire::quote(sub.as_str()).into();
        self.subs[key as usize] = Some(LiveSub { conn, quoted, filters, after });
    }

    pub fn unsubscribe(&mut self, conn: ConnId, sub: &SubId) {
        let key = self.conns.get_mut(&conn).and_then(|owner| owner.subs.remove(sub));
        if let Some(key) = key {
            self.remove(key);
        }
    }

    pub fn len(&self) -> usize {
        self.subs.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `deliver` once for each subscription that an event goes to.
    pub fn recipients(
        &mut self,
        world: &World,
        seq: Seq,
        event: EventRef<'_>,
        now: Timestamp,
        mut deliver: impl FnMut(&LiveSub, &O),
    ) {
        self.round += 1;
        let (round, subs, conns, seen) = (self.round, &self.subs, &self.conns, &mut self.seen);
        let mut offer = |keys: &mut dyn Iterator<Item = &SubKey>| {
            for &key in keys {
                if std::mem::replace(&mut seen[key as usize], round) == round {
                    continue;
                }
                let Some(sub) = &subs[key as usize] else { continue };
                let Some(conn) = conns.get(&sub.conn) else { continue };
                let matches = seq > sub.after && sub.filters.iter().any(|filter| filter.matches(event));
                if matches && may_read(world, &conn.readers, event, now) {
                    deliver(sub, &conn.outbox);
                }
            }
        };
        offer(&mut iter(self.by_id.get(&event.id())));
        offer(&mut iter(self.by_author.get(&event.pubkey())));
        if !self.by_tag.is_empty() {
            for (letter, value) in event.tags() {
                offer(&mut iter(self.by_tag.get(&(letter, value.into()))));
            }
        }
        offer(&mut iter(self.by_kind.get(&event.kind())));
        offer(&mut self.others.iter());
    }

    fn index(&mut self, filter: &Filter, key: SubKey) {
        match place(filter) {
            Place::Ids(ids) => add(&mut self.by_id, ids.iter().copied(), key),
            Place::Authors(authors) => add(&mut self.by_author, authors.iter().copied(), key),
            Place::Tag(letter, values) => {
                add(&mut self.by_tag, values.iter().map(|v| (letter, v.as_bytes().into())), key)
            }
            Place::Kinds(kinds) => add(&mut self.by_kind, kinds.iter().copied(), key),
            Place::Others => {
                self.others.insert(key);
            }
        }
    }

    fn remove(&mut self, key: SubKey) {
        let Some(gone) = self.subs[key as usize].take() else { return };
        for filter in gone.filters.iter().filter(|filter| !filter.matches_nothing()) {
            match place(filter) {
                Place::Ids(ids) => drop_from(&mut self.by_id, ids.iter().copied(), key),
                Place::Authors(authors) => drop_from(&mut self.by_author, authors.iter().copied(), key),
                Place::Tag(letter, values) => {
                    drop_from(&mut self.by_tag, values.iter().map(|v| (letter, v.as_bytes().into())), key);
                }
                Place::Kinds(kinds) => drop_from(&mut self.by_kind, kinds.iter().copied(), key),
                Place::Others => {
                    self.others.swap_remove(&key);
                }
            }
        }
        self.free.push(key);
    }
}

impl Keys {
    fn add(&mut self, key: SubKey) {
        match self {
            Self::One(other) if *other == key => {}
            Self::One(other) => *self = Self::Many(Box::new([*other, key].into_iter().collect())),
            Self::Many(keys) => drop(keys.insert(key)),
        }
    }

    /// Whether nothing is left.
    fn remove(&mut self, key: SubKey) -> bool {
        match self {
            Self::One(other) => *other == key,
            Self::Many(keys) => {
                keys.swap_remove(&key);
                keys.is_empty()
            }
        }
    }
}

fn iter(keys: Option<&Keys>) -> impl Iterator<Item = &SubKey> {
    let (one, many) = match keys {
        None => (None, None),
        Some(Keys::One(key)) => (Some(key), None),
        Some(Keys::Many(keys)) => (None, Some(keys.iter())),
    };
    one.into_iter().chain(many.into_iter().flatten())
}

fn place(filter: &Filter) -> Place<'_> {
    if let Some(ids) = &filter.ids {
        return Place::Ids(ids);
    }
    if let Some(authors) = &filter.authors {
        return Place::Authors(authors);
    }
    if let Some((letter, values)) = filter.tags.iter().min_by_key(|(_, values)| values.len()) {
        return Place::Tag(*letter, values);
    }
    filter.kinds.as_deref().map_or(Place::Others, Place::Kinds)
}

fn add<K: std::hash::Hash + Eq>(index: &mut AHashMap<K, Keys>, values: impl Iterator<Item = K>, key: SubKey) {
    for value in values {
        match index.entry(value) {
            Entry::Vacant(place) => drop(place.insert(Keys::One(key))),
            Entry::Occupied(mut keys) => keys.get_mut().add(key),
        }
    }
}

fn drop_from<K: std::hash::Hash + Eq>(index: &mut AHashMap<K, Keys>, values: impl Iterator<Item = K>, key: SubKey) {
    for value in values {
        if let Entry::Occupied(mut keys) = index.entry(value)
            && keys.get_mut().remove(key)
        {
            keys.remove();
        }
    }
}
