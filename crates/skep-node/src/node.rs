//! One machine's part of a colony: a relay, the agents of the configuration, and the socket by which they are asked.
//!
//! Job: start them in order, show what could not be started, add what is added, stop in reverse order.
//! Neighbours: [`crate::relay`], [`crate::agent`] and [`crate::control`] do the work; `skep up` prints.
//! Lifetime: from [`Node::start`] to [`Node::stop`]; an agent that fails meanwhile is started again by itself.
//! Must not: let one agent's failure stop another, or ask a person for anything after the start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::control::{Answer, Ask, NodeStatus, Outcome, RelayStatus};
use skep_proto::{PubKey, limits};
use skep_relay::Relay;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::agent::settings::AgentSettings;
use crate::agent::trees::beside;
use crate::agent::{Instance, Plan, stop_all};
use crate::config::Settings;
use crate::control::{ControlError, Server, ask_all};
use crate::fleet::{Facts, Fleet, Reload, report};
use crate::home::{Home, HomeError};
use crate::keys::{self, KeyError, KeySource, Keyring, Keys, PASSPHRASE_VARIABLE, SecretText};
use crate::relay::{self, UpError};

/// How long everything may take to stop.
const STOP: Duration = Duration::from_millis(limits::STOP_MS);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("process {pid} runs this home already")]
    Running { pid: u32 },
    #[error("{address} is taken by another program")]
    Taken { address: String, config: Option<PathBuf> },
    #[error(transparent)]
    Up(#[from] UpError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl NodeError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Running { pid } => Some(format!("skep status shows it; to stop it: kill {pid}")),
            Self::Taken { address, config } => {
                let port = address.rsplit(':').next().unwrap_or_default();
                let file = config.as_ref().map_or_else(|| "config.toml".into(), |path| path.display().to_string());
                Some(format!(
                    "see which: ss -ltnp 'sport = :{port}'; or set another `listen` in [relay] of {file}, and \
                    the agents' `relays` with it"
                ))
            }
            Self::Up(error) => error.hint(),
            Self::Control(error) => error.hint(),
            Self::Key(error) => error.hint(),
        }
    }
}

/// What a node is started from.
#[derive(Debug, Clone)]
pub struct Blueprint {
    pub home: Home,
    /// Read again when agents are added.
    pub config: Option<PathBuf>,
    pub settings: Settings,
}

/// A running node.
pub struct Node {
    blueprint: Blueprint,
    fleet: Arc<Fleet>,
    wishes: mpsc::Receiver<Reload>,
    relay: Option<Relay>,
    instances: Vec<Instance>,
    server: Server,
}

impl Node {
    /// Relay first, then its agents, then the socket. An agent that cannot be started is shown with its reason, unless
    /// its key lies open: then nothing runs until that is mended.
    pub async fn start(blueprint: Blueprint) -> Result<Self, NodeError> {
        let Blueprint { home, settings, .. } = &blueprint;
        if let Some(pid) = running(home).await? {
            return Err(NodeError::Running { pid });
        }
        let ring = Keyring::of(home);
        // On this thread: while a passphrase is typed nothing else may end the process, and leave the terminal silent.
        let keys = tokio::task::block_in_place(|| {
            let keys: Vec<_> = settings.agent.iter().map(|agent| load(&ring, agent, keys::passphrase)).collect();
            keys.into_iter().map(refuse_open).collect::<Result<Vec<_>, KeyError>>()
        })?;
        let relay = match settings.relay.enabled {
            true => Some(relay::start(&settings.relay, &ring, home.path()).await.map_err(|error| match error {
                UpError::Listen { address, cause } if cause.kind() == std::io::ErrorKind::AddrInUse => {
                    NodeError::Taken { address, config: blueprint.config.clone() }
                }
                other => NodeError::Up(other),
            })?),
            false => None,
        };
        let shown =
            relay.as_ref().map(|relay| RelayStatus { url: format!("ws://{}", relay.address()), pubkey: relay.key() });
        let (fleet, wishes) = Fleet::open(shown);
        let fleet = Arc::new(fleet);
        let (plan, shown) = (blueprint.clone(), Arc::clone(&fleet));
        let instances = blocking(move || {
            let Blueprint { home, settings, .. } = &plan;
            let each = settings.agent.iter().zip(keys).collect();
            start_agents(&shown, home, settings, each).into_iter().filter_map(|(_, started)| started.ok()).collect()
        })
        .await;
        let server = Server::start(home, Arc::clone(&fleet))?;
        Ok(Self { blueprint, fleet, wishes, relay, instances, server })
    }

    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    pub async fn status(&self) -> NodeStatus {
        self.fleet.status().await
    }

    /// Adds agents as they are added to the configuration, until it is told to stop.
    pub async fn run(&mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return,
                wish = self.wishes.recv() => match wish {
                    // Whoever asked may have gone.
                    Some(reply) => drop(reply.send(self.reload().await)),
                    None => return stop.await,
                },
            }
        }
    }

    async fn reload(&mut self) -> Answer {
        // It unlocks keys and opens records, and the relay's connections have this process, too.
        let (blueprint, fleet) = (self.blueprint.clone(), Arc::clone(&self.fleet));
        match tokio::task::spawn_blocking(move || start_added(&blueprint, &fleet)).await {
            Ok((answer, started)) => {
                self.instances.extend(started);
                answer
            }
            Err(panic) => Answer::Refused { why: format!("what was added is not started: {panic}") },
        }
    }

    /// Ends what runs, in reverse order, within [`limits::STOP_MS`].
    pub async fn stop(self) {
        let deadline = Instant::now() + STOP;
        drop(self.server);
        stop_all(self.instances).await;
        if let Some(relay) = self.relay
            && timeout_at(deadline, relay.shutdown()).await.is_err()
        {
            tracing::warn!("the relay does not end; it is cut off");
        }
    }
}

