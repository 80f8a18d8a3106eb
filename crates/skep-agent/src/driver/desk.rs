//! The state of the loop, and what the queue asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skep_core::audience::Loops;
use skep_core::backend::Said;
use skep_core::door::Door;
use skep_core::frames::Frames;
use skep_core::leader::Role;
use skep_core::meter::{Meter, Series};
use skep_core::permit::Permits;
use skep_core::queue::{self, Effect, Queue, Reaction, Row, State};
use skep_core::turn::TurnId;
use skep_proto::lease::Epoch;
use skep_proto::time::UnixMs;
use skep_proto::{EventId, PubKey, RawEvent, Refusal, Timestamp};
use skep_store::StoreError;
use skep_store::agent::{Delivery, MessageState};
use tokio::sync::mpsc;

use super::work::Live;
use super::{Command, Input, Setup};

/// What tasks of this loop tell it.
pub(super) enum Inner {
    /// The relay's answer about a turn's lease.
    Leased { message: queue::Message, attempt: u32, after: Option<Epoch>, answer: Result<Epoch, Refusal> },
    /// A turn's lease could not be kept.
    Fenced(TurnId),
    /// A word of a channel's backend; `None`: it is gone.
    Said { channel: String, generation: u64, said: Option<Said> },
}

/// Words of all backends that wait for the loop. A full channel makes the backends wait.
const INNER_MAX: usize = 256;

/// How long turns may take to end when the harness stops.
const STOP: Duration = Duration::from_secs(5);

/// How often what can wait is done: frames, liveness, leases.
const BEAT: Duration = Duration::from_secs(1);

pub(super) struct Desk<D> {
    pub setup: Setup,
    pub door: Arc<D>,
    pub me: PubKey,
    pub queue: Queue,
    pub meter: Meter,
    pub permits: Permits,
    pub loops: Loops,
    pub frames: Frames,
    pub role: Role,
    /// The channels that have, or had, a backend.
    pub live: BTreeMap<String, Live>,
    /// What the owner was told of, so that it is told once.
    pub told: BTreeSet<(PubKey, String)>,
    /// Messages whose sender could not be judged yet.
    pub unjudged: BTreeSet<EventId>,
    pub inner: mpsc::Sender<Inner>,
    inner_rx: Option<mpsc::Receiver<Inner>>,
    wake_at: Option<UnixMs>,
    started: Instant,
    pub generation: u64,
    /// The message that is being stored, until it is.
    arriving: Option<(Box<RawEvent>, String)>,
}

pub(super) fn unix_ms() -> UnixMs {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

pub(super) fn unix_now() -> Timestamp {
    unix_ms() / 1_000
}

/// From the operating system. Without any, nothing that must be fresh may be made.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("invariant: the operating system gives random bytes");
    bytes
}

pub(super) fn random_u64() -> u64 {
    u64::from_le_bytes(random())
}

