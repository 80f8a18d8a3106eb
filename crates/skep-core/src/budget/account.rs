//! What one scope spent, has set aside, and usually needs.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use skep_proto::{PubKey, Timestamp, limits};

use super::{DAY_SECS, HOUR_SECS, Limit, Limits, MicroUsd, Scope, Spent, micros};

/// Until it is asked again where turns that run may leave something.
const ASIDE_SECS: u64 = 5;

/// An amount of both things that are limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Amount {
    pub usd: MicroUsd,
    pub tokens: u64,
}

/// One turn in the accounts: what is set aside, later what it used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    pub agent: PubKey,
    pub task: Option<String>,
    pub at: Timestamp,
    /// Of the agent's account and the fleet's.
    pub spent: Amount,
    /// Of the task's account: a task's day is another than the fleet's. `None`: as `spent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_task: Option<Amount>,
}

impl Limits {
    /// What one turn takes at most while nobody knows what it costs; the largest number where nothing limits it.
    fn blind(&self) -> Amount {
        let a_day = |most: u64| most.div_ceil(limits::BLIND_TURNS_A_DAY);
        let usd = self.usd_per_day.map(|most| a_day(limit(most)));
        let usd = usd.into_iter().chain(self.usd_per_turn.map(limit)).min();
        Amount { usd: usd.unwrap_or(u64::MAX), tokens: self.tokens_per_day.map_or(u64::MAX, a_day) }
    }
}

impl Amount {
    fn min(self, other: Self) -> Self {
        Self { usd: self.usd.min(other.usd), tokens: self.tokens.min(other.tokens) }
    }

    pub(super) fn max(self, other: Self) -> Self {
        Self { usd: self.usd.max(other.usd), tokens: self.tokens.max(other.tokens) }
    }

    fn add(&mut self, other: Self) {
        self.usd = self.usd.saturating_add(other.usd);
        self.tokens = self.tokens.saturating_add(other.tokens);
    }

    fn sub(&mut self, other: Self) {
        self.usd = self.usd.saturating_sub(other.usd);
        self.tokens = self.tokens.saturating_sub(other.tokens);
    }
}

impl Charge {
    pub(super) fn scopes(&self) -> Vec<Scope> {
        let task = self.task.iter().cloned().map(Scope::Task);
        [Scope::Agent(self.agent)].into_iter().chain(task).chain([Scope::Fleet]).collect()
    }

    /// What the account of a scope has of it.
    pub(super) fn amount(&self, scope: &Scope) -> Amount {
        match scope {
            Scope::Task(_) => self.of_task.unwrap_or(self.spent),
            Scope::Agent(_) | Scope::Fleet => self.spent,
        }
    }

    /// What was set aside, made good: what is not known of it is what was set aside, but no more than a turn takes of a
    /// day of which nothing is known.
    pub(super) fn settled(&self, now: Timestamp, spent: Spent, of: impl Fn(&Scope) -> Limits) -> Self {
        let scopes = self.scopes();
        let made_good = |aside: Amount, is_task: bool| {
            let scopes = scopes.iter().filter(|scope| matches!(scope, Scope::Task(_)) == is_task);
            let most = scopes.map(|scope| of(scope).blind()).fold(aside, Amount::min);
            let usd = spent.usd.and_then(micros).unwrap_or(most.usd);
            Amount { usd, tokens: spent.tokens.unwrap_or(most.tokens) }
        };
        let of_task = self.task.as_ref().map(|_| made_good(self.of_task.unwrap_or(self.spent), true));
        Self { spent: made_good(self.spent, false), of_task, at: now, ..self.clone() }
    }
}

/// The limit that forbids a turn; see [`super::Exhausted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    pub limit: Limit,
    pub until: Timestamp,
    pub is_aside: bool,
}

#[derive(Debug, Default)]
pub struct Account {
    day: u64,
    spent: Amount,
    reserved: Amount,
    /// When the turns of the last hour began.
    turns: VecDeque<Timestamp>,
    recent_usd: VecDeque<MicroUsd>,
    recent_tokens: VecDeque<u64>,
}

impl Account {
    pub fn spent(&self) -> Amount {
        self.spent
    }

    pub fn reserved(&self) -> Amount {
        self.reserved
    }

