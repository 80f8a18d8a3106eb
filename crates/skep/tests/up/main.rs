//! `skep up` and the commands that speak to it: the real binary, from nothing, in a home of its own.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "../binary/mod.rs"]
#[expect(dead_code, reason = "other suites use the rest")]
mod binary;
mod control;
mod demo;
mod errors;
mod first;
mod fleet;
mod owner;
mod place;
mod trees;
#[path = "../relay_harness/volume.rs"]
mod volume;
