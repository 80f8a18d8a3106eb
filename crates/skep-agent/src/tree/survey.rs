//! What trees an agent has, and the end of those with which nothing is lost.
//!
//! Must not: remove what git itself would not remove without force, or let git find its way by a file in a tree.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use skep_core::tree::{BARS, Bar, Kept, Standing, TreeName};
use skep_proto::{Timestamp, limits};

use super::git::{Answer, Git, in_time};
use super::look::{Found, look};
use super::{TreeError, Trees, lock, remove_all, to_its_end, try_lock};

/// Bytes of a block, in which the system counts what a file takes.
const BLOCK_BYTES: u64 = 512;

/// Said of what is no tree, whatever it looks like.
const NONE: &str = "its `.git` is not that of a worktree of the agent's repository";

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
}

/// What a look at a tree needs of its repository.
#[derive(Debug, Clone)]
enum Repository {
    /// Where it keeps what all its trees have in common.
    Common(PathBuf),
    /// Why nothing can be told.
    Unknown(String),
}

/// How git begins an entry of a submodule in `ls-files --stage`.
const SUBMODULE: &str = "160000 ";

/// Git, asked about one tree: by the place where it keeps it, which [`look`] found to be its own.
struct At<'a> {
    git: &'a Git,
    path: &'a Path,
    of: [String; 2],
}

impl<'a> At<'a> {
    fn new(git: &'a Git, path: &'a Path, gitdir: &Path) -> Result<Self, TreeError> {
        let text = |path: &Path| path.to_str().map(str::to_owned).ok_or_else(|| TreeError::NotText(path.to_owned()));
        let of = [format!("--git-dir={}", text(gitdir)?), format!("--work-tree={}", text(path)?)];
        Ok(Self { git, path, of })
    }

    fn args<'b>(&'b self, args: &[&'b str]) -> Vec<&'b str> {
        self.of.iter().map(String::as_str).chain(args.iter().copied()).collect()
    }

    async fn ask(&self, args: &[&str]) -> Result<Answer, TreeError> {
        self.git.ask(self.path, &self.args(args)).await
    }

    async fn tell(&self, args: &[&str]) -> Result<Answer, TreeError> {
        self.ask(args).await?.done(args)
    }

    async fn has_submodules(&self) -> Result<bool, TreeError> {
        let list = ["ls-files", "--stage"];
        let (answer, has_some) = self.git.says(self.path, &self.args(&list), SUBMODULE).await?;
        answer.done(&list).map(|_| has_some)
    }
}

impl Trees {
    /// All of them, by name.
    pub async fn survey(&self) -> Result<Vec<Tree>, TreeError> {
        let names = self.names()?;
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let repository = self.repository().await?;
        let mut trees = Vec::new();
        for name in names {
            trees.push(self.survey_one(name, &repository).await?);
        }
        Ok(trees)
    }

    async fn repository(&self) -> Result<Repository, TreeError> {
        if self.0.repo.as_os_str().is_empty() {
            return Ok(Repository::Unknown("the agent has no `repo`".into()));
        }
        match in_time(self.common()).await {
            Ok(common) => Ok(Repository::Common(common)),
            Err(error @ TreeError::NoGit(_)) => Err(error),
            Err(error) => Ok(Repository::Unknown(error.to_string())),
        }
    }

