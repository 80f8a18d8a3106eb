//! A model server on loopback that answers from a script and keeps a ledger of what it billed.
//!
//! Speaks OpenAI's chat completions, streamed and whole, and lists its models. Used by the tests of this crate, by real
//! ACP programs in them, and by other crates: `#[path = "…/skep-agent/tests/mock_model/mod.rs"] mod mock_model;` (needs
//! hyper with `server`, http-body-util, hyper-util, tokio, serde_json, bytes, futures-util).
#![expect(dead_code, reason = "each test binary uses a part of it")]

mod answer;
mod asked;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub use asked::Asked;

/// What the model does when it is asked.
#[derive(Debug, Clone)]
pub enum Reply {
    Text(String),
    /// Text with a pause between its words.
    Slow(String, Duration),
    /// Calls a tool, by the name that the program gave it.
    Tool {
        name: String,
        arguments: serde_json::Value,
    },
    /// A refusal.
    Status {
        status: u16,
        retry_after: Option<u64>,
        code: &'static str,
    },
    /// A few words, and then the connection is closed. Billed, and never told.
    Disconnect(String),
}

/// One model call as it was billed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    pub input: u64,
    pub output: u64,
    /// A part of the input.
    pub cached: u64,
    /// Whether it offered tools: programs make side calls, for a title, which do not.
    pub has_tools: bool,
    /// The user's last words.
    pub text: String,
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

/// Runs until it is dropped.
pub struct MockModel {
    address: SocketAddr,
    ledger: Arc<Mutex<Vec<Bill>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Server {
    script: Arc<Script>,
    ledger: Arc<Mutex<Vec<Bill>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl MockModel {
    /// Answers each call by the script.
    pub async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let address = listener.local_addr().expect("an address");
        let (ledger, asked) = (Arc::default(), Arc::default());
        let server = Server { script: Arc::new(script), ledger: Arc::clone(&ledger), asked: Arc::clone(&asked) };
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, server.clone()));
            }
        });
        Self { address, ledger, asked, task }
    }

    /// Answers the calls one after the other, and then with "nothing more".
    pub async fn queue(replies: impl IntoIterator<Item = Reply>) -> Self {
        let mut replies: Vec<_> = replies.into_iter().collect();
        replies.reverse();
        let replies = Mutex::new(replies);
        let next =
            move |_: &Asked| replies.lock().expect("replies").pop().unwrap_or(Reply::Text("nothing more".into()));
        Self::start(next).await
    }

    /// Up to and with the version.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// What was billed so far.
    pub fn ledger(&self) -> Vec<Bill> {
        self.ledger.lock().expect("ledger").clone()
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("asked").clone()
    }
}

impl Drop for MockModel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, server: Server) {
    let service = service_fn(move |request| answer(request, server.clone()));
    // A client that goes away in the middle is part of the game.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, server: Server) -> Result<Response<answer::Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let reply = match (head.method.as_str(), head.uri.path()) {
        ("GET", path) if path.ends_with("/models") => {
            whole(200, r#"{"object":"list","data":[{"id":"mock","object":"model"}]}"#)
        }
        ("POST", path) if path.ends_with("/chat/completions") => {
            let key = head.headers.get("authorization").and_then(|value| value.to_str().ok());
            let asked = Asked::read(&body, key);
            server.asked.lock().expect("asked").push(asked.clone());
            let reply = (server.script)(&asked);
            answer::chat(&asked, reply, &server.ledger)
        }
        (_, path) => whole(404, &format!(r#"{{"error":{{"message":"no such path: {path}"}}}}"#)),
    };
    Ok(reply)
}

fn whole(status: u16, json: &str) -> Response<answer::Body> {
    let body = Full::new(Bytes::from(json.to_owned())).map_err(|never| match never {}).boxed();
    Response::builder().status(status).header("content-type", "application/json").body(body).expect("a response")
}
