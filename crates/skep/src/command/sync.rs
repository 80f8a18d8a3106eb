//! `skep relay sync`: our relay and another, made equal.

use serde_json::json;
use skep_node::client::{Client, parse_relay_url};
use skep_node::home::Home;
use skep_node::keys::Keys;
use skep_node::relay::Readers;
use skep_node::sync::{self, Direction, Local, Synced};
use skep_node::transfer::{Missing, Offline, Progress, Tally};
use skep_proto::Filter;

use super::progress::{Bar, Unit};
use super::{block_on, connect, filter, load_key, relay};
use crate::cli::{Dir, RelayArgs, SettingsArgs, SyncArgs};
use crate::error::{CliError, Kind};
use crate::screen::{self, Output};

/// Seconds that a relay may take for an answer; the first of a reconciliation may need a scan of everything.
const TIMEOUT_SECS: u16 = 60;

pub fn run(args: &SyncArgs, out: &mut Output) -> Result<(), CliError> {
    let filter = filter::from_json(&args.filter, "the filter")?;
    if filter.limit.is_some() {
        return Err(CliError::new(Kind::Usage, "a sync has no limit: both sides would mean different events by it")
            .hint("bound it by since and until"));
    }
    parse_relay_url(&args.remote)?;
    let keys = args.key.as_deref().map(load_key).transpose()?;
    let synced = match args.data.is_some() || args.config.is_some() {
        true => from_store(args, &filter, keys),
        false => block_on(async {
            let mut client = open(&args.relay, keys.clone()).await?;
            let synced = exchange(args, &filter, keys, &mut Local::Relay(&mut client)).await;
            client.close().await;
            synced
        }),
    }?;
    summary(&synced, out)?;
    verdict(&synced)
}

fn from_store(args: &SyncArgs, filter: &Filter, keys: Option<Keys>) -> Result<Synced, CliError> {
    let home = Home::locate()?;
    let settings = SettingsArgs { config: args.config.clone(), data: args.data.clone() };
    let store = Offline::open(&relay::settings(&home, &settings)?.relay, &home, Missing::Create)?;
    let readers: Readers = keys.iter().map(Keys::pubkey).collect();
    block_on(exchange(args, filter, keys, &mut Local::Store(&store, readers)))
}

async fn open(url: &str, keys: Option<Keys>) -> Result<Client, CliError> {
    connect(&RelayArgs { relay: url.to_owned(), timeout: TIMEOUT_SECS }, keys).await
}

async fn exchange(
    args: &SyncArgs,
    filter: &Filter,
    keys: Option<Keys>,
    local: &mut Local<'_>,
) -> Result<Synced, CliError> {
    let items = {
        let bar = Bar::new(Unit::Events, None);
        local.items(filter, &mut |progress: Progress| bar.tell(progress)).await?
    };
    // Only now: a relay cuts who is silent, and listing our own may take a while.
    let mut remote = open(&args.remote, keys).await?;
    let direction = match args.dir {
        Dir::Up => Direction::Up,
        Dir::Down => Direction::Down,
        Dir::Both => Direction::Both,
    };
    let bar = Bar::new(Unit::Events, None);
    let mut tell = |progress: Progress| bar.tell(progress);
    let synced = sync::sync(local, items, &mut remote, filter, direction, &mut tell).await;
    remote.close().await;
    Ok(synced?)
}

fn summary(synced: &Synced, out: &mut Output) -> Result<(), CliError> {
    let Synced { local, down, up, gone, forged } = synced;
    if out.json {
        out.json_line(&json!({
            "local": local,
            "down": side(down),
            "up": side(up),
            "gone": gone,
            "forged": forged,
        }))?;
        return out.flush();
    }
    for (word, tally) in [("down", down), ("up  ", up)] {
        let Tally { imported, duplicates, superseded, .. } = tally;
        let refused = tally.refused_in_all() + tally.bad;
        out.line(&format!(
            "{word} {imported} new, {duplicates} duplicates, {superseded} superseded, {refused} refused"
        ))?;
    }
    out.flush()?;
    for (word, tally) in [("down", down), ("up", up)] {
        for (reason, count) in &tally.refused {
            screen::remark(&format!("{word}: refused {count}: {reason}"));
        }
    }
    Ok(())
}

fn side(tally: &Tally) -> serde_json::Value {
    json!({
        "new": tally.imported,
        "duplicates": tally.duplicates,
        "superseded": tally.superseded,
        "refused": tally.refused,
    })
}

fn verdict(synced: &Synced) -> Result<(), CliError> {
    if synced.forged > 0 {
        return Err(CliError::new(Kind::Refused, format!("{} events did not verify and were left out", synced.forged))
            .hint("do not trust the relay that sent them"));
    }
    let refused = synced.down.refused_in_all() + synced.up.refused_in_all();
    if refused == 0 && synced.down.is_clean() {
        return Ok(());
    }
    Err(CliError::new(Kind::Refused, format!("{refused} events were refused"))
        .hint("a deletion on one side refuses what the other still had; for auth-required try --key NAME"))
}
