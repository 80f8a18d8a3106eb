//! `skep event`: a small client for people and scripts.

use std::collections::VecDeque;

use serde_json::json;
use skep_node::client::{Client, ClientError, Counted, Update};
use skep_proto::{RawEvent, VerifiedEvent};

use super::{block_on, connect, filter, input, load_key, publish};
use crate::cli::{CountArgs, EventCommand, QueryArgs};
use crate::error::{CliError, Kind};
use crate::screen::{self, Output, escape};

/// Stored events that `--follow` puts into order of time before the first is shown; a longer answer is shown as
/// it comes. 5,000 is what one filter gives on our relay.
const BACKLOG_MAX: usize = 5_000;

pub fn run(command: EventCommand, out: &mut Output) -> Result<(), CliError> {
    match command {
        EventCommand::Publish(args) => publish::run(&args, out),
        EventCommand::Query(args) => query(&args, out),
        EventCommand::Count(args) => count(&args, out),
        EventCommand::Verify { quiet } => verify(quiet, out),
    }
}

fn query(args: &QueryArgs, out: &mut Output) -> Result<(), CliError> {
    let filters = filter::filters(&args.filter)?;
    let keys = args.key.as_deref().map(load_key).transpose()?;
    block_on(async {
        let mut client = connect(&args.relay, keys).await?;
        let mut sub = client.subscribe(filters).await?;
        let mut forged = 0_u64;
        let mut backlog = args.follow.then(VecDeque::new);
        loop {
            match client.next_update(&mut sub).await? {
                Update::Event(event) => match &mut backlog {
                    Some(waiting) if waiting.len() < BACKLOG_MAX => waiting.push_front(event),
                    Some(_) => {
                        show(backlog.take(), out)?;
                        out.event(event.raw())?;
                    }
                    None => out.event(event.raw())?,
                },
                Update::Forged { id, why } => {
                    forged += 1;
                    screen::remark(&format!("note: left out the event {id}: {why}"));
                }
                Update::CaughtUp if args.follow => show(backlog.take(), out)?,
                Update::CaughtUp => break,
                Update::Closed(message) => return Err(refused(&client, message)),
            }
        }
        client.close().await;
        match forged {
            0 => Ok(()),
            n => Err(CliError::new(Kind::Refused, format!("{n} events did not verify and were left out"))
                .hint("do not trust this relay")),
        }
    })
}

fn show(backlog: Option<VecDeque<Box<VerifiedEvent>>>, out: &mut Output) -> Result<(), CliError> {
    for event in backlog.into_iter().flatten() {
        out.event(event.raw())?;
    }
    out.flush()
}

fn refused(client: &Client, message: String) -> CliError {
    ClientError::Refused { url: client.url().to_string(), message }.into()
}

fn count(args: &CountArgs, out: &mut Output) -> Result<(), CliError> {
    let filters = filter::filters(&args.filter)?;
    let keys = args.key.as_deref().map(load_key).transpose()?;
    let Counted { count, approximate, hll } = block_on(async {
        let mut client = connect(&args.relay, keys).await?;
        let counted = client.count(&filters).await?;
        client.close().await;
        Ok(counted)
    })?;
    if out.json {
        let mut answer = json!({ "count": count, "approximate": approximate });
        if let Some(hll) = hll {
            answer["hll"] = hll.into();
        }
        return out.json_line(&answer);
    }
    let about = if approximate { "about " } else { "" };
    out.line(&format!("{about}{count}"))
}

fn verify(quiet: bool, out: &mut Output) -> Result<(), CliError> {
    let (mut good, mut bad) = (0_u64, 0_u64);
    for value in input::stdin() {
        let (number, value) = value?;
        let parsed = serde_json::from_str::<RawEvent>(value.get()).map_err(|error| error.to_string());
        let id = parsed.as_ref().map(|event| event.id.to_hex()).ok();
        let why = match parsed.and_then(|event| event.verify().map_err(|error| error.to_string())) {
            Ok(_) => {
                good += 1;
                None
            }
            Err(why) => {
                bad += 1;
                Some(why)
            }
        };
        if quiet && why.is_none() {
            continue;
        }
        if out.json {
            out.json_line(&json!({ "line": number, "id": id, "ok": why.is_none(), "why": why }))?;
        } else {
            let word = if why.is_none() { "ok " } else { "BAD" };
            let why = why.map(|why| format!("  {}", escape(&why))).unwrap_or_default();
            out.line(&format!("{word}  {}{why}", id.unwrap_or_else(|| format!("value {number}"))))?;
        }
    }
    out.flush()?;
    match (good, bad) {
        (0, 0) => {
            Err(CliError::new(Kind::Input, "stdin holds no event").hint("skep event query --json | skep event verify"))
        }
        (_, 0) => Ok(()),
        (good, bad) => Err(CliError::new(Kind::Refused, format!("{bad} of {} events do not verify", good + bad))
            .hint("the lines that begin with BAD say why")),
    }
}
