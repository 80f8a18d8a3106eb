//! A relay, its owner, and instances of agents as processes, each with a home, on a machine that is its lock directory.
//!
//! Must not: leave a process behind. Dropping an instance kills it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use secp256k1::Keypair;
use skep_proto::PubKey;
use skep_proto::attestation::{Conditions, attest};
use skep_proto::time::Moment;
use tempfile::TempDir;

use super::owner::Owner;
use crate::corpus::keypair;
use crate::report::relay::RelayProcess;

/// A backend that is never prompted.
pub const IDLE_BACKEND: &str = "backend = \"command\"\ncommand = \"/bin/cat\"";

/// Keys come from these: the owner's, and those of agents.
const OWNER_SEED: u64 = 1;
const AGENT_SEED: u64 = 2;

pub struct Agent {
    name: String,
    keys: Keypair,
}

impl Agent {
    pub fn pubkey(&self) -> PubKey {
        PubKey(self.keys.x_only_public_key().0.serialize())
    }
}

pub struct Colony {
    bin: PathBuf,
    dir: TempDir,
    relay: RelayProcess,
    owner: Keypair,
}

impl Colony {
    pub fn start(bin: &Path, parent: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("skep-bench-").tempdir_in(parent);
        let dir = dir.with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        let bin = fs::canonicalize(bin).with_context(|| format!("cannot find {}", bin.display()))?;
        let owner = keypair(OWNER_SEED, 0)?;
        let settings = format!("[relay]\nmembers = [\"{}\"]\n", owner.x_only_public_key().0);
        let relay = RelayProcess::start_with(&bin, dir.path(), &settings)?;
        Ok(Self { bin, dir, relay, owner })
    }

    pub fn relay_pid(&self) -> u32 {
        self.relay.pid()
    }

    pub async fn owner(&self) -> Result<Owner> {
        Owner::connect(&self.relay.url, self.owner).await
    }

    pub fn agent(&self, n: usize) -> Result<Agent> {
        Ok(Agent { name: format!("agent-{n}"), keys: keypair(AGENT_SEED, n)? })
    }

    fn locks(&self, machine: usize) -> PathBuf {
        self.dir.path().join(format!("machine-{machine}"))
    }

    /// Makes a home that runs these agents on a machine.
    pub fn home(&self, n: usize, machine: usize, agents: &[Agent], backend: &str) -> Result<PathBuf> {
        let home = self.dir.path().join(format!("home-{n}"));
        fs::create_dir(&home)?;
        let mut config = format!("[leader]\ndir = {:?}\n", self.locks(machine));
        for agent in agents {
            let auth = attest(&self.owner, &agent.pubkey(), &Conditions::default(), &[0; 32]);
            let (name, relay) = (&agent.name, &self.relay.url.text);
            config.push_str(&format!("[[agent]]\nname = {name:?}\nauth = {auth:?}\nrelays = [{relay:?}]\n{backend}\n"));
            let mut import = self.skep(&home).args(["key", "import", name]).stdin(Stdio::piped()).spawn()?;
            let secret = agent.keys.display_secret().to_string();
            import.stdin.take().context("a pipe")?.write_all(secret.as_bytes())?;
            ensure!(import.wait()?.success(), "{} did not take a key in", self.bin.display());
        }
        fs::write(home.join("config.toml"), config)?;
        Ok(home)
    }

    /// The settings of a backend that writes down when it was prompted, and where.
    pub fn program(&self) -> Result<(String, PathBuf)> {
        let (this, log) = (std::env::current_exe()?, self.dir.path().join("prompts"));
        Ok((format!("backend = \"acp\"\ncommand = {this:?}\nargs = [\"program\", {log:?}]"), log))
    }

    fn skep(&self, home: &Path) -> Command {
        let mut command = Command::new(&self.bin);
        command.env("SKEP_HOME", home).env("HOME", self.dir.path()).stdout(Stdio::null());
        command
    }

    /// Starts an instance, and waits until it says that it runs all its agents.
    pub fn run(&self, home: &Path) -> Result<Instance> {
        let log = home.with_extension("log");
        let stderr = File::options().create(true).append(true).open(&log)?;
        let mut command = self.skep(home);
        command.args(["agent", "run"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.bin.display()))?;
        let stdout = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut instance = Instance { child, stdout };
        let agents = fs::read_to_string(home.join("config.toml"))?.matches("[[agent]]").count();
        for _ in 0..agents {
            let mut line = String::new();
            instance.stdout.read_line(&mut line)?;
            if !line.starts_with("running ") {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("the agents did not start; they said: {}", said.lines().last().unwrap_or("nothing"));
            }
        }
        Ok(instance)
    }

    /// What another NIP-LE program does with the lock file of a machine; `""` is nobody's claim.
    pub fn claim_lock(&self, machine: usize, agent: &PubKey, who: &str) -> Result<()> {
        let mut file = File::options().write(true).open(self.locks(machine).join(format!("{agent}.lock")))?;
        flock(&file, FlockOperation::LockExclusive)?;
        file.set_len(0)?;
        file.rewind()?;
        if !who.is_empty() {
            let ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
            let claim = serde_json::json!({
                "instance_id": who,
                "pid": std::process::id(),
                "claimed_at": Moment(u64::try_from(ms)?),
            });
            file.write_all(claim.to_string().as_bytes())?;
        }
        Ok(())
    }
}

/// A running instance.
pub struct Instance {
    child: Child,
    /// Held open: a process whose stdout is closed could fail at a line.
    stdout: BufReader<ChildStdout>,
}

impl Instance {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<()> {
        self.child.wait().map(drop).context("cannot wait for an instance")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // It may have ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
