//! `skep status`: what runs here, by what those who run it say; and what does not, by its records.

use std::path::PathBuf;

use serde_json::json;
use skep_node::clock::unix_now;
use skep_node::config::Settings;
use skep_node::control::ask_all;
use skep_node::fleet::{Facts, report};
use skep_node::home::Home;
use skep_node::keys::Keyring;
use skep_node::owner::directory::short;
use skep_proto::control::{AgentStatus, Answer, Ask, LeaseState, LinkState, NodeStatus, Role, RunState};
use skep_proto::{PubKey, Timestamp};

use super::block_on;
use super::pause::lifts;
use super::relay::config_path;
use super::table::{Table, ago};
use crate::cli::StatusArgs;
use crate::error::{CliError, Kind};
use crate::screen::{self, Output, escape};

/// All of a home: the processes that run something, and the agents that none of them runs.
pub struct Here {
    pub nodes: Vec<NodeStatus>,
    pub resting: Vec<AgentStatus>,
    /// Processes that have a socket and do not answer.
    pub silent: Vec<String>,
}

impl Here {
    /// Asks all processes, and reads the records of the rest.
    pub fn look(home: &Home, config: Option<&PathBuf>) -> Result<Self, CliError> {
        let settings = Settings::load(config_path(home, config).as_deref())?;
        let asked = block_on(async { Ok(ask_all(home, &Ask::Status).await?) })?;
        let (mut nodes, mut silent) = (Vec::new(), Vec::new());
        for one in asked {
            match one.answer {
                Ok(Answer::Status(status)) => nodes.push(*status),
                Ok(_) => silent.push(format!("process {} answers something else", one.pid)),
                Err(error) => silent.push(error.to_string()),
            }
        }
        let ring = Keyring::of(home);
        let is_shown = |name: &str| nodes.iter().flat_map(|node| &node.agents).any(|agent| agent.name == name);
        let resting = settings.agent.iter().filter(|agent| !is_shown(&agent.name)).map(|agent| {
            let pubkey = ring.pubkey(agent.key_name()).ok();
            let facts = Facts::of_settings(agent, pubkey, home.path());
            report::at_rest(&facts, &facts.directory)
        });
        // Whoever does not answer may be running it.
        let unknown = |agent: AgentStatus| match silent.is_empty() {
            true => agent,
            false => AgentStatus { state: RunState::Unknown, ..agent },
        };
        let resting = resting.map(unknown).collect();
        Ok(Self { nodes, resting, silent })
    }

    /// Every agent, with when its status was so.
    pub fn agents(&self) -> Vec<(&AgentStatus, Option<Timestamp>)> {
        let running = self.nodes.iter().flat_map(|node| node.agents.iter().map(|agent| (agent, Some(node.at))));
        let mut all: Vec<_> = running.chain(self.resting.iter().map(|agent| (agent, agent.changed_at))).collect();
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        all
    }
}

pub fn run(args: &StatusArgs, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let here = Here::look(&home, args.config.as_ref())?;
    if out.json {
        out.json_line(&json!({ "nodes": here.nodes, "resting": here.resting, "silent": here.silent }))?;
    } else {
        print(&here, out)?;
    }
    out.flush()?;
    // One that does not answer may be all that runs.
    if let (true, Some(silent)) = (here.nodes.is_empty(), here.silent.first()) {
        return Err(CliError::new(Kind::Network, silent).hint("what is shown is from the records; if it hangs, end it"));
    }
    if here.nodes.is_empty() {
        let hint = if here.resting.is_empty() {
            "skep up starts everything; skep up --demo shows it"
        } else {
            "skep up starts it"
        };
        return Err(CliError::new(Kind::Refused, format!("nothing of {} runs", home.path().display())).hint(hint));
    }
    Ok(())
}

fn print(here: &Here, out: &mut Output) -> Result<(), CliError> {
    for node in &here.nodes {
        let age = ago(node.at.saturating_sub(node.started_at));
        let relay = node.relay.as_ref().map_or_else(|| "no relay".into(), |relay| format!("relay {}", relay.url));
        out.line(&escape(&format!("process {}  skep {}  up {age}  {relay}", node.pid, node.version)))?;
    }
    let agents = here.agents();
    if !agents.is_empty() {
        out.line("")?;
        agents_table(&agents, out)?;
    }
    for (agent, _) in &agents {
        for turn in &agent.turns {
            let text = format!(
                "{}: a turn since {}, for message {}",
                agent.name,
                since(turn.since),
                &turn.message.to_hex()[..8]
            );
            out.line(&escape(&text))?;
        }
    }
    notes(&agents).iter().try_for_each(|note| out.line(&escape(note)))?;
    if !here.nodes.is_empty() {
        here.silent.iter().for_each(|silent| screen::remark(&format!("note: {silent}")));
    }
    Ok(())
}

