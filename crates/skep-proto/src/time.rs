//! Unix time, in whole seconds, as Nostr writes it (NIP-01).

/// Seconds since 1970-01-01T00:00:00Z.
pub type Timestamp = u64;
