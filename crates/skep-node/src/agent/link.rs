//! What a relay has for an agent, brought to its driver: all of it, however long the connection was away.
//!
//! On a connection of its own the live subscription is opened first, then the gap since the cursor is fetched on
//! another: what is stored before the subscription is in the gap, what comes after it is live, and nothing is between.
//! Messages that come live meanwhile wait until the gap is closed, so that nobody is answered before those who asked
//! earlier; when there are too many, the socket is not read until then.
//! The cursor moves when everything up to it is in the driver's hands; what the driver had not yet written when it
//! ended lies within the overlap and comes again.
//! Lifetime: until it is told to stop, the driver is gone, or the relay refuses.
//! Must not: hand on what did not verify, or hold events when the driver is slow (it stops reading instead).

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use skep_agent::driver::Input;
use skep_proto::{Filter, Kind, PubKey, RawEvent, Timestamp, VerifiedEvent};
use skep_store::{AgentStore, StoreError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::concerns::Concerns;
use super::gap::{Gap, HELD_BYTES_MAX, HELD_MAX};
use super::reconnect::{Backoff, Connection, Failure, Stop, check_auth};
use crate::client::{Client, Credentials, Options, Subscription, Update};
use crate::clock::unix_now;
use crate::sync::reconcile;
use crate::transfer::{TransferError, fetch_ids};

/// Fetched again below the cursor: what the driver had in hand when it ended, and clocks that differ.
const OVERLAP_SECS: u64 = 10 * 60;

/// Gift wraps are dated up to two days back (NIP-59).
const WRAP_SECS: u64 = 2 * 24 * 60 * 60;

/// How far back a relay is asked that was never asked before: what is older was not meant for this start.
const FIRST_SECS: u64 = 24 * 60 * 60;

/// How far back messages are reconciled: what was written long ago and reached the relay only while we were away, from
/// somebody's outbox, is below the cursor.
const LATE_SECS: u64 = 7 * 24 * 60 * 60;

/// Ids in one request.
const IDS_MAX: usize = 200;

/// How often the cursor of a live link is written at most.
const CURSOR_EVERY: Duration = Duration::from_secs(5);

/// How long one step of a relay may take.
const STEP: Duration = Duration::from_secs(15);

/// What a link is made of.
#[derive(Clone)]
pub struct Feed {
    pub url: String,
    pub agent: PubKey,
    /// Whose word to begin no turns is brought, too.
    pub owner: Option<PubKey>,
    pub credentials: Credentials,
    pub store: Arc<AgentStore>,
    /// The driver's. A link waits while it is full.
    pub inputs: mpsc::Sender<Input>,
    /// Whoever wants to know of the prompter's lease soon. When full, the news is dropped: it is asked for anyway.
    pub leases: Option<mpsc::Sender<RawEvent>>,
}

/// Why a session with a relay ended.
enum Ended {
    Failed(Failure),
    DriverGone,
}

impl<E: Into<Failure>> From<E> for Ended {
    fn from(failure: E) -> Self {
        Self::Failed(failure.into())
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Client(error) => error.into(),
            other => Self::Passing(other.to_string()),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Passing(format!("the agent's records: {error}"))
    }
}

/// Runs a link and says how it is doing.
pub async fn run(feed: Feed, says: watch::Sender<Connection>, stop: CancellationToken) {
    let link = Link { feed, says };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = link.keep_up() => {}
    }
}

struct Link {
    feed: Feed,
    says: watch::Sender<Connection>,
}

/// What came live while the gap was being closed.
#[derive(Default)]
struct Held {
    events: Vec<VerifiedEvent>,
    bytes: usize,
}

impl Held {
    fn has_room(&self) -> bool {
        self.events.len() < HELD_MAX && self.bytes < HELD_BYTES_MAX
    }
}

