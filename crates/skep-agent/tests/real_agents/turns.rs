//! The same turns with each program.

use std::path::PathBuf;
use std::time::Duration;

use skep_agent::Backend;
use skep_agent::words::{Ask, AskKind, BackendError, Ended, Order, Said, Scope, ToolKind};

use crate::desk::{Answer, Heard, eventually, listen, never, prompt, unique, until, with_variable};
use crate::mock_model::{Asked, Bill, MockModel, Reply};
use crate::program::{Program, is_main};

/// In each prompt: tells a turn's own calls from a program's side calls.
const MARKER: &str = "marker-7f3a";

struct Desk {
    backend: Backend,
    mock: MockModel,
    dir: tempfile::TempDir,
    tree: String,
}

impl Desk {
    /// The model answers the turn's own calls by the script, and all others with two words.
    async fn open(program: Program, script: impl Fn(&Asked, PathBuf) -> Reply + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("work/out.txt");
        let mock = MockModel::start(move |asked| {
            if is_main(asked, MARKER) { script(asked, file.clone()) } else { Reply::Text("side call".into()) }
        })
        .await;
        let tree = unique("real");
        let backend = Backend::start(program.spec(dir.path(), &mock, &tree));
        Self { backend, mock, dir, tree }
    }

    async fn turn(&mut self, text: &str, answer: Answer) -> Heard {
        self.backend.order(prompt(&format!("{text} {MARKER}"))).await.expect("taken");
        listen(&mut self.backend, answer).await
    }

    fn bills(&self) -> Vec<Bill> {
        self.mock.ledger().into_iter().filter(|bill| bill.has_tools && bill.text.contains(MARKER)).collect()
    }

    /// Nothing of the program is left.
    async fn close(self) {
        self.backend.close().await;
        assert_eq!(with_variable("TEST_TREE", &self.tree), Vec::<u32>::new());
    }
}

fn by_kind(ask: &Ask, kind: AskKind) -> Option<String> {
    ask.options.iter().find(|option| option.kind == kind).map(|option| option.id.clone())
}

/// What it told that it used is what the mock billed for it.
fn assert_billed(heard: &Heard, bills: &[Bill]) {
    let told: Vec<_> = heard.usage.iter().filter(|usage| usage.counters.input.is_some()).collect();
    let sum = |of: fn(&skep_agent::words::Counters) -> Option<u64>| -> u64 {
        told.iter().filter_map(|usage| of(&usage.counters)).sum()
    };
    assert!(told.iter().all(|usage| usage.scope == Scope::Call) || told.len() == 1, "{told:?}");
    assert_eq!(sum(|counters| counters.input), bills.iter().map(|bill| bill.input).sum::<u64>());
    assert_eq!(sum(|counters| counters.output), bills.iter().map(|bill| bill.output).sum::<u64>());
    assert_eq!(sum(|counters| counters.cache_read), bills.iter().map(|bill| bill.cached).sum::<u64>());
}

async fn a_turn_of_text(program: Program) {
    let mut desk = Desk::open(program, |_, _| Reply::Text("Hello from the mock model".into())).await;
    for number in 1..=2 {
        let heard = desk.turn("say hello", never).await;
        assert_eq!(
            (heard.text.as_str(), heard.ended.as_ref()),
            ("Hello from the mock model", Some(&Ended::EndTurn)),
            "{heard:?}"
        );
        let bills = desk.bills();
        assert_eq!(bills.len(), number);
        assert_billed(&heard, &bills[number - 1..]);
    }
    desk.close().await;
}

async fn a_tool(program: Program, answer: Answer, is_written: bool) {
    let script = move |asked: &Asked, file: PathBuf| {
        if asked.is_tool_answer { Reply::Text("finished".into()) } else { program.write(&file, "by a tool") }
    };
    let mut desk = Desk::open(program, script).await;
    let heard = desk.turn("write the file", answer).await;
    assert!(heard.ended.is_some() && heard.gone.is_none(), "{heard:?}");
    let file = desk.dir.path().join("work/out.txt");
    assert_eq!(std::fs::read_to_string(&file).ok().as_deref(), is_written.then_some("by a tool"), "{heard:?}");
    assert_eq!(heard.asked.len(), 1);
    let ask = &heard.asked[0];
    assert_eq!((ask.tool.kind, ask.tool.paths.first()), (ToolKind::Edit, Some(&file.display().to_string())));
    assert!(ask.detail.contains("by a tool"), "{}", ask.detail);
    let tokens_told = heard.usage.iter().any(|usage| usage.counters.input.is_some());
    match program {
        // It tells of its last call only: better nothing than a part.
        Program::OpenCode => assert!(!tokens_told, "{:?}", heard.usage),
        Program::Qwen => assert_billed(&heard, &desk.bills()),
    }
    desk.close().await;
}

async fn allow(program: Program) {
    a_tool(program, |ask| by_kind(ask, AskKind::AllowOnce), true).await;
}

async fn reject(program: Program) {
    a_tool(program, |ask| by_kind(ask, AskKind::RejectOnce), false).await;
}

async fn a_cancel(program: Program) {
    let script = |asked: &Asked, _: PathBuf| {
        let slow = Reply::Slow("word ".repeat(5_000), Duration::from_millis(20));
        if asked.text.contains("slowly") { slow } else { Reply::Text("still here".into()) }
    };
    let mut desk = Desk::open(program, script).await;
    desk.backend.order(prompt(&format!("write slowly {MARKER}"))).await.expect("taken");
    until(&mut desk.backend, |said| matches!(said, Said::Text(_))).await;
    desk.backend.order(Order::Cancel).await.expect("taken");
    assert_eq!(listen(&mut desk.backend, never).await.ended, Some(Ended::Cancelled));
    let heard = desk.turn("are you there?", never).await;
    assert_eq!((heard.text.as_str(), heard.ended), ("still here", Some(Ended::EndTurn)));
    desk.close().await;
}

async fn a_refusing_provider(program: Program) {
    let mut desk =
        Desk::open(program, |_, _| Reply::Status { status: 401, retry_after: None, code: "invalid_api_key" }).await;
    let heard = desk.turn("say hello", never).await;
    match (program, &heard.ended) {
        // It tells the message only, no status.
        (Program::OpenCode, Some(Ended::Error(BackendError::Other(why)))) if why.contains("the mock refuses") => {}
        (Program::Qwen, Some(Ended::Error(BackendError::Auth(_)))) => {}
        _ => panic!("{heard:?}"),
    }
    desk.close().await;
}

async fn a_dropped_backend(program: Program) {
    let desk = Desk::open(program, |_, _| Reply::Text("never heard".into())).await;
    let tree = desk.tree.clone();
    eventually("the program runs", || !with_variable("TEST_TREE", &tree).is_empty()).await;
    drop(desk.backend);
    eventually("nothing is left", || with_variable("TEST_TREE", &tree).is_empty()).await;
}

macro_rules! with_each_program {
    ($($test:ident),+) => {
        mod opencode {
            $(#[tokio::test] async fn $test() { super::$test(super::Program::OpenCode).await; })+
        }
        mod qwen {
            $(#[tokio::test] async fn $test() { super::$test(super::Program::Qwen).await; })+
        }
    };
}

with_each_program!(a_turn_of_text, allow, reject, a_cancel, a_refusing_provider, a_dropped_backend);
