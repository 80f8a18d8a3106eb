//! What one connection sent reaches the writer in the order in which it was sent.
//!
//! Batches are verified by several threads at once and may be done in any order. Whoever is done early leaves its
//! batch here and goes on to other work; whoever's turn it is submits its own and those that waited for it. No thread
//! waits. Must not: hold its lock while it submits, for the writer may make it wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_store::Submission;

/// Gives out turns.
#[derive(Default)]
pub(crate) struct Sequence {
    given: u64,
    turns: Arc<Turns>,
}

/// One batch's place in the order. It must be passed, with or without a submission: those behind it wait.
pub(crate) struct Turn {
    number: u64,
    turns: Arc<Turns>,
}

/// A lock, because the threads of the pool meet here. Held for a map lookup.
#[derive(Default)]
struct Turns(Mutex<Order>);

#[derive(Default)]
struct Order {
    /// Whose turn it is.
    current: u64,
    /// Done early. At most what one connection may have in flight.
    early: BTreeMap<u64, Option<Submission>>,
}

impl Sequence {
    pub(crate) fn next(&mut self) -> Turn {
        let number = self.given;
        self.given += 1;
        Turn { number, turns: Arc::clone(&self.turns) }
    }
}

impl Turn {
    /// Submits in turn: now, or when those before it have been.
    pub(crate) fn pass(self, mine: Option<Submission>, submit: impl Fn(Submission)) {
        let Some(mut mine) = self.turns.enter(self.number, mine) else { return };
        loop {
            mine.into_iter().for_each(&submit);
            match self.turns.advance() {
                Some(next) => mine = next,
                None => return,
            }
        }
    }
}

impl Turns {
    fn order(&self) -> MutexGuard<'_, Order> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the submission back when it is its turn; else keeps it.
    fn enter(&self, number: u64, mine: Option<Submission>) -> Option<Option<Submission>> {
        let mut order = self.order();
        if order.current == number {
            return Some(mine);
        }
        order.early.insert(number, mine);
        None
    }

    /// To the next turn; gives what is there for it already.
    fn advance(&self) -> Option<Option<Submission>> {
        let mut order = self.order();
        order.current += 1;
        let current = order.current;
        order.early.remove(&current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A submission that writes down its number when it is submitted.
    fn numbered(number: usize) -> Submission {
        let ops = (0..number).map(|_| skep_store::Op::Policy(Vec::new())).collect();
        Submission { ops, done: Box::new(|_| {}) }
    }

    #[test]
    fn what_is_done_early_is_submitted_in_turn() {
        let mut sequence = Sequence::default();
        let mut turns: Vec<Turn> = (0..5).map(|_| sequence.next()).collect();
        let submitted = Mutex::new(Vec::new());
        let submit = |submission: Submission| {
            submitted.lock().unwrap_or_else(PoisonError::into_inner).push(submission.ops.len())
        };
        // The third batch had nothing to submit; its turn passes all the same.
        for (at, number) in [(4, Some(4)), (2, None), (1, Some(1))] {
            turns.remove(at).pass(number.map(numbered), submit);
        }
        assert!(submitted.lock().is_ok_and(|all| all.is_empty()));
        turns.remove(0).pass(Some(numbered(0)), submit);
        assert!(submitted.lock().is_ok_and(|all| *all == [0, 1]));
        turns.remove(0).pass(Some(numbered(3)), submit);
        assert!(submitted.lock().is_ok_and(|all| *all == [0, 1, 3, 4]));
    }
}
