//! `skep relay`: serve until told to stop.

use std::path::PathBuf;

use serde_json::json;
use skep_node::config::{ConfigError, Settings};
use skep_node::home::Home;
use skep_node::keys::Keyring;
use skep_node::relay;
use tokio::signal::unix::{SignalKind, signal};

use super::run::runtime;
use super::{compact, name, sync};
use crate::cli::{RelayCommand, RelayRun, SettingsArgs};
use crate::error::{CliError, Kind};
use crate::screen::Output;

pub fn run(command: RelayRun, out: &mut Output) -> Result<(), CliError> {
    match &command.command {
        Some(RelayCommand::Compact { settings }) => return compact::run(settings, out),
        Some(RelayCommand::Sync(args)) => return sync::run(args, out),
        Some(RelayCommand::Name(command)) => return name::run(command, out),
        None => {}
    }
    let home = Home::locate()?;
    let mut settings = settings(&home, &command.settings)?;
    if let Some(listen) = command.listen {
        settings.relay.listen = listen;
    }
    start_log();
    runtime()?.block_on(serve(&settings, &home, out))
}

/// Settings from the file, the environment and the flags.
pub fn settings(home: &Home, args: &SettingsArgs) -> Result<Settings, CliError> {
    Ok(load(home, args)?)
}

/// The same, for whoever wants to tell what is wrong with them.
pub fn load(home: &Home, args: &SettingsArgs) -> Result<Settings, ConfigError> {
    let mut settings = Settings::load(config_path(home, args.config.as_ref()).as_deref())?;
    if let Some(data) = &args.data {
        settings.relay.data = data.display().to_string();
    }
    Ok(settings)
}

/// The file that an argument names, or the one in the home directory if it is there.
pub fn config_path(home: &Home, named: Option<&PathBuf>) -> Option<PathBuf> {
    let default = home.path().join("config.toml");
    named.cloned().or_else(|| default.exists().then_some(default))
}

async fn serve(settings: &Settings, home: &Home, out: &mut Output) -> Result<(), CliError> {
    let failed = |error| CliError::new(Kind::Internal, format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let running = relay::start(&settings.relay, &Keyring::of(home), home.path()).await?;
    let (address, key) = (running.address(), running.key());
    if out.json {
        out.json_line(&json!({ "listening": format!("ws://{address}"), "pubkey": key }))?;
    } else {
        out.line(&format!("listening ws://{address} pubkey={key}"))?;
    }
    out.flush()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running.shutdown().await;
    Ok(())
}

/// Events of the program itself, to stderr; `RUST_LOG` says how many.
pub fn start_log() {
    start_log_at("info");
}

/// The protocol's crate logs what programs of agents send, whole: only where `RUST_LOG` wants it.
const QUIET: &str = "rmcp=off";

/// The same where `RUST_LOG` is not set, from this level on.
pub fn start_log_at(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("{level},{QUIET}")));
    // A second start in one process keeps the first log.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
