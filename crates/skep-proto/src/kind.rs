//! The kind table: one row for each kind that Skep knows, and a rule by range for the others.
//!
//! Every write path and every read path asks this table. A second list of kinds must not exist.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An event kind (NIP-01).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Kind(pub u16);

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How an event is kept (NIP-01).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// All are kept.
    Regular,
    /// The newest for each (author, kind).
    Replaceable,
    /// Never on disk: only in the memory ring.
    Ephemeral,
    /// The newest for each (author, kind, `d`).
    Addressable,
}

/// Who may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteRule {
    /// Whoever signs it, under the relay's general rules.
    Author,
    /// Whoever signs it, when the channels that it names let them in.
    Channel,
    /// Only the relay's own key.
    RelayKey,
    /// The authenticated agent that it is about, with its owner in the registry (NIP-AM).
    AgentMetric,
    /// An agent to its owner, or an owner to its agent, both in the registry (NIP-AO).
    AgentFrame,
    /// A lease request: never stored, answered in its OK.
    LeaseRequest,
    /// A request to join or leave, handled by the relay (NIP-43).
    Membership,
    /// Belongs in another message, never in EVENT.
    Never,
}

/// Who may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadRule {
    /// Everyone the relay lets in.
    All,
    /// Members, on an open relay too: only those with a standing (member, agent of one, admin).
    Members,
    /// Whoever may read all of the ruled channels that it names; everyone when none has a rule.
    Channel,
    /// An authenticated `p`.
    Recipient,
    /// Its authenticated author, or an authenticated `p`.
    Parties,
    /// The parties, or the owner of one of them in the registry.
    PartiesAndOwners,
    /// Everyone, but for `d` = `read-state:*` its authenticated author only.
    AppData,
    /// Nobody, on any path.
    Nobody,
}

impl ReadRule {
    /// Whether nobody can read it without having authenticated first.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::Members | Self::Recipient | Self::Parties | Self::PartiesAndOwners | Self::Nobody)
    }
}

/// How long it is kept when nothing (deletion, expiration, replacement) ends it sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Forever,
    /// In the memory ring, at most [`crate::limits::EPHEMERAL_SECS_MAX`].
    Ring,
    /// Not at all.
    None,
}

/// What Skep knows of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub first: u16,
    pub last: u16,
    pub name: &'static str,
    pub class: Class,
    pub write: WriteRule,
    pub read: ReadRule,
    /// The content is ciphertext.
    pub encrypted: bool,
    /// The content is indexed for search (NIP-50) where search is on.
    pub search: bool,
    pub retention: Retention,
    pub spec: &'static str,
}

const fn row(first: u16, last: u16, name: &'static str, spec: &'static str) -> Row {
    let class = class_by_range(first);
    let retention = if matches!(class, Class::Ephemeral) { Retention::Ring } else { Retention::Forever };
    Row {
        first,
        last,
        name,
        class,
        write: WriteRule::Author,
        read: ReadRule::All,
        encrypted: false,
        search: false,
        retention,
        spec,
    }
}

impl Row {
    const fn write(mut self, rule: WriteRule) -> Self {
        self.write = rule;
        self
    }
    const fn read(mut self, rule: ReadRule) -> Self {
        self.read = rule;
        self
    }
    const fn channel(self) -> Self {
        self.write(WriteRule::Channel).read(ReadRule::Channel)
    }
    const fn encrypted(mut self) -> Self {
        self.encrypted = true;
        self
    }
    const fn search(mut self) -> Self {
        self.search = true;
        self
    }
    const fn retained(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }
}

/// NIP-01's ranges, with its three old replaceable kinds (0, 3, 41 is regular here: NIP-28 leaves it to clients).
pub const fn class_by_range(kind: u16) -> Class {
    match kind {
        0 | 3 | 10_000..20_000 => Class::Replaceable,
        20_000..30_000 => Class::Ephemeral,
        30_000..40_000 => Class::Addressable,
        _ => Class::Regular,
    }
}

