//! The one way in. A socket, an agent, the mesh and an import all submit through a [`Door`].

use std::future::Future;

use skep_proto::{RawEvent, Refusal, Seq};

/// Where an event comes from: some rules are about an act (now, by whoever delivers it), others about the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A client's act: every rule holds.
    Client,
    /// A record taken over from elsewhere by an administrator: rules about its delivery (freshness, rate, lease
    /// epoch, who is connected) do not apply; rules about the event itself do.
    Record,
}

/// What became of a submission that was not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Committed and durable, or in the ring when ephemeral.
    Stored(Seq),
    /// It was here already.
    Duplicate,
    /// Accepted and dropped, as its spec asks.
    Dropped,
    /// Answered without being stored; the text goes into the OK.
    Answered(String),
}

/// Admits events. Implemented by the relay; an agent is given one and need not know what is behind it.
pub trait Door: Send + Sync {
    fn submit(&self, event: RawEvent) -> impl Future<Output = Result<Accepted, Refusal>> + Send;
}
