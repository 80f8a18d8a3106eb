//! Permissions: a backend asks, a policy or the owner answers, once.
//!
//! Job: hold every open question of an agent, show it as a card, and write exactly one answer to the backend. Lives as
//! long as its agent.
//! Must not: forward "always"; believe an answer that is not for exactly this question; let a question outlive its
//! deadline or its turn. What is not clearly allowed is denied.
//!
//! A tool's kind and paths are what the backend says they are: rules by them are a convenience against mistakes, not a
//! sandbox.

mod card;
mod policy;

use std::collections::{BTreeMap, VecDeque};

use skep_proto::agent::control::Status;
use skep_proto::agent::telemetry::{Authorization, Reason};
use skep_proto::{EventId, PubKey, limits};

pub use card::{Card, Choice, card_lines};
pub use policy::{Policy, Rule, Stance};

use crate::backend::{Ask, AskId, AskKind};
use crate::turn::TurnId;

/// Names one question once: 32 random bytes as hex, or any text as long.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub String);

/// Where a question comes from. An answer counts only for exactly this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub agent: PubKey,
    pub channel: String,
    pub session: String,
    pub turn: TurnId,
    /// Whether the owner's own message began the turn: only then may a card lead to a permission.
    pub is_by_owner: bool,
    /// Whether that message was sealed: then nothing about its questions is said in clear.
    pub is_sealed: bool,
    /// When the turn ends at the latest, in milliseconds of the clock that `now` is of.
    pub turn_ends_ms: u64,
}

/// An answer, from wherever it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// From a terminal or dashboard on this machine, whose user is the owner.
    Local { nonce: Nonce, option: String },
    /// A `permission_decision`; its author was checked to be the owner by [`skep_proto::agent::control::check`].
    Control { nonce: Nonce, channel: String, option: String },
    /// A reaction (NIP-25) on the card's event.
    Reaction { card: EventId, author: PubKey, is_yes: bool },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write this to the backend. Comes exactly once for each question.
    Answer { turn: TurnId, request: AskId, option: Option<String>, authorization: Authorization },
    /// Show it in the needs-you queue and publish it.
    Show(Box<Card>),
    /// It was decided: every screen that shows it must say so.
    Close { nonce: Nonce, card: Option<EventId>, reason: Reason },
}

/// How a question was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    option: Option<String>,
    reason: Reason,
}

#[derive(Debug)]
struct Pending {
    card: Card,
    event: Option<EventId>,
}

/// The machine. Times are milliseconds of one clock.
#[derive(Debug)]
pub struct Permits {
    policy: Policy,
    owner: Option<PubKey>,
    pending: BTreeMap<Nonce, Pending>,
    /// The newest decided ones, so that who is late can be told.
    decided: VecDeque<Decided>,
}

#[derive(Debug)]
struct Decided {
    nonce: Nonce,
    event: Option<EventId>,
    reason: Reason,
    is_sealed: bool,
}

impl Permits {
    /// Without an owner nobody can be asked.
    pub fn new(policy: Policy, owner: Option<PubKey>) -> Self {
        Self { policy, owner, pending: BTreeMap::new(), decided: VecDeque::new() }
    }

    pub fn pending(&self) -> impl Iterator<Item = &Card> {
        self.pending.values().map(|pending| &pending.card)
    }

    /// When the next question has to be closed.
    pub fn wake_at(&self) -> Option<u64> {
        self.pending().map(|card| card.expires_ms).min()
    }

    /// A backend asks. `nonce` is fresh and random.
    pub fn ask(&mut self, now_ms: u64, origin: Origin, ask: &Ask, nonce: Nonce) -> Vec<Effect> {
        let stance = self.policy.stance(&ask.tool);
        self.judge(stance, now_ms, origin, ask, nonce)
    }

    /// An agent asks its owner something that no rule can answer for them.
    pub fn ask_owner(&mut self, now_ms: u64, origin: Origin, ask: &Ask, nonce: Nonce) -> Vec<Effect> {
        self.judge(Stance::Ask, now_ms, origin, ask, nonce)
    }

