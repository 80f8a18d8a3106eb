//! The one loop of an agent instance: events in, turns run, replies out.
//!
//! Job: carry what happens to the machines of `skep-core` (queue, turn, permit, meter) and their effects to the store,
//! the backends and the door. Lives as long as its instance.
//! Neighbours: `skep-node` gives it verified events ([`Input`]), a [`Door`] to its home relay, and sends what lies in
//! the outbox. Must not: decide anything (core does), or publish what is not stored first.
//!
//! `desk` the loop and its state · `effects` what the queue asks for · `mail` what an event is · `work` turns · `outcome` what
//! comes of them · `lease` theirs · `post` what is published ·
//! `ends` how others hear that it is over · `pause` why none begins · `earlier` what was said before · `members` who is one · `purse` its budget · `profile` what it says of itself ·
//! `model` another model · `tell` what only the owner is told · `letter` a message however it came · `sealed` direct
//! messages · `tools` what the agent asks of its harness, `look` what is looked up for that · `host` what the machine gives it

mod desk;
mod earlier;
mod effects;
mod ends;
mod host;
mod lease;
mod letter;
mod look;
mod mail;
mod members;
mod model;
mod outcome;
mod pause;
mod post;
mod profile;
mod purse;
mod sealed;
mod tell;
mod tools;
mod work;

use std::sync::Arc;

use skep_core::audience::Audience;
use skep_core::door::Door;
use skep_core::leader::Role;
use skep_core::meter::PriceTable;
use skep_core::permit::Policy;
use skep_core::tools::Grants;
use skep_core::{queue, turn};
use skep_proto::name::AgentName;
use skep_proto::{EventId, PubKey, RawEvent};
use skep_store::agent::Delivery;
use skep_store::{AgentStore, StoreError};
use tokio::sync::{Notify, mpsc, oneshot};

pub use pause::{Heeded, note_here, note_word, pauses};

use crate::Spec;
use crate::tools::Bridge;
use crate::tree::Trees;

pub use model::tree_fact;

pub use host::{Host, Lead, Library, Purse, Refused};

/// Inputs that wait for the loop. Whoever feeds it waits when there are more: links stop reading their sockets.
pub const INPUTS_MAX: usize = 256;

/// One instance of one agent, resolved: nothing here is looked up again.
pub struct Setup {
    pub name: AgentName,
    pub keys: secp256k1::Keypair,
    /// `["auth", owner, conditions, signature]` (NIP-OA), put on what the agent publishes.
    pub attestation: Option<[String; 4]>,
    /// Unique to this launch.
    pub instance: String,
    pub audience: Audience,
    pub queue: queue::Settings,
    pub times: turn::Times,
    pub policy: Policy,
    /// What it says of itself in its profile.
    pub about: String,
    /// What every prompt begins with.
    pub system: String,
    /// The backend of a channel is started from this.
    pub spec: Spec,
    /// The tools that it has of its harness.
    pub tools: Grants,
    /// Where ACP programs find them; without it they have none.
    pub bridge: Option<Arc<dyn Bridge>>,
    /// Where its conversations work; without it, all in the spec's directory.
    pub trees: Option<Trees>,
    pub budget: skep_core::budget::Limits,
    /// The budget of the fleet and of each task, where one is set.
    pub purse: Option<Arc<dyn Purse>>,
    /// What tokens cost where the backend does not say.
    pub prices: Option<PriceTable>,
    /// Where replies go; the first is the home relay, which grants leases.
    pub relays: Vec<String>,
    /// Whether the home relay grants leases.
    pub has_leases: bool,
    /// Whether the owner's word is heard already. If not, and with leases, no turn begins before [`Input::HearsOwner`].
    pub hears_owner: bool,
    pub store: Arc<AgentStore>,
    pub host: Arc<dyn Host>,
    pub lead: Arc<dyn Lead>,
    pub library: Arc<dyn Library>,
    /// Says that the outbox has something.
    pub outbox: Arc<Notify>,
    /// Says that the owner wants this instance to lead.
    pub claims: Arc<Notify>,
}

/// What happens to an instance.
#[derive(Debug)]
pub enum Input {
    /// A verified event that concerns this agent: it names it, or it is the agent's own. May come more than once.
    Event { event: Box<RawEvent>, relay: String },
    /// What this instance is now.
    Role(Role),
    /// A relay's word on an event of the outbox.
    Delivered { id: EventId, relay: String, delivery: Delivery },
    /// Everything before this is stored: answered when it is reached.
    Flushed(oneshot::Sender<()>),
    /// What the relays had when this instance began was handed over, as far as they could be reached.
    CaughtUp,
    /// Whether the home relay's subscription stands, all that the owner said before it handed over.
    HearsOwner(bool),
    /// Something that a person asked for; the answer is one line for them.
    Command(Command, oneshot::Sender<Result<String, String>>),
}

/// What a person may ask of a running instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// In this home only.
    Pause(String),
    /// Lifts what was paused in this home, or by the provider.
    Resume,
    /// A verified event: the owner's word to begin no turns, or to go on.
    Heed(Box<RawEvent>),
    Retry(EventId),
    /// The turn of one channel, or every turn.
    Cancel {
        channel: Option<String>,
    },
    /// To a permission card, by its nonce.
    Decide {
        nonce: String,
        option: String,
        by: PubKey,
    },
}

/// Runs an instance until `inputs` ends; running turns are cancelled then, and their messages stay unanswered.
pub async fn run<D: Door + 'static>(
    setup: Setup,
    door: Arc<D>,
    inputs: mpsc::Receiver<Input>,
) -> Result<(), StoreError> {
    desk::Desk::open(setup, door)?.run(inputs).await
}
