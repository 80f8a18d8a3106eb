#![expect(clippy::unwrap_used, reason = "a test")]
//! What runs an agent, against the real relay in this process.

mod direct;
mod door;
mod hive;
mod instance;
mod lead;
mod link;
mod loops;
mod members;
mod outbox;
mod purse;
mod story;
