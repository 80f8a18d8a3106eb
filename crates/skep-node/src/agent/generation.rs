//! All tasks of an instance, from one start to their end: if one fails, all are ended in order and started anew.

use std::sync::Arc;
use std::time::Duration;

use skep_agent::driver::{INPUTS_MAX, Input, Purse, Setup};
use skep_core::leader::RelayLease;
use skep_proto::limits;
use skep_store::agent::Kept;
use skep_store::{AgentStore, StoreError};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::door::RemoteDoor;
use super::lead::{self, Lead};
use super::library::Library;
use super::link::{self, Feed};
use super::locks::Locks;
use super::outbox::{self, Post};
use super::purse::HomePurse;
use super::reconnect::Connection;
use super::{Plan, instance::StartError};
use crate::clock::{Machine, unix_now, unix_now_ms};

/// News of the lease that wait for whoever leads; more are dropped, it asks anyway.
const NEWS_MAX: usize = 8;

/// How long the driver may take to end its turns, and all of it to stop.
const DRIVER_STOP: Duration = Duration::from_millis(limits::STOP_DRIVER_MS);
const STOP: Duration = Duration::from_millis(limits::STOP_AGENTS_MS);

/// How long what was published last may take to be delivered where it is not known that it can be.
const DRAIN: Duration = Duration::from_millis(limits::STOP_OUTBOX_MS);
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// How often what is done with is forgotten, and in how many steps at most: others write between them.
const TRIM_EVERY: Duration = Duration::from_secs(10 * 60);
const TRIM_STEPS_MAX: usize = 40;

/// What can be seen and asked of running tasks.
#[derive(Debug, Clone)]
pub struct Handles {
    pub inputs: mpsc::WeakSender<Input>,
    pub lead: Lead,
    pub door: watch::Receiver<Connection>,
    /// By relay.
    pub links: Vec<(String, watch::Receiver<Connection>)>,
}

/// Why a generation ended.
pub enum End {
    Failed(String),
    /// The home relay grants no leases: to be started without.
    NoLeases,
    Stopped,
}

pub struct Generation {
    pub handles: Handles,
    store: Arc<AgentStore>,
    /// The one that keeps the driver's inputs open, beside those of the links.
    inputs: mpsc::Sender<Input>,
    links: JoinSet<()>,
    outboxes: JoinSet<()>,
    stop_links: CancellationToken,
    stop_outboxes: CancellationToken,
    driver: JoinHandle<Result<(), StoreError>>,
    has_leases: bool,
    /// The home relay.
    home: String,
}

impl Generation {
    /// Starts everything. `drive` is the driver.
    pub fn start<F>(
        plan: &Plan,
        has_leases: bool,
        store: &Arc<AgentStore>,
        drive: impl FnOnce(Setup, Arc<RemoteDoor>, mpsc::Receiver<Input>) -> F,
    ) -> Result<Self, StartError>
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let locks = Locks::open(&plan.locks, &plan.credentials.keys.pubkey())?;
        let instance = locks.new_instance()?;
        let home = plan.relays.first().cloned().unwrap_or_default();
        let door = RemoteDoor::open(home.clone(), plan.credentials.clone());
        let (inputs, outputs) = mpsc::channel(INPUTS_MAX);
        let (lease_news, news) = mpsc::channel(NEWS_MAX);
        let lead = Lead::start(lead::Settings {
            locks,
            instance: instance.clone(),
            mode: plan.mode,
            lease: has_leases.then(|| (plan.credentials.clone(), door.clone())),
            news,
            inputs: inputs.downgrade(),
        })
        .map_err(StartError::Notice)?;
        let (stop_links, stop_outboxes, posted) = Default::default();
        let (mut links, mut outboxes) = (JoinSet::new(), JoinSet::new());
        let connections = start_links(plan, store, &inputs, &lease_news, &stop_links, &mut links);
        let answers = (!has_leases).then(|| lead.clone());
        start_outboxes(plan, store, &inputs, (&door, answers), &posted, &stop_outboxes, &mut outboxes);
        let handles = Handles { inputs: inputs.downgrade(), lead, door: door.connection(), links: connections };
        let claims = Arc::new(Notify::new());
        links.spawn(claim(Arc::clone(&claims), handles.lead.clone(), stop_links.clone()));
        if let Some((_, home)) = handles.links.first().filter(|_| has_leases) {
            links.spawn(tell_hearing(home.clone(), inputs.downgrade(), stop_links.clone()));
        }
        links.spawn(tell_caught_up(handles.links.clone(), inputs.downgrade(), stop_links.clone()));
        let setup = setup(plan, has_leases, store, instance, posted, claims, handles.lead.clone());
        let driver = tokio::spawn(drive(setup, Arc::new(door), outputs));
        let store = Arc::clone(store);
        Ok(Self { handles, store, inputs, links, outboxes, stop_links, stop_outboxes, driver, has_leases, home })
    }

    /// Runs until something fails or it is told to stop, then ends everything in order.
    pub async fn run(mut self, stop: &CancellationToken) -> End {
        let mut standing = self.handles.lead.standing();
        let has_leases = self.has_leases;
        let mut driver_ended = false;
        let end = tokio::select! {
            biased;
            () = stop.cancelled() => End::Stopped,
            ended = &mut self.driver => {
                driver_ended = true;
                End::Failed(match ended {
                    Ok(Ok(())) => "the driver ended by itself".into(),
                    Ok(Err(error)) => error.to_string(),
                    Err(panic) => format!("the driver failed: {panic}"),
                })
            }
            Err(panic) = panicked(&mut self.links) => End::Failed(format!("a link failed: {panic}")),
            Err(panic) = panicked(&mut self.outboxes) => End::Failed(format!("an outbox failed: {panic}")),
            found = standing.wait_for(|now| has_leases && now.lease == RelayLease::None) => match found {
                Ok(_) => End::NoLeases,
                Err(_) => End::Failed("the leadership failed".into()),
            },
        };
        self.shutdown(driver_ended).await;
        end
    }

    /// No more messages; then turns end; then what they published is sent; then another may lead.
    async fn shutdown(mut self, driver_ended: bool) {
        let deadline = Instant::now() + STOP;
        self.stop_links.cancel();
        while self.links.join_next().await.is_some() {}
        drop(self.inputs);
        if !driver_ended && timeout(DRIVER_STOP, &mut self.driver).await.is_err() {
            tracing::warn!("the driver does not end; it is cut off");
            self.driver.abort();
        }
        drain(&self.store, &self.home, &self.handles.door, deadline).await;
        self.stop_outboxes.cancel();
        while self.outboxes.join_next().await.is_some() {}
        self.handles.lead.release().await;
    }
}

