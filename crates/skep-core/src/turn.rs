//! One turn, from its prompt to its one outcome.
//!
//! Job: gather what a backend says into a reply and usage, see that it makes progress, and end it when it must end.
//! Lives for one turn; the shell owns the process and carries effects out, in order.
//! Must not: end twice or not at all, whatever a backend says or fails to say; answer one question twice.

mod word;

use std::collections::BTreeSet;

use serde::Serialize;
use skep_proto::agent::metering::StopReason;
use skep_proto::agent::telemetry::{Liveness, Payload, SessionResolved, TelemetryKind, TurnEnded, TurnStarted};
use skep_proto::{EventId, limits};

pub use word::{Cancel, Done, Effect, Outcome, Times, TurnId};

use crate::backend::{Ask, AskId, BackendError, Direction, Ended, Order, Said, Session};
use crate::meter::Observed;

/// Why the turn is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Cancel(Cancel),
    Stuck,
    TooLong,
}

/// How far the ladder was climbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Asked,
    Terminated,
    Killed,
}

/// The machine. Times are milliseconds of a clock that never goes back.
#[derive(Debug)]
pub struct Turn {
    times: Times,
    started_ms: u64,
    progress_ms: u64,
    alive_ms: u64,
    ending: Option<(Ending, Step, u64)>,
    asks: BTreeSet<AskId>,
    text: String,
    is_cut: bool,
    session: Option<Session>,
    observed: Observed,
    has_spoken: bool,
    is_over: bool,
}

impl Turn {
    /// Begins a turn. `session`: the one that the backend already told, when it is reused.
    pub fn start(
        now_ms: u64,
        times: Times,
        triggers: Vec<EventId>,
        attempt: u32,
        session: Option<Session>,
        prompt: String,
    ) -> (Self, Vec<Effect>) {
        let turn = Self {
            times,
            started_ms: now_ms,
            progress_ms: now_ms,
            alive_ms: now_ms,
            ending: None,
            asks: BTreeSet::new(),
            text: String::new(),
            is_cut: false,
            session,
            observed: Observed::default(),
            has_spoken: false,
            is_over: false,
        };
        let started = TurnStarted { triggering_event_ids: triggers, attempt };
        let out = vec![observe(TelemetryKind::TurnStarted, &started), Effect::Tell(Order::Prompt { text: prompt })];
        (turn, out)
    }

    /// What it has used so far, as far as it was told.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Whether its backend gave anything back for the prompt: a word, a thought, a tool, a question, or what it used.
    pub fn has_spoken(&self) -> bool {
        self.has_spoken
    }

