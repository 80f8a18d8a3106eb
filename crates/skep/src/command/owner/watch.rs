//! `skep watch`: what agents do, as they tell their owner.

use std::collections::BTreeMap;

use serde_json::json;
use skep_node::clock::unix_now;
use skep_node::owner::watch::{Item, Seen, Shown, Watch};
use skep_node::owner::{Feed, Heard, is_attested, open_frame};
use skep_proto::agent::telemetry::TelemetryKind;
use skep_proto::{Filter, Kind as EventKind, PubKey, RawEvent, limits};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::silence::Silences;
use super::{Owner, show};
use crate::cli::WatchArgs;
use crate::command::{block_on, input};
use crate::error::{CliError, Kind};
use crate::screen::{self, Output, escape, paragraphs};

/// What waits to be shown; when it is full, the relays' connections wait.
const HEARD_MAX: usize = 64;

pub fn run(args: &WatchArgs, out: &mut Output) -> Result<(), CliError> {
    let mut owner = Owner::open(&args.who)?;
    let now = unix_now();
    let since = input::time(&args.since, now)?;
    block_on(async {
        let (agents, _) = owner.resolve(&args.agents).await?;
        let relays = owner.relays_of(&agents);
        let named: Vec<PubKey> = agents.iter().map(|agent| agent.key).collect();
        let filter = Filter {
            kinds: Some(vec![EventKind::AGENT_FRAME]),
            authors: (!named.is_empty()).then(|| named.clone()),
            tags: vec![(b'p', vec![owner.keys.pubkey().to_hex()])],
            since: Some(since.max(now.saturating_sub(limits::CONTROL_FRESH_SECS))),
            ..Filter::new()
        };
        let filter = filter.normalized();
        let (says, mut heard) = mpsc::channel(HEARD_MAX);
        // They end when this command does.
        let mut feeds = JoinSet::new();
        let open = async |owner: &mut Owner, relay: &str| {
            if named.is_empty() {
                let mut client = owner.connect(relay).await?;
                owner.directory.learn(&mut client).await?;
                client.close().await;
            }
            let feed = Feed::open(relay, owner.options.clone(), vec![filter.clone()]).await?;
            feeds.spawn(forward(feed, says.clone()));
            Ok(())
        };
        owner.on_each(&relays, open).await?;
        drop(says);
        screen::remark(&format!("watching {} on {}; Ctrl-C ends it", of_whom(&owner, &named), relays.join(" ")));
        let mut view = View::new(owner, named, args.raw, out);
        let mut watch = Watch::default();
        while let Some(heard) = heard.recv().await {
            view.hear(heard, &mut watch)?;
        }
        Err(CliError::new(Kind::Refused, format!("{} serves these frames no more", relays.join(" ")))
            .hint("try another key with --key NAME"))
    })
}

/// Brings what one relay has to the one who shows it.
async fn forward(mut feed: Feed, says: mpsc::Sender<Heard>) {
    while let Some(heard) = feed.next().await {
        if says.send(heard).await.is_err() {
            return;
        }
    }
}

fn of_whom(owner: &Owner, named: &[PubKey]) -> String {
    if named.is_empty() {
        return "all agents that are yours".into();
    }
    named.iter().map(|key| owner.directory.label(key)).collect::<Vec<_>>().join(" ")
}

/// The lines of a watcher.
struct View<'o> {
    owner: Owner,
    /// Whose frames are shown; none: of all that are the owner's.
    named: Vec<PubKey>,
    is_raw: bool,
    out: &'o mut Output,
    /// The agent and turn whose text the last line is, when it has not ended.
    open: Option<(PubKey, Option<String>)>,
    /// Which launches lead, as they last said.
    roles: BTreeMap<(PubKey, String), bool>,
    silences: Silences,
    strangers: u64,
}

impl<'o> View<'o> {
    fn new(owner: Owner, named: Vec<PubKey>, is_raw: bool, out: &'o mut Output) -> Self {
        let (open, roles, silences) = Default::default();
        Self { owner, named, is_raw, out, open, roles, silences, strangers: 0 }
    }

