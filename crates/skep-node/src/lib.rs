//! Composition: what one `skep` process on one machine is made of.
//!
//! Job: read the environment, open the home directory and the keys, speak to relays as a client, run agents.
//! Neighbours: above every other crate of ours but the binary, which turns arguments into calls of this one.
//! Must not: print, prompt for anything but a secret, or end the process.

pub mod agent;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod fleet;
pub mod home;
pub mod keys;
pub mod node;
pub mod owner;
pub mod relay;
pub mod setup;
pub mod skew;
pub mod sync;
pub mod transfer;
