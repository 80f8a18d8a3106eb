//! The agent's budget, and its part of the fleet's and its task's: set aside before a turn begins, made good when it has
//! ended, taken up again at a start. The records are this machine's: an agent that runs on two may spend its budget on
//! each, and a fleet's and a task's budget is this home's.
//!
//! Must not: let a turn begin that the budget does not allow, or tell the owner the same thing twice a day.

use skep_core::backend::{BackendError, Said};
use skep_core::budget::{self, Budget, Charge, DAY_SECS, End, Exhausted, Limits, Scope, Shared, Spent, Start};
use skep_core::door::Door;
use skep_core::prompt::Relation;
use skep_core::queue::{self, Ended, NotStarted};
use skep_core::turn::{Cancel, TurnId};
use skep_proto::agent::metering::TurnMetric;
use skep_proto::lease::Epoch;
use skep_proto::{PubKey, RawEvent, Timestamp, limits, thread};
use skep_store::StoreError;
use skep_store::agent::TurnEnd;

use super::Refused;
use super::Setup;
use super::desk::{Desk, Prompt};

/// Milliseconds until a ledger that could not be used is tried again.
const UNUSABLE_MS: u64 = 30_000;

/// What the records say about today and the last hour, and what turns cost before. The common budget is told how turns
/// ended, as far as it does not know.
pub(super) fn restore(setup: &Setup, me: PubKey, now: Timestamp) -> Result<Budget, StoreError> {
    let mut budget = Budget::new();
    budget.set(Scope::Agent(me), setup.budget);
    budget.set(Scope::Fleet, per_turn(shared(setup).fleet));
    let since = budget::open_since(now);
    let newest = setup.store.newest_turns(limits::ESTIMATE_TURNS_MAX as u32)?;
    let older = newest.into_iter().rev().filter(|row| row.started_at < since);
    let mut ends = Vec::new();
    for row in older.chain(setup.store.turns_since(since)?) {
        let is_seen = row.end.is_some();
        let end = row.end.unwrap_or_else(|| TurnEnd { at: row.started_at, charge: row.reserved, ..TurnEnd::default() });
        let known = spent(end.metric.and_then(|metric| TurnMetric::from_json(&metric).ok()).as_ref());
        let charge = end.charge.and_then(|charge| serde_json::from_str::<Charge>(&charge).ok());
        // One whose end nobody saw costs something.
        let is_charged = charge.is_some() || !is_seen;
        ends.push(End { turn: TurnId(row.turn), at: end.at, spent: is_charged.then_some(known) });
        match charge {
            Some(charge) if is_seen => budget.restore(row.started_at, &charge, known),
            Some(reserved) => budget.restore_lost(row.started_at, &reserved),
            None => {}
        }
    }
    if let Some(purse) = &setup.purse {
        purse.take_up(Start { agent: me, now, ends });
    }
    Ok(budget)
}

fn shared(setup: &Setup) -> Shared {
    setup.purse.as_ref().map(|purse| purse.limits()).unwrap_or_default()
}

/// What is watched while a turn runs; the rest of a common limit is the ledger's.
fn per_turn(limits: Limits) -> Limits {
    Limits { usd_per_turn: limits.usd_per_turn, ..Limits::default() }
}

/// What a metric says that was used.
fn spent(metric: Option<&TurnMetric>) -> Spent {
    let Some(tally) = metric.map(|metric| metric.turn) else { return Spent::default() };
    let both = tally.input_tokens.zip(tally.output_tokens).map(|(input, output)| input.saturating_add(output));
    Spent { usd: tally.cost_usd, tokens: tally.total_tokens.or(both) }
}

