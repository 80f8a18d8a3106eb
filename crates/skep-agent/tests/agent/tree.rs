//! Worktrees of conversations, made by the real git in repositories of this test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use skep_agent::tree::survey::Tree;
use skep_agent::tree::{TreeError, Trees};
use skep_agent::words::{BackendError, Ended};
use skep_agent::{Backend, Environment, Kind, Spec};
use skep_core::tree::{Bar, Kept};
use tempfile::TempDir;

#[path = "tree/forged.rs"]
mod forged;
#[path = "tree/going.rs"]
mod going;

use crate::desk::{demo, env, listen, never, prompt, quick, until};

/// A repository with one commit, in a directory whose name needs quoting; and an agent's home beside it.
struct Place {
    dir: TempDir,
    repo: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let repo = dir.path().join("a repo; with 'marks'");
        std::fs::create_dir(&repo).expect("made");
        git(&repo, &["init", "--quiet", "--initial-branch=main"]);
        std::fs::write(repo.join("file.txt"), "first\n").expect("written");
        commit(&repo, "first");
        Self { dir, repo }
    }

    fn trees(&self, home: &str) -> Trees {
        self.trees_of(home, &self.repo, None)
    }

    /// Of a harness that is started later: what is there now was there before it.
    fn trees_later(&self, home: &str) -> Trees {
        self.trees_since(home, &self.repo, None, SystemTime::now() + Duration::from_secs(60))
    }

    fn trees_of(&self, home: &str, repo: &Path, base: Option<&str>) -> Trees {
        self.trees_since(home, repo, base, SystemTime::UNIX_EPOCH)
    }

    fn trees_since(&self, home: &str, repo: &Path, base: Option<&str>, since: SystemTime) -> Trees {
        let root = self.dir.path().join(home).join("trees");
        let (repo, base) = (repo.to_owned(), base.map(str::to_owned));
        Trees::new(("git".into(), &host()), (repo, base), "scout".parse().expect("a name"), root, since)
    }
}

/// Work of a harness that is killed after so many milliseconds: nothing of it goes on, and git is killed with it.
async fn killed_after(place: &Place, ms: u64, work: impl Future<Output = ()> + Send + 'static) {
    let harness =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    drop(tokio::time::timeout(Duration::from_millis(ms), harness.spawn(work)).await);
    let end = move || harness.shutdown_timeout(Duration::from_secs(60));
    tokio::task::spawn_blocking(end).await.expect("it ends");
    // A killed process is not gone at once.
    let at_work = || {
        let pids = std::fs::read_dir("/proc").expect("readable").flatten().map(|entry| entry.path());
        pids.filter_map(|pid| pid.join("cwd").read_link().ok()).any(|cwd| cwd.starts_with(place.dir.path()))
    };
    while at_work() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn host() -> Environment {
    Environment::allowed(std::env::vars(), &[], &[]).expect("an environment")
}

fn command(cwd: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.current_dir(cwd).args(args);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GIT_")) {
        command.env_remove(name);
    }
    command.envs([("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@b"), ("GIT_COMMITTER_NAME", "a")]);
    command.env("GIT_COMMITTER_EMAIL", "a@b");
    command
}