use ReadRule as R;
use WriteRule as W;

/// The table, ordered by number. What is not in it follows [`class_by_range`], written by its author, read by all.
pub static TABLE: &[Row] = &[
    row(0, 0, "profile", "NIP-01").search(),
    row(1, 1, "short text note", "NIP-01").channel().search(),
    row(3, 3, "follow list", "NIP-02"),
    row(4, 4, "direct message", "NIP-04").read(R::Parties).encrypted(),
    row(5, 5, "deletion request", "NIP-09"),
    row(6, 6, "repost", "NIP-18").channel(),
    row(7, 7, "reaction", "NIP-25").channel(),
    row(9, 9, "chat message", "NIP-C7, NIP-29").channel().search(),
    row(11, 11, "thread", "NIP-7D, NIP-29").channel().search(),
    row(13, 13, "seal", "NIP-59").read(R::Parties).encrypted(),
    row(14, 15, "rumor of a private message", "NIP-17").write(W::Never).read(R::Nobody).retained(Retention::None),
    row(16, 16, "generic repost", "NIP-18").channel(),
    row(40, 41, "channel creation, channel profile", "NIP-28").channel().search(),
    row(42, 42, "channel message", "NIP-28").channel().search(),
    row(43, 44, "channel hide, channel mute", "NIP-28").channel(),
    row(62, 62, "request to vanish", "NIP-62"),
    row(1059, 1059, "gift wrap", "NIP-59, NIP-17").read(R::Recipient).encrypted(),
    row(1111, 1111, "comment", "NIP-22").channel().search(),
    row(1617, 1618, "git patch, pull request", "NIP-34").search(),
    row(1621, 1621, "git issue", "NIP-34").search(),
    row(1630, 1633, "git status", "NIP-34").search(),
    row(4481, 4482, "peer message, receipt", "Skep").read(R::Parties),
    row(8000, 8001, "member added, member removed", "NIP-43").write(W::RelayKey).read(R::Members),
    row(10002, 10002, "relay list", "NIP-65"),
    row(10050, 10050, "direct message relays", "NIP-17"),
    row(13534, 13534, "member list", "NIP-43").write(W::RelayKey).read(R::Members),
    row(20001, 20001, "presence", "Skep").read(R::Members),
    row(22242, 22242, "client authentication", "NIP-42").write(W::Never).read(R::Nobody).retained(Retention::None),
    row(24133, 24133, "remote signing", "NIP-46").read(R::Recipient).encrypted(),
    row(24200, 24200, "agent observer frame", "NIP-AO").write(W::AgentFrame).read(R::Recipient).encrypted(),
    row(24242, 24242, "blob authorization", "BUD-11").write(W::Never).read(R::Nobody).retained(Retention::None),
    row(24480, 24480, "lease request", "Skep").write(W::LeaseRequest).read(R::Nobody).retained(Retention::None),
    row(24481, 24481, "node status", "Skep").read(R::Members),
    row(27235, 27235, "HTTP authorization", "NIP-98").write(W::Never).read(R::Nobody).retained(Retention::None),
    row(28934, 28934, "join request", "NIP-43").write(W::Membership).read(R::Nobody).retained(Retention::None),
    row(28935, 28935, "invite", "NIP-43").write(W::RelayKey).read(R::Nobody).retained(Retention::None),
    row(28936, 28936, "leave request", "NIP-43").write(W::Membership).read(R::Nobody).retained(Retention::None),
    row(30023, 30023, "long-form text", "NIP-23").search(),
    row(30078, 30078, "application data, artifact", "NIP-78").read(R::AppData),
    row(30079, 30079, "command", "Skep").channel(),
    row(30315, 30315, "status", "NIP-38"),
    row(30480, 30480, "lease state", "Skep").write(W::RelayKey).read(R::Members),
    row(30481, 30481, "decision pointer", "Skep").read(R::Members),
    row(30482, 30482, "peer link half", "Skep").read(R::PartiesAndOwners),
    row(30617, 30617, "git repository", "NIP-34").search(),
    row(44200, 44200, "agent turn metric", "NIP-AM").write(W::AgentMetric).read(R::Recipient).encrypted(),
];

