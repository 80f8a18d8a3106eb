//! `skep inbox`: what was said to the agents, and what became of it.

use skep_node::config::Settings;
use skep_node::control::ask_all;
use skep_node::fleet::report;
use skep_node::home::Home;
use skep_proto::control::{Answer, Ask, InboxRow};

use super::block_on;
use super::relay::config_path;
use super::status::{short_key, since};
use super::table::Table;
use crate::cli::InboxArgs;
use crate::error::{CliError, Kind};
use crate::screen::{self, Output};

pub fn run(args: &InboxArgs, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let settings = Settings::load(config_path(&home, args.config.as_ref()).as_deref())?;
    let mut rows = asked(&home, args)?;
    let mut is_known = rows.iter().any(|row| Some(&row.agent) == args.name.as_ref());
    for agent in settings.agent.iter().filter(|agent| args.name.as_ref().is_none_or(|name| *name == agent.name)) {
        is_known = true;
        if rows.iter().any(|row| row.agent == agent.name) {
            continue;
        }
        // Read from its records: it does not run, or has nothing to tell.
        let directory = home.path().join("agents").join(&agent.name);
        let read = report::inbox_at_rest(&directory, &agent.name, args.state.as_deref(), args.limit);
        rows.extend(read.map_err(|error| CliError::new(Kind::Internal, format!("{}: {error}", agent.name)))?);
    }
    if let (Some(name), false) = (&args.name, is_known) {
        return Err(CliError::new(Kind::Input, format!("there is no agent {name:?} here")).hint("skep agent list"));
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.since));
    print(&rows, out)
}

fn asked(home: &Home, args: &InboxArgs) -> Result<Vec<InboxRow>, CliError> {
    let agent = args.name.as_deref().map(super::fleet::agent_name).transpose()?;
    let ask = Ask::Inbox { agent, state: args.state.clone(), limit: Some(args.limit) };
    let asked = block_on(async { Ok(ask_all(home, &ask).await?) })?;
    let mut rows = Vec::new();
    for one in asked {
        match one.answer? {
            Answer::Inbox { messages } => rows.extend(messages),
            Answer::Refused { why } => return Err(CliError::new(Kind::Internal, why)),
            _ => {}
        }
    }
    Ok(rows)
}

fn print(rows: &[InboxRow], out: &mut Output) -> Result<(), CliError> {
    if out.json {
        return rows.iter().try_for_each(|row| out.json_line(row));
    }
    if rows.is_empty() {
        screen::remark("no messages");
        return Ok(());
    }
    let mut table = Table::new(["MESSAGE", "AGENT", "FROM", "STATE", "SINCE", "FAILED", "REASON"]);
    for row in rows {
        table.row([
            row.id.to_hex()[..8].to_owned(),
            row.agent.clone(),
            short_key(Some(&row.from)),
            row.state.clone(),
            since(row.since),
            row.attempts.to_string(),
            row.reason.clone(),
        ]);
    }
    table.print(out, "")
}
