//! Encrypted contents. The cipher is the `nostr` crate's; here is what a relay may know without a key, and sealing and
//! opening for those who have one.

use nostr::key::{PublicKey, SecretKey};
use nostr::nips::nip04;
use nostr::nips::nip44::{self, Nonce};
use secp256k1::Keypair;

use crate::{PubKey, limits};

/// The shortest NIP-44 v2 payload in bytes: version 1, nonce 32, padded text 2 + 32, MAC 32.
const PAYLOAD_BYTES_MIN: usize = 99;

/// Whether a text has the shape of a NIP-44 v2 payload: base64 with padding, long enough, version byte 2.
/// The long form (plaintexts of 65,536 bytes and more) only makes it longer.
pub fn is_plausible(text: &str) -> bool {
    let bytes = text.as_bytes();
    let Some(body) = bytes.strip_suffix(b"==").or_else(|| bytes.strip_suffix(b"=")).or(Some(bytes)) else {
        return false;
    };
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || *b == b'+' || *b == b'/';
    // The first byte, 2, is the top of the first two characters: "Ag" to "Av".
    bytes.len().is_multiple_of(4)
        && bytes.len() >= PAYLOAD_BYTES_MIN.div_ceil(3) * 4
        && bytes[0] == b'A'
        && (b'g'..=b'v').contains(&bytes[1])
        && body.iter().all(is_base64)
}

/// Why a content cannot be sealed or opened. Which byte was wrong is nobody's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("the other side is not a public key")]
    Key,
    #[error("a plaintext has 1 to {} bytes", limits::SEALED_BYTES_MAX)]
    Size,
    #[error("it was not sealed for this key by that one, or it was altered")]
    Content,
}

/// Seals a text for `to` (NIP-44 v2). `nonce` is 32 fresh random bytes: one that is used twice gives texts away.
pub fn seal(keys: &Keypair, to: &PubKey, plaintext: &str, nonce: [u8; 32]) -> Result<String, SealError> {
    if !(1..=limits::SEALED_BYTES_MAX).contains(&plaintext.len()) {
        return Err(SealError::Size);
    }
    let (secret, public) = pair(keys, to)?;
    nip44::encrypt_with_nonce(&secret, &public, plaintext, Nonce::V2(nonce)).map_err(|_| SealError::Content)
}

/// Opens what `from` sealed for us. The shape is checked first, so that a hostile length costs nothing.
pub fn open(keys: &Keypair, from: &PubKey, content: &str) -> Result<String, SealError> {
    if content.len() > limits::SEALED_CONTENT_CHARS_MAX {
        return Err(SealError::Size);
    }
    if !is_plausible(content) {
        return Err(SealError::Content);
    }
    let (secret, public) = pair(keys, from)?;
    nip44::decrypt(&secret, &public, content).map_err(|_| SealError::Content)
}

/// Encrypts as old clients do (NIP-04): its length shows, and who alters it is not found out. `iv` is 16 fresh random
/// bytes.
pub fn seal_old(keys: &Keypair, to: &PubKey, plaintext: &str, iv: [u8; 16]) -> Result<String, SealError> {
    if !(1..=limits::SEALED_BYTES_MAX).contains(&plaintext.len()) {
        return Err(SealError::Size);
    }
    let (secret, public) = pair(keys, to)?;
    nip04::encrypt_with_iv(&secret, &public, plaintext, iv).map_err(|_| SealError::Content)
}

/// Decrypts what an old client sent.
pub fn open_old(keys: &Keypair, from: &PubKey, content: &str) -> Result<String, SealError> {
    if content.len() > limits::SEALED_CONTENT_CHARS_MAX {
        return Err(SealError::Size);
    }
    let (secret, public) = pair(keys, from)?;
    nip04::decrypt(&secret, &public, content).map_err(|_| SealError::Content)
}

fn pair(keys: &Keypair, other: &PubKey) -> Result<(SecretKey, PublicKey), SealError> {
    let secret = SecretKey::from_slice(&keys.secret_bytes()).map_err(|_| SealError::Key)?;
    let public = PublicKey::from_slice(&other.0).map_err(|_| SealError::Key)?;
    Ok((secret, public))
}

#[cfg(test)]
mod tests {
    use super::*;
    use secp256k1::SECP256K1;

    fn keys(seed: u8) -> (Keypair, PubKey) {
        let keys = Keypair::from_seckey_slice(SECP256K1, &[seed; 32]).expect("a valid secret");
        (keys, PubKey(keys.x_only_public_key().0.serialize()))
    }

    #[test]
    fn what_is_sealed_for_one_key_opens_with_that_key_only() {
        let ((agent, agent_key), (owner, owner_key), (other, _)) = (keys(1), keys(2), keys(3));
        let sealed = seal(&agent, &owner_key, "42 tokens", [9; 32]).expect("it seals");
        assert!(is_plausible(&sealed));
        assert_eq!(open(&owner, &agent_key, &sealed).as_deref(), Ok("42 tokens"));
        assert_eq!(open(&other, &agent_key, &sealed), Err(SealError::Content));
        let mut altered = sealed.clone().into_bytes();
        altered[50] = if altered[50] == b'A' { b'B' } else { b'A' };
        let altered = String::from_utf8(altered).expect("base64");
        assert_eq!(open(&owner, &agent_key, &altered), Err(SealError::Content));
    }

    #[test]
    fn the_longest_plaintext_fits_and_one_byte_more_does_not() {
        let ((agent, agent_key), (owner, owner_key)) = (keys(1), keys(2));
        let longest = "x".repeat(limits::SEALED_BYTES_MAX);
        let sealed = seal(&agent, &owner_key, &longest, [9; 32]).expect("it seals");
        assert_eq!(sealed.len(), limits::SEALED_CONTENT_CHARS_MAX);
        assert_eq!(open(&owner, &agent_key, &sealed), Ok(longest.clone()));
        assert_eq!(seal(&agent, &owner_key, &format!("{longest}x"), [9; 32]), Err(SealError::Size));
        assert_eq!(seal(&agent, &owner_key, "", [9; 32]), Err(SealError::Size));
        assert_eq!(open(&owner, &agent_key, &format!("{sealed}AAAA")), Err(SealError::Size));
    }

    #[test]
    fn what_an_old_client_sends_is_read_and_answered_in_its_form() {
        let ((agent, agent_key), (owner, owner_key), (other, _)) = (keys(1), keys(2), keys(3));
        let sealed = seal_old(&agent, &owner_key, "grüß dich", [9; 16]).expect("it seals");
        assert!(sealed.contains("?iv=") && !sealed.contains("gr"));
        assert_eq!(open_old(&owner, &agent_key, &sealed).as_deref(), Ok("grüß dich"));
        assert_ne!(open_old(&other, &agent_key, &sealed).as_deref(), Ok("grüß dich"));
        for bad in ["", "hello", "?iv=", "aGVsbG8=?iv=AAAA", "AAAA?iv=AAAAAAAAAAAAAAAAAAAAAA=="] {
            assert_eq!(open_old(&owner, &agent_key, bad), Err(SealError::Content), "{bad}");
        }
    }

    #[test]
    fn only_the_shape_of_a_v2_payload_is_plausible() {
        let good = format!("Ag{}", "A".repeat(130));
        assert!(is_plausible(&good));
        for bad in [
            String::new(),
            "hello".into(),
            good[..128].into(),
            format!("AQ{}", &good[2..]),
            format!("{good}="),
            good.replace('A', "!"),
        ] {
            assert!(!is_plausible(&bad), "{bad}");
        }
    }
}
