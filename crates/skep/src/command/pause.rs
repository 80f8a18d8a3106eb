//! `skep pause` and `skep resume`, of all agents or some: said by the owner on the relays and to the processes here, or
//! in this home only.

use std::path::PathBuf;

use serde_json::json;
use skep_node::agent::StartError;
use skep_node::agent::settings::AgentSettings;
use skep_node::clock::unix_now;
use skep_node::config::Settings;
use skep_node::control::ask_all;
use skep_node::fleet::rest;
use skep_node::home::Home;
use skep_node::keys::Keyring;
use skep_proto::control::{Answer, Ask, Outcome};
use skep_proto::pause::{By, Held, Pause, Reach};
use skep_proto::{EventId, PubKey, Timestamp};

use super::block_on;
use super::fleet::{agent_name, ask_first, chosen, report};
use super::owner::{Said, Tell, Unheard, speak};
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
        let tell = async |what: Vec<Tell>| place.tell_all(names, &what, said).await;
        if let Some(what) = speak(names, said, who, known, tell)? {
            return report_all(what, said, out);
        }
        remark("note: this home has no key that owns its agents, so this is for this home only; --key names another");
    }
    let named = chosen(&place.home, who.config.as_ref(), names)?;
    let outcomes = block_on(async {
        let mut outcomes = Vec::new();
        for name in &named {
            outcomes.push(place.change_here(name, said).await?);
        }
        Ok(outcomes)
    });
    report(&outcomes?, out)
}

/// What lifts it.
pub fn lifts(held: &Held, agent: &str) -> String {
    match held.by {
        By::OwnerOfAll => "skep resume".to_owned(),
        By::Owner | By::Here | By::Provider => format!("skep agent resume {agent}"),
    }
}

/// What became of one agent here.
struct Told {
    outcome: Outcome,
    /// The word that it has, and the relays that it passes it on to.
    word: Option<(EventId, Vec<String>)>,
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

