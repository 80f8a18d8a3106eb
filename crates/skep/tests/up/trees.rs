//! Agents that work on a repository: a worktree for each conversation, and what becomes of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use skep_node::clock::unix_now;
use skep_proto::{Draft, EventId, Kind};

use super::owner::Owner;
use super::place::{Place, until, write};

/// What the agent does in a turn: waits until as many turns as it was told run beside it, commits a file, and answers
/// with the branch that it is on.
const SCRIPT: &str = "text=$(cat); case $text in *together*) touch $HOME/ran-$$; \
    until [ $(ls $HOME/ran-* | wc -l) -ge 2 ]; do sleep 0.02; done;; esac; \
    echo work >>work.txt; git add --all; git -c user.name=a -c user.email=a@b commit --quiet -m \"work in $PWD\"; \
    git symbolic-ref --short HEAD";

fn git(cwd: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(cwd).args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(args);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GIT_")) {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A place with an agent that works on a repository.
fn place_with(repo: &Path) -> Place {
    let place = Place::new();
    place.done(&["agent", "new", "scout", "--preset", "demo"]);
    let config = std::fs::read_to_string(place.config()).unwrap();
    let repo = place.dir().join(repo);
    let ours = format!(
        "backend = \"command\"\ncommand = \"/bin/sh\"\nargs = [\"-c\", {SCRIPT:?}]\nparallel = 2\nrepo = {repo:?}\n"
    );
    let changed = config.replace("preset = \"demo\"\n", &ours);
    assert_ne!(changed, config);
    write(&place.config(), &changed);
    place
}

fn with_repository(place: &Place) -> PathBuf {
    let repo = place.dir().join("repo");
    std::fs::create_dir(&repo).unwrap();
    git(&repo, &["init", "--quiet", "--initial-branch=main"]);
    git(&repo, &["commit", "--quiet", "--allow-empty", "-m", "first"]);
    repo
}

fn say(owner: &mut Owner, group: &str, text: &str) -> EventId {
    let agent = owner.agent("scout").to_hex();
    owner.publish(Draft::new(Kind::CHAT, unix_now(), text).tag(["h", group]).tag(["p", &agent]))
}

fn trees(place: &Place) -> Vec<Value> {
    let mut trees = place.json(&["agent", "trees"]);
    trees.sort_by_key(|tree| tree["conversation"].to_string());
    trees
}

#[test]
fn two_conversations_at_once_commit_on_two_branches_and_nothing_of_that_is_ever_lost() {
    let place = place_with(Path::new("repo"));
    let repo = with_repository(&place);
    let up = place.up();
    place.until_leads("scout");
    let mut owner = Owner::of(&place);
    let asked = [say(&mut owner, "one", "together, one"), say(&mut owner, "two", "together, two")];
    let branches = asked.map(|asked| owner.reply("scout", &asked).content.trim().to_owned());
    assert_ne!(branches[0], branches[1]);
    assert_eq!(git(&repo, &["status", "--porcelain"]), "", "the checkout of its owner is not written to");
    let found = trees(&place);
    let shown = |key: &str| found.iter().map(|tree| tree[key].clone()).collect::<Vec<Value>>();
    assert_eq!(shown("conversation"), ["h:one", "h:two"]);
    assert_eq!(shown("branch"), branches.clone());
    assert_eq!((shown("ahead"), shown("only_here")), (vec![1.into(), 1.into()], vec![1.into(), 1.into()]));
    for branch in &branches {
        assert_eq!(git(&repo, &["show", &format!("{branch}:work.txt")]), "work");
    }

    // Merged, and its backend lives: in use. The other has the only copy of its commit.
    git(&repo, &["merge", "--quiet", "--ff-only", &branches[0]]);
    let kept =
        |place: &Place| place.json(&["agent", "trees", "--prune"]).iter().filter(|t| t["removed"] == false).count();
    assert_eq!(kept(&place), 2);
    up.kill();
    let table = place.done(&["agent", "trees", "--prune"]);
    assert!(table.contains("removed") && table.contains("1 only here"), "{table}");
    let found = trees(&place);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["kept"], "has a commit that is on no other branch");
    assert_eq!(git(&repo, &["branch", "--list", "skep/*", "--format=%(refname:short)"]), branches[1]);

    // After a restart each conversation goes on where it was, or anew.
    let up = place.up();
    place.until_leads("scout");
    drop(owner);
    let mut owner = Owner::of(&place);
    for (group, branch, commits) in [("two", &branches[1], "3"), ("one", &branches[0], "3")] {
        let asked = say(&mut owner, group, "again");
        assert_eq!(owner.reply("scout", &asked).content.trim(), branch, "{group}");
        assert_eq!(git(&repo, &["rev-list", "--count", branch]), commits, "{group}");
    }
    assert_eq!(up.stop(Signal::TERM), Some(0));
}

