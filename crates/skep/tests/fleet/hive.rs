//! A relay, an owner, and instances of agents as processes: each with a home of its own, on a machine that is its
//! directory of leader locks, behind a network of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use secp256k1::{Keypair, SECP256K1};
use serde_json::{Value, json};
use skep_proto::attestation::{Conditions, attest};
use skep_proto::{Draft, EventId, Kind, PubKey, RawEvent};
use skep_store::{AgentStore, StoreError};
use tempfile::TempDir;

use crate::binary;
use crate::proxy::{Proxy, Upstream};
use crate::relay_harness::client::{Client, frame, member};
use crate::relay_harness::script::unix_now;
use crate::relay_harness::{Place, Relay};

/// What never comes must fail the test, not hang it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at what is waited for.
pub const LOOK: Duration = Duration::from_millis(20);

/// The variable that all processes of one hive have, and what they start.
pub const MARK: &str = "FLEET_RUN";

/// Ids in one REQ: below the results that the smallest relay here gives.
const IDS_AT_ONCE: usize = 20;

/// Lines of each log that a test which failed shows.
const LOG_LINES: usize = 30;

/// What the hive is made of.
pub struct Plan {
    /// The machine of each instance.
    pub machines: Vec<usize>,
    pub agents: Vec<Agent>,
    /// More of `[relay.limits]`.
    pub limits: &'static str,
    /// More of the instances' environment.
    pub env: Vec<(&'static str, String)>,
}

impl Plan {
    /// One agent, on the machine of each instance.
    pub fn of(agent: Agent, machines: impl Into<Vec<usize>>) -> Self {
        Self { machines: machines.into(), agents: vec![agent], limits: "", env: Vec::new() }
    }
}

/// One agent: all instances run all agents.
#[derive(Clone)]
pub struct Agent {
    pub name: &'static str,
    pub keys: Keypair,
    /// More of its `[[agent]]`: its backend.
    pub settings: String,
}

impl Agent {
    /// `n` makes its key.
    pub fn new(name: &'static str, n: u8, settings: impl Into<String>) -> Self {
        let secret: [u8; 32] = StdRng::seed_from_u64(n.into()).random();
        let keys = Keypair::from_seckey_slice(SECP256K1, &secret).unwrap();
        Self { name, keys, settings: settings.into() }
    }

    pub fn pubkey(&self) -> PubKey {
        pubkey(&self.keys)
    }

    /// Its owner's attestation.
    pub fn consent(&self) -> [String; 4] {
        attest(&member(), &self.pubkey(), &Conditions::default(), &[0; 32])
    }
}

pub fn pubkey(keys: &Keypair) -> PubKey {
    PubKey(keys.x_only_public_key().0.serialize())
}

/// One instance: its home, its network, and its process while it runs.
pub struct Slot {
    pub home: PathBuf,
    locks: PathBuf,
    pub proxy: Proxy,
    pub process: Option<Process>,
}

pub struct Process {
    pub child: Child,
    /// Held open: a process whose stdout is closed could fail at a line.
    _stdout: ChildStdout,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        // It may have ended meanwhile, which is as good.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

pub struct Hive {
    /// Value of [`MARK`].
    pub run: String,
    dir: Option<TempDir>,
    place: Place,
    relay: Option<Relay>,
    upstream: Upstream,
    pub slots: Vec<Slot>,
    pub agents: Vec<Agent>,
    env: Vec<(&'static str, String)>,
}

impl Hive {
    pub fn new(plan: Plan) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let upstream: Upstream = Arc::new(Mutex::new(SocketAddr::from(([127, 0, 0, 1], 9))));
        let slot = |(n, machine): (usize, &usize)| Slot {
            home: dir.path().join(format!("home-{n}")),
            locks: dir.path().join(format!("machine-{machine}")),
            proxy: Proxy::start(Arc::clone(&upstream)),
            process: None,
        };
        let slots: Vec<Slot> = plan.machines.iter().enumerate().map(slot).collect();
        // An agent says in AUTH where it believes to be.
        let urls: Vec<String> = slots.iter().map(|slot| slot.proxy.url()).collect();
        let place = Place::with_limits(None, &format!("urls = {urls:?}"), plan.limits);
        let run = format!("{:016x}", rand::random::<u64>());
        let (agents, env) = (plan.agents, plan.env);
        let mut hive = Self { run, dir: Some(dir), place, relay: None, upstream, slots, agents, env };
        hive.relay_up();
        (0..hive.slots.len()).for_each(|n| hive.settle_in(n));
        hive
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// The only agent, where there is one.
    pub fn agent(&self) -> &Agent {
        &self.agents[0]
    }

