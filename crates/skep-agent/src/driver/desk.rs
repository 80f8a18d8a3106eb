//! The state of the loop, and what it does with whatever it wakes up for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use skep_core::audience::Loops;
use skep_core::backend::Said;
use skep_core::budget::Budget;
use skep_core::door::{Accepted, Door};
use skep_core::frames::Frames;
use skep_core::leader::Role;
use skep_core::meter::{Meter, Series};
use skep_core::pause::Pauses;
use skep_core::permit::Permits;
use skep_core::queue::{self, Queue, Row, State, Told};
use skep_core::turn::TurnId;
use skep_proto::lease::Epoch;
use skep_proto::pause::By;
use skep_proto::time::UnixMs;
use skep_proto::{EventId, PubKey, RawEvent, Refusal, Timestamp, limits};
use skep_store::StoreError;
use skep_store::agent::Delivery;
use tokio::sync::mpsc;

use super::effects::{row_of, state_of};
use super::look::{Looked, Siblings};
use super::members::{Members, Of};
use super::sealed::Held;
use super::tools::{AllWaiting, Called};
use super::work::Live;
use super::{Command, Input, Setup};

/// What tasks of this loop tell it.
pub(super) enum Inner {
    /// The relay's answer about a turn's lease.
    Leased {
        prompt: Prompt,
        answer: Result<Epoch, Refusal>,
        /// What was said before it, as the relay has it.
        earlier: Vec<RawEvent>,
    },
    /// What is there of what the agent says of itself; `None`: nobody answered.
    Introduced(Option<Vec<RawEvent>>),
    /// Whether somebody is a member; `None`: nobody answered.
    Member { of: Of, is_member: Option<bool> },
    /// A turn's lease could not be kept.
    Fenced(TurnId),
    /// The relay's answer about the end of a held reply's lease.
    Completed { turn: String, answer: Result<Accepted, Refusal> },
    /// A backend uses a tool.
    Called(Box<Called>),
    /// What was looked up for one.
    Looked(Box<Looked>),
    /// A word of a channel's backend; `None`: it is gone.
    Said { channel: String, generation: u64, said: Option<Said> },
}

/// What the loop wakes up for.
enum Event {
    Word(Inner),
    Input(Input),
    /// A deadline.
    Due,
}

/// A turn that is about to begin.
pub(super) struct Prompt {
    pub turn: TurnId,
    pub message: queue::Message,
    pub attempt: u32,
    /// The epoch of a turn whose end nobody saw.
    pub after: Option<Epoch>,
}

/// Words of all backends that wait for the loop. A full channel makes the backends wait.
const INNER_MAX: usize = 256;

/// How long turns may take to end when the harness stops.
const STOP: Duration = Duration::from_millis(limits::STOP_TURNS_MS);

/// How often what can wait is done: frames, liveness, leases.
const BEAT_MS: u64 = 1_000;

/// The round of the process that this time falls into: as long as a claim is good for, and half of that off the rounds
/// in which leads look, so that the lead has just looked.
pub(super) fn round(at_ms: u64) -> std::ops::Range<u64> {
    const EVERY: u64 = limits::LEADER_REFRESH_MS;
    let middle = (at_ms + EVERY / 2) / EVERY * EVERY;
    middle.saturating_sub(EVERY / 2)..middle + EVERY / 2
}

pub(super) struct Desk<D> {
    pub setup: Setup,
    pub door: Arc<D>,
    pub me: PubKey,
    pub queue: Queue,
    pub meter: Meter,
    pub budget: Budget,
    pub permits: Permits,
    pub loops: Loops,
    /// Calls of tools that wait for a permission.
    pub waiting: AllWaiting,
    /// The agents that tools found.
    pub siblings: Arc<Siblings>,
    pub frames: Frames,
    pub role: Role,
    /// When it was last asked whether we may act, by the wall clock: that one goes on while the process is stopped.
    asked_lead_at: UnixMs,
    /// Whether all that was said before this start is known. Where there are no leases, what has an answer already is
    /// known by that alone.
    is_caught_up: bool,
    /// Why no turns begin: what was said here, and by the owner.
    pub pauses: Pauses,
    /// Whether the owner's word would be heard: where a lease lets turns begin, none does before.
    hears_owner: bool,
    /// Answers of other instances that came before their messages.
    pub answered: BTreeMap<EventId, EventId>,
    /// Words of other instances that came before the messages that they are about.
    pub told: BTreeMap<EventId, Told>,
    /// The channels that have, or had, a backend.
    pub live: BTreeMap<String, Live>,
    /// Messages whose sender could not be judged yet, and whose membership is waited for. `None`: not looked at yet.
    pub unjudged: BTreeMap<EventId, Option<Of>>,
    pub members: Members,
    /// When it is seen to what the agent says of itself, by the steady clock.
    pub introduces_at: u64,
    /// Replies that wait for the end of their leases, by turn.
    pub held: BTreeMap<String, Held>,
    /// What was said in direct messages: the id inside, and the event that it went out in. The oldest go first.
    pub said_sealed: VecDeque<(EventId, EventId)>,
    pub inner: mpsc::Sender<Inner>,
    inner_rx: Option<mpsc::Receiver<Inner>>,
    /// When the queue wants to be told the time.
    pub wake_at: Option<UnixMs>,
    pub generation: u64,
    /// When the last message arrived.
    arrived: UnixMs,
    /// The message that is being stored, until it is.
    pub arriving: Option<(Box<RawEvent>, String)>,
    /// When the owner was last told whether this instance leads, by the clock that never goes back.
    pub role_told_ms: Option<u64>,
    /// When the last beat was, by the steady clock.
    beaten_at: u64,
}

