//! What an observer frame of an agent says inside (NIP-AO): one item of telemetry, or a batch of them.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::PayloadError;
use crate::time::Moment;
use crate::{Draft, EventId, Kind, PubKey, Timestamp};

/// The sealed payload of a telemetry frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// Strictly increasing for a harness: a gap is a loss.
    pub seq: u64,
    pub timestamp: Moment,
    pub kind: TelemetryKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_index: Option<u32>,
    /// Ours, on what is sealed by itself, not on the items of a batch: which launch of the harness counts these numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<String>,
    /// Only about permission requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
    pub payload: Payload,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
            /// A word that is not known here, to be ignored.
            Unknown(String),
        }

        impl $name {
            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)+];

            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)+
                    Self::Unknown(word) => word,
                }
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)+
                    other => Self::Unknown(other.to_owned()),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Ok(Self::from(&*<std::borrow::Cow<'_, str> as serde::Deserialize>::deserialize(d)?))
            }
        }
    };
}
pub(super) use words;

words! {
    /// What an item is about.
    TelemetryKind {
        /// A raw frame from the program, unmodified.
        AcpRead = "acp_read",
        /// A raw frame to the program, unmodified.
        AcpWrite = "acp_write",
        TurnStarted = "turn_started",
        SessionResolved = "session_resolved",
        TurnCompleted = "turn_completed",
        TurnError = "turn_error",
        ControlResult = "control_result",
        PermissionTerminal = "permission_terminal",
        TurnLiveness = "turn_liveness",
        LeadershipStatus = "leadership_status",
        /// Ours: where a message in the inbox stands.
        MessageState = "message_state",
        /// Ours: the agent's own word on where its turn stands.
        Progress = "progress",
        Batch = "batch",
    }
}

words! {
    /// How a permission request ended.
    Reason {
        /// The owner's answer was written.
        Applied = "applied",
        TimedOut = "timed_out",
        Cancelled = "cancelled",
        /// By policy, without a card.
        Rejected = "rejected",
        Allowed = "allowed",
        /// The policy allows, but there was not exactly one way to allow once.
        AllowFailedClosed = "allow_failed_closed",
        /// Nobody knows whether the answer was read.
        Uncertain = "uncertain",
    }
}

/// Which permission request a frame is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    pub request_nonce: String,
    /// Whether the owner can still answer.
    pub actionable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// JSON as it was said, byte for byte.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Payload(Box<RawValue>);

impl Payload {
    /// A raw frame. What is not JSON is carried as a string, so that a watcher sees it too.
    pub fn raw(text: &str) -> Self {
        RawValue::from_string(text.trim().to_owned()).map_or_else(|_| Self::of(&text), Self)
    }

    /// Any of our own shapes.
    pub fn of<T: Serialize>(value: &T) -> Self {
        Self(serde_json::value::to_raw_value(value).expect("invariant: our payloads have string keys"))
    }

    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, PayloadError> {
        serde_json::from_str(self.0.get()).map_err(PayloadError::json)
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.get())
    }
}

/// Payload of `batch`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Batch {
    pub events: Vec<Telemetry>,
    /// Ours: items dropped since the harness started, because nobody could be told fast enough.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
}

/// Payload of `turn_started`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnStarted {
    pub triggering_event_ids: Vec<EventId>,
    pub attempt: u32,
}

/// Payload of `session_resolved`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionResolved {
    pub is_new: bool,
    pub program: String,
    pub model: Option<String>,
    /// The git branch that its conversation works on, where it has a worktree of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// Payload of `turn_completed` (`stopReason`) and `turn_error` (with `error`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnEnded {
    pub stop_reason: super::metering::StopReason,
    pub elapsed_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Payload of `turn_liveness`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Liveness {
    pub elapsed_ms: u64,
    /// Since the backend last said anything: a turn that is green and idle is told apart from one that works.
    pub idle_ms: u64,
}

/// Payload of `leadership_status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeadershipStatus {
    pub instance_id: String,
    pub is_leader: bool,
}

