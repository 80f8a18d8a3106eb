//! Live subscriptions, indexed so that an event costs what it matches, not what is subscribed.
//!
//! Each filter stands under the values of its most telling condition: ids, else authors, else one tag, else kinds.

use std::collections::hash_map::Entry;
use std::hash::Hash;
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

/// The subscriptions under one value. Mostly it is one, and then it has no memory of its own.
#[derive(Debug)]
enum Keys {
    One(SubKey),
    Many(Box<KeySet>),
}

/// The subscriptions under each value of one sort of condition. In parts, because a hash table is built anew now and
/// then, as a whole: 20,000 values that come and go in one table are a millisecond in which nobody is delivered to.
#[derive(Debug)]
struct Index<K> {
    parts: Box<[AHashMap<K, Keys>]>,
    hasher: ahash::RandomState,
    /// In all parts.
    values: usize,
}

/// Parts of an index: at a million values, about 4,000 in each.
const INDEX_PARTS: usize = 256;

/// One live subscription.
#[derive(Debug)]
pub struct LiveSub {
    pub conn: ConnId,
    /// The client's name for it, as JSON text.
    pub quoted: Arc<str>,
    filters: Arc<[Filter]>,
    /// Events up to here are the scan's to serve; [`NOTHING`] while its index is not whole.
    after: Seq,
}

/// No event comes after it.
const NOTHING: Seq = Seq(u64::MAX);

/// A subscription on its way into the index, or out of it. A subscription to 5,000 authors is a millisecond's work, and
/// nobody is delivered to meanwhile: so it is done in parts, and others have their turn in between.
#[derive(Debug)]
#[must_use = "a place in the index stays taken until the work is done"]
pub struct Indexing {
    key: SubKey,
    filters: Arc<[Filter]>,
    is_removal: bool,
    /// The filter that is next, and the first of its values that is.
    next: (usize, usize),
}

/// All live subscriptions of a relay. `O` is where a connection's messages go; this machine never looks into it.
#[derive(Debug)]
pub struct Subs<O> {
    conns: AHashMap<ConnId, Conn<O>>,
    subs: Vec<Option<LiveSub>>,
    free: Vec<SubKey>,
    by_id: Index<EventId>,
    by_author: Index<PubKey>,
    by_tag: Index<(u8, Box<[u8]>)>,
    by_kind: Index<Kind>,
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
            by_id: Index::default(),
            by_author: Index::default(),
            by_tag: Index::default(),
            by_kind: Index::default(),
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

    /// Ends a connection. Nothing is delivered to its subscriptions any more; they are to be taken out of the index.
    pub fn close(&mut self, conn: ConnId) -> Vec<Indexing> {
        let gone = self.conns.remove(&conn);
        gone.into_iter().flat_map(|gone| gone.subs.into_values()).filter_map(|key| self.remove(key)).collect()
    }

