//! The budget that all agents of this home have in common, in one file for all processes: `<home>/budget.db`.
//!
//! Job: carry the decisions of `skep_core::budget` into the ledger's transactions. Used only where a fleet's or a task's
//! limit is set. Must not: let a turn begin when the ledger cannot be read or written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_agent::driver::{Purse, Refused};
use skep_core::budget::{Entry, Exhausted, Scope, Shared, Spent};
use skep_core::turn::TurnId;
use skep_proto::{PubKey, Timestamp};
use skep_store::StoreError;
use skep_store::ledger::{self, Ledger, Write};

/// The file of the ledger in the home.
pub const LEDGER: &str = "budget.db";

const DAY_SECS: u64 = 86_400;

/// Seconds until a ledger that could not be used is tried again: each try may take as long as a lock is waited for.
const BROKEN_SECS: u64 = 5;

/// Tasks whose refusal is remembered; with more, all are asked about again.
const REFUSED_MAX: usize = 1_024;

/// One agent's part in it.
pub struct HomePurse {
    path: PathBuf,
    limits: Shared,
    /// A lock, because one connection makes one transaction at a time.
    hand: Mutex<Hand>,
}

#[derive(Default)]
struct Hand {
    /// `None`: not open yet.
    ledger: Option<Ledger>,
    /// What was refused and holds still: thousands of messages may wait for one answer.
    refused: BTreeMap<Scope, Exhausted>,
    /// Why the ledger could not be used, and until when nobody tries.
    broken: Option<(String, Timestamp)>,
}

impl Hand {
    fn with<T>(
        &mut self,
        path: &Path,
        now: Timestamp,
        work: impl FnOnce(&mut Ledger) -> Result<T, StoreError>,
    ) -> Result<T, String> {
        let done = match self.ledger.take() {
            Some(ledger) => Ok(ledger),
            None => Ledger::open(path),
        };
        done.and_then(|ledger| work(self.ledger.insert(ledger))).map_err(|error| {
            let why = format!("budget: {} cannot be used: {error}", path.display());
            self.broken = Some((why.clone(), now + BROKEN_SECS));
            why
        })
    }

    /// What is known to be refused without a look.
    fn known(&self, now: Timestamp, task: Option<&str>) -> Option<Refused> {
        if let Some((why, _)) = self.broken.as_ref().filter(|(_, until)| now < *until) {
            return Some(Refused::Unusable(why.clone()));
        }
        let scopes = task.map(|task| Scope::Task(task.to_owned())).into_iter().chain([Scope::Fleet]);
        let found = scopes.filter_map(|scope| self.refused.get(&scope)).find(|known| now < known.until);
        found.map(|known| Refused::Exhausted(Exhausted { is_news: false, ..known.clone() }))
    }

    /// Remembers a refusal. It is told once a day for the whole home.
    fn refuse(&mut self, path: &Path, now: Timestamp, exhausted: Exhausted) -> Refused {
        self.refused.retain(|_, known| now < known.until);
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        self.refused.insert(exhausted.scope.clone(), exhausted.clone());
        if !exhausted.is_news {
            return Refused::Exhausted(exhausted);
        }
        let what = format!("{} {:?}", exhausted.limit.as_str(), exhausted.scope);
        match self.with(path, now, |ledger| ledger.tell_once(now / DAY_SECS, &what)) {
            Ok(is_news) => Refused::Exhausted(Exhausted { is_news, ..exhausted }),
            Err(why) => Refused::Unusable(why),
        }
    }
}

impl HomePurse {
    pub fn new(path: PathBuf, limits: Shared) -> Self {
        Self { path, limits, hand: Mutex::default() }
    }

    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Purse for HomePurse {
    fn limits(&self) -> Shared {
        self.limits
    }

    fn reserve(&self, now: Timestamp, turn: &TurnId, agent: PubKey, task: Option<&str>) -> Result<(), Refused> {
        let mut hand = self.hand();
        if let Some(refused) = hand.known(now, task) {
            return Err(refused);
        }
        let reserve = |rows: &[ledger::Entry]| {
            let Some(entries) = rows.iter().map(read).collect::<Option<Vec<_>>>() else { return (Err(None), None) };
            let mut budget = self.limits.budget(now, task, entries);
            if let Err(exhausted) = budget.reserve(now, turn, agent, task.map(str::to_owned)) {
                return (Err(Some(exhausted)), None);
            }
            let entry =
                |charge| Entry { turn: turn.clone(), began: now, charge, known: Spent::default(), is_open: true };
            let entry = budget.reserved(turn).cloned().map(entry);
            (Ok(()), entry.map(|entry| Write::Put(row(&entry, now))))
        };
        match hand.with(&self.path, now, |ledger| ledger.change(Shared::since(now), reserve)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Some(exhausted))) => Err(hand.refuse(&self.path, now, exhausted)),
            Ok(Err(None)) => {
                let path = self.path.display();
                Err(Refused::Unusable(format!("budget: {path} cannot be used: it holds what this program cannot read")))
            }
            Err(why) => Err(Refused::Unusable(why)),
        }
    }

    fn settle(&self, now: Timestamp, turn: &TurnId, spent: Option<Spent>) {
        let settle = |rows: &[ledger::Entry]| {
            let is_it = |row: &&ledger::Entry| row.turn == turn.0 && row.is_open;
            let Some(entry) = rows.iter().find(is_it).and_then(read) else { return ((), None) };
            let Some(spent) = spent else { return ((), Some(Write::Remove(turn.0.clone()))) };
            let entry = entry.settled(now, spent);
            ((), Some(Write::Put(row(&entry, now))))
        };
        let mut hand = self.hand();
        hand.refused.retain(|_, known| !known.is_aside);
        if let Err(why) = hand.with(&self.path, now, |ledger| ledger.change(Shared::since(now), settle)) {
            // It stays charged with what was set aside.
            tracing::warn!(why, "what a turn cost is not in the ledger");
        }
    }
}

/// `None`: written by another version.
fn read(row: &ledger::Entry) -> Option<Entry> {
    serde_json::from_str(&row.detail).ok()
}

fn row(entry: &Entry, at: Timestamp) -> ledger::Entry {
    let detail = serde_json::to_string(entry).expect("invariant: an entry is strings and numbers");
    ledger::Entry { turn: entry.turn.0.clone(), began: entry.began, at, is_open: entry.is_open, detail }
}
