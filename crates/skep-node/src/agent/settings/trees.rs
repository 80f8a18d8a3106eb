//! `repo` and `worktree_base`: where the trees of an agent's conversations are, and what they are made from.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use skep_agent::child::environment::Environment;
use skep_agent::tree::Trees;
use skep_core::tree;
use skep_proto::name::NameError;

use super::{AgentSettings, BackendKind, find};
use crate::config::ConfigError;

impl AgentSettings {
    pub(super) fn check_repo(&self) -> Result<(), ConfigError> {
        if self.repo.is_empty() {
            let is_unused = self.worktree_base.is_empty();
            return if is_unused { Ok(()) } else { Err(self.wrong("worktree_base", "is read only where repo is set")) };
        }
        if !self.workdir.is_empty() {
            return Err(self.wrong("repo", "and workdir are two ways to say one thing; give one"));
        }
        if self.backend == BackendKind::OpenAi {
            return Err(
                self.wrong("repo", "is for backend = \"acp\" and \"command\": a model server works on no files")
            );
        }
        if !self.worktree_base.is_empty() && !tree::is_revision(&self.worktree_base) {
            return Err(self.wrong("worktree_base", "is the name of a branch or tag, or a commit's id"));
        }
        Ok(())
    }

    /// Where its conversations work, if each has a tree of its own. `env` is what its programs get.
    pub fn trees(&self, home: &Path, env: &Environment) -> Result<Option<Trees>, ConfigError> {
        if self.repo.is_empty() {
            return Ok(None);
        }
        let failed = |error: std::io::Error| self.wrong("repo", error.to_string());
        let repo = std::path::absolute(&self.repo).map_err(failed)?;
        // By whichever path: a name of it is a name of another tree.
        let repo = repo.canonicalize().unwrap_or(repo);
        self.trees_of(repo, home, env).map(Some)
    }

    /// The trees of an agent, whatever repository it has now: those that are there.
    pub fn trees_left(&self, home: &Path, env: &Environment) -> Result<Trees, ConfigError> {
        match self.trees(home, env)? {
            Some(trees) => Ok(trees),
            None => self.trees_of(PathBuf::new(), home, env),
        }
    }

    fn trees_of(&self, repo: PathBuf, home: &Path, env: &Environment) -> Result<Trees, ConfigError> {
        let missing = || self.wrong("repo", "git is not in PATH; install it, or leave repo out");
        let git = find("git", env.get("PATH").unwrap_or_default()).ok_or_else(missing)?;
        let home = std::path::absolute(home).map_err(|error| self.wrong("repo", error.to_string()))?;
        let root = home.canonicalize().unwrap_or(home).join("agents").join(&self.name).join("trees");
        let name = self.name.parse().map_err(|error: NameError| self.wrong("name", error.to_string()))?;
        let base = (!self.worktree_base.is_empty()).then(|| self.worktree_base.clone());
        Ok(Trees::new((git, env), (repo, base), name, root, SystemTime::now()))
    }
}