/// Waits until what was published last is delivered. On a machine that is busy each commit of it takes its time: what the
/// home relay can take now has all the time that is left, what waits for something else a part of it.
async fn drain(store: &AgentStore, home: &str, door: &watch::Receiver<Connection>, deadline: Instant) {
    let soon = deadline.min(Instant::now() + DRAIN);
    while has_mail(store) {
        let now = Instant::now();
        let is_live = *door.borrow() == Connection::Live;
        let is_under_way = is_live && is_due(store, home, deadline.saturating_duration_since(now));
        if now >= deadline || (now >= soon && !is_under_way) {
            return;
        }
        sleep(DRAIN_LOOK).await;
    }
}

/// Waits for a task that did not end well.
async fn panicked(tasks: &mut JoinSet<()>) -> Result<(), tokio::task::JoinError> {
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    std::future::pending().await
}

/// A store that does not say counts as one that has.
fn has_mail(store: &AgentStore) -> bool {
    !matches!(store.outbox_len(), Ok((0, _)))
}

/// Whether a relay is to have something before this time is over.
fn is_due(store: &AgentStore, relay: &str, within: Duration) -> bool {
    let until = unix_now_ms().saturating_add(within.as_millis() as u64);
    store.next_due_ms(relay).is_ok_and(|due| due.is_some_and(|due| due <= until))
}

fn start_links(
    plan: &Plan,
    store: &Arc<AgentStore>,
    inputs: &mpsc::Sender<Input>,
    leases: &mpsc::Sender<skep_proto::RawEvent>,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Vec<(String, watch::Receiver<Connection>)> {
    let start = |(n, relay): (usize, &String)| {
        let (says, connection) = watch::channel(Connection::Connecting);
        let feed = Feed {
            url: relay.clone(),
            agent: plan.credentials.keys.pubkey(),
            owner: plan.audience.owner,
            credentials: plan.credentials.clone(),
            store: Arc::clone(store),
            inputs: inputs.clone(),
            // Only the home relay's word on the lease counts.
            leases: (n == 0).then(|| leases.clone()),
        };
        tasks.spawn(link::run(feed, says, stop.clone()));
        (relay.clone(), connection)
    };
    plan.relays.iter().enumerate().map(start).collect()
}

fn start_outboxes(
    plan: &Plan,
    store: &Arc<AgentStore>,
    inputs: &mpsc::Sender<Input>,
    (home, lead): (&RemoteDoor, Option<Lead>),
    posted: &Arc<Notify>,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) {
    let (says, news) = watch::channel(0);
    for (n, relay) in plan.relays.iter().enumerate() {
        let door = if n == 0 { home.clone() } else { RemoteDoor::open(relay.clone(), plan.credentials.clone()) };
        let (relay, store, inputs) = (relay.clone(), Arc::clone(store), inputs.downgrade());
        // What the home relay has stands, and may go to the others from wherever it is.
        let lead = lead.clone().filter(|_| n == 0);
        let (news, posted) = (news.clone(), Arc::clone(posted));
        tasks.spawn(outbox::run(Post { relay, door, store, lead, news, posted, inputs }, stop.clone()));
    }
    tasks.spawn(carry(Arc::clone(posted), says, Arc::clone(store), stop.clone()));
}

/// Wakes all outboxes when the driver has posted something, and forgets what is done with.
async fn carry(posted: Arc<Notify>, says: watch::Sender<u64>, store: Arc<AgentStore>, stop: CancellationToken) {
    let mut trimmed = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = posted.notified() => says.send_modify(|n| *n += 1),
            () = tokio::time::sleep_until(trimmed + TRIM_EVERY) => {
                trimmed = Instant::now();
                let store = Arc::clone(&store);
                match tokio::task::spawn_blocking(move || trim(&store)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "the records are not trimmed"),
                    Err(panic) => tracing::warn!(%panic, "the records are not trimmed"),
                }
            }
        }
    }
}

