//! One instance of an agent on this machine: the shells around `skep_agent::driver`.
//!
//! Job: bring what concerns the agent to its driver (`link`), send what it publishes (`outbox`), submit on its home
//! relay (`door`), and say whether it leads (`lead`). [`Instance`] starts them, watches them and stops them in order.
//! Neighbours: `skep-agent` has the driver; [`crate::client`] speaks to relays; `skep-store` keeps the records.
//! Lifetime: from [`Instance::start`] to [`Instance::stop`]; what fails in between is started again.
//! Must not: decide what is prompted or answered, or hand on what did not verify.

pub mod bridge;
mod concerns;
pub mod door;
mod gap;
mod generation;
mod instance;
pub mod lead;
pub mod library;
pub mod link;
pub mod locks;
mod notice;
pub mod outbox;
mod prompter;
pub mod purse;
pub mod reconnect;
pub mod settings;
pub mod trees;

pub use skep_agent::demo::run as demo;

pub(crate) use instance::make_directory;
pub use instance::{Contact, Instance, NotRunning, RECORDS, StartError, State, Status, stop_all};

use std::path::PathBuf;

use skep_agent::Spec;
use skep_agent::tree::{TreeError, Trees};
use skep_core::audience::Audience;
use skep_core::budget::{Limits, Shared};
use skep_core::leader::Mode;
use skep_core::meter::PriceTable;
use skep_core::permit::Policy;
use skep_core::tools::Grants;
use skep_core::{queue, turn};
use skep_proto::name::AgentName;

use crate::client::Credentials;

/// One agent, resolved: see [`settings::AgentSettings::plan`].
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: AgentName,
    pub policy: Policy,
    pub credentials: Credentials,
    pub audience: Audience,
    pub queue: queue::Settings,
    pub times: turn::Times,
    pub about: String,
    pub system: String,
    pub budget: Limits,
    /// The limits that agents of this home have in common.
    pub shared: Shared,
    /// `<home>/budget.db`: their account.
    pub ledger: PathBuf,
    pub prices: Option<PriceTable>,
    pub spec: Spec,
    pub tools: Grants,
    pub bridge: bridge::Bridge,
    /// Where its conversations work; without it, all in the spec's directory.
    pub trees: Option<Trees>,
    /// The first is its home.
    pub relays: Vec<String>,
    pub has_leases: bool,
    /// `<home>/agents/<name>`: its records.
    pub directory: PathBuf,
    /// Where the lock files are.
    pub locks: PathBuf,
    pub mode: Mode,
}

impl Plan {
    /// Whether its conversations will have a place to work: better told at the start than at the first turn. What is
    /// not known in time is no reason not to start. Deletes what a killed process left of trees, beside that.
    pub async fn check_trees(&self) -> Result<(), TreeError> {
        let Some(trees) = &self.trees else { return Ok(()) };
        let left = trees.clone();
        // Nobody waits for it.
        drop(tokio::task::spawn_blocking(move || left.clear()));
        match trees.check().await {
            Err(error @ TreeError::TooLong(_)) => {
                tracing::warn!(agent = %self.name, %error, "its repository does not answer; it is started all the same");
                Ok(())
            }
            found => found,
        }
    }
}
