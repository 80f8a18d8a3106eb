//! A relay in memory: a real ledger of leases, and a list of what was accepted.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::{BoxFuture, ready};
use skep_agent::driver::{Host, Input, Lead, Library, Setup};
use skep_core::door::{Accepted, Door};
use skep_core::lease::{LeaseTable, Ledger, Rows};
use skep_proto::lease::{Claim, Lease, Request, Resource, granted_text};
use skep_proto::{Filter, Kind, PubKey, RawEvent, Refusal, Seq};
use skep_store::AgentStore;
use skep_store::agent::Delivery;
use tokio::sync::{Notify, mpsc, oneshot};

/// Its name in the agents' settings, and that of another one.
pub const HOME: &str = "ws://home";
pub const SECOND: &str = "ws://second";

#[derive(Default)]
struct Table(BTreeMap<Resource, Lease>);

impl LeaseTable for Table {
    type Error = Infallible;
    fn get(&self, resource: &Resource) -> Result<Option<Lease>, Infallible> {
        Ok(self.0.get(resource).cloned())
    }
    fn put(&mut self, resource: &Resource, lease: &Lease) -> Result<(), Infallible> {
        self.0.insert(resource.clone(), lease.clone());
        Ok(())
    }
}

#[derive(Default)]
pub struct Relay {
    ledger: Mutex<Option<Rows<Table>>>,
    accepted: Mutex<Vec<RawEvent>>,
    pub changed: Notify,
    knows_no_leases: bool,
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A lead that is not asked about its word.
pub struct Always;

impl Lead for Always {
    fn may_act(&self) -> BoxFuture<'_, bool> {
        Box::pin(ready(true))
    }
}

/// A lead that can be lost without a word.
#[derive(Default)]
pub struct Lost(pub AtomicBool);

impl Lead for Lost {
    fn may_act(&self) -> BoxFuture<'_, bool> {
        Box::pin(ready(!self.0.load(Ordering::Relaxed)))
    }
}

/// A lead that has just looked whenever one asks when, and counts who has it look again.
#[derive(Default)]
pub struct Fresh(pub AtomicU64);

impl Lead for Fresh {
    fn may_act(&self) -> BoxFuture<'_, bool> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(ready(true))
    }

    fn led_at(&self) -> u64 {
        now() * 1_000
    }
}

/// What was said before this test, with a relay's key; or no answer at all.
#[derive(Default)]
pub struct Shelf {
    pub events: Mutex<Vec<RawEvent>>,
    pub key: Option<PubKey>,
    pub is_silent: AtomicBool,
    /// At what was said before.
    pub looks: AtomicU64,
    /// What each look was for, and when it was.
    pub times: Mutex<Vec<(Vec<Kind>, Instant)>>,
}

impl Library for Shelf {
    fn look_up(&self, filters: Vec<Filter>) -> BoxFuture<'static, Option<Vec<RawEvent>>> {
        let is_for_words = filters.iter().flat_map(|filter| &filter.kinds).any(|kinds| kinds.contains(&Kind::NOTE));
        let kinds = filters.iter().flat_map(|filter| &filter.kinds).flatten().copied().collect();
        self.times.lock().unwrap().push((kinds, Instant::now()));
        self.looks.fetch_add(is_for_words.into(), Ordering::Relaxed);
        if self.is_silent.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        let is_wanted = |event: &&RawEvent| {
            let verified = (*event).clone().verify().unwrap();
            filters.iter().any(|filter| filter.matches(verified.record().as_ref()))
        };
        let found = self.events.lock().unwrap().iter().filter(is_wanted).cloned().collect();
        Box::pin(ready(Some(found)))
    }

    fn relay_key(&self) -> BoxFuture<'static, Option<Option<PubKey>>> {
        let key = (!self.is_silent.load(Ordering::Relaxed)).then_some(self.key);
        Box::pin(ready(key))
    }
}

/// The clocks of this machine, of which the wall's can be set.
pub struct Machine {
    started: Instant,
    pub ahead_ms: AtomicU64,
}

impl Default for Machine {
    fn default() -> Self {
        Self { started: Instant::now(), ahead_ms: AtomicU64::new(0) }
    }
}

impl Host for Machine {
    fn unix_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        now + self.ahead_ms.load(Ordering::Relaxed)
    }

    fn steady_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).unwrap();
    }
}

