//! `skep agent new` and `skep agent list`: who belongs to this home.

use serde_json::json;
use skep_node::config::{ConfigError, Settings};
use skep_node::control::ask_all;
use skep_node::home::Home;
use skep_node::keys::{self, Keyring, npub};
use skep_node::setup::{self, CONFIG, Owner, Runs, SetupError};
use skep_proto::control::{Answer, Ask, Outcome};

use super::relay::config_path;
use super::status::{Here, short_key, words};
use super::table::Table;
use super::{block_on, fleet, load_key};
use crate::cli::{NewArgs, StatusArgs};
use crate::error::CliError;
use crate::screen::{self, Output, escape};

pub fn add(args: &NewArgs, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let name = fleet::agent_name(&args.name)?;
    let path = args.config.clone().unwrap_or_else(|| home.path().join(CONFIG));
    let settings = match Settings::load(Some(&path)) {
        Err(ConfigError::Read { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => Settings::load(None),
        other => other,
    }?;
    // Known before a key is made for it.
    if settings.agent.iter().any(|agent| agent.name == name.as_str()) {
        return Err(SetupError::Twice(name).into());
    }
    let ring = Keyring::of(&home);
    let owner = match &args.owner {
        Some(argument) => Owner { name: argument.clone(), keys: load_key(argument)?, is_new: false },
        None => setup::owner(&ring, keys::passphrase)?,
    };
    let relays = match args.relay.is_empty() {
        true => vec![setup::local_url(&settings.relay)],
        false => args.relay.clone(),
    };
    let agent = setup::new_agent(&ring, &owner, &name, &runs(args), &relays, keys::passphrase)?;
    setup::add_agent(&path, &owner, &agent)?;
    let key = ring.pubkey(name.as_str())?;
    let started = start(&home)?.into_iter().find(|outcome| outcome.agent == name.as_str());
    // Known now, though nothing runs here that would say so.
    let missing = agent.find_program(std::env::vars()).err().map(|error| error.of_agent());
    if out.json {
        return out.json_line(&json!({
            "name": name, "npub": npub(&key), "pubkey": key, "owner": owner.keys.pubkey(),
            "backend": agent.backend_name(), "config": path,
            "started": started.as_ref().is_some_and(|outcome| outcome.is_done),
            "reason": started.filter(|outcome| !outcome.is_done).map(|outcome| outcome.text).or(missing),
        }));
    }
    out.line(&format!("agent   {name}"))?;
    out.line(&format!("npub    {}", npub(&key)))?;
    out.line(&escape(&format!("owner   {}  {}", owner.name, npub(&owner.keys.pubkey()))))?;
    out.line(&escape(&format!("runs    {}", agent.backend_name())))?;
    out.line(&escape(&format!("config  {}", path.display())))?;
    match started {
        Some(Outcome { is_done: true, .. }) => out.line("It runs."),
        Some(Outcome { text, .. }) => {
            out.line(&escape(&format!("It is {text}.")))?;
            out.line("When that is mended: stop skep up and start it again.")
        }
        None => match missing {
            Some(why) => {
                out.line(&escape(&format!("It cannot start yet: {why}.")))?;
                out.line("When that is mended: skep up starts it.")
            }
            None => out.line("Next: skep up starts it."),
        },
    }
}

fn runs(args: &NewArgs) -> Runs {
    match (&args.preset, &args.command, &args.base_url, &args.model) {
        (_, Some(command), ..) => Runs::Command { command: command.clone(), args: args.args.clone() },
        (_, _, Some(base_url), Some(model)) => Runs::Server { base_url: base_url.clone(), model: model.clone() },
        (preset, ..) => Runs::Preset(preset.clone().unwrap_or_default()),
    }
}

/// Tells whatever runs here that there is something new.
fn start(home: &Home) -> Result<Vec<Outcome>, CliError> {
    let asked = block_on(async { Ok(ask_all(home, &Ask::Reload).await?) })?;
    let outcomes = asked.into_iter().filter_map(|asked| match asked.answer {
        Ok(Answer::Done { outcomes }) => Some(outcomes),
        _ => None,
    });
    Ok(outcomes.flatten().collect())
}

pub fn list(args: &StatusArgs, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let here = Here::look(&home, args.config.as_ref())?;
    let agents = here.agents();
    if out.json {
        return agents.iter().try_for_each(|(agent, seen)| {
            out.json_line(&json!({
                "name": agent.name, "npub": agent.pubkey.as_ref().map(npub), "pubkey": agent.pubkey,
                "owner": agent.owner, "backend": agent.backend, "state": words(agent), "seen_at": seen,
            }))
        });
    }
    if agents.is_empty() {
        let more = if config_path(&home, args.config.as_ref()).is_some() {
            "skep agent new NAME --preset …"
        } else {
            "skep up"
        };
        screen::remark(&format!("no agents yet; make one: {more}"));
        return Ok(());
    }
    let mut table = Table::new(["AGENT", "KEY", "OWNER", "BACKEND", "STATE"]);
    for (agent, _) in agents {
        let key = agent.pubkey.as_ref().map_or_else(|| "unknown".into(), npub);
        let owner = agent.owner.as_ref().map_or_else(|| "nobody".into(), |owner| short_key(Some(owner)));
        table.row([agent.name.clone(), key, owner, agent.backend.clone(), words(agent)]);
    }
    table.print(out, "")
}
