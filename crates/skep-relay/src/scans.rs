//! The queries of one connection, a slice at a time, in turn.

use std::collections::VecDeque;
use std::sync::Arc;

use skep_core::hll::Hll;
use skep_core::intake::Deliverer;
use skep_core::{Readers, World, may_read, may_read_all};
use skep_proto::wire::{self, SubId};
use skep_proto::{EventRef, Filter, Kind, Refusal, Seq, Timestamp, limits};
use skep_store::{Progress, Scan, StoreError, Visit, Visitor};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::neg::{Collecting, Negotiation, too_large};
use crate::shared::{Shared, unix_now};

/// Queries that run; the first is next.
#[derive(Default)]
pub(crate) struct Scans(VecDeque<Running>);

struct Running {
    sub: SubId,
    scan: Scan,
    purpose: Purpose,
    /// How many it has had; past [`limits::LIGHT_SLICES_MAX`] they are run on the slow lane.
    slices: u32,
}

enum Purpose {
    Request { quoted: Arc<str> },
    Count { count: u64, hll: Option<Box<Hll>> },
    Reconcile { set: Collecting, message: Vec<u8>, is_too_large: bool },
}

/// A query that ended in something other than messages.
pub(crate) enum Ended {
    /// A subscription whose scan failed.
    Failed(SubId),
    Negotiation(SubId, Box<Negotiation>),
    NegotiationFailed(SubId),
}

/// What planning a query costs, in slices: a value of a filter is at least a place in an index to look at.
fn planning(filters: &[Filter]) -> u32 {
    let values: usize = filters.iter().map(Filter::values).sum();
    u32::try_from(values / limits::SLICE_RECORDS_MAX).unwrap_or(u32::MAX)
}

impl Scans {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn request(&mut self, sub: SubId, quoted: Arc<str>, filters: Arc<[Filter]>, up_to: Seq, most: u64) {
        let slices = planning(&filters);
        self.0.push_back(Running {
            sub,
            scan: Scan::new(filters, up_to, most),
            purpose: Purpose::Request { quoted },
            slices,
        });
    }

    pub(crate) fn count(&mut self, sub: SubId, filters: Vec<Filter>, up_to: Seq) {
        let hll = Hll::for_filters(&filters).map(Box::new);
        let slices = planning(&filters);
        let scan = Scan::unlimited(filters.into(), up_to);
        self.0.push_back(Running { sub, scan, purpose: Purpose::Count { count: 0, hll }, slices });
    }

    pub(crate) fn reconcile(&mut self, sub: SubId, filter: Filter, message: Vec<u8>, up_to: Seq) {
        self.cancel_reconcile(&sub);
        let purpose = Purpose::Reconcile { set: Collecting::default(), message, is_too_large: false };
        let slices = planning(std::slice::from_ref(&filter));
        self.0.push_back(Running { sub, scan: Scan::unlimited([filter].into(), up_to), purpose, slices });
    }

    pub(crate) fn cancel_request(&mut self, sub: &SubId) {
        self.0.retain(|running| !(running.sub == *sub && matches!(running.purpose, Purpose::Request { .. })));
    }

    pub(crate) fn cancel_reconcile(&mut self, sub: &SubId) {
        self.0.retain(|running| !(running.sub == *sub && matches!(running.purpose, Purpose::Reconcile { .. })));
    }

    /// Runs one slice of the first query and puts it last, or ends it.
    pub(crate) async fn step(
        &mut self,
        shared: &Arc<Shared>,
        from: &Arc<Deliverer>,
        out: &mut Vec<Utf8Bytes>,
    ) -> Option<Ended> {
        let mut running = self.0.pop_front()?;
        let served = out.len();
        running.slices = running.slices.saturating_add(1);
        let progress = if running.slices <= limits::LIGHT_SLICES_MAX {
            running.slice(shared, &from.readers, limits::SLICE_RECORDS_MAX, out)
        } else {
            let progress;
            // Nothing comes back when the relay stops, and then the query ends with its connection.
            (running, progress) = running.slow_slice(shared, from, out).await?;
            progress
        };
        shared.metrics.served.inc_by((out.len() - served) as u64);
        match progress {
            Ok(Progress::More) => {
                self.0.push_back(running);
                None
            }
            Ok(Progress::Done) => running.finish(out),
            Err(error) => running.fail(&shared.refuse_for(&error), out),
        }
    }
}

impl Running {
    fn slice(
        &mut self,
        shared: &Shared,
        readers: &Readers,
        records: usize,
        out: &mut Vec<Utf8Bytes>,
    ) -> Result<Progress, StoreError> {
        let world = shared.world();
        let Self { scan, purpose, .. } = self;
        let mut reading = Reading { world: &world, readers, now: unix_now(), purpose, out, bytes: 0 };
        let progress = shared.store.scan(scan, records, &mut reading)?;
        let is_hopeless = matches!(self.purpose, Purpose::Reconcile { is_too_large: true, .. });
        Ok(if is_hopeless { Progress::Done } else { progress })
    }

