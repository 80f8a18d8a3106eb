//! Finds what a child left behind, wherever it went.
//!
//! Agents start their tools in sessions of their own (Node's `detached`), so killing a process group is not enough. A
//! child's environment carries a random mark that everything it starts inherits; on Linux `/proc` shows it.

use std::fmt;

use super::SpawnError;

/// The name of the variable. Its value is random and means nothing.
pub const MARK: &str = "SKEP_CHILD";

/// The mark of one child and its descendants, in hex.
#[derive(Clone, PartialEq, Eq)]
pub struct Mark(String);

impl Mark {
    /// 64 random bits: one is not met twice on one machine.
    pub fn random() -> Result<Self, SpawnError> {
        let number = getrandom::u64().map_err(|error| SpawnError::Random(error.to_string()))?;
        Ok(Self(format!("{number:016x}")))
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Kills every process that carries the mark, and says how many that were.
#[cfg(target_os = "linux")]
pub fn kill_marked(mark: &Mark) -> usize {
    /// What was forked during a pass is met by the next. A fork bomb that outruns us is not ours to win.
    const PASSES_MAX: usize = 16;

    let entry = format!("{MARK}={mark}").into_bytes();
    let mut killed = 0;
    for _ in 0..PASSES_MAX {
        let this_pass = processes().filter(|process| kill_if_marked(*process, &entry)).count();
        if this_pass == 0 {
            break;
        }
        killed += this_pass;
    }
    killed
}

/// Elsewhere no process may read another's environment: the process group is all there is.
#[cfg(not(target_os = "linux"))]
pub fn kill_marked(_mark: &Mark) -> usize {
    0
}

#[cfg(target_os = "linux")]
fn processes() -> impl Iterator<Item = rustix::process::Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| rustix::process::Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

/// The process is pinned before it is looked at, so that a number that was given to another in between is not hit.
/// A zombie has no environment any more, so what was killed is not met again.
#[cfg(target_os = "linux")]
fn kill_if_marked(process: rustix::process::Pid, entry: &[u8]) -> bool {
    use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    let Ok(pinned) = pidfd_open(process, PidfdFlags::empty()) else { return false };
    let Ok(environment) = std::fs::read(format!("/proc/{}/environ", process.as_raw_nonzero())) else { return false };
    environment.split(|byte| *byte == 0).any(|each| each == entry) && pidfd_send_signal(pinned, Signal::KILL).is_ok()
}
