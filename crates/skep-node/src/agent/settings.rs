//! `[[agent]]` and `[leader]`: which agents run on this machine, and how. Resolved here into a [`Plan`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skep_agent::child::environment::Environment;
use skep_agent::detect::PRESETS;
use skep_agent::openai::OpenAi;
use skep_agent::{Kind, Spec};
use skep_core::audience::{Audience, RespondTo};
use skep_core::leader;
use skep_core::permit::{Policy, Stance};
use skep_core::queue;
use skep_proto::attestation::Attestation;
use skep_proto::name::NameError;
use skep_proto::{PubKey, Tags, limits};

use super::Plan;
use crate::client::{Credentials, parse_relay_url};
use crate::config::ConfigError;
use crate::keys::{self, KeyName, Keys};
use url::Url;

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
    /// What runs its turns: `acp` (an Agent Client Protocol program), `openai` (a model server), `command`, or `demo` (a
    /// small program that is built in, to try things with).
    backend: BackendKind = BackendKind::Acp;
    /// A known program by its name, in place of `command`.
    preset: String = String::new();
    /// The program of `acp` and `command`: a path, or a name that is looked up in PATH.
    command: String = String::new();
    /// Its arguments.
    args: Vec<String> = Vec::new();
    /// Where the server of `openai` is: an http or https URL.
    base_url: String = String::new();
    /// The model by the name that the backend has for it; empty: the backend's own choice.
    model: String = String::new();
    /// How freely an ACP program acts, by its own name for it; empty: as it is set up.
    session_mode: String = String::new();
    /// Who may prompt: `owner`, `siblings`, `allowlist`, `anyone` or `nobody`.
    respond_to: RespondTo = RespondTo::Owner;
    /// Keys that may prompt where `respond_to` is `allowlist`: npub or hex.
    allowlist: Vec<String> = Vec::new();
    /// Turns at once, each in a channel of its own: 1 to 16.
    parallel: usize = 1;
    /// What a new message does to the turn that runs in its channel: `queue`, `interrupt` or `steer`.
    mode: queue::Mode = queue::Mode::Queue;
    /// What becomes of a permission that the backend asks for: `ask` its owner, `reject` or `allow`.
    policy: Stance = Stance::Ask;
    /// The relays it listens to and publishes on; the first is its home, whose leases it uses. Required.
    relays: Vec<String> = Vec::new();
    /// Whether the home relay grants leases, as Skep's does. Without them the guarantees are per machine.
    leases: bool = true;
    /// What every prompt begins with.
    system: String = String::new();
    /// Where its backend works; empty: `<home>/agents/<name>/work`.
    workdir: String = String::new();
    /// Names of variables of our environment that its backend gets beside the usual ones.
    env: Vec<String> = Vec::new();
    /// What it may spend. Not kept by this version, and refused.
    budget: BudgetSettings = BudgetSettings::default();
}

settings! {
    /// `[leader]`: how the instances of one agent agree who prompts (NIP-LE).
    LeaderSettings:
    /// Where the lock files are; empty: `~/.buzz/leader-locks`, as other NIP-LE programs have it.
    dir: String = String::new();
    /// `auto`: takes the lead when nobody has it. `manual`: leads when told to.
    mode: leader::Mode = leader::Mode::Auto;
}