/// Payload of `message_state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageStatus {
    pub event_id: EventId,
    /// A word of the inbox: `stored`, `queued`, `prompted`, `answered`, `refused`, `expired` or `dead`.
    pub state: String,
    /// Why it is there; `""`: in the ordinary way.
    #[serde(default)]
    pub reason: String,
    /// Turns that failed.
    #[serde(default)]
    pub attempts: u32,
    /// It waits because the agent begins no turns; `reason` says why.
    #[serde(default)]
    pub is_paused: bool,
}

/// Payload of `progress`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Untrusted.
    pub text: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Telemetry {
    pub fn from_json(text: &str) -> Result<Self, PayloadError> {
        super::check_size(text)?;
        serde_json::from_str(text).map_err(PayloadError::json)
    }

    pub fn to_json(&self) -> Result<String, PayloadError> {
        let text = serde_json::to_string(self).map_err(PayloadError::json)?;
        super::check_size(&text)?;
        Ok(text)
    }

    /// The items of a batch in their order, or the item itself.
    pub fn into_items(self) -> Result<Vec<Self>, PayloadError> {
        if self.kind == TelemetryKind::Batch { Ok(self.payload.parse::<Batch>()?.events) } else { Ok(vec![self]) }
    }
}

/// The envelope of a telemetry frame: agent to owner.
pub fn telemetry_draft(agent: &PubKey, owner: &PubKey, now: Timestamp, sealed: String) -> Draft {
    envelope(owner, agent, now, sealed, "telemetry")
}

