//! The owner's word that agents begin no turns, or may again: to whom, on which relays, and what these said.

use skep_node::clock::unix_now;
use skep_node::owner::Agent;
use skep_node::owner::word;
use skep_proto::Timestamp;
use skep_proto::pause::{Pause, Reach};

pub use skep_node::owner::word::{Said, Tell, Unheard};

use super::Owner;
use crate::cli::OwnerArgs;
use crate::command::block_on;
use crate::error::CliError;

/// Says it to the agents that are named, or to all. `known` is the date of the newest word to them that this home has;
/// `tell` gives it to those here. `None`: this home has no key of an owner.
pub fn speak<T>(
    names: &[String],
    said: &Pause,
    who: &OwnerArgs,
    known: impl Fn(&Reach) -> Timestamp,
    tell: impl AsyncFn(Vec<Tell>) -> T,
) -> Result<Option<Said<T>>, CliError> {
    let Some(mut owner) = Owner::open_if_any(who)? else { return Ok(None) };
    block_on(async {
        let agents = if names.is_empty() { Vec::new() } else { owner.look_for(names).await? };
        let reaches = match names {
            [] => vec![Reach::Fleet],
            _ => agents.iter().map(|agent| Reach::Agent(agent.key)).collect(),
        };
        let reaches: Vec<(Reach, Timestamp)> = reaches.into_iter().map(|reach| (reach, known(&reach))).collect();
        let relays = relays(&owner, &agents);
        Ok(Some(word::speak(&owner.keys, &owner.options, &relays, &reaches, said, unix_now(), tell).await))
    })
}

/// Where these agents listen, and where the flag says; of all, when none is named.
fn relays(owner: &Owner, agents: &[Agent]) -> Vec<String> {
    let agents = if agents.is_empty() { owner.directory.agents() } else { agents };
    let mut all: Vec<String> = owner.relay.iter().cloned().collect();
    for relay in agents.iter().flat_map(|agent| &agent.relays) {
        if !all.contains(relay) {
            all.push(relay.clone());
        }
    }
    if all.is_empty() { vec![owner.usual_relay()] } else { all }
}
