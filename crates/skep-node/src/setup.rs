//! What a machine gets at its first start: an owner, agents with keys and attestations, a configuration.
//!
//! Job: make what is missing, keep what is there. The configuration is written last and whole, so that a first start
//! that was interrupted is begun again and finds the keys that it made.
//! Neighbours: [`skep_agent::detect`] says what is installed; [`crate::node`] runs what is configured.
//! Must not: overwrite a key or a configuration, or write a private key anywhere but into the key ring.

pub(crate) mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use skep_agent::child::{Environment, EnvironmentError};
use skep_agent::detect::{self, PRESETS};
pub use skep_agent::detect::{Found, Preset};
use skep_proto::PubKey;
use skep_proto::attestation::{Conditions, attest};
use skep_proto::name::{AgentName, NameError};

pub use crate::agent::settings::BUILT_IN;
use crate::agent::settings::{AgentSettings, BackendKind};
use crate::config::{ConfigError, RelaySettings, Settings};
use crate::home::{self, Existing, Home, HomeError};
use crate::keys::{KeyError, KeyName, Keyring, Keys, SecretText, StoredKey, fresh_aux};

pub use text::MistakeInFile;

/// The key of whoever owns the agents here; a key named `default` that is there already serves as well.
pub const OWNER: &str = "owner";
const DEFAULT: &str = "default";

/// The configuration in a home.
pub const CONFIG: &str = "config.toml";

/// The agent that is made when nothing is installed.
const FIRST: &str = "scout";

/// Names that mean something else where agents are named.
const TAKEN: [&str; 4] = [OWNER, DEFAULT, crate::relay::KEY_NAME, "all"];

/// Why something could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    File(#[from] MistakeInFile),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("{0:?} is kept for something else: no agent can have this name")]
    Kept(String),
    #[error("an agent named {0} is configured already")]
    Twice(AgentName),
    #[error("no preset is called {0:?}")]
    Preset(String),
    #[error("the key {0} is the owner's: an agent needs one of its own")]
    OwnersKey(KeyName),
    #[error("{} was changed by somebody else meanwhile; nothing was written", .0.display())]
    Changed(PathBuf),
    #[error("the environment cannot be used: {0}")]
    Environment(#[from] EnvironmentError),
}

impl SetupError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Home(error) => error.hint(),
            Self::Key(error) => error.hint(),
            Self::Twice(_) => Some("skep agent list shows all; choose another name".into()),
            Self::Kept(_) | Self::OwnersKey(_) | Self::Name(_) => Some("choose another name".into()),
            Self::Config(_) | Self::File(_) => Some("see docs/config.md for every setting and its default".into()),
            Self::Preset(_) => {
                let known: Vec<&str> = PRESETS.iter().map(|preset| preset.name).chain([BUILT_IN]).collect();
                Some(format!("there are: {}", known.join(", ")))
            }
            Self::Changed(_) => Some("try again".into()),
            Self::Environment(_) => None,
        }
    }
}

/// The owner's key, and whether it was made now.
#[derive(Debug)]
pub struct Owner {
    /// As it is called in the key ring, or where it comes from.
    pub name: String,
    pub keys: Keys,
    pub is_new: bool,
}

/// A first start.
#[derive(Debug)]
pub struct Made {
    pub config: PathBuf,
    pub owner: Owner,
    pub agents: Vec<AgentName>,
    pub found: Found,
}

/// What an agent is to run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runs {
    Preset(String),
    Command { command: String, args: Vec<String> },
    Server { base_url: String, model: String },
}

