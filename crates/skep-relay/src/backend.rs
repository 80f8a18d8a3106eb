//! The relay as the HTTP face sees it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use skep_core::door::{Accepted, Origin};
use skep_core::management::Change;
use skep_core::session::Cut;
use skep_core::{Readers, World, may_read};
use skep_proto::{EventId, EventRef, Filter, RawEvent, Refusal, Seq, Timestamp, limits};
use skep_store::{BlobStore, Progress, Scan, Visit};
use tokio::sync::mpsc;

use crate::http::{Backend, Caller, Identity, Piece, Pieces};
use crate::shared::{Shared, random, unix_now};

impl Backend for Shared {
    fn with_world<R>(&self, f: impl FnOnce(&World) -> R) -> R {
        f(&Shared::world(self))
    }

    fn now(&self) -> Timestamp {
        unix_now()
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn fresh(&self) -> String {
        faster_hex::hex_string(&random()[..16])
    }

    fn use_token(&self, id: EventId, now: Timestamp) -> bool {
        Shared::use_token(self, id, now)
    }

    fn policy_turn(&self) -> &tokio::sync::Mutex<()> {
        &self.policy_turn
    }

    async fn apply(&self, change: Change) -> Result<(), Refusal> {
        match change {
            Change::Nothing => Ok(()),
            Change::Policy(policy) => self.set_policy(*policy).await,
            Change::Registry { agent, row } => self.own(agent, row).await,
        }
    }

    fn query(self: Arc<Self>, readers: Readers, filters: Vec<Filter>, caller: Option<Caller>) -> Pieces {
        let (sender, pieces) = mpsc::channel(limits::HTTP_PIECES_MAX);
        tokio::spawn(answer(self, readers, filters, caller, sender));
        pieces
    }

    async fn count(&self, readers: Readers, filters: Vec<Filter>) -> Result<u64, Refusal> {
        let mut count = 0;
        let scan = Scan::unlimited(filters.into(), self.tail.newest());
        run(self, scan, &readers, |_| {
            count += 1;
            Visit::Serve
        })
        .await?;
        Ok(count)
    }

    async fn submit(&self, readers: Readers, event: RawEvent) -> Result<Accepted, Refusal> {
        Shared::submit(self, Origin::Client, readers, event).await
    }

    fn take_request(&self, ip: IpAddr) -> bool {
        let has_one = Shared::take_request(self, ip);
        if !has_one {
            self.metrics.limited_requests.inc();
        }
        has_one
    }

    fn metrics(&self) -> String {
        let stats = self.writer.stats();
        let metrics = &self.metrics;
        metrics.commits.set(stats.commits.load(Ordering::Relaxed) as i64);
        metrics.commit_micros.set(stats.commit_us.load(Ordering::Relaxed) as i64);
        metrics.ring_dropped.set(self.tail.dropped() as i64);
        metrics.text()
    }

    fn ready(&self) -> Result<(), String> {
        if self.stop.is_cancelled() {
            return Err("the relay is stopping".into());
        }
        self.store.contains(&EventId([0; 32])).map(drop).map_err(|error| error.to_string())?;
        match self.writer.stats().is_failing.load(Ordering::Relaxed) {
            true => Err("the last commit failed; writes are refused until one succeeds".into()),
            false => Ok(()),
        }
    }

    fn blobs(&self) -> Option<&BlobStore> {
        self.blobs.as_ref()
    }
}

/// Runs a scan to its end in slices, letting others run in between.
async fn run(
    shared: &Shared,
    mut scan: Scan,
    readers: &Readers,
    mut found: impl FnMut(EventRef<'_>) -> Visit + Send,
) -> Result<(), Refusal> {
    while slice(shared, &mut scan, readers, &mut found)? == Progress::More {
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// One slice of a scan, of what these readers may see now.
fn slice(
    shared: &Shared,
    scan: &mut Scan,
    readers: &Readers,
    found: &mut (impl FnMut(EventRef<'_>) -> Visit + Send),
) -> Result<Progress, Refusal> {
    let (world, now) = (shared.world(), unix_now());
    let mut visit = |_: Seq, event: EventRef<'_>| {
        if may_read(&world, readers, event, now) { found(event) } else { Visit::Hide }
    };
    let progress = shared.store.scan(scan, limits::SLICE_RECORDS_MAX, &mut visit);
    progress.map_err(|error| shared.refuse_for(&error))
}

/// Makes a query's answer, a piece at a time. Ends with the reader, or cuts one that stopped reading.
async fn answer(
    shared: Arc<Shared>,
    readers: Readers,
    filters: Vec<Filter>,
    caller: Option<Caller>,
    pieces: mpsc::Sender<Piece>,
) {
    let stop = shared.stop.clone();
    let sent = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        sent = send_all(&shared, &readers, filters, &pieces) => sent,
    };
    if sent == Err(Unsent::Stalled) {
        shared.metrics.count_cut(Cut::SlowReader);
        if let Some(caller) = caller {
            caller.hang_up.cancel();
        }
    }
}

/// Why an answer ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unsent {
    /// The client went away.
    Gone,
    /// The client stays and takes nothing.
    Stalled,
}

async fn send_all(
    shared: &Shared,
    readers: &Readers,
    filters: Vec<Filter>,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), Unsent> {
    let most = shared.world().limits.results;
    let filters: Arc<[Filter]> = filters.into();
    let up_to = shared.tail.newest();
    let mut lines = BytesMut::new();
    for record in shared.recent(&filters, up_to, readers) {
        push_line(&mut lines, record.as_ref());
    }
    let mut scan = Scan::new(filters, up_to, most);
    loop {
        // A scan that finds nothing sends nothing, so it must look whether anybody still waits.
        if pieces.is_closed() {
            return Err(Unsent::Gone);
        }
        let mut served = 0;
        let progress = slice(shared, &mut scan, readers, &mut |event| {
            push_line(&mut lines, event);
            served += 1;
            if lines.len() >= limits::SLICE_BYTES_MAX { Visit::ServeLast } else { Visit::Serve }
        });
        shared.metrics.served.inc_by(served);
        if !lines.is_empty() {
            send(pieces, Piece::Lines(lines.split().freeze())).await?;
        }
        match progress {
            Ok(Progress::More) => tokio::task::yield_now().await,
            Ok(Progress::Done) => return send(pieces, Piece::End).await,
            Err(refusal) => return send(pieces, Piece::Failed(refusal)).await,
        }
    }
}

fn push_line(lines: &mut BytesMut, event: EventRef<'_>) {
    lines.extend_from_slice(event.to_json().as_bytes());
    lines.extend_from_slice(b"\n");
}

async fn send(pieces: &mpsc::Sender<Piece>, piece: Piece) -> Result<(), Unsent> {
    match tokio::time::timeout(Duration::from_secs(limits::OUTBOX_STALL_SECS), pieces.send(piece)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Unsent::Gone),
        Err(_) => Err(Unsent::Stalled),
    }
}