    /// Makes the home of an instance: keys and configuration.
    fn settle_in(&mut self, n: usize) {
        let slot = &self.slots[n];
        fs::create_dir(&slot.home).unwrap();
        let mut config = format!("[leader]\ndir = {:?}\n", slot.locks);
        for agent in &self.agents {
            let Agent { name, settings, .. } = agent;
            let (auth, relay) = (agent.consent(), slot.proxy.url());
            config
                .push_str(&format!("[[agent]]\nname = {name:?}\nauth = {auth:?}\nrelays = [{relay:?}]\n{settings}\n"));
            let mut import = skep(self, n).args(["key", "import", name]).stdin(Stdio::piped()).spawn().unwrap();
            let secret = agent.keys.display_secret().to_string();
            import.stdin.take().unwrap().write_all(secret.as_bytes()).unwrap();
            assert!(import.wait().unwrap().success(), "a key is imported");
        }
        fs::write(slot.home.join("config.toml"), config).unwrap();
    }

    /// Starts an instance, and waits until it says that it runs.
    pub fn start(&mut self, n: usize) {
        let log = File::options().create(true).append(true).open(self.log_path(n)).unwrap();
        let mut command = skep(self, n);
        command.args(["agent", "run"]).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        for _ in &self.agents {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            assert!(line.starts_with("running "), "it said {line:?}\n{}", self.log(n));
        }
        self.slots[n].process = Some(Process { child, _stdout: stdout.into_inner() });
    }

    /// kill -9, and waits for its end.
    pub fn kill(&mut self, n: usize) {
        if let Some(mut process) = self.slots[n].process.take() {
            process.child.kill().unwrap();
            process.child.wait().unwrap();
        }
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self, n: usize) {
        if let Some(mut process) = self.slots[n].process.take() {
            process.signal(Signal::TERM);
            let status = process.child.wait().unwrap();
            assert!(status.success(), "{status}\n{}", self.log(n));
        }
    }

    /// SIGTERM to all at once.
    pub fn stop_all(&mut self) {
        for process in self.slots.iter().filter_map(|slot| slot.process.as_ref()) {
            process.signal(Signal::TERM);
        }
        (0..self.slots.len()).for_each(|n| self.stop(n));
    }

    pub fn relay_up(&mut self) {
        let relay = self.place.start();
        *self.upstream.lock().unwrap() = relay.url.strip_prefix("ws://").unwrap().parse().unwrap();
        self.relay = Some(relay);
    }

    /// kill -9 of the relay.
    pub fn relay_down(&mut self) {
        self.relay = None;
    }

    /// The lock file of an agent on the machine of an instance.
    pub fn lock(&self, n: usize, agent: &PubKey) -> PathBuf {
        self.slots[n].locks.join(format!("{agent}.lock"))
    }

    /// Where the relay itself listens.
    pub fn relay_url(&self) -> String {
        url(&self.upstream)
    }

    pub fn upstream(&self) -> Upstream {
        Arc::clone(&self.upstream)
    }

    /// The owner's connection.
    pub fn owner(&self) -> Client {
        Client::of_member(&self.relay_url())
    }

    /// The records of an instance.
    pub fn records(&self, n: usize) -> AgentStore {
        AgentStore::open(&self.records_path(n)).unwrap()
    }

    /// The same of an instance that may be writing them, or may never have made any.
    pub fn records_as_they_are(&self, n: usize) -> Result<AgentStore, StoreError> {
        AgentStore::open_to_read(&self.records_path(n))
    }

    fn records_path(&self, n: usize) -> PathBuf {
        self.slots[n].home.join("agents").join(self.agent().name).join("agent.db")
    }

    /// Which instance has the relay's lease on being the agent's prompter.
    pub fn prompter(&self) -> Option<usize> {
        let agent = self.agent().pubkey();
        let filter = json!({ "kinds": [Kind::LEASE_STATE], "#d": [format!("prompter:{agent}")] });
        let states = self.owner().query(&filter);
        let holder = states.first()?.tags.single("instance")?.to_owned();
        let is_it = |n: &usize| {
            let Some(process) = &self.slots[*n].process else { return false };
            let claim: Option<Value> = serde_json::from_str(&read(&self.lock(*n, &agent))).ok();
            claim.is_some_and(|claim| claim["instance_id"] == holder && claim["pid"] == process.pid())
        };
        (0..self.slots.len()).find(is_it)
    }

    /// Waits until some instance has the lease; gives which.
    pub fn until_led(&self) -> usize {
        let mut found = None;
        until("an instance leads", || {
            found = self.prompter();
            found.is_some()
        });
        found.unwrap()
    }

