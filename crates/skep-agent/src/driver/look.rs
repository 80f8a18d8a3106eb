//! What is looked up at the home relay for a tool, beside the loop.
//!
//! Must not: look more than once at a time for a session, or sooner after the last look than it may; look for whoever
//! waits no more.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_core::door::Door;
use skep_core::tools::Call;
use skep_core::tools::page::{self, Search, Sibling};
use skep_core::turn::TurnId;
use skep_proto::{Filter, PubKey, RawEvent, limits};
use tokio::sync::Mutex as Gate;
use tokio::time::Instant;

use super::desk::{Desk, Inner};
use super::tools::Called;
use super::{Host, Library};

/// The looks of one session: when the last one was. Held while one goes on; those that wait are as many as its calls.
#[derive(Default)]
pub(super) struct Looks(Gate<Option<Instant>>);

/// The agents that were found last, for the whole instance.
#[derive(Default)]
pub(super) struct Siblings(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    all: Vec<Sibling>,
    /// By the steady clock. `None`: not found yet.
    until_ms: Option<u64>,
}

/// What a look found.
pub(super) enum Found {
    Page(Vec<RawEvent>),
    Agents {
        siblings: Vec<Sibling>,
        /// The relay's words on who is at work, where they were asked for.
        leases: Option<Vec<RawEvent>>,
    },
}

/// A call, and what was looked up for it.
pub(super) struct Looked {
    pub called: Called,
    pub turn: TurnId,
    /// `None`: nobody answered.
    pub found: Option<Found>,
}

/// One look after another, for one call.
struct Look<'a> {
    last: tokio::sync::MutexGuard<'a, Option<Instant>>,
    library: &'a dyn Library,
}

impl Looks {
    async fn begin<'a>(&'a self, library: &'a dyn Library) -> Look<'a> {
        Look { last: self.0.lock().await, library }
    }
}

impl Look<'_> {
    async fn at(&mut self, filters: Vec<Filter>) -> Option<Vec<RawEvent>> {
        // No filters ask for everything.
        if filters.is_empty() {
            return Some(Vec::new());
        }
        if let Some(last) = *self.last {
            tokio::time::sleep_until(last + Duration::from_millis(limits::LOOK_MS_MIN)).await;
        }
        let found = self.library.look_up(filters).await;
        *self.last = Some(Instant::now());
        found
    }

    async fn at_leases(&mut self, siblings: &[Sibling]) -> Option<Vec<RawEvent>> {
        let relay = self.library.relay_key().await??;
        self.at(page::leases(siblings, relay)).await
    }
}

impl Siblings {
    fn fresh(&self, now_ms: u64) -> Option<Vec<Sibling>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.until_ms.is_some_and(|until| now_ms < until).then(|| kept.all.clone())
    }

    fn known(&self) -> Vec<PubKey> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.all.iter().map(|sibling| sibling.key).collect()
    }

    fn keep(&self, all: &[Sibling], now_ms: u64) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Kept { all: all.to_vec(), until_ms: Some(now_ms + limits::SIBLINGS_MS_MAX) };
    }

    async fn look(&self, look: &mut Look<'_>, host: &dyn Host, owner: PubKey, me: PubKey) -> Option<Vec<Sibling>> {
        if let Some(fresh) = self.fresh(host.steady_ms()) {
            return Some(fresh);
        }
        let mut search = Search::new(owner, me, self.known());
        while search.take(&look.at(search.ask()).await?) {}
        let all = search.end();
        self.keep(&all, host.steady_ms());
        Some(all)
    }
}

impl<D: Door + 'static> Desk<D> {
    /// Looks up what a call needs; its turn is the one of now.
    pub(super) fn look_for(&self, called: Called, turn: TurnId, page: Vec<Filter>) {
        let (library, host) = (Arc::clone(&self.setup.library), Arc::clone(&self.setup.host));
        let (siblings, inner) = (Arc::clone(&self.siblings), self.inner.clone());
        let (owner, me) = (self.setup.audience.owner, self.me);
        tokio::spawn(async move {
            let looks = Arc::clone(&called.looks);
            let mut look = looks.begin(&*library).await;
            if called.is_gone() {
                return;
            }
            let found = match (&called.call, owner) {
                (Call::Agents | Call::AskAgent { .. }, Some(owner)) => {
                    let found = siblings.look(&mut look, &*host, owner, me).await;
                    match found {
                        Some(siblings) if called.call == Call::Agents => {
                            let leases = look.at_leases(&siblings).await;
                            Some(Found::Agents { siblings, leases })
                        }
                        found => found.map(|siblings| Found::Agents { siblings, leases: None }),
                    }
                }
                (Call::Agents | Call::AskAgent { .. }, None) => {
                    Some(Found::Agents { siblings: Vec::new(), leases: None })
                }
                _ => look.at(page).await.map(Found::Page),
            };
            drop(look);
            // The loop has ended, and the turn with it.
            let _ = inner.send(Inner::Looked(Box::new(Looked { called, turn, found }))).await;
        });
    }
}
