//! What only the owner is told, in frames: where each message stands and why, and which instance leads.

use serde::Serialize;
use skep_core::door::Door;
use skep_core::frames::Observation;
use skep_core::permit::Answer;
use skep_core::queue::{Row, State};
use skep_proto::EventId;
use skep_proto::agent::telemetry::{LeadershipStatus, MessageStatus, Payload, Reason, TelemetryKind};
use skep_proto::time::Moment;
use skep_store::StoreError;

use super::desk::{Desk, STOPS, round};
use super::letter::Form;

impl<D: Door + 'static> Desk<D> {
    /// Whoever prompts says where a message stands; those who follow only repeat it later.
    pub(super) fn tell_state(&mut self, row: &Row) {
        if !self.is_prompter() {
            return;
        }
        let waits = matches!(row.state, State::Stored | State::Queued);
        let held = self.pauses.all().first().map(ToString::to_string);
        // A provider's refusal is in the queue a moment before it is noted.
        let paused = held.or_else(|| self.queue.paused().filter(|reason| *reason != STOPS).map(str::to_owned));
        let paused = paused.filter(|_| waits);
        let status = MessageStatus {
            event_id: row.message.id,
            state: row.told_state().as_str().to_owned(),
            is_paused: paused.is_some(),
            reason: paused.unwrap_or_else(|| row.reason.clone()),
            attempts: row.attempts,
        };
        let turn = match &row.state {
            State::Prompted { turn, .. } => Some(turn.0.clone()),
            _ => None,
        };
        self.push_frame(Some(row.message.channel.clone()), turn, TelemetryKind::MessageState, &status);
    }

    /// Something changed for all that wait.
    pub(super) fn tell_waiting(&mut self) {
        let waiting: Vec<Row> = self.queue.rows().filter(|row| row.state == State::Queued).cloned().collect();
        waiting.iter().for_each(|row| self.tell_state(row));
    }

    pub(super) fn tell_role(&mut self) {
        self.role_told_ms = Some(self.mono_ms());
        let status = LeadershipStatus { instance_id: self.setup.instance.clone(), is_leader: self.is_prompter() };
        self.push_frame(None, None, TelemetryKind::LeadershipStatus, &status);
    }

    /// Again, as often as the lock is written: whoever begins to watch hears it soon.
    pub(super) fn tell_role_again(&mut self) {
        let now = self.mono_ms();
        if self.role_told_ms.is_some_and(|told| !round(told).contains(&now)) {
            self.tell_role();
        }
    }

    /// Why an answer to a card came too late.
    pub(super) fn late(&self, answer: &Answer) -> &'static str {
        match self.permits.ended(answer) {
            Some(Reason::TimedOut) => "it ran out, and counts as rejected",
            Some(Reason::Cancelled) => "its turn ended, and it counts as rejected",
            _ => "it was decided already, and the first answer stands",
        }
    }

    /// Under a card that was decided: an answer to it came too late.
    pub(super) fn tell_late(&mut self, card: &EventId, text: &str) -> Result<(), StoreError> {
        let form = match self.permits.is_sealed(card) {
            false => Form::Open,
            true if self.said_sealed.contains(&(*card, *card)) => Form::Old,
            true => Form::Wrapped,
        };
        self.tell_owner_in(form, card, text)
    }

    fn push_frame<T: Serialize>(
        &mut self,
        channel: Option<String>,
        turn: Option<String>,
        kind: TelemetryKind,
        payload: &T,
    ) {
        let observation = Observation {
            kind,
            session_id: channel.as_deref().and_then(|channel| self.session_of(channel)),
            channel_id: channel,
            turn_id: turn,
            authorization: None,
            payload: Payload::of(payload),
        };
        self.frames.push(Moment(self.unix_ms()), observation);
    }
}
