//! `skep say`: a message to agents, published.

use std::io::{self, IsTerminal, Read};

use serde_json::json;
use skep_node::clock::unix_now;
use skep_node::keys::{nevent, pubkey};
use skep_node::owner::letter::{self, Letter};
use skep_node::owner::{Agent, post, salt};
use skep_proto::{Draft, Kind as EventKind, RawEvent, thread};
use tokio::time::Instant;

use super::{Owner, STEP};
use crate::cli::SayArgs;
use crate::command::block_on;
use crate::error::{CliError, Kind};
use crate::screen::{Output, remark};

/// Bytes of a text that is read from stdin: an event has room for about 250 KiB.
const TEXT_BYTES_MAX: u64 = 240 * 1024;

pub fn run(args: &SayArgs, out: &mut Output) -> Result<(), CliError> {
    let (names, text) = words(&args.words)?;
    let mut owner = Owner::open(&args.who)?;
    block_on(async {
        let (agents, relay) = owner.resolve(&names).await?;
        let message = Message::write(&owner, &agents, args, &text)?;
        let accepted = message.publish(&owner, &relay, Instant::now() + STEP).await?;
        if out.json {
            return out.json_line(&message.json(&relay, &accepted));
        }
        out.line(&message.event.id.to_hex())
    })
}

/// The names at the beginning, and the text after them or on stdin.
pub fn words(words: &[String]) -> Result<(Vec<String>, String), CliError> {
    let is_name = |word: &String| word.starts_with('@') && !word.contains(char::is_whitespace) || pubkey(word).is_ok();
    // The first word is an agent, however it is written.
    let names = 1 + words.iter().skip(1).take_while(|word| is_name(word)).count();
    let (names, text) = words.split_at(names.min(words.len()));
    let text = if text.is_empty() { from_stdin()? } else { text.join(" ") };
    if text.trim().is_empty() {
        return Err(CliError::new(Kind::Input, "the text is empty").hint("skep ask @name 'what is it about?'"));
    }
    Ok((names.to_vec(), text))
}

fn from_stdin() -> Result<String, CliError> {
    if io::stdin().is_terminal() {
        return Err(CliError::new(Kind::Usage, "the text is missing")
            .hint("skep ask @name 'what is it about?', or pipe the text in"));
    }
    let mut text = String::new();
    let read = io::stdin().take(TEXT_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| CliError::new(Kind::Input, format!("stdin is not text: {error}")).hint("in UTF-8"))?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        return Err(CliError::new(Kind::Input, format!("the text is longer than {TEXT_BYTES_MAX} bytes"))
            .hint("put it where the agent can read it, and say where"));
    }
    Ok(text)
}

/// A message, ready to be published.
pub struct Message {
    /// By its id the agents call the message.
    pub event: RawEvent,
    /// Of a direct message: what is said, and our own copy.
    pub private: Option<(RawEvent, RawEvent)>,
}

impl Message {
    /// A note, a chat message in a group or a direct message, to these agents.
    pub fn write(owner: &Owner, agents: &[Agent], args: &SayArgs, text: &str) -> Result<Self, CliError> {
        if args.dm {
            let [agent] = agents else {
                return Err(CliError::new(Kind::Usage, "a direct message is for one agent")
                    .hint("write to them one by one, or use --channel GROUP"));
            };
            let letter = letter::write(&owner.keys, &agent.key, text, args.task.as_deref(), unix_now());
            let Letter { rumor, event, copy } = letter.map_err(|error| {
                CliError::new(Kind::Input, error).hint("a direct message holds about 35,000 characters")
            })?;
            return Ok(Self { event, private: Some((rumor, copy)) });
        }
        let kind = if args.channel.is_some() { EventKind::CHAT } else { EventKind::NOTE };
        let mut draft = Draft::new(kind, unix_now(), text).tag(salt()?);
        if let Some(channel) = &args.channel {
            draft = draft.tag(["h", channel]);
        }
        if let Some(task) = &args.task {
            draft = draft.tag([thread::TASK, task]);
        }
        let named = agents.iter().fold(draft, |draft, agent| draft.tag(["p", &agent.key.to_hex()]));
        Ok(Self { event: owner.keys.sign(named).raw().clone(), private: None })
    }

    /// Publishes it; gives the relay's remark.
    pub async fn publish(&self, owner: &Owner, relay: &str, until: Instant) -> Result<String, CliError> {
        let verdict = post::publish(relay, &owner.options, &self.event, until).await?;
        if !verdict.accepted {
            return Err(CliError::new(Kind::Refused, format!("{relay} refused the message: {}", verdict.message))
                .hint("the word before the colon says why; for restricted try another key with --key NAME"));
        }
        if let Some((_, copy)) = &self.private {
            let kept = post::publish(relay, &owner.options, copy, until).await;
            if !kept.is_ok_and(|verdict| verdict.accepted) {
                remark("note: the relay has the message, but not our own copy of it");
            }
        }
        Ok(verdict.message)
    }

    pub fn json(&self, relay: &str, message: &str) -> serde_json::Value {
        let nevent = nevent(&self.event, Some(relay));
        let mut json =
            json!({ "type": "sent", "id": self.event.id, "nevent": nevent, "relay": relay, "message": message });
        if let Some((rumor, _)) = &self.private {
            json["rumor"] = json!(rumor.id);
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_before_the_text() {
        let split = |text: &str| {
            let all: Vec<String> = text.split('|').map(str::to_owned).collect();
            words(&all).map(|(names, text)| (names.join(","), text)).expect(text)
        };
        let pair = |names: &str, text: &str| (names.to_owned(), text.to_owned());
        assert_eq!(split("@a|hello there"), pair("@a", "hello there"));
        assert_eq!(split("a|hello|@b"), pair("a", "hello @b"));
        assert_eq!(split("@a|@b|go on"), pair("@a,@b", "go on"));
        assert_eq!(split("@a|@b go on"), pair("@a", "@b go on"));
        assert!(words(&["@a".into(), "  ".into()]).is_err());
    }
}