    /// A new day begins with nothing spent; what is set aside stays so until its turn ends.
    pub fn pass_time(&mut self, now: Timestamp) {
        let day = now / DAY_SECS;
        if day > self.day {
            self.day = day;
            self.spent = Amount::default();
        }
        while self.turns.front().is_some_and(|at| at + HOUR_SECS <= now) {
            self.turns.pop_front();
        }
    }

    /// What the next turn would set aside, or the limit that forbids it and until when.
    pub fn check(&self, now: Timestamp, limits: &Limits) -> Result<Amount, Short> {
        let tomorrow = (now / DAY_SECS + 1) * DAY_SECS;
        if limits.turns_per_hour.is_some_and(|most| self.turns.len() >= most as usize) {
            let until = self.turns.front().map_or(now, |at| at + HOUR_SECS);
            return Err(Short { limit: Limit::TurnsPerHour, until: until.max(now + 1), is_aside: false });
        }
        let per_turn = limits.usd_per_turn.map(limit);
        let left_usd = limits.usd_per_day.map(|most| self.left(limit(most), |amount| amount.usd));
        let left_tokens = limits.tokens_per_day.map(|most| self.left(most, |amount| amount.tokens));
        // Without anything to go by a turn may need all that is left; but then one agent whose turns nobody counts would
        // stop all others. One turn is stopped at its cap, so no more than that is set aside.
        let blind = limits.blind();
        let usual = median(&self.recent_usd).map(|usd| usd.min(per_turn.unwrap_or(u64::MAX)));
        let usd = usual.unwrap_or_else(|| unknown(blind.usd, left_usd));
        let tokens = median(&self.recent_tokens).unwrap_or_else(|| unknown(blind.tokens, left_tokens));
        // When all that run have ended there is this much more at most: then it is worth to wait for them.
        let short = |limit, wanted: u64, left: u64, aside: u64| {
            let is_aside = aside > 0 && wanted <= left.saturating_add(aside);
            Short { limit, until: if is_aside { now + ASIDE_SECS } else { tomorrow }, is_aside }
        };
        if let Some(left) = left_usd.filter(|left| *left == 0 || usd > *left) {
            return Err(short(Limit::UsdPerDay, usd, left, self.reserved.usd));
        }
        if let Some(left) = left_tokens.filter(|left| *left == 0 || tokens > *left) {
            return Err(short(Limit::TokensPerDay, tokens, left, self.reserved.tokens));
        }
        Ok(Amount { usd, tokens })
    }

    fn left(&self, most: u64, of: impl Fn(&Amount) -> u64) -> u64 {
        most.saturating_sub(of(&self.spent)).saturating_sub(of(&self.reserved))
    }

    pub fn reserve(&mut self, at: Timestamp, amount: Amount) {
        self.reserved.add(amount);
        self.begin(at);
    }

    /// A turn began then.
    pub fn begin(&mut self, at: Timestamp) {
        self.turns.push_back(at);
    }

    pub fn release(&mut self, amount: Amount) {
        self.reserved.sub(amount);
    }

    pub fn forget_turn(&mut self, at: Timestamp) {
        if let Some(i) = self.turns.iter().rposition(|turn| *turn == at) {
            self.turns.remove(i);
        }
    }

    /// Counts what was used on the day it ended.
    pub fn settle(&mut self, at: Timestamp, spent: Amount) {
        self.pass_time(at);
        if at / DAY_SECS == self.day {
            self.spent.add(spent);
        }
    }

    /// Only what was known teaches what to expect.
    pub fn remember(&mut self, usd: Option<MicroUsd>, tokens: Option<u64>) {
        usd.into_iter().for_each(|usd| keep(&mut self.recent_usd, usd));
        tokens.into_iter().for_each(|tokens| keep(&mut self.recent_tokens, tokens));
    }
}

/// A limit that is no amount lets nothing through.
fn limit(usd: f64) -> MicroUsd {
    micros(usd).unwrap_or(0)
}

/// What is set aside where nothing is known: nothing where nothing is limited.
fn unknown(blind: u64, left: Option<u64>) -> u64 {
    let wanted = left.map_or(blind, |left| left.min(blind));
    if wanted == u64::MAX { 0 } else { wanted }
}

fn keep(recent: &mut VecDeque<u64>, value: u64) {
    if recent.len() >= limits::ESTIMATE_TURNS_MAX {
        recent.pop_front();
    }
    recent.push_back(value);
}

/// The upper one of two in the middle.
fn median(recent: &VecDeque<u64>) -> Option<u64> {
    let mut sorted: Vec<u64> = recent.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}
