//! One HTTP request to where a relay is, on a connection of its own.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::http::request::Builder;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use url::Url;

use super::{ClientError, dial};

/// The same place by HTTP.
pub(super) fn http_url(text: &str) -> Result<Url, ClientError> {
    let as_relay = match text.split_once("://") {
        Some(("http", rest)) => format!("ws://{rest}"),
        Some(("https", rest)) => format!("wss://{rest}"),
        _ => text.to_owned(),
    };
    let url = dial::parse_relay_url(&as_relay)?;
    let swapped = url.as_str().replacen("ws", "http", 1);
    Url::parse(&swapped).map_err(|_| no_form(text))
}

/// A request to a place, with its path and host.
pub(super) fn request(url: &Url) -> Builder {
    Request::builder()
        .uri(&url[url::Position::BeforePath..url::Position::AfterQuery])
        .header(header::HOST, &url[url::Position::BeforeHost..url::Position::AfterPort])
}

/// Sends it, and reads of the answer what is wanted.
pub(super) async fn exchange<T>(
    url: &Url,
    request: Builder,
    body: Bytes,
    read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let request = request.body(Full::new(body)).map_err(|_| no_form(url.as_str()))?;
    let stream = dial::transport(url).await?;
    let lost = |cause: hyper::Error| ClientError::Lost { url: url.to_string(), cause: cause.to_string() };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let exchange = async { read(sender.send_request(request).await.map_err(lost)?).await };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // The connection's end also ends the exchange, with its own error or answer.
        _ = connection => exchange.await,
    }
}

fn no_form(url: &str) -> ClientError {
    ClientError::BadUrl { url: url.to_owned(), why: "it has no HTTP form" }
}
