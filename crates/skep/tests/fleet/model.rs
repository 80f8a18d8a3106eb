//! What stands in for a model: it says in a log that it was prompted, then answers. And what must have become of each
//! message, by that log and by the relay.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use skep_proto::lease::Claim;
use skep_proto::{PubKey, RawEvent, limits};
use tempfile::TempDir;

use crate::hive::{Hive, MARK, mention, read};

/// A message is `job NAME BYTES SECONDS [leave]`: so many more bytes of reply, after so many seconds; `leave`: with a
/// process of its own left running. The last such line of a prompt counts. A line of the log is one `write`.
const SCRIPT: &str = r#"#!/bin/sh
set -- $(grep '^job ' | tail -n 1)
run="$2.$$.$(date +%s%N)"
echo "$run" >> LOG
[ "$5" = leave ] && { setsid sleep 300 > /dev/null 2>&1 & }
sleep "${4:-0}"
echo "done $2 run=$run"
[ "${3:-0}" = 0 ] || head -c "$3" /dev/zero | tr '\0' x
exit 0
"#;

pub struct Model {
    dir: TempDir,
}

impl Model {
    pub fn new() -> Self {
        let model = Self { dir: tempfile::tempdir().unwrap() };
        let script = SCRIPT.replace("LOG", &format!("{:?}", model.log_path()));
        fs::write(model.script(), script).unwrap();
        fs::set_permissions(model.script(), fs::Permissions::from_mode(0o755)).unwrap();
        model
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("runs")
    }

    fn script(&self) -> PathBuf {
        self.dir.path().join("model")
    }

    /// The backend of an agent's `[[agent]]`.
    pub fn settings(&self) -> String {
        format!("backend = \"command\"\ncommand = {:?}\nenv = [{:?}]\nparallel = 4", self.script(), MARK)
    }

    /// Each run that began, in order.
    pub fn runs(&self) -> Vec<String> {
        read(&self.log_path()).lines().map(str::to_owned).collect()
    }

    /// The runs that a message had.
    pub fn runs_of(&self, name: &str) -> Vec<String> {
        self.runs().into_iter().filter(|run| run.split('.').next() == Some(name)).collect()
    }
}

/// A message that must be answered once.
pub struct Job {
    pub name: String,
    pub channel: usize,
    bytes: usize,
    pub event: RawEvent,
}

impl Job {
    /// In channel 0, the owner's notes, or a channel of a group.
    pub fn new(agent: &PubKey, name: impl Into<String>, channel: usize, at: u64, bytes: usize, rest: &str) -> Self {
        let name = name.into();
        let group = (channel > 0).then(|| format!("c{channel}"));
        let event = mention(agent, group.as_deref(), at, &format!("job {name} {bytes} {rest}"));
        Self { name, channel, bytes, event }
    }

    /// Events that its reply takes.
    fn parts(&self) -> usize {
        // The line before the filling has far less than a hundred bytes.
        (self.bytes + 100).div_ceil(limits::REPLY_PART_BYTES_MAX)
    }

    /// What is wrong with its replies; else the run that answered.
    fn answer(&self, replies: &[RawEvent]) -> Result<String, String> {
        let is_final = |event: &&RawEvent| matches!(Claim::from_event(event), Some(Ok(claim)) if claim.is_final);
        let finals = replies.iter().filter(is_final).count();
        if (replies.len(), finals) != (self.parts(), 1) {
            return Err(format!("{} replies for {} parts, {finals} of them final", replies.len(), self.parts()));
        }
        let start = format!("done {} run=", self.name);
        let run = replies.iter().find_map(|event| event.content.strip_prefix(&start)?.lines().next());
        run.map(str::to_owned).ok_or_else(|| "a reply to something else".to_owned())
    }
}

pub fn ids(jobs: &[Job]) -> Vec<skep_proto::EventId> {
    jobs.iter().map(|job| job.event.id).collect()
}

/// Those that are not answered in full.
pub fn unanswered<'j>(hive: &Hive, jobs: &'j [Job]) -> Vec<&'j Job> {
    let replies = hive.replies(&ids(jobs));
    let is_answered = |job: &&Job| replies.get(&job.event.id).is_some_and(|found| found.len() >= job.parts());
    jobs.iter().filter(|job| !is_answered(job)).collect()
}

/// How many are answered in full.
pub fn answered(hive: &Hive, jobs: &[Job]) -> usize {
    jobs.len() - unanswered(hive, jobs).len()
}

/// Fails, with the fate of each message that has none or a wrong one, unless each was answered once, by a run of the
/// log, and in each channel in the order in which they were asked.
#[track_caller]
pub fn assert_answered_once_in_order(hive: &Hive, model: &Model, jobs: &[Job]) {
    let replies = hive.replies(&ids(jobs));
    let runs = model.runs();
    let place: HashMap<&str, usize> = runs.iter().enumerate().map(|(n, run)| (run.as_str(), n)).collect();
    let (mut faults, mut last): (Vec<String>, BTreeMap<usize, (usize, &str)>) = (Vec::new(), BTreeMap::new());
    for job in jobs {
        let found = replies.get(&job.event.id).map(Vec::as_slice).unwrap_or_default();
        match job.answer(found) {
            Err(wrong) => faults.push(fate(job, &wrong, found, model)),
            Ok(run) => match place.get(run.as_str()) {
                None => faults.push(fate(job, "answered by no run of the log", found, model)),
                Some(now) => {
                    let before = last.insert(job.channel, (*now, &job.name));
                    if let Some((before, name)) = before.filter(|(before, _)| before > now) {
                        let wrong = format!("run {now}, but {name}, which was asked before, had run {before}");
                        faults.push(fate(job, &wrong, found, model));
                    }
                }
            },
        }
    }
    println!("{} messages answered once; {} runs began, {} of them for nothing", jobs.len(), runs.len(), {
        runs.len() - jobs.len().min(runs.len())
    });
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), jobs.len(), faults.join("\n"));
}

fn fate(job: &Job, wrong: &str, replies: &[RawEvent], model: &Model) -> String {
    let said = |event: &RawEvent| {
        let text: String = event.content.chars().take(80).collect();
        format!("\n    at {} {:?} {}", event.created_at, event.tags.named("lease").next().map(|tag| tag.get(2)), text)
    };
    let replies: String = replies.iter().map(said).collect();
    let runs = model.runs_of(&job.name);
    format!("{} in channel {} of {}: {wrong}; runs {runs:?}{replies}", job.name, job.channel, job.event.created_at)
}