/// The name of the owner's key in this home, if there is one.
pub fn owner_name(ring: &Keyring) -> Result<Option<KeyName>, KeyError> {
    for name in [OWNER, DEFAULT] {
        let name: KeyName = name.parse()?;
        if ring.path(&name).symlink_metadata().is_ok() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The owner of this home; made when there is none. `ask` gets what a passphrase is for.
pub fn owner(ring: &Keyring, ask: impl FnOnce(&str) -> Result<SecretText, KeyError>) -> Result<Owner, KeyError> {
    match owner_name(ring)? {
        Some(name) => {
            let keys = ring.read(&name)?.unlock(|| ask(&format!("the key {name}")))?;
            Ok(Owner { name: name.to_string(), keys, is_new: false })
        }
        None => {
            let name: KeyName = OWNER.parse()?;
            Ok(Owner { keys: new_key(ring, &name)?, name: name.to_string(), is_new: true })
        }
    }
}

/// Everything for a first start: looks for agents and servers, makes keys and the configuration.
pub async fn first_start(
    home: &Home,
    host: impl IntoIterator<Item = (String, String)>,
    ask: impl Fn(&str) -> Result<SecretText, KeyError>,
) -> Result<Made, SetupError> {
    // What can go wrong here goes wrong before anything is looked for.
    home.directory("keys")?;
    let ring = Keyring::of(home);
    let relay = Settings::load(None)?.relay;
    let owner = owner(&ring, &ask)?;
    let found = look(host).await?;
    let mut agents = Vec::new();
    for (name, runs) in first_agents(&found) {
        agents.push(new_agent(&ring, &owner, &name, &runs, &[local_url(&relay)], &ask)?);
    }
    let text = text::first_config(&relay.listen, &owner.keys.pubkey(), &agents);
    let config = home.path().join(CONFIG);
    Settings::parse(Some(&config), &text)?;
    home::write_private(&config, text.as_bytes(), Existing::Keep)?;
    let agents = agents.iter().map(|agent| agent.name.parse()).collect::<Result<_, _>>()?;
    Ok(Made { config, owner, agents, found })
}

/// Looks for agents and model servers. `host` is our environment.
pub async fn look(host: impl IntoIterator<Item = (String, String)>) -> Result<Found, SetupError> {
    Ok(detect::detect(&Environment::allowed(host, &[], &[])?).await)
}

/// The versions of what was found, by title.
pub fn versions(found: &Found) -> BTreeMap<String, String> {
    found.agents.iter().filter_map(|agent| Some((agent.preset.title.to_owned(), agent.version.clone()?))).collect()
}

/// One agent for each thing that was found; when nothing was, one on the built-in program.
fn first_agents(found: &Found) -> Vec<(AgentName, Runs)> {
    let mut all: Vec<(AgentName, Runs)> = Vec::new();
    let presets =
        found.agents.iter().map(|agent| (agent.preset.name.to_owned(), Runs::Preset(agent.preset.name.into())));
    let servers = found.servers.iter().filter_map(|server| {
        let base_url = server.base_url.to_string();
        Some((server.name.to_owned(), Runs::Server { base_url, model: server.models.first()?.clone() }))
    });
    for (title, runs) in presets.chain(servers) {
        let is_free = |name: &AgentName| all.iter().all(|(taken, _)| taken != name);
        if let Some(name) = free_name(&title, is_free) {
            all.push((name, runs));
        }
    }
    if all.is_empty() {
        all.extend(FIRST.parse().map(|name| (name, Runs::Preset(BUILT_IN.into()))));
    }
    all
}

/// A name out of a title: its first word, in small letters; with a number when that is taken.
fn free_name(title: &str, is_free: impl Fn(&AgentName) -> bool) -> Option<AgentName> {
    let word = title.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    let word: String = word.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let word = word.trim_matches('-');
    let names = (1..100).map(|n| if n == 1 { word.to_owned() } else { format!("{word}-{n}") });
    names.filter_map(|name| name.parse().ok()).find(|name: &AgentName| !TAKEN.contains(&name.as_str()) && is_free(name))
}

/// An agent's settings, with a key of its own and its owner's attestation. A key of its name that is there is used.
pub fn new_agent(
    ring: &Keyring,
    owner: &Owner,
    name: &AgentName,
    runs: &Runs,
    relays: &[String],
    ask: impl FnOnce(&str) -> Result<SecretText, KeyError>,
) -> Result<AgentSettings, SetupError> {
    if TAKEN.contains(&name.as_str()) {
        return Err(SetupError::Kept(name.to_string()));
    }
    if let Runs::Preset(preset) = runs
        && preset != BUILT_IN
        && !PRESETS.iter().any(|known| known.name == preset)
    {
        return Err(SetupError::Preset(preset.clone()));
    }
    let key: KeyName = name.as_str().parse()?;
    let pubkey = match ring.path(&key).symlink_metadata() {
        Ok(_) => ring.read(&key)?.unlock(|| ask(&format!("the key {key}")))?.pubkey(),
        Err(_) => new_key(ring, &key)?.pubkey(),
    };
    if pubkey == owner.keys.pubkey() {
        return Err(SetupError::OwnersKey(key));
    }
    let settings = AgentSettings {
        name: name.to_string(),
        auth: attestation(&owner.keys, &pubkey).into(),
        relays: relays.to_vec(),
        ..AgentSettings::default()
    };
    let settings = match runs.clone() {
        Runs::Preset(preset) => AgentSettings { preset, ..settings },
        Runs::Command { command, args } => AgentSettings { command, args, ..settings },
        Runs::Server { base_url, model } => AgentSettings { backend: BackendKind::OpenAi, base_url, model, ..settings },
    };
    settings.check()?;
    Ok(settings)
}

/// The owner's tag for an agent, without conditions.
pub fn attestation(owner: &Keys, agent: &PubKey) -> [String; 4] {
    attest(owner.keypair(), agent, &Conditions::default(), &fresh_aux())
}

/// Adds an agent to a configuration, or begins one with it. Comments and order in the file stay as they are.
pub fn add_agent(path: &Path, owner: &Owner, settings: &AgentSettings) -> Result<(), SetupError> {
    // A link is written through: the file is where its owner keeps it.
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let _lock = home::lock_beside(path)?;
    let old = read_config(path)?;
    let existing = if old.is_some() { Existing::Replace } else { Existing::Keep };
    let begun = match &old {
        Some(text) => text.clone(),
        None => text::first_config(&Settings::load(None)?.relay.listen, &owner.keys.pubkey(), &[]),
    };
    let text = text::with_agent(&begun, settings)?;
    Settings::parse(Some(path), &text)?;
    // An editor knows nothing of the lock.
    if read_config(path)? != old {
        return Err(SetupError::Changed(path.clone()));
    }
    Ok(home::write_private(path, text.as_bytes(), existing)?)
}

fn read_config(path: &Path) -> Result<Option<String>, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(ConfigError::Read { path: path.display().to_string(), cause }),
    }
}

