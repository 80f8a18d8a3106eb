//! `skep up`: everything on this machine, from nothing at the first start.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use skep_node::clock::unix_now;
use skep_node::config::Settings;
use skep_node::doctor::CLOCK_MEND;
use skep_node::home::Home;
use skep_node::keys::{self, Keyring, npub};
use skep_node::node::{Blueprint, Node};
use skep_node::setup::{self, CONFIG, Made};
use skep_node::skew;
use skep_proto::PubKey;
use skep_proto::control::{AgentStatus, LeaseState, NodeStatus, Role, RunState};
use tokio::time::{Instant, sleep};

use super::demo;
use super::relay::start_log_at;
use super::run::runtime;
use super::signals::Signals;
use super::status::{notes, short_key, words};
use super::table::Table;
use crate::cli::UpArgs;
use crate::error::CliError;
use crate::screen::{self, Output, escape};

/// How long the agents may take to find out who leads before the table is printed as it is.
const SETTLE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);

/// How long programs may take to say their versions at a start that is not the first.
const VERSIONS: Duration = Duration::from_secs(3);

type Versions = BTreeMap<String, String>;

/// How often it is looked whether something changed that a person should know.
const WATCH: Duration = Duration::from_secs(5);

pub fn run(args: &UpArgs, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    if args.demo {
        start_log_at("error");
        return runtime()?.block_on(demo::run(&home, out));
    }
    start_log_at("warn");
    runtime()?.block_on(up(&home, args, out))
}

async fn up(home: &Home, args: &UpArgs, out: &mut Output) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let config = args.settings.config.clone().unwrap_or_else(|| home.path().join(CONFIG));
    let started = start(home, &config, args);
    let (mut node, made) = tokio::select! {
        biased;
        code = signals.next() => std::process::exit(code),
        started = started => started?,
    };
    let settings = Settings::load(Some(&config))?;
    let looked = made.as_ref().map(|made| setup::versions(&made.found));
    let (status, skews, versions) =
        tokio::join!(settled(&node), skew::skews(home, &settings, unix_now), versions(&settings, looked),);
    let warnings = skews.iter().map(|skew| format!("{skew}; {CLOCK_MEND}")).collect::<Vec<_>>();
    match out.json {
        true => out.json_line(&json!({ "status": status, "made": made.as_ref().map(|made| json!({
            "owner": made.owner.name, "agents": made.agents, "config": made.config,
        })), "warnings": warnings }))?,
        false => welcome(home, &config, &status, made.as_ref(), &versions, out)?,
    }
    for warning in &warnings {
        screen::remark(&format!("WARNING: {warning}"));
    }
    out.flush()?;
    let fleet = node.fleet().clone();
    let stop = async {
        tokio::select! {
            _ = signals.next() => {}
            () = tell_changes(&fleet, &status, out.json) => {}
        }
    };
    node.run(stop).await;
    signals.exit_at_next();
    if !out.json {
        screen::remark("stopping …");
    }
    node.stop().await;
    Ok(())
}

/// What is missing is made, then everything is started.
async fn start(home: &Home, config: &Path, args: &UpArgs) -> Result<(Node, Option<Made>), CliError> {
    let is_first = args.settings.config.is_none() && !config.exists();
    let made = match is_first {
        true => {
            // What is wrong with the home is told before anything else is said.
            home.directory("keys")?;
            screen::remark("first start: looking for agents on this machine …");
            Some(setup::first_start(home, std::env::vars(), keys::passphrase).await?)
        }
        false => None,
    };
    let mut settings = Settings::load(Some(config))?;
    if let Some(data) = &args.settings.data {
        settings.relay.data = data.display().to_string();
    }
    let blueprint = Blueprint { home: home.clone(), config: Some(config.to_owned()), settings };
    Ok((Node::start(blueprint).await?, made))
}

/// The status when everybody knows who leads, or the time for that is over.
async fn settled(node: &Node) -> NodeStatus {
    let deadline = Instant::now() + SETTLE;
    loop {
        let status = node.status().await;
        if status.agents.iter().all(is_settled) || Instant::now() >= deadline {
            return status;
        }
        sleep(LOOK).await;
    }
}

fn is_settled(agent: &AgentStatus) -> bool {
    let knows = |role: &Role| !matches!(role, Role::WaitsForHold | Role::Follows { instance: None });
    agent.state != RunState::Running
        || agent.links.iter().any(|link| !link.reason.is_empty())
        || agent
            .standing
            .as_ref()
            .is_some_and(|standing| knows(&standing.role) && standing.lease != LeaseState::Unknown)
}

