//! One HTTP request on one connection, plain or with TLS.
//!
//! A connection for each call: a model call takes seconds, a handshake a tenth of one, and a dropped call leaves
//! nothing behind. hyper and rustls are in the binary already; a client crate on top would bring pools, redirects and
//! proxies that nothing here needs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use url::Url;

/// From the first packet to a connection, TLS included. A model server on the other side of the world takes 1 s.
const CONNECT_MAX: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{0} is not an http or https address")]
    Url(Url),
    #[error("cannot connect to {host}: {why}")]
    Connect { host: String, why: String },
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("cannot be sent: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("the answer is longer than {0} bytes, or broke off")]
    Body(usize),
}

/// An answer whose body is still to come. Dropped, the connection is closed.
pub struct Reply {
    response: Response<Incoming>,
    _connection: Connection,
}

/// Moves bytes until it is dropped.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Reply {
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The next bytes of the body; `None` at its end. An error where it breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            match self.response.body_mut().frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(bytes) = frame?.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// The whole body, when it is no longer than this.
    pub async fn body(self, bytes_max: usize) -> Result<Bytes, HttpError> {
        let body = Limited::new(self.response.into_body(), bytes_max).collect().await;
        body.map(|body| body.to_bytes()).map_err(|_| HttpError::Body(bytes_max))
    }
}

/// A request without a body, or with one of JSON.
pub struct Call<'a> {
    pub url: &'a Url,
    pub bearer: Option<&'a str>,
    pub json: Option<String>,
}

/// Sends it and waits for the head of the answer, however long a model thinks.
pub async fn send(call: Call<'_>) -> Result<Reply, HttpError> {
    let host = call.url.host_str().ok_or_else(|| HttpError::Url(call.url.clone()))?.to_owned();
    let connect = |why: String| HttpError::Connect { host: host.clone(), why };
    let opening = tokio::time::timeout(CONNECT_MAX, open(call.url, &host)).await;
    let (mut sender, connection) = opening.map_err(|_| connect(format!("nothing within {CONNECT_MAX:?}")))??;
    let response = sender.send_request(request(&call)?).await?;
    Ok(Reply { response, _connection: connection })
}

type Opened = (http1::SendRequest<Full<Bytes>>, Connection);

async fn open(url: &Url, host: &str) -> Result<Opened, HttpError> {
    let connect = |why: std::io::Error| HttpError::Connect { host: host.to_owned(), why: why.to_string() };
    let port = url.port_or_known_default().ok_or_else(|| HttpError::Url(url.clone()))?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((bare, port)).await.map_err(connect)?;
    tcp.set_nodelay(true).map_err(connect)?;
    match url.scheme() {
        "http" => start(tcp).await,
        "https" => {
            let name = ServerName::try_from(bare.to_owned()).map_err(|_| HttpError::Url(url.clone()))?;
            start(tls().connect(name, tcp).await.map_err(connect)?).await
        }
        _ => Err(HttpError::Url(url.clone())),
    }
}

async fn start(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Opened, HttpError> {
    let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    // How it ended is told to whoever waits for the answer.
    let task = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, Connection(task)))
}

/// TLS to whomever Mozilla's roots vouch for: model servers and relays alike.
pub fn tls() -> TlsConnector {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("invariant: ring speaks the TLS versions that rustls knows")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

fn request(call: &Call<'_>) -> Result<Request<Full<Bytes>>, HttpError> {
    let authority = call.url.authority();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = &call.url[url::Position::BeforePath..url::Position::AfterQuery];
    let mut request = Request::builder()
        .method(if call.json.is_some() { "POST" } else { "GET" })
        .uri(path)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json, text/event-stream")
        .header(header::USER_AGENT, concat!("skep/", env!("CARGO_PKG_VERSION")));
    if let Some(bearer) = call.bearer {
        request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
    }
    if call.json.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    Ok(request.body(Full::from(call.json.clone().unwrap_or_default()))?)
}
