//! `skep event publish`: one event made of flags, or any number from stdin.

use serde::Deserialize;
use serde_json::json;
use skep_node::client::Client;
use skep_node::clock::unix_now;
use skep_node::keys::{Keys, nevent};
use skep_proto::{Draft, Kind as EventKind, RawEvent, Tags, Timestamp, VerifiedEvent};
use tokio::sync::mpsc;

use super::{block_on, connect, filter, input, load_key};
use crate::cli::PublishArgs;
use crate::error::{CliError, Kind};
use crate::screen::{Output, escape};

/// Who signs when nobody is named.
const KEY_DEFAULT: &str = "default";

/// Events read ahead of the relay's answers.
const READ_AHEAD_MAX: usize = 64;

/// Ready to send, or the reason why the rest of the input is not.
type Prepared = Result<Box<VerifiedEvent>, CliError>;

pub fn run(args: &PublishArgs, out: &mut Output) -> Result<(), CliError> {
    let created_at = args.created_at.as_deref().map(|text| input::time(text, unix_now())).transpose()?;
    if args.kind.is_some() || args.content.is_some() || !args.tag.is_empty() {
        let draft = draft_of(args, created_at)?;
        let keys = load_key(args.key.as_deref().unwrap_or(KEY_DEFAULT))?;
        let event = keys.sign(draft);
        return block_on(async {
            let mut client = connect(&args.relay, Some(keys)).await?;
            let accepted = publish(&mut client, &event, out).await?;
            client.close().await;
            outcome(u64::from(!accepted), 1)
        });
    }
    if args.created_at.is_some() {
        return Err(CliError::new(Kind::Usage, "--created-at needs --content, --kind or --tag")
            .hint("a draft on stdin has its own created_at"));
    }
    let keys = args.key.as_deref().map(load_key).transpose()?;
    block_on(from_stdin(args, keys, out))
}

fn draft_of(args: &PublishArgs, created_at: Option<Timestamp>) -> Result<Draft, CliError> {
    let content = args.content.clone().unwrap_or_default();
    let mut draft = Draft::new(EventKind(args.kind.unwrap_or(1)), created_at.unwrap_or_else(unix_now), content);
    for text in &args.tag {
        draft = draft.tag(filter::tag(text)?);
    }
    Ok(draft)
}

/// Publishes one after the other. The first event is prepared before connecting, so that bad input is told first.
async fn from_stdin(args: &PublishArgs, keys: Option<Keys>, out: &mut Output) -> Result<(), CliError> {
    let (sender, mut prepared) = mpsc::channel(READ_AHEAD_MAX);
    let signer = keys.clone();
    // A thread of its own: stdin may be silent for hours while pings have to be answered.
    std::thread::spawn(move || prepare(signer, &sender));
    let Some(first) = prepared.recv().await else {
        return Err(CliError::new(Kind::Input, "stdin holds no event")
            .hint("give --content, or pipe events or drafts in as JSON"));
    };
    let mut next = Some(first?);
    let mut client = connect(&args.relay, keys).await?;
    let (mut refused, mut sent) = (0, 0);
    while let Some(event) = next {
        sent += 1;
        refused += u64::from(!publish(&mut client, &event, out).await?);
        next = loop {
            tokio::select! {
                biased;
                item = prepared.recv() => break item.transpose()?,
                message = client.receive_live() => drop(message?),
            }
        };
    }
    client.close().await;
    outcome(refused, sent)
}

fn prepare(keys: Option<Keys>, sender: &mpsc::Sender<Prepared>) {
    let mut keys = keys;
    for value in input::stdin() {
        let item = value.and_then(|(number, value)| event_of(value.get(), number, &mut keys));
        let is_last = item.is_err();
        // When nobody receives any more, publishing has failed and said so.
        if sender.blocking_send(item).is_err() || is_last {
            return;
        }
    }
}

/// A draft as people write it: the time may be missing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LooseDraft {
    kind: EventKind,
    #[serde(default)]
    content: String,
    #[serde(default)]
    tags: Tags,
    created_at: Option<Timestamp>,
    /// Of an unsigned event, as other tools print them. It must be the signer's.
    pubkey: Option<String>,
    /// Recomputed.
    #[serde(rename = "id")]
    _id: Option<String>,
}

fn event_of(text: &str, number: usize, keys: &mut Option<Keys>) -> Prepared {
    #[derive(Deserialize)]
    struct Probe {
        sig: Option<serde::de::IgnoredAny>,
    }
    let bad = |why: String| {
        CliError::new(Kind::Input, format!("value {number} of stdin: {why}"))
            .hint("a signed event, or a draft as {\"kind\":1,\"content\":\"hello\"}")
    };
    let probe: Probe = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    if probe.sig.is_some() {
        let event: RawEvent = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        return event.verify().map(Box::new).map_err(|error| bad(error.to_string()));
    }
    let draft: LooseDraft = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    let keys = match keys {
        Some(keys) => keys,
        None => keys.insert(load_key(KEY_DEFAULT)?),
    };
    if draft.pubkey.is_some_and(|author| author != keys.pubkey().to_hex()) {
        return Err(bad("it names another author than the signing key".into()));
    }
    let LooseDraft { kind, content, tags, created_at, .. } = draft;
    let draft = Draft { created_at: created_at.unwrap_or_else(unix_now), kind, tags, content };
    Ok(Box::new(keys.sign(draft)))
}

/// Sends one event and prints the relay's word on it.
async fn publish(client: &mut Client, event: &VerifiedEvent, out: &mut Output) -> Result<bool, CliError> {
    let verdict = client.publish(event).await?;
    if out.json {
        out.json_line(&json!({
            "id": event.id,
            "nevent": nevent(event, Some(client.url().as_str())),
            "accepted": verdict.accepted,
            "message": verdict.message,
            "relay": client.url().as_str(),
        }))?;
    } else {
        let word = if verdict.accepted { "accepted" } else { "refused " };
        out.line(format!("{word}  {}  {}", event.id, escape(&verdict.message)).trim_end())?;
    }
    out.flush()?;
    Ok(verdict.accepted)
}

fn outcome(refused: u64, sent: u64) -> Result<(), CliError> {
    if refused == 0 {
        return Ok(());
    }
    Err(CliError::new(Kind::Refused, format!("the relay refused {refused} of {sent} events"))
        .hint("the word before the colon says why; for auth-required and restricted try --key NAME"))
}
