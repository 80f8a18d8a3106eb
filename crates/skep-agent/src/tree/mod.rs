//! A git worktree for each conversation of an agent, so that no two turns write in one checkout.
//!
//! Job: make the tree of a conversation before its backend starts, take it up again later, mend what a crash left half
//! made; tell what trees there are, and remove those with which nothing is lost (`survey`).
//! Neighbours: `skep_core::tree` has the names and says what stays; `git` asks the program. A backend holds a
//! [`Place`] for as long as it lives, and a tree that is held is not removed.
//! Must not: remove what somebody may have worked on, let a repository run anything but filters of a checkout and what
//! fetches for a partial clone, or believe a file that lies in a tree: agents write there.

mod git;
mod look;
pub mod survey;

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use skep_core::tree::TreeName;
use skep_proto::limits::{TREES_CHECK_MS_MAX, TREES_MAX};
use skep_proto::name::AgentName;

use crate::child::Environment;
use git::{Git, in_time, within};
use look::{Found, head, is_making, look, open_directory};

/// Locks of git that a process leaves behind that was killed.
const LOCKS: [&str; 2] = ["index.lock", "HEAD.lock"];

/// Before the name of a tree that is being deleted, so that nobody takes what is left of it for a tree.
const GOING: &str = ".going-";

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
    #[error("{} is in the way of a worktree, and is none of the agent's repository; move it away", .0.display())]
    InTheWay(PathBuf),
    #[error("{} has {TREES_MAX} worktrees, and no room for another; `skep agent trees --prune` removes what is merged", .0.display())]
    TooMany(PathBuf),
    #[error("{} is not a path that git can be given: it is not UTF-8", .0.display())]
    NotText(PathBuf),
    #[error("{} is being removed", .0.display())]
    Going(PathBuf),
    #[error("git {verb}: {said}")]
    Failed { verb: String, said: String },
    #[error("git took longer than {0} s")]
    TooLong(u64),
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
    /// Who makes or removes a tree: one at a time.
    turns: Mutex<HashMap<TreeName, Weak<Turn>>>,
}

