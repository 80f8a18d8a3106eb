//! The CPU pool: screens, hashes, verifies and judges batches of events, and hands what passes to the writer.
//!
//! Its inbox is bounded; a connection that submits faster than signatures are checked waits, and so does its socket.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use skep_core::World;
use skep_core::door::{Accepted, Origin};
use skep_core::intake::{self, Admission, Deliverer};
use skep_core::lease::{LeaseTable, Ledger, Rows};
use skep_core::world::Ownership;
use skep_proto::filter::{content_of, words};
use skep_proto::kind::{self, ReadRule};
use skep_proto::lease::{self, Claim, Lease, Request, Resource};
use skep_proto::{EventId, Prefix, PubKey, RawEvent, Record, Refusal, VerifiedEvent};
use skep_store::{LeaseRows, Op, Outcome, StoreError, Submission};

use crate::sequence::Turn;
use crate::shared::{Shared, own_op, unix_now};

/// What becomes of one event.
pub(crate) type Verdict = (EventId, Result<Accepted, Refusal>);

/// Events that were delivered together.
pub(crate) struct Job {
    pub from: Arc<Deliverer>,
    pub origin: Origin,
    pub ip: Option<IpAddr>,
    /// Its place in what its connection sent, where that matters.
    pub turn: Option<Turn>,
    pub events: Vec<RawEvent>,
    /// Called once for each event, in one or two calls; on a pool or writer thread, so it must not block.
    pub done: Box<dyn FnOnce(Vec<Verdict>) + Send>,
}

/// The way into the pool.
#[derive(Clone)]
pub(crate) struct Pool(async_channel::Sender<Job>);

/// Jobs waiting for a thread: two for each, so that no thread waits for a connection to wake.
const WAITING_PER_THREAD: usize = 2;

impl Pool {
    pub(crate) fn new(threads: usize) -> (Self, async_channel::Receiver<Job>) {
        let (sender, receiver) = async_channel::bounded(threads * WAITING_PER_THREAD);
        (Self(sender), receiver)
    }

    pub(crate) async fn submit(&self, job: Job) -> Result<(), Job> {
        self.0.send(job).await.map_err(|error| error.0)
    }

