//! The owner's word that agents begin no new turns, or may again: for the whole fleet, or for one agent. And how it is
//! told what holds an agent.
//!
//! An addressable event of the owner's key: kind 30078 (NIP-78), `d` = `skep:pause` or `skep:pause:<agent, hex>`, content
//! `{"paused": true, "reason": "…"}`. The newest stands, by the order of replaceable events ([`crate::order`]). It is
//! not encrypted: whoever reads the relay reads the reason.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::Moment;
use crate::{Draft, Kind, PubKey, RawEvent, Timestamp, limits};

const FLEET: &str = "skep:pause";

/// Whom it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Every agent of the owner.
    Fleet,
    Agent(PubKey),
}

/// What is said. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub paused: bool,
    /// Why, for a person. Untrusted as any text: whoever shows it escapes it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Reach {
    /// The value of the `d` tag.
    pub fn identifier(&self) -> String {
        match self {
            Self::Fleet => FLEET.to_owned(),
            Self::Agent(agent) => format!("{FLEET}:{agent}"),
        }
    }

    fn from_identifier(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(FLEET)?;
        match rest.strip_prefix(':') {
            None => rest.is_empty().then_some(Self::Fleet),
            Some(agent) => agent.parse().ok().map(Self::Agent),
        }
    }

    pub fn covers(&self, agent: &PubKey) -> bool {
        match self {
            Self::Fleet => true,
            Self::Agent(one) => one == agent,
        }
    }
}

impl Pause {
    pub fn draft(&self, reach: &Reach, now: Timestamp) -> Draft {
        let content = serde_json::to_string(self).expect("invariant: a flag and a string");
        Draft::new(Kind::APP_DATA, now, content).tag(["d", &reach.identifier()])
    }

    /// What an event says, whoever signed it; `None` when it is something else. A reason that is too long is cut: a
    /// pause holds all the same.
    pub fn from_event(event: &RawEvent) -> Option<(Reach, Self)> {
        if event.kind != Kind::APP_DATA {
            return None;
        }
        let reach = Reach::from_identifier(event.tags.identifier())?;
        let mut pause: Self = serde_json::from_str(&event.content).ok()?;
        let most = pause.reason.floor_char_boundary(limits::CONTROL_REASON_BYTES_MAX);
        pause.reason.truncate(most);
        Some((reach, pause))
    }
}

/// Who said that no new turns begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The owner, to all agents.
    OwnerOfAll,
    /// The owner, to this one.
    Owner,
    /// A person, in this home only.
    Here,
    /// What runs its turns is refused by its provider.
    Provider,
}

/// One reason why no new turns begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub by: By,
    /// `0`: not known.
    pub since: Timestamp,
    /// For a person. Untrusted.
    pub reason: String,
}

/// "by its owner since …: a holiday"; it follows the word "paused".
impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.by {
            By::OwnerOfAll => "by its owner, with all agents",
            By::Owner => "by its owner",
            By::Here => "on this machine only",
            By::Provider => "by its provider",
        })?;
        if self.since > 0 {
            write!(f, " since {}", Moment::from_secs(self.since))?;
        }
        if self.reason.is_empty() { Ok(()) } else { write!(f, ": {}", self.reason) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secp256k1::{Keypair, SECP256K1};

    use super::*;

    fn sign(draft: Draft) -> RawEvent {
        let keys = Keypair::from_seckey_slice(SECP256K1, &[9; 32]).expect("a key");
        draft.sign(&keys, &[0; 32]).raw().clone()
    }

    #[test]
    fn its_form_is_frozen() {
        let agent = PubKey([0xab; 32]);
        let pause = Pause { paused: true, reason: "a \"holiday\"".into() };
        let resume = Pause { paused: false, reason: String::new() };
        let hex = "ab".repeat(32);
        for (said, reach, d, content) in [
            (&pause, Reach::Fleet, "skep:pause", r#"{"paused":true,"reason":"a \"holiday\""}"#),
            (&resume, Reach::Agent(agent), &format!("skep:pause:{hex}"), r#"{"paused":false}"#),
        ] {
            let event = sign(said.draft(&reach, 1_700_000_000));
            assert_eq!((event.kind, event.created_at, event.content.as_str()), (Kind(30078), 1_700_000_000, content));
            let tags: Vec<Vec<&str>> = event.tags.iter().map(|tag| tag.elements().collect()).collect();
            assert_eq!(tags, [["d", d]]);
            assert_eq!(Pause::from_event(&event), Some((reach, said.clone())));
        }
    }

    #[test]
    fn other_application_data_and_half_a_word_are_none() {
        let read = |kind, d: &str, content: &str| Pause::from_event(&sign(Draft::new(kind, 1, content).tag(["d", d])));
        let good = r#"{"paused":true,"more":[1]}"#;
        assert!(read(Kind::APP_DATA, "skep:pause", good).is_some());
        for (kind, d, content) in [
            (Kind::NOTE, "skep:pause", good),
            (Kind::APP_DATA, "skep:paused", good),
            (Kind::APP_DATA, "skep:pause:", good),
            (Kind::APP_DATA, "skep:pause:abc", good),
            (Kind::APP_DATA, "", good),
            (Kind::APP_DATA, "skep:pause", "{}"),
            (Kind::APP_DATA, "skep:pause", r#"{"paused":"yes"}"#),
        ] {
            assert_eq!(read(kind, d, content), None, "{kind} {d} {content}");
        }
    }

    #[test]
    fn a_fleet_is_all_agents_and_an_agent_is_one() {
        let (a, b) = (PubKey([1; 32]), PubKey([2; 32]));
        assert!(Reach::Fleet.covers(&a) && Reach::Agent(a).covers(&a) && !Reach::Agent(a).covers(&b));
    }

    #[test]
    fn it_says_who_since_when_and_why() {
        let held = |by, reason: &str| Held { by, since: 1_700_000_000, reason: reason.into() }.to_string();
        assert_eq!(held(By::OwnerOfAll, "x"), "by its owner, with all agents since 2023-11-14T22:13:20.000Z: x");
        assert_eq!(held(By::Owner, ""), "by its owner since 2023-11-14T22:13:20.000Z");
        let unknown = Held { by: By::Here, since: 0, reason: "quota".into() };
        assert_eq!(unknown.to_string(), "on this machine only: quota");
    }

    proptest! {
        #[test]
        fn a_reason_of_any_length_is_read_and_bounded(reason in ".{0,700}") {
            let event = sign(Pause { paused: true, reason: reason.clone() }.draft(&Reach::Fleet, 1));
            let (_, read) = Pause::from_event(&event).expect("a pause");
            prop_assert!(read.reason.len() <= limits::CONTROL_REASON_BYTES_MAX && reason.starts_with(&read.reason));
            prop_assert!(reason.len() > limits::CONTROL_REASON_BYTES_MAX || reason == read.reason);
        }
    }
}
