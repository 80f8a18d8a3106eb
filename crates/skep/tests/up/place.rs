//! A home in which `skep up` is run, stopped, killed and asked. Nothing waits for time to pass, only for what is said.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary;

/// Longer than anything may take on a busy machine; a test that meets it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The last line that `skep up` prints when it is up.
const IS_UP: &str = "Ctrl-C stops everything.";

pub struct Place {
    dir: TempDir,
    /// Programs that `skep up` may find.
    bin: PathBuf,
    pub listen: String,
}

pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        Self { dir, bin, listen: free_address() }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("skep")
    }

    pub fn config(&self) -> PathBuf {
        self.home().join("config.toml")
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.listen)
    }

    /// Makes a program of this name to be found.
    pub fn install(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.bin.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = binary::in_place(binary::path(), self.dir.path(), &self.home());
        command
            .args(args)
            .env("SKEP_RELAY__LISTEN", &self.listen)
            .env("PATH", format!("{}:/usr/bin:/bin", self.bin.display()));
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// Runs what must succeed.
    #[track_caller]
    pub fn done(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    /// The JSON lines of what must succeed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Vec<Value> {
        let text = self.done(&[args, &["--json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// `skep up`, when it says that it is up.
    #[track_caller]
    pub fn up(&self) -> Up {
        let up = self.spawn(&["up"]);
        up.until(|line| line == IS_UP);
        up
    }

    /// Anything that goes on, its lines read as they come.
    pub fn spawn(&self, args: &[&str]) -> Up {
        self.spawn_with(self.command(args))
    }

    pub fn spawn_with(&self, mut command: Command) -> Up {
        let log = self.dir.path().join("stderr.log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().unwrap();
        let lines = read_lines(child.stdout.take().unwrap());
        Up { child, lines, log }
    }

    /// What the one agent named so is, by `skep status`.
    #[track_caller]
    pub fn agent(&self, name: &str) -> Value {
        let status = self.run(&["status", "--json"]);
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        let nodes = status["nodes"].as_array().unwrap().iter().flat_map(|node| node["agents"].as_array().unwrap());
        let resting = status["resting"].as_array().unwrap();
        nodes.chain(resting).find(|agent| agent["name"] == name).unwrap_or_else(|| panic!("{name}: {status}")).clone()
    }

    /// Waits until an agent is as wanted.
    #[track_caller]
    pub fn until_agent(&self, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        until(|| {
            let agent = self.agent(name);
            if is_so(&agent) { Ok(agent) } else { Err(agent.to_string()) }
        })
    }

    /// Waits until an agent prompts under a lease.
    #[track_caller]
    pub fn until_leads(&self, name: &str) {
        self.until_agent(name, |agent| leads(agent) && agent["standing"]["lease"] == "held");
    }
}

pub fn leads(agent: &Value) -> bool {
    !agent["standing"]["role"]["leads"].is_null()
}

impl Ran {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// One clear line, a line with what mends it, and the exit code.
    #[track_caller]
    pub fn fails(&self, code: i32, cause: &str, hint: &str) {
        let told: Vec<&str> =
            self.stderr.lines().filter(|line| line.starts_with("error: ") || line.starts_with("hint: ")).collect();
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        assert_eq!(told.len(), 2, "{}", self.stderr);
        assert!(told[0].starts_with("error: ") && told[0].contains(cause), "{} lacks {cause:?}", told[0]);
        assert!(told[1].starts_with("hint: ") && told[1].contains(hint), "{} lacks {hint:?}", told[1]);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

impl Ran {
    /// One clear line that says what to do itself, and the exit code.
    #[track_caller]
    pub fn fails_with_one_line(&self, code: i32, cause: &str) {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        let told: Vec<&str> = self.stderr.lines().collect();
        assert!(told.len() == 1 && told[0].starts_with("error: ") && told[0].contains(cause), "{}", self.stderr);
    }
}

/// A process that goes on. Dropped, it is killed.
pub struct Up {
    pub child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Up {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads until a line is as wanted; gives all lines, that one last.
    #[track_caller]
    pub fn until(&self, is_it: impl Fn(&str) -> bool) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    seen.push(line);
                    if is_it(seen.last().unwrap()) {
                        return seen;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("it does not come: {}\n{}", seen.join("\n"), self.stderr()),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended: {}\n{}", seen.join("\n"), self.stderr()),
            }
        }
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks it to stop, and gives its exit code.
    #[track_caller]
    pub fn stop(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        until(|| self.child.try_wait().unwrap().ok_or("it runs on")).code()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        binary::end(&mut self.child);
    }
}

fn read_lines(stdout: ChildStdout) -> Receiver<String> {
    let (sends, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sends.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Looks again and again; a panic with what was found last when the time is up.
#[track_caller]
pub fn until<T, E: std::fmt::Display>(look: impl FnMut() -> Result<T, E>) -> T {
    let mut look = look;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(found) if Instant::now() > deadline => panic!("it does not come; the last that was seen: {found}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A port that nobody has at the moment.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Processes whose environment or arguments name a directory: what ran there and was left.
pub fn processes_of(dir: &Path) -> Vec<String> {
    let name = dir.to_str().unwrap().as_bytes().to_vec();
    let names = |bytes: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let (environ, cmdline) = (read("environ"), read("cmdline"));
        if pid != std::process::id() && (names(&environ) || names(&cmdline)) {
            found.push(format!("{pid}: {}", String::from_utf8_lossy(&cmdline).replace('\0', " ")));
        }
    }
    found
}

/// Writes a configuration in a home.
pub fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}
