//! Skep's vocabulary: every type that goes over a wire or onto a disk.
//!
//! Job: parse bytes into values that cannot be wrong, and write them back the same.
//! Neighbours: everything depends on this crate; it depends on no other crate of ours.
//! Must not: read a clock, a file, a socket, the environment, or make randomness. All of these come
//! in as arguments, so that each function here is a function of what it is given.

pub mod agent;
pub mod attestation;
pub mod control;
pub mod event;
pub mod filter;
pub mod id;
pub mod kind;
pub mod lease;
pub mod limits;
pub mod mention;
pub mod name;
pub mod order;
pub mod pause;
pub mod reconcile;
pub mod record;
pub mod refusal;
pub mod seal;
mod skip;
pub mod tag;
pub mod thread;
pub mod time;
pub mod wire;
pub mod wrap;

pub use event::{Draft, HashedEvent, RawEvent, VerifiedEvent, VerifyError};
pub use filter::Filter;
pub use id::{EventId, PubKey, Seq, Sig};
pub use kind::Kind;
pub use record::{EventRef, Record};
pub use refusal::{Prefix, Refusal};
pub use tag::Tags;
pub use time::Timestamp;
