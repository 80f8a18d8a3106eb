//! What of a tree is nowhere else, how many there may be, and what is left when somebody is killed who removes one.

use std::time::Duration;

use skep_agent::tree::TreeError;
use skep_core::tree::{Bar, Kept};
use skep_proto::limits::TREES_MAX;

use super::{Place, branch, command, commit_in, git, killed_after, one};

#[tokio::test]
async fn a_tree_in_the_middle_of_a_rebase_stays_with_the_stash_of_it() {
    let place = Place::new();
    let trees = place.trees("home");
    let path = trees.prepare("c").await.expect("made").path.clone();
    commit_in(&path, "work.txt");
    git(&place.repo, &["merge", "--quiet", "--ff-only", &branch(&path)]);
    assert_eq!(one(&trees).await.kept, None);
    std::fs::write(path.join("file.txt"), "only here\n").expect("written");
    // It stops before the first commit, with nothing changed: what was is in its stash.
    let mut rebase = command(&path, &["-c", "sequence.editor=echo break >", "rebase", "-i", "--autostash", "HEAD~1"]);
    assert!(rebase.output().expect("git runs").status.success());
    assert_eq!(git(&path, &["status", "--porcelain"]), "");
    let tree = one(&trees).await;
    let kept = Kept::Barred(Bar::Unfinished("rebase"));
    assert_eq!(tree.kept, Some(kept.clone()));
    assert_eq!(trees.remove(&tree.name).await, Err(kept));
    git(&path, &["rebase", "--abort"]);
    assert_eq!(std::fs::read_to_string(path.join("file.txt")).expect("there"), "only here\n");
    git(&path, &["checkout", "--quiet", "file.txt"]);

    git(&path, &["bisect", "start"]);
    assert_eq!(one(&trees).await.kept, Some(Kept::Barred(Bar::Unfinished("bisect"))));
    git(&path, &["bisect", "reset"]);
    assert_eq!(trees.remove(&tree.name).await, Ok(()));
}

#[tokio::test]
async fn whoever_is_killed_while_he_removes_a_tree_leaves_nothing_in_the_way_of_its_conversation() {
    let place = Place::new();
    // Enough files that a removal takes a while.
    for n in 0..2_000 {
        std::fs::write(place.repo.join(format!("{n}.txt")), n.to_string()).expect("written");
    }
    super::commit(&place.repo, "many");
    let trees = place.trees("home");
    let name = trees.name_of("c");
    for ms in (0..60).step_by(6) {
        drop(trees.prepare("c").await.unwrap_or_else(|error| panic!("before {ms} ms: {error}")));
        let (harness, cut) = (place.trees("home"), name.clone());
        killed_after(&place, ms, async move { drop(harness.remove(&cut).await) }).await;
        let tree = place.trees_later("home").prepare("c").await;
        let tree = tree.unwrap_or_else(|error| panic!("after {ms} ms: {error}"));
        assert_eq!(git(&tree.path, &["status", "--porcelain"]), "", "after {ms} ms");
    }
    // As the machine leaves it that stops in the middle of that: half of it, out of the way.
    let path = trees.root().join(name.as_str());
    let going = trees.root().join(format!(".going-{name}"));
    // What the last of them left goes first, be it by a thread that is still at it.
    let emptied = async {
        while going.exists() {
            trees.clear();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), emptied).await.expect("it goes");
    std::fs::rename(&path, &going).expect("moved");
    std::fs::remove_file(going.join(".git")).expect("removed");
    drop(trees.prepare("c").await.expect("made anew"));
    assert_eq!(one(&trees).await.kept, None);
    assert!(going.exists());
    trees.clear();
    assert!(!going.exists() && path.exists());
    // And it is no hindrance to the next removal.
    std::fs::create_dir_all(going.join("left")).expect("made");
    assert_eq!(trees.remove(&name).await, Ok(()));
    assert!(!going.exists() && !path.exists());
}

#[tokio::test]
async fn an_agent_has_no_more_trees_than_it_may_and_is_told_how_to_make_room() {
    let place = Place::new();
    let trees = place.trees("home");
    drop(trees.prepare("c").await.expect("made"));
    for n in 1..TREES_MAX {
        std::fs::create_dir(trees.root().join(format!("{n:016x}"))).expect("made");
    }
    assert_eq!(trees.count(), Ok(TREES_MAX));
    let error = trees.prepare("d").await.expect_err("there is no room");
    assert_eq!(error, TreeError::TooMany(trees.root().to_owned()));
    assert!(error.to_string().contains("`skep agent trees --prune`"), "{error}");
    drop(trees.prepare("c").await.expect("what is there is taken up"));
    std::fs::remove_dir(trees.root().join(format!("{:016x}", 1))).expect("removed");
    drop(trees.prepare("d").await.expect("made"));
}

#[tokio::test]
async fn of_a_repository_that_does_not_answer_it_is_told_so_in_time() {
    let place = Place::new();
    let (config, pipe) = (place.repo.join(".git/config"), place.dir.path().join("pipe"));
    super::hang(&config, &pipe);
    let trees = place.trees("home");
    let found = tokio::time::timeout(Duration::from_secs(60), trees.check()).await.expect("an answer");
    assert_eq!(found, Err(TreeError::TooLong(5)));
}
