//! What the relay knows about keys, channels and its own rules: the facts that access and intake decide by.
//!
//! One value, owned by the relay. A change is a new fact at once, for open connections too: nothing caches it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ahash::{AHashMap, AHashSet};
use serde::{Deserialize, Serialize};
use skep_proto::limits::Limits;
use skep_proto::{EventId, EventRef, Kind, PubKey, Timestamp, kind};

/// Everything that a decision about an event or a reader may depend on.
#[derive(Debug, Clone)]
pub struct World {
    /// The relay's own key: it signs lease states and member lists.
    pub relay: PubKey,
    /// Host names (lowercase, with port when not the scheme's) under which clients know this relay.
    pub hosts: BTreeSet<String>,
    /// From the configuration; [`Policy`] may add to them.
    pub admins: AHashSet<PubKey>,
    pub members: AHashSet<PubKey>,
    /// Only those with a standing may write or read.
    pub is_closed: bool,
    /// How many ownership steps away from a member an agent may be.
    pub agent_depth: u8,
    pub min_pow: u8,
    pub is_search_on: bool,
    pub channels: AHashMap<String, Channel>,
    /// Local names (NIP-05), from the configuration; [`Policy`] may add to them.
    pub names: BTreeMap<String, PubKey>,
    pub limits: Limits,
    pub policy: Policy,
    pub registry: Registry,
}

/// What administrators changed while the relay ran (NIP-86, NIP-43). Kept in the store as one document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    pub name: Option<String>,
    pub description: Option<String>,
    pub icon: Option<String>,
    pub banned_keys: BTreeMap<String, String>,
    pub allowed_keys: BTreeMap<String, String>,
    pub banned_events: BTreeMap<String, String>,
    pub allowed_events: BTreeMap<String, String>,
    pub allowed_kinds: BTreeSet<u16>,
    pub disallowed_kinds: BTreeSet<u16>,
    pub blocked_ips: BTreeMap<IpAddr, String>,
    pub channels: BTreeMap<String, Channel>,
    /// Local names (NIP-05). One of the same name goes before the configuration's.
    pub names: BTreeMap<String, PubKey>,
    /// Claims that a join request may carry (NIP-43), with what they were made for.
    pub claims: BTreeMap<String, String>,
}

/// A channel's rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    #[serde(default)]
    pub name: String,
    pub access: ChannelAccess,
    #[serde(default)]
    pub members: BTreeSet<PubKey>,
    /// They may change the list of an `invite` channel. Relay admins always may.
    #[serde(default)]
    pub admins: BTreeSet<PubKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelAccess {
    Open,
    Members,
    Invite,
}

impl Channel {
    pub fn admits(&self, key: &PubKey) -> bool {
        self.access == ChannelAccess::Open || self.members.contains(key) || self.admins.contains(key)
    }
}

/// Where an ownership came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Auth,
    Profile,
    Admin,
}

/// agent → owner. The one place that says who owns an agent.
#[derive(Debug, Clone, Default)]
pub struct Registry(AHashMap<PubKey, Ownership>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// `None`: revoked, and only an admin or the same owner's new statement can set it again.
    pub owner: Option<PubKey>,
    pub source: Source,
    pub since: Timestamp,
}

impl Registry {
    pub fn owner_of(&self, agent: &PubKey) -> Option<PubKey> {
        self.0.get(agent)?.owner
    }

    pub fn owns(&self, owner: &PubKey, agent: &PubKey) -> bool {
        self.owner_of(agent) == Some(*owner)
    }

    pub fn has_agents(&self, owner: &PubKey) -> bool {
        self.0.values().any(|row| row.owner == Some(*owner))
    }

    pub fn get(&self, agent: &PubKey) -> Option<&Ownership> {
        self.0.get(agent)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&PubKey, &Ownership)> {
        self.0.iter()
    }

    pub fn set(&mut self, agent: PubKey, row: Ownership) {
        self.0.insert(agent, row);
    }

    /// Whether a valid attestation seen at `now` changes the registry, and to what.
    ///
    /// The first statement wins over later ones by other owners: an agent whose key leaked must not be able to
    /// give itself away. A revoked agent stays revoked until an admin, or the owner by the API, assigns it.
    pub fn learn(&self, agent: &PubKey, owner: PubKey, source: Source, now: Timestamp) -> Option<Ownership> {
        match self.0.get(agent) {
            None => Some(Ownership { owner: Some(owner), source, since: now }),
            Some(_) => None,
        }
    }
}