    pub fn authenticate(&mut self, conn: ConnId, readers: Readers) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.readers = readers;
        }
    }

    /// A new subscription, to be put into the index and then begun with [`Subs::begin`]. One of the same name has to be
    /// taken out before.
    pub fn subscribe(&mut self, conn: ConnId, sub: &SubId, filters: Arc<[Filter]>) -> Option<Indexing> {
        let owner = self.conns.get_mut(&conn)?;
        let key = self.free.pop().unwrap_or_else(|| {
            self.subs.push(None);
            self.seen.push(0);
            (self.subs.len() - 1) as SubKey
        });
        let before = owner.subs.insert(sub.clone(), key);
        debug_assert!(before.is_none(), "invariant: a name stands for one subscription");
        let quoted = wire::quote(sub.as_str()).into();
        self.subs[key as usize] = Some(LiveSub { conn, quoted, filters: Arc::clone(&filters), after: NOTHING });
        Some(Indexing { key, filters, is_removal: false, next: (0, 0) })
    }

    /// Ends a subscription. Nothing is delivered to it any more; it is to be taken out of the index.
    pub fn unsubscribe(&mut self, conn: ConnId, sub: &SubId) -> Option<Indexing> {
        let key = self.conns.get_mut(&conn)?.subs.remove(sub)?;
        self.remove(key)
    }

    fn remove(&mut self, key: SubKey) -> Option<Indexing> {
        let gone = self.subs[key as usize].as_mut()?;
        gone.after = NOTHING;
        Some(Indexing { key, filters: Arc::clone(&gone.filters), is_removal: true, next: (0, 0) })
    }

    /// Does the work for this many values of filters, and says whether it is done.
    pub fn index(&mut self, work: &mut Indexing, mut values: usize) -> bool {
        let filters = Arc::clone(&work.filters);
        while let Some(filter) = filters.get(work.next.0) {
            if values == 0 {
                return false;
            }
            let done = if filter.matches_nothing() { None } else { self.index_some(filter, work, values) };
            work.next = match done {
                Some(done) => (work.next.0, work.next.1 + done),
                None => (work.next.0 + 1, 0),
            };
            values -= done.unwrap_or(1);
        }
        if work.is_removal && self.subs[work.key as usize].take().is_some() {
            self.free.push(work.key);
        }
        true
    }

    /// Some values of the next filter, as many as are said; `None` when nothing was left of it.
    fn index_some(&mut self, filter: &Filter, work: &Indexing, values: usize) -> Option<usize> {
        fn some<T>(all: &[T], from: usize, count: usize) -> Option<&[T]> {
            Some(&all[from..all.len().min(from + count)]).filter(|some| !some.is_empty())
        }
        let Indexing { key, is_removal, next: (_, from), .. } = *work;
        match place(filter) {
            Place::Ids(ids) => {
                let ids = some(ids, from, values)?;
                self.by_id.change(ids.iter().copied(), key, is_removal);
                Some(ids.len())
            }
            Place::Authors(authors) => {
                let authors = some(authors, from, values)?;
                self.by_author.change(authors.iter().copied(), key, is_removal);
                Some(authors.len())
            }
            Place::Tag(letter, all) => {
                let all = some(all, from, values)?;
                self.by_tag.change(all.iter().map(|value| (letter, value.as_bytes().into())), key, is_removal);
                Some(all.len())
            }
            Place::Kinds(kinds) => {
                let kinds = some(kinds, from, values)?;
                self.by_kind.change(kinds.iter().copied(), key, is_removal);
                Some(kinds.len())
            }
            Place::Others => {
                if is_removal {
                    self.others.swap_remove(&key);
                } else {
                    self.others.insert(key);
                }
                None
            }
        }
    }

    /// Begins live delivery of what is committed after `after`, to a subscription that is in the index.
    pub fn begin(&mut self, conn: ConnId, sub: &SubId, after: Seq) {
        let key = self.conns.get(&conn).and_then(|owner| owner.subs.get(sub));
        if let Some(sub) = key.and_then(|key| self.subs[*key as usize].as_mut()) {
            sub.after = after;
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
        offer(&mut self.by_id.under(&event.id()));
        offer(&mut self.by_author.under(&event.pubkey()));
        if !self.by_tag.is_empty() {
            for (letter, value) in event.tags() {
                offer(&mut self.by_tag.under(&(letter, value.into())));
            }
        }
        offer(&mut self.by_kind.under(&event.kind()));
        offer(&mut self.others.iter());
    }
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self {
            parts: (0..INDEX_PARTS).map(|_| AHashMap::new()).collect(),
            hasher: ahash::RandomState::default(),
            values: 0,
        }
    }
}

impl<K: Hash + Eq> Index<K> {
    fn part(&self, value: &K) -> usize {
        self.hasher.hash_one(value) as usize % INDEX_PARTS
    }

    fn is_empty(&self) -> bool {
        self.values == 0
    }

    fn under(&self, value: &K) -> impl Iterator<Item = &SubKey> {
        iter(self.parts[self.part(value)].get(value))
    }

    /// Puts a subscription under values, or takes it away from them.
    fn change(&mut self, values: impl Iterator<Item = K>, key: SubKey, is_removal: bool) {
        for value in values {
            let part = self.part(&value);
            match self.parts[part].entry(value) {
                Entry::Vacant(place) if !is_removal => {
                    place.insert(Keys::One(key));
                    self.values += 1;
                }
                Entry::Vacant(_) => {}
                Entry::Occupied(mut keys) if !is_removal => keys.get_mut().add(key),
                Entry::Occupied(mut keys) => {
                    if keys.get_mut().remove(key) {
                        keys.remove();
                        self.values -= 1;
                    }
                }
            }
        }
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
