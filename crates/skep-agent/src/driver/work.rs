//! Turns: from the lease and the journal through the backend to the one outcome.

use skep_core::backend::{Ask, AskId, BackendError, Order, Said, Session};
use skep_core::door::Door;
use skep_core::meter::{Measured, Observed};
use skep_core::permit::{self, Nonce, Origin, Permits};
use skep_core::queue::{self, Ended};
use skep_core::turn::{Cancel, Done, Effect, Outcome, Turn, TurnId};
use skep_proto::agent::metering::TurnMetric;
use skep_proto::lease::Epoch;
use skep_proto::time::Moment;
use skep_proto::{EventId, RawEvent};
use skep_store::StoreError;
use skep_store::agent::{Hold, SessionRow, TurnEnd, TurnRow};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::desk::{Desk, Inner, Prompt, state_of};
use super::earlier::Seen;
use super::ends::Ends;
use super::lease::turn_resource;
use super::letter::{Form, Letter};
use crate::Backend;

/// Backends that are kept though nothing runs on them, beyond those that `parallel` allows to run.
const IDLE_MAX: usize = 4;

/// How the permissions are asked.
pub(super) type How = fn(&mut Permits, u64, Origin, &Ask, Nonce) -> Vec<permit::Effect>;

/// A channel's backend, and the turn that runs on it.
pub(super) struct Live {
    orders: mpsc::Sender<Order>,
    /// Owns the backend: with it goes the process group.
    task: AbortOnDropHandle<()>,
    generation: u64,
    session: Option<Session>,
    pub(super) turn: Option<Running>,
    seen: Seen,
    /// Its tools end with it.
    _tools: Option<AbortOnDropHandle<()>>,
    /// By the steady clock.
    used: u64,
}

pub(super) struct Running {
    pub id: TurnId,
    pub machine: Turn,
    pub trigger: Letter,
    pub epoch: Epoch,
    /// When its lease was, by the steady clock.
    pub renewed: u64,
    /// When it last told its progress, by the steady clock.
    pub told: Option<u64>,
}

impl Live {
    pub(super) fn is_busy(&self) -> bool {
        self.turn.is_some()
    }

    pub(super) fn wake_at(&self) -> Option<u64> {
        self.turn.as_ref().and_then(|turn| turn.machine.wake_at())
    }

    pub(super) fn into_task(self) -> AbortOnDropHandle<()> {
        self.task
    }
}

