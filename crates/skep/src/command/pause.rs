//! `skep pause` and `skep resume`, of all agents or some: said by the owner on the relays and to the processes here, or
//! in this home only.

use std::path::PathBuf;

use serde_json::json;
use skep_node::agent::StartError;
use skep_node::agent::settings::AgentSettings;
use skep_node::clock::unix_now;
use skep_node::config::Settings;
use skep_node::fleet::rest;
use skep_node::home::Home;
use skep_node::keys::Keyring;
use skep_proto::Timestamp;
use skep_proto::control::{Answer, Ask, Outcome};
use skep_proto::pause::{By, Held, Pause, Reach};

use super::fleet::{agent_name, ask_nodes, chosen, first_done, report};
use super::owner::{Spoken, Unheard, speak};
use super::relay::config_path;
use crate::cli::{OwnerArgs, PauseArgs, ResumeArgs};
use crate::error::{CliError, Kind};
use crate::screen::{Output, escape, remark};

pub fn pause(args: &PauseArgs, out: &mut Output) -> Result<(), CliError> {
    let said = Pause { paused: true, reason: args.reason.clone() };
    change(&args.names, &said, args.here, &args.who, out)
}

pub fn resume(args: &ResumeArgs, out: &mut Output) -> Result<(), CliError> {
    let said = Pause { paused: false, reason: String::new() };
    change(&args.names, &said, args.here, &args.who, out)
}

/// Tries the owner's way first.
fn change(names: &[String], said: &Pause, here: bool, who: &OwnerArgs, out: &mut Output) -> Result<(), CliError> {
    let place = Place::open(who)?;
    if !here {
        let known = |reach: &Reach| place.newest(reach);
        if let Some(spoken) = speak(names, said, who, known)? {
            let outcomes = place.tell_all(names, &spoken, said)?;
            return report_all(&outcomes, &spoken, out);
        }
        remark("note: this home has no key that owns its agents, so this is for this home only; --key names another");
    }
    let named = chosen(&place.home, who.config.as_ref(), names)?;
    let outcomes: Result<Vec<Outcome>, CliError> = named.iter().map(|name| place.change_here(name, said)).collect();
    report(&outcomes?, out)
}

/// This home, with the agents of its configuration.
struct Place {
    home: Home,
    agents: Vec<AgentSettings>,
}

impl Place {
    fn open(who: &OwnerArgs) -> Result<Self, CliError> {
        let home = Home::locate()?;
        let settings = Settings::load(config_path(&home, who.config.as_ref()).as_deref())?;
        Ok(Self { home, agents: settings.agent })
    }

    fn directory(&self, agent: &str) -> PathBuf {
        self.home.path().join("agents").join(agent)
    }

    /// The date of the newest word of an owner that the records here have. What cannot be read is looked for on relays.
    fn newest(&self, reach: &Reach) -> Timestamp {
        let is_about = |agent: &&AgentSettings| match reach {
            Reach::Fleet => true,
            Reach::Agent(key) => Keyring::of(&self.home).pubkey(agent.key_name()).ok() == Some(*key),
        };
        let read = |agent: &AgentSettings| rest::newest_word(&self.directory(&agent.name), reach);
        self.agents.iter().filter(is_about).filter_map(read).max().unwrap_or(0)
    }

    /// Gives the owner's word to the agents of this home, whether they run or not. Agents of somebody else are changed
    /// in this home only.
    fn tell_all(&self, names: &[String], spoken: &[Spoken], said: &Pause) -> Result<Vec<Outcome>, CliError> {
        let mut told = Vec::new();
        for word in spoken {
            for asked in ask_nodes(&self.home, &Ask::Heed { event: Box::new(word.event.clone()) })? {
                match asked.answer {
                    Ok(Answer::Done { outcomes }) => told.extend(outcomes),
                    Ok(_) => {}
                    // Whoever is silent may be the one that runs it.
                    Err(error) => told.extend(self.agents.iter().map(|agent| Outcome {
                        agent: agent.name.clone(),
                        is_done: false,
                        text: error.to_string(),
                    })),
                }
            }
        }
        let is_named = |agent: &&AgentSettings| {
            // By its name or by its key.
            let key = Keyring::of(&self.home).pubkey(agent.key_name()).ok();
            let by_key = |word: &Spoken| key.is_some_and(|key| word.reach == Reach::Agent(key));
            names.is_empty() || names.contains(&agent.name) || spoken.iter().any(by_key)
        };
        let meant = self.agents.iter().filter(is_named);
        meant.map(|agent| self.tell(agent, spoken, &told, said)).collect()
    }

