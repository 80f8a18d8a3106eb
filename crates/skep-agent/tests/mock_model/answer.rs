//! Answers in the forms of chat completions, and their bill.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use serde_json::{Value, json};

use super::{Asked, Bill, Reply, whole};

pub type Body = BoxBody<Bytes, std::io::Error>;

/// What goes out, piece by piece.
enum Piece {
    Event(String),
    Wait(Duration),
    Break,
}

pub fn chat(asked: &Asked, reply: Reply, ledger: &Arc<Mutex<Vec<Bill>>>) -> Response<Body> {
    if let Reply::Status { status, retry_after, code } = reply {
        return refusal(status, retry_after, code);
    }
    let bill = bill(asked, &reply);
    ledger.lock().expect("ledger").push(bill.clone());
    if asked.is_stream { streamed(reply, &bill, id(asked)) } else { in_one(reply, &bill) }
}

/// A call's id is its own: programs refuse one that they have seen.
fn id(asked: &Asked) -> String {
    format!("call_{}", asked.body["messages"].as_array().map_or(0, Vec::len))
}

fn bill(asked: &Asked, reply: &Reply) -> Bill {
    let words = |text: &str| text.split_whitespace().count() as u64;
    let output = match reply {
        Reply::Text(text) | Reply::Slow(text, _) | Reply::Disconnect(text) => words(text),
        Reply::Tool { arguments, .. } => arguments.to_string().len() as u64 / 4 + 1,
        Reply::Status { .. } => 0,
    };
    let input = asked.tokens();
    Bill { input, output, cached: input / 3, has_tools: !asked.tools.is_empty(), text: asked.text.clone() }
}

fn usage(bill: &Bill) -> Value {
    json!({ "prompt_tokens": bill.input, "completion_tokens": bill.output, "total_tokens": bill.input + bill.output,
        "prompt_tokens_details": { "cached_tokens": bill.cached } })
}

fn refusal(status: u16, retry_after: Option<u64>, code: &str) -> Response<Body> {
    let mut response = whole(status, &json!({ "error": { "message": "the mock refuses", "code": code } }).to_string());
    if let Some(secs) = retry_after {
        response.headers_mut().insert("retry-after", secs.into());
    }
    response
}

fn in_one(reply: Reply, bill: &Bill) -> Response<Body> {
    let (message, finish) = match reply {
        Reply::Tool { name, arguments } => {
            let function = json!({ "name": name, "arguments": arguments.to_string() });
            let calls = json!([{ "id": "call_whole", "type": "function", "function": function }]);
            (json!({ "role": "assistant", "content": null, "tool_calls": calls }), "tool_calls")
        }
        Reply::Text(text) | Reply::Slow(text, _) | Reply::Disconnect(text) => {
            (json!({ "role": "assistant", "content": text }), "stop")
        }
        Reply::Status { .. } => (Value::Null, "stop"),
    };
    let choice = json!({ "index": 0, "message": message, "finish_reason": finish });
    let body = json!({ "id": "c", "object": "chat.completion", "created": 1, "model": "mock", "choices": [choice], "usage": usage(bill) });
    whole(200, &body.to_string())
}

fn streamed(reply: Reply, bill: &Bill, id: String) -> Response<Body> {
    let mut pieces = Vec::new();
    match reply {
        Reply::Tool { name, arguments } => {
            let function = json!({ "name": name, "arguments": arguments.to_string() });
            let call = json!({ "index": 0, "id": id, "type": "function", "function": function });
            pieces.push(event(json!({ "role": "assistant", "content": null, "tool_calls": [call] }), None));
            pieces.push(event(json!({}), Some("tool_calls")));
        }
        Reply::Text(text) => words(&text, Duration::ZERO, &mut pieces),
        Reply::Slow(text, pause) => words(&text, pause, &mut pieces),
        Reply::Disconnect(text) => {
            words(&text, Duration::ZERO, &mut pieces);
            pieces.pop();
            pieces.push(Piece::Break);
        }
        Reply::Status { .. } => {}
    }
    let last = json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": [], "usage": usage(bill) });
    pieces.push(Piece::Event(format!("data: {last}\n\n")));
    pieces.push(Piece::Event("data: [DONE]\n\n".to_owned()));
    let body = BodyExt::boxed(StreamBody::new(Box::pin(stream::unfold(pieces.into_iter(), send))));
    Response::builder().header("content-type", "text/event-stream").body(body).expect("a response")
}

async fn send(
    mut pieces: std::vec::IntoIter<Piece>,
) -> Option<(Result<Frame<Bytes>, std::io::Error>, std::vec::IntoIter<Piece>)> {
    loop {
        match pieces.next()? {
            Piece::Event(text) => return Some((Ok(Frame::data(Bytes::from(text))), pieces)),
            Piece::Wait(time) => tokio::time::sleep(time).await,
            Piece::Break => return Some((Err(std::io::Error::other("the mock breaks off")), pieces)),
        }
    }
}

fn words(text: &str, pause: Duration, pieces: &mut Vec<Piece>) {
    for word in text.split_inclusive(' ') {
        pieces.push(event(json!({ "role": "assistant", "content": word }), None));
        if !pause.is_zero() {
            pieces.push(Piece::Wait(pause));
        }
    }
    pieces.push(event(json!({}), Some("stop")));
}

fn event(delta: Value, finish: Option<&str>) -> Piece {
    let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
    let chunk =
        json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": [choice] });
    Piece::Event(format!("data: {chunk}\n\n"))
}