    /// Gives the owner's word to the agents of this home, whether they run or not. Agents of somebody else are paused in
    /// this home only.
    async fn tell_all(&self, names: &[String], what: &[Tell], said: &Pause) -> Result<Vec<Told>, CliError> {
        let mut told = Vec::new();
        for event in what.iter().filter_map(|(_, word)| word.as_ref()) {
            for asked in ask_all(&self.home, &Ask::Heed { event: Box::new(event.clone()) }).await? {
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
            let by_key = |(reach, _): &Tell| key.is_some_and(|key| *reach == Reach::Agent(key));
            names.is_empty() || names.contains(&agent.name) || what.iter().any(by_key)
        };
        let mut all = Vec::new();
        for agent in self.agents.iter().filter(is_named) {
            all.push(self.tell(agent, what, &told, said).await?);
        }
        Ok(all)
    }

    async fn tell(
        &self,
        agent: &AgentSettings,
        what: &[Tell],
        told: &[Outcome],
        said: &Pause,
    ) -> Result<Told, CliError> {
        let key = Keyring::of(&self.home).pubkey(agent.key_name()).ok();
        let owner: Option<PubKey> = agent.auth.get(1).and_then(|owner| owner.parse().ok());
        let is_meant = |(reach, word): &&Tell| {
            key.is_some_and(|key| reach.covers(&key)) && word.as_ref().is_some_and(|word| owner == Some(word.pubkey))
        };
        let is_for_all = what.iter().any(|(reach, _)| *reach == Reach::Fleet);
        let Some((reach, Some(word))) = what.iter().find(is_meant) else {
            let outcome = if said.paused || !is_for_all {
                self.change_here(&agent.name, said).await?
            } else {
                let text = "the key that says this does not own it: nothing is changed".to_owned();
                self.still(Outcome { agent: agent.name.clone(), is_done: true, text })
            };
            return Ok(Told { outcome, word: None });
        };
        let heard = match told.iter().find(|outcome| outcome.agent == agent.name && outcome.is_done) {
            Some(outcome) => outcome.clone(),
            None => {
                self.note(&agent.name, told, || rest::heed(&self.directory(&agent.name), reach, word, &agent.relays))
            }
        };
        let passes = heard.is_done.then(|| (word.id, agent.relays.clone()));
        let outcome = match said.paused || !heard.is_done {
            true => heard,
            // What was said to all is lifted by itself; who is named goes on, whatever it was that held it.
            false if is_for_all => self.still(heard),
            false => self.change_here(&agent.name, said).await?,
        };
        Ok(Told { outcome, word: passes })
    }

    /// In this home only.
    async fn change_here(&self, agent: &str, said: &Pause) -> Result<Outcome, CliError> {
        let name = Some(agent_name(agent)?);
        let ask = match said.paused {
            true => Ask::Pause { agent: name, reason: said.reason.clone() },
            false => Ask::Resume { agent: name },
        };
        let held = said.paused.then(|| Held { by: By::Here, since: unix_now(), reason: said.reason.clone() });
        let note = || rest::set_pause(&self.directory(agent), held.as_ref()).map(|held| (held, true));
        let outcome = match ask_first(&self.home, &ask).await? {
            Some(outcome) if outcome.is_done => outcome,
            told => self.note(agent, told.as_slice(), note),
        };
        Ok(if said.paused || !outcome.is_done { outcome } else { self.still(outcome) })
    }

    /// After something was lifted: what holds all the same, and how to lift that.
    fn still(&self, outcome: Outcome) -> Outcome {
        let held = rest::held(&self.directory(&outcome.agent)).unwrap_or_default();
        let each =
            held.iter().map(|held| format!("still paused {held}; to lift that: {}", lifts(held, &outcome.agent)));
        let each: Vec<String> = each.collect();
        if each.is_empty() { outcome } else { Outcome { text: each.join("; "), ..outcome } }
    }

    /// Notes it in the records of an agent that runs in no process, or could not be started there.
    fn note(
        &self,
        agent: &str,
        told: &[Outcome],
        note: impl FnOnce() -> Result<(Vec<Held>, bool), StartError>,
    ) -> Outcome {
        let done = |text: &str| Outcome { agent: agent.to_owned(), is_done: true, text: text.to_owned() };
        match note() {
            Ok((_, false)) => Outcome { is_done: false, ..done("it has a newer word of its owner; say it again") },
            Ok((held, true)) if held.is_empty() => done("resumed; it does not run"),
            Ok((held, true)) => {
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

/// The agents here, then the relays. A relay that does not have the word is an error, unless an agent here that took it
/// passes it on there.
fn report_all(what: Said<Result<Vec<Told>, CliError>>, said: &Pause, out: &mut Output) -> Result<(), CliError> {
    let told = what.told.transpose()?.unwrap_or_default();
    let outcomes: Vec<Outcome> = told.iter().map(|told| told.outcome.clone()).collect();
    let agents = report(&outcomes, out);
    let mut failed: Option<CliError> = None;
    for (word, heard) in what.words.iter().flat_map(|word| word.relays.iter().map(move |heard| (word, heard))) {
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
        let mut taken = told.iter().filter_map(|told| told.word.as_ref());
        let is_passed_on = taken.any(|(id, relays)| *id == word.event.id && relays.contains(&heard.relay));
        if is_passed_on && matches!(why, Unheard::Unreachable(_)) {
            remark(&format!("note: {}: {text}; the agents here pass it on when they reach it", heard.relay));
            continue;
        }
        let kind = if matches!(why, Unheard::Refused(_)) { Kind::Refused } else { Kind::Network };
        failed.get_or_insert(CliError::new(kind, format!("{}: {text}", heard.relay)).hint(match why {
            _ if why.is_of_clock() => CLOCK,
            Unheard::Refused(_) => "the word before the colon says why; agents that listen there only did not hear it",
            Unheard::Unreachable(_) => "agents that listen there only did not hear it; say it again, or --relay URL",
        }));
    }
    let is_refused = !what.words.is_empty() && !told.is_empty() && told.iter().all(|told| told.word.is_none()) && {
        let verdicts = || what.words.iter().flat_map(|word| &word.relays).map(|heard| &heard.said);
        verdicts().all(Result::is_err) && verdicts().any(|said| said.as_ref().is_err_and(Unheard::is_of_clock))
    };
    if said.paused && (what.ahead.is_some() || is_refused) {
        remark("note: no relay has it, for its date: agents are paused in this home only");
    }
    out.flush()?;
    agents?;
    if let Some(ahead) = what.ahead {
        return Err(CliError::new(Kind::Input, ahead).hint(CLOCK));
    }
    failed.map_or(Ok(()), Err)
}

/// The mend of a date that no relay takes.
const CLOCK: &str = "set this machine's clock (skep doctor compares it with the relays'), and say it again";
