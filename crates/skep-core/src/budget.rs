//! Budgets: what a turn may cost is set aside before it begins, and made good when it has ended.
//!
//! Job: say whether a turn may begin, for its agent, its task and the fleet at once. Lives as long as the node; the
//! shell gives what was spent before back after a restart. It knows of this machine only: what an agent spends where it
//! runs besides is counted there.
//! Must not: take an unknown cost for nothing, or let a turn begin on money that another has set aside.
//!
//! A day is a UTC day; an hour is the last 3,600 s. Where nothing is known yet a turn takes a tenth of a day
//! ([`limits::BLIND_TURNS_A_DAY`]) of each account, its agent's own as well.

mod account;
mod shared;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use skep_proto::time::Moment;
use skep_proto::{PubKey, Timestamp, limits};

pub use account::{Amount, Charge};
pub use shared::{Change, End, Entry, Shared, Start};

use crate::turn::TurnId;
use account::{Account, Short};

/// Seconds of a day, which is what is limited.
pub const DAY_SECS: u64 = 86_400;
const HOUR_SECS: u64 = 3_600;

/// From when on what was spent matters: of today, and of the last hour.
pub fn counted_since(now: Timestamp) -> Timestamp {
    (now / DAY_SECS * DAY_SECS).min(now.saturating_sub(HOUR_SECS))
}

/// From when on a turn that was not seen to end matters: it may still run.
pub fn open_since(now: Timestamp) -> Timestamp {
    counted_since(now).min(now.saturating_sub(TURN_SECS_MAX))
}

/// No turn is longer.
const TURN_SECS_MAX: u64 = limits::TURN_MS_MAX / 1_000;

/// Millionths of a US dollar: sums of them are exact.
pub type MicroUsd = u64;

/// The setting `budget`. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub usd_per_day: Option<f64>,
    pub tokens_per_day: Option<u64>,
    pub usd_per_turn: Option<f64>,
    pub turns_per_hour: Option<u32>,
}

/// Whose budget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Agent(PubKey),
    Task(String),
    Fleet,
}

impl Scope {
    /// As it stands behind a limit's name.
    fn of(&self) -> String {
        match self {
            Self::Agent(_) => String::new(),
            Self::Task(task) => format!(" of task {task}"),
            Self::Fleet => " of the fleet".to_owned(),
        }
    }
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    UsdPerDay,
    TokensPerDay,
    TurnsPerHour,
}

impl Limit {
    /// The setting's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UsdPerDay => "usd_per_day",
            Self::TokensPerDay => "tokens_per_day",
            Self::TurnsPerHour => "turns_per_hour",
        }
    }
}

/// Why a turn may not begin now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("budget: {}{} {}", .limit.as_str(), .scope.of(), if *.is_aside {
    "is set aside for turns that run".to_owned()
} else {
    format!("is used up until {}", Moment::from_secs(*.until))
})]
pub struct Exhausted {
    pub scope: Scope,
    pub limit: Limit,
    /// When it may be asked again.
    pub until: Timestamp,
    /// What is left is set aside for turns that run; when they end, some of it may be left.
    pub is_aside: bool,
    /// Whether the owner is to be told: once for each limit and day.
    pub is_news: bool,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Budget {
    limits: BTreeMap<Scope, Limits>,
    accounts: BTreeMap<Scope, Account>,
    reserved: BTreeMap<TurnId, Charge>,
    told: BTreeSet<(Timestamp, Scope, Limit)>,
}

impl Budget {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the limits of a scope; what was spent stays.
    pub fn set(&mut self, scope: Scope, limits: Limits) {
        self.limits.insert(scope, limits);
    }

    /// A turn of before this start, oldest first: when it began, what it was charged with, what of that was known.
    pub fn restore(&mut self, began: Timestamp, charge: &Charge, known: Spent) {
        for scope in charge.scopes() {
            let amount = charge.amount(&scope);
            let account = self.accounts.entry(scope).or_default();
            account.begin(began);
            account.settle(charge.at, amount);
            account.remember(known.usd.and_then(micros), known.tokens);
        }
    }

    /// A turn of before this start whose end nobody saw, by what was set aside for it.
    pub fn restore_lost(&mut self, began: Timestamp, reserved: &Charge) {
        let charge = reserved.settled(reserved.at, Spent::default(), |scope| self.limits_of(scope));
        self.restore(began, &charge, Spent::default());
    }

    fn limits_of(&self, scope: &Scope) -> Limits {
        self.limits.get(scope).copied().unwrap_or_default()
    }

    /// A turn of before this look that still runs: what is set aside for it stays so.
    fn take_up(&mut self, turn: TurnId, began: Timestamp, charge: Charge) {
        for scope in charge.scopes() {
            let amount = charge.amount(&scope);
            let account = self.accounts.entry(scope).or_default();
            account.pass_time(began);
            account.reserve(charge.at, amount);
        }
        self.reserved.insert(turn, charge);
    }

