//! `skep doctor`: what is wrong, and how to mend it.

use serde_json::json;
use skep_node::agent::trees;
use skep_node::clock::unix_now;
use skep_node::doctor::{self, Report, State};
use skep_node::home::Home;
use skep_node::skew;

use super::{block_on, relay};
use crate::cli::SettingsArgs;
use crate::error::{CliError, Kind};
use crate::screen::{Output, escape};

pub fn run(args: &SettingsArgs, out: &mut Output) -> Result<(), CliError> {
    let home = Home::locate()?;
    let path = relay::config_path(&home, args.config.as_ref());
    let settings = relay::load(&home, args);
    let skews = match &settings {
        Ok(settings) => block_on(async { Ok(skew::skews(&home, settings, unix_now).await) })?,
        // Which relays there are is not known.
        Err(_) => Vec::new(),
    };
    let host: Vec<(String, String)> = std::env::vars().collect();
    let trees = match &settings {
        Ok(settings) => block_on(async { Ok(trees::check_all(&settings.agent, home.path(), &host).await) })?,
        Err(_) => Vec::new(),
    };
    let report = doctor::examine(&home, settings.map(|settings| (settings, path)), unix_now(), &skews, &trees);
    if out.json {
        let Report { checks, limits } = &report;
        out.json_line(&json!({ "ok": report.is_well(), "checks": checks, "limits": limits }))?;
    } else {
        print(&report, out)?;
    }
    out.flush()?;
    match report.wrong() {
        0 => Ok(()),
        n => Err(CliError::new(Kind::Refused, format!("{n} things are wrong"))
            .hint("the lines that begin with WRONG say what; the line below each says how to mend it")),
    }
}

fn print(report: &Report, out: &mut Output) -> Result<(), CliError> {
    for check in &report.checks {
        let word = match check.state {
            State::Ok => "ok     ",
            State::Warning => "WARNING",
            State::Wrong => "WRONG  ",
        };
        out.line(&format!("{word}  {:10}  {}", check.name, escape(&check.found)))?;
        if let Some(mend) = &check.mend {
            out.line(&format!("         mend        {}", escape(mend)))?;
        }
    }
    for limit in &report.limits {
        let is_default = limit.value == limit.default;
        let note = if is_default { "default".into() } else { format!("default {}", limit.default) };
        out.line(&format!("limit    {:28}  {} {} ({note})", limit.name, limit.value, limit.unit))?;
    }
    Ok(())
}
