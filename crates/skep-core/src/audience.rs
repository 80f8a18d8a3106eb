//! Who may prompt an agent, and when two agents have talked enough.
//!
//! Must not: take "nobody answered yet" for "no", or let a rule about channels open a direct conversation.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use skep_proto::{Filter, Kind, PubKey, RawEvent, Timestamp, limits};

/// The setting `respond_to`. The owner may always prompt, but for `nobody`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RespondTo {
    #[default]
    Owner,
    /// And the agents that the same owner attested.
    Siblings,
    /// And the members of the relay or channel.
    Members,
    /// The owner and those on the list.
    Allowlist,
    Anyone,
    Nobody,
}

/// What is known about somebody. A lookup that timed out is unknown, and is to be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    Yes,
    No,
    Unknown,
}

/// Who wants to prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    pub key: PubKey,
    /// An agent of the same owner.
    pub is_sibling: Fact,
    pub is_member: Fact,
    /// An agent of anybody.
    pub is_agent: Fact,
}

/// Where the message was said. What is not known to be a channel is direct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Channel,
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Admit,
    Refuse(Reason),
    /// Look it up again; until then the message is stored and waits.
    Retry,
    /// Two agents have talked enough: only the owner can let them go on.
    AskOwner(Loop),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("this agent answers nobody at the moment")]
    Nobody,
    #[error("this agent answers its owner only")]
    OwnerOnly,
    #[error("this agent answers its owner and its owner's agents only")]
    SiblingsOnly,
    #[error("this agent answers members only")]
    MembersOnly,
    #[error("this agent answers those on its list only")]
    NotListed,
    #[error("in a direct message this agent answers its owner and its owner's agents only")]
    NotInDirect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Loop {
    #[error("{} agents answered each other in this thread", limits::HOPS_MAX)]
    Hops,
    #[error("these two agents had {} turns in an hour", limits::PAIR_TURNS_PER_HOUR_MAX)]
    Pair,
}

/// What to ask the home relay about its members, and those of a group (NIP-43, NIP-29). Lists of others than the relay
/// itself are anybody's claims.
pub fn member_filters(relay: PubKey, group: Option<&str>) -> Vec<Filter> {
    let list = |kind| Filter { kinds: Some(vec![kind]), authors: Some(vec![relay]), limit: Some(1), ..Filter::new() };
    let group = group.map(|group| Filter { tags: vec![(b'd', vec![group.to_owned()])], ..list(Kind::GROUP_MEMBERS) });
    [list(Kind::MEMBER_LIST)].into_iter().chain(group).collect()
}

/// Whether a key is in one of the lists that the relay gave; of each, the newest counts.
pub fn is_listed(lists: &[RawEvent], key: &PubKey) -> bool {
    let newest = |kind| lists.iter().filter(|list| list.kind == kind).max_by_key(|list| list.created_at);
    let hex = key.to_hex();
    [(Kind::MEMBER_LIST, "member"), (Kind::GROUP_MEMBERS, "p")]
        .into_iter()
        .any(|(kind, tag)| newest(kind).is_some_and(|list| list.tags.values(tag).any(|value| value == hex)))
}

/// The rule of one agent.
#[derive(Debug, Clone)]
pub struct Audience {
    pub respond_to: RespondTo,
    pub owner: Option<PubKey>,
    pub allowlist: Vec<PubKey>,
}

impl Audience {
    /// Whether this message may prompt. Loops are for [`Loops`].
    pub fn judge(&self, asker: &Asker, place: Place) -> Verdict {
        if self.respond_to == RespondTo::Nobody {
            return Verdict::Refuse(Reason::Nobody);
        }
        if self.owner == Some(asker.key) {
            return Verdict::Admit;
        }
        let by_rule = self.judge_rule(asker);
        match (place, by_rule) {
            (Place::Channel, verdict) | (Place::Direct, verdict @ Verdict::Refuse(_)) => verdict,
            // Clients tag everybody in a conversation: without this, anybody could drive the agent through it.
            (Place::Direct, verdict) => match asker.is_sibling {
                Fact::Yes => verdict,
                Fact::No => Verdict::Refuse(Reason::NotInDirect),
                Fact::Unknown => Verdict::Retry,
            },
        }
    }

