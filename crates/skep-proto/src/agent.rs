//! Agent events: turn metrics (44200, NIP-AM) and observer frames (24200, NIP-AO). Here the envelopes, which a relay
//! checks without a key; in the modules below what is sealed inside.

pub mod control;
pub mod metering;
pub mod permission;
pub mod telemetry;

use crate::{PubKey, RawEvent, limits, seal};

/// Why a sealed payload is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    #[error("the payload is longer than {} bytes", limits::SEALED_BYTES_MAX)]
    Size,
    #[error("the payload is not what it should be: {0}")]
    Json(String),
    #[error("a metric needs the name of its harness")]
    Harness,
    #[error("cumulative counters need sessionId and turnSeq")]
    Series,
    #[error("a cost is a finite number, not negative")]
    Cost,
    #[error("a metric in which nothing was observed says nothing")]
    NothingObserved,
}

impl PayloadError {
    fn json(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

fn check_size(text: &str) -> Result<(), PayloadError> {
    if text.len() > limits::SEALED_BYTES_MAX { Err(PayloadError::Size) } else { Ok(()) }
}

/// Why an envelope is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("needs exactly one p tag with a public key")]
    Recipient,
    #[error("needs exactly one agent tag with a public key")]
    Agent,
    #[error("the agent tag must be the author")]
    NotTheAuthor,
    #[error("must not carry an h tag")]
    Channel,
    #[error("needs exactly one frame tag")]
    Frame,
    #[error("the content is not a NIP-44 v2 payload")]
    Content,
    #[error("author and recipient are not an agent and its owner")]
    Direction,
}

/// Who a metric is from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub agent: PubKey,
    pub owner: PubKey,
}

/// Checks the envelope of a 44200. That `owner` owns `agent` is for the registry to say.
pub fn metric(event: &RawEvent) -> Result<Metric, EnvelopeError> {
    let (owner, agent) = parties(event)?;
    if agent != event.pubkey {
        return Err(EnvelopeError::NotTheAuthor);
    }
    if event.tags.named("h").next().is_some() {
        return Err(EnvelopeError::Channel);
    }
    if !seal::is_plausible(&event.content) {
        return Err(EnvelopeError::Content);
    }
    Ok(Metric { agent, owner })
}

/// Which way an observer frame goes; derived from the keys, never from its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Agent to owner.
    Telemetry,
    /// Owner to agent.
    Control,
}

/// An observer frame as its envelope says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub direction: Direction,
    pub agent: PubKey,
    pub owner: PubKey,
    /// Whether the `frame` tag is one that NIP-AO names. Others are accepted and dropped.
    pub known: bool,
}

/// Checks the envelope of a 24200. That `owner` owns `agent` is for the registry to say.
pub fn frame(event: &RawEvent) -> Result<Frame, EnvelopeError> {
    let (recipient, agent) = parties(event)?;
    let name = event.tags.single("frame").ok_or(EnvelopeError::Frame)?;
    let (direction, owner, named) = if event.pubkey == agent && recipient != agent {
        (Direction::Telemetry, recipient, name == "telemetry")
    } else if recipient == agent && event.pubkey != agent {
        (Direction::Control, event.pubkey, name == "control")
    } else {
        return Err(EnvelopeError::Direction);
    };
    if named && !seal::is_plausible(&event.content) {
        return Err(EnvelopeError::Content);
    }
    Ok(Frame { direction, agent, owner, known: named })
}

fn parties(event: &RawEvent) -> Result<(PubKey, PubKey), EnvelopeError> {
    let key = |name| event.tags.single(name).and_then(|text| text.parse().ok());
    Ok((key("p").ok_or(EnvelopeError::Recipient)?, key("agent").ok_or(EnvelopeError::Agent)?))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::PayloadError;
    use super::metering::{Authority, CostBasis, PricingIdentity, StopReason, Tally, TurnMetric};
    use crate::time::Moment;
    use proptest::prelude::*;

    /// The text of what must be writable.
    pub fn text(json: &Result<String, PayloadError>) -> String {
        json.clone().expect("it is written")
    }

    fn tally() -> impl Strategy<Value = Tally> {
        let count = || proptest::option::of(any::<u64>());
        let cost = proptest::option::of(0u32..1_000_000).prop_map(|cents| cents.map(|cents| f64::from(cents) / 100.0));
        (count(), count(), count(), count(), count(), cost).prop_map(|(input, output, total, read, write, cost)| {
            Tally {
                input_tokens: input,
                output_tokens: output,
                total_tokens: total,
                cost_usd: cost,
                cache_read_tokens: read,
                cache_write_tokens: write,
            }
        })
    }

    /// Any metric that the types allow, also ones that the rules forbid.
    pub fn metric() -> impl Strategy<Value = TurnMetric> {
        let word = || proptest::option::of("\\PC{0,12}");
        let ids = (word(), word(), word(), word(), proptest::option::of(any::<u64>()));
        let stops = [StopReason::EndTurn, StopReason::MaxTokens, StopReason::Cancelled, StopReason::Unknown];
        let stop = proptest::option::of(proptest::sample::select(stops.to_vec()));
        let rest = ("[a-z]{0,3}", 0u64..4_000_000_000_000, any::<bool>(), any::<bool>(), stop);
        (ids, tally(), proptest::option::of(tally()), rest).prop_map(|(ids, turn, cumulative, rest)| {
            let (model, channel_id, session_id, turn_id, turn_seq) = ids;
            let (harness, ms, delta_reliable, is_priced, stop_reason) = rest;
            let identity = PricingIdentity { authority: Authority::OpenRouter, model: "m".into(), cache_class: None };
            TurnMetric {
                harness,
                timestamp: Moment(ms),
                model,
                channel_id,
                session_id,
                turn_id,
                turn_seq,
                turn,
                cumulative,
                delta_reliable,
                stop_reason,
                pricing_identity: is_priced.then_some(identity),
                cost_basis: is_priced.then_some(CostBasis::Reported),
                triggering_event_ids: Vec::new(),
                root_event_id: None,
                task: None,
            }
        })
    }
}
