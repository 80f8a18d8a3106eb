//! The end of what a child wrote to stderr, for an error's text.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;

/// Enough for a stack trace of a Node program; 50 agents keep 400 KiB.
pub const TAIL_BYTES_MAX: usize = 8 * 1024;

/// After a child's end its last words may still be in the pipe. All holders of its other end are dead by then.
const DRAIN: Duration = Duration::from_secs(1);

/// Reads without end, so that a child never blocks on a full pipe, and keeps the last bytes.
pub struct Tail {
    /// A lock because the reader writes while an error is being told; held for a copy only, never over an await.
    kept: Arc<Mutex<VecDeque<u8>>>,
    reader: JoinHandle<()>,
}

impl Tail {
    pub fn of(mut from: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let keep = kept.clone();
        let reader = tokio::spawn(async move {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut chunk).await {
                let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&chunk[..length]);
                let too_many = kept.len().saturating_sub(TAIL_BYTES_MAX);
                kept.drain(..too_many);
            }
        });
        Self { kept, reader }
    }

    pub fn text(&self) -> String {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).trim().to_owned()
    }

    /// The text after the child's end.
    pub async fn last_words(&mut self) -> String {
        let _ = tokio::time::timeout(DRAIN, &mut self.reader).await;
        self.text()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