    /// As much as one slice, in several with a read transaction each: the writer has to wait for the one that runs.
    fn slow_slices(
        &mut self,
        shared: &Shared,
        readers: &Readers,
        out: &mut Vec<Utf8Bytes>,
    ) -> Result<Progress, StoreError> {
        let records = limits::SLICE_RECORDS_MAX / limits::SLOW_PARTS;
        for _ in 1..limits::SLOW_PARTS {
            let progress = self.slice(shared, readers, records, out)?;
            // A kernel may let a thread run for milliseconds before another that has woken on its core; whoever waits
            // there for what is quick has it now.
            std::thread::yield_now();
            let bytes: usize = out.iter().map(|text| text.len()).sum();
            if progress == Progress::Done || bytes >= limits::SLICE_BYTES_MAX {
                return Ok(progress);
            }
        }
        self.slice(shared, readers, records, out)
    }

    /// The same on the slow lane.
    async fn slow_slice(
        mut self,
        shared: &Arc<Shared>,
        from: &Arc<Deliverer>,
        out: &mut Vec<Utf8Bytes>,
    ) -> Option<(Self, Result<Progress, StoreError>)> {
        let (there, from) = (Arc::clone(shared), Arc::clone(from));
        let mut served = std::mem::take(out);
        let work = move || {
            let progress = self.slow_slices(&there, &from.readers, &mut served);
            (self, progress, served)
        };
        let (running, progress, served) = shared.lane.run(work).await?;
        *out = served;
        Some((running, progress))
    }

    fn finish(self, out: &mut Vec<Utf8Bytes>) -> Option<Ended> {
        match self.purpose {
            Purpose::Request { quoted } => {
                out.push(wire::eose(&quoted).into());
                None
            }
            Purpose::Count { count, hll } => {
                out.push(wire::count(&self.sub, count, hll.map(|hll| hll.to_hex()).as_deref()).into());
                None
            }
            Purpose::Reconcile { is_too_large: true, .. } => self.fail(&too_large(), out),
            Purpose::Reconcile { set, message, .. } => {
                let started = set.seal().and_then(|mut negotiation| {
                    let answer = negotiation.answer(&message)?;
                    Ok((negotiation, answer))
                });
                match started {
                    Ok((negotiation, answer)) => {
                        out.push(wire::neg_msg(&self.sub, &faster_hex::hex_string(&answer)).into());
                        Some(Ended::Negotiation(self.sub, Box::new(negotiation)))
                    }
                    Err(refusal) => {
                        out.push(wire::neg_err(&self.sub, &refusal).into());
                        Some(Ended::NegotiationFailed(self.sub))
                    }
                }
            }
        }
    }

    fn fail(self, refusal: &Refusal, out: &mut Vec<Utf8Bytes>) -> Option<Ended> {
        match self.purpose {
            Purpose::Request { .. } => {
                out.push(wire::closed(&self.sub, refusal).into());
                Some(Ended::Failed(self.sub))
            }
            Purpose::Count { .. } => {
                out.push(wire::closed(&self.sub, refusal).into());
                None
            }
            Purpose::Reconcile { .. } => {
                out.push(wire::neg_err(&self.sub, refusal).into());
                Some(Ended::NegotiationFailed(self.sub))
            }
        }
    }
}

/// One slice, as the store sees it.
struct Reading<'a> {
    world: &'a World,
    readers: &'a Readers,
    now: Timestamp,
    purpose: &'a mut Purpose,
    out: &'a mut Vec<Utf8Bytes>,
    bytes: usize,
}

impl Visitor for Reading<'_> {
    fn event(&mut self, _: Seq, event: EventRef<'_>) -> Visit {
        if !may_read(self.world, self.readers, event, self.now) {
            return Visit::Hide;
        }
        match self.purpose {
            Purpose::Request { quoted } => {
                let text = wire::event(quoted, event);
                self.bytes += text.len();
                self.out.push(text.into());
                if self.bytes >= limits::SLICE_BYTES_MAX {
                    return Visit::ServeLast;
                }
            }
            Purpose::Count { count, hll } => {
                *count += 1;
                if let Some(hll) = hll {
                    hll.add(&event.pubkey());
                }
            }
            Purpose::Reconcile { set, is_too_large, .. } => {
                *is_too_large |= !set.add(event.created_at(), event.id());
            }
        }
        Visit::Serve
    }

    /// A count needs no record where its kind decides alone.
    fn row(&mut self, kind: Kind) -> bool {
        match self.purpose {
            Purpose::Count { count, hll: None } if may_read_all(self.world, self.readers, kind) => {
                *count += 1;
                true
            }
            _ => false,
        }
    }
}
