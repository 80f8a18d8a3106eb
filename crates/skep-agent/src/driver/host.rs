//! What an instance is given of its machine: the time, randomness, the word on whether it leads, and a look at its relay.

use futures_util::future::BoxFuture;
use skep_core::budget::{Exhausted, Shared, Spent, Start};
use skep_core::turn::TurnId;
use skep_proto::time::UnixMs;
use skep_proto::{Filter, PubKey, RawEvent, Timestamp};

/// Clocks and randomness of the machine. An instance has no others.
pub trait Host: Send + Sync {
    /// Milliseconds since 1970. It jumps when somebody sets it.
    fn unix_ms(&self) -> UnixMs;

    /// Milliseconds of a clock that never goes back.
    fn steady_ms(&self) -> u64;

    /// Fills with bytes that nobody can foresee. Without any, nothing that must be fresh may be made: it panics then.
    fn fill_random(&self, bytes: &mut [u8]);
}

/// Knows whether this instance leads, by the facts of now.
pub trait Lead: Send + Sync {
    /// Whether it may act now. One that says no tells the role that is true ([`super::Input::Role`]) soon after.
    fn may_act(&self) -> BoxFuture<'_, bool>;

    /// When it looked last, if it found then that this instance may act, in milliseconds since 1970; otherwise 0.
    fn led_at(&self) -> UnixMs {
        0
    }
}

/// What can be looked up at the home relay. Each answer comes in a bounded time.
pub trait Library: Send + Sync {
    /// What it has that matches, verified. `None`: it did not answer, and nothing is known.
    fn look_up(&self, filters: Vec<Filter>) -> BoxFuture<'static, Option<Vec<RawEvent>>>;

    /// The key that it signs its own lists with (NIP-11 `self`); `Some(None)`: it has none.
    fn relay_key(&self) -> BoxFuture<'static, Option<Option<PubKey>>>;
}

/// The budget that agents of this home have in common. Each call is one durable step. An end that could not be written is
/// kept, and written with the next call that works; what is lost with the process is known from its records at its start.
pub trait Purse: Send + Sync {
    fn limits(&self) -> Shared;

    /// An instance starts, with what its records know of the turns before: what was set aside for others never began.
    fn take_up(&self, start: Start);

    /// Sets aside what a turn may cost.
    fn reserve(&self, now: Timestamp, turn: &TurnId, agent: PubKey, task: Option<&str>) -> Result<(), Refused>;

    /// A turn ended; `None`: it cost nothing, and was none.
    fn settle(&self, now: Timestamp, turn: &TurnId, spent: Option<Spent>);

    /// Time passed: what could not be written is tried again.
    fn tick(&self, now: Timestamp);
}

/// Why a turn may not begin by the common budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    Exhausted(Exhausted),
    /// Nobody can say whether it may: one line for a person.
    Unusable(String),
}

impl dyn Host {
    pub(super) fn unix_now(&self) -> Timestamp {
        self.unix_ms() / 1_000
    }

    pub(super) fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill_random(&mut bytes);
        bytes
    }

    pub(super) fn random_u64(&self) -> u64 {
        u64::from_le_bytes(self.random())
    }
}