fn welcome(
    home: &Home,
    config: &Path,
    status: &NodeStatus,
    made: Option<&Made>,
    versions: &Versions,
    out: &mut Output,
) -> Result<(), CliError> {
    let paint = out.paint();
    out.line(&paint.bold(&format!("Skep {} is up", status.version)))?;
    out.line("")?;
    let place = |label: &str, text: String| format!("{label:8}{}", escape(&text));
    out.line(&place("home", home.path().display().to_string()))?;
    out.line(&place("config", config.display().to_string()))?;
    if let Some(relay) = &status.relay {
        out.line(&place("relay", relay.url.clone()))?;
    }
    if let Some((name, key)) = owner(home) {
        let note = made.filter(|made| made.owner.is_new).map_or("", |_| "  new: this is you");
        out.line(&place("owner", format!("{}  {name}{note}", npub(&key))))?;
    }
    out.line("")?;
    if status.agents.is_empty() {
        out.line("No agents are configured. Add one:  skep agent new NAME --preset PRESET")?;
    } else {
        agents(status, versions, out)?;
    }
    let seen: Vec<_> = status.agents.iter().map(|agent| (agent, Some(status.at))).collect();
    notes(&seen).iter().try_for_each(|note| out.line(&escape(note)))?;
    if let Some(made) = made.filter(|made| made.found.agents.is_empty() && made.found.servers.is_empty()) {
        nothing_found(made, out)?;
    }
    next_steps(status, out)
}

fn owner(home: &Home) -> Option<(String, PubKey)> {
    let ring = Keyring::of(home);
    let name = setup::owner_name(&ring).ok().flatten()?;
    Some((name.to_string(), ring.state(&name).ok()?.pubkey?))
}

/// Versions of programs by their titles, as far as they said: now, or when they were looked for.
async fn versions(settings: &Settings, looked: Option<Versions>) -> Versions {
    if let Some(versions) = looked {
        return versions;
    }
    let is_program = |preset: &str| !preset.is_empty() && preset != setup::BUILT_IN;
    let has_presets = settings.agent.iter().any(|agent| is_program(&agent.preset));
    match has_presets {
        true => tokio::time::timeout(VERSIONS, setup::look(std::env::vars())).await.ok().and_then(Result::ok),
        false => None,
    }
    .map(|found| setup::versions(&found))
    .unwrap_or_default()
}

fn agents(status: &NodeStatus, versions: &Versions, out: &mut Output) -> Result<(), CliError> {
    let mut table = Table::new(["AGENT", "RUNS", "STATE", "KEY"]);
    for agent in &status.agents {
        let version = versions.get(&agent.backend).map_or(String::new(), |version| format!(" {version}"));
        let key = short_key(agent.pubkey.as_ref());
        let state = words(agent);
        // Who leads is of interest where there are several.
        let state = if state == "leads" { "ready".into() } else { state };
        table.row([agent.name.clone(), format!("{}{version}", agent.backend), state, key]);
    }
    table.print(out, "")
}

/// How to get what could be an agent here.
fn nothing_found(made: &Made, out: &mut Output) -> Result<(), CliError> {
    out.line("")?;
    out.line("No agent program and no model server was found here, so there is one agent on a small")?;
    out.line("built-in program that only repeats what you say. For a real one, get any of these, then:")?;
    out.line("skep agent new NAME --preset PRESET")?;
    out.line("")?;
    let mut table = Table::new(["PRESET", "PROGRAM", "HOW TO GET IT"]);
    for preset in &made.found.missing {
        table.row([preset.name.into(), preset.title.into(), preset.install.into()]);
    }
    table.print(out, "  ")
}

fn next_steps(status: &NodeStatus, out: &mut Output) -> Result<(), CliError> {
    let paint = out.paint();
    out.line("")?;
    if let Some(agent) = status.agents.iter().find(|agent| agent.state == RunState::Running) {
        let ask = format!("skep ask @{} \"hello\"", agent.name);
        out.line(&format!("In another terminal:  {}", paint.bold(&escape(&ask))))?;
        out.line("                      skep status, skep inbox, skep pause, skep agent new")?;
    }
    out.line("Ctrl-C stops everything.")
}

/// Says when an agent changes its standing in a way that a person should know. Never ends by itself.
async fn tell_changes(fleet: &std::sync::Arc<skep_node::fleet::Fleet>, first: &NodeStatus, is_silent: bool) {
    let mut known: BTreeMap<String, String> =
        first.agents.iter().map(|agent| (agent.name.clone(), phase(agent))).collect();
    loop {
        sleep(WATCH).await;
        if is_silent {
            continue;
        }
        for agent in fleet.status().await.agents {
            let now = phase(&agent);
            if known.insert(agent.name.clone(), now.clone()).as_ref() != Some(&now) {
                let why = if agent.reason.is_empty() { String::new() } else { format!(": {}", agent.reason) };
                screen::remark(&format!("{}  {} {}{why}", screen::time(unix_now()), agent.name, words(&agent)));
            }
        }
    }
}

/// What of an agent's standing is worth a line when it changes: not its turns.
fn phase(agent: &AgentStatus) -> String {
    words(&AgentStatus { turns: Vec::new(), ..agent.clone() })
}
