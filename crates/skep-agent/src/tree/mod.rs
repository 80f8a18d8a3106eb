//! A git worktree for each conversation of an agent, so that no two turns write in one checkout.
//!
//! Job: make the tree of a conversation before its backend starts, take it up again later, mend what a crash left half
//! made; tell what trees there are, and remove those with which nothing is lost (`survey`).
//! Neighbours: `skep_core::tree` has the names and says what stays; `git` asks the program. A backend holds a
//! [`Place`] for as long as it lives, and a tree that is held is not removed.
//! Must not: remove what somebody may have worked on, or let a repository run anything but filters of a checkout.

mod git;
pub mod survey;

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use skep_core::tree::{TreeName, linked};
use skep_proto::name::AgentName;

use crate::child::Environment;
use git::{Git, in_time};

/// What git writes into `locked` while it makes a tree, and takes away when it is whole.
const MAKING: &str = "initializing";

/// Locks of git that a process leaves behind that was killed.
const LOCKS: [&str; 2] = ["index.lock", "HEAD.lock"];

/// A tree that is removed while it is taken up is made again so often.
const ROUNDS_MAX: u32 = 3;

/// Between two tries to hold a tree that somebody has for himself: to look at it, or to remove it.
const HOLD_AGAIN: Duration = Duration::from_millis(20);

/// Why there is no tree to work in. Each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("git does not start: {0}")]
    NoGit(String),
    #[error("there is no directory {}", .0.display())]
    NoDirectory(PathBuf),
    #[error("{} is no git repository that can be used ({said}); `git init` makes one, `git -C` there says more", path.display())]
    NoRepository { path: PathBuf, said: String },
    #[error("{} is a directory inside of a repository; name the repository itself", .0.display())]
    Inside(PathBuf),
    #[error("{} has no commit {base:?}; commit something there, or name another base", path.display())]
    NoCommit { path: PathBuf, base: String },
    #[error("{} is in the way of a worktree, and git does not know it; move it away", .0.display())]
    InTheWay(PathBuf),
    #[error("{} is not a path that git can be given: it is not UTF-8", .0.display())]
    NotText(PathBuf),
    #[error("{} is being removed", .0.display())]
    Going(PathBuf),
    #[error("git {verb}: {said}")]
    Failed { verb: String, said: String },
    #[error("git took longer than {} s", skep_proto::limits::GIT_MS_MAX / 1_000)]
    TooLong,
    #[error("cannot {verb} {}: {cause}", path.display())]
    Files { verb: &'static str, path: PathBuf, cause: String },
}

impl TreeError {
    fn files(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Files { verb, path: path.to_owned(), cause: cause.to_string() }
    }
}

/// What the trees of one agent are made from. Resolved; cheap to clone.
#[derive(Debug, Clone)]
pub struct Trees(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    git: Git,
    repo: PathBuf,
    base: Option<String>,
    agent: AgentName,
    root: PathBuf,
    since: SystemTime,
}

/// A tree to work in. Held, it is not removed.
#[derive(Debug)]
pub struct Place {
    pub path: PathBuf,
    /// What is checked out there. `None`: no branch.
    pub branch: Option<String>,
    _use: File,
}

/// One conversation, and the trees among which its own is.
#[derive(Debug, Clone)]
pub struct Conversation {
    pub trees: Trees,
    pub name: String,
}

/// What lies where a tree should be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Git was killed while it made it: nobody worked there yet.
    HalfMade,
    /// With the place where git keeps what belongs to it.
    Whole(PathBuf),
    Other,
}

impl Trees {
    /// Trees of `repo` below `root`, on branches of this agent that begin at `base` (nothing: where the repository's
    /// `HEAD` is). `git` is the program, `host` what it may have of an environment. What locked a tree before `since`
    /// runs no more.
    pub fn new(
        (git, host): (PathBuf, &Environment),
        (repo, base): (PathBuf, Option<String>),
        agent: AgentName,
        root: PathBuf,
        since: SystemTime,
    ) -> Self {
        Self(Arc::new(Inner { git: Git::new(git, host), repo, base, agent, root, since }))
    }

    pub fn conversation(&self, name: &str) -> Conversation {
        Conversation { trees: self.clone(), name: name.to_owned() }
    }

    pub fn name_of(&self, conversation: &str) -> TreeName {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        TreeName::of(&text(&self.0.repo), &text(&self.0.root), conversation)
    }

    /// Where the trees are.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Whether trees can be made: what would otherwise show at the first turn.
    pub async fn check(&self) -> Result<(), TreeError> {
        in_time(self.begin()).await.map(drop)
    }

    /// The commit that a new tree begins at.
    async fn begin(&self) -> Result<String, TreeError> {
        let Inner { git, repo, .. } = &*self.0;
        if !repo.is_dir() {
            return Err(TreeError::NoDirectory(repo.clone()));
        }
        let prefix = git.ask(repo, &["rev-parse", "--show-prefix"]).await?;
        if !prefix.is_well() {
            return Err(TreeError::NoRepository { path: repo.clone(), said: prefix.words });
        }
        if prefix.line().is_some() {
            return Err(TreeError::Inside(repo.clone()));
        }
        let base = self.base();
        let commit = git.commit(repo, base).await?;
        commit.ok_or_else(|| TreeError::NoCommit { path: repo.clone(), base: base.to_owned() })
    }