type Turn = tokio::sync::Mutex<()>;

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
        Self(Arc::new(Inner { git: Git::new(git, host), repo, base, agent, root, since, turns: Mutex::default() }))
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

    /// How many there are, whole or not.
    pub fn count(&self) -> Result<usize, TreeError> {
        self.names().map(|names| names.len())
    }

    /// Whether trees can be made: what would otherwise show at the first turn.
    pub async fn check(&self) -> Result<(), TreeError> {
        within(TREES_CHECK_MS_MAX, self.begin()).await.map(drop)
    }

    /// Where the repository keeps what all its trees have in common. Canonical.
    async fn common(&self) -> Result<PathBuf, TreeError> {
        let Inner { git, repo, .. } = &*self.0;
        let asked = repo.clone();
        // It may be on a disk that does not answer.
        if !blocking(move || Ok(asked.is_dir())).await.unwrap_or_default() {
            return Err(TreeError::NoDirectory(repo.clone()));
        }
        let found = git.ask(repo, &["rev-parse", "--show-prefix", "--git-common-dir"]).await?;
        let common = match found.text.split_once('\n') {
            Some(("", common)) if found.is_well() => repo.join(common.trim_end_matches('\n')),
            Some(_) if found.is_well() => return Err(TreeError::Inside(repo.clone())),
            _ => return Err(TreeError::NoRepository { path: repo.clone(), said: found.words }),
        };
        let shown = common.clone();
        blocking(move || common.canonicalize()).await.map_err(TreeError::files("find", &shown))
    }

    /// The commit that a new tree begins at.
    async fn begin(&self) -> Result<String, TreeError> {
        self.common().await?;
        let Inner { git, repo, .. } = &*self.0;
        let base = self.base();
        let commit = git.commit(repo, base).await?;
        commit.ok_or_else(|| TreeError::NoCommit { path: repo.clone(), base: base.to_owned() })
    }

    fn base(&self) -> &str {
        self.0.base.as_deref().unwrap_or("HEAD")
    }

    /// The tree of a conversation: taken up as it was left, or made. Also when whoever asked does not wait for it: git
    /// that is killed in the middle leaves locks in the repository, which others use.
    pub async fn prepare(&self, conversation: &str) -> Result<Place, TreeError> {
        let (trees, name) = (self.clone(), self.name_of(conversation));
        to_its_end(async move { trees.make(&name).await }).await
    }

    /// Held by who makes or removes the tree.
    fn turn(&self, name: &TreeName) -> Arc<Turn> {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::<Turn>::default();
        turns.insert(name.clone(), Arc::downgrade(&turn));
        turn
    }

    async fn make(&self, name: &TreeName) -> Result<Place, TreeError> {
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let root = &self.0.root;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
        made.map_err(TreeError::files("create", root))?;
        let common = self.common().await?;
        let path = root.join(name.as_str());
        for _ in 0..ROUNDS_MAX {
            {
                // Beside others who make trees, and not while one is taken out of the way.
                let _making = lock(root, FlockOperation::NonBlockingLockShared).await?;
                match look(&path, &common).await? {
                    Found::Whole(_) => {}
                    Found::Other => return Err(TreeError::InTheWay(path)),
                    found => {
                        if found == Found::HalfMade {
                            remove_all(self.set_aside(name).await?).await?;
                        }
                        self.add(name, &path, &common).await?;
                    }
                }
            }
            // From here on nobody removes it; somebody may have done so just before.
            let Some(held) = hold(&path).await? else { continue };
            let Found::Whole(gitdir) = look(&path, &common).await? else { continue };
            LOCKS.iter().for_each(|lock| self.unlock(&gitdir.join(lock)));
            let branch = head(gitdir).await;
            return Ok(Place { path, branch, _use: held });
        }
        Err(TreeError::Going(path))
    }

    /// Takes a tree out of the way, all of it at once. Gives where it is then.
    async fn set_aside(&self, name: &TreeName) -> Result<PathBuf, TreeError> {
        let (path, going) = (self.0.root.join(name.as_str()), self.0.root.join(format!("{GOING}{name}")));
        // Left by somebody who was killed.
        remove_all(going.clone()).await?;
        std::fs::rename(&path, &going).map_err(TreeError::files("move", &path))?;
        Ok(going)
    }

    /// Deletes what was taken out of the way by somebody who was killed. It blocks. What cannot be deleted stays.
    pub fn clear(&self) {
        for entry in std::fs::read_dir(&self.0.root).into_iter().flatten().flatten() {
            let is_going = entry.file_name().to_str().is_some_and(|name| name.starts_with(GOING));
            // One that is held is being deleted now.
            let alone = || try_lock(&entry.path(), FlockOperation::NonBlockingLockExclusive);
            if is_going && let Ok(Some(_alone)) = alone() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    async fn add(&self, name: &TreeName, path: &Path, common: &Path) -> Result<(), TreeError> {
        let Inner { git, repo, agent, .. } = &*self.0;
        if self.count()? >= TREES_MAX {
            return Err(TreeError::TooMany(self.0.root.clone()));
        }
        self.clear_begun(common)?;
        let commit = self.begin().await?;
        let path = path.to_str().ok_or_else(|| TreeError::NotText(path.to_owned()))?;
        // Git may know a tree here that is gone. Twice: also while it was being made.
        git.ask(repo, &["worktree", "remove", "--force", "--force", "--", path]).await?;
        let branch = name.branch(agent);
        let reference = format!("refs/heads/{branch}");
        // Nobody else writes this branch where it is checked out nowhere.
        self.unlock(&common.join(format!("{reference}.lock")));
        // A branch that is there has what was committed in a tree that was lost.
        let is_there = git.ask(repo, &["show-ref", "--verify", "--quiet", &reference]).await?.is_well();
        let args: &[&str] = match is_there {
            true => &["worktree", "add", "--quiet", "--", path, &branch],
            false => &["worktree", "add", "--quiet", "--no-track", "-b", &branch, "--", path, &commit],
        };
        git.tell(repo, args).await.map(drop)
    }

    /// Takes away what git had begun to keep of a tree when it was killed, before it had written where the rest of the
    /// repository is: it finds no worktree any more, of anybody, while that is there.
    fn clear_begun(&self, common: &Path) -> Result<(), TreeError> {
        let kept = common.join("worktrees");
        for entry in std::fs::read_dir(&kept).into_iter().flatten().flatten() {
            // With a digit at the end, where the name itself was taken.
            let name = entry.file_name();
            let is_ours = name.to_str().and_then(|name| TreeName::parse(name.get(..TreeName::CHARS)?)).is_some();
            let meta = entry.path().join("commondir").symlink_metadata();
            let is_empty = meta.is_ok_and(|meta| meta.len() == 0 && self.is_of_before(&meta));
            if is_ours && is_empty && is_making(&entry.path()) {
                std::fs::remove_dir_all(entry.path()).map_err(TreeError::files("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Written before this process was there.
    fn is_of_before(&self, meta: &Metadata) -> bool {
        meta.modified().is_ok_and(|made| made < self.0.since)
    }

    /// Takes away a lock that was there before this process: whoever held it was killed. Somebody who keeps an editor
    /// open in a `git commit` here since then is told that by git, and loses nothing.
    fn unlock(&self, lock: &Path) {
        if lock.symlink_metadata().is_ok_and(|meta| self.is_of_before(&meta)) {
            // Then git says so, to whoever works here.
            let _ = std::fs::remove_file(lock);
        }
    }
}

impl Conversation {
    /// Its tree, held.
    pub async fn prepare(&self) -> Result<Place, TreeError> {
        self.trees.prepare(&self.name).await
    }
}

/// Work that changes a repository, which goes on when nobody waits for it any more; within the time that git has.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, TreeError>> + Send + 'static,
) -> Result<T, TreeError> {
    let ended = tokio::spawn(in_time(work)).await;
    ended.unwrap_or_else(|ended| Err(TreeError::Failed { verb: "ended".into(), said: ended.to_string() }))
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
    let directory = open_directory(path)?;
    match flock(&directory, how) {
        Ok(()) => Ok(Some(directory)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The same, as soon as nobody has it against that.
async fn lock(path: &Path, how: FlockOperation) -> Result<File, TreeError> {
    loop {
        match try_lock(path, how).map_err(TreeError::files("lock", path))? {
            Some(file) => return Ok(file),
            None => tokio::time::sleep(HOLD_AGAIN).await,
        }
    }
}

/// A large checkout takes a while. What is not there is removed.
async fn remove_all(path: PathBuf) -> Result<(), TreeError> {
    let shown = path.clone();
    let removed = blocking(move || std::fs::remove_dir_all(&path)).await;
    removed
        .or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .map_err(TreeError::files("remove", &shown))
}

/// Asks the disk, on a thread that nobody else waits for.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
}
