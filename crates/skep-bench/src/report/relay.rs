//! A relay that the report starts itself, with its rate limits lifted, and stops again.
//!
//! Must not: leave a process behind. Dropping it kills it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::target::RelayUrl;

/// The limits that a relay must not have here: what is measured is the relay, not its politeness.
const CONFIG: &str = "\
[relay.limits]
connections = 20000
connections_per_ip = 20000
events_per_second = 0
events_per_second_per_ip = 0
events_per_second_per_pubkey = 0
requests_per_second = 0
";

/// Longest start: ten minutes for a store that is being repaired is a fault, not a start.
const START_MAX: Duration = Duration::from_secs(120);

/// A relay drains within 10 s of SIGTERM; half as much again for a busy machine.
const STOP_MAX: Duration = Duration::from_secs(15);

pub struct RelayProcess {
    bin: PathBuf,
    dir: TempDir,
    child: Child,
    pub url: RelayUrl,
    /// From the start of the process to its ready line.
    pub took: Duration,
}

impl RelayProcess {
    /// Starts a relay with an empty store in a new directory under `parent`.
    pub fn start(bin: &Path, parent: &Path) -> Result<Self> {
        Self::start_with(bin, parent, "")
    }

    /// With more settings than those of its limits.
    pub fn start_with(bin: &Path, parent: &Path, settings: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("skep-bench-").tempdir_in(parent);
        let dir = dir.with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        std::fs::create_dir(dir.path().join("data"))?;
        std::fs::write(dir.path().join("skep.toml"), format!("{settings}{CONFIG}"))?;
        let (child, url, took) = launch(bin, dir.path())?;
        Ok(Self { bin: bin.to_owned(), dir, child, url, took })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Stops the relay, and starts it again on the same store.
    pub fn restart(&mut self) -> Result<()> {
        stop(&mut self.child)?;
        (self.child, self.url, self.took) = launch(&self.bin, self.dir.path())?;
        Ok(())
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        if stop(&mut self.child).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn launch(bin: &Path, dir: &Path) -> Result<(Child, RelayUrl, Duration)> {
    let log = dir.join("relay.log");
    let start = Instant::now();
    let mut child = Command::new(bin)
        .args(["relay", "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.join("data"))
        .arg("--config")
        .arg(dir.join("skep.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::options().create(true).append(true).open(&log)?)
        .spawn()
        .with_context(|| format!("cannot start {}", bin.display()))?;
    match ready(&mut child, &log) {
        Ok(url) => Ok((child, url, start.elapsed())),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Waits for `listening ws://127.0.0.1:PORT …` on the relay's output, and reads that output to its end from then on.
fn ready(child: &mut Child, log: &Path) -> Result<RelayUrl> {
    let stdout = child.stdout.take().context("the relay has no output")?;
    let (found, wait) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(rest) = line.strip_prefix("listening ") {
                let _ = found.send(rest.split(' ').next().unwrap_or("").to_owned());
            }
        }
    });
    let url = wait.recv_timeout(START_MAX).map_err(|_| {
        let said = std::fs::read_to_string(log).unwrap_or_default();
        anyhow!("the relay did not say `listening ws://…`; it said: {}", said.lines().last().unwrap_or("nothing"))
    })?;
    url.parse().map_err(|error| anyhow!("the relay listens at {url:?}: {error}"))
}

fn stop(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("the relay has no pid")?;
    kill_process(pid, Signal::TERM)?;
    let end = Instant::now() + STOP_MAX;
    while Instant::now() < end {
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("the relay did not end within {} s of SIGTERM", STOP_MAX.as_secs())
}
