//! A query in progress: bounded steps, each with a read transaction of its own, so that no query holds a core or
//! keeps old pages alive.

use std::any::Any;
use std::sync::Arc;

use skep_proto::{EventRef, Filter, Kind, Seq};

/// What the visitor makes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// It was served; it counts to the `limit` of each filter that it matches.
    Serve,
    /// Served too, and enough for this step: the caller has to send what it has.
    ServeLast,
    /// The reader may not see it; as if it were not there.
    Hide,
}

/// Who looks at what a scan finds.
pub trait Visitor {
    /// An event that matches.
    fn event(&mut self, seq: Seq, event: EventRef<'_>) -> Visit;

    /// One more event that matches, of this kind and without an expiration, known by its index row alone.
    /// `true` takes it as served; `false` asks for the event. A store need not offer rows.
    fn row(&mut self, kind: Kind) -> bool {
        let _ = kind;
        false
    }
}

impl<F: FnMut(Seq, EventRef<'_>) -> Visit> Visitor for F {
    fn event(&mut self, seq: Seq, event: EventRef<'_>) -> Visit {
        self(seq, event)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    More,
    Done,
}

/// The state of one query.
pub struct Scan {
    pub(crate) filters: Arc<[Filter]>,
    /// Events with a larger number are not served: live delivery has them.
    pub(crate) up_to: Seq,
    /// How many each filter may still serve.
    pub(crate) remaining: Vec<u64>,
    /// What the store keeps between steps.
    pub(crate) state: Option<Box<dyn Any + Send>>,
}

impl Scan {
    /// `most` bounds each filter, whatever its own `limit`.
    pub fn new(filters: Arc<[Filter]>, up_to: Seq, most: u64) -> Self {
        let remaining = filters.iter().map(|filter| filter.limit.unwrap_or(most).min(most)).collect();
        Self { filters, up_to, remaining, state: None }
    }

    /// A scan of everything that matches, `limit` left aside: for COUNT and reconciliation.
    pub fn unlimited(filters: Arc<[Filter]>, up_to: Seq) -> Self {
        let remaining = vec![u64::MAX; filters.len()];
        Self { filters, up_to, remaining, state: None }
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("filters", &self.filters).field("up_to", &self.up_to).finish_non_exhaustive()
    }
}