/// The row that rules a kind: its own, or one made by range.
pub fn rule(kind: Kind) -> Row {
    match TABLE.binary_search_by(|row| {
        if row.last < kind.0 {
            std::cmp::Ordering::Less
        } else if row.first > kind.0 {
            std::cmp::Ordering::Greater
        } else {
            std::cmp::Ordering::Equal
        }
    }) {
        Ok(i) => TABLE[i],
        // An `h` tag names a group on any kind (NIP-29), so what is not in the table obeys channel rules too.
        Err(_) => row(kind.0, kind.0, "", "NIP-01").channel(),
    }
}

impl Kind {
    pub const PROFILE: Self = Self(0);
    pub const NOTE: Self = Self(1);
    pub const DIRECT_MESSAGE: Self = Self(4);
    pub const DELETION: Self = Self(5);
    pub const REACTION: Self = Self(7);
    pub const CHAT: Self = Self(9);
    pub const SEAL: Self = Self(13);
    pub const PRIVATE_MESSAGE: Self = Self(14);
    pub const CHANNEL_CREATION: Self = Self(40);
    pub const CHANNEL_MESSAGE: Self = Self(42);
    pub const VANISH: Self = Self(62);
    pub const GIFT_WRAP: Self = Self(1059);
    pub const COMMENT: Self = Self(1111);
    pub const RELAY_LIST: Self = Self(10002);
    pub const DIRECT_RELAYS: Self = Self(10050);
    pub const MEMBER_LIST: Self = Self(13534);
    pub const AUTH: Self = Self(22242);
    pub const AGENT_FRAME: Self = Self(24200);
    pub const BLOB_AUTH: Self = Self(24242);
    pub const LEASE_REQUEST: Self = Self(24480);
    pub const HTTP_AUTH: Self = Self(27235);
    pub const JOIN_REQUEST: Self = Self(28934);
    pub const LEAVE_REQUEST: Self = Self(28936);
    pub const APP_DATA: Self = Self(30078);
    pub const COMMAND: Self = Self(30079);
    pub const LEASE_STATE: Self = Self(30480);
    pub const GROUP_MEMBERS: Self = Self(39002);
    pub const AGENT_METRIC: Self = Self(44200);

    pub fn class(self) -> Class {
        class_by_range(self.0)
    }

    /// A repost, whose content may hold the reposted event (NIP-18).
    pub fn is_repost(self) -> bool {
        matches!(self.0, 6 | 16)
    }

    /// A message of a NIP-28 channel, which names it by an `e` tag.
    pub fn is_channel_message(self) -> bool {
        (41..=44).contains(&self.0)
    }

    pub fn is_ephemeral(self) -> bool {
        self.class() == Class::Ephemeral
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_ordered_and_do_not_overlap() {
        for pair in TABLE.windows(2) {
            assert!(pair[0].last < pair[1].first, "{} and {}", pair[0].name, pair[1].name);
        }
        for row in TABLE {
            assert!(row.first <= row.last);
            assert_eq!(row.class, class_by_range(row.last), "{} spans two classes", row.name);
        }
    }

    #[test]
    fn what_is_gated_or_encrypted_is_never_searched() {
        for row in TABLE {
            assert!(!(row.search && (row.encrypted || row.read.is_gated())), "{}", row.name);
        }
    }

    #[test]
    fn an_unknown_kind_follows_its_range() {
        assert_eq!(rule(Kind(9_999)).class, Class::Regular);
        assert_eq!(rule(Kind(19_999)).class, Class::Replaceable);
        assert_eq!(rule(Kind(29_999)).class, Class::Ephemeral);
        assert_eq!(rule(Kind(39_999)).class, Class::Addressable);
        assert_eq!(rule(Kind(65_535)).class, Class::Regular);
        assert_eq!(rule(Kind(1632)).name, "git status");
    }
}
