//! Names that people give to agents and pods. They are typed into shells, paths, mentions and URLs, so few characters
//! are in them, and the same ones at every door.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits;

/// What is wrong with a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is not a name: use 1 to {} of a-z, 0-9, _ and -, beginning with a letter or digit",
    limits::NAME_BYTES_MAX
)]
pub struct NameError {
    found: String,
}

macro_rules! name_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'_, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_newtype!(
    /// `^[a-z0-9][a-z0-9_-]{0,62}$`: what an agent is mentioned by.
    AgentName
);
name_newtype!(
    /// `^[a-z0-9][a-z0-9_-]{0,62}$`: a pod on its node.
    PodName
);

fn check(text: &str) -> Result<(), NameError> {
    let fits = (1..=limits::NAME_BYTES_MAX).contains(&text.len());
    let begins = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if fits && begins && text.bytes().all(is_name_byte) {
        Ok(())
    } else {
        // A hostile value may be long; a message needs only its beginning.
        Err(NameError { found: text.chars().take(80).collect() })
    }
}

fn is_name_byte(b: u8) -> bool {
    matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_names_of_the_one_form_are_names() {
        let longest = "a".repeat(63);
        for good in ["a", "7", "bee-1_x", "a-", longest.as_str()] {
            assert_eq!(good.parse::<AgentName>().map(|name| name.to_string()).as_deref(), Ok(good));
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", "_a", "A", "a b", "a.b", "a/b", "..", "é", "a\n", "a\0", too_long.as_str()] {
            assert!(bad.parse::<PodName>().is_err(), "{bad}");
            assert!(serde_json::from_value::<PodName>(bad.into()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_form_is_the_specs_expression(text in "\\PC{0,70}", good in "[a-z0-9][a-z0-9_-]{0,62}") {
            let is_good = |text: &str| {
                let mut bytes = text.bytes();
                text.len() <= 63
                    && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                    && bytes.all(is_name_byte)
            };
            prop_assert_eq!(text.parse::<AgentName>().is_ok(), is_good(&text));
            prop_assert!(good.parse::<AgentName>().is_ok());
        }
    }
}
