//! Publishing many events on one connection: up to a window of them unanswered, rates respected.

use std::collections::HashMap;
use std::time::Duration;

use skep_proto::RawEvent;

use crate::client::{Client, ClientError, RelayMsg, Verdict};

/// Events without an answer. With 1 ms to the relay and back, 256 allow 256,000 events a second.
const WINDOW: usize = 256;

/// Waits after `rate-limited:`: a quarter of a second, doubled up to four.
const WAIT_FIRST: Duration = Duration::from_millis(250);
const WAIT_DOUBLINGS_MAX: u32 = 4;

/// Times that one event is sent again; with the waits above about a minute.
const TRIES_MAX: u32 = 20;

/// Events on their way to one relay. `T` is what the caller knows an event by.
pub struct Pipeline<'c, T> {
    client: &'c mut Client,
    unanswered: HashMap<String, Sent<T>>,
    /// To be sent again, because the relay asked us to slow down.
    limited: Vec<Sent<T>>,
    answered: Vec<(T, Verdict)>,
}

struct Sent<T> {
    ticket: T,
    id: String,
    frame: String,
    tries: u32,
}

impl<'c, T> Pipeline<'c, T> {
    pub fn new(client: &'c mut Client) -> Self {
        Self { client, unanswered: HashMap::new(), limited: Vec::new(), answered: Vec::new() }
    }

    /// Sends one event, when there is room for it. Its answer comes from [`Self::answers`], not in order.
    pub async fn send(&mut self, ticket: T, event: &RawEvent) -> Result<(), ClientError> {
        let id = event.id.to_hex();
        if self.unanswered.contains_key(&id) || self.limited.iter().any(|sent| sent.id == id) {
            let verdict = Verdict { accepted: true, message: "duplicate: sent a moment ago".into() };
            self.answered.push((ticket, verdict));
            return Ok(());
        }
        while self.unanswered.len() >= WINDOW {
            self.receive().await?;
        }
        if !self.limited.is_empty() {
            self.send_limited().await?;
        }
        let frame = format!(r#"["EVENT",{}]"#, event.to_json());
        self.send_once(Sent { ticket, id, frame, tries: 0 }).await
    }

    /// Waits for all answers.
    pub async fn settle(&mut self) -> Result<(), ClientError> {
        loop {
            while !self.unanswered.is_empty() {
                self.receive().await?;
            }
            if self.limited.is_empty() {
                return Ok(());
            }
            self.send_limited().await?;
        }
    }

    /// What has been answered since the last call.
    pub fn answers(&mut self) -> std::vec::Drain<'_, (T, Verdict)> {
        self.answered.drain(..)
    }

    async fn send_once(&mut self, sent: Sent<T>) -> Result<(), ClientError> {
        let frame = sent.frame.clone();
        self.unanswered.insert(sent.id.clone(), sent);
        self.client.send(frame).await
    }

    /// Takes the answers that are due, waits as long as is polite, and sends again what was too fast.
    async fn send_limited(&mut self) -> Result<(), ClientError> {
        while !self.unanswered.is_empty() {
            self.receive().await?;
        }
        let tries = self.limited.iter().map(|sent| sent.tries).max().unwrap_or(0);
        tokio::time::sleep(WAIT_FIRST * 2_u32.pow(tries.saturating_sub(1).min(WAIT_DOUBLINGS_MAX))).await;
        for sent in std::mem::take(&mut self.limited) {
            self.send_once(sent).await?;
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<(), ClientError> {
        let RelayMsg::Ok { id, accepted, message } = self.client.receive("waiting for OK").await? else {
            return Ok(());
        };
        let Some(mut sent) = self.unanswered.remove(&id) else { return Ok(()) };
        // A relay that challenges only now has been answered on the way.
        let may_retry = message.starts_with("rate-limited:") && sent.tries < TRIES_MAX
            || message.starts_with("auth-required:") && sent.tries == 0 && self.client.is_authenticated();
        if !accepted && may_retry {
            sent.tries += 1;
            self.limited.push(sent);
        } else {
            self.answered.push((sent.ticket, Verdict { accepted, message }));
        }
        Ok(())
    }
}
