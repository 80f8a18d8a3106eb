//! One instance of an agent on this machine: the shells around `skep_agent::driver`.
//!
//! Job: bring what concerns the agent to its driver, send what it publishes, and say whether it leads.
//! Neighbours: `skep-agent` has the driver; [`crate::client`] speaks to relays; `skep-store` keeps the records.
//! Must not: decide what is prompted or answered, or hand on what did not verify.

mod concerns;
pub mod door;
mod gap;
pub mod lead;
pub mod link;
pub mod locks;
mod notice;
pub mod outbox;
mod prompter;
pub mod reconnect;