    fn base(&self) -> &str {
        self.0.base.as_deref().unwrap_or("HEAD")
    }

    /// The tree of a conversation: taken up as it was left, or made.
    pub async fn prepare(&self, conversation: &str) -> Result<Place, TreeError> {
        in_time(self.make(&self.name_of(conversation))).await
    }

    async fn make(&self, name: &TreeName) -> Result<Place, TreeError> {
        let root = &self.0.root;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
        made.map_err(TreeError::files("create", root))?;
        let path = root.join(name.as_str());
        for _ in 0..ROUNDS_MAX {
            match look(&path)? {
                Found::Whole(_) => {}
                Found::Other => return Err(TreeError::InTheWay(path)),
                found => {
                    if found == Found::HalfMade {
                        remove_all(path.clone()).await?;
                    }
                    self.add(name, &path).await?;
                }
            }
            // From here on nobody removes it; somebody may have done so just before.
            let Some(held) = hold(&path).await? else { continue };
            let Found::Whole(gitdir) = look(&path)? else { continue };
            self.unlock(&gitdir);
            let head = std::fs::read_to_string(gitdir.join("HEAD")).unwrap_or_default();
            let branch = head.trim_end().strip_prefix("ref: refs/heads/").map(str::to_owned);
            return Ok(Place { path, branch, _use: held });
        }
        Err(TreeError::Going(path))
    }

    async fn add(&self, name: &TreeName, path: &Path) -> Result<(), TreeError> {
        let Inner { git, repo, agent, .. } = &*self.0;
        let commit = self.begin().await?;
        let path = path.to_str().ok_or_else(|| TreeError::NotText(path.to_owned()))?;
        // Git may know a tree here that is gone. Twice: also while it was being made.
        git.ask(repo, &["worktree", "remove", "--force", "--force", "--", path]).await?;
        let branch = name.branch(agent);
        let reference = format!("refs/heads/{branch}");
        // A branch that is there has what was committed in a tree that was lost.
        let is_there = git.ask(repo, &["show-ref", "--verify", "--quiet", &reference]).await?.is_well();
        let args: &[&str] = match is_there {
            true => &["worktree", "add", "--quiet", "--", path, &branch],
            false => &["worktree", "add", "--quiet", "--no-track", "-b", &branch, "--", path, &commit],
        };
        git.tell(repo, args).await.map(drop)
    }

    /// Takes away the locks that were there before this process: whoever held them was killed. Somebody who keeps an
    /// editor open in a `git commit` here since then is told that by git, and loses nothing.
    fn unlock(&self, gitdir: &Path) {
        for lock in LOCKS.map(|lock| gitdir.join(lock)) {
            let made = std::fs::symlink_metadata(&lock).and_then(|meta| meta.modified());
            if made.is_ok_and(|made| made < self.0.since) {
                // Then git says so, to whoever works here.
                let _ = std::fs::remove_file(&lock);
            }
        }
    }
}

impl Conversation {
    /// Its tree, held.
    pub async fn prepare(&self) -> Result<Place, TreeError> {
        self.trees.prepare(&self.name).await
    }
}

/// Holds a tree beside others who do; waits for whoever looks whether it may go. `None`: it is gone.
async fn hold(path: &Path) -> Result<Option<File>, TreeError> {
    loop {
        match try_lock(path, FlockOperation::NonBlockingLockShared) {
            Ok(Some(file)) => {
                let (ours, there) = (file.metadata(), path.metadata());
                let inode = |meta: io::Result<Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
                let is_it = inode(ours).is_some_and(|ours| Some(ours) == inode(there));
                return Ok(is_it.then_some(file));
            }
            Ok(None) => tokio::time::sleep(HOLD_AGAIN).await,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TreeError::files("use", path)(error)),
        }
    }
}

/// Locks a directory. `None`: another has it.
fn try_lock(path: &Path, how: FlockOperation) -> io::Result<Option<File>> {
    let directory = File::open(path)?;
    match flock(&directory, how) {
        Ok(()) => Ok(Some(directory)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn look(path: &Path) -> Result<Found, TreeError> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(TreeError::files("look at", path)(error)),
    };
    if !meta.is_dir() {
        return Ok(Found::Other);
    }
    let Ok(text) = std::fs::read_to_string(path.join(".git")) else {
        let is_empty = std::fs::read_dir(path).map_err(TreeError::files("read", path))?.next().is_none();
        // Git begins with an empty directory; it takes no other.
        return Ok(if is_empty && std::fs::remove_dir(path).is_ok() { Found::Nothing } else { Found::Other });
    };
    let Some(gitdir) = linked(&text).map(|gitdir| path.join(gitdir)).filter(|gitdir| gitdir.is_dir()) else {
        return Ok(Found::Other);
    };
    let locked = std::fs::read_to_string(gitdir.join("locked")).unwrap_or_default();
    Ok(if locked.trim() == MAKING { Found::HalfMade } else { Found::Whole(gitdir) })
}

/// A large checkout takes a while.
async fn remove_all(path: PathBuf) -> Result<(), TreeError> {
    let shown = path.clone();
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&path)).await;
    removed.unwrap_or_else(|ended| Err(io::Error::other(ended))).map_err(TreeError::files("remove", &shown))
}
