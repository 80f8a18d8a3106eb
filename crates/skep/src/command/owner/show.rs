//! What happens to a message, for a person and for a program.

use serde_json::{Value, json};
use skep_node::owner::Directory;
use skep_node::owner::fate::Card;
use skep_node::owner::watch::{Item, Shown};
use skep_proto::agent::telemetry::Reason;
use skep_proto::{PubKey, Timestamp};

/// Characters of an id that are shown where a line is about one.
const ID_CHARS: usize = 12;

/// Characters of a request's name that are shown: enough to type, and to tell apart what is open at once.
const NONCE_CHARS: usize = 8;

/// The beginning of a request's name.
pub fn short_nonce(nonce: &str) -> String {
    nonce.chars().take(NONCE_CHARS).collect()
}

/// A channel as agents name it: `h:team` as it is, ids in it cut.
pub fn channel(name: &str) -> String {
    let is_id = |part: &str| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let cut = |part: &str| if is_id(part) { format!("{}…", &part[..ID_CHARS]) } else { part.to_owned() };
    name.split(':').map(cut).collect::<Vec<_>>().join(":")
}

/// `4 min 10 s`.
pub fn left(expires_at: Timestamp, now: Timestamp) -> String {
    let secs = expires_at.saturating_sub(now);
    if secs >= 60 { format!("{} min {} s", secs / 60, secs % 60) } else { format!("{secs} s") }
}

/// Milliseconds as a person says them.
pub fn duration(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        10_000..120_000 => format!("{} s", ms / 1_000),
        _ => format!("{} min", ms / 60_000),
    }
}

/// How a request ended, in words.
pub fn reason(reason: &Reason) -> &str {
    match reason {
        Reason::Applied => "the owner's answer was given",
        Reason::TimedOut => "nobody answered in time, so it was rejected",
        Reason::Cancelled => "its turn ended",
        Reason::Rejected => "rejected by the rules",
        Reason::Allowed => "allowed by the rules",
        Reason::AllowFailedClosed => "rejected: there was no way to allow it once",
        Reason::Uncertain => "nobody knows whether the answer was read",
        Reason::Unknown(word) => word,
    }
}

/// One line about an item; `None` for texts, which run on, and for what says nothing to a person.
pub fn line(shown: &Shown) -> Option<String> {
    Some(match shown {
        Shown::TurnStarted(started) if started.attempt > 1 => format!("▶ turn begins, attempt {}", started.attempt),
        Shown::TurnStarted(_) => "▶ turn begins".into(),
        Shown::Session(session) => {
            let model = session.model.as_ref().map(|model| format!(", model {model}")).unwrap_or_default();
            let verb = if session.is_new { "new session" } else { "session taken up" };
            let branch = session.branch.as_ref().map(|branch| format!(", on {branch}")).unwrap_or_default();
            format!("· {verb}: {}{model}{branch}", session.program)
        }
        Shown::Tool { title, status, .. } => match (title, status.as_deref()) {
            (Some(title), None | Some("pending")) => format!("⚙ {title}"),
            (Some(title), Some(status)) => format!("⚙ {title}: {status}"),
            (None, Some(status @ ("completed" | "failed"))) => format!("⚙ {status}"),
            (None, _) => return None,
        },
        Shown::Permission(authorization) => {
            format!("🔐 {}", authorization.reason.as_ref().map_or("asked", reason))
        }
        Shown::TurnEnded { is_error: true, ended } => {
            format!("✗ turn failed after {}: {}", duration(ended.elapsed_ms), ended.error.as_deref().unwrap_or("?"))
        }
        Shown::TurnEnded { is_error: false, ended } => {
            let how = serde_json::to_value(ended.stop_reason).unwrap_or_default();
            let how = how.as_str().filter(|how| *how != "end_turn").map(|how| format!(", {how}")).unwrap_or_default();
            format!("■ turn ends after {}{how}", duration(ended.elapsed_ms))
        }
        Shown::Control(result) => format!("↩ {}: {}", result.r#type, result.status.as_str()),
        Shown::Message(status) if status.is_paused => format!("… message waits, paused {}", status.reason),
        Shown::Message(status) if !status.reason.is_empty() => {
            format!("… message {}: {}", status.state, status.reason)
        }
        Shown::Progress(progress) => format!("» {}", progress.text),
        Shown::Leadership(status) if status.is_leader => format!("★ instance {} leads", short(&status.instance_id)),
        Shown::Leadership(status) => format!("☆ instance {} follows", short(&status.instance_id)),
        Shown::Alive(alive) => format!("… no sign of its backend for {}", duration(alive.idle_ms)),
        Shown::Text(_) | Shown::Thought(_) | Shown::Asks(_) | Shown::Message(_) | Shown::Other => return None,
    })
}

fn short(instance: &str) -> String {
    instance.chars().take(8).collect()
}

/// A live item as JSON: what it means, not how it was sent. `None`: nothing to a reader of answers.
pub fn live_json(directory: &Directory, item: &Item) -> Option<Value> {
    let mut json = match &item.shown {
        Shown::Text(text) => json!({ "type": "text", "text": text }),
        Shown::Thought(text) => json!({ "type": "thought", "text": text }),
        Shown::Tool { id, title, status } => json!({ "type": "tool", "id": id, "title": title, "status": status }),
        Shown::Progress(progress) => json!({ "type": "progress", "text": progress.text }),
        Shown::TurnStarted(started) => json!({ "type": "turn_started", "attempt": started.attempt }),
        Shown::TurnEnded { is_error, ended } => {
            json!({ "type": "turn_ended", "is_error": is_error, "stop": ended.stop_reason, "error": ended.error })
        }
        _ => return None,
    };
    name(&mut json, directory, &item.agent);
    Some(json)
}

pub fn card_json(directory: &Directory, agent: &PubKey, card: &Card) -> Value {
    let mut json = json!({ "type": "permission", "event": card.event, "text": card.text });
    if let (Value::Object(json), Ok(Value::Object(tag))) = (&mut json, serde_json::to_value(&card.tag)) {
        json.extend(tag);
    }
    name(&mut json, directory, agent);
    json
}

/// Says whose it is.
pub fn name(json: &mut Value, directory: &Directory, agent: &PubKey) {
    json["agent"] = json!(agent);
    json["name"] = json!(directory.label(agent));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (ms, text) in [(0, "0.0 s"), (1_540, "1.5 s"), (59_999, "59 s"), (600_000, "10 min")] {
            assert_eq!(duration(ms), text);
        }
        assert_eq!((left(370, 100), left(100, 370)), ("4 min 30 s".into(), "0 s".into()));
    }
}
