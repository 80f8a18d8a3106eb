//! The door of an agent: one authenticated connection to a relay, kept up, on which events are submitted.
//!
//! Many events may be on their way at once; each is answered by its own OK. Without a connection each is refused at
//! once, and the caller tries again: nothing waits here that the outbox does not keep.
//! Lifetime: the connection closes when the last [`RemoteDoor`] is dropped.
//! Must not: send an event twice by itself, but for the one time after AUTH; take silence for an answer.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use skep_core::door::{Accepted, Door};
use skep_proto::{EventId, Prefix, RawEvent, Refusal, Seq};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::reconnect::{Backoff, Connection, Failure, check_auth};
use crate::client::{Client, ClientError, Credentials, Options, RelayMsg, Verdict};

/// Submissions that wait for the connection's task; then callers wait.
const JOBS_MAX: usize = 64;

/// Events without an answer. One agent has a few turns at once; a backlog of the outbox goes one by one.
const IN_FLIGHT_MAX: usize = 256;

/// How long an answer may take. A relay that is slower is not usable for leases of 15 s.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// An event did not get an answer. Whether the relay has it is not known: send it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unanswered(pub String);

type Answer = Result<Verdict, Unanswered>;

struct Job {
    event: RawEvent,
    reply: oneshot::Sender<Answer>,
}

/// A handle on the connection. Clones share it.
#[derive(Debug, Clone)]
pub struct RemoteDoor {
    jobs: mpsc::Sender<Job>,
    connection: watch::Receiver<Connection>,
}

impl RemoteDoor {
    /// Starts to connect, and goes on trying.
    pub fn open(url: impl Into<String>, credentials: Credentials) -> Self {
        let (jobs, inbox) = mpsc::channel(JOBS_MAX);
        let (says, connection) = watch::channel(Connection::Connecting);
        let options = Options { credentials: Some(credentials), timeout: ANSWER_MAX };
        tokio::spawn(Keeper { url: url.into(), options, jobs: inbox, says }.run());
        Self { jobs, connection }
    }

