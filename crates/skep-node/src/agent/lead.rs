//! Which instance leads: the files, the relay's lease and the clock around [`skep_core::leader::Leader`].
//!
//! One task owns the machine. It looks at the facts every 5 s, when the lock file changes, when the hold becomes
//! free, and when the relay says something; the lock file is locked from before it is read until what follows from
//! it is written. A role that changes is told to the driver.
//! Lifetime: until [`Lead::release`]. A process that dies frees its hold, and whoever waits for that leads at once.
//! Must not: wait for the driver (a lead that is not renewed is lost), or act on a fact of before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use skep_agent::driver::Input;
use skep_core::door::Door;
use skep_core::leader::{Effect, Facts, Hold, Leader, Mode, RelayLease, Role};
use skep_proto::time::UnixMs;
use skep_proto::{RawEvent, Refusal, limits};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::door::RemoteDoor;
use super::locks::{Held, Locks, pid_of};
use super::notice::Notice;
use super::prompter::{Now, Prompter, Question};
use super::reconnect::Connection;
use crate::client::Credentials;
use crate::clock::{unix_now_ms, until_round};

/// How long the relay may take to take a lease back; then it runs out by itself.
const RELEASE_WAIT: Duration = Duration::from_secs(1);

/// Orders that wait; whoever gives more waits.
const ORDERS_MAX: usize = 16;

/// What leadership is made of.
pub struct Settings {
    pub locks: Locks,
    /// From [`Locks::new_instance`].
    pub instance: String,
    pub mode: Mode,
    /// Who asks for the relay's lease, and where. `None`: no relay of this agent grants leases.
    pub lease: Option<(Credentials, RemoteDoor)>,
    /// State events (kind 30480) as links bring them.
    pub news: mpsc::Receiver<RawEvent>,
    /// The driver's; weak, so that its inputs end when the links do.
    pub inputs: mpsc::WeakSender<Input>,
}

/// Who leads, as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub role: Role,
    /// Whether another machine could be kept from prompting too.
    pub lease: RelayLease,
    /// What the relay said, where it gave no lease.
    pub said: Option<String>,
}

enum Order {
    Claim,
    StandDown,
    MayAct(oneshot::Sender<bool>),
    Release(oneshot::Sender<()>),
}

/// A handle on the task.
#[derive(Debug, Clone)]
pub struct Lead {
    orders: mpsc::Sender<Order>,
    standing: watch::Receiver<Standing>,
    led_at: Arc<AtomicU64>,
}

impl Lead {
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        let notice = Notice::new(settings.locks.directory(), settings.locks.lock_name())?;
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let lease = if settings.lease.is_some() { RelayLease::Unknown } else { RelayLease::None };
        let (says, standing) = watch::channel(Standing { role: Role::Follows(None), lease, said: None });
        let (answer, answers) = mpsc::channel(1);
        let (free, freed) = mpsc::channel(1);
        let leader = Leader::new(settings.instance.clone(), std::process::id(), settings.mode);
        let local = Local { locks: settings.locks, leader, hold: None, hold_state: Hold::Others, written: None };
        let led_at = Arc::<AtomicU64>::default();
        let (prompter, door) = match settings.lease {
            Some((credentials, door)) => (Some(Prompter::new(settings.instance, credentials)), Some(door)),
            None => (None, None),
        };
        let connection = door.as_ref().map(RemoteDoor::connection);
        let task = Task {
            local: Some(local),
            prompter,
            door,
            inputs: settings.inputs,
            says,
            untold: None,
            answer,
            free,
            is_waiting: false,
            led_at: Arc::clone(&led_at),
        };
        tokio::spawn(task.run(Inboxes { orders: inbox, news: settings.news, answers, freed, notice, connection }));
        Ok(Self { orders, standing, led_at })
    }

    /// Who leads, as it changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// This instance is to lead, whoever does.
    pub async fn claim(&self) {
        // A task that is gone has released all that it had.
        let _ = self.orders.send(Order::Claim).await;
    }

    /// Another instance is to lead.
    pub async fn stand_down(&self) {
        let _ = self.orders.send(Order::StandDown).await;
    }

    /// Whether this instance may act now, by the facts of now.
    pub async fn may_act(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.orders.send(Order::MayAct(reply)).await.is_ok() && answer.await.unwrap_or(false)
    }

    /// Gives everything back and ends.
    pub async fn release(&self) {
        let (reply, done) = oneshot::channel();
        if self.orders.send(Order::Release(reply)).await.is_ok() {
            let _ = done.await;
        }
    }
}

