//! One message in the inbox, with what became of it, since when and why: what is stored, and what a sender is shown.

use serde::{Deserialize, Serialize};
use skep_proto::lease::Epoch;
use skep_proto::time::UnixMs;
use skep_proto::{EventId, PubKey, Timestamp};

use crate::turn::{Cancel, TurnId};

/// What waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub id: EventId,
    pub from: PubKey,
    /// What has one turn at a time: a channel, a direct conversation, a thread.
    pub channel: String,
    pub arrived_at: UnixMs,
    /// Not begun from then on.
    pub expires_at: Option<UnixMs>,
    pub priority: Priority,
}

/// Orders channels among each other; in a channel the order of arrival is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
    /// Ends the turn before it.
    Urgent,
}

/// Where a message stands in its channel.
pub type Place = (UnixMs, EventId);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Committed; whether its sender may prompt is not known yet.
    Stored,
    /// Waits for its turn.
    Queued,
    /// In a turn, under the turn lease of this epoch.
    Prompted {
        turn: TurnId,
        epoch: Epoch,
    },
    /// `None`: by another instance.
    Answered {
        event: Option<EventId>,
    },
    Refused,
    Expired,
    /// Given up after [`Row::attempts`].
    Dead,
}

impl State {
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Stored | Self::Queued | Self::Prompted { .. })
    }

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Queued => "queued",
            Self::Prompted { .. } => "prompted",
            Self::Answered { .. } => "answered",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Dead => "dead",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub message: Message,
    pub state: State,
    /// When it came into this state, and why. `""`: in the ordinary way.
    pub since: UnixMs,
    pub reason: String,
    /// Turns that failed.
    pub attempts: u32,
    /// One turn made no progress; another such ends it.
    pub is_stuck: bool,
    /// Not prompted before.
    pub retry_at: Option<UnixMs>,
    /// The epoch of a turn whose end nobody saw: the next needs a newer one.
    pub fence: Option<Epoch>,
    /// The date of the newest word about it, in seconds; 0: there was none. What is older is of before.
    #[serde(default)]
    pub told_at: Timestamp,
    /// Why its turn, which runs still, is its last. Stored and told when that was decided: only an answer comes after it,
    /// whatever becomes of the turn or of this instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called_off: Option<Cancel>,
}

impl Row {
    pub fn new(message: Message, now: UnixMs) -> Self {
        Self {
            message,
            state: State::Stored,
            since: now,
            reason: String::new(),
            attempts: 0,
            is_stuck: false,
            retry_at: None,
            fence: None,
            told_at: 0,
            called_off: None,
        }
    }

    pub fn place(&self) -> Place {
        (self.message.arrived_at, self.message.id)
    }

    /// A word about it is to be told: later than every one before, whatever the clock says.
    pub fn date_word(&mut self, now: UnixMs) {
        self.told_at = (now / 1_000).max(self.told_at.saturating_add(1));
    }

    pub(super) fn enter(&mut self, state: State, now: UnixMs, reason: &str) {
        self.state = state;
        self.since = now;
        reason.clone_into(&mut self.reason);
    }
}
