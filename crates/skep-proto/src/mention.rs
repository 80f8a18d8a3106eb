//! Whether an event mentions an agent: by a `p` tag, by a `nostr:` name (NIP-21, NIP-27), or as `@name`.
//!
//! What stands in code or in a quotation (`> …`) is text about an agent, not a word to it.

use nostr::key::PublicKey;
use nostr::nips::nip19::{FromBech32, Nip19, ToBech32};

use crate::name::AgentName;
use crate::{PubKey, RawEvent};

/// How an agent was mentioned; the strongest way that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mention {
    /// A `p` tag.
    Tag,
    /// `nostr:npub1…` or `nostr:nprofile1…`.
    Uri,
    /// `@name`, in any case.
    Name,
}

/// A key as people pass it on (NIP-19).
pub fn npub(key: &PubKey) -> String {
    match PublicKey::from_byte_array(key.0).to_bech32() {
        Ok(text) => text,
        Err(never) => match never {},
    }
}

/// The mention of an agent in an event; its own events mention nobody.
pub fn find(event: &RawEvent, agent: &PubKey, name: Option<&AgentName>) -> Option<Mention> {
    if event.pubkey == *agent {
        return None;
    }
    let hex = agent.to_hex();
    if event.tags.values("p").any(|value| value == hex) {
        return Some(Mention::Tag);
    }
    in_text(&event.content, agent, name)
}

/// The same in a text alone: of a private message, say.
pub fn in_text(text: &str, agent: &PubKey, name: Option<&AgentName>) -> Option<Mention> {
    let said: Vec<&str> = spoken(text);
    if said.iter().any(|piece| uris(piece).any(|key| key == *agent)) {
        return Some(Mention::Uri);
    }
    let name = name?.as_str();
    said.iter().any(|piece| has_name(piece, name)).then_some(Mention::Name)
}

/// The parts of a text that are neither code nor quotation.
fn spoken(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut fence: Option<&str> = None;
    for line in text.lines() {
        let begin = line.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| begin.starts_with(mark));
        match (fence, mark) {
            (None, Some(mark)) => fence = Some(mark),
            (Some(open), Some(mark)) if open == mark => fence = None,
            (Some(_), _) => {}
            (None, None) if begin.starts_with('>') => {}
            (None, None) => out.extend(outside_code(line)),
        }
    }
    out
}

/// A line without its `code`. A tick without a partner is a tick.
fn outside_code(line: &str) -> Vec<&str> {
    let pieces: Vec<&str> = line.split('`').collect();
    let is_closed = pieces.len() % 2 == 1;
    let last = pieces.len() - 1;
    let keep = |(i, piece): (usize, &&'_ str)| i % 2 == 0 || (!is_closed && i == last && !piece.is_empty());
    let kept: Vec<bool> = pieces.iter().enumerate().map(keep).collect();
    pieces.into_iter().zip(kept).filter_map(|(piece, is_kept)| is_kept.then_some(piece)).collect()
}

fn uris(text: &str) -> impl Iterator<Item = PubKey> {
    text.match_indices("nostr:n").filter_map(|(at, _)| {
        let name = &text[at + "nostr:".len()..];
        let end = name.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(name.len());
        match Nip19::from_bech32(&name[..end.min(NIP19_BYTES_MAX)]).ok()? {
            Nip19::Pubkey(key) => Some(PubKey(*key.as_bytes())),
            Nip19::Profile(profile) => Some(PubKey(*profile.public_key.as_bytes())),
            _ => None,
        }
    })
}

/// Bytes of a bech32 name that are looked at; NIP-19 says at most 5,000.
const NIP19_BYTES_MAX: usize = 5_000;

/// Whether `@name` stands there by itself: not in an address, not as the beginning of a longer name.
fn has_name(text: &str, name: &str) -> bool {
    text.match_indices('@').any(|(at, _)| {
        let is_begin = text[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && !"_-.@/".contains(c));
        let rest = &text[at + 1..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(rest.len());
        let is_word = rest[end..].chars().next().is_none_or(|c| !c.is_alphanumeric());
        let token = &rest[..end];
        let is_same = token.eq_ignore_ascii_case(name) || token.trim_end_matches(['-', '_']).eq_ignore_ascii_case(name);
        is_begin && is_word && is_same
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Draft, Kind};
    use proptest::prelude::*;
    use secp256k1::{Keypair, SECP256K1};

    fn agent() -> PubKey {
        let keys = Keypair::from_seckey_slice(SECP256K1, &[5; 32]).expect("a valid secret");
        PubKey(keys.x_only_public_key().0.serialize())
    }

    fn npub() -> String {
        super::npub(&agent())
    }

    fn bee() -> AgentName {
        "bee".parse().expect("a name")
    }

    fn in_text(text: &str) -> Option<Mention> {
        super::in_text(text, &agent(), Some(&bee()))
    }

    #[test]
    fn a_name_is_found_where_it_is_said() {
        for text in ["@bee", "hi @Bee, go", "(@bee)", "@bee: x", "@bee- x", "x\n @bee\n> y", "a ` @bee", "@BEE!"] {
            assert_eq!(in_text(text), Some(Mention::Name), "{text}");
        }
        for text in ["bee", "@beetle", "@bee-2", "ann@bee", "a.@bee", "@@bee", "@be", "@beé", "", "@"] {
            assert_eq!(in_text(text), None, "{text}");
        }
    }

    #[test]
    fn quoted_and_fenced_names_are_text() {
        for text in
            ["> @bee", "  > hi @bee", "`@bee`", "a `x @bee` b", "```\n@bee\n```", "~~~sh\n@bee", "```\n~~~\n@bee"]
        {
            assert_eq!(in_text(text), None, "{text}");
        }
        assert_eq!(in_text("```\nx\n```\n@bee"), Some(Mention::Name));
        assert_eq!(in_text("`a` @bee `b`"), Some(Mention::Name));
    }

    #[test]
    fn a_nostr_name_is_a_mention_and_an_altered_one_is_not() {
        assert_eq!(in_text(&format!("hi nostr:{}!", npub())), Some(Mention::Uri));
        assert_eq!(in_text(&format!("hi {}", npub())), None, "only as a nostr: name");
        let mut altered = npub();
        altered.pop();
        assert_eq!(in_text(&format!("nostr:{altered}x")), None);
        assert_eq!(super::in_text("@bee", &agent(), None), None);
    }

    #[test]
    fn a_tag_is_the_strongest_and_nobody_mentions_itself() {
        let keys = |seed| Keypair::from_seckey_slice(SECP256K1, &[seed; 32]).expect("a valid secret");
        let draft = Draft::new(Kind(1), 0, "@bee").tag(["p", &agent().to_hex()]);
        let event = draft.clone().sign(&keys(1), &[0; 32]).raw().clone();
        assert_eq!(find(&event, &agent(), Some(&bee())), Some(Mention::Tag));
        assert_eq!(find(&event, &PubKey([9; 32]), Some(&bee())), Some(Mention::Name));
        let own = draft.sign(&keys(5), &[0; 32]).raw().clone();
        assert_eq!(find(&own, &agent(), Some(&bee())), None);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_search(text in "(\\PC|`|>|@bee|nostr:npub1|```\n|\n){0,40}") {
            let _ = in_text(&text);
        }

        #[test]
        fn in_code_nothing_is_a_mention(text in "[^`\n]{0,20}@bee[^`\n]{0,20}") {
            prop_assert_eq!(in_text(&format!("`{text}`")), None);
            let fenced = format!("```\n{text}\n```");
            prop_assert_eq!(in_text(&fenced), None);
        }
    }
}