/// Starts the agents of the configuration that were not started yet.
fn start_added(blueprint: &Blueprint, fleet: &Fleet) -> (Answer, Vec<Instance>) {
    let settings = match Settings::load(blueprint.config.as_deref()) {
        Ok(settings) => settings,
        Err(error) => return (Answer::Refused { why: error.to_string() }, Vec::new()),
    };
    let ring = Keyring::of(&blueprint.home);
    let (mut outcomes, mut instances) = (Vec::new(), Vec::new());
    let added = settings.agent.iter().filter(|agent| !fleet.is_started(&agent.name));
    let each = added.map(|agent| (agent, load(&ring, agent, unattended_passphrase))).collect();
    // The lock directory is the process's: two of them would be two machines.
    for (agent, started) in start_agents(fleet, &blueprint.home, &blueprint.settings, each) {
        let (is_done, text) = match &started {
            Ok(_) => (true, "started".to_owned()),
            Err(why) => (false, format!("not started: {}", report::cut(why))),
        };
        instances.extend(started);
        outcomes.push(Outcome { agent: agent.name.clone(), is_done, text });
    }
    (Answer::Done { outcomes }, instances)
}

/// Runs what opens records or waits for git, on a thread that nobody else waits for: what is up already
/// is served meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime ends, and nobody waits any more.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// The process that runs a node of this home, if one does.
async fn running(home: &Home) -> Result<Option<u32>, ControlError> {
    let asked = ask_all(home, &Ask::Status).await?;
    let is_node = |answer: &Answer| matches!(answer, Answer::Status(status) if status.relay.is_some());
    Ok(asked.into_iter().find(|asked| asked.answer.as_ref().is_ok_and(is_node)).map(|asked| asked.pid))
}

fn load(
    ring: &Keyring,
    agent: &AgentSettings,
    ask: impl FnOnce(&str) -> Result<SecretText, KeyError>,
) -> Result<Keys, KeyError> {
    let source: KeySource = agent.key_name().parse()?;
    ring.load(&source, ask)
}

/// A key that others can read is everybody's affair, not one agent's.
fn refuse_open(keys: Result<Keys, KeyError>) -> Result<Result<Keys, KeyError>, KeyError> {
    match keys {
        Err(KeyError::File(error @ HomeError::TooOpen { .. })) => Err(error.into()),
        other => Ok(other),
    }
}

/// Nobody sits there any more who could type one.
fn unattended_passphrase(what: &str) -> Result<SecretText, KeyError> {
    match std::env::var_os(PASSPHRASE_VARIABLE) {
        Some(_) => keys::passphrase(what),
        None => Err(KeyError::NoTerminal { what: format!("the passphrase of {what}") }),
    }
}

/// Starts agents, and shows each either way. The errors are for a person. It blocks; while repositories are
/// looked at, too, which is done beside each other.
fn start_agents<'a>(
    fleet: &Fleet,
    home: &Home,
    settings: &Settings,
    agents: Vec<(&'a AgentSettings, Result<Keys, KeyError>)>,
) -> Vec<(&'a AgentSettings, Result<Instance, String>)> {
    let planned = agents.into_iter().map(|(agent, keys)| {
        let pubkey = keys.as_ref().ok().map(Keys::pubkey);
        (agent, pubkey, plan(home, settings, agent, keys))
    });
    let looked_at = planned.map(async |(agent, pubkey, plan)| {
        let plan = match plan {
            Ok(plan) => plan.check_trees().await.map(|()| plan).map_err(|error| format!("repo: {error}")),
            Err(why) => Err(why),
        };
        (agent, pubkey, plan)
    });
    let looked_at = tokio::runtime::Handle::current().block_on(beside(looked_at));
    let start = |(agent, pubkey, plan)| (agent, start_agent(fleet, home, agent, pubkey, plan));
    looked_at.into_iter().map(start).collect()
}

fn plan(home: &Home, settings: &Settings, agent: &AgentSettings, keys: Result<Keys, KeyError>) -> Result<Plan, String> {
    let keys = keys.map_err(|error| with_hint(&error, error.hint()))?;
    let plan = agent.plan(&settings.leader, keys, home.path(), std::env::vars()).map_err(|error| error.of_agent())?;
    Ok(Plan { shared: settings.budget.limits(), ..plan })
}

fn start_agent(
    fleet: &Fleet,
    home: &Home,
    agent: &AgentSettings,
    pubkey: Option<PubKey>,
    plan: Result<Plan, String>,
) -> Result<Instance, String> {
    let start = |plan: Plan| {
        let facts = Facts::of_plan(agent, &plan, home.path());
        Instance::start(plan).map(|instance| (facts, instance)).map_err(|error| error.to_string())
    };
    match plan.and_then(start) {
        Ok((facts, instance)) => {
            fleet.put(facts, Ok(instance.contact().clone()));
            Ok(instance)
        }
        Err(why) => {
            // Whoever asks for the status is told.
            tracing::info!(agent = %agent.name, why, "the agent is not started");
            fleet.put(Facts::of_settings(agent, pubkey, home.path()), Err(why.clone()));
            Err(why)
        }
    }
}

fn with_hint(error: &impl std::fmt::Display, hint: Option<String>) -> String {
    hint.map_or_else(|| error.to_string(), |hint| format!("{error} ({hint})"))
}