/// How an agent on this machine reaches the relay of this machine.
pub fn local_url(relay: &RelaySettings) -> String {
    let (host, port) = relay.listen.rsplit_once(':').unwrap_or((&relay.listen, "7777"));
    let host = if matches!(host, "0.0.0.0" | "[::]" | "") { "127.0.0.1" } else { host };
    format!("ws://{host}:{port}")
}

fn new_key(ring: &Keyring, name: &KeyName) -> Result<Keys, KeyError> {
    let keys = Keys::generate()?;
    ring.store(name, &StoredKey::Plain(keys.clone()), Some(&keys.pubkey()), Existing::Keep)?;
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_agent::detect::{Agent, Server};

    fn no_passphrase(what: &str) -> Result<SecretText, KeyError> {
        Err(KeyError::NoTerminal { what: what.to_owned() })
    }

    #[test]
    fn each_thing_that_was_found_is_an_agent_with_a_name_of_its_own() {
        let server = |name, models: &[&str]| Server {
            name,
            base_url: "http://127.0.0.1:1/v1".parse().expect("a URL"),
            models: models.iter().map(|model| (*model).to_owned()).collect(),
        };
        let claude = Agent { preset: &PRESETS[0], command: "/bin/claude".into(), version: None };
        let found = Found {
            agents: vec![claude],
            missing: Vec::new(),
            servers: vec![
                server("llama.cpp or mlx_lm", &["qwen"]),
                server("llama.cpp", &["phi"]),
                server("vLLM", &[]),
                server("LM Studio", &["x"]),
            ],
        };
        let names: Vec<String> = first_agents(&found).iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, ["claude", "llama-cpp", "llama-cpp-2", "lm"]);
        let nothing = first_agents(&Found::default());
        assert_eq!(nothing, [("scout".parse().expect("a name"), Runs::Preset("demo".into()))]);
    }

    #[test]
    fn keys_that_are_there_are_kept_and_the_owners_is_no_agents() {
        let dir = tempfile::tempdir().expect("a directory");
        let ring = Keyring::of(&Home::at(dir.path().join("home")));
        let default = new_key(&ring, &"default".parse().expect("a name")).expect("made");
        let respected = owner(&ring, no_passphrase).expect("an owner");
        assert_eq!((respected.name.as_str(), respected.keys.pubkey()), ("default", default.pubkey()));
        assert!(!respected.is_new);
        let scout: AgentName = "scout".parse().expect("a name");
        let runs = Runs::Command { command: "cat".into(), args: Vec::new() };
        let make =
            |name: &AgentName| new_agent(&ring, &respected, name, &runs, &["ws://127.0.0.1:7".into()], no_passphrase);
        let (first, second) = (make(&scout).expect("made"), make(&scout).expect("made again"));
        assert_eq!(first.auth[1], default.pubkey().to_hex());
        assert_eq!(ring.pubkey("scout").expect("a key"), ring.pubkey("scout").expect("the same"));
        assert_ne!(first.auth[3], second.auth[3], "signatures have fresh randomness");
        assert!(matches!(make(&"owner".parse().expect("a name")), Err(SetupError::Kept(_))));
        ring.store(&"twin".parse().expect("a name"), &StoredKey::Plain(respected.keys.clone()), None, Existing::Keep)
            .expect("stored");
        assert!(matches!(make(&"twin".parse().expect("a name")), Err(SetupError::OwnersKey(_))));
        new_key(&ring, &"owner".parse().expect("a name")).expect("made");
        assert_eq!(owner(&ring, no_passphrase).expect("an owner").name, "owner", "it goes before default");
    }

    #[test]
    fn an_agent_is_added_and_everything_else_in_the_file_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::at(dir.path().join("home"));
        let ring = Keyring::of(&home);
        let owner = owner(&ring, no_passphrase).expect("an owner");
        let path = home.path().join(CONFIG);
        let runs = Runs::Server { base_url: "http://127.0.0.1:1/v1".into(), model: "qwen\"3".into() };
        let agent = |name: &str| {
            let name = name.parse().expect("a name");
            new_agent(&ring, &owner, &name, &runs, &["ws://127.0.0.1:7777".into()], no_passphrase).expect("an agent")
        };
        add_agent(&path, &owner, &agent("a")).expect("begun");
        let begun = std::fs::read_to_string(&path).expect("a file");
        std::fs::write(&path, format!("# mine\n{begun}# and this\n")).expect("written");
        add_agent(&path, &owner, &agent("b")).expect("added");
        let text = std::fs::read_to_string(&path).expect("a file");
        assert!(text.starts_with("# mine\n") && text.contains("# and this\n"), "{text}");
        let settings = Settings::load(Some(&path)).expect("it reads");
        assert_eq!(
            settings.agent,
            [agent("a"), agent("b")].map(|agent| {
                // Signatures differ each time.
                let found = settings.agent.iter().find(|found| found.name == agent.name).expect("it is there");
                AgentSettings { auth: found.auth.clone(), ..agent }
            })
        );
        assert!(matches!(add_agent(&path, &owner, &agent("b")), Err(SetupError::Twice(_))));
        assert_eq!(text, std::fs::read_to_string(&path).expect("a file"), "a refusal changes nothing");
        std::fs::write(&path, "[relay\n").expect("written");
        let broken = add_agent(&path, &owner, &agent("c"));
        assert!(broken.is_err_and(|error| error.to_string().contains("line 1")));
    }

    #[test]
    fn agents_that_are_added_at_once_are_all_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::at(dir.path().join("home"));
        let ring = Keyring::of(&home);
        let owner = owner(&ring, no_passphrase).expect("an owner");
        let runs = Runs::Command { command: "cat".into(), args: Vec::new() };
        let agents: Vec<AgentSettings> = (0..16)
            .map(|n| {
                let name = format!("a{n}").parse().expect("a name");
                new_agent(&ring, &owner, &name, &runs, &["ws://127.0.0.1:7".into()], no_passphrase).expect("an agent")
            })
            .collect();
        let path = home.path().join(CONFIG);
        let start = std::sync::Barrier::new(agents.len());
        std::thread::scope(|scope| {
            for agent in &agents {
                scope.spawn(|| {
                    start.wait();
                    add_agent(&path, &owner, agent).expect("added");
                });
            }
        });
        assert_eq!(Settings::load(Some(&path)).expect("it reads").agent.len(), agents.len());
    }

    #[test]
    fn the_local_relay_is_reached_on_loopback() {
        for (listen, url) in [
            ("127.0.0.1:7777", "ws://127.0.0.1:7777"),
            ("0.0.0.0:80", "ws://127.0.0.1:80"),
            ("[::]:9", "ws://127.0.0.1:9"),
            ("[::1]:9", "ws://[::1]:9"),
            ("10.0.0.1:9", "ws://10.0.0.1:9"),
        ] {
            let relay = RelaySettings { listen: listen.into(), ..RelaySettings::default() };
            assert_eq!(local_url(&relay), url);
        }
    }
}
