//! One connection: what each message leads to. Owns the challenge, the proved keys, the names of subscriptions,
//! the connection's own rates and its strikes. The shell owns the socket and executes the effects, in order.

use ahash::{AHashMap, AHashSet};
use skep_proto::attestation::Attestation;
use skep_proto::wire::{self, ClientMsg, DecodeError, SubId, Target};
use skep_proto::{Filter, Kind, Prefix, PubKey, RawEvent, Refusal, Timestamp, limits};

use crate::intake::{Deliverer, host_of};
use crate::rate::{Bucket, Rate};
use crate::world::{Ownership, Source};
use crate::{Readers, World, access};

/// The two clocks that a decision may need.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub unix: Timestamp,
    /// Milliseconds of a clock that never goes back.
    pub mono_ms: u64,
}

/// What the shell is to do.
#[derive(Debug)]
pub enum Effect {
    Send(String),
    /// Verify, judge, store; then answer OK.
    Submit(Box<RawEvent>),
    /// The keys of this connection changed: live delivery must know.
    Authenticated,
    /// Record an ownership before anything after this is done.
    Learn {
        agent: PubKey,
        row: Ownership,
    },
    /// Serve stored events, EOSE, then live ones. Replaces a subscription of the same name.
    Subscribe {
        sub: SubId,
        filters: Vec<Filter>,
    },
    Count {
        sub: SubId,
        filters: Vec<Filter>,
    },
    Unsubscribe(SubId),
    NegOpen {
        sub: SubId,
        filter: Box<Filter>,
        message: Vec<u8>,
    },
    NegMsg {
        sub: SubId,
        message: Vec<u8>,
    },
    NegClose(SubId),
    /// Close the connection, for a reason that is counted.
    Cut(Cut),
}

/// Why a connection was cut. Each is a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cut {
    Strikes,
    /// Its address sent too many malformed messages, over whatever connections.
    NoisyAddress,
    AuthTimeout,
    SlowReader,
    Silent,
    FrameTooLarge,
    Protocol,
    /// RFC 6455, 8.1: text that is not UTF-8 ends the connection; nothing after it can be trusted to be a frame's text.
    Utf8,
    Shutdown,
    Blocked,
}

impl Cut {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strikes => "malformed messages",
            Self::NoisyAddress => "malformed messages from this address",
            Self::AuthTimeout => "no authentication in time",
            Self::SlowReader => "reads too slowly",
            Self::Silent => "no answer to pings",
            Self::FrameTooLarge => "message too large",
            Self::Protocol => "not the WebSocket protocol",
            Self::Utf8 => "text that is not UTF-8",
            Self::Shutdown => "the relay stops",
            Self::Blocked => "address is blocked",
        }
    }
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    challenge: String,
    from: Deliverer,
    /// Open subscriptions, and the values that their filters list.
    subs: AHashMap<SubId, usize>,
    negs: AHashSet<SubId>,
    events: Bucket,
    requests: Bucket,
    strikes: Bucket,
    opened_at_ms: u64,
}

impl Session {
    /// `challenge` is fresh randomness as text.
    pub fn new(world: &World, now: Now, challenge: String) -> Self {
        let full = |rate| Bucket::full(Rate::per_second(rate), now.mono_ms);
        Self {
            challenge,
            from: Deliverer::default(),
            subs: AHashMap::new(),
            negs: AHashSet::new(),
            events: full(world.limits.events_per_second),
            requests: full(world.limits.requests_per_second),
            strikes: Bucket::full(Rate::per_minute(limits::STRIKES_PER_MINUTE_MAX), now.mono_ms),
            opened_at_ms: now.mono_ms,
        }
    }

    /// The first message of a connection.
    pub fn greeting(&self) -> String {
        wire::auth(&self.challenge)
    }

    pub fn deliverer(&self) -> &Deliverer {
        &self.from
    }

    /// When this connection must have authenticated by, in monotonic milliseconds; `None` when it need not or did.
    pub fn auth_deadline_ms(&self, world: &World) -> Option<u64> {
        let must = world.is_closed && self.from.readers.is_empty();
        must.then(|| self.opened_at_ms + world.limits.auth_timeout_secs * 1_000)
    }