impl skep_agent::driver::Lead for Lead {
    fn may_act(&self) -> BoxFuture<'_, bool> {
        Box::pin(Self::may_act(self))
    }

    fn led_at(&self) -> UnixMs {
        self.led_at.load(Ordering::Acquire)
    }
}

type Answer = (Question, Result<skep_core::door::Accepted, Refusal>);

struct Inboxes {
    orders: mpsc::Receiver<Order>,
    news: mpsc::Receiver<RawEvent>,
    answers: mpsc::Receiver<Answer>,
    freed: mpsc::Receiver<Held>,
    notice: Notice,
    /// Of the door.
    connection: Option<watch::Receiver<Connection>>,
}

/// What happened.
enum Event {
    Order(Order),
    News(RawEvent),
    Answer(Answer),
    Freed(Held),
    Connected,
    Told,
    /// The file changed.
    Changed,
    /// Time passed.
    Look,
}

/// The task that owns the machine.
struct Task {
    /// Away while it is at the files, where blocking is allowed.
    local: Option<Local>,
    prompter: Option<Prompter>,
    door: Option<RemoteDoor>,
    inputs: mpsc::WeakSender<Input>,
    says: watch::Sender<Standing>,
    /// A role that the driver was not told yet.
    untold: Option<Role>,
    answer: mpsc::Sender<Answer>,
    free: mpsc::Sender<Held>,
    /// A thread waits for the hold.
    is_waiting: bool,
    /// When the last look began, if it found that this instance prompts; otherwise 0.
    led_at: Arc<AtomicU64>,
}

impl Task {
    async fn run(mut self, mut inboxes: Inboxes) {
        self.look(Local::tick).await;
        let mut due = self.due();
        loop {
            let event = self.next(&mut inboxes, due).await;
            match event {
                Event::Order(Order::Release(done)) => {
                    self.release().await;
                    // Whoever asked may have gone.
                    let _ = done.send(());
                    return;
                }
                Event::Order(Order::Claim) => {
                    self.prompter.iter_mut().for_each(Prompter::claim);
                    self.look(|local, lease| {
                        local.leader.claim();
                        local.tick(lease)
                    })
                    .await;
                }
                Event::Order(Order::StandDown) => self.look(Local::stand_down).await,
                Event::Order(Order::MayAct(reply)) => {
                    let lease = self.lease();
                    let may_act = self.at_files(move |local| local.may_act(lease)).await;
                    let _ = reply.send(may_act);
                    if may_act || !matches!(self.says.borrow().role, Role::Prompter(_)) {
                        continue;
                    }
                    // Whoever asked steps back by it, so it is told how things stand, changed or not.
                    self.look(Local::tick).await;
                    self.untold = Some(self.says.borrow().role.clone());
                }
                Event::News(event) => {
                    // That our own lease was renewed is no reason to look at the files.
                    if self.prompter.as_mut().is_some_and(|prompter| prompter.noted(&event, now())) {
                        self.look(Local::tick).await;
                    }
                }
                Event::Answer((question, answer)) => {
                    let before = self.lease();
                    self.prompter.iter_mut().for_each(|prompter| prompter.answered(&question, answer.clone(), now()));
                    // Renewed: nothing follows from it.
                    if !matches!(before, RelayLease::Held(_)) || self.lease() != before {
                        self.look(Local::tick).await;
                    }
                }
                Event::Freed(held) => {
                    self.is_waiting = false;
                    self.at_files(|local| local.keep(held)).await;
                    self.look(Local::tick).await;
                }
                Event::Connected => {
                    self.prompter.iter_mut().for_each(Prompter::connected);
                    self.look(Local::tick).await;
                }
                Event::Told => continue,
                // One read of a small file, instead of a thread, a lock and all that follows for each write of ours.
                Event::Changed if self.local.as_ref().is_some_and(Local::is_as_written) => continue,
                Event::Changed => self.look(Local::tick).await,
                Event::Look => self.look(Local::tick).await,
            }
            due = self.due();
        }
    }

