//! A relay on this machine: settings, home and key in; a running [`skep_relay::Relay`] out.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use secp256k1::Keypair;
use skep_core::World;
use skep_core::intake::host_of;
use skep_core::world::{Policy, Registry};
pub use skep_core::{Readers, world::Channel};
use skep_proto::PubKey;
use skep_relay::http::Identity;
use skep_relay::{Config, Relay, StartError};
use skep_store::Options;
use tokio::net::TcpListener;

use crate::config::{ConfigError, Durability, RelaySettings};
use crate::home::{Existing, HomeError};
use crate::keys::{self, KeyError, KeyName, Keyring, Keys, StoredKey};

/// The name of the relay's own key in the key ring.
pub const KEY_NAME: &str = "relay";

/// Why a relay did not come up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("cannot listen on {address}: {cause}")]
    Listen { address: String, cause: std::io::Error },
    #[error(transparent)]
    Start(#[from] StartError),
}

impl UpError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(_) => Some("see docs/config.md for every setting and its default".into()),
            Self::Home(error) => error.hint(),
            Self::Key(error) => error.hint(),
            Self::Listen { address, cause } => Some(match cause.kind() {
                std::io::ErrorKind::AddrInUse => {
                    format!("something serves {address} already; stop it or give --listen another port")
                }
                std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; take a higher one".into(),
                _ => "give --listen an address of this machine and a port, like 127.0.0.1:7777".into(),
            }),
            Self::Start(StartError::Store(error)) => Some(match error {
                skep_store::StoreError::Locked { .. } => "one relay at a time may use a data directory".into(),
                skep_store::StoreError::DiskFull => "make room on the disk that holds the data directory".into(),
                _ => "check the data directory's owner and mode, and the disk".into(),
            }),
            Self::Start(_) => None,
        }
    }
}

/// Everything, from settings to a served port.
pub async fn start(settings: &RelaySettings, ring: &Keyring, home: &Path) -> Result<Relay, UpError> {
    // It may be under a passphrase, which takes its time on purpose.
    let keys = tokio::task::block_in_place(|| own_key(ring))?;
    let listener = TcpListener::bind(&settings.listen)
        .await
        .map_err(|cause| UpError::Listen { address: settings.listen.clone(), cause })?;
    let address = listener.local_addr().map_err(|cause| UpError::Listen { address: settings.listen.clone(), cause })?;
    let config = resolve(settings, keys.keypair(), home, address)?;
    let relay = Relay::start(config, listener).await?;
    if let Err(refusal) = relay.publish_members().await {
        tracing::warn!(%refusal, "the member list is not published");
    }
    Ok(relay)
}

/// The relay's key; made at the first start.
fn own_key(ring: &Keyring) -> Result<Keys, UpError> {
    let name: KeyName = KEY_NAME.parse()?;
    if !ring.path(&name).exists() {
        let keys = Keys::generate()?;
        let stored = StoredKey::parse(&keys.nsec(), KEY_NAME)?;
        ring.store(&name, &stored, Some(&keys.pubkey()), Existing::Keep)?;
    }
    let stored = ring.read(&name)?;
    Ok(stored.unlock(|| keys::passphrase("passphrase of the relay's key"))?)
}

/// The URLs under which a relay that serves `address` is reached.
fn urls(settings: &RelaySettings, address: SocketAddr) -> Vec<String> {
    if settings.urls.is_empty() { vec![format!("ws://{address}")] } else { settings.urls.clone() }
}

/// The rules that the settings make, before the store has added what it knows (see [`skep_relay::recall`]).
pub fn world(settings: &RelaySettings, key: PubKey, address: SocketAddr) -> Result<World, ConfigError> {
    let mut hosts: BTreeSet<String> = urls(settings, address).iter().filter_map(|url| host_of(url)).collect();
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        let port = address.port();
        hosts.extend(["localhost", "127.0.0.1", "[::1]"].map(|host| format!("{host}:{port}")));
    }
    hosts.insert(address.to_string());
    let admins = settings.keys("relay.admins", &settings.admins)?;
    Ok(World {
        relay: key,
        hosts,
        admins: admins.into_iter().collect(),
        members: settings.keys("relay.members", &settings.members)?.into_iter().collect(),
        is_closed: settings.closed,
        agent_depth: settings.agent_depth,
        min_pow: settings.min_pow,
        is_search_on: settings.search,
        channels: settings.channel_rules()?.into_iter().collect(),
        names: settings.names()?,
        limits: settings.limits.clone(),
        policy: Policy::default(),
        registry: Registry::default(),
    })
}

fn resolve(settings: &RelaySettings, keys: &Keypair, home: &Path, address: SocketAddr) -> Result<Config, UpError> {
    let key = PubKey(keys.x_only_public_key().0.serialize());
    let world = world(settings, key, address)?;
    let admins = settings.keys("relay.admins", &settings.admins)?;
    let urls = urls(settings, address);
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let identity = Identity {
        name: settings.name.clone(),
        description: settings.description.clone(),
        icon: some(&settings.icon),
        contact: some(&settings.contact),
        software: env!("CARGO_PKG_REPOSITORY").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        key,
        npub: keys::npub(&key),
        admin: admins.first().copied(),
        public_url: urls[0].trim_end_matches('/').to_owned(),
    };
    Ok(Config { keys: *keys, world, identity, store: store_options(settings, home), has_blobs: settings.blobs })
}

/// How the relay's store is opened, by the relay and by the tools that work on it while it is down.
pub fn store_options(settings: &RelaySettings, home: &Path) -> Options {
    Options {
        dir: settings.data_dir(home),
        map_bytes: settings.map_gib << 30,
        is_durable: settings.durability == Durability::Full,
    }
}
