//! Keys: what signs, how it is written down, and where it may come from.
//!
//! A secret is an nsec, hex or a NIP-49 ncryptsec, and comes from a file, an environment variable or a prompt,
//! never from an argument: those are seen by every process and kept by shells. Text that holds a secret is
//! erased when dropped; copies inside libraries and the kernel are beyond us.

mod keyring;
mod nip19;
mod source;

use std::fmt;

use nostr::key::SecretKey;
use nostr::nips::nip19::{FromBech32, ToBech32};
use nostr::nips::nip49::{EncryptedSecretKey, KeySecurity};
use secp256k1::{Keypair, SECP256K1};
use skep_proto::{Draft, PubKey, VerifiedEvent};
use zeroize::Zeroizing;

pub use keyring::{KeyEntry, KeyState, Keyring};
pub use nip19::{event_id, nevent, note, npub, parse_nip19, pubkey};
pub use source::{KeyName, KeySource, PASSPHRASE_VARIABLE, ask_secret, passphrase, passphrase_twice};

use crate::home::HomeError;

/// A text that is erased when dropped.
pub type SecretText = Zeroizing<String>;

/// Cost of NIP-49 encryption: scrypt with 2^16 rounds, 64 MiB and about 0.2 s, the NIP's own suggestion.
const LOG_N: u8 = 16;

/// Why there is no key to use. The text never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{0}")]
    File(#[from] HomeError),
    #[error("a key name is 1 to 63 of a-z 0-9 - _ and begins with a letter or digit, unlike {found:?}")]
    Name { found: String },
    #[error("no key is named {name}")]
    Unknown { name: KeyName },
    #[error("a key named {name} exists already")]
    Exists { name: KeyName },
    #[error("a private key must not be an argument: other processes and the shell history see it")]
    OnCommandLine,
    #[error("{origin} does not hold a private key (nsec, 64 hex digits or ncryptsec)")]
    Unreadable { origin: String },
    #[error("{origin} holds a public key, and a private one is needed")]
    PublicNotSecret { origin: String },
    #[error("the environment variable {variable} is not set")]
    Variable { variable: String },
    #[error("the passphrase does not fit this key")]
    WrongPassphrase,
    #[error("the passphrase is empty")]
    EmptyPassphrase,
    #[error("the two passphrases differ")]
    Differ,
    #[error("this encrypted key asks for more memory than is safe (scrypt 2^{log_n})")]
    TooCostly { log_n: u8 },
    #[error("{name} is encrypted already")]
    Encrypted { name: KeyName },
    #[error("{what} is needed, and there is no terminal to ask for it")]
    NoTerminal { what: String },
    #[error("{found:?} is neither an npub, a hex public key nor the name of a key")]
    NotAPubKey { found: String },
    #[error("{found:?} is neither a note, an nevent nor a hex event id")]
    NotAnEventId { found: String },
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

impl KeyError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::File(error) => return error.hint(),
            Self::Name { .. } => "for a file write its path with a slash, as ./my.key",
            Self::Unknown { name } => return Some(format!("skep key list; or make it: skep key generate {name}")),
            Self::Exists { name } => return Some(format!("choose another name, or: skep key rotate {name}")),
            Self::OnCommandLine => "use a key name, a file path, env:VARIABLE or prompt:, and consider this key leaked",
            Self::Unreadable { .. } | Self::PublicNotSecret { .. } => "skep key generate makes a new one",
            Self::Variable { .. } => "name an exported variable: env:VARIABLE",
            Self::WrongPassphrase => "check the passphrase, and that this is the right key",
            Self::EmptyPassphrase | Self::Differ => "type the same passphrase twice",
            Self::TooCostly { .. } => "re-encrypt it with fewer rounds in the program that made it",
            Self::Encrypted { .. } => "skep key show tells its state",
            Self::NoTerminal { .. } => "set SKEP_PASSPHRASE, or pipe the secret in where the command reads stdin",
            Self::NotAPubKey { .. } => "skep key list shows the names and public keys that are known here",
            Self::NotAnEventId { .. } => "an event id is 64 lowercase hex digits, or begins with note1 or nevent1",
            Self::Random(_) => return None,
        };
        Some(hint.to_owned())
    }
}

/// A private key that can sign. Its memory is overwritten when dropped.
#[derive(Clone)]
pub struct Keys(Keypair);

impl Keys {
    /// From the operating system's randomness.
    pub fn generate() -> Result<Self, KeyError> {
        loop {
            let mut secret = Zeroizing::new([0; 32]);
            getrandom::fill(secret.as_mut()).map_err(KeyError::Random)?;
            // About one value in 2^128 is not a secret key.
            if let Ok(pair) = Keypair::from_seckey_slice(SECP256K1, secret.as_ref()) {
                return Ok(Self(pair));
            }
        }
    }

    pub fn keypair(&self) -> &Keypair {
        &self.0
    }

    pub fn pubkey(&self) -> PubKey {
        PubKey(self.0.x_only_public_key().0.serialize())
    }

    pub fn nsec(&self) -> SecretText {
        match self.secret().to_bech32() {
            Ok(text) => Zeroizing::new(text),
            Err(never) => match never {},
        }
    }

    /// Signs with fresh randomness.
    pub fn sign(&self, draft: Draft) -> VerifiedEvent {
        draft.sign(&self.0, &fresh_aux())
    }

    /// As a NIP-49 ncryptsec. Takes about 0.2 s and 64 MiB.
    pub fn encrypt(&self, passphrase: &str) -> Result<StoredKey, KeyError> {
        if passphrase.is_empty() {
            return Err(KeyError::EmptyPassphrase);
        }
        EncryptedSecretKey::new(&self.secret(), passphrase, LOG_N, KeySecurity::Unknown)
            .map(StoredKey::Encrypted)
            .map_err(|_| KeyError::TooCostly { log_n: LOG_N })
    }

