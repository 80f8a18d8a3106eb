//! The inbox of one agent: every message it was ever sent is answered, or visibly waiting, or visibly ended.
//!
//! Job: say which message is prompted next, and when one is tried again. One turn in a channel, several channels at
//! once; in a channel the order of arrival is kept. Lives as long as its agent; the shell stores every
//! [`Effect::Store`] before it does what comes after it, and gives the rows back after a crash.
//! Must not: forget a message, prompt one that has an answer, or spend attempts on what waiting cannot mend.
//!
//! A full inbox refuses the newest message, visibly.

mod lane;
mod row;
mod told;
mod word;

use std::collections::BTreeSet;

use ahash::AHashMap;
use skep_proto::lease::Epoch;
use skep_proto::time::UnixMs;
use skep_proto::{EventId, limits};

use lane::Lanes;
pub use row::{Message, Place, Priority, Row, State};
pub use told::Told;
pub use word::{Effect, Ended, Input, Mode, NotStarted, Reaction, Settings};

use crate::backend::BackendError;
use crate::turn::{Cancel, TurnId};

/// Why a message is over that this instance did not answer.
pub const ANSWERED_ELSEWHERE: &str = "answered by another instance";

/// The machine.
#[derive(Debug)]
pub struct Queue {
    settings: Settings,
    lanes: Lanes,
    expiries: BTreeSet<(UnixMs, EventId)>,
    /// The channel of each turn that runs.
    turns: AHashMap<TurnId, String>,
    paused: Option<String>,
    /// For a reason that the shell knows.
    is_held: bool,
    /// The provider said not to come back before.
    busy_until: UnixMs,
    leads: bool,
    woken_at: Option<UnixMs>,
    /// Messages refused because the inbox was full.
    pub refused_full: u64,
}

