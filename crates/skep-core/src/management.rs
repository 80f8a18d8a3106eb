//! Relay management (NIP-86): each method as a decision over the policy and the registry.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Value, json};
use skep_proto::{EventId, PubKey, Timestamp};

use crate::World;
use crate::world::{Channel, ChannelAccess, Ownership, Policy, Source};

/// A call: `{"method": "...", "params": [...]}`.
#[derive(Debug, Clone, Deserialize)]
pub struct Call {
    pub method: String,
    #[serde(default)]
    pub params: Vec<Value>,
}

/// What a call changes, and what it answers.
#[derive(Debug, PartialEq)]
pub struct Decision {
    pub result: Value,
    pub change: Change,
}

#[derive(Debug, PartialEq)]
pub enum Change {
    Nothing,
    Policy(Box<Policy>),
    Registry { agent: PubKey, row: Ownership },
}

/// Why a call is refused; the text is the `error` of the answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("unknown method {0:?}; see supportedmethods")]
    Unknown(String),
    #[error("{0}")]
    Params(&'static str),
    #[error("this key may not call this method")]
    Forbidden,
}

/// Bytes of a local name (NIP-05): what mail allows before the @ (RFC 5321).
const NAME_BYTES_MAX: usize = 64;

/// The methods that `supportedmethods` names.
pub const METHODS: &[&str] = &[
    "supportedmethods",
    "banpubkey",
    "unbanpubkey",
    "listbannedpubkeys",
    "allowpubkey",
    "unallowpubkey",
    "listallowedpubkeys",
    "banevent",
    "unbanevent",
    "listbannedevents",
    "allowevent",
    "unallowevent",
    "listallowedevents",
    "listeventsneedingmoderation",
    "changerelayname",
    "changerelaydescription",
    "changerelayicon",
    "allowkind",
    "disallowkind",
    "listallowedkinds",
    "listdisallowedkinds",
    "blockip",
    "unblockip",
    "listblockedips",
    "createclaim",
    "revokeclaim",
    "listclaims",
    "assignagent",
    "revokeagent",
    "listagents",
    "setchannel",
    "removechannel",
    "listchannels",
    "addchannelmember",
    "removechannelmember",
    "addname",
    "removename",
    "listnames",
];

/// Decides one call by an authenticated key. `fresh` is randomness as text, for a new claim.
pub fn decide(world: &World, caller: &PubKey, call: &Call, now: Timestamp, fresh: &str) -> Result<Decision, CallError> {
    let is_admin = world.is_admin(caller);
    match call.method.as_str() {
        "assignagent" | "revokeagent" => return decide_agent(world, caller, call, now),
        "addchannelmember" | "removechannelmember" => return decide_channel_member(world, caller, call),
        "removename" if is_admin => check_name_is_ours(world, call)?,
        _ if !is_admin => return Err(CallError::Forbidden),
        _ => {}
    }
    if let Some(result) = list(world, &call.method) {
        return Ok(Decision { result, change: Change::Nothing });
    }
    let mut policy = world.policy.clone();
    let result = change_policy(&mut policy, call, fresh)?;
    Ok(Decision { result, change: Change::Policy(Box::new(policy)) })
}

