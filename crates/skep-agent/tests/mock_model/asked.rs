//! What a program asked of the model.

use serde_json::Value;

#[derive(Debug, Clone)]
pub struct Asked {
    pub body: Value,
    pub key: Option<String>,
    pub is_stream: bool,
    /// Names of the tools that it offers.
    pub tools: Vec<String>,
    /// The last message is a tool's answer.
    pub is_tool_answer: bool,
    /// The last message, whoever's it is.
    pub last: String,
    /// The user's last words.
    pub text: String,
}

impl Asked {
    pub fn read(body: &[u8], key: Option<&str>) -> Self {
        let body: Value = serde_json::from_slice(body).expect("a JSON request");
        let messages = body["messages"].as_array().cloned().unwrap_or_default();
        let tools = body["tools"].as_array().into_iter().flatten();
        let names = tools.filter_map(|tool| tool["function"]["name"].as_str()).map(str::to_owned).collect();
        let last = messages.last();
        let of_user = messages.iter().rev().find(|message| message["role"] == "user");
        Self {
            is_stream: body["stream"] == true,
            tools: names,
            is_tool_answer: last.is_some_and(|message| message["role"] == "tool"),
            last: last.map(content).unwrap_or_default(),
            text: of_user.map(content).unwrap_or_default(),
            key: key.map(str::to_owned),
            body,
        }
    }

    pub fn has_tool(&self, name: &str) -> bool {
        self.tools.iter().any(|tool| tool == name)
    }

    /// A token is eight bytes of what was said, and one more.
    pub fn tokens(&self) -> u64 {
        let messages = self.body["messages"].as_array().into_iter().flatten();
        messages.map(|message| content(message).len() as u64 / 8 + 1).sum()
    }
}

/// Text, or the texts of parts.
fn content(message: &Value) -> String {
    let parts = message["content"].as_array().into_iter().flatten();
    let parts = parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n");
    message["content"].as_str().map_or(parts, str::to_owned)
}
