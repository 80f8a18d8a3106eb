//! `skep channels`: which channels have a rule.

use serde::{Deserialize, Serialize};
use serde_json::json;
use skep_node::client::management;
use skep_node::home::Home;
use skep_node::relay::Channel;

use super::{block_on, load_key, relay};
use crate::cli::{ChannelsArgs, SettingsArgs};
use crate::error::{CliError, Kind};
use crate::screen::{self, Output, escape};

/// As `listchannels` gives it.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    id: String,
    rule: Channel,
}

pub fn run(args: &ChannelsArgs, out: &mut Output) -> Result<(), CliError> {
    let mut rows = match &args.relay {
        Some(url) => from_relay(url, &args.key)?,
        None => from_config(args)?,
    };
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    let widest = rows.iter().map(|row| row.id.chars().count()).max().unwrap_or(0);
    for row in &rows {
        if out.json {
            out.json_line(row)?;
            continue;
        }
        let Row { id, rule } = row;
        let access = serde_json::to_value(rule.access).unwrap_or_default();
        let access = access.as_str().unwrap_or_default();
        let (members, admins) = (rule.members.len(), rule.admins.len());
        let line = format!("{id:widest$}  {access:7}  members={members} admins={admins}  {}", rule.name);
        out.line(escape(&line).trim_end())?;
    }
    if rows.is_empty() && out.is_for_a_person() {
        screen::remark("no channel has a rule: all are open");
    }
    Ok(())
}

fn from_config(args: &ChannelsArgs) -> Result<Vec<Row>, CliError> {
    let home = Home::locate()?;
    let settings = relay::settings(&home, &SettingsArgs { config: args.config.clone(), data: None })?;
    let rules = settings.relay.channel_rules()?;
    Ok(rules.into_iter().map(|(id, rule)| Row { id, rule }).collect())
}

fn from_relay(url: &str, key: &str) -> Result<Vec<Row>, CliError> {
    let keys = load_key(key)?;
    let answer = block_on(async { Ok(management(url, "listchannels", &json!([]), &keys).await?) })?;
    serde_json::from_value(answer).map_err(|error| {
        CliError::new(Kind::Network, format!("{url} gives no list of channels: {error}"))
            .hint("listchannels is a method of Skep relays")
    })
}