#[track_caller]
fn git(cwd: &Path, args: &[&str]) -> String {
    let output = command(cwd, args).output().expect("git runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

#[track_caller]
fn commit(cwd: &Path, what: &str) {
    git(cwd, &["add", "--all"]);
    git(cwd, &["commit", "--quiet", "--message", what]);
}

/// Has git wait for ever for what a configuration includes.
fn hang(config: &Path, pipe: &Path) {
    let text = std::fs::read_to_string(config).expect("there");
    std::fs::write(config, format!("{text}[include]\n\tpath = {}\n", pipe.display())).expect("written");
    mknodat(CWD, pipe, FileType::Fifo, Mode::from(0o600), 0).expect("a pipe");
}

fn branch(path: &Path) -> String {
    git(path, &["symbolic-ref", "--short", "HEAD"])
}

async fn one(trees: &Trees) -> Tree {
    let mut all = trees.survey().await.expect("surveyed");
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[tokio::test]
async fn two_conversations_at_once_have_two_trees_and_each_is_taken_up_again() {
    let place = Place::new();
    let trees = place.trees("home");
    trees.check().await.expect("in order");
    let (one, two) = tokio::join!(trees.prepare("h:one"), trees.prepare("h:two"));
    let (one, two) = (one.expect("made"), two.expect("made"));
    assert_ne!(one.path, two.path);
    for tree in [&one, &two] {
        assert_eq!(std::fs::read_to_string(tree.path.join("file.txt")).expect("there"), "first\n");
        let name = tree.path.file_name().expect("a name").to_string_lossy().into_owned();
        assert_eq!(branch(&tree.path), format!("skep/scout/{name}"));
        assert_eq!(tree.branch.as_deref(), Some(branch(&tree.path).as_str()));
    }
    std::fs::write(one.path.join("work.txt"), "half done").expect("written");
    let path = one.path.clone();
    drop((one, two));
    // Another process, later; meanwhile the repository went on.
    std::fs::write(place.repo.join("file.txt"), "second\n").expect("written");
    commit(&place.repo, "second");
    let again = place.trees("home").prepare("h:one").await.expect("taken up");
    assert_eq!(again.path, path);
    assert_eq!(std::fs::read_to_string(path.join("work.txt")).expect("there"), "half done");
    assert_eq!(std::fs::read_to_string(path.join("file.txt")).expect("there"), "first\n");
    let third = trees.prepare("h:three").await.expect("made");
    assert_eq!(std::fs::read_to_string(third.path.join("file.txt")).expect("there"), "second\n");
}

#[tokio::test]
async fn two_homes_of_one_agent_share_a_repository_and_no_branch() {
    let place = Place::new();
    let (here, there) = (place.trees("here"), place.trees("there"));
    let (one, two) = tokio::join!(here.prepare("h:one"), there.prepare("h:one"));
    let (one, two) = (one.expect("made"), two.expect("made"));
    assert_ne!(branch(&one.path), branch(&two.path));
}

#[tokio::test]
async fn a_tree_begins_at_the_base_that_was_named() {
    let place = Place::new();
    git(&place.repo, &["switch", "--quiet", "--create", "other"]);
    std::fs::write(place.repo.join("file.txt"), "other\n").expect("written");
    commit(&place.repo, "other");
    let named = place.trees_of("named", &place.repo, Some("main")).prepare("c").await.expect("made");
    let head = place.trees_of("head", &place.repo, None).prepare("c").await.expect("made");
    assert_eq!(std::fs::read_to_string(named.path.join("file.txt")).expect("there"), "first\n");
    assert_eq!(std::fs::read_to_string(head.path.join("file.txt")).expect("there"), "other\n");
    let missing = place.trees_of("missing", &place.repo, Some("no-such")).check().await;
    assert!(matches!(&missing, Err(TreeError::NoCommit { base, .. }) if base == "no-such"), "{missing:?}");
}

#[tokio::test]
async fn no_hook_of_the_repository_runs() {
    let place = Place::new();
    let hook = place.repo.join(".git/hooks/post-checkout");
    std::fs::create_dir_all(hook.parent().expect("a parent")).expect("made");
    std::fs::write(&hook, format!("#!/bin/sh\ntouch '{}'\n", place.dir.path().join("ran").display())).expect("written");
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
    // It does run when somebody else makes a tree.
    git(&place.repo, &["worktree", "add", "--quiet", "../by-hand"]);
    let ran = place.dir.path().join("ran");
    std::fs::remove_file(&ran).expect("the hook ran");
    let monitor = format!("touch '{}'", ran.display());
    git(&place.repo, &["config", "core.fsmonitor", &monitor]);
    let trees = place.trees("home");
    let tree = trees.prepare("c").await.expect("made");
    drop(tree);
    one(&trees).await;
    assert!(!ran.exists());
}

#[tokio::test]
async fn a_bare_repository_will_do_and_what_is_none_is_told_before_the_first_turn() {
    let place = Place::new();
    let bare = place.dir.path().join("bare.git");
    git(place.dir.path(), &["clone", "--quiet", "--bare", place.repo.to_str().expect("text"), "bare.git"]);
    let trees = place.trees_of("home", &bare, None);
    trees.check().await.expect("in order");
    let tree = trees.prepare("c").await.expect("made");
    assert!(tree.path.join("file.txt").exists());
    drop(tree);
    assert_eq!(one(&trees).await.kept, None);

    let check = async |repo: &Path| place.trees_of("home", repo, None).check().await.expect_err("told");
    let nothing = place.dir.path().join("nothing");
    assert_eq!(check(&nothing).await, TreeError::NoDirectory(nothing.clone()));
    std::fs::create_dir(&nothing).expect("made");
    let error = check(&nothing).await.to_string();
    assert!(error.contains("is no git repository") && error.contains("git init") && !error.contains('\n'), "{error}");
    git(&nothing, &["init", "--quiet"]);
    assert!(matches!(check(&nothing).await, TreeError::NoCommit { .. }), "nothing is committed there yet");
    let inside = place.repo.join("sub");
    std::fs::create_dir(&inside).expect("made");
    assert_eq!(check(&inside).await, TreeError::Inside(inside.clone()));
    let root = place.dir.path().join("trees");
    let program = place.dir.path().join("no-git");
    let agent = "scout".parse().expect("a name");
    let gone = Trees::new((program, &host()), (place.repo.clone(), None), agent, root, SystemTime::UNIX_EPOCH);
    let error = gone.check().await.expect_err("told").to_string();
    assert!(error.contains("git does not start") && error.contains("Is it installed"), "{error}");
}

#[tokio::test]
async fn a_tree_that_was_half_made_is_made_anew_at_whatever_point_git_was_killed() {
    let place = Place::new();
    // Enough files that a checkout takes a while.
    for n in 0..300 {
        std::fs::write(place.repo.join(format!("{n}.txt")), n.to_string()).expect("written");
    }
    commit(&place.repo, "many");
    for ms in (0..40).step_by(4) {
        let conversation = format!("c{ms}");
        let (trees, cut) = (place.trees("home"), conversation.clone());
        killed_after(&place, ms, async move { drop(trees.prepare(&cut).await) }).await;
        let tree = place.trees_later("home").prepare(&conversation).await;
        let tree = tree.unwrap_or_else(|error| panic!("after {ms} ms: {error}"));
        assert!(tree.path.join("299.txt").exists(), "after {ms} ms");
        assert_eq!(git(&tree.path, &["status", "--porcelain"]), "", "after {ms} ms");
    }
    // As it is left when the machine stops in the middle of a checkout: with git's mark, its lock, and half of the files.
    let trees = place.trees("home");
    let tree = trees.prepare("cut").await.expect("made");
    let path = tree.path.clone();
    drop(tree);
    let gitdir = PathBuf::from(git(&path, &["rev-parse", "--absolute-git-dir"]));
    std::fs::write(gitdir.join("locked"), "initializing").expect("written");
    std::fs::write(gitdir.join("index.lock"), "").expect("written");
    std::fs::remove_file(path.join("file.txt")).expect("removed");
    let tree = trees.prepare("cut").await.expect("made anew");
    assert_eq!(git(&tree.path, &["status", "--porcelain"]), "");
    commit_in(&tree.path, "work.txt");
    drop(tree);
    // And when the directory is lost, what was committed in it is not.
    std::fs::remove_dir_all(&path).expect("removed");
    let tree = trees.prepare("cut").await.expect("made again");
    assert!(tree.path.join("work.txt").exists());
}

#[tokio::test]
async fn a_tree_is_made_to_its_end_although_whoever_asked_for_it_is_gone() {
    let place = Place::new();
    let trees = place.trees("home");
    for ms in (0..40).step_by(4) {
        let conversation = format!("c{ms}");
        drop(tokio::time::timeout(Duration::from_millis(ms), trees.prepare(&conversation)).await);
        // Nobody asks for it meanwhile.
        let file = trees.root().join(trees.name_of(&conversation).as_str()).join("file.txt");
        let made = async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), made).await.unwrap_or_else(|_| panic!("not after {ms} ms"));
        let tree = trees.prepare(&conversation).await.unwrap_or_else(|error| panic!("after {ms} ms: {error}"));
        assert_eq!(git(&tree.path, &["status", "--porcelain"]), "", "after {ms} ms");
    }
}

#[tokio::test]
async fn what_git_had_begun_to_keep_of_a_tree_is_taken_away_when_git_finds_no_worktree_for_it() {
    let place = Place::new();
    // Of another conversation, and of somebody who is not ours.
    let begun = |name: &str| {
        let kept = place.repo.join(".git/worktrees").join(name);
        std::fs::create_dir_all(&kept).expect("made");
        std::fs::write(kept.join("locked"), "initializing").expect("written");
        std::fs::write(kept.join("gitdir"), "/nowhere/.git\n").expect("written");
        std::fs::write(kept.join("commondir"), "").expect("written");
        kept
    };
    let ours = begun(&format!("{}1", place.trees("home").name_of("d")));
    let error = place.trees("home").prepare("c").await.expect_err("it is new").to_string();
    assert!(error.contains("commondir"), "{error}");
    place.trees_later("home").prepare("c").await.expect("made");
    assert!(!ours.exists());
    let other = begun("somebody");
    place.trees_later("home").prepare("e").await.expect_err("git is not mended for others");
    assert!(other.exists());
}

#[tokio::test]
async fn the_lock_of_a_branch_that_a_killed_process_left_is_taken_away_and_one_of_now_is_not() {
    let place = Place::new();
    let name = place.trees("home").name_of("c");
    let lock = place.repo.join(format!(".git/refs/heads/skep/scout/{name}.lock"));
    std::fs::create_dir_all(lock.parent().expect("a directory")).expect("made");
    std::fs::write(&lock, "").expect("written");
    let error = place.trees("home").prepare("c").await.expect_err("somebody writes it").to_string();
    assert!(error.contains(".lock': File exists"), "{error}");
    place.trees_later("home").prepare("c").await.expect("made");
    assert!(!lock.exists());
}

fn commit_in(path: &Path, file: &str) {
    std::fs::write(path.join(file), "work").expect("written");
    commit(path, file);
}

#[tokio::test]
async fn a_lock_that_a_killed_process_left_is_taken_away_and_one_of_now_is_not() {
    let place = Place::new();
    let path = place.trees("home").prepare("c").await.expect("made").path.clone();
    let lock = PathBuf::from(git(&path, &["rev-parse", "--absolute-git-dir"])).join("index.lock");
    std::fs::write(&lock, "").expect("written");
    drop(place.trees("home").prepare("c").await.expect("taken up"));
    assert!(lock.exists(), "somebody commits");
    drop(place.trees_later("home").prepare("c").await.expect("taken up"));
    assert!(!lock.exists());
    commit_in(&path, "work.txt");
}

#[tokio::test]
async fn an_empty_git_file_that_git_left_when_it_was_killed_is_mended_and_no_other() {
    let place = Place::new();
    let trees = place.trees("home");
    let path = trees.prepare("c").await.expect("made").path.clone();
    let gitdir = PathBuf::from(git(&path, &["rev-parse", "--absolute-git-dir"]));
    let empty = || {
        std::fs::remove_dir_all(&path).expect("removed");
        std::fs::create_dir(&path).expect("made");
        std::fs::write(path.join(".git"), "").expect("written");
    };
    // As git leaves it between making the file and writing into it, before it checks anything out.
    empty();
    std::fs::write(gitdir.join("locked"), "initializing").expect("written");
    let half_made = one(&trees).await.kept;
    assert!(matches!(&half_made, Some(Kept::Unknown(why)) if why.starts_with("half made")), "{half_made:?}");
    assert!(path.join(".git").exists(), "a look changes nothing");
    drop(trees.prepare("c").await.expect("made anew"));
    assert_eq!(git(&path, &["status", "--porcelain"]), "");
    // Power was lost, and with it what the repository had of the tree.
    empty();
    std::fs::remove_dir_all(gitdir.parent().expect("all of them")).expect("removed");
    drop(trees.prepare("c").await.expect("made anew"));
    assert_eq!(git(&path, &["status", "--porcelain"]), "");

    let in_the_way = Some(TreeError::InTheWay(path.clone()));
    // Somebody's work is beside it, though git was never done with the tree.
    std::fs::write(path.join(".git"), "").expect("written");
    std::fs::write(gitdir.join("locked"), "initializing").expect("written");
    assert_eq!(trees.prepare("c").await.err(), in_the_way);
    assert!(path.join("file.txt").exists());
    // The tree was whole: what is on no branch may be known to it alone.
    empty();
    std::fs::remove_file(gitdir.join("locked")).expect("removed");
    assert_eq!(trees.prepare("c").await.err(), in_the_way);
    assert!(gitdir.exists());
    // A link, also to an empty file, is none of git's.
    std::fs::remove_dir_all(gitdir.parent().expect("all of them")).expect("removed");
    std::fs::remove_file(path.join(".git")).expect("removed");
    std::os::unix::fs::symlink("/dev/null", path.join(".git")).expect("linked");
    assert_eq!(trees.prepare("c").await.err(), in_the_way);
}

#[tokio::test]
async fn what_is_in_the_way_is_left_alone() {
    let place = Place::new();
    let trees = place.trees("home");
    let path = trees.root().join(trees.name_of("c").as_str());
    std::fs::create_dir_all(&path).expect("made");
    drop(trees.prepare("c").await.expect("an empty directory is no hindrance"));
    let other = trees.root().join(trees.name_of("d").as_str());
    std::fs::create_dir_all(&other).expect("made");
    std::fs::write(other.join("precious.txt"), "mine").expect("written");
    assert_eq!(trees.prepare("d").await.err(), Some(TreeError::InTheWay(other.clone())));
    assert!(other.join("precious.txt").exists());
    let kept = trees.remove(&trees.name_of("d")).await;
    assert!(matches!(kept, Err(Kept::Unknown(_))), "{kept:?}");
    assert!(other.join("precious.txt").exists());
}

#[tokio::test]
async fn only_a_tree_with_which_nothing_is_lost_is_removed() {
    let place = Place::new();
    let trees = place.trees("home");
    let name = trees.name_of("c");
    let held = trees.prepare("c").await.expect("made");
    let path = held.path.clone();
    assert_eq!(one(&trees).await.kept, Some(Kept::Used));
    assert_eq!(trees.remove(&name).await, Err(Kept::Used));
    drop(held);
    assert_eq!(one(&trees).await.kept, None);

    std::fs::write(path.join("work.txt"), "not committed").expect("written");
    assert_eq!(one(&trees).await.kept, Some(Kept::Dirty));
    assert_eq!(trees.remove(&name).await, Err(Kept::Dirty));
    commit(&path, "work");
    let tree = one(&trees).await;
    assert_eq!(tree.kept, Some(Kept::OnlyHere(1)));
    let state = tree.state.expect("known");
    assert_eq!(
        (state.ahead_behind, state.branch),
        (Some((1, 0)), Some(name.branch(&"scout".parse().expect("a name"))))
    );
    assert_eq!(trees.remove(&name).await, Err(Kept::OnlyHere(1)));

    // A commit that is on no branch at all.
    git(&path, &["checkout", "--quiet", "--detach"]);
    commit_in(&path, "detached.txt");
    git(&place.repo, &["merge", "--quiet", "--ff-only", &name.branch(&"scout".parse().expect("a name"))]);
    assert_eq!(trees.remove(&name).await, Err(Kept::OnlyHere(1)));
    git(&path, &["switch", "--quiet", &name.branch(&"scout".parse().expect("a name"))]);
    assert_eq!(one(&trees).await.kept, None, "merged, and what was detached is gone by somebody else's hand");

    git(&place.repo, &["worktree", "lock", path.to_str().expect("text")]);
    let kept = trees.remove(&name).await;
    assert!(matches!(&kept, Err(Kept::Barred(Bar::Locked))), "{kept:?}");
    git(&place.repo, &["worktree", "unlock", path.to_str().expect("text")]);
    assert_eq!(trees.remove(&name).await, Ok(()));
    assert!(!path.exists());
    assert_eq!(git(&place.repo, &["branch", "--list", "skep/*"]), "");
    assert_eq!(trees.survey().await.expect("surveyed"), []);
    // The conversation goes on in a new one.
    drop(trees.prepare("c").await.expect("made"));
}

#[tokio::test]
async fn a_backend_works_in_the_tree_of_its_conversation_and_keeps_it_for_as_long_as_it_lives() {
    let place = Place::new();
    let trees = place.trees("home");
    let of = |kind: Kind, conversation: &str| {
        let spec = Spec { timing: quick(), ..Spec::new(kind, "/", env(&[])) };
        Backend::start(Spec { tree: Some(trees.conversation(conversation)), ..spec })
    };
    let shell = |script: &str| Kind::Command { command: "/bin/sh".into(), args: vec!["-c".into(), script.into()] };
    for kind in [shell("pwd; cat >/dev/null"), demo(Path::new("/")).kind] {
        let mut backend = of(kind, "c");
        backend.order(prompt("write notes.txt")).await.expect("taken");
        let heard = listen(&mut backend, |ask| ask.options.first().map(|option| option.id.clone())).await;
        assert_eq!(heard.ended, Some(Ended::EndTurn), "{heard:?}");
        let tree = one(&trees).await;
        assert!(heard.text.contains(tree.path.to_str().expect("text")) || tree.path.join("notes.txt").exists());
        assert_eq!(heard.session.expect("a session").branch, tree.state.expect("known").branch);
        assert_eq!(trees.remove(&tree.name).await, Err(Kept::Used));
        backend.close().await;
    }
    assert_eq!(one(&trees).await.kept, Some(Kept::Dirty), "the note");
    std::fs::rename(&place.repo, place.dir.path().join("elsewhere")).expect("moved");
    let mut backend = of(shell("pwd"), "other");
    backend.order(prompt("x")).await.expect("taken");
    let heard = listen(&mut backend, never).await;
    assert_eq!(
        heard.ended,
        Some(Ended::Error(BackendError::Place(TreeError::NoDirectory(place.repo.clone()).to_string())))
    );
    until(&mut backend, |said| matches!(said, skep_agent::words::Said::Gone(_))).await;
}
