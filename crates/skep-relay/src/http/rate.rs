//! How many requests an address may make.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use skep_proto::Prefix;

use super::{Backend, Caller, refused};

/// Seconds after which there is a token again, at any rate: the slowest that is not "no bound" is one a second.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("1");

/// Answers 429 to an address that asks too often. A request that no listener brought (in tests) has no address.
pub async fn limit<B: Backend>(State(backend): State<Arc<B>>, request: Request, next: Next) -> Response {
    let is_over = request.extensions().get::<Caller>().is_some_and(|caller| !backend.take_request(caller.ip));
    if !is_over {
        return next.run(request).await;
    }
    let mut answer = refused(&Prefix::RateLimited.because("too many requests from this address; slow down"));
    answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECS);
    answer
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::fake::{Fake, request};
    use super::*;

    #[tokio::test]
    async fn a_request_over_the_rate_is_answered_429_with_a_time_to_come_again() {
        let backend = Fake::open();
        backend.requests_left.store(1, Ordering::SeqCst);
        let ask = || {
            let mut request = request("GET", "/health", &[], "");
            let ip = "192.0.2.1".parse().unwrap();
            request.extensions_mut().insert(Caller { ip, hang_up: Default::default() });
            backend.call(request)
        };
        assert_eq!(ask().await.status, 200);
        let over = ask().await;
        assert_eq!((over.status, over.header("retry-after")), (429, "1"));
        assert_eq!(over.header("access-control-allow-origin"), "*", "a web page can read why");
        assert!(over.json()["error"].as_str().unwrap().starts_with("rate-limited: "));
    }
}