pub(super) fn envelope(to: &PubKey, agent: &PubKey, now: Timestamp, sealed: String, frame: &str) -> Draft {
    Draft::new(Kind::AGENT_FRAME, now, sealed)
        .tag(["p", &to.to_hex()])
        .tag(["agent", &agent.to_hex()])
        .tag(["frame", frame])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::metering::StopReason;
    use crate::agent::testing::text;
    use proptest::prelude::*;

    fn item(seq: u64, kind: TelemetryKind, payload: Payload) -> Telemetry {
        Telemetry {
            seq,
            timestamp: Moment(1_782_936_663_213),
            kind,
            agent_index: None,
            instance_id: None,
            channel_id: Some("c".into()),
            session_id: None,
            turn_id: None,
            authorization: None,
            payload,
        }
    }

    #[test]
    fn the_wire_form_of_telemetry_is_frozen() {
        let mut read = item(3, TelemetryKind::AcpRead, Payload::raw("{\"b\" : 1.0, \"a\":\"\\u0041\"}\n"));
        read.agent_index = Some(0);
        read.authorization =
            Some(Authorization { request_nonce: "n".into(), actionable: false, reason: Some(Reason::TimedOut) });
        assert_eq!(
            text(&read.to_json()),
            concat!(
                r#"{"seq":3,"timestamp":"2026-07-01T20:11:03.213Z","kind":"acp_read","agentIndex":0,"channelId":"c","#,
                r#""authorization":{"requestNonce":"n","actionable":false,"reason":"timed_out"},"#,
                r#""payload":{"b" : 1.0, "a":"\u0041"}}"#
            ),
            "the raw frame is as it was said"
        );
        let batch = Batch { events: vec![item(1, TelemetryKind::TurnStarted, Payload::of(&()))], dropped: 7 };
        assert_eq!(
            text(&item(2, TelemetryKind::Batch, Payload::of(&batch)).to_json()),
            concat!(
                r#"{"seq":2,"timestamp":"2026-07-01T20:11:03.213Z","kind":"batch","channelId":"c","payload":"#,
                r#"{"events":[{"seq":1,"timestamp":"2026-07-01T20:11:03.213Z","kind":"turn_started","channelId":"c","#,
                r#""payload":null}],"dropped":7}}"#
            )
        );
    }

    #[test]
    fn the_payloads_of_our_own_kinds_are_frozen() {
        let id = EventId([0xab; 32]);
        for (payload, json) in [
            (
                Payload::of(&TurnStarted { triggering_event_ids: vec![id], attempt: 2 }),
                format!(r#"{{"triggeringEventIds":["{id}"],"attempt":2}}"#),
            ),
            (Payload::of(&Progress { text: "half".into() }), r#"{"text":"half"}"#.into()),
            (
                Payload::of(&SessionResolved { is_new: true, program: "goose 1.2".into(), model: None, branch: None }),
                r#"{"isNew":true,"program":"goose 1.2","model":null}"#.into(),
            ),
            (
                Payload::of(&TurnEnded { stop_reason: StopReason::Error, elapsed_ms: 5, error: Some("x".into()) }),
                r#"{"stopReason":"error","elapsedMs":5,"error":"x"}"#.into(),
            ),
            (Payload::of(&Liveness { elapsed_ms: 10_000, idle_ms: 3 }), r#"{"elapsedMs":10000,"idleMs":3}"#.into()),
            (
                Payload::of(&LeadershipStatus { instance_id: "i".into(), is_leader: true }),
                r#"{"instanceId":"i","isLeader":true}"#.into(),
            ),
        ] {
            assert_eq!(payload.as_str(), json);
        }
    }

    #[test]
    fn every_kind_has_its_word_and_unknown_ones_are_kept() {
        for kind in TelemetryKind::ALL {
            assert_eq!(TelemetryKind::from(kind.as_str()), *kind);
        }
        for reason in Reason::ALL {
            assert_eq!(Reason::from(reason.as_str()), *reason);
        }
        let json = r#"{"seq":0,"timestamp":"2026-07-01T20:11:03Z","kind":"moon_phase","agentIndex":null,"payload":1}"#;
        let read = Telemetry::from_json(json).expect("unknown kinds are read");
        assert_eq!(read.kind, TelemetryKind::Unknown("moon_phase".into()));
        assert!(Telemetry::from_json(&json.replace(",\"payload\":1", "")).is_err(), "payload is required");
        assert!(Telemetry::from_json(&json.replace("\"seq\":0,", "")).is_err(), "seq is required");
    }

    #[test]
    fn what_is_not_json_is_carried_as_text() {
        assert_eq!(Payload::raw("panicked at \"x\"").as_str(), r#""panicked at \"x\"""#);
        assert_eq!(Payload::raw("").as_str(), r#""""#);
    }

    #[test]
    fn a_batch_gives_its_items_in_order() {
        let events: Vec<_> = (0..3).map(|seq| item(seq, TelemetryKind::AcpWrite, Payload::raw("[]"))).collect();
        let batch = item(9, TelemetryKind::Batch, Payload::of(&Batch { events: events.clone(), dropped: 0 }));
        let json = text(&batch.to_json());
        assert!(!json.contains("dropped"));
        assert_eq!(Telemetry::from_json(&json).and_then(Telemetry::into_items), Ok(events));
        let bad = item(9, TelemetryKind::Batch, Payload::raw("{}"));
        assert!(bad.into_items().is_err());
    }

    #[test]
    fn the_envelope_is_a_telemetry_frame() {
        let (agent, owner) = (PubKey([1; 32]), PubKey([2; 32]));
        let draft = telemetry_draft(&agent, &owner, 5, "sealed".into());
        let expected = format!(r#"[["p","{owner}"],["agent","{agent}"],["frame","telemetry"]]"#);
        assert_eq!(serde_json::to_string(&draft.tags).expect("tags"), expected);
        assert_eq!((draft.kind, draft.created_at), (Kind::AGENT_FRAME, 5));
    }

    proptest! {
        #[test]
        fn every_item_survives_a_round_trip(
            seq: u64, ms in 0u64..4_000_000_000_000, word in "[a-z_]{1,12}", channel: Option<String>,
            payload in "\\PC{0,60}", reason in "[a-z_]{1,12}", actionable: bool,
        ) {
            let mut item = item(seq, TelemetryKind::from(&*word), Payload::raw(&payload));
            item.timestamp = Moment(ms);
            item.channel_id = channel;
            item.authorization = Some(Authorization {
                request_nonce: payload, actionable, reason: Some(Reason::from(&*reason)),
            });
            let json = item.to_json()?;
            prop_assert_eq!(Telemetry::from_json(&json), Ok(item));
        }
    }
}
