//! The stage of `skep up --demo`: a home of its own with an owner and three agents on the built-in program, and a
//! second instance of one of them as a process of its own.
//!
//! Neighbours: [`crate::setup`] makes keys and settings, [`crate::node`] runs them; the binary tells the story.
//! Must not: touch anything of the home around it but its directory `demo`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use skep_agent::Environment;
use skep_agent::child::{Child, Program, SpawnError};
use skep_proto::PubKey;
use skep_proto::name::AgentName;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use crate::agent::settings::AgentSettings;
use crate::config::Settings;
use crate::home::{self, Existing, Home};
use crate::keys::{KeyError, KeySource, Keyring, Keys, SecretText, StoredKey};
use crate::setup::{self, BUILT_IN, CONFIG, Runs, SetupError, text};

/// The directory in the home.
const DIRECTORY: &str = "demo";

/// The one of which two instances run, and the others.
pub const TWICE: &str = "scout";
pub const OTHERS: [&str; 2] = ["writer", "critic"];

/// How long the second process may take to say that it runs.
const START_MAX: Duration = Duration::from_secs(20);

/// Everything that the story needs.
#[derive(Debug)]
pub struct Stage {
    pub home: Home,
    pub config: PathBuf,
    pub settings: Settings,
    pub url: String,
    pub owner: Keys,
    /// Each with its key, the one that runs twice first.
    pub agents: Vec<(AgentName, Keys)>,
    /// What is the second process's home directory, in the system's sense.
    twin: PathBuf,
}

/// Why the second process does not run.
#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("the second instance cannot be started: {0}")]
    Start(String),
}

/// A second instance, in a process that ends when this one does.
pub struct Twin {
    child: Child,
    home: Home,
}

/// Sets the stage; what an earlier story left is used again.
pub fn stage(home: &Home) -> Result<Stage, SetupError> {
    let home = Home::at(home.path().join(DIRECTORY));
    home.directory("keys")?;
    let ring = Keyring::of(&home);
    let owner = setup::owner(&ring, no_passphrase)?;
    let config = home.path().join(CONFIG);
    let listen = free_address(&config);
    let url = format!("ws://{listen}");
    let runs = Runs::Preset(BUILT_IN.into());
    let (mut agents, mut tables) = (Vec::new(), Vec::new());
    for name in std::iter::once(TWICE).chain(OTHERS) {
        let name: AgentName = name.parse()?;
        tables.push(setup::new_agent(&ring, &owner, &name, &runs, std::slice::from_ref(&url), no_passphrase)?);
        let source: KeySource = name.as_str().parse()?;
        agents.push((name, ring.load(&source, no_passphrase)?));
    }
    let locks = home.path().join("locks");
    let text = text::demo_config(&listen, &owner.keys.pubkey(), &locks, &tables);
    let settings = Settings::parse_alone(&config, &text)?;
    home::write_private(&config, text.as_bytes(), Existing::Replace)?;
    let stage = Stage { twin: home.path().join("twin"), home, config, settings, url, owner: owner.keys, agents };
    stage.set_twin(&tables[0], &locks)?;
    Ok(stage)
}

impl Stage {
    /// The second instance has a home of its own, and the lock directory in common with the first.
    fn set_twin(&self, agent: &AgentSettings, locks: &Path) -> Result<(), SetupError> {
        let home = self.twin_home();
        home.directory("keys")?;
        let ring = Keyring::of(&home);
        let (name, keys) = &self.agents[0];
        let stored = StoredKey::Plain(keys.clone());
        ring.store(&name.as_str().parse()?, &stored, Some(&keys.pubkey()), Existing::Replace)?;
        let text =
            text::demo_config(&self.settings.relay.listen, &self.owner.pubkey(), locks, std::slice::from_ref(agent));
        Ok(home::write_private(&home.path().join(CONFIG), text.as_bytes(), Existing::Replace)?)
    }

    /// As a process without `SKEP_HOME` finds it: children of ours get no variable of ours.
    fn twin_home(&self) -> Home {
        Home::at(self.twin.join(".skep"))
    }

    /// Where the second instance's program works.
    pub fn twin_work(&self) -> PathBuf {
        self.twin_home().path().join("agents").join(TWICE).join("work")
    }

    pub fn key_of(&self, name: &str) -> Option<PubKey> {
        self.agents.iter().find(|(known, _)| known.as_str() == name).map(|(_, keys)| keys.pubkey())
    }
}

impl Twin {
    /// Starts `skep agent run` in its home, and waits until it says that it runs.
    pub async fn start(stage: &Stage) -> Result<Self, TwinError> {
        let failed = |why: String| TwinError::Start(why);
        let twin = stage.twin.display().to_string();
        let env = Environment::allowed(std::env::vars(), &[], &[("HOME".into(), twin)]);
        let program = Program {
            command: std::env::current_exe().map_err(|error| failed(error.to_string()))?,
            args: ["agent", "run", TWICE].map(str::to_owned).to_vec(),
            cwd: stage.twin.clone(),
            env: env.map_err(|error| failed(error.to_string()))?,
        };
        let mut child = Child::spawn(program).await?;
        let stdout = child.take_stdout().ok_or_else(|| failed("it has no output".into()))?;
        let mut lines = BufReader::new(stdout).lines();
        match timeout(START_MAX, lines.next_line()).await {
            Ok(Ok(Some(_))) => {}
            _ => return Err(failed(child.last_words().await)),
        }
        // Somebody has to read what it says, or it would wait for that.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, home: stage.twin_home() })
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Where its control socket is.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// kill -9, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child.kill();
        self.child.wait().await;
    }
}

/// The address of the story before, when it is free, so that what was typed then still works.
fn free_address(config: &Path) -> String {
    let text = std::fs::read_to_string(config).ok();
    let settings = text.and_then(|text| Settings::parse_alone(config, &text).ok());
    // Not the usual port at first: that is for whoever runs a relay of their own.
    let before = settings.map(|settings| settings.relay.listen).unwrap_or_default();
    let is_local = |address: &&str| address.starts_with("127.0.0.1:");
    let candidates = [before.as_str(), "127.0.0.1:0"].into_iter().filter(is_local);
    let bound = candidates.filter_map(|address| TcpListener::bind(address).ok()?.local_addr().ok()).next();
    // Without a port the relay says what is wrong.
    bound.map_or_else(|| "127.0.0.1:0".into(), |address| address.to_string())
}

fn no_passphrase(what: &str) -> Result<SecretText, KeyError> {
    Err(KeyError::NoTerminal { what: format!("a passphrase for {what}") })
}
