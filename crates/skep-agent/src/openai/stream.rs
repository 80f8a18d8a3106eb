//! The answer of one model call, put together from its pieces. No I/O.

use serde_json::{Map, Value, json};

use skep_core::backend::{BackendError, Counters, Said, Scope, Usage};

use super::failure;
use crate::text::pieces;

/// Bytes of one line of a stream. A piece is a few words; a server that does not stream sends all in one.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of one whole answer, text and arguments: ten times the longest that models give.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Tools wanted in one answer.
const WANTED_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Finish {
    #[default]
    Stop,
    Length,
    Refusal,
}

/// A tool call as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    pub id: String,
    pub name: String,
    json: String,
}

impl Wanted {
    /// `None`: not a JSON object. No arguments are an empty one.
    pub fn arguments(&self) -> Option<Value> {
        if self.json.trim().is_empty() {
            return Some(Value::Object(Map::new()));
        }
        serde_json::from_str(&self.json).ok().filter(Value::is_object)
    }
}

#[derive(Debug, Default)]
pub struct Answer {
    pub finish: Finish,
    pub wanted: Vec<Wanted>,
    pub usage: Option<Usage>,
    text: String,
}

impl Answer {
    /// As it goes into the history.
    pub fn message(&self) -> Value {
        let mut message = json!({ "role": "assistant", "content": self.text });
        if !self.wanted.is_empty() {
            let calls = self.wanted.iter().map(|wanted| {
                let function = json!({ "name": wanted.name, "arguments": wanted.json });
                json!({ "id": wanted.id, "type": "function", "function": function })
            });
            message["tool_calls"] = calls.collect();
        }
        message
    }
}

/// Takes bytes of a stream of server-sent events.
#[derive(Default)]
pub struct Stream {
    line: Vec<u8>,
    answer: Answer,
    bytes: usize,
    is_finished: bool,
}

impl Stream {
    /// Words to say, in order.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Vec<Said>, BackendError> {
        let mut said = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.len() > LINE_BYTES_MAX {
                return Err(BackendError::Other("the server sent a line without end".to_owned()));
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.take_line(&line, &mut said)?;
            }
        }
        Ok(said)
    }

    /// The answer; an error when it broke off in the middle.
    pub fn end(mut self, said: &mut Vec<Said>) -> Result<Answer, BackendError> {
        let line = std::mem::take(&mut self.line);
        self.take_line(&line, said)?;
        if !self.is_finished {
            return Err(BackendError::Disconnected("it ended in the middle of an answer".to_owned()));
        }
        // Some servers give none; a tool's answer must name its call.
        for (number, wanted) in self.answer.wanted.iter_mut().enumerate().filter(|(_, wanted)| wanted.id.is_empty()) {
            wanted.id = format!("call-{number}");
        }
        Ok(self.answer)
    }

    /// A server that does not stream sends one object.
    pub fn whole(body: &[u8], said: &mut Vec<Said>) -> Result<Answer, BackendError> {
        let value = serde_json::from_slice(body)
            .map_err(|error| BackendError::Other(format!("the server's answer is not JSON: {error}")))?;
        let mut stream = Self::default();
        stream.take_event(&value, said)?;
        stream.end(said)
    }

    /// Lines that are not data (comments, event names, ids) mean nothing here.
    fn take_line(&mut self, line: &[u8], said: &mut Vec<Said>) -> Result<(), BackendError> {
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return Ok(()) };
        if data == b"[DONE]" {
            self.is_finished = true;
            return Ok(());
        }
        let event: Value = serde_json::from_slice(data)
            .map_err(|error| BackendError::Other(format!("the server's stream is not JSON: {error}")))?;
        self.take_event(&event, said)
    }

    fn take_event(&mut self, event: &Value, said: &mut Vec<Said>) -> Result<(), BackendError> {
        if !event["error"].is_null() {
            return Err(failure::in_stream(&event["error"]));
        }
        if let Some(usage) = usage(&event["usage"]) {
            self.answer.usage = Some(usage);
        }
        let choice = &event["choices"][0];
        let delta = if choice["delta"].is_object() { &choice["delta"] } else { &choice["message"] };
        self.take_delta(delta, said)?;
        match choice["finish_reason"].as_str() {
            Some("length") => self.answer.finish = Finish::Length,
            Some("content_filter") => self.answer.finish = Finish::Refusal,
            _ => {}
        }
        self.is_finished |= choice["finish_reason"].is_string();
        Ok(())
    }

    fn take_delta(&mut self, delta: &Value, said: &mut Vec<Said>) -> Result<(), BackendError> {
        // llama.cpp, vLLM and others; Ollama and OpenRouter.
        if let Some(thought) = [&delta["reasoning_content"], &delta["reasoning"]].into_iter().find_map(Value::as_str) {
            self.count(thought)?;
            said.extend(pieces(thought).map(|piece| Said::Thought(piece.to_owned())));
        }
        if let Some(text) = delta["content"].as_str() {
            self.count(text)?;
            self.answer.text.push_str(text);
            said.extend(pieces(text).map(|piece| Said::Text(piece.to_owned())));
        }
        for (position, call) in delta["tool_calls"].as_array().into_iter().flatten().enumerate() {
            self.take_call(position, call)?;
        }
        Ok(())
    }

    /// Pieces of one call share an index; servers that send calls whole may leave it out.
    fn take_call(&mut self, position: usize, call: &Value) -> Result<(), BackendError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let arguments = &call["function"]["arguments"];
        // A few servers send the object itself.
        let json = if arguments.is_object() { arguments.to_string() } else { text(arguments) };
        self.count(&json)?;
        let index = match call["index"].as_u64() {
            Some(index) => usize::try_from(index).unwrap_or(WANTED_MAX),
            None => position,
        };
        if index >= WANTED_MAX {
            return Err(BackendError::Other(format!("more than {WANTED_MAX} tool calls in one answer")));
        }
        if self.answer.wanted.len() <= index {
            self.answer.wanted.resize_with(index + 1, Wanted::default);
        }
        let wanted = &mut self.answer.wanted[index];
        if wanted.id.is_empty() {
            wanted.id = text(&call["id"]);
        }
        wanted.name.push_str(&text(&call["function"]["name"]));
        wanted.json.push_str(&json);
        Ok(())
    }

    fn count(&mut self, text: &str) -> Result<(), BackendError> {
        self.bytes += text.len();
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(BackendError::Other(format!("an answer of more than {ANSWER_BYTES_MAX} bytes")));
        }
        Ok(())
    }
}

