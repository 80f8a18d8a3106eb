//! Permission cards on a relay: which are open, and answering one from any machine (NIP-AO, `permission_decision`).

use std::collections::BTreeSet;
use std::time::Duration;

use skep_proto::agent::control::{ControlResult, Status, control_draft};
use skep_proto::agent::permission::CardTag;
use skep_proto::{EventId, Filter, Kind, PubKey, RawEvent, Timestamp, limits, seal, wrap};
use tokio::time::{Instant, timeout_at};

use super::fate::Card;
use super::watch::{Seen, Shown, Watch};
use super::{Directory, Feed, Heard, fresh, is_attested, letter, open_frame, post};
use crate::client::{Client, ClientError, Options};
use crate::clock::unix_now;
use crate::keys::Keys;

/// The kinds in which replies come, and so cards.
const REPLIES: [Kind; 5] = [Kind::NOTE, Kind::DIRECT_MESSAGE, Kind::CHAT, Kind::CHANNEL_MESSAGE, Kind::COMMENT];

/// How far clocks may differ.
const SKEW_SECS: u64 = 120;

/// After "no such turn" from one instance another may say better.
const SECOND_WORD: Duration = Duration::from_secs(2);

/// A card that can be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenCard {
    pub agent: PubKey,
    pub card: Card,
}

/// The cards of the owner's agents that are neither answered nor expired, the one that ends first before the others.
pub async fn open_cards(
    client: &mut Client,
    keys: &Keys,
    directory: &Directory,
    now: Timestamp,
) -> Result<Vec<OpenCard>, ClientError> {
    let owner = keys.pubkey();
    let since = now.saturating_sub(limits::PERMIT_MS_MAX / 1_000 + SKEW_SECS);
    let to_owner = |kinds: Vec<Kind>, since: Timestamp| {
        let tags = vec![(b'p', vec![owner.to_hex()])];
        Filter { kinds: Some(kinds), tags, since: Some(since), ..Filter::new() }.normalized()
    };
    // Wraps are dated back on purpose: what is inside has the true time.
    let wraps = to_owner(vec![Kind::GIFT_WRAP], since.saturating_sub(wrap::BACK_SECS_MAX));
    let found = client.query(vec![to_owner(REPLIES.to_vec(), since), wraps]).await?;
    let read = found.iter().filter_map(|event| letter::read(keys, event));
    let mut cards: Vec<OpenCard> = read.filter_map(|event| open_card(&event, &owner, directory, now)).collect();
    if cards.is_empty() {
        return Ok(cards);
    }
    let ids = cards.iter().map(|open| open.card.event.to_hex()).collect();
    let agents = cards.iter().map(|open| open.agent).collect();
    let closings =
        Filter { kinds: Some(vec![Kind::REACTION]), authors: Some(agents), tags: vec![(b'e', ids)], ..Filter::new() };
    let closed: BTreeSet<(PubKey, String)> = client
        .query(vec![closings.normalized()])
        .await?
        .iter()
        .flat_map(|event| event.tags.values("e").map(|id| (event.pubkey, id.to_owned())).collect::<Vec<_>>())
        .collect();
    cards.retain(|open| !closed.contains(&(open.agent, open.card.event.to_hex())));
    cards.sort_by_key(|open| (open.card.tag.expires_at, open.card.event));
    Ok(cards)
}

fn open_card(event: &RawEvent, owner: &PubKey, directory: &Directory, now: Timestamp) -> Option<OpenCard> {
    let tag = CardTag::from_event(event)?;
    let is_ours = is_attested(event, owner) || directory.is_ours(&event.pubkey);
    (is_ours && tag.expires_at > now)
        .then(|| OpenCard { agent: event.pubkey, card: Card { event: event.id, tag, text: event.content.clone() } })
}

/// Why an answer has no result.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    #[error(transparent)]
    Relay(#[from] ClientError),
    #[error("the answer cannot be sealed for this agent: {0}")]
    Seal(String),
    #[error("the relay refused the answer: {0}")]
    Refused(String),
    /// Whether it acted is not known.
    #[error("the agent did not say what became of the answer")]
    Silent,
}