    /// No more jobs; the threads end when the last is done.
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

pub(crate) fn start(
    shared: &Arc<Shared>,
    jobs: &async_channel::Receiver<Job>,
    threads: usize,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    (0..threads)
        .map(|i| {
            let (shared, jobs) = (Arc::clone(shared), jobs.clone());
            std::thread::Builder::new().name(format!("skep-verify-{i}")).spawn(move || {
                while let Ok(job) = jobs.recv_blocking() {
                    run(&shared, job);
                }
            })
        })
        .collect()
}

/// What an event needs after the writer is done with it.
struct Pending {
    id: EventId,
    learn: Option<(PubKey, Ownership)>,
    /// How many operations it made.
    ops: usize,
}

fn run(shared: &Arc<Shared>, job: Job) {
    let Job { from, origin, ip, turn, events, done } = job;
    let ids: Vec<EventId> = events.iter().map(|event| event.id).collect();
    // A panic is a bug of ours. It must cost its batch, not the thread and whoever waits for the batch's turn.
    let judging = std::panic::AssertUnwindSafe(|| judge_all(shared, &from, origin, ip, events));
    let Ok(Batch { mut verdicts, pending, ops }) = std::panic::catch_unwind(judging) else {
        tracing::error!("judging a batch of events failed; they are refused");
        let refusal = Prefix::Error.because("the relay failed at this; it is not stored");
        done(ids.into_iter().map(|id| (id, Err(refusal.clone()))).collect());
        return submit(shared, turn, None);
    };
    if ops.is_empty() {
        shared.metrics.count_verdicts(&verdicts);
        done(verdicts);
        return submit(shared, turn, None);
    }
    let after = Arc::clone(shared);
    let finish = move |result: Result<Vec<Outcome>, Arc<StoreError>>| {
        match result {
            Ok(outcomes) => settle(&after, pending, outcomes, &mut verdicts),
            Err(error) => {
                let refusal = after.refuse_for(&error);
                verdicts.extend(pending.into_iter().map(|event| (event.id, Err(refusal.clone()))));
            }
        }
        after.metrics.count_verdicts(&verdicts);
        done(verdicts);
    };
    submit(shared, turn, Some(Submission { ops, done: Box::new(finish) }));
}

/// A batch that was judged: what is decided already, and what the writer is to do.
struct Batch {
    verdicts: Vec<Verdict>,
    pending: Vec<Pending>,
    ops: Vec<Op>,
}

fn judge_all(
    shared: &Arc<Shared>,
    from: &Arc<Deliverer>,
    origin: Origin,
    ip: Option<IpAddr>,
    events: Vec<RawEvent>,
) -> Batch {
    let mut verdicts = Vec::with_capacity(events.len());
    let mut pending = Vec::new();
    let mut ops = Vec::with_capacity(events.len());
    for event in events {
        let id = event.id;
        match judge(shared, origin, ip, from, event) {
            Ok(Judged::Write { op, learn }) => {
                let count = 1 + usize::from(learn.is_some());
                ops.push(op);
                ops.extend(learn.map(|(agent, row)| own_op(agent, row)));
                pending.push(Pending { id, learn, ops: count });
            }
            Ok(Judged::Known(accepted)) => verdicts.push((id, Ok(accepted))),
            Ok(Judged::Membership { is_join, key }) => verdicts.push((id, membership(shared, is_join, key))),
            Err(refusal) => verdicts.push((id, Err(refusal))),
        }
    }
    Batch { verdicts, pending, ops }
}

fn submit(shared: &Shared, turn: Option<Turn>, submission: Option<Submission>) {
    // A writer that has stopped drops the submission, and its connections are being closed.
    let submit = |submission| drop(shared.writer.submit_blocking(submission));
    match turn {
        Some(turn) => turn.pass(submission, submit),
        None => submission.into_iter().for_each(submit),
    }
}

fn settle(shared: &Shared, pending: Vec<Pending>, outcomes: Vec<Outcome>, verdicts: &mut Vec<Verdict>) {
    let mut outcomes = outcomes.into_iter();
    for event in pending {
        let first = outcomes.next();
        outcomes.by_ref().take(event.ops - 1).for_each(drop);
        if let Some((agent, row)) = event.learn {
            shared.learn(agent, row);
        }
        verdicts.push((event.id, first.map_or_else(|| Err(Prefix::Error.because("not stored")), accepted)));
    }
}

/// What the door says of the store's outcome.
pub fn accepted(outcome: Outcome) -> Result<Accepted, Refusal> {
    match outcome {
        Outcome::Stored(changes) => {
            Ok(Accepted::Stored(changes.first().map_or_else(Default::default, |change| change.seq)))
        }
        Outcome::Duplicate => Ok(Accepted::Duplicate),
        Outcome::Superseded => Err(Prefix::Duplicate.because("a newer version of this event is stored")),
        Outcome::Deleted => Err(Prefix::Blocked.because("its author deleted this event")),
        Outcome::Vanished => Err(Prefix::Blocked.because("its author asked to vanish")),
        Outcome::Refused(refusal) => Err(refusal),
        Outcome::Leased(lease, _) => Ok(Accepted::Answered(lease::granted_text(&lease))),
        Outcome::Swept(_) | Outcome::Done => Ok(Accepted::Dropped),
    }
}

enum Judged {
    Write { op: Op, learn: Option<(PubKey, Ownership)> },
    Known(Accepted),
    Membership { is_join: bool, key: PubKey },
}

fn judge(
    shared: &Arc<Shared>,
    origin: Origin,
    ip: Option<IpAddr>,
    from: &Deliverer,
    event: RawEvent,
) -> Result<Judged, Refusal> {
    let now = unix_now();
    let bytes = event_bytes(&event);
    intake::screen(&shared.world(), origin, &event, bytes, now)?;
    let invalid = |error: skep_proto::VerifyError| Prefix::Invalid.because(error.to_string());
    // Whoever knows what hashes to this id has the event: telling them that it is here tells them nothing.
    let event = event.hash().map_err(invalid)?;
    if shared.store.contains(&event.id()).map_err(|error| shared.refuse_for(&error))? {
        return Ok(Judged::Known(Accepted::Duplicate));
    }
    shared.metrics.verified.inc();
    let event = event.verify().map_err(invalid)?;
    if origin == Origin::Client {
        shared.check_rates(ip, &event)?;
    }
    let admission = intake::judge(&shared.world(), origin, from, &event, now)?;
    Ok(match admission {
        Admission::Drop => Judged::Known(Accepted::Dropped),
        Admission::Join => Judged::Membership { is_join: true, key: event.pubkey },
        Admission::Leave => Judged::Membership { is_join: false, key: event.pubkey },
        Admission::Lease { holder, request } => Judged::Write { op: lease_op(shared, holder, request), learn: None },
        Admission::Store { claim, learn } => Judged::Write { op: store_op(shared, event, claim), learn },
    })
}

/// Joining and leaving are rare: this thread waits for the commit.
fn membership(shared: &Shared, is_join: bool, key: PubKey) -> Result<Accepted, Refusal> {
    shared.runtime.block_on(shared.set_member(key, is_join))?;
    Ok(Accepted::Answered(if is_join { "info: welcome".into() } else { String::new() }))
}

/// About the size of the event as JSON, without writing it: the fields, quotes and commas.
pub fn event_bytes(event: &RawEvent) -> usize {
    const ENVELOPE: usize = 330;
    let tags: usize = event.tags.iter().map(|tag| 3 + tag.elements().map(|text| text.len() + 3).sum::<usize>()).sum();
    ENVELOPE + tags + event.content.len()
}

fn store_op(shared: &Arc<Shared>, event: VerifiedEvent, claim: Option<Claim>) -> Op {
    let author = event.pubkey;
    if event.kind.is_ephemeral() {
        return Op::Ring(event.into_record());
    }
    let record = event.into_record();
    let words = search_words(&shared.world(), &record);
    let guard = claim.map(|claim| {
        let shared = Arc::clone(shared);
        let check: skep_store::Guard = Box::new(move |rows| {
            let completed = Rows(Table(rows)).claim(unix_now(), &author, &claim)?;
            Ok(completed.map(|lease| lease.map(|lease| shared.sign(lease.state(&claim.resource)).into_record())))
        });
        check
    });
    Op::Put { record, words, guard }
}

/// Words that one event is found by: the first thousand of its own.
const WORDS_MAX: usize = 1_000;

/// The words that an event is stored with; none where it is not searched.
pub fn search_words(world: &World, record: &Record) -> Vec<String> {
    let event = record.as_ref();
    if !world.is_searchable(event.kind()) || kind::rule(event.kind()).read == ReadRule::Nobody {
        return Vec::new();
    }
    let mut all: Vec<String> = words(&content_of(event).unwrap_or_default()).take(WORDS_MAX).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn lease_op(shared: &Arc<Shared>, holder: PubKey, request: Request) -> Op {
    let shared = Arc::clone(shared);
    Op::Lease(Box::new(move |rows| {
        // The ledger's clock, at the moment of the decision.
        let answer = Rows(Table(rows)).request(unix_now(), holder, &request)?;
        Ok(answer.map(|lease| {
            let state = shared.sign(lease.state(&request.resource)).into_record();
            (lease, state)
        }))
    }))
}

/// The store's lease rows as the ledger's table.
struct Table<'r>(&'r mut dyn LeaseRows);

impl LeaseTable for Table<'_> {
    type Error = StoreError;

    fn get(&self, resource: &Resource) -> Result<Option<Lease>, StoreError> {
        self.0.get(resource)
    }

    fn put(&mut self, resource: &Resource, lease: &Lease) -> Result<(), StoreError> {
        self.0.put(resource, lease)
    }
}