/// The methods that only read.
fn list(world: &World, method: &str) -> Option<Value> {
    let policy = &world.policy;
    let rows = |name: &str, rows: &std::collections::BTreeMap<String, String>| {
        rows.iter().map(|(key, reason)| json!({ name: key, "reason": reason })).collect::<Value>()
    };
    Some(match method {
        "supportedmethods" => json!(METHODS),
        "listbannedpubkeys" => rows("pubkey", &policy.banned_keys),
        "listallowedpubkeys" => {
            let mut all = policy.allowed_keys.clone();
            all.extend(world.members.iter().map(|key| (key.to_hex(), "configuration".to_owned())));
            rows("pubkey", &all)
        }
        "listbannedevents" => rows("id", &policy.banned_events),
        "listallowedevents" => rows("id", &policy.allowed_events),
        "listeventsneedingmoderation" => json!([]),
        "listallowedkinds" => json!(policy.allowed_kinds),
        "listdisallowedkinds" => json!(policy.disallowed_kinds),
        "listblockedips" => {
            policy.blocked_ips.iter().map(|(ip, reason)| json!({ "ip": ip, "reason": reason })).collect()
        }
        "listclaims" => rows("claim", &policy.claims),
        "listagents" => world
            .registry
            .iter()
            .map(|(agent, row)| json!({ "agent": agent, "owner": row.owner, "source": row.source, "since": row.since }))
            .collect(),
        "listnames" => world.local_names().iter().map(|(name, key)| json!({ "name": name, "pubkey": key })).collect(),
        "listchannels" => {
            let mut all: std::collections::BTreeMap<&String, &Channel> = world.channels.iter().collect();
            all.extend(policy.channels.iter());
            all.into_iter().map(|(id, channel)| json!({ "id": id, "rule": channel })).collect()
        }
        _ => return None,
    })
}

fn change_policy(policy: &mut Policy, call: &Call, fresh: &str) -> Result<Value, CallError> {
    let reason = || call.params.get(1).and_then(Value::as_str).unwrap_or("").to_owned();
    match call.method.as_str() {
        "banpubkey" => {
            let key = key_at(call, 0)?.to_hex();
            policy.allowed_keys.remove(&key);
            policy.banned_keys.insert(key, reason());
        }
        "unbanpubkey" => drop(policy.banned_keys.remove(&key_at(call, 0)?.to_hex())),
        "allowpubkey" => {
            let key = key_at(call, 0)?.to_hex();
            policy.banned_keys.remove(&key);
            policy.allowed_keys.insert(key, reason());
        }
        "unallowpubkey" => drop(policy.allowed_keys.remove(&key_at(call, 0)?.to_hex())),
        "banevent" => {
            let id = id_at(call, 0)?.to_hex();
            policy.allowed_events.remove(&id);
            policy.banned_events.insert(id, reason());
        }
        "unbanevent" => drop(policy.banned_events.remove(&id_at(call, 0)?.to_hex())),
        "allowevent" => {
            let id = id_at(call, 0)?.to_hex();
            policy.banned_events.remove(&id);
            policy.allowed_events.insert(id, reason());
        }
        "unallowevent" => drop(policy.allowed_events.remove(&id_at(call, 0)?.to_hex())),
        "changerelayname" => policy.name = Some(text_at(call, 0)?),
        "changerelaydescription" => policy.description = Some(text_at(call, 0)?),
        "changerelayicon" => policy.icon = Some(text_at(call, 0)?),
        "allowkind" => {
            let kind = kind_at(call)?;
            policy.disallowed_kinds.remove(&kind);
            policy.allowed_kinds.insert(kind);
        }
        "disallowkind" => {
            let kind = kind_at(call)?;
            policy.allowed_kinds.remove(&kind);
            policy.disallowed_kinds.insert(kind);
        }
        "blockip" => drop(policy.blocked_ips.insert(ip_at(call)?, reason())),
        "unblockip" => drop(policy.blocked_ips.remove(&ip_at(call)?)),
        "createclaim" => {
            let note = call.params.first().and_then(Value::as_str).unwrap_or("").to_owned();
            policy.claims.insert(fresh.to_owned(), note);
            return Ok(json!(fresh));
        }
        "revokeclaim" => drop(policy.claims.remove(&text_at(call, 0)?)),
        "addname" => drop(policy.names.insert(name_at(call)?, key_at(call, 1)?)),
        "removename" => drop(policy.names.remove(&name_at(call)?)),
        "setchannel" => {
            let rule = call.params.get(1).cloned().unwrap_or(Value::Null);
            let rule: Channel = serde_json::from_value(rule)
                .map_err(|_| CallError::Params("params: [channel id, {access, members, admins, name}]"))?;
            policy.channels.insert(text_at(call, 0)?, rule);
        }
        "removechannel" => drop(policy.channels.remove(&text_at(call, 0)?)),
        other => return Err(CallError::Unknown(other.chars().take(40).collect())),
    }
    Ok(json!(true))
}