/// `budget`. Nothing: no bound.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd_per_day: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd_per_turn: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns_per_hour: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    Acp,
    OpenAi,
    Command,
    /// This binary, as `skep agent demo`.
    Demo,
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
        if self.respond_to == RespondTo::Members {
            return Err(self.wrong("respond_to", "\"members\" cannot be looked up yet; use \"allowlist\""));
        }
        if self.budget != BudgetSettings::default() {
            return Err(self.wrong("budget", "is not kept by this version: leave it out rather than trust it"));
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
        self.check_backend()?;
        self.check_budget()
    }

    fn check_backend(&self) -> Result<(), ConfigError> {
        if self.backend == BackendKind::Demo {
            return self.check_built_in();
        }
        let is_program = self.backend != BackendKind::OpenAi;
        if is_program && !self.base_url.is_empty() {
            return Err(self.wrong("base_url", "is for backend = \"openai\""));
        }
        if is_program && self.command.is_empty() && self.preset.is_empty() {
            return Err(self.wrong("command", "is needed, or a preset"));
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

    /// It needs nothing, so what is said about another backend is a mistake.
    fn check_built_in(&self) -> Result<(), ConfigError> {
        let others = [("command", &self.command), ("preset", &self.preset), ("base_url", &self.base_url)];
        match others.into_iter().find(|(_, value)| !value.is_empty()) {
            Some((setting, _)) => Err(self.wrong(setting, "is not for backend = \"demo\"")),
            None => Ok(()),
        }
    }

    fn check_budget(&self) -> Result<(), ConfigError> {
        let usd = [self.budget.usd_per_day, self.budget.usd_per_turn];
        if usd.into_iter().flatten().any(|usd| !usd.is_finite() || usd < 0.0) {
            return Err(self.wrong("budget", "has an amount that is not 0 or more"));
        }
        Ok(())
    }

    fn allowed(&self) -> Result<Vec<PubKey>, ConfigError> {
        let read = |value: &String| {
            keys::pubkey(value).map_err(|_| self.wrong("allowlist", format!("{value:?} is not a public key")))
        };
        self.allowlist.iter().map(read).collect()
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
        let env = Environment::allowed(host, &self.env, &[]).map_err(|error| self.wrong("env", error.to_string()))?;
        let workdir = if self.workdir.is_empty() { directory.join("work") } else { PathBuf::from(&self.workdir) };
        let kind = self.kind(env.get("PATH").unwrap_or_default())?;
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        let spec = Spec { model: some(&self.model), mode: some(&self.session_mode), ..Spec::new(kind, workdir, env) };
        Ok(Plan {
            name: self.name.parse().map_err(|error: NameError| self.wrong("name", error.to_string()))?,
            policy: Policy { policy: self.policy, rules: Vec::new() },
            credentials: Credentials { keys, attestation },
            audience: Audience { respond_to: self.respond_to, owner, allowlist: self.allowed()? },
            queue: queue::Settings { mode: self.mode, parallel: self.parallel, ..queue::Settings::default() },
            times: Default::default(),
            system: self.system.clone(),
            spec,
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

    fn model_server(&self) -> Result<OpenAi, ConfigError> {
        let url: Url = self.base_url.parse().map_err(|error| self.wrong("base_url", format!("is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(self.wrong("base_url", "begins with http:// or https://"));
        }
        if self.model.is_empty() {
            return Err(self.wrong("model", "must be named for a model server"));
        }
        Ok(OpenAi::new(url, self.model.clone()))
    }

    /// What runs its turns, for a person.
    pub fn backend_name(&self) -> String {
        if !self.preset.is_empty() {
            let known = PRESETS.iter().find(|preset| preset.name == self.preset);
            return known.map_or_else(|| self.preset.clone(), |preset| preset.title.to_owned());
        }
        match self.backend {
            BackendKind::Demo => "built-in demo".into(),
            BackendKind::OpenAi => self.model.clone(),
            BackendKind::Acp | BackendKind::Command => self.command.rsplit('/').next().unwrap_or_default().to_owned(),
        }
    }

    fn kind(&self, path: &str) -> Result<Kind, ConfigError> {
        if !self.preset.is_empty() {
            return Err(self.wrong("preset", "is not known to this version; give its command and args"));
        }
        let program = || find(&self.command, path).ok_or_else(|| self.wrong("command", "is not a program in PATH"));
        Ok(match self.backend {
            BackendKind::Acp => Kind::Acp { command: program()?, args: self.args.clone() },
            BackendKind::Command => Kind::Command { command: program()?, args: self.args.clone() },
            BackendKind::OpenAi => Kind::OpenAi(self.model_server()?),
            BackendKind::Demo => self.built_in()?,
        })
    }

    fn built_in(&self) -> Result<Kind, ConfigError> {
        let this = std::env::current_exe();
        let command = this.map_err(|error| self.wrong("backend", format!("this program cannot be found: {error}")))?;
        Ok(Kind::Acp { command, args: ["agent", "demo"].map(str::to_owned).to_vec() })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(change: impl FnOnce(&mut AgentSettings)) -> AgentSettings {
        let mut settings = AgentSettings {
            name: "scout".into(),
            backend: BackendKind::Command,
            command: "/bin/cat".into(),
            relays: vec!["ws://127.0.0.1:7777".into()],
            ..AgentSettings::default()
        };
        change(&mut settings);
        settings
    }

    #[test]
    fn a_wrong_setting_is_named() {
        assert!(agent(|_| {}).check().is_ok());
        type Change = (&'static str, fn(&mut AgentSettings));
        let change: [Change; 13] = [
            ("name", |a| a.name = "Scout".into()),
            ("name", |a| a.name = "a".repeat(64)),
            ("relays", |a| a.relays.clear()),
            ("relays", |a| a.relays.push("http://x".into())),
            ("relays", |a| a.relays.push(a.relays[0].clone())),
            ("parallel", |a| a.parallel = 0),
            ("allowlist", |a| a.allowlist.push("x".into())),
            ("command", |a| a.command.clear()),
            ("preset", |a| a.preset = "goose".into()),
            ("model", |a| (a.backend, a.command) = (BackendKind::OpenAi, String::new())),
            ("base_url", |a| a.base_url = "http://x".into()),
            ("budget", |a| a.budget.usd_per_day = Some(-1.0)),
            ("command", |a| a.backend = BackendKind::Demo),
        ];
        for (setting, change) in change {
            let error = agent(change).check().expect_err(setting).to_string();
            assert!(error.contains(&format!(": {setting}: ")), "{error}");
        }
        let twice = check_all(&[agent(|_| {}), agent(|_| {})]).expect_err("twice").to_string();
        assert!(twice.starts_with("agent \"scout\": name: "), "{twice}");
    }

    #[test]
    fn a_file_has_agents_and_what_is_unknown_in_it_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("config.toml");
        let load = |more: &str| {
            let text = "[leader]\nmode = \"manual\"\n[[agent]]\nname = \"scout\"\ncommand = \"goose\"\nargs = [\"acp\"]\n\
                respond_to = \"siblings\"\nrelays = [\"ws://127.0.0.1:7777\"]\n";
            std::fs::write(&file, format!("{text}{more}")).expect("written");
            crate::config::Settings::load(Some(&file)).map_err(|error| error.to_string())
        };
        let settings = load("").expect("it is read");
        assert_eq!((settings.agent[0].backend, settings.leader.mode), (BackendKind::Acp, leader::Mode::Manual));
        assert_eq!((settings.agent[0].budget.usd_per_day, settings.agent[0].respond_to), (None, RespondTo::Siblings));
        for (more, named) in [
            ("budget = { usd_per_day = 2.5 }", "budget"),
            ("paralel = 2", "paralel"),
            ("parallel = 0", "parallel"),
            ("backend = \"x\"", "backend"),
        ] {
            let error = load(more).expect_err(more);
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_plan_has_a_checked_owner_and_a_program_that_is_there() {
        let (keys, owner) = (Keys::generate().expect("randomness"), Keys::generate().expect("randomness"));
        let conditions = skep_proto::attestation::Conditions::default();
        let auth = skep_proto::attestation::attest(owner.keypair(), &keys.pubkey(), &conditions, &[0; 32]);
        let leader = LeaderSettings { dir: "/locks".into(), ..LeaderSettings::default() };
        let plan = |change: fn(&mut AgentSettings), auth: &[String]| {
            let mut settings = agent(change);
            settings.auth = auth.to_vec();
            settings.plan(&leader, keys.clone(), Path::new("/h"), [("PATH".into(), "/bin".into())])
        };
        let made = plan(|a| a.command = "cat".into(), &auth).expect("a plan");
        assert_eq!((made.audience.owner, made.spec.cwd), (Some(owner.pubkey()), PathBuf::from("/h/agents/scout/work")));
        assert!(matches!(made.spec.kind, Kind::Command { command, .. } if command == Path::new("/bin/cat")));
        for (setting, found) in [
            ("command", plan(|a| a.command = "no-such-program".into(), &auth)),
            ("auth", plan(|_| {}, &auth[..3])),
            ("auth", plan(|_| {}, &["auth".into(), owner.pubkey().to_hex(), String::new(), "0".repeat(128)])),
            ("env", plan(|a| a.env = vec!["SKEP_KEY".into(), "PATH".into()], &auth)),
        ] {
            match found {
                Err(error) => assert!(error.to_string().contains(&format!(": {setting}: ")), "{error}"),
                // A variable of ours that is not set cannot be passed on.
                Ok(plan) => assert_eq!((setting, plan.spec.env.get("SKEP_KEY")), ("env", None)),
            }
        }
    }
}
