//! Tool calls and questions about them, read from what programs send.

use std::collections::VecDeque;

use serde::Deserialize;
use serde_json::{Map, Value};

use skep_core::backend::{AskOption, ToolCall, ToolKind, ToolStatus};

use crate::text::cut;

/// Tool calls of one turn that are remembered, so that an update can be told whole. The oldest is forgotten first.
const CALLS_MAX: usize = 256;

/// Bytes of what is shown of a call: a screen full.
const DETAIL_BYTES_MAX: usize = 4 * 1024;
const TITLE_BYTES_MAX: usize = 512;
const PATHS_MAX: usize = 64;

/// The calls of a turn, each as it is known so far.
#[derive(Default)]
pub struct Calls(VecDeque<ToolCall>);

impl Calls {
    /// Takes up a `tool_call` or a `tool_call_update`, which tells only what changed. `None`: it names no call, or
    /// says nothing new.
    pub fn merge(&mut self, update: &Value) -> Option<ToolCall> {
        let id = update["toolCallId"].as_str()?;
        let known = self.0.iter().position(|call| call.id == id);
        let mut call = match known {
            Some(at) => self.0[at].clone(),
            None => blank(id),
        };
        apply(&mut call, update);
        match known {
            Some(at) if self.0[at] == call => return None,
            Some(at) => self.0[at] = call.clone(),
            None => {
                if self.0.len() == CALLS_MAX {
                    self.0.pop_front();
                }
                self.0.push_back(call.clone());
            }
        }
        Some(call)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The call of a question, which may tell nothing but its id.
    pub fn of_question(&mut self, tool: &Value) -> ToolCall {
        self.merge(tool).unwrap_or_else(|| {
            let id = tool["toolCallId"].as_str().unwrap_or_default();
            self.0.iter().find(|call| call.id == id).cloned().unwrap_or_else(|| blank(id))
        })
    }
}

fn blank(id: &str) -> ToolCall {
    ToolCall {
        id: id.to_owned(),
        title: String::new(),
        kind: ToolKind::Other,
        status: ToolStatus::Pending,
        paths: Vec::new(),
    }
}

fn apply(call: &mut ToolCall, update: &Value) {
    if let Some(title) = update["title"].as_str() {
        call.title = cut(title, TITLE_BYTES_MAX);
    }
    if let Ok(kind) = ToolKind::deserialize(&update["kind"]) {
        call.kind = kind;
    }
    call.status = match update["status"].as_str() {
        Some("pending") => ToolStatus::Pending,
        Some("in_progress") => ToolStatus::Running,
        Some("completed") => ToolStatus::Done,
        Some("failed") => ToolStatus::Failed,
        _ => call.status,
    };
    let located = update["locations"].as_array().into_iter().flatten();
    let changed = update["content"].as_array().into_iter().flatten().filter(|part| part["type"] == "diff");
    for path in located.chain(changed).filter_map(|each| each["path"].as_str()) {
        if call.paths.len() < PATHS_MAX && !call.paths.iter().any(|known| known == path) {
            call.paths.push(path.to_owned());
        }
    }
}

/// What it wants to do, for a person: a command line, or a file and its new text, or the bare input.
pub fn detail(tool: &Value) -> String {
    let input = &tool["rawInput"];
    let of_command = command_line(&input["command"]);
    let of_diff = || tool["content"].as_array()?.iter().find(|part| part["type"] == "diff").map(diff);
    let of_input = || input.as_object().filter(|input| !input.is_empty()).map(plain);
    let of_title = || tool["title"].as_str().map(str::to_owned);
    let text = of_command.or_else(of_diff).or_else(of_input).or_else(of_title).unwrap_or_default();
    cut(&text, DETAIL_BYTES_MAX)
}

fn command_line(command: &Value) -> Option<String> {
    match command {
        Value::String(line) => Some(line.clone()),
        Value::Array(words) => Some(words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")),
        _ => None,
    }
}

fn diff(part: &Value) -> String {
    let text = |member: &str| part[member].as_str().unwrap_or_default().to_owned();
    format!("{}\n{}", text("path"), text("newText"))
}

fn plain(input: &Map<String, Value>) -> String {
    input.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join("\n")
}

/// The answers that a question offers. One of an unknown kind is left out: nobody could tell what it does.
pub fn options(params: &Value) -> Vec<AskOption> {
    let read = |option: &Value| {
        let kind = Deserialize::deserialize(&option["kind"]).ok()?;
        let id = option["optionId"].as_str()?.to_owned();
        Some(AskOption {
            name: option["name"].as_str().map_or_else(|| id.clone(), |name| cut(name, TITLE_BYTES_MAX)),
            id,
            kind,
        })
    };
    params["options"].as_array().into_iter().flatten().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_update_tells_what_changed_and_the_rest_is_remembered() {
        let mut calls = Calls::default();
        let began = calls.merge(&json!({ "toolCallId": "1", "title": "Write a", "kind": "edit", "status": "pending",
            "locations": [{ "path": "/a" }] }));
        assert_eq!(began.expect("a call").paths, ["/a"]);
        let done = calls.merge(&json!({ "toolCallId": "1", "status": "completed",
            "content": [{ "type": "diff", "path": "/b", "newText": "x" }] }));
        let done = done.expect("a call");
        assert_eq!((done.title.as_str(), done.kind, done.status), ("Write a", ToolKind::Edit, ToolStatus::Done));
        assert_eq!(done.paths, ["/a", "/b"]);
        assert_eq!(calls.merge(&json!({ "toolCallId": "1", "status": "completed" })), None, "nothing new");
        assert_eq!(calls.merge(&json!({ "status": "completed" })), None, "names no call");
        assert_eq!(
            calls.merge(&json!({ "toolCallId": "2", "kind": "switch_mode" })).map(|call| call.kind),
            Some(ToolKind::Other)
        );
    }

    #[test]
    fn a_person_sees_the_command_or_the_change() {
        assert_eq!(detail(&json!({ "title": "t", "rawInput": { "command": "rm -rf x", "timeout": 3 } })), "rm -rf x");
        assert_eq!(detail(&json!({ "rawInput": { "command": ["ls", "-l"] } })), "ls -l");
        assert_eq!(detail(&json!({ "content": [{ "type": "diff", "path": "/a", "newText": "hi" }] })), "/a\nhi");
        assert_eq!(detail(&json!({ "rawInput": { "url": "x" } })), "url: \"x\"");
        assert_eq!(detail(&json!({ "title": "t", "rawInput": {} })), "t");
    }

    #[test]
    fn calls_are_bounded() {
        let mut calls = Calls::default();
        for number in 0..CALLS_MAX * 2 {
            calls.merge(&json!({ "toolCallId": number.to_string() }));
        }
        assert_eq!(calls.0.len(), CALLS_MAX);
    }
}
