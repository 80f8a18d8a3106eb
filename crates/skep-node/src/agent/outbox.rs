//! What the agent publishes, sent to one relay until that has said its word on each event.
//!
//! Events go one after the other, in the order they were made, so that a relay never has an answer without its
//! question. One that the relay wants later is tried later, and those behind it are not held up.
//! Lifetime: until it is told to stop, or the driver is gone. What lies in the store then is sent the next time.
//! Must not: drop a reply, or count a lost connection as a relay's word.

use std::sync::Arc;
use std::time::Duration;

use skep_agent::driver::Input;
use skep_core::door::Accepted;
use skep_core::leader::Role;
use skep_proto::time::UnixMs;
use skep_proto::{EventId, Prefix, Refusal, limits};
use skep_store::agent::{Delivery, Outgoing};
use skep_store::{AgentStore, StoreError};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::door::{RemoteDoor, read};
use super::lead::Lead;
use super::reconnect::{Connection, wait_after};
use crate::client::Verdict;
use crate::clock::{unix_now, unix_now_ms};

/// Events kept; beyond it passing ones go first, a reply never.
pub const KEPT_MAX: u64 = 10_000;

/// How long what is done with is kept, to show it.
const DONE_SECS: u64 = 24 * 60 * 60;

/// Events read from the store at a time.
const BATCH: u32 = 64;

/// The longest sleep: a clock that jumps must not keep an event for long.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Until it is asked again who leads.
const LEAD_WAIT_MS: u64 = 1_000;

/// Between two attempts to use a store that fails.
const STORE_WAIT: Duration = Duration::from_secs(5);

/// What an outbox is made of.
pub struct Post {
    pub relay: String,
    pub door: RemoteDoor,
    pub store: Arc<AgentStore>,
    /// Asked before an answer is sent, where no relay sees to it that one answer stands.
    pub lead: Option<Lead>,
    /// Changes when something was put in.
    pub news: watch::Receiver<u64>,
    /// Told when this relay's word lets the others have something.
    pub posted: Arc<Notify>,
    /// The driver's; weak, so that the driver's inputs end when the links do.
    pub inputs: mpsc::WeakSender<Input>,
}

/// Why a round ended.
enum Pause {
    /// Nothing is due before this.
    Until(Option<UnixMs>),
    /// No answer: the connection is not there.
    NoConnection,
}

/// Sends until it is told to stop.
pub async fn run(post: Post, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = keep_sending(post) => {}
    }
}

/// Forgets what is done with; gives how many events that were.
pub fn trim(store: &AgentStore) -> Result<u64, StoreError> {
    store.trim_outbox(KEPT_MAX, unix_now().saturating_sub(DONE_SECS))
}

async fn keep_sending(mut post: Post) {
    let mut connection = post.door.connection();
    loop {
        post.news.mark_unchanged();
        let is_up = connection.borrow_and_update().clone() == Connection::Live;
        let pause = if is_up { post.round().await } else { Ok(Pause::NoConnection) };
        match pause {
            Ok(Pause::NoConnection) => {
                if connection.changed().await.is_err() {
                    return;
                }
            }
            Ok(Pause::Until(due)) => tokio::select! {
                changed = post.news.changed() => if changed.is_err() { return },
                () = sleep(until(due)) => {}
            },
            Err(error) => {
                tracing::warn!(relay = post.relay, %error, "the outbox cannot be used");
                sleep(STORE_WAIT).await;
            }
        }
    }
}

fn until(due: Option<UnixMs>) -> Duration {
    due.map_or(SLEEP_MAX, |due| Duration::from_millis(due.saturating_sub(unix_now_ms()) + 1).min(SLEEP_MAX))
}

impl Post {
    /// Sends what is due.
    async fn round(&self) -> Result<Pause, StoreError> {
        loop {
            let due = self.with_store(|store, relay| store.due(relay, unix_now_ms(), BATCH)).await?;
            if due.is_empty() {
                return Ok(Pause::Until(self.with_store(|store, relay| store.next_due_ms(relay)).await?));
            }
            for outgoing in due {
                let id = outgoing.event.id;
                let delivery = match expired(&outgoing).or(self.hold_back(&outgoing).await) {
                    Some(delivery) => delivery,
                    None => match self.door.send(outgoing.event).await {
                        Ok(verdict) => judge(&verdict, outgoing.tries),
                        Err(_) => return Ok(Pause::NoConnection),
                    },
                };
                self.note(id, delivery).await?;
            }
        }
    }

