//! Drawn worlds, events and questions: small, so that drawn things meet.

pub mod truth;

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use skep_core::World;
use skep_core::world::{Channel, ChannelAccess, Ownership, Source};
use skep_proto::kind::TABLE;
use skep_proto::{Draft, Kind, Record};

use crate::paths::{key, pubkey};
use crate::{AGENT, GONE, MEMBER, OTHER, OWNER, STRANGER};

/// An administrator; a key that is always banned; an agent whose owner is a member.
pub const ADMIN: u8 = 7;
pub const BANNED: u8 = 8;
pub const HELPER: u8 = 9;

pub const CHANNELS: [&str; 3] = ["north", "south", "without a rule"];
const IDENTIFIERS: [&str; 3] = ["", "plain", "read-state:feed"];
const NAMED: [u8; 4] = [AGENT, OWNER, OTHER, MEMBER];

/// Kinds that no row names, two of each class.
const UNLISTED: [u16; 8] = [2_000, 40_999, 10_999, 19_998, 20_999, 29_998, 30_999, 39_998];

/// Kinds that obey channel rules, drawn more often: to tell "every channel" from "some channel" takes two at once.
const RULED: [u16; 6] = [1, 9, 40, 42, 1111, 30_079];

#[derive(Debug, Clone)]
pub struct Plan {
    pub kind: u16,
    pub author: u8,
    pub recipients: Vec<u8>,
    /// Channels that it names: by `h` (true) or by `e`.
    pub channels: Vec<(bool, usize)>,
    pub identifier: usize,
    /// Seconds before now.
    pub age: u64,
    pub has_expired: Option<bool>,
    pub is_banned: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let listed = TABLE.iter().flat_map(|row| row.first..=row.last);
    let kinds: Vec<u16> = listed.chain(UNLISTED).collect();
    (
        prop_oneof![3 => select(kinds), 1 => select(&RULED[..])],
        prop_oneof![5 => Just(AGENT), 1 => Just(HELPER), 1 => Just(OTHER), 1 => Just(BANNED), 1 => Just(GONE)],
        prop::collection::vec(select(&NAMED[..]), 0..3),
        prop::collection::vec((prop::bool::weighted(0.7), 0..CHANNELS.len()), 0..4),
        0..IDENTIFIERS.len(),
        0..20u64,
        prop::option::weighted(0.2, any::<bool>()),
        prop::bool::weighted(0.05),
    )
        .prop_map(|(kind, author, recipients, channels, identifier, age, has_expired, is_banned)| Plan {
            kind,
            author,
            recipients,
            channels,
            identifier,
            age,
            has_expired,
            is_banned,
        })
}

/// A channel's rule: whom it lets in.
#[derive(Debug, Clone)]
pub struct RulePlan {
    pub access: ChannelAccess,
    pub members: Vec<u8>,
    pub admins: Vec<u8>,
}

fn rule() -> impl Strategy<Value = Option<RulePlan>> {
    let access = prop_oneof![1 => Just(ChannelAccess::Open), 2 => Just(ChannelAccess::Members), 1 => Just(ChannelAccess::Invite)];
    let keys = |most| prop::collection::vec(select(vec![AGENT, OWNER, MEMBER, STRANGER]), 0..most);
    let rule = (access, keys(3), keys(2)).prop_map(|(access, members, admins)| RulePlan { access, members, admins });
    prop::option::weighted(0.8, rule)
}

#[derive(Debug, Clone)]
pub struct WorldPlan {
    pub is_closed: bool,
    pub is_owner_member: bool,
    pub is_owner_banned: bool,
    /// Rules of the first two [`CHANNELS`].
    pub rules: [Option<RulePlan>; 2],
    /// The rule of each channel that a kind 40 opens (NIP-28).
    pub own_rule: Option<RulePlan>,
}

fn world_plan() -> impl Strategy<Value = WorldPlan> {
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.1));
    (flags, [rule(), rule()], rule()).prop_map(|((is_closed, is_owner_member, is_owner_banned), rules, own_rule)| {
        WorldPlan { is_closed, is_owner_member, is_owner_banned, rules, own_rule }
    })
}

/// What a filter asks by; indexes go round the drawn events.
#[derive(Debug, Clone)]
pub enum By {
    Everything,
    Kinds(Vec<usize>),
    Ids(Vec<usize>),
    Authors(Vec<u8>),
    Recipient(u8),
    Channel(usize),
    Identifier(usize),
    Search,
}

#[derive(Debug, Clone)]
pub struct Question {
    pub by: By,
    /// Seconds before now.
    pub since: Option<u64>,
    pub until: Option<u64>,
    pub limit: Option<usize>,
}

fn question() -> impl Strategy<Value = Question> {
    let some = || prop::collection::vec(0..64usize, 1..6);
    let by = prop_oneof![
        2 => Just(By::Everything),
        3 => some().prop_map(By::Kinds),
        2 => some().prop_map(By::Ids),
        1 => prop::collection::vec(select(vec![AGENT, HELPER, OTHER, BANNED, GONE]), 1..3).prop_map(By::Authors),
        1 => select(&NAMED[..]).prop_map(By::Recipient),
        1 => (0..CHANNELS.len()).prop_map(By::Channel),
        1 => (0..IDENTIFIERS.len()).prop_map(By::Identifier),
        1 => Just(By::Search),
    ];
    let bound = |share| prop::option::weighted(share, 0..25u64);
    (by, bound(0.5), bound(0.2), prop::option::weighted(0.3, 0..8usize))
        .prop_map(|(by, since, until, limit)| Question { by, since, until, limit })
}

