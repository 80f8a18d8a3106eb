//! What time a relay has, by the `Date` header of its answer over HTTP (RFC 9110, 6.6.1).

use std::time::{Duration, UNIX_EPOCH};

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use skep_proto::Timestamp;
use tokio::time::timeout;
use url::Url;

use super::{ClientError, dial, management::http_url};

/// For one short answer. Whoever is slower tells the time too late.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// The relay's clock; `None`: its answer has no date.
pub async fn date(url: &str) -> Result<Option<Timestamp>, ClientError> {
    let url = http_url(url)?;
    match timeout(ANSWER_MAX, ask(&url)).await {
        Ok(answer) => answer,
        Err(_) => {
            let doing = "waiting for an answer over HTTP";
            Err(ClientError::Timeout { url: url.to_string(), waited: ANSWER_MAX, doing, notice: None })
        }
    }
}

async fn ask(url: &Url) -> Result<Option<Timestamp>, ClientError> {
    let bad = |_| ClientError::BadUrl { url: url.to_string(), why: "it has no HTTP form" };
    let lost = |cause: hyper::Error| ClientError::Lost { url: url.to_string(), cause: cause.to_string() };
    let request = Request::builder()
        .method(Method::HEAD)
        .uri(&url[url::Position::BeforePath..url::Position::AfterQuery])
        .header(header::HOST, &url[url::Position::BeforeHost..url::Position::AfterPort])
        .body(Empty::<Bytes>::new())
        .map_err(bad)?;
    let stream = dial::transport(url).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(lost)?;
        Ok(response.headers().get(header::DATE).and_then(|date| at(date.to_str().ok()?)))
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // The connection's end also ends the exchange, with its own error or answer.
        _ = connection => exchange.await,
    }
}

fn at(text: &str) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(text).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}
