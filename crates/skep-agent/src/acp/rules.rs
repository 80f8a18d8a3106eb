//! Rules that the machine keeps, shown by scripted peers. No process, no clock.

use serde_json::{Value, json};

use skep_core::backend::{AskId, BackendError, Ended, Order, Said, Scope, Usage};

use super::machine::Machine;
use super::out::Stop;
use crate::child::Environment;
use crate::lines::Line;
use crate::spec::{Kind, Spec};

struct Peer(Machine);

impl Peer {
    fn new(change: impl FnOnce(&mut Spec)) -> Self {
        let kind = Kind::Acp { command: "agent".into(), args: vec![] };
        let mut spec = Spec::new(kind, "/somewhere", Environment::default());
        change(&mut spec);
        Self(Machine::start(spec, "agent".to_owned()))
    }

    /// Ready for a prompt, as a program of this name.
    fn ready(name: &str) -> Self {
        let mut peer = Self::new(|_| {});
        peer.says(
            json!({ "id": 0, "result": { "protocolVersion": 1, "agentInfo": { "name": name, "version": "1" } } }),
        );
        peer.says(json!({ "id": 1, "result": { "sessionId": "s" } }));
        peer.words();
        peer.sent();
        peer
    }

    /// In its first turn, whose prompt has the id 2.
    fn prompted(name: &str) -> Self {
        let mut peer = Self::ready(name);
        peer.0.handle_order(Order::Prompt { text: "go".into() });
        peer.words();
        peer.sent();
        peer
    }

    fn says(&mut self, message: Value) {
        self.0.handle_line(Line::Text(message.to_string()));
    }

    fn update(&mut self, update: Value) {
        self.says(json!({ "method": "session/update", "params": { "sessionId": "s", "update": update } }));
    }

    fn asks(&mut self, rpc_id: Value) {
        let options = json!([{ "optionId": "y", "name": "Yes", "kind": "allow_once" }]);
        let params = json!({ "sessionId": "s", "toolCall": { "toolCallId": "c" }, "options": options });
        self.says(json!({ "id": rpc_id, "method": "session/request_permission", "params": params }));
    }

    /// What was said since the last look, frames aside.
    fn words(&mut self) -> Vec<Said> {
        self.0.out.said.drain(..).filter(|said| !matches!(said, Said::Frame { .. })).collect()
    }

    /// What was sent to it since the last look.
    fn sent(&mut self) -> Vec<Value> {
        let bytes = self.0.out.to_program.split().to_vec();
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect()
    }
}

fn text(text: &str) -> Value {
    json!({ "sessionUpdate": "agent_message_chunk", "content": { "type": "text", "text": text } })
}

fn usages(words: &[Said]) -> Vec<Usage> {
    words.iter().filter_map(|said| if let Said::Usage(usage) = said { Some(*usage) } else { None }).collect()
}

#[test]
fn what_a_loaded_session_repeats_is_no_part_of_a_reply() {
    let mut peer = Peer::new(|spec| spec.resume = Some("s".into()));
    peer.says(json!({ "id": 0, "result": { "protocolVersion": 1, "agentCapabilities": { "loadSession": true } } }));
    assert_eq!(peer.sent().pop().expect("a request")["method"], "session/load");
    peer.update(text("of old"));
    peer.says(json!({ "id": 1, "result": null }));
    let words = peer.words();
    assert!(matches!(words.as_slice(), [Said::Ready(session)] if session.id == "s" && !session.is_new), "{words:?}");
}

#[test]
fn a_session_that_is_not_known_any_more_becomes_a_new_one_and_is_called_new() {
    let mut peer = Peer::new(|spec| spec.resume = Some("gone".into()));
    let capabilities = json!({ "sessionCapabilities": { "resume": {} } });
    peer.says(json!({ "id": 0, "result": { "protocolVersion": 1, "agentCapabilities": capabilities } }));
    assert_eq!(peer.sent().pop().expect("a request")["method"], "session/resume");
    peer.says(json!({ "id": 1, "error": { "code": -32602, "message": "no such session" } }));
    assert_eq!(peer.sent().pop().expect("a request")["method"], "session/new");
    peer.says(json!({ "id": 2, "result": { "sessionId": "s2" } }));
    assert!(matches!(peer.words().as_slice(), [Said::Ready(session)] if session.id == "s2" && session.is_new));
}

