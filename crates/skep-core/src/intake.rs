//! What may come in: each rule about an event, from the kind table, the world and the connection that delivers it.
//!
//! [`screen`] needs no signature and costs microseconds, so it runs first; [`judge`] runs on a verified event only,
//! so that nobody learns anything about a key, or uses up its rate, without holding it.

use skep_proto::attestation::{Attestation, Conditions};
use skep_proto::kind::{self, WriteRule};
use skep_proto::lease::{Claim, Request};
use skep_proto::{Kind, Prefix, PubKey, RawEvent, Refusal, Timestamp, VerifiedEvent, agent, limits};

use crate::door::Origin;
use crate::world::{Ownership, Source};
use crate::{Readers, World, lease};

/// What to do with an event that may come in.
#[derive(Debug, PartialEq)]
pub enum Admission {
    /// Give it to the writer. The claim is checked again inside its transaction.
    Store { claim: Option<Claim>, learn: Option<(PubKey, Ownership)> },
    /// Say OK and forget it.
    Drop,
    /// Ask the ledger.
    Lease { holder: PubKey, request: Request },
    /// Add the author to the members (NIP-43).
    Join,
    /// Take the author from the members (NIP-43).
    Leave,
}

/// Which shared rate an event counts against, beyond its author's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RateClass {
    Metric,
    Telemetry,
}

/// Who delivers: the keys of the connection, and the `kind=` clauses that bind its agents.
#[derive(Debug, Default, Clone)]
pub struct Deliverer {
    pub readers: Readers,
    pub bound: Vec<(PubKey, Conditions)>,
}

/// The rules that need nothing but the event, the configuration and a clock.
pub fn screen(
    world: &World,
    origin: Origin,
    event: &RawEvent,
    event_bytes: usize,
    now: Timestamp,
) -> Result<(), Refusal> {
    let limits = &world.limits;
    if event_bytes > limits.event_bytes {
        return Err(Prefix::Invalid.because(format!("the event is larger than {} bytes", limits.event_bytes)));
    }
    if event.content.chars().count() > limits.content_chars() {
        return Err(Prefix::Invalid.because(format!("the content has more than {} characters", limits.content_chars())));
    }
    if event.tags.len() > limits.tags {
        return Err(Prefix::Invalid.because(format!("the event has more than {} tags", limits.tags)));
    }
    let is_long = |tag: skep_proto::tag::Tag<'_>| tag.elements().any(|text| text.len() > limits.tag_value_bytes);
    if event.tags.iter().any(is_long) {
        return Err(Prefix::Invalid.because(format!("a tag value is longer than {} bytes", limits.tag_value_bytes)));
    }
    if world.is_banned(&event.pubkey) {
        return Err(Prefix::Blocked.because("this key is banned here"));
    }
    if world.is_event_banned(&event.id) {
        return Err(Prefix::Blocked.because("this event is banned here"));
    }
    if !world.takes_kind(event.kind) {
        return Err(Prefix::Blocked.because(format!("kind {} is not taken here", event.kind)));
    }
    if event.expiration().is_some_and(|at| at <= now) {
        return Err(Prefix::Invalid.because("the event has expired"));
    }
    if kind::rule(event.kind).write == WriteRule::Never {
        return Err(Prefix::Invalid.because(format!("kind {} is never published as an event", event.kind)));
    }
    if origin == Origin::Client {
        screen_time(world, event, now)?;
    }
    if u32::from(world.min_pow) > leading_zero_bits(&event.id.0) && !kind::rule(event.kind).read.is_gated() {
        return Err(Prefix::Pow.because(format!("difficulty {} or more is needed", world.min_pow)));
    }
    Ok(())
}

fn screen_time(world: &World, event: &RawEvent, now: Timestamp) -> Result<(), Refusal> {
    let limits = &world.limits;
    if event.created_at > now.saturating_add(limits.created_at_ahead_secs) {
        return Err(
            Prefix::Invalid.because(format!("created_at is more than {} s ahead", limits.created_at_ahead_secs))
        );
    }
    let behind = limits.created_at_behind_secs;
    if behind > 0 && event.created_at.saturating_add(behind) < now {
        return Err(Prefix::Invalid.because(format!("created_at is more than {behind} s ago")));
    }
    let is_act =
        matches!(kind::rule(event.kind).write, WriteRule::AgentFrame | WriteRule::LeaseRequest | WriteRule::Membership);
    if is_act && event.created_at.abs_diff(now) > limits::LEASE_REQUEST_FRESH_SECS {
        return Err(Prefix::Invalid.because("created_at is more than 300 s from the relay's clock"));
    }
    Ok(())
}

