//! Where a private key may come from, and how a passphrase is asked for.

use std::fmt;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::str::FromStr;

use skep_proto::id::decode_lower_hex;
use zeroize::Zeroizing;

use super::{KeyError, SecretText, StoredKey};
use crate::home;

/// What holds the passphrase of encrypted keys where no terminal can be asked.
pub const PASSPHRASE_VARIABLE: &str = "SKEP_PASSPHRASE";

/// Characters of a key name.
const NAME_CHARS_MAX: usize = 63;

/// The name of a key: `^[a-z0-9][a-z0-9_-]{0,62}$`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(String);

impl KeyName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name under which a rotated key is kept: never longer than a name may be.
    pub fn retired(&self, at: skep_proto::Timestamp) -> Self {
        let suffix = format!("-retired-{at}");
        let kept = self.0.len().min(NAME_CHARS_MAX.saturating_sub(suffix.len()));
        Self(format!("{}{suffix}", &self.0[..kept]))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for KeyName {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if looks_secret(text) {
            return Err(KeyError::OnCommandLine);
        }
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let good = (1..=NAME_CHARS_MAX).contains(&bytes.len())
            && plain(bytes[0])
            && bytes.iter().all(|b| plain(*b) || *b == b'-' || *b == b'_');
        if good { Ok(Self(text.to_owned())) } else { Err(KeyError::Name { found: text.chars().take(80).collect() }) }
    }
}

/// Where to take a private key from, as an argument may say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// `name`: in the keyring.
    Name(KeyName),
    /// `./path` or `/path`: a file of mode 0600.
    File(PathBuf),
    /// `env:VARIABLE`.
    Variable(String),
    /// `prompt:`, on the terminal.
    Prompt,
}

impl FromStr for KeySource {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if looks_secret(text) {
            return Err(KeyError::OnCommandLine);
        }
        if text == "prompt:" {
            return Ok(Self::Prompt);
        }
        if let Some(variable) = text.strip_prefix("env:") {
            return Ok(Self::Variable(variable.to_owned()));
        }
        if text.contains('/') { Ok(Self::File(PathBuf::from(text))) } else { text.parse().map(Self::Name) }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "the key {name}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(variable) => write!(f, "the environment variable {variable}"),
            Self::Prompt => f.write_str("the prompt"),
        }
    }
}

impl KeySource {
    /// Reads the key from anywhere but the keyring; a name is the keyring's to resolve.
    pub(super) fn read_outside(&self) -> Result<StoredKey, KeyError> {
        let text = match self {
            Self::Name(name) => return Err(KeyError::Unknown { name: name.clone() }),
            Self::File(path) => text_of(home::read_private(path)?, &self.to_string())?,
            Self::Variable(variable) => match std::env::var(variable) {
                Ok(text) => Zeroizing::new(text),
                Err(_) => return Err(KeyError::Variable { variable: variable.clone() }),
            },
            Self::Prompt => ask_secret("private key (nsec, hex or ncryptsec)")?,
        };
        StoredKey::parse(&text, &self.to_string())
    }
}

pub(super) fn text_of(mut bytes: Zeroizing<Vec<u8>>, origin: &str) -> Result<SecretText, KeyError> {
    String::from_utf8(std::mem::take(&mut *bytes)).map(Zeroizing::new).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        KeyError::Unreadable { origin: origin.to_owned() }
    })
}

/// Whether a text is, or is meant to be, a private key. 64 hex digits could be a public key, which is why
/// this is asked only where a name or path is expected.
pub(super) fn looks_secret(text: &str) -> bool {
    let lower = text.get(..10).unwrap_or(text).to_ascii_lowercase();
    lower.starts_with("nsec1") || lower.starts_with("ncryptsec1") || decode_lower_hex(text, &mut [0; 32]).is_some()
}

/// Asks on the terminal, without echo. Where neither stdin nor stderr is one, nobody is there to answer: a program
/// that runs us must get an error, and not wait for ever on a terminal that it does not watch.
pub fn ask_secret(what: &str) -> Result<SecretText, KeyError> {
    if !io::stdin().is_terminal() && !io::stderr().is_terminal() {
        return Err(KeyError::NoTerminal { what: what.to_owned() });
    }
    rpassword::prompt_password(format!("{what}: "))
        .map(Zeroizing::new)
        .map_err(|_| KeyError::NoTerminal { what: what.to_owned() })
}

/// The passphrase of an existing key: from [`PASSPHRASE_VARIABLE`], else asked for.
pub fn passphrase(what: &str) -> Result<SecretText, KeyError> {
    match std::env::var(PASSPHRASE_VARIABLE) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(_) => ask_secret(&format!("passphrase of {what}")),
    }
}

/// A new passphrase: from [`PASSPHRASE_VARIABLE`], else asked for twice.
pub fn passphrase_twice(what: &str) -> Result<SecretText, KeyError> {
    let first = match std::env::var(PASSPHRASE_VARIABLE) {
        Ok(text) => Zeroizing::new(text),
        Err(_) => {
            let first = ask_secret(&format!("new passphrase for {what}"))?;
            if first != ask_secret("the same passphrase again")? {
                return Err(KeyError::Differ);
            }
            first
        }
    };
    if first.is_empty() { Err(KeyError::EmptyPassphrase) } else { Ok(first) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_lowercase_and_short() {
        for good in ["a", "0", "claude-2_b", &"a".repeat(63)] {
            assert!(good.parse::<KeyName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "A", "a.b", "a/b", "../a", "é", "a b", "a\n", &"a".repeat(64)] {
            assert!(bad.parse::<KeyName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_secret_as_an_argument_is_refused() {
        let hex = "0f".repeat(32);
        for secret in ["nsec1abc", "NSEC1ABC", "ncryptsec1abc", hex.as_str()] {
            assert!(matches!(secret.parse::<KeySource>(), Err(KeyError::OnCommandLine)), "{secret}");
            assert!(matches!(secret.parse::<KeyName>(), Err(KeyError::OnCommandLine)), "{secret}");
        }
    }

    #[test]
    fn a_source_says_what_it_is() {
        let read = |text: &str| text.parse::<KeySource>().expect("a source");
        assert!(matches!(read("bob"), KeySource::Name(_)));
        assert_eq!(read("./bob"), KeySource::File("./bob".into()));
        assert_eq!(read("env:KEY"), KeySource::Variable("KEY".into()));
        assert_eq!(read("prompt:"), KeySource::Prompt);
    }

    #[test]
    fn a_retired_name_is_a_name() {
        for name in ["a", &"a".repeat(63)] {
            let name: KeyName = name.parse().expect("a name");
            assert!(name.retired(1_700_000_000).as_str().parse::<KeyName>().is_ok());
        }
    }
}