#[test]
fn another_version_of_the_protocol_is_refused() {
    let mut peer = Peer::new(|_| {});
    peer.says(json!({ "id": 0, "result": { "protocolVersion": 9 } }));
    assert!(
        matches!(peer.words().as_slice(), [Said::Ended(Ended::Error(BackendError::Other(why)))] if why.contains("version 9"))
    );
    assert!(matches!(peer.0.out.stop, Some(Stop::Broken(_))));
}

#[test]
fn who_must_log_in_is_told_how() {
    let mut peer = Peer::new(|_| {});
    let methods = json!([{ "id": "a", "name": "A", "description": "Run `agent login`" }, { "id": "b", "name": "B" }]);
    peer.says(json!({ "id": 0, "result": { "protocolVersion": 1, "authMethods": methods } }));
    peer.says(json!({ "id": 1, "error": { "code": -32000, "message": "Authentication required" } }));
    let why = "Authentication required (Run `agent login`; or: B)".to_owned();
    assert_eq!(peer.words(), [Said::Ended(Ended::Error(BackendError::Auth(why)))]);
}

#[test]
fn a_mode_that_is_wanted_and_not_to_be_had_is_an_error() {
    let mut peer = Peer::new(|spec| spec.mode = Some("default".into()));
    peer.says(json!({ "id": 0, "result": { "protocolVersion": 1 } }));
    peer.says(json!({ "id": 1, "result": { "sessionId": "s" } }));
    assert!(matches!(peer.words().as_slice(), [Said::Ended(Ended::Error(_))]), "it might ask nobody");
}

#[test]
fn what_this_client_does_not_offer_is_refused_and_the_turn_goes_on() {
    let mut peer = Peer::prompted("agent");
    peer.says(json!({ "id": "x", "method": "fs/write_text_file", "params": { "sessionId": "s" } }));
    let sent = peer.sent();
    assert_eq!((&sent[0]["id"], &sent[0]["error"]["code"]), (&json!("x"), &json!(-32601)));
    peer.update(text("on"));
    assert_eq!(peer.words(), [Said::Text("on".into())]);
}

#[test]
fn an_answer_is_written_once_under_the_programs_own_id_and_an_option_that_was_not_offered_is_no_consent() {
    let mut peer = Peer::prompted("agent");
    for (rpc_id, option, outcome) in [(json!(7), "y", "selected"), (json!("p8"), "all", "cancelled")] {
        peer.asks(rpc_id.clone());
        let Some(Said::Ask(ask)) = peer.words().pop() else { panic!("no question") };
        peer.0.handle_order(Order::Answer { request: AskId("other".into()), option: Some("y".into()) });
        assert!(peer.sent().is_empty());
        for _ in 0..2 {
            peer.0.handle_order(Order::Answer { request: ask.id.clone(), option: Some(option.into()) });
        }
        let sent = peer.sent();
        assert_eq!(
            (sent.len(), &sent[0]["id"], &sent[0]["result"]["outcome"]["outcome"]),
            (1, &rpc_id, &json!(outcome))
        );
    }
}

#[test]
fn open_questions_are_withdrawn_by_a_cancel_and_later_ones_are_not_asked() {
    let mut peer = Peer::prompted("agent");
    peer.asks(json!(7));
    peer.0.handle_order(Order::Cancel);
    peer.0.handle_order(Order::Cancel);
    let sent = peer.sent();
    assert_eq!(sent[0]["result"]["outcome"]["outcome"], "cancelled");
    assert_eq!((sent.len(), &sent[1]["method"]), (2, &json!("session/cancel")), "told once");
    peer.asks(json!(8));
    assert_eq!(peer.sent()[0]["result"]["outcome"]["outcome"], "cancelled");
    peer.says(json!({ "id": 2, "error": { "code": -32603, "message": "aborted" } }));
    assert_eq!(peer.words().last(), Some(&Said::Ended(Ended::Cancelled)));
}

