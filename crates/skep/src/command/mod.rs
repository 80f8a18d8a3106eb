//! One module for each verb. A command reads its arguments, calls `skep_node`, and prints.

mod agent;
mod channels;
mod compact;
mod demo;
mod doctor;
mod event;
mod export;
mod filter;
mod fleet;
mod import;
mod inbox;
mod input;
mod key;
mod mcp;
mod name;
mod owner;
mod pause;
mod progress;
mod publish;
mod relay;
mod roster;
mod run;
mod signals;
mod status;
mod sync;
mod table;
mod trees;
mod up;

use std::future::Future;
use std::time::Duration;

use skep_node::client::{Client, Credentials, Options};
use skep_node::home::Home;
use skep_node::keys::{self, KeySource, Keyring, Keys};

use crate::cli::{Cli, Command, RelayArgs};
use crate::error::{CliError, Kind};
use crate::screen::{self, Output};

/// Characters that must be given of a message's id or a request's name, so that a slip of the hand names nothing.
const ID_CHARS_MIN: usize = 4;

pub fn run(cli: Cli) -> Result<(), CliError> {
    let mut out = Output::new(cli.json);
    match cli.command {
        Command::Up(args) => up::run(&args, &mut out),
        Command::Status(args) => status::run(&args, &mut out),
        Command::Inbox(args) => inbox::run(&args, &mut out),
        Command::Pause(args) => pause::pause(&args, &mut out),
        Command::Resume(args) => pause::resume(&args, &mut out),
        Command::Key(command) => key::run(command, &mut out),
        Command::Event(command) => event::run(command, &mut out),
        Command::Agent(command) => agent::run(command, &mut out),
        Command::Ask(args) => owner::ask(&args, &mut out),
        Command::Say(args) => owner::say(&args, &mut out),
        Command::Watch(args) => owner::watch(&args, &mut out),
        Command::Approve(args) => owner::decide(&args, true, &mut out),
        Command::Deny(args) => owner::decide(&args, false, &mut out),
        Command::Usage(args) => owner::usage(&args, &mut out),
        Command::Relay(command) => relay::run(command, &mut out),
        Command::Import(args) => import::run(&args, &mut out),
        Command::Export(args) => export::run(&args, &mut out),
        Command::Channels(args) => channels::run(&args, &mut out),
        Command::Mcp(args) => mcp::run(&args),
        Command::Doctor { settings } => doctor::run(&settings, &mut out),
    }?;
    out.flush()
}

/// The keys of this home.
fn keyring() -> Result<Keyring, CliError> {
    Ok(Keyring::of(&Home::locate()?))
}

/// A key that an argument names, ready to sign; asks for its passphrase when it has one.
fn load_key(argument: &str) -> Result<Keys, CliError> {
    let source: KeySource = argument.parse()?;
    // A key from elsewhere needs no home.
    let ring = match &source {
        KeySource::Name(_) => keyring()?,
        _ => Keyring::of(&Home::at("")),
    };
    Ok(ring.load(&source, keys::passphrase)?)
}

/// Runs a client on this thread.
fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(Kind::Internal, format!("cannot start the runtime: {error}")))?
        .block_on(work)
}

/// Connects, and says so when the relay does not take our identity: it may still serve us.
async fn connect(relay: &RelayArgs, keys: Option<Keys>) -> Result<Client, CliError> {
    let timeout = Duration::from_secs(relay.timeout.into());
    let options = Options { credentials: keys.map(Credentials::from), timeout };
    let client = Client::connect(&relay.relay, options).await?;
    if let Some(why) = client.auth_refusal() {
        screen::remark(&format!("note: {} does not accept our authentication: {why}", client.url()));
    }
    Ok(client)
}
