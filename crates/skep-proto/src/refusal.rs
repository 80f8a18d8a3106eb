//! Why something was refused: a machine-readable prefix and one sentence for a person (NIP-01).

use std::borrow::Cow;
use std::fmt;

/// The closed set of prefixes of OK and CLOSED messages. All but `conflict` are NIP-01's and NIP-42's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prefix {
    Duplicate,
    Invalid,
    Blocked,
    RateLimited,
    Restricted,
    AuthRequired,
    Pow,
    Unsupported,
    Error,
    /// Ours: the lease is held by somebody else, or the epoch is old.
    Conflict,
}

impl Prefix {
    pub const ALL: [Self; 10] = [
        Self::Duplicate,
        Self::Invalid,
        Self::Blocked,
        Self::RateLimited,
        Self::Restricted,
        Self::AuthRequired,
        Self::Pow,
        Self::Unsupported,
        Self::Error,
        Self::Conflict,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Invalid => "invalid",
            Self::Blocked => "blocked",
            Self::RateLimited => "rate-limited",
            Self::Restricted => "restricted",
            Self::AuthRequired => "auth-required",
            Self::Pow => "pow",
            Self::Unsupported => "unsupported",
            Self::Error => "error",
            Self::Conflict => "conflict",
        }
    }

    /// A refusal with this prefix.
    pub fn because(self, text: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { prefix: self, text: text.into() }
    }
}

/// A refusal as a client sees it. The text never holds internal detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub prefix: Prefix,
    pub text: Cow<'static, str>,
}

impl Refusal {
    /// From the text of an OK or CLOSED message. A relay that gives no prefix that we know has an `error:`.
    pub fn parse(text: &str) -> Self {
        let known = text.split_once(':').and_then(|(prefix, rest)| {
            let prefix = Prefix::ALL.into_iter().find(|known| known.as_str() == prefix)?;
            Some(prefix.because(rest.trim_start().to_owned()))
        });
        known.unwrap_or_else(|| Prefix::Error.because(text.to_owned()))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.prefix.as_str(), self.text)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_as_it_was_written() {
        for prefix in Prefix::ALL {
            let refusal = prefix.because("held by a: epoch=1");
            assert_eq!(Refusal::parse(&refusal.to_string()), refusal);
        }
        assert_eq!(Refusal::parse("mute: no"), Prefix::Error.because("mute: no"));
    }
}
