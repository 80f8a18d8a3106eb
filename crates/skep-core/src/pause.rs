//! Why an agent begins no new turns: what was said here, and what its owner said to the fleet and to it.
//!
//! Job: say which of these hold, who said so and since when; a newer word of the owner replaces the one before, an older
//! one changes nothing. Each is lifted by itself only. Lives as long as its instance; the shell stores what is told, and
//! gives it back after a restart.
//! Must not: take a word of anybody but the owner (the caller checks who signed), or forget one.

use serde::{Deserialize, Serialize};
use skep_proto::pause::{By, Held, Pause, Reach};
use skep_proto::{EventId, Filter, Kind, PubKey, Timestamp, order};

/// The owner's last word, with its place in the order of such words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    pub at: Timestamp,
    pub id: EventId,
    #[serde(flatten)]
    pub said: Pause,
}

impl Word {
    /// In place of one that is in the records and cannot be read: it holds, and any that is heard is newer.
    pub fn unreadable() -> Self {
        let reason = "what its owner said last cannot be read in its records".to_owned();
        Self { at: 0, id: EventId([0xff; 32]), said: Pause { paused: true, reason } }
    }

    fn held(&self, by: By) -> Option<Held> {
        self.said.paused.then(|| Held { by, since: self.at, reason: self.said.reason.clone() })
    }
}

/// What to ask a relay for: what the owner said last to all and to this one, two events at the most.
pub fn filter(owner: PubKey, agent: PubKey) -> Filter {
    let identifiers = [Reach::Fleet, Reach::Agent(agent)].map(|reach| reach.identifier());
    let tags = vec![(b'd', identifiers.to_vec())];
    Filter { kinds: Some(vec![Kind::APP_DATA]), authors: Some(vec![owner]), tags, ..Filter::new() }
}

/// Everything that may hold one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pauses {
    /// Said in this home, or by the provider.
    pub here: Option<Held>,
    fleet: Option<Word>,
    agent: Option<Word>,
}

impl Pauses {
    /// Takes the owner's word; `false`: it is not newer than the one that is known.
    pub fn hear(&mut self, reach: &Reach, word: Word) -> bool {
        let known = match reach {
            Reach::Fleet => &mut self.fleet,
            Reach::Agent(_) => &mut self.agent,
        };
        let is_newer = known.as_ref().is_none_or(|known| order::replaces((word.at, &word.id), (known.at, &known.id)));
        if is_newer {
            *known = Some(word);
        }
        is_newer
    }

    /// The owner's last word, to all or to this one.
    pub fn word(&self, reach: &Reach) -> Option<&Word> {
        match reach {
            Reach::Fleet => self.fleet.as_ref(),
            Reach::Agent(_) => self.agent.as_ref(),
        }
    }

    /// What the owner said that holds.
    pub fn of_owner(&self) -> Option<Held> {
        let fleet = self.fleet.as_ref().and_then(|word| word.held(By::OwnerOfAll));
        fleet.or_else(|| self.agent.as_ref().and_then(|word| word.held(By::Owner)))
    }

    /// All that hold, the widest first.
    pub fn all(&self) -> Vec<Held> {
        let fleet = self.fleet.as_ref().and_then(|word| word.held(By::OwnerOfAll));
        let agent = self.agent.as_ref().and_then(|word| word.held(By::Owner));
        fleet.into_iter().chain(agent).chain(self.here.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ME: Reach = Reach::Agent(PubKey([1; 32]));

    fn word(at: u64, id: u8, paused: bool) -> Word {
        Word { at, id: EventId([id; 32]), said: Pause { paused, reason: format!("{at}") } }
    }

    #[test]
    fn each_is_lifted_by_itself_only() {
        let mut pauses = Pauses::default();
        let here = Held { by: By::Here, since: 7, reason: "by hand".into() };
        assert!(pauses.hear(&Reach::Fleet, word(10, 1, true)) && pauses.hear(&ME, word(11, 1, true)));
        pauses.here = Some(here.clone());
        let by = |pauses: &Pauses| pauses.all().iter().map(|held| held.by).collect::<Vec<_>>();
        assert_eq!(by(&pauses), [By::OwnerOfAll, By::Owner, By::Here]);
        assert!(pauses.hear(&Reach::Fleet, word(12, 1, false)));
        assert_eq!(by(&pauses), [By::Owner, By::Here]);
        pauses.here = None;
        assert_eq!(pauses.of_owner().map(|held| held.since), Some(11));
        assert!(pauses.hear(&ME, word(13, 1, false)));
        assert_eq!((pauses.all(), pauses.of_owner()), (vec![], None));
    }

    #[test]
    fn a_word_is_stored_as_it_is_frozen() {
        let text = serde_json::to_string(&word(5, 0xcd, true)).expect("it is text");
        let id = "cd".repeat(32);
        assert_eq!(text, format!(r#"{{"at":5,"id":"{id}","paused":true,"reason":"5"}}"#));
        assert_eq!(serde_json::from_str::<Word>(&text).expect("it reads"), word(5, 0xcd, true));
    }

    proptest! {
        #[test]
        fn in_whatever_order_words_come_and_come_again_the_newest_stands(
            words in prop::collection::vec((0u64..5, 0u8..5, any::<bool>()), 1..12), doubled: bool,
        ) {
            let mut pauses = Pauses::default();
            for (at, id, paused) in words.iter().chain(words.iter().filter(|_| doubled)) {
                pauses.hear(&Reach::Fleet, word(*at, *id, *paused));
            }
            let newest = words.iter().map(|(at, id, _)| (*at, std::cmp::Reverse(*id))).max().expect("one");
            let stands = pauses.word(&Reach::Fleet).map(|word| (word.at, std::cmp::Reverse(word.id.0[0])));
            prop_assert_eq!(stands, Some(newest));
        }
    }
}
