//! A client of any relay: publish, query, follow, count (NIP-01, 42, 45), and management calls (NIP-86, 98).
//!
//! One conversation at a time on one connection: the caller awaits each answer. Challenges (NIP-42) are answered
//! on the way when there are credentials. What a relay sends is believed only as far as it verifies.
//! Lifetime: dropped, the connection closes. Must not: print, or hold a message that nobody asked for.

mod date;
mod dial;
mod error;
mod http;
mod management;
mod message;

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use skep_proto::wire::quote;
use skep_proto::{Draft, EventId, Filter, Kind, RawEvent, VerifiedEvent, VerifyError};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use url::Url;

use crate::clock::unix_now;
use crate::keys::Keys;

pub use date::date;
pub use dial::parse_relay_url;
pub use error::ClientError;
pub use management::{information, management};
pub use message::RelayMsg;

use dial::Transport;

/// How long one step (connect, an answer, the next stored event) may take when nobody says otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

/// How long to wait for a challenge that a relay may never send. Ours comes with the handshake.
const CHALLENGE_WAIT: Duration = Duration::from_millis(500);

/// Silence on a live subscription before we ping, and again before we give the connection up.
const LIVE_SILENCE_MAX: Duration = Duration::from_secs(30);

/// Messages kept while an AUTH is being answered; a relay that sends more is not waiting for us.
const SET_ASIDE_MAX: usize = 1_024;

/// Who a client says it is.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub keys: Keys,
    /// The owner's attestation, `["auth", owner, conditions, sig]` (NIP-OA), sent along with AUTH.
    pub attestation: Option<[String; 4]>,
}

impl From<Keys> for Credentials {
    fn from(keys: Keys) -> Self {
        Self { keys, attestation: None }
    }
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct Options {
    /// Without any, challenges are not answered.
    pub credentials: Option<Credentials>,
    /// Of each step, not of the whole.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { credentials: None, timeout: TIMEOUT_DEFAULT }
    }
}

/// A relay's word on an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub accepted: bool,
    /// As the relay wrote it: untrusted text, with a machine-readable prefix when refused.
    pub message: String,
}

/// A relay's answer to COUNT (NIP-45).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    pub count: u64,
    pub approximate: bool,
    pub hll: Option<String>,
}

/// What comes from a subscription.
#[derive(Debug)]
pub enum Update {
    Event(Box<VerifiedEvent>),
    /// The relay sent an event that is not what it says. It is not passed on.
    Forged {
        id: EventId,
        why: VerifyError,
    },
    /// Every stored event has come; from here on they are live.
    CaughtUp,
    /// The relay ended the subscription, for this reason.
    Closed(String),
}

/// A REQ that is open, and what it asked, to ask again after AUTH.
#[derive(Debug)]
pub struct Subscription {
    id: String,
    filters: Vec<Filter>,
    caught_up: bool,
    asked_again: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Auth {
    Anonymous,
    Asked(EventId),
    Done,
    Refused(String),
}

/// A connection to a relay.
pub struct Client {
    url: Url,
    socket: WebSocketStream<Box<dyn Transport>>,
    options: Options,
    auth: Auth,
    requests: u64,
    set_aside: VecDeque<RelayMsg>,
    notice: Option<String>,
}

impl Client {
    /// Connects, and authenticates when there are credentials and the relay asks within half a second.
    pub async fn connect(url: &str, options: Options) -> Result<Self, ClientError> {
        let url = parse_relay_url(url)?;
        let socket = match timeout(options.timeout, dial::websocket(&url)).await {
            Ok(connected) => connected?,
            Err(_) => {
                return Err(ClientError::Timeout {
                    url: url.to_string(),
                    waited: options.timeout,
                    doing: "connecting",
                    notice: None,
                });
            }
        };
        let mut client =
            Self { url, socket, options, auth: Auth::Anonymous, requests: 0, set_aside: VecDeque::new(), notice: None };
        client.settle_auth().await?;
        Ok(client)
    }

    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Why the relay did not accept our AUTH, if it did not. Untrusted text.
    pub fn auth_refusal(&self) -> Option<&str> {
        if let Auth::Refused(why) = &self.auth { Some(why) } else { None }
    }

    pub fn is_authenticated(&self) -> bool {
        self.auth == Auth::Done
    }

    /// Sends an event and waits for its OK; once more after AUTH when the relay asks for that.
    pub async fn publish(&mut self, event: &RawEvent) -> Result<Verdict, ClientError> {
        let first = self.publish_once(event).await?;
        if first.accepted || !self.may_retry(&first.message).await? {
            return Ok(first);
        }
        self.publish_once(event).await
    }