impl Link {
    async fn keep_up(&self) {
        let mut backoff = Backoff::default();
        loop {
            self.says.send_replace(Connection::Connecting);
            let since = Instant::now();
            let Err(ended) = self.session().await;
            let was_live = *self.says.borrow() == Connection::Live;
            match ended {
                Ended::DriverGone => return,
                Ended::Failed(Failure::Stop(stop)) => {
                    tracing::warn!(relay = self.feed.url, why = %stop, "this link stops");
                    self.says.send_replace(Connection::Stopped(stop));
                    return;
                }
                Ended::Failed(Failure::Passing(why)) => {
                    let wait = backoff.next(was_live.then(|| since.elapsed()));
                    tracing::debug!(relay = self.feed.url, why, ?wait, "the link is down");
                    self.says.send_replace(Connection::Waits { why, wait });
                    sleep(wait).await;
                }
            }
        }
    }

    async fn session(&self) -> Result<Infallible, Ended> {
        let mut live = self.connect().await?;
        let started = unix_now();
        let mut sub = live.subscribe(self.concerns().live(started)).await.map_err(Failure::from)?;
        let mut held = Held::default();
        while let Some(event) = self.next(&mut live, &mut sub).await? {
            self.hold(event, &mut held).await?;
        }
        self.says.send_replace(Connection::CatchingUp);
        let client = {
            let mut gap = pin!(self.close_gap(started));
            loop {
                tokio::select! {
                    closed = &mut gap => break closed?,
                    next = self.next(&mut live, &mut sub), if held.has_room() => {
                        if let Some(event) = next? {
                            self.hold(event, &mut held).await?;
                        }
                    }
                }
            }
        };
        for event in held.events {
            self.hand(event).await?;
        }
        self.says.send_replace(Connection::Live);
        let late = pin!(self.look_for_late(client, started));
        let follow = pin!(self.follow(&mut live, &mut sub));
        tokio::select! {
            ended = follow => ended,
            ended = late => ended,
        }
    }

    fn concerns(&self) -> Concerns {
        Concerns { agent: self.feed.agent, owner: self.feed.owner }
    }

    async fn connect(&self) -> Result<Client, Failure> {
        let options = Options { credentials: Some(self.feed.credentials.clone()), timeout: STEP };
        let client = Client::connect(&self.feed.url, options).await?;
        check_auth(&client)?;
        Ok(client)
    }

    /// Hands on what comes, for as long as the connection lives.
    async fn follow(&self, live: &mut Client, sub: &mut Subscription) -> Result<Infallible, Ended> {
        let mut written = Instant::now();
        loop {
            let Some(event) = self.next(live, sub).await? else { continue };
            // Every few seconds, for ever: no reason to write to the disk. What a cursor that stands still brings
            // again is nothing but this.
            let is_routine = event.kind == Kind::LEASE_STATE;
            self.hand(event).await?;
            // All that the relay had before this event was handed over before it.
            if !is_routine && written.elapsed() >= CURSOR_EVERY {
                let now = unix_now();
                self.flush().await?;
                self.advance(now).await?;
                written = Instant::now();
            }
        }
    }

    /// What comes next. `None`: all that was stored has come.
    async fn next(&self, live: &mut Client, sub: &mut Subscription) -> Result<Option<VerifiedEvent>, Ended> {
        loop {
            match live.next_update(sub).await.map_err(Failure::from)? {
                Update::Event(event) => return Ok(Some(*event)),
                Update::Forged { id, why } => tracing::warn!(relay = self.feed.url, %id, %why, "a forged event"),
                Update::CaughtUp => return Ok(None),
                Update::Closed(why) => return Err(closed(why).into()),
            }
        }
    }

    /// Keeps what has an order until what was before it is there; orders and news do not wait.
    async fn hold(&self, event: VerifiedEvent, held: &mut Held) -> Result<(), Ended> {
        if matches!(event.kind, Kind::AGENT_FRAME | Kind::LEASE_STATE | Kind::REACTION | Kind::APP_DATA) {
            return self.hand(event).await;
        }
        held.bytes += event.content.len();
        held.events.push(event);
        Ok(())
    }

    /// Fetches what came while there was no connection; gives the one that it used.
    async fn close_gap(&self, started: Timestamp) -> Result<Client, Ended> {
        let mut client = self.connect().await?;
        let cursor = self.with_store(|store, url| store.cursor(url)).await?;
        let since = if cursor == 0 { started.saturating_sub(FIRST_SECS) } else { cursor.saturating_sub(OVERLAP_SECS) };
        let concerns = self.concerns();
        // Below a cursor that moves with the messages: so these first.
        self.fetch(&mut client, vec![concerns.wraps()], since.saturating_sub(WRAP_SECS), None).await?;
        self.fetch(&mut client, concerns.dated().to_vec(), since, Some(started)).await?;
        Ok(client)
    }

