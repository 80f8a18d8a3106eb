//! Who can say what time it is: the relays of others that our agents use, and our own records.
//!
//! Must not: take a relay that does not answer for one that disagrees.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use skep_core::health::{self, Skew, Witness};
use skep_proto::Timestamp;
use skep_store::AgentStore;

use crate::agent::RECORDS;
use crate::client;
use crate::config::Settings;
use crate::home::Home;
use crate::setup::local_url;

/// Relays that are asked: the first of all agents, then the second, …
const RELAYS_MAX: usize = 8;

/// Everybody's word on the time, asked at once; each within three seconds.
pub async fn witnesses(home: &Home, settings: &Settings) -> Vec<Witness> {
    let records = settings.agent.iter().filter_map(|agent| records(home, &agent.name));
    let mut all: Vec<Witness> = records.collect();
    let asked = foreign_relays(settings).into_iter().map(|url| async {
        let at = client::date(&url).await.ok().flatten()?;
        Some(Witness::Relay { url, at })
    });
    all.extend(join_all(asked).await.into_iter().flatten());
    all
}

/// What speaks against our clock.
pub async fn skews(home: &Home, settings: &Settings, now: impl FnOnce() -> Timestamp) -> Vec<Skew> {
    let witnesses = witnesses(home, settings).await;
    health::skews(now(), &witnesses)
}

/// Relays whose clock is not ours.
fn foreign_relays(settings: &Settings) -> BTreeSet<String> {
    let own = local_url(&settings.relay);
    let listed = settings.agent.iter().flat_map(|agent| &agent.relays);
    listed.filter(|url| url.trim_end_matches('/') != own).take(RELAYS_MAX).cloned().collect()
}

fn records(home: &Home, agent: &str) -> Option<Witness> {
    let path = home.path().join("agents").join(agent).join(RECORDS);
    let store = path.exists().then(|| AgentStore::open_to_read(&path).ok()).flatten()?;
    store.changed_at().ok().flatten().map(|at| Witness::Records { at })
}
