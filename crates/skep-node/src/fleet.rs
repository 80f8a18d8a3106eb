//! The agents of this process, for whoever looks at them or asks something of them.
//!
//! Job: one table of what runs and what could not be started; an answer to each [`Ask`] of the control socket.
//! Neighbours: [`crate::node`] and `skep agent run` put agents in; [`crate::control`] carries questions here.
//! Must not: keep an agent running (whoever started it does), or decide anything about a message.

mod act;
pub mod report;
pub mod rest;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_proto::control::{AgentStatus, Answer, Ask, InboxRow, NodeStatus, RelayStatus};
use skep_proto::name::AgentName;
use skep_proto::pause::Pause;
use skep_proto::{PubKey, RawEvent, Timestamp, limits};
use tokio::sync::{mpsc, oneshot};

use crate::agent::settings::AgentSettings;
use crate::agent::{Contact, Plan};
use crate::clock::unix_now;

/// What is known of an agent whether it runs or not.
#[derive(Debug, Clone)]
pub struct Facts {
    pub name: String,
    /// `None`: its key cannot be read.
    pub pubkey: Option<PubKey>,
    pub owner: Option<PubKey>,
    pub backend: String,
    pub relays: Vec<String>,
    /// `<home>/agents/<name>`: its records.
    pub directory: PathBuf,
    /// Where its lock file is; `None` when that is not known.
    pub locks: Option<PathBuf>,
}

impl Facts {
    /// From its settings alone, below a home.
    pub fn of_settings(settings: &AgentSettings, pubkey: Option<PubKey>, home: &Path) -> Self {
        let owner = settings.auth.get(1).and_then(|owner| owner.parse().ok());
        Self {
            name: settings.name.clone(),
            pubkey,
            owner,
            backend: settings.backend_name(),
            relays: settings.relays.clone(),
            directory: home.join("agents").join(&settings.name),
            locks: None,
        }
    }

    pub fn of_plan(settings: &AgentSettings, plan: &Plan, home: &Path) -> Self {
        let pubkey = plan.credentials.keys.pubkey();
        Self { locks: Some(plan.locks.clone()), ..Self::of_settings(settings, Some(pubkey), home) }
    }
}

/// One agent of this process.
#[derive(Debug, Clone)]
pub struct Member {
    pub facts: Facts,
    /// How to reach it, or why it could not be started.
    pub contact: Result<Contact, String>,
}

/// A wish for [`crate::node::Node::run`]: to read the configuration again. It is answered.
pub type Reload = oneshot::Sender<Answer>;

/// Wishes that wait; more are refused.
const RELOADS_MAX: usize = 4;

/// The table. Lives as long as anybody may ask.
#[derive(Debug)]
pub struct Fleet {
    started_at: Timestamp,
    relay: Option<RelayStatus>,
    /// A lock, because questions come from many connections; held to look up or to put in, never over an await.
    members: Mutex<BTreeMap<String, Member>>,
    reloads: Option<mpsc::Sender<Reload>>,
}

impl Fleet {
    /// One that stays as it was started.
    pub fn new(relay: Option<RelayStatus>) -> Self {
        Self { started_at: unix_now(), relay, members: Mutex::default(), reloads: None }
    }

    /// One that whoever holds the receiver adds to.
    pub fn open(relay: Option<RelayStatus>) -> (Self, mpsc::Receiver<Reload>) {
        let (reloads, wishes) = mpsc::channel(RELOADS_MAX);
        (Self { reloads: Some(reloads), ..Self::new(relay) }, wishes)
    }

    /// Puts an agent in, in place of the one of that name.
    pub fn put(&self, facts: Facts, contact: Result<Contact, String>) {
        self.members().insert(facts.name.clone(), Member { facts, contact });
    }

    /// Whether an agent of this name was started.
    pub fn is_started(&self, name: &str) -> bool {
        self.members().get(name).is_some_and(|member| member.contact.is_ok())
    }

    /// What all of it is now.
    pub async fn status(self: &Arc<Self>) -> NodeStatus {
        let (fleet, members) = (Arc::clone(self), self.chosen(None));
        let reported = tokio::task::spawn_blocking(move || members.iter().map(report::of_member).collect());
        fleet.node_status(reported.await.unwrap_or_default())
    }