    async fn next(&mut self, inboxes: &mut Inboxes, due: Instant) -> Event {
        let Inboxes { orders, news, answers, freed, notice, connection } = inboxes;
        tokio::select! {
            biased;
            Some(held) = freed.recv() => Event::Freed(held),
            Some(answer) = answers.recv() => Event::Answer(answer),
            order = orders.recv() => match order {
                Some(order) => Event::Order(order),
                // Nobody holds a handle any more.
                None => Event::Order(Order::Release(oneshot::channel().0)),
            },
            () = tell(&self.inputs, &mut self.untold), if self.untold.is_some() => Event::Told,
            () = connected(connection) => Event::Connected,
            Some(event) = news.recv() => Event::News(event),
            changed = notice.changed() => {
                if let Err(error) = changed {
                    tracing::warn!(%error, "changes of the leader lock are not seen at once");
                    sleep_until(due).await;
                }
                Event::Changed
            }
            () = sleep_until(due) => Event::Look,
        }
    }

    fn due(&self) -> Instant {
        let now = now();
        let lease = self.prompter.as_ref().and_then(|prompter| prompter.wake(now));
        let tick = until_round(limits::LEADER_REFRESH_MS);
        now.steady + lease.map_or(tick, |wait| wait.min(tick))
    }

    fn lease(&self) -> RelayLease {
        self.prompter.as_ref().map_or(RelayLease::None, |prompter| prompter.lease(now()))
    }

    /// Looks at the files, carries out what follows, and tells the role.
    async fn look(&mut self, at: impl FnOnce(&mut Local, RelayLease) -> (Role, Vec<Effect>) + Send + 'static) {
        let (lease, began) = (self.lease(), unix_now_ms());
        let (role, effects, hold) = self
            .at_files(move |local| {
                let (role, effects) = at(local, lease);
                (role, effects, local.hold_state)
            })
            .await;
        for effect in effects {
            match effect {
                Effect::AskLease => self.ask(hold == Hold::Mine),
                Effect::FreeLease => self.free_lease(),
                // At the files: done. The abort is the driver's, by its new role.
                Effect::Write(_) | Effect::Truncate | Effect::TakeHold | Effect::FreeHold | Effect::Abort => {}
            }
        }
        if hold == Hold::Others {
            self.wait_for_hold().await;
        }
        self.say(role, began);
    }

    fn say(&mut self, role: Role, looked_at: UnixMs) {
        let led_at = if matches!(role, Role::Prompter(_)) { looked_at } else { 0 };
        self.led_at.store(led_at, Ordering::Release);
        let said = self.prompter.as_ref().and_then(Prompter::said).map(str::to_owned);
        let standing = Standing { role, lease: self.lease(), said };
        let before = self.says.send_replace(standing.clone());
        if before.role != standing.role {
            tracing::info!(role = ?standing.role, "leadership");
            self.untold = Some(standing.role);
        }
    }

    fn ask(&mut self, has_hold: bool) {
        let (Some(prompter), Some(door)) = (&mut self.prompter, &self.door) else { return };
        let Some(question) = prompter.ask(now(), has_hold) else { return };
        let (door, answer) = (door.clone(), self.answer.clone());
        tokio::spawn(async move {
            let said = door.submit(question.event.clone()).await;
            // A task that has ended needs no answer.
            let _ = answer.send((question, said)).await;
        });
    }

    fn free_lease(&mut self) {
        let (Some(prompter), Some(door)) = (&mut self.prompter, &self.door) else { return };
        let Some(event) = prompter.release(now()) else { return };
        let door = door.clone();
        // If it does not arrive, the lease runs out by itself.
        tokio::spawn(async move { drop(door.submit(event).await) });
    }

    async fn release(&mut self) {
        // The lease first: whoever takes the hold then finds it free.
        if let (Some(prompter), Some(door)) = (&mut self.prompter, &self.door)
            && let Some(event) = prompter.release(now())
        {
            let _ = timeout(RELEASE_WAIT, door.submit(event)).await;
        }
        let lease = self.lease();
        self.at_files(move |local| local.release(lease)).await;
        self.say(Role::Follows(None), 0);
    }

    /// Has a thread wait for the hold, as long as another has it.
    async fn wait_for_hold(&mut self) {
        if self.is_waiting {
            return;
        }
        let free = self.free.clone();
        let locks = self.at_files(|local| local.locks.clone()).await;
        // Not one of the runtime's: it may wait for days, and the runtime waits for its own when it ends. When nobody
        // wants the hold any more, it is dropped as soon as the thread gets it.
        let wait = move || {
            if let Some(held) = locks.await_hold() {
                let _ = free.blocking_send(held);
            }
        };
        self.is_waiting = std::thread::Builder::new().name("skep-hold".into()).spawn(wait).is_ok();
    }

