//! What all connections of a relay have in common.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ahash::AHashMap;
use secp256k1::Keypair;
use skep_core::door::{Accepted, Origin};
use skep_core::intake::{Deliverer, RateClass};
use skep_core::rate::{Buckets, Rate};
use skep_core::session::Now;
use skep_core::subs::Subs;
use skep_core::world::{Ownership, Policy};
use skep_core::{Readers, World};
use skep_proto::{
    Draft, EventId, Filter, Kind, Prefix, PubKey, RawEvent, Record, Refusal, Seq, Timestamp, VerifiedEvent, limits,
};
use skep_store::{BlobStore, EventStore, Op, Outcome, Scan, StoreError, Submission, Tail, Visit, Writer};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::http::Identity;
use crate::lane::SlowLane;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::verify::{self, Pool};

/// The relay behind its sockets.
pub struct Shared {
    /// A lock, because every decision reads it and changes are rare; never held over an await.
    world: RwLock<World>,
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) tail: Arc<Tail>,
    pub(crate) writer: Writer,
    pub(crate) pool: Pool,
    pub(crate) lane: SlowLane,
    /// A lock, because a new subscription must read the newest number and stand in the index in one step, or an
    /// event could fall between its scan and its live delivery. Fan-out takes it for one event at a time.
    pub(crate) live: Mutex<Live>,
    /// A lock, because the rates of an address and of an author span connections. Held for a few map lookups.
    rates: Mutex<Rates>,
    /// Connections by address. A lock, because opening and closing happen on any thread.
    pub(crate) addresses: Mutex<AHashMap<IpAddr, usize>>,
    /// Used NIP-98 tokens and when they may be forgotten. A lock, because a token must be used once in all.
    tokens: Mutex<AHashMap<EventId, Timestamp>>,
    pub(crate) metrics: Metrics,
    pub(crate) identity: Identity,
    pub(crate) blobs: Option<BlobStore>,
    pub(crate) next_conn: AtomicU64,
    pub(crate) stop: CancellationToken,
    /// Whoever reads the policy to change it holds this until the change is committed.
    pub(crate) policy_turn: tokio::sync::Mutex<()>,
    /// For threads of the pool that wait for a commit.
    pub(crate) runtime: tokio::runtime::Handle,
    keys: Keypair,
    started: Instant,
}

struct Rates {
    by_ip: Buckets<IpAddr>,
    http: Buckets<IpAddr>,
    malformed_by_ip: Buckets<IpAddr>,
    by_key: Buckets<PubKey>,
    metrics: Buckets<PubKey>,
    telemetry: Buckets<PubKey>,
}

/// Live subscriptions, and how far fan-out has come.
#[derive(Default)]
pub(crate) struct Live {
    pub subs: Subs<Arc<Outbox>>,
    pub cursor: Seq,
}

/// What a relay is put together from.
pub(crate) struct Parts {
    pub world: World,
    pub store: Arc<dyn EventStore>,
    pub tail: Arc<Tail>,
    pub writer: Writer,
    pub pool: Pool,
    pub lane: SlowLane,
    pub identity: Identity,
    pub blobs: Option<BlobStore>,
    pub keys: Keypair,
    pub runtime: tokio::runtime::Handle,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Self {
        let newest = parts.tail.newest();
        let limits = &parts.world.limits;
        let rates = Rates {
            by_ip: Buckets::new(Rate::per_second(limits.events_per_second_per_ip)),
            http: Buckets::new(Rate::per_second(limits.http_requests_per_second_per_ip)),
            malformed_by_ip: Buckets::new(Rate::per_minute(limits.malformed_per_minute_per_ip)),
            by_key: Buckets::new(Rate::per_second(limits.events_per_second_per_pubkey)),
            metrics: Buckets::new(Rate::per_minute(limits::METRICS_PER_MINUTE)),
            telemetry: Buckets::new(Rate {
                per_second: limits::FRAMES_PER_SECOND.into(),
                burst: limits::FRAMES_PER_SECOND.into(),
            }),
        };
        Self {
            world: RwLock::new(parts.world),
            store: parts.store,
            tail: parts.tail,
            writer: parts.writer,
            pool: parts.pool,
            lane: parts.lane,
            live: Mutex::new(Live { subs: Subs::default(), cursor: newest }),
            policy_turn: tokio::sync::Mutex::new(()),
            runtime: parts.runtime,
            rates: Mutex::new(rates),
            addresses: Mutex::new(AHashMap::new()),
            tokens: Mutex::new(AHashMap::new()),
            metrics: Metrics::new(),
            identity: parts.identity,
            blobs: parts.blobs,
            next_conn: AtomicU64::new(1),
            stop: CancellationToken::new(),
            keys: parts.keys,
            started: Instant::now(),
        }
    }

