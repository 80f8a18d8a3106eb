//! What a turn metric says inside (NIP-AM): tokens and cost of one turn, and of its session so far.

use serde::{Deserialize, Deserializer, Serialize};

use super::PayloadError;
use crate::time::Moment;
use crate::{Draft, EventId, Kind, PubKey, RawEvent, Timestamp, limits, thread};

/// The sealed payload of a 44200. `None` is unknown; it is written as null and is never zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnMetric {
    /// The program that ran the turn, like `goose`.
    pub harness: String,
    /// The end of the turn.
    pub timestamp: Moment,
    /// The configured model; not what it was billed as.
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub channel_id: Option<String>,
    #[serde(default)]
    pub session_id: Option<String>,
    #[serde(default)]
    pub turn_id: Option<String>,
    /// Strictly increasing in a session.
    #[serde(default)]
    pub turn_seq: Option<u64>,
    /// Of this turn.
    #[serde(default, deserialize_with = "null_is_default")]
    pub turn: Tally,
    /// Of the session at the end of this turn. Needs `session_id` and `turn_seq`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cumulative: Option<Tally>,
    /// `false`: no baseline, so `turn` says nothing.
    #[serde(default = "yes", deserialize_with = "null_is_yes")]
    pub delta_reliable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Who billed it as what; only where that is known for sure.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_or_none")]
    pub pricing_identity: Option<PricingIdentity>,
    /// Ours: where the costs come from. Without it nobody knows, and readers keep them apart.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_or_none")]
    pub cost_basis: Option<CostBasis>,
    /// The messages that the turn was about.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "known_or_none")]
    pub triggering_event_ids: Vec<EventId>,
    /// The first message of the thread that they are in.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_or_none")]
    pub root_event_id: Option<EventId>,
    /// The task that the turn was charged to.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "known_or_none")]
    pub task: Option<String>,
}

/// Counters, of a turn or of a session so far.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// With cache reads and writes.
    #[serde(default)]
    pub input_tokens: Option<u64>,
    #[serde(default)]
    pub output_tokens: Option<u64>,
    /// As reported; never input plus output.
    #[serde(default)]
    pub total_tokens: Option<u64>,
    /// US dollars, finite and not negative. Advisory: not a bill.
    #[serde(default)]
    pub cost_usd: Option<f64>,
    /// Parts of the input; absent, not null, when unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_read_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    EndTurn,
    MaxTokens,
    Cancelled,
    Error,
    /// Also every word that NIP-AM does not know.
    #[serde(other)]
    Unknown,
}

/// What a turn was billed as, where that is certain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PricingIdentity {
    pub authority: Authority,
    pub model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_class: Option<String>,
}

/// Who sends the bill: the hosts that NIP-AM names, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Authority {
    #[serde(rename = "api.anthropic.com")]
    Anthropic,
    #[serde(rename = "api.openai.com")]
    OpenAi,
    #[serde(rename = "openrouter.ai")]
    OpenRouter,
}

/// Where a cost comes from. One metric has one basis: reported and estimated costs are never mixed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CostBasis {
    /// By the provider or the program.
    Reported,
    /// From a price table of this source and date (`2026-11-01`).
    Estimated { source: String, date: String },
}

impl Tally {
    /// Whether it says anything at all.
    pub fn is_observed(&self) -> bool {
        self.counts().iter().any(Option::is_some) || self.cost_usd.is_some()
    }

    /// The token counters: input, output, total, cache read, cache write.
    pub fn counts(&self) -> [Option<u64>; 5] {
        [self.input_tokens, self.output_tokens, self.total_tokens, self.cache_read_tokens, self.cache_write_tokens]
    }

    fn has_valid_cost(&self) -> bool {
        self.cost_usd.is_none_or(|usd| usd.is_finite() && usd >= 0.0)
    }
}

impl TurnMetric {
    /// Reads what was sealed. Fields that we do not know are ignored.
    pub fn from_json(text: &str) -> Result<Self, PayloadError> {
        super::check_size(text)?;
        let metric: Self = serde_json::from_str(text).map_err(PayloadError::json)?;
        metric.check()?;
        Ok(metric)
    }

    /// What is to be sealed.
    pub fn to_json(&self) -> Result<String, PayloadError> {
        self.check()?;
        let text = serde_json::to_string(self).map_err(PayloadError::json)?;
        super::check_size(&text)?;
        Ok(text)
    }

