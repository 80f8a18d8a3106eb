//! What is asked of agents that run here: to lead, to try again.

use std::path::PathBuf;

use serde_json::json;
use skep_node::config::Settings;
use skep_node::control::{Asked, ask_all};
use skep_node::home::Home;
use skep_proto::EventId;
use skep_proto::control::{Answer, Ask, Outcome};
use skep_proto::name::AgentName;

use super::relay::config_path;
use super::{ID_CHARS_MIN, block_on, pause, roster, trees};
use crate::cli::{FleetCommand, RetryArgs};
use crate::error::{CliError, Kind};
use crate::screen::{Output, escape};

pub fn run(command: FleetCommand, out: &mut Output) -> Result<(), CliError> {
    match command {
        FleetCommand::New(args) => roster::add(&args, out),
        FleetCommand::List(args) => roster::list(&args, out),
        FleetCommand::Claim(args) => lead(&args.name, args.config.as_ref(), false, out),
        FleetCommand::Steal(args) => lead(&args.name, args.config.as_ref(), true, out),
        FleetCommand::Pause(args) if args.names.is_empty() => Err(no_name("pause")),
        FleetCommand::Pause(args) => pause::pause(&args, out),
        FleetCommand::Resume(args) if args.names.is_empty() => Err(no_name("resume")),
        FleetCommand::Resume(args) => pause::resume(&args, out),
        FleetCommand::Retry(args) => retry(&args, out),
        FleetCommand::Trees(args) => trees::run(&args, out),
    }
}

fn no_name(verb: &str) -> CliError {
    CliError::new(Kind::Usage, "an agent's name is missing").hint(format!("for all your agents: skep {verb}"))
}

pub fn agent_name(text: &str) -> Result<AgentName, CliError> {
    text.parse().map_err(|error| CliError::new(Kind::Input, error).hint("skep agent list shows the names"))
}

/// The agents of the configuration that are named, or all of them.
pub fn chosen(home: &Home, config: Option<&PathBuf>, names: &[String]) -> Result<Vec<String>, CliError> {
    let settings = Settings::load(config_path(home, config).as_deref())?;
    let known: Vec<String> = settings.agent.into_iter().map(|agent| agent.name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        let hint =
            if known.is_empty() { "skep up makes some".into() } else { format!("there are: {}", known.join(", ")) };
        return Err(
            CliError::new(Kind::Input, format!("there is no agent {unknown:?} in the configuration")).hint(hint)
        );
    }
    if known.is_empty() {
        return Err(CliError::new(Kind::Input, "the configuration has no agent").hint("skep up makes some"));
    }
    Ok(if names.is_empty() { known } else { names.to_vec() })
}

fn lead(name: &str, config: Option<&PathBuf>, steal: bool, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let known = chosen(&home, config, &[name.to_owned()])?;
    let ask = Ask::Claim { agent: agent_name(&known[0])?, steal };
    let outcome = first_done(&home, &ask)?.ok_or_else(|| not_running(name))?;
    report(&[outcome], out)
}

fn retry(args: &RetryArgs, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let name = agent_name(&args.agent.name)?;
    let message = args.message.as_deref().map(|beginning| find(&home, &name, beginning)).transpose()?;
    let ask = Ask::Retry { agent: name, message };
    let outcome = first_done(&home, &ask)?.ok_or_else(|| not_running(&args.agent.name))?;
    report(&[outcome], out)
}

/// The one message whose id begins so.
fn find(home: &Home, agent: &AgentName, beginning: &str) -> Result<EventId, CliError> {
    if let Ok(id) = beginning.parse() {
        return Ok(id);
    }
    let wrong =
        |cause: String| CliError::new(Kind::Input, cause).hint(format!("skep inbox @{agent} shows the messages"));
    if beginning.len() < ID_CHARS_MIN {
        return Err(wrong(format!("{beginning:?} is too short for a message's id")));
    }
    let ask = Ask::Inbox { agent: Some(agent.clone()), state: None, limit: None };
    let mut found: Vec<EventId> = Vec::new();
    for asked in ask_nodes(home, &ask)? {
        if let Answer::Inbox { messages } = asked.answer? {
            found.extend(messages.iter().map(|row| row.id).filter(|id| id.to_hex().starts_with(beginning)));
        }
    }
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(wrong(format!("no message of {agent} begins with {beginning:?}"))),
        _ => Err(wrong(format!("several messages of {agent} begin with {beginning:?}"))),
    }
}

fn not_running(name: &str) -> CliError {
    CliError::new(Kind::Refused, format!("{name} does not run here"))
        .hint("skep up starts it; skep status shows what runs")
}

pub fn ask_nodes(home: &Home, ask: &Ask) -> Result<Vec<Asked>, CliError> {
    block_on(async { Ok(ask_all(home, ask).await?) })
}

/// What the process that runs the agent made of it; `None`: none does.
pub fn first_done(home: &Home, what: &Ask) -> Result<Option<Outcome>, CliError> {
    block_on(ask_first(home, what))
}

/// The same, beside other things.
pub async fn ask_first(home: &Home, what: &Ask) -> Result<Option<Outcome>, CliError> {
    let mut failure = None;
    for asked in ask_all(home, what).await? {
        match asked.answer {
            Ok(Answer::Done { outcomes }) => return Ok(outcomes.into_iter().next()),
            Ok(_) => {}
            Err(error) => failure = Some(error),
        }
    }
    // Whoever is silent may be the one that runs it.
    failure.map_or(Ok(None), |error| Err(error.into()))
}

/// Prints what was done; exit code 1 when something was not.
pub fn report(outcomes: &[Outcome], out: &mut Output) -> Result<(), CliError> {
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.is_done).collect();
    for outcome in outcomes {
        let Outcome { agent, is_done, text } = outcome;
        if out.json {
            out.json_line(&json!({ "agent": agent, "done": is_done, "text": text }))?;
        } else if *is_done {
            out.line(&escape(&format!("{agent}: {text}")))?;
        }
    }
    out.flush()?;
    match failed.as_slice() {
        [] => Ok(()),
        [one] => Err(CliError::new(Kind::Refused, format!("{}: {}", one.agent, one.text))),
        several => {
            let all: Vec<String> = several.iter().map(|one| format!("{}: {}", one.agent, one.text)).collect();
            Err(CliError::new(Kind::Refused, all.join("; ")))
        }
    }
}
