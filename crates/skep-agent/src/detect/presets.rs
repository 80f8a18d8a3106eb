//! Agents that speak ACP, and how each is started so that it asks before it acts.

use crate::child::{Environment, EnvironmentError};

/// How one agent is found and started.
#[derive(Debug, PartialEq, Eq)]
pub struct Preset {
    pub name: &'static str,
    pub title: &'static str,
    /// The first that is on the `PATH` is taken.
    pub commands: &'static [&'static str],
    pub args: &'static [&'static str],
    /// The session mode in which it asks, where its own default does not.
    pub mode: Option<&'static str>,
    /// The same by its variables.
    pub env: &'static [(&'static str, &'static str)],
    /// How to get it, for a person.
    pub install: &'static str,
}

impl Preset {
    /// The preset's variables, unless the owner has set them.
    pub fn environment(&self, env: &Environment) -> Result<Environment, EnvironmentError> {
        let own = self.env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let all: Vec<_> = own.chain(env.iter().map(|(name, value)| (name.to_owned(), value.to_owned()))).collect();
        Environment::allowed([], &[], &all)
    }
}

const PLAIN: Preset = Preset { name: "", title: "", commands: &[], args: &[], mode: None, env: &[], install: "" };

pub const PRESETS: [Preset; 8] = [
    Preset {
        name: "claude",
        title: "Claude Code",
        commands: &["claude-agent-acp", "claude-code-acp"],
        mode: Some("default"),
        install: "npm install -g @agentclientprotocol/claude-agent-acp, then log in with `claude`",
        ..PLAIN
    },
    Preset {
        name: "codex",
        title: "Codex",
        commands: &["codex-acp"],
        install: "npm install -g @zed-industries/codex-acp, then log in with `codex login`",
        ..PLAIN
    },
    Preset {
        name: "gemini",
        title: "Gemini CLI",
        commands: &["gemini"],
        args: &["--acp"],
        mode: Some("default"),
        install: "npm install -g @google/gemini-cli, then log in with `gemini`",
        ..PLAIN
    },
    Preset {
        name: "goose",
        title: "goose",
        commands: &["goose"],
        args: &["acp"],
        env: &[("GOOSE_MODE", "approve")],
        install: "see goose's installation page, then run `goose configure`",
        ..PLAIN
    },
    Preset {
        name: "opencode",
        title: "OpenCode",
        commands: &["opencode"],
        args: &["acp"],
        env: &[("OPENCODE_PERMISSION", r#"{"edit":"ask","bash":"ask","webfetch":"ask"}"#)],
        install: "npm install -g opencode-ai, then log in with `opencode auth login`",
        ..PLAIN
    },
    Preset {
        name: "qwen",
        title: "Qwen Code",
        commands: &["qwen"],
        args: &["--acp"],
        mode: Some("default"),
        install: "npm install -g @qwen-code/qwen-code, then log in with `qwen`",
        ..PLAIN
    },
    Preset {
        name: "kimi",
        title: "Kimi Code",
        commands: &["kimi"],
        args: &["acp"],
        install: "see the Kimi Code CLI's installation page, then run `kimi login`",
        ..PLAIN
    },
    Preset {
        name: "vibe",
        title: "Mistral Vibe",
        commands: &["vibe-acp"],
        install: "pipx install mistral-vibe, then run `vibe --setup`",
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_complete_and_the_owners_variables_win() {
        assert!(
            PRESETS
                .iter()
                .all(|preset| !preset.name.is_empty() && !preset.commands.is_empty() && !preset.install.is_empty())
        );
        let goose = PRESETS.iter().find(|preset| preset.name == "goose").expect("goose");
        let mode =
            |env: &Environment| goose.environment(env).expect("an environment").get("GOOSE_MODE").map(str::to_owned);
        assert_eq!(mode(&Environment::default()), Some("approve".into()));
        let own = Environment::allowed([], &[], &[("GOOSE_MODE".into(), "chat".into())]).expect("an environment");
        assert_eq!(mode(&own), Some("chat".into()));
    }
}
