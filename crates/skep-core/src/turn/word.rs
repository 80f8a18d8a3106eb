//! What a turn is called, how long it may take, what it wants done, and what it leaves behind.

use serde::{Deserialize, Serialize};
use skep_proto::agent::metering::StopReason;
use skep_proto::agent::telemetry::{Payload, TelemetryKind};
use skep_proto::limits;

use crate::backend::{Ask, BackendError, Order, Session, ToolCall};
use crate::meter::Observed;

/// Names one turn of an agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TurnId(pub String);

/// Why a turn is ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cancel {
    /// By the owner: `cancel_turn`, `stop`.
    Owner,
    /// By a newer message in its channel.
    Interrupted,
    /// Another instance leads.
    Stolen,
    /// A newer lease exists.
    Fenced,
    /// The harness stops.
    Shutdown,
    /// To go on with another model.
    SwitchModel,
    /// Its message is not waiting any more.
    NotWanted,
    /// It has cost more than a turn may.
    Budget,
}

impl Cancel {
    /// Whether the message is given up with its turn. Otherwise it stays unanswered, and whoever leads takes it up.
    pub fn gives_up(self) -> bool {
        matches!(self, Self::Owner | Self::Interrupted | Self::NotWanted)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "cancelled by the owner",
            Self::Interrupted => "interrupted by a newer message",
            Self::Stolen => "another instance leads",
            Self::Fenced => "the turn's lease was taken over",
            Self::Shutdown => "the harness stopped",
            Self::SwitchModel => "the model is being switched",
            Self::NotWanted => "not waiting any more",
            Self::Budget => "budget: the turn cost more than usd_per_turn",
        }
    }
}

/// How long a turn may do what. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    pub idle_ms: u64,
    pub turn_ms_max: u64,
    pub kill_step_ms: u64,
    pub liveness_ms: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            idle_ms: limits::TURN_IDLE_MS,
            turn_ms_max: limits::TURN_MS_MAX,
            kill_step_ms: limits::KILL_STEP_MS,
            liveness_ms: limits::TURN_LIVENESS_SECS * 1_000,
        }
    }
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Tell(Order),
    /// Ask the process group to end (SIGTERM).
    Terminate,
    /// End it (SIGKILL).
    Kill,
    /// To [`crate::permit`], and its frame with the question's name to those who watch; the answer comes back through
    /// [`Turn::answer`].
    Ask(Ask),
    /// For those who watch.
    Observe {
        kind: TelemetryKind,
        payload: Payload,
    },
    Tool(ToolCall),
    /// A session was opened or taken up: the meter must know before the turn ends.
    Opened(Session),
    /// The turn is over. Comes exactly once, last.
    Done(Box<Done>),
}

/// What a turn leaves behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    pub outcome: Outcome,
    pub stop: StopReason,
    pub observed: Observed,
    pub session: Option<Session>,
    pub elapsed_ms: u64,
    /// Whether the backend can take another turn.
    pub is_reusable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Reply {
        text: String,
        /// Cut short: by the model's limit or by ours.
        is_cut: bool,
    },
    Failed(BackendError),
    Cancelled(Cancel),
    /// No progress for too long.
    Stuck,
    /// Longer than a turn may be.
    TooLong,
}
