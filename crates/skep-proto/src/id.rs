//! Fixed-size identifiers. Each prints and parses as lowercase hex, as NIP-01 asks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is wrong with a text that should have been an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} lowercase hex characters, found {found:?}")]
pub struct IdError {
    expected: usize,
    found: String,
}

impl IdError {
    fn new(expected: usize, found: &str) -> Self {
        // A hostile value may be long; a message needs only its beginning.
        let found = found.chars().take(80).collect();
        Self { expected, found }
    }
}

macro_rules! hex_newtype {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes; as text it is twice that.
            pub const LEN: usize = $len;

            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// `None` unless `bytes` has exactly the right length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            pub fn to_hex(self) -> String {
                faster_hex::hex_string(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = [0u8; $len * 2];
                let text = faster_hex::hex_encode(&self.0, &mut text).map_err(|_| fmt::Error)?;
                f.write_str(text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0u8; $len];
                decode_lower_hex(text, &mut bytes).ok_or_else(|| IdError::new($len * 2, text))?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} lowercase hex characters", $len * 2)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                d.deserialize_str(Visitor)
            }
        }
    };
}

/// Decodes strict lowercase hex; `None` for another length, case or character.
pub fn decode_lower_hex(text: &str, out: &mut [u8]) -> Option<()> {
    if text.len() != out.len() * 2 {
        return None;
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    faster_hex::hex_decode(text.as_bytes(), out).ok()
}

hex_newtype!(
    /// SHA-256 of an event's canonical form (NIP-01).
    EventId,
    32
);
hex_newtype!(
    /// An x-only secp256k1 public key (BIP-340). Not checked to be on the curve until it verifies something.
    PubKey,
    32
);
hex_newtype!(
    /// A BIP-340 Schnorr signature.
    Sig,
    64
);

/// The commit number of an event in one store: it only grows, and is never used twice, but has gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl Seq {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(u64::MAX);

    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uppercase_short_and_non_hex_text_is_refused() {
        let good = "ab".repeat(32);
        assert!(good.parse::<EventId>().is_ok());
        for bad in [good.to_uppercase(), good[..62].to_owned(), format!("{}g", &good[..63]), String::new()] {
            assert!(bad.parse::<EventId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn text_and_bytes_are_the_same_identifier() {
        let id = EventId([0x0f; 32]);
        assert_eq!(id.to_string().parse::<EventId>(), Ok(id));
        assert_eq!(id.to_hex(), "0f".repeat(32));
    }
}
