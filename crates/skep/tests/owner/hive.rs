//! A home with an owner, agents and a stranger; the real relay, real instances, and commands run against them.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use skep_node::client::{Client, Options};
use skep_node::clock::unix_now;
use skep_node::keys::{Keys, StoredKey};
use skep_proto::attestation::{Conditions, attest};
use skep_proto::{Draft, Kind, PubKey, RawEvent};

use crate::binary::{self, end};

/// What never comes must fail the test, not hang it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Who there is, with the byte that their secret is made of.
pub const NAMES: [(&str, u8); 5] = [("owner", 1), ("scout", 2), ("critic", 3), ("stranger", 4), ("other", 5)];

pub fn keys(name: &str) -> Keys {
    let (_, seed) = NAMES.iter().find(|(known, _)| *known == name).unwrap();
    StoredKey::parse(&format!("{seed:02x}").repeat(32), "a test").unwrap().unlock(|| unreachable!()).unwrap()
}

pub fn pubkey(name: &str) -> PubKey {
    keys(name).pubkey()
}

/// The owner's attestation of an agent.
pub fn consent(agent: &str) -> [String; 4] {
    attest(keys("owner").keypair(), &pubkey(agent), &Conditions::default(), &[0; 32])
}

pub struct Hive {
    dir: tempfile::TempDir,
    listen: String,
    relay: Option<Child>,
    agents: Vec<Child>,
}

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// One `error:` line and one `hint:` line at the end.
    #[track_caller]
    pub fn fails(&self, code: i32, cause: &str, hint: &str) {
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        let [.., error, help] = lines[..] else { panic!("{}", self.stderr) };
        assert!(error.starts_with("error: ") && error.contains(cause), "{error} lacks {cause:?}");
        assert!(help.starts_with("hint: ") && help.contains(hint), "{help} lacks {hint:?}");
    }

    #[track_caller]
    pub fn succeeds(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self
    }

    pub fn json(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// An agent on the built-in program.
pub fn demo(name: &str) -> String {
    let skep = binary::path();
    format!("name = {name:?}\ncommand = {skep:?}\nargs = [\"agent\", \"demo\"]\n")
}

/// An agent that is a shell script.
pub fn script(name: &str, text: &str) -> String {
    format!("name = {name:?}\nbackend = \"command\"\ncommand = \"/bin/sh\"\nargs = [\"-c\", {text:?}]\n")
}

/// An agent on a model server.
pub fn model(name: &str, base_url: &str) -> String {
    format!("name = {name:?}\nbackend = \"openai\"\nbase_url = {base_url:?}\nmodel = \"mock\"\n")
}

impl Hive {
    /// A relay whose member is the owner, and these agents, none of which runs yet.
    pub fn new(agents: &[String]) -> Self {
        Self::with("", agents)
    }

    pub fn with(relay: &str, agents: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A port of its own that is the same after a restart.
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mut hive = Self { dir, listen, relay: None, agents: Vec::new() };
        hive.home("home", agents);
        let member = pubkey("owner");
        fs::write(hive.path("relay.toml"), format!("[relay]\nmembers = [\"{member}\"]\n{relay}")).unwrap();
        hive.start_relay();
        hive
    }

    /// A home with all keys and a configuration with these agents, each attested by the owner.
    pub fn home(&self, name: &str, agents: &[String]) {
        self.home_on(name, "locks", agents);
    }

    /// The same on a machine, which is its directory of leader locks.
    pub fn home_on(&self, name: &str, machine: &str, agents: &[String]) {
        let keys = self.path(name).join("keys");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys).unwrap();
        for (name, seed) in NAMES {
            let mut file = fs::OpenOptions::new();
            let mut file = file
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(keys.join(format!("{name}.key")))
                .unwrap();
            std::io::Write::write_all(&mut file, format!("{seed:02x}").repeat(32).as_bytes()).unwrap();
        }
        let mut config = format!("[leader]\ndir = {:?}\n", self.path(machine));
        for agent in agents {
            let name = agent.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().trim_matches('"');
            let auth = serde_json::to_string(&consent(name)).unwrap();
            config.push_str(&format!("[[agent]]\n{agent}auth = {auth}\n"));
            if !agent.contains("relays = ") {
                config.push_str(&format!("relays = [{:?}]\n", self.url()));
            }
        }
        fs::write(self.path(name).join("config.toml"), config).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where an agent's backend works.
    pub fn workdir(&self, agent: &str) -> PathBuf {
        self.path("home/agents").join(agent).join("work")
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.listen)
    }

    pub fn start_relay(&mut self) {
        self.relay = Some(self.relay_at(&self.listen, "data"));
    }

    fn relay_at(&self, listen: &str, data: &str) -> Child {
        let (config, data) = (self.path("relay.toml"), self.path(data));
        let (config, data) = (config.to_str().unwrap(), data.to_str().unwrap());
        let mut command =
            self.command_at("relay-home", &["relay", "--listen", listen, "--config", config, "--data", data]);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        wait_for_line(&mut child, "listening");
        child
    }

    /// kill -9.
    pub fn kill_relay(&mut self) {
        end(&mut self.relay.take().unwrap());
    }

    /// kill -9 of whatever runs agents; gives how many processes that were.
    pub fn kill_agents(&mut self) -> usize {
        self.agents.drain(..).map(|mut agent| end(&mut agent)).count()
    }

    /// Runs all agents of a home; returns when they say so.
    pub fn run_agents(&mut self, home: &str) {
        let mut child = self.command_at(home, &["agent", "run"]).stderr(self.log()).spawn().unwrap();
        wait_for_line(&mut child, "running");
        self.agents.push(child);
    }

    /// Runs one of them, in a process of its own.
    pub fn run_agent(&mut self, home: &str, name: &str) {
        let mut child = self.command_at(home, &["agent", "run", name]).stderr(self.log()).spawn().unwrap();
        wait_for_line(&mut child, "running");
        self.agents.push(child);
    }

    /// SIGTERM to all of them, and waits.
    pub fn stop_agents(&mut self) {
        for mut agent in self.agents.drain(..) {
            let pid = rustix::process::Pid::from_child(&agent);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            agent.wait().unwrap();
        }
    }

    fn log(&self) -> Stdio {
        fs::OpenOptions::new().create(true).append(true).open(self.path("agents.log")).unwrap().into()
    }

    fn command_at(&self, home: &str, args: &[&str]) -> Command {
        let mut command = binary::in_place(binary::path(), self.dir.path(), &self.path(home));
        command.args(args).env("PATH", "/bin:/usr/bin").stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A command of the owner.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_at("home", args)
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.start(args).finish()
    }

    /// A command at another home.
    pub fn run_at(&self, home: &str, args: &[&str]) -> Ran {
        Running::of(self.command_at(home, args).spawn().unwrap()).finish()
    }

    pub fn pipe(&self, args: &[&str], stdin: &str) -> Ran {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), stdin.as_bytes()).unwrap();
        Running::of(child).finish()
    }

    pub fn start(&self, args: &[&str]) -> Running {
        Running::of(self.command(args).spawn().unwrap())
    }

    pub async fn client(&self, name: &str) -> Client {
        let options = Options { credentials: Some(keys(name).into()), ..Options::default() };
        Client::connect(&self.url(), options).await.unwrap()
    }

    /// Publishes a note of somebody that mentions an agent.
    pub async fn mention(&self, from: &str, agent: &str, text: &str) -> RawEvent {
        let mut draft = Draft::new(Kind::NOTE, unix_now(), text).tag(["p", &pubkey(agent).to_hex()]);
        if from != "owner" && from != "stranger" {
            draft = draft.tag(consent(from));
        }
        let event = keys(from).sign(draft).raw().clone();
        let verdict = self.client(from).await.publish(&event).await.unwrap();
        assert!(verdict.accepted, "{}", verdict.message);
        event
    }

    /// The open cards, once there are so many.
    pub fn cards(&self, count: usize) -> Vec<Value> {
        eventually("the cards", || {
            let open = self.run(&["approve", "--json"]).succeeds().json();
            (open.len() == count).then_some(open)
        })
    }
}