    fn secret(&self) -> SecretKey {
        SecretKey::from(self.0.secret_key())
    }
}

impl From<&SecretKey> for Keys {
    fn from(secret: &SecretKey) -> Self {
        Self(Keypair::from_secret_key(SECP256K1, secret))
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.0.non_secure_erase();
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.pubkey()).finish()
    }
}

/// Randomness for one signature. Zeros are allowed by BIP-340, so a system without any still signs.
pub fn fresh_aux() -> [u8; 32] {
    let mut aux = [0; 32];
    if getrandom::fill(&mut aux).is_err() {
        aux = [0; 32];
    }
    aux
}

/// A private key as it is written down.
#[derive(Clone)]
pub enum StoredKey {
    Plain(Keys),
    Encrypted(EncryptedSecretKey),
}

impl StoredKey {
    /// Reads an nsec, hex or ncryptsec; `origin` is what an error calls the place it came from.
    pub fn parse(text: &str, origin: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let unreadable = || KeyError::Unreadable { origin: origin.to_owned() };
        if text.starts_with("npub1") {
            return Err(KeyError::PublicNotSecret { origin: origin.to_owned() });
        }
        if text.starts_with("ncryptsec1") {
            return EncryptedSecretKey::from_bech32(text).map(Self::Encrypted).map_err(|_| unreadable());
        }
        let secret = if text.starts_with("nsec1") { SecretKey::from_bech32(text) } else { SecretKey::from_hex(text) };
        secret.map(|secret| Self::Plain(Keys::from(&secret))).map_err(|_| unreadable())
    }

    /// The key itself; `ask` is called for a passphrase when one is needed.
    pub fn unlock(self, ask: impl FnOnce() -> Result<SecretText, KeyError>) -> Result<Keys, KeyError> {
        let encrypted = match self {
            Self::Plain(keys) => return Ok(keys),
            Self::Encrypted(encrypted) => encrypted,
        };
        if encrypted.log_n() > EncryptedSecretKey::MAX_LOG_N {
            return Err(KeyError::TooCostly { log_n: encrypted.log_n() });
        }
        let secret = encrypted.decrypt(&ask()?).map_err(|_| KeyError::WrongPassphrase)?;
        Ok(Keys::from(&secret))
    }

    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    /// The line that is stored: nsec or ncryptsec.
    pub fn text(&self) -> SecretText {
        match self {
            Self::Plain(keys) => keys.nsec(),
            Self::Encrypted(encrypted) => {
                Zeroizing::new(encrypted.to_bech32().expect("invariant: 91 bytes always fit in bech32"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first vector of NIP-49.
    const NCRYPTSEC: &str = "ncryptsec1qgg9947rlpvqu76pj5ecreduf9jxhselq2nae2kghhvd5g7dgjtcxfqtd67p9m0w57lspw8gsq6yphnm8623nsl8xn9j4jdzz84zm3frztj3z7s35vpzmqf6ksu8r89qk5z2zxfmu5gv8th8wclt0h4p";
    const NCRYPTSEC_HEX: &str = "3501454135014541350145413501453fefb02227e449e57cf4d3a3ce05378683";

    #[test]
    fn every_written_form_is_the_same_key() {
        let keys = Keys::generate().expect("randomness");
        let hex = keys.secret().to_secret_hex();
        for text in [keys.nsec().to_string(), hex, format!("  {}\n", keys.nsec().as_str())] {
            let read = StoredKey::parse(&text, "a test").and_then(|key| key.unlock(|| unreachable!()));
            assert_eq!(read.expect("a key").pubkey(), keys.pubkey());
        }
    }

    #[test]
    fn the_public_nip49_vector_opens_with_its_passphrase_only() {
        let key = StoredKey::parse(NCRYPTSEC, "a test").expect("an ncryptsec");
        assert!(key.is_encrypted());
        assert_eq!(key.text().as_str(), NCRYPTSEC);
        let keys = key.clone().unlock(|| Ok(Zeroizing::new("nostr".into()))).expect("the right passphrase");
        assert_eq!(keys.secret().to_secret_hex(), NCRYPTSEC_HEX);
        let wrong = key.unlock(|| Ok(Zeroizing::new("Nostr".into())));
        assert!(matches!(wrong, Err(KeyError::WrongPassphrase)));
    }

    #[test]
    fn what_is_no_key_is_refused_and_never_repeated() {
        let npub = npub(&Keys::generate().expect("randomness").pubkey());
        assert!(matches!(StoredKey::parse(&npub, "x"), Err(KeyError::PublicNotSecret { .. })));
        for bad in ["", "hello", "nsec1qqqq", "ncryptsec1qqqq", &"0".repeat(64), &"f".repeat(64), &"a".repeat(63)] {
            let Err(error) = StoredKey::parse(bad, "stdin") else { panic!("{bad} is no key") };
            assert!(bad.is_empty() || !error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn an_encrypted_key_that_asks_for_too_much_is_refused_before_any_work() {
        let secret = Keys::generate().expect("randomness").secret();
        let small = EncryptedSecretKey::new(&secret, "x", 4, KeySecurity::Unknown).expect("encrypted");
        let mut bytes = small.as_vec();
        bytes[1] = 30;
        let huge = StoredKey::Encrypted(EncryptedSecretKey::from_slice(&bytes).expect("well-formed"));
        assert!(matches!(huge.unlock(|| unreachable!()), Err(KeyError::TooCostly { log_n: 30 })));
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let keys = Keys::generate().expect("randomness");
        assert_eq!(format!("{keys:?}"), format!("Keys({})", keys.pubkey()));
    }
}