    /// What the agents published about these messages, by the message: all but reactions.
    pub fn replies(&self, messages: &[EventId]) -> BTreeMap<EventId, Vec<RawEvent>> {
        let mut owner = self.owner();
        let authors: Vec<PubKey> = self.agents.iter().map(Agent::pubkey).collect();
        let mut found: BTreeMap<EventId, Vec<RawEvent>> = BTreeMap::new();
        for ids in messages.chunks(IDS_AT_ONCE) {
            let kinds = [Kind::NOTE, Kind::CHAT, Kind::COMMENT];
            for event in owner.query(&json!({ "authors": authors, "kinds": kinds, "#e": ids })) {
                let parent = event.tags.values("e").last().unwrap().parse().unwrap();
                found.entry(parent).or_default().push(event);
            }
        }
        found
    }

    fn log_path(&self, n: usize) -> PathBuf {
        self.slots[n].home.with_extension("log")
    }

    /// The end of what an instance wrote to stderr, in all its lives.
    pub fn log(&self, n: usize) -> String {
        let text = read(&self.log_path(n));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Hive {
    fn drop(&mut self) {
        (0..self.slots.len()).for_each(|n| self.kill(n));
        if std::thread::panicking() {
            (0..self.slots.len()).for_each(|n| eprintln!("instance {n}:\n{}", self.log(n)));
            eprintln!("relay:\n{}", self.place.log());
            eprintln!("kept: {}", self.dir.take().unwrap().keep().display());
        }
    }
}

pub fn url(upstream: &Upstream) -> String {
    format!("ws://{}", upstream.lock().unwrap())
}

/// The binary under test, as instance `n` calls it.
pub fn skep(hive: &Hive, n: usize) -> Command {
    let mut command = binary::in_place(binary::path(), hive.dir(), &hive.slots[n].home);
    command
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("RUST_LOG", std::env::var("SKEP_FLEET_LOG").unwrap_or_else(|_| "info".into()))
        .env(MARK, &hive.run)
        .envs(hive.env.iter().cloned())
        .stdout(Stdio::null());
    command
}

/// Waits until something holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    until_within(PATIENCE, what, &mut holds);
}

#[track_caller]
pub fn until_within(patience: Duration, what: &str, holds: &mut impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < patience, "it never came: {what}");
        std::thread::sleep(LOOK);
    }
}

/// A message of the owner that mentions an agent: in a channel, or a plain note.
pub fn mention(agent: &PubKey, channel: Option<&str>, at: u64, text: &str) -> RawEvent {
    let draft = match channel {
        Some(channel) => Draft::new(Kind::CHAT, at, text).tag(["h", channel]),
        None => Draft::new(Kind::NOTE, at, text),
    };
    draft.tag(["p", &agent.to_hex()]).sign(&member(), &[0; 32]).raw().clone()
}

/// Publishes, in order, until the relay has each; it may be away meanwhile.
pub fn publish(upstream: &Upstream, events: &[RawEvent]) {
    let mut client = None;
    for event in events {
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < PATIENCE, "a message cannot be published");
            let Some(open) = client.take().or_else(|| Client::connect(&url(upstream)).ok()) else {
                std::thread::sleep(LOOK);
                continue;
            };
            let mut open: Client = open;
            if open.send(&frame(event)).is_ok()
                && let Ok((_, verdict)) = open.next_verdict()
            {
                assert!(matches!(verdict, crate::relay_harness::client::Verdict::Taken(_)), "{verdict:?}");
                client = Some(open);
                break;
            }
        }
    }
}

/// Processes that carry the mark of a hive, or come from one that does.
pub fn marked(run: &str) -> Vec<u32> {
    let entry = format!("{MARK}={run}").into_bytes();
    let is_marked = |pid: &u32| {
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|all| all.split(|byte| *byte == 0).any(|each| each == entry))
    };
    processes().filter(is_marked).collect()
}

/// All processes below one, and when each was started: a number alone may be given to another.
pub fn descendants(of: u32) -> Vec<(u32, u64)> {
    let all: Vec<(u32, u32, u64)> = processes().filter_map(|pid| Some((pid, stat(pid)?.0, stat(pid)?.1))).collect();
    let (mut found, mut next): (Vec<(u32, u64)>, Vec<u32>) = (Vec::new(), vec![of]);
    while let Some(parent) = next.pop() {
        for (pid, _, started) in all.iter().filter(|(_, of, _)| *of == parent) {
            found.push((*pid, *started));
            next.push(*pid);
        }
    }
    found
}

/// Whether a process of before is still there. A zombie is not: it only waits to be counted.
pub fn lives((pid, started): (u32, u64)) -> bool {
    stat(pid).is_some_and(|(_, since)| since == started)
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Parent and start time of a process that is no zombie.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    if fields[0] == "Z" {
        return None;
    }
    Some((fields[1].parse().ok()?, fields[19].parse().ok()?))
}

/// The text of a file; empty where there is none.
pub fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    unix_now()
}
