//! `skep import`: JSONL into a store or through a relay.

use std::io::IsTerminal;

use serde_json::json;
use skep_node::home::Home;
use skep_node::transfer::{Import, Journal, Missing, Offline, Progress, Source, Tally, import_relay, import_store};

use super::progress::{Bar, Unit};
use super::{block_on, connect, load_key, relay};
use crate::cli::{ImportArgs, RelayArgs};
use crate::error::{CliError, Kind};
use crate::screen::{self, Output};

/// Seconds that a relay may take for an answer.
const TIMEOUT_SECS: u16 = 30;

pub fn run(args: &ImportArgs, out: &mut Output) -> Result<(), CliError> {
    let source = source(args)?;
    source.check()?;
    let home = Home::locate()?;
    let store = match &args.relay {
        Some(_) => None,
        None => Some(Offline::open(&relay::settings(&home, &args.settings)?.relay, &home, Missing::Create)?),
    };
    // After a power cut a store that does not flush may lack what a journal says is there.
    let keeps_journal = store.as_ref().is_none_or(Offline::is_durable);
    let target = match (&args.relay, &store) {
        (Some(url), _) => url.clone(),
        (None, Some(store)) => std::path::absolute(store.dir())?.display().to_string(),
        (None, None) => String::new(),
    };
    let mut journal = if keeps_journal { journal(args, &source, &home, &target)? } else { None };
    let (begin, lines) = journal.as_ref().map_or((0, 0), Journal::done);
    let bar = Bar::new(Unit::Bytes, source.bytes());
    bar.begin_at(begin);
    let mut tally = Tally::default();
    let mut tell = |progress: Progress| bar.tell(progress);
    let import = Import { source, journal: journal.as_mut(), is_strict: args.strict, observer: &mut tell };
    let outcome: Result<(), CliError> = match &store {
        Some(store) => import_store(store, import, &mut tally).map_err(CliError::from),
        None => through_relay(args, import, &mut tally),
    };
    drop(bar);
    if outcome.is_ok()
        && let Some(journal) = journal
    {
        journal.finish()?;
    }
    if outcome.is_ok() || tally.seen() > 0 {
        summary(&tally, lines, out)?;
    }
    outcome.and_then(|()| verdict(&tally))
}

fn source(args: &ImportArgs) -> Result<Source, CliError> {
    if args.file.as_os_str() != "-" {
        return Ok(Source::File(args.file.clone()));
    }
    if args.resume {
        return Err(CliError::new(Kind::Usage, "stdin cannot be resumed: it has no place to go back to")
            .hint("import a file, or leave --resume out: what is there already is only counted"));
    }
    if std::io::stdin().is_terminal() {
        screen::remark("note: reading events from this terminal; Ctrl-D ends");
    }
    Ok(Source::Stdin)
}

/// It is kept for every regular file, so that any import can be resumed; it is a must only where it was asked for.
fn journal(args: &ImportArgs, source: &Source, home: &Home, target: &str) -> Result<Option<Journal>, CliError> {
    let Source::File(path) = source else { return Ok(None) };
    if source.bytes().is_none() {
        return if args.resume {
            Err(CliError::new(Kind::Usage, format!("{} is no regular file: it cannot be resumed", path.display()))
                .hint("leave --resume out: what is there already is only counted"))
        } else {
            Ok(None)
        };
    }
    match Journal::open(home, path, target, args.resume) {
        Ok(journal) => Ok(Some(journal)),
        Err(error) if args.resume => Err(error.into()),
        Err(_) => Ok(None),
    }
}

fn through_relay(args: &ImportArgs, import: Import<'_>, tally: &mut Tally) -> Result<(), CliError> {
    let Some(url) = &args.relay else { return Ok(()) };
    let keys = args.key.as_deref().map(load_key).transpose()?;
    let relay = RelayArgs { relay: url.clone(), timeout: TIMEOUT_SECS };
    block_on(async {
        let mut client = connect(&relay, keys).await?;
        import_relay(&mut client, import, tally).await?;
        client.close().await;
        Ok(())
    })
}

/// What became of the events, on stdout; what is wrong with some, beside it.
fn summary(tally: &Tally, lines_before: u64, out: &mut Output) -> Result<(), CliError> {
    let Tally { imported, duplicates, superseded, refused, bad, bad_lines, owners_learned } = tally;
    if out.json {
        out.json_line(&json!({
            "imported": imported,
            "duplicates": duplicates,
            "superseded": superseded,
            "refused": refused,
            "bad": bad,
            "bad_lines": bad_lines,
            "owners_learned": owners_learned,
            "resumed_after_line": lines_before,
        }))?;
    } else {
        let all_refused = tally.refused_in_all();
        let resumed = if lines_before > 0 { format!(", after line {lines_before}") } else { String::new() };
        out.line(&format!(
            "imported {imported}, duplicates {duplicates}, superseded {superseded}, refused {all_refused}, bad {bad}{resumed}"
        ))?;
        for line in bad_lines {
            screen::remark(&format!("line {}: {}", line.line, line.why));
        }
        for (reason, count) in refused {
            screen::remark(&format!("refused {count}: {reason}"));
        }
    }
    out.flush()
}

fn verdict(tally: &Tally) -> Result<(), CliError> {
    if tally.is_clean() {
        return Ok(());
    }
    let (bad, refused) = (tally.bad, tally.refused_in_all());
    let hint = match (tally.owners_learned, bad) {
        (1.., _) if refused > 0 => "owners of agents were learned on the way: run it again, some may now be taken",
        (_, 0) => "the word before the colon of each reason says which rule it was",
        _ => "the rest is in; mend those lines and run it again, what is there is only counted",
    };
    Err(CliError::new(Kind::Refused, format!("{bad} bad lines, {refused} events refused")).hint(hint))
}