    /// An answer is sent by the one who leads. Whoever was stopped, and lost the lead meanwhile, must not answer beside
    /// the one who has it; until that is clear, the answer waits. A relay with leases sees to it by itself.
    async fn hold_back(&self, outgoing: &Outgoing) -> Option<Delivery> {
        let lead = self.lead.as_ref()?;
        if !outgoing.is_reply || lead.may_act().await {
            return None;
        }
        let is_with_another = matches!(lead.standing().borrow().role, Role::Follows(Some(_)));
        let said = "conflict: another instance leads".to_owned();
        Some(match is_with_another {
            true => Delivery::Refused(said),
            false => Delivery::Later { due_ms: unix_now_ms() + LEAD_WAIT_MS, said: "it is not clear who leads".into() },
        })
    }

    /// Records a relay's word, then tells it.
    async fn note(&self, id: EventId, delivery: Delivery) -> Result<(), StoreError> {
        let kept = delivery.clone();
        if self.with_store(move |store, relay| store.delivered(&id, relay, &kept)).await? {
            self.posted.notify_one();
        }
        if let Some(inputs) = self.inputs.upgrade() {
            // A driver that is gone learns it from the store.
            let _ = inputs.send(Input::Delivered { id, relay: self.relay.clone(), delivery }).await;
        }
        Ok(())
    }

    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&AgentStore, &str) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (store, relay) = (Arc::clone(&self.store), self.relay.clone());
        let done = tokio::task::spawn_blocking(move || work(&store, &relay)).await;
        done.unwrap_or_else(|ended| Err(StoreError::Other(ended.to_string())))
    }
}

/// A passing event is worth nothing once nobody would take it for fresh.
fn expired(outgoing: &Outgoing) -> Option<Delivery> {
    let age = unix_now().saturating_sub(outgoing.event.created_at);
    let is_over = outgoing.is_passing && age > limits::EPHEMERAL_SECS_MAX;
    is_over.then(|| Delivery::Refused(format!("not sent: it was {age} s old, and worth nothing any more")))
}

/// What a relay's word makes of a delivery.
fn judge(verdict: &Verdict, tries: u32) -> Delivery {
    let Refusal { prefix, text } = match read(verdict) {
        Ok(Accepted::Stored(_) | Accepted::Duplicate | Accepted::Dropped | Accepted::Answered(_)) => {
            return Delivery::Taken;
        }
        Err(refusal) => refusal,
    };
    let said = format!("{}: {text}", prefix.as_str());
    match prefix {
        Prefix::Duplicate => Delivery::Taken,
        Prefix::Blocked
        | Prefix::Invalid
        | Prefix::Restricted
        | Prefix::Conflict
        | Prefix::Pow
        | Prefix::Unsupported => Delivery::Refused(said),
        Prefix::AuthRequired | Prefix::RateLimited | Prefix::Error => {
            Delivery::Later { due_ms: unix_now_ms() + wait_after(tries).as_millis() as u64, said }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_final_when_another_time_would_not_change_it() {
        let judge = |accepted, message: &str| judge(&Verdict { accepted, message: message.into() }, 3);
        for taken in [judge(true, ""), judge(true, "duplicate: "), judge(false, "duplicate: x"), judge(true, "info")] {
            assert_eq!(taken, Delivery::Taken);
        }
        for said in ["blocked: x", "invalid: x", "restricted: x", "conflict: x", "pow: x", "unsupported: x"] {
            assert_eq!(judge(false, said), Delivery::Refused(said.into()));
        }
        for said in ["auth-required: x", "rate-limited: x", "error: x"] {
            assert!(matches!(judge(false, said), Delivery::Later { said: kept, .. } if kept == said));
        }
        assert!(matches!(judge(false, "who knows"), Delivery::Later { .. }));
    }
}
