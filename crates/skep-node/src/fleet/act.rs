//! What a person asks of one agent, carried out, with one line about what came of it.

use std::time::Duration;

use skep_agent::driver::Command;
use skep_core::leader::{RelayLease, Role, WaitsFor};
use skep_core::queue::State;
use skep_proto::control::Outcome;
use skep_proto::{EventId, RawEvent, limits};
use tokio::time::timeout;

use super::Member;
use crate::agent::{Contact, NotRunning, locks};
use crate::clock::unix_now_ms;

const ACT: Duration = Duration::from_secs(limits::CONTROL_ACT_SECS);

/// Dead messages that one command tries again; a second command takes the next.
const RETRIES_MAX: u32 = limits::CONTROL_MESSAGES_MAX;

pub(super) enum Act {
    Pause(String),
    Resume,
    /// The owner's word, verified.
    Heed(Box<RawEvent>),
    /// `None`: all that are dead.
    Retry(Option<EventId>),
    Claim {
        is_steal: bool,
    },
    Cancel(Option<String>),
}

/// Words for a person: what was done, or why it was not.
type Said = Result<String, String>;

pub(super) async fn carry_out(member: &Member, act: &Act) -> Outcome {
    let said = match &member.contact {
        Err(why) => Err(format!("it does not run: {why}")),
        Ok(contact) => match timeout(ACT, tell(member, contact, act)).await {
            Ok(said) => said,
            Err(_) => Err(format!("no answer within {} s; skep status shows what it does", ACT.as_secs())),
        },
    };
    let (is_done, text) = match said {
        Ok(text) => (true, text),
        Err(text) => (false, text),
    };
    Outcome { agent: member.facts.name.clone(), is_done, text }
}

async fn tell(member: &Member, contact: &Contact, act: &Act) -> Said {
    match act {
        Act::Pause(reason) => pause(member, contact, reason).await,
        Act::Resume => command(contact, Command::Resume).await,
        Act::Heed(event) => command(contact, Command::Heed(event.clone())).await,
        Act::Cancel(channel) => command(contact, Command::Cancel { channel: channel.clone() }).await,
        Act::Retry(message) => retry(member, contact, *message).await,
        Act::Claim { is_steal } => claim(member, contact, *is_steal).await,
    }
}

/// A pause is a fact of one instance: another that leads meanwhile knows nothing of it.
async fn pause(member: &Member, contact: &Contact, reason: &str) -> Said {
    let said = command(contact, Command::Pause(reason.to_owned())).await?;
    match leader_elsewhere(member, contact) {
        Some(leader) => Err(format!("paused here only: this instance follows {leader}, which is not paused")),
        None => Ok(said),
    }
}

/// Who begins turns in place of this instance.
fn leader_elsewhere(member: &Member, contact: &Contact) -> Option<String> {
    let standing = contact.standing().ok()?.borrow().clone();
    match standing.role {
        Role::Follows(Some(other)) if is_alive(member) => Some(describe(member, &other)),
        Role::Waits(WaitsFor::Lease) if standing.lease == RelayLease::Others => Some("one on another machine".into()),
        _ => None,
    }
}

async fn command(contact: &Contact, command: Command) -> Said {
    contact.command(command).await.unwrap_or_else(|error| Err(error.to_string()))
}

/// A retry is told to every instance of the agent, by an event of its own: whoever leads does it.
async fn retry(member: &Member, contact: &Contact, message: Option<EventId>) -> Said {
    let said = match message {
        Some(message) => Some(command(contact, Command::Retry(message)).await?),
        None => retry_dead(contact).await?,
    };
    Ok(match (said, leader_elsewhere(member, contact)) {
        (None, _) => "no message is dead".into(),
        (Some(said), None) => said,
        (Some(said), Some(leader)) => format!("{said}, by {leader}: that one leads, and is told through the relay"),
    })
}

/// `None`: there is none.
async fn retry_dead(contact: &Contact) -> Result<Option<String>, String> {
    let store = contact.store().clone();
    let read = tokio::task::spawn_blocking(move || store.messages_in(State::Dead.as_str(), RETRIES_MAX));
    let dead = match read.await {
        Ok(Ok(dead)) => dead,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("the records could not be read".into()),
    };
    // Oldest first, as they came.
    for message in dead.iter().rev() {
        command(contact, Command::Retry(message.event.id)).await?;
    }
    Ok(match dead.len() {
        0 => None,
        1 => Some("1 dead message will be tried again".into()),
        n => Some(format!("{n} dead messages will be tried again")),
    })
}

async fn claim(member: &Member, contact: &Contact, is_steal: bool) -> Said {
    let not_running = |error: NotRunning| error.to_string();
    let mut standing = contact.standing().map_err(not_running)?;
    let role = standing.borrow().role.clone();
    let steal = format!("to take over all the same: skep agent steal {}", member.facts.name);
    match role {
        Role::Prompter(_) => return Ok("it leads already".into()),
        Role::Waits(WaitsFor::Lease) if !is_steal => {
            let said = standing.borrow().said.clone().unwrap_or_else(|| "the relay has not answered".into());
            return Err(format!("the relay's lease is not ours ({said}); {steal}"));
        }
        Role::Follows(Some(other)) if !is_steal && is_alive(member) => {
            return Err(format!("{} leads; {steal}", describe(member, &other)));
        }
        _ => {}
    }
    contact.claim().await.map_err(not_running)?;
    match standing.wait_for(|now| matches!(now.role, Role::Prompter(_))).await {
        Ok(_) => Ok("it leads now".into()),
        Err(_) => Err("it was stopped meanwhile".into()),
    }
}

fn is_alive(member: &Member) -> bool {
    peek(member).is_some_and(|claim| locks::is_alive(&claim, unix_now_ms()))
}

/// The leader by its process, which a person can find, else by its name.
fn describe(member: &Member, instance: &str) -> String {
    match peek(member).filter(|claim| claim.instance_id == instance) {
        Some(claim) => format!("process {} on this machine", claim.pid),
        None => format!("instance {instance}"),
    }
}

fn peek(member: &Member) -> Option<skep_core::leader::LockFile> {
    locks::peek(member.facts.locks.as_deref()?, &member.facts.pubkey?)
}
