//! Who is a member: the home relay's word, for a minute.
//!
//! Must not: take a relay that did not answer for a no.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_core::audience::{Fact, RespondTo, is_listed, member_filters};
use skep_core::door::Door;
use skep_proto::{PubKey, RawEvent, Timestamp, limits};
use skep_store::StoreError;

use super::Library;
use super::desk::{Desk, Inner};

/// Milliseconds until a relay that did not answer is asked again: doubled each time.
const AGAIN_MS_MIN: u64 = 500;
const AGAIN_MS_MAX: u64 = 30_000;

/// Somebody, of the relay or of one of its groups.
pub(super) type Of = (PubKey, Option<String>);

#[derive(Default)]
pub(super) struct Members {
    known: BTreeMap<Of, (bool, Timestamp)>,
    asked: BTreeSet<Of>,
    /// Asked without an answer, to be asked again.
    open: BTreeSet<Of>,
    /// How often in a row there was none, and when it is time again, by the steady clock.
    silences: u32,
    again_at: u64,
}

impl Members {
    /// A relay that does not answer is asked less and less often.
    fn was_silent(&mut self, of: Of, now: u64) {
        self.open.insert(of);
        if now >= self.again_at {
            self.silences = self.silences.saturating_add(1);
            self.again_at = now + AGAIN_MS_MIN.saturating_mul(1 << self.silences.min(6)).min(AGAIN_MS_MAX);
        }
    }

    /// Whom to ask about once more.
    fn due(&mut self, now: u64) -> BTreeSet<Of> {
        if now >= self.again_at { std::mem::take(&mut self.open) } else { BTreeSet::new() }
    }

    fn answered(&mut self) {
        (self.silences, self.again_at) = (0, 0);
    }
}

fn of(event: &RawEvent) -> Of {
    (event.pubkey, event.tags.values("h").next().map(str::to_owned))
}

impl<D: Door + 'static> Desk<D> {
    pub(super) fn membership(&self, event: &RawEvent) -> Fact {
        let is_fresh = |at: Timestamp| self.unix_now().abs_diff(at) < limits::MEMBER_SECS;
        match self.members.known.get(&of(event)) {
            Some((true, at)) if is_fresh(*at) => Fact::Yes,
            Some((false, at)) if is_fresh(*at) => Fact::No,
            _ => Fact::Unknown,
        }
    }

    /// Asks the relay, when it decides anything, and once at a time. Gives whose membership is waited for.
    pub(super) fn ask_membership(&mut self, event: &RawEvent) -> Of {
        let of = of(event);
        if !self.members.open.contains(&of) {
            self.ask_about(of.clone());
        }
        of
    }

    /// What the relay did not answer, once more when it is time.
    pub(super) fn ask_members_again(&mut self) {
        let due = self.members.due(self.mono_ms());
        due.into_iter().for_each(|of| self.ask_about(of));
    }

    fn ask_about(&mut self, of: Of) {
        if self.setup.audience.respond_to != RespondTo::Members || !self.members.asked.insert(of.clone()) {
            return;
        }
        let (library, inner) = (Arc::clone(&self.setup.library), self.inner.clone());
        tokio::spawn(async move {
            let is_member = look_up(&*library, &of).await;
            // The loop has ended: nobody waits for it.
            let _ = inner.send(Inner::Member { of, is_member }).await;
        });
    }

    pub(super) fn learn_member(&mut self, of: Of, is_member: Option<bool>) -> Result<(), StoreError> {
        self.members.asked.remove(&of);
        let Some(is_member) = is_member else {
            self.members.was_silent(of, self.mono_ms());
            return Ok(());
        };
        self.members.answered();
        if self.members.known.len() >= limits::MEMBERS_MAX {
            self.members.known.clear();
        }
        self.members.known.insert(of.clone(), (is_member, self.unix_now()));
        self.judge_those_of(&of)
    }
}

async fn look_up(library: &dyn Library, (key, group): &Of) -> Option<bool> {
    let Some(relay) = library.relay_key().await? else { return Some(false) };
    let lists = library.look_up(member_filters(relay, group.as_deref())).await?;
    Some(is_listed(&lists, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(n: u8) -> Of {
        (PubKey([n; 32]), None)
    }

    #[test]
    fn a_silent_relay_is_asked_less_and_less_often_and_about_everybody_at_once() {
        let mut members = Members::default();
        members.was_silent(of(1), 0);
        members.was_silent(of(2), 10);
        assert_eq!(members.due(999), BTreeSet::new());
        assert_eq!(members.due(1_000), [of(1), of(2)].into());
        assert_eq!(members.due(1_000), BTreeSet::new(), "they are asked about");
        members.was_silent(of(1), 4_000);
        assert_eq!((members.due(5_999), members.due(6_000)), (BTreeSet::new(), [of(1)].into()));
        for n in 0..9 {
            members.was_silent(of(1), n * 100_000);
        }
        assert_eq!((members.due(829_999), members.due(830_000)), (BTreeSet::new(), [of(1)].into()));
        members.answered();
        members.was_silent(of(1), 900_000);
        assert_eq!(members.due(901_000), [of(1)].into(), "from the start");
    }
}
