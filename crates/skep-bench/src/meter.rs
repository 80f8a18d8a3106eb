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
    before: Clocks,
}

/// CPU seconds so far.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    server: Option<f64>,
    client: Option<f64>,
    machine: Option<Machine>,
}

/// Of all cores together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Machine {
    /// Worked, for whomever, or taken by the hypervisor.
    busy: f64,
    all: f64,
}

impl Clocks {
    fn read(pid: Option<u32>) -> Self {
        Self {
            server: pid.and_then(|pid| cpu_seconds(&pid.to_string()).ok()),
            client: cpu_seconds("self").ok(),
            machine: fs::read_to_string("/proc/stat").ok().and_then(|stat| parse_machine(&stat)),
        }
    }
}

impl Meter {
    pub fn start(pid: Option<u32>) -> Self {
        Self { pid, before: Clocks::read(pid) }
    }

    /// Writes CPU per operation, the server's memory, and what others took of the machine, on the sheet.
    pub fn stop(self, operations: u64, sheet: &mut Sheet) {
        let (before, after) = (self.before, Clocks::read(self.pid));
        let spent = |before: Option<f64>, after: Option<f64>| Some(after? - before?);
        let per_operation = |seconds: f64| seconds * 1e6 / operations.max(1) as f64;
        let client = spent(before.client, after.client);
        if let Some(seconds) = client {
            sheet.set(Metric::ClientCpuUs, per_operation(seconds));
        }
        let Some(pid) = self.pid else { return };
        let (Some(server), Ok(memory)) = (spent(before.server, after.server), memory(pid)) else {
            return sheet.fault(format!("process {pid} was not there for the whole run"));
        };
        sheet.set(Metric::ServerCpuUs, per_operation(server));
        sheet.set(Metric::ServerRssMib, memory.resident / 1024.0);
        sheet.set(Metric::ServerAnonMib, memory.anonymous / 1024.0);
        if let (Some(client), Some(before), Some(after)) = (client, before.machine, after.machine) {
            let others = (after.busy - before.busy - client - server).max(0.0);
            sheet.set(Metric::OthersPercent, 100.0 * others / (after.all - before.all).max(0.01));
        }
    }
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
fn parse_machine(stat: &str) -> Option<Machine> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = line.split_ascii_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    let all = ticks.iter().sum::<f64>() / TICKS_PER_SECOND;
    let idle = (ticks.get(3)? + ticks.get(4)?) / TICKS_PER_SECOND;
    Some(Machine { busy: all - idle, all })
}

/// User and system time so far; `process` is a pid or `self`.
pub fn cpu_seconds(process: &str) -> io::Result<f64> {
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
        let meta = match entry.metadata() {
            // The relay removes files of its own while we look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            meta => meta?,
        };
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
    fn waiting_for_a_disk_is_not_work() {
        let stat = "cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 1\n";
        assert_eq!(parse_machine(stat), Some(Machine { busy: 2.0, all: 10.0 }));
    }

    #[test]
    fn resident_and_anonymous_memory_are_told_apart() {
        let status = "VmRSS:\t     900 kB\nRssAnon:\t     100 kB\nRssFile:\t 800 kB\n";
        assert_eq!(parse_status(status), Some(Memory { resident: 900.0, anonymous: 100.0 }));
        assert_eq!(parse_status("VmRSS:\t 900 kB\n"), None);
    }
}