impl Drop for Hive {
    fn drop(&mut self) {
        self.agents.iter_mut().for_each(end);
        self.relay.iter_mut().for_each(end);
        if std::thread::panicking() {
            eprintln!("agents:\n{}", fs::read_to_string(self.path("agents.log")).unwrap_or_default());
        }
    }
}

/// Reads stdout up to a line that begins so, and goes on reading so that the process is never held up.
#[track_caller]
fn wait_for_line(child: &mut Child, begin: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().and_then(Result::ok).unwrap_or_default();
    assert!(first.starts_with(begin), "{first:?}");
    std::thread::spawn(move || lines.for_each(drop));
}

/// Tries again until there is something.
#[track_caller]
pub fn eventually<T>(what: &str, attempt: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A command that runs, its output read as it comes.
pub struct Running {
    child: Child,
    lines: mpsc::Receiver<(bool, String)>,
    stdout: String,
    stderr: String,
}

impl Running {
    fn of(mut child: Child) -> Self {
        let (says, lines) = mpsc::channel();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let read = |from: Box<dyn Read + Send>, is_stdout: bool| {
            let says = says.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(from).lines().map_while(Result::ok) {
                    if says.send((is_stdout, line)).is_err() {
                        return;
                    }
                }
            });
        };
        read(Box::new(stdout), true);
        read(Box::new(stderr), false);
        Self { child, lines, stdout: String::new(), stderr: String::new() }
    }

    /// Waits for a line, on either output, that contains a text.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok((is_stdout, line)) => {
                    self.keep(is_stdout, &line);
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(_) => panic!("no line with {text:?}:\n{}{}", self.stdout, self.stderr),
            }
        }
    }

    fn keep(&mut self, is_stdout: bool, line: &str) {
        let kept = if is_stdout { &mut self.stdout } else { &mut self.stderr };
        kept.push_str(line);
        kept.push('\n');
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Ran {
        while let Ok((is_stdout, line)) = self.lines.recv_timeout(PATIENCE) {
            self.keep(is_stdout, &line);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let (stdout, stderr) = (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr));
                return Ran { code: status.code().unwrap_or(-1), stdout, stderr };
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}{}", self.stdout, self.stderr);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What was said so far; then it is ended.
    pub fn stop(mut self) -> String {
        end(&mut self.child);
        while let Ok((is_stdout, line)) = self.lines.recv_timeout(Duration::from_secs(5)) {
            self.keep(is_stdout, &line);
        }
        std::mem::take(&mut self.stdout)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
