//! The end of a message counts for every instance: it is told with a word of our own key, and heard.
//!
//! Job: store each end, and each new try, in one step with the word on it, and bring the words of other instances to
//! the queue. Must not: tell strangers anything, or tell in clear of what was sealed (ADR 16).

use skep_core::door::Door;
use skep_core::queue::{self, ANSWERED_ELSEWHERE, Row, State, Told};
use skep_proto::{EventId, RawEvent};
use skep_store::StoreError;
use skep_store::agent::MessageState;

use super::desk::Desk;
use super::effects::{row_of, state_of};
use super::letter::Letter;
use super::mail::AHEAD_SECS_MAX;

/// Words that are kept until their messages come. The id that is lowest goes first: any may.
const TOLD_MAX: usize = 1_024;

/// What is stored of messages at the end of their turn.
#[derive(Default)]
pub(super) struct Ends {
    pub states: Vec<(EventId, MessageState)>,
    pub words: Vec<RawEvent>,
}

impl<D: Door + 'static> Desk<D> {
    /// Stores where a message stands now, and what is to be said of that, in one step.
    pub(super) fn tell_row(&mut self, mut row: Row, notice: Option<&str>) -> Result<(), StoreError> {
        let words = self.word(&mut row, notice)?;
        self.tell_state(&row);
        self.setup.store.set_state_and_tell(&row.message.id, &state_of(&row), &words, &self.setup.relays)?;
        self.setup.outbox.notify_one();
        Ok(())
    }

    /// Takes out of what the queue wants done at the end of a turn what must be stored with that end: were it stored
    /// after it, a crash between the two would begin a cancelled turn again.
    pub(super) fn ends_of(&mut self, effects: &mut Vec<queue::Effect>) -> Result<Ends, StoreError> {
        let mut ends = Ends::default();
        let count = effects.iter().take_while(|effect| effect.row().is_some()).count();
        for effect in effects.drain(..count) {
            let row = match effect {
                queue::Effect::Tell { mut row, notice } => {
                    ends.words.extend(self.word(&mut row, notice.as_deref())?);
                    row
                }
                queue::Effect::Store(row) => row,
                _ => continue,
            };
            self.tell_state(&row);
            ends.states.push((row.message.id, state_of(&row)));
        }
        Ok(ends)
    }

    /// A word of another instance in clear, or our own come back.
    pub(super) fn own_word(&mut self, event: &RawEvent, told: Told) -> Result<(), StoreError> {
        match Told::names(event).last() {
            Some(id) => self.told_elsewhere(id, told),
            None => Ok(()),
        }
    }

    /// The same of a sealed message, which another instance may know by another wrap.
    pub(super) fn own_sealed_word(&mut self, copy: &Letter, told: Told) -> Result<(), StoreError> {
        let ids = Told::names(copy);
        let Some(said) = ids.last().copied() else { return Ok(()) };
        // A message has one row. By its name where we have the same wrap; else each that waits is looked into.
        for id in &ids {
            if self.setup.store.message(id)?.is_some() {
                return self.told_elsewhere(id, told);
            }
        }
        match self.wraps_of(&said, copy)?.first() {
            Some(id) => self.told_elsewhere(id, told),
            // It is still to come.
            None => self.told_elsewhere(&said, told),
        }
    }

    pub(super) fn told_elsewhere(&mut self, id: &EventId, told: Told) -> Result<(), StoreError> {
        // No relay takes what is so far ahead, and no later word could follow it.
        if told.at > self.unix_now() + AHEAD_SECS_MAX {
            return Ok(());
        }
        let Some(message) = self.setup.store.message(id)? else {
            if !self.setup.store.has_message(id)? {
                self.keep_word(*id, told);
            }
            return Ok(());
        };
        let Some(row) = row_of(&message.state) else { return Ok(()) };
        if told.state == State::Queued && row.state == State::Refused && told.at > row.told_at {
            self.loops.allow(self.me, &row.message.from);
        }
        self.tell_queue(queue::Input::ToldElsewhere { row, told })?;
        if !self.queue.knows(id) {
            self.unjudged.remove(id);
        }
        Ok(())
    }

    fn keep_word(&mut self, id: EventId, told: Told) {
        if self.told.get(&id).is_none_or(|known| known.at < told.at) {
            self.told.insert(id, told);
        }
        if self.told.len() > TOLD_MAX {
            self.told.pop_first();
        }
    }

    /// What ended here without an answer was tried again elsewhere, and has one: it is not to be tried again here.
    pub(super) fn answered_after_all(&mut self, id: &EventId, event: EventId) -> Result<(), StoreError> {
        let row = self.setup.store.message(id)?.and_then(|message| row_of(&message.state));
        let is_over = |row: &Row| row.state.is_final() && !matches!(row.state, State::Answered { .. });
        let Some(row) = row.filter(is_over) else { return Ok(()) };
        let (state, reason) = (State::Answered { event: Some(event) }, ANSWERED_ELSEWHERE.to_owned());
        self.store_row(&Row { state, reason, since: self.unix_ms(), ..row })
    }
}
