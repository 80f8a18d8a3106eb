//! Whether a relay can run here, and whether what it left behind is in order.
//!
//! Job: look at the home, the configuration, the store, the disk, the limits and the clock; say what is wrong and how
//! to mend it. Neighbours: everything that [`crate::relay`] starts a relay from.
//! Must not: change anything that a relay keeps (a store is opened, as a relay would, only when none runs).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use serde_json::Value;
use skep_core::health::Skew;
use skep_proto::limits::{Limits, TREES_MAX};
use skep_proto::{Filter, Timestamp};

use crate::agent::trees::Checked;
use crate::config::{ConfigError, Durability, RelaySettings, Settings};
use crate::home::{self, Home, HomeError};
use crate::keys::Keyring;
use crate::transfer::{Missing, Offline, TransferError};

/// Free space below which a disk is as good as full: one map growth and a compaction's slack.
const FREE_BYTES_MIN: u64 = 256 << 20;
/// Free space below which it is time to look after it.
const FREE_BYTES_LOW: u64 = 2 << 30;

/// Files that a relay has open beside its connections: store, blobs, threads' pipes, log, listener.
const FILES_RESERVED: u64 = 64;

/// Share of the map that may be used before it is time to raise `map_gib`.
const MAP_USED_PERCENT_MAX: u64 = 80;

/// 2025-01-01: a clock before the program was written is wrong.
const CLOCK_MIN: Timestamp = 1_735_689_600;

/// What mends a clock.
pub const CLOCK_MEND: &str = "set the clock and keep it right: timedatectl set-ntp true";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// It works, but somebody should know.
    Warning,
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// One limit, as it is set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LimitLine {
    pub name: &'static str,
    pub value: Value,
    pub default: Value,
    pub unit: &'static str,
    pub meaning: &'static str,
}

/// Everything that was looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
    pub limits: Vec<LimitLine>,
}

impl Report {
    pub fn is_well(&self) -> bool {
        self.wrong() == 0
    }

    pub fn wrong(&self) -> usize {
        self.checks.iter().filter(|check| check.state == State::Wrong).count()
    }

    fn ok(&mut self, name: &'static str, found: impl Into<String>) {
        self.checks.push(Check { name, state: State::Ok, found: found.into(), mend: None });
    }

    fn warn(&mut self, name: &'static str, found: impl Into<String>, mend: impl Into<String>) {
        self.checks.push(Check { name, state: State::Warning, found: found.into(), mend: Some(mend.into()) });
    }

    fn wrong_because(&mut self, name: &'static str, found: impl Into<String>, mend: impl Into<String>) {
        self.checks.push(Check { name, state: State::Wrong, found: found.into(), mend: Some(mend.into()) });
    }

    fn wrong_file(&mut self, name: &'static str, error: &HomeError) {
        let mend = error.hint().unwrap_or_else(|| "check its owner and mode".into());
        self.wrong_because(name, error.to_string(), mend);
    }
}

