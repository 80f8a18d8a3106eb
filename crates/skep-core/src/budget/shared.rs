//! The account that all agents of a home have in common, from its entries: the fleet's and each task's.
//!
//! Must not: count an agent's own budget, which its own records have, or take a turn whose end nobody saw for free.

use serde::{Deserialize, Serialize};
use skep_proto::{Timestamp, limits};

use super::account::DAY_SECS;
use super::{Budget, Charge, Limits, Scope, Spent};
use crate::turn::TurnId;

/// The limits that agents of a home have in common.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Shared {
    pub fleet: Limits,
    /// Of each task.
    pub task: Limits,
}

/// One turn in the common account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub turn: TurnId,
    pub began: Timestamp,
    /// What is set aside, or, where it has ended, what it is charged with.
    pub charge: Charge,
    /// What of that was known.
    pub known: Spent,
    pub is_open: bool,
}

impl Entry {
    /// The turn ended.
    #[must_use]
    pub fn settled(self, now: Timestamp, spent: Spent) -> Self {
        Self { charge: self.charge.settled(now, spent), known: spent, is_open: false, ..self }
    }
}

impl Shared {
    /// Whether anything is limited at all.
    pub fn is_set(&self) -> bool {
        [self.fleet, self.task].iter().any(|limits| *limits != Limits::default())
    }

    /// From when on entries matter.
    pub fn since(now: Timestamp) -> Timestamp {
        (now / DAY_SECS * DAY_SECS).min(now.saturating_sub(3_600))
    }

    /// The budget by these entries, the oldest first, for a turn on `task`.
    pub fn budget(&self, now: Timestamp, task: Option<&str>, entries: impl IntoIterator<Item = Entry>) -> Budget {
        let mut budget = Budget::new();
        budget.set(Scope::Fleet, self.fleet);
        if let Some(task) = task {
            budget.set(Scope::Task(task.to_owned()), self.task);
        }
        for entry in entries {
            // No turn is longer: nobody will say any more what it cost.
            let is_lost = entry.began.saturating_add(limits::TURN_MS_MAX / 1_000) < now;
            match entry.is_open && !is_lost {
                true => budget.take_up(entry.turn, entry.began, entry.charge),
                false => budget.restore(entry.began, &entry.charge, entry.known),
            }
        }
        budget
    }
}
