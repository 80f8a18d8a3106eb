//! The machine's clocks and randomness. Crates below this one are given them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use skep_agent::driver::Host;
use skep_proto::Timestamp;
use skep_proto::time::UnixMs;

/// Unix time in seconds; 0 on a machine whose clock is before 1970.
pub fn unix_now() -> Timestamp {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Unix time in milliseconds.
pub fn unix_now_ms() -> UnixMs {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What this machine gives its agents.
pub struct Machine {
    started: Instant,
}

impl Default for Machine {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

impl Host for Machine {
    fn unix_ms(&self) -> UnixMs {
        unix_now_ms()
    }

    fn steady_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("invariant: the operating system gives random bytes");
    }
}
