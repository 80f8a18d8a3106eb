//! What an owner sees of harnesses (NIP-AO): the other side of [`crate::frames`].
//!
//! Job: give each item once and in order, say how many are missing, and read out of raw frames what a person wants to
//! see. Lives as long as somebody watches.
//! Must not: believe what a frame says about another agent (the caller checks who sealed it), or take silence for an
//! end.

use std::collections::BTreeMap;

use serde_json::Value;
use skep_proto::agent::PayloadError;
use skep_proto::agent::control::ControlResult;
use skep_proto::agent::telemetry::{
    Authorization, Batch, LeadershipStatus, Liveness, MessageStatus, Progress, SessionResolved, Telemetry,
    TelemetryKind, TurnEnded, TurnStarted,
};
use skep_proto::time::Moment;
use skep_proto::{PubKey, limits};

/// What a frame brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    Item(Box<Item>),
    /// So many items of this agent's harness never came, between the one before and the one after.
    Lost {
        agent: PubKey,
        count: u64,
    },
}

/// One item of telemetry.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub agent: PubKey,
    /// The launch of the harness; `""` when it does not say.
    pub instance: String,
    pub telemetry: Telemetry,
    pub shown: Shown,
}

/// What an item says to a person. Every text in it is untrusted.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    TurnStarted(TurnStarted),
    Session(SessionResolved),
    /// A piece of the reply.
    Text(String),
    Thought(String),
    /// A tool call began or changed; an update tells only what changed.
    Tool {
        id: String,
        title: Option<String>,
        status: Option<String>,
    },
    /// The backend asks for a permission to do this.
    Asks(String),
    /// How a permission request ended.
    Permission(Authorization),
    TurnEnded {
        is_error: bool,
        ended: TurnEnded,
    },
    Alive(Liveness),
    Leadership(LeadershipStatus),
    Message(MessageStatus),
    /// The agent's own word on where its turn stands.
    Progress(Progress),
    Control(ControlResult),
    /// A frame between harness and program that says nothing to a person, or an item of a kind not known here.
    Other,
}

/// Where a harness is in its count.
#[derive(Debug, Clone, Copy)]
struct Place {
    next: u64,
    last_at: Moment,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Watch {
    harnesses: BTreeMap<(PubKey, String), Place>,
}

impl Watch {
    /// A frame that was opened, of the agent that sealed it. What was seen before is left out.
    pub fn take(&mut self, agent: PubKey, frame: Telemetry) -> Result<Vec<Seen>, PayloadError> {
        let instance = frame.instance_id.clone().unwrap_or_default();
        let (items, own) = if frame.kind == TelemetryKind::Batch {
            let own = (frame.seq, frame.timestamp);
            (frame.payload.parse::<Batch>()?.events, Some(own))
        } else {
            (vec![frame], None)
        };
        let mut out = Vec::new();
        for telemetry in items {
            if self.count(agent, &instance, telemetry.seq, telemetry.timestamp, &mut out) {
                let shown = read(&telemetry);
                out.push(Seen::Item(Box::new(Item { agent, instance: instance.clone(), telemetry, shown })));
            }
        }
        // A batch has a number of its own, after its items.
        if let Some((seq, at)) = own {
            self.count(agent, &instance, seq, at, &mut out);
        }
        Ok(out)
    }

    /// Several frames that came in no order, as stored ones do.
    pub fn take_all(&mut self, mut frames: Vec<(PubKey, Telemetry)>) -> Vec<Seen> {
        frames.sort_by_key(|(_, frame)| (frame.timestamp, frame.seq));
        frames.into_iter().flat_map(|(agent, frame)| self.take(agent, frame).unwrap_or_default()).collect()
    }

