//! `skep relay name`: local names (NIP-05) of a relay that runs.

use serde::{Deserialize, Serialize};
use serde_json::json;
use skep_node::client::management;
use skep_proto::PubKey;

use super::agent::manage;
use super::{block_on, keyring, load_key};
use crate::cli::{ManagementArgs, NameCommand};
use crate::error::{CliError, Kind};
use crate::screen::{self, Output, escape};

/// As `listnames` gives it.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    name: String,
    pubkey: PubKey,
}

pub fn run(command: &NameCommand, out: &mut Output) -> Result<(), CliError> {
    match command {
        NameCommand::Add { name, owner, call } => {
            manage(call, "addname", json!([name, keyring()?.pubkey(owner)?]), out)
        }
        NameCommand::Remove { name, call } => manage(call, "removename", json!([name]), out),
        NameCommand::List { call } => list(call, out),
    }
}

fn list(call: &ManagementArgs, out: &mut Output) -> Result<(), CliError> {
    let keys = load_key(&call.key)?;
    let answer = block_on(async { Ok(management(&call.relay, "listnames", &json!([]), &keys).await?) })?;
    let rows: Vec<Row> = serde_json::from_value(answer).map_err(|error| {
        CliError::new(Kind::Network, format!("{} gives no list of names: {error}", call.relay))
            .hint("listnames is a method of Skep relays")
    })?;
    for row in &rows {
        if out.json {
            out.json_line(row)?;
        } else {
            out.line(&escape(&format!("{}  {}", row.pubkey, row.name)))?;
        }
    }
    if rows.is_empty() && out.is_for_a_person() {
        screen::remark("no key has a name here");
    }
    Ok(())
}