fn trim(store: &AgentStore) -> Result<(), StoreError> {
    outbox::trim(store)?;
    let since = unix_now().saturating_sub(limits::RECORDS_KEPT_SECS);
    let kept = Kept { since, prompts: limits::PROMPTS_KEPT_MAX, ids: limits::KNOWN_IDS_MAX };
    for _ in 0..TRIM_STEPS_MAX {
        if store.trim_records(&kept)? == 0 {
            break;
        }
    }
    Ok(())
}

/// Tells the driver when every relay has handed over what it had, or could not be reached.
async fn tell_caught_up(
    links: Vec<(String, watch::Receiver<Connection>)>,
    inputs: mpsc::WeakSender<Input>,
    stop: CancellationToken,
) {
    let tell = async {
        for (_, mut link) in links {
            // A link that is gone hands over nothing more.
            let _ = link.wait_for(|now| !matches!(now, Connection::Connecting | Connection::CatchingUp)).await;
        }
        if let Some(inputs) = inputs.upgrade() {
            // A driver that is gone prompts nothing.
            let _ = inputs.send(Input::CaughtUp).await;
        }
    };
    stop.run_until_cancelled(tell).await;
}

/// Tells the driver whether all is heard that was said: by the owner, and by the agent's other instances. Until the link
/// to the home relay has handed over what came meanwhile, no turn begins: a lease may be had all the same, for a message
/// that another instance has ended. A relay that serves no subscription is not waited for.
async fn tell_hearing(mut home: watch::Receiver<Connection>, inputs: mpsc::WeakSender<Input>, stop: CancellationToken) {
    let tell = async {
        let mut told = false;
        loop {
            let hears = !matches!(
                *home.borrow_and_update(),
                Connection::Connecting | Connection::CatchingUp | Connection::Waits { .. }
            );
            if hears != told {
                let Some(inputs) = inputs.upgrade() else { return };
                if inputs.send(Input::HearsOwner(hears)).await.is_err() {
                    return;
                }
                told = hears;
            }
            if home.changed().await.is_err() {
                return;
            }
        }
    };
    stop.run_until_cancelled(tell).await;
}

/// Takes the lead when the owner says so in a control frame.
async fn claim(claims: Arc<Notify>, lead: Lead, stop: CancellationToken) {
    while stop.run_until_cancelled(claims.notified()).await.is_some() {
        lead.claim().await;
    }
}

/// Where nothing common is limited there is no ledger, and no cost.
fn purse(plan: &Plan) -> Option<Arc<dyn Purse>> {
    plan.shared.is_set().then(|| Arc::new(HomePurse::new(plan.ledger.clone(), plan.shared)) as Arc<dyn Purse>)
}

fn setup(
    plan: &Plan,
    has_leases: bool,
    store: &Arc<AgentStore>,
    instance: String,
    outbox: Arc<Notify>,
    claims: Arc<Notify>,
    lead: Lead,
) -> Setup {
    Setup {
        name: plan.name.clone(),
        keys: *plan.credentials.keys.keypair(),
        attestation: plan.credentials.attestation.clone(),
        instance,
        audience: plan.audience.clone(),
        queue: plan.queue,
        times: plan.times,
        policy: plan.policy.clone(),
        about: plan.about.clone(),
        system: plan.system.clone(),
        spec: plan.spec.clone(),
        tools: plan.tools.clone(),
        bridge: Some(Arc::new(plan.bridge.clone())),
        trees: plan.trees.clone(),
        budget: plan.budget,
        purse: purse(plan),
        prices: plan.prices.clone(),
        relays: plan.relays.clone(),
        has_leases,
        hears_owner: false,
        store: Arc::clone(store),
        host: Arc::new(Machine),
        lead: Arc::new(lead),
        library: Arc::new(Library::new(plan.relays.first().cloned().unwrap_or_default(), plan.credentials.clone())),
        outbox,
        claims,
    }
}
