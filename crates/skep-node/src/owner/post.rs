//! Publishing until the relay has said its word.

use skep_proto::RawEvent;
use tokio::time::{Instant, sleep};

use crate::agent::reconnect::Backoff;
use crate::client::{Client, ClientError, Options, Verdict};

/// Publishes one event; when the connection is lost, again, until the deadline. An event that came twice is one event.
pub async fn publish(url: &str, options: &Options, event: &RawEvent, until: Instant) -> Result<Verdict, ClientError> {
    let mut backoff = Backoff::default();
    loop {
        let error = match once(url, options, event).await {
            Ok(verdict) => return Ok(verdict),
            Err(error) => error,
        };
        let wait = backoff.next(None);
        let is_passing = matches!(error, ClientError::Lost { .. } | ClientError::Timeout { .. });
        if !is_passing || Instant::now() + wait >= until {
            return Err(error);
        }
        sleep(wait).await;
    }
}

async fn once(url: &str, options: &Options, event: &RawEvent) -> Result<Verdict, ClientError> {
    let mut client = Client::connect(url, options.clone()).await?;
    let verdict = client.publish(event).await?;
    client.close().await;
    Ok(verdict)
}