impl Queue {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            lanes: Lanes::default(),
            expiries: BTreeSet::new(),
            turns: AHashMap::new(),
            paused: None,
            is_held: false,
            busy_until: 0,
            leads: false,
            woken_at: None,
            refused_full: 0,
        }
    }

    /// The inbox after a start: every stored row that has not ended. One that was being prompted is prompted again,
    /// under a newer lease only, and that counts as an attempt. One that was called off is over: that was told.
    pub fn restore(settings: Settings, rows: impl IntoIterator<Item = Row>, now: UnixMs) -> (Self, Vec<Effect>) {
        let mut queue = Self::new(settings);
        let mut out = Vec::new();
        for mut row in rows.into_iter().filter(|row| !row.state.is_final()) {
            if let State::Prompted { epoch, .. } = row.state {
                if let Some(why) = row.called_off {
                    queue.finish(row, State::Refused, now, why.as_str(), &mut out);
                    continue;
                }
                row.fence = Some(epoch);
                row.attempts += 1;
                row.enter(State::Queued, now, "the harness stopped during its turn");
                out.push(Effect::Store(row.clone()));
            }
            queue.hold(row);
        }
        (queue, out)
    }

    /// `random` spreads the next attempt; a fresh one each time.
    pub fn handle(&mut self, now: UnixMs, random: u64, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.take(now, random, input, &mut out);
        self.expire(now, &mut out);
        self.start_due(now, &mut out);
        self.plan_wake(now, &mut out);
        out
    }

    /// Messages that wait or are being prompted.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.lanes.rows()
    }

    /// Whether a message still waits for the word on its [`Effect::Prompt`].
    pub fn is_starting(&self, id: &EventId) -> bool {
        self.lanes.is_starting(id)
    }

    /// Whether a message waits or is being prompted.
    pub fn knows(&self, id: &EventId) -> bool {
        self.lanes.knows(id)
    }

    pub fn paused(&self) -> Option<&str> {
        self.paused.as_deref()
    }

    /// Whether a turn may begin as far as pauses go.
    pub fn may_begin(&self) -> bool {
        self.paused.is_none() && !self.is_held
    }

    fn take(&mut self, now: UnixMs, random: u64, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Arrived(message) => self.arrive(now, message, out),
            Input::Admitted(id) => self.admit(now, id, out),
            Input::Refused { id, reason } => {
                if let Some(row) = self.lanes.remove_waiting(&id) {
                    self.finish(row, State::Refused, now, &reason, out);
                }
            }
            Input::Stopped { id, reason } => {
                if let Some(row) = self.lanes.remove_waiting(&id) {
                    self.tell(row, State::Refused, now, &reason, None, out);
                }
            }
            Input::Started { id, turn, epoch } => self.begin(now, id, turn, epoch, out),
            Input::NotStarted { id, why } => self.not_begun(now, id, why, out),
            Input::Steered { id, turn, is_taken } => self.steered(now, id, &turn, is_taken, out),
            Input::Ended { turn, how } => self.end(now, random, &turn, how, out),
            Input::CalledOff { turn, why } => self.call_off(now, turn, why, out),
            Input::AnsweredElsewhere { id, event } => {
                if let Some(row) = self.lanes.call_off(&id) {
                    let state = State::Answered { event: Some(event) };
                    self.finish(row, state, now, ANSWERED_ELSEWHERE, out);
                }
            }
            Input::ToldElsewhere { row, told } => self.hear(now, row, told, out),
            Input::GivenBack { row, reason } => self.give_back(now, random, row, &reason, out),
            Input::Retry(row) => self.retry_by_hand(now, row, out),
            Input::Paused(reason) => self.paused = Some(reason),
            Input::Resumed => {
                self.paused = None;
                self.busy_until = 0;
            }
            Input::Held(is_held) => self.is_held = is_held,
            // Kept by a clock that may have been wrong: no longer than it would be believed now.
            Input::Busy(until) => self.busy_until = until.min(now.saturating_add(limits::RETRY_AFTER_MS_MAX)),
            Input::Leading(leads) => self.lead(leads, out),
            Input::Tick => {}
        }
    }

    fn arrive(&mut self, now: UnixMs, message: Message, out: &mut Vec<Effect>) {
        if self.lanes.knows(&message.id) {
            return;
        }
        let row = Row::new(message, now);
        if self.lanes.count() >= self.settings.waiting_max {
            self.refused_full += 1;
            return self.finish(row, State::Refused, now, "the inbox is full", out);
        }
        out.push(Effect::Store(row.clone()));
        self.hold(row);
    }

    fn admit(&mut self, now: UnixMs, id: EventId, out: &mut Vec<Effect>) {
        let Some(row) = self.lanes.get_mut(&id).filter(|row| row.state == State::Stored) else { return };
        row.enter(State::Queued, now, "");
        out.push(Effect::Store(row.clone()));
        let message = row.message.clone();
        let is_urgent = message.priority == Priority::Urgent;
        let Some(turn) = self.lanes.turn_in(&message.channel) else { return };
        match (self.settings.mode, turn) {
            (Mode::Interrupt, Some(turn)) => self.call_off(now, turn, Cancel::Interrupted, out),
            (Mode::Queue, Some(turn)) if is_urgent => self.call_off(now, turn, Cancel::Interrupted, out),
            (Mode::Steer, Some(turn)) => out.push(Effect::Steer { turn, message }),
            _ => self.show_waiting(id, out),
        }
    }

    fn show_waiting(&self, id: EventId, out: &mut Vec<Effect>) {
        if self.settings.shows_waiting {
            out.push(Effect::React { id, reaction: Reaction::Hourglass });
        }
    }

    fn begin(&mut self, now: UnixMs, id: EventId, turn: TurnId, epoch: Epoch, out: &mut Vec<Effect>) {
        let Some(row) = self.lanes.starting(&id) else {
            // Nobody waits for this turn any more: it expired, or was called off.
            return out.push(Effect::Cancel { turn, why: Cancel::NotWanted });
        };
        if row.fence.is_some_and(|before| epoch <= before) {
            let until = now + limits::RETRY_MS_MIN;
            let reason = "the turn's lease is not newer than the one before".to_owned();
            self.not_begun(now, id, NotStarted::Wait { reason, until }, out);
            return out.push(Effect::Cancel { turn, why: Cancel::Fenced });
        }
        row.enter(State::Prompted { turn: turn.clone(), epoch }, now, "");
        out.push(Effect::Store(row.clone()));
        out.push(Effect::React { id, reaction: Reaction::Eyes });
        let channel = row.message.channel.clone();
        self.lanes.run(&channel, turn.clone());
        self.turns.insert(turn.clone(), channel);
        if !self.leads {
            out.push(Effect::Cancel { turn, why: Cancel::Stolen });
        }
    }

    fn not_begun(&mut self, now: UnixMs, id: EventId, why: NotStarted, out: &mut Vec<Effect>) {
        let Some(row) = self.lanes.starting(&id) else { return };
        let channel = row.message.channel.clone();
        self.lanes.free(&channel);
        match why {
            NotStarted::Answered(event) => {
                if let Some(row) = self.lanes.remove(&id) {
                    self.finish(row, State::Answered { event }, now, ANSWERED_ELSEWHERE, out);
                }
            }
            NotStarted::Wait { reason, until } => {
                let Some(row) = self.lanes.get_mut(&id) else { return };
                row.retry_at = Some(until);
                row.enter(State::Queued, now, &reason);
                // After a restart it is tried at once: what it waits for may be set otherwise.
                out.push(Effect::Store(Row { retry_at: None, ..row.clone() }));
            }
        }
    }

    fn steered(&mut self, now: UnixMs, id: EventId, turn: &TurnId, is_taken: bool, out: &mut Vec<Effect>) {
        let Some(row) = self.lanes.get_mut(&id).filter(|row| row.state == State::Queued) else { return };
        let channel = row.message.channel.clone();
        if !is_taken {
            return self.show_waiting(id, out);
        }
        // A turn that ended meanwhile did not read it: it is prompted by itself.
        let Some(epoch) = self.lanes.join(&channel, turn, id) else { return };
        let Some(row) = self.lanes.get_mut(&id) else { return };
        row.enter(State::Prompted { turn: turn.clone(), epoch }, now, "joined a running turn");
        out.push(Effect::Store(row.clone()));
        out.push(Effect::React { id, reaction: Reaction::Eyes });
    }

    fn end(&mut self, now: UnixMs, random: u64, turn: &TurnId, how: Ended, out: &mut Vec<Effect>) {
        let Some(channel) = self.turns.remove(turn) else { return };
        for id in self.lanes.free(&channel) {
            if let Some(row) = self.lanes.remove(&id) {
                self.end_row(now, random, row, &how, out);
            }
        }
    }

    /// A turn may take its time to end, and its instance may die meanwhile. So what ends its messages is a fact before it
    /// is told anything.
    fn call_off(&mut self, now: UnixMs, turn: TurnId, why: Cancel, out: &mut Vec<Effect>) {
        let ids = self.turns.get(&turn).map(|channel| self.lanes.in_turn(channel)).unwrap_or_default();
        for id in ids {
            let Some(row) = self.lanes.get_mut(&id).filter(|row| row.called_off.is_none()) else { continue };
            row.called_off = Some(why);
            why.as_str().clone_into(&mut row.reason);
            row.date_word(now);
            out.push(Effect::Tell { row: row.clone(), notice: None });
        }
        out.push(Effect::Cancel { turn, why });
    }

    fn end_row(&mut self, now: UnixMs, random: u64, mut row: Row, how: &Ended, out: &mut Vec<Effect>) {
        if let (Some(why), false) = (row.called_off, matches!(how, Ended::Answered(_))) {
            return self.finish(row, State::Refused, now, why.as_str(), out);
        }
        match how {
            Ended::Answered(event) => self.finish(row, State::Answered { event: *event }, now, "", out),
            // Once more would cost as much once more.
            Ended::Cancelled(why @ Cancel::Budget) => self.bury(row, now, why.as_str(), out),
            // Another's answer made it so, and tells it.
            Ended::Cancelled(why @ Cancel::NotWanted) => self.finish(row, State::Refused, now, why.as_str(), out),
            Ended::Cancelled(why) if why.gives_up() => self.tell(row, State::Refused, now, why.as_str(), None, out),
            Ended::Cancelled(why) => self.requeue(row, now, now, why.as_str(), out),
            Ended::TooLong => self.bury(row, now, "the turn took longer than a turn may", out),
            Ended::Stuck if row.is_stuck => self.bury(row, now, "no progress, twice", out),
            Ended::Stuck => {
                row.is_stuck = true;
                self.retry(row, now, random, "no progress", out);
            }
            Ended::Failed(error @ (BackendError::Auth(_) | BackendError::Quota(_))) => {
                let reason = error.to_string();
                let id = row.message.id;
                self.paused = Some(reason.clone());
                self.requeue(row, now, now, &reason, out);
                out.push(Effect::PauseAgent { id, reason });
            }
            Ended::Failed(error @ BackendError::Busy { retry_after_secs: Some(secs) }) => {
                let wait = secs.saturating_mul(1_000).min(limits::RETRY_AFTER_MS_MAX);
                self.busy_until = self.busy_until.max(now.saturating_add(wait));
                self.requeue(row, now, self.busy_until, &error.to_string(), out);
                out.push(Effect::Busy(self.busy_until));
            }
            Ended::Failed(error) => self.retry(row, now, random, &error.to_string(), out),
        }
    }

    /// One attempt is used up: the next comes later, or there is none.
    fn retry(&mut self, mut row: Row, now: UnixMs, random: u64, reason: &str, out: &mut Vec<Effect>) {
        row.attempts += 1;
        if row.attempts >= self.settings.attempts_max {
            return self.bury(row, now, reason, out);
        }
        let at = now + backoff_ms(row.attempts, random);
        self.requeue(row, now, at, reason, out);
    }

    fn requeue(&mut self, mut row: Row, now: UnixMs, at: UnixMs, reason: &str, out: &mut Vec<Effect>) {
        row.retry_at = Some(at);
        row.enter(State::Queued, now, reason);
        out.push(Effect::Store(row.clone()));
        self.hold(row);
    }

    fn bury(&mut self, row: Row, now: UnixMs, reason: &str, out: &mut Vec<Effect>) {
        let attempts = match row.attempts {
            0 | 1 => "one attempt".to_owned(),
            more => format!("{more} attempts"),
        };
        let text = format!("gave up after {attempts}: {reason}; `skep retry` tries again");
        self.tell(row, State::Dead, now, reason, Some(text), out);
    }

    /// It ends here without an answer, which no other instance can know by itself.
    fn tell(
        &mut self,
        row: Row,
        state: State,
        now: UnixMs,
        reason: &str,
        notice: Option<String>,
        out: &mut Vec<Effect>,
    ) {
        let mut row = self.over(row, state, now, reason);
        row.date_word(now);
        out.push(Effect::Tell { row, notice });
    }

    fn finish(&mut self, row: Row, state: State, now: UnixMs, reason: &str, out: &mut Vec<Effect>) {
        out.push(Effect::Store(self.over(row, state, now, reason)));
    }

    fn over(&mut self, mut row: Row, state: State, now: UnixMs, reason: &str) -> Row {
        if let Some(at) = row.message.expires_at {
            self.expiries.remove(&(at, row.message.id));
        }
        row.retry_at = None;
        row.called_off = None;
        row.enter(state, now, reason);
        row
    }

    /// The other instances ended it, too, by our word: they are told that it is tried again. Whoever leads does.
    fn retry_by_hand(&mut self, now: UnixMs, row: Row, out: &mut Vec<Effect>) {
        if self.can_be_tried_again(&row) {
            let mut row = afresh(row, now);
            row.date_word(now);
            out.push(Effect::Tell { row: row.clone(), notice: None });
            self.hold(row);
        }
    }

    fn can_be_tried_again(&self, row: &Row) -> bool {
        let is_answered = matches!(row.state, State::Answered { .. });
        !is_answered && row.state.is_final() && !self.lanes.knows(&row.message.id)
    }

    /// A turn that runs goes on: it has the lease, so whoever spoke had lost it, or spoke of a turn before. That word is
    /// used up, and does not end the message when the turn fails.
    fn hear(&mut self, now: UnixMs, mut row: Row, told: Told, out: &mut Vec<Effect>) {
        let id = row.message.id;
        let Some(known) = self.lanes.get_mut(&id) else {
            let is_answered = matches!(row.state, State::Answered { .. });
            if is_answered || told.at <= row.told_at {
                return;
            }
            row.told_at = told.at;
            if told.state == State::Queued && self.can_be_tried_again(&row) {
                row = afresh(row, now);
                self.hold(row.clone());
            }
            return out.push(Effect::Store(row));
        };
        if told.at <= known.told_at {
            return;
        }
        known.told_at = told.at;
        if told.state == State::Queued && known.called_off.is_some() {
            return self.begin_after(now, &id, out);
        }
        let (known, ends) = (known.clone(), told.state != State::Queued);
        let row = if ends { self.lanes.call_off(&id) } else { None };
        match row {
            Some(row) => self.finish(row, told.state, now, &told.reason, out),
            None => out.push(Effect::Store(known)),
        }
    }

    /// What was called off, and told, is wanted again before its turn has ended: it waits for another.
    fn begin_after(&mut self, now: UnixMs, id: &EventId, out: &mut Vec<Effect>) {
        let Some(row) = self.lanes.leave(id) else { return };
        let fence = match row.state {
            State::Prompted { epoch, .. } => Some(epoch),
            _ => row.fence,
        };
        let row = Row { fence, ..afresh(self.over(row, State::Refused, now, ""), now) };
        out.push(Effect::Store(row.clone()));
        self.hold(row);
    }

    fn give_back(&mut self, now: UnixMs, random: u64, row: Row, reason: &str, out: &mut Vec<Effect>) {
        if !self.lanes.knows(&row.message.id) {
            self.retry(row, now, random, reason, out);
        }
    }

    fn lead(&mut self, leads: bool, out: &mut Vec<Effect>) {
        self.leads = leads;
        if !leads {
            let mut turns: Vec<_> = self.turns.keys().cloned().collect();
            turns.sort();
            out.extend(turns.into_iter().map(|turn| Effect::Cancel { turn, why: Cancel::Stolen }));
        }
    }

    fn hold(&mut self, row: Row) {
        if let Some(at) = row.message.expires_at {
            self.expiries.insert((at, row.message.id));
        }
        self.lanes.insert(row);
    }

    /// What runs already may end in time; what waits does not begin any more. Whoever follows expires it by itself, and
    /// one whose sender is not judged may be a stranger's.
    fn expire(&mut self, now: UnixMs, out: &mut Vec<Effect>) {
        let due: Vec<_> = self.expiries.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        for id in due {
            if let Some(row) = self.lanes.remove_waiting(&id) {
                let reason = "its deadline passed while it waited";
                match self.leads && row.state == State::Queued {
                    true => self.tell(row, State::Expired, now, reason, None, out),
                    false => self.finish(row, State::Expired, now, reason, out),
                }
            }
        }
    }

    fn start_due(&mut self, now: UnixMs, out: &mut Vec<Effect>) {
        if !self.may_begin() || !self.leads || now < self.busy_until {
            return;
        }
        while self.lanes.busy() < self.settings.parallel.max(1) {
            let Some(row) = self.lanes.start_next(now) else { return };
            // Its last turn ended with the harness. Only who leads gives up: another may have answered it since.
            if row.attempts >= self.settings.attempts_max {
                let Row { message: Message { id, channel, .. }, .. } = row.clone();
                self.lanes.free(&channel);
                if let Some(row) = self.lanes.remove(&id) {
                    self.bury(row, now, "the harness stopped during each of its turns", out);
                }
                continue;
            }
            out.push(Effect::Prompt { message: row.message.clone(), attempt: row.attempts + 1, after: row.fence });
        }
    }

    fn plan_wake(&mut self, now: UnixMs, out: &mut Vec<Effect>) {
        let can_start = self.may_begin() && self.leads;
        let retry = if can_start { self.lanes.next_at(now).map(|at| at.max(self.busy_until)) } else { None };
        let expiry = self.expiries.iter().map(|(at, _)| *at).find(|at| *at > now);
        let at = retry.filter(|at| *at > now).into_iter().chain(expiry).min();
        if at != self.woken_at {
            self.woken_at = at;
            out.extend(at.map(Effect::WakeAt));
        }
    }
}

/// A message that was over, as if it had just come. Whoever wants it now wants it however late it is.
fn afresh(mut row: Row, now: UnixMs) -> Row {
    row.attempts = 0;
    row.is_stuck = false;
    row.message.expires_at = None;
    row.retry_at = Some(now);
    row.enter(State::Queued, now, "tried again by hand");
    row
}

/// Full jitter: anything from 0 to 5 s doubled with each attempt, at most 300 s.
pub fn backoff_ms(attempts: u32, random: u64) -> u64 {
    let doubled = limits::RETRY_MS_MIN.checked_shl(attempts.saturating_sub(1)).unwrap_or(u64::MAX);
    let cap = if attempts > 16 { limits::RETRY_MS_MAX } else { doubled.min(limits::RETRY_MS_MAX) };
    random % (cap + 1)
}

#[cfg(test)]
mod tests;
