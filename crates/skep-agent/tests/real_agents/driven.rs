//! The programs with a whole harness around them: they use its tools, and change their model when their owner says so.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use secp256k1::{Keypair, SECP256K1};
use serde_json::json;
use skep_agent::driver::{Input, Setup};
use skep_agent::tools::{Bridge, Place};
use skep_agent::{McpServer, McpTransport, Spec};
use skep_core::audience::{Audience, RespondTo};
use skep_core::leader::Role;
use skep_core::permit::{Policy, Stance};
use skep_core::tools::Grants;
use skep_core::{queue, turn};
use skep_proto::agent::control::{Control, control_draft};
use skep_proto::{Draft, Kind, PubKey, RawEvent, seal};
use skep_store::AgentStore;
use tokio::net::UnixListener;

use crate::desk::{PATIENCE, eventually, unique};
use crate::mock_model::{Asked, MockModel, Reply};
use crate::program::{Program, is_main};
use crate::relay::{Always, HOME, Instance, Machine, Relay, Shelf, now};

const MARKER: &str = "marker-51c0";

const OWNER: u8 = 1;
const AGENT: u8 = 2;

fn keys(n: u8) -> Keypair {
    Keypair::from_seckey_slice(SECP256K1, &[n; 32]).expect("a secret")
}

fn pubkey(n: u8) -> PubKey {
    PubKey(keys(n).x_only_public_key().0.serialize())
}

/// Sockets in a directory of the test, and the fixture as the way there.
struct Sockets(PathBuf, AtomicUsize);

impl Bridge for Sockets {
    fn open(&self) -> std::io::Result<Place> {
        let socket = self.0.join(format!("{}.sock", self.1.fetch_add(1, Ordering::Relaxed)));
        let args = vec!["bridge".to_owned(), socket.display().to_string()];
        let transport =
            McpTransport::Stdio { command: env!("CARGO_BIN_EXE_agent-fixture").into(), args, env: Vec::new() };
        let server = McpServer { name: "skep".into(), transport };
        Ok(Place { listener: UnixListener::bind(&socket)?, server, guard: Box::new(()) })
    }
}

struct Stage {
    dir: tempfile::TempDir,
    mock: MockModel,
    relay: Arc<Relay>,
    instance: Instance,
}

impl Stage {
    async fn open(program: Program, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let script = move |asked: &Asked| match is_main(asked, MARKER) {
            true => script(asked),
            false => Reply::Text("side call".into()),
        };
        let mock = MockModel::start(script).await;
        let relay = Arc::new(Relay::default());
        let spec = program.spec(dir.path(), &mock, &unique("driven"));
        let instance = Instance::start(setup(dir.path(), spec), &relay);
        instance.tell(Input::Role(Role::Prompter(None))).await;
        Self { dir, mock, relay, instance }
    }

    /// The reply to something that the owner says.
    async fn ask(&self, text: &str) -> RawEvent {
        let draft = Draft::new(Kind::NOTE, now(), format!("{text} {MARKER}"));
        let asked = draft.tag(["p", &pubkey(AGENT).to_hex()]).sign(&keys(OWNER), &[0; 32]).raw().clone();
        self.instance.event(&asked).await;
        let is_reply = |event: &&RawEvent| event.tags.values("e").any(|id| id == asked.id.to_hex());
        let mut found = None;
        eventually("it answers", || {
            found = self.relay.accepted(Kind::NOTE).iter().find(is_reply).cloned();
            found.is_some()
        })
        .await;
        found.expect("a reply")
    }

    /// What the owner sees in frames.
    fn frames(&self) -> String {
        let open = |event: &RawEvent| seal::open(&keys(OWNER), &pubkey(AGENT), &event.content).ok();
        self.relay.accepted(Kind::AGENT_FRAME).iter().filter_map(open).collect::<Vec<_>>().join("\n")
    }

    async fn close(self) {
        // It holds the inputs open, too.
        self.instance.pump.abort();
        let _ = self.instance.pump.await;
        drop(self.instance.inputs);
        self.instance.driver.await.expect("no panic").expect("no failure");
        drop(self.dir);
    }
}

fn setup(dir: &std::path::Path, spec: Spec) -> Setup {
    Setup {
        trees: None,
        purse: None,
        hears_owner: true,
        name: "worker".parse().expect("a name"),
        keys: keys(AGENT),
        attestation: None,
        instance: "a".into(),
        audience: Audience { respond_to: RespondTo::Owner, owner: Some(pubkey(OWNER)), allowlist: Vec::new() },
        queue: queue::Settings::default(),
        times: turn::Times::default(),
        // What the programs themselves ask is not what is looked at here.
        policy: Policy { policy: Stance::Allow, rules: Vec::new() },
        about: String::new(),
        system: String::new(),
        spec,
        tools: Grants::default(),
        bridge: Some(Arc::new(Sockets(dir.to_owned(), AtomicUsize::new(0)))),
        budget: Default::default(),
        prices: None,
        relays: vec![HOME.into()],
        has_leases: true,
        store: Arc::new(AgentStore::open(&dir.join("agent.db")).expect("records")),
        host: Arc::new(Machine::default()),
        lead: Arc::new(Always),
        library: Arc::new(Shelf::default()),
        outbox: Arc::default(),
        claims: Arc::default(),
    }
}

