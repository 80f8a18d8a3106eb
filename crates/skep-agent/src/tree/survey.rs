//! What trees an agent has, and the end of those with which nothing is lost.
//!
//! Must not: remove what git itself would not remove without force.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use skep_core::tree::{Kept, Standing, TreeName};
use skep_proto::{Timestamp, limits};

use super::git::{Git, in_time};
use super::{Found, TreeError, Trees, look, try_lock};

/// Bytes of a block, in which the system counts what a file takes.
const BLOCK_BYTES: u64 = 512;

/// One tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub name: TreeName,
    pub path: PathBuf,
    /// `None`: git does not know it.
    pub state: Option<State>,
    /// Why it stays. `None`: nothing is lost with it.
    pub kept: Option<Kept>,
    /// What it takes on the disk; a bound of it where there are too many files to count.
    pub bytes: u64,
    /// When git wrote about it last.
    pub changed_at: Timestamp,
}

/// What git says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `None`: none is checked out.
    pub branch: Option<String>,
    /// Commits that the base lacks, and that the base has since. `None`: there is no base to compare it with.
    pub ahead_behind: Option<(u64, u64)>,
    pub standing: Standing,
    /// Where the repository keeps what all its trees have in common.
    common: PathBuf,
}

impl Trees {
    /// All of them, by name.
    pub async fn survey(&self) -> Result<Vec<Tree>, TreeError> {
        let mut trees = Vec::new();
        for name in self.names()? {
            trees.push(self.survey_one(name).await?);
        }
        Ok(trees)
    }

    fn names(&self) -> Result<Vec<TreeName>, TreeError> {
        let root = self.root();
        let entries = match std::fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(TreeError::files("read", root)(error)),
        };
        let mut names: Vec<TreeName> =
            entries.flatten().filter_map(|entry| TreeName::parse(entry.file_name().to_str()?)).collect();
        names.sort();
        Ok(names)
    }

    async fn survey_one(&self, name: TreeName) -> Result<Tree, TreeError> {
        let path = self.root().join(name.as_str());
        let measured = path.clone();
        let bytes = tokio::task::spawn_blocking(move || bytes_of(&measured)).await.unwrap_or_default();
        let is_used = !matches!(try_lock(&path, FlockOperation::NonBlockingLockExclusive), Ok(Some(_)));
        let unknown = |why: &str| Some(Kept::Unknown(why.to_owned()));
        let tree = Tree { changed_at: changed_at(&path, None), name, path, state: None, kept: None, bytes };
        let gitdir = match look(&tree.path)? {
            Found::Whole(gitdir) => gitdir,
            Found::HalfMade => return Ok(Tree { kept: unknown("half made; the next turn makes it anew"), ..tree }),
            Found::Nothing | Found::Other => return Ok(Tree { kept: unknown("git does not know it"), ..tree }),
        };
        let changed_at = changed_at(&tree.path, Some(&gitdir));
        Ok(match in_time(self.state(&tree.name, &tree.path, is_used)).await {
            Ok(state) => Tree { kept: state.standing.kept(), state: Some(state), changed_at, ..tree },
            Err(error @ TreeError::NoGit(_)) => return Err(error),
            Err(error) => Tree { kept: unknown(&error.to_string()), changed_at, ..tree },
        })
    }

    async fn state(&self, name: &TreeName, path: &Path, is_used: bool) -> Result<State, TreeError> {
        let git = &self.0.git;
        let found = git.tell(path, &["rev-parse", "--git-common-dir"]).await?;
        let common = path.join(found.text.trim_end_matches('\n'));
        let branch = git.ask(path, &["symbolic-ref", "--quiet", "--short", "HEAD"]).await?.line().map(str::to_owned);
        let base = git.commit(&common, self.base()).await?;
        let ahead_behind = match base {
            Some(base) => ahead_behind(git, path, &base).await?,
            None => None,
        };
        let status = ["status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=none"];
        let changes = git.ask(path, &status).await?;
        let is_dirty = !changes.text.is_empty();
        if !is_dirty && !changes.is_well() {
            return Err(TreeError::Failed { verb: "status".into(), said: changes.words });
        }
        let only_here = self.only_here(name, path).await?;
        Ok(State { branch, ahead_behind, standing: Standing { is_used, is_dirty, only_here }, common })
    }

    /// Commits of the tree, and of the branch that was made for it, that no other branch has.
    async fn only_here(&self, name: &TreeName, path: &Path) -> Result<u64, TreeError> {
        let git = &self.0.git;
        let own = name.branch(&self.0.agent);
        let reference = format!("refs/heads/{own}");
        let has_own = git.ask(path, &["show-ref", "--verify", "--quiet", &reference]).await?.is_well();
        let exclude = format!("--exclude={own}");
        let mut args = vec!["rev-list", "--count", "HEAD"];
        args.extend(has_own.then_some(reference.as_str()));
        args.extend(["--not", &exclude, "--branches", "--remotes"]);
        let counted = git.tell(path, &args).await?;
        let number = counted.line().and_then(|line| line.parse().ok());
        number.ok_or_else(|| TreeError::Failed { verb: "rev-list".into(), said: "no number".into() })
    }

    /// Removes a tree with which nothing is lost, looked at again while nobody can take it up. `Err`: why it stays.
    pub async fn remove(&self, name: &TreeName) -> Result<(), Kept> {
        let path = self.root().join(name.as_str());
        let unknown = |error: TreeError| Kept::Unknown(error.to_string());
        let locked = try_lock(&path, FlockOperation::NonBlockingLockExclusive);
        let Some(_alone) = locked.map_err(|error| Kept::Unknown(error.to_string()))? else { return Err(Kept::Used) };
        if !matches!(look(&path).map_err(unknown)?, Found::Whole(_)) {
            return Err(Kept::Unknown("git does not know it".into()));
        }
        in_time(async { Ok(self.remove_locked(name, &path).await) }).await.map_err(unknown)?
    }

    async fn remove_locked(&self, name: &TreeName, path: &Path) -> Result<(), Kept> {
        let unknown = |error: TreeError| Kept::Unknown(error.to_string());
        let state = self.state(name, path, false).await.map_err(unknown)?;
        if let Some(kept) = state.standing.kept() {
            return Err(kept);
        }
        let git = &self.0.git;
        let text = path.to_str().ok_or_else(|| unknown(TreeError::NotText(path.to_owned())))?;
        // Without force: git looks once more, at what is not committed and at whether somebody locked it.
        git.tell(&state.common, &["worktree", "remove", "--", text]).await.map_err(unknown)?;
        // All of it is on other branches. Where somebody checked it out elsewhere, it stays.
        let own = name.branch(&self.0.agent);
        git.ask(&state.common, &["branch", "--quiet", "-D", "--", &own]).await.map_err(unknown)?;
        Ok(())
    }
}

