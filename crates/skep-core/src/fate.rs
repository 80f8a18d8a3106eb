//! What became of a message, as the one who sent it sees it: from what agents publish and from their frames.
//!
//! Job: say when each agent that was asked begins, waits, asks back and ends, once each, whatever comes twice, late or
//! in no order. Lives as long as somebody waits for the answer.
//! Must not: believe events of anybody but the agents that were asked (the caller checks signatures), or call an answer
//! whole before its last part has come.

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::agent::permission::CardTag;
use skep_proto::agent::telemetry::{Authorization, MessageStatus, Reason};
use skep_proto::lease::{Claim, Epoch};
use skep_proto::{EventId, Kind, PubKey, RawEvent, thread};

use crate::permit::card_lines;
use crate::queue::{State, Told};
use crate::watch::{Item, Shown};

/// The tag on what a harness says about where a message stands: `["status", word]` on a notice, `["status", word,
/// reason]` on a reaction, with the word of the inbox (see [`MessageStatus::state`]). An answer has none.
pub const STATUS_TAG: &str = "status";

/// Something that the sender is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The agent's turn has begun: 👀.
    Reading,
    /// It waits, for this reason; `""` behind another turn.
    Waits(String),
    /// A frame of the turn that this message began.
    Live(Box<Item>),
    Asks(Box<Card>),
    /// A card was answered or ran out.
    Decided {
        event: EventId,
        was_answered: bool,
    },
    /// It ended. Comes once, last.
    Over(End),
}

/// A permission card.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    pub event: EventId,
    pub tag: CardTag,
    /// For a person. Untrusted.
    pub text: String,
}

impl Card {
    /// What is asked, without the instructions for those who answer elsewhere.
    pub fn lines(&self) -> Vec<&str> {
        card_lines(&self.text)
    }
}

/// How a message ended for one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// See [`Fate::reply`].
    Answered,
    Refused(String),
    Dead(String),
    Expired(String),
    /// Not over, but nothing will happen until somebody resumes the agent.
    Paused(String),
}

/// The machine, for one message and the agents that it was sent to.
#[derive(Debug)]
pub struct Fate {
    message: EventId,
    /// Another id by which answers may name it.
    alias: Option<EventId>,
    agents: BTreeMap<PubKey, Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    is_reading: bool,
    waits: Option<String>,
    /// The newest turn that the message began.
    turn: Option<String>,
    /// Each with the name of its question.
    cards: BTreeMap<EventId, String>,
    decided: BTreeSet<EventId>,
    /// Parts of answers, by the epoch of their turn; without one: of an agent that knows no leases.
    parts: BTreeMap<EventId, (Option<Epoch>, RawEvent)>,
    end: Option<(End, Option<Epoch>)>,
}

impl Fate {
    pub fn new(message: EventId, agents: impl IntoIterator<Item = PubKey>) -> Self {
        let agents = agents.into_iter().map(|agent| (agent, Progress::default())).collect();
        Self { message, alias: None, agents }
    }

    /// A direct message has two ids: that of the wrap, by which inboxes and leases call it, and that of what is said,
    /// which answers name.
    #[must_use]
    pub fn also_called(self, alias: EventId) -> Self {
        Self { alias: Some(alias), ..self }
    }

    /// Agents for whom it is not over.
    pub fn waiting(&self) -> impl Iterator<Item = PubKey> {
        self.agents.iter().filter(|(_, progress)| progress.end.is_none()).map(|(agent, _)| *agent)
    }

    /// Whether an agent gave any sign.
    pub fn is_silent(&self, agent: &PubKey) -> bool {
        self.agents.get(agent).is_some_and(|progress| {
            !progress.is_reading && progress.waits.is_none() && progress.turn.is_none() && progress.end.is_none()
        })
    }

    /// Why an agent said last that it waits; `""` when it did not, or for no reason.
    pub fn waits_for(&self, agent: &PubKey) -> &str {
        self.agents.get(agent).and_then(|progress| progress.waits.as_deref()).unwrap_or_default()
    }

    pub fn end(&self, agent: &PubKey) -> Option<&End> {
        self.agents.get(agent)?.end.as_ref().map(|(end, _)| end)
    }