#[test]
fn a_repository_that_is_none_is_told_at_the_start_and_by_the_doctor() {
    let place = place_with(Path::new("repo"));
    let cause = "agent \"scout\": repo: there is no directory";
    place.run(&["agent", "run"]).fails(3, cause, "skep doctor");
    std::fs::create_dir(place.dir().join("repo")).unwrap();
    let cause = "agent \"scout\": repo:";
    let ran = place.run(&["agent", "run"]);
    ran.fails(3, cause, "skep doctor");
    assert!(ran.stderr.contains("is no git repository") && ran.stderr.contains("git init"), "{}", ran.stderr);
    let doctor = place.run(&["doctor"]);
    assert!(doctor.stdout.contains("WRONG    repo        scout: ") && doctor.code == Some(1), "{}", doctor.stdout);
    // The others run, and the status says why this one does not.
    place.done(&["agent", "new", "other", "--preset", "demo"]);
    let up = place.up();
    place.until_leads("other");
    let status = place.done(&["status"]);
    assert!(status.contains("is no git repository"), "{status}");
    drop(up);

    let mut command = place.command(&["agent", "run", "scout"]);
    command.env("PATH", place.dir().join("bin"));
    let ran = super::place::Ran::of(command.output().unwrap());
    assert_eq!(ran.code, Some(3));
    assert!(ran.stderr.contains("git is not in PATH; install it, or leave repo out"), "{}", ran.stderr);
}

#[test]
fn repositories_are_looked_at_beside_each_other_before_agents_run_in_their_order() {
    let place = place_with(Path::new("repo"));
    let repo = with_repository(&place);
    for other in ["amy", "ben", "cat"] {
        place.done(&["agent", "new", other, "--preset", "demo"]);
    }
    let config = std::fs::read_to_string(place.config()).unwrap();
    write(&place.config(), &config.replace("preset = \"demo\"\n", &format!("preset = \"demo\"\nrepo = {repo:?}\n")));
    // It goes on once two of it have been there at the same time.
    place.install(
        "git",
        "echo $$ >>$HOME/looks; \
        until [ -e $HOME/met ]; do n=0; \
        for look in $(cat $HOME/looks); do kill -0 $look 2>/dev/null && n=$((n + 1)); done; \
        if [ $n -ge 2 ]; then touch $HOME/met; else sleep 0.02; fi; done; \
        PATH=/usr/bin:/bin exec git \"$@\"",
    );
    let run = place.spawn(&["agent", "run"]);
    let told = run.until(|line| line.starts_with("running cat "));
    let names: Vec<&str> = told.iter().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(names, ["scout", "amy", "ben", "cat"]);
    assert!(place.dir().join("met").exists(), "one after another: {}", run.stderr());
    assert_eq!(run.stop(Signal::TERM), Some(0));
}

#[test]
fn a_tree_that_cannot_be_made_is_why_its_message_waits() {
    let place = place_with(Path::new("repo"));
    let repo = with_repository(&place);
    let _up = place.up();
    place.until_leads("scout");
    // It was in order at the start.
    std::fs::rename(&repo, place.dir().join("elsewhere")).unwrap();
    let mut owner = Owner::of(&place);
    let asked = say(&mut owner, "one", "work");
    let row = until(|| {
        let row = place.json(&["inbox"]).into_iter().find(|row| row["id"] == asked.to_hex());
        row.filter(|row| row["attempts"].as_u64() > Some(0)).ok_or("it waits for nothing yet")
    });
    let reason = row["reason"].as_str().unwrap();
    assert!(reason.contains("no place to work: there is no directory"), "{reason}");
    std::fs::rename(place.dir().join("elsewhere"), &repo).unwrap();
    owner.reply("scout", &asked);
}
