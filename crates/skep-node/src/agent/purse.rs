//! The budget that all agents of this home have in common, in one file for all processes: `<home>/budget.db`.
//!
//! Job: carry the decisions of `skep_core::budget` into the ledger's transactions. Used only where a fleet's or a task's
//! limit is set. Must not: let a turn begin when the ledger cannot be read or written.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_agent::driver::{Purse, Refused};
use skep_core::budget::{self, Change, DAY_SECS, End, Entry, Exhausted, Scope, Shared, Spent, Start};
use skep_core::turn::TurnId;
use skep_proto::{PubKey, Timestamp};
use skep_store::StoreError;
use skep_store::ledger::{self, Ledger, Window, Write};

/// The file of the ledger in the home.
pub const LEDGER: &str = "budget.db";

/// Seconds until a ledger that could not be used is tried again: each try may take as long as a lock is waited for.
const BROKEN_SECS: u64 = 5;

/// Tasks whose refusal is remembered; with more, all are asked about again.
const REFUSED_MAX: usize = 1_024;

/// Seconds for which a refusal is believed without a look: another agent may have given something back.
const REFUSED_SECS: u64 = 30;

/// Ends of turns that the ledger did not take yet. The oldest go first: such a turn is settled at the next start.
const OWED_MAX: usize = 1_024;

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
    /// What was refused, and until when that is believed: thousands of messages may wait for one answer.
    refused: BTreeMap<Scope, (Exhausted, Timestamp)>,
    /// What the ledger is to be told as soon as it can be used: what was there at the start, then turns that ended.
    start: Option<Start>,
    owed: VecDeque<End>,
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
        let done = done.and_then(|ledger| work(self.ledger.insert(ledger)));
        done.map_err(|error| self.broken(path, now, &error.to_string()))
    }

    fn broken(&mut self, path: &Path, now: Timestamp, error: &str) -> String {
        let why = format!("budget: {} cannot be used: {error}", path.display());
        self.broken = Some((why.clone(), now + BROKEN_SECS));
        why
    }

    /// Why it is not to be tried now.
    fn is_broken(&self, now: Timestamp) -> Option<&str> {
        self.broken.as_ref().filter(|(_, until)| now < *until).map(|(why, _)| why.as_str())
    }

    /// What is known to be refused without a look.
    fn known(&self, now: Timestamp, task: Option<&str>) -> Option<Refused> {
        if let Some(why) = self.is_broken(now) {
            return Some(Refused::Unusable(why.to_owned()));
        }
        let scopes = task.map(|task| Scope::Task(task.to_owned())).into_iter().chain([Scope::Fleet]);
        let found = scopes.filter_map(|scope| self.refused.get(&scope)).find(|(_, until)| now < *until);
        found.map(|(known, _)| Refused::Exhausted(Exhausted { is_news: false, ..known.clone() }))
    }

    /// Remembers a refusal. It is told once a day for the whole home.
    fn refuse(&mut self, path: &Path, now: Timestamp, exhausted: Exhausted) -> Refused {
        self.refused.retain(|_, (_, until)| now < *until);
        if self.refused.len() >= REFUSED_MAX {
            self.refused.clear();
        }
        let until = exhausted.until.min(now + REFUSED_SECS);
        self.refused.insert(exhausted.scope.clone(), (exhausted.clone(), until));
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

    /// Tells the ledger what it was not told yet, and what `decide` says by what is in it then, in one transaction.
    fn change<T>(
        &self,
        hand: &mut Hand,
        now: Timestamp,
        task: Option<&str>,
        decide: impl FnOnce(Vec<Entry>) -> (T, Option<Entry>),
    ) -> Result<T, String> {
        let (start, owed) = (hand.start.clone(), hand.owed.clone());
        let write = |rows: &[ledger::Entry]| {
            let Some(mut entries) = rows.iter().map(read).collect::<Option<Vec<_>>>() else {
                return (None, Vec::new());
            };
            let ends = start.map(|start| start.ends_of(&entries)).unwrap_or_default();
            let mut writes: Vec<Write> = ends
                .iter()
                .chain(&owed)
                .filter_map(|end| self.limits.end(&mut entries, end))
                .map(|change| match change {
                    Change::Put(entry) => Write::Put(row(&entry, now)),
                    Change::Remove(turn) => Write::Remove(turn.0),
                })
                .collect();
            let (answer, entry) = decide(entries);
            writes.extend(entry.map(|entry| Write::Put(row(&entry, now))));
            (Some(answer), writes)
        };
        let window = Window { since: budget::counted_since(now), open_since: budget::open_since(now), task };
        match hand.with(&self.path, now, |ledger| ledger.change(&window, write))? {
            Some(answer) => {
                (hand.start, hand.broken) = (None, None);
                hand.owed.clear();
                Ok(answer)
            }
            None => Err(hand.broken(&self.path, now, "it holds what this program cannot read")),
        }
    }

    /// Tells the ledger what it is owed, unless it was found not to be usable just now.
    fn pay(&self, hand: &mut Hand, now: Timestamp) {
        if hand.is_broken(now).is_some() {
            return;
        }
        if let Err(why) = self.change(hand, now, None, |_| ((), None)) {
            tracing::warn!(why, "what turns cost is not in the ledger yet");
        }
    }
}

impl Purse for HomePurse {
    fn limits(&self) -> Shared {
        self.limits
    }

    fn take_up(&self, start: Start) {
        let mut hand = self.hand();
        let now = start.now;
        hand.start = Some(start);
        self.pay(&mut hand, now);
    }

    fn reserve(&self, now: Timestamp, turn: &TurnId, agent: PubKey, task: Option<&str>) -> Result<(), Refused> {
        let mut hand = self.hand();
        if let Some(refused) = hand.known(now, task) {
            return Err(refused);
        }
        let reserve = |entries: Vec<Entry>| {
            let mut budget = self.limits.budget(now, task, entries);
            if let Err(exhausted) = budget.reserve(now, turn, agent, task.map(str::to_owned)) {
                return (Err(exhausted), None);
            }
            let entry =
                |charge| Entry { turn: turn.clone(), began: now, charge, known: Spent::default(), is_open: true };
            (Ok(()), budget.reserved(turn).cloned().map(entry))
        };
        match self.change(&mut hand, now, task, reserve) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(exhausted)) => Err(hand.refuse(&self.path, now, exhausted)),
            Err(why) => Err(Refused::Unusable(why)),
        }
    }

    fn settle(&self, now: Timestamp, turn: &TurnId, spent: Option<Spent>) {
        let mut hand = self.hand();
        hand.refused.retain(|_, (known, _)| !known.is_aside);
        if hand.owed.len() >= OWED_MAX {
            hand.owed.pop_front();
        }
        hand.owed.push_back(End { turn: turn.clone(), at: now, spent });
        self.pay(&mut hand, now);
    }

    fn tick(&self, now: Timestamp) {
        let mut hand = self.hand();
        if hand.start.is_some() || !hand.owed.is_empty() {
            self.pay(&mut hand, now);
        }
    }
}

/// `None`: written by another version.
fn read(row: &ledger::Entry) -> Option<Entry> {
    serde_json::from_str(&row.detail).ok()
}

fn row(entry: &Entry, at: Timestamp) -> ledger::Entry {
    let detail = serde_json::to_string(entry).expect("invariant: an entry is strings and numbers");
    let is_known = !entry.is_open && entry.known != Spent::default();
    let task = entry.charge.task.clone();
    ledger::Entry { turn: entry.turn.0.clone(), began: entry.began, at, is_open: entry.is_open, task, is_known, detail }
}