    fn judge_rule(&self, asker: &Asker) -> Verdict {
        let or = |fact: Fact, reason| match fact {
            Fact::Yes => Verdict::Admit,
            Fact::No => Verdict::Refuse(reason),
            Fact::Unknown => Verdict::Retry,
        };
        match self.respond_to {
            RespondTo::Nobody => Verdict::Refuse(Reason::Nobody),
            RespondTo::Owner => Verdict::Refuse(Reason::OwnerOnly),
            RespondTo::Siblings => or(asker.is_sibling, Reason::SiblingsOnly),
            RespondTo::Members => or(asker.is_sibling.or(asker.is_member), Reason::MembersOnly),
            RespondTo::Allowlist if self.allowlist.contains(&asker.key) => Verdict::Admit,
            RespondTo::Allowlist => Verdict::Refuse(Reason::NotListed),
            RespondTo::Anyone => Verdict::Admit,
        }
    }
}

impl Fact {
    /// Yes if either is; unknown while it could still be.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::No, Self::No) => Self::No,
            _ => Self::Unknown,
        }
    }
}

/// The hop number of our answer. People break a chain of agents.
pub fn next_hop(hop: u32, is_agent: Fact) -> u32 {
    if is_agent == Fact::No { 0 } else { hop.saturating_add(1) }
}

/// How often each pair of agents had a turn in the last hour. The pair that was silent longest is forgotten when there
/// are too many.
#[derive(Debug, Default)]
pub struct Loops {
    turns: BTreeMap<(PubKey, PubKey), VecDeque<Timestamp>>,
    /// When the owner was last told that a pair was stopped. Bounded as the turns are; the oldest goes first.
    told: BTreeMap<(PubKey, PubKey), Timestamp>,
}

const HOUR_SECS: u64 = 3_600;

impl Loops {
    /// Whether the agent may answer this asker once more; `hop` is what the message's tag says. A person is never a
    /// loop; who could be an agent is treated as one.
    pub fn judge(&mut self, agent: PubKey, asker: &Asker, hop: u32, now: Timestamp) -> Verdict {
        if asker.is_agent == Fact::No {
            return Verdict::Admit;
        }
        if next_hop(hop, asker.is_agent) > limits::HOPS_MAX {
            return Verdict::AskOwner(Loop::Hops);
        }
        let turns = self.recent(pair(agent, asker.key), now);
        if turns >= limits::PAIR_TURNS_PER_HOUR_MAX { Verdict::AskOwner(Loop::Pair) } else { Verdict::Admit }
    }

    /// A turn for this asker begins.
    pub fn count(&mut self, agent: PubKey, asker: &Asker, now: Timestamp) {
        if asker.is_agent == Fact::No {
            return;
        }
        self.turns.entry(pair(agent, asker.key)).or_default().push_back(now);
        if self.turns.len() > limits::PAIRS_MAX {
            let oldest = self.turns.iter().min_by_key(|(_, turns)| turns.back().copied()).map(|(pair, _)| *pair);
            oldest.and_then(|pair| self.turns.remove(&pair));
        }
    }

    /// The owner lets this pair go on.
    pub fn allow(&mut self, agent: PubKey, asker: &PubKey) {
        self.turns.remove(&pair(agent, *asker));
        self.told.remove(&pair(agent, *asker));
    }

    /// Whether the owner is to be told that this pair was stopped: once in an hour, and again after they let it go on.
    pub fn may_tell(&mut self, agent: PubKey, asker: &PubKey, now: Timestamp) -> bool {
        let pair = pair(agent, *asker);
        if self.told.get(&pair).is_some_and(|at| now < at + HOUR_SECS) {
            return false;
        }
        self.told.insert(pair, now);
        if self.told.len() > limits::PAIRS_MAX {
            let oldest = self.told.iter().min_by_key(|(_, at)| **at).map(|(pair, _)| *pair);
            oldest.and_then(|pair| self.told.remove(&pair));
        }
        true
    }

