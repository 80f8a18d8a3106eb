//! The one outcome of a turn: the reply, the bill and where the message stands; and what becomes of it when the home
//! relay does not take the reply.

use skep_core::backend::BackendError;
use skep_core::door::Door;
use skep_core::meter::Measured;
use skep_core::queue::{self, Ended};
use skep_core::turn::{Cancel, Done, Outcome, TurnId};
use skep_proto::agent::metering::TurnMetric;
use skep_proto::time::Moment;
use skep_proto::{EventId, RawEvent};
use skep_store::StoreError;
use skep_store::agent::{Hold, TurnEnd};

use super::desk::Desk;
use super::effects::{row_of, state_of};
use super::ends::Ends;
use super::lease::turn_resource;
use super::letter::Form;

impl<D: Door + 'static> Desk<D> {
    /// The one outcome: the reply, the bill and where the message stands, on disk together; then the queue goes on.
    pub(super) fn end(&mut self, channel: &str, mut done: Done) -> Result<(), StoreError> {
        let Some(live) = self.live.get_mut(channel) else { return Ok(()) };
        let Some(turn) = live.turn.take() else { return Ok(()) };
        live.used = self.setup.host.steady_ms();
        let closed = self.permits.end_turn(&turn.id);
        self.settle_permits(closed)?;
        let elsewhere = self.answered.remove(&turn.trigger.carrier);
        if elsewhere.is_some() {
            // A reply that was there before the answer was seen would be the second.
            done.outcome = Outcome::Cancelled(Cancel::NotWanted);
        }
        let resource = turn_resource(&self.me, &turn.trigger.carrier);
        let (events, how, reply) = match &done.outcome {
            Outcome::Reply { text, is_cut } => {
                let events = self.reply(&turn.trigger, text, *is_cut, &resource, turn.epoch);
                let how = match events.last() {
                    Some(last) => Ended::Answered(Some(last.id)),
                    None => Ended::Failed(BackendError::Other("its reply cannot be sealed".to_owned())),
                };
                (events, how, text.clone())
            }
            Outcome::Failed(error) => (Vec::new(), Ended::Failed(error.clone()), String::new()),
            Outcome::Cancelled(why) => (Vec::new(), Ended::Cancelled(*why), String::new()),
            Outcome::Stuck => (Vec::new(), Ended::Stuck, String::new()),
            Outcome::TooLong => (Vec::new(), Ended::TooLong, String::new()),
        };
        if let Some(live) = self.live.get_mut(channel) {
            // Its own words it knows.
            live.seen.add(events.iter().map(|event| event.id));
        }
        let answer = events.last().map(|event| event.id);
        let task = self.task_of(&turn.trigger);
        let metric = self.measure(channel, &turn.id, &done)?;
        let metric = metric.map(|metric| TurnMetric { task, ..metric.about(&turn.trigger) });
        let held = answer.filter(|_| turn.trigger.form == Form::Wrapped && self.setup.has_leases);
        // Only the home relay knows whether the turn is still ours: what it may yet refuse, no other is given.
        let hold = match self.setup.has_leases {
            true if held.is_some() => Hold::All,
            true => Hold::Others,
            false => Hold::Nothing,
        };
        let mut others: Vec<RawEvent> = metric.as_ref().and_then(|metric| self.bill(metric)).into_iter().collect();
        let charge = self.settle(&turn.id, &how, turn.machine.has_spoken(), metric.as_ref());
        let end = TurnEnd {
            charge,
            at: self.unix_now(),
            outcome: outcome_name(&how).to_owned(),
            reason: reason_of(&how),
            reply,
            answer,
            metric: metric.and_then(|metric| metric.to_json().ok()),
        };
        let how = elsewhere.map_or(how, |event| Ended::Answered(Some(event)));
        let mut effects = self.ask_queue(queue::Input::Ended { turn: turn.id.clone(), how });
        let Ends { states, words } = self.ends_of(&mut effects)?;
        others.extend(words);
        let (turn_id, relays) = (&turn.id.0, &self.setup.relays);
        self.setup.store.end_turn(turn_id, &end, (&events, hold), &others, relays, &states)?;
        self.setup.outbox.notify_one();
        if let Some(answer) = held {
            self.hold_reply(&turn.id.0, turn.trigger.carrier, turn.epoch, answer);
        }
        if !done.is_reusable || matches!(done.outcome, Outcome::Cancelled(Cancel::SwitchModel)) {
            self.live.remove(channel);
        }
        self.carry_out(effects)
    }

    fn measure(&mut self, channel: &str, turn: &TurnId, done: &Done) -> Result<Option<TurnMetric>, StoreError> {
        let session = done.session.as_ref();
        let measured = Measured {
            session: session.map(|session| session.id.clone()),
            turn_id: turn.0.clone(),
            channel_id: Some(channel.to_owned()),
            model: session.and_then(|session| session.model.clone()),
            stop: done.stop,
            ended_at: Moment(self.unix_ms()),
            observed: done.observed,
            pricing: None,
        };
        let Some((metric, _)) = self.meter.measure(measured, self.setup.prices.as_ref()) else { return Ok(None) };
        if let Some(session) = session {
            self.keep_session(channel, &session.id.clone())?;
        }
        Ok(Some(metric))
    }

    /// The home relay does not take a final reply. With `conflict:` another instance answered, or holds the turn now:
    /// asked again, the relay says which, and when nobody answers after all, we do. Otherwise the message is dead, and
    /// says why: it is not answered.
    pub(super) fn refused(&mut self, id: &EventId, relay: &str, said: &str) -> Result<(), StoreError> {
        if self.setup.relays.first().is_none_or(|home| home != relay) {
            return Ok(());
        }
        self.take_back(id, said)
    }

    pub(super) fn take_back(&mut self, id: &EventId, said: &str) -> Result<(), StoreError> {
        let Some(trigger) = self.setup.store.trigger_of(id)? else { return Ok(()) };
        let Some(message) = self.setup.store.message(&trigger)? else { return Ok(()) };
        let Some(row) = row_of(&message.state) else { return Ok(()) };
        if !said.starts_with("conflict: ") {
            tracing::warn!(agent = %self.setup.name, said, "the relay refuses a reply for good");
            let mut dead = queue::Row { state: queue::State::Dead, reason: said.to_owned(), ..row };
            dead.date_word(self.unix_ms());
            let words = self.word(&mut dead, None)?;
            self.tell_state(&dead);
            self.setup.store.take_back(id, &trigger, &state_of(&dead), &words, &self.setup.relays)?;
            self.setup.outbox.notify_one();
            return Ok(());
        }
        if let Some(event) = self.answered.remove(&trigger) {
            let (state, reason) = (queue::State::Answered { event: Some(event) }, queue::ANSWERED_ELSEWHERE.to_owned());
            let over = queue::Row { state, reason, ..row };
            self.tell_state(&over);
            return self.setup.store.take_back(id, &trigger, &state_of(&over), &[], &[]);
        }
        let again = queue::Row { state: queue::State::Queued, ..row };
        self.setup.store.take_back(id, &trigger, &state_of(&again), &[], &[])?;
        self.tell_queue(queue::Input::GivenBack { row: again, reason: said.to_owned() })
    }
}

fn outcome_name(how: &Ended) -> &'static str {
    match how {
        Ended::Answered(_) => "answered",
        Ended::Failed(_) => "failed",
        Ended::Stuck => "stuck",
        Ended::TooLong => "too_long",
        Ended::Cancelled(_) => "cancelled",
    }
}

fn reason_of(how: &Ended) -> String {
    match how {
        Ended::Failed(BackendError::Other(text)) => text.clone(),
        Ended::Failed(error) => error.to_string(),
        Ended::Cancelled(why) => why.as_str().to_owned(),
        Ended::Answered(_) | Ended::Stuck | Ended::TooLong => String::new(),
    }
}