    /// What one message leads to.
    pub fn handle(&mut self, world: &World, now: Now, message: Result<ClientMsg, DecodeError>, out: &mut Vec<Effect>) {
        match message {
            Ok(ClientMsg::Event(event)) => self.handle_event(world, now, event, out),
            Ok(ClientMsg::Auth(event)) => self.handle_auth(world, now, *event, out),
            Ok(ClientMsg::Req { sub, filters }) => match self.check_subscription(world, now, &sub, &filters) {
                Ok(()) => {
                    self.subs.insert(sub.clone(), values(&filters));
                    out.push(Effect::Subscribe { sub, filters });
                }
                Err(refusal) => {
                    out.push(Effect::Send(wire::closed(&sub, &refusal)));
                    self.subs.remove(&sub);
                    out.push(Effect::Unsubscribe(sub));
                }
            },
            Ok(ClientMsg::Count { sub, filters }) => match self.check_request(world, now, &filters) {
                Ok(()) => out.push(Effect::Count { sub, filters }),
                Err(refusal) => out.push(Effect::Send(wire::closed(&sub, &refusal))),
            },
            Ok(ClientMsg::Close { sub }) => {
                self.subs.remove(&sub);
                out.push(Effect::Unsubscribe(sub));
            }
            Ok(ClientMsg::NegOpen { sub, filter, message }) => {
                self.handle_neg_open(world, now, sub, filter, &message, out)
            }
            Ok(ClientMsg::NegMsg { sub, message }) => self.handle_neg_msg(sub, &message, out),
            Ok(ClientMsg::NegClose { sub }) => {
                self.negs.remove(&sub);
                out.push(Effect::NegClose(sub));
            }
            Err(error) => self.handle_malformed(now, error, out),
        }
    }

    /// The shell ended a subscription (its scan failed): the name is free again.
    pub fn handle_closed(&mut self, sub: &SubId) {
        self.subs.remove(sub);
    }

    pub fn handle_neg_closed(&mut self, sub: &SubId) {
        self.negs.remove(sub);
    }

    fn handle_event(&mut self, world: &World, now: Now, event: Box<RawEvent>, out: &mut Vec<Effect>) {
        if self.events.take(Rate::per_second(world.limits.events_per_second), now.mono_ms) {
            out.push(Effect::Submit(event));
        } else {
            let refusal = Prefix::RateLimited.because("too many events on this connection; slow down");
            out.push(Effect::Send(wire::ok(&event.id.to_hex(), Err(&refusal))));
        }
    }

    fn handle_auth(&mut self, world: &World, now: Now, event: RawEvent, out: &mut Vec<Effect>) {
        let id = event.id.to_hex();
        match self.authenticate(world, now.unix, event) {
            Ok(learned) => {
                out.extend(learned.map(|(agent, row)| Effect::Learn { agent, row }));
                out.push(Effect::Authenticated);
                out.push(Effect::Send(wire::ok(&id, Ok(""))));
            }
            Err(refusal) => {
                out.push(Effect::Send(wire::ok(&id, Err(&refusal))));
                self.strike(now, out);
            }
        }
    }

    /// NIP-42, and NIP-OA when the event carries an attestation.
    fn authenticate(
        &mut self,
        world: &World,
        now: Timestamp,
        event: RawEvent,
    ) -> Result<Option<(PubKey, Ownership)>, Refusal> {
        let invalid = |text: &'static str| Prefix::Invalid.because(text);
        if event.kind != Kind::AUTH {
            return Err(invalid("an AUTH event has kind 22242"));
        }
        if event.created_at.abs_diff(now) > limits::AUTH_FRESH_SECS {
            return Err(invalid("the AUTH event's created_at is more than 120 s from the relay's clock"));
        }
        if event.tags.single("challenge") != Some(&self.challenge) {
            return Err(invalid("the challenge is not the one of this connection"));
        }
        let host = event.tags.single("relay").and_then(host_of);
        if !host.is_some_and(|host| world.hosts.contains(&host)) {
            return Err(invalid("the relay tag names another relay"));
        }
        let event = event.verify().map_err(|error| Prefix::Invalid.because(error.to_string()))?;
        if world.is_banned(&event.pubkey) {
            return Err(Prefix::Restricted.because("this key is banned here"));
        }
        let attestation = match Attestation::from_tags(&event.tags, &event.pubkey) {
            None => None,
            Some(Err(error)) => return Err(Prefix::Invalid.because(error.to_string())),
            Some(Ok(found)) if !found.conditions.allow_time(event.created_at) => {
                return Err(invalid("the owner's attestation is not valid at this time"));
            }
            Some(Ok(found)) => Some(found),
        };
        self.from.readers.add(event.pubkey);
        self.from.bound.retain(|(key, _)| *key != event.pubkey);
        let Some(attestation) = attestation else { return Ok(None) };
        let row = world.registry.learn(&event.pubkey, attestation.owner, Source::Auth, now);
        if !attestation.conditions.is_empty() {
            self.from.bound.push((event.pubkey, attestation.conditions));
        }
        Ok(row.map(|row| (event.pubkey, row)))
    }

    fn check_subscription(&mut self, world: &World, now: Now, sub: &SubId, filters: &[Filter]) -> Result<(), Refusal> {
        let limits = &world.limits;
        let others = self.subs.iter().filter(|(open, _)| *open != sub);
        let (count, listed) = others.fold((1, values(filters)), |(count, sum), (_, values)| (count + 1, sum + values));
        if count > limits.subscriptions {
            return Err(
                Prefix::Blocked.because(format!("more than {} subscriptions on one connection", limits.subscriptions))
            );
        }
        if listed > limits.subscription_values {
            let most = limits.subscription_values;
            return Err(
                Prefix::Blocked.because(format!("more than {most} values in the subscriptions of one connection"))
            );
        }
        self.check_request(world, now, filters)
    }