    pub(crate) fn world(&self) -> RwLockReadGuard<'_, World> {
        self.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Now {
        Now { unix: unix_now(), mono_ms: self.started.elapsed().as_millis() as u64 }
    }

    /// Takes a token of each rate that an event counts against.
    pub(crate) fn check_rates(&self, ip: Option<IpAddr>, event: &RawEvent) -> Result<(), Refusal> {
        let now = self.now().mono_ms;
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let limited = |text: &'static str| Err(Prefix::RateLimited.because(text));
        if ip.is_some_and(|ip| !rates.by_ip.take(ip, now)) {
            return limited("too many events from this address; slow down");
        }
        if !rates.by_key.take(event.pubkey, now) {
            return limited("too many events by this key; slow down");
        }
        match skep_core::intake::rate_class(event) {
            Some(RateClass::Metric) if !rates.metrics.take(event.pubkey, now) => {
                limited("at most 60 turn metrics a minute")
            }
            Some(RateClass::Telemetry) if !rates.telemetry.take(event.pubkey, now) => {
                limited("at most 100 telemetry frames a second")
            }
            _ => Ok(()),
        }
    }

    /// Takes one of the HTTP requests that an address may make.
    pub(crate) fn take_request(&self, ip: IpAddr) -> bool {
        let now = self.now().mono_ms;
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).http.take(ip, now)
    }

    /// Counts a malformed message. `false`: its address has sent too many of late.
    pub(crate) fn take_malformed(&self, ip: IpAddr) -> bool {
        self.metrics.malformed.inc();
        let now = self.now().mono_ms;
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).malformed_by_ip.take(ip, now)
    }

    /// Whether a NIP-98 token is used for the first time.
    pub(crate) fn use_token(&self, id: EventId, now: Timestamp) -> bool {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, forget_at| *forget_at > now);
        // A token is fresh for 60 s either way, so after 121 s it is refused for its age.
        tokens.insert(id, now + 2 * limits::HTTP_AUTH_FRESH_SECS + 1).is_none()
    }

    /// Signs an event of the relay's own.
    pub(crate) fn sign(&self, draft: Draft) -> VerifiedEvent {
        draft.sign(&self.keys, &random())
    }

    /// Commits operations of the relay's own.
    pub(crate) async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Outcome>, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(move |result: Result<Vec<Outcome>, Arc<StoreError>>| drop(sender.send(result)));
        let stopped = || Prefix::Error.because("the relay is stopping");
        self.writer.submit(Submission { ops, done }).await.map_err(|_| stopped())?;
        let result = receiver.await.map_err(|_| stopped())?;
        result.map_err(|error| self.refuse_for(&error))
    }

    /// What a client is told of a store's failure; the operator is told all.
    pub(crate) fn refuse_for(&self, error: &StoreError) -> Refusal {
        self.metrics.store_errors.inc();
        match error {
            // The writer says it once, not for each event.
            StoreError::DiskFull | StoreError::MapFull { .. } => tracing::debug!(%error, "the store refused"),
            _ => tracing::error!(%error, "the store refused"),
        }
        Prefix::Error.because(error.public())
    }

    /// Records who owns an agent, then lets it bite.
    pub(crate) async fn own(&self, agent: PubKey, row: Ownership) -> Result<(), Refusal> {
        self.commit(vec![own_op(agent, row)]).await?;
        self.learn(agent, row);
        Ok(())
    }

    /// An ownership that is committed.
    pub(crate) fn learn(&self, agent: PubKey, row: Ownership) {
        self.world.write().unwrap_or_else(PoisonError::into_inner).registry.set(agent, row);
    }

    /// Adds or removes a member (NIP-43).
    pub(crate) async fn set_member(&self, key: PubKey, is_member: bool) -> Result<(), Refusal> {
        let _turn = self.policy_turn.lock().await;
        let mut policy = self.world().policy.clone();
        if is_member {
            policy.allowed_keys.insert(key.to_hex(), "joined with a claim".into());
        } else {
            policy.allowed_keys.remove(&key.to_hex());
        }
        self.set_policy(policy).await
    }

    /// Records a changed policy, then lets it bite; tells members when the member list changed.
    pub(crate) async fn set_policy(&self, policy: Policy) -> Result<(), Refusal> {
        let document =
            serde_json::to_vec(&policy).map_err(|_| Prefix::Error.because("the policy could not be written"))?;
        self.commit(vec![Op::Policy(document)]).await?;
        let has_new_members = {
            let mut world = self.world.write().unwrap_or_else(PoisonError::into_inner);
            let changed =
                world.policy.allowed_keys != policy.allowed_keys || world.policy.banned_keys != policy.banned_keys;
            world.policy = policy;
            changed
        };
        if has_new_members { self.publish_members().await } else { Ok(()) }
    }

    /// Publishes the member list (NIP-43, kind 13534), unless it says so already.
    pub(crate) async fn publish_members(&self) -> Result<(), Refusal> {
        let mut members: Vec<String> = {
            let world = self.world();
            let banned = &world.policy.banned_keys;
            let allowed = world.policy.allowed_keys.keys().cloned();
            allowed
                .chain(world.members.iter().map(|key| key.to_hex()))
                .filter(|key| !banned.contains_key(key))
                .collect()
        };
        members.sort_unstable();
        members.dedup();
        // Two changes in one second: the later list must be the newer one.
        let (after, listed) = match self.member_list().map_err(|error| self.refuse_for(&error))? {
            Some(list) => (list.created_at + 1, list.tags.values("member").map(str::to_owned).collect()),
            None => (0, Vec::new()),
        };
        if listed == members {
            return Ok(());
        }
        let draft = Draft::new(Kind::MEMBER_LIST, unix_now().max(after), "").tag(["-"]);
        let draft = members.iter().fold(draft, |draft, key| draft.tag(["member", key]));
        self.commit(vec![Op::put(self.sign(draft).into_record())]).await.map(drop)
    }

    /// The member list that is stored.
    fn member_list(&self) -> Result<Option<RawEvent>, StoreError> {
        let filter = Filter {
            kinds: Some(vec![Kind::MEMBER_LIST]),
            authors: Some(vec![self.world().relay]),
            limit: Some(1),
            ..Filter::new()
        };
        let found = self.store.collect(Scan::new([filter].into(), self.tail.newest(), 1), &mut |_| Visit::Serve)?;
        Ok(found.first().and_then(|record| serde_json::from_str(&record.as_ref().to_json()).ok()))
    }

    /// Submits one event as a client would, and waits for its verdict.
    pub async fn submit(&self, origin: Origin, readers: Readers, event: RawEvent) -> Result<Accepted, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let job = verify::Job {
            from: Arc::new(Deliverer { readers, bound: Vec::new() }),
            origin,
            ip: None,
            turn: None,
            events: vec![event],
            done: Box::new(move |verdicts| {
                let verdict = verdicts.into_iter().next();
                drop(sender.send(verdict.map(|(_, verdict)| verdict)));
            }),
        };
        let stopped = || Prefix::Error.because("the relay is stopping");
        self.pool.submit(job).await.map_err(|_| stopped())?;
        receiver.await.ok().flatten().ok_or_else(stopped)?
    }

    /// Recent ephemeral events for a reader that asks for them with `since` (NIP-AO).
    pub(crate) fn recent(&self, filters: &[skep_proto::Filter], up_to: Seq, readers: &Readers) -> Vec<Record> {
        let asks = |filter: &skep_proto::Filter| {
            filter.since.is_some()
                && filter.limit != Some(0)
                && filter.kinds.as_ref().is_some_and(|kinds| kinds.iter().any(|kind| kind.is_ephemeral()))
        };
        if !filters.iter().any(asks) {
            return Vec::new();
        }
        let now = unix_now();
        let world = self.world();
        let most = world.limits.results;
        let mut room: Vec<u64> = filters.iter().map(|filter| filter.limit.unwrap_or(most).min(most)).collect();
        let mut bytes = 0;
        let mut found = self.tail.recent_ephemeral(up_to, now, |event| {
            filters.iter().any(|filter| asks(filter) && filter.matches(event))
                && skep_core::may_read(&world, readers, event, now)
        });
        // Newest first, and each filter has its newest `limit`, as in a scan of what is stored.
        found.retain(|record| {
            let event = record.as_ref();
            let mut is_wanted = false;
            for (room, _) in room
                .iter_mut()
                .zip(filters)
                .filter(|(room, filter)| **room > 0 && asks(filter) && filter.matches(event))
            {
                *room -= 1;
                is_wanted = true;
            }
            is_wanted
        });
        found.retain(|record| {
            bytes += record.as_bytes().len();
            bytes <= limits::RECENT_BYTES_MAX
        });
        found
    }
}

pub(crate) fn own_op(agent: PubKey, row: Ownership) -> Op {
    let row = serde_json::to_vec(&row).expect("invariant: a row of keys and numbers serializes");
    Op::Own { agent, row }
}

pub(crate) fn unix_now() -> Timestamp {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

/// 256 bits from the operating system.
pub(crate) fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("invariant: the operating system gives randomness");
    bytes
}
