//! What a model server's refusal means.

use serde_json::Value;

use skep_core::backend::BackendError;

use crate::text::cut;

/// Bytes of an error's text.
const TEXT_BYTES_MAX: usize = 2 * 1024;

/// OpenAI's own codes for a limit that waiting does not lift.
const QUOTA_CODES: [&str; 3] = ["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"];

/// By the status, and where one status has two meanings by the error's code.
pub fn of_status(status: u16, retry_after: Option<&str>, body: &[u8]) -> BackendError {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = format!("HTTP {status}: {}", text(&json, body));
    let is_quota = ["code", "type"]
        .iter()
        .any(|member| json["error"][member].as_str().is_some_and(|code| QUOTA_CODES.contains(&code)));
    match status {
        401 | 403 => BackendError::Auth(text),
        402 => BackendError::Quota(text),
        429 if is_quota => BackendError::Quota(text),
        // 503: a server that is starting or full. 529: "overloaded".
        429 | 503 | 529 => BackendError::Busy { retry_after_secs: retry_after.and_then(seconds) },
        _ => BackendError::Other(text),
    }
}

/// An error in the middle of a stream, where there is no status any more.
pub fn in_stream(error: &Value) -> BackendError {
    let status = error["code"].as_u64().or_else(|| error["status"].as_u64()).and_then(|code| u16::try_from(code).ok());
    let body = serde_json::json!({ "error": error }).to_string();
    of_status(status.unwrap_or(500), None, body.as_bytes())
}

/// Whole seconds, rounded up. The other form, a date, is not used by model servers and read as unknown.
fn seconds(text: &str) -> Option<u64> {
    let number: f64 = text.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number.ceil() as u64)
}

fn text(json: &Value, body: &[u8]) -> String {
    let places = [&json["error"]["message"], &json["error"], &json["message"], &json["detail"]];
    match places.into_iter().find_map(Value::as_str) {
        Some(text) => cut(text, TEXT_BYTES_MAX),
        None => cut(String::from_utf8_lossy(body).trim(), TEXT_BYTES_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_to_do() {
        let of = |status, retry, body: &str| of_status(status, retry, body.as_bytes());
        assert!(matches!(of(401, None, ""), BackendError::Auth(_)));
        assert_eq!(of(429, Some("1.2"), "{}"), BackendError::Busy { retry_after_secs: Some(2) });
        assert_eq!(of(429, Some("Wed, 21 Oct 2026 07:28:00 GMT"), ""), BackendError::Busy { retry_after_secs: None });
        assert!(matches!(of(429, None, r#"{"error":{"code":"insufficient_quota"}}"#), BackendError::Quota(_)));
        assert!(matches!(of(402, None, ""), BackendError::Quota(_)));
        assert_eq!(
            of(500, None, r#"{"error":"model not found"}"#),
            BackendError::Other("HTTP 500: model not found".into())
        );
    }
}
