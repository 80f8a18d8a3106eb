//! What an agent subscribes to.

use skep_proto::{Filter, Kind, PubKey, Timestamp};

/// What can mention an agent and be answered.
const MESSAGES: [Kind; 6] =
    [Kind::NOTE, Kind::DIRECT_MESSAGE, Kind::CHAT, Kind::CHANNEL_MESSAGE, Kind::COMMENT, Kind::COMMAND];

/// What an agent says, and how it reacts: those who follow learn from it what was answered.
const OWN: [Kind; 6] =
    [Kind::NOTE, Kind::DIRECT_MESSAGE, Kind::REACTION, Kind::CHAT, Kind::CHANNEL_MESSAGE, Kind::COMMENT];

/// The filters of one agent.
#[derive(Debug, Clone, Copy)]
pub struct Concerns {
    pub agent: PubKey,
    pub owner: Option<PubKey>,
}

impl Concerns {
    fn naming_it(self, kinds: Vec<Kind>) -> Filter {
        Filter { kinds: Some(kinds), tags: vec![(b'p', vec![self.agent.to_hex()])], ..Filter::new() }.normalized()
    }

    fn own(self) -> Filter {
        Filter { kinds: Some(OWN.to_vec()), authors: Some(vec![self.agent]), ..Filter::new() }.normalized()
    }

    /// Messages to it. Gift wraps are apart: their times are not true.
    pub fn messages(self) -> Filter {
        self.naming_it(MESSAGES.to_vec())
    }

    /// Gift wraps to it (NIP-59): dated up to two days back, on purpose.
    pub fn wraps(self) -> Filter {
        self.naming_it(vec![Kind::GIFT_WRAP])
    }

    /// All that is dated when it was written: messages, reactions to its cards, and, after them, what it says itself:
    /// a reply of the second in which it was asked says nothing to who does not know the question.
    pub fn dated(self) -> [Filter; 2] {
        let kinds = MESSAGES.into_iter().chain([Kind::REACTION]).collect();
        [self.naming_it(kinds), self.own()]
    }

    /// The lease on being this agent's prompter.
    pub fn lease(self) -> Filter {
        let resource = format!("prompter:{}", self.agent);
        Filter { kinds: Some(vec![Kind::LEASE_STATE]), tags: vec![(b'd', vec![resource])], ..Filter::new() }
    }

    /// The owner's word that no turns begin, or that they may: two events at the most, the last ones.
    pub fn owners_word(self) -> Option<Filter> {
        Some(skep_core::pause::filter(self.owner?, self.agent))
    }

    /// What comes from now on, whatever its date; of what is stored only what a limit of one gives. Control frames
    /// are kept for minutes, so those of the last minutes come too, and so does the owner's last word.
    pub fn live(self, now: Timestamp) -> Vec<Filter> {
        let [messages, own] = self.dated().map(|filter| Filter { limit: Some(1), ..filter });
        let wraps = Filter { limit: Some(1), ..self.wraps() };
        let since = now.saturating_sub(skep_proto::limits::CONTROL_FRESH_SECS);
        let frames = Filter { since: Some(since), ..self.naming_it(vec![Kind::AGENT_FRAME]) };
        [messages, wraps, own, frames, self.lease()].into_iter().chain(self.owners_word()).collect()
    }
}
