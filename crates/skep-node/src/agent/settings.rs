//! `[[agent]]` and `[leader]`: which agents run on this machine, and how. Resolved here into a [`Plan`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skep_agent::child::environment::Environment;
use skep_agent::detect::{PRESETS, Preset};
use skep_agent::openai::{Key, OpenAi, Secret};
use skep_agent::{Kind, Spec};
use skep_core::audience::{Audience, RespondTo};
use skep_core::leader;
use skep_core::permit::{Policy, Stance};
use skep_core::queue;
use skep_core::tools::Grants;
use skep_proto::attestation::Attestation;
use skep_proto::name::NameError;
use skep_proto::{PubKey, Tags, limits};

use super::Plan;
use super::bridge::Bridge;
use super::purse::LEDGER;
use crate::client::{Credentials, parse_relay_url};
use crate::config::ConfigError;
use crate::keys::{self, KeyName, Keys};
use url::Url;

/// The preset that needs nothing but this binary: the program that `skep agent demo` is.
pub const BUILT_IN: &str = "demo";

/// Turns of one agent at once: each is a backend process of its own.
const PARALLEL_MAX: usize = 16;

/// Relays of one agent: each is a link and an outbox.
const RELAYS_MAX: usize = 16;

macro_rules! settings {
    ($(#[doc = $head:literal])+ $table:ident: $($(#[doc = $doc:literal])+ $name:ident : $type:ty = $default:expr;)*) => {
        $(#[doc = $head])+
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $table {
            $($(#[doc = $doc])+ pub $name: $type,)*
        }

        impl Default for $table {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl $table {
            /// (name, default as TOML, meaning) of each setting, for the generated page.
            pub fn table() -> Vec<(&'static str, String, &'static str)> {
                let all = Self::default();
                let text = |value: serde_json::Value| value.to_string();
                vec![$((
                    stringify!($name),
                    text(serde_json::json!(all.$name)),
                    concat!($($doc,)+).trim_ascii(),
                ),)*]
            }
        }
    };
}

settings! {
    /// One `[[agent]]`.
    AgentSettings:
    /// Its name: a-z 0-9 - _, at most 63 characters, beginning with a letter or digit. Required.
    name: String = String::new();
    /// The name of its key in the key ring; empty: its own name.
    key: String = String::new();
    /// Its owner's attestation, as `skep agent attest` prints it: `["auth", owner, conditions, signature]`.
    auth: Vec<String> = Vec::new();
    /// What runs its turns: `acp` (an Agent Client Protocol program), `openai` (a model server) or `command`.
    backend: BackendKind = BackendKind::Acp;
    /// A known ACP program in place of `command`: `claude`, `codex`, `gemini`, `goose`, `opencode`, `qwen`, `kimi` or
    /// `vibe`; `demo` is built in. It is started so that it asks before it acts; `args` come after its own.
    preset: String = String::new();
    /// The program of `acp` and `command`: a path, or a name that is looked up in PATH.
    command: String = String::new();
    /// Its arguments.
    args: Vec<String> = Vec::new();
    /// Where the server of `openai` is: an http or https URL.
    base_url: String = String::new();
    /// The model by the name that the backend has for it; empty: the backend's own choice.
    model: String = String::new();
    /// A file with the key for the server of `openai`, read before each call.
    api_key_file: String = String::new();
    /// The variable of our environment with that key, in place of a file.
    api_key_env: String = String::new();
    /// How freely an ACP program acts, by its own name for it; empty: as it is set up.
    session_mode: String = String::new();
    /// Who may prompt: `owner`, `siblings`, `members` (of the home relay, or of the group where it was said), `allowlist`,
    /// `anyone` or `nobody`.
    respond_to: RespondTo = RespondTo::Owner;
    /// Keys that may prompt where `respond_to` is `allowlist`: npub or hex.
    allowlist: Vec<String> = Vec::new();
    /// Turns at once, each in a channel of its own: 1 to 16.
    parallel: usize = 1;
    /// What a new message does to the turn that runs in its channel: `queue` or `interrupt`.
    mode: queue::Mode = queue::Mode::Queue;
    /// What becomes of a permission that the backend asks for: `ask` its owner, `reject` or `allow`.
    policy: Stance = Stance::Ask;
    /// The relays it listens to and publishes on; the first is its home, whose leases it uses. Required.
    relays: Vec<String> = Vec::new();
    /// Whether the home relay grants leases, as Skep's does. Without them the guarantees are per machine.
    leases: bool = true;
    /// What it says of itself in its profile (kind 0), which it publishes when there is none with its key.
    about: String = String::new();
    /// What every prompt begins with; for `openai`, the system message.
    system: String = String::new();
    /// The tools that it has of Skep: `progress`, `history`, `agents`; `ask_agent` and `ask_human`, which others see, only
    /// when they are named. What is not named here does not exist for it. A `command` has none.
    tools: Vec<String> = Grants::default().names().map(|name| name.as_str().to_owned()).collect();
    /// Where its backend works; empty: `<home>/agents/<name>/work`.
    workdir: String = String::new();
    /// A git repository that it works on, in place of `workdir`: each conversation in a worktree of its own, on a branch
    /// `skep/<agent>/…`, below `<home>/agents/<name>/trees`.
    repo: String = String::new();
    /// The branch, tag or commit at which new worktrees begin; empty: where the repository's HEAD is.
    worktree_base: String = String::new();
    /// Names of variables of our environment that its backend gets beside the usual ones.
    env: Vec<String> = Vec::new();
    /// What it may spend: `usd_per_day`, `tokens_per_day` (of a UTC day), `usd_per_turn`, `turns_per_hour`.
    /// Counted by the records of this machine alone: an agent that runs on several may spend as much on each.
    budget: BudgetSettings = BudgetSettings::default();
    /// US dollars for a million tokens, where its backend does not say what it costs: `input`, `output`, `cache_read`,
    /// `cache_write`, and the `date` of the prices. 0 for a model of your own. Without it and with no word of the
    /// backend, a turn counts as what was set aside for it, and as a tenth of `usd_per_day` at most.
    price: Option<PriceSettings> = None;
}

settings! {
    /// `[leader]`: how the instances of one agent agree who prompts (NIP-LE).
    LeaderSettings:
    /// Where the lock files are; empty: `~/.buzz/leader-locks`, as other NIP-LE programs have it.
    dir: String = String::new();
    /// `auto`: takes the lead when nobody has it. `manual`: leads when told to.
    mode: leader::Mode = leader::Mode::Auto;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    Acp,
    OpenAi,
    Command,
}

impl LeaderSettings {
    /// Where the lock files are.
    pub fn directory(&self) -> Result<PathBuf, ConfigError> {
        if !self.dir.is_empty() {
            return Ok(PathBuf::from(&self.dir));
        }
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        let unset = || ConfigError::Value { setting: "leader.dir", cause: "HOME is not set, so it must be".into() };
        Ok(PathBuf::from(home.ok_or_else(unset)?).join(".buzz/leader-locks"))
    }
}

/// Checks all agents of a configuration.
pub fn check_all(agents: &[AgentSettings]) -> Result<(), ConfigError> {
    for (n, agent) in agents.iter().enumerate() {
        agent.check()?;
        if agents[..n].iter().any(|before| before.name == agent.name) {
            return Err(agent.wrong("name", "another agent has this name already"));
        }
    }
    Ok(())
}

impl AgentSettings {
    fn wrong(&self, setting: &'static str, cause: impl Into<String>) -> ConfigError {
        ConfigError::Agent { agent: self.name.clone(), setting, cause: cause.into() }
    }

    /// What can be told without a key, a disk or a network.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.mode == queue::Mode::Steer {
            return Err(self.wrong("mode", "\"steer\": no backend takes a message into a turn; use queue or interrupt"));
        }
        if self.name.len() > limits::NAME_BYTES_MAX || self.name.parse::<KeyName>().is_err() {
            return Err(self.wrong("name", "is 1 to 63 of a-z 0-9 - _ and begins with a letter or digit"));
        }
        if self.relays.is_empty() || self.relays.len() > RELAYS_MAX {
            return Err(self.wrong("relays", format!("names 1 to {RELAYS_MAX} relays, the first its home")));
        }
        for (n, relay) in self.relays.iter().enumerate() {
            parse_relay_url(relay).map_err(|error| self.wrong("relays", error.to_string()))?;
            if self.relays[..n].contains(relay) {
                return Err(self.wrong("relays", format!("names {relay} twice")));
            }
        }
        if !(1..=PARALLEL_MAX).contains(&self.parallel) {
            return Err(self.wrong("parallel", format!("is from 1 to {PARALLEL_MAX}")));
        }
        if self.respond_to != RespondTo::Allowlist && !self.allowlist.is_empty() {
            return Err(self.wrong("allowlist", "is read only where respond_to is \"allowlist\""));
        }
        self.allowed()?;
        self.grants()?;
        self.check_repo()?;
        self.check_backend()?;
        self.check_budget()
    }

    fn check_backend(&self) -> Result<(), ConfigError> {
        let is_program = self.backend != BackendKind::OpenAi;
        if is_program && !self.base_url.is_empty() {
            return Err(self.wrong("base_url", "is for backend = \"openai\""));
        }
        for (setting, value) in [("api_key_file", &self.api_key_file), ("api_key_env", &self.api_key_env)] {
            if is_program && !value.is_empty() {
                return Err(self.wrong(setting, "is for backend = \"openai\""));
            }
        }
        if !self.api_key_file.is_empty() && !self.api_key_env.is_empty() {
            return Err(self.wrong("api_key_env", "and api_key_file are two ways to say one thing; give one"));
        }
        if is_program && self.command.is_empty() && self.preset.is_empty() {
            return Err(self.wrong("command", "is needed, or a preset"));
        }
        if !self.preset.is_empty() && self.backend == BackendKind::Acp {
            self.preset()?;
        }
        if !self.preset.is_empty() && self.backend == BackendKind::Command {
            return Err(self.wrong("preset", "is for backend = \"acp\""));
        }
        if !self.command.is_empty() && !self.preset.is_empty() {
            return Err(self.wrong("preset", "and command are two ways to say one thing; give one"));
        }
        if is_program {
            return Ok(());
        }
        if !self.command.is_empty() || !self.preset.is_empty() {
            return Err(self.wrong("command", "is for backend = \"acp\" and \"command\""));
        }
        if self.model.is_empty() {
            return Err(self.wrong("model", "is needed for backend = \"openai\""));
        }
        let is_url = url::Url::parse(&self.base_url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if is_url { Ok(()) } else { Err(self.wrong("base_url", "is an http or https URL")) }
    }

    /// `None`: the program is named by the command, or built in.
    fn preset(&self) -> Result<Option<&'static Preset>, ConfigError> {
        if self.preset.is_empty() || self.preset == BUILT_IN {
            return Ok(None);
        }
        let known = || PRESETS.iter().map(|preset| preset.name).chain([BUILT_IN]).collect::<Vec<_>>().join(", ");
        let found = PRESETS.iter().find(|preset| preset.name == self.preset);
        found.map(Some).ok_or_else(|| self.wrong("preset", format!("is one of {}", known())))
    }

    fn allowed(&self) -> Result<Vec<PubKey>, ConfigError> {
        let read = |value: &String| {
            keys::pubkey(value).map_err(|_| self.wrong("allowlist", format!("{value:?} is not a public key")))
        };
        self.allowlist.iter().map(read).collect()
    }

    fn grants(&self) -> Result<Grants, ConfigError> {
        Grants::read(&self.tools).map_err(|error| self.wrong("tools", error.to_string()))
    }

    /// The name of its key in the key ring.
    pub fn key_name(&self) -> &str {
        if self.key.is_empty() { &self.name } else { &self.key }
    }

    /// Resolves everything: with its key, below a home, with what a child may have of `host`'s variables.
    pub fn plan(
        &self,
        leader: &LeaderSettings,
        keys: Keys,
        home: &Path,
        host: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Plan, ConfigError> {
        self.check()?;
        let directory = home.join("agents").join(&self.name);
        let (attestation, owner) = self.attestation(&keys)?;
        let host: Vec<(String, String)> = host.into_iter().collect();
        let key = self.api_key(&host)?;
        let env = Environment::allowed(host, &self.env, &[]).map_err(|error| self.wrong("env", error.to_string()))?;
        let workdir = if self.workdir.is_empty() { directory.join("work") } else { PathBuf::from(&self.workdir) };
        let kind = self.kind(env.get("PATH").unwrap_or_default(), key)?;
        let trees = self.trees(home, &env)?;
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        let preset = if self.backend == BackendKind::Acp { self.preset()? } else { None };
        let command = std::env::current_exe();
        let command = command.map_err(|error| self.wrong("tools", format!("this program cannot be found: {error}")))?;
        let env = match preset {
            Some(preset) => preset.environment(&env).map_err(|error| self.wrong("preset", error.to_string()))?,
            None => env,
        };
        let mode = some(&self.session_mode).or_else(|| preset?.mode.map(str::to_owned));
        let spec = Spec { model: some(&self.model), mode, ..Spec::new(kind, workdir, env) };
        Ok(Plan {
            name: self.name.parse().map_err(|error: NameError| self.wrong("name", error.to_string()))?,
            policy: Policy { policy: self.policy, rules: Vec::new() },
            credentials: Credentials { keys, attestation },
            audience: Audience { respond_to: self.respond_to, owner, allowlist: self.allowed()? },
            queue: queue::Settings { mode: self.mode, parallel: self.parallel, ..queue::Settings::default() },
            times: Default::default(),
            about: self.about.clone(),
            // A model server has a place of its own for it.
            system: if self.backend == BackendKind::OpenAi { String::new() } else { self.system.clone() },
            budget: self.budget.bounds(),
            shared: Default::default(),
            ledger: home.join(LEDGER),
            prices: self.price.as_ref().map(PriceSettings::table),
            spec,
            tools: self.grants()?,
            bridge: Bridge::new(home.to_owned(), command),
            trees,
            relays: self.relays.clone(),
            has_leases: self.leases,
            directory,
            locks: leader.directory()?,
            mode: leader.mode,
        })
    }

    fn attestation(&self, keys: &Keys) -> Result<(Option<[String; 4]>, Option<PubKey>), ConfigError> {
        if self.auth.is_empty() {
            return Ok((None, None));
        }
        let tag: [String; 4] = self.auth.clone().try_into().map_err(|_| self.wrong("auth", "has four elements"))?;
        let tags = Tags::from_iter([tag.clone()]);
        match Attestation::from_tags(&tags, &keys.pubkey()) {
            Some(Ok(attestation)) => Ok((Some(tag), Some(attestation.owner))),
            Some(Err(error)) => Err(self.wrong("auth", error.to_string())),
            None => Err(self.wrong("auth", "begins with \"auth\"")),
        }
    }

    fn model_server(&self, key: Key) -> Result<OpenAi, ConfigError> {
        let url: Url = self.base_url.parse().map_err(|error| self.wrong("base_url", format!("is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(self.wrong("base_url", "begins with http:// or https://"));
        }
        if self.model.is_empty() {
            return Err(self.wrong("model", "must be named for a model server"));
        }
        let system = (!self.system.is_empty()).then(|| self.system.clone());
        Ok(OpenAi { key, system, ..OpenAi::new(url, self.model.clone()) })
    }

    /// The provider's key, or where it is read.
    fn api_key(&self, host: &[(String, String)]) -> Result<Key, ConfigError> {
        if !self.api_key_env.is_empty() {
            let value = host.iter().find(|(name, value)| *name == self.api_key_env && !value.trim().is_empty());
            let (_, value) =
                value.ok_or_else(|| self.wrong("api_key_env", format!("{} is not set", self.api_key_env)))?;
            return Ok(Key::Given(Secret::new(value.trim().to_owned())));
        }
        if self.api_key_file.is_empty() {
            return Ok(Key::None);
        }
        let path = std::path::absolute(&self.api_key_file);
        path.map(Key::File).map_err(|error| self.wrong("api_key_file", error.to_string()))
    }

    /// What runs its turns, for a person.
    pub fn backend_name(&self) -> String {
        if self.preset == BUILT_IN {
            return "built-in demo".into();
        }
        if !self.preset.is_empty() {
            let known = PRESETS.iter().find(|preset| preset.name == self.preset);
            return known.map_or_else(|| self.preset.clone(), |preset| preset.title.to_owned());
        }
        match self.backend {
            BackendKind::OpenAi => self.model.clone(),
            BackendKind::Acp | BackendKind::Command => self.command.rsplit('/').next().unwrap_or_default().to_owned(),
        }
    }

    /// Whether the program that runs its turns is on this machine, by `host`'s variables.
    pub fn find_program(&self, host: impl IntoIterator<Item = (String, String)>) -> Result<(), ConfigError> {
        let path = host.into_iter().find(|(name, _)| name == "PATH").map_or_else(String::new, |(_, path)| path);
        self.kind(&path, Key::None).map(drop)
    }

    fn kind(&self, path: &str, key: Key) -> Result<Kind, ConfigError> {
        if self.preset == BUILT_IN {
            let failed = |error: std::io::Error| self.wrong("preset", format!("this program cannot be found: {error}"));
            let args = ["agent", "demo"].map(str::to_owned).to_vec();
            return Ok(Kind::Acp { command: std::env::current_exe().map_err(failed)?, args });
        }
        if let Some(preset) = self.preset()? {
            let command = preset.commands.iter().find_map(|command| find(command, path));
            let missing = || format!("{} is not in PATH: {}", preset.title, preset.install);
            let command = command.ok_or_else(|| self.wrong("preset", missing()))?;
            let args = preset.args.iter().map(|arg| (*arg).to_owned()).chain(self.args.iter().cloned()).collect();
            return Ok(Kind::Acp { command, args });
        }
        let program = || find(&self.command, path).ok_or_else(|| self.wrong("command", "is not a program in PATH"));
        Ok(match self.backend {
            BackendKind::Acp => Kind::Acp { command: program()?, args: self.args.clone() },
            BackendKind::Command => Kind::Command { command: program()?, args: self.args.clone() },
            BackendKind::OpenAi => Kind::OpenAi(self.model_server(key)?),
        })
    }
}

/// A program by its path, or by its name in PATH.
fn find(command: &str, path: &str) -> Option<PathBuf> {
    if command.contains('/') {
        return std::path::absolute(command).ok().filter(|path| is_program(path));
    }
    std::env::split_paths(path).map(|directory| directory.join(command)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

mod budget;
#[cfg(test)]
mod tests;
mod trees;

pub use budget::{BudgetSettings, FleetBudgetSettings, PriceSettings};