    /// The rules that the types do not hold by themselves.
    pub fn check(&self) -> Result<(), PayloadError> {
        if self.harness.is_empty() {
            return Err(PayloadError::Harness);
        }
        if self.cumulative.is_some() && (self.session_id.is_none() || self.turn_seq.is_none()) {
            return Err(PayloadError::Series);
        }
        if !self.turn.has_valid_cost() || self.cumulative.is_some_and(|tally| !tally.has_valid_cost()) {
            return Err(PayloadError::Cost);
        }
        if !self.turn.is_observed() && !self.cumulative.is_some_and(|tally| tally.is_observed()) {
            return Err(PayloadError::NothingObserved);
        }
        Ok(())
    }

    /// With the message that the turn was about, and the root of its thread.
    #[must_use]
    pub fn about(self, trigger: &RawEvent) -> Self {
        let root = thread::root_of(trigger).unwrap_or(trigger.id);
        Self { triggering_event_ids: vec![trigger.id], root_event_id: Some(root), ..self }
    }

    /// The envelope around the sealed payload. No `h` tag: how busy a channel is stays inside.
    pub fn draft(&self, agent: &PubKey, owner: &PubKey, sealed: String, expires_at: Option<Timestamp>) -> Draft {
        let draft = Draft::new(Kind::AGENT_METRIC, self.timestamp.secs(), sealed)
            .tag(["p", &owner.to_hex()])
            .tag(["agent", &agent.to_hex()]);
        match expires_at {
            Some(at) => draft.tag(["expiration", &at.to_string()]),
            None => draft,
        }
    }
}

fn yes() -> bool {
    true
}

fn null_is_yes<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or(true))
}

fn null_is_default<'de, D: Deserializer<'de>>(d: D) -> Result<Tally, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// What we do not understand is as if it were not there: a newer word must not cost the counters beside it.
fn known_or_none<'de, D: Deserializer<'de>, T: serde::de::DeserializeOwned + Default>(d: D) -> Result<T, D::Error> {
    let value = serde_json::Value::deserialize(d)?;
    Ok(T::deserialize(value).unwrap_or_default())
}