    fn node_status(&self, agents: Vec<AgentStatus>) -> NodeStatus {
        NodeStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            at: unix_now(),
            relay: self.relay.clone(),
            agents,
        }
    }

    /// Does what is asked, or says why not.
    pub async fn answer(self: &Arc<Self>, ask: Ask) -> Answer {
        match ask {
            Ask::Status => Answer::Status(Box::new(self.status().await)),
            Ask::Inbox { agent, state, limit } => self.inbox(agent.as_ref(), state, limit).await,
            Ask::Reload => self.reload().await,
            Ask::Pause { agent, reason } => self.act(agent.as_ref(), &act::Act::Pause(reason)).await,
            Ask::Resume { agent } => self.act(agent.as_ref(), &act::Act::Resume).await,
            Ask::Heed { event } => self.heed(*event).await,
            Ask::Retry { agent, message } => self.act(Some(&agent), &act::Act::Retry(message)).await,
            Ask::Claim { agent, steal } => self.act(Some(&agent), &act::Act::Claim { is_steal: steal }).await,
            Ask::Cancel { agent, channel } => self.act(Some(&agent), &act::Act::Cancel(channel)).await,
        }
    }

    /// The owner's word, given to those of its agents that it is about.
    async fn heed(&self, event: RawEvent) -> Answer {
        let refused = |why: String| Answer::Refused { why };
        let event = match event.verify() {
            Ok(event) => event.raw().clone(),
            Err(error) => return refused(error.to_string()),
        };
        let Some((reach, _)) = Pause::from_event(&event) else { return refused("this says nothing to agents".into()) };
        let is_meant =
            |facts: &Facts| facts.owner == Some(event.pubkey) && facts.pubkey.is_some_and(|agent| reach.covers(&agent));
        let meant: Vec<Member> = self.chosen(None).into_iter().filter(|member| is_meant(&member.facts)).collect();
        let act = act::Act::Heed(Box::new(event));
        let each = meant.iter().map(|member| act::carry_out(member, &act));
        Answer::Done { outcomes: futures_util::future::join_all(each).await }
    }

    async fn act(&self, agent: Option<&AgentName>, act: &act::Act) -> Answer {
        let members = self.chosen(agent);
        if let (Some(agent), true) = (agent, members.is_empty()) {
            return Answer::Refused { why: format!("no agent {agent} runs in this process") };
        }
        let each = members.iter().map(|member| act::carry_out(member, act));
        Answer::Done { outcomes: futures_util::future::join_all(each).await }
    }

    async fn inbox(&self, agent: Option<&AgentName>, state: Option<String>, limit: Option<u32>) -> Answer {
        let members = self.chosen(agent);
        let most = limit.unwrap_or(limits::CONTROL_MESSAGES_MAX).min(limits::CONTROL_MESSAGES_MAX);
        let read = tokio::task::spawn_blocking(move || {
            let mut rows: Vec<InboxRow> = Vec::new();
            for member in &members {
                let Ok(contact) = &member.contact else { continue };
                rows.extend(report::inbox(contact.store(), &member.facts.name, state.as_deref(), most)?);
            }
            rows.sort_by_key(|row| std::cmp::Reverse(row.since));
            rows.truncate(limits::CONTROL_MESSAGES_MAX as usize);
            Ok::<_, skep_store::StoreError>(rows)
        });
        match read.await {
            Ok(Ok(messages)) => Answer::Inbox { messages },
            Ok(Err(error)) => Answer::Refused { why: error.to_string() },
            Err(_) => Answer::Refused { why: "the records could not be read".into() },
        }
    }

    async fn reload(&self) -> Answer {
        let refused = |why: &str| Answer::Refused { why: why.to_owned() };
        let Some(reloads) = &self.reloads else {
            return refused("this process runs the agents that it was started with");
        };
        let (reply, answer) = oneshot::channel();
        if reloads.try_send(reply).is_err() {
            return refused("it is busy with the configuration already");
        }
        answer.await.unwrap_or_else(|_| refused("it is stopping"))
    }

    fn chosen(&self, agent: Option<&AgentName>) -> Vec<Member> {
        let members = self.members();
        members.values().filter(|member| agent.is_none_or(|name| name.as_str() == member.facts.name)).cloned().collect()
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<String, Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
