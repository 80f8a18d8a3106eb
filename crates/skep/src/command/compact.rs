//! `skep relay compact`.

use serde_json::json;
use skep_node::home::Home;
use skep_node::transfer;

use super::relay;
use crate::cli::SettingsArgs;
use crate::error::CliError;
use crate::screen::Output;

pub fn run(args: &SettingsArgs, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let settings = relay::settings(&home, args)?;
    let done = transfer::compact(&settings.relay, &home)?;
    if out.json {
        return out.json_line(&json!({
            "events": done.events,
            "bytes_before": done.bytes_before,
            "bytes_after": done.bytes_after,
        }));
    }
    out.line(&format!("{} bytes before, {} after, {} events", done.bytes_before, done.bytes_after, done.events))
}
