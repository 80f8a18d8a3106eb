//! What an agent asks of its harness: over the socket of its session, and as a model server's tool calls.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use skep_agent::openai::OpenAi;
use skep_agent::tools::{Bridge, Place};
use skep_agent::{McpServer, McpTransport};
use skep_core::permit::{Policy, Stance};
use skep_core::tools::Grants;
use skep_proto::lease::Claim;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::earlier::{mention_in, thread};
use crate::leading::until_is;
use crate::mock_model::{Asked, MockModel, Reply};

/// Sockets in a directory of the test: `1.sock` is the first.
struct Here(PathBuf, AtomicUsize);

struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        // The test's directory may be gone before its instance.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Bridge for Here {
    fn open(&self) -> std::io::Result<Place> {
        let socket = self.0.join(format!("{}.sock", self.1.fetch_add(1, Ordering::Relaxed) + 1));
        let transport = McpTransport::Stdio { command: "none".into(), args: Vec::new(), env: Vec::new() };
        let server = McpServer { name: "skep".into(), transport };
        Ok(Place { listener: UnixListener::bind(&socket)?, server, guard: Box::new(Gone(socket)) })
    }
}

/// A program's side of MCP, by hand.
struct Program {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    next: u64,
}

impl Program {
    async fn start(socket: &std::path::Path) -> Self {
        let found = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                match UnixStream::connect(socket).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let (read, write) = found.await.unwrap().into_split();
        let mut program = Self { lines: BufReader::new(read).lines(), write, next: 0 };
        let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
        let said = program.request("initialize", hello).await;
        assert_eq!(said["result"]["serverInfo"]["name"], "skep", "{said}");
        program.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        program
    }

    async fn send(&mut self, message: &Value) {
        self.write.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.ask(method, params).await;
        self.answer(id).await
    }

    async fn ask(&mut self, method: &str, params: Value) -> u64 {
        self.next += 1;
        self.send(&json!({ "jsonrpc": "2.0", "id": self.next, "method": method, "params": params })).await;
        self.next
    }

    async fn answer(&mut self, id: u64) -> Value {
        loop {
            let line = tokio::time::timeout(Duration::from_secs(30), self.lines.next_line()).await;
            let message: Value = serde_json::from_str(&line.unwrap().unwrap().expect("an answer")).unwrap();
            if message["id"] == id {
                return message;
            }
        }
    }

