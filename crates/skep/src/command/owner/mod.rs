//! The owner's commands that go through a relay: `ask`, `say`, `watch`, `approve`, `deny`, `usage`, and what
//! `pause` and `resume` say.
//!
//! Here is what they share: who the owner is, which agents are meant, and on which relay.

mod aside;
mod ask;
mod decide;
mod say;
mod show;
mod silence;
mod usage;
mod watch;
mod word;

use std::collections::BTreeSet;
use std::time::Duration;

use skep_node::client::{Client, Credentials, Options};
use skep_node::config::Settings;
use skep_node::home::Home;
use skep_node::keys::{KeyError, KeyName, Keyring, Keys};
use skep_node::owner::{Agent, Directory, Unknown};

use super::{load_key, relay};
use crate::cli::{OwnerArgs, RELAY_DEFAULT, SettingsArgs};
use crate::error::{CliError, Kind};
use crate::screen;

pub use ask::run as ask;
pub use decide::run as decide;
pub use say::run as say;
pub use usage::run as usage;
pub use watch::run as watch;
pub use word::{Said, Tell, Unheard, speak};

/// The key that an owner has by default, and the one that anybody has.
const OWNER_KEY: &str = "owner";
const ANY_KEY: &str = "default";

/// How long one step of a relay may take.
const STEP: Duration = Duration::from_secs(15);

/// The owner, as this home knows them.
struct Owner {
    keys: Keys,
    options: Options,
    directory: Directory,
    settings: Settings,
    /// As the flag or the environment says.
    relay: Option<String>,
}

impl Owner {
    fn open(args: &OwnerArgs) -> Result<Self, CliError> {
        let home = Home::locate()?;
        let ring = Keyring::of(&home);
        let keys = keys(&ring, args.key.as_deref())?
            .ok_or_else(|| CliError::new(Kind::Input, "there is no key named owner or default here"))
            .map_err(|error| error.hint("skep key generate owner"))?;
        Self::with(keys, &home, &ring, args)
    }

    /// The same; `None`: there is no key here, or the usual one owns none of the agents here.
    fn open_if_any(args: &OwnerArgs) -> Result<Option<Self>, CliError> {
        let home = Home::locate()?;
        let ring = Keyring::of(&home);
        let Some(keys) = keys(&ring, args.key.as_deref())? else { return Ok(None) };
        let owner = Self::with(keys, &home, &ring, args)?;
        let agents = owner.directory.agents();
        let owns = agents.is_empty() || agents.iter().any(|agent| agent.is_ours);
        Ok((owns || args.key.is_some()).then_some(owner))
    }

    fn with(keys: Keys, home: &Home, ring: &Keyring, args: &OwnerArgs) -> Result<Self, CliError> {
        let settings = relay::settings(home, &SettingsArgs { config: args.config.clone(), data: None })?;
        let directory = Directory::of(keys.pubkey(), &settings, ring);
        let options = Options { credentials: Some(Credentials::from(keys.clone())), timeout: STEP };
        Ok(Self { keys, options, directory, settings, relay: args.relay.clone() })
    }

    /// The agents that are meant, and the relay to meet them on. A name that the configuration does not have is looked
    /// for among the profiles on the relay.
    async fn resolve(&mut self, names: &[String]) -> Result<(Vec<Agent>, String), CliError> {
        let agents = self.look_for(names).await?;
        let relay = self.relay_of(&agents)?;
        Ok((agents, relay))
    }

    /// The agents alone.
    async fn look_for(&mut self, names: &[String]) -> Result<Vec<Agent>, CliError> {
        let mut found = self.find(names);
        if matches!(found, Err(Unknown::Name { .. })) {
            let mut client = self.connect(&self.relay_of(&[])?).await?;
            self.directory.learn(&mut client).await?;
            client.close().await;
            found = self.find(names);
        }
        found.map_err(|unknown| CliError::new(Kind::Input, &unknown).hint(unknown.hint()))
    }

    fn find(&self, names: &[String]) -> Result<Vec<Agent>, Unknown> {
        let mut agents: Vec<Agent> = Vec::new();
        for name in names {
            let agent = self.directory.find(name)?;
            if !agents.contains(&agent) {
                agents.push(agent);
            }
        }
        Ok(agents)
    }

