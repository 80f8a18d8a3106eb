//! `skep relay`: serve until told to stop.

use std::path::PathBuf;

use serde_json::json;
use skep_node::config::Settings;
use skep_node::home::Home;
use skep_node::keys::Keyring;
use skep_node::relay;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{RelayRun, SettingsArgs};
use crate::error::{CliError, Kind};
use crate::screen::Output;

pub fn run(command: RelayRun, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let mut settings = settings(&home, &command.settings)?;
    if let Some(listen) = command.listen {
        settings.relay.listen = listen;
    }
    start_log();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(Kind::Internal, format!("cannot start the runtime: {error}")))?
        .block_on(serve(&settings, &home, out))
}

/// Settings from the file, the environment and the flags.
pub fn settings(home: &Home, args: &SettingsArgs) -> Result<Settings, CliError> {
    let default: PathBuf = home.path().join("config.toml");
    let path = args.config.clone().or_else(|| default.exists().then_some(default));
    let mut settings = Settings::load(path.as_deref())?;
    if let Some(data) = &args.data {
        settings.relay.data = data.display().to_string();
    }
    Ok(settings)
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
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A second start in one process keeps the first log.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