    fn tell(
        &self,
        agent: &AgentSettings,
        spoken: &[Spoken],
        told: &[Outcome],
        said: &Pause,
    ) -> Result<Outcome, CliError> {
        let key = Keyring::of(&self.home).pubkey(agent.key_name()).ok();
        let owner = agent.auth.get(1).and_then(|owner| owner.parse().ok());
        let is_meant =
            |word: &&Spoken| owner == Some(word.event.pubkey) && key.is_some_and(|key| word.reach.covers(&key));
        let Some(word) = spoken.iter().find(is_meant) else { return self.change_here(&agent.name, said) };
        let heard = match told.iter().find(|outcome| outcome.agent == agent.name && outcome.is_done) {
            Some(outcome) => outcome.clone(),
            None => self.note(&agent.name, told, || {
                rest::heed(&self.directory(&agent.name), &word.reach, &word.event, &agent.relays)
            }),
        };
        // To go on is also to lift what was paused here.
        if said.paused || !heard.is_done { Ok(heard) } else { self.change_here(&agent.name, said) }
    }

    /// In this home only.
    fn change_here(&self, agent: &str, said: &Pause) -> Result<Outcome, CliError> {
        let name = Some(agent_name(agent)?);
        let ask = match said.paused {
            true => Ask::Pause { agent: name, reason: said.reason.clone() },
            false => Ask::Resume { agent: name },
        };
        let held = said.paused.then(|| Held { by: By::Here, since: unix_now(), reason: said.reason.clone() });
        Ok(match first_done(&self.home, &ask)? {
            Some(outcome) if outcome.is_done => outcome,
            told => self.note(agent, told.as_slice(), || rest::set_pause(&self.directory(agent), held.as_ref())),
        })
    }

    /// Notes it in the records of an agent that runs in no process, or could not be started there.
    fn note(&self, agent: &str, told: &[Outcome], note: impl FnOnce() -> Result<Vec<Held>, StartError>) -> Outcome {
        let done = |text: &str| Outcome { agent: agent.to_owned(), is_done: true, text: text.to_owned() };
        match note() {
            Ok(held) if held.is_empty() => done("resumed; it does not run"),
            Ok(held) => {
                done(&format!("paused; it does not run, and will not begin a turn when it starts: {}", held[0]))
            }
            // It runs after all, and said why not.
            Err(error) => {
                let said = told.iter().find(|outcome| outcome.agent == agent).cloned();
                said.unwrap_or_else(|| Outcome { is_done: false, ..done(&error.to_string()) })
            }
        }
    }
}

/// The agents here, then the relays. A relay that does not have the word is an error, unless an agent here passes it on.
fn report_all(outcomes: &[Outcome], spoken: &[Spoken], out: &mut Output) -> Result<(), CliError> {
    let agents = report(outcomes, out);
    let is_kept = outcomes.iter().any(|outcome| outcome.is_done);
    let mut failed: Option<CliError> = None;
    for heard in spoken.iter().flat_map(|word| &word.relays) {
        let text = match &heard.said {
            Ok(_) => "it has it; agents that listen there obey".to_owned(),
            Err(why) => why.to_string(),
        };
        if out.json {
            out.json_line(&json!({ "relay": heard.relay, "done": heard.said.is_ok(), "text": text }))?;
        } else if heard.said.is_ok() {
            out.line(&escape(&format!("{}: {text}", heard.relay)))?;
        }
        let Err(why) = &heard.said else { continue };
        if is_kept && matches!(why, Unheard::Unreachable(_)) {
            remark(&format!("note: {}: {text}; the agents here pass it on when they reach it", heard.relay));
            continue;
        }
        let kind = if matches!(why, Unheard::Refused(_)) { Kind::Refused } else { Kind::Network };
        failed.get_or_insert(CliError::new(kind, format!("{}: {text}", heard.relay)).hint(match why {
            Unheard::Refused(why) if why.contains("created_at") => "set this machine's clock: skep doctor",
            Unheard::Refused(_) => "the word before the colon says why; agents that listen there only did not hear it",
            Unheard::Unreachable(_) => "agents that listen there only did not hear it; say it again, or --relay URL",
        }));
    }
    out.flush()?;
    agents?;
    failed.map_or(Ok(()), Err)
}
