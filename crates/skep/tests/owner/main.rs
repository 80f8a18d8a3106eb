//! The owner's commands against a real relay and real instances: what is said is heard, what is asked is answered, what
//! is allowed is done once, and what is billed is what was used.
#![expect(clippy::unwrap_used, reason = "a test")]

mod ask;
#[path = "../binary/mod.rs"]
#[expect(dead_code, reason = "other suites use the rest")]
mod binary;
mod budget;
mod hive;
mod metering;
mod pause;
mod permissions;

#[path = "../../../skep-agent/tests/mock_model/mod.rs"]
mod mock_model;
#[path = "../scripted/mod.rs"]
#[expect(dead_code, reason = "what other tests ask of it")]
mod scripted;