/// An agent's owner may revoke it or hand it on; an admin may do so for any agent.
fn decide_agent(world: &World, caller: &PubKey, call: &Call, now: Timestamp) -> Result<Decision, CallError> {
    let agent = key_at(call, 0)?;
    if !(world.is_admin(caller) || world.registry.owns(caller, &agent)) {
        return Err(CallError::Forbidden);
    }
    let owner = match call.method.as_str() {
        "assignagent" => Some(key_at(call, 1)?),
        _ => None,
    };
    if owner == Some(agent) {
        return Err(CallError::Params("an agent cannot own itself"));
    }
    let row = Ownership { owner, source: Source::Admin, since: now };
    Ok(Decision { result: json!(true), change: Change::Registry { agent, row } })
}

/// The list of a channel is changed by its admins and the relay's; of an `invite` channel by nobody else.
fn decide_channel_member(world: &World, caller: &PubKey, call: &Call) -> Result<Decision, CallError> {
    let id = text_at(call, 0)?;
    let member = key_at(call, 1)?;
    let mut channel = world.channel(&id).cloned().ok_or(CallError::Params("no such channel"))?;
    if !(world.is_admin(caller) || channel.admins.contains(caller)) {
        return Err(CallError::Forbidden);
    }
    if channel.access == ChannelAccess::Open {
        return Err(CallError::Params("an open channel has no member list"));
    }
    match call.method.as_str() {
        "addchannelmember" => channel.members.insert(member),
        _ => channel.members.remove(&member),
    };
    let mut policy = world.policy.clone();
    policy.channels.insert(id, channel);
    Ok(Decision { result: json!(true), change: Change::Policy(Box::new(policy)) })
}

/// A call cannot take away what the configuration gives: it would be back at the next start.
fn check_name_is_ours(world: &World, call: &Call) -> Result<(), CallError> {
    let name = name_at(call)?;
    if world.policy.names.contains_key(&name) {
        return Ok(());
    }
    Err(CallError::Params(match world.names.contains_key(&name) {
        true => "this name is in the relay's configuration; remove it there",
        false => "there is no such name",
    }))
}

/// The local part of a NIP-05 identifier.
fn name_at(call: &Call) -> Result<String, CallError> {
    let name = text_at(call, 0)?;
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_name) {
        return Ok(name);
    }
    Err(CallError::Params("a name has 1 to 64 characters out of a-z 0-9 - _ ."))
}

fn text_at(call: &Call, i: usize) -> Result<String, CallError> {
    let text = call.params.get(i).and_then(Value::as_str).ok_or(CallError::Params("a text parameter is missing"))?;
    if text.len() > 4_096 {
        return Err(CallError::Params("a text parameter has at most 4096 bytes"));
    }
    Ok(text.to_owned())
}

fn key_at(call: &Call, i: usize) -> Result<PubKey, CallError> {
    let text = call.params.get(i).and_then(Value::as_str);
    text.and_then(|text| text.parse().ok())
        .ok_or(CallError::Params("a public key of 64 lowercase hex characters is missing"))
}

fn id_at(call: &Call, i: usize) -> Result<EventId, CallError> {
    let text = call.params.get(i).and_then(Value::as_str);
    text.and_then(|text| text.parse().ok())
        .ok_or(CallError::Params("an event id of 64 lowercase hex characters is missing"))
}

fn kind_at(call: &Call) -> Result<u16, CallError> {
    let number = call.params.first().and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
    number.ok_or(CallError::Params("a kind number from 0 to 65535 is missing"))
}

fn ip_at(call: &Call) -> Result<IpAddr, CallError> {
    let text = call.params.first().and_then(Value::as_str);
    text.and_then(|text| text.parse().ok()).ok_or(CallError::Params("an IP address is missing"))
}