    fn check_request(&mut self, world: &World, now: Now, filters: &[Filter]) -> Result<(), Refusal> {
        let limits = &world.limits;
        if !self.requests.take(Rate::per_second(limits.requests_per_second), now.mono_ms) {
            return Err(Prefix::RateLimited.because("too many requests on this connection; slow down"));
        }
        check_filters(world, filters)?;
        check_reader(world, &self.from.readers, filters)
    }

    fn handle_neg_open(
        &mut self,
        world: &World,
        now: Now,
        sub: SubId,
        filter: Box<Filter>,
        hex: &str,
        out: &mut Vec<Effect>,
    ) {
        let open = self.negs.len() + usize::from(!self.negs.contains(&sub));
        let checked = self
            .check_request(world, now, std::slice::from_ref(&*filter))
            .and_then(|()| if open > limits::NEG_SESSIONS_MAX { Err(too_many_negs()) } else { decode_hex(hex) });
        match checked {
            Ok(message) => {
                self.negs.insert(sub.clone());
                out.push(Effect::NegOpen { sub, filter, message });
            }
            Err(refusal) => out.push(Effect::Send(wire::neg_err(&sub, &refusal))),
        }
    }

    fn handle_neg_msg(&mut self, sub: SubId, hex: &str, out: &mut Vec<Effect>) {
        let is_open = self.negs.contains(&sub);
        match decode_hex(hex) {
            Ok(message) if is_open => out.push(Effect::NegMsg { sub, message }),
            Ok(_) => {
                out.push(Effect::Send(wire::neg_err(&sub, &Prefix::Invalid.because("closed: no such reconciliation"))))
            }
            Err(refusal) => out.push(Effect::Send(wire::neg_err(&sub, &refusal))),
        }
    }

    fn handle_malformed(&mut self, now: Now, error: DecodeError, out: &mut Vec<Effect>) {
        let DecodeError { target, refusal } = error;
        out.push(Effect::Send(match target {
            Target::Event(id) => wire::ok(&id, Err(&refusal)),
            Target::Sub(sub) => wire::closed(&sub, &refusal),
            Target::Neg(sub) => wire::neg_err(&sub, &refusal),
            Target::Nothing => wire::notice(&refusal.to_string()),
        }));
        self.strike(now, out);
    }

    /// Counts a malformed message; too many in a minute cut the connection.
    pub fn strike(&mut self, now: Now, out: &mut Vec<Effect>) {
        if !self.strikes.take(Rate::per_minute(limits::STRIKES_PER_MINUTE_MAX), now.mono_ms) {
            out.push(Effect::Cut(Cut::Strikes));
        }
    }
}

fn values(filters: &[Filter]) -> usize {
    filters.iter().map(Filter::values).sum()
}

/// The rules about filters that hold on every path: WebSocket and HTTP.
pub fn check_filters(world: &World, filters: &[Filter]) -> Result<(), Refusal> {
    let limits = &world.limits;
    if filters.len() > limits.filters {
        return Err(Prefix::Invalid.because(format!("more than {} filters in one message", limits.filters)));
    }
    if values(filters) > limits.filter_values {
        return Err(
            Prefix::Invalid.because(format!("more than {} values in the filters of one message", limits.filter_values))
        );
    }
    if let Some(unknown) = filters.iter().find_map(|filter| filter.unknown.as_deref()) {
        return Err(Prefix::Unsupported.because(format!("unknown filter element {unknown:?}")));
    }
    if !world.is_search_on && filters.iter().any(|filter| filter.search.is_some()) {
        return Err(Prefix::Unsupported.because("search is off on this relay"));
    }
    Ok(())
}

/// The rule about readers that holds on every path. A filter that could match a gated kind is not refused for that:
/// what the reader may not see is simply not there.
pub fn check_reader(world: &World, readers: &Readers, filters: &[Filter]) -> Result<(), Refusal> {
    if world.is_closed && !readers.iter().any(|key| world.has_standing(key)) {
        let prefix = if readers.is_empty() { Prefix::AuthRequired } else { Prefix::Restricted };
        return Err(prefix.because("this relay is for its members"));
    }
    let only_gated = |filter: &Filter| access::asks_only_for_gated(filter.kinds.as_deref());
    if readers.is_empty() && filters.iter().all(only_gated) {
        return Err(Prefix::AuthRequired.because("these kinds are read by their recipients only"));
    }
    Ok(())
}

fn too_many_negs() -> Refusal {
    Prefix::Blocked.because(format!("more than {} reconciliations on one connection", limits::NEG_SESSIONS_MAX))
}

fn decode_hex(hex: &str) -> Result<Vec<u8>, Refusal> {
    let mut message = vec![0; hex.len() / 2];
    skep_proto::id::decode_lower_hex(&hex.to_ascii_lowercase(), &mut message)
        .ok_or_else(|| Prefix::Invalid.because("the message is not hex"))?;
    Ok(message)
}
