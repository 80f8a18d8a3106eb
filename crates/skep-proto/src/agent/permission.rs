//! The tag on a permission card: what a program needs to find the card and to answer it. What a person reads is the
//! card's text.
//!
//! `["permission", nonce, channel, turn, allow option, reject option, expires]`, the last one in Unix seconds. It tells
//! nothing that lets anybody but the owner answer: a decision counts by its author.

use serde::Serialize;

use super::control::Control;
use crate::{RawEvent, Timestamp, limits};

const TAG: &str = "permission";

/// Bytes of a channel's name in the tag: a public key or an event id in hex, with the word before it, is 72; a group's
/// id may be as long as a tag of a lease.
const CHANNEL_BYTES_MAX: usize = limits::LEASE_RESOURCE_BYTES_MAX;

/// What the tag says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CardTag {
    /// Names the question, once.
    pub nonce: String,
    /// The `channelId` of its turn's frames.
    pub channel: String,
    /// The `turnId` of its turn's frames.
    pub turn: String,
    /// The option that allows.
    pub allow: String,
    /// The option that rejects.
    pub reject: String,
    /// Closed from then on, whatever was answered.
    pub expires_at: Timestamp,
}

impl CardTag {
    pub fn tag(&self) -> [String; 7] {
        let texts = [TAG, &self.nonce, &self.channel, &self.turn, &self.allow, &self.reject];
        let [name, nonce, channel, turn, allow, reject] = texts.map(str::to_owned);
        [name, nonce, channel, turn, allow, reject, self.expires_at.to_string()]
    }

    /// The only tag of its name, whole: two cards in one event are none.
    pub fn from_event(event: &RawEvent) -> Option<Self> {
        let mut found = event.tags.named(TAG);
        let tag = found.next()?;
        if found.next().is_some() || tag.len() != 7 {
            return None;
        }
        let id = |i| tag.get(i).filter(|id| (1..=limits::PERMIT_ID_BYTES_MAX).contains(&id.len())).map(str::to_owned);
        let channel = tag.get(2).filter(|channel| (1..=CHANNEL_BYTES_MAX).contains(&channel.len()))?.to_owned();
        let expires_at = tag.get(6)?.parse().ok()?;
        Some(Self { nonce: id(1)?, channel, turn: id(3)?, allow: id(4)?, reject: id(5)?, expires_at })
    }

    /// The owner's answer (NIP-AO).
    pub fn decision(&self, is_yes: bool) -> Control {
        let option = if is_yes { &self.allow } else { &self.reject };
        Control::PermissionDecision {
            channel_id: self.channel.clone(),
            request_nonce: self.nonce.clone(),
            option_id: option.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Draft, Kind};
    use secp256k1::{Keypair, SECP256K1};

    fn event(tags: &[&[&str]]) -> RawEvent {
        let keys = Keypair::from_seckey_slice(SECP256K1, &[1; 32]).expect("a valid secret");
        let draft = tags.iter().fold(Draft::new(Kind::NOTE, 0, ""), |draft, tag| draft.tag(tag.iter()));
        draft.sign(&keys, &[0; 32]).raw().clone()
    }

    fn card() -> CardTag {
        let text = str::to_owned;
        CardTag {
            nonce: text("n"),
            channel: text("notes:ab"),
            turn: text("t"),
            allow: text("yes"),
            reject: text("no"),
            expires_at: 1_700_000_300,
        }
    }

    const FROZEN: [&str; 7] = ["permission", "n", "notes:ab", "t", "yes", "no", "1700000300"];

    #[test]
    fn the_form_of_the_tag_is_frozen() {
        assert_eq!(card().tag(), FROZEN);
        assert_eq!(CardTag::from_event(&event(&[&["p", "x"], &FROZEN])), Some(card()));
    }

    #[test]
    fn what_is_not_exactly_a_card_is_none() {
        let long = "x".repeat(limits::PERMIT_ID_BYTES_MAX + 1);
        let spoiled = |at: usize, value: &str| {
            let mut tag = FROZEN.map(str::to_owned);
            tag[at] = value.to_owned();
            tag
        };
        for (at, value) in [(1, ""), (1, long.as_str()), (2, ""), (3, ""), (4, ""), (5, ""), (6, "soon"), (6, "-1")] {
            let tag = spoiled(at, value);
            let tag: Vec<&str> = tag.iter().map(String::as_str).collect();
            assert_eq!(CardTag::from_event(&event(&[&tag])), None, "{at} {value:?}");
        }
        assert_eq!(CardTag::from_event(&event(&[&FROZEN[..6]])), None);
        assert_eq!(CardTag::from_event(&event(&[&FROZEN, &FROZEN])), None, "two make none");
        assert_eq!(CardTag::from_event(&event(&[])), None);
    }

    #[test]
    fn an_answer_names_the_cards_own_option() {
        let option = |is_yes| match card().decision(is_yes) {
            Control::PermissionDecision { option_id, .. } => option_id,
            other => panic!("{other:?}"),
        };
        assert_eq!((option(true), option(false)), ("yes".into(), "no".into()));
    }
}
