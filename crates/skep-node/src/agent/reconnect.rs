//! What a connection that is kept up is doing, and when one that was lost is tried again.

use std::time::Duration;

use crate::client::{Client, ClientError};

/// The first wait is at most this, each next one at most twice the one before.
const BASE: Duration = Duration::from_secs(1);
/// No wait is longer.
const CAP: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a good one: the next failure is the first.
const STABLE: Duration = Duration::from_secs(30);

/// What a connection is doing, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    Connecting,
    /// Connected, and fetching what came meanwhile.
    CatchingUp,
    Live,
    /// Lost; tried again after this time.
    Waits {
        why: String,
        wait: Duration,
    },
    /// Not tried again: a person must change something.
    Stopped(Stop),
}

/// Why a connection is not tried again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    #[error("the relay does not let this agent in: {0}")]
    Auth(String),
    #[error("the relay does not serve what this agent subscribes to: {0}")]
    Subscription(String),
    #[error("{0}")]
    Url(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Stop(#[from] Stop),
    #[error("{0}")]
    Passing(String),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::BadUrl { .. } => Self::Stop(Stop::Url(error.to_string())),
            other => Self::Passing(other.to_string()),
        }
    }
}

/// Refuses a connection whose relay refused our AUTH; its own trouble passes.
pub fn check_auth(client: &Client) -> Result<(), Failure> {
    match client.auth_refusal() {
        None => Ok(()),
        Some(why) if is_passing(why) => Err(Failure::Passing(why.to_owned())),
        Some(why) => Err(Stop::Auth(why.to_owned()).into()),
    }
}

/// Whether a relay's word may be another one the next time.
pub fn is_passing(refusal: &str) -> bool {
    ["error:", "rate-limited:"].iter().any(|prefix| refusal.starts_with(prefix))
}

/// Waits between attempts: doubled each time, any part of it with equal chance (full jitter), so that many who lost
/// one relay do not come back at once.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait; `lasted` is how long the connection was up, if it was.
    pub fn next(&mut self, lasted: Option<Duration>) -> Duration {
        if lasted.is_some_and(|lasted| lasted >= STABLE) {
            self.failures = 0;
        }
        let most = most(self.failures);
        self.failures = self.failures.saturating_add(1);
        jitter(most)
    }
}

/// The longest wait after so many failures.
fn most(failures: u32) -> Duration {
    BASE.saturating_mul(1 << failures.min(6)).min(CAP)
}

/// A wait after so many failures of one event.
pub fn wait_after(failures: u32) -> Duration {
    jitter(most(failures))
}

fn jitter(most: Duration) -> Duration {
    // Without randomness the longest wait is the safe one.
    let share = getrandom::u32().map_or(1.0, |number| f64::from(number) / f64::from(u32::MAX));
    most.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_cap_and_start_anew_after_a_stable_connection() {
        assert_eq!([0, 1, 2, 5, 6, 40].map(|n| most(n).as_secs()), [1, 2, 4, 32, 60, 60]);
        let mut backoff = Backoff { failures: 9 };
        assert!(backoff.next(Some(Duration::from_secs(29))) <= CAP);
        assert_eq!(backoff.failures, 10);
        assert!(backoff.next(Some(STABLE)) <= BASE);
        assert_eq!(backoff.failures, 1);
    }

    #[test]
    fn waits_differ() {
        let waits: std::collections::BTreeSet<Duration> = (0..20).map(|_| wait_after(9)).collect();
        assert!(waits.len() > 10, "{waits:?}");
    }
}