    /// The turns that something is set aside for.
    pub fn open_turns(&self) -> Vec<TurnId> {
        self.reserved.keys().cloned().collect()
    }

    /// What is set aside for a turn.
    pub fn reserved(&self, turn: &TurnId) -> Option<&Charge> {
        self.reserved.get(turn)
    }

    /// Sets money aside for a turn, in every scope or in none.
    pub fn reserve(
        &mut self,
        now: Timestamp,
        turn: &TurnId,
        agent: PubKey,
        task: Option<String>,
    ) -> Result<(), Exhausted> {
        let mut charge = Charge { agent, task, at: now, spent: Amount::default(), of_task: None };
        self.forget_tasks(&charge);
        for scope in charge.scopes() {
            let account = self.accounts.entry(scope.clone()).or_default();
            account.pass_time(now);
            let limits = self.limits.get(&scope).copied().unwrap_or_default();
            match (account.check(now, &limits), &scope) {
                (Ok(wanted), Scope::Task(_)) => charge.of_task = Some(wanted),
                (Ok(wanted), _) => charge.spent = charge.spent.max(wanted),
                (Err(short), _) => return Err(self.exhausted(now, scope, short)),
            }
        }
        for scope in charge.scopes() {
            let amount = charge.amount(&scope);
            self.accounts.entry(scope).or_default().reserve(now, amount);
        }
        self.reserved.insert(turn.clone(), charge);
        Ok(())
    }

    /// Tasks have no end that is told: with very many, those that nothing is set aside for are forgotten, but for the one
    /// that is asked about.
    fn forget_tasks(&mut self, wanted: &Charge) {
        if self.accounts.len().max(self.limits.len()) <= limits::TASK_ACCOUNTS_MAX {
            return;
        }
        let kept: BTreeSet<Scope> = self.reserved.values().chain([wanted]).flat_map(Charge::scopes).collect();
        let is_kept = |scope: &Scope| !matches!(scope, Scope::Task(_)) || kept.contains(scope);
        self.accounts.retain(|scope, _| is_kept(scope));
        self.limits.retain(|scope, _| is_kept(scope));
    }

    /// Whose limit for one turn a running turn has passed: it is to be cancelled.
    pub fn overspent(&self, turn: &TurnId, usd: f64) -> Option<Scope> {
        let charge = self.reserved.get(turn)?;
        let is_over = |scope: &Scope| {
            let most = self.limits.get(scope).and_then(|limits| limits.usd_per_turn);
            most.is_some_and(|most| usd > most)
        };
        charge.scopes().into_iter().find(is_over)
    }

    /// A turn ended. What is not known of it is what was set aside for it, but no more than a turn takes of a day of which
    /// nothing is known. Gives what to store.
    pub fn settle(&mut self, now: Timestamp, turn: &TurnId, spent: Spent) -> Option<Charge> {
        let reserved = self.reserved.remove(turn)?;
        let charge = reserved.settled(now, spent, |scope| self.limits_of(scope));
        for scope in charge.scopes() {
            let (aside, amount) = (reserved.amount(&scope), charge.amount(&scope));
            let account = self.accounts.entry(scope).or_default();
            account.pass_time(now);
            account.release(aside);
            account.settle(now, amount);
            account.remember(spent.usd.and_then(micros), spent.tokens);
        }
        Some(charge)
    }

    /// A turn that was reserved for never began, or ended before its backend said anything: it cost nothing, and was none.
    pub fn cancel(&mut self, turn: &TurnId) {
        let Some(reserved) = self.reserved.remove(turn) else { return };
        for scope in reserved.scopes() {
            if let Some(account) = self.accounts.get_mut(&scope) {
                account.release(reserved.amount(&scope));
                account.forget_turn(reserved.at);
            }
        }
    }

    /// Spent and set aside today.
    pub fn today(&mut self, now: Timestamp, scope: &Scope) -> (Amount, Amount) {
        let Some(account) = self.accounts.get_mut(scope) else { return Default::default() };
        account.pass_time(now);
        (account.spent(), account.reserved())
    }

    fn exhausted(&mut self, now: Timestamp, scope: Scope, short: Short) -> Exhausted {
        let Short { limit, until, is_aside } = short;
        let day = now / DAY_SECS;
        self.told.retain(|(told, ..)| *told == day);
        let is_news = !is_aside && self.told.insert((day, scope.clone(), limit));
        Exhausted { scope, limit, until, is_aside, is_news }
    }
}

/// What a turn used, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spent {
    pub usd: Option<f64>,
    pub tokens: Option<u64>,
}

/// Rounded up: a budget must not leak through its last digit. `None` for what is no amount.
fn micros(usd: f64) -> Option<MicroUsd> {
    (usd.is_finite() && usd >= 0.0).then(|| (usd * 1e6).ceil() as MicroUsd)
}

#[cfg(test)]
mod tests;
