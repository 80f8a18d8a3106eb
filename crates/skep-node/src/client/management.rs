//! What a relay says about itself (NIP-11), and its management: JSON-RPC over HTTP POST on the relay's own URL (NIP-86), signed by NIP-98.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use hyper::http::request::Builder;
use hyper::{Method, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use skep_proto::{Draft, Kind};
use tokio::time::timeout;
use url::Url;

use super::http::{self, http_url};
use super::{ClientError, TIMEOUT_DEFAULT};
use crate::clock::unix_now;
use crate::keys::{Keys, fresh_aux};

/// The content type of NIP-86, request and response.
const CONTENT_TYPE: &str = "application/nostr+json+rpc";

/// Bytes of an answer: a list of 10,000 public keys with reasons fits.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Calls one method. `url` is the relay's, `ws` or `http` (`wss` or `https`); `keys` are an admin's or, where the
/// method allows it, an owner's. The result is as the relay wrote it.
pub async fn management(url: &str, method: &str, params: &Value, keys: &Keys) -> Result<Value, ClientError> {
    let url = http_url(url)?;
    let calling = call(&url, method, params, keys);
    match timeout(TIMEOUT_DEFAULT, calling).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Timeout {
            url: url.to_string(),
            waited: TIMEOUT_DEFAULT,
            doing: "waiting for the answer",
            notice: None,
        }),
    }
}

async fn call(url: &Url, method: &str, params: &Value, keys: &Keys) -> Result<Value, ClientError> {
    let body = serde_json::json!({ "method": method, "params": params }).to_string();
    let request = http::request(url)
        .method(Method::POST)
        .header(header::CONTENT_TYPE, CONTENT_TYPE)
        .header(header::ACCEPT, CONTENT_TYPE)
        .header(header::AUTHORIZATION, authorization(url, &body, keys));
    let (status, body) = exchange(url, request, Bytes::from(body)).await?;
    answer(url, status, &body)
}

/// What a relay says about itself (NIP-11).
pub async fn information(url: &str) -> Result<Value, ClientError> {
    let url = http_url(url)?;
    let request = http::request(&url).header(header::ACCEPT, "application/nostr+json");
    let (status, body) = exchange(&url, request, Bytes::new()).await?;
    let document = serde_json::from_slice(&body).ok().filter(|_| status.is_success());
    document.ok_or_else(|| ClientError::NotARelay { url: url.to_string(), cause: "it tells nothing of itself".into() })
}

async fn exchange(url: &Url, request: Builder, body: Bytes) -> Result<(StatusCode, Bytes), ClientError> {
    http::exchange(url, request, body, async |response| {
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|cause| ClientError::Lost { url: url.to_string(), cause: cause.to_string() })?;
        Ok((status, body.to_bytes()))
    })
    .await
}

/// The header value of NIP-98: one signed event, good for this url, method and body.
fn authorization(url: &Url, body: &str, keys: &Keys) -> String {
    let payload = faster_hex::hex_string(&Sha256::digest(body.as_bytes()));
    // Two equal calls in one second would be one event otherwise, and a token works once.
    let nonce = faster_hex::hex_string(&fresh_aux()[..16]);
    let event = keys.sign(
        Draft::new(Kind::HTTP_AUTH, unix_now(), "")
            .tag(["u", url.as_str()])
            .tag(["method", "POST"])
            .tag(["payload", &payload])
            .tag(["nonce", &nonce]),
    );
    format!("Nostr {}", STANDARD.encode(event.to_json()))
}

fn answer(url: &Url, status: StatusCode, body: &[u8]) -> Result<Value, ClientError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        result: Value,
        #[serde(default)]
        error: Option<String>,
    }
    match serde_json::from_slice::<Answer>(body) {
        Ok(Answer { error: Some(message), .. }) if !message.is_empty() => {
            Err(ClientError::Refused { url: url.to_string(), message })
        }
        Ok(Answer { result, .. }) if status.is_success() => Ok(result),
        _ if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            Err(ClientError::Refused { url: url.to_string(), message: format!("HTTP status {}", status.as_u16()) })
        }
        _ => {
            let cause = format!("no management API (HTTP status {})", status.as_u16());
            Err(ClientError::Protocol { url: url.to_string(), cause })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::RawEvent;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn call_a_server_that_says(response: &'static str) -> (Result<Value, ClientError>, String, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("ws://{}", listener.local_addr().expect("bound"));
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut seen = Vec::new();
            while !seen.ends_with(b"}") {
                stream.read_buf(&mut seen).await.expect("a request");
            }
            stream.write_all(response.as_bytes()).await.expect("sent");
            String::from_utf8(seen).expect("text")
        });
        let keys = Keys::generate().expect("randomness");
        let result = management(&url, "banpubkey", &serde_json::json!(["ab"]), &keys).await;
        (result, server.await.expect("served"), url.replacen("ws", "http", 1))
    }

    #[tokio::test]
    async fn a_call_is_signed_for_its_url_method_and_body() {
        let json = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"result\":true}";
        let (result, request, url) = call_a_server_that_says(json).await;
        assert_eq!(result.expect("an answer"), Value::Bool(true));
        let (head, body) = request.split_once("\r\n\r\n").expect("head and body");
        assert_eq!(body, r#"{"method":"banpubkey","params":["ab"]}"#);
        assert!(head.starts_with("POST / HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("host: {}", url.trim_start_matches("http://"))), "{head}");
        let token = head.lines().find_map(|line| line.strip_prefix("authorization: Nostr ")).expect("a token");
        let event: RawEvent = serde_json::from_slice(&STANDARD.decode(token).expect("base64")).expect("an event");
        let event = event.verify().expect("signed");
        assert_eq!((event.kind, event.tags.single("method")), (Kind::HTTP_AUTH, Some("POST")));
        assert_eq!(event.tags.single("u"), Some(format!("{url}/").as_str()));
        let payload = faster_hex::hex_string(&Sha256::digest(body.as_bytes()));
        assert_eq!(event.tags.single("payload"), Some(payload.as_str()));
    }

    #[tokio::test]
    async fn a_refusal_and_a_stranger_are_told_apart() {
        let refusal = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 15\r\n\r\n{\"error\":\"no!\"}";
        let (result, ..) = call_a_server_that_says(refusal).await;
        assert!(matches!(result, Err(ClientError::Refused { message, .. }) if message == "no!"));
        let website = "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello";
        let (result, ..) = call_a_server_that_says(website).await;
        assert!(matches!(result, Err(ClientError::Protocol { .. })));
    }

    #[test]
    fn the_relay_url_names_the_http_place() {
        let all = [("ws://a:1", "http://a:1/"), ("wss://a/ws", "https://a/ws"), ("https://a", "https://a/")];
        for (relay, http) in all {
            assert_eq!(http_url(relay).expect("a url").as_str(), http);
        }
    }
}
