//! What is said on a node's control socket: one JSON object a line, a request, then its answer.
//!
//! Spoken on one machine only, between processes of one user: commands and screens ask, whoever runs agents answers.
//! Each side ignores fields that it does not know. A request of a newer version, or one that is not known, is refused
//! in words. Texts in answers may come from anybody: whoever shows them escapes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::lease::Epoch;
use crate::name::AgentName;
use crate::pause::Held;
use crate::{EventId, PubKey, RawEvent, Timestamp, limits};

/// The version of this vocabulary.
pub const VERSION: u32 = 1;

/// One line to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub v: u32,
    #[serde(flatten)]
    pub ask: Ask,
}

/// What is asked. Where an agent may be left out, all of the node are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    Status,
    /// The newest messages, newest first.
    Inbox {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<AgentName>,
        /// Only those in this state.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<String>,
        /// Of each agent; at most [`limits::CONTROL_MESSAGES_MAX`] of all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u32>,
    },
    /// No new turns begin in this home, also after a restart, until it is resumed.
    Pause {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<AgentName>,
        reason: String,
    },
    Resume {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<AgentName>,
    },
    /// An owner's signed word to begin no turns, or to go on: for those of its agents that it is about.
    Heed {
        event: Box<RawEvent>,
    },
    /// Tries a message again; without one, all that are dead.
    Retry {
        agent: AgentName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<EventId>,
    },
    /// This instance is to lead: when nobody does, or, to steal, whoever does.
    Claim {
        agent: AgentName,
        #[serde(default)]
        steal: bool,
    },
    /// Cancels the turn of one channel, or every turn.
    Cancel {
        agent: AgentName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channel: Option<String>,
    },
    /// Starts the agents that were added to the configuration.
    Reload,
}

/// One line from a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub v: u32,
    #[serde(flatten)]
    pub answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Status(Box<NodeStatus>),
    Inbox {
        messages: Vec<InboxRow>,
    },
    /// What became of it, for each agent.
    Done {
        outcomes: Vec<Outcome>,
    },
    /// Nothing was done.
    Refused {
        why: String,
    },
}

/// What a node did for one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub agent: String,
    pub is_done: bool,
    /// One line for a person.
    pub text: String,
}

/// One process that runs agents, or a relay, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub pid: u32,
    pub version: String,
    pub started_at: Timestamp,
    /// When all of this was so.
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<RelayStatus>,
    pub agents: Vec<AgentStatus>,
}

/// The relay in the same process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    pub url: String,
    pub pubkey: PubKey,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    pub name: String,
    /// Absent when its key cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pubkey: Option<PubKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<PubKey>,
    /// What runs its turns, for a person.
    pub backend: String,
    pub state: RunState,
    /// Why it is in this state, where that is not the ordinary one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Absent while it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
    /// What it hears and says, by relay; the first is its home.
    pub links: Vec<LinkStatus>,
    pub outbox: OutboxStatus,
    /// Messages by state.
    pub inbox: BTreeMap<String, u64>,
    /// The turns that run now.
    pub turns: Vec<TurnStatus>,
    /// Why no new turns begin, the widest first: all must be lifted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paused: Vec<Held>,
    /// When anything in its records changed last: a message came, or went on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Running,
    /// It failed and is started again by itself.
    Restarts,
    /// It could not be started.
    Failed,
    Stopped,
    /// A process that may run it does not answer.
    Unknown,
}

/// Who leads, as this instance knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub role: Role,
    pub lease: LeaseState,
    /// What the home relay said, where it gave no lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// The claim in the lock file of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It prompts; under this lease where there is one.
    Leads { epoch: Option<Epoch> },
    /// It leads on this machine, and waits for the one before to let go.
    WaitsForHold,
    /// It leads on this machine, and waits for the relay's lease.
    WaitsForLease,
    /// `None`: nobody knows whom.
    Follows { instance: Option<String> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    Held,
    /// Another instance has it.
    Others,
    /// The relay has not answered.
    Unknown,
    /// The home relay grants none: the guarantee of one answer is per machine.
    None,
}

