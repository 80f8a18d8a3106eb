//! The conversation that a model is sent: bounded, whole turns only.

use std::collections::VecDeque;

use serde_json::{Value, json};

/// Messages of one turn, a user's first. Dropped as a whole: a tool's answer without its question is refused by
/// every server.
type Turn = Vec<Value>;

pub struct History {
    system: Option<Value>,
    turns: VecDeque<Turn>,
    current: Turn,
    bytes_max: usize,
}

impl History {
    pub fn new(system: Option<&str>, bytes_max: usize) -> Self {
        let system = system.map(|text| json!({ "role": "system", "content": text }));
        Self { system, turns: VecDeque::new(), current: Vec::new(), bytes_max }
    }

    pub fn begin(&mut self, message: Value) {
        self.current = vec![message];
        self.shorten();
    }

    /// A message of the turn that runs. The oldest turns make room for it; the running one is never cut.
    pub fn add(&mut self, message: Value) {
        self.current.push(message);
        self.shorten();
    }

    pub fn keep(&mut self) {
        let turn = std::mem::take(&mut self.current);
        self.turns.push_back(turn);
    }

    pub fn undo(&mut self) {
        self.current.clear();
    }

    pub fn messages(&self) -> Vec<&Value> {
        self.system.iter().chain(self.turns.iter().flatten()).chain(&self.current).collect()
    }

    fn shorten(&mut self) {
        while self.bytes() > self.bytes_max && self.turns.pop_front().is_some() {}
    }

    fn bytes(&self) -> usize {
        self.messages().iter().map(|message| length(message)).sum()
    }
}

/// Text and tool arguments; the envelope around them is small change.
fn length(message: &Value) -> usize {
    let text = message["content"].as_str().map_or(0, str::len);
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    text + calls.filter_map(|call| call["function"]["arguments"].as_str()).map(str::len).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> Value {
        json!({ "role": "user", "content": text })
    }

    #[test]
    fn the_oldest_turns_are_forgotten_first_and_the_running_one_never() {
        let mut history = History::new(Some("sys"), 20);
        for text in ["first....", "second..."] {
            history.begin(user(text));
            history.add(json!({ "role": "assistant", "content": "ok" }));
            history.keep();
        }
        history.begin(user("a question that is longer than all"));
        let texts: Vec<_> = history.messages().iter().filter_map(|message| message["content"].as_str()).collect();
        assert_eq!(texts, ["sys", "a question that is longer than all"]);
    }

    #[test]
    fn a_turn_that_failed_leaves_no_trace() {
        let mut history = History::new(None, 1000);
        history.begin(user("a"));
        history.undo();
        history.begin(user("b"));
        assert_eq!(history.messages(), [&user("b")]);
    }
}