    /// Whether it was told to end, and has not yet.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some() && !self.is_over
    }

    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// What the backend says. After the end, nothing it says matters.
    pub fn handle_said(&mut self, now_ms: u64, said: Said) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.is_over {
            return out;
        }
        self.progress_ms = self.progress_ms.max(now_ms);
        self.has_spoken |= match &said {
            Said::Text(piece) => !piece.is_empty(),
            Said::Thought(_) | Said::Tool(_) | Said::Ask(_) | Said::Usage(_) | Said::Speed(_) => true,
            Said::Ready(_) | Said::Noise(_) | Said::Frame { .. } | Said::Ended(_) | Said::Gone(_) => false,
        };
        match said {
            Said::Ready(session) => self.ready(session, &mut out),
            Said::Text(piece) => self.append(&piece),
            Said::Thought(_) | Said::Speed(_) | Said::Noise(_) => {}
            Said::Tool(call) => out.push(Effect::Tool(call)),
            Said::Ask(ask) => self.ask(ask, &mut out),
            Said::Usage(usage) => self.observed.hear(&usage),
            Said::Frame { direction, json } => {
                let kind = match direction {
                    Direction::FromBackend => TelemetryKind::AcpRead,
                    Direction::ToBackend => TelemetryKind::AcpWrite,
                };
                out.push(Effect::Observe { kind, payload: Payload::raw(&json) });
            }
            Said::Ended(ended) => self.ended(now_ms, ended, &mut out),
            Said::Gone(why) => {
                let error = BackendError::Disconnected(why);
                self.finish(now_ms, Outcome::Failed(error), StopReason::Error, false, &mut out);
            }
        }
        out
    }

    /// The answer to a question, once. One that was answered, or never asked, is not written.
    pub fn answer(&mut self, now_ms: u64, request: AskId, option: Option<String>) -> Vec<Effect> {
        if self.is_over || !self.asks.remove(&request) {
            return Vec::new();
        }
        // It was waiting for us, not idle.
        self.progress_ms = self.progress_ms.max(now_ms);
        vec![Effect::Tell(Order::Answer { request, option })]
    }

    /// It used a tool of the harness: that is progress, though its backend may not say so.
    pub fn touch(&mut self, now_ms: u64) {
        self.progress_ms = self.progress_ms.max(now_ms);
    }

    /// Ends the turn early. The first reason stands.
    pub fn cancel(&mut self, now_ms: u64, why: Cancel) -> Vec<Effect> {
        let mut out = Vec::new();
        self.begin_end(now_ms, Ending::Cancel(why), &mut out);
        out
    }

    /// Time passed. Call it at [`Turn::wake_at`] at the latest.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.is_over {
            return out;
        }
        self.show_life(now_ms, &mut out);
        if self.ending.is_some() {
            self.climb(now_ms, &mut out);
        } else if now_ms >= self.started_ms + self.times.turn_ms_max {
            self.begin_end(now_ms, Ending::TooLong, &mut out);
        } else if self.is_watched() && now_ms >= self.progress_ms + self.times.idle_ms {
            self.begin_end(now_ms, Ending::Stuck, &mut out);
        }
        out
    }

    /// When [`Turn::tick`] has something to do; `None` after the end.
    pub fn wake_at(&self) -> Option<u64> {
        if self.is_over {
            return None;
        }
        let step = match self.ending {
            Some((_, _, at)) => at + self.times.kill_step_ms,
            None if self.is_watched() => {
                (self.started_ms + self.times.turn_ms_max).min(self.progress_ms + self.times.idle_ms)
            }
            None => self.started_ms + self.times.turn_ms_max,
        };
        Some(step.min(self.alive_ms + self.times.liveness_ms))
    }

    /// When the turn ends at the latest, for the deadlines of permissions.
    pub fn ends_at_ms(&self) -> u64 {
        self.started_ms + self.times.turn_ms_max
    }

    /// A backend that waits for a person is not idle.
    fn is_watched(&self) -> bool {
        self.asks.is_empty()
    }

    fn ready(&mut self, session: Session, out: &mut Vec<Effect>) {
        let Session { is_new, program, model, branch, .. } = session.clone();
        let resolved = SessionResolved { is_new, program, model, branch };
        out.push(observe(TelemetryKind::SessionResolved, &resolved));
        out.push(Effect::Opened(session.clone()));
        self.session = Some(session);
    }

    fn append(&mut self, piece: &str) {
        let room = limits::REPLY_BYTES_MAX.saturating_sub(self.text.len());
        if piece.len() > room {
            self.is_cut = true;
        }
        if !self.is_cut || self.text.len() < limits::REPLY_BYTES_MAX {
            self.text.push_str(&piece[..piece.floor_char_boundary(room)]);
        }
    }

    fn ask(&mut self, ask: Ask, out: &mut Vec<Effect>) {
        let is_new = self.ending.is_none() && !self.asks.contains(&ask.id);
        if let Some(frame) = ask.frame.as_deref().filter(|_| !is_new) {
            // Nobody will be asked: it is a frame as any other.
            out.push(Effect::Observe { kind: TelemetryKind::AcpRead, payload: Payload::raw(frame) });
        }
        if self.ending.is_some() {
            // The turn is being ended: nothing is permitted any more.
            return out.push(Effect::Tell(Order::Answer { request: ask.id, option: None }));
        }
        // A repeated id is the same question: it is asked, and answered, once.
        if self.asks.insert(ask.id.clone()) {
            out.push(Effect::Ask(ask));
        }
    }

    fn ended(&mut self, now_ms: u64, ended: Ended, out: &mut Vec<Effect>) {
        let ended_for = self.ending.map(|(ending, _, _)| ending);
        let text = std::mem::take(&mut self.text);
        let is_cut = self.is_cut;
        let (outcome, stop) = match (ended_for, ended) {
            // Whoever cancelled does not want the reply, even when it was ready.
            (Some(Ending::Cancel(why)), _) => (Outcome::Cancelled(why), StopReason::Cancelled),
            (_, Ended::EndTurn) => (Outcome::Reply { text, is_cut }, StopReason::EndTurn),
            (_, Ended::Refusal) => (Outcome::Reply { text, is_cut }, StopReason::EndTurn),
            (_, Ended::MaxTokens) => (Outcome::Reply { text, is_cut: true }, StopReason::MaxTokens),
            (Some(Ending::Stuck), _) => (Outcome::Stuck, StopReason::Cancelled),
            (Some(Ending::TooLong), _) => (Outcome::TooLong, StopReason::Cancelled),
            (None, Ended::Cancelled) => {
                let error = BackendError::Other("the backend cancelled the turn by itself".into());
                (Outcome::Failed(error), StopReason::Cancelled)
            }
            (None, Ended::Error(error)) => (Outcome::Failed(error), StopReason::Error),
        };
        // One that had to be terminated to listen is not asked again.
        let is_reusable = self.ending.is_none_or(|(_, step, _)| step == Step::Asked);
        self.finish(now_ms, outcome, stop, is_reusable, out);
    }

    fn begin_end(&mut self, now_ms: u64, ending: Ending, out: &mut Vec<Effect>) {
        if self.is_over || self.ending.is_some() {
            return;
        }
        self.ending = Some((ending, Step::Asked, now_ms));
        let asks = std::mem::take(&mut self.asks);
        out.extend(asks.into_iter().map(|request| Effect::Tell(Order::Answer { request, option: None })));
        out.push(Effect::Tell(Order::Cancel));
    }

    /// Ask, terminate, kill; and should even that end nothing, give it up.
    fn climb(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        let Some((ending, step, at)) = self.ending else { return };
        if now_ms < at + self.times.kill_step_ms {
            return;
        }
        let (next, effect) = match step {
            Step::Asked => (Step::Terminated, Effect::Terminate),
            Step::Terminated => (Step::Killed, Effect::Kill),
            Step::Killed => {
                let outcome = ending.outcome();
                return self.finish(now_ms, outcome, StopReason::Cancelled, false, out);
            }
        };
        self.ending = Some((ending, next, now_ms));
        out.push(effect);
    }

    fn show_life(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        if now_ms < self.alive_ms + self.times.liveness_ms {
            return;
        }
        self.alive_ms = now_ms;
        let alive = Liveness {
            elapsed_ms: now_ms.saturating_sub(self.started_ms),
            idle_ms: now_ms.saturating_sub(self.progress_ms),
        };
        out.push(observe(TelemetryKind::TurnLiveness, &alive));
    }

    fn finish(&mut self, now_ms: u64, outcome: Outcome, stop: StopReason, is_reusable: bool, out: &mut Vec<Effect>) {
        // A backend that died while it was being ended did what it was asked to.
        let (outcome, stop) = match (self.ending, &outcome) {
            (Some((ending, ..)), Outcome::Failed(_)) => (ending.outcome(), StopReason::Cancelled),
            _ => (outcome, stop),
        };
        self.is_over = true;
        let elapsed_ms = now_ms.saturating_sub(self.started_ms);
        let error = match &outcome {
            Outcome::Failed(error) => Some(error.to_string()),
            Outcome::Stuck => Some("no progress".to_owned()),
            Outcome::TooLong => Some("longer than a turn may be".to_owned()),
            Outcome::Reply { .. } | Outcome::Cancelled(_) => None,
        };
        let kind = if error.is_some() { TelemetryKind::TurnError } else { TelemetryKind::TurnCompleted };
        out.push(observe(kind, &TurnEnded { stop_reason: stop, elapsed_ms, error }));
        let done =
            Done { outcome, stop, observed: self.observed, session: self.session.take(), elapsed_ms, is_reusable };
        out.push(Effect::Done(Box::new(done)));
    }
}

impl Ending {
    fn outcome(self) -> Outcome {
        match self {
            Self::Cancel(why) => Outcome::Cancelled(why),
            Self::Stuck => Outcome::Stuck,
            Self::TooLong => Outcome::TooLong,
        }
    }
}

fn observe<T: Serialize>(kind: TelemetryKind, payload: &T) -> Effect {
    Effect::Observe { kind, payload: Payload::of(payload) }
}

#[cfg(test)]
mod tests;
