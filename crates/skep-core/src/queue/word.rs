//! What the inbox is told, what it wants done, and how it is set.

use skep_proto::lease::Epoch;
use skep_proto::time::UnixMs;
use skep_proto::{EventId, limits};

use super::row::{Message, Row};
use super::told::Told;
use crate::backend::BackendError;
use crate::turn::{Cancel, TurnId};

/// What a new message does to the turn that runs in its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It waits.
    #[default]
    Queue,
    /// It ends the turn.
    Interrupt,
    /// It is given to the turn, where the backend can take it; else it waits.
    Steer,
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub mode: Mode,
    /// Turns at once, each in its own channel.
    pub parallel: usize,
    /// Whether a message that has to wait behind a turn is marked.
    pub shows_waiting: bool,
    pub waiting_max: usize,
    pub attempts_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Queue,
            parallel: 1,
            shows_waiting: true,
            waiting_max: limits::INBOX_WAITING_MAX,
            attempts_max: limits::ATTEMPTS_MAX,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A message was committed to the inbox. One that is known already changes nothing.
    Arrived(Message),
    /// Its sender may prompt.
    Admitted(EventId),
    /// Its sender may not. Every instance says so by itself, and strangers are told nothing.
    Refused {
        id: EventId,
        reason: String,
    },
    /// Two agents have talked enough, by what this instance counted: the others are told.
    Stopped {
        id: EventId,
        reason: String,
    },
    /// The answer to [`Effect::Prompt`]: budget, lease and journal are in order, and the turn runs.
    Started {
        id: EventId,
        turn: TurnId,
        epoch: Epoch,
    },
    /// The other answer to it.
    NotStarted {
        id: EventId,
        why: NotStarted,
    },
    /// The answer to [`Effect::Steer`].
    Steered {
        id: EventId,
        turn: TurnId,
        is_taken: bool,
    },
    Ended {
        turn: TurnId,
        how: Ended,
    },
    /// A turn is to end, and its messages with it ([`Cancel::gives_up`]): that is stored and told before the turn hears of
    /// it, and stands whatever becomes of the turn, but for an answer.
    CalledOff {
        turn: TurnId,
        why: Cancel,
    },
    /// Another instance's final reply was seen: a turn that was about to begin does not. One that runs goes on: the
    /// relay decides which reply stands, and where none does, the shell ends it.
    AnsweredElsewhere {
        id: EventId,
        event: EventId,
    },
    /// Another instance told that the message is over without an answer, or is tried again. `row`: as it is stored.
    ToldElsewhere {
        row: Row,
        told: Told,
    },
    /// The relay does not take the reply to it: another answered, or holds the turn now. That was an attempt.
    GivenBack {
        row: Row,
        reason: String,
    },
    /// A dead, refused or expired message, once more.
    Retry(Row),
    /// No new turns until [`Input::Resumed`].
    Paused(String),
    Resumed,
    /// Whether there is another reason that no new turns begin; it and a pause are lifted each by itself.
    Held(bool),
    /// The provider said not to come back before, to the instance before this one.
    Busy(UnixMs),
    /// Whether this instance is the prompter.
    Leading(bool),
    /// A time of [`Effect::WakeAt`] came.
    Tick,
}

/// Why a turn was not begun. None of these is an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotStarted {
    /// No budget, the turn's lease is held by another, the disk is full: the reason is shown while it waits.
    Wait { reason: String, until: UnixMs },
    /// The turn's lease is completed: somebody answered.
    Answered(Option<EventId>),
}

/// How a turn ended, once its reply was published or could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// `None`: by another instance, and the relay does not say with which event.
    Answered(Option<EventId>),
    Failed(BackendError),
    /// No progress, so it was cancelled.
    Stuck,
    /// It reached the longest time that a turn may take.
    TooLong,
    Cancelled(Cancel),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Store the row before anything that follows.
    Store(Row),
    /// Store the row, and with it, in one step, the word that tells the other instances where it stands now, dated
    /// [`Row::told_at`]: a crash between the two would lose one of them.
    Tell {
        row: Row,
        /// One visible sentence for the sender; `None`: a sign is enough.
        notice: Option<String>,
    },
    /// Reserve the budget, take the turn's lease, write the journal, prompt; then say `Started` or `NotStarted`.
    Prompt {
        message: Message,
        /// From 1.
        attempt: u32,
        /// The epoch of a turn whose end nobody saw, before a crash: ours must be newer.
        after: Option<Epoch>,
    },
    /// Give the message to a running turn, and say `Steered`.
    Steer {
        turn: TurnId,
        message: Message,
    },
    Cancel {
        turn: TurnId,
        why: Cancel,
    },
    React {
        id: EventId,
        reaction: Reaction,
    },
    /// New turns stopped with this message, and a person is needed.
    PauseAgent {
        id: EventId,
        reason: String,
    },
    WakeAt(UnixMs),
    /// The provider said not to come back before: to be kept, for [`Input::Busy`] at the next start.
    Busy(UnixMs),
}

impl Effect {
    /// What is to be stored.
    pub fn row(&self) -> Option<&Row> {
        match self {
            Self::Store(row) | Self::Tell { row, .. } => Some(row),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// 👀: it is being prompted.
    Eyes,
    /// ⏳: it waits behind a turn.
    Hourglass,
}
