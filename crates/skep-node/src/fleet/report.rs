//! How an agent is shown: from its tasks while it runs, from its records alone while it does not.

use std::collections::BTreeMap;
use std::path::Path;

use skep_agent::driver::pauses;
use skep_core::leader::{RelayLease, Role as LeaderRole, WaitsFor};
use skep_core::queue::{Row, State as MessageState};
use skep_proto::control::{
    AgentStatus, Claim, InboxRow, LeaseState, LinkState, LinkStatus, OutboxStatus, Role, RunState, Standing, TurnStatus,
};
use skep_proto::pause::Held;
use skep_proto::{Timestamp, limits};
use skep_store::agent::Message;
use skep_store::{AgentStore, StoreError};

use super::{Facts, Member};
use crate::agent::reconnect::Connection;
use crate::agent::{Contact, RECORDS, State, locks};

/// Running turns that are shown of one agent: more than `parallel` allows.
const TURNS_MAX: u32 = 64;

/// One agent of this process.
pub fn of_member(member: &Member) -> AgentStatus {
    let facts = &member.facts;
    match &member.contact {
        // What its records say holds it all the same.
        Err(why) => AgentStatus { state: RunState::Failed, reason: cut(why), ..at_rest(facts, &facts.directory) },
        Ok(contact) => {
            let status = running(facts, contact);
            status.unwrap_or_else(|error| AgentStatus {
                reason: cut(&format!("its records cannot be read: {error}")),
                ..bare(facts, RunState::Running)
            })
        }
    }
}

/// An agent that no process of this home runs, by what it left behind below `<home>/agents/<name>`.
pub fn at_rest(facts: &Facts, directory: &Path) -> AgentStatus {
    let status = bare(facts, RunState::Stopped);
    let records = directory.join(RECORDS);
    if !records.exists() {
        return AgentStatus { reason: "it never ran here".into(), ..status };
    }
    let read = || {
        let store = AgentStore::open_to_read(&records)?;
        let (waiting, refused) = store.outbox_len()?;
        Ok::<_, StoreError>(AgentStatus {
            outbox: OutboxStatus { waiting, refused },
            inbox: counts(&store)?,
            paused: held(&store)?,
            changed_at: store.changed_at()?,
            ..status.clone()
        })
    };
    read().unwrap_or_else(|error| AgentStatus { reason: cut(&error.to_string()), ..status.clone() })
}

/// The newest messages of an agent.
pub fn inbox(store: &AgentStore, agent: &str, state: Option<&str>, most: u32) -> Result<Vec<InboxRow>, StoreError> {
    let messages = match state {
        Some(state) => store.messages_in(state, most)?,
        None => store.newest_messages(most)?,
    };
    let held = held(store)?;
    Ok(messages.iter().map(|message| inbox_row(agent, message, held.first())).collect())
}

/// Why no new turns begin.
fn held(store: &AgentStore) -> Result<Vec<Held>, StoreError> {
    let all = pauses(store)?.all().into_iter();
    Ok(all.map(|held| Held { reason: cut(&held.reason), ..held }).collect())
}

/// The same of an agent that does not run; nothing, if it never did.
pub fn inbox_at_rest(
    directory: &Path,
    agent: &str,
    state: Option<&str>,
    most: u32,
) -> Result<Vec<InboxRow>, StoreError> {
    let records = directory.join(RECORDS);
    if !records.exists() {
        return Ok(Vec::new());
    }
    inbox(&AgentStore::open_to_read(&records)?, agent, state, most)
}

/// A message that waits is held by a pause before anything else.
fn inbox_row(agent: &str, message: &Message, held: Option<&Held>) -> InboxRow {
    let row = row_of(message);
    let answer = row.as_ref().and_then(|row| match row.state {
        MessageState::Answered { event } => event,
        _ => None,
    });
    InboxRow {
        agent: agent.to_owned(),
        id: message.event.id,
        from: message.event.pubkey,
        channel: message.channel.clone(),
        state: message.state.name.clone(),
        since: message.state.at,
        reason: match (&row, held.filter(|_| ["stored", "queued"].contains(&message.state.name.as_str()))) {
            (_, Some(held)) => cut(&format!("paused {held}")),
            (Some(row), None) => cut(&row.reason),
            (None, None) => String::new(),
        },
        attempts: row.map_or(0, |row| row.attempts),
        answer,
    }
}