const _: () = assert!(limits::SEALED_BYTES_MAX == u16::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::{metric, text};
    use proptest::prelude::*;

    fn sample() -> TurnMetric {
        TurnMetric {
            harness: "goose".into(),
            timestamp: Moment(1_782_936_663_213),
            model: Some("claude-sonnet-4-5".into()),
            channel_id: None,
            session_id: Some("s-1".into()),
            turn_id: Some("t-9".into()),
            turn_seq: Some(17),
            turn: Tally { input_tokens: Some(1_234), output_tokens: Some(567), ..Tally::default() },
            cumulative: Some(Tally {
                input_tokens: Some(45_210),
                output_tokens: Some(9_876),
                total_tokens: Some(55_086),
                cost_usd: Some(0.41),
                cache_read_tokens: Some(0),
                cache_write_tokens: None,
            }),
            delta_reliable: true,
            stop_reason: Some(StopReason::EndTurn),
            pricing_identity: Some(PricingIdentity {
                authority: Authority::Anthropic,
                model: "claude-sonnet-4-5".into(),
                cache_class: None,
            }),
            cost_basis: Some(CostBasis::Reported),
            triggering_event_ids: Vec::new(),
            root_event_id: None,
            task: None,
        }
    }

    #[test]
    fn the_wire_form_of_a_metric_is_frozen() {
        assert_eq!(
            text(&sample().to_json()),
            concat!(
                r#"{"harness":"goose","timestamp":"2026-07-01T20:11:03.213Z","model":"claude-sonnet-4-5","#,
                r#""channelId":null,"sessionId":"s-1","turnId":"t-9","turnSeq":17,"#,
                r#""turn":{"inputTokens":1234,"outputTokens":567,"totalTokens":null,"costUsd":null},"#,
                r#""cumulative":{"inputTokens":45210,"outputTokens":9876,"totalTokens":55086,"costUsd":0.41,"#,
                r#""cacheReadTokens":0},"deltaReliable":true,"stopReason":"end_turn","#,
                r#""pricingIdentity":{"authority":"api.anthropic.com","model":"claude-sonnet-4-5"},"#,
                r#""costBasis":{"kind":"reported"}}"#
            )
        );
        let about = TurnMetric {
            triggering_event_ids: vec![EventId([1; 32])],
            root_event_id: Some(EventId([2; 32])),
            ..sample()
        };
        let (json, ids) = (text(&about.to_json()), ["01".repeat(32), "02".repeat(32)]);
        let tail = format!(r#","triggeringEventIds":["{}"],"rootEventId":"{}"}}"#, ids[0], ids[1]);
        assert!(json.ends_with(&tail), "{json}");
        assert_eq!(TurnMetric::from_json(&json), Ok(about));
        let estimated = CostBasis::Estimated { source: "list".into(), date: "2026-11-01".into() };
        let json = serde_json::to_string(&estimated).expect("it is written");
        assert_eq!(json, r#"{"kind":"estimated","source":"list","date":"2026-11-01"}"#);
    }

    #[test]
    fn the_least_metric_is_read_with_the_defaults_of_the_wire() {
        let least = r#"{"harness":"x","timestamp":"2026-07-01T20:11:03Z","turn":{"inputTokens":0},"new":[1]}"#;
        let read = TurnMetric::from_json(least).expect("it is whole");
        assert!(read.delta_reliable);
        assert_eq!(read.turn, Tally { input_tokens: Some(0), ..Tally::default() });
        assert_eq!((read.stop_reason, read.cumulative, read.turn_seq), (None, None, None));
        let nulls = least.replace("\"new\":[1]", "\"cumulative\":null,\"deltaReliable\":null,\"pricingIdentity\":null");
        assert_eq!(TurnMetric::from_json(&nulls), Ok(read));
    }

    #[test]
    fn unknown_words_are_read_as_unknown_and_cost_no_counter() {
        let json = text(&sample().to_json())
            .replace("\"end_turn\"", "\"solar_flare\"")
            .replace("api.anthropic.com", "api.anthropic.com:443")
            .replace("\"reported\"", "\"guessed\"");
        let read = TurnMetric::from_json(&json).expect("the counters are valid");
        assert_eq!(read.stop_reason, Some(StopReason::Unknown));
        assert_eq!((read.pricing_identity, read.cost_basis), (None, None));
        assert_eq!(read.turn, sample().turn);
    }

    #[test]
    fn what_the_rules_forbid_is_neither_written_nor_read() {
        type Change = fn(&mut TurnMetric);
        let cases: [(Change, PayloadError); 6] = [
            (|m| m.harness.clear(), PayloadError::Harness),
            (|m| m.session_id = None, PayloadError::Series),
            (|m| m.turn_seq = None, PayloadError::Series),
            (|m| m.turn.cost_usd = Some(-0.01), PayloadError::Cost),
            (|m| m.turn.cost_usd = Some(f64::NAN), PayloadError::Cost),
            (|m| (m.turn, m.cumulative) = (Tally::default(), Some(Tally::default())), PayloadError::NothingObserved),
        ];
        for (change, error) in cases {
            let mut bad = sample();
            change(&mut bad);
            assert_eq!(bad.to_json(), Err(error.clone()));
            let json = serde_json::to_string(&bad).expect("it is written");
            let is_nan = bad.turn.cost_usd.is_some_and(f64::is_nan);
            assert!(is_nan || TurnMetric::from_json(&json) == Err(error), "{json}");
        }
    }

    #[test]
    fn numbers_that_are_no_counters_and_texts_that_are_too_long_are_refused() {
        let good = text(&sample().to_json());
        for bad in ["-1", "1.5", "\"1\"", "18446744073709551616"] {
            assert!(TurnMetric::from_json(&good.replace("1234", bad)).is_err(), "{bad}");
        }
        assert!(TurnMetric::from_json(&good.replace("0.41", "1e999")).is_err());
        let mut long = sample();
        long.model = Some("x".repeat(limits::SEALED_BYTES_MAX));
        assert_eq!(long.to_json(), Err(PayloadError::Size));
        let padded = format!("{good}{}", " ".repeat(limits::SEALED_BYTES_MAX));
        assert_eq!(TurnMetric::from_json(&padded), Err(PayloadError::Size));
    }

    #[test]
    fn the_envelope_has_owner_and_agent_and_no_channel() {
        let (agent, owner) = (PubKey([1; 32]), PubKey([2; 32]));
        let draft = sample().draft(&agent, &owner, "sealed".into(), Some(1_800_000_000));
        assert_eq!((draft.kind, draft.created_at), (Kind::AGENT_METRIC, 1_782_936_663));
        let expected = format!(r#"[["p","{owner}"],["agent","{agent}"],["expiration","1800000000"]]"#);
        assert_eq!(serde_json::to_string(&draft.tags).expect("tags"), expected);
    }

    proptest! {
        #[test]
        fn every_metric_survives_a_round_trip(metric in metric()) {
            match metric.to_json() {
                Ok(json) => prop_assert_eq!(TurnMetric::from_json(&json), Ok(metric)),
                Err(error) => prop_assert_eq!(Err(error), metric.check()),
            }
        }
    }
}