async fn ahead_behind(git: &Git, path: &Path, base: &str) -> Result<Option<(u64, u64)>, TreeError> {
    let both = git.ask(path, &["rev-list", "--left-right", "--count", &format!("{base}...HEAD")]).await?;
    let numbers = both.line().and_then(|line| line.split_once('\t'));
    Ok(numbers.and_then(|(behind, ahead)| Some((ahead.parse().ok()?, behind.parse().ok()?))))
}

/// What git writes when something is committed, checked out or added.
fn changed_at(path: &Path, gitdir: Option<&Path>) -> Timestamp {
    let of_git = gitdir.into_iter().flat_map(|gitdir| ["index", "HEAD", "logs/HEAD"].map(|name| gitdir.join(name)));
    let times = of_git.chain([path.to_owned()]).filter_map(|path| path.metadata().ok()?.modified().ok());
    let newest = times.max().and_then(|time: SystemTime| time.duration_since(UNIX_EPOCH).ok());
    newest.map_or(0, |since| since.as_secs())
}

/// Follows no link, and counts at most as many files as a tree may have to be counted.
fn bytes_of(path: &Path) -> u64 {
    let (mut bytes, mut files, mut todo) = (0, 0, vec![path.to_owned()]);
    while let Some(directory) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            bytes += size(&meta);
            files += 1;
            if meta.is_dir() {
                todo.push(entry.path());
            }
            if files >= limits::TREE_FILES_COUNTED_MAX {
                return bytes;
            }
        }
    }
    bytes
}

fn size(meta: &Metadata) -> u64 {
    meta.blocks().saturating_mul(BLOCK_BYTES)
}
