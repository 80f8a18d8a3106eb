//! A model server, from the outside.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use skep_agent::openai::{Key, OpenAi, Secret};
use skep_agent::tools::{Tool, ToolAnswer, Toolbox};
use skep_agent::words::{Ask, BackendError, Ended, Order, Said, Scope, ToolKind, ToolStatus};
use skep_agent::{Backend, Environment, Kind, Spec};

use crate::desk::{Heard, listen, never, prompt, until};
use crate::mock_model::{MockModel, Reply};

fn settings(mock: &MockModel) -> OpenAi {
    OpenAi::new(mock.base_url().parse().expect("an address"), "mock")
}

fn backend(settings: OpenAi) -> Backend {
    Backend::start(Spec::new(Kind::OpenAi(settings), "/", Environment::default()))
}

async fn turn(backend: &mut Backend, text: &str) -> Heard {
    backend.order(prompt(text)).await.expect("taken");
    listen(backend, never).await
}

fn text(text: &str) -> Reply {
    Reply::Text(text.to_owned())
}

/// Notes what it was called with.
struct Notes;

impl Toolbox for Notes {
    fn tools(&self) -> Vec<Tool> {
        let tool = |name: &str, asks| Tool {
            name: name.to_owned(),
            description: "keeps a note".to_owned(),
            parameters: json!({ "type": "object", "properties": { "text": { "type": "string" } } }),
            kind: ToolKind::Edit,
            asks,
            writes: asks,
        };
        vec![tool("note", false), tool("publish", true)]
    }

    fn call<'a>(&'a self, name: &'a str, arguments: Value) -> BoxFuture<'a, ToolAnswer> {
        Box::pin(async move { ToolAnswer::ok(format!("{name} has {}", arguments["text"])) })
    }
}

