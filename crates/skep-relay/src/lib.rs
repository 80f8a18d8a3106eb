//! The front door: WebSocket and HTTP on one port.
//!
//! Job: move bytes between sockets, `skep-core`'s decisions and `skep-store`. One event goes
//! `conn` → `verify` → `core::intake` → `store::Writer` → OK, and then `fanout` → outboxes.
//! Neighbours: `skep-core`, `skep-store`, `skep-proto` below; `skep-node` starts and stops it.
//! Must not: decide (core does), read configuration files or the environment (node does), acknowledge before the
//! writer says so.

mod accept;
mod backend;
mod conn;
mod fanout;
pub mod http;
mod lane;
pub mod metrics;
mod neg;
mod outbox;
mod relay;
mod scans;
mod sequence;
mod shared;
mod turns;
mod verify;

pub use relay::{Config, Relay, StartError, recall};
pub use shared::Shared;
pub use verify::{accepted, event_bytes, search_words};
