//! `skep agent run`: instances of agents until told to stop; `skep agent demo`: the program to try them with.

use serde_json::json;
use skep_node::agent::settings::AgentSettings;
use skep_node::agent::{Instance, Plan};
use skep_node::home::Home;
use skep_node::keys::npub;
use tokio::signal::unix::{SignalKind, signal};

use super::load_key;
use super::relay::{settings, start_log};
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
            Ok(agent.plan(&settings.leader, keys, home.path(), std::env::vars())?)
        })
        .collect::<Result<Vec<Plan>, CliError>>()?;
    start_log();
    runtime()?.block_on(serve(plans, out))
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

async fn serve(plans: Vec<Plan>, out: &mut Output) -> Result<(), CliError> {
    let failed = |error| CliError::new(Kind::Internal, format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut instances = Vec::new();
    for plan in plans {
        let (name, key) = (plan.name.clone(), plan.credentials.keys.pubkey());
        instances.push(Instance::start(plan).map_err(|error| CliError::new(Kind::Internal, error))?);
        if out.json {
            out.json_line(&json!({ "agent": name, "pubkey": key }))?;
        } else {
            out.line(&format!("running {name} {}", npub(&key)))?;
        }
    }
    out.flush()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    for instance in instances {
        instance.stop().await;
    }
    Ok(())
}

/// Speaks ACP on stdin and stdout.
pub fn demo() -> Result<(), CliError> {
    let ended = runtime()?.block_on(skep_node::agent::demo(tokio::io::stdin(), tokio::io::stdout()));
    // Its reader of stdin is a thread that nothing stops; the runtime would wait for its next line.
    std::process::exit(i32::from(ended.is_err()));
}

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(Kind::Internal, format!("cannot start the runtime: {error}")))
}
