//! What was said before a message, for a prompt: asked of the relay beside the lease, and shown once a session. Under
//! leases the owner's word on turns is asked for with it: a machine that slept still believes its old connection.
//!
//! Must not: hold a prompt up for longer than a look may take, or show a session what it has seen.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::BoxFuture;
use skep_core::door::Door;
use skep_core::pause;
use skep_core::prompt::earlier;
use skep_proto::{EventId, Filter, RawEvent, Timestamp, limits};
use skep_store::StoreError;

use super::desk::{Desk, Prompt};
use super::letter::Letter;
use crate::Kind;

/// Ids that a session is known to have seen; past that it is forgotten what it saw, and may see it again.
const SEEN_MAX: usize = 4_096;

/// What a session has seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    ids: BTreeSet<EventId>,
    /// Of a session of before this start: all that was said before this.
    through: Timestamp,
}

impl Seen {
    pub(super) fn add(&mut self, ids: impl IntoIterator<Item = EventId>) {
        self.ids.extend(ids);
        if self.ids.len() > SEEN_MAX {
            self.ids.clear();
        }
    }
}

impl<D: Door + 'static> Desk<D> {
    /// A look at what was said before, for whoever waits for it beside something else.
    pub(super) fn look_back(&self, prompt: &Prompt) -> Result<BoxFuture<'static, Vec<RawEvent>>, StoreError> {
        let letter = self.letter(&prompt.message.id)?;
        // First: a relay that gives more than it was asked for is cut off.
        let word = self.setup.audience.owner.filter(|_| self.setup.has_leases);
        let mut filters: Vec<Filter> = word.map(|owner| pause::filter(owner, self.me)).into_iter().collect();
        filters.extend(letter.map(|letter| earlier::filters(&letter)).unwrap_or_default());
        let look = (!filters.is_empty()).then(|| self.setup.library.look_up(filters));
        Ok(Box::pin(async move {
            let Some(look) = look else { return Vec::new() };
            let most = Duration::from_millis(limits::LOOKUP_MS_MAX);
            tokio::time::timeout(most, look).await.ok().flatten().unwrap_or_default()
        }))
    }

    /// What of it is shown to the session of this channel.
    pub(super) fn choose_earlier(
        &self,
        channel: &str,
        letter: &Letter,
        found: Vec<RawEvent>,
    ) -> Result<Vec<RawEvent>, StoreError> {
        let seen = self.seen(channel)?;
        let is_new =
            |event: &RawEvent| event.created_at >= seen.through && (seen.through == 0 || event.pubkey != self.me);
        Ok(earlier::choose(letter, found.into_iter().filter(is_new).collect(), &seen.ids))
    }

    fn seen(&self, channel: &str) -> Result<Seen, StoreError> {
        if matches!(self.setup.spec.kind, Kind::Command { .. }) {
            // Each turn is a program of its own, which remembers nothing.
            return Ok(Seen::default());
        }
        match self.seen_by(channel) {
            Some(seen) => Ok(seen.clone()),
            None => self.seen_before(channel),
        }
    }

    /// What a session that is taken up again has seen.
    pub(super) fn seen_before(&self, channel: &str) -> Result<Seen, StoreError> {
        let is_kept = matches!(self.setup.spec.kind, Kind::Acp { .. }) && self.setup.store.session(channel)?.is_some();
        let through = if is_kept { self.setup.store.last_turn_at(channel)?.unwrap_or(0) } else { 0 };
        Ok(Seen { through, ..Seen::default() })
    }
}