/// Sends the owner's answer, and waits for the agent's word on it.
pub async fn decide(
    url: &str,
    options: &Options,
    keys: &Keys,
    agent: &PubKey,
    card: &CardTag,
    is_yes: bool,
) -> Result<Status, DecideError> {
    let until = Instant::now() + options.timeout;
    let control = card.decision(is_yes);
    let sealed = control.to_json().map_err(|error| DecideError::Seal(error.to_string()))?;
    let nonce = fresh().map_err(|error| DecideError::Seal(error.to_string()))?;
    let sealed = seal::seal(keys.keypair(), agent, &sealed, nonce);
    let sealed = sealed.map_err(|error| DecideError::Seal(error.to_string()))?;
    let event = keys.sign(control_draft(agent, unix_now(), sealed));
    let mut results = Results::open(url, options, keys, agent, &card.nonce, event.id).await?;
    let verdict = post::publish(url, options, &event, until).await?;
    if !verdict.accepted {
        return Err(DecideError::Refused(verdict.message));
    }
    results.wait(until).await
}

/// What an agent says became of answers to one question.
struct Results<'k> {
    keys: &'k Keys,
    agent: PubKey,
    nonce: String,
    /// The frame that is to be answered.
    control: EventId,
    feed: Feed,
    /// Told before we asked: results of others' answers.
    before: BTreeSet<EventId>,
    watch: Watch,
}

impl<'k> Results<'k> {
    async fn open(
        url: &str,
        options: &Options,
        keys: &'k Keys,
        agent: &PubKey,
        nonce: &str,
        control: EventId,
    ) -> Result<Self, ClientError> {
        let filter = Filter {
            kinds: Some(vec![Kind::AGENT_FRAME]),
            authors: Some(vec![*agent]),
            tags: vec![(b'p', vec![keys.pubkey().to_hex()])],
            since: Some(unix_now().saturating_sub(limits::CONTROL_FRESH_SECS)),
            ..Filter::new()
        };
        let mut feed = Feed::open(url, options.clone(), vec![filter]).await?;
        let before = match feed.next().await {
            Some(Heard::Stored(events)) => events.iter().map(|event| event.id).collect(),
            _ => BTreeSet::new(),
        };
        Ok(Self { keys, agent: *agent, nonce: nonce.to_owned(), control, feed, before, watch: Watch::default() })
    }

    async fn wait(&mut self, until: Instant) -> Result<Status, DecideError> {
        let mut until = until;
        let mut weak = None;
        loop {
            let Ok(heard) = timeout_at(until, self.feed.next()).await else {
                return weak.ok_or(DecideError::Silent);
            };
            let events = match heard {
                Some(Heard::Event(event)) => vec![*event],
                Some(Heard::Stored(events)) => events,
                Some(Heard::Lost { .. }) => continue,
                Some(Heard::Refused(why)) => return Err(DecideError::Refused(why)),
                None => return weak.ok_or(DecideError::Silent),
            };
            for event in events {
                match self.status(&event) {
                    Some(Status::NoActiveTurn) if weak.is_none() => {
                        weak = Some(Status::NoActiveTurn);
                        until = until.min(Instant::now() + SECOND_WORD);
                    }
                    Some(Status::NoActiveTurn) | None => {}
                    Some(status) => return Ok(status),
                }
            }
        }
    }

    /// A harness that does not say which frame it answers is believed by the question.
    fn is_ours(&self, result: &ControlResult) -> bool {
        result.r#type == "permission_decision"
            && result.request_nonce.as_ref() == Some(&self.nonce)
            && result.control_event_id.is_none_or(|id| id == self.control)
    }

    fn status(&mut self, event: &RawEvent) -> Option<Status> {
        if event.pubkey != self.agent || self.before.contains(&event.id) {
            return None;
        }
        let seen = self.watch.take(self.agent, open_frame(self.keys, event)?).ok()?;
        seen.into_iter().find_map(|seen| match seen {
            Seen::Item(item) => match item.shown {
                Shown::Control(result) if self.is_ours(&result) => Some(result.status),
                _ => None,
            },
            Seen::Lost { .. } => None,
        })
    }
}
