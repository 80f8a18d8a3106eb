//! What could run turns on this machine: agents on a `PATH`, model servers on loopback.
//!
//! Job: look, ask each its version or its models within a short time, and say how to get what is missing.
//! Must not: look for keys, start a session, or reach beyond loopback.

mod presets;
mod servers;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncReadExt;

use crate::child::{Child, Environment, EnvironmentError, Ladder, Program};
use crate::spec::{Kind, Spec};

pub use presets::{PRESETS, Preset};
pub use servers::{PORTS, Server, servers};

/// For an answer to `--version`: Node programs have been seen to take 4 s on a busy machine with two cores.
const VERSION_MAX: Duration = Duration::from_secs(10);

/// Bytes of an answer to `--version` that are read: some print a notice around it.
const VERSION_BYTES_MAX: u64 = 4 * 1024;

/// An agent that is installed.
#[derive(Debug, Clone)]
pub struct Agent {
    pub preset: &'static Preset,
    pub command: PathBuf,
    /// `None`: it did not say.
    pub version: Option<String>,
}

impl Agent {
    /// A backend that asks before it acts. Fails when the preset's own variables may not be set.
    pub fn spec(&self, cwd: impl Into<PathBuf>, env: &Environment) -> Result<Spec, EnvironmentError> {
        let args = self.preset.args.iter().map(|arg| (*arg).to_owned()).collect();
        let env = self.preset.environment(env)?;
        let kind = Kind::Acp { command: self.command.clone(), args };
        Ok(Spec { mode: self.preset.mode.map(str::to_owned), ..Spec::new(kind, cwd, env) })
    }
}

/// All that was found, and the rest.
#[derive(Debug, Clone, Default)]
pub struct Found {
    pub agents: Vec<Agent>,
    /// Not on the `PATH`; each says how to get it.
    pub missing: Vec<&'static Preset>,
    pub servers: Vec<Server>,
}

/// Looks for everything, at once. `env` is what an agent would get, its `PATH` with it.
pub async fn detect(env: &Environment) -> Found {
    let (agents, servers) = tokio::join!(agents(env), servers(&PORTS));
    let missing = PRESETS.iter().filter(|preset| !agents.iter().any(|agent| agent.preset.name == preset.name));
    Found { missing: missing.collect(), agents, servers }
}

async fn agents(env: &Environment) -> Vec<Agent> {
    let look = PRESETS.iter().filter_map(|preset| {
        let command = preset.commands.iter().find_map(|command| on_path(command, env.get("PATH")?))?;
        Some(async move {
            let version = version(&command, env).await;
            Agent { preset, command, version }
        })
    });
    join_all(look).await
}

fn on_path(command: &str, path: &str) -> Option<PathBuf> {
    let absolute = path.split(':').map(Path::new).filter(|directory| directory.is_absolute());
    absolute.map(|directory| directory.join(command)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// What looks like a version in its answer to `--version`. A program that takes that for something else sees the end
/// of its stdin, and is killed in time.
async fn version(command: &Path, env: &Environment) -> Option<String> {
    let program = Program {
        command: command.to_owned(),
        args: vec!["--version".to_owned()],
        cwd: PathBuf::from("/"),
        env: env.clone(),
    };
    let mut child = Child::spawn(program).await.ok()?;
    drop(child.take_stdin());
    let mut stdout = child.take_stdout()?.take(VERSION_BYTES_MAX);
    let mut text = Vec::new();
    let read = tokio::time::timeout(VERSION_MAX, stdout.read_to_end(&mut text)).await;
    child.shutdown(Ladder { ask: Duration::ZERO, terminate: Duration::from_secs(1) }).await;
    read.ok()?.ok()?;
    version_in(&String::from_utf8_lossy(&text))
}

/// The first word with two numbers and a point between.
fn version_in(text: &str) -> Option<String> {
    let bare = |word: &str| word.trim_start_matches(['v', '(']).trim_end_matches([',', ')', '.']).to_owned();
    text.split_whitespace().map(bare).find(|word| {
        let mut parts = word.split('.');
        let is_number = |part: Option<&str>| part.is_some_and(|part| part.starts_with(|c: char| c.is_ascii_digit()));
        word.len() <= 64 && is_number(parts.next()) && is_number(parts.next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_programs_print() {
        assert_eq!(version_in("2.0.14 (Claude Code)\n"), Some("2.0.14".into()));
        assert_eq!(version_in("goose v1.9.3"), Some("1.9.3".into()));
        assert_eq!(version_in("kimi, version 1.52.0-beta.1"), Some("1.52.0-beta.1".into()));
        assert_eq!(version_in("no such option"), None);
    }

    #[tokio::test]
    async fn an_agent_is_found_on_the_path_with_its_version_and_the_rest_is_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, script, mode) in [
            ("opencode", "#!/bin/sh\necho 1.18.33", 0o755),
            ("codex-acp", "#!/bin/sh\nread line", 0o755),
            ("gemini", "not a program", 0o644),
        ] {
            let file = dir.path().join(name);
            std::fs::write(&file, script).expect("a file");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("a mode");
        }
        let path = ("PATH".to_owned(), dir.path().display().to_string());
        let env = Environment::allowed([path], &[], &[]).expect("an environment");
        let agents = agents(&env).await;
        let seen: Vec<_> = agents.iter().map(|agent| (agent.preset.name, agent.version.as_deref())).collect();
        assert_eq!(seen, [("codex", None), ("opencode", Some("1.18.33"))]);
        let spec = agents[1].spec("/", &env).expect("a spec");
        assert!(spec.env.get("OPENCODE_PERMISSION").is_some_and(|asks| asks.contains("ask")));
    }
}