impl<D: Door + 'static> Desk<D> {
    /// Budget first, then the turn's lease. What the queue is to be told, where it cannot begin.
    pub(super) fn prompt(
        &mut self,
        message: queue::Message,
        attempt: u32,
        after: Option<Epoch>,
    ) -> Result<Option<queue::Input>, StoreError> {
        let turn = TurnId(faster_hex::hex_string(&self.random::<16>()));
        let task = self.letter(&message.id)?.and_then(|letter| self.task_of(&letter));
        let (reason, until) = match self.reserve(&turn, task) {
            Ok(()) => return self.take_lease(Prompt { turn, message, attempt, after }).map(|()| None),
            Err(Refused::Exhausted(exhausted)) => {
                self.tell_exhausted(&message, &exhausted)?;
                (exhausted.to_string(), exhausted.until.saturating_mul(1_000))
            }
            Err(Refused::Unusable(why)) => {
                tracing::warn!(agent = %self.setup.name, why, "no turn begins");
                (why, self.unix_ms() + UNUSABLE_MS)
            }
        };
        let why = NotStarted::Wait { reason, until };
        Ok(Some(queue::Input::NotStarted { id: message.id, why }))
    }

    /// In every account or in none.
    fn reserve(&mut self, turn: &TurnId, task: Option<String>) -> Result<(), Refused> {
        let now = self.unix_now();
        if let Some(task) = &task {
            self.budget.set(Scope::Task(task.clone()), per_turn(shared(&self.setup).task));
        }
        self.budget.reserve(now, turn, self.me, task.clone()).map_err(Refused::Exhausted)?;
        let Some(purse) = &self.setup.purse else { return Ok(()) };
        let reserved = purse.reserve(now, turn, self.me, task.as_deref());
        reserved.inspect_err(|_| self.budget.cancel(turn))
    }

    /// A turn that was reserved for did not begin.
    pub(super) fn give_back(&mut self, turn: &TurnId) {
        self.budget.cancel(turn);
        if let Some(purse) = &self.setup.purse {
            purse.settle(self.unix_now(), turn, None);
        }
    }

    /// The harness stops and no turn runs: what else is set aside is for turns that will not begin.
    pub(super) fn give_back_rest(&mut self) {
        self.budget.open_turns().iter().for_each(|turn| self.give_back(turn));
    }

    /// The task that a message is about, by one who may say so: the owner, or an agent of theirs.
    pub(super) fn task_of(&self, letter: &RawEvent) -> Option<String> {
        let is_believed = matches!(self.relation(letter), Relation::Owner | Relation::Sibling);
        thread::task(letter).filter(|_| is_believed).map(str::to_owned)
    }

    /// One note a day for each limit, also over restarts.
    fn tell_exhausted(&mut self, message: &queue::Message, exhausted: &Exhausted) -> Result<(), StoreError> {
        if !exhausted.is_news {
            return Ok(());
        }
        let fact = format!("budget_told:{}", exhausted.limit.as_str());
        let today = (self.unix_now() / DAY_SECS).to_string();
        // What all have in common is told once for all: the ledger knows.
        let is_own = matches!(exhausted.scope, Scope::Agent(_));
        if is_own && self.setup.store.fact(&fact)?.as_ref() == Some(&today) {
            return Ok(());
        }
        let Some(letter) = self.letter(&message.id)? else { return Ok(()) };
        if is_own {
            self.setup.store.set_fact(&fact, Some(&today))?;
        }
        self.tell_owner(&letter, &format!("{exhausted}; what I am asked waits until then, unless you set another"))
    }

    /// What is kept of what is set aside for a turn.
    pub(super) fn reserved(&self, turn: &TurnId) -> Option<String> {
        self.budget.reserved(turn).and_then(|charge| serde_json::to_string(charge).ok())
    }

    /// A turn ended: what it is charged with. Nothing, when its backend was refused, or came to nothing before it said
    /// anything.
    pub(super) fn settle(
        &mut self,
        turn: &TurnId,
        how: &Ended,
        has_spoken: bool,
        metric: Option<&TurnMetric>,
    ) -> Option<String> {
        let is_free = match how {
            Ended::Answered(_) => false,
            Ended::Failed(
                BackendError::Auth(_) | BackendError::Quota(_) | BackendError::Busy { .. } | BackendError::Place(_),
            ) => true,
            Ended::Failed(_) | Ended::Cancelled(_) | Ended::Stuck | Ended::TooLong => !has_spoken,
        };
        if is_free && metric.is_none() {
            self.give_back(turn);
            return None;
        }
        self.charge(turn, metric)
    }

    fn charge(&mut self, turn: &TurnId, metric: Option<&TurnMetric>) -> Option<String> {
        if let Some(purse) = &self.setup.purse {
            purse.settle(self.unix_now(), turn, Some(spent(metric)));
        }
        let charge = self.budget.settle(self.setup.host.unix_now(), turn, spent(metric))?;
        serde_json::to_string(&charge).ok()
    }

    /// Ends a turn that has cost more than one may.
    pub(super) fn check_cost(&mut self, channel: &str, said: &Said) -> Result<(), StoreError> {
        if !matches!(said, Said::Usage(_)) {
            return Ok(());
        }
        let Some((turn, session, observed)) = self.running_cost(channel) else { return Ok(()) };
        let usd = self.meter.cost(session.as_deref(), &observed, None, self.setup.prices.as_ref());
        match usd.and_then(|usd| self.budget.overspent(&turn, usd)) {
            Some(_) => self.cancel_turn(&turn, Cancel::Budget),
            None => Ok(()),
        }
    }
}
