//! Why this agent begins no turns, kept in its records: the owner's word, which came by a relay or over the control
//! socket, and what was said in this home only.
//!
//! Must not: obey a word of anybody but the owner, or an older one after a newer; end a turn that runs.

use skep_core::door::Door;
use skep_core::pause::{Pauses, Word};
use skep_core::queue;
use skep_proto::pause::{By, Held, Pause, Reach};
use skep_proto::{EventId, RawEvent};
use skep_store::{AgentStore, StoreError};

use super::desk::{BUSY, Desk};

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
        if let Some(word) = store.fact(name)?.and_then(|text| serde_json::from_str::<Word>(&text).ok()) {
            all.hear(&reach, word);
        }
    }
    Ok(all)
}

/// Notes what was said in this home; `None` lifts it.
pub fn note_here(store: &AgentStore, held: Option<&Held>) -> Result<(), StoreError> {
    let text = held.map(|held| serde_json::to_string(held).expect("invariant: a held is numbers and strings"));
    store.set_fact(HERE, text.as_deref())
}

/// Notes the owner's word, unless a newer one is known. The caller knows that it is the owner's, and about this agent.
pub fn note_word(store: &AgentStore, all: &mut Pauses, reach: &Reach, event: &RawEvent) -> Result<bool, StoreError> {
    let Some((_, said)) = Pause::from_event(event) else { return Ok(false) };
    let word = Word { at: event.created_at, id: event.id, said };
    let mut after = all.clone();
    if !after.hear(reach, word) {
        return Ok(false);
    }
    let text = after.word(reach).map(|word| serde_json::to_string(word).expect("invariant: numbers and strings"));
    store.set_fact(fact(reach), text.as_deref())?;
    *all = after;
    Ok(true)
}

impl<D: Door + 'static> Desk<D> {
    /// The owner's word. `None`: it is none, or not about this agent; `false`: a newer one is known.
    pub(super) fn heed(&mut self, event: &RawEvent) -> Result<Option<bool>, StoreError> {
        if self.setup.audience.owner != Some(event.pubkey) {
            return Ok(None);
        }
        let Some((reach, said)) = Pause::from_event(event) else { return Ok(None) };
        if !reach.covers(&self.me) {
            return Ok(None);
        }
        let is_news = note_word(&self.setup.store, &mut self.pauses, &reach, event)?;
        if is_news {
            tracing::info!(agent = %self.setup.name, paused = said.paused, reason = said.reason, "the owner's word");
            self.hold()?;
            self.tell_waiting();
        }
        Ok(Some(is_news))
    }

    /// The same over the control socket. It is passed on to the agent's relays: whoever said it may not reach them.
    pub(super) fn heed_local(&mut self, event: &RawEvent) -> Result<Result<String, String>, StoreError> {
        match self.heed(event)? {
            None => return Ok(Err("this is not the word of its owner".into())),
            Some(true) => self.enqueue(std::slice::from_ref(event))?,
            Some(false) => {}
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
