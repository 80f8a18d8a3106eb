//! The relay's HTTP face: everything on its port that is not a WebSocket.
//!
//! Job: the information document, management, queries and publishing over HTTP, blobs, names, health and metrics.
//! Neighbours: it is given a [`Backend`], which the relay implements; it decides nothing that `skep-core` decides.
//! Lifetime: stateless; one router serves every connection.
//! Must not: read a clock or a store but through the backend; show internal detail in an answer; read a body
//! without a bound in bytes and in time.

mod auth;
mod blossom;
mod management;
mod nip11;
mod pages;
mod query;
mod rate;

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use skep_core::door::Accepted;
use skep_core::management::Change;
use skep_core::{Readers, World};
use skep_proto::{EventId, Filter, Prefix, PubKey, RawEvent, Refusal, Timestamp};
use skep_store::blob::BlobStore;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use auth::Asked;
#[cfg(test)]
use management::fake;

/// For a whole JSON body to arrive: 512 KiB at 20 KiB/s is 26 s.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);

/// Who this relay says it is. What an administrator changed at run time is in the policy, and wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub description: String,
    /// URL of an image.
    pub icon: Option<String>,
    /// A URI (mailto:, https:, nostr:).
    pub contact: Option<String>,
    /// URL of the program's home.
    pub software: String,
    pub version: String,
    /// The relay's own key (`self` in NIP-11).
    pub key: PubKey,
    /// [`Self::key`] as people pass it on (NIP-19).
    pub npub: String,
    /// Whom to write to (`pubkey` in NIP-11).
    pub admin: Option<PubKey>,
    /// How clients reach it: `ws://` or `wss://`, without a path.
    pub public_url: String,
}

/// What the HTTP face needs of the relay.
pub trait Backend: Send + Sync + 'static {
    fn with_world<R>(&self, f: impl FnOnce(&World) -> R) -> R;
    /// Unix seconds.
    fn now(&self) -> Timestamp;
    fn identity(&self) -> &Identity;
    /// 128 bits of randomness as hex, for claims.
    fn fresh(&self) -> String;
    /// Marks a NIP-98 token as used; false when it was seen before.
    fn use_token(&self, id: EventId, now: Timestamp) -> bool;
    /// Whoever reads the policy to change it holds this until the change is applied.
    fn policy_turn(&self) -> &tokio::sync::Mutex<()>;
    /// Persists a change; when it returns, the change bites.
    fn apply(&self, change: Change) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Starts a query; its answer comes in pieces, as fast as they are taken and no faster.
    fn query(self: Arc<Self>, readers: Readers, filters: Vec<Filter>, caller: Option<Caller>) -> Pieces;
    fn count(&self, readers: Readers, filters: Vec<Filter>) -> impl Future<Output = Result<u64, Refusal>> + Send;
    fn submit(&self, readers: Readers, event: RawEvent) -> impl Future<Output = Result<Accepted, Refusal>> + Send;
    /// Takes one of the requests that an address may make; `false` when there is none left.
    fn take_request(&self, ip: IpAddr) -> bool;
    /// Prometheus text.
    fn metrics(&self) -> String;
    /// Whether events can be taken and served now; if not, why not.
    fn ready(&self) -> Result<(), String>;
    fn blobs(&self) -> Option<&BlobStore>;
}

/// The connection that a request came by. The listener adds it to a request's extensions.
#[derive(Debug, Clone)]
pub struct Caller {
    pub ip: IpAddr,
    /// Ends the connection: for a client that does not read its answer.
    pub hang_up: CancellationToken,
}

/// A part of a query's answer. A channel that ends without [`Piece::End`] is an answer that broke off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Events as lines of JSON.
    Lines(Bytes),
    /// The scan failed.
    Failed(Refusal),
    /// That was all.
    End,
}

/// The pieces of one answer, [`skep_proto::limits::HTTP_PIECES_MAX`] of them in between.
pub type Pieces = mpsc::Receiver<Piece>;

/// Every route of the relay's port. WebSocket upgrades of `/` are taken before it.
pub fn router<B: Backend>(backend: Arc<B>) -> Router {
    Router::new()
        .route("/", get(nip11::root::<B>).post(management::call::<B>))
        .route("/health", get(pages::health))
        .route("/ready", get(pages::ready::<B>))
        .route("/metrics", get(pages::metrics::<B>))
        .route("/.well-known/nostr.json", get(pages::names::<B>))
        .route("/query", post(query::query::<B>))
        .route("/count", post(query::count::<B>))
        .route("/event", post(event::<B>))
        .route("/upload", put(blossom::upload::<B>).head(blossom::may_upload::<B>))
        .route("/list/{key}", get(blossom::list::<B>))
        .route("/{blob}", get(blossom::fetch::<B>).delete(blossom::delete::<B>))
        .fallback(async || error(StatusCode::NOT_FOUND, "invalid: there is nothing here"))
        .layer(middleware::from_fn_with_state(Arc::clone(&backend), rate::limit::<B>))
        .with_state(backend)
        .layer(middleware::from_fn(for_browsers))
}

