//! A command: prompt on stdin, reply on stdout.

use skep_agent::words::{BackendError, Ended, Order, Said};
use skep_agent::{Backend, Kind, Spec};

use crate::desk::{env, listen, never, prompt, quick, unique, until, with_variable};

fn backend(script: &str, set: &[(&str, &str)]) -> Backend {
    let kind = Kind::Command { command: "/bin/sh".into(), args: vec!["-c".into(), script.into()] };
    Backend::start(Spec { timing: quick(), ..Spec::new(kind, "/", env(set)) })
}

#[tokio::test]
async fn each_turn_is_a_process_with_the_prompt_on_its_stdin() {
    let mut backend = backend("tr a-z A-Z", &[]);
    for text in ["hello", "again"] {
        backend.order(prompt(text)).await.expect("taken");
        let heard = listen(&mut backend, never).await;
        assert_eq!((heard.text.as_str(), heard.ended), (text.to_uppercase().as_str(), Some(Ended::EndTurn)));
        assert!(heard.usage.is_empty(), "what it used is not known and not said");
    }
    backend.close().await;
}

#[tokio::test]
async fn a_failing_command_tells_its_exit_code_and_its_stderr() {
    let mut backend = backend("echo broken >&2; exit 9", &[]);
    backend.order(prompt("x")).await.expect("taken");
    let heard = listen(&mut backend, never).await;
    assert_eq!(heard.ended, Some(Ended::Error(BackendError::Other("exit code 9: broken".into()))));
}

#[tokio::test]
async fn a_cancelled_command_is_gone_when_its_turn_has_ended() {
    let tree = unique("command");
    let mut backend = backend("echo started; trap '' TERM; while :; do sleep 0.01; done", &[("TEST_TREE", &tree)]);
    backend.order(prompt("x")).await.expect("taken");
    until(&mut backend, |said| matches!(said, Said::Text(_))).await;
    backend.order(Order::Cancel).await.expect("taken");
    let heard = listen(&mut backend, never).await;
    assert_eq!(heard.ended, Some(Ended::Cancelled));
    assert!(with_variable("TEST_TREE", &tree).is_empty());
    backend.order(prompt("x")).await.expect("the next turn is taken");
}