    /// The answer's events in their order: the parts of the turn whose last part was taken.
    pub fn reply(&self, agent: &PubKey) -> Vec<&RawEvent> {
        let Some(progress) = self.agents.get(agent) else { return Vec::new() };
        let Some((End::Answered, epoch)) = &progress.end else { return Vec::new() };
        let mut parts: Vec<&RawEvent> =
            progress.parts.values().filter(|(of, _)| of == epoch).map(|(_, event)| event).collect();
        parts.sort_by_key(|event| (thread::part(event).0, event.created_at, event.id));
        parts
    }

    /// How many parts of the answer are not here, of how many.
    pub fn missing(&self, agent: &PubKey) -> (u32, u32) {
        let parts = self.reply(agent);
        let all = parts.iter().map(|event| thread::part(event).1).max().unwrap_or(0);
        let here = parts.iter().map(|event| thread::part(event).0).collect::<BTreeSet<_>>().len() as u32;
        (all.saturating_sub(here), all)
    }

    /// Something that was published. What is not about this message, or not by these agents, is nothing.
    pub fn hear_event(&mut self, event: &RawEvent) -> Vec<Step> {
        let message = self.message;
        let Some(progress) = self.agents.get_mut(&event.pubkey) else { return Vec::new() };
        if event.kind == Kind::REACTION {
            return progress.reaction(&message, event);
        }
        let (hex, alias) = (message.to_hex(), self.alias.map(|alias| alias.to_hex()));
        let names_it = |id: &str| id == hex || alias.as_deref() == Some(id);
        let mut about = event.tags.named("e").filter(|tag| tag.value().is_some_and(names_it));
        let Some(tag) = about.next() else { return Vec::new() };
        if let Some(card) = CardTag::from_event(event) {
            return progress.card(event, card);
        }
        if let Some(told) = Told::from_event(event) {
            return progress.told(told);
        }
        match Claim::from_event(event) {
            Some(Ok(claim)) => {
                let is_this_turn = claim.resource.as_str() == format!("turn:{}:{hex}", event.pubkey);
                if is_this_turn { progress.part(event, Some(claim.epoch), claim.is_final) } else { Vec::new() }
            }
            Some(Err(_)) => Vec::new(),
            // A remark to somebody else about it.
            None if tag.get(3) == Some("mention") => Vec::new(),
            None => progress.part(event, None, true),
        }
    }

    /// Something that a frame told.
    pub fn hear_item(&mut self, item: &Item) -> Vec<Step> {
        let message = self.message;
        let Some(progress) = self.agents.get_mut(&item.agent) else { return Vec::new() };
        match &item.shown {
            Shown::Message(status) if status.event_id == message => return progress.message(status),
            Shown::Permission(authorization) => return progress.terminal(authorization),
            Shown::TurnStarted(started) if started.triggering_event_ids.contains(&message) => {
                progress.turn.clone_from(&item.telemetry.turn_id);
            }
            _ => {}
        }
        let is_ours = progress.turn.is_some() && progress.turn == item.telemetry.turn_id;
        if is_ours && progress.end.is_none() { vec![Step::Live(Box::new(item.clone()))] } else { Vec::new() }
    }
}

impl Progress {
    fn reaction(&mut self, message: &EventId, event: &RawEvent) -> Vec<Step> {
        let Some(Ok(to)) = event.tags.values("e").last().map(str::parse::<EventId>) else { return Vec::new() };
        if let Some(told) = Told::from_event(event).filter(|_| to == *message) {
            return self.told(told);
        }
        match event.content.as_str() {
            "👀" if to == *message => self.read(),
            "⏳" if to == *message => self.wait(""),
            "☑️" | "⌛" if self.cards.contains_key(&to) && self.decided.insert(to) => {
                vec![Step::Decided { event: to, was_answered: event.content != "⌛" }]
            }
            _ => Vec::new(),
        }
    }

    /// The frame that tells how a question ended: of a card in a direct message nothing else does.
    fn terminal(&mut self, authorization: &Authorization) -> Vec<Step> {
        let card = self.cards.iter().find(|(_, nonce)| **nonce == authorization.request_nonce).map(|(card, _)| *card);
        let Some(event) = card.filter(|card| !self.decided.contains(card)) else { return Vec::new() };
        self.decided.insert(event);
        vec![Step::Decided { event, was_answered: authorization.reason == Some(Reason::Applied) }]
    }

    fn read(&mut self) -> Vec<Step> {
        if self.end.is_some() || std::mem::replace(&mut self.is_reading, true) {
            return Vec::new();
        }
        vec![Step::Reading]
    }

