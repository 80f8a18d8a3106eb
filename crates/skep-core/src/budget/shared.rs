//! The account that all agents of a home have in common, from its entries: the fleet's and each task's.
//!
//! Must not: count an agent's own budget, which its own records have, or take a turn whose end nobody saw for free.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skep_proto::{PubKey, Timestamp};

use super::{Budget, Charge, Limits, Scope, Spent, TURN_SECS_MAX};
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

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub turn: TurnId,
    pub at: Timestamp,
    /// `None`: it cost nothing, and was none.
    pub spent: Option<Spent>,
}

/// What becomes of an entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Put(Entry),
    Remove(TurnId),
}

/// An agent starts: what its records know of its turns. None of them runs any more.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    pub agent: PubKey,
    pub now: Timestamp,
    pub ends: Vec<End>,
}

impl Start {
    /// How the turns of its that are open here ended. One that its records do not have never began.
    pub fn ends_of(&self, entries: &[Entry]) -> Vec<End> {
        let known: BTreeMap<&TurnId, &End> = self.ends.iter().map(|end| (&end.turn, end)).collect();
        let open = entries.iter().filter(|entry| entry.is_open && entry.charge.agent == self.agent);
        let end = |entry: &Entry| match known.get(&entry.turn) {
            Some(end) => (*end).clone(),
            None => End { turn: entry.turn.clone(), at: self.now, spent: None },
        };
        open.map(end).collect()
    }
}

impl Shared {
    /// Whether anything is limited at all.
    pub fn is_set(&self) -> bool {
        [self.fleet, self.task].iter().any(|limits| *limits != Limits::default())
    }

    fn limits_of(&self, scope: &Scope) -> Limits {
        match scope {
            Scope::Agent(_) => Limits::default(),
            Scope::Task(_) => self.task,
            Scope::Fleet => self.fleet,
        }
    }

    /// A turn ended: its entry, if it is open, is made good. Gives what to write.
    pub fn end(&self, entries: &mut Vec<Entry>, end: &End) -> Option<Change> {
        let i = entries.iter().position(|entry| entry.is_open && entry.turn == end.turn)?;
        let Some(spent) = end.spent else { return Some(Change::Remove(entries.remove(i).turn)) };
        let entry = &mut entries[i];
        entry.charge = entry.charge.settled(end.at, spent, |scope| self.limits_of(scope));
        (entry.known, entry.is_open) = (spent, false);
        Some(Change::Put(entry.clone()))
    }

    /// The budget by these entries, the oldest first, for a turn on `task`. What is too old to count still says what turns
    /// cost.
    pub fn budget(&self, now: Timestamp, task: Option<&str>, entries: impl IntoIterator<Item = Entry>) -> Budget {
        let mut budget = Budget::new();
        budget.set(Scope::Fleet, self.fleet);
        if let Some(task) = task {
            budget.set(Scope::Task(task.to_owned()), self.task);
        }
        for entry in entries {
            // Nobody will say any more what it cost.
            let is_lost = entry.began.saturating_add(TURN_SECS_MAX) < now;
            match (entry.is_open, is_lost) {
                (true, false) => budget.take_up(entry.turn, entry.began, entry.charge),
                (true, true) => budget.restore_lost(entry.began, &entry.charge),
                (false, _) => budget.restore(entry.began, &entry.charge, entry.known),
            }
        }
        budget
    }
}