    async fn publish_once(&mut self, event: &RawEvent) -> Result<Verdict, ClientError> {
        self.send(format!(r#"["EVENT",{}]"#, event.to_json())).await?;
        let wanted = event.id.to_hex();
        loop {
            if let RelayMsg::Ok { id, accepted, message } = self.receive("waiting for OK").await?
                && id == wanted
            {
                return Ok(Verdict { accepted, message });
            }
        }
    }

    /// Opens a subscription. Read it with [`Self::next_update`].
    pub async fn subscribe(&mut self, filters: Vec<Filter>) -> Result<Subscription, ClientError> {
        let id = self.next_id();
        self.send(request("REQ", &id, &filters)).await?;
        Ok(Subscription { id, filters, caught_up: false, asked_again: false })
    }

    /// The next thing that happens to a subscription. Live, it waits for as long as the relay is there.
    pub async fn next_update(&mut self, sub: &mut Subscription) -> Result<Update, ClientError> {
        loop {
            let message =
                if sub.caught_up { self.receive_live().await? } else { self.receive("waiting for events").await? };
            match message {
                RelayMsg::Event { sub: id, event } if id == sub.id => {
                    let id = event.id;
                    return Ok(match event.verify() {
                        Ok(event) => Update::Event(Box::new(event)),
                        Err(why) => Update::Forged { id, why },
                    });
                }
                RelayMsg::Eose { sub: id } if id == sub.id => {
                    sub.caught_up = true;
                    return Ok(Update::CaughtUp);
                }
                RelayMsg::Closed { sub: id, message } if id == sub.id => {
                    if sub.asked_again || !self.may_retry(&message).await? {
                        return Ok(Update::Closed(message));
                    }
                    sub.asked_again = true;
                    self.send(request("REQ", &sub.id, &sub.filters)).await?;
                }
                _ => {}
            }
        }
    }

    /// Ends a subscription.
    pub async fn unsubscribe(&mut self, sub: Subscription) -> Result<(), ClientError> {
        self.send(format!(r#"["CLOSE",{}]"#, quote(&sub.id))).await
    }

    /// Every stored event that matches, as the relay orders them. What does not verify is left out.
    pub async fn query(&mut self, filters: Vec<Filter>) -> Result<Vec<VerifiedEvent>, ClientError> {
        let mut sub = self.subscribe(filters).await?;
        let mut found = Vec::new();
        loop {
            match self.next_update(&mut sub).await? {
                Update::Event(event) => found.push(*event),
                Update::Forged { .. } => {}
                Update::CaughtUp => break,
                Update::Closed(message) => return Err(ClientError::Refused { url: self.url.to_string(), message }),
            }
        }
        self.unsubscribe(sub).await?;
        Ok(found)
    }

    /// Asks how many events match (NIP-45).
    pub async fn count(&mut self, filters: &[Filter]) -> Result<Counted, ClientError> {
        let mut asked_again = false;
        loop {
            let wanted = self.next_id();
            self.send(request("COUNT", &wanted, filters)).await?;
            let refused = loop {
                match self.receive("waiting for COUNT").await? {
                    RelayMsg::Count { sub, counted } if sub == wanted => return Ok(counted),
                    RelayMsg::Closed { sub, message } if sub == wanted => break message,
                    _ => {}
                }
            };
            if asked_again || !self.may_retry(&refused).await? {
                return Err(ClientError::Refused { url: self.url.to_string(), message: refused });
            }
            asked_again = true;
        }
    }

    /// Sends one frame as it is.
    pub async fn send(&mut self, text: String) -> Result<(), ClientError> {
        let sending = self.socket.send(Message::text(text));
        match timeout(self.options.timeout, sending).await {
            Ok(sent) => sent.map_err(|cause| ClientError::Lost { url: self.url.to_string(), cause: cause.to_string() }),
            Err(_) => Err(self.timed_out("sending")),
        }
    }

    /// The next message, within the timeout. Challenges are answered on the way.
    pub async fn receive(&mut self, doing: &'static str) -> Result<RelayMsg, ClientError> {
        let deadline = Instant::now() + self.options.timeout;
        match self.receive_until(deadline).await? {
            Some(message) => Ok(message),
            None => Err(self.timed_out(doing)),
        }
    }

    /// The next message, however long it takes, while the relay answers pings.
    pub async fn receive_live(&mut self) -> Result<RelayMsg, ClientError> {
        let mut pinged = false;
        loop {
            match self.receive_until(Instant::now() + LIVE_SILENCE_MAX).await? {
                Some(RelayMsg::Pong) => pinged = false,
                Some(message) => return Ok(message),
                None if pinged => return Err(self.timed_out("waiting for a pong")),
                None => {
                    pinged = true;
                    let ping = self.socket.send(Message::Ping(Default::default())).await;
                    ping.map_err(|cause| ClientError::Lost { url: self.url.to_string(), cause: cause.to_string() })?;
                }
            }
        }
    }

    /// Closes politely; a relay that does not answer within a second is left.
    pub async fn close(mut self) {
        let _ = timeout(Duration::from_secs(1), self.socket.close(None)).await;
    }

    /// Whether a refusal asks for AUTH, and we are authenticated since.
    async fn may_retry(&mut self, refusal: &str) -> Result<bool, ClientError> {
        if !refusal.starts_with("auth-required:") || self.options.credentials.is_none() || self.auth == Auth::Done {
            return Ok(false);
        }
        self.settle_auth().await?;
        Ok(self.auth == Auth::Done)
    }

    /// Waits until our AUTH is answered, or until it is clear that the relay asks for none.
    async fn settle_auth(&mut self) -> Result<(), ClientError> {
        if self.options.credentials.is_none() {
            return Ok(());
        }
        let mut deadline = self.auth_deadline();
        while !self.is_settled() {
            let waiting_for_challenge = self.auth == Auth::Anonymous;
            let Some(message) = self.read_until(deadline).await? else { break };
            if waiting_for_challenge && self.auth != Auth::Anonymous {
                deadline = self.auth_deadline();
            }
            let spent = match message {
                RelayMsg::Auth(_) | RelayMsg::Pong | RelayMsg::Notice(_) => true,
                // The only OK that settles is the one to our AUTH.
                RelayMsg::Ok { .. } => self.is_settled(),
                _ => false,
            };
            if !spent {
                self.set_aside(message)?;
            }
        }
        if let Auth::Asked(_) = self.auth { Err(self.timed_out("waiting for the answer to AUTH")) } else { Ok(()) }
    }

    fn auth_deadline(&self) -> Instant {
        let patience = match self.auth {
            Auth::Anonymous => CHALLENGE_WAIT.min(self.options.timeout),
            _ => self.options.timeout,
        };
        Instant::now() + patience
    }

    fn is_settled(&self) -> bool {
        matches!(self.auth, Auth::Done | Auth::Refused(_))
    }

    fn set_aside(&mut self, message: RelayMsg) -> Result<(), ClientError> {
        if self.set_aside.len() >= SET_ASIDE_MAX {
            let cause = "it sends much, and no answer to AUTH".into();
            return Err(ClientError::Protocol { url: self.url.to_string(), cause });
        }
        self.set_aside.push_back(message);
        Ok(())
    }

    async fn authenticate(&mut self, challenge: &str) -> Result<(), ClientError> {
        let Some(credentials) = &self.options.credentials else { return Ok(()) };
        let mut draft =
            Draft::new(Kind::AUTH, unix_now(), "").tag(["relay", self.url.as_str()]).tag(["challenge", challenge]);
        if let Some(attestation) = &credentials.attestation {
            draft = draft.tag(attestation);
        }
        let event = credentials.keys.sign(draft);
        self.auth = Auth::Asked(event.id);
        self.send(format!(r#"["AUTH",{}]"#, event.to_json())).await
    }

    async fn receive_until(&mut self, deadline: Instant) -> Result<Option<RelayMsg>, ClientError> {
        match self.set_aside.pop_front() {
            Some(message) => Ok(Some(message)),
            None => self.read_until(deadline).await,
        }
    }

    /// Reads from the socket and takes note of challenges, answers to AUTH and notices. `None`: the time is up.
    async fn read_until(&mut self, deadline: Instant) -> Result<Option<RelayMsg>, ClientError> {
        loop {
            let Ok(frame) = timeout_at(deadline, self.socket.next()).await else { return Ok(None) };
            let lost = |cause: String| ClientError::Lost { url: self.url.to_string(), cause };
            let text = match frame {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Pong(_))) => return Ok(Some(RelayMsg::Pong)),
                Some(Ok(Message::Close(frame))) => {
                    let reason = frame.map(|frame| frame.reason.to_string()).filter(|reason| !reason.is_empty());
                    return Err(lost(reason.unwrap_or_else(|| "the relay closed it".into())));
                }
                Some(Ok(_)) => continue,
                Some(Err(cause)) => return Err(lost(cause.to_string())),
                None => return Err(lost("the relay closed it".into())),
            };
            // What we cannot read (a NIP that we do not know, a malformed event) is nobody's answer.
            let Some(message) = RelayMsg::decode(&text) else { continue };
            self.note(&message).await?;
            return Ok(Some(message));
        }
    }

    async fn note(&mut self, message: &RelayMsg) -> Result<(), ClientError> {
        match message {
            RelayMsg::Auth(challenge) => self.authenticate(challenge).await?,
            RelayMsg::Notice(text) => self.notice = Some(text.clone()),
            RelayMsg::Ok { id, accepted, message } => {
                if let Auth::Asked(asked) = self.auth
                    && *id == asked.to_hex()
                {
                    self.auth = if *accepted { Auth::Done } else { Auth::Refused(message.clone()) };
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn timed_out(&self, doing: &'static str) -> ClientError {
        let (url, waited) = (self.url.to_string(), self.options.timeout);
        ClientError::Timeout { url, waited, doing, notice: self.notice.clone() }
    }

    fn next_id(&mut self) -> String {
        self.requests += 1;
        format!("q{}", self.requests)
    }
}

/// `[verb, id, filter, ...]`.
fn request(verb: &str, id: &str, filters: &[Filter]) -> String {
    let mut out = format!(r#"["{verb}",{}"#, quote(id));
    for filter in filters {
        out.push(',');
        out.push_str(&serde_json::to_string(filter).expect("invariant: a filter is strings and numbers"));
    }
    out.push(']');
    out
}