    fn wait(&mut self, reason: &str) -> Vec<Step> {
        if self.end.is_some() || self.waits.as_deref() == Some(reason) || (reason.is_empty() && self.is_reading) {
            return Vec::new();
        }
        self.waits = Some(reason.to_owned());
        vec![Step::Waits(reason.to_owned())]
    }

    fn card(&mut self, event: &RawEvent, tag: CardTag) -> Vec<Step> {
        if self.end.is_some() || self.cards.contains_key(&event.id) {
            return Vec::new();
        }
        self.cards.insert(event.id, tag.nonce.clone());
        vec![Step::Asks(Box::new(Card { event: event.id, tag, text: event.content.clone() }))]
    }

    fn told(&mut self, told: Told) -> Vec<Step> {
        match told.state {
            State::Dead => self.over(End::Dead(told.reason), None),
            State::Refused => self.over(End::Refused(told.reason), None),
            State::Expired => self.over(End::Expired(told.reason), None),
            _ => Vec::new(),
        }
    }

    fn message(&mut self, status: &MessageStatus) -> Vec<Step> {
        let reason = status.reason.clone();
        match status.state.as_str() {
            "queued" if status.is_paused => self.over(End::Paused(reason), None),
            "queued" if !reason.is_empty() => self.wait(&reason),
            "prompted" => self.read(),
            "refused" => self.over(End::Refused(reason), None),
            "dead" => self.over(End::Dead(reason), None),
            "expired" => self.over(End::Expired(reason), None),
            // The answer itself says that it is answered.
            _ => Vec::new(),
        }
    }

    fn part(&mut self, event: &RawEvent, epoch: Option<Epoch>, is_last: bool) -> Vec<Step> {
        self.parts.insert(event.id, (epoch, event.clone()));
        if is_last { self.over(End::Answered, epoch) } else { Vec::new() }
    }