impl World {
    pub fn is_admin(&self, key: &PubKey) -> bool {
        *key == self.relay || self.admins.contains(key)
    }

    /// An open relay with nobody in it.
    pub fn new(relay: PubKey) -> Self {
        Self {
            relay,
            hosts: BTreeSet::new(),
            admins: AHashSet::new(),
            members: AHashSet::new(),
            is_closed: false,
            agent_depth: 1,
            min_pow: 0,
            is_search_on: true,
            names: Default::default(),
            channels: AHashMap::new(),
            limits: Limits::default(),
            policy: Policy::default(),
            registry: Registry::default(),
        }
    }

    pub fn is_banned(&self, key: &PubKey) -> bool {
        !self.policy.banned_keys.is_empty() && self.policy.banned_keys.contains_key(&key.to_hex())
    }

    pub fn is_event_banned(&self, id: &EventId) -> bool {
        !self.policy.banned_events.is_empty() && self.policy.banned_events.contains_key(&id.to_hex())
    }

    pub fn has_bans(&self) -> bool {
        !(self.policy.banned_keys.is_empty() && self.policy.banned_events.is_empty())
    }

    pub fn is_member(&self, key: &PubKey) -> bool {
        self.members.contains(key) || self.policy.allowed_keys.contains_key(&key.to_hex())
    }

    /// Whether a key belongs here: an admin, a member, an agent at most [`Self::agent_depth`] steps below one.
    /// On an open relay also every registered agent and owner.
    pub fn has_standing(&self, key: &PubKey) -> bool {
        if self.is_banned(key) {
            return false;
        }
        let belongs = |key: &PubKey| self.is_admin(key) || self.is_member(key);
        if belongs(key) {
            return true;
        }
        if !self.is_closed && (self.registry.owner_of(key).is_some() || self.registry.has_agents(key)) {
            return true;
        }
        let mut above = *key;
        for _ in 0..self.agent_depth {
            match self.registry.owner_of(&above) {
                Some(owner) if self.is_banned(&owner) => return false,
                Some(owner) if belongs(&owner) => return true,
                Some(owner) => above = owner,
                None => return false,
            }
        }
        false
    }

    /// The rule of a channel, an administrator's before the configuration's.
    pub fn channel(&self, id: &str) -> Option<&Channel> {
        self.policy.channels.get(id).or_else(|| self.channels.get(id))
    }

    /// All local names (NIP-05), an administrator's before the configuration's.
    pub fn local_names(&self) -> BTreeMap<&str, PubKey> {
        self.names.iter().chain(&self.policy.names).map(|(name, key)| (name.as_str(), *key)).collect()
    }

    pub fn has_channel_rules(&self) -> bool {
        !(self.channels.is_empty() && self.policy.channels.is_empty())
    }

    /// The rules of the channels that an event names: `h` on any kind (NIP-29), `e` on 41 to 44 and its own id
    /// on 40 (NIP-28).
    pub fn channels_of(&self, event: EventRef<'_>) -> impl Iterator<Item = &Channel> {
        let kind = event.kind();
        let own = (kind == Kind::CHANNEL_CREATION).then(|| event.id().to_hex());
        let named =
            event.tags().filter(move |(letter, _)| *letter == b'h' || (*letter == b'e' && kind.is_channel_message()));
        let named = named.filter_map(|(_, value)| std::str::from_utf8(value).ok());
        named.filter_map(|id| self.channel(id)).chain(own.and_then(|id| self.channel(&id)))
    }

    /// Whether this kind is taken at all (NIP-86 allow and disallow lists).
    pub fn takes_kind(&self, kind: Kind) -> bool {
        let Policy { allowed_kinds, disallowed_kinds, .. } = &self.policy;
        !disallowed_kinds.contains(&kind.0) && (allowed_kinds.is_empty() || allowed_kinds.contains(&kind.0))
    }

    /// Whether a kind's content is found by search here.
    pub fn is_searchable(&self, kind: Kind) -> bool {
        self.is_search_on && kind::rule(kind).search
    }
}