#[test]
fn a_program_that_asks_without_end_is_answered_without_asking() {
    let mut peer = Peer::prompted("agent");
    for number in 0..40 {
        peer.asks(json!(number));
    }
    let asked = peer.words().iter().filter(|said| matches!(said, Said::Ask(_))).count();
    assert_eq!((asked, peer.sent().len()), (32, 8));
}

#[test]
fn usage_is_scoped_by_who_tells_it() {
    let told = |name: &str, with_tool: bool| {
        let mut peer = Peer::prompted(name);
        if with_tool {
            peer.update(json!({ "sessionUpdate": "tool_call", "toolCallId": "c" }));
        }
        peer.says(json!({ "id": 2, "result": { "stopReason": "end_turn", "usage": { "inputTokens": 1 } } }));
        usages(&peer.words()).first().map(|usage| usage.scope)
    };
    assert_eq!(told("agent", true), Some(Scope::Session));
    assert_eq!(told("@agentclientprotocol/claude-agent-acp", true), Some(Scope::Turn));
    assert_eq!(told("OpenCode", false), Some(Scope::Turn));
    assert_eq!(told("OpenCode", true), None, "a part is not the whole");
}

#[test]
fn what_is_spent_counts_whenever_it_is_told_and_for_this_session_only() {
    let mut peer = Peer::prompted("goose");
    let update = json!({ "sessionUpdate": "usage_update", "accumulatedInputTokens": 5 });
    let goose = |session: &str| json!({ "method": "_goose/unstable/session/update", "params": { "sessionId": session, "update": update } });
    peer.says(goose("other"));
    assert!(usages(&peer.words()).is_empty());
    peer.says(goose("s"));
    assert_eq!(usages(&peer.words()).len(), 1);
    peer.says(json!({ "id": 2, "result": { "stopReason": "end_turn" } }));
    peer.update(text("too late"));
    peer.update(json!({ "sessionUpdate": "usage_update", "cost": { "amount": 0.5, "currency": "USD" } }));
    let words = peer.words();
    assert_eq!(usages(&words)[0].counters.cost_usd, Some(0.5));
    assert!(!words.iter().any(|said| matches!(said, Said::Text(_))));
}

#[test]
fn closing_waits_for_the_turn_and_a_prompt_waits_for_the_session() {
    let mut peer = Peer::new(|_| {});
    peer.0.handle_order(Order::Prompt { text: "early".into() });
    peer.0.handle_order(Order::Close);
    peer.says(json!({ "id": 0, "result": { "protocolVersion": 1 } }));
    peer.says(json!({ "id": 1, "result": { "sessionId": "s" } }));
    assert_eq!(peer.sent().pop().expect("a request")["method"], "session/prompt");
    assert_eq!(peer.0.out.stop, None);
    peer.says(json!({ "id": 2, "result": { "stopReason": "max_turn_requests" } }));
    assert_eq!(peer.words().last(), Some(&Said::Ended(Ended::MaxTokens)));
    assert_eq!(peer.0.out.stop, Some(Stop::Orderly));
}

#[test]
fn noise_is_counted_and_forgiven_as_long_as_the_program_speaks_in_between() {
    let mut peer = Peer::prompted("agent");
    for number in 0..300 {
        if number % 50 == 0 {
            peer.update(text("."));
        }
        peer.0.handle_line(Line::Text("noise".into()));
    }
    assert_eq!(peer.0.out.stop, None);
    let told = peer
        .words()
        .into_iter()
        .filter_map(|said| if let Said::Noise(noise) = said { Some(noise.lines) } else { None })
        .max();
    assert_eq!(told, Some(300));
}
