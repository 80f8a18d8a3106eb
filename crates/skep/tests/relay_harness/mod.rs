//! The real relay in a place of its own: started, killed, asked. `client` speaks to it, `script` is what was
//! published and what must therefore be there, `volume` is a file system that may be full or lose its power.
//!
//! Nothing here waits for time to pass: a relay is up when it says so, an event is stored when its OK is read.

pub mod client;
pub mod script;
pub mod volume;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::binary::{self, Listening};

/// No rate stands in the way of a test; one address may hold more connections than there are descriptors.
const LIMITS: &str = "[relay.limits]
events_per_second = 0
events_per_second_per_ip = 0
events_per_second_per_pubkey = 0
requests_per_second = 0
connections_per_ip = 1000
";

/// Where a relay runs: configuration and log are its own; home and data outlive it.
pub struct Place {
    dir: TempDir,
    home: PathBuf,
    data: PathBuf,
}

impl Place {
    /// `state`: the directory of home and data, when they are not to be in the place itself.
    pub fn new(state: Option<&Path>, settings: &str) -> Self {
        Self::with_limits(state, settings, "")
    }

    /// With more of `[relay.limits]`.
    pub fn with_limits(state: Option<&Path>, settings: &str, limits: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let member = client::member().x_only_public_key().0;
        let config = format!("[relay]\nmembers = [\"{member}\"]\n{settings}\n{LIMITS}{limits}\n");
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let state = state.unwrap_or_else(|| dir.path());
        Self { home: state.join("skep"), data: state.join("skep/relay"), dir }
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The relay's command line; with a shell command, that runs first, in the same process.
    pub fn command(&self, first: &str) -> Command {
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = binary::in_place("/bin/sh", self.dir.path(), &self.home);
        command
            .args(["-c", &format!("{first}\nexec \"$@\""), "sh", &binary::path(), "relay", "--listen", "127.0.0.1:0"])
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .arg("--data")
            .arg(&self.data)
            .stdout(Stdio::piped())
            .stderr(log);
        command
    }

    pub fn start(&self) -> Relay {
        self.try_start("").unwrap_or_else(|code| panic!("the relay ended with {code:?}:\n{}", self.log()))
    }

    /// Waits until it listens; or gives its exit code.
    pub fn try_start(&self, first: &str) -> Result<Relay, Option<i32>> {
        let mut child = self.command(first).spawn().unwrap();
        match binary::listening(&mut child) {
            Ok(Listening { url, pubkey, stdout }) => Ok(Relay { url, pubkey, child, _stdout: stdout }),
            Err(_) => Err(child.wait().unwrap().code()),
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("relay.log")
    }

    /// The end of what all relays of this place wrote to stderr.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// A running relay. Dropping it is kill -9.
pub struct Relay {
    pub url: String,
    pub pubkey: String,
    pub child: Child,
    _stdout: ChildStdout,
}

impl Drop for Relay {
    fn drop(&mut self) {
        binary::end(&mut self.child);
    }
}