/// The name that a program gives to a tool of ours.
fn named(asked: &Asked, tool: &str) -> Option<String> {
    asked.tools.iter().find(|name| name.contains("skep") && name.ends_with(tool)).cloned()
}

async fn uses_tools(program: Program) {
    let script = |asked: &Asked| {
        if asked.text.contains("are you there") {
            return Reply::Text(if named(asked, "progress").is_some() { "with tools" } else { "alone" }.into());
        }
        let answers =
            asked.body["messages"].as_array().map_or(0, |all| all.iter().filter(|m| m["role"] == "tool").count());
        let (tool, arguments) = match answers {
            0 => ("progress", json!({ "text": "halfway there" })),
            1 => ("history", json!({ "limit": 5 })),
            _ => return Reply::Text(format!("the last said: {}", asked.last)),
        };
        match named(asked, tool) {
            Some(name) => Reply::Tool { name, arguments },
            None => Reply::Text(format!("no {tool} among {:?}", asked.tools)),
        }
    };
    let stage = Stage::open(program, script).await;
    // Some begin their first turn before they have met all servers.
    let deadline = std::time::Instant::now() + PATIENCE;
    while !stage.ask("are you there?").await.content.contains("with tools") {
        assert!(std::time::Instant::now() < deadline, "{:?}", stage.mock.asked().last().map(|asked| &asked.tools));
    }
    let reply = stage.ask("use your tools").await;
    assert!(reply.content.contains("the last said: nothing was said before"), "{}", reply.content);
    let told = stage.mock.asked().iter().filter(|asked| asked.is_tool_answer).map(|asked| asked.last.clone()).next();
    assert!(told.is_some_and(|told| told.contains("told")), "the model sees what the harness answered");
    eventually("the owner sees it", || stage.frames().contains(r#""kind":"progress""#)).await;
    assert!(stage.frames().contains("halfway there"));
    let listed = stage.mock.asked();
    let of_ours = listed.iter().rfind(|asked| is_main(asked, MARKER)).expect("a call").tools.iter();
    let ours: Vec<_> = of_ours.filter(|name| name.contains("skep")).collect();
    assert_eq!(ours.len(), 3, "and no more than was granted: {ours:?}");
    stage.close().await;
}

async fn switches_its_model(program: Program) {
    let stage = Stage::open(program, |asked| Reply::Text(format!("by {}", asked.body["model"]))).await;
    assert!(stage.ask("one").await.content.contains("by \"mock\""));
    let control =
        Control::SwitchModel { channel_id: format!("notes:{}", pubkey(OWNER)), model_id: "mock/other".into() };
    let sealed = seal::seal(&keys(OWNER), &pubkey(AGENT), &control.to_json().expect("JSON"), [3; 32]).expect("sealed");
    let frame = control_draft(&pubkey(AGENT), now(), sealed).sign(&keys(OWNER), &[0; 32]).raw().clone();
    stage.instance.event(&frame).await;
    eventually("it is answered", || stage.frames().contains("switch_model")).await;
    assert!(stage.frames().contains(r#""status":"switched""#), "{}", stage.frames());
    let reply = stage.ask("two").await.content;
    assert!(reply.contains("by \"other\""), "{reply}");
    let main: Vec<_> = stage.mock.asked().into_iter().filter(|asked| is_main(asked, MARKER)).collect();
    let models: Vec<_> = main.iter().map(|asked| asked.body["model"].as_str().unwrap_or_default()).collect();
    assert_eq!(models, ["mock", "other"], "what the server was asked for");
    let words = main[1].body["messages"].to_string();
    assert!(words.contains("by \\\"mock\\\"") || words.contains("by \\\\\\\"mock"), "the session is the same: {words}");
    stage.close().await;
}

mod opencode {
    use super::Program::OpenCode;

    #[tokio::test]
    async fn uses_tools() {
        super::uses_tools(OpenCode).await;
    }

    #[tokio::test]
    async fn switches_its_model() {
        super::switches_its_model(OpenCode).await;
    }
}

mod qwen {
    #[tokio::test]
    async fn uses_tools() {
        super::uses_tools(super::Program::Qwen).await;
    }
}
