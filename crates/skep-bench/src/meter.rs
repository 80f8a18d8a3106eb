//! CPU time and memory of a process, from `/proc`.
//!
//! CPU is user plus system time of all threads, also of those that have ended; the kernel's own threads (writeback)
//! are not in it. The kernel rounds it to 10 ms.

use std::fs;
use std::io;

use crate::sheet::{Metric, Sheet};

/// `USER_HZ`: fixed at 100 on Linux, whatever the kernel's own clock is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Measures the server, when its pid is known, and ourselves, over one run.
pub struct Meter {
    pid: Option<u32>,
    server_before: Option<f64>,
    client_before: Option<f64>,
}

impl Meter {
    pub fn start(pid: Option<u32>) -> Self {
        let server_before = pid.and_then(|pid| cpu_seconds(&pid.to_string()).ok());
        Self { pid, server_before, client_before: cpu_seconds("self").ok() }
    }

    /// Writes CPU per operation, and the server's memory, on the sheet.
    pub fn stop(self, operations: u64, sheet: &mut Sheet) {
        let per_operation = |seconds: f64| seconds * 1e6 / operations.max(1) as f64;
        if let (Some(before), Ok(after)) = (self.client_before, cpu_seconds("self")) {
            sheet.set(Metric::ClientCpuUs, per_operation(after - before));
        }
        let Some(pid) = self.pid else { return };
        match (self.server_before, cpu_seconds(&pid.to_string()), memory(pid)) {
            (Some(before), Ok(after), Ok(memory)) => {
                sheet.set(Metric::ServerCpuUs, per_operation(after - before));
                sheet.set(Metric::ServerRssMib, memory.resident / 1024.0);
                sheet.set(Metric::ServerAnonMib, memory.anonymous / 1024.0);
            }
            _ => sheet.fault(format!("process {pid} was not there for the whole run")),
        }
    }
}

/// User and system time so far; `process` is a pid or `self`.
fn cpu_seconds(process: &str) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    parse_stat(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc stat"))
}

fn parse_stat(stat: &str) -> Option<f64> {
    // The second field is the name in parentheses, and a name may hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// All resident pages. A store's memory map counts as far as it was touched, though it is only page cache.
    pub resident: f64,
    /// What the process itself holds.
    pub anonymous: f64,
}

pub fn memory(pid: u32) -> io::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_status(&status).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc status"))
}

fn parse_status(status: &str) -> Option<Memory> {
    let kib = |key: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(Memory { resident: kib("VmRSS:")?, anonymous: kib("RssAnon:")? })
}

/// Bytes that a directory takes on disk: allocated blocks, so that a sparse file counts for what it holds.
pub fn disk_bytes(dir: &std::path::Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() { disk_bytes(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_parentheses_is_no_trap() {
        let stat = "7 (a) b)) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0";
        assert_eq!(parse_stat(stat), Some(2.0));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn resident_and_anonymous_memory_are_told_apart() {
        let status = "VmRSS:\t     900 kB\nRssAnon:\t     100 kB\nRssFile:\t 800 kB\n";
        assert_eq!(parse_status(status), Some(Memory { resident: 900.0, anonymous: 100.0 }));
        assert_eq!(parse_status("VmRSS:\t 900 kB\n"), None);
    }
}
