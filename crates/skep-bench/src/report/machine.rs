//! What the page says of the machine and the day.

use std::fs;
use std::path::Path;

/// `processor, cores, memory, kernel`.
pub fn describe() -> String {
    let cpu = line("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kib: f64 = line("/proc/meminfo", "MemTotal")
        .and_then(|text| text.trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(0.0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpu}, {cores} cores, {:.0} GiB memory, Linux {}", kib / f64::from(1 << 20), kernel.trim())
}

/// The value of the first `key : value` line.
fn line(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let found = text.lines().find(|line| line.starts_with(key))?;
    Some(found.split_once(':')?.1.trim().to_owned())
}

/// The type of the file system that holds `dir`.
pub fn file_system(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let holds = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        dir.starts_with(&point).then_some((point.len(), kind))
    };
    mounts.lines().filter_map(holds).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

/// A file system in memory syncs nothing: figures from it are not of a durable relay.
pub fn is_volatile(file_system: &str) -> bool {
    matches!(file_system, "tmpfs" | "ramfs")
}

/// `YYYY-MM-DD` of a Unix time (Howard Hinnant's `civil_from_days`).
pub fn date(unix: u64) -> String {
    let days = unix / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_of_the_gregorian_calendar() {
        let days = [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_735_689_599, "2024-12-31"),
            (1_767_225_600, "2026-01-01"),
        ];
        for (unix, text) in days {
            assert_eq!(date(unix), text);
        }
    }
}
