//! One turn: what the program tells while it works, and how it ends.

use serde_json::Value;

use skep_core::backend::{Ask, AskId, Ended, Said, Scope};

use super::message::RpcError;
use super::out::Out;
use super::questions::Questions;
use super::tool::Calls;
use super::usage::Reports;
use super::{tool, usage};

#[derive(Default)]
pub struct Turn {
    pub questions: Questions,
    calls: Calls,
    is_cancelled: bool,
}

impl Turn {
    /// Whether this was the first cancel.
    pub fn cancel(&mut self) -> bool {
        !std::mem::replace(&mut self.is_cancelled, true)
    }

    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled
    }

    /// A `session/update`. Kinds that nobody here knows are shown as frames and mean nothing.
    pub fn update(&mut self, update: &Value, out: &mut Out) {
        match update["sessionUpdate"].as_str() {
            Some("agent_message_chunk") => say_text(update, Said::Text, out),
            Some("agent_thought_chunk") => say_text(update, Said::Thought, out),
            Some("tool_call" | "tool_call_update") => {
                if let Some(call) = self.calls.merge(update) {
                    out.say(Said::Tool(call));
                }
            }
            _ => {}
        }
        spent(update, out);
    }

    /// `frame`: the request as it is shown.
    pub fn ask(&mut self, rpc_id: &Value, params: &Value, frame: String, out: &mut Out) {
        let call = &params["toolCall"];
        let tool = self.calls.of_question(call);
        let (detail, options) = (tool::detail(call), tool::options(params));
        self.questions.ask(rpc_id, Ask { id: AskId(String::new()), tool, detail, options, frame: Some(frame) }, out);
        if self.is_cancelled {
            self.questions.cancel_all(out);
        }
    }

    /// The answer to the prompt.
    pub fn end(&self, value: &Value, reports: Reports, out: &mut Out) -> Ended {
        self.say_usage(value, reports, out);
        match value["stopReason"].as_str() {
            Some("cancelled") => Ended::Cancelled,
            Some("max_tokens" | "max_turn_requests") => Ended::MaxTokens,
            Some("refusal") => Ended::Refusal,
            // A reason of a later version: the program ended its turn all the same.
            _ => Ended::EndTurn,
        }
    }

    /// What was spent before it failed was spent.
    pub fn failed(&self, error: &RpcError, reports: Reports, out: &mut Out) {
        self.say_usage(&error.data, reports, out);
    }

    /// A program that tells of its last model call only, has told of all when there was one. It had more when it used
    /// a tool: then the tokens of the turn are unknown.
    fn say_usage(&self, value: &Value, reports: Reports, out: &mut Out) {
        let scope = match reports {
            Reports::Session => Scope::Session,
            Reports::Turn => Scope::Turn,
            Reports::LastCall if self.calls.is_empty() => Scope::Turn,
            Reports::LastCall => return,
        };
        out.said.extend(usage::tokens(&value["usage"], scope).map(Said::Usage));
    }
}

fn say_text(update: &Value, word: fn(String) -> Said, out: &mut Out) {
    let content = &update["content"];
    let text = content["text"].as_str().or_else(|| content["resource"]["text"].as_str());
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        out.say(word(text.to_owned()));
    }
}

/// What an update tells about spending, whatever else it tells.
pub fn spent(update: &Value, out: &mut Out) {
    let told = [usage::goose(update), usage::cost(update), usage::tokens(&update["_meta"]["usage"], Scope::Call)];
    out.said.extend(told.into_iter().flatten().map(Said::Usage));
}