impl<D: Door + 'static> Desk<D> {
    pub(super) fn begin(
        &mut self,
        prompt: Prompt,
        trigger: Letter,
        epoch: Epoch,
        earlier: Vec<RawEvent>,
    ) -> Result<(), StoreError> {
        let Prompt { turn, message, attempt, .. } = prompt;
        let earlier = self.choose_earlier(&message.channel, &trigger, earlier)?;
        let prompt = self.render(&message, &trigger, &earlier)?;
        // What the model will see is on disk before the model sees it.
        let row = TurnRow {
            turn: turn.0.clone(),
            trigger: trigger.carrier,
            epoch,
            attempt,
            channel: message.channel.clone(),
            author: trigger.pubkey,
            started_at: self.unix_now(),
            prompt: prompt.clone(),
            reserved: self.reserved(&turn),
            end: None,
        };
        self.setup.store.begin_turn(&row)?;
        let now = self.mono_ms();
        let live = self.backend(&message.channel)?;
        let (machine, effects) =
            Turn::start(now, live.1, vec![trigger.carrier], attempt, live.0.session.clone(), prompt);
        live.0.seen.add(earlier.iter().map(|event| event.id).chain([trigger.said.id]));
        live.0.turn = Some(Running { id: turn.clone(), machine, trigger, epoch, renewed: now, told: None });
        live.0.used = now;
        self.tell_queue(queue::Input::Started { id: message.id, turn, epoch })?;
        self.do_turn(&message.channel, effects)
    }

    /// The backend of a channel, started when there is none.
    fn backend(&mut self, channel: &str) -> Result<(&mut Live, skep_core::turn::Times), StoreError> {
        if !self.live.contains_key(channel) {
            let mut spec = self.spec_of(channel)?;
            self.generation += 1;
            let tools = self.furnish(&mut spec, channel, self.generation);
            let seen = self.seen_before(channel)?;
            let live = spawn(Backend::start(spec), self.inner.clone(), channel.to_owned(), self.generation);
            let live = Live { seen, _tools: tools, ..live };
            self.live.insert(channel.to_owned(), live);
        }
        let times = self.setup.times;
        let live = self.live.get_mut(channel).expect("invariant: it was put there above");
        Ok((live, times))
    }

    pub(super) fn said(&mut self, channel: &str, generation: u64, said: Option<Said>) -> Result<(), StoreError> {
        let now = self.mono_ms();
        let Some(live) = self.live.get_mut(channel).filter(|live| live.generation == generation) else { return Ok(()) };
        let is_gone = matches!(said, None | Some(Said::Gone(_)));
        let said = said.unwrap_or_else(|| Said::Gone("the backend ended".into()));
        if let Said::Ready(session) = &said {
            live.session = Some(session.clone());
        }
        let effects = match &mut live.turn {
            Some(turn) => turn.machine.handle_said(now, said.clone()),
            None => return self.said_between_turns(channel, &said, is_gone),
        };
        self.do_turn(channel, effects)?;
        self.check_cost(channel, &said)?;
        if is_gone {
            self.live.remove(channel);
        }
        Ok(())
    }

    fn said_between_turns(&mut self, channel: &str, said: &Said, is_gone: bool) -> Result<(), StoreError> {
        match said {
            Said::Ready(session) => self.open_session(channel, &session.clone())?,
            Said::Usage(usage) => {
                let session =
                    self.live.get(channel).and_then(|live| live.session.as_ref()).map(|session| session.id.clone());
                if let Some(session) = session.filter(|_| usage.scope == skep_core::backend::Scope::Session) {
                    self.meter.note(&session, usage.counters);
                }
            }
            _ => {}
        }
        if is_gone {
            self.live.remove(channel);
        }
        Ok(())
    }

    fn open_session(&mut self, channel: &str, session: &Session) -> Result<(), StoreError> {
        self.meter.open(session, self.setup.host.random_u64());
        self.keep_session(channel, &session.id)
    }

    /// The session and its series as they are now, before a metric with its next number is published.
    fn keep_session(&mut self, channel: &str, session: &str) -> Result<(), StoreError> {
        let Some(series) = self.meter.series(session) else { return Ok(()) };
        let detail = serde_json::to_string(series).expect("invariant: a series is strings and numbers");
        self.setup.store.set_session(&SessionRow { channel: channel.to_owned(), session: session.to_owned(), detail })
    }

    /// Does what a turn asks for.
    fn do_turn(&mut self, channel: &str, effects: Vec<Effect>) -> Result<(), StoreError> {
        for effect in effects {
            match effect {
                Effect::Tell(order) => self.tell(channel, order),
                // Closing its input asks a program to end; what does not is killed.
                Effect::Terminate => self.tell(channel, Order::Close),
                Effect::Kill => self.kill(channel)?,
                Effect::Ask(ask) => self.ask(channel, &ask, Permits::ask)?,
                Effect::Observe { kind, payload } => self.observe(channel, kind, payload),
                Effect::Tool(_) => {}
                Effect::Opened(session) => self.open_session(channel, &session)?,
                Effect::Done(done) => self.end(channel, *done)?,
            }
        }
        Ok(())
    }

    fn tell(&mut self, channel: &str, order: Order) {
        let Some(live) = self.live.get(channel) else { return };
        match live.orders.try_send(order) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            // It does not even read orders: the turn's ladder ends it.
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::warn!(agent = %self.setup.name, "a backend takes no orders");
            }
        }
    }

    fn kill(&mut self, channel: &str) -> Result<(), StoreError> {
        let now = self.mono_ms();
        let Some(mut live) = self.live.remove(channel) else { return Ok(()) };
        live.task.abort();
        let effects = match &mut live.turn {
            Some(turn) => turn.machine.handle_said(now, Said::Gone("killed".into())),
            None => Vec::new(),
        };
        self.live.insert(channel.to_owned(), live);
        self.do_turn(channel, effects)?;
        self.live.remove(channel);
        Ok(())
    }

    /// Asks for a permission, by the rules or past them.
    pub(super) fn ask(&mut self, channel: &str, ask: &Ask, how: How) -> Result<(), StoreError> {
        let Some(live) = self.live.get(channel) else { return Ok(()) };
        let Some(turn) = &live.turn else { return Ok(()) };
        let origin = Origin {
            agent: self.me,
            channel: channel.to_owned(),
            session: live.session.as_ref().map(|session| session.id.clone()).unwrap_or_default(),
            turn: turn.id.clone(),
            is_sealed: turn.trigger.is_sealed(),
            is_by_owner: self.setup.audience.owner == Some(turn.trigger.pubkey),
            turn_ends_ms: turn.machine.ends_at_ms(),
        };
        let nonce = Nonce(faster_hex::hex_string(&self.random::<16>()));
        let now = self.mono_ms();
        let effects = how(&mut self.permits, now, origin, ask, nonce.clone());
        if let Some(frame) = &ask.frame {
            let is_open = effects.iter().any(|effect| matches!(effect, permit::Effect::Show(_)));
            self.observe_question(channel, frame, permit::asked(&nonce, is_open));
        }
        self.settle_permits(effects)
    }

    pub(super) fn answer(&mut self, turn: &TurnId, request: AskId, option: Option<String>) -> Result<(), StoreError> {
        let now = self.mono_ms();
        let Some(channel) = self.channel_of(turn) else { return Ok(()) };
        let running = self.live.get_mut(&channel).and_then(|live| live.turn.as_mut());
        let effects = running.map(|turn| turn.machine.answer(now, request, option)).unwrap_or_default();
        self.do_turn(&channel, effects)
    }

    pub(super) fn cancel_turn(&mut self, turn: &TurnId, why: Cancel) -> Result<(), StoreError> {
        let now = self.mono_ms();
        let Some(channel) = self.channel_of(turn) else { return Ok(()) };
        let closed = self.permits.end_turn(turn);
        self.settle_permits(closed)?;
        let running = self.live.get_mut(&channel).and_then(|live| live.turn.as_mut());
        let effects = running.map(|turn| turn.machine.cancel(now, why)).unwrap_or_default();
        self.do_turn(&channel, effects)
    }

    /// Ends what did not end when it was asked to: its backend goes, and what it used is billed.
    pub(super) fn end_turns(&mut self) -> Result<(), StoreError> {
        let busy: Vec<String> =
            self.live.iter().filter(|(_, live)| live.turn.is_some()).map(|(channel, _)| channel.clone()).collect();
        busy.iter().try_for_each(|channel| self.kill(channel))
    }

    pub(super) fn tick_turns(&mut self) -> Result<(), StoreError> {
        let now = self.mono_ms();
        let due: Vec<String> = self
            .live
            .iter()
            .filter(|(_, live)| live.wake_at().is_some_and(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for channel in due {
            let running = self.live.get_mut(&channel).and_then(|live| live.turn.as_mut());
            let effects = running.map(|turn| turn.machine.tick(now)).unwrap_or_default();
            self.do_turn(&channel, effects)?;
        }
        Ok(())
    }

    /// The one outcome: the reply, the bill and where the message stands, on disk together; then the queue goes on.
    fn end(&mut self, channel: &str, mut done: Done) -> Result<(), StoreError> {
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
        let Some(row) = super::desk::row_of(&message.state) else { return Ok(()) };
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

    /// Ends the backends that were not used for longest, when there are more than may be kept.
    pub(super) fn close_idle(&mut self) {
        let most = self.setup.queue.parallel.max(1) + IDLE_MAX;
        while self.live.len() > most {
            let idle = self.live.iter().filter(|(_, live)| live.turn.is_none());
            let Some(oldest) = idle.min_by_key(|(_, live)| live.used).map(|(channel, _)| channel.clone()) else {
                return;
            };
            self.live.remove(&oldest);
        }
    }

    /// The turn that a message began and that runs.
    pub(super) fn turn_for(&self, trigger: &EventId) -> Option<TurnId> {
        let mut running = self.live.values().filter_map(|live| live.turn.as_ref());
        running.find(|turn| turn.trigger.carrier == *trigger).map(|turn| turn.id.clone())
    }

    pub(super) fn running_turns(&self, channel: Option<&str>) -> Vec<TurnId> {
        let wanted = self.live.iter().filter(|(name, _)| channel.is_none_or(|channel| channel == name.as_str()));
        wanted.filter_map(|(_, live)| live.turn.as_ref()).map(|turn| turn.id.clone()).collect()
    }

    /// The turn that a backend runs, as far as it is this backend, and the turn is not being ended.
    pub(super) fn running_of(&mut self, channel: &str, generation: u64) -> Option<&mut Running> {
        let live = self.live.get_mut(channel).filter(|live| live.generation == generation)?;
        live.turn.as_mut().filter(|running| !running.machine.is_ending())
    }

    pub(super) fn channel_of(&self, turn: &TurnId) -> Option<String> {
        let is_it = |live: &Live| live.turn.as_ref().is_some_and(|running| running.id == *turn);
        self.live.iter().find(|(_, live)| is_it(live)).map(|(channel, _)| channel.clone())
    }

    pub(super) fn trigger_of_turn(&self, turn: &TurnId) -> Option<&Letter> {
        let running = self.live.values().filter_map(|live| live.turn.as_ref());
        running.into_iter().find(|running| running.id == *turn).map(|running| &running.trigger)
    }

    pub(super) fn session_of(&self, channel: &str) -> Option<String> {
        self.live.get(channel)?.session.as_ref().map(|session| session.id.clone())
    }

    /// The models that the backend of a channel offers; `None`: it did not say yet, or there is none.
    pub(super) fn models_of(&self, channel: &str) -> Option<&[String]> {
        self.live.get(channel)?.session.as_ref().map(|session| session.models.as_slice())
    }

    pub(super) fn is_ending(&self, turn: &TurnId) -> bool {
        let running = self.live.values().filter_map(|live| live.turn.as_ref());
        running.into_iter().any(|running| running.id == *turn && running.machine.is_ending())
    }

    /// Ends the backend of a channel that runs no turn.
    pub(super) fn end_backend(&mut self, channel: &str) {
        self.live.remove(channel);
    }

    pub(super) fn seen_by(&self, channel: &str) -> Option<&Seen> {
        self.live.get(channel).map(|live| &live.seen)
    }

    /// The turn of a channel, its session, and what it has used so far.
    pub(super) fn running_cost(&self, channel: &str) -> Option<(TurnId, Option<String>, Observed)> {
        let turn = self.live.get(channel)?.turn.as_ref()?;
        Some((turn.id.clone(), self.session_of(channel), *turn.machine.observed()))
    }

    pub(super) fn turn_of(&self, channel: &str) -> Option<String> {
        self.live.get(channel)?.turn.as_ref().map(|turn| turn.id.0.clone())
    }
}

/// A task that owns a backend and hands on what it says.
fn spawn(mut backend: Backend, inner: mpsc::Sender<Inner>, channel: String, generation: u64) -> Live {
    let orders = backend.orders();
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let said = backend.said().await;
            let is_end = said.is_none();
            let word = Inner::Said { channel: channel.clone(), generation, said };
            if inner.send(word).await.is_err() || is_end {
                return;
            }
        }
    }));
    Live { orders, task, generation, session: None, turn: None, seen: Seen::default(), _tools: None, used: 0 }
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
