//! The machine's clocks and randomness. Crates below this one are given them.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

/// Milliseconds since this process first asked, by the clock that does not jump.
pub fn steady_ms() -> u64 {
    static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
    STARTED.elapsed().as_millis() as u64
}

/// Until the next round of so many milliseconds begins. The rounds are those of the process: what many agents do every
/// few seconds they do together, and the machine wakes up once for all of them.
pub fn until_round(every_ms: u64) -> Duration {
    Duration::from_millis(every_ms - steady_ms() % every_ms)
}

/// What this machine gives its agents.
#[derive(Default)]
pub struct Machine;

impl Host for Machine {
    fn unix_ms(&self) -> UnixMs {
        unix_now_ms()
    }

    fn steady_ms(&self) -> u64 {
        steady_ms()
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("invariant: the operating system gives random bytes");
    }
}
