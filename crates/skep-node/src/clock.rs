//! The wall clock. Crates below this one are told the time.

use std::time::{SystemTime, UNIX_EPOCH};

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
