//! Why a program says that it failed, as far as it says so in numbers. Its prose is for people.

use serde_json::Value;

use skep_core::backend::BackendError;

use super::message::{AUTH_REQUIRED, RpcError};
use crate::text::cut;

/// Bytes of an error's text.
const TEXT_BYTES_MAX: usize = 2 * 1024;

/// Where programs put the HTTP status of the model provider that failed them.
const STATUS_PLACES: [&str; 6] =
    ["/status", "/statusCode", "/httpStatus", "/code", "/error/status", "/data/statusCode"];

/// By ACP's own code, then by the provider's HTTP status where one is told.
pub fn backend_error(error: &RpcError) -> BackendError {
    let text = text(error);
    if error.code == AUTH_REQUIRED {
        return BackendError::Auth(text);
    }
    match status(error) {
        Some(401 | 403) => BackendError::Auth(text),
        Some(402) => BackendError::Quota(text),
        Some(429) => BackendError::Busy { retry_after_secs: retry_after(error) },
        _ => BackendError::Other(text),
    }
}

/// Some programs give the status as the error's own code.
fn status(error: &RpcError) -> Option<u64> {
    let told = STATUS_PLACES.iter().find_map(|place| number(error.data.pointer(place)?));
    let in_code = || u64::try_from(error.code).ok();
    // OpenAI's client library begins its messages with the status, and programs pass them on (Qwen Code).
    let in_details = || error.data["details"].as_str()?.split(' ').next()?.parse().ok();
    told.or_else(in_code).or_else(in_details).filter(|status| (400..600).contains(status))
}

fn retry_after(error: &RpcError) -> Option<u64> {
    number(error.data.get("retryAfter")?)
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The message, with the detail that JSON-RPC puts beside it.
fn text(error: &RpcError) -> String {
    let details = [&error.data["details"], &error.data["message"], &error.data].into_iter().find_map(Value::as_str);
    let text = match details {
        Some(details) if !error.message.contains(details) => format!("{}: {details}", error.message),
        _ => error.message.clone(),
    };
    cut(if text.is_empty() { "it does not say why" } else { &text }, TEXT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn failures_are_told_apart_by_numbers_only() {
        let error =
            |code: i64, message: &str, data: Value| backend_error(&RpcError { code, message: message.into(), data });
        assert!(matches!(error(-32000, "log in first", json!(null)), BackendError::Auth(_)));
        assert!(matches!(error(-32603, "x", json!({ "statusCode": 401 })), BackendError::Auth(_)));
        assert!(matches!(error(-32603, "x", json!({ "statusCode": 402 })), BackendError::Quota(_)));
        let busy = error(429, "slow down", json!({ "retryAfter": "7" }));
        assert_eq!(busy, BackendError::Busy { retry_after_secs: Some(7) });
        assert!(matches!(error(-32603, "Internal error", json!({ "details": "401 no" })), BackendError::Auth(_)));
        let prose = error(-32603, "Internal error", json!({ "details": "quota? 401? no" }));
        assert_eq!(prose, BackendError::Other("Internal error: quota? 401? no".into()));
    }
}
