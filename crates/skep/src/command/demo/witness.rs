//! Whoever sees what happens: one connection of the owner that keeps all that the relay sends, and control sockets.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_node::client::{Client, Credentials, Options, Update};
use skep_node::clock::unix_now;
use skep_node::keys::Keys;
use skep_proto::agent::telemetry::{Telemetry, TelemetryKind};
use skep_proto::{Filter, Kind as EventKind, PubKey, RawEvent, seal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::stuck;
use crate::error::CliError;

/// How long anything that is waited for may take. On a machine that is busy with other things it takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at what tells nobody when it changes.
const LOOK: Duration = Duration::from_millis(20);

/// Events that are kept; a story has some hundred.
const KEPT_MAX: usize = 10_000;

pub struct Witness {
    seen: Arc<Seen>,
    owner: Keys,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    /// A lock, because one task writes and the story reads; not held over an await.
    events: Mutex<Vec<RawEvent>>,
    more: Notify,
}

impl Witness {
    /// From now on everything is seen that the owner may see of these agents.
    pub async fn open(url: &str, owner: &Keys, agents: &[PubKey]) -> Result<Self, CliError> {
        let mut client = connect(url, owner).await?;
        let since = Some(unix_now().saturating_sub(1));
        let to_owner = vec![(b'p', vec![owner.pubkey().to_hex()])];
        let gated = vec![EventKind::AGENT_FRAME, EventKind::AGENT_METRIC];
        let said = Filter { authors: Some(agents.to_vec()), since, ..Filter::new() };
        let sealed = Filter { kinds: Some(gated), tags: to_owner, since, ..Filter::new() };
        let leases = Filter { kinds: Some(vec![EventKind::LEASE_STATE]), since, ..Filter::new() };
        let mut sub = client.subscribe(vec![said, sealed, leases]).await?;
        let seen = Arc::new(Seen::default());
        let sees = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok(update) = client.next_update(&mut sub).await {
                let Update::Event(event) = update else { continue };
                let mut events = sees.events.lock().unwrap_or_else(PoisonError::into_inner);
                if events.len() < KEPT_MAX {
                    events.push(event.raw().clone());
                }
                drop(events);
                sees.more.notify_waiters();
            }
        });
        Ok(Self { seen, owner: owner.clone(), task })
    }

    /// Waits until an event is seen that `look` knows.
    pub async fn until<T>(&self, what: &str, look: impl Fn(&RawEvent) -> Option<T>) -> Result<T, CliError> {
        self.until_all(what, |events| events.iter().find_map(&look)).await
    }

    /// Waits until `look` finds it in all that was seen so far.
    pub async fn until_all<T>(&self, what: &str, look: impl Fn(&[RawEvent]) -> Option<T>) -> Result<T, CliError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut more = std::pin::pin!(self.seen.more.notified());
            // Armed before it is looked, so that nothing slips in between.
            more.as_mut().enable();
            if let Some(found) = look(&self.seen.events.lock().unwrap_or_else(PoisonError::into_inner)) {
                return Ok(found);
            }
            if timeout_at(deadline, more).await.is_err() {
                return Err(stuck(what));
            }
        }
    }

    /// What an agent's frames say, opened with the owner's key, in order.
    pub fn frames(&self, events: &[RawEvent], agent: &PubKey) -> Vec<Telemetry> {
        let of_agent = events.iter().filter(|event| event.kind == EventKind::AGENT_FRAME && event.pubkey == *agent);
        let opened = of_agent.filter_map(|event| {
            let text = seal::open(self.owner.keypair(), agent, &event.content).ok()?;
            Telemetry::from_json(&text).ok()?.into_items().ok()
        });
        let mut items: Vec<Telemetry> = opened.flatten().collect();
        items.sort_by_key(|item| item.seq);
        items
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection of somebody.
pub async fn connect(url: &str, keys: &Keys) -> Result<Client, CliError> {
    let options = Options { credentials: Some(Credentials::from(keys.clone())), ..Options::default() };
    Ok(Client::connect(url, options).await?)
}

/// Waits until `look` finds something where nobody says when to look.
pub async fn poll<T, F: Future<Output = Result<Option<T>, CliError>>>(
    what: &str,
    look: impl Fn() -> F,
) -> Result<T, CliError> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(stuck(what))
}

/// The words of a program's answer as they were streamed, out of its frames.
pub fn streamed_text(items: &[Telemetry]) -> String {
    let chunk = |item: &Telemetry| {
        let frame: serde_json::Value = item.payload.parse().ok()?;
        let update = &frame["params"]["update"];
        let is_text = item.kind == TelemetryKind::AcpRead && update["sessionUpdate"] == "agent_message_chunk";
        is_text.then(|| update["content"]["text"].as_str().map(str::to_owned)).flatten()
    };
    items.iter().filter_map(chunk).collect()
}
