//! A relay that can be stopped and started at its address, an owner who is its member, and an agent of that owner.

use std::path::Path;
use std::time::Duration;

use skep_node::agent::Plan;
use skep_node::agent::reconnect::Connection;
use skep_node::agent::settings::{AgentSettings, LeaderSettings};
use skep_node::client::{Client, Credentials, Options};
use skep_node::clock::unix_now;
use skep_node::config::RelaySettings;
use skep_node::home::Home;
use skep_node::keys::{Keyring, Keys};
use skep_node::relay::{self, UpError};
use skep_proto::attestation::{Conditions, attest};
use skep_proto::{Draft, Filter, Kind, RawEvent, VerifiedEvent};
use skep_relay::{Relay, StartError};
use skep_store::StoreError;
use tempfile::TempDir;
use tokio::sync::watch;

/// What never comes must fail the test, not hang it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Hive {
    dir: TempDir,
    settings: RelaySettings,
    relay: Option<Relay>,
    pub owner: Keys,
    pub agent: Keys,
}

impl Hive {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut RelaySettings)) -> Self {
        let owner = Keys::generate().unwrap();
        let mut settings = RelaySettings {
            listen: "127.0.0.1:0".into(),
            members: vec![owner.pubkey().to_hex()],
            blobs: false,
            map_gib: 1,
            ..RelaySettings::default()
        };
        settings.limits.events_per_second = 0;
        settings.limits.events_per_second_per_ip = 0;
        settings.limits.events_per_second_per_pubkey = 0;
        change(&mut settings);
        let dir = tempfile::tempdir().unwrap();
        let mut hive = Self { dir, settings, relay: None, owner, agent: Keys::generate().unwrap() };
        hive.up().await;
        hive
    }

    /// Starts the relay, where it was before.
    pub async fn up(&mut self) {
        let home = Home::at(self.dir.path().join("relay"));
        let relay = loop {
            match relay::start(&self.settings, &Keyring::of(&home), home.path()).await {
                Ok(relay) => break relay,
                // Threads of the one before still let go of its store.
                Err(UpError::Start(StartError::Store(StoreError::Locked { .. }))) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        self.settings.listen = relay.address().to_string();
        self.relay = Some(relay);
    }

    pub async fn down(&mut self) {
        self.relay.take().unwrap().shutdown().await;
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.settings.listen)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn consent(&self) -> [String; 4] {
        attest(self.owner.keypair(), &self.agent.pubkey(), &Conditions::default(), &[0; 32])
    }

    pub fn credentials(&self) -> Credentials {
        Credentials { keys: self.agent.clone(), attestation: Some(self.consent()) }
    }

    /// A client of somebody.
    pub async fn client(&self, keys: &Keys) -> Client {
        let options = Options { credentials: Some(keys.clone().into()), ..Options::default() };
        Client::connect(&self.url(), options).await.unwrap()
    }

    /// What the owner finds by a filter, as soon as it is so much.
    pub async fn found(&self, filter: Filter, wanted: usize) -> Vec<VerifiedEvent> {
        let (mut client, filter) = (self.client(&self.owner).await, filter.normalized());
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let found = client.query(vec![filter.clone()]).await.unwrap();
                if found.len() >= wanted {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("there are never {wanted}"))
    }

    /// An agent as it is run with a home of its own, on a machine that is its lock directory.
    pub fn plan(&self, settings: &AgentSettings, keys: &Keys, home: &str, machine: &str) -> Plan {
        let locks = self.dir().join(machine).display().to_string();
        let leader = LeaderSettings { dir: locks, ..LeaderSettings::default() };
        let host = [("PATH".to_owned(), "/bin:/usr/bin".to_owned())];
        settings.plan(&leader, keys.clone(), &self.dir().join(home), host).unwrap()
    }

    /// A note of the owner that mentions the agent.
    pub fn mention(&self, at: u64, text: &str) -> RawEvent {
        let agent = self.agent.pubkey().to_hex();
        self.owner.sign(Draft::new(Kind::NOTE, at, text).tag(["p", &agent])).raw().clone()
    }

    /// A note of the agent.
    pub fn reply(&self, text: &str) -> RawEvent {
        self.agent.sign(Draft::new(Kind::NOTE, unix_now(), text)).raw().clone()
    }
}

/// Waits until a connection is as wanted.
pub async fn until(connection: &mut watch::Receiver<Connection>, wanted: impl Fn(&Connection) -> bool) -> Connection {
    let found = tokio::time::timeout(PATIENCE, connection.wait_for(|now| wanted(now))).await;
    found.expect("in time").unwrap().clone()
}
