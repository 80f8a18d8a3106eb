//! The worktrees of all agents of a configuration, for whoever looks at them or clears up.
//!
//! Works beside whatever runs here: a tree that a backend works in is held, and stays.

use std::path::Path;

use futures_util::{StreamExt, stream};
use skep_agent::child::environment::Environment;
use skep_agent::driver::tree_fact;
use skep_agent::tree::survey::Tree;
use skep_agent::tree::{TreeError, Trees};
use skep_core::tree::{Bar, Kept};
use skep_proto::limits;
use skep_store::AgentStore;

use super::RECORDS;
use super::settings::AgentSettings;
use crate::config::ConfigError;

/// Why trees cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum TreesError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("agent {agent:?}: {cause}")]
    Tree { agent: String, cause: TreeError },
}

/// One tree of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub agent: String,
    /// `None`: the agent's records do not name it. Untrusted text.
    pub conversation: Option<String>,
    pub tree: Tree,
    /// Whether it was removed just now.
    pub is_gone: bool,
}

/// Whether an agent's trees can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub agent: String,
    pub repo: String,
    /// How many there are; else what is wrong, with what mends it.
    pub found: Result<usize, String>,
}

/// All trees, of agents that have a repository now and of those that had one; what they are is told of the former. With `is_pruning`, those go with which
/// nothing is lost. `host` is the environment that a child may have something of.
pub async fn rows(
    agents: &[&AgentSettings],
    home: &Path,
    host: &[(String, String)],
    is_pruning: bool,
) -> Result<Vec<Row>, TreesError> {
    let mut rows = Vec::new();
    for agent in agents {
        let directory = home.join("agents").join(&agent.name);
        if agent.repo.is_empty() && !directory.join("trees").is_dir() {
            continue;
        }
        let trees = agent.trees_left(home, &environment(host)?)?;
        let failed = |cause| TreesError::Tree { agent: agent.name.clone(), cause };
        let records = AgentStore::open_to_read(&directory.join(RECORDS)).ok();
        if is_pruning {
            let left = trees.clone();
            // What it cannot delete stays for the next time.
            let _ = tokio::task::spawn_blocking(move || left.clear()).await;
        }
        for tree in trees.survey().await.map_err(failed)? {
            let conversation = records.as_ref().and_then(|records| records.fact(&tree_fact(&tree.name)).ok()?);
            let (tree, is_gone) = if is_pruning { prune(&trees, tree).await } else { (tree, false) };
            if is_gone && conversation.is_some() && !tree.path.exists() {
                forget(&directory.join(RECORDS), &tree);
            }
            rows.push(Row { agent: agent.name.clone(), conversation, tree, is_gone });
        }
    }
    Ok(rows)
}

async fn prune(trees: &Trees, tree: Tree) -> (Tree, bool) {
    if tree.kept.is_some() {
        return (tree, false);
    }
    match trees.remove(&tree.name).await {
        Ok(()) => (tree, true),
        Err(kept) => (Tree { kept: Some(kept), ..tree }, false),
    }
}

/// The records name the conversation of a tree for as long as there is one. Its next turn writes it down again.
fn forget(records: &Path, tree: &Tree) {
    let done = AgentStore::open(records).and_then(|records| records.set_fact(&tree_fact(&tree.name), None));
    if let Err(error) = done {
        tracing::warn!(%error, tree = %tree.name, "the records still name a tree that was removed");
    }
}

/// Whether each agent that has a repository can work on it. They are looked at beside each other.
pub async fn check_all(agents: &[AgentSettings], home: &Path, host: &[(String, String)]) -> Vec<Checked> {
    let check = async |agent: &AgentSettings| {
        let trees = environment(host).and_then(|env| agent.trees(home, &env));
        let found = match trees {
            Ok(Some(trees)) => trees.check().await.and_then(|()| trees.count()).map_err(|error| error.to_string()),
            Ok(None) => Ok(0),
            Err(error) => Err(error.of_agent()),
        };
        Checked { agent: agent.name.clone(), repo: agent.repo.clone(), found }
    };
    beside(agents.iter().filter(|agent| !agent.repo.is_empty()).map(check)).await
}

/// Looks at repositories beside each other, at so many at a time, and gives what was found in the order of the looks.
pub async fn beside<L: Future>(looks: impl IntoIterator<Item = L>) -> Vec<L::Output> {
    stream::iter(looks).buffered(limits::TREES_CHECKED_AT_ONCE_MAX).collect().await
}

/// What git may have of it: nothing that an agent's settings name.
fn environment(host: &[(String, String)]) -> Result<Environment, ConfigError> {
    let failed =
        |error: skep_agent::EnvironmentError| ConfigError::Value { setting: "agent", cause: error.to_string() };
    Environment::allowed(host.iter().cloned(), &[], &[]).map_err(failed)
}

/// Why a tree stays, in a word for a table.
pub fn word(kept: &Kept) -> String {
    match kept {
        Kept::Used => "in use".into(),
        Kept::Barred(Bar::Locked) => "locked".into(),
        Kept::Barred(Bar::Submodules) => "submodules".into(),
        Kept::Barred(Bar::Unfinished(what)) => format!("in a {what}"),
        Kept::Dirty => "not committed".into(),
        Kept::OnlyHere(n) => format!("{n} only here"),
        Kept::Unknown(why) => why.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn so_many_looks_go_on_at_once_and_no_more_and_are_told_in_order() {
        let most = limits::TREES_CHECKED_AT_ONCE_MAX;
        let (together, looking, seen) = (Barrier::new(most), Cell::new(0), Cell::new(0));
        let (together, looking, seen) = (&together, &looking, &seen);
        let look = async |n: usize| {
            looking.set(looking.get() + 1);
            seen.set(seen.get().max(looking.get()));
            together.wait().await;
            looking.set(looking.get() - 1);
            n
        };
        let found = tokio::time::timeout(Duration::from_secs(60), beside((0..2 * most).map(look))).await;
        assert_eq!(found.expect("they wait for each other"), (0..2 * most).collect::<Vec<_>>());
        assert_eq!(seen.get(), most);
    }
}
