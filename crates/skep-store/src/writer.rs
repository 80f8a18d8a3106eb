//! The one writer of a store: a bounded inbox, batches, one transaction each, and answers only after the commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use skep_proto::{Timestamp, limits};
use tokio::sync::mpsc;

use crate::{EventStore, Op, Outcome, StoreError, Tail};

/// What one caller wants stored together, and who is told. `done` runs on the writer's thread: it must not block.
pub struct Submission {
    pub ops: Vec<Op>,
    pub done: Done,
}

impl Submission {
    /// Operations, and bytes of their events.
    fn size(&self) -> (usize, usize) {
        (self.ops.len(), self.ops.iter().map(Op::bytes).sum())
    }
}

pub type Done = Box<dyn FnOnce(Result<Vec<Outcome>, Arc<StoreError>>) + Send>;

/// A handle to the writer. Overflow policy of its inbox: senders wait.
#[derive(Clone)]
pub struct Writer {
    inbox: mpsc::Sender<Submission>,
    stats: Arc<Stats>,
}

/// What the writer did, for metrics.
#[derive(Debug, Default)]
pub struct Stats {
    pub commits: AtomicU64,
    pub failed_commits: AtomicU64,
    pub commit_us: AtomicU64,
    pub ops: AtomicU64,
    /// Whether the newest commit failed.
    pub is_failing: AtomicBool,
}

impl Writer {
    /// Starts the thread. It ends, with everything accepted committed, when all handles are gone.
    pub fn start(
        store: Arc<dyn EventStore>,
        tail: Arc<Tail>,
        clock: impl Fn() -> Timestamp + Send + 'static,
    ) -> Result<(Self, JoinHandle<()>), StoreError> {
        let (inbox, receiver) = mpsc::channel(limits::WRITER_QUEUE_MAX);
        let stats = Arc::new(Stats::default());
        let run = Run { store, tail, clock, stats: Arc::clone(&stats) };
        let thread = std::thread::Builder::new()
            .name("skep-writer".into())
            .spawn(move || run.run(receiver))
            .map_err(|cause| StoreError::Other(format!("cannot start the writer: {cause}")))?;
        Ok((Self { inbox, stats }, thread))
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Waits for room. `Err` gives it back when the writer has stopped.
    pub async fn submit(&self, submission: Submission) -> Result<(), Submission> {
        self.inbox.send(submission).await.map_err(|error| error.0)
    }

    /// The same from a thread that may block.
    pub fn submit_blocking(&self, submission: Submission) -> Result<(), Submission> {
        self.inbox.blocking_send(submission).map_err(|error| error.0)
    }
}

struct Run<C> {
    store: Arc<dyn EventStore>,
    tail: Arc<Tail>,
    clock: C,
    stats: Arc<Stats>,
}

impl<C: Fn() -> Timestamp> Run<C> {
    fn run(&self, mut inbox: mpsc::Receiver<Submission>) {
        let mut batch = Vec::new();
        while let Some(first) = inbox.blocking_recv() {
            let (mut ops, mut bytes) = first.size();
            batch.push(first);
            while ops < limits::BATCH_EVENTS_MAX
                && bytes < limits::BATCH_BYTES_MAX
                && let Ok(next) = inbox.try_recv()
            {
                let (more_ops, more_bytes) = next.size();
                (ops, bytes) = (ops + more_ops, bytes + more_bytes);
                batch.push(next);
            }
            self.commit(&mut batch);
        }
    }

    fn commit(&self, batch: &mut Vec<Submission>) {
        let started = std::time::Instant::now();
        let counts: Vec<usize> = batch.iter().map(|submission| submission.ops.len()).collect();
        let ops: Vec<Op> = batch.iter_mut().flat_map(|submission| submission.ops.drain(..)).collect();
        self.stats.ops.fetch_add(ops.len() as u64, Ordering::Relaxed);
        let result = self.store.apply(ops);
        self.stats.commits.fetch_add(1, Ordering::Relaxed);
        self.stats.commit_us.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        match &result {
            Err(error) => {
                if !self.stats.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "nothing is stored until a commit succeeds; reads go on");
                }
            }
            // A batch that needed no disk says nothing about the disk.
            Ok(outcomes) if outcomes.iter().any(wrote) => {
                if self.stats.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("commits succeed again");
                }
            }
            Ok(_) => {}
        }
        match result {
            Ok(outcomes) => {
                self.tail.append(outcomes.iter().flat_map(changes).cloned(), (self.clock)());
                let mut outcomes = outcomes.into_iter();
                for (submission, count) in batch.drain(..).zip(counts) {
                    (submission.done)(Ok(outcomes.by_ref().take(count).collect()));
                }
            }
            Err(error) => {
                self.stats.failed_commits.fetch_add(1, Ordering::Relaxed);
                let error = Arc::new(error);
                batch.drain(..).for_each(|submission| (submission.done)(Err(Arc::clone(&error))));
            }
        }
    }
}

/// Whether an outcome means that the disk took something.
fn wrote(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Stored(changes) => changes.iter().any(|change| !change.record.as_ref().kind().is_ephemeral()),
        Outcome::Leased(..) | Outcome::Done => true,
        Outcome::Swept(swept) => *swept > 0,
        _ => false,
    }
}

fn changes(outcome: &Outcome) -> &[crate::Change] {
    match outcome {
        Outcome::Stored(changes) | Outcome::Leased(_, changes) => changes,
        _ => &[],
    }
}
