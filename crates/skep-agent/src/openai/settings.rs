//! What a model server is reached by.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};
use url::Url;
use zeroize::Zeroizing;

use crate::tools::Toolbox;

/// Bytes of conversation that a model is sent: at four bytes a token 64,000 tokens, half of a usual context.
pub const HISTORY_BYTES_DEFAULT: usize = 256 * 1024;

/// Bytes of a key file.
const KEY_BYTES_MAX: usize = 8 * 1024;

#[derive(Clone)]
pub struct OpenAi {
    /// Up to and with the version: `http://127.0.0.1:11434/v1`.
    pub base_url: Url,
    pub model: String,
    pub key: Key,
    /// The first message of each conversation.
    pub system: Option<String>,
    /// Further members of each request, such as `temperature`. They win over ours.
    pub extra: Map<String, Value>,
    pub history_bytes_max: usize,
    /// `None`: plain chat.
    pub tools: Option<Arc<dyn Toolbox>>,
}

impl OpenAi {
    pub fn new(base_url: Url, model: impl Into<String>) -> Self {
        let (key, system, extra, tools) = (Key::None, None, Map::new(), None);
        Self { base_url, model: model.into(), key, system, extra, history_bytes_max: HISTORY_BYTES_DEFAULT, tools }
    }
}

impl fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAi")
            .field("base_url", &self.base_url.as_str())
            .field("model", &self.model)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Where the key for a provider comes from.
#[derive(Debug, Clone)]
pub enum Key {
    None,
    /// Read before each call, so that a changed key is used at once.
    File(PathBuf),
    Given(Secret),
}

impl Key {
    /// The key, or why there is none.
    pub(super) async fn read(&self) -> Result<Option<Secret>, String> {
        match self {
            Self::None => Ok(None),
            Self::Given(secret) => Ok(Some(secret.clone())),
            Self::File(path) => {
                let read = tokio::fs::read_to_string(path).await.map(Zeroizing::new);
                let text = read.map_err(|error| format!("cannot read the key file {}: {error}", path.display()))?;
                let key = text.trim();
                if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains(|c: char| c.is_ascii_control()) {
                    return Err(format!("{} does not hold one line with a key", path.display()));
                }
                Ok(Some(Secret::new(key.to_owned())))
            }
        }
    }
}

/// A text that is never shown and is wiped when it is dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
