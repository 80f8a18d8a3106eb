//! The configuration: a TOML file, then `SKEP_…` variables, then flags. Read once, resolved here, passed on as values.

mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::UncasedStr;
use serde::{Deserialize, Serialize};
use skep_core::world::{Channel, ChannelAccess};
use skep_proto::PubKey;
use skep_proto::limits::Limits;

use crate::agent::settings::{AgentSettings, FleetBudgetSettings, LeaderSettings, check_all};
use crate::keys;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub relay: RelaySettings,
    pub leader: LeaderSettings,
    pub budget: FleetBudgetSettings,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agent: Vec<AgentSettings>,
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident : $type:ty = $default:expr;)*) => {
        /// `[relay]`.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct RelaySettings {
            $($(#[doc = $doc])+ pub $name: $type,)*
            /// What a client may do, and how much of it: see limits.
            pub limits: Limits,
            /// Rules of channels: `[[relay.channels]]`.
            pub channels: Vec<ChannelSettings>,
            /// Lists of keys by name; a member list may hold `group:<name>`.
            pub groups: BTreeMap<String, Vec<String>>,
            /// Names for NIP-05: name = key.
            pub names: BTreeMap<String, String>,
        }

        impl Default for RelaySettings {
            fn default() -> Self {
                Self {
                    $($name: $default,)*
                    limits: Limits::default(),
                    channels: Vec::new(),
                    groups: BTreeMap::new(),
                    names: BTreeMap::new(),
                }
            }
        }

        impl RelaySettings {
            /// (name, default as TOML, meaning) of each plain setting, for the generated page.
            pub fn table() -> Vec<(&'static str, String, &'static str)> {
                let all = Self::default();
                vec![$((stringify!($name), toml_text(&all.$name), concat!($($doc,)+).trim_ascii()),)*]
            }
        }
    };
}

settings! {
    /// Whether `skep up` runs a relay here.
    enabled: bool = true;
    /// Address and port to serve on.
    listen: String = "127.0.0.1:7777".into();
    /// Where events are kept; empty: `<home>/relay`.
    data: String = String::new();
    /// URLs under which clients reach this relay, the first one shown; empty: from `listen`.
    urls: Vec<String> = Vec::new();
    /// The relay's name (NIP-11).
    name: String = "Skep".into();
    /// What it is for (NIP-11).
    description: String = "A Skep relay".into();
    /// URL of an image (NIP-11).
    icon: String = String::new();
    /// Whom to write to: a mailto: or https: URI (NIP-11).
    contact: String = String::new();
    /// Only members, and agents of members, may read and write.
    closed: bool = false;
    /// Keys that belong here: npub, hex or `group:<name>`.
    members: Vec<String> = Vec::new();
    /// Keys that may call the management API (NIP-86).
    admins: Vec<String> = Vec::new();
    /// How many ownership steps below a member an agent may be.
    agent_depth: u8 = 1;
    /// Difficulty that an event needs (NIP-13).
    min_pow: u8 = 0;
    /// Full-text search over public text kinds (NIP-50); costs disk.
    search: bool = false;
    /// Keep blobs (Blossom).
    blobs: bool = true;
    /// `full`: an OK means that power may fail. `relaxed`: power loss may take the last seconds.
    durability: Durability = Durability::Full;
    /// The most that the event file may grow to, in GiB. Costs address space, not disk.
    map_gib: u64 = 1024;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    Full,
    Relaxed,
}