fn row_of(message: &Message) -> Option<Row> {
    serde_json::from_str(&message.state.detail).ok()
}

fn running(facts: &Facts, contact: &Contact) -> Result<AgentStatus, StoreError> {
    let (now, store) = (contact.status()?, contact.store());
    let (state, reason) = match &now.state {
        State::Running => (RunState::Running, String::new()),
        State::Restarts { why, wait } => (RunState::Restarts, format!("{why}; again in {} s", wait.as_secs().max(1))),
        State::Stopped => (RunState::Stopped, String::new()),
    };
    let standing = now.standing.map(|standing| Standing {
        role: role(standing.role.clone()),
        lease: lease(standing.lease),
        said: standing.said.as_deref().map(cut),
        claim: claim(facts),
    });
    Ok(AgentStatus {
        reason: cut(&reason),
        standing,
        links: now.links.into_iter().map(|(relay, connection)| link(relay, connection)).collect(),
        outbox: OutboxStatus { waiting: now.outbox.0, refused: now.outbox.1 },
        inbox: counts(store)?,
        turns: turns(store)?,
        paused: held(store)?,
        changed_at: store.changed_at()?,
        ..bare(facts, state)
    })
}

fn bare(facts: &Facts, state: RunState) -> AgentStatus {
    AgentStatus {
        name: facts.name.clone(),
        pubkey: facts.pubkey,
        owner: facts.owner,
        backend: facts.backend.clone(),
        state,
        reason: String::new(),
        standing: None,
        links: Vec::new(),
        outbox: OutboxStatus::default(),
        inbox: BTreeMap::new(),
        turns: Vec::new(),
        paused: Vec::new(),
        changed_at: None,
    }
}

fn counts(store: &AgentStore) -> Result<BTreeMap<String, u64>, StoreError> {
    Ok(store.count_states()?.into_iter().collect())
}

fn turns(store: &AgentStore) -> Result<Vec<TurnStatus>, StoreError> {
    let turn = |message: Message| match row_of(&message)?.state {
        MessageState::Prompted { turn, .. } => Some(TurnStatus {
            turn: turn.0,
            message: message.event.id,
            channel: message.channel,
            since: message.state.at,
        }),
        _ => None,
    };
    Ok(store.messages_in("prompted", TURNS_MAX)?.into_iter().filter_map(turn).collect())
}

fn role(role: LeaderRole) -> Role {
    match role {
        LeaderRole::Prompter(epoch) => Role::Leads { epoch },
        LeaderRole::Waits(WaitsFor::Hold) => Role::WaitsForHold,
        LeaderRole::Waits(WaitsFor::Lease) => Role::WaitsForLease,
        LeaderRole::Follows(instance) => Role::Follows { instance },
    }
}

fn lease(lease: RelayLease) -> LeaseState {
    match lease {
        RelayLease::Held(_) => LeaseState::Held,
        RelayLease::Others => LeaseState::Others,
        RelayLease::Unknown => LeaseState::Unknown,
        RelayLease::None => LeaseState::None,
    }
}

fn claim(facts: &Facts) -> Option<Claim> {
    let file = locks::peek(facts.locks.as_deref()?, &facts.pubkey?)?;
    let at: Timestamp = file.claimed_at.secs();
    Some(Claim { instance: file.instance_id, pid: file.pid, at })
}

fn link(relay: String, connection: Connection) -> LinkStatus {
    let (state, reason) = match connection {
        Connection::Connecting => (LinkState::Connecting, String::new()),
        Connection::CatchingUp => (LinkState::CatchingUp, String::new()),
        Connection::Live => (LinkState::Live, String::new()),
        Connection::Waits { why, wait } => (LinkState::Waits, format!("{why}; again in {} s", wait.as_secs().max(1))),
        Connection::Stopped(stop) => (LinkState::Stopped, stop.to_string()),
    };
    LinkStatus { relay, state, reason: cut(&reason) }
}

/// The beginning of a text that may be anybody's.
pub fn cut(text: &str) -> String {
    let mut end = text.len().min(limits::CONTROL_REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