    async fn tools(&mut self) -> Vec<String> {
        let said = self.request("tools/list", json!({})).await;
        let tools = said["result"]["tools"].as_array().unwrap();
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Whether it worked, and what it said.
    async fn call(&mut self, tool: &str, arguments: Value) -> (bool, String) {
        let said = self.request("tools/call", json!({ "name": tool, "arguments": arguments })).await;
        told(&said)
    }
}

fn told(said: &Value) -> (bool, String) {
    let result = &said["result"];
    (result["isError"] == false, result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{said}")).to_owned())
}

struct Stage {
    dir: tempfile::TempDir,
    relay: Arc<Relay>,
    shelf: Arc<Shelf>,
    instance: Instance,
}

impl Stage {
    /// A demo agent with these tools.
    async fn open(tools: &[&str], change: impl FnOnce(&mut Setup)) -> Self {
        let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
        let shelf = Arc::new(Shelf { key: Some(pubkey(9)), ..Shelf::default() });
        // Only its own program is let in: it lends its way to the test.
        let args = vec!["demo".into(), dir.path().to_str().unwrap().into()];
        let lends = Backend::Acp { command: env!("CARGO_BIN_EXE_agent-fixture").into(), args };
        let mut setup = setup(dir.path(), "a", lends);
        setup.tools = Grants::read(tools).unwrap();
        setup.bridge = Some(Arc::new(Here(dir.path().to_owned(), AtomicUsize::new(0))));
        setup.library = shelf.clone();
        change(&mut setup);
        let instance = Instance::start(setup, &relay);
        instance.tell(PROMPTER).await;
        Self { dir, relay, shelf, instance }
    }

    /// Begins a turn that lasts, and gives its program's side of the tools.
    async fn begin(&self, asked: &RawEvent) -> Program {
        self.begin_at(asked, "1.lend").await
    }

    async fn begin_at(&self, asked: &RawEvent, socket: &str) -> Program {
        self.instance.event(asked).await;
        until_is(&self.instance.store, &asked.id, "prompted").await;
        // Before its session is known, a program may raise no card.
        self.until_frame("session_resolved").await;
        Program::start(&self.dir.path().join(socket)).await
    }

    async fn cancel(&self) {
        assert_eq!(command(&self.instance, Command::Cancel { channel: None }).await, Ok("1 cancelled".into()));
        self.instance.until_over().await;
    }

    /// Waits for a frame to the owner.
    async fn until_frame(&self, wanted: &str) {
        let open = |event: &RawEvent| seal::open(&keys(OWNER), &pubkey(AGENT), &event.content).ok();
        let found = tokio::time::timeout(Duration::from_secs(30), async {
            while !self.relay.accepted(Kind::AGENT_FRAME).iter().filter_map(open).any(|text| text.contains(wanted)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("no frame has {wanted}"));
    }
}

/// Profile of an agent of the owner.
fn profile(agent: u8, name: &str) -> RawEvent {
    let auth = attestation::attest(&keys(OWNER), &pubkey(agent), &"".parse().unwrap(), &[0; 32]);
    let draft = Draft::new(Kind::PROFILE, now(), json!({ "name": name, "about": "looks around" }).to_string());
    draft.tag(auth).sign(&keys(agent), &[0; 32]).raw().clone()
}

#[tokio::test]
async fn a_program_has_what_was_granted_while_its_turn_runs_and_nothing_after_it() {
    let stage = Stage::open(&["progress", "agents"], |_| {}).await;
    *stage.shelf.events.lock().unwrap() = vec![profile(STRANGER, "scout")];
    let mut program = stage.begin(&mention(OWNER, "wait")).await;
    assert_eq!(program.tools().await, ["progress", "agents"]);
    assert_eq!(program.call("progress", json!({ "text": "half of it" })).await, (true, "told".into()));
    stage.until_frame("half of it").await;
    let (is_ok, why) = program.call("progress", json!({ "text": "more" })).await;
    assert!(!is_ok && why.contains("the next can be told in"), "{why}");
    let (is_ok, why) = program.call("progress", json!({ "words": 1 })).await;
    assert!(!is_ok && why.contains("unknown field `words`"), "{why}");
    let (_, granted) = program.call("history", json!({})).await;
    let (_, unknown) = program.call("no_such", json!({})).await;
    assert_eq!(granted.replace("history", "no_such"), unknown);
    let (is_ok, list) = program.call("agents", json!({})).await;
    assert!(is_ok && list.contains(r#""name":"scout""#) && list.contains("looks around"), "{list}");

    stage.cancel().await;
    for (tool, arguments) in [("progress", json!({ "text": "late" })), ("agents", json!({}))] {
        let (is_ok, why) = program.call(tool, arguments).await;
        assert!(!is_ok && why.starts_with("no turn of yours is running"), "{why}");
    }
    assert_eq!(program.tools().await.len(), 2, "the session goes on");
}

#[tokio::test]
async fn a_call_that_was_under_way_ends_with_its_turn() {
    let stage = Stage::open(&["agents"], |_| {}).await;
    stage.shelf.is_silent.store(true, Ordering::Relaxed);
    let mut program = stage.begin(&mention(OWNER, "wait")).await;
    let mut asked = Vec::new();
    for _ in 0..skep_proto::limits::TOOL_CALLS_MAX + 1 {
        asked.push(program.ask("tools/call", json!({ "name": "agents", "arguments": {} })).await);
    }
    let line = tokio::time::timeout(Duration::from_secs(30), program.lines.next_line()).await;
    let busy: Value = serde_json::from_str(&line.unwrap().unwrap().unwrap()).unwrap();
    assert!(asked.iter().any(|id| busy["id"] == *id));
    assert!(told(&busy).1.starts_with("too many calls at once"), "{busy}");
    stage.instance.kill();
    let gone = tokio::time::timeout(Duration::from_secs(30), async {
        while let Ok(Some(_)) = program.lines.next_line().await {}
    });
    gone.await.expect("the connection ends with the session");
    assert!(!stage.dir.path().join("1.sock").exists(), "and so does its socket");
}

#[tokio::test]
async fn what_was_said_before_comes_in_envelopes() {
    let stage = Stage::open(&["history"], |_| {}).await;
    let [root, answer] = thread();
    *stage.shelf.events.lock().unwrap() = vec![answer.clone(), root.clone()];
    let mut program = stage.begin(&mention_in(&root, "wait")).await;
    let (is_ok, page) = program.call("history", json!({})).await;
    assert!(is_ok && page.starts_with("Messages come in envelopes"), "{page}");
    let heads: Vec<&str> = page.lines().filter(|line| line.starts_with("[SKEP-") && !line.ends_with("end]")).collect();
    assert_eq!(heads.len(), 2, "{page}");
    assert!(heads[0].contains("who=\"somebody else\"") && heads[0].contains(&root.id.to_hex()), "{}", heads[0]);
    assert!(page.contains("honey first") && heads[1].contains("who=\"your owner\""));
    let boundary = heads[0].split(' ').next().unwrap().trim_start_matches('[');
    assert!(!stage.instance.store.newest_turns(1).unwrap()[0].prompt.contains(boundary), "fresh each time");
    let before = skep_proto::time::Moment::from_secs(root.created_at).to_string();
    let (_, page) = program.call("history", json!({ "limit": 5, "before": before })).await;
    assert!(page.contains("honey first") && !page.contains("I agree"), "{page}");
    stage.shelf.events.lock().unwrap().clear();
    assert_eq!(program.call("history", json!({})).await.1, "nothing was said before");
}

#[tokio::test]
async fn a_model_server_has_the_same_tools() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let script = |asked: &Asked| match asked.is_tool_answer {
        true => Reply::Text(format!("it says: {}", asked.last)),
        false => Reply::Tool { name: "history".into(), arguments: json!({ "limit": 5 }) },
    };
    let (mock, shelf) = (MockModel::start(script).await, Arc::new(Shelf::default()));
    let [root, answer] = thread();
    *shelf.events.lock().unwrap() = vec![answer, root.clone()];
    let backend = Backend::OpenAi(OpenAi::new(mock.base_url().parse().unwrap(), "mock"));
    let tools = Grants::read(&["history"]).unwrap();
    let instance = Instance::start(Setup { library: shelf, tools, ..setup(dir.path(), "a", backend) }, &relay);
    instance.tell(PROMPTER).await;
    let asked = mention_in(&root, "what is the plan?");
    instance.event(&asked).await;
    until_is(&instance.store, &asked.id, "answered").await;
    assert!(mock.asked().iter().all(|asked| asked.tools == ["history"]), "no tool that was not granted is listed");
    let reply = relay.wait_for(Kind::NOTE, 1).await.remove(0).content;
    assert!(reply.starts_with("it says: Messages come in envelopes") && reply.contains("honey first"), "{reply}");
}

/// The question that was published, beside cards and replies.
async fn question(relay: &Arc<Relay>) -> RawEvent {
    for count in 1.. {
        let notes = relay.wait_for(Kind::NOTE, count).await;
        if let Some(found) = notes.into_iter().find(|note| note.content.starts_with("@scout")) {
            return found;
        }
    }
    unreachable!()
}

#[tokio::test]
async fn another_agent_is_asked_in_the_thread_when_the_owner_allows_it() {
    let stage = Stage::open(&["ask_agent"], |_| {}).await;
    *stage.shelf.events.lock().unwrap() = vec![profile(STRANGER, "scout")];
    let asked = Draft::new(Kind::NOTE, now(), "wait").tag(["p", &pubkey(AGENT).to_hex()]).tag(["task", "honey"]);
    let asked = asked.sign(&keys(OWNER), &[0; 32]).raw().clone();
    let mut program = stage.begin(&asked).await;
    let (_, why) = program.call("ask_agent", json!({ "name": "scot", "text": "where?" })).await;
    assert_eq!(why, "your owner has no other agent named scot; there are: scout");
    let call = json!({ "name": "ask_agent", "arguments": { "name": "@scout", "text": "where is the honey?" } });
    let id = program.ask("tools/call", call).await;
    let card = stage.relay.wait_for(Kind::NOTE, 1).await.remove(0);
    assert!(
        card.content.starts_with("🔐 Ask @scout") && card.content.contains("where is the honey?"),
        "{}",
        card.content
    );
    let thumb = Draft::new(Kind::REACTION, now(), "👍").tag(["e", &card.id.to_hex()]);
    stage.instance.event(thumb.sign(&keys(OWNER), &[0; 32]).raw()).await;
    let (is_ok, said) = told(&program.answer(id).await);
    let question = question(&stage.relay).await;
    assert!(is_ok && said == format!("asked @scout; the question is the event {}", question.id), "{said}");
    assert_eq!((question.pubkey, question.content.as_str()), (pubkey(AGENT), "@scout where is the honey?"));
    assert_eq!(question.tags.values("p").collect::<Vec<_>>(), [pubkey(STRANGER).to_hex()], "a word to nobody else");
    assert_eq!(e_tag(&question), asked.id.to_hex(), "in this conversation");
    assert!(question.tags.single("auth").is_some(), "with the owner's attestation");
    assert_eq!(question.tags.single("task"), Some("honey"), "about the task of the turn");
    // The relay takes it of the one who holds the turn only, and not as the answer.
    let claim = Claim::from_event(&question).expect("a claim").unwrap();
    assert!(claim.resource.as_str().ends_with(&asked.id.to_hex()) && !claim.is_final, "{claim:?}");
}

#[tokio::test]
async fn what_the_rules_reject_is_not_asked_and_a_chain_of_agents_ends() {
    let reject = |setup: &mut Setup| setup.policy = Policy { policy: Stance::Reject, rules: Vec::new() };
    let stage = Stage::open(&["ask_agent"], reject).await;
    *stage.shelf.events.lock().unwrap() = vec![profile(STRANGER, "scout")];
    let mut program = stage.begin(&mention(OWNER, "wait")).await;
    let call = json!({ "name": "scout", "text": "where?" });
    let (is_ok, why) = program.call("ask_agent", call.clone()).await;
    assert!(!is_ok && why.starts_with("your owner did not allow it"), "{why}");
    assert_eq!(stage.relay.accepted(Kind::NOTE), []);

    let allow = |setup: &mut Setup| {
        setup.policy = Policy { policy: Stance::Allow, rules: Vec::new() };
        setup.audience.respond_to = RespondTo::Siblings;
    };
    let stage = Stage::open(&["ask_agent"], allow).await;
    *stage.shelf.events.lock().unwrap() = vec![profile(STRANGER, "scout")];
    let auth = attestation::attest(&keys(OWNER), &pubkey(8), &"".parse().unwrap(), &[0; 32]);
    let last = skep_proto::limits::HOPS_MAX - 1;
    let draft =
        Draft::new(Kind::NOTE, now(), "wait").tag(["p", &pubkey(AGENT).to_hex()]).tag(["hop", &last.to_string()]);
    let asked = draft.tag(&auth).sign(&keys(8), &[0; 32]).raw().clone();
    let mut program = stage.begin(&asked).await;
    let (is_ok, why) = program.call("ask_agent", call.clone()).await;
    assert!(!is_ok && why.contains("agents answered each other in this thread; only your owner"), "{why}");
    stage.cancel().await;
    drop(program);

    // Each question is one turn of the pair more.
    let mut program = stage.begin_at(&mention(OWNER, "wait"), "2.lend").await;
    for n in 0..skep_proto::limits::PAIR_TURNS_PER_HOUR_MAX {
        let (is_ok, said) = program.call("ask_agent", call.clone()).await;
        assert!(is_ok, "{n}: {said}");
    }
    let (is_ok, why) = program.call("ask_agent", call).await;
    assert!(!is_ok && why.contains("turns in an hour"), "{why}");
}

#[tokio::test]
async fn the_owner_answers_a_question_and_silence_is_no_answer() {
    let allow = |setup: &mut Setup| {
        // No rule answers for them.
        setup.policy = Policy { policy: Stance::Allow, rules: Vec::new() };
        setup.times = turn::Times { turn_ms_max: 10_000, ..turn::Times::default() };
    };
    let stage = Stage::open(&["ask_human"], allow).await;
    let mut program = stage.begin(&mention(OWNER, "wait")).await;
    let question = json!({ "question": "Tea or coffee?", "options": ["Tea", "Coffee"] });
    let id = program.ask("tools/call", json!({ "name": "ask_human", "arguments": question })).await;
    let card = stage.relay.wait_for(Kind::NOTE, 1).await.remove(0);
    assert!(card.content.starts_with("🔐 Question (ask_human, in the turn of \"wait\", "), "{}", card.content);
    assert!(card.content.contains("\n  │ Tea or coffee?\n"), "{}", card.content);
    assert!(card.content.contains(r#"👍 allow ("Tea") · 👎 reject ("Coffee")"#), "{}", card.content);
    let thumb = Draft::new(Kind::REACTION, now(), "👎").tag(["e", &card.id.to_hex()]);
    stage.instance.event(thumb.sign(&keys(OWNER), &[0; 32]).raw()).await;
    assert_eq!(told(&program.answer(id).await), (true, "your owner says: Coffee".into()));
    // As long as the turn may take, and no longer.
    let (is_ok, why) = program.call("ask_human", json!({ "question": "Milk?" })).await;
    let is_told = why.starts_with("your owner did not answer") || why.starts_with("the turn ended");
    assert!(!is_ok && is_told, "{why}");
}

#[tokio::test]
async fn only_a_turn_of_the_owner_may_ask_them() {
    let stage = Stage::open(&["ask_human"], |setup| setup.audience.respond_to = RespondTo::Anyone).await;
    let mut program = stage.begin(&mention(STRANGER, "wait")).await;
    let (is_ok, why) = program.call("ask_human", json!({ "question": "May I have it all?" })).await;
    assert!(!is_ok && why.starts_with("your owner is asked only in a turn"), "{why}");
    assert_eq!(stage.relay.accepted(Kind::NOTE), []);
}

#[tokio::test]
async fn only_the_sessions_own_program_and_what_it_starts_is_let_in() {
    let stage = Stage::open(&["progress"], |_| {}).await;
    let mut program = stage.begin(&mention(OWNER, "wait")).await;
    let mut stranger = UnixStream::connect(stage.dir.path().join("1.sock")).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(30), stranger.read(&mut [0; 64])).await;
    assert_eq!(end.expect("refused at once").unwrap_or(0), 0, "we are its user, and not its program");
    assert_eq!(program.tools().await, ["progress"]);
}

#[tokio::test]
async fn one_question_is_open_at_once_and_goes_with_whoever_asked() {
    let stage = Stage::open(&["ask_human"], |_| {}).await;
    let mut program = stage.begin(&mention(OWNER, "wait")).await;
    let call = |text: &str| json!({ "name": "ask_human", "arguments": { "question": text } });
    let first = program.ask("tools/call", call("Tea?")).await;
    let card = stage.relay.wait_for(Kind::NOTE, 1).await.remove(0);
    let (is_ok, why) = program.call("ask_human", json!({ "question": "Milk?" })).await;
    assert!(!is_ok && why.starts_with("a question of this turn is open already"), "{why}");
    let gone = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": first } });
    program.send(&gone).await;
    let closed = stage.relay.wait_for(Kind::REACTION, 1).await;
    let sign = |event: &RawEvent| event.content == "⌛" && e_tag(event) == card.id.to_hex();
    let closed = tokio::time::timeout(Duration::from_secs(30), async {
        let mut all = closed;
        while !all.iter().any(sign) {
            all = stage.relay.wait_for(Kind::REACTION, all.len() + 1).await;
        }
    });
    closed.await.expect("its card is closed");
    program.ask("tools/call", call("Sugar?")).await;
    let cards = stage.relay.wait_for(Kind::NOTE, 2).await;
    assert!(cards[1].content.contains("Sugar?"), "{}", cards[1].content);
}

#[tokio::test]
async fn looks_come_one_after_another_and_agents_are_looked_for_once_a_minute() {
    let stage = Stage::open(&["agents", "history"], |_| {}).await;
    let [root, answer] = thread();
    *stage.shelf.events.lock().unwrap() = vec![profile(STRANGER, "scout"), root.clone(), answer];
    let mut program = stage.begin(&mention_in(&root, "wait")).await;
    let before = stage.shelf.times.lock().unwrap().len();
    let mut asked = Vec::new();
    for tool in ["agents", "history", "agents"] {
        asked.push(program.ask("tools/call", json!({ "name": tool, "arguments": {} })).await);
    }
    for _ in &asked {
        let line = tokio::time::timeout(Duration::from_secs(30), program.lines.next_line()).await;
        let said: Value = serde_json::from_str(&line.unwrap().unwrap().unwrap()).unwrap();
        assert!(asked.contains(&said["id"].as_u64().unwrap()) && told(&said).0, "{said}");
    }
    let times = stage.shelf.times.lock().unwrap()[before..].to_vec();
    let profiles = times.iter().filter(|(kinds, _)| kinds.contains(&Kind::PROFILE)).count();
    // Two looks for who is at work, and one for what was said.
    assert_eq!((profiles, times.len()), (1, 4), "{times:?}");
    let gap = Duration::from_millis(skep_proto::limits::LOOK_MS_MIN);
    assert!(times.windows(2).all(|pair| pair[1].1.duration_since(pair[0].1) >= gap), "{times:?}");
}