impl<D: Door + 'static> Desk<D> {
    pub(super) fn open(setup: Setup, door: Arc<D>) -> Result<Self, StoreError> {
        let me = PubKey(setup.keys.x_only_public_key().0.serialize());
        let (inner, inner_rx) = mpsc::channel(INNER_MAX);
        let series = sessions(&setup)?;
        let rows = open_rows(&setup)?;
        let (queue, effects) = Queue::restore(setup.queue, rows, unix_ms());
        let owner = setup.audience.owner;
        let mut desk = Self {
            me,
            queue,
            meter: Meter::new(format!("skep/{}", setup.name), series),
            permits: Permits::new(setup.policy.clone(), owner),
            loops: Loops::default(),
            // Larger than whatever the instance before gave out.
            frames: Frames::new(None, unix_ms()),
            role: Role::Follows(None),
            live: BTreeMap::new(),
            told: BTreeSet::new(),
            unjudged: BTreeSet::new(),
            inner,
            inner_rx: Some(inner_rx),
            wake_at: None,
            started: Instant::now(),
            generation: 0,
            arriving: None,
            setup,
            door,
        };
        desk.carry_out(effects)?;
        if let Some(reason) = desk.setup.store.fact(PAUSED)? {
            desk.tell_queue(queue::Input::Paused(reason))?;
        }
        let stored: Vec<EventId> =
            desk.queue.rows().filter(|row| row.state == State::Stored).map(|row| row.message.id).collect();
        desk.unjudged.extend(stored);
        Ok(desk)
    }

    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> Result<(), StoreError> {
        let Some(mut inner) = self.inner_rx.take() else { return Ok(()) };
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        self.judge_again()?;
        loop {
            // Deadlines first: a backend that never stops talking must not outrun them.
            let wait = self.next_wake();
            if wait.is_zero() {
                self.wake()?;
            }
            tokio::select! {
                word = inner.recv() => if let Some(word) = word { self.hear(word)? },
                input = inputs.recv() => match input {
                    Some(input) => self.take(input)?,
                    None => return self.stop(inner).await,
                },
                () = tokio::time::sleep(wait) => {}
                _ = beat.tick() => self.beat()?,
            }
        }
    }

    /// Milliseconds of a clock that never goes back.
    pub(super) fn mono_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub(super) fn is_prompter(&self) -> bool {
        matches!(self.role, Role::Prompter(_))
    }

    fn take(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Event { event, relay } => self.receive(event, &relay),
            Input::Role(role) => {
                self.role = role;
                self.tell_queue(queue::Input::Leading(self.is_prompter()))?;
                if self.is_prompter() { self.judge_again() } else { Ok(()) }
            }
            Input::Delivered { id, relay, delivery: Delivery::Refused(said) } => self.refused(&id, &relay, &said),
            Input::Flushed(done) => {
                // Whoever waited may have gone.
                let _ = done.send(());
                Ok(())
            }
            Input::Delivered { .. } => Ok(()),
            Input::Command(command, answer) => {
                let said = self.obey(command)?;
                // Whoever asked may have gone.
                let _ = answer.send(said);
                Ok(())
            }
        }
    }

    fn hear(&mut self, word: Inner) -> Result<(), StoreError> {
        match word {
            Inner::Leased { message, attempt, after, answer } => self.leased(message, attempt, after, answer),
            Inner::Fenced(turn) => self.cancel_turn(&turn, skep_core::turn::Cancel::Fenced),
            Inner::Said { channel, generation, said } => self.said(&channel, generation, said),
        }
    }

    fn obey(&mut self, command: Command) -> Result<Result<String, String>, StoreError> {
        match command {
            Command::Pause(reason) => {
                self.setup.store.set_fact(PAUSED, Some(&reason))?;
                self.tell_queue(queue::Input::Paused(reason))?;
                Ok(Ok("paused: no new turns begin".into()))
            }
            Command::Resume => {
                self.setup.store.set_fact(PAUSED, None)?;
                self.tell_queue(queue::Input::Resumed)?;
                Ok(Ok("resumed".into()))
            }
            Command::Retry(id) => {
                let Some(row) = self.setup.store.message(&id)?.and_then(|message| row_of(&message.state)) else {
                    return Ok(Err("there is no such message".into()));
                };
                if matches!(row.state, State::Answered { .. }) {
                    return Ok(Err("it is answered already".into()));
                }
                self.tell_queue(queue::Input::Retry(row))?;
                Ok(Ok("it will be tried again".into()))
            }
            Command::Cancel { channel } => self.cancel_channel(channel.as_deref()),
            Command::Decide { nonce, option, by } => self.decide(nonce, option, by),
        }
    }

    /// Tells the queue, and does what it says.
    pub(super) fn tell_queue(&mut self, input: queue::Input) -> Result<(), StoreError> {
        let effects = self.queue.handle(unix_ms(), random_u64(), input);
        self.carry_out(effects)
    }

    fn carry_out(&mut self, effects: Vec<Effect>) -> Result<(), StoreError> {
        for effect in effects {
            match effect {
                Effect::Store(row) => self.store_row(&row)?,
                Effect::Prompt { message, attempt, after } => self.take_lease(message, attempt, after),
                // No backend of ours can be given a message while it works on another.
                Effect::Steer { turn, message } => {
                    self.tell_queue(queue::Input::Steered { id: message.id, turn, is_taken: false })?;
                }
                Effect::Cancel { turn, why } => self.cancel_turn(&turn, why)?,
                Effect::React { id, reaction } => self.react(&id, reaction)?,
                Effect::Notice { id, text } => self.notice(&id, &text)?,
                Effect::PauseAgent(reason) => self.pause(&reason)?,
                Effect::WakeAt(at) => self.wake_at = Some(at),
            }
        }
        Ok(())
    }

    fn store_row(&mut self, row: &Row) -> Result<(), StoreError> {
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
        self.unjudged.insert(id);
        self.judge(&id)
    }

    fn react(&mut self, id: &EventId, reaction: Reaction) -> Result<(), StoreError> {
        let Some(message) = self.setup.store.message(id)? else { return Ok(()) };
        let sign = match reaction {
            Reaction::Eyes => "👀",
            Reaction::Hourglass => "⏳",
        };
        self.publish_reaction(&message.event, sign)
    }

    fn pause(&mut self, reason: &str) -> Result<(), StoreError> {
        tracing::warn!(agent = %self.setup.name, reason, "paused");
        self.setup.store.set_fact(PAUSED, Some(reason))
    }

    fn next_wake(&self) -> Duration {
        let queue = self.wake_at.map(|at| at.saturating_sub(unix_ms()));
        let mono = self.mono_ms();
        let turns = self.live.values().filter_map(Live::wake_at).min().map(|at| at.saturating_sub(mono));
        let permits = self.permits.wake_at().map(|at| at.saturating_sub(mono));
        let first = queue.into_iter().chain(turns).chain(permits).min();
        Duration::from_millis(first.unwrap_or(BEAT.as_millis() as u64))
    }

    fn wake(&mut self) -> Result<(), StoreError> {
        if self.wake_at.is_some_and(|at| at <= unix_ms()) {
            self.wake_at = None;
            self.tell_queue(queue::Input::Tick)?;
        }
        let expired = self.permits.tick(self.mono_ms());
        self.settle_permits(expired)?;
        self.tick_turns()
    }

    fn beat(&mut self) -> Result<(), StoreError> {
        self.judge_again()?;
        self.renew_leases();
        self.close_idle();
        self.send_frames();
        Ok(())
    }

    fn judge_again(&mut self) -> Result<(), StoreError> {
        let waiting: Vec<EventId> = self.unjudged.iter().copied().collect();
        waiting.iter().try_for_each(|id| self.judge(id))
    }

    /// Ends every turn, with its bill, then every backend; what they were doing stays unanswered.
    async fn stop(mut self, mut inner: mpsc::Receiver<Inner>) -> Result<(), StoreError> {
        self.tell_queue(queue::Input::Paused("the harness stops".into()))?;
        for turn in self.running_turns(None) {
            self.cancel_turn(&turn, skep_core::turn::Cancel::Shutdown)?;
        }
        let deadline = Instant::now() + STOP;
        while !self.running_turns(None).is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, inner.recv()).await {
                Ok(Some(word)) => self.hear(word)?,
                _ => break,
            }
        }
        self.end_turns()?;
        self.tell_queue(queue::Input::Leading(false))?;
        let tasks: Vec<_> = std::mem::take(&mut self.live).into_values().map(Live::into_task).collect();
        for task in tasks {
            task.abort();
            // Aborted on purpose: dropping a backend ends its processes.
            let _ = task.await;
        }
        Ok(())
    }
}

/// The fact that an agent is paused, with the reason.
pub const PAUSED: &str = "paused";

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

/// Messages that are not over. One whose turn ended with a reply in the outbox is answered: the process died between.
fn open_rows(setup: &Setup) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    for message in setup.store.open_messages()? {
        let Some(mut row) = row_of(&message.state) else { continue };
        match setup.store.answer_to(&message.event.id)? {
            Some(event) => {
                row.state = State::Answered { event: Some(event) };
                setup.store.set_state(&message.event.id, &state_of(&row))?;
            }
            None => rows.push(row),
        }
    }
    Ok(rows)
}

fn sessions(setup: &Setup) -> Result<Vec<(String, Series)>, StoreError> {
    let rows = setup.store.sessions()?;
    Ok(rows.into_iter().filter_map(|row| Some((row.session, serde_json::from_str(&row.detail).ok()?))).collect())
}