/// OpenAI's input holds what came from a cache.
fn usage(usage: &Value) -> Option<Usage> {
    let number = |place: &str| usage.pointer(place).and_then(Value::as_u64);
    let counters = Counters {
        input: number("/prompt_tokens"),
        output: number("/completion_tokens"),
        total: number("/total_tokens"),
        cache_read: number("/prompt_tokens_details/cached_tokens"),
        cache_write: None,
        cost_usd: None,
    };
    (counters != Counters::default()).then_some(Usage { scope: Scope::Call, counters })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(said: &[Said]) -> String {
        said.iter().filter_map(|said| if let Said::Text(text) = said { Some(text.as_str()) } else { None }).collect()
    }

    #[test]
    fn an_answer_is_the_same_however_its_bytes_are_cut() {
        let stream = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"Grüß\"}}]}\n\n: comment\n\
            data:{\"choices\":[{\"delta\":{\"content\":\" Gott\"},\"finish_reason\":\"length\"}]}\r\n\r\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\"total_tokens\":11}}\n\ndata: [DONE]\n\n";
        for size in [1, 2, 7, 1000] {
            let (mut reader, mut said) = (Stream::default(), Vec::new());
            for chunk in stream.as_bytes().chunks(size) {
                said.extend(reader.take(chunk).expect("a good stream"));
            }
            let answer = reader.end(&mut said).expect("a whole answer");
            assert_eq!(texts(&said), "Grüß Gott");
            assert_eq!(answer.finish, Finish::Length);
            assert_eq!(answer.usage.expect("usage").counters.total, Some(11));
        }
    }

    #[test]
    fn tool_calls_are_put_together_from_their_pieces() {
        let mut reader = Stream::default();
        for delta in [
            r#"{"tool_calls":[{"index":0,"id":"a","function":{"name":"read","arguments":"{\"p"}}]}"#,
            r#"{"tool_calls":[{"index":1,"id":"b","function":{"name":"list"}},{"index":0,"function":{"arguments":"\":1}"}}]}"#,
        ] {
            reader.take(format!("data: {{\"choices\":[{{\"delta\":{delta}}}]}}\n").as_bytes()).expect("a good stream");
        }
        reader.take(b"data: [DONE]\n").expect("a good stream");
        let answer = reader.end(&mut Vec::new()).expect("a whole answer");
        assert_eq!(answer.wanted[0].arguments(), Some(json!({ "p": 1 })));
        assert_eq!((answer.wanted[1].name.as_str(), answer.wanted[1].arguments()), ("list", Some(json!({}))));
        assert_eq!(answer.message()["tool_calls"][0]["function"]["name"], "read");
    }

    #[test]
    fn a_stream_that_breaks_off_is_no_answer_and_an_error_in_it_is_told() {
        let mut reader = Stream::default();
        reader.take(b"data: {\"choices\":[{\"delta\":{\"content\":\"half\"}}]}\n").expect("a good start");
        assert!(matches!(reader.end(&mut Vec::new()), Err(BackendError::Disconnected(_))));
        let error = Stream::default().take(b"data: {\"error\":{\"message\":\"no\",\"code\":429}}\n");
        assert_eq!(error, Err(BackendError::Busy { retry_after_secs: None }));
    }

    #[test]
    fn a_server_that_does_not_stream_is_read_too() {
        let body = br#"{"choices":[{"message":{"content":"all"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}"#;
        let mut said = Vec::new();
        let answer = Stream::whole(body, &mut said).expect("an answer");
        assert_eq!((texts(&said).as_str(), answer.usage.expect("usage").counters.output), ("all", None));
    }
}
