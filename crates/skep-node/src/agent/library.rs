//! A look at the home relay: what it has that matches, and its own key.
//!
//! Each look has a connection of its own, so that one that hangs holds up no other; there is one for a turn at most.
//! Must not: take longer than it may, hold more than it may, or give what did not verify.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use skep_agent::driver;
use skep_proto::{Filter, PubKey, RawEvent, limits};
use tokio::time::timeout;

use crate::client::{self, Client, ClientError, Credentials, Options, Update};

const LOOKUP_MAX: Duration = Duration::from_millis(limits::LOOKUP_MS_MAX);

/// The home relay, to be looked into.
#[derive(Clone)]
pub struct Library {
    url: String,
    credentials: Credentials,
    /// Its own key, once it said so.
    key: Arc<OnceLock<Option<PubKey>>>,
}

impl Library {
    pub fn new(url: impl Into<String>, credentials: Credentials) -> Self {
        Self { url: url.into(), credentials, key: Arc::default() }
    }

    async fn query(self, filters: Vec<Filter>) -> Result<Vec<RawEvent>, ClientError> {
        let options = Options { credentials: Some(self.credentials), timeout: LOOKUP_MAX };
        let mut client = Client::connect(&self.url, options).await?;
        let mut sub = client.subscribe(filters).await?;
        let mut found = Vec::new();
        // A relay that does not keep to the limits of the filters is cut off.
        while found.len() < limits::LOOKUP_EVENTS_MAX {
            match client.next_update(&mut sub).await? {
                Update::Event(event) => found.push(event.raw().clone()),
                Update::Forged { .. } => {}
                Update::CaughtUp => break,
                Update::Closed(message) => return Err(ClientError::Refused { url: self.url, message }),
            }
        }
        client.close().await;
        Ok(found)
    }

    async fn own_key(self) -> Result<Option<PubKey>, ClientError> {
        if let Some(known) = self.key.get() {
            return Ok(*known);
        }
        let document = client::information(&self.url).await?;
        let key = document["self"].as_str().and_then(|text| text.parse().ok());
        Ok(*self.key.get_or_init(|| key))
    }
}

impl driver::Library for Library {
    fn look_up(&self, filters: Vec<Filter>) -> BoxFuture<'static, Option<Vec<RawEvent>>> {
        let url = self.url.clone();
        let looking = timeout(LOOKUP_MAX, self.clone().query(filters));
        Box::pin(async move { answered(&url, looking.await) })
    }

    fn relay_key(&self) -> BoxFuture<'static, Option<Option<PubKey>>> {
        let url = self.url.clone();
        let asking = timeout(LOOKUP_MAX, self.clone().own_key());
        Box::pin(async move { answered(&url, asking.await) })
    }
}

fn answered<T>(relay: &str, answer: Result<Result<T, ClientError>, tokio::time::error::Elapsed>) -> Option<T> {
    let why = match answer {
        Ok(Ok(found)) => return Some(found),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    tracing::debug!(relay, why, "a look at the relay failed");
    None
}
