//! An instance that is kept running, and what a person sees of it and may ask of it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use skep_agent::driver::{self, Command, Input, Setup};
use skep_proto::limits;
use skep_store::lock::DirLock;
use skep_store::{AgentStore, StoreError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Plan;
use super::door::RemoteDoor;
use super::generation::{End, Generation, Handles};
use super::lead::Standing;
use super::reconnect::{Backoff, Connection};
use crate::home::HomeError;

/// The file of an agent's records in its directory.
pub const RECORDS: &str = "agent.db";

/// How long all instances of a process may take to stop.
const STOP: Duration = Duration::from_millis(limits::STOP_AGENTS_MS);
const STOP_SLACK: Duration = Duration::from_millis(500);

/// Why an instance did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Files(#[from] HomeError),
    #[error("cannot use the agent's records: {0}")]
    Records(#[from] StoreError),
    #[error("cannot watch the leader locks: {0}")]
    Notice(std::io::Error),
}

/// The instance is between two starts, or has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent is not running at the moment")]
pub struct NotRunning;

/// Whether an instance runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Running,
    /// It failed, and is started again after this time.
    Restarts {
        why: String,
        wait: Duration,
    },
    Stopped,
}

/// What `status` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub name: String,
    pub state: State,
    /// `None` while it does not run.
    pub standing: Option<Standing>,
    /// The connection on which it submits.
    pub door: Option<Connection>,
    /// What it hears, by relay.
    pub links: Vec<(String, Connection)>,
    /// Deliveries that wait, and those that were refused for good.
    pub outbox: (u64, u64),
}

/// What anybody in the process can see of an instance, and ask of it. It does not keep the instance running.
#[derive(Debug, Clone)]
pub struct Contact {
    name: String,
    store: Arc<AgentStore>,
    state: watch::Receiver<State>,
    handles: watch::Receiver<Option<Handles>>,
}

/// A running instance. Dropped, it stops too, but nobody waits for that.
pub struct Instance {
    contact: Contact,
    stop: DropGuard,
    task: JoinHandle<()>,
    _lock: DirLock,
}

impl Instance {
    /// Opens the records, takes part in the leadership and starts to listen.
    pub fn start(plan: Plan) -> Result<Self, StartError> {
        Self::start_with(plan, driver::run)
    }

    /// With another driver than ours.
    pub fn start_with<D, F>(plan: Plan, drive: D) -> Result<Self, StartError>
    where
        D: Fn(Setup, Arc<RemoteDoor>, mpsc::Receiver<Input>) -> F + Send + 'static,
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        make_directory(&plan.directory)?;
        crate::home::check_directory(&plan.directory)?;
        // Where its backend works is its owner's affair, and so is who else may write there.
        make_directory(&plan.spec.cwd)?;
        // Two drivers on one set of records would each take the other's turns for dead ones.
        let lock = DirLock::acquire(&plan.directory)?;
        let store = Arc::new(AgentStore::open(&plan.directory.join(RECORDS))?);
        if let Err(error) = plan.bridge.sweep() {
            tracing::warn!(agent = %plan.name, %error, "what ended processes left of their tools stays there");
        }
        let (says, state) = watch::channel(State::Running);
        let first = Generation::start(&plan, plan.has_leases, &store, &drive)?;
        let (shows, handles) = watch::channel(Some(first.handles.clone()));
        let (name, stop) = (plan.name.clone(), CancellationToken::new());
        let keeper = Keeper { plan, store: Arc::clone(&store), drive, says, shows, stop: stop.clone() };
        let task = tokio::spawn(keeper.run(first));
        let contact = Contact { name: name.to_string(), store, state, handles };
        Ok(Self { contact, stop: stop.drop_guard(), task, _lock: lock })
    }

    /// For whoever shows it or passes on what a person asks.
    pub fn contact(&self) -> &Contact {
        &self.contact
    }

    /// Whether it runs, as it changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.contact.state()
    }

    pub fn store(&self) -> &Arc<AgentStore> {
        self.contact.store()
    }

    pub fn status(&self) -> Result<Status, StoreError> {
        self.contact.status()
    }

    /// Who leads, as it changes.
    pub fn standing(&self) -> Result<watch::Receiver<Standing>, NotRunning> {
        self.contact.standing()
    }

    /// See [`Contact::claim`].
    pub async fn claim(&self) -> Result<(), NotRunning> {
        self.contact.claim().await
    }

    /// See [`Contact::stand_down`].
    pub async fn stand_down(&self) -> Result<(), NotRunning> {
        self.contact.stand_down().await
    }

    /// See [`Contact::command`].
    pub async fn command(&self, command: Command) -> Result<Result<String, String>, NotRunning> {
        self.contact.command(command).await
    }

    /// Ends turns, sends what they published, lets another lead. What is not sent by then is sent the next time.
    pub async fn stop(self) {
        drop(self.stop);
        // A keeper that failed has nothing left to stop.
        let _ = self.task.await;
    }
}

