//! What time a relay has, by the `Date` header of its answer over HTTP (RFC 9110, 6.6.1).

use std::time::{Duration, UNIX_EPOCH};

use hyper::body::Bytes;
use hyper::{Method, header};
use skep_proto::Timestamp;
use tokio::time::timeout;
use url::Url;

use super::{ClientError, http};

/// For one short answer. Whoever is slower tells the time too late.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// The relay's clock; `None`: its answer has no date.
pub async fn date(url: &str) -> Result<Option<Timestamp>, ClientError> {
    let url = http::http_url(url)?;
    match timeout(ANSWER_MAX, ask(&url)).await {
        Ok(answer) => answer,
        Err(_) => {
            let doing = "waiting for an answer over HTTP";
            Err(ClientError::Timeout { url: url.to_string(), waited: ANSWER_MAX, doing, notice: None })
        }
    }
}

async fn ask(url: &Url) -> Result<Option<Timestamp>, ClientError> {
    let request = http::request(url).method(Method::HEAD);
    http::exchange(url, request, Bytes::new(), async |response| {
        Ok(response.headers().get(header::DATE).and_then(|date| at(date.to_str().ok()?)))
    })
    .await
}

fn at(text: &str) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(text).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}
