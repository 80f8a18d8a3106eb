//! ACP against the demo agent and against programs that behave badly.

use std::path::Path;

use skep_agent::words::{Ask, AskKind, BackendError, Direction, Ended, Order, Said, Scope, ToolStatus};
use skep_agent::{Backend, McpServer, McpTransport, Spec};

use crate::desk::{Heard, demo, listen, never, prompt, shell_acp, unique, until, with_variable};

fn by_kind(ask: &Ask, kind: AskKind) -> Option<String> {
    ask.options.iter().find(|option| option.kind == kind).map(|option| option.id.clone())
}

fn allow(ask: &Ask) -> Option<String> {
    by_kind(ask, AskKind::AllowOnce)
}

fn reject(ask: &Ask) -> Option<String> {
    by_kind(ask, AskKind::RejectOnce)
}

async fn turn(spec: Spec, text: &str, answer: fn(&Ask) -> Option<String>) -> Heard {
    let mut backend = Backend::start(spec);
    backend.order(prompt(text)).await.expect("taken");
    let heard = listen(&mut backend, answer).await;
    backend.close().await;
    heard
}

#[tokio::test]
async fn a_turn_has_thoughts_text_usage_and_an_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let heard = turn(demo(dir.path()), "good morning", never).await;
    let session = heard.session.expect("a session");
    assert!(session.program.starts_with("skep-demo ") && session.is_new, "{session:?}");
    assert_eq!(session.model.as_deref(), Some("script"));
    assert!(heard.text.ends_with("You said: good morning"), "{}", heard.text);
    assert!(!heard.thoughts.is_empty() && !heard.text.contains(&heard.thoughts));
    let usage = heard.usage.last().expect("usage");
    assert_eq!((usage.scope, usage.counters.input), (Scope::Session, Some(2)));
    assert_eq!(heard.ended, Some(Ended::EndTurn));
}

#[tokio::test]
async fn a_permission_that_is_given_lets_the_tool_run_and_one_that_is_not_does_not() {
    for (answer, is_written, status) in [
        (allow as fn(&Ask) -> _, true, ToolStatus::Done),
        (reject, false, ToolStatus::Failed),
        (never, false, ToolStatus::Failed),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let heard = turn(demo(dir.path()), "write notes.txt", answer).await;
        assert_eq!(heard.asked.len(), 1);
        let path = dir.path().join("notes.txt");
        assert_eq!(heard.asked[0].tool.paths, [path.display().to_string()]);
        assert!(heard.asked[0].detail.contains("demo agent"), "{}", heard.asked[0].detail);
        assert_eq!(path.exists(), is_written);
        let last = heard.all.iter().rev().find_map(|said| match said {
            Said::Tool(call) => Some(call.status),
            _ => None,
        });
        assert_eq!(last, Some(status));
        assert_eq!(heard.ended, Some(Ended::EndTurn));
    }
}

#[tokio::test]
async fn a_question_is_answered_exactly_once_however_many_answers_come() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut backend = Backend::start(demo(dir.path()));
    backend.order(prompt("write notes.txt")).await.expect("taken");
    let Said::Ask(ask) = until(&mut backend, |said| matches!(said, Said::Ask(_))).await else { unreachable!() };
    for option in [Some("reject".to_owned()), Some("allow".to_owned()), None] {
        backend.order(Order::Answer { request: ask.id.clone(), option }).await.expect("taken");
    }
    let heard = listen(&mut backend, never).await;
    let is_answer = |said: &&Said| matches!(said, Said::Frame { direction: Direction::ToBackend, json } if json.contains("outcome"));
    assert_eq!(heard.all.iter().filter(is_answer).count(), 1);
    assert!(!dir.path().join("notes.txt").exists(), "the first answer counts");
}

#[tokio::test]
async fn a_cancel_ends_the_turn_and_withdraws_its_question() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut backend = Backend::start(demo(dir.path()));
    for text in ["wait", "write notes.txt"] {
        backend.order(prompt(text)).await.expect("taken");
        until(&mut backend, |said| matches!(said, Said::Text(_) | Said::Ask(_))).await;
        backend.order(Order::Cancel).await.expect("taken");
        assert_eq!(listen(&mut backend, never).await.ended, Some(Ended::Cancelled), "{text}");
    }
    backend.order(prompt("hello")).await.expect("taken");
    assert_eq!(listen(&mut backend, never).await.ended, Some(Ended::EndTurn), "the session lives on");
}

#[tokio::test]
async fn a_session_is_taken_up_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let spec = Spec { resume: Some("demo-7".into()), ..demo(dir.path()) };
    let session = turn(spec, "hello", never).await.session.expect("a session");
    assert_eq!((session.id.as_str(), session.is_new), ("demo-7", false));
}

