//! `skep agent trees`: the git worktrees of the agents' conversations, and the end of those that nobody needs.

use serde_json::json;
use skep_node::agent::settings::AgentSettings;
use skep_node::agent::trees::{self, Row};
use skep_node::config::Settings;
use skep_node::home::Home;

use super::relay::config_path;
use super::status::since;
use super::table::Table;
use super::{block_on, fleet};
use crate::cli::TreesArgs;
use crate::error::CliError;
use crate::screen::{self, Output};

/// Characters of a conversation in a table.
const CONVERSATION_CHARS: usize = 32;

pub fn run(args: &TreesArgs, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let names = fleet::chosen(&home, args.config.as_ref(), &args.names)?;
    let settings = Settings::load(config_path(&home, args.config.as_ref()).as_deref())?;
    let agents: Vec<&AgentSettings> = settings.agent.iter().filter(|agent| names.contains(&agent.name)).collect();
    let host: Vec<(String, String)> = std::env::vars().collect();
    let rows = block_on(async { Ok(trees::rows(&agents, home.path(), &host, args.prune).await?) })?;
    if out.json {
        return rows.iter().try_for_each(|row| out.json_line(&as_json(row)));
    }
    if rows.is_empty() {
        screen::remark("no worktrees; an agent with `repo` in config.toml makes one for each conversation");
        return Ok(());
    }
    let mut table = Table::new(["AGENT", "CONVERSATION", "BRANCH", "AHEAD", "BEHIND", "SIZE", "CHANGED", "STATE"]);
    rows.iter().for_each(|row| table.row(cells(row)));
    table.print(out, "")
}

fn cells(row: &Row) -> [String; 8] {
    let Row { agent, conversation, tree, is_gone } = row;
    let state = tree.state.as_ref();
    let unknown = || "-".to_owned();
    let (ahead, behind) = state.and_then(|state| state.ahead_behind).unzip();
    let number = |number: Option<u64>| number.map_or_else(unknown, |number| number.to_string());
    [
        agent.clone(),
        conversation.as_deref().map_or_else(unknown, short),
        state.and_then(|state| state.branch.clone()).unwrap_or_else(unknown),
        number(ahead),
        number(behind),
        size(tree.bytes),
        since(tree.changed_at),
        match &tree.kept {
            _ if *is_gone => "removed".into(),
            Some(kept) => trees::word(kept),
            None => "merged".into(),
        },
    ]
}

fn as_json(row: &Row) -> serde_json::Value {
    let Row { agent, conversation, tree, is_gone } = row;
    let state = tree.state.as_ref();
    let (ahead, behind) = state.and_then(|state| state.ahead_behind).unzip();
    json!({
        "agent": agent, "conversation": conversation, "name": tree.name, "path": tree.path,
        "branch": state.map(|state| &state.branch), "ahead": ahead, "behind": behind,
        "in_use": state.map(|state| state.standing.is_used), "dirty": state.map(|state| state.standing.is_dirty),
        "only_here": state.map(|state| state.standing.only_here), "bytes": tree.bytes, "changed_at": tree.changed_at,
        "kept": tree.kept.as_ref().map(ToString::to_string), "removed": is_gone,
    })
}

fn short(text: &str) -> String {
    match text.char_indices().nth(CONVERSATION_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// As `du -h` has it.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{}K", bytes.div_ceil(1 << 10)),
        0x10_0000..0x4000_0000 => format!("{}M", bytes.div_ceil(1 << 20)),
        _ => format!("{:.1}G", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_rounded_up() {
        for (bytes, text) in [(0, "0K"), (1, "1K"), (1_048_575, "1024K"), (1_048_577, "2M"), (3 << 30, "3.0G")] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_long_conversation_is_cut_between_characters() {
        assert_eq!(short(&"ü".repeat(CONVERSATION_CHARS)), "ü".repeat(CONVERSATION_CHARS));
        assert_eq!(short(&"ü".repeat(CONVERSATION_CHARS + 1)), format!("{}…", "ü".repeat(CONVERSATION_CHARS)));
    }
}
