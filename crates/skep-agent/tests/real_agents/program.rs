//! The programs: how each is started and what it calls things.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use skep_agent::detect::{Agent, PRESETS};
use skep_agent::{Spec, Timing};

use crate::desk::env;
use crate::mock_model::{Asked, MockModel, Reply};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Program {
    OpenCode,
    Qwen,
}

impl Program {
    /// Its home and its work are in `dir`; its model is the mock.
    pub fn spec(self, dir: &Path, mock: &MockModel, tree: &str) -> Spec {
        let home = dir.join("home");
        let cwd = dir.join("work");
        for each in [&home, &cwd] {
            std::fs::create_dir_all(each).expect("a directory");
        }
        let (home_text, base_url) = (home.display().to_string(), mock.base_url());
        let config = self.config(&home, &base_url);
        let mut set = vec![("HOME", home_text.as_str()), ("TEST_TREE", tree)];
        set.extend(config.iter().map(|(name, value)| (*name, value.as_str())));
        let timing = Timing { open: Duration::from_secs(120), cancel: Duration::from_secs(20), ..Timing::default() };
        let preset = PRESETS.iter().find(|preset| preset.name == self.name()).expect("a preset");
        let agent = Agent { preset, command: self.command(), version: None };
        Spec { timing, ..agent.spec(cwd, &env(&set)).expect("a spec") }
    }

    fn name(self) -> &'static str {
        match self {
            Self::OpenCode => "opencode",
            Self::Qwen => "qwen",
        }
    }

    fn command(self) -> PathBuf {
        match self {
            Self::OpenCode => opencode(),
            Self::Qwen => installed().join("@qwen-code/qwen-code/cli-entry.js"),
        }
    }

    /// Variables that lead it to the mock. What it would do besides a turn is turned off where it can be.
    fn config(self, home: &Path, base_url: &str) -> Vec<(&'static str, String)> {
        match self {
            Self::OpenCode => vec![
                ("OPENCODE_CONFIG_CONTENT", opencode_config(base_url).to_string()),
                ("OPENCODE_DISABLE_MODELS_FETCH", "1".to_owned()),
                ("OPENCODE_DISABLE_AUTOUPDATE", "1".to_owned()),
                ("OPENCODE_DISABLE_LSP_DOWNLOAD", "1".to_owned()),
            ],
            Self::Qwen => {
                // Tools of servers are listed to the model as the others are, and not behind a search.
                let settings = json!({ "tools": { "toolSearch": { "enabled": false } }, "security": { "auth": { "selectedType": "openai" } }, "memory": { "enableManagedAutoMemory": false, "enableManagedAutoDream": false },
                    "ui": { "enableFollowupSuggestions": false }, "privacy": { "usageStatisticsEnabled": false } });
                std::fs::create_dir_all(home.join(".qwen")).expect("a directory");
                std::fs::write(home.join(".qwen/settings.json"), settings.to_string()).expect("settings");
                vec![
                    ("OPENAI_API_KEY", "mock-key".to_owned()),
                    ("OPENAI_BASE_URL", base_url.to_owned()),
                    ("OPENAI_MODEL", "mock".to_owned()),
                ]
            }
        }
    }

    /// How its model would write a file.
    pub fn write(self, path: &Path, content: &str) -> Reply {
        match self {
            Self::OpenCode => {
                Reply::Tool { name: "write".into(), arguments: json!({ "filePath": path, "content": content }) }
            }
            Self::Qwen => {
                Reply::Tool { name: "write_file".into(), arguments: json!({ "file_path": path, "content": content }) }
            }
        }
    }
}

fn opencode_config(base_url: &str) -> Value {
    let model = json!({ "name": "Mock", "limit": { "context": 100_000, "output": 8_000 }, "cost": { "input": 1, "output": 2 } });
    json!({
        "model": "mock/mock", "small_model": "mock/mock", "autoupdate": false, "share": "disabled",
        "enabled_providers": ["mock"],
        "provider": { "mock": { "npm": "@ai-sdk/openai-compatible", "name": "Mock",
            "options": { "baseURL": base_url, "apiKey": "mock-key" }, "models": { "mock": model, "other": model } } },
    })
}

fn installed() -> PathBuf {
    std::env::var_os("SKEP_REAL_AGENTS").map(PathBuf::from).expect("SKEP_REAL_AGENTS: run this by tests/agents/run.sh")
}

/// The program itself, in the package of its platform: the launcher beside it is made by an install script.
fn opencode() -> PathBuf {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let os = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    installed().join(format!("opencode-{os}-{arch}/bin/opencode"))
}

/// Whether this is a call of the turn itself, and not one that the program makes besides.
pub fn is_main(asked: &Asked, marker: &str) -> bool {
    !asked.tools.is_empty() && asked.text.contains(marker)
}
