//! Why a relay could not be spoken to.

use std::time::Duration;

/// Text that came from a relay is untrusted: escape it before it meets a terminal.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{url:?} is not the URL of a relay: {why}")]
    BadUrl { url: String, why: &'static str },
    #[error("cannot reach {url}: {cause}")]
    Unreachable { url: String, cause: String },
    #[error("{url} did not answer within {} s while {doing}{}", waited.as_secs_f32(), said(notice))]
    Timeout { url: String, waited: Duration, doing: &'static str, notice: Option<String> },
    #[error("{url} answers, but not as a relay: {cause}")]
    NotARelay { url: String, cause: String },
    #[error("the connection to {url} ended: {cause}")]
    Lost { url: String, cause: String },
    #[error("{url} does not follow the protocol: {cause}")]
    Protocol { url: String, cause: String },
    #[error("{url} refused: {message}")]
    Refused { url: String, message: String },
}

/// Whether a URL names this machine.
fn is_here(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    ["127.", "localhost", "[::1]"].iter().any(|name| host.starts_with(name))
}

fn said(notice: &Option<String>) -> String {
    notice.as_ref().map(|text| format!("; it said: {text}")).unwrap_or_default()
}

impl ClientError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::BadUrl { .. } => "write it as ws://127.0.0.1:7777 or wss://relay.example",
            Self::Unreachable { url, .. } if is_here(url) => "is it running? start one with: skep relay",
            Self::Unreachable { .. } => "check the name, the port and this machine's network",
            Self::Timeout { doing: "waiting for COUNT", .. } => "the relay may not know COUNT (NIP-45)",
            Self::Timeout { .. } => "try again, or another relay with --relay URL",
            Self::NotARelay { .. } => "check the scheme, port and path of the URL",
            Self::Lost { .. } => "try again; the relay's log may tell why",
            Self::Protocol { .. } => "try another relay with --relay URL",
            Self::Refused { message, .. } if message.starts_with("auth-required:") => "say who you are with --key NAME",
            Self::Refused { message, .. } if message.starts_with("restricted:") => {
                "this key may not; try another with --key NAME"
            }
            Self::Refused { .. } => return None,
        };
        Some(hint.to_owned())
    }
}