    /// What the connection is doing, as it changes.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.clone()
    }

    /// Sends an event and waits for the relay's word on it.
    pub async fn send(&self, event: RawEvent) -> Answer {
        let (reply, answer) = oneshot::channel();
        let gone = || Unanswered("the connection is closed".into());
        self.jobs.send(Job { event, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Door for RemoteDoor {
    async fn submit(&self, event: RawEvent) -> Result<Accepted, Refusal> {
        match self.send(event).await {
            Ok(verdict) => read(&verdict),
            Err(Unanswered(why)) => Err(Prefix::Error.because(why)),
        }
    }
}

/// What a relay's OK says. It does not tell the number of the commit, so that is 0.
pub fn read(verdict: &Verdict) -> Result<Accepted, Refusal> {
    if !verdict.accepted {
        let refusal = Refusal::parse(&verdict.message);
        return if refusal.prefix == Prefix::Duplicate { Ok(Accepted::Duplicate) } else { Err(refusal) };
    }
    Ok(match verdict.message.as_str() {
        "" => Accepted::Stored(Seq(0)),
        text if text.starts_with("duplicate:") => Accepted::Duplicate,
        text => Accepted::Answered(text.to_owned()),
    })
}

/// The task that owns the connection.
struct Keeper {
    url: String,
    options: Options,
    jobs: mpsc::Receiver<Job>,
    says: watch::Sender<Connection>,
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            self.says.send_replace(Connection::Connecting);
            let (url, options) = (self.url.clone(), self.options.clone());
            let Some(connected) = self.refusing("not connected yet", connect(&url, options)).await else { return };
            let (why, lasted) = match connected {
                Ok(client) => {
                    self.says.send_replace(Connection::Live);
                    let since = Instant::now();
                    let Some(why) = self.serve(client).await else { return };
                    (why, Some(since.elapsed()))
                }
                Err(Failure::Passing(why)) => (why, None),
                Err(Failure::Stop(stop)) => {
                    let why = stop.to_string();
                    self.says.send_replace(Connection::Stopped(stop));
                    self.refusing(&why, std::future::pending::<()>()).await;
                    return;
                }
            };
            let wait = backoff.next(lasted);
            tracing::debug!(relay = self.url, why, ?wait, "no connection");
            self.says.send_replace(Connection::Waits { why: why.clone(), wait });
            if self.refusing(&why, sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// Runs a future, and refuses what is submitted meanwhile. `None`: nobody needs the connection any more.
    async fn refusing<T>(&mut self, why: &str, until: impl Future<Output = T>) -> Option<T> {
        let mut until = pin!(until);
        loop {
            tokio::select! {
                biased;
                done = &mut until => return Some(done),
                job = self.jobs.recv() => drop(job?.reply.send(Err(Unanswered(why.to_owned())))),
            }
        }
    }

    /// Carries events and answers until the connection is lost. `None`: nobody needs it any more.
    async fn serve(&mut self, client: Client) -> Option<String> {
        let mut line = Line { client, waiting: HashMap::new() };
        loop {
            let (deadline, has_room) = (line.deadline(), line.waiting.len() < IN_FLIGHT_MAX);
            let done = tokio::select! {
                message = line.client.receive_live() => match message {
                    Ok(message) => line.take(message).await,
                    Err(error) => Err(error),
                },
                () = overdue(deadline) => {
                    return Some(line.lose(format!("no answer within {} s", ANSWER_MAX.as_secs())));
                }
                job = self.jobs.recv(), if has_room => match job {
                    Some(job) => line.send(job).await,
                    None => {
                        line.client.close().await;
                        return None;
                    }
                },
            };
            if let Err(error) = done {
                return Some(line.lose(error.to_string()));
            }
        }
    }
}

async fn connect(url: &str, options: Options) -> Result<Client, Failure> {
    let client = Client::connect(url, options).await?;
    check_auth(&client)?;
    Ok(client)
}

async fn overdue(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// One connection and what is on its way there.
struct Line {
    client: Client,
    waiting: HashMap<EventId, Waiting>,
}

struct Waiting {
    event: RawEvent,
    /// Whoever submitted it; two, when it was submitted again meanwhile.
    replies: Vec<oneshot::Sender<Answer>>,
    since: Instant,
    auth: Auth,
}

/// A relay may ask for AUTH only when it sees an event.
#[derive(PartialEq, Eq)]
enum Auth {
    NotAsked,
    /// To be sent again once we are authenticated; this is what the relay said.
    Asked(String),
    Tried,
}

impl Line {
    fn deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.since + ANSWER_MAX).min()
    }

    async fn send(&mut self, job: Job) -> Result<(), ClientError> {
        if let Some(waiting) = self.waiting.get_mut(&job.event.id) {
            waiting.replies.push(job.reply);
            return Ok(());
        }
        let frame = frame(&job.event);
        let waiting =
            Waiting { event: job.event, replies: vec![job.reply], since: Instant::now(), auth: Auth::NotAsked };
        self.waiting.insert(waiting.event.id, waiting);
        self.client.send(frame).await
    }

    async fn take(&mut self, message: RelayMsg) -> Result<(), ClientError> {
        if let RelayMsg::Ok { id, accepted, message } = message
            && let Ok(id) = id.parse::<EventId>()
            && let Some(waiting) = self.waiting.get_mut(&id)
        {
            if !accepted && waiting.auth == Auth::NotAsked && message.starts_with("auth-required:") {
                waiting.auth = Auth::Asked(message);
            } else {
                self.answer(&id, &Ok(Verdict { accepted, message }));
            }
        }
        self.send_again().await
    }

    /// What the relay wanted AUTH for, once that is settled.
    async fn send_again(&mut self) -> Result<(), ClientError> {
        let refusal = self.client.auth_refusal().map(str::to_owned);
        if refusal.is_none() && !self.client.is_authenticated() {
            return Ok(());
        }
        let asked: Vec<EventId> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| matches!(waiting.auth, Auth::Asked(_)))
            .map(|(id, _)| *id)
            .collect();
        for id in asked {
            match &refusal {
                Some(message) => self.answer(&id, &Ok(Verdict { accepted: false, message: message.clone() })),
                None => {
                    let Some(waiting) = self.waiting.get_mut(&id) else { continue };
                    waiting.auth = Auth::Tried;
                    let frame = frame(&waiting.event);
                    self.client.send(frame).await?;
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, id: &EventId, answer: &Answer) {
        let replies = self.waiting.remove(id).map(|waiting| waiting.replies).unwrap_or_default();
        // Whoever does not wait any more has no use for it.
        replies.into_iter().for_each(|reply| drop(reply.send(answer.clone())));
    }

    /// The connection is gone, and with it the answers; but a relay that asked for AUTH did give one.
    fn lose(&mut self, why: String) -> String {
        for (_, waiting) in self.waiting.drain() {
            let answer = match waiting.auth {
                Auth::Asked(message) => Ok(Verdict { accepted: false, message }),
                Auth::NotAsked | Auth::Tried => Err(Unanswered(why.clone())),
            };
            waiting.replies.into_iter().for_each(|reply| drop(reply.send(answer.clone())));
        }
        why
    }
}

fn frame(event: &RawEvent) -> String {
    format!(r#"["EVENT",{}]"#, event.to_json())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ok_is_read_as_what_the_door_says() {
        let ok = |accepted, message: &str| read(&Verdict { accepted, message: message.into() });
        assert_eq!(ok(true, ""), Ok(Accepted::Stored(Seq(0))));
        assert_eq!(ok(true, "duplicate: have it"), Ok(Accepted::Duplicate));
        assert_eq!(ok(false, "duplicate: have it"), Ok(Accepted::Duplicate));
        assert_eq!(ok(true, "lease: epoch=3 expires=9"), Ok(Accepted::Answered("lease: epoch=3 expires=9".into())));
        assert_eq!(ok(false, "conflict: held by x"), Err(Prefix::Conflict.because("held by x")));
        assert_eq!(ok(false, "go away"), Err(Prefix::Error.because("go away")));
    }
}
