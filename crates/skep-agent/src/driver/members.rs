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

/// Somebody, of the relay or of one of its groups.
pub(super) type Of = (PubKey, Option<String>);

#[derive(Default)]
pub(super) struct Members {
    known: BTreeMap<Of, (bool, Timestamp)>,
    asked: BTreeSet<Of>,
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

    /// Asks the relay, when it decides anything, and once at a time.
    pub(super) fn ask_membership(&mut self, event: &RawEvent) {
        let of = of(event);
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
        // Asked again at the next beat.
        let Some(is_member) = is_member else { return Ok(()) };
        if self.members.known.len() >= limits::MEMBERS_MAX {
            self.members.known.clear();
        }
        self.members.known.insert(of, (is_member, self.unix_now()));
        self.judge_again()
    }
}

async fn look_up(library: &dyn Library, (key, group): &Of) -> Option<bool> {
    let Some(relay) = library.relay_key().await? else { return Some(false) };
    let lists = library.look_up(member_filters(relay, group.as_deref())).await?;
    Some(is_listed(&lists, key))
}