fn agents_table(agents: &[(&AgentStatus, Option<Timestamp>)], out: &mut Output) -> Result<(), CliError> {
    let mut table = Table::new(["AGENT", "STATE", "LEASE", "RELAYS", "WAITING", "ANSWERED", "OUTBOX", "SEEN"]);
    for (agent, seen) in agents {
        let count = |states: &[&str]| -> u64 { states.iter().filter_map(|state| agent.inbox.get(*state)).sum() };
        let live = agent.links.iter().filter(|link| link.state == LinkState::Live).count();
        let relays = if agent.links.is_empty() { "-".into() } else { format!("{live}/{}", agent.links.len()) };
        table.row([
            agent.name.clone(),
            words(agent),
            lease_word(agent).into(),
            relays,
            count(&["stored", "queued", "prompted"]).to_string(),
            count(&["answered"]).to_string(),
            agent.outbox.waiting.to_string(),
            seen.map_or_else(|| "never".into(), since),
        ]);
    }
    table.print(out, "")
}

/// Where an agent stands, in words.
pub fn words(agent: &AgentStatus) -> String {
    match agent.state {
        RunState::Unknown => return "unknown".into(),
        RunState::Failed if !agent.paused.is_empty() => return "failed, paused".into(),
        RunState::Failed => return "failed".into(),
        RunState::Restarts => return "restarts".into(),
        RunState::Stopped if !agent.paused.is_empty() => return "stopped, paused".into(),
        RunState::Stopped => return "stopped".into(),
        RunState::Running if !agent.paused.is_empty() => return "paused".into(),
        RunState::Running => {}
    }
    match agent.links.first().map(|link| link.state) {
        Some(LinkState::Waits) => return "offline".into(),
        Some(LinkState::Stopped) => return "shut out".into(),
        Some(LinkState::Connecting) => return "connecting".into(),
        Some(LinkState::CatchingUp | LinkState::Live) | None => {}
    }
    let Some(standing) = &agent.standing else { return "starting".into() };
    match &standing.role {
        Role::Leads { .. } if agent.turns.is_empty() => "leads".into(),
        Role::Leads { .. } if agent.turns.len() == 1 => "works".into(),
        Role::Leads { .. } => format!("works on {}", agent.turns.len()),
        Role::WaitsForHold => "takes over".into(),
        Role::WaitsForLease if standing.lease == LeaseState::Others => "another machine leads".into(),
        Role::WaitsForLease => "waits for its lease".into(),
        Role::Follows { instance: None } => "nobody leads".into(),
        Role::Follows { instance: Some(instance) } => match &standing.claim {
            Some(claim) if claim.instance == *instance => format!("follows process {}", claim.pid),
            _ => "follows".into(),
        },
    }
}

fn lease_word(agent: &AgentStatus) -> &'static str {
    match agent.standing.as_ref().map(|standing| standing.lease) {
        Some(LeaseState::Held) => "held",
        Some(LeaseState::Others) => "others",
        Some(LeaseState::Unknown) => "unknown",
        Some(LeaseState::None) => "none",
        None => "-",
    }
}

/// What somebody should know of, one line each, with what to do where there is something to do.
pub fn notes(agents: &[(&AgentStatus, Option<Timestamp>)]) -> Vec<String> {
    let mut notes = Vec::new();
    for (agent, _) in agents {
        let name = &agent.name;
        if !agent.reason.is_empty() {
            notes.push(format!("{name}: {}", agent.reason));
        }
        for held in &agent.paused {
            notes.push(format!("{name}: paused {held}; {}", lifts(held, name)));
        }
        for link in agent.links.iter().filter(|link| !link.reason.is_empty()) {
            notes.push(format!("{name}: {}: {}", link.relay, link.reason));
        }
        if let Some(dead) = agent.inbox.get("dead").filter(|dead| **dead > 0) {
            notes.push(format!("{name}: {dead} dead: skep inbox @{name} --state dead; skep agent retry {name}"));
        }
        if agent.outbox.refused > 0 {
            notes.push(format!("{name}: {} of its events were refused by a relay for good", agent.outbox.refused));
        }
        if agent.standing.as_ref().is_some_and(|standing| standing.lease == LeaseState::None) {
            notes.push(format!("{name}: its home relay grants no leases: one answer is certain on this machine only"));
        }
        if let Some(claim) = agent.standing.as_ref().and_then(|standing| standing.claim.as_ref())
            && agent.standing.as_ref().is_some_and(|standing| matches!(standing.role, Role::Follows { .. }))
        {
            notes.push(format!("{name}: process {} claims the lead, {} ago", claim.pid, since(claim.at)));
        }
    }
    notes
}

/// How long ago that was, by this clock.
pub fn since(at: Timestamp) -> String {
    ago(unix_now().saturating_sub(at))
}

/// `npub1abcd…wxyz`, or what stands for none.
pub fn short_key(key: Option<&PubKey>) -> String {
    key.map_or_else(|| "unknown".into(), short)
}
