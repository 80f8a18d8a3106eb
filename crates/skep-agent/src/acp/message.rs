//! JSON-RPC 2.0 messages, one a line, and how they look to those who watch.

use serde::Deserialize;
use serde_json::{Value, json};

/// Bytes of a frame that is shown. A NIP-44 payload takes 65,535 with an envelope around it.
pub const FRAME_BYTES_MAX: usize = 48 * 1024;

/// Codes of JSON-RPC and of ACP.
pub const METHOD_NOT_FOUND: i64 = -32601;
pub const INVALID_PARAMS: i64 = -32602;
pub const AUTH_REQUIRED: i64 = -32000;

/// What a program sent.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    /// Wants an answer under this id, which is given back as it came.
    Request {
        id: Value,
        method: String,
        params: Value,
    },
    Notice {
        method: String,
        params: Value,
    },
    Answer {
        id: Value,
        result: Result<Value, RpcError>,
    },
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RpcError {
    pub code: i64,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub data: Value,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    result: Option<Value>,
    #[serde(default)]
    error: Option<RpcError>,
}

/// `None`: not a JSON-RPC message. Members that nobody knows are no reason.
pub fn parse(line: &str) -> Option<Incoming> {
    let raw: Raw = serde_json::from_str(line).ok()?;
    match (raw.method, raw.id) {
        (Some(method), Some(id)) if !id.is_null() => Some(Incoming::Request { id, method, params: raw.params }),
        (Some(method), _) => Some(Incoming::Notice { method, params: raw.params }),
        (None, Some(id)) => {
            let result = match raw.error {
                Some(error) => Err(error),
                // `"result": null` is an answer too.
                None => Ok(raw.result.unwrap_or_default()),
            };
            Some(Incoming::Answer { id, result })
        }
        (None, None) => None,
    }
}

pub fn request(id: u64, method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

pub fn notice(method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "method": method, "params": params })
}

pub fn answer(id: &Value, result: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": result })
}

pub fn refusal(id: &Value, code: i64, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
}

/// The line as it is; of one too long for a watcher, what names it.
pub fn shown(line: &str) -> String {
    if line.len() <= FRAME_BYTES_MAX {
        return line.to_owned();
    }
    let named: Named = serde_json::from_str(line).unwrap_or_default();
    json!({ "id": named.id, "method": named.method, "leftOut": { "bytes": line.len() } }).to_string()
}

#[derive(Deserialize, Default)]
struct Named {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    method: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_notices_answers_and_noise_are_told_apart() {
        let is = |line: &str| match parse(line) {
            Some(Incoming::Request { .. }) => "request",
            Some(Incoming::Notice { .. }) => "notice",
            Some(Incoming::Answer { result: Ok(_), .. }) => "answer",
            Some(Incoming::Answer { result: Err(_), .. }) => "error",
            None => "noise",
        };
        assert_eq!(is(r#"{"jsonrpc":"2.0","id":"a","method":"x"}"#), "request");
        assert_eq!(is(r#"{"jsonrpc":"2.0","method":"x","params":{},"more":1}"#), "notice");
        assert_eq!(is(r#"{"jsonrpc":"2.0","id":1,"result":null}"#), "answer");
        assert_eq!(is(r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000}}"#), "error");
        for line in ["Debugger listening", "[]", "{}", "12", "null", r#"{"id":null}"#] {
            assert_eq!(is(line), "noise", "{line}");
        }
    }

    #[test]
    fn a_frame_too_long_to_show_is_named_with_its_length() {
        let long = format!(r#"{{"id":7,"method":"m","params":"{}"}}"#, "x".repeat(FRAME_BYTES_MAX));
        let shown: Value = serde_json::from_str(&shown(&long)).expect("JSON");
        assert_eq!(shown, json!({ "id": 7, "method": "m", "leftOut": { "bytes": long.len() } }));
    }
}
