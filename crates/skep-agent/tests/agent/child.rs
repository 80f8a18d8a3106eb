//! Child processes leave nothing behind and take nothing along.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use skep_agent::child::{Child, Exit, Ladder, MARK, Program};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::desk::{PATIENCE, env, eventually, unique, with_variable};

/// One process in the child's group, one that forked twice within it, and one in a session of its own.
const FAMILY: &str = "sleep 1000 & (sleep 1000 & sleep 1000 &) & setsid sleep 1000 & echo ready; wait";

fn shell(script: &str, set: &[(&str, &str)]) -> Program {
    Program { command: "/bin/sh".into(), args: vec!["-c".into(), script.into()], cwd: "/".into(), env: env(set) }
}

async fn output(program: Program) -> String {
    let mut child = Child::spawn(program).await.expect("a child");
    let mut text = String::new();
    child.take_stdout().expect("stdout").read_to_string(&mut text).await.expect("text");
    text
}

async fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let mut stdout = BufReader::new(child.take_stdout().expect("stdout"));
    tokio::time::timeout(PATIENCE, stdout.read_line(&mut line)).await.expect("a line in time").expect("a line");
    line
}

fn ladder(ms: u64) -> Ladder {
    Ladder { ask: Duration::from_millis(ms), terminate: Duration::from_millis(ms) }
}

#[tokio::test]
async fn a_child_sees_no_variable_but_those_it_was_given() {
    let program = Program { command: "env".into(), args: vec![], cwd: "/".into(), env: env(&[("GIVEN", "1")]) };
    let text = output(program).await;
    let names: BTreeSet<_> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert_eq!(names, BTreeSet::from(["PATH", "GIVEN", MARK]));
}

#[tokio::test]
async fn a_child_inherits_no_descriptor_even_one_that_was_left_open() {
    let leaked = std::fs::File::open("/dev/null").expect("a file");
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).expect("inheritable now");
    let text = output(shell("for fd in /proc/$$/fd/*; do readlink $fd; done", &[])).await;
    let open: Vec<_> = text.lines().collect();
    assert!(open.len() == 3 && open.iter().all(|target| target.starts_with("pipe:")), "{open:?}");
}

#[tokio::test]
async fn the_family_of_a_child_ends_with_it() {
    let tree = unique("shutdown");
    let mut child = Child::spawn(shell(FAMILY, &[("TEST_TREE", &tree)])).await.expect("a child");
    first_line(&mut child).await;
    eventually("the whole family runs", || with_variable("TEST_TREE", &tree).len() >= 5).await;
    child.shutdown(ladder(50)).await;
    assert_eq!(with_variable("TEST_TREE", &tree), Vec::<u32>::new(), "told to be over, and something is left");
}

#[tokio::test]
async fn the_family_of_a_child_that_ends_by_itself_ends_too() {
    let tree = unique("alone");
    let mut child =
        Child::spawn(shell("setsid sleep 1000 & sleep 1000 & exit 3", &[("TEST_TREE", &tree)])).await.expect("a child");
    assert_eq!(child.wait().await, Exit { code: Some(3), signal: None });
    assert_eq!(with_variable("TEST_TREE", &tree), Vec::<u32>::new());
}

#[tokio::test]
async fn a_child_that_is_dropped_is_killed() {
    let tree = unique("dropped");
    let mut child = Child::spawn(shell(FAMILY, &[("TEST_TREE", &tree)])).await.expect("a child");
    first_line(&mut child).await;
    drop(child);
    eventually("nothing is left", || with_variable("TEST_TREE", &tree).is_empty()).await;
}

#[tokio::test]
async fn the_family_of_a_child_does_not_outlive_a_harness_that_is_killed() {
    let tree = unique("harness");
    let mut harness = tokio::process::Command::new(env!("CARGO_BIN_EXE_agent-fixture"))
        .args(["keep", "/bin/sh", "-c", FAMILY])
        .env("TEST_TREE", &tree)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("a harness");
    let mut line = String::new();
    BufReader::new(harness.stdout.take().expect("stdout")).read_line(&mut line).await.expect("a line");
    assert_eq!(line, "ready\n");
    eventually("the whole family runs", || with_variable("TEST_TREE", &tree).len() >= 6).await;
    harness.kill().await.expect("killed");
    eventually("the tree is dead", || with_variable("TEST_TREE", &tree).is_empty()).await;
}

#[tokio::test]
async fn the_ladder_is_climbed_only_as_far_as_needed() {
    let ends = async |script: &str, ladder: Ladder| {
        let mut child = Child::spawn(shell(script, &[])).await.expect("a child");
        let stdin = child.take_stdin();
        first_line(&mut child).await;
        drop(stdin);
        child.shutdown(ladder).await
    };
    let asked = ends("echo ready; read line; exit 4", ladder(60_000)).await;
    assert_eq!(asked, Exit { code: Some(4), signal: None });
    let terminated = ends(
        "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done",
        Ladder { ask: Duration::ZERO, ..ladder(60_000) },
    )
    .await;
    assert_eq!(terminated, Exit { code: Some(7), signal: None });
    let killed = ends("trap '' TERM; echo ready; while :; do sleep 0.01; done", ladder(50)).await;
    assert_eq!(killed, Exit { code: None, signal: Some(9) });
}

#[tokio::test]
async fn an_ended_child_is_no_zombie_and_its_last_words_are_kept() {
    let mut child = Child::spawn(shell("echo first >&2; echo last >&2; exit 1", &[])).await.expect("a child");
    child.wait().await;
    assert!(!std::path::Path::new(&format!("/proc/{}", child.pid())).exists(), "it was not reaped");
    assert_eq!(child.last_words().await, "first\nlast");
}

#[tokio::test]
async fn what_cannot_be_started_says_what_to_look_at() {
    let program = Program { command: "no-such-agent".into(), args: vec![], cwd: "/".into(), env: env(&[]) };
    let error = Child::spawn(program).await.err().expect("an error").to_string();
    assert!(error.contains("no-such-agent") && error.contains("installed"), "{error}");
}
