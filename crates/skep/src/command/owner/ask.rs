//! `skep ask`: a message, what comes of it as it comes, and the answer.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, IsTerminal};
use std::time::Duration;

use serde_json::json;
use skep_node::client::ClientError;
use skep_node::clock::unix_now;
use skep_node::owner::fate::{Card, End, Fate, Step};
use skep_node::owner::watch::{Item, Seen, Shown, Watch};
use skep_node::owner::{Agent, Feed, Heard, cards, letter, open_frame};
use skep_proto::agent::control::Status;
use skep_proto::{EventId, Filter, Kind as EventKind, PubKey, RawEvent, limits, wrap};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::aside::Aside;
use super::say::Message;
use super::silence::Silences;
use super::{Owner, say, show};
use crate::cli::AskArgs;
use crate::command::block_on;
use crate::error::{CliError, Kind};
use crate::screen::{Output, paragraphs};

/// After so long without any sign a person is told so: an agent that runs reacts within a second or two.
const SILENCE: Duration = Duration::from_secs(10);

/// How often the relay is asked for parts of an answer that are missing, and the time between.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);

/// What agents answer with, and react.
const ANSWERS: [EventKind; 5] =
    [EventKind::NOTE, EventKind::REACTION, EventKind::CHAT, EventKind::CHANNEL_MESSAGE, EventKind::COMMENT];

pub fn run(args: &AskArgs, out: &mut Output) -> Result<(), CliError> {
    let (names, text) = say::words(&args.say.words)?;
    let mut owner = Owner::open(&args.say.who)?;
    block_on(async {
        let until = Instant::now() + Duration::from(args.timeout);
        let (agents, relay) = owner.resolve(&names).await?;
        let message = Message::write(&owner, &agents, &args.say, &text)?;
        let keys: Vec<PubKey> = agents.iter().map(|agent| agent.key).collect();
        let filters = [answers(&owner, &keys, &message), signs(&owner, &keys)].concat();
        // Heard before it is said: nothing that follows is missed.
        let feed = Feed::open(&relay, owner.options.clone(), filters).await?;
        let remark = message.publish(&owner, &relay, until).await?;
        if out.json {
            out.json_line(&message.json(&relay, &remark))?;
            out.flush()?;
        }
        let aside = Aside::new(!args.quiet && !out.json);
        let fate = Fate::new(message.event.id, keys);
        let fate = match &message.private {
            Some((rumor, _)) => fate.also_called(rumor.id),
            None => fate,
        };
        let talk = Talk {
            fate,
            message,
            owner,
            agents,
            relay,
            aside,
            out,
            letters: BTreeSet::new(),
            silences: Silences::default(),
            questions: VecDeque::new(),
        };
        talk.run(feed, args, until).await
    })
}

/// What these agents publish about a message, and letters to us when it was one.
fn answers(owner: &Owner, agents: &[PubKey], message: &Message) -> Vec<Filter> {
    if message.private.is_some() {
        // Wraps are dated back on purpose, and by nobody's key.
        let since = Some(unix_now().saturating_sub(wrap::BACK_SECS_MAX + limits::CONTROL_FRESH_SECS));
        return vec![Filter { kinds: Some(vec![EventKind::GIFT_WRAP]), tags: to(owner), since, ..Filter::new() }];
    }
    let tags = vec![(b'e', vec![message.event.id.to_hex()])];
    let (kinds, authors) = (Some(ANSWERS.to_vec()), Some(agents.to_vec()));
    vec![Filter { kinds, authors, tags, ..Filter::new() }.normalized()]
}

/// That a card was decided, which is a reaction to the card, and frames. Clocks differ; what is older is not about this
/// message anyway.
fn signs(owner: &Owner, agents: &[PubKey]) -> Vec<Filter> {
    let since = Some(unix_now().saturating_sub(limits::CONTROL_FRESH_SECS));
    let of = |kind| Filter { kinds: Some(vec![kind]), authors: Some(agents.to_vec()), since, ..Filter::new() };
    let frames = Filter { tags: to(owner), ..of(EventKind::AGENT_FRAME) };
    vec![of(EventKind::REACTION).normalized(), frames.normalized()]
}

