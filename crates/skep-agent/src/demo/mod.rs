//! An ACP program that needs no network, no key and no model: to try Skep with, and to test it with.
//!
//! Job: be the agent's side of ACP on any pair of streams. What it says comes from `script`.
//! Lifetime: until its stdin ends.
//! Must not: write anywhere but into the session's directory, or without permission.

mod script;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use crate::acp::message::{
    INVALID_PARAMS, Incoming, METHOD_NOT_FOUND, RpcError, answer, notice, parse, refusal, request,
};
use crate::lines::{Line, Lines};
use script::Act;

/// Sessions of one process; a harness needs one.
const SESSIONS_MAX: usize = 64;

/// Runs it. Give it the process's own stdin and stdout, and end the process when it returns: tokio reads stdin in a
/// thread that cannot be stopped, and a runtime that is dropped would wait for its next line.
pub async fn run(stdin: impl AsyncRead + Unpin, stdout: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut demo = Demo { stdout, sessions: HashMap::new(), turn: None, calls: 0 };
    let mut lines = Lines::new(stdin);
    loop {
        let next = demo.turn.as_ref().filter(|turn| turn.question.is_none()).map(|turn| turn.next);
        tokio::select! {
            biased;
            line = lines.next() => match line? {
                Some(Line::Text(line)) => demo.handle_line(&line).await?,
                Some(_) => {}
                None => return Ok(()),
            },
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => demo.act().await?,
        }
    }
}

struct Demo<W> {
    stdout: W,
    sessions: HashMap<String, Session>,
    turn: Option<Turn>,
    calls: u64,
}

/// Words count as tokens. ACP counts a session's.
struct Session {
    cwd: PathBuf,
    input: usize,
    output: usize,
}

struct Turn {
    rpc_id: Value,
    session: String,
    acts: VecDeque<Act>,
    next: Instant,
    /// The permission that it waits for.
    question: Option<Question>,
}

struct Question {
    rpc_id: Value,
    call: String,
    name: String,
    text: String,
}

impl<W: AsyncWrite + Unpin> Demo<W> {
    async fn handle_line(&mut self, line: &str) -> io::Result<()> {
        match parse(line) {
            Some(Incoming::Request { id, method, params }) => self.handle_request(id, &method, &params).await,
            Some(Incoming::Notice { method, .. }) if method == "session/cancel" => self.end("cancelled").await,
            Some(Incoming::Answer { id, result }) => self.handle_answer(&id, result).await,
            Some(Incoming::Notice { .. }) | None => Ok(()),
        }
    }

    async fn handle_request(&mut self, id: Value, method: &str, params: &Value) -> io::Result<()> {
        let reply = match method {
            "initialize" => answer(&id, &hello()),
            "session/new" => {
                let session = format!("demo-{}", self.sessions.len() + 1);
                self.open(&session, params);
                answer(&id, &json!({ "sessionId": session, "configOptions": [model()] }))
            }
            "session/resume" => {
                self.open(params["sessionId"].as_str().unwrap_or_default(), params);
                answer(&id, &json!({ "configOptions": [model()] }))
            }
            "session/set_config_option" => answer(&id, &json!({ "configOptions": [model()] })),
            "session/prompt" if self.turn.is_none() => match self.begin(&id, params) {
                Some(()) => return Ok(()),
                None => refusal(&id, INVALID_PARAMS, "no such session"),
            },
            "session/prompt" => refusal(&id, INVALID_PARAMS, "one turn at a time"),
            _ => refusal(&id, METHOD_NOT_FOUND, "the demo does not know this method"),
        };
        self.send(&reply).await
    }

    fn open(&mut self, id: &str, params: &Value) {
        let cwd = PathBuf::from(params["cwd"].as_str().unwrap_or("."));
        if self.sessions.len() < SESSIONS_MAX {
            self.sessions.insert(id.to_owned(), Session { cwd, input: 0, output: 0 });
        }
    }

    fn begin(&mut self, id: &Value, params: &Value) -> Option<()> {
        let id_of_session = params["sessionId"].as_str()?;
        let session = self.sessions.get_mut(id_of_session)?;
        let parts = params["prompt"].as_array().into_iter().flatten();
        let prompt: String = parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n");
        session.input += prompt.split_whitespace().count();
        let acts = script::acts(&prompt).into();
        let (rpc_id, session) = (id.clone(), id_of_session.to_owned());
        self.turn = Some(Turn { rpc_id, session, acts, next: Instant::now(), question: None });
        Some(())
    }

