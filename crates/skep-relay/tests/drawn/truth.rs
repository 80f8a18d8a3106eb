//! The truth table, written a second time from the design and from no line of the code that it checks.

use std::collections::BTreeSet;

use skep_core::world::ChannelAccess;
use skep_proto::EventId;

use super::{ADMIN, BANNED, By, CHANNELS, Drawn, HELPER, IDENTIFIERS, Question, RulePlan, WorldPlan};
use crate::{AGENT, MEMBER, OWNER};

/// Whether a key belongs here.
fn stands(world: &WorldPlan, n: u8) -> bool {
    let is_banned = |n: u8| n == BANNED || (n == OWNER && world.is_owner_banned);
    let belongs = |n: u8| n == ADMIN || n == MEMBER || (n == OWNER && world.is_owner_member);
    if is_banned(n) {
        return false;
    }
    match n {
        AGENT if is_banned(OWNER) => !world.is_closed,
        // The owner's standing is enough for its agent; on an open relay any registered one is.
        AGENT => !world.is_closed || belongs(OWNER),
        HELPER => true,
        OWNER => !world.is_closed || belongs(OWNER),
        n => belongs(n),
    }
}

/// Whether these keys may know that the event exists.
pub fn sees(world: &WorldPlan, keys: &[u8], drawn: &Drawn) -> bool {
    let plan = &drawn.plan;
    let is_out = plan.has_expired == Some(true)
        || plan.is_banned
        || plan.author == BANNED
        || (plan.author == OWNER && world.is_owner_banned);
    let has_standing = keys.iter().any(|n| stands(world, *n));
    if is_out || (world.is_closed && !has_standing) {
        return false;
    }
    let is_author = keys.contains(&plan.author);
    let is_recipient = plan.recipients.iter().any(|n| keys.contains(n));
    let is_party = |n: u8| plan.author == n || plan.recipients.contains(&n);
    let owns_party = (keys.contains(&OWNER) && is_party(AGENT)) || (keys.contains(&MEMBER) && is_party(HELPER));
    match plan.kind {
        14 | 15 | 22_242 | 24_242 | 24_480 | 27_235 | 28_934..=28_936 => false,
        1059 | 24_133 | 24_200 | 44_200 => is_recipient,
        4 | 13 | 4481 | 4482 => is_author || is_recipient,
        30_482 => is_author || is_recipient || owns_party,
        8000 | 8001 | 13_534 | 20_001 | 24_481 | 30_480 | 30_481 => has_standing,
        30_078 => is_author || !drawn.identifier().starts_with("read-state:"),
        0 | 3 | 5 | 62 | 1617 | 1618 | 1621 | 1630..=1633 | 10_002 | 10_050 | 30_023 | 30_315 | 30_617 => true,
        _ => rules(world, drawn).all(|rule| lets_in(rule, keys)),
    }
}

fn lets_in(rule: &RulePlan, keys: &[u8]) -> bool {
    let is_listed = |n: &u8| *n == ADMIN || rule.members.contains(n) || rule.admins.contains(n);
    rule.access == ChannelAccess::Open || keys.iter().any(is_listed)
}

/// The rules of the channels that an event names: `h` on any kind, `e` on channel messages, itself on kind 40.
fn rules<'a>(world: &'a WorldPlan, drawn: &'a Drawn) -> impl Iterator<Item = &'a RulePlan> {
    let kind = drawn.plan.kind;
    let named = drawn.plan.channels.iter().filter(move |(is_h, _)| *is_h || (41..=44).contains(&kind));
    let named = named.filter_map(|(_, channel)| world.rules.get(*channel)?.as_ref());
    named.chain(world.own_rule.as_ref().filter(|_| kind == 40))
}

fn is_ephemeral(kind: u16) -> bool {
    (20_000..30_000).contains(&kind)
}

fn is_searched(kind: u16) -> bool {
    matches!(kind, 0 | 1 | 9 | 11 | 40..=42 | 1111 | 1617 | 1618 | 1621 | 1630..=1633 | 30_023 | 30_617)
}

/// What one question is about, `limit` left aside.
pub fn matches(question: &Question, drawn: &Drawn, all: &[Drawn], now: u64) -> bool {
    let at = |i: &usize| &all[i % all.len()];
    let plan = &drawn.plan;
    let id = drawn.record.as_ref().id();
    let is_meant = match &question.by {
        By::Everything => true,
        By::Kinds(list) => list.iter().any(|i| at(i).plan.kind == plan.kind),
        By::Ids(list) => list.iter().any(|i| at(i).record.as_ref().id() == id),
        By::Authors(list) => list.contains(&plan.author),
        By::Recipient(n) => plan.recipients.contains(n),
        By::Channel(i) => plan.channels.iter().any(|(is_h, channel)| *is_h && CHANNELS[*channel] == CHANNELS[*i]),
        By::Identifier(i) => drawn.identifier() == IDENTIFIERS[*i],
        By::Search => is_searched(plan.kind),
    };
    is_meant
        && question.since.is_none_or(|age| drawn.at >= now - age)
        && question.until.is_none_or(|age| drawn.at <= now - age)
}

/// What a question finds: how many COUNT says and what reconciliation holds, and what a query serves.
#[derive(Debug)]
pub struct Answer {
    pub stored: BTreeSet<EventId>,
    pub served: BTreeSet<EventId>,
}

/// `kept`: what is still there of `all`.
pub fn answer(
    world: &WorldPlan,
    keys: &[u8],
    question: &Question,
    (all, kept): (&[Drawn], &[Drawn]),
    now: u64,
) -> Answer {
    let found = |drawn: &&Drawn| matches(question, drawn, all, now) && sees(world, keys, drawn);
    let (recent, mut stored): (Vec<&Drawn>, Vec<&Drawn>) =
        kept.iter().filter(found).partition(|drawn| is_ephemeral(drawn.plan.kind));
    let id = |drawn: &&Drawn| drawn.record.as_ref().id();
    stored.sort_by_key(|drawn| (std::cmp::Reverse(drawn.at), id(drawn)));
    // Hidden events use up no limit. The ring answers those who name an ephemeral kind and a time.
    let most = question.limit.unwrap_or(usize::MAX);
    let asks_ring = matches!(question.by, By::Kinds(_)) && question.since.is_some() && most > 0;
    // Of those it gives the ones that came last: as many as the filter's limit, beside what is stored.
    let recent = recent.iter().rev().filter(|_| asks_ring).take(most);
    Answer { stored: stored.iter().map(id).collect(), served: stored.iter().take(most).chain(recent).map(id).collect() }
}