/// One channel's rule, its keys as people write them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelSettings {
    /// A kind 40 event's id, or a group id of `h` tags.
    pub id: String,
    #[serde(default)]
    pub name: String,
    pub access: ChannelAccess,
    #[serde(default)]
    pub members: Vec<String>,
    #[serde(default)]
    pub admins: Vec<String>,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {cause}")]
    Read { path: String, cause: std::io::Error },
    #[error("{0}")]
    Parse(String),
    #[error("{setting}: {value:?} is not a public key (npub or 64 hex characters)")]
    Key { setting: String, value: String },
    #[error("{setting}: there is no group {value:?} in [relay.groups]")]
    Group { setting: String, value: String },
    #[error("{setting}: {cause}")]
    Value { setting: &'static str, cause: String },
    #[error("agent {agent:?}: {setting}: {cause}")]
    Agent { agent: String, setting: &'static str, cause: String },
    /// `place` is the file with its line, or empty.
    #[error("{place}{cause}")]
    At { place: String, cause: Box<ConfigError> },
}

impl ConfigError {
    /// For where the agent's name is said already.
    pub fn of_agent(&self) -> String {
        match self {
            Self::Agent { setting, cause, .. } => format!("{setting}: {cause}"),
            other => other.to_string(),
        }
    }
}

impl Settings {
    /// The defaults, a file when one is given, and variables like `SKEP_RELAY__NAME`.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Self::parse(None, "") };
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::Read { path: path.display().to_string(), cause })?;
        Self::parse(Some(path), &text)
    }

    /// The same from a text; `path` is what a mistake in it is told with.
    pub fn parse(path: Option<&Path>, text: &str) -> Result<Self, ConfigError> {
        Self::resolve(path, text, Figment::from(Env::prefixed("SKEP_").split("__").filter(is_setting)))
    }

    /// The same whatever the environment says.
    pub fn parse_alone(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::resolve(Some(path), text, Figment::new())
    }

    fn resolve(path: Option<&Path>, text: &str, variables: Figment) -> Result<Self, ConfigError> {
        let at = |place: Option<(usize, usize)>| match (path, place) {
            (Some(path), Some((line, column))) => format!("{}:{line}:{column}: ", path.display()),
            (Some(path), None) => format!("{}: ", path.display()),
            (None, _) => String::new(),
        };
        place::syntax(text).map_err(|mistake| ConfigError::Parse(at(Some(mistake.place)) + &mistake.what))?;
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if path.is_some() {
            figment = figment.merge(Toml::string(text));
        }
        let settings: Self = figment.merge(variables).extract().map_err(|error| {
            let (setting, what) = explain(&error);
            ConfigError::Parse(at(place::of_setting(text, &setting)) + &what)
        })?;
        let checked =
            settings.relay.check().and_then(|()| settings.budget.check()).and_then(|()| check_all(&settings.agent));
        checked.map_err(|cause| {
            let place = settings.path_of(&cause).and_then(|path| place::of_setting(text, &path));
            ConfigError::At { place: at(place), cause: Box::new(cause) }
        })?;
        Ok(settings)
    }

    /// The setting that a mistake is about.
    fn path_of(&self, mistake: &ConfigError) -> Option<Vec<String>> {
        match mistake {
            ConfigError::Value { setting, .. } => Some(setting.split('.').map(str::to_owned).collect()),
            ConfigError::Agent { agent, setting, .. } => {
                // Of two of one name the second is wrong.
                let number = self.agent.iter().rposition(|settings| settings.name == *agent)?;
                Some(vec!["agent".into(), number.to_string(), (*setting).into()])
            }
            _ => None,
        }
    }
}

/// Agents are a list: variables cannot name one of them.
fn is_setting(key: &UncasedStr) -> bool {
    key.starts_with("relay.") || key.starts_with("leader.") || key.starts_with("budget.")
}

/// The setting that could not be read, and one line: which, what is wrong with it, and what was expected.
fn explain(error: &figment::Error) -> (Vec<String>, String) {
    let first = error.clone().into_iter().next().unwrap_or_else(|| error.clone());
    let what: String = first.kind.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let name = first.path.join(".");
    let mut setting = first.path.clone();
    if let figment::error::Kind::UnknownField(field, _) = &first.kind {
        setting.push(field.clone());
    }
    (setting, if name.is_empty() { what } else { format!("{name}: {what}") })
}

impl RelaySettings {
    fn check(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        let wrong = |setting, cause: &str| Err(ConfigError::Value { setting, cause: cause.into() });
        if limits.event_bytes + 1024 > limits.frame_bytes {
            return wrong("relay.limits.frame_bytes", "must be at least 1 KiB more than event_bytes");
        }
        if limits.tag_value_bytes > u16::MAX.into() {
            return wrong("relay.limits.tag_value_bytes", "is at most 65535");
        }
        if self.map_gib == 0 {
            return wrong("relay.map_gib", "is at least 1");
        }
        Ok(())
    }

    /// Keys of a list, groups resolved.
    pub fn keys(&self, setting: &str, list: &[String]) -> Result<BTreeSet<PubKey>, ConfigError> {
        let mut found = BTreeSet::new();
        for value in list {
            match value.strip_prefix("group:") {
                Some(name) => {
                    let group = self
                        .groups
                        .get(name)
                        .ok_or_else(|| ConfigError::Group { setting: setting.into(), value: name.into() })?;
                    for member in group {
                        found.insert(key(&format!("relay.groups.{name}"), member)?);
                    }
                }
                None => drop(found.insert(key(setting, value)?)),
            }
        }
        Ok(found)
    }

    /// Rules by channel id.
    pub fn channel_rules(&self) -> Result<Vec<(String, Channel)>, ConfigError> {
        let rule = |settings: &ChannelSettings| {
            let setting = format!("relay.channels.{}", settings.id);
            let channel = Channel {
                name: settings.name.clone(),
                access: settings.access,
                members: self.keys(&setting, &settings.members)?,
                admins: self.keys(&setting, &settings.admins)?,
            };
            Ok((settings.id.clone(), channel))
        };
        self.channels.iter().map(rule).collect()
    }

    /// Names for NIP-05.
    pub fn names(&self) -> Result<BTreeMap<String, PubKey>, ConfigError> {
        self.names.iter().map(|(name, value)| Ok((name.clone(), key("relay.names", value)?))).collect()
    }

    /// Where events are kept.
    pub fn data_dir(&self, home: &Path) -> PathBuf {
        if self.data.is_empty() { home.join("relay") } else { PathBuf::from(&self.data) }
    }
}

fn key(setting: &str, value: &str) -> Result<PubKey, ConfigError> {
    keys::pubkey(value).map_err(|_| ConfigError::Key { setting: setting.into(), value: value.into() })
}

fn toml_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
