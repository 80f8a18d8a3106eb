//! `skep approve` and `skep deny`: the open permission cards, and answers to them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use skep_node::client::Options;
use skep_node::clock::unix_now;
use skep_node::owner::cards::{self, DecideError, OpenCard};
use skep_proto::agent::control::Status;

use super::{Owner, show};
use crate::cli::DecideArgs;
use crate::command::{ID_CHARS_MIN, block_on};
use crate::error::{CliError, Kind};
use crate::screen::{Output, escape};

pub fn run(args: &DecideArgs, is_yes: bool, out: &mut Output) -> Result<(), CliError> {
    let mut owner = Owner::open(&args.who)?;
    owner.options = Options { timeout: Duration::from_secs(args.timeout.into()), ..owner.options };
    block_on(async {
        let relays = owner.relays_of(&[]);
        let look = async |owner: &mut Owner, relay: &str| {
            let mut client = owner.connect(relay).await?;
            owner.directory.learn(&mut client).await?;
            let open = cards::open_cards(&mut client, &owner.keys, &owner.directory, unix_now()).await?;
            client.close().await;
            Ok(open.into_iter().map(|open| (relay.to_owned(), open)).collect::<Vec<_>>())
        };
        let mut open: Vec<(String, OpenCard)> = owner.on_each(&relays, look).await?.into_iter().flatten().collect();
        // A card that is on two relays is one card.
        let mut seen = BTreeSet::new();
        open.retain(|(_, open)| seen.insert(open.card.event));
        if args.requests.is_empty() && !args.all {
            return list(&owner, &open, is_yes, out);
        }
        let chosen = choose(args, &open)?;
        let mut failed = None;
        for (relay, card) in chosen {
            if let Err(error) = answer(&owner, relay, card, is_yes, out).await {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    })
}

fn list(owner: &Owner, open: &[(String, OpenCard)], is_yes: bool, out: &mut Output) -> Result<(), CliError> {
    if out.json {
        return open
            .iter()
            .try_for_each(|(_, open)| out.json_line(&show::card_json(&owner.directory, &open.agent, &open.card)));
    }
    let now = unix_now();
    for (_, OpenCard { agent, card }) in open {
        let (nonce, time) = (show::short_nonce(&card.tag.nonce), show::left(card.tag.expires_at, now));
        let who = owner.directory.label(agent);
        out.line(&format!(
            "{}  {}  {}  {time} left",
            escape(&nonce),
            escape(&who),
            escape(&show::channel(&card.tag.channel))
        ))?;
        for line in card.lines() {
            out.line(&format!("    {}", escape(line)))?;
        }
    }
    let verb = if is_yes { "approve" } else { "deny" };
    match open.first() {
        None => out.line("nothing is open"),
        Some((_, open)) => {
            let nonce = escape(&show::short_nonce(&open.card.tag.nonce));
            out.line(&format!("\nskep {verb} {nonce}, or skep {verb} --all"))
        }
    }
}

fn choose<'c>(args: &DecideArgs, open: &'c [(String, OpenCard)]) -> Result<Vec<&'c (String, OpenCard)>, CliError> {
    if args.all {
        return if open.is_empty() { Err(nothing("nothing is open")) } else { Ok(open.iter().collect()) };
    }
    let find = |wanted: &String| {
        // An unset variable in a script is empty, and every name begins with that.
        if wanted.len() < ID_CHARS_MIN {
            return Err(CliError::new(Kind::Input, format!("{wanted:?} is too short for a request's name"))
                .hint("skep approve lists what is open; --all means all of it"));
        }
        let mut found = open.iter().filter(|(_, open)| open.card.tag.nonce.starts_with(wanted.as_str()));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => {
                Err(CliError::new(Kind::Input, format!("several open requests begin with {wanted:?}"))
                    .hint("give more of the name"))
            }
            (None, _) => Err(nothing(&format!("no open request begins with {wanted:?}"))),
        }
    };
    args.requests.iter().map(find).collect()
}

fn nothing(cause: &str) -> CliError {
    CliError::new(Kind::Refused, cause)
        .hint("skep approve lists what is open; what was answered, ran out or lost its turn is not")
}

async fn answer(owner: &Owner, relay: &str, open: &OpenCard, is_yes: bool, out: &mut Output) -> Result<(), CliError> {
    let OpenCard { agent, card } = open;
    let result = cards::decide(relay, &owner.options, &owner.keys, agent, &card.tag, is_yes).await;
    let status = result.map_err(|error| error_of(error, owner, open))?;
    let word = if is_yes { "allowed" } else { "rejected" };
    if out.json {
        let option = if is_yes { &card.tag.allow } else { &card.tag.reject };
        let mut json = json!({ "nonce": card.tag.nonce, "option": option, "status": status.as_str() });
        show::name(&mut json, &owner.directory, agent);
        out.json_line(&json)?;
    } else if status == Status::Sent {
        let what = card.lines().first().copied().unwrap_or_default();
        out.line(&format!("{word} {}: {}", owner.directory.label(agent), escape(what.trim_start_matches("🔐 "))))?;
    }
    out.flush()?;
    let nonce = show::short_nonce(&card.tag.nonce);
    let refused = |cause: String| Err(CliError::new(Kind::Refused, cause).hint("skep approve lists what is open"));
    match status {
        Status::Sent => Ok(()),
        Status::AlreadyDecided => refused(format!("{nonce} was decided already: by an answer, or as its time ran out")),
        Status::NoActiveTurn => refused(format!("{nonce} is over: its turn has ended, or its time")),
        other => refused(format!("{nonce}: the agent says {}", other.as_str())),
    }
}

fn error_of(error: DecideError, owner: &Owner, open: &OpenCard) -> CliError {
    let who = owner.directory.label(&open.agent);
    match error {
        DecideError::Relay(error) => error.into(),
        DecideError::Refused(_) => CliError::new(Kind::Refused, error)
            .hint("the relay must know that the agent is yours: its instance tells it when it connects"),
        DecideError::Silent => CliError::new(Kind::NoAnswer, format!("{who} did not say what became of the answer"))
            .hint("is it running? skep approve shows whether the request is still open"),
        DecideError::Seal(_) => CliError::new(Kind::Input, error),
    }
}
