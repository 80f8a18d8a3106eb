//! The configuration as a text: the first one, and one more agent at the end of any.

use std::path::Path;

use skep_proto::PubKey;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use super::SetupError;
use crate::agent::settings::{AgentSettings, BackendKind};
use crate::keys::npub;

/// A configuration that cannot be added to.
#[derive(Debug, thiserror::Error)]
pub enum MistakeInFile {
    #[error("the configuration is no TOML: line {line}: {what}")]
    Syntax { line: usize, what: String },
    #[error("`agent` is not a list of [[agent]] tables")]
    Agent,
}

/// What a first start writes.
pub fn first_config(listen: &str, owner: &PubKey, agents: &[AgentSettings]) -> String {
    let (listen, owner) = (value(listen), npub(owner));
    let mut text = format!(
        "\
# Skep's settings on this machine. `skep up` wrote this file once and does not change it;
# `skep agent new` adds agents at its end. Every setting and its default: docs/config.md.

[relay]
# Address and port to serve on. Before other machines may come in, read docs/operations.md.
listen = {listen}
# Only members, and the agents that they attested, may read and write.
closed = true
members = [\"{owner}\"]
# Who may manage it: the owner of this machine's agents.
admins = [\"{owner}\"]
"
    );
    for agent in agents {
        text.push('\n');
        text.push_str(&agent_text(agent));
    }
    text
}

/// The configuration of a demo: strangers may speak, so that they can be refused.
pub fn demo_config(listen: &str, owner: &PubKey, locks: &Path, agents: &[AgentSettings]) -> String {
    let (listen, owner, locks) = (value(listen), npub(owner), value(locks.display().to_string()));
    let tables: String = agents.iter().map(|agent| format!("\n{}", agent_text(agent))).collect();
    format!(
        "\
# Made by `skep up --demo`, and made again each time it starts.

[relay]
listen = {listen}
members = [\"{owner}\"]
admins = [\"{owner}\"]

[leader]
dir = {locks}
{tables}"
    )
}

/// The same text with one more agent at its end.
pub fn with_agent(text: &str, agent: &AgentSettings) -> Result<String, SetupError> {
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let what = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        MistakeInFile::Syntax { line, what }
    })?;
    let agents = document.entry("agent").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    let agents = agents.as_array_of_tables_mut().ok_or(MistakeInFile::Agent)?;
    let is_there = |table: &Table| table.get("name").and_then(Item::as_str) == Some(&agent.name);
    if agents.iter().any(is_there) {
        return Err(SetupError::Twice(agent.name.parse()?));
    }
    // As text at the end, and not through the document: comments after the last table stay where they are.
    let gap = if text.is_empty() || text.ends_with("\n\n") { "" } else { "\n" };
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    Ok(format!("{text}{end}{gap}{}", agent_text(agent)))
}

fn agent_text(agent: &AgentSettings) -> String {
    let list = |all: &[String]| value(all.iter().map(String::as_str).collect::<Array>());
    let mut table = Table::new();
    table.insert("name", value(&agent.name));
    table.insert("auth", list(&agent.auth));
    if let Some(mut key) = table.key_mut("auth") {
        key.leaf_decor_mut().set_prefix("# Its owner's word that it is theirs (NIP-OA).\n");
    }
    match agent.backend {
        BackendKind::OpenAi => {
            table.insert("backend", value("openai"));
            table.insert("base_url", value(&agent.base_url));
            table.insert("model", value(&agent.model));
        }
        BackendKind::Command => {
            table.insert("backend", value("command"));
        }
        BackendKind::Acp => {}
    }
    for (name, text) in [("preset", &agent.preset), ("command", &agent.command)] {
        if !text.is_empty() {
            table.insert(name, value(text));
        }
    }
    if !agent.args.is_empty() {
        table.insert("args", list(&agent.args));
    }
    table.insert("relays", list(&agent.relays));
    format!("[[agent]]\n{table}")
}