    fn judge(&mut self, stance: Stance, now_ms: u64, origin: Origin, ask: &Ask, nonce: Nonce) -> Vec<Effect> {
        let allow = only(ask, AskKind::AllowOnce);
        let reject = only(ask, AskKind::RejectOnce);
        let verdict = match (stance, allow, reject) {
            (Stance::Allow, Some(allow), _) => Verdict { option: Some(allow.option), reason: Reason::Allowed },
            (Stance::Allow, None, reject) => denied(reject, Reason::AllowFailedClosed),
            (Stance::Reject, _, reject) => denied(reject, Reason::Rejected),
            (Stance::Ask, Some(allow), Some(reject)) if self.may_raise(&origin, ask, &nonce) => {
                return self.show(now_ms, origin, ask, nonce, allow, reject);
            }
            (Stance::Ask, _, reject) => denied(reject, Reason::Rejected),
        };
        vec![answer(&origin.turn, &ask.id, &nonce, verdict)]
    }

    /// The event that a card was published as.
    pub fn published(&mut self, nonce: &Nonce, event: EventId) {
        if let Some(pending) = self.pending.get_mut(nonce) {
            pending.event = Some(event);
        }
    }

    /// Whether an event is a card of ours, open or decided.
    pub fn knows(&self, event: &EventId) -> bool {
        self.nonce_of(event).is_some()
    }

    /// How the question that an answer is about was decided, if it was and is remembered.
    pub fn ended(&self, answered: &Answer) -> Option<&Reason> {
        let is_it = |decided: &&Decided| match answered {
            Answer::Local { nonce, .. } | Answer::Control { nonce, .. } => decided.nonce == *nonce,
            Answer::Reaction { card, .. } => decided.event == Some(*card),
        };
        self.decided.iter().find(is_it).map(|decided| &decided.reason)
    }

    /// Whether a card of ours, open or decided, is of a sealed conversation.
    pub fn is_sealed(&self, event: &EventId) -> bool {
        let pending = self.pending.values().map(|pending| (pending.event, pending.card.origin.is_sealed));
        let decided = self.decided.iter().map(|decided| (decided.event, decided.is_sealed));
        pending.chain(decided).any(|(of, is_sealed)| is_sealed && of.as_ref() == Some(event))
    }

    /// Somebody answers. The status is what they are told.
    pub fn decide(&mut self, now_ms: u64, answered: &Answer) -> (Status, Vec<Effect>) {
        let (nonce, option) = match self.find(answered) {
            Ok(found) => found,
            Err(status) => return (status, Vec::new()),
        };
        let Some(pending) = self.pending.get(&nonce) else { return (Status::NoActiveTurn, Vec::new()) };
        if now_ms >= pending.card.expires_ms {
            return (Status::NoActiveTurn, self.close(&nonce, None, Reason::TimedOut));
        }
        (Status::Sent, self.close(&nonce, Some(option), Reason::Applied))
    }

