//! Names of public things as people pass them on: npub, note, nevent (NIP-19), `nostr:` (NIP-21), hex.

use nostr::event::{EventId as NostrId, Kind as NostrKind};
use nostr::key::PublicKey;
use nostr::nips::nip19::{FromBech32, Nip19, Nip19Event, ToBech32};
use nostr::types::RelayUrl;
use skep_proto::{EventId, PubKey, RawEvent};

use super::KeyError;
use super::source::looks_secret;

pub use skep_proto::mention::npub;

/// As a note.
pub fn note(id: &EventId) -> String {
    match NostrId::from_byte_array(id.0).to_bech32() {
        Ok(text) => text,
        Err(never) => match never {},
    }
}

/// As an nevent with author, kind and a relay to find it at; a note when the relay's URL is too long for one.
pub fn nevent(event: &RawEvent, relay: Option<&str>) -> String {
    Nip19Event::new(NostrId::from_byte_array(event.id.0))
        .author(PublicKey::from_byte_array(event.pubkey.0))
        .kind(NostrKind::from(event.kind.0))
        .relays(relay.and_then(|url| RelayUrl::parse(url).ok()))
        .to_bech32()
        .unwrap_or_else(|_| note(&event.id))
}

/// Reads any bech32 name of NIP-19, with or without `nostr:`; `None` for other text, and for private keys.
pub fn parse_nip19(text: &str) -> Option<Nip19> {
    let text = text.strip_prefix("nostr:").unwrap_or(text);
    match Nip19::from_bech32(text).ok()? {
        Nip19::Secret(_) | Nip19::EncryptedSecret(_) => None,
        public => Some(public),
    }
}

/// Reads hex, npub, nprofile or `nostr:` with one of them.
pub fn pubkey(text: &str) -> Result<PubKey, KeyError> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    match parse_nip19(text) {
        Some(Nip19::Pubkey(key)) => Ok(PubKey(*key.as_bytes())),
        Some(Nip19::Profile(profile)) => Ok(PubKey(*profile.public_key.as_bytes())),
        _ => Err(wrong(text, |found| KeyError::NotAPubKey { found })),
    }
}

/// Reads hex, note, nevent or `nostr:` with one of them.
pub fn event_id(text: &str) -> Result<EventId, KeyError> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    match parse_nip19(text) {
        Some(Nip19::EventId(id)) => Ok(EventId(id.to_bytes())),
        Some(Nip19::Event(event)) => Ok(EventId(event.event_id.to_bytes())),
        _ => Err(wrong(text, |found| KeyError::NotAnEventId { found })),
    }
}

/// The error for a wrong text, which repeats its beginning unless it is a secret.
fn wrong(text: &str, error: impl FnOnce(String) -> KeyError) -> KeyError {
    if looks_secret(text) { KeyError::OnCommandLine } else { error(text.chars().take(80).collect()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::{Draft, Kind};

    /// NIP-19's own examples.
    const NPUB: &str = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
    const HEX: &str = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e";
    const NPROFILE: &str = "nprofile1qqsrhuxx8l9ex335q7he0f09aej04zpazpl0ne2cgukyawd24mayt8gpp4mhxue69uhhytnc9e3k7mgpz4mhxue69uhkg6nzv9ejuumpv34kytnrdaksjlyr9p";

    #[test]
    fn public_keys_are_read_in_every_form() {
        let key: PubKey = HEX.parse().expect("hex");
        assert_eq!(npub(&key), NPUB);
        for text in [HEX, NPUB, &format!("nostr:{NPUB}")] {
            assert_eq!(pubkey(text).expect(text), key);
        }
        let other = "3bf0c63fcb93463407af97a5e5ee64fa883d107ef9e558472c4eb9aaaefa459d";
        assert_eq!(pubkey(NPROFILE).expect("an nprofile").to_hex(), other);
    }

    #[test]
    fn event_ids_are_read_in_every_form() {
        let keys = crate::keys::Keys::generate().expect("randomness");
        let event = keys.sign(Draft::new(Kind(1), 1, "x"));
        let long = format!("wss://{}.example", "a".repeat(300));
        for text in [
            event.id.to_hex(),
            note(&event.id),
            nevent(&event, Some("ws://127.0.0.1:7777")),
            nevent(&event, Some(&long)),
        ] {
            assert_eq!(event_id(&text).expect("an id"), event.id, "{text}");
        }
    }

    #[test]
    fn other_text_is_refused_and_a_secret_is_not_repeated() {
        let nsec = crate::keys::Keys::generate().expect("randomness").nsec();
        for bad in ["", "npub1", &HEX.to_uppercase(), nsec.as_str()] {
            assert!(pubkey(bad).is_err() && event_id(bad).is_err(), "{bad}");
        }
        let error = pubkey(&nsec).expect_err("a secret").to_string();
        assert!(!error.contains(nsec.as_str()), "{error}");
    }
}
