#![expect(clippy::unwrap_used, reason = "a test")]
//! Fleets of real processes: a relay, instances of agents with homes of their own, a network that fails. Each mention
//! is answered once, whatever happens to them; nothing is lost, nothing is left running, nothing secret leaves.
//!
//! `SKEP_MENTIONS` and `SKEP_INSTANCES` (a list) say how large the fleets of `one_answer` are, `SKEP_KILLS` how often
//! `kills` kills. A run prints its seed and the command that repeats it.

#[path = "../binary/mod.rs"]
#[expect(dead_code, reason = "other suites use the rest")]
mod binary;
mod chaos;
mod ends;
mod hive;
mod kills;
mod model;
mod nothing_lost;
mod one_answer;
mod proxy;
#[path = "../relay_harness/mod.rs"]
#[expect(dead_code, reason = "other suites use the rest")]
mod relay_harness;
mod safety;
mod secrets;
mod steal;
mod waiting;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A seed from the environment, or a new one; printed with the command that repeats the test with it.
fn seeded(test: &str) -> StdRng {
    let seed = std::env::var("SKEP_SEED").map_or_else(|_| rand::rng().random(), |text| text.parse().unwrap());
    println!("seed {seed}; repeat with: SKEP_SEED={seed} cargo test -p skep --test fleet {test} -- --nocapture");
    StdRng::seed_from_u64(seed)
}

/// A number of the environment.
fn knob(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}
