//! The one access function. REQ, `ids` lookup, live fan-out, COUNT, negentropy, search, HTTP and export all ask it.

use skep_proto::kind::{self, ReadRule};
use skep_proto::{EventRef, Kind, PubKey, Timestamp};

use crate::World;

/// The keys that a reader has proved to hold. None: an unauthenticated reader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readers(Vec<PubKey>);

impl Readers {
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a key; the ones before it stay (NIP-42).
    pub fn add(&mut self, key: PubKey) {
        if !self.0.contains(&key) {
            self.0.push(key);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, PubKey> {
        self.0.iter()
    }

    fn any(&self, f: impl FnMut(&PubKey) -> bool) -> bool {
        self.0.iter().any(f)
    }
}

impl FromIterator<PubKey> for Readers {
    fn from_iter<I: IntoIterator<Item = PubKey>>(keys: I) -> Self {
        let mut readers = Self::none();
        keys.into_iter().for_each(|key| readers.add(key));
        readers
    }
}

/// Whether this reader may see that this event exists.
///
/// What it refuses must not be told apart from what is absent, so a caller treats `false` exactly like "not stored".
pub fn may_read(world: &World, readers: &Readers, event: EventRef<'_>, now: Timestamp) -> bool {
    if event.is_expired(now) {
        return false;
    }
    if may_read_all(world, readers, event.kind()) {
        return true;
    }
    if is_banned(world, event) || is_outside(world, readers) {
        return false;
    }
    let is_author = || {
        let author = event.pubkey();
        readers.any(|key| *key == author)
    };
    let is_recipient = || readers.any(|key| event.names(b'p', key));
    match kind::rule(event.kind()).read {
        ReadRule::All => true,
        ReadRule::Channel => may_read_channels(world, readers, event),
        ReadRule::Members => readers.any(|key| world.has_standing(key)),
        ReadRule::Recipient => is_recipient(),
        ReadRule::Parties => is_author() || is_recipient(),
        ReadRule::PartiesAndOwners => {
            is_author() || is_recipient() || readers.any(|key| owns_a_party(world, key, event))
        }
        ReadRule::AppData => !event.identifier().starts_with(b"read-state:") || is_author(),
        ReadRule::Nobody => false,
    }
}

/// Whether this reader may see every unexpired event of a kind, whatever else it says: [`may_read`] by kind alone.
pub fn may_read_all(world: &World, readers: &Readers, kind: Kind) -> bool {
    let is_open = match kind::rule(kind).read {
        ReadRule::All => true,
        ReadRule::Channel => !world.has_channel_rules(),
        _ => false,
    };
    is_open && !world.has_bans() && !is_outside(world, readers)
}

/// Whether the relay is closed to this reader.
fn is_outside(world: &World, readers: &Readers) -> bool {
    world.is_closed && !readers.any(|key| world.has_standing(key))
}

fn is_banned(world: &World, event: EventRef<'_>) -> bool {
    world.is_event_banned(&event.id()) || world.is_banned(&event.pubkey())
}

/// A reader needs to be let in by every ruled channel that the event names, by one key or another.
fn may_read_channels(world: &World, readers: &Readers, event: EventRef<'_>) -> bool {
    if !world.has_channel_rules() {
        return true;
    }
    let lets_in = |channel: &crate::world::Channel| {
        channel.access == crate::world::ChannelAccess::Open
            || readers.any(|key| channel.admits(key) || world.is_admin(key))
    };
    world.channels_of(event).all(lets_in)
}

fn owns_a_party(world: &World, key: &PubKey, event: EventRef<'_>) -> bool {
    let party = |value: &[u8]| std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    world.registry.owns(key, &event.pubkey())
        || event.tag_values(b'p').filter_map(party).any(|agent: PubKey| world.registry.owns(key, &agent))
}

/// Whether a filter asks for nothing but kinds that nobody reads without having authenticated.
pub fn asks_only_for_gated(kinds: Option<&[Kind]>) -> bool {
    kinds.is_some_and(|kinds| !kinds.is_empty() && kinds.iter().all(|kind| kind::rule(*kind).read.is_gated()))
}
