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

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.prefix.as_str(), self.text)
    }
}

impl std::error::Error for Refusal {}