    /// Once; then only waits.
    async fn look_for_late(&self, mut client: Client, started: Timestamp) -> Result<Infallible, Ended> {
        self.fetch_late(&mut client, started).await?;
        client.close().await;
        std::future::pending().await
    }

    /// Hands on all that a relay has since a time. With `started`, the cursor goes along, up to that.
    async fn fetch(
        &self,
        client: &mut Client,
        filters: Vec<Filter>,
        since: Timestamp,
        started: Option<Timestamp>,
    ) -> Result<(), Ended> {
        let mut gap = Gap::new(client, filters, since);
        while let Some(piece) = gap.next().await.map_err(Failure::from)? {
            for event in piece.events {
                self.hand(event).await?;
            }
            if let Some(started) = started {
                self.flush().await?;
                self.advance(piece.through.map_or(started, |through| through.min(started))).await?;
            }
        }
        Ok(())
    }

    /// Messages that reached the relay late, where it can reconcile (NIP-77).
    async fn fetch_late(&self, client: &mut Client, started: Timestamp) -> Result<(), Ended> {
        let since = started.saturating_sub(LATE_SECS);
        let ours = self.with_store(move |store, _| store.message_ids(since)).await?;
        let filter = Filter { since: Some(since), ..self.concerns().messages() };
        let missing = match reconcile(client, &filter, &ours).await {
            Ok(difference) => difference.need,
            Err(error @ TransferError::NoReconciliation { .. }) => {
                tracing::debug!(relay = self.feed.url, %error, "late messages are not looked for");
                return Ok(());
            }
            Err(error) => return Err(Failure::from(error).into()),
        };
        let mut forged = 0;
        // In parts, so that what is in memory has a bound; each in its own order, for the ids tell no times.
        for ids in missing.chunks(IDS_MAX) {
            let found = fetch_ids(client, ids, &mut forged).await.map_err(Failure::from)?;
            let mut events: Vec<VerifiedEvent> = found.into_values().collect();
            events.sort_by_key(|event| (event.created_at, event.id));
            for event in events {
                self.hand(event).await?;
            }
        }
        Ok(())
    }

    async fn hand(&self, event: VerifiedEvent) -> Result<(), Ended> {
        let event = event.raw().clone();
        if event.kind == Kind::LEASE_STATE {
            // It names the agent and is no word to it. Full: whoever reads it asks the relay itself every few seconds.
            if let Some(leases) = &self.feed.leases {
                let _ = leases.try_send(event);
            }
            return Ok(());
        }
        let input = Input::Event { event: Box::new(event), relay: self.feed.url.clone() };
        self.feed.inputs.send(input).await.map_err(|_| Ended::DriverGone)
    }

    /// Waits until everything that was handed over is stored: only then may the cursor pass it.
    async fn flush(&self) -> Result<(), Ended> {
        let (done, stored) = oneshot::channel();
        self.feed.inputs.send(Input::Flushed(done)).await.map_err(|_| Ended::DriverGone)?;
        stored.await.map_err(|_| Ended::DriverGone)
    }

    async fn advance(&self, through: Timestamp) -> Result<(), Failure> {
        self.with_store(move |store, url| store.advance_cursor(url, through)).await
    }

    /// Reads or writes the records where blocking is allowed.
    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&AgentStore, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let (store, url) = (Arc::clone(&self.feed.store), self.feed.url.clone());
        match tokio::task::spawn_blocking(move || work(&store, &url)).await {
            Ok(done) => Ok(done?),
            Err(ended) => Err(Failure::Passing(format!("the agent's records: {ended}"))),
        }
    }
}

/// A subscription that the relay ended: some reasons stay the same until a person changes something.
fn closed(why: String) -> Failure {
    let is_final =
        ["auth-required:", "restricted:", "blocked:", "invalid:", "unsupported:"].iter().any(|p| why.starts_with(p));
    if is_final { Stop::Subscription(why).into() } else { Failure::Passing(why) }
}