/// NIP-13: the difficulty is the number of leading zero bits of the id.
fn leading_zero_bits(id: &[u8; 32]) -> u32 {
    let zeros = id.iter().take_while(|byte| **byte == 0).count();
    zeros as u32 * 8 + id.get(zeros).map_or(0, |byte| byte.leading_zeros())
}

/// The rules about who it is from, who delivers it and what it claims.
pub fn judge(
    world: &World,
    origin: Origin,
    from: &Deliverer,
    event: &VerifiedEvent,
    now: Timestamp,
) -> Result<Admission, Refusal> {
    if event.pubkey == world.relay && origin == Origin::Record {
        return Ok(Admission::Store { claim: None, learn: None });
    }
    judge_author(world, origin, from, event)?;
    let row = kind::rule(event.kind);
    match row.write {
        WriteRule::Author => {}
        WriteRule::Channel => judge_channels(world, event)?,
        WriteRule::RelayKey => return Err(Prefix::Restricted.because("only the relay publishes this kind")),
        WriteRule::Never => return Err(Prefix::Invalid.because("this kind is never published as an event")),
        WriteRule::AgentMetric => judge_metric(world, origin, from, event)?,
        WriteRule::AgentFrame => {
            if !judge_frame(world, event)? {
                return Ok(Admission::Drop);
            }
        }
        WriteRule::LeaseRequest => {
            let request = Request::from_event(event).map_err(|error| Prefix::Invalid.because(error.to_string()))?;
            let holder = lease::holder_for(world, event, &request)?;
            return Ok(Admission::Lease { holder, request });
        }
        WriteRule::Membership => return judge_membership(world, event),
    }
    if event.kind == Kind::VANISH {
        judge_vanish(world, event)?;
    }
    let claim = match Claim::from_event(event) {
        _ if origin == Origin::Record => None,
        None => None,
        Some(Ok(claim)) => Some(claim),
        Some(Err(error)) => return Err(Prefix::Invalid.because(error.to_string())),
    };
    Ok(Admission::Store { claim, learn: learn_from_profile(world, event, now) })
}

fn judge_author(world: &World, origin: Origin, from: &Deliverer, event: &VerifiedEvent) -> Result<(), Refusal> {
    if let Some((_, bound)) = from.bound.iter().find(|(key, _)| *key == event.pubkey)
        && !bound.allow_kind(event.kind)
    {
        return Err(Prefix::Restricted.because(format!("the owner's attestation does not cover kind {}", event.kind)));
    }
    if origin == Origin::Record {
        return Ok(());
    }
    let is_there = from.readers.iter().any(|key| *key == event.pubkey);
    if event.tags.named("-").next().is_some() && !is_there {
        return Err(needs_auth(from, "a protected event is taken from its author only"));
    }
    if event.kind.is_repost() && embeds_protected(&event.content) {
        return Err(Prefix::Blocked.because("a repost must not embed a protected event"));
    }
    // A request to vanish is a right (NIP-62), a wrap's author is a throw-away key (NIP-59), joining comes before
    // membership (NIP-43).
    let rule = kind::rule(event.kind);
    let is_free = event.kind == Kind::VANISH || rule.write == WriteRule::Membership;
    if world.is_closed && !is_free {
        let stands = |key: &PubKey| world.has_standing(key);
        let is_delivered = from.readers.iter().any(stands);
        // A wrap's author is a throw-away key; whoever delivers it stands for it.
        if !(is_delivered && (stands(&event.pubkey) || event.kind == Kind::GIFT_WRAP)) {
            return Err(needs_auth(from, "only members publish here"));
        }
    }
    Ok(())
}

/// `auth-required:` before anybody has authenticated, `restricted:` after.
fn needs_auth(from: &Deliverer, text: &'static str) -> Refusal {
    if from.readers.is_empty() { Prefix::AuthRequired.because(text) } else { Prefix::Restricted.because(text) }
}

