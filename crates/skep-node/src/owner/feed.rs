//! What a relay has for somebody who waits, through lost connections.
//!
//! The subscription is asked for anew after each connection, so what was stored meanwhile comes then; what came before
//! comes again, and whoever listens takes each thing once.
//! Lifetime: dropped, it ends. Must not: hold events when nobody listens (it stops reading instead).

use std::time::Duration;

use skep_proto::{Filter, RawEvent};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::agent::reconnect::Backoff;
use crate::client::{Client, ClientError, Options, Subscription, Update};

/// Events that wait for the listener.
const HEARD_MAX: usize = 256;

/// What a feed brings.
#[derive(Debug)]
pub enum Heard {
    /// What the relay had when the subscription began, or began again; oldest first.
    Stored(Vec<RawEvent>),
    Event(Box<RawEvent>),
    /// The connection is gone, for this reason; it is tried again after this time.
    Lost {
        why: String,
        wait: Duration,
    },
    /// The relay serves this no more: nothing will come.
    Refused(String),
}

/// A subscription that is kept up.
#[derive(Debug)]
pub struct Feed {
    heard: mpsc::Receiver<Heard>,
    /// Owns the connection.
    _task: AbortOnDropHandle<()>,
}

impl Feed {
    /// Connects and subscribes. The first failure is the caller's; later ones are mended here.
    pub async fn open(url: &str, options: Options, filters: Vec<Filter>) -> Result<Self, ClientError> {
        let (says, heard) = mpsc::channel(HEARD_MAX);
        let (client, sub, stored) = subscribe(url, &options, &filters).await?;
        let keeper = Keeper { url: url.to_owned(), options, filters, says };
        let task = AbortOnDropHandle::new(tokio::spawn(keeper.run(client, sub, stored)));
        Ok(Self { heard, _task: task })
    }

    /// The next thing. `None` after [`Heard::Refused`].
    pub async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }
}

/// Why a session ended.
enum Ended {
    Lost(String),
    Refused(String),
    /// Nobody listens any more.
    Alone,
}

struct Keeper {
    url: String,
    options: Options,
    filters: Vec<Filter>,
    says: mpsc::Sender<Heard>,
}

impl Keeper {
    async fn run(self, mut client: Client, mut sub: Subscription, mut stored: Vec<RawEvent>) {
        let mut backoff = Backoff::default();
        loop {
            let since = Instant::now();
            let mut why = match self.follow(&mut client, &mut sub, stored).await {
                Ended::Lost(why) => why,
                Ended::Refused(why) => return drop(self.says.send(Heard::Refused(why)).await),
                Ended::Alone => return,
            };
            let mut lasted = Some(since.elapsed());
            (client, sub, stored) = loop {
                let wait = backoff.next(lasted.take());
                if self.says.send(Heard::Lost { why, wait }).await.is_err() {
                    return;
                }
                sleep(wait).await;
                match subscribe(&self.url, &self.options, &self.filters).await {
                    Ok(all) => break all,
                    Err(ClientError::Refused { message, .. }) if !crate::agent::reconnect::is_passing(&message) => {
                        return drop(self.says.send(Heard::Refused(message)).await);
                    }
                    Err(error) => why = error.to_string(),
                }
            };
        }
    }

    async fn follow(&self, client: &mut Client, sub: &mut Subscription, stored: Vec<RawEvent>) -> Ended {
        if self.says.send(Heard::Stored(stored)).await.is_err() {
            return Ended::Alone;
        }
        loop {
            let heard = match client.next_update(sub).await {
                Ok(Update::Event(event)) => Heard::Event(Box::new(event.raw().clone())),
                Ok(Update::Forged { .. } | Update::CaughtUp) => continue,
                Ok(Update::Closed(why)) if crate::agent::reconnect::is_passing(&why) => return Ended::Lost(why),
                Ok(Update::Closed(why)) => return Ended::Refused(why),
                Err(error) => return Ended::Lost(error.to_string()),
            };
            if self.says.send(heard).await.is_err() {
                return Ended::Alone;
            }
        }
    }
}

/// Connects, subscribes, and reads what is stored.
async fn subscribe(
    url: &str,
    options: &Options,
    filters: &[Filter],
) -> Result<(Client, Subscription, Vec<RawEvent>), ClientError> {
    let mut client = Client::connect(url, options.clone()).await?;
    let mut sub = client.subscribe(filters.to_vec()).await?;
    let mut stored = Vec::new();
    loop {
        match client.next_update(&mut sub).await? {
            Update::Event(event) => stored.push(event.raw().clone()),
            Update::Forged { .. } => {}
            Update::CaughtUp => break,
            Update::Closed(message) => return Err(ClientError::Refused { url: url.to_owned(), message }),
        }
    }
    stored.sort_by_key(|event| (event.created_at, event.id));
    Ok((client, sub, stored))
}