    /// Where these agents are met: as the flag says, else a relay that all of them use, else the first of the
    /// configuration, else the relay of this machine.
    fn relay_of(&self, agents: &[Agent]) -> Result<String, CliError> {
        if let Some(relay) = &self.relay {
            return Ok(relay.clone());
        }
        let settled: Vec<&Agent> = agents.iter().filter(|agent| !agent.relays.is_empty()).collect();
        let Some((first, others)) = settled.split_first() else { return Ok(self.usual_relay()) };
        let is_common = |relay: &&String| others.iter().all(|agent| agent.relays.contains(relay));
        first.relays.iter().find(is_common).cloned().ok_or_else(|| {
            let names: Vec<String> = settled.iter().map(|agent| agent.label()).collect();
            CliError::new(Kind::Input, format!("{} have no relay in common", names.join(" and ")))
                .hint("ask them one by one, or name a relay with --relay URL")
        })
    }

    fn usual_relay(&self) -> String {
        let of_agent = self.directory.agents().iter().find_map(|agent| agent.relays.first());
        of_agent.cloned().unwrap_or_else(|| listening(&self.settings.relay.listen))
    }

    /// Every relay where these agents may be met; of none in particular: of all that are known.
    fn relays_of(&self, agents: &[Agent]) -> Vec<String> {
        if let Some(relay) = &self.relay {
            return vec![relay.clone()];
        }
        let agents = if agents.is_empty() { self.directory.agents() } else { agents };
        let known: BTreeSet<&String> = agents.iter().flat_map(|agent| &agent.relays).collect();
        if known.is_empty() { vec![self.usual_relay()] } else { known.into_iter().cloned().collect() }
    }

    /// Does something on each relay. One that cannot be reached is mentioned; none at all is an error.
    async fn on_each<T>(
        &mut self,
        relays: &[String],
        mut work: impl AsyncFnMut(&mut Self, &str) -> Result<T, CliError>,
    ) -> Result<Vec<T>, CliError> {
        let (mut done, mut failed) = (Vec::new(), None);
        for relay in relays {
            match work(self, relay).await {
                Ok(one) => done.push(one),
                Err(error) if relays.len() == 1 => return Err(error),
                Err(error) => {
                    screen::remark(&format!("note: {relay} is left out: {}", error.cause));
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if done.is_empty() => Err(error),
            _ => Ok(done),
        }
    }

    async fn connect(&self, relay: &str) -> Result<Client, CliError> {
        let client = Client::connect(relay, self.options.clone()).await?;
        if let Some(why) = client.auth_refusal() {
            screen::remark(&format!("note: {} does not accept our authentication: {why}", client.url()));
        }
        Ok(client)
    }
}

/// The owner's key: the one that is named, or the usual one.
fn keys(ring: &Keyring, named: Option<&str>) -> Result<Option<Keys>, CliError> {
    if let Some(named) = named {
        return load_key(named).map(Some);
    }
    for name in [OWNER_KEY, ANY_KEY] {
        let parsed: KeyName = name.parse()?;
        match ring.state(&parsed) {
            Err(KeyError::Unknown { .. }) => {}
            _ => return load_key(name).map(Some),
        }
    }
    Ok(None)
}

/// The URL of a relay on this machine that listens so.
fn listening(listen: &str) -> String {
    let Some((host, port)) = listen.rsplit_once(':').filter(|(_, port)| *port != "0") else {
        return RELAY_DEFAULT.to_owned();
    };
    let host = match host {
        "" | "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        other => other,
    };
    format!("ws://{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_that_listens_everywhere_is_met_here() {
        for (listen, url) in [
            ("127.0.0.1:7777", "ws://127.0.0.1:7777"),
            ("0.0.0.0:80", "ws://127.0.0.1:80"),
            ("[::]:7777", "ws://[::1]:7777"),
            ("127.0.0.1:0", RELAY_DEFAULT),
            ("nonsense", RELAY_DEFAULT),
        ] {
            assert_eq!(listening(listen), url);
        }
    }
}