impl<D: Door + 'static> Desk<D> {
    pub(super) fn open(setup: Setup, door: Arc<D>) -> Result<Self, StoreError> {
        let me = PubKey(setup.keys.x_only_public_key().0.serialize());
        let (inner, inner_rx) = mpsc::channel(INNER_MAX);
        let series = sessions(&setup)?;
        let rows = open_rows(&setup)?;
        let arrived = rows.iter().map(|row| row.message.arrived_at).max().unwrap_or(0);
        let now = setup.host.unix_ms();
        let (queue, effects) = Queue::restore(setup.queue, rows, now);
        let owner = setup.audience.owner;
        let mut desk = Self {
            me,
            queue,
            budget: super::purse::restore(&setup, me, now / 1_000)?,
            meter: Meter::new(format!("skep/{}", setup.name), series),
            permits: Permits::new(setup.policy.clone(), owner),
            loops: Loops::default(),
            waiting: AllWaiting::new(),
            siblings: Arc::default(),
            // Larger than whatever the instance before gave out.
            frames: Frames::new(None, now).of_instance(&setup.instance),
            role: Role::Follows(None),
            asked_lead_at: 0,
            is_caught_up: setup.has_leases,
            pauses: super::pause::pauses(&setup.store)?,
            hears_owner: !setup.has_leases || setup.hears_owner,
            answered: BTreeMap::new(),
            told: BTreeMap::new(),
            live: BTreeMap::new(),
            unjudged: BTreeMap::new(),
            members: Members::default(),
            introduces_at: 0,
            held: BTreeMap::new(),
            said_sealed: VecDeque::new(),
            inner,
            inner_rx: Some(inner_rx),
            wake_at: None,
            generation: 0,
            arrived,
            arriving: None,
            role_told_ms: None,
            beaten_at: 0,
            setup,
            door,
        };
        desk.carry_out(effects)?;
        if let Some(held) = desk.pauses.here.clone() {
            desk.tell_queue(queue::Input::Paused(held.reason))?;
        }
        desk.hold()?;
        if let Some(until) = desk.setup.store.fact(BUSY)?.and_then(|until| until.parse().ok()) {
            desk.tell_queue(queue::Input::Busy(until))?;
        }
        let stored: Vec<EventId> =
            desk.queue.rows().filter(|row| row.state == State::Stored).map(|row| row.message.id).collect();
        desk.unjudged.extend(stored.into_iter().map(|id| (id, None)));
        // What a relay said and the instance before did not hear.
        let home = desk.setup.relays.first().cloned().unwrap_or_default();
        for (answer, said) in desk.setup.store.refused_answers(&home)? {
            desk.refused(&answer, &home, &said)?;
        }
        desk.take_up_held()?;
        Ok(desk)
    }

    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> Result<(), StoreError> {
        let Some(mut inner) = self.inner_rx.take() else { return Ok(()) };
        self.judge_again()?;
        loop {
            let event = tokio::select! {
                Some(word) = inner.recv() => Event::Word(word),
                input = inputs.recv() => match input {
                    Some(input) => Event::Input(input),
                    None => return self.stop(inner).await,
                },
                () = tokio::time::sleep(self.next_wake()) => Event::Due,
            };
            self.check_lead().await?;
            // Deadlines first: a backend that never stops talking must not outrun them.
            if self.due_in() == Some(0) {
                self.wake()?;
            }
            if self.beat_in() == 0 {
                self.beat()?;
            }
            match event {
                Event::Word(word) => self.hear(word)?,
                Event::Input(Input::Role(role)) => self.take_role(role).await?,
                Event::Input(input) => self.take(input)?,
                Event::Due => {}
            }
        }
    }

    /// Asks whether we still lead, when the last word is older than a claim is good for. A process that was stopped,
    /// or a machine that slept, goes on with what it knew; meanwhile another may have begun what we would do now.
    async fn check_lead(&mut self) -> Result<(), StoreError> {
        let now = self.unix_ms();
        let is_fresh = |at: UnixMs| now.abs_diff(at) < limits::LEADER_REFRESH_MS;
        if !self.is_prompter() || is_fresh(self.asked_lead_at) || is_fresh(self.setup.lead.led_at()) {
            return Ok(());
        }
        if self.setup.lead.may_act().await {
            self.asked_lead_at = now;
            return Ok(());
        }
        tracing::warn!(agent = %self.setup.name, "this instance does not lead any more");
        self.role = Role::Follows(None);
        self.tell_role();
        self.tell_queue(queue::Input::Leading(false))
    }

    /// A role is as old as it waited to be heard.
    async fn take_role(&mut self, role: Role) -> Result<(), StoreError> {
        self.role = role;
        self.asked_lead_at = 0;
        self.check_lead().await?;
        self.tell_role();
        self.tell_queue(queue::Input::Leading(self.may_prompt()))?;
        if self.is_prompter() { self.judge_again() } else { Ok(()) }
    }

    pub(super) fn unix_ms(&self) -> UnixMs {
        self.setup.host.unix_ms()
    }

    pub(super) fn unix_now(&self) -> Timestamp {
        self.setup.host.unix_now()
    }

    pub(super) fn random<const N: usize>(&self) -> [u8; N] {
        self.setup.host.random()
    }

    /// Milliseconds of a clock that never goes back.
    pub(super) fn mono_ms(&self) -> u64 {
        self.setup.host.steady_ms()
    }

    /// The time of an arrival; no two are equal, whatever the clock does: it is the order in a channel.
    pub(super) fn arrival(&mut self) -> UnixMs {
        self.arrived = self.unix_ms().max(self.arrived + 1);
        self.arrived
    }

    pub(super) fn is_prompter(&self) -> bool {
        matches!(self.role, Role::Prompter(_))
    }

    fn may_prompt(&self) -> bool {
        self.is_prompter() && self.is_caught_up
    }

    fn take(&mut self, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Event { event, relay } => self.receive(event, &relay),
            Input::CaughtUp => {
                self.is_caught_up = true;
                self.tell_queue(queue::Input::Leading(self.may_prompt()))
            }
            Input::HearsOwner(hears) => {
                self.hears_owner = hears || !self.setup.has_leases;
                self.hold()
            }
            Input::Delivered { id, relay, delivery: Delivery::Refused(said) } => self.refused(&id, &relay, &said),
            Input::Flushed(done) => {
                // Whoever waited may have gone.
                let _ = done.send(());
                Ok(())
            }
            // A role is taken where it can be checked.
            Input::Delivered { .. } | Input::Role(_) => Ok(()),
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
            Inner::Leased { prompt, answer, earlier } => self.leased(prompt, answer, earlier),
            Inner::Introduced(found) => self.introduced(found),
            Inner::Member { of, is_member } => self.learn_member(of, is_member),
            Inner::Fenced(turn) => self.cancel_turn(&turn, skep_core::turn::Cancel::Fenced),
            Inner::Called(called) => self.called(*called),
            Inner::Looked(looked) => self.looked(*looked),
            Inner::Completed { turn, answer } => self.completed(&turn, answer),
            Inner::Said { channel, generation, said } => self.said(&channel, generation, said),
        }
    }

    fn obey(&mut self, command: Command) -> Result<Result<String, String>, StoreError> {
        match command {
            Command::Pause(reason) => self.pause_here(By::Here, reason).map(Ok),
            Command::Resume => self.resume_here().map(Ok),
            Command::Heed(event) => self.heed_local(&event),
            Command::Retry(id) => {
                let Some(row) = self.setup.store.message(&id)?.and_then(|message| row_of(&message.state)) else {
                    return Ok(Err("there is no such message".into()));
                };
                if matches!(row.state, State::Answered { .. }) {
                    return Ok(Err("it is answered already".into()));
                }
                if self.queue.knows(&id) {
                    return Ok(Ok("it is not over: it waits, or is being answered".into()));
                }
                // Whom a loop stopped may go on with the message that the owner lets in.
                if row.state == State::Refused {
                    self.loops.allow(self.me, &row.message.from);
                }
                self.tell_queue(queue::Input::Retry(row))?;
                Ok(Ok("it will be tried again".into()))
            }
            Command::Cancel { channel } => self.cancel_channel(channel.as_deref()),
            Command::Decide { nonce, option, by } => self.decide(nonce, option, by),
        }
    }

    /// Tells the queue whether anything but a pause of this home holds turns back.
    pub(super) fn hold(&mut self) -> Result<(), StoreError> {
        let is_held = !self.hears_owner || self.pauses.of_owner().is_some();
        self.tell_queue(queue::Input::Held(is_held))
    }

    fn next_wake(&self) -> Duration {
        Duration::from_millis(self.due_in().map_or(self.beat_in(), |due| due.min(self.beat_in())))
    }

    /// Milliseconds until something has its time.
    fn due_in(&self) -> Option<u64> {
        let queue = self.wake_at.map(|at| at.saturating_sub(self.unix_ms()));
        let mono = self.mono_ms();
        let turns = self.live.values().filter_map(Live::wake_at).min().map(|at| at.saturating_sub(mono));
        let permits = self.permits.wake_at().map(|at| at.saturating_sub(mono));
        queue.into_iter().chain(turns).chain(permits).min()
    }

    /// Milliseconds until the next beat. With nothing to do in it there is one as often as the role is told, and all
    /// agents of a process have it together: fifty idle ones are to cost nothing.
    fn beat_in(&self) -> u64 {
        let is_busy = self.live.values().any(Live::is_busy)
            || !self.unjudged.is_empty()
            || !self.held.is_empty()
            || self.frames.wake_at().is_some()
            || self.has_to_introduce();
        let due = if is_busy { self.beaten_at + BEAT_MS } else { round(self.beaten_at).end };
        due.saturating_sub(self.mono_ms())
    }

    fn wake(&mut self) -> Result<(), StoreError> {
        if self.wake_at.is_some_and(|at| at <= self.unix_ms()) {
            self.wake_at = None;
            self.tell_queue(queue::Input::Tick)?;
        }
        let expired = self.permits.tick(self.mono_ms());
        self.settle_permits(expired)?;
        self.tick_turns()
    }

    fn beat(&mut self) -> Result<(), StoreError> {
        self.beaten_at = self.mono_ms();
        self.ask_members_again();
        self.renew_leases();
        self.complete_held();
        self.introduce()?;
        self.close_idle();
        self.tell_role_again();
        if let Some(purse) = &self.setup.purse {
            purse.tick(self.unix_now());
        }
        self.send_frames();
        self.forget_gone()
    }

    pub(super) fn judge_again(&mut self) -> Result<(), StoreError> {
        let waiting: Vec<EventId> = self.unjudged.keys().copied().collect();
        waiting.iter().try_for_each(|id| self.judge(id))
    }

    /// Those that waited for one word.
    pub(super) fn judge_those_of(&mut self, of: &Of) -> Result<(), StoreError> {
        let is_theirs = |wanted: &Option<Of>| wanted.as_ref().is_none_or(|wanted| wanted == of);
        let waiting: Vec<EventId> =
            self.unjudged.iter().filter(|(_, wanted)| is_theirs(wanted)).map(|(id, _)| *id).collect();
        waiting.iter().try_for_each(|id| self.judge(id))
    }

    /// Ends every turn, with its bill, then every backend; what they were doing stays unanswered.
    async fn stop(mut self, mut inner: mpsc::Receiver<Inner>) -> Result<(), StoreError> {
        self.tell_queue(queue::Input::Paused(STOPS.into()))?;
        for turn in self.running_turns(None) {
            self.cancel_turn(&turn, skep_core::turn::Cancel::Shutdown)?;
        }
        let deadline = tokio::time::Instant::now() + STOP;
        while !self.running_turns(None).is_empty() {
            match tokio::time::timeout_at(deadline, inner.recv()).await {
                Ok(Some(word)) => self.hear(word)?,
                _ => break,
            }
        }
        self.end_turns()?;
        self.give_back_rest();
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

/// Why no turn begins while the harness stops: another instance may go on at once.
pub(super) const STOPS: &str = "the harness stops";

/// The fact that the provider said not to come back before a time, in milliseconds since 1970.
pub(super) const BUSY: &str = "busy_until";

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