    /// Whether this number is new. What is missing before it is told.
    fn count(&mut self, agent: PubKey, instance: &str, seq: u64, at: Moment, out: &mut Vec<Seen>) -> bool {
        let key = (agent, instance.to_owned());
        if let Some(place) = self.harnesses.get_mut(&key) {
            // A harness that does not name its launches begins its numbers anew, at a later time.
            let is_anew = instance.is_empty() && seq < place.next && at > place.last_at;
            if seq < place.next && !is_anew {
                return false;
            }
            if seq > place.next {
                out.push(Seen::Lost { agent, count: seq - place.next });
            }
            *place = Place { next: seq.saturating_add(1), last_at: at };
            return true;
        }
        if self.harnesses.len() >= limits::WATCHED_HARNESSES_MAX {
            let oldest = self.harnesses.iter().min_by_key(|(_, place)| place.last_at).map(|(key, _)| key.clone());
            oldest.map(|oldest| self.harnesses.remove(&oldest));
        }
        self.harnesses.insert(key, Place { next: seq.saturating_add(1), last_at: at });
        true
    }
}

/// What an item says to a person.
fn read(item: &Telemetry) -> Shown {
    let payload = &item.payload;
    let read = match &item.kind {
        TelemetryKind::AcpRead => payload.parse().ok().map(|json: Value| of_program(&json)),
        TelemetryKind::TurnStarted => payload.parse().ok().map(Shown::TurnStarted),
        TelemetryKind::SessionResolved => payload.parse().ok().map(Shown::Session),
        TelemetryKind::TurnCompleted => payload.parse().ok().map(|ended| Shown::TurnEnded { is_error: false, ended }),
        TelemetryKind::TurnError => payload.parse().ok().map(|ended| Shown::TurnEnded { is_error: true, ended }),
        TelemetryKind::TurnLiveness => payload.parse().ok().map(Shown::Alive),
        TelemetryKind::LeadershipStatus => payload.parse().ok().map(Shown::Leadership),
        TelemetryKind::MessageState => payload.parse().ok().map(Shown::Message),
        TelemetryKind::Progress => payload.parse().ok().map(Shown::Progress),
        TelemetryKind::ControlResult => payload.parse().ok().map(Shown::Control),
        TelemetryKind::PermissionTerminal => item.authorization.clone().map(Shown::Permission),
        TelemetryKind::AcpWrite | TelemetryKind::Batch | TelemetryKind::Unknown(_) => None,
    };
    read.unwrap_or(Shown::Other)
}

/// A frame of a program: of ACP, or a model server's answer.
fn of_program(json: &Value) -> Shown {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let params = &json["params"];
    let update = &params["update"];
    let chunk = || text(&update["content"]["text"]);
    let read = match (json["method"].as_str(), update["sessionUpdate"].as_str()) {
        (Some("session/request_permission"), _) => text(&params["toolCall"]["title"]).map(Shown::Asks),
        (Some("session/update"), Some("agent_message_chunk")) => chunk().map(Shown::Text),
        (Some("session/update"), Some("agent_thought_chunk")) => chunk().map(Shown::Thought),
        (Some("session/update"), Some("tool_call" | "tool_call_update")) => text(&update["toolCallId"])
            .map(|id| Shown::Tool { id, title: text(&update["title"]), status: text(&update["status"]) }),
        (None, None) if json["role"] == "assistant" => of_model(json),
        _ => None,
    };
    read.unwrap_or(Shown::Other)
}

/// The message of a model server: what it says, or else the first tool that it calls.
fn of_model(message: &Value) -> Option<Shown> {
    let content = message["content"].as_str().filter(|text| !text.is_empty());
    let call = &message["tool_calls"][0];
    let of_call = || {
        let name = call["function"]["name"].as_str()?.to_owned();
        let id = call["id"].as_str().unwrap_or_default().to_owned();
        Some(Shown::Tool { id, title: Some(name), status: None })
    };
    content.map(|text| Shown::Text(text.to_owned())).or_else(of_call)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Frames, Observation};
    use proptest::prelude::*;
    use skep_proto::agent::telemetry::Payload;

    const AGENT: PubKey = PubKey([1; 32]);

    fn observation(kind: TelemetryKind, json: &str) -> Observation {
        let payload = Payload::raw(json);
        Observation { kind, channel_id: None, session_id: None, turn_id: None, authorization: None, payload }
    }

    fn frame(frames: &mut Frames, at: u64) -> Telemetry {
        Telemetry::from_json(&frames.poll_frame(Moment(at)).expect("a frame")).expect("telemetry")
    }