/// Lets any page of the web call this relay (NIP-11, BUD-01), and no browser guess a content type.
/// There are no cookies here: what a caller may do depends on what it signs, so an origin grants nothing.
async fn for_browsers(request: Request, next: Next) -> Response {
    let is_preflight = request.method() == Method::OPTIONS;
    let mut answer = if is_preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers: [(HeaderName, &'static str); 6] = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Authorization, Accept, Content-Type, Range, If-None-Match, X-SHA-256, X-Content-Length, X-Content-Type, *",
        ),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, PUT, DELETE, OPTIONS"),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "X-Reason, ETag, Content-Range, Content-Length, Retry-After"),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body.into()).into_response()
}

fn json_answer(status: StatusCode, value: &Value) -> Response {
    answer(status, "application/json", value.to_string())
}

fn error(status: StatusCode, text: &str) -> Response {
    let mut answer = json_answer(status, &json!({ "error": text }));
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Nostr"));
    }
    answer
}

fn refused(refusal: &Refusal) -> Response {
    error(status_of(refusal.prefix), &refusal.to_string())
}

fn status_of(prefix: Prefix) -> StatusCode {
    match prefix {
        Prefix::AuthRequired => StatusCode::UNAUTHORIZED,
        Prefix::Restricted | Prefix::Blocked => StatusCode::FORBIDDEN,
        Prefix::Invalid | Prefix::Pow | Prefix::Unsupported => StatusCode::BAD_REQUEST,
        Prefix::Conflict | Prefix::Duplicate => StatusCode::CONFLICT,
        Prefix::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Prefix::Error => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The head of a request and its whole body: at most one frame, as on a WebSocket.
async fn read_body<B: Backend>(backend: &B, request: Request) -> Result<(request::Parts, Bytes), Response> {
    let max = backend.with_world(|world| world.limits.frame_bytes);
    let (head, body) = request.into_parts();
    match tokio::time::timeout(BODY_TIME_MAX, Limited::new(body, max).collect()).await {
        Ok(Ok(body)) => Ok((head, body.to_bytes())),
        Ok(Err(failed)) if failed.is::<LengthLimitError>() => {
            Err(error(StatusCode::PAYLOAD_TOO_LARGE, &format!("invalid: the body is larger than {max} bytes")))
        }
        Ok(Err(_)) => Err(error(StatusCode::BAD_REQUEST, "invalid: the body could not be read")),
        Err(_) => Err(error(StatusCode::REQUEST_TIMEOUT, "invalid: the body took too long")),
    }
}

async fn event<B: Backend>(State(backend): State<Arc<B>>, request: Request) -> Response {
    let (head, body) = match read_body(&*backend, request).await {
        Ok(parts) => parts,
        Err(answer) => return answer,
    };
    let asked = Asked { method: &head.method, uri: &head.uri, body: &body };
    let readers = match auth::reader(&*backend, &head.headers, asked) {
        Ok(readers) => readers,
        Err(refusal) => return refused(&refusal),
    };
    let event: RawEvent = match serde_json::from_slice(&body) {
        Ok(event) => event,
        Err(failed) => return refused(&Prefix::Invalid.because(format!("the body is not an event: {failed}"))),
    };
    let id = event.id;
    let (status, is_accepted, message) = match backend.submit(readers, event).await {
        Ok(Accepted::Stored(_) | Accepted::Dropped) => (StatusCode::OK, true, String::new()),
        Ok(Accepted::Duplicate) => (StatusCode::OK, true, "duplicate: the event is here already".to_owned()),
        Ok(Accepted::Answered(text)) => (StatusCode::OK, true, text),
        Err(refusal) => (status_of(refusal.prefix), false, refusal.to_string()),
    };
    json_answer(status, &json!({ "id": id, "accepted": is_accepted, "message": message }))
}

/// A header's value, when it has one in ASCII.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Sets a header; leaves out what cannot be one.
fn set(answer: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

/// The first value of a name in the query. Not percent-decoded: no value that we know has a need of it.
fn query_value<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find_map(|(key, value)| (key == name).then_some(value))
}

/// Which bytes are asked for (RFC 9110). What we do not understand, several ranges too, is the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    Whole,
    Part { first: u64, last: u64 },
    Nowhere,
}

impl Span {
    fn of(range: Option<&str>, size: u64) -> Self {
        let ends = range.and_then(|range| range.trim().strip_prefix("bytes=")?.split_once('-'));
        let Some((first, last)) = ends else { return Self::Whole };
        let end = size.saturating_sub(1);
        match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) if last < first => Self::Whole,
            (Ok(first), _) if first >= size && (last.is_empty() || last.parse::<u64>().is_ok()) => Self::Nowhere,
            (Ok(first), Ok(last)) => Self::Part { first, last: last.min(end) },
            (Ok(first), Err(_)) if last.is_empty() => Self::Part { first, last: end },
            (Err(_), Ok(suffix)) if first.is_empty() && (suffix == 0 || size == 0) => Self::Nowhere,
            (Err(_), Ok(suffix)) if first.is_empty() => Self::Part { first: size.saturating_sub(suffix), last: end },
            _ => Self::Whole,
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::fake::{self, Fake, request, signed};
    use super::*;
    use skep_proto::{Draft, Kind};

    fn ask(path: &str, body: &str) -> Request {
        request("POST", path, &[], body.to_owned())
    }

    fn ask_as(n: u8, path: &str, body: &str) -> Request {
        signed(ask(path, body), fake::nip98(&format!("https://relay.example{path}"), "POST", body.as_bytes()), n)
    }

    fn note(backend: &Fake, draft: Draft) -> String {
        let event = fake::sign(draft, 3).verify().unwrap();
        backend.stored.lock().unwrap().push(event.record().clone());
        event.raw().to_json()
    }

    #[tokio::test]
    async fn a_query_answers_one_event_a_line_and_a_count_how_many() {
        let backend = Fake::open();
        let lines = ["one", "two\nlines"].map(|text| note(&backend, Draft::new(Kind(1), 5, text)) + "\n").concat();
        note(&backend, Draft::new(Kind(7), 5, "+"));
        let answer = backend.call(ask("/query", r#"{"kinds":[1]}"#)).await;
        assert_eq!((answer.status, answer.text()), (200, &*lines));
        assert_eq!(answer.header("content-type"), "application/x-ndjson");
        let answer = backend.call(ask("/count", r#" [{"kinds":[1]},{"kinds":[7]}]"#)).await;
        assert_eq!(answer.json(), json!({ "count": 3 }));
    }

    #[tokio::test]
    async fn a_gated_event_is_seen_by_its_recipient_only() {
        let backend = Fake::open();
        note(&backend, Draft::new(Kind::GIFT_WRAP, 5, "").tag(["p", &fake::key(1).to_hex()]));
        let wraps = r#"{"kinds":[1059]}"#;
        let answer = backend.call(ask("/count", wraps)).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Nostr"));
        assert_eq!(backend.call(ask("/count", "{}")).await.json(), json!({ "count": 0 }));
        assert_eq!(backend.call(ask_as(2, "/count", wraps)).await.json(), json!({ "count": 0 }));
        assert_eq!(backend.call(ask_as(1, "/count", wraps)).await.json(), json!({ "count": 1 }));
    }

    #[tokio::test]
    async fn a_closed_relay_answers_members_only() {
        let backend = Fake::closed();
        for path in ["/query", "/count"] {
            assert_eq!(backend.call(ask(path, "{}")).await.status, 401);
            assert_eq!(backend.call(ask_as(2, path, "{}")).await.status, 403);
            assert_eq!(backend.call(ask_as(1, path, "{}")).await.status, 200);
        }
    }

    #[tokio::test]
    async fn a_malformed_or_too_large_body_is_refused() {
        let backend = Fake::open();
        for bad in ["", "[]", "7", "{\"kinds\":1}", "[{},7]", r#"{"nope":1}"#, "\u{0}"] {
            let answer = backend.call(ask("/query", bad)).await;
            assert_eq!(answer.status, 400, "{bad}");
            assert!(answer.json()["error"].is_string(), "{bad}");
        }
        backend.change(|world| world.limits.frame_bytes = 10);
        assert_eq!(backend.call(ask("/query", r#"{"kinds":[1,2]}"#)).await.status, 413);
    }

    #[tokio::test]
    async fn a_published_event_is_answered_like_an_ok() {
        let backend = Fake::open();
        let mut event = fake::sign(Draft::new(Kind(1), 5, "x"), 1);
        let id = event.id;
        let answer = backend.call(ask("/event", &event.to_json())).await;
        assert_eq!((answer.status, answer.json()), (200, json!({ "id": id, "accepted": true, "message": "" })));
        let again = backend.call(ask("/event", &event.to_json())).await.json();
        assert!(again["message"].as_str().unwrap().starts_with("duplicate: "));
        event.content.push('y');
        let answer = backend.call(ask("/event", &event.to_json())).await;
        assert_eq!((answer.status, &answer.json()["accepted"]), (400, &json!(false)));
    }

    #[tokio::test]
    async fn every_answer_may_be_read_by_any_web_page() {
        let backend = Fake::open();
        for (method, path, status) in [("OPTIONS", "/upload", 204), ("GET", "/nothing/here", 404), ("GET", "/", 200)] {
            let answer = backend.call(request(method, path, &[], "")).await;
            assert_eq!((answer.status, answer.header("access-control-allow-origin")), (status, "*"), "{path}");
            assert!(answer.header("access-control-allow-headers").contains("Authorization"));
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
        }
    }
}