    pub(super) fn names(&self) -> Result<Vec<TreeName>, TreeError> {
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

    async fn survey_one(&self, name: TreeName, repository: &Repository) -> Result<Tree, TreeError> {
        let path = self.root().join(name.as_str());
        let measured = path.clone();
        let bytes = tokio::task::spawn_blocking(move || bytes_of(&measured)).await.unwrap_or_default();
        let is_used = !matches!(try_lock(&path, FlockOperation::NonBlockingLockExclusive), Ok(Some(_)));
        let unknown = |why: &str| Some(Kept::Unknown(why.to_owned()));
        let tree = Tree { changed_at: changed_at(&path, None), name, path, state: None, kept: None, bytes };
        let common = match repository {
            Repository::Common(common) => common,
            Repository::Unknown(why) => return Ok(Tree { kept: unknown(why), ..tree }),
        };
        let gitdir = match look(&tree.path, common).await? {
            Found::Whole(gitdir) => gitdir,
            Found::HalfMade => return Ok(Tree { kept: unknown("half made; the next turn makes it anew"), ..tree }),
            Found::Nothing | Found::Other => return Ok(Tree { kept: unknown(NONE), ..tree }),
        };
        let changed_at = changed_at(&tree.path, Some(&gitdir));
        Ok(match in_time(self.state(&tree.name, &tree.path, &gitdir, common, is_used)).await {
            Ok(state) => Tree { kept: state.standing.kept(), state: Some(state), changed_at, ..tree },
            Err(error @ TreeError::NoGit(_)) => return Err(error),
            Err(error) => Tree { kept: unknown(&error.to_string()), changed_at, ..tree },
        })
    }

    async fn state(
        &self,
        name: &TreeName,
        path: &Path,
        gitdir: &Path,
        common: &Path,
        is_used: bool,
    ) -> Result<State, TreeError> {
        let at = At::new(&self.0.git, path, gitdir)?;
        let branch = at.ask(&["symbolic-ref", "--quiet", "--short", "HEAD"]).await?.line().map(str::to_owned);
        let base = self.0.git.commit(common, self.base()).await?;
        let ahead_behind = match base {
            Some(base) => ahead_behind(&at, &base).await?,
            None => None,
        };
        // Not into submodules: git runs there what their configuration says, and whoever works here wrote it.
        let status = ["status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=all"];
        let changes = at.ask(&status).await?;
        let is_dirty = !changes.text.is_empty();
        if !is_dirty && !changes.is_well() {
            return Err(TreeError::Failed { verb: "status".into(), said: changes.words });
        }
        let marked = BARS.iter().find(|(mark, _)| gitdir.join(mark).symlink_metadata().is_ok()).map(|(_, bar)| *bar);
        let barred = match marked {
            None => at.has_submodules().await?.then_some(Bar::Submodules),
            marked => marked,
        };
        let only_here = self.only_here(name, &at).await?;
        Ok(State { branch, ahead_behind, standing: Standing { is_used, barred, is_dirty, only_here } })
    }

    /// Commits of the tree, and of the branch that was made for it, that no other branch has.
    async fn only_here(&self, name: &TreeName, at: &At<'_>) -> Result<u64, TreeError> {
        let own = name.branch(&self.0.agent);
        let reference = format!("refs/heads/{own}");
        let has_own = at.ask(&["show-ref", "--verify", "--quiet", &reference]).await?.is_well();
        let exclude = format!("--exclude={own}");
        let mut args = vec!["rev-list", "--count", "HEAD"];
        args.extend(has_own.then_some(reference.as_str()));
        args.extend(["--not", &exclude, "--branches", "--remotes"]);
        let counted = at.tell(&args).await?;
        let number = counted.line().and_then(|line| line.parse().ok());
        number.ok_or_else(|| TreeError::Failed { verb: "rev-list".into(), said: "no number".into() })
    }

    /// Removes a tree with which nothing is lost, looked at again while nobody can take it up. `Err`: why it stays.
    pub async fn remove(&self, name: &TreeName) -> Result<(), Kept> {
        let (trees, name) = (self.clone(), name.clone());
        let removed = to_its_end(async move { Ok(trees.remove_now(&name).await) }).await;
        removed.map_err(|error| Kept::Unknown(error.to_string()))?
    }

    async fn remove_now(&self, name: &TreeName) -> Result<(), Kept> {
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let path = self.root().join(name.as_str());
        let unknown = |error: TreeError| Kept::Unknown(error.to_string());
        let locked = try_lock(&path, FlockOperation::NonBlockingLockExclusive);
        let Some(_alone) = locked.map_err(|error| Kept::Unknown(error.to_string()))? else { return Err(Kept::Used) };
        let common = match self.repository().await.map_err(unknown)? {
            Repository::Common(common) => common,
            Repository::Unknown(why) => return Err(Kept::Unknown(why)),
        };
        let Found::Whole(gitdir) = look(&path, &common).await.map_err(unknown)? else {
            return Err(Kept::Unknown(NONE.into()));
        };
        let state = self.state(name, &path, &gitdir, &common, false).await.map_err(unknown)?;
        match state.standing.kept() {
            Some(kept) => Err(kept),
            None => self.take_away(name, &path, &common).await.map_err(unknown),
        }
    }

    /// Out of the way first, and deleted last: killed meanwhile, nothing is left that passes for a tree, and the branch
    /// is there for who goes on.
    async fn take_away(&self, name: &TreeName, path: &Path, common: &Path) -> Result<(), TreeError> {
        let git = &self.0.git;
        let text = path.to_str().ok_or_else(|| TreeError::NotText(path.to_owned()))?;
        let going = {
            // Nobody makes it anew before git has forgotten it.
            let _alone = lock(self.root(), FlockOperation::NonBlockingLockExclusive).await?;
            let going = self.set_aside(name).await?;
            git.tell(common, &["worktree", "remove", "--force", "--force", "--", text]).await?;
            // All of it is on other branches. Where somebody checked it out elsewhere, it stays.
            let own = name.branch(&self.0.agent);
            git.ask(common, &["branch", "--quiet", "-D", "--", &own]).await?;
            going
        };
        remove_all(going).await
    }
}

async fn ahead_behind(at: &At<'_>, base: &str) -> Result<Option<(u64, u64)>, TreeError> {
    let both = at.ask(&["rev-list", "--left-right", "--count", &format!("{base}...HEAD")]).await?;
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
