//! The envelopes of agent events: turn metrics (44200, NIP-AM) and observer frames (24200, NIP-AO).

use crate::{PubKey, RawEvent, seal};

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