impl Contact {
    /// Whether it runs, as it changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    pub fn store(&self) -> &Arc<AgentStore> {
        &self.store
    }

    pub fn status(&self) -> Result<Status, StoreError> {
        let handles = self.handles.borrow().clone();
        let link = |(relay, now): &(String, watch::Receiver<Connection>)| (relay.clone(), now.borrow().clone());
        Ok(Status {
            name: self.name.clone(),
            state: self.state.borrow().clone(),
            standing: handles.as_ref().map(|handles| handles.lead.standing().borrow().clone()),
            door: handles.as_ref().map(|handles| handles.door.borrow().clone()),
            links: handles.iter().flat_map(|handles| handles.links.iter().map(link)).collect(),
            outbox: self.store.outbox_len()?,
        })
    }

    /// Who leads, as it changes.
    pub fn standing(&self) -> Result<watch::Receiver<Standing>, NotRunning> {
        Ok(self.running()?.lead.standing())
    }

    /// This instance is to lead, whoever does.
    pub async fn claim(&self) -> Result<(), NotRunning> {
        self.running()?.lead.claim().await;
        Ok(())
    }

    /// Another instance is to lead.
    pub async fn stand_down(&self) -> Result<(), NotRunning> {
        self.running()?.lead.stand_down().await;
        Ok(())
    }

    /// Gives a command to the driver. The inner answer is one line for a person.
    pub async fn command(&self, command: Command) -> Result<Result<String, String>, NotRunning> {
        let inputs = self.running()?.inputs.upgrade().ok_or(NotRunning)?;
        let (reply, answer) = oneshot::channel();
        inputs.send(Input::Command(command, reply)).await.map_err(|_| NotRunning)?;
        drop(inputs);
        answer.await.map_err(|_| NotRunning)
    }

    fn running(&self) -> Result<Handles, NotRunning> {
        self.handles.borrow().clone().ok_or(NotRunning)
    }
}

/// Stops instances beside each other, in the time that all of them have together. One that does not end by then is cut
/// off; what it left is taken up at the next start.
pub async fn stop_all(instances: impl IntoIterator<Item = Instance>) {
    let all = join_all(instances.into_iter().map(Instance::stop));
    // A moment more, so that one that stops in time by its own clock is not cut off by ours.
    if timeout(STOP + STOP_SLACK, all).await.is_err() {
        tracing::warn!("an agent does not end; it is cut off");
    }
}

/// One that is there already is left as it is.
pub fn make_directory(path: &std::path::Path) -> Result<(), HomeError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |source| HomeError::Io { verb: "create", path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)
}

/// The task that starts an instance again.
struct Keeper<D> {
    plan: Plan,
    store: Arc<AgentStore>,
    drive: D,
    says: watch::Sender<State>,
    shows: watch::Sender<Option<Handles>>,
    stop: CancellationToken,
}

impl<D, F> Keeper<D>
where
    D: Fn(Setup, Arc<RemoteDoor>, mpsc::Receiver<Input>) -> F + Send + 'static,
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    async fn run(mut self, first: Generation) {
        let mut backoff = Backoff::default();
        let mut next = Ok(first);
        loop {
            let since = Instant::now();
            let end = match next {
                Ok(generation) => {
                    self.shows.send_replace(Some(generation.handles.clone()));
                    self.says.send_replace(State::Running);
                    generation.run(&self.stop).await
                }
                Err(error) => End::Failed(StartError::to_string(&error)),
            };
            self.shows.send_replace(None);
            match end {
                End::Stopped => break,
                End::NoLeases => {
                    tracing::warn!(agent = %self.plan.name, "its home relay grants no leases; the lock file decides");
                    self.plan.has_leases = false;
                }
                End::Failed(why) => {
                    let wait = backoff.next(Some(since.elapsed()));
                    tracing::warn!(agent = %self.plan.name, why, ?wait, "the agent is started again");
                    self.says.send_replace(State::Restarts { why, wait });
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => break,
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
            next = Generation::start(&self.plan, self.plan.has_leases, &self.store, &self.drive);
        }
        self.says.send_replace(State::Stopped);
    }
}
