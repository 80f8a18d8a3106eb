//! Why this agent begins no turns, kept in its records: the owner's word, which came by a relay or over the control
//! socket, and what was said in this home only.
//!
//! Must not: obey a word of anybody but the owner, or an older one after a newer; go on by one from far ahead, which
//! only one from further ahead could take back; end a turn that runs.

use skep_core::door::Door;
use skep_core::pause::{Pauses, Word};
use skep_core::queue;
use skep_proto::pause::{By, Held, Pause, Reach};
use skep_proto::{EventId, RawEvent, Timestamp};
use skep_store::{AgentStore, StoreError};

use super::desk::{BUSY, Desk};
use super::mail::AHEAD_SECS_MAX;

/// The facts. What is said in this home is a [`Held`], what the owner said a [`Word`].
const HERE: &str = "paused";
const FLEET: &str = "pause:fleet";
const AGENT: &str = "pause:agent";

fn fact(reach: &Reach) -> &'static str {
    match reach {
        Reach::Fleet => FLEET,
        Reach::Agent(_) => AGENT,
    }
}

/// All that holds an agent, by its records.
pub fn pauses(store: &AgentStore) -> Result<Pauses, StoreError> {
    let mut all = Pauses::default();
    // What cannot be read is of another version: it holds, as far as it can be told.
    let by_hand = |text: String| Held { by: By::Here, since: 0, reason: text };
    all.here = store.fact(HERE)?.map(|text| serde_json::from_str(&text).unwrap_or_else(|_| by_hand(text)));
    for (reach, name) in [(Reach::Fleet, FLEET), (Reach::Agent(skep_proto::PubKey([0; 32])), AGENT)] {
        if let Some(text) = store.fact(name)? {
            all.hear(&reach, serde_json::from_str(&text).unwrap_or_else(|_| Word::unreadable()));
        }
    }
    Ok(all)
}

/// Notes what was said in this home; `None` lifts it.
pub fn note_here(store: &AgentStore, held: Option<&Held>) -> Result<(), StoreError> {
    let text = held.map(|held| serde_json::to_string(held).expect("invariant: a held is numbers and strings"));
    store.set_fact(HERE, text.as_deref())
}

/// What an agent made of an event that may be its owner's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heeded {
    /// It is none, or not about this agent.
    Nothing,
    /// To go on, and dated so many seconds ahead of our clock.
    Ahead(u64),
    /// A newer one is known.
    Old,
    /// It is the one that is known.
    Again,
    New,
}

/// Notes the owner's word, unless a newer one is known. Where the one before still waits to be sent, this one goes in its
/// place. The caller knows that it is the owner's, and about this agent.
pub fn note_word(
    store: &AgentStore,
    all: &mut Pauses,
    reach: &Reach,
    event: &RawEvent,
    now: Timestamp,
) -> Result<Heeded, StoreError> {
    let Some((_, said)) = Pause::from_event(event) else { return Ok(Heeded::Nothing) };
    let before = all.word(reach).map(|word| word.id);
    if before == Some(event.id) {
        return Ok(Heeded::Again);
    }
    let word = Word { at: event.created_at, id: event.id, said };
    let mut after = all.clone();
    if !after.hear(reach, word) {
        return Ok(Heeded::Old);
    }
    let text = after.word(reach).map(|word| serde_json::to_string(word).expect("invariant: numbers and strings"));
    // In this order: a word that is noted is not looked at again.
    if let Some(before) = before {
        store.replace_outgoing(&before, event, now)?;
    }
    store.set_fact(fact(reach), text.as_deref())?;
    *all = after;
    Ok(Heeded::New)
}

impl<D: Door + 'static> Desk<D> {
    /// The owner's word, whoever brings it.
    pub(super) fn heed(&mut self, event: &RawEvent) -> Result<Heeded, StoreError> {
        if self.setup.audience.owner != Some(event.pubkey) {
            return Ok(Heeded::Nothing);
        }
        let Some((reach, said)) = Pause::from_event(event).filter(|(reach, _)| reach.covers(&self.me)) else {
            return Ok(Heeded::Nothing);
        };
        let now = self.unix_now();
        let ahead = event.created_at.saturating_sub(now);
        if !said.paused && ahead > AHEAD_SECS_MAX {
            tracing::warn!(agent = %self.setup.name, ahead, "the owner's word to go on is from far ahead: it waits");
            return Ok(Heeded::Ahead(ahead));
        }
        let heeded = note_word(&self.setup.store, &mut self.pauses, &reach, event, now)?;
        if heeded == Heeded::New {
            tracing::info!(agent = %self.setup.name, paused = said.paused, reason = said.reason, "the owner's word");
            self.setup.outbox.notify_one();
            self.hold()?;
            self.tell_waiting();
        }
        Ok(heeded)
    }

    /// The same over the control socket. It is passed on to the agent's relays: whoever said it may not reach them.
    pub(super) fn heed_local(&mut self, event: &RawEvent) -> Result<Result<String, String>, StoreError> {
        match self.heed(event)? {
            Heeded::Nothing => return Ok(Err("this is not the word of its owner".into())),
            Heeded::Ahead(secs) => {
                return Ok(Err(format!(
                    "it is dated {secs} s ahead of this machine's clock: set the one that is wrong"
                )));
            }
            Heeded::Old => return Ok(Err("it has a newer word of its owner; say it again".into())),
            // It may have come over one relay, and not be at the others.
            Heeded::Again | Heeded::New => self.enqueue(std::slice::from_ref(event))?,
        }
        Ok(Ok(self.describe("goes on")))
    }

    /// What a person is told after a change.
    fn describe(&self, otherwise: &str) -> String {
        match self.pauses.all().first() {
            Some(held) => format!("paused {held}; no new turns begin"),
            None => otherwise.to_owned(),
        }
    }

    pub(super) fn pause_here(&mut self, by: By, reason: String) -> Result<String, StoreError> {
        let held = Held { by, since: self.unix_now(), reason };
        note_here(&self.setup.store, Some(&held))?;
        self.tell_queue(queue::Input::Paused(held.reason.clone()))?;
        self.pauses.here = Some(held);
        self.tell_waiting();
        Ok("paused: no new turns begin".into())
    }

    pub(super) fn resume_here(&mut self) -> Result<String, StoreError> {
        note_here(&self.setup.store, None)?;
        self.setup.store.set_fact(BUSY, None)?;
        self.pauses.here = None;
        self.tell_queue(queue::Input::Resumed)?;
        Ok(match self.pauses.all().first() {
            Some(held) => format!("resumed on this machine; still paused {held}"),
            None => "resumed".into(),
        })
    }

    /// A provider's refusal ended a turn: a person is needed.
    pub(super) fn pause_by_provider(&mut self, id: &EventId, reason: &str) -> Result<(), StoreError> {
        tracing::warn!(agent = %self.setup.name, reason, "paused");
        // Turns that ran beside each other end for one reason.
        let is_told = self.pauses.here.is_some();
        self.pause_here(By::Provider, reason.to_owned())?;
        match self.letter(id)? {
            Some(letter) if !is_told => {
                self.tell_owner(&letter, &format!("paused: {reason}; I begin no turn until you resume me"))
            }
            _ => Ok(()),
        }
    }
}
