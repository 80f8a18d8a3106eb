//! What the queue is told, and what it asks for, carried out.

use std::collections::VecDeque;

use skep_core::door::Door;
use skep_core::queue::{self, Effect, Reaction, Row};
use skep_proto::{EventId, RawEvent};
use skep_store::StoreError;
use skep_store::agent::MessageState;

use super::desk::{BUSY, Desk};
use super::letter::Letter;

impl<D: Door + 'static> Desk<D> {
    /// Tells the queue, and does what it says.
    pub(super) fn tell_queue(&mut self, input: queue::Input) -> Result<(), StoreError> {
        let effects = self.ask_queue(input);
        self.carry_out(effects)
    }

    pub(super) fn ask_queue(&mut self, input: queue::Input) -> Vec<Effect> {
        self.queue.handle(self.setup.host.unix_ms(), self.setup.host.random_u64(), input)
    }

    /// What one effect leads to is done before the next; not by recursion: ten thousand messages may wait for a budget.
    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) -> Result<(), StoreError> {
        let mut todo = VecDeque::from(effects);
        while let Some(effect) = todo.pop_front() {
            let input = match effect {
                Effect::Prompt { message, attempt, after } => self.prompt(message, attempt, after)?,
                // No backend of ours can be given a message while it works on another.
                Effect::Steer { turn, message } => {
                    Some(queue::Input::Steered { id: message.id, turn, is_taken: false })
                }
                other => {
                    self.carry_out_one(other)?;
                    None
                }
            };
            if let Some(input) = input {
                self.ask_queue(input).into_iter().rev().for_each(|effect| todo.push_front(effect));
            }
        }
        Ok(())
    }

    fn carry_out_one(&mut self, effect: Effect) -> Result<(), StoreError> {
        match effect {
            Effect::Store(row) => self.store_row(&row),
            Effect::Tell { row, notice } => self.tell_row(row, notice.as_deref()),
            Effect::Cancel { turn, why } => self.cancel_turn(&turn, why),
            // Only of the one who leads: two who both show that they wait would lie.
            Effect::React { id, reaction } if self.is_prompter() => self.react(&id, reaction),
            Effect::PauseAgent { id, reason } => self.pause_by_provider(&id, &reason),
            Effect::WakeAt(at) => {
                self.wake_at = Some(at);
                Ok(())
            }
            Effect::Busy(until) => self.setup.store.set_fact(BUSY, Some(&until.to_string())),
            Effect::React { .. } | Effect::Prompt { .. } | Effect::Steer { .. } => Ok(()),
        }
    }

    pub(super) fn store_row(&mut self, row: &Row) -> Result<(), StoreError> {
        self.tell_state(row);
        let state = state_of(row);
        match self.arriving.take_if(|(event, _)| event.id == row.message.id) {
            Some((event, relay)) => {
                let at = row.message.arrived_at / 1_000;
                self.setup.store.receive(&event, &row.message.channel, &relay, at, &state).map(drop)
            }
            None => self.setup.store.set_state(&row.message.id, &state).map(drop),
        }
    }

    /// Puts a message into the inbox, and asks whether its sender may prompt.
    pub(super) fn arrive(
        &mut self,
        event: Box<RawEvent>,
        relay: &str,
        message: queue::Message,
    ) -> Result<(), StoreError> {
        let id = event.id;
        self.arriving = Some((event, relay.to_owned()));
        self.tell_queue(queue::Input::Arrived(message))?;
        self.arriving = None;
        if let Some(event) = self.answered.remove(&id) {
            return self.tell_queue(queue::Input::AnsweredElsewhere { id, event });
        }
        if let Some(told) = self.told.remove(&id) {
            self.told_elsewhere(&id, told)?;
        }
        if !self.queue.knows(&id) {
            return Ok(());
        }
        self.unjudged.insert(id, None);
        self.judge(&id)
    }

    /// A message of the inbox as it was written.
    pub(super) fn letter(&self, id: &EventId) -> Result<Option<Letter>, StoreError> {
        let message = self.setup.store.message(id)?;
        Ok(message.and_then(|message| Letter::read(&self.setup.keys, &message.event)))
    }

    fn react(&mut self, id: &EventId, reaction: Reaction) -> Result<(), StoreError> {
        let Some(letter) = self.letter(id)? else { return Ok(()) };
        let sign = match reaction {
            Reaction::Eyes => "👀",
            Reaction::Hourglass => "⏳",
        };
        self.publish_reaction(&letter, sign)
    }
}

/// A row as the store keeps it.
pub(super) fn state_of(row: &Row) -> MessageState {
    MessageState {
        name: row.state.as_str().to_owned(),
        at: row.since / 1_000,
        is_over: row.state.is_final(),
        detail: serde_json::to_string(row).expect("invariant: a row is strings and numbers"),
    }
}

pub(super) fn row_of(state: &MessageState) -> Option<Row> {
    serde_json::from_str(&state.detail).ok()
}