/// Looks at everything. `config` is what [`Settings::load`] and the flags made, `skews` what [`crate::skew`] found,
/// `trees` what [`crate::agent::trees`] did.
pub fn examine(
    home: &Home,
    config: Result<(Settings, Option<PathBuf>), ConfigError>,
    now: Timestamp,
    skews: &[Skew],
    trees: &[Checked],
) -> Report {
    let mut report = Report::default();
    examine_home(home, &mut report);
    let settings = match config {
        Ok((settings, path)) => {
            examine_config(&settings.relay, path.as_deref(), &mut report);
            settings.relay
        }
        Err(error) => {
            report.wrong_because("config", error.to_string(), "see docs/config.md for every setting and its default");
            RelaySettings::default()
        }
    };
    match settings.durability {
        Durability::Full => report.ok("durability", "full: an OK means that power may fail"),
        Durability::Relaxed => report.warn(
            "durability",
            "RELAXED: a power cut may take the last seconds of acknowledged events",
            "set durability = \"full\" in [relay] unless every event can be had again from elsewhere",
        ),
    }
    let dir = settings.data_dir(home.path());
    examine_data(&settings, home, &dir, now, &mut report);
    examine_disk(&dir, &mut report);
    examine_files(&settings.limits, &mut report);
    if now < CLOCK_MIN {
        report.wrong_because("clock", format!("unix time {now} is before 2025"), "set the clock, and run NTP");
    }
    for skew in skews {
        report.wrong_because("clock", skew.to_string(), CLOCK_MEND);
    }
    for Checked { agent, repo, found } in trees {
        match found {
            Ok(count) if *count < TREES_MAX => {
                report.ok("repo", format!("{agent}: {repo}, {count} of {} worktrees", TREES_MAX));
            }
            Ok(count) => {
                let mend = format!("skep agent trees {agent} --prune; merge what it keeps");
                report.wrong_because("repo", format!("{agent}: {count} worktrees, and room for no other"), mend);
            }
            Err(why) => {
                let mend = format!("mend that, or leave `repo` of {agent} out of the configuration");
                report.wrong_because("repo", format!("{agent}: {why}"), mend);
            }
        }
    }
    report.limits = limits(&settings.limits);
    report
}

fn examine_home(home: &Home, report: &mut Report) {
    match home::check_directory(home.path()) {
        Ok(()) => report.ok("home", home.path().display().to_string()),
        Err(HomeError::Missing { .. }) => {
            return report.ok("home", format!("{} is not there yet; it is made when needed", home.path().display()));
        }
        Err(error) => report.wrong_file("home", &error),
    }
    match Keyring::of(home).list() {
        Ok(keys) => {
            for key in &keys {
                if let Err(error) = &key.state {
                    let mend = error.hint().unwrap_or_else(|| "replace it, or move it away".into());
                    report.wrong_because("keys", format!("{}: {error}", key.name), mend);
                }
            }
            if keys.iter().all(|key| key.state.is_ok()) {
                report.ok("keys", format!("{} keys, closed to others", keys.len()));
            }
        }
        Err(error) => {
            let mend = error.hint().unwrap_or_else(|| "check the directory's owner and mode".into());
            report.wrong_because("keys", error.to_string(), mend);
        }
    }
}

/// The file was read; whether its keys and rules can be resolved shows only here.
fn examine_config(settings: &RelaySettings, path: Option<&Path>, report: &mut Report) {
    let resolved = settings
        .keys("relay.admins", &settings.admins)
        .and_then(|_| settings.keys("relay.members", &settings.members))
        .and_then(|_| settings.channel_rules())
        .and_then(|_| settings.names());
    match (resolved, path) {
        (Ok(_), Some(path)) => report.ok("config", path.display().to_string()),
        (Ok(_), None) => report.ok("config", "no file: the defaults"),
        (Err(error), _) => {
            report.wrong_because("config", error.to_string(), "see docs/config.md for every setting and its default");
        }
    }
}

fn examine_data(settings: &RelaySettings, home: &Home, dir: &Path, now: Timestamp, report: &mut Report) {
    match home::check_directory(dir) {
        Ok(()) => {}
        Err(HomeError::Missing { .. }) => {
            return report.ok("data", format!("{} is not there yet; the relay makes it", dir.display()));
        }
        Err(error) => return report.wrong_file("data", &error),
    }
    let mode = fs::metadata(dir).map_or(0, |meta| meta.mode() & 0o777);
    if mode & 0o077 != 0 {
        let found = format!("{} is open to others (mode {mode:04o}); it holds private messages", dir.display());
        report.wrong_because("data", found, format!("chmod 700 {}", dir.display()));
    }
    match Offline::open(settings, home, Missing::Fail) {
        Ok(store) => examine_store(&store, settings, now, report),
        Err(TransferError::InUse { path }) => report
            .ok("data", format!("{} is in use by a relay; its events are counted when it is down", path.display())),
        Err(TransferError::NoStore { path }) => {
            report.ok("data", format!("{} holds no store yet; the relay makes it", path.display()));
        }
        // Told already, as the configuration's.
        Err(TransferError::Config(_)) => {}
        Err(error) => {
            report.wrong_because("data", error.to_string(), error.hint().unwrap_or_else(|| "check the disk".into()));
        }
    }
}