    fn recent(&mut self, pair: (PubKey, PubKey), now: Timestamp) -> usize {
        let Some(turns) = self.turns.get_mut(&pair) else { return 0 };
        while turns.front().is_some_and(|at| at + HOUR_SECS <= now) {
            turns.pop_front();
        }
        turns.len()
    }
}

/// One pair, whoever asks whom.
fn pair(a: PubKey, b: PubKey) -> (PubKey, PubKey) {
    (a.min(b), a.max(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWNER: PubKey = PubKey([1; 32]);
    const OTHER: PubKey = PubKey([2; 32]);
    const AGENT: PubKey = PubKey([3; 32]);

    fn asker(key: PubKey, is_sibling: Fact, is_member: Fact) -> Asker {
        Asker { key, is_sibling, is_member, is_agent: is_sibling }
    }

    fn audience(respond_to: RespondTo) -> Audience {
        Audience { respond_to, owner: Some(OWNER), allowlist: vec![PubKey([5; 32])] }
    }

    #[test]
    fn each_rule_admits_whom_it_names() {
        use Fact::{No, Yes};
        use RespondTo as To;
        let sibling = asker(OTHER, Yes, No);
        let member = asker(OTHER, No, Yes);
        let listed = asker(PubKey([5; 32]), No, No);
        let stranger = asker(OTHER, No, No);
        for (rule, admitted) in [
            (To::Owner, [false, false, false, false]),
            (To::Siblings, [true, false, false, false]),
            (To::Members, [true, true, false, false]),
            (To::Allowlist, [false, false, true, false]),
            (To::Anyone, [true, true, true, true]),
            (To::Nobody, [false, false, false, false]),
        ] {
            let found = [sibling, member, listed, stranger]
                .map(|asker| audience(rule).judge(&asker, Place::Channel) == Verdict::Admit);
            assert_eq!(found, admitted, "{rule:?}");
            let owner = audience(rule).judge(&asker(OWNER, No, No), Place::Direct);
            assert_eq!(owner == Verdict::Admit, rule != To::Nobody, "{rule:?}");
        }
    }

    #[test]
    fn after_six_hops_the_owner_is_asked_and_a_person_begins_anew() {
        let mut loops = Loops::default();
        let agent = asker(OTHER, Fact::Yes, Fact::No);
        let mut hop = next_hop(0, Fact::No);
        for _ in 0..limits::HOPS_MAX {
            assert_eq!(loops.judge(AGENT, &agent, hop, 0), Verdict::Admit);
            hop = next_hop(hop, Fact::Yes);
        }
        assert_eq!(loops.judge(AGENT, &agent, hop, 0), Verdict::AskOwner(Loop::Hops));
        assert_eq!(loops.judge(AGENT, &asker(OTHER, Fact::No, Fact::No), hop, 0), Verdict::Admit);
        assert_eq!(next_hop(hop, Fact::No), 0);
    }

    #[test]
    fn a_pair_has_ten_turns_in_an_hour_and_then_the_owner_is_asked() {
        let mut loops = Loops::default();
        let agent = asker(OTHER, Fact::Yes, Fact::No);
        for now in 0..10 {
            assert_eq!(loops.judge(AGENT, &agent, 0, now), Verdict::Admit);
            loops.count(AGENT, &agent, now);
        }
        assert_eq!(loops.judge(AGENT, &agent, 0, 3_599), Verdict::AskOwner(Loop::Pair));
        assert_eq!(loops.judge(AGENT, &asker(OWNER, Fact::Yes, Fact::No), 0, 20), Verdict::Admit, "another pair");
        assert_eq!(loops.judge(AGENT, &agent, 0, 3_600), Verdict::Admit, "the first is an hour old");
        loops.count(AGENT, &agent, 3_600);
        loops.allow(AGENT, &OTHER);
        assert_eq!(loops.judge(AGENT, &agent, 0, 3_600), Verdict::Admit, "the owner allowed it");
    }

    #[test]
    fn of_a_pair_the_owner_is_told_once_in_an_hour_and_again_after_they_let_it_go_on() {
        let mut loops = Loops::default();
        assert!(loops.may_tell(AGENT, &OTHER, 0) && loops.may_tell(AGENT, &OWNER, 1), "each pair");
        assert!(!loops.may_tell(AGENT, &OTHER, 3_599));
        assert!(loops.may_tell(AGENT, &OTHER, 3_600) && !loops.may_tell(OTHER, &AGENT, 3_601));
        loops.allow(AGENT, &OTHER);
        assert!(loops.may_tell(AGENT, &OTHER, 3_602));
    }

    #[test]
    fn the_newest_lists_of_the_relay_say_who_is_a_member() {
        let list = |kind: Kind, at: Timestamp, tag: &str, key: &PubKey| RawEvent {
            id: skep_proto::EventId([at as u8; 32]),
            pubkey: OWNER,
            created_at: at,
            kind,
            tags: skep_proto::Tags::from_iter([[tag, &key.to_hex()]]),
            content: String::new(),
            sig: skep_proto::Sig([0; 64]),
        };
        assert!(!is_listed(&[], &OTHER));
        let (old, new) = (list(Kind::MEMBER_LIST, 1, "member", &OTHER), list(Kind::MEMBER_LIST, 2, "member", &AGENT));
        assert!(is_listed(std::slice::from_ref(&old), &OTHER));
        assert!(!is_listed(&[old, new.clone()], &OTHER), "who left is in an older list");
        assert!(is_listed(&[new, list(Kind::GROUP_MEMBERS, 1, "p", &OTHER)], &OTHER), "a member of the group");
        assert!(!is_listed(&[list(Kind::NOTE, 1, "p", &OTHER)], &OTHER));
        let filters = member_filters(OWNER, Some("bees"));
        assert!(filters.iter().all(|filter| filter.authors == Some(vec![OWNER])), "by the relay itself");
        assert_eq!((filters.len(), member_filters(OWNER, None).len()), (2, 1));
    }

    #[test]
    fn pairs_are_bounded() {
        let mut loops = Loops::default();
        for n in 0..(limits::PAIRS_MAX as u32 + 10) {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            loops.count(AGENT, &asker(PubKey(key), Fact::Unknown, Fact::No), n.into());
            assert!(loops.may_tell(AGENT, &PubKey(key), n.into()));
        }
        assert_eq!((loops.turns.len(), loops.told.len()), (limits::PAIRS_MAX, limits::PAIRS_MAX));
    }

    fn any_fact() -> impl Strategy<Value = Fact> {
        proptest::sample::select(vec![Fact::Yes, Fact::No, Fact::Unknown])
    }

    proptest! {
        #[test]
        fn unknown_is_never_a_no_and_a_direct_message_is_for_owner_and_siblings(
            rule in proptest::sample::select(vec![
                RespondTo::Owner, RespondTo::Siblings, RespondTo::Members, RespondTo::Allowlist, RespondTo::Anyone,
                RespondTo::Nobody,
            ]),
            sibling in any_fact(), member in any_fact(), is_direct: bool,
        ) {
            let place = if is_direct { Place::Direct } else { Place::Channel };
            let audience = audience(rule);
            let verdict = audience.judge(&asker(OTHER, sibling, member), place);
            if is_direct && verdict == Verdict::Admit {
                prop_assert_eq!(sibling, Fact::Yes);
            }
            // A refusal holds, and an admission too, whatever the unknown facts turn out to be.
            let resolve = |fact: Fact| if fact == Fact::Unknown { vec![Fact::Yes, Fact::No] } else { vec![fact] };
            for sibling in resolve(sibling) {
                for member in resolve(member) {
                    let known = audience.judge(&asker(OTHER, sibling, member), place);
                    prop_assert_ne!(known, Verdict::Retry);
                    prop_assert!(verdict == Verdict::Retry || std::mem::discriminant(&verdict) == std::mem::discriminant(&known));
                }
            }
        }
    }
}
