//! The agent's budget: set aside before a turn begins, made good when it has ended, taken up again at a start.
//! The records are this machine's: an agent that runs on two may spend its budget on each.
//!
//! Must not: let a turn begin that the budget does not allow, or tell the owner the same thing twice a day.

use skep_core::backend::{BackendError, Said};
use skep_core::budget::{Budget, Charge, Exhausted, Scope, Spent};
use skep_core::door::Door;
use skep_core::queue::{self, Ended, NotStarted};
use skep_core::turn::{Cancel, TurnId};
use skep_proto::agent::metering::TurnMetric;
use skep_proto::lease::Epoch;
use skep_proto::{PubKey, Timestamp};
use skep_store::StoreError;

use super::Setup;
use super::desk::{Desk, Prompt};

const DAY_SECS: u64 = 86_400;

/// What the records say about today, and about the last hour.
pub(super) fn restore(setup: &Setup, me: PubKey, now: Timestamp) -> Result<Budget, StoreError> {
    let mut budget = Budget::new();
    budget.set(Scope::Agent(me), setup.budget);
    let since = (now / DAY_SECS * DAY_SECS).min(now.saturating_sub(3_600));
    for row in setup.store.turns_since(since)? {
        let text = match &row.end {
            Some(end) => end.charge.as_ref(),
            // Nobody saw its end: it costs what was set aside.
            None => row.reserved.as_ref(),
        };
        let Some(charge) = text.and_then(|text| serde_json::from_str::<Charge>(text).ok()) else { continue };
        let metric = row.end.and_then(|end| TurnMetric::from_json(&end.metric?).ok());
        budget.restore(row.started_at, &charge, spent(metric.as_ref()));
    }
    Ok(budget)
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
        match self.budget.reserve(self.setup.host.unix_now(), &turn, self.me, None) {
            Ok(()) => self.take_lease(Prompt { turn, message, attempt, after }).map(|()| None),
            Err(exhausted) => {
                self.tell_exhausted(&message, &exhausted)?;
                let until = exhausted.until.saturating_mul(1_000);
                let why = NotStarted::Wait { reason: exhausted.to_string(), until };
                Ok(Some(queue::Input::NotStarted { id: message.id, why }))
            }
        }
    }

    /// One note a day for each limit, also over restarts.
    fn tell_exhausted(&mut self, message: &queue::Message, exhausted: &Exhausted) -> Result<(), StoreError> {
        if !exhausted.is_news {
            return Ok(());
        }
        let fact = format!("budget_told:{}", exhausted.limit.as_str());
        let today = (self.unix_now() / DAY_SECS).to_string();
        if self.setup.store.fact(&fact)?.as_ref() == Some(&today) {
            return Ok(());
        }
        let Some(letter) = self.letter(&message.id)? else { return Ok(()) };
        self.setup.store.set_fact(&fact, Some(&today))?;
        self.tell_owner(&letter, &format!("{exhausted}; what I am asked waits until then, unless you set another"))
    }

    /// What is kept of what is set aside for a turn.
    pub(super) fn reserved(&self, turn: &TurnId) -> Option<String> {
        self.budget.reserved(turn).and_then(|charge| serde_json::to_string(charge).ok())
    }

    /// A turn ended: what it is charged with. Nothing, when it was not even begun.
    pub(super) fn settle(&mut self, turn: &TurnId, how: &Ended, metric: Option<&TurnMetric>) -> Option<String> {
        let Ended::Failed(error) = how else { return self.charge(turn, metric) };
        let is_refused = matches!(
            error,
            BackendError::Auth(_) | BackendError::Quota(_) | BackendError::Busy { .. } | BackendError::Place(_)
        );
        if is_refused && metric.is_none() {
            self.budget.cancel(turn);
            return None;
        }
        self.charge(turn, metric)
    }

    fn charge(&mut self, turn: &TurnId, metric: Option<&TurnMetric>) -> Option<String> {
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