    /// Works on the files where blocking is allowed.
    async fn at_files<T: Send + 'static>(&mut self, work: impl FnOnce(&mut Local) -> T + Send + 'static) -> T {
        let mut local = self.local.take().expect("invariant: the task waits for the files before it goes on");
        let worked = tokio::task::spawn_blocking(move || {
            let done = work(&mut local);
            (local, done)
        });
        match worked.await {
            Ok((local, done)) => {
                self.local = Some(local);
                done
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is ending, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Tells the driver a role, when it has room. Cancelled, nothing was told.
async fn tell(inputs: &mpsc::WeakSender<Input>, untold: &mut Option<Role>) {
    let Some(inputs) = inputs.upgrade() else {
        *untold = None;
        return;
    };
    let room = inputs.reserve().await;
    if let Some(role) = untold.take()
        && let Ok(room) = room
    {
        room.send(Input::Role(role));
    }
}

/// Waits until there is a connection again.
async fn connected(connection: &mut Option<watch::Receiver<Connection>>) {
    while let Some(connection) = connection.as_mut() {
        if connection.changed().await.is_err() {
            break;
        }
        if *connection.borrow_and_update() == Connection::Live {
            return;
        }
    }
    std::future::pending().await
}

fn now() -> Now {
    Now { wall: unix_now_ms(), steady: Instant::now() }
}

/// The machine and its files.
struct Local {
    locks: Locks,
    leader: Leader,
    hold: Option<Held>,
    hold_state: Hold,
    /// What the lock file held when this instance wrote it last.
    written: Option<Vec<u8>>,
}

impl Local {
    fn tick(&mut self, lease: RelayLease) -> (Role, Vec<Effect>) {
        self.with_file(lease, |leader, now, facts| leader.tick(now, facts))
    }

    fn stand_down(&mut self, lease: RelayLease) -> (Role, Vec<Effect>) {
        self.with_file(lease, |leader, now, facts| leader.stand_down(now, facts))
    }

    fn release(&mut self, lease: RelayLease) {
        self.with_file(lease, |leader, now, facts| (Role::Follows(None), leader.release(now, facts)));
        self.hold = None;
    }

    fn may_act(&self, lease: RelayLease) -> bool {
        let file = self.locks.lock().read();
        self.leader.may_act(unix_now_ms(), &Facts { pid: pid_of(&file), file, hold: self.hold_state, lease })
    }

    /// The hold that a thread got for us.
    fn keep(&mut self, held: Held) {
        self.hold.get_or_insert(held);
        self.hold_state = Hold::Mine;
    }

    /// Whether the lock file is as this instance left it.
    fn is_as_written(&self) -> bool {
        self.written.as_ref().is_some_and(|written| self.locks.still_says(written))
    }

    /// Asks the machine with the file locked, and does at the files what it says.
    fn with_file(
        &mut self,
        lease: RelayLease,
        ask: impl FnOnce(&mut Leader, u64, &Facts) -> (Role, Vec<Effect>),
    ) -> (Role, Vec<Effect>) {
        let locked = self.locks.lock();
        self.try_hold();
        let file = locked.read();
        let facts = Facts { pid: pid_of(&file), file, hold: self.hold_state, lease };
        let (role, effects) = ask(&mut self.leader, unix_now_ms(), &facts);
        for effect in &effects {
            let done = match effect {
                Effect::Write(claim) => locked.write(claim).map(|written| self.written = written),
                Effect::Truncate => {
                    self.written = None;
                    locked.truncate()
                }
                Effect::FreeHold => {
                    self.hold = None;
                    self.hold_state = Hold::Unavailable;
                    Ok(())
                }
                // It was tried above; a thread waits for it.
                Effect::TakeHold | Effect::AskLease | Effect::FreeLease | Effect::Abort => Ok(()),
            };
            if let Err(error) = done {
                tracing::warn!(%error, "the leader lock cannot be written");
            }
        }
        (role, effects)
    }

    fn try_hold(&mut self) {
        if self.hold.is_some() {
            return;
        }
        self.hold_state = match self.locks.take_hold() {
            Ok(held) => {
                self.hold = Some(held);
                Hold::Mine
            }
            Err(state) => state,
        };
    }
}