fn embeds_protected(content: &str) -> bool {
    content.starts_with('{')
        && serde_json::from_str::<RawEvent>(content).is_ok_and(|inner| inner.tags.named("-").next().is_some())
}

fn judge_channels(world: &World, event: &VerifiedEvent) -> Result<(), Refusal> {
    if !world.has_channel_rules() {
        return Ok(());
    }
    let admits = |channel: &crate::world::Channel| channel.admits(&event.pubkey) || world.is_admin(&event.pubkey);
    if world.channels_of(event.record().as_ref()).all(admits) {
        Ok(())
    } else {
        Err(Prefix::Restricted.because("this channel is for its members"))
    }
}

fn judge_metric(world: &World, origin: Origin, from: &Deliverer, event: &VerifiedEvent) -> Result<(), Refusal> {
    let metric = agent::metric(event).map_err(|error| Prefix::Restricted.because(error.to_string()))?;
    let is_there = from.readers.iter().any(|key| *key == metric.agent);
    if origin == Origin::Client && !is_there {
        return Err(needs_auth(from, "a turn metric is taken from its agent only"));
    }
    if world.registry.owns(&metric.owner, &metric.agent) {
        Ok(())
    } else {
        Err(Prefix::Restricted.because("the recipient is not this agent's registered owner"))
    }
}

/// `Ok(false)`: well-formed, but a frame that nobody here knows.
fn judge_frame(world: &World, event: &VerifiedEvent) -> Result<bool, Refusal> {
    let frame = agent::frame(event).map_err(|error| Prefix::Invalid.because(error.to_string()))?;
    if world.registry.owns(&frame.owner, &frame.agent) {
        Ok(frame.known)
    } else {
        Err(Prefix::Restricted.because("author and recipient are not an agent and its registered owner"))
    }
}

fn judge_membership(world: &World, event: &VerifiedEvent) -> Result<Admission, Refusal> {
    if event.kind == Kind::LEAVE_REQUEST {
        return Ok(Admission::Leave);
    }
    if world.is_member(&event.pubkey) {
        return Err(Prefix::Duplicate.because("you are a member already"));
    }
    match event.tags.single("claim") {
        Some(claim) if world.policy.claims.contains_key(claim) => Ok(Admission::Join),
        _ => Err(Prefix::Restricted.because("this invite code is not valid")),
    }
}

fn judge_vanish(world: &World, event: &VerifiedEvent) -> Result<(), Refusal> {
    let is_us = |url: &str| url == "ALL_RELAYS" || host_of(url).is_some_and(|host| world.hosts.contains(&host));
    if event.tags.values("relay").any(is_us) {
        Ok(())
    } else {
        Err(Prefix::Invalid.because("the request to vanish does not name this relay"))
    }
}

/// The host, with its port unless it is the scheme's, of a relay URL; lowercase.
pub fn host_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.trim().split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?.to_ascii_lowercase();
    let default = match scheme.to_ascii_lowercase().as_str() {
        "ws" | "http" => ":80",
        "wss" | "https" => ":443",
        _ => return None,
    };
    let host = host.strip_suffix(default).unwrap_or(&host).to_owned();
    (!host.is_empty()).then_some(host)
}

/// A profile with a valid, unconditional attestation tells who owns the agent (NIP-OA).
fn learn_from_profile(world: &World, event: &VerifiedEvent, now: Timestamp) -> Option<(PubKey, Ownership)> {
    if event.kind != Kind::PROFILE {
        return None;
    }
    let attestation = Attestation::from_tags(&event.tags, &event.pubkey)?.ok()?;
    if !attestation.conditions.is_empty() {
        return None;
    }
    let row = world.registry.learn(&event.pubkey, attestation.owner, Source::Profile, now)?;
    Some((event.pubkey, row))
}

/// The shared rate that this event counts against.
pub fn rate_class(event: &RawEvent) -> Option<RateClass> {
    match kind::rule(event.kind).write {
        WriteRule::AgentMetric => Some(RateClass::Metric),
        // Control frames are exempt: an owner must be able to stop an agent that floods.
        WriteRule::AgentFrame if event.tags.single("agent").is_some_and(|agent| agent == event.pubkey.to_hex()) => {
            Some(RateClass::Telemetry)
        }
        _ => None,
    }
}