#[tokio::test]
async fn a_conversation_is_remembered_billed_and_measured() {
    let mock = MockModel::queue([text("one two three"), text("four")]).await;
    let mut backend = backend(OpenAi { system: Some("be brief".into()), ..settings(&mock) });
    let first = turn(&mut backend, "hello").await;
    assert_eq!((first.text.as_str(), first.ended), ("one two three", Some(Ended::EndTurn)));
    let second = turn(&mut backend, "and?").await;
    let bills = mock.ledger();
    for (usage, bill) in [first.usage[0], second.usage[0]].iter().zip(&bills) {
        let counted = (usage.counters.input, usage.counters.output, usage.counters.cache_read);
        assert_eq!(counted, (Some(bill.input), Some(bill.output), Some(bill.cached)));
        assert_eq!(usage.scope, Scope::Call);
    }
    let roles: Vec<_> =
        mock.asked()[1].body["messages"].as_array().expect("messages").iter().map(|m| m["role"].clone()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    let speed = second
        .all
        .iter()
        .find_map(|said| if let Said::Speed(speed) = said { Some(*speed) } else { None })
        .expect("a speed");
    assert!(
        speed.first_token_ms.is_some_and(|first| first <= speed.total_ms) && speed.tokens_per_sec.is_some(),
        "{speed:?}"
    );
}

#[tokio::test]
async fn each_failure_says_what_kind_it_is_and_leaves_no_trace() {
    let status = |status, retry_after, code| Reply::Status { status, retry_after, code };
    let mock = MockModel::queue([
        status(401, None, "invalid_api_key"),
        status(429, Some(7), "rate_limit"),
        status(429, None, "insufficient_quota"),
        status(500, None, "oops"),
        Reply::Disconnect("half of an answer".into()),
        text("at last"),
    ])
    .await;
    let mut backend = backend(settings(&mock));
    let mut failed = async || match turn(&mut backend, "hello").await.ended {
        Some(Ended::Error(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(failed().await, BackendError::Auth(_)));
    assert_eq!(failed().await, BackendError::Busy { retry_after_secs: Some(7) });
    assert!(matches!(failed().await, BackendError::Quota(_)));
    assert!(matches!(failed().await, BackendError::Other(why) if why.contains("500")));
    assert!(matches!(failed().await, BackendError::Disconnected(_)));
    assert_eq!(turn(&mut backend, "hello").await.text, "at last");
    let last = mock.asked().pop().expect("asked").body;
    assert_eq!(last["messages"].as_array().map(Vec::len), Some(1), "failed turns are in the history");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_broken_connection() {
    let mut backend = backend(OpenAi::new("http://127.0.0.1:1/v1".parse().expect("an address"), "m"));
    assert!(matches!(turn(&mut backend, "x").await.ended, Some(Ended::Error(BackendError::Disconnected(_)))));
}

#[tokio::test]
async fn tools_run_and_those_that_need_it_ask_first() {
    let call = |name: &str| Reply::Tool { name: name.into(), arguments: json!({ "text": "hi" }) };
    let mock =
        MockModel::queue([call("note"), call("publish"), call("unknown"), text("done"), call("publish"), text("no")])
            .await;
    let mut backend = backend(OpenAi { tools: Some(Arc::new(Notes)), ..settings(&mock) });
    backend.order(prompt("go")).await.expect("taken");
    let allow = |ask: &Ask| Some(ask.options[0].id.clone());
    let heard = listen(&mut backend, allow).await;
    assert_eq!((heard.text.as_str(), heard.asked.len(), heard.usage.len()), ("done", 1, 4));
    let answers: Vec<_> =
        mock.asked().iter().filter(|asked| asked.is_tool_answer).map(|asked| asked.last.clone()).collect();
    assert_eq!(answers, ["note has \"hi\"", "publish has \"hi\"", "there is no tool unknown"]);

    backend.order(prompt("again")).await.expect("taken");
    let heard = listen(&mut backend, |ask| Some(ask.options[1].id.clone())).await;
    let last =
        heard.all.iter().rev().find_map(|said| if let Said::Tool(call) = said { Some(call.status) } else { None });
    assert_eq!(last, Some(ToolStatus::Failed));
    assert_eq!(mock.asked().last().expect("asked").last, "the user did not allow this");
}

#[tokio::test]
async fn a_cancel_is_heard_while_the_model_writes_and_while_a_question_is_open() {
    let slow = Reply::Slow("word ".repeat(10_000), Duration::from_millis(20));
    let ask = Reply::Tool { name: "publish".into(), arguments: json!({}) };
    let mock = MockModel::queue([slow, ask, text("fresh")]).await;
    let mut backend = backend(OpenAi { tools: Some(Arc::new(Notes)), ..settings(&mock) });
    for _ in 0..2 {
        backend.order(prompt("go")).await.expect("taken");
        until(&mut backend, |said| matches!(said, Said::Text(_) | Said::Ask(_))).await;
        backend.order(Order::Cancel).await.expect("taken");
        assert_eq!(listen(&mut backend, never).await.ended, Some(Ended::Cancelled));
    }
    assert_eq!(turn(&mut backend, "go").await.text, "fresh");
    backend.close().await;
}

#[tokio::test]
async fn a_key_is_sent_from_its_file_and_never_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("key");
    std::fs::write(&file, "k3y-one\n").expect("a key file");
    let mock = MockModel::queue([text("a"), text("b")]).await;
    let mut backend = backend(OpenAi { key: Key::File(file.clone()), ..settings(&mock) });
    let heard = turn(&mut backend, "x").await;
    assert!(!format!("{heard:?}").contains("k3y"));
    std::fs::write(&file, "k3y-two").expect("a key file");
    turn(&mut backend, "x").await;
    let keys: Vec<_> = mock.asked().into_iter().filter_map(|asked| asked.key).collect();
    assert_eq!(keys, ["Bearer k3y-one", "Bearer k3y-two"]);
    std::fs::remove_file(&file).expect("removed");
    assert!(matches!(turn(&mut backend, "x").await.ended, Some(Ended::Error(BackendError::Auth(_)))));
    assert!(!format!("{:?}", Key::Given(Secret::new("k3y".into()))).contains("k3y"));
}

#[tokio::test]
async fn a_server_on_loopback_is_found_with_its_models_and_what_is_none_is_not() {
    let mock = MockModel::queue([text("found")]).await;
    let url: url::Url = mock.base_url().parse().expect("an address");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let ports = [
        (url.port().expect("a port"), "mock"),
        (silent.local_addr().expect("an address").port(), "silent"),
        (1, "none"),
    ];
    let servers = skep_agent::detect::servers(&ports).await;
    assert_eq!(servers.len(), 1);
    assert_eq!((servers[0].name, servers[0].models.as_slice()), ("mock", ["mock".to_owned()].as_slice()));
    let mut backend = backend(servers[0].settings("mock"));
    assert_eq!(turn(&mut backend, "hello").await.text, "found");
}
