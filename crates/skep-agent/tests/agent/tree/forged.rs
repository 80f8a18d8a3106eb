//! What an agent that can only write files puts into its tree, and what it gets by that: nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use skep_agent::tree::{TreeError, Trees};
use skep_core::tree::{Bar, Kept};

use super::{Place, git, one};

/// How long what may hang is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tree whose conversation is over.
async fn left(trees: &Trees) -> PathBuf {
    trees.prepare("c").await.expect("made").path.clone()
}

/// Whatever is in its place, it is no tree: git is not asked, and nobody takes it up or removes it.
async fn is_none(trees: &Trees, path: &Path) {
    let work = async {
        let tree = one(trees).await;
        assert!(tree.state.is_none() && matches!(tree.kept, Some(Kept::Unknown(_))), "{tree:?}");
        assert!(matches!(trees.remove(&tree.name).await, Err(Kept::Unknown(_))));
        assert_eq!(trees.prepare("c").await.err(), Some(TreeError::InTheWay(path.to_owned())));
    };
    tokio::time::timeout(PATIENCE, work).await.expect("nothing is waited for");
}

#[tokio::test]
async fn a_git_file_that_was_forged_runs_no_command_and_has_no_lock_removed() {
    let place = Place::new();
    let trees = place.trees_later("home");
    let path = left(&trees).await;
    let ran = place.dir.path().join("ran");
    let evil = format!("touch '{}'", ran.display());
    // All of it are files below the tree.
    git(&path, &["init", "--quiet", "--bare", "fake"]);
    git(&path, &["-C", "fake", "config", "core.bare", "false"]);
    git(&path, &["-C", "fake", "config", "filter.x.clean", &evil]);
    std::fs::write(path.join(".gitattributes"), "* filter=x\n").expect("written");
    std::fs::write(path.join(".git"), "gitdir: fake\n").expect("written");
    git(&path, &["add", "file.txt"]);
    std::fs::remove_file(&ran).expect("it does run when git believes the file");
    std::fs::write(path.join("file.txt"), "changed").expect("written");
    for lock in ["index.lock", "HEAD.lock"] {
        std::fs::write(path.join("fake").join(lock), "").expect("written");
    }
    is_none(&trees, &path).await;
    assert!(!ran.exists());
    assert!(path.join("fake/index.lock").exists() && path.join("fake/HEAD.lock").exists());

    // Not where the repository keeps its trees, though all in it looks so.
    std::fs::write(path.join("fake/gitdir"), format!("{}\n", path.join(".git").display())).expect("written");
    is_none(&trees, &path).await;
    // Of a directory, and of another tree of the repository.
    std::fs::remove_file(path.join(".git")).expect("removed");
    std::fs::rename(path.join("fake"), path.join(".git")).expect("moved");
    is_none(&trees, &path).await;
    git(&place.repo, &["worktree", "add", "--quiet", "../by-hand"]);
    std::fs::rename(path.join(".git"), path.join("fake")).expect("moved");
    std::fs::copy(place.dir.path().join("by-hand/.git"), path.join(".git")).expect("copied");
    is_none(&trees, &path).await;
    assert!(!ran.exists());
}

#[tokio::test]
async fn what_a_submodule_is_told_to_run_is_not_run_and_its_tree_stays() {
    let place = Place::new();
    let trees = place.trees("home");
    let path = left(&trees).await;
    git(&path, &["init", "--quiet", "sub"]);
    git(&path.join("sub"), &["commit", "--quiet", "--allow-empty", "--message", "sub"]);
    super::commit(&path, "with a submodule");
    git(&place.repo, &["merge", "--quiet", "--ff-only", &super::branch(&path)]);
    let ran = place.dir.path().join("ran");
    git(&path.join("sub"), &["config", "core.fsmonitor", &format!("touch '{}'; false", ran.display())]);
    git(&path, &["status", "--porcelain", "--ignore-submodules=none"]);
    std::fs::remove_file(&ran).expect("it does run when git looks into it");
    let tree = one(&trees).await;
    assert_eq!(tree.kept, Some(Kept::Barred(Bar::Submodules)));
    assert_eq!(trees.remove(&tree.name).await, Err(Kept::Barred(Bar::Submodules)));
    assert!(!ran.exists());
}

#[tokio::test]
async fn a_pipe_a_device_or_a_link_in_place_of_a_git_file_is_not_read() {
    let place = Place::new();
    let trees = place.trees("home");
    let path = left(&trees).await;
    let file = path.join(".git");
    let real = place.dir.path().join("real");
    std::fs::rename(&file, &real).expect("moved");
    mknodat(CWD, &file, FileType::Fifo, Mode::from(0o600), 0).expect("a pipe");
    is_none(&trees, &path).await;
    // The link is to what would be right, and to what never ends.
    for target in [real.as_path(), Path::new("/dev/zero")] {
        std::fs::remove_file(&file).expect("removed");
        std::os::unix::fs::symlink(target, &file).expect("a link");
        is_none(&trees, &path).await;
    }
    // Of a file without end only the beginning.
    std::fs::remove_file(&file).expect("removed");
    std::fs::File::create(&file).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
    is_none(&trees, &path).await;
    std::fs::rename(&real, &file).expect("moved");
    drop(trees.prepare("c").await.expect("as it was"));
}