impl Door for Relay {
    async fn submit(&self, event: RawEvent) -> Result<Accepted, Refusal> {
        let verified = event.verify().unwrap();
        let mut ledger = self.ledger.lock().unwrap();
        let ledger = ledger.get_or_insert_with(|| Rows(Table::default()));
        if verified.kind == Kind::LEASE_REQUEST {
            let request = Request::from_event(&verified).unwrap();
            let Ok(answer) = ledger.request(now(), verified.pubkey, &request);
            return answer.map(|lease| Accepted::Answered(granted_text(&lease)));
        }
        if let Some(claim) = Claim::from_event(&verified).filter(|_| !self.knows_no_leases) {
            let Ok(answer) = ledger.claim(now(), &verified.pubkey, &claim.unwrap());
            answer?;
        }
        let mut accepted = self.accepted.lock().unwrap();
        if accepted.iter().any(|before| before.id == verified.id) {
            return Ok(Accepted::Duplicate);
        }
        accepted.push(verified.raw().clone());
        self.changed.notify_waiters();
        Ok(Accepted::Stored(Seq(accepted.len() as u64)))
    }
}

impl Relay {
    /// One that takes every event.
    pub fn without_leases() -> Self {
        Self { knows_no_leases: true, ..Self::default() }
    }

    pub fn accepted(&self, kind: Kind) -> Vec<RawEvent> {
        self.accepted.lock().unwrap().iter().filter(|event| event.kind == kind).cloned().collect()
    }

    pub fn all(&self) -> Vec<RawEvent> {
        self.accepted.lock().unwrap().clone()
    }

    /// The resources whose leases have ended for ever.
    pub fn completed(&self) -> Vec<String> {
        let ledger = self.ledger.lock().unwrap();
        let leases = ledger.iter().flat_map(|rows| &rows.0.0);
        leases.filter(|(_, lease)| lease.completed).map(|(resource, _)| resource.to_string()).collect()
    }

    /// Waits until so many events of a kind were accepted.
    pub async fn wait_for(&self, kind: Kind, count: usize) -> Vec<RawEvent> {
        let found = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                let changed = self.changed.notified();
                let found = self.accepted(kind);
                if found.len() >= count {
                    return found;
                }
                changed.await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("of {kind}: {:?}", self.accepted(kind)))
    }
}

/// Sends what lies in the outbox, as the node does.
pub async fn pump(relay: Arc<Relay>, store: Arc<AgentStore>, outbox: Arc<Notify>, inputs: mpsc::Sender<Input>) {
    loop {
        send_due(&relay, HOME, &store, &inputs).await;
        outbox.notified().await;
    }
}

/// One round of it.
pub async fn send_due(relay: &Relay, name: &str, store: &AgentStore, inputs: &mpsc::Sender<Input>) {
    for outgoing in store.due(name, u64::MAX >> 1, 100).unwrap() {
        let id = outgoing.event.id;
        let delivery = match relay.submit(outgoing.event).await {
            Ok(_) => Delivery::Taken,
            Err(refusal) => Delivery::Refused(refusal.to_string()),
        };
        store.delivered(&id, name, &delivery).unwrap();
        // A driver that is gone learns it from the store.
        drop(inputs.send(Input::Delivered { id, relay: name.into(), delivery }).await);
    }
}

/// One running instance; dropped, its inputs end and it stops.
pub struct Instance {
    pub inputs: mpsc::Sender<Input>,
    pub store: Arc<AgentStore>,
    pub driver: tokio::task::JoinHandle<Result<(), skep_store::StoreError>>,
    pub pump: tokio::task::JoinHandle<()>,
}

impl Instance {
    pub fn start(setup: Setup, relay: &Arc<Relay>) -> Self {
        Self::start_at(setup, Arc::clone(relay), relay)
    }

    /// With a door of its own to the relay.
    pub fn start_at<D: Door + 'static>(setup: Setup, door: Arc<D>, relay: &Arc<Relay>) -> Self {
        let (inputs, driver_inputs) = mpsc::channel(skep_agent::driver::INPUTS_MAX);
        let (store, outbox) = (Arc::clone(&setup.store), Arc::clone(&setup.outbox));
        let pump = tokio::spawn(pump(Arc::clone(relay), Arc::clone(&store), outbox, inputs.clone()));
        let driver = tokio::spawn(skep_agent::driver::run(setup, door, driver_inputs));
        Self { inputs, store, driver, pump }
    }

    pub async fn tell(&self, input: Input) {
        self.inputs.send(input).await.unwrap();
    }

    pub async fn event(&self, event: &RawEvent) {
        self.tell(Input::Event { event: Box::new(event.clone()), relay: HOME.into() }).await;
    }

    /// Waits until all that it was told before is done.
    pub async fn flush(&self) {
        let (reply, flushed) = oneshot::channel();
        self.tell(Input::Flushed(reply)).await;
        flushed.await.unwrap();
    }

    /// Waits until every message is over.
    pub async fn until_over(&self) {
        let over = tokio::time::timeout(Duration::from_secs(30), async {
            while !self.store.open_messages().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        over.await.unwrap();
    }

    /// As kill -9 does, but for the processes: those die with the task.
    pub fn kill(self) {
        self.pump.abort();
        self.driver.abort();
    }
}
