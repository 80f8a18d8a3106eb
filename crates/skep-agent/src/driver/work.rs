//! Turns: from the lease and the journal through the backend, to where the outcome is known.

use skep_core::backend::{Ask, AskId, Order, Said, Session};
use skep_core::door::Door;
use skep_core::meter::Observed;
use skep_core::permit::{self, Nonce, Origin, Permits};
use skep_core::queue;
use skep_core::turn::{Cancel, Effect, Turn, TurnId};
use skep_proto::lease::Epoch;
use skep_proto::{EventId, RawEvent};
use skep_store::StoreError;
use skep_store::agent::{SessionRow, TurnRow};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::desk::{Desk, Inner, Prompt};
use super::earlier::Seen;
use super::letter::Letter;
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
    pub(super) seen: Seen,
    /// Its tools end with it.
    _tools: Option<AbortOnDropHandle<()>>,
    /// By the steady clock.
    pub(super) used: u64,
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
    pub(super) fn keep_session(&mut self, channel: &str, session: &str) -> Result<(), StoreError> {
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
