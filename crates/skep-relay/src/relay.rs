//! Starting and stopping a relay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use secp256k1::Keypair;
use skep_core::World;
use skep_core::world::{Ownership, Policy};
use skep_proto::{PubKey, Refusal, Seq};
use skep_store::{BlobStore, EventStore, LmdbStore, Op, Options, Outcome, StoreError, Tail, Writer};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::http::{self, Identity};
use crate::lane::SlowLane;
use crate::shared::{Parts, Shared, unix_now};
use crate::verify::Pool;
use crate::{accept, fanout, verify};

/// What a relay is started with. Everything is resolved: no file or variable is read from here on.
pub struct Config {
    /// The relay's own key.
    pub keys: Keypair,
    /// Rules and limits; its policy and registry are replaced by what the store holds.
    pub world: World,
    pub identity: Identity,
    pub store: Options,
    /// Whether blobs are kept (Blossom), below the store's directory.
    pub has_blobs: bool,
}

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] skep_store::blob::BlobError),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("the listener has no address: {0}")]
    Listener(std::io::Error),
    #[error("the store's {0} cannot be read")]
    Document(&'static str),
}

/// A running relay.
pub struct Relay {
    shared: Arc<Shared>,
    store: Arc<LmdbStore>,
    address: SocketAddr,
    tasks: TaskTracker,
    threads: Vec<JoinHandle<()>>,
}

/// How long connections may take to end when the relay stops.
const DRAIN: Duration = Duration::from_secs(10);

/// How often expired events are removed; the promise is 60 s.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Events removed in one transaction, so that writers wait for a few milliseconds at most.
const SWEEP_MAX: usize = 500;

impl Relay {
    /// Opens the store, then serves the listener. Call it inside a multi-thread runtime.
    pub async fn start(config: Config, listener: TcpListener) -> Result<Self, StartError> {
        let address = listener.local_addr().map_err(StartError::Listener)?;
        let store = Arc::new(LmdbStore::open(&config.store)?);
        let blobs = config.has_blobs.then(|| BlobStore::open(&config.store.dir.join("blobs"))).transpose()?;
        let mut world = config.world;
        recall(&mut world, &*store)?;
        let tail = Arc::new(Tail::new(Seq(store.next_seq().0.saturating_sub(1))));
        let (writer, writer_thread) = Writer::start(Arc::clone(&store) as _, Arc::clone(&tail), unix_now)?;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let (pool, jobs) = Pool::new(cores);
        let (lane, mut threads) = SlowLane::start(cores).map_err(StartError::Thread)?;
        let shared = Arc::new(Shared::new(Parts {
            world,
            store: Arc::clone(&store) as _,
            tail,
            writer,
            pool,
            lane,
            identity: config.identity,
            blobs,
            keys: config.keys,
            runtime: tokio::runtime::Handle::current(),
        }));
        threads.extend(verify::start(&shared, &jobs, cores).map_err(StartError::Thread)?);
        threads.push(writer_thread);
        threads.push(start_fanout(&shared)?);
        let tasks = TaskTracker::new();
        tasks.spawn(sweep(Arc::clone(&shared)));
        let router = http::router(Arc::clone(&shared));
        tasks.spawn(accept::run(Arc::clone(&shared), listener, router, tasks.clone()));
        Ok(Self { shared, store, address, tasks, threads })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The relay's own public key.
    pub fn key(&self) -> PubKey {
        self.shared.world().relay
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn store(&self) -> &Arc<LmdbStore> {
        &self.store
    }

    /// Commits operations past the door: for the node's own records, and for tests that need events of every kind.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Outcome>, Refusal> {
        self.shared.commit(ops).await
    }

    /// Publishes the member list (NIP-43) when the one that is stored says otherwise: members may have been configured
    /// anew since.
    pub async fn publish_members(&self) -> Result<(), Refusal> {
        self.shared.publish_members().await
    }

    /// Lets a committed ownership bite.
    pub fn learn(&self, agent: PubKey, row: Ownership) {
        self.shared.learn(agent, row);
    }

    /// Stops accepting, closes connections, commits what was accepted. Takes ten seconds at most.
    pub async fn shutdown(self) {
        self.shared.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        self.shared.pool.close();
        self.shared.lane.close();
        let connections = self.shared.metrics.connections.get();
        tracing::info!(connections, "stopped");
        drop(self.shared);
        // The writer ends when the last connection lets go of it; nothing unacknowledged is owed to anybody.
        drop(self.threads);
    }
}

/// What the store knows about owners and policy.
pub fn recall(world: &mut World, store: &dyn EventStore) -> Result<(), StartError> {
    if let Some(document) = store.policy()? {
        world.policy = serde_json::from_slice::<Policy>(&document).map_err(|_| StartError::Document("policy"))?;
    }
    for (agent, row) in store.owners()? {
        let row: Ownership = serde_json::from_slice(&row).map_err(|_| StartError::Document("ownership registry"))?;
        world.registry.set(agent, row);
    }
    Ok(())
}

/// Fan-out has a thread of its own, so that a burst of live events does not hold up the sockets.
fn start_fanout(shared: &Arc<Shared>) -> Result<JoinHandle<()>, StartError> {
    let shared = Arc::clone(shared);
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("skep-fanout".into())
        .spawn(move || runtime.block_on(fanout::run(shared)))
        .map_err(StartError::Thread)
}

/// Removes what has expired.
async fn sweep(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        loop {
            let outcomes = shared.commit(vec![Op::Sweep { now: unix_now(), most: SWEEP_MAX }]).await;
            match outcomes.as_deref() {
                Ok([Outcome::Swept(swept)]) if *swept == SWEEP_MAX => {}
                _ => break,
            }
        }
        if shared.writer.stats().is_failing.load(Ordering::Relaxed) {
            // Writes the policy as it is: when the disk takes that, it takes events again, and readiness says so.
            let _turn = shared.policy_turn.lock().await;
            let policy = shared.world().policy.clone();
            if shared.set_policy(policy).await.is_ok() {
                tracing::info!("the store takes writes again");
            }
        }
    }
}