fn examine_store(store: &Offline, settings: &RelaySettings, now: Timestamp, report: &mut Report) {
    let events = match store.len() {
        Ok(events) => events,
        Err(error) => {
            return report.wrong_because("data", error.to_string(), "export what can be read to another disk");
        }
    };
    let bytes = store.disk_bytes();
    report.ok("data", format!("{}: {events} events, {bytes} bytes, no relay uses it", store.dir().display()));
    let map_bytes = settings.map_gib << 30;
    if bytes > map_bytes / 100 * MAP_USED_PERCENT_MAX {
        let found = format!("{bytes} of {map_bytes} bytes of the map are used");
        report.warn("map", found, "raise map_gib in [relay], or run: skep relay compact");
    }
    let mut newest = None;
    let filter = Filter { limit: Some(1), ..Filter::new() };
    let looked = store.each(vec![filter], now, |event| {
        newest = Some(event.created_at());
        Ok::<_, TransferError>(())
    });
    if let Err(error) = looked {
        return report.wrong_because("data", error.to_string(), "export what can be read to another disk");
    }
    match newest {
        Some(at) if at > now.saturating_add(settings.limits.created_at_ahead_secs) => report.wrong_because(
            "clock",
            format!("the newest stored event is {} s ahead of this clock", at - now),
            "set the clock, and run NTP; if it is right, that event was imported from a machine whose clock was not",
        ),
        Some(at) => report.ok("clock", format!("the newest stored event is {} s old", now.saturating_sub(at))),
        None => report.ok("clock", "nothing is stored to compare it with"),
    }
}

/// Free space where the data is, or will be.
fn examine_disk(dir: &Path, report: &mut Report) {
    let Some(existing) = dir.ancestors().find(|dir| dir.exists()) else { return };
    let free = match rustix::fs::statvfs(existing) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => {
            return report.warn("disk", format!("{}: {error}", existing.display()), "check the file system");
        }
    };
    let found = format!("{} MiB free at {}", free >> 20, existing.display());
    let mend = "make room, or run: skep relay compact";
    match free {
        ..FREE_BYTES_MIN => report.wrong_because("disk", found, mend),
        FREE_BYTES_MIN..FREE_BYTES_LOW => report.warn("disk", found, mend),
        _ => report.ok("disk", found),
    }
}

fn examine_files(limits: &Limits, report: &mut Report) {
    let wanted = limits.connections as u64 + FILES_RESERVED;
    match getrlimit(Resource::Nofile).current {
        Some(files) if files < wanted => report.wrong_because(
            "files",
            format!("this shell allows {files} open files; {} connections need {wanted}", limits.connections),
            format!("ulimit -n {wanted} (LimitNOFILE={wanted} in a systemd unit), or lower relay.limits.connections"),
        ),
        Some(files) => report.ok("files", format!("{files} open files for {} connections", limits.connections)),
        None => report.ok("files", "any number of open files"),
    }
}

/// Each limit with its value and its default.
fn limits(limits: &Limits) -> Vec<LimitLine> {
    let (set, default) = (as_map(limits), as_map(&Limits::default()));
    let line = |(name, _, unit, meaning): (&'static str, String, &'static str, &'static str)| {
        let of = |all: &Value| all.get(name).cloned().unwrap_or_default();
        LimitLine { name, value: of(&set), default: of(&default), unit, meaning }
    };
    Limits::table().into_iter().map(line).collect()
}

fn as_map(limits: &Limits) -> Value {
    serde_json::to_value(limits).unwrap_or_default()
}
