//! Skep's decisions: what should happen, as functions of what they are given.
//!
//! Job: say who may write, who may read, what a connection's message leads to, who holds a lease, who gets a live event.
//! Neighbours: `skep-proto` below; `skep-relay` executes what is decided here.
//! Must not: do I/O, read a clock or make randomness. `handle(now, input) -> effects`, and shells carry effects out.

pub mod access;
pub mod audience;
pub mod backend;
pub mod budget;
pub mod door;
pub mod fate;
pub mod frames;
pub mod health;
pub mod hll;
pub mod intake;
pub mod leader;
pub mod lease;
pub mod management;
pub mod meter;
pub mod pause;
pub mod permit;
pub mod prompt;
pub mod queue;
pub mod rate;
pub mod session;
pub mod subs;
pub mod tools;
pub mod tree;
pub mod turn;
pub mod usage;
pub mod watch;
pub mod world;

pub use access::{Readers, may_read, may_read_all};
pub use world::World;