    /// Time passed: what is due is denied.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Effect> {
        self.close_where(Reason::TimedOut, |card| card.expires_ms <= now_ms)
    }

    /// A turn is over or being ended: its questions are, too.
    pub fn end_turn(&mut self, turn: &TurnId) -> Vec<Effect> {
        self.close_where(Reason::Cancelled, |card| card.origin.turn == *turn)
    }

    /// Whoever asked waits for no answer any more.
    pub fn withdraw(&mut self, request: &AskId) -> Vec<Effect> {
        self.close_where(Reason::Cancelled, |card| card.request == *request)
    }

    fn may_raise(&self, origin: &Origin, ask: &Ask, nonce: &Nonce) -> bool {
        let ids = [&nonce.0, &origin.session, &origin.turn.0, &ask.id.0];
        let ids = ids.into_iter().chain(ask.options.iter().map(|option| &option.id));
        let is_known = self.pending.contains_key(nonce) || self.decided.iter().any(|decided| decided.nonce == *nonce);
        let is_asked_already = self.pending().any(|card| card.origin.turn == origin.turn && card.request == ask.id);
        self.owner.is_some()
            && origin.is_by_owner
            && self.pending.len() < limits::PERMITS_PENDING_MAX
            && !is_known
            && !is_asked_already
            && ids.into_iter().all(|id| !id.is_empty() && id.len() <= limits::PERMIT_ID_BYTES_MAX)
    }

    fn show(
        &mut self,
        now_ms: u64,
        origin: Origin,
        ask: &Ask,
        nonce: Nonce,
        allow: Choice,
        reject: Choice,
    ) -> Vec<Effect> {
        let card = Card {
            nonce: nonce.clone(),
            request: ask.id.clone(),
            title: card::line(&ask.tool.title),
            detail: card::detail(&ask.detail),
            allow,
            reject,
            expires_ms: now_ms.saturating_add(limits::PERMIT_MS_MAX).min(origin.turn_ends_ms),
            origin,
        };
        self.pending.insert(nonce, Pending { card: card.clone(), event: None });
        vec![Effect::Show(Box::new(card))]
    }

    /// The question that an answer is about, and the option that it takes; or what its author is told.
    fn find(&self, answered: &Answer) -> Result<(Nonce, String), Status> {
        let nonce = match answered {
            Answer::Local { nonce, .. } | Answer::Control { nonce, .. } => nonce.clone(),
            Answer::Reaction { card, author, .. } => {
                if self.owner != Some(*author) {
                    return Err(Status::NoActiveTurn);
                }
                self.nonce_of(card).ok_or(Status::NoActiveTurn)?
            }
        };
        let Some(Pending { card, .. }) = self.pending.get(&nonce) else {
            let is_late = self.decided.iter().any(|decided| decided.nonce == nonce);
            return Err(if is_late { Status::AlreadyDecided } else { Status::NoActiveTurn });
        };
        let option = match answered {
            Answer::Control { channel, .. } if *channel != card.origin.channel => return Err(Status::NoChannel),
            Answer::Local { option, .. } | Answer::Control { option, .. } => option.clone(),
            Answer::Reaction { is_yes: true, .. } => card.allow.option.clone(),
            Answer::Reaction { is_yes: false, .. } => card.reject.option.clone(),
        };
        // Only what the card offered: an option that was altered on its way is no answer.
        if [&card.allow.option, &card.reject.option].contains(&&option) {
            Ok((nonce, option))
        } else {
            Err(Status::NoActiveTurn)
        }
    }

    fn nonce_of(&self, event: &EventId) -> Option<Nonce> {
        let pending = self.pending.iter().map(|(nonce, pending)| (nonce, pending.event));
        let decided = self.decided.iter().map(|decided| (&decided.nonce, decided.event));
        pending.chain(decided).find(|(_, of)| of.as_ref() == Some(event)).map(|(nonce, _)| nonce.clone())
    }

    fn close_where(&mut self, reason: Reason, is_due: impl Fn(&Card) -> bool) -> Vec<Effect> {
        let due: Vec<_> = self.pending().filter(|card| is_due(card)).map(|card| card.nonce.clone()).collect();
        due.iter().flat_map(|nonce| self.close(nonce, None, reason.clone())).collect()
    }

    /// Takes the question out before anything is written: there is no second answer.
    fn close(&mut self, nonce: &Nonce, option: Option<String>, reason: Reason) -> Vec<Effect> {
        let Some(Pending { card, event }) = self.pending.remove(nonce) else { return Vec::new() };
        if self.decided.len() >= limits::PERMITS_DECIDED_MAX {
            self.decided.pop_front();
        }
        let is_sealed = card.origin.is_sealed;
        self.decided.push_back(Decided { nonce: nonce.clone(), event, reason: reason.clone(), is_sealed });
        let option = option.or(if reason == Reason::Cancelled { None } else { Some(card.reject.option) });
        let verdict = Verdict { option, reason: reason.clone() };
        vec![
            answer(&card.origin.turn, &card.request, nonce, verdict),
            Effect::Close { nonce: nonce.clone(), card: event, reason },
        ]
    }
}

/// For the frame that carries the question (NIP-AO), next to the card or the policy's word.
pub fn asked(nonce: &Nonce, is_actionable: bool) -> Authorization {
    Authorization { request_nonce: nonce.0.clone(), actionable: is_actionable, reason: None }
}

fn answer(turn: &TurnId, request: &AskId, nonce: &Nonce, verdict: Verdict) -> Effect {
    let Verdict { option, reason } = verdict;
    let authorization = Authorization { request_nonce: nonce.0.clone(), actionable: false, reason: Some(reason) };
    Effect::Answer { turn: turn.clone(), request: request.clone(), option, authorization }
}

fn denied(reject: Option<Choice>, reason: Reason) -> Verdict {
    Verdict { option: reject.map(|choice| choice.option), reason }
}

/// The only option of a kind; two make none, as do two options with one id.
fn only(ask: &Ask, kind: AskKind) -> Option<Choice> {
    let mut found = ask.options.iter().filter(|option| option.kind == kind);
    let option = found.next()?;
    let is_unique = ask.options.iter().filter(|other| other.id == option.id).count() == 1;
    (found.next().is_none() && is_unique).then(|| Choice { option: option.id.clone(), label: card::line(&option.name) })
}

#[cfg(test)]
mod tests;