    /// The first end stands; but an answer that comes after all is more than any of the others.
    fn over(&mut self, end: End, epoch: Option<Epoch>) -> Vec<Step> {
        if matches!(self.end, Some((End::Answered, _))) || (self.end.is_some() && end != End::Answered) {
            return Vec::new();
        }
        self.end = Some((end.clone(), epoch));
        vec![Step::Over(end)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use skep_proto::agent::telemetry::{Payload, Telemetry, TelemetryKind, TurnStarted};
    use skep_proto::time::Moment;
    use skep_proto::{Sig, Tags};

    const MESSAGE: EventId = EventId([7; 32]);
    const BEE: PubKey = PubKey([1; 32]);

    fn event(id: u8, kind: Kind, content: &str, tags: &[&[&str]]) -> RawEvent {
        RawEvent {
            id: EventId([id; 32]),
            pubkey: BEE,
            created_at: 100 + u64::from(id),
            kind,
            tags: tags.iter().map(|tag| tag.iter()).collect::<Tags>(),
            content: content.into(),
            sig: Sig([0; 64]),
        }
    }

    fn reply(id: u8, epoch: &str, is_last: bool) -> RawEvent {
        let (hex, resource) = (MESSAGE.to_hex(), format!("turn:{BEE}:{MESSAGE}"));
        let lease: &[&str] = &["lease", &resource, epoch, "final"];
        let (text, which) = (format!("part {id} "), id.to_string());
        let tags = [&["e", &hex, "", "root"][..], if is_last { lease } else { &lease[..3] }, &["part", &which, "8"]];
        event(id, Kind::NOTE, &text, &tags)
    }

    fn fate() -> Fate {
        Fate::new(MESSAGE, [BEE])
    }

    fn text(fate: &Fate) -> String {
        fate.reply(&BEE).iter().map(|event| event.content.as_str()).collect()
    }

    fn status(state: &str, reason: &str, is_paused: bool) -> Shown {
        let (state, reason) = (state.to_owned(), reason.to_owned());
        Shown::Message(MessageStatus { event_id: MESSAGE, state, reason, attempts: 0, is_paused })
    }

    fn item(turn: Option<&str>, shown: Shown) -> Item {
        let telemetry = Telemetry {
            seq: 0,
            timestamp: Moment(0),
            kind: TelemetryKind::AcpRead,
            agent_index: None,
            instance_id: None,
            channel_id: None,
            session_id: None,
            turn_id: turn.map(Into::into),
            authorization: None,
            payload: Payload::raw("{}"),
        };
        Item { agent: BEE, instance: String::new(), telemetry, shown }
    }

    #[test]
    fn signs_are_told_once_and_only_those_of_the_agents_that_were_asked() {
        let mut fate = fate();
        let hex = MESSAGE.to_hex();
        let eyes = event(1, Kind::REACTION, "👀", &[&["e", &hex]]);
        let stranger = RawEvent { pubkey: PubKey([9; 32]), ..eyes.clone() };
        let elsewhere = event(1, Kind::REACTION, "👀", &[&["e", &"08".repeat(32)]]);
        assert_eq!((fate.hear_event(&stranger), fate.hear_event(&elsewhere)), (vec![], vec![]));
        assert!(fate.is_silent(&BEE));
        assert_eq!(fate.hear_event(&event(2, Kind::REACTION, "⏳", &[&["e", &hex]])), [Step::Waits(String::new())]);
        assert_eq!(fate.hear_event(&eyes), [Step::Reading]);
        assert_eq!(fate.hear_event(&eyes), []);
        assert_eq!(fate.hear_item(&item(None, status("prompted", "", false))), []);
        assert!(!fate.is_silent(&BEE));
        let stranger = RawEvent { pubkey: PubKey([9; 32]), ..reply(1, "1", true) };
        assert_eq!((fate.hear_event(&stranger), fate.waiting().count()), (vec![], 1));
    }

    #[test]
    fn a_reply_is_all_parts_of_the_turn_that_ended() {
        let mut fate = fate();
        assert_eq!(fate.hear_event(&reply(3, "1", false)), [], "of a holder that died");
        assert_eq!(fate.hear_event(&reply(5, "2", false)), []);
        assert_eq!(fate.hear_event(&reply(6, "2", true)), [Step::Over(End::Answered)]);
        assert_eq!(fate.hear_event(&reply(4, "2", false)), [], "late, and in its place");
        assert_eq!(text(&fate), "part 4 part 5 part 6 ");
        assert_eq!(fate.missing(&BEE), (5, 8), "what the relay did not take is not the whole");
        assert_eq!(fate.waiting().count(), 0);
    }

    #[test]
    fn only_the_turn_of_the_message_is_its_answer() {
        let mut fate = fate();
        let hex = MESSAGE.to_hex();
        let other = format!("turn:{BEE}:{}", "08".repeat(32));
        for tags in [
            [&["e", &hex, "", "root"][..], &["lease", &other, "1", "final"]],
            [&["e", &hex, "", "root"], &["lease", "nonsense"]],
            [&["e", &hex, "", "mention"], &["p", "x"]],
            [&["e", &"08".repeat(32), "", "root"], &["p", "x"]],
        ] {
            assert_eq!(fate.hear_event(&event(1, Kind::NOTE, "no", &tags)), [], "{tags:?}");
        }
        // An agent that knows no leases answers in one event.
        let plain = event(2, Kind::NOTE, "yes", &[&["e", &hex, "", "reply"]]);
        assert_eq!(fate.hear_event(&plain), [Step::Over(End::Answered)]);
        assert_eq!(text(&fate), "yes");
    }

    #[test]
    fn a_direct_message_is_answered_by_what_it_says_and_billed_by_its_wrap() {
        let alias = EventId([6; 32]);
        let mut fate = fate().also_called(alias);
        let resource = format!("turn:{BEE}:{MESSAGE}");
        let tags: [&[&str]; 2] = [&["e", &alias.to_hex(), ""], &["lease", &resource, "1", "final"]];
        assert_eq!(fate.hear_event(&event(1, Kind::PRIVATE_MESSAGE, "yes", &tags)), [Step::Over(End::Answered)]);
        assert_eq!(text(&fate), "yes");
    }

    #[test]
    fn ends_are_told_apart_and_an_answer_after_all_counts() {
        let hex = MESSAGE.to_hex();
        for (word, end) in [("dead", End::Dead("x".into())), ("refused", End::Refused("x".into()))] {
            let mut fate = fate();
            let notice = event(1, Kind::NOTE, "x", &[&["e", &hex, "", "root"], &["status", word]]);
            assert_eq!(fate.hear_event(&notice), [Step::Over(end.clone())]);
            assert_eq!(fate.hear_item(&item(None, status(word, "again", false))), []);
            assert_eq!(fate.end(&BEE), Some(&end));
            assert_eq!(fate.hear_event(&reply(2, "1", true)), [Step::Over(End::Answered)]);
            let sign = event(3, Kind::REACTION, "🚫", &[&["e", &hex], &["status", word, "x"]]);
            assert_eq!(self::fate().hear_event(&sign), [Step::Over(end)], "a sign says it, too");
        }
        let elsewhere = event(3, Kind::REACTION, "🚫", &[&["e", &"08".repeat(32)], &["status", "refused", "x"]]);
        assert_eq!(fate().hear_event(&elsewhere), []);
        let mut fate = fate();
        assert_eq!(fate.hear_item(&item(None, status("queued", "busy", false))), [Step::Waits("busy".into())]);
        assert_eq!(fate.hear_item(&item(None, status("queued", "busy", false))), []);
        assert_eq!(fate.waits_for(&BEE), "busy");
        let paused = [Step::Over(End::Paused("by hand".into()))];
        assert_eq!(fate.hear_item(&item(None, status("queued", "by hand", true))), paused);
    }

    #[test]
    fn frames_of_its_own_turn_are_live_and_others_are_not() {
        let mut fate = fate();
        let said = || Shown::Text("hi".into());
        assert_eq!(fate.hear_item(&item(Some("t"), said())), []);
        let started = |message| {
            Shown::TurnStarted(TurnStarted { triggering_event_ids: vec![EventId([message; 32])], attempt: 1 })
        };
        assert_eq!(fate.hear_item(&item(Some("other"), started(8))), []);
        assert_eq!(fate.hear_item(&item(Some("t"), started(7))).len(), 1);
        assert_eq!(fate.hear_item(&item(Some("t"), said())).len(), 1);
        assert_eq!(fate.hear_item(&item(Some("other"), said())), []);
        fate.hear_event(&reply(1, "1", true));
        assert_eq!(fate.hear_item(&item(Some("t"), said())), [], "after the answer nothing is news");
    }

    #[test]
    fn a_card_is_shown_once_and_closed_once() {
        let mut fate = fate();
        let hex = MESSAGE.to_hex();
        let tag = CardTag {
            nonce: "n".into(),
            channel: "c".into(),
            turn: "t".into(),
            allow: "y".into(),
            reject: "n".into(),
            expires_at: 9,
        };
        let names = tag.tag();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let other = CardTag { nonce: "other".into(), ..tag.clone() }.tag();
        let other: Vec<&str> = other.iter().map(String::as_str).collect();
        let card = event(1, Kind::NOTE, "may I?", &[&["e", &hex, "", "root"], &names]);
        let shown = Card { event: card.id, tag, text: "may I?".into() };
        assert_eq!(fate.hear_event(&card), [Step::Asks(Box::new(shown))]);
        assert_eq!(fate.hear_event(&card), []);
        let close = event(2, Kind::REACTION, "⌛", &[&["e", &card.id.to_hex()]]);
        assert_eq!(fate.hear_event(&close), [Step::Decided { event: card.id, was_answered: false }]);
        assert_eq!(fate.hear_event(&close), []);
        let ended = |nonce: &str| {
            let reason = Some(Reason::Applied);
            Shown::Permission(Authorization { request_nonce: nonce.into(), actionable: false, reason })
        };
        assert_eq!(fate.hear_item(&item(Some("t"), ended("n"))), [], "told already");
        let sealed = event(3, Kind::NOTE, "and this?", &[&["e", &hex, "", "root"], &other]);
        assert_eq!(fate.hear_event(&sealed).len(), 1);
        let decided = Step::Decided { event: sealed.id, was_answered: true };
        assert_eq!(fate.hear_item(&item(Some("t"), ended("other"))), [decided]);
    }

    proptest! {
        #[test]
        fn in_whatever_order_parts_come_the_answer_is_the_same_and_over_once(
            order in Just((1u8..9).collect::<Vec<_>>()).prop_shuffle(), doubled: bool,
        ) {
            let mut fate = fate();
            let mut ends = 0;
            for id in order {
                for _ in 0..=usize::from(doubled) {
                    ends += fate.hear_event(&reply(id, "2", id == 8)).len();
                }
            }
            prop_assert_eq!((ends, fate.missing(&BEE)), (1, (0, 8)));
            prop_assert_eq!(text(&fate), (1..9).map(|id| format!("part {id} ")).collect::<String>());
        }
    }
}
