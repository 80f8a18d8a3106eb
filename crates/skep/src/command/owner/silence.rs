//! When a backend's silence is worth a line: rarely, and not while it waits for its owner.

use std::collections::BTreeMap;

use skep_node::owner::watch::{Item, Shown};
use skep_proto::PubKey;

/// A backend that says nothing for this long is mentioned, and again each time that it has doubled.
const IDLE_MS: u64 = 30_000;

/// The silences of all turns that are watched.
#[derive(Default)]
pub struct Silences(BTreeMap<(PubKey, Option<String>), Turn>);

struct Turn {
    /// From how many milliseconds on it is mentioned next.
    from_ms: u64,
    /// Its backend asked, and was not answered.
    is_asking: bool,
}

impl Silences {
    /// Takes note of what was seen; `false`: it is one more sign of a silence that needs no line.
    pub fn is_news(&mut self, item: &Item) -> bool {
        let key = (item.agent, item.telemetry.turn_id.clone());
        let alive = match &item.shown {
            Shown::Alive(alive) => alive,
            Shown::TurnEnded { .. } => {
                self.0.remove(&key);
                return true;
            }
            Shown::Asks(_) | Shown::Permission(_) => {
                let is_asking = matches!(item.shown, Shown::Asks(_));
                self.0.entry(key).or_insert(Turn::NEW).is_asking = is_asking;
                return true;
            }
            _ => return true,
        };
        // Of turns whose end was not seen, at most one an agent is kept: the last.
        if !self.0.contains_key(&key) {
            self.0.retain(|(agent, _), turn| *agent != item.agent || turn.is_asking);
        }
        let turn = self.0.entry(key).or_insert(Turn::NEW);
        if turn.is_asking || alive.idle_ms < turn.from_ms {
            return false;
        }
        turn.from_ms = alive.idle_ms.saturating_mul(2);
        true
    }
}

impl Turn {
    const NEW: Self = Self { from_ms: IDLE_MS, is_asking: false };
}

#[cfg(test)]
mod tests {
    use skep_proto::agent::telemetry::{Authorization, Liveness, Payload, Telemetry, TelemetryKind};
    use skep_proto::time::Moment;

    use super::*;

    fn item(turn: &str, shown: Shown) -> Item {
        let telemetry = Telemetry {
            seq: 1,
            timestamp: Moment(0),
            kind: TelemetryKind::TurnLiveness,
            agent_index: None,
            instance_id: None,
            channel_id: None,
            session_id: None,
            turn_id: Some(turn.into()),
            authorization: None,
            payload: Payload::of(&serde_json::json!({})),
        };
        Item { agent: PubKey([1; 32]), instance: String::new(), telemetry, shown }
    }

    #[test]
    fn a_silence_is_news_when_it_has_doubled_and_not_while_the_owner_is_asked() {
        let mut silences = Silences::default();
        let mut after = |turn: &str, secs: u64| {
            let alive = Liveness { elapsed_ms: secs * 1_000, idle_ms: secs * 1_000 };
            silences.is_news(&item(turn, Shown::Alive(alive)))
        };
        let news = |after: &mut dyn FnMut(&str, u64) -> bool, turn: &str, secs: &[u64]| -> Vec<u64> {
            secs.iter().copied().filter(|secs| after(turn, *secs)).collect()
        };
        assert_eq!(news(&mut after, "a", &[10, 20, 30, 40, 50, 60, 70]), [30, 60]);
        assert_eq!(news(&mut after, "b", &[20, 30]), [30], "another turn, another silence");
        assert!(silences.is_news(&item("b", Shown::Asks("may I".into()))));
        let alive = || Shown::Alive(Liveness { elapsed_ms: 0, idle_ms: 600_000 });
        assert!(!silences.is_news(&item("b", alive())), "it waits for an answer");
        let answered = Authorization { request_nonce: String::new(), actionable: false, reason: None };
        assert!(silences.is_news(&item("b", Shown::Permission(answered))));
        assert!(silences.is_news(&item("b", alive())));
        assert!(silences.0.len() == 1, "turns that are over are forgotten");
    }
}
