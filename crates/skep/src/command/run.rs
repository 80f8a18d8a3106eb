//! `skep agent run`: instances of agents until told to stop; `skep agent demo`: the program to try them with.

use std::sync::Arc;

use serde_json::json;
use skep_node::agent::settings::AgentSettings;
use skep_node::agent::trees::beside;
use skep_node::agent::{Instance, Plan, stop_all};
use skep_node::control::Server;
use skep_node::fleet::{Facts, Fleet};
use skep_node::home::Home;
use skep_node::keys::npub;
use skep_proto::limits;

use super::load_key;
use super::relay::{settings, start_log};
use super::signals::Signals;
use crate::cli::SettingsArgs;
use crate::error::{CliError, Kind};
use crate::screen::Output;

/// Runs the named agents of the configuration, or all of them.
pub fn run(names: &[String], args: &SettingsArgs, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let settings = settings(&home, args)?;
    let chosen = choose(&settings.agent, names)?;
    let plans = chosen
        .into_iter()
        .map(|agent| {
            let keys = load_key(agent.key_name())?;
            let plan = agent.plan(&settings.leader, keys, home.path(), std::env::vars())?;
            let plan = Plan { shared: settings.budget.limits(), ..plan };
            Ok((Facts::of_plan(agent, &plan, home.path()), plan))
        })
        .collect::<Result<Vec<(Facts, Plan)>, CliError>>()?;
    start_log();
    runtime()?.block_on(serve(&home, plans, out))
}

fn choose<'a>(agents: &'a [AgentSettings], names: &[String]) -> Result<Vec<&'a AgentSettings>, CliError> {
    let known = || agents.iter().map(|agent| agent.name.as_str()).collect::<Vec<_>>().join(", ");
    if agents.is_empty() {
        return Err(CliError::new(Kind::Input, "the configuration has no agent")
            .hint("add an [[agent]] table: see docs/config.md"));
    }
    if let Some(unknown) = names.iter().find(|name| !agents.iter().any(|agent| agent.name == **name)) {
        return Err(CliError::new(Kind::Input, format!("there is no agent {unknown:?} in the configuration"))
            .hint(format!("there are: {}", known())));
    }
    Ok(agents.iter().filter(|agent| names.is_empty() || names.contains(&agent.name)).collect())
}

async fn serve(home: &Home, plans: Vec<(Facts, Plan)>, out: &mut Output) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let fleet = Arc::new(Fleet::new(None));
    let mut instances = Vec::new();
    let found = beside(plans.iter().map(|(_, plan)| plan.check_trees())).await;
    for ((facts, plan), found) in plans.into_iter().zip(found) {
        let (name, key) = (plan.name.clone(), plan.credentials.keys.pubkey());
        let wrong = |error| CliError::new(Kind::Input, format!("agent {:?}: repo: {error}", name.as_str()));
        found.map_err(|error| wrong(error).hint("skep doctor looks at all of them"))?;
        // It opens records, and the instances before it have this process, too.
        let started = tokio::task::spawn_blocking(move || Instance::start(plan)).await;
        let started = started.map_err(|ended| CliError::new(Kind::Internal, ended))?;
        let instance = started.map_err(|error| CliError::new(Kind::Internal, error))?;
        fleet.put(facts, Ok(instance.contact().clone()));
        instances.push(instance);
        if out.json {
            out.json_line(&json!({ "agent": name, "pubkey": key }))?;
        } else {
            out.line(&format!("running {name} {}", npub(&key)))?;
        }
    }
    let control = Server::start(home, fleet)?;
    out.flush()?;
    signals.next().await;
    drop(control);
    stop_all(instances).await;
    Ok(())
}

/// Speaks ACP on stdin and stdout.
pub fn demo() -> Result<(), CliError> {
    let ended = runtime()?.block_on(skep_node::agent::demo(tokio::io::stdin(), tokio::io::stdout()));
    // Its reader of stdin is a thread that nothing stops; the runtime would wait for its next line.
    std::process::exit(i32::from(ended.is_err()));
}

/// The event loop of a relay, of agents, or of both.
pub fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .event_interval(limits::TASKS_BETWEEN_LOOKS)
        .build()
        .map_err(|error| CliError::new(Kind::Internal, format!("cannot start the runtime: {error}")))
}
