//! What a backend and its harness say to each other, whatever runs behind: an ACP program, a model server, a command.
//!
//! Words only: `skep-agent` speaks them to real programs, the turn machine decides by them.

use serde::{Deserialize, Serialize};

/// What the harness asks of a backend.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Begin a turn. One at a time: the next comes after [`Said::Ended`].
    Prompt { text: String },
    /// End the turn early. A backend that does not obey is killed.
    Cancel,
    /// The answer to an [`Ask`]: one of its options, or `None` for "cancelled".
    Answer { request: AskId, option: Option<String> },
    /// No more turns: end in an orderly way.
    Close,
}

/// What a backend says, in its order.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// A session can be prompted.
    Ready(Session),
    /// A piece of the reply.
    Text(String),
    /// A piece of what the model thinks to itself. Never part of the reply.
    Thought(String),
    /// A tool call began or changed.
    Tool(ToolCall),
    /// It may not go on without a permission.
    Ask(Ask),
    Usage(Usage),
    /// How fast a model call went, where the backend can measure it.
    Speed(Speed),
    /// It wrote what its protocol does not know: skipped, counted.
    Noise(Noise),
    /// A raw protocol frame, for those who watch; one that asks for a permission is in its [`Ask`].
    Frame {
        direction: Direction,
        json: String,
    },
    /// The turn is over. Also said, with the reason, by a backend that could not open a session: [`Said::Gone`] follows.
    Ended(Ended),
    /// The backend is gone: nothing more will come.
    Gone(String),
}

/// A session that a backend opened or took up again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Session {
    pub id: String,
    /// `false`: taken up where it was left.
    pub is_new: bool,
    /// What the program calls itself, with its version.
    pub program: String,
    pub model: Option<String>,
    /// The models that it offers, by its own names. Empty: it does not let anybody choose, or does not say.
    pub models: Vec<String>,
    /// The git branch that it works on, where its conversation has a worktree of its own.
    pub branch: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToBackend,
    FromBackend,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    pub id: String,
    pub title: String,
    pub kind: ToolKind,
    pub status: ToolStatus,
    /// Files that it says it touches.
    pub paths: Vec<String>,
}

/// ACP's tool kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum ToolKind {
    Read,
    Edit,
    Delete,
    Move,
    Search,
    Execute,
    Think,
    Fetch,
    #[default]
    #[serde(other)]
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolStatus {
    Pending,
    Running,
    Done,
    Failed,
}

/// Names one question of one backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AskId(pub String);

/// A permission request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub id: AskId,
    pub tool: ToolCall,
    /// What it wants to do, for a person: a command line, a diff's path. Untrusted text.
    pub detail: String,
    pub options: Vec<AskOption>,
    /// The raw frame that asked, where there is one. It is said here only: what it is shown with names the question.
    pub frame: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskOption {
    pub id: String,
    pub name: String,
    pub kind: AskKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskKind {
    AllowOnce,
    AllowAlways,
    RejectOnce,
    RejectAlways,
}

/// What a turn used, as a provider or program reported it. `None` is unknown, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Usage {
    pub scope: Scope,
    pub counters: Counters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Of one model call; the calls of a turn add up.
    #[default]
    Call,
    /// Of the whole turn: the last word counts.
    Turn,
    /// Of the session so far: the last word counts.
    Session,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// With what was read from and written to a cache.
    pub input: Option<u64>,
    pub output: Option<u64>,
    /// As reported; never our sum.
    pub total: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    /// In US dollars, as reported.
    pub cost_usd: Option<f64>,
}

/// How fast one model call went.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Speed {
    /// From the request to the first piece of the answer. `None`: there was none.
    pub first_token_ms: Option<u64>,
    /// From the request to the end of the answer.
    pub total_ms: u64,
    /// Output tokens as reported, by the time since the first. `None` where no count was reported.
    pub tokens_per_sec: Option<f64>,
}

/// Lines that are not of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noise {
    /// All of them since the backend began.
    pub lines: u64,
    /// The last one, cut short. Untrusted text.
    pub last: String,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    EndTurn,
    /// A token or request limit: the reply is cut short.
    MaxTokens,
    /// The model would not.
    Refusal,
    Cancelled,
    Error(BackendError),
}

/// Why a turn failed, so that the right thing can be done about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    #[error("the provider refuses the credentials: {0}")]
    Auth(String),
    /// A limit that waiting does not lift today.
    #[error("the provider's quota is used up: {0}")]
    Quota(String),
    #[error("the provider is busy{}", .retry_after_secs.map(|secs| format!("; it says to come back in {secs} s")).unwrap_or_default())]
    Busy { retry_after_secs: Option<u64> },
    #[error("the connection to the model broke: {0}")]
    Disconnected(String),
    /// It was not begun, so it cost nothing.
    #[error("no place to work: {0}")]
    Place(String),
    #[error("{0}")]
    Other(String),
}