#[tokio::test]
async fn a_model_that_is_not_offered_is_an_error_that_names_those_that_are() {
    let spec = Spec { model: Some("other".into()), ..demo(Path::new("/")) };
    let heard = turn(spec, "hello", never).await;
    let Some(Ended::Error(BackendError::Other(why))) = heard.ended else { panic!("{heard:?}") };
    assert!(why.contains("other") && why.contains("script"), "{why}");
}

#[tokio::test]
async fn an_error_of_the_program_ends_the_turn_and_a_crash_ends_the_backend() {
    let heard = turn(demo(Path::new("/")), "fail", never).await;
    assert_eq!(heard.ended, Some(Ended::Error(BackendError::Other("the demo was asked to fail".into()))));

    let mut backend = Backend::start(demo(Path::new("/")));
    backend.order(prompt("crash")).await.expect("taken");
    let heard = listen(&mut backend, never).await;
    let Some(Ended::Error(BackendError::Other(why))) = heard.ended else { panic!("{heard:?}") };
    assert!(why.contains("exit code 1") && why.contains("asked to crash"), "{why}");
    assert!(matches!(until(&mut backend, |_| true).await, Said::Gone(_)));
    assert_eq!(backend.said().await, None);
}

#[tokio::test]
async fn frames_go_to_whoever_watches_without_the_secrets_of_tools() {
    let server = McpServer {
        name: "tools".into(),
        transport: McpTransport::Stdio {
            command: "x".into(),
            args: vec![],
            env: vec![("TOKEN".into(), "s3cret".into())],
        },
    };
    let heard = turn(Spec { mcp_servers: vec![server], ..demo(Path::new("/")) }, "hello", never).await;
    let frames: Vec<_> = heard
        .all
        .iter()
        .filter_map(|said| match said {
            Said::Frame { direction, json } => Some((*direction, json.as_str())),
            _ => None,
        })
        .collect();
    assert!(frames.iter().any(|(direction, json)| *direction == Direction::ToBackend && json.contains("TOKEN")));
    assert!(frames.iter().any(|(direction, json)| *direction == Direction::FromBackend && json.contains("stopReason")));
    assert!(frames.iter().all(|(_, json)| !json.contains("s3cret")));
}

#[tokio::test]
async fn a_program_that_says_something_else_first_is_heard_out_and_one_that_says_nothing_else_is_given_up() {
    let banner = "echo 'Welcome!'; read hello; echo '{\"jsonrpc\":\"2.0\",\"id\":0,\"error\":{\"code\":-32000,\"message\":\"log in\"}}'; read more";
    let heard = turn(shell_acp(banner), "x", never).await;
    assert!(
        heard.all.iter().any(|said| matches!(said, Said::Noise(noise) if noise.lines == 1 && noise.last == "Welcome!"))
    );
    assert_eq!(heard.ended, Some(Ended::Error(BackendError::Auth("log in".into()))));

    let heard = turn(shell_acp("while :; do echo noise; done"), "x", never).await;
    assert!(matches!(heard.ended, Some(Ended::Error(BackendError::Other(why))) if why.contains("not ACP")));
}

#[tokio::test]
async fn a_program_that_does_not_obey_a_cancel_is_killed() {
    let tree = unique("stubborn");
    let script = r#"trap '' TERM
read line; echo '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":1}}'
read line; echo '{"jsonrpc":"2.0","id":1,"result":{"sessionId":"s"}}'
read line; echo '{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"hi"}}}}'
while :; do sleep 0.01; done"#;
    let mut spec = shell_acp(script);
    spec.env = crate::desk::env(&[("TEST_TREE", &tree)]);
    let mut backend = Backend::start(spec);
    backend.order(prompt("x")).await.expect("taken");
    until(&mut backend, |said| matches!(said, Said::Text(_))).await;
    backend.order(Order::Cancel).await.expect("taken");
    assert_eq!(listen(&mut backend, never).await.ended, Some(Ended::Cancelled));
    until(&mut backend, |said| matches!(said, Said::Gone(_))).await;
    assert!(with_variable("TEST_TREE", &tree).is_empty());
}

#[tokio::test]
async fn a_flood_waits_in_the_programs_own_pipe_and_orders_are_heard_all_the_same() {
    let script = r#"read line; echo '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":1}}'
read line; echo '{"jsonrpc":"2.0","id":1,"result":{"sessionId":"s"}}'
read line
while :; do echo '{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"x"}}}}'; done"#;
    let backend = Backend::start(shell_acp(script));
    backend.order(prompt("x")).await.expect("taken");
    // Nobody listens, and the queue of words is full soon. Closing must not need anybody to.
    tokio::time::timeout(crate::desk::PATIENCE, backend.close()).await.expect("closed in time");
}

#[tokio::test]
async fn a_program_that_closes_its_stdout_and_stays_is_ended() {
    let heard =
        turn(shell_acp("exec >&-; trap '' TERM; echo stuck >&2; while :; do sleep 0.01; done"), "x", never).await;
    assert!(matches!(&heard.ended, Some(Ended::Error(BackendError::Other(why))) if why.contains("stuck")), "{heard:?}");
}