/// What the lock file says (NIP-LE).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub instance: String,
    pub pid: u32,
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    pub relay: String,
    pub state: LinkState,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    Connecting,
    /// Connected, and fetching what came meanwhile.
    CatchingUp,
    Live,
    /// Lost, and tried again.
    Waits,
    /// Not tried again: a person must change something.
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OutboxStatus {
    pub waiting: u64,
    /// For good, by a relay.
    pub refused: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnStatus {
    pub turn: String,
    pub message: EventId,
    pub channel: String,
    pub since: Timestamp,
}

/// A message, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxRow {
    pub agent: String,
    pub id: EventId,
    pub from: PubKey,
    pub channel: String,
    pub state: String,
    pub since: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Turns that failed.
    pub attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<EventId>,
}

/// Why a line is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("a request is at most {} bytes", limits::CONTROL_REQUEST_BYTES_MAX)]
    TooLong,
    #[error("version {0} is not spoken here; this is version {VERSION}")]
    Version(u32),
    #[error("not a request: {0}")]
    Malformed(String),
}

impl Request {
    pub fn new(ask: Ask) -> Self {
        Self { v: VERSION, ask }
    }

    /// Reads a line, with or without its end.
    pub fn from_line(line: &[u8]) -> Result<Self, LineError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        if line.len() > limits::CONTROL_REQUEST_BYTES_MAX {
            return Err(LineError::TooLong);
        }
        let malformed = |error: serde_json::Error| LineError::Malformed(error.to_string());
        // The version first: what a newer one asks need not be readable.
        let Version { v } = serde_json::from_slice(line).map_err(malformed)?;
        if v != VERSION {
            return Err(LineError::Version(v));
        }
        serde_json::from_slice(line).map_err(malformed)
    }
}

impl Reply {
    pub fn new(answer: Answer) -> Self {
        Self { v: VERSION, answer }
    }
}

