//! `skep agent`: who owns whom (NIP-OA), on paper and at a relay.

use secp256k1::XOnlyPublicKey;
use serde_json::{Value, json};
use skep_node::client::{Client, Credentials, Options, management};
use skep_node::keys::{Keys, fresh_aux, npub};
use skep_proto::PubKey;
use skep_proto::attestation::{AttestationError, Conditions, attest};

use super::{block_on, fleet, keyring, load_key, run as runner};
use crate::cli::{AgentCommand, ManagementArgs};
use crate::error::{CliError, Kind};
use crate::screen::Output;

pub fn run(command: AgentCommand, out: &mut Output) -> Result<(), CliError> {
    match command {
        AgentCommand::Fleet(command) => fleet::run(command, out),
        AgentCommand::Run { names, settings } => runner::run(&names, &settings, out),
        AgentCommand::Demo => runner::demo(),
        AgentCommand::Attest { agent, owner, kind, before, after } => {
            let agent = resolve(&agent)?;
            let conditions = conditions(&kind, before, after)?;
            let owner = load_key(&owner)?;
            let tag = attestation(&owner, &agent, &conditions)?;
            print_attestation(&owner.pubkey(), &agent, &conditions, &tag, out)
        }
        AgentCommand::Revoke { agent, call } => {
            let agent = resolve(&agent)?;
            manage(&call, "revokeagent", json!([agent]), out)
        }
        AgentCommand::Assign { agent, owner, call } => {
            let (agent, owner) = (resolve(&agent)?, resolve(&owner)?);
            if agent == owner {
                return Err(self_owned());
            }
            manage(&call, "assignagent", json!([agent, owner]), out)
        }
    }
}

/// A public key from npub, hex or the name of a key. It must be a point on the curve, or nothing could verify it.
fn resolve(text: &str) -> Result<PubKey, CliError> {
    let key = keyring()?.pubkey(text)?;
    match XOnlyPublicKey::from_slice(&key.0) {
        Ok(_) => Ok(key),
        Err(_) => Err(CliError::new(Kind::Input, format!("{key} is not a public key: no point on the curve"))
            .hint("check for a typing error")),
    }
}

fn conditions(kinds: &[u16], before: Option<u64>, after: Option<u64>) -> Result<Conditions, CliError> {
    let clauses: Vec<String> = kinds
        .iter()
        .map(|kind| format!("kind={kind}"))
        .chain(before.map(|at| format!("created_at<{at}")))
        .chain(after.map(|at| format!("created_at>{at}")))
        .collect();
    clauses.join("&").parse().map_err(|error: AttestationError| {
        CliError::new(Kind::Input, error).hint(format!("times are unix seconds, at most {}", u32::MAX))
    })
}

/// The owner's tag for an agent.
pub fn attestation(owner: &Keys, agent: &PubKey, conditions: &Conditions) -> Result<[String; 4], CliError> {
    if owner.pubkey() == *agent {
        return Err(self_owned());
    }
    Ok(attest(owner.keypair(), agent, conditions, &fresh_aux()))
}

fn self_owned() -> CliError {
    CliError::new(Kind::Input, AttestationError::SelfOwned).hint("name the agent first, its owner with --owner")
}

/// Prints the tag: for a person too it is JSON, since that is what goes into an event.
pub fn print_attestation(
    owner: &PubKey,
    agent: &PubKey,
    conditions: &Conditions,
    tag: &[String; 4],
    out: &mut Output,
) -> Result<(), CliError> {
    if !out.json {
        return out.json_line(tag);
    }
    out.json_line(&json!({
        "agent": agent,
        "agent_npub": npub(agent),
        "owner": owner,
        "owner_npub": npub(owner),
        "conditions": conditions.to_string(),
        "tag": tag,
    }))
}

/// Authenticates as an agent with its owner's attestation, which a relay that knows NIP-OA takes note of.
pub async fn introduce(relay: &str, agent: Keys, tag: [String; 4]) -> Result<(), CliError> {
    let credentials = Some(Credentials { keys: agent, attestation: Some(tag) });
    let client = Client::connect(relay, Options { credentials, ..Options::default() }).await?;
    if !client.is_authenticated() {
        let why = client.auth_refusal().unwrap_or("it asks nobody who they are");
        return Err(CliError::new(Kind::Refused, format!("{relay} does not take the attestation: {why}"))
            .hint("does this relay know agents (NIP-OA)?"));
    }
    client.close().await;
    Ok(())
}

/// One call that changes something, and its answer.
pub fn manage(call: &ManagementArgs, method: &str, params: Value, out: &mut Output) -> Result<(), CliError> {
    let keys = load_key(&call.key)?;
    let result = block_on(async { Ok(management(&call.relay, method, &params, &keys).await?) })?;
    if result == Value::Bool(false) {
        return Err(CliError::new(Kind::Refused, format!("{} answers no", call.relay))
            .hint("is this key an admin or the owner?"));
    }
    if out.json {
        return out.json_line(&json!({ "method": method, "params": params, "result": result, "relay": call.relay }));
    }
    out.line("done")
}