fn to(owner: &Owner) -> Vec<(u8, Vec<String>)> {
    vec![(b'p', vec![owner.keys.pubkey().to_hex()])]
}

/// One message, and everybody who is to answer it.
struct Talk<'o> {
    fate: Fate,
    message: Message,
    owner: Owner,
    agents: Vec<Agent>,
    relay: String,
    aside: Aside,
    out: &'o mut Output,
    /// Wraps that were opened: opening costs.
    letters: BTreeSet<EventId>,
    silences: Silences,
    /// Cards that wait for a person here; the first is being asked.
    questions: VecDeque<(PubKey, Card)>,
}

impl Talk<'_> {
    async fn run(mut self, mut feed: Feed, args: &AskArgs, until: Instant) -> Result<(), CliError> {
        self.aside.line(&format!(
            "→ {} {} taken by {}",
            self.names(),
            &self.message.event.id.to_hex()[..8],
            self.relay
        ));
        let mut watch = Watch::default();
        let mut typed = self.typist();
        let mut silence = Some(Instant::now() + SILENCE);
        while self.fate.waiting().next().is_some() {
            let steps = tokio::select! {
                heard = feed.next() => match heard {
                    Some(heard) => self.hear(heard, &mut watch),
                    None => return Err(self.unheard()),
                },
                line = next_line(&mut typed), if !self.questions.is_empty() => {
                    self.type_answer(line, &mut typed).await?;
                    continue;
                }
                () = sleep_until(silence.unwrap_or(until)), if silence.is_some() => {
                    silence = None;
                    self.say_silence();
                    continue;
                }
                () = sleep_until(until) => return Err(self.out_of_time(args)),
            };
            for (agent, step) in steps {
                self.take(agent, step, typed.is_some()).await?;
            }
        }
        self.aside.end_text();
        self.outcome()
    }

    fn names(&self) -> String {
        self.agents.iter().map(Agent::label).collect::<Vec<_>>().join(" ")
    }

    fn label(&self, agent: &PubKey) -> String {
        self.agents.iter().find(|known| known.key == *agent).map(Agent::label).unwrap_or_default()
    }

    fn hear(&mut self, heard: Heard, watch: &mut Watch) -> Vec<(PubKey, Step)> {
        let events = match heard {
            Heard::Stored(events) => events,
            Heard::Event(event) => vec![*event],
            Heard::Lost { why, .. } => {
                self.aside.line(&format!("… connection lost ({why}); connecting again"));
                return Vec::new();
            }
            Heard::Refused(why) => {
                self.aside.must_line(&format!("note: the relay serves us no more: {why}"));
                return Vec::new();
            }
        };
        let (frames, events): (Vec<RawEvent>, Vec<RawEvent>) =
            events.into_iter().partition(|event| event.kind == EventKind::AGENT_FRAME);
        let asked = |event: &RawEvent| self.agents.iter().any(|agent| agent.key == event.pubkey);
        let opened = frames
            .iter()
            .filter(|event| asked(event))
            .filter_map(|event| Some((event.pubkey, open_frame(&self.owner.keys, event)?)))
            .collect();
        let mut steps = Vec::new();
        for seen in watch.take_all(opened) {
            if let Seen::Item(item) = seen {
                steps.extend(self.fate.hear_item(&item).into_iter().map(|step| (item.agent, step)));
            }
        }
        for event in events {
            let is_wrap = event.kind == EventKind::GIFT_WRAP;
            if is_wrap && !self.letters.insert(event.id) {
                continue;
            }
            let Some(event) = letter::read(&self.owner.keys, &event) else { continue };
            steps.extend(self.fate.hear_event(&event).into_iter().map(|step| (event.pubkey, step)));
        }
        steps
    }

    /// Shows one step.
    async fn take(&mut self, agent: PubKey, step: Step, can_type: bool) -> Result<(), CliError> {
        let who = self.label(&agent);
        match step {
            Step::Reading => self.tell(&agent, "reading", "", &format!("👀 {who} reads it"))?,
            Step::Waits(reason) => {
                let why = if reason.is_empty() { "behind another turn" } else { &reason };
                self.tell(&agent, "waits", &reason, &format!("⏳ {who} has it waiting: {why}"))?;
            }
            Step::Live(item) => self.live(&who, &item)?,
            Step::Asks(card) => {
                if !can_type {
                    self.show_card(&agent, &card, false)?;
                } else {
                    self.questions.push_back((agent, *card));
                    if self.questions.len() == 1 {
                        self.ask_next()?;
                    }
                }
            }
            Step::Decided { event, was_answered } => {
                let how = if was_answered { "it was answered" } else { "it ran out, and counts as rejected" };
                let is_asked = self.questions.front().is_some_and(|(_, card)| card.event == event);
                self.questions.retain(|(_, card)| card.event != event);
                if is_asked {
                    self.aside.asked(false);
                }
                self.tell(&agent, "decided", how, &format!("🔐 {who}: {how}"))?;
                if is_asked {
                    self.ask_next()?;
                }
            }
            Step::Over(End::Answered) => {
                self.aside.end_text();
                self.complete(&agent).await;
                self.print_answer(&agent)?;
            }
            Step::Over(end) => self.tell_end(&agent, &end)?,
        }
        self.out.flush()
    }

    fn live(&mut self, who: &str, item: &Item) -> Result<(), CliError> {
        if self.out.json {
            return show::live_json(&self.owner.directory, item).map_or(Ok(()), |json| self.out.json_line(&json));
        }
        if !self.silences.is_news(item) {
            return Ok(());
        }
        match &item.shown {
            Shown::Text(piece) => self.aside.text(&format!("{who} │"), piece),
            // The card says more, and so does 👀.
            Shown::Permission(_) | Shown::Asks(_) | Shown::Session(_) => {}
            Shown::TurnStarted(started) if started.attempt <= 1 => {}
            shown => {
                if let Some(line) = show::line(shown) {
                    self.aside.line(&format!("{who} {line}"));
                }
            }
        }
        Ok(())
    }

    fn tell(&mut self, agent: &PubKey, what: &str, reason: &str, line: &str) -> Result<(), CliError> {
        if !self.out.json {
            self.aside.line(line);
            return Ok(());
        }
        let mut json = json!({ "type": what });
        if !reason.is_empty() {
            json["reason"] = json!(reason);
        }
        show::name(&mut json, &self.owner.directory, agent);
        self.out.json_line(&json)
    }

    fn tell_end(&mut self, agent: &PubKey, end: &End) -> Result<(), CliError> {
        let (what, why) = words(end);
        // What ended without an answer is the command's error, said once: here only to programs and beside others.
        if self.out.json {
            let mut json = json!({ "type": "ended", "how": what, "reason": why });
            show::name(&mut json, &self.owner.directory, agent);
            return self.out.json_line(&json);
        }
        if self.agents.len() > 1 {
            self.aside.line(&format!("✗ {}: {what}: {why}", self.label(agent)));
        }
        Ok(())
    }

    fn show_card(&mut self, agent: &PubKey, card: &Card, can_type: bool) -> Result<(), CliError> {
        if self.out.json {
            return self.out.json_line(&show::card_json(&self.owner.directory, agent, card));
        }
        let nonce = show::short_nonce(&card.tag.nonce);
        let time = show::left(card.tag.expires_at, unix_now());
        self.aside.must_line(&format!("{} asks for a permission, within {time}:", self.label(agent)));
        for line in card.lines() {
            self.aside.must_line(&format!("  {line}"));
        }
        if can_type {
            self.aside.ask("allow? [y/n] ");
        } else {
            let mend = format!("  skep approve {nonce}   or   skep deny {nonce}   or react to the card with 👍 or 👎");
            self.aside.must_line(&mend);
        }
        Ok(())
    }

    /// Lines that a person types, where there is a terminal for it.
    fn typist(&self) -> Option<mpsc::Receiver<String>> {
        if self.out.json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return None;
        }
        let (lines, typed) = mpsc::channel(1);
        // A thread of its own: a read from a terminal cannot be given up. It ends with the process.
        std::thread::spawn(move || {
            for line in io::stdin().lines().map_while(Result::ok) {
                if lines.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Some(typed)
    }

    async fn type_answer(
        &mut self,
        line: Option<String>,
        typed: &mut Option<mpsc::Receiver<String>>,
    ) -> Result<(), CliError> {
        let Some(line) = line else {
            // The terminal is gone; the card can be answered elsewhere.
            *typed = None;
            self.aside.asked(false);
            self.questions.clear();
            return Ok(());
        };
        let is_yes = match line.trim().to_lowercase().as_str() {
            "y" | "yes" => true,
            "n" | "no" => false,
            _ => {
                self.aside.ask("y allows it, n rejects it: ");
                return Ok(());
            }
        };
        self.aside.asked(true);
        let Some((agent, card)) = self.questions.pop_front() else { return Ok(()) };
        let (options, keys) = (self.owner.options.clone(), self.owner.keys.clone());
        let decided = cards::decide(&self.relay, &options, &keys, &agent, &card.tag, is_yes).await;
        match decided {
            Ok(Status::Sent) => {}
            Ok(Status::AlreadyDecided) => self.aside.must_line("it was decided already"),
            Ok(status) => self.aside.must_line(&format!("the answer did not count: {}", status.as_str())),
            Err(error) => self.aside.must_line(&format!("the answer may not have arrived: {error}")),
        }
        self.ask_next()
    }

    /// Shows the next open question to whoever types.
    fn ask_next(&mut self) -> Result<(), CliError> {
        let Some((agent, card)) = self.questions.front().cloned() else { return Ok(()) };
        self.show_card(&agent, &card, true)
    }

    fn say_silence(&mut self) {
        let silent: Vec<String> =
            self.agents.iter().filter(|agent| self.fate.is_silent(&agent.key)).map(Agent::label).collect();
        if !silent.is_empty() {
            let names = silent.join(" ");
            self.aside.line(&format!("… no sign of {names} so far; the message is stored and waits for it to run"));
        }
    }

    /// Asks the relay for all parts of an answer: its last part may have come before others.
    async fn complete(&mut self, agent: &PubKey) {
        for n in 0..TRIES {
            if self.fate.missing(agent).0 == 0 {
                return;
            }
            if n > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            if let Ok(events) = self.parts(agent).await {
                events.iter().for_each(|event| drop(self.fate.hear_event(event)));
            }
        }
    }

    async fn parts(&self, agent: &PubKey) -> Result<Vec<RawEvent>, ClientError> {
        let mut client = skep_node::client::Client::connect(&self.relay, self.owner.options.clone()).await?;
        let found = client.query(answers(&self.owner, &[*agent], &self.message)).await?;
        client.close().await;
        Ok(found.iter().filter_map(|event| letter::read(&self.owner.keys, event)).collect())
    }

    fn print_answer(&mut self, agent: &PubKey) -> Result<(), CliError> {
        let parts = self.fate.reply(agent);
        let text: String = parts.iter().map(|event| event.content.as_str()).collect();
        if self.out.json {
            let events: Vec<EventId> = parts.iter().map(|event| event.id).collect();
            let (missing, _) = self.fate.missing(agent);
            let mut json = json!({ "type": "reply", "text": text, "events": events, "missing_parts": missing });
            show::name(&mut json, &self.owner.directory, agent);
            return self.out.json_line(&json);
        }
        if self.agents.len() > 1 {
            let heading = format!("── {}", self.label(agent));
            self.out.line(&heading)?;
        }
        let text = if self.out.is_for_a_person() { paragraphs(&text) } else { text };
        self.out.line(text.trim_end_matches('\n'))
    }

    /// Success when everybody answered, else the error of the first who did not.
    fn outcome(&self) -> Result<(), CliError> {
        let ended = |agent: &Agent| Some((agent.label(), self.fate.end(&agent.key)?));
        let failed = self.agents.iter().filter_map(ended).find(|(_, end)| **end != End::Answered);
        failed.map_or(Ok(()), |(who, end)| Err(error_of(&who, end)))?;
        let missing = |agent: &Agent| (agent.label(), self.fate.missing(&agent.key));
        match self.agents.iter().map(missing).find(|(_, (missing, _))| *missing > 0) {
            None => Ok(()),
            Some((who, (missing, all))) => {
                let cause =
                    format!("the answer of {who} is not whole: {missing} of its {all} parts are not on {}", self.relay);
                Err(CliError::new(Kind::Refused, cause).hint("the relay may not take events as long as its parts"))
            }
        }
    }

    fn out_of_time(&mut self, args: &AskArgs) -> CliError {
        self.aside.end_text();
        let waiting: Vec<PubKey> = self.fate.waiting().collect();
        let names: Vec<String> = waiting.iter().map(|agent| self.label(agent)).collect();
        let is_silent = waiting.iter().all(|agent| self.fate.is_silent(agent));
        let names = names.join(" ");
        let cause = if is_silent {
            format!("{names} gave no sign within {}", args.timeout)
        } else {
            let why: Vec<&str> =
                waiting.iter().map(|agent| self.fate.waits_for(agent)).filter(|why| !why.is_empty()).collect();
            let why = why.first().map(|why| format!("; it last said: {why}")).unwrap_or_default();
            format!("{names} did not answer within {}{why}", args.timeout)
        };
        let hint = if is_silent {
            "is it running, and does it listen to you? skep status shows it where it runs; it answers when it runs again"
        } else {
            "it goes on without us: skep watch shows it, and the answer is published under the message"
        };
        CliError::new(Kind::NoAnswer, cause).hint(hint)
    }

    fn unheard(&mut self) -> CliError {
        self.aside.end_text();
        CliError::new(Kind::Refused, format!("{} does not serve the answer to us", self.relay))
            .hint("try another key with --key NAME; the message is published")
    }
}

async fn next_line(typed: &mut Option<mpsc::Receiver<String>>) -> Option<String> {
    match typed {
        Some(typed) => typed.recv().await,
        None => None,
    }
}

/// A name as commands take it without quoting.
fn plain(who: &str) -> &str {
    who.trim_start_matches('@')
}

/// How it ended, as a word and a reason.
fn words(end: &End) -> (&'static str, &str) {
    match end {
        End::Answered => ("answered", ""),
        End::Refused(why) => ("refused", why),
        End::Dead(why) => ("dead", why),
        End::Expired(why) => ("expired", why),
        End::Paused(why) => ("paused", why),
    }
}

fn error_of(who: &str, end: &End) -> CliError {
    let (_, why) = words(end);
    match end {
        End::Paused(_) => CliError::new(Kind::Paused, format!("{who} is paused {why}; the message waits there")).hint(
            format!("mend what paused it, then: skep agent resume {}; where all are paused: skep resume", plain(who)),
        ),
        End::Dead(_) => CliError::new(Kind::GaveUp, format!("{who} gave up: {why}"))
            .hint(format!("skep agent retry {}, where it runs; skep watch shows its turns", plain(who))),
        End::Expired(_) => {
            CliError::new(Kind::GaveUp, format!("{who} did not come to it in time: {why}")).hint("send it again")
        }
        End::Refused(_) | End::Answered => CliError::new(Kind::Refused, format!("{who} refused: {why}"))
            .hint("who may ask it is its respond_to setting"),
    }
}