    /// The next line of the script.
    async fn act(&mut self) -> io::Result<()> {
        let Some(turn) = &mut self.turn else { return Ok(()) };
        turn.next = Instant::now() + script::PAUSE;
        match turn.acts.pop_front() {
            Some(Act::Say(text)) => self.say("agent_message_chunk", &text).await,
            Some(Act::Think(text)) => self.say("agent_thought_chunk", &text).await,
            Some(Act::Wait(time)) => {
                turn.next = Instant::now() + time;
                Ok(())
            }
            Some(Act::Write { name, text }) => self.ask(name, text).await,
            Some(Act::Fail) => {
                let reply = refusal(&turn.rpc_id, -32603, "the demo was asked to fail");
                self.turn = None;
                self.send(&reply).await
            }
            Some(Act::Crash) => Err(io::Error::other("the demo was asked to crash")),
            None => self.end("end_turn").await,
        }
    }

    async fn say(&mut self, kind: &str, text: &str) -> io::Result<()> {
        if let Some(session) = self.turn.as_ref().and_then(|turn| self.sessions.get_mut(&turn.session)) {
            session.output += text.split_whitespace().count();
        }
        self.update(json!({ "sessionUpdate": kind, "content": { "type": "text", "text": text } })).await
    }

    async fn ask(&mut self, name: String, text: String) -> io::Result<()> {
        self.calls += 1;
        let call = format!("call-{}", self.calls);
        let rpc_id = json!(format!("permission-{}", self.calls));
        let Some(turn) = &mut self.turn else { return Ok(()) };
        let session = turn.session.clone();
        let path = self.sessions.get(&session).map(|session| session.cwd.join(&name)).unwrap_or_default();
        let tool = json!({ "toolCallId": call, "title": format!("Write {name}"), "kind": "edit", "status": "pending",
            "locations": [{ "path": path }], "content": [{ "type": "diff", "path": path, "newText": text }] });
        turn.question = Some(Question { rpc_id: rpc_id.clone(), call, name, text });
        let mut update = tool.clone();
        update["sessionUpdate"] = json!("tool_call");
        self.update(update).await?;
        let options = json!([
            { "optionId": "allow", "name": "Allow", "kind": "allow_once" },
            { "optionId": "reject", "name": "Reject", "kind": "reject_once" },
        ]);
        let params = json!({ "sessionId": session, "toolCall": tool, "options": options });
        let mut question = request(0, "session/request_permission", &params);
        question["id"] = rpc_id;
        self.send(&question).await
    }

    async fn handle_answer(&mut self, id: &Value, result: Result<Value, RpcError>) -> io::Result<()> {
        let Some(turn) = &mut self.turn else { return Ok(()) };
        let Some(question) = turn.question.take_if(|question| question.rpc_id == *id) else { return Ok(()) };
        let allowed = result.is_ok_and(|value| value["outcome"]["optionId"] == "allow");
        let cwd = self.sessions.get(&turn.session).map(|session| session.cwd.clone()).unwrap_or_default();
        let (status, text) = if !allowed {
            ("failed", format!("You said no: I did not write {}.", question.name))
        } else {
            match tokio::fs::write(cwd.join(&question.name), &question.text).await {
                Ok(()) => ("completed", format!("I wrote {}.", question.name)),
                Err(error) => ("failed", format!("I could not write {}: {error}.", question.name)),
            }
        };
        turn.acts.push_front(Act::Say(text));
        self.update(json!({ "sessionUpdate": "tool_call_update", "toolCallId": question.call, "status": status })).await
    }

    async fn end(&mut self, reason: &str) -> io::Result<()> {
        let Some(turn) = self.turn.take() else { return Ok(()) };
        let (input, output) =
            self.sessions.get(&turn.session).map(|session| (session.input, session.output)).unwrap_or_default();
        let usage = json!({ "inputTokens": input, "outputTokens": output, "totalTokens": input + output });
        self.send(&answer(&turn.rpc_id, &json!({ "stopReason": reason, "usage": usage }))).await
    }

    async fn update(&mut self, update: Value) -> io::Result<()> {
        let Some(turn) = &self.turn else { return Ok(()) };
        let message = notice("session/update", &json!({ "sessionId": turn.session, "update": update }));
        self.send(&message).await
    }

    async fn send(&mut self, message: &Value) -> io::Result<()> {
        self.stdout.write_all(format!("{message}\n").as_bytes()).await?;
        self.stdout.flush().await
    }
}

fn hello() -> Value {
    json!({
        "protocolVersion": 1,
        "agentCapabilities": { "loadSession": false, "sessionCapabilities": { "resume": {} } },
        "agentInfo": { "name": "skep-demo", "title": "Skep's demo agent", "version": env!("CARGO_PKG_VERSION") },
        "authMethods": [],
    })
}

fn model() -> Value {
    json!({ "id": "model", "name": "Model", "category": "model", "type": "select", "currentValue": "script",
        "options": [{ "value": "script", "name": "A little script" }] })
}