    fn shown(kind: TelemetryKind, json: &str) -> Shown {
        let mut frames = Frames::new(None, 0);
        frames.push(Moment(0), observation(kind, json));
        match Watch::default().take(AGENT, frame(&mut frames, 0)).expect("a frame").pop() {
            Some(Seen::Item(item)) => item.shown,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_person_wants_to_see_is_read_out_of_raw_frames() {
        let update = |json: &str| format!(r#"{{"method":"session/update","params":{{"update":{json}}}}}"#);
        let chunk = |kind: &str| update(&format!(r#"{{"sessionUpdate":"{kind}","content":{{"text":"hi"}}}}"#));
        let call = update(r#"{"sessionUpdate":"tool_call","toolCallId":"1","title":"Write","status":"pending"}"#);
        let done = update(r#"{"sessionUpdate":"tool_call_update","toolCallId":"1","status":"completed"}"#);
        let asks = r#"{"method":"session/request_permission","params":{"toolCall":{"title":"Write x"}}}"#;
        let tool = |title: Option<&str>, status: &str| Shown::Tool {
            id: "1".into(),
            title: title.map(Into::into),
            status: Some(status.into()),
        };
        for (json, expected) in [
            (chunk("agent_message_chunk"), Shown::Text("hi".into())),
            (chunk("agent_thought_chunk"), Shown::Thought("hi".into())),
            (chunk("plan"), Shown::Other),
            (call, tool(Some("Write"), "pending")),
            (done, tool(None, "completed")),
            (asks.into(), Shown::Asks("Write x".into())),
            (r#"{"role":"assistant","content":"whole"}"#.into(), Shown::Text("whole".into())),
            ("[1]".into(), Shown::Other),
            ("not json".into(), Shown::Other),
        ] {
            assert_eq!(shown(TelemetryKind::AcpRead, &json), expected, "{json}");
        }
        assert_eq!(shown(TelemetryKind::TurnStarted, "{}"), Shown::Other, "not what it should be");
        assert_eq!(shown(TelemetryKind::from("news"), "{}"), Shown::Other);
    }

    #[test]
    fn a_lost_frame_is_a_gap_and_a_double_is_left_out() {
        let mut frames = Frames::new(None, 100).of_instance("a");
        let mut made = Vec::new();
        for at in 0..4 {
            frames.push(Moment(at * 1_000), observation(TelemetryKind::AcpRead, "{}"));
            frames.push(Moment(at * 1_000), observation(TelemetryKind::AcpRead, "{}"));
            made.push(frame(&mut frames, at * 1_000));
        }
        let mut watch = Watch::default();
        let mut take = |n: usize| watch.take(AGENT, made[n].clone()).expect("a frame");
        assert_eq!(take(0).len(), 2);
        assert_eq!(take(0), [], "a double");
        // Two items and the number of their batch.
        assert_eq!(take(2)[0], Seen::Lost { agent: AGENT, count: 3 });
        assert_eq!(take(1), [], "too late");
        assert_eq!(take(3).len(), 2);
    }

    #[test]
    fn launches_of_one_agent_are_told_apart() {
        let mut watch = Watch::default();
        let mut one = Frames::new(None, 1_000).of_instance("one");
        let mut two = Frames::new(None, 1_002).of_instance("two");
        for at in 0..5 {
            for frames in [&mut one, &mut two] {
                frames.push(Moment(at * 1_000), observation(TelemetryKind::AcpRead, "{}"));
                let seen = watch.take(AGENT, frame(frames, at * 1_000)).expect("a frame");
                assert!(matches!(seen.as_slice(), [Seen::Item(_)]), "{seen:?}");
            }
        }
        // A harness that names no launches starts again, and its numbers with it.
        for (start, at) in [(7, 10), (0, 20_000)] {
            let mut frames = Frames::new(None, start);
            frames.push(Moment(at), observation(TelemetryKind::AcpRead, "{}"));
            assert_eq!(watch.take(AGENT, frame(&mut frames, at)).expect("a frame").len(), 1);
        }
    }

    #[test]
    fn harnesses_that_are_remembered_are_bounded() {
        let mut watch = Watch::default();
        for n in 0..limits::WATCHED_HARNESSES_MAX + 5 {
            let mut frames = Frames::new(None, 0).of_instance(&n.to_string());
            frames.push(Moment(n as u64), observation(TelemetryKind::AcpRead, "{}"));
            watch.take(AGENT, frame(&mut frames, n as u64)).expect("a frame");
        }
        assert_eq!(watch.harnesses.len(), limits::WATCHED_HARNESSES_MAX);
    }

    proptest! {
        #[test]
        fn every_item_is_seen_once_and_in_order_or_counted_as_lost(
            steps in proptest::collection::vec((1usize..4, any::<bool>(), any::<bool>()), 1..20),
        ) {
            let mut frames = Frames::new(None, 50).of_instance("x");
            let mut watch = Watch::default();
            let (mut seqs, mut lost, mut last) = (Vec::new(), 0, 0);
            for (at, (items, is_lost, is_doubled)) in steps.iter().enumerate() {
                let at = at as u64 * 1_000;
                (0..*items).for_each(|_| frames.push(Moment(at), observation(TelemetryKind::AcpRead, "{}")));
                let frame = frame(&mut frames, at);
                if *is_lost && !seqs.is_empty() {
                    continue;
                }
                last = frame.seq;
                for _ in 0..=usize::from(*is_doubled) {
                    for seen in watch.take(AGENT, frame.clone())? {
                        match seen {
                            Seen::Item(item) => seqs.push(item.telemetry.seq),
                            Seen::Lost { count, .. } => lost += count,
                        }
                    }
                }
            }
            prop_assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]));
            // Batches have numbers, too: what was neither seen nor lost is theirs.
            prop_assert!(seqs.len() as u64 + lost <= last - 50 + 1);
            prop_assert!(seqs.len() as u64 + lost + steps.len() as u64 > last - 50);
        }
    }
}