#[derive(Debug, Clone)]
pub struct Case {
    pub world: WorldPlan,
    pub plans: Vec<Plan>,
    /// The keys of each reader, and what it asks.
    pub readers: Vec<(Vec<u8>, Vec<Question>)>,
}

/// `questions` of one reader; each is asked on every path.
pub fn case(readers: usize, questions: usize) -> impl Strategy<Value = Case> {
    let keys = prop::collection::vec(select(vec![AGENT, OWNER, OTHER, MEMBER, STRANGER, ADMIN, HELPER]), 0..4);
    let reader = (keys, prop::collection::vec(question(), questions));
    (world_plan(), prop::collection::vec(plan(), 1..30), prop::collection::vec(reader, readers))
        .prop_map(|(world, plans, readers)| Case { world, plans, readers })
}

/// A plan and the event that was made of it.
#[derive(Debug, Clone)]
pub struct Drawn {
    pub plan: Plan,
    pub at: u64,
    pub record: Record,
}

impl Drawn {
    pub fn identifier(&self) -> &'static str {
        IDENTIFIERS[self.plan.identifier]
    }
}

pub fn build(plans: &[Plan], now: u64) -> Vec<Drawn> {
    plans.iter().enumerate().map(|(i, plan)| build_one(i, plan, now)).collect()
}

fn build_one(i: usize, plan: &Plan, now: u64) -> Drawn {
    let at = now - plan.age;
    // `z` is the event's own, so that a question can be about it and nothing else.
    let mut draft = Draft::new(Kind(plan.kind), at, "needle in a haystack").tag(["z", &i.to_string()]);
    draft = draft.tag(["d", IDENTIFIERS[plan.identifier]]);
    for n in &plan.recipients {
        draft = draft.tag(["p", &pubkey(*n).to_hex()]);
    }
    for (is_h, channel) in &plan.channels {
        draft = draft.tag([if *is_h { "h" } else { "e" }, CHANNELS[*channel]]);
    }
    if let Some(has_expired) = plan.has_expired {
        let expires = if has_expired { now - 1 } else { now + 3_600 };
        draft = draft.tag(["expiration", &expires.to_string()]);
    }
    Drawn { plan: plan.clone(), at, record: draft.sign(&key(plan.author), &[0; 32]).into_record() }
}

/// Turns the usual rules of a relay into the drawn ones.
pub fn furnish(world: &mut World, plan: &WorldPlan, drawn: &[Drawn]) {
    world.is_closed = plan.is_closed;
    world.admins = [pubkey(ADMIN)].into_iter().collect();
    world.members.extend(plan.is_owner_member.then(|| pubkey(OWNER)));
    let row = Ownership { owner: Some(pubkey(MEMBER)), source: Source::Admin, since: 0 };
    world.registry.set(pubkey(HELPER), row);
    let banned = [BANNED].into_iter().chain(plan.is_owner_banned.then_some(OWNER));
    world.policy.banned_keys = banned.map(|n| (pubkey(n).to_hex(), String::new())).collect();
    let bad = drawn.iter().filter(|drawn| drawn.plan.is_banned);
    world.policy.banned_events = bad.map(|bad| (bad.record.as_ref().id().to_hex(), String::new())).collect();
    let named = CHANNELS.iter().zip(&plan.rules).map(|(id, rule)| ((*id).to_owned(), rule));
    let opened = drawn.iter().filter(|drawn| drawn.plan.kind == 40);
    let opened = opened.map(|drawn| (drawn.record.as_ref().id().to_hex(), &plan.own_rule));
    let ruled = named.chain(opened).filter_map(|(id, rule)| Some((id, channel(rule.as_ref()?))));
    // Some by the configuration, some by an administrator.
    let (configured, changed): (Vec<_>, BTreeMap<_, _>) =
        (ruled.clone().filter(|(id, _)| id == "north").collect(), ruled.filter(|(id, _)| id != "north").collect());
    world.channels = configured.into_iter().collect();
    world.policy.channels = changed;
}

fn channel(rule: &RulePlan) -> Channel {
    let keys = |list: &[u8]| list.iter().map(|n| pubkey(*n)).collect();
    Channel { name: String::new(), access: rule.access, members: keys(&rule.members), admins: keys(&rule.admins) }
}

/// The filter of a question, as a client writes it.
pub fn filter(question: &Question, drawn: &[Drawn], now: u64) -> Value {
    let at = |i: &usize| &drawn[i % drawn.len()];
    let mut filter = match &question.by {
        By::Everything => json!({}),
        By::Kinds(list) => json!({ "kinds": list.iter().map(|i| at(i).plan.kind).collect::<Vec<_>>() }),
        By::Ids(list) => json!({ "ids": list.iter().map(|i| at(i).record.as_ref().id()).collect::<Vec<_>>() }),
        By::Authors(list) => json!({ "authors": list.iter().map(|n| pubkey(*n)).collect::<Vec<_>>() }),
        By::Recipient(n) => json!({ "#p": [pubkey(*n)] }),
        By::Channel(channel) => json!({ "#h": [CHANNELS[*channel]] }),
        By::Identifier(i) => json!({ "#d": [IDENTIFIERS[*i]] }),
        By::Search => json!({ "search": "Haystack needle" }),
    };
    for (name, age) in [("since", question.since), ("until", question.until)] {
        if let Some(age) = age {
            filter[name] = json!(now - age);
        }
    }
    if let Some(limit) = question.limit {
        filter["limit"] = json!(limit);
    }
    filter
}