impl From<LineError> for Answer {
    fn from(error: LineError) -> Self {
        Self::Refused { why: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pause::By;
    use proptest::prelude::*;

    fn text(value: &impl Serialize) -> String {
        serde_json::to_string(value).expect("strings and numbers")
    }

    #[test]
    fn requests_have_a_frozen_form() {
        let scout = || "scout".parse::<AgentName>().expect("a name");
        let id = EventId([0xab; 32]);
        let keys = secp256k1::Keypair::from_seckey_slice(secp256k1::SECP256K1, &[9; 32]).expect("a key");
        let pause = crate::pause::Pause { paused: true, reason: "a \"holiday\"".into() };
        let word = Box::new(pause.draft(&crate::pause::Reach::Fleet, 5).sign(&keys, &[0; 32]).raw().clone());
        let all = [
            (Ask::Status, r#"{"v":1,"ask":"status"}"#.to_owned()),
            (
                Ask::Inbox { agent: Some(scout()), state: Some("dead".into()), limit: Some(5) },
                r#"{"v":1,"ask":"inbox","agent":"scout","state":"dead","limit":5}"#.into(),
            ),
            (Ask::Inbox { agent: None, state: None, limit: None }, r#"{"v":1,"ask":"inbox"}"#.into()),
            (
                Ask::Pause { agent: None, reason: "a holiday".into() },
                r#"{"v":1,"ask":"pause","reason":"a holiday"}"#.into(),
            ),
            (Ask::Resume { agent: Some(scout()) }, r#"{"v":1,"ask":"resume","agent":"scout"}"#.into()),
            (
                Ask::Retry { agent: scout(), message: Some(id) },
                format!(r#"{{"v":1,"ask":"retry","agent":"scout","message":"{id}"}}"#),
            ),
            (
                Ask::Claim { agent: scout(), steal: true },
                r#"{"v":1,"ask":"claim","agent":"scout","steal":true}"#.into(),
            ),
            (Ask::Heed { event: word.clone() }, format!(r#"{{"v":1,"ask":"heed","event":{}}}"#, word.to_json())),
            (Ask::Cancel { agent: scout(), channel: None }, r#"{"v":1,"ask":"cancel","agent":"scout"}"#.into()),
            (Ask::Reload, r#"{"v":1,"ask":"reload"}"#.into()),
        ];
        for (ask, line) in all {
            let request = Request::new(ask);
            assert_eq!(text(&request), line);
            assert_eq!(Request::from_line(line.as_bytes()), Ok(request), "{line}");
        }
    }

    #[test]
    fn what_is_not_known_is_ignored_or_refused_in_words() {
        let more = br#"{"v":1,"ask":"claim","agent":"scout","colour":"red"}"#;
        let claim = Ask::Claim { agent: "scout".parse().expect("a name"), steal: false };
        assert_eq!(Request::from_line(more), Ok(Request::new(claim)));
        assert_eq!(Request::from_line(br#"{"v":2,"ask":"dance","how":{}}"#), Err(LineError::Version(2)));
        for bad in [&b"{"[..], b"", b"[1]", br#"{"ask":"status"}"#, br#"{"v":1,"ask":"dance"}"#, b"\xff\xfe"] {
            assert!(matches!(Request::from_line(bad), Err(LineError::Malformed(_))), "{bad:?}");
        }
        let bad_name = br#"{"v":1,"ask":"cancel","agent":"../etc"}"#;
        assert!(matches!(Request::from_line(bad_name), Err(LineError::Malformed(_))));
        let long = vec![b' '; limits::CONTROL_REQUEST_BYTES_MAX + 1];
        assert_eq!(Request::from_line(&long), Err(LineError::TooLong));
    }

    #[test]
    fn answers_have_a_frozen_form() {
        let key = PubKey([1; 32]);
        let agent = AgentStatus {
            name: "scout".into(),
            pubkey: Some(key),
            owner: None,
            backend: "goose".into(),
            state: RunState::Running,
            reason: String::new(),
            standing: Some(Standing {
                role: Role::Leads { epoch: Some(3) },
                lease: LeaseState::Held,
                said: None,
                claim: Some(Claim { instance: "m/1".into(), pid: 7, at: 9 }),
            }),
            links: vec![LinkStatus { relay: "ws://x".into(), state: LinkState::CatchingUp, reason: String::new() }],
            outbox: OutboxStatus { waiting: 1, refused: 0 },
            inbox: BTreeMap::from([("answered".into(), 2)]),
            turns: vec![TurnStatus { turn: "t".into(), message: EventId([2; 32]), channel: "h:x".into(), since: 5 }],
            paused: vec![Held { by: By::Provider, since: 3, reason: "quota".into() }],
            changed_at: Some(4),
        };
        let status = NodeStatus {
            pid: 7,
            version: "0.1.0".into(),
            started_at: 1,
            at: 2,
            relay: Some(RelayStatus { url: "ws://x".into(), pubkey: key }),
            agents: vec![agent],
        };
        let (key, id) = (key.to_hex(), EventId([2; 32]).to_hex());
        let line = format!(
            concat!(
                r#"{{"v":1,"answer":"status","pid":7,"version":"0.1.0","started_at":1,"at":2,"#,
                r#""relay":{{"url":"ws://x","pubkey":"{key}"}},"agents":[{{"name":"scout","pubkey":"{key}","#,
                r#""backend":"goose","state":"running","standing":{{"role":{{"leads":{{"epoch":3}}}},"lease":"held","#,
                r#""claim":{{"instance":"m/1","pid":7,"at":9}}}},"#,
                r#""links":[{{"relay":"ws://x","state":"catching_up"}}],"outbox":{{"waiting":1,"refused":0}},"#,
                r#""inbox":{{"answered":2}},"turns":[{{"turn":"t","message":"{id}","channel":"h:x","since":5}}],"#,
                r#""paused":[{{"by":"provider","since":3,"reason":"quota"}}],"changed_at":4}}]}}"#
            ),
            key = key,
            id = id
        );
        let reply = Reply::new(Answer::Status(Box::new(status)));
        assert_eq!(text(&reply), line);
        assert_eq!(serde_json::from_str::<Reply>(&line).expect("it reads"), reply);
        for (answer, line) in [
            (Answer::Refused { why: "no".into() }, r#"{"v":1,"answer":"refused","why":"no"}"#),
            (
                Answer::Done { outcomes: vec![Outcome { agent: "a".into(), is_done: true, text: "paused".into() }] },
                r#"{"v":1,"answer":"done","outcomes":[{"agent":"a","is_done":true,"text":"paused"}]}"#,
            ),
            (Answer::Inbox { messages: Vec::new() }, r#"{"v":1,"answer":"inbox","messages":[]}"#),
        ] {
            assert_eq!(text(&Reply::new(answer)), line);
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::from_line(&line);
        }
    }
}