    fn hear(&mut self, heard: Heard, watch: &mut Watch) -> Result<(), CliError> {
        let events = match heard {
            Heard::Stored(events) => events,
            Heard::Event(event) => vec![*event],
            Heard::Lost { why, .. } => {
                self.end_text()?;
                screen::remark(&format!("connection lost ({why}); connecting again"));
                return Ok(());
            }
            Heard::Refused(why) => {
                screen::remark(&format!("the relay says: {why}"));
                return Ok(());
            }
        };
        let mut frames = Vec::new();
        for event in &events {
            if self.is_wanted(event) {
                frames.extend(open_frame(&self.owner.keys, event).map(|frame| (event.pubkey, frame)));
            }
        }
        for seen in watch.take_all(frames) {
            match seen {
                Seen::Item(item) => self.show(&item)?,
                Seen::Lost { agent, count } => self.lost(&agent, count)?,
            }
        }
        self.out.flush()
    }

    /// Frames of somebody who is not the owner's are not shown, and once mentioned.
    fn is_wanted(&mut self, event: &RawEvent) -> bool {
        let is_ours = is_attested(event, &self.owner.keys.pubkey()) || self.owner.directory.is_ours(&event.pubkey);
        if is_ours || self.named.contains(&event.pubkey) {
            return true;
        }
        self.strangers += 1;
        if self.strangers == 1 {
            let who = skep_node::owner::directory::short(&event.pubkey);
            screen::remark(&format!("note: {who} sends frames too, but is not attested by you; name it to see them"));
        }
        false
    }

    fn lost(&mut self, agent: &PubKey, count: u64) -> Result<(), CliError> {
        if self.out.json {
            let mut json = json!({ "type": "lost", "count": count });
            show::name(&mut json, &self.owner.directory, agent);
            return self.out.json_line(&json);
        }
        self.end_text()?;
        let who = self.owner.directory.label(agent);
        self.out.line(&format!("{}  {who}  ⚠ {count} items are missing here", clock(None)))
    }

    fn show(&mut self, item: &Item) -> Result<(), CliError> {
        let is_frame = matches!(item.telemetry.kind, TelemetryKind::AcpRead | TelemetryKind::AcpWrite);
        if self.out.json {
            return self.json(item);
        }
        if self.is_raw && is_frame {
            let arrow = if item.telemetry.kind == TelemetryKind::AcpRead { "←" } else { "→" };
            let text = format!("{}{arrow} {}", self.head(item), escape(item.telemetry.payload.as_str()));
            return self.out.line(&text);
        }
        if !self.silences.is_news(item) {
            return Ok(());
        }
        match &item.shown {
            Shown::Text(piece) => return self.text(item, piece),
            Shown::Leadership(status) => {
                let key = (item.agent, status.instance_id.clone());
                if self.roles.insert(key, status.is_leader) == Some(status.is_leader) {
                    return Ok(());
                }
            }
            _ => {}
        }
        let Some(line) = show::line(&item.shown) else { return Ok(()) };
        self.end_text()?;
        let text = format!("{}{}", self.head(item), escape(&line));
        self.out.line(&text)
    }

    fn json(&mut self, item: &Item) -> Result<(), CliError> {
        let mut json = serde_json::to_value(&item.telemetry).unwrap_or_default();
        show::name(&mut json, &self.owner.directory, &item.agent);
        if !item.instance.is_empty() {
            json["instanceId"] = json!(item.instance);
        }
        self.out.json_line(&json)
    }

    /// Pieces of one turn's text run on.
    fn text(&mut self, item: &Item, piece: &str) -> Result<(), CliError> {
        let whose = (item.agent, item.telemetry.turn_id.clone());
        if self.open.as_ref() != Some(&whose) {
            self.end_text()?;
            let head = self.head(item);
            self.out.piece(&format!("{head}│ "))?;
        }
        self.out.piece(&paragraphs(piece))?;
        self.open = (!piece.ends_with('\n')).then_some(whose);
        Ok(())
    }

    fn end_text(&mut self) -> Result<(), CliError> {
        if self.open.take().is_some() { self.out.line("") } else { Ok(()) }
    }

    /// When, who, and in which turn.
    fn head(&self, item: &Item) -> String {
        let who = self.owner.directory.label(&item.agent);
        let turn: String = item.telemetry.turn_id.as_deref().unwrap_or("").chars().take(6).collect();
        format!("{}  {who}  {:6}  ", clock(Some(item.telemetry.timestamp.secs())), escape(&turn))
    }
}

/// `12:03:04`, in UTC.
fn clock(at: Option<u64>) -> String {
    let text = screen::time(at.unwrap_or_else(unix_now));
    text.split_once(' ').map_or(text.clone(), |(_, clock)| clock.to_owned())
}
