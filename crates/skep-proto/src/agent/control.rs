//! What an owner's control frame says inside (NIP-AO), and how it is answered.

use serde::{Deserialize, Serialize};

use super::telemetry::{envelope, words};
use super::{Direction, EnvelopeError, PayloadError};
use crate::{Draft, EventId, PubKey, RawEvent, Timestamp, limits};

/// The sealed payload of a control frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum Control {
    CancelTurn {
        channel_id: String,
    },
    SwitchModel {
        channel_id: String,
        model_id: String,
    },
    PermissionDecision {
        channel_id: String,
        request_nonce: String,
        option_id: String,
    },
    /// The named instance is to lead; the one that leads stands down.
    ClaimLeadership {
        instance_id: String,
    },
}

const TYPES: [&str; 4] = ["cancel_turn", "switch_model", "permission_decision", "claim_leadership"];

impl Control {
    /// `None` for a type that is not known here: it is to be ignored.
    pub fn from_json(text: &str) -> Result<Option<Self>, PayloadError> {
        #[derive(Deserialize)]
        struct Typed {
            r#type: String,
        }
        super::check_size(text)?;
        let Typed { r#type } = serde_json::from_str(text).map_err(PayloadError::json)?;
        if !TYPES.contains(&r#type.as_str()) {
            return Ok(None);
        }
        serde_json::from_str(text).map(Some).map_err(PayloadError::json)
    }

    pub fn to_json(&self) -> Result<String, PayloadError> {
        let text = serde_json::to_string(self).map_err(PayloadError::json)?;
        super::check_size(&text)?;
        Ok(text)
    }

    pub fn r#type(&self) -> &'static str {
        match self {
            Self::CancelTurn { .. } => TYPES[0],
            Self::SwitchModel { .. } => TYPES[1],
            Self::PermissionDecision { .. } => TYPES[2],
            Self::ClaimLeadership { .. } => TYPES[3],
        }
    }

    /// The answer to this frame.
    pub fn answer(&self, status: Status) -> ControlResult {
        let mut result = ControlResult { r#type: self.r#type().to_owned(), status, ..ControlResult::default() };
        match self {
            Self::CancelTurn { .. } => {}
            Self::SwitchModel { model_id, .. } => result.model_id = Some(model_id.clone()),
            Self::PermissionDecision { request_nonce, option_id, .. } => {
                result.request_nonce = Some(request_nonce.clone());
                result.option_id = Some(option_id.clone());
            }
            Self::ClaimLeadership { instance_id } => result.instance_id = Some(instance_id.clone()),
        }
        result
    }
}

words! {
    /// What became of a control frame.
    Status {
        /// On its way to the turn.
        Sent = "sent",
        NoActiveTurn = "no_active_turn",
        /// The turn ends already; it keeps its model.
        TurnEnding = "turn_ending",
        Switched = "switched",
        UnsupportedModel = "unsupported_model",
        AlreadyDecided = "already_decided",
        /// Try again: a queue was full.
        ChannelFull = "channel_full",
        ChannelClosed = "channel_closed",
        NoChannel = "no_channel",
        /// Ours: this instance leads now.
        Claimed = "claimed",
        /// Ours: this instance led, and stands down.
        StandingDown = "standing_down",
    }
}

impl Default for Status {
    fn default() -> Self {
        Self::Unknown(String::new())
    }
}

/// Payload of `control_result`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlResult {
    pub r#type: String,
    pub status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_nonce: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Ours: the frame that this answers. Two who decide at once would not know whose result is whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_event_id: Option<EventId>,
}

impl ControlResult {
    #[must_use]
    pub fn to_frame(self, control: EventId) -> Self {
        Self { control_event_id: Some(control), ..self }
    }
}

/// Why a control frame is not obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error("the frame is not a control frame for this agent")]
    NotForUs,
    #[error("the frame is not from this agent's owner")]
    NotTheOwner,
    #[error("the frame's created_at is more than {} s from our clock", limits::CONTROL_FRESH_SECS)]
    Stale,
}

/// What the harness checks again, whatever a relay let through: form, agent, owner and time. The signature is checked
/// where the event came in. That a frame acts once is for whoever stores its id.
pub fn check(event: &RawEvent, agent: &PubKey, owner: &PubKey, now: Timestamp) -> Result<(), ControlError> {
    let frame = super::frame(event)?;
    if frame.direction != Direction::Control || !frame.known || frame.agent != *agent {
        return Err(ControlError::NotForUs);
    }
    if frame.owner != *owner {
        return Err(ControlError::NotTheOwner);
    }
    if event.created_at.abs_diff(now) > limits::CONTROL_FRESH_SECS {
        return Err(ControlError::Stale);
    }
    Ok(())
}

/// The envelope of a control frame: owner to agent.
pub fn control_draft(agent: &PubKey, now: Timestamp, sealed: String) -> Draft {
    envelope(agent, agent, now, sealed, "control")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::text;
    use proptest::prelude::*;
    use secp256k1::{Keypair, SECP256K1};

    #[test]
    fn the_wire_forms_of_control_and_its_results_are_frozen() {
        let channel_id = "c".to_owned();
        let decision = Control::PermissionDecision {
            channel_id: channel_id.clone(),
            request_nonce: "n".into(),
            option_id: "o".into(),
        };
        let switch = Control::SwitchModel { channel_id: channel_id.clone(), model_id: "m".into() };
        let claim = Control::ClaimLeadership { instance_id: "i".into() };
        for (control, status, json, result) in [
            (
                Control::CancelTurn { channel_id },
                Status::NoActiveTurn,
                r#"{"type":"cancel_turn","channelId":"c"}"#,
                r#"{"type":"cancel_turn","status":"no_active_turn"}"#,
            ),
            (
                switch,
                Status::UnsupportedModel,
                r#"{"type":"switch_model","channelId":"c","modelId":"m"}"#,
                r#"{"type":"switch_model","status":"unsupported_model","modelId":"m"}"#,
            ),
            (
                decision,
                Status::AlreadyDecided,
                r#"{"type":"permission_decision","channelId":"c","requestNonce":"n","optionId":"o"}"#,
                r#"{"type":"permission_decision","status":"already_decided","requestNonce":"n","optionId":"o"}"#,
            ),
            (
                claim,
                Status::Claimed,
                r#"{"type":"claim_leadership","instanceId":"i"}"#,
                r#"{"type":"claim_leadership","status":"claimed","instanceId":"i"}"#,
            ),
        ] {
            assert_eq!(text(&control.to_json()), json);
            assert_eq!(Control::from_json(json), Ok(Some(control.clone())));
            assert_eq!(serde_json::to_string(&control.answer(status)).expect("it is written"), result);
        }
        let answer = Control::CancelTurn { channel_id: "c".into() }.answer(Status::Sent).to_frame(EventId([1; 32]));
        let json = format!(r#"{{"type":"cancel_turn","status":"sent","controlEventId":"{}"}}"#, "01".repeat(32));
        assert_eq!(serde_json::to_string(&answer).expect("it is written"), json);
    }

    #[test]
    fn every_status_has_its_word() {
        for status in Status::ALL {
            assert_eq!(Status::from(status.as_str()), *status);
        }
    }

    #[test]
    fn unknown_types_are_ignored_and_broken_ones_are_errors() {
        assert_eq!(Control::from_json(r#"{"type":"self_destruct","in":5}"#), Ok(None));
        let more = r#"{"type":"cancel_turn","channelId":"c","later":1}"#;
        assert!(Control::from_json(more).is_ok_and(|control| control.is_some()), "unknown fields are ignored");
        for bad in
            ["", "{}", "[]", r#"{"type":1}"#, r#"{"type":"cancel_turn"}"#, r#"{"type":"switch_model","channelId":1}"#]
        {
            assert!(Control::from_json(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_fresh_frame_of_the_owner_for_this_agent_is_obeyed() {
        let owner = Keypair::from_seckey_slice(SECP256K1, &[2; 32]).expect("a valid secret");
        let owner_key = PubKey(owner.x_only_public_key().0.serialize());
        let agent = PubKey([1; 32]);
        let sealed = format!("Ag{}", "A".repeat(130));
        let event = control_draft(&agent, 1_000, sealed).sign(&owner, &[0; 32]).raw().clone();
        assert_eq!(check(&event, &agent, &owner_key, 1_300), Ok(()));
        assert_eq!(check(&event, &agent, &owner_key, 1_301), Err(ControlError::Stale));
        assert_eq!(check(&event, &agent, &owner_key, 699), Err(ControlError::Stale));
        assert_eq!(check(&event, &PubKey([3; 32]), &owner_key, 1_000), Err(ControlError::NotForUs));
        assert_eq!(check(&event, &agent, &PubKey([4; 32]), 1_000), Err(ControlError::NotTheOwner));
        let mut no_frame = event;
        no_frame.tags = crate::Tags::from_iter([["p", &agent.to_hex()], ["agent", &agent.to_hex()]]);
        assert_eq!(check(&no_frame, &agent, &owner_key, 1_000), Err(EnvelopeError::Frame.into()));
    }

    proptest! {
        #[test]
        fn every_control_survives_a_round_trip(which in 0usize..4, a: String, b: String, c: String) {
            let control = match which {
                0 => Control::CancelTurn { channel_id: a },
                1 => Control::SwitchModel { channel_id: a, model_id: b },
                2 => Control::PermissionDecision { channel_id: a, request_nonce: b, option_id: c },
                _ => Control::ClaimLeadership { instance_id: a },
            };
            prop_assert_eq!(Control::from_json(&control.to_json()?), Ok(Some(control)));
        }

        #[test]
        fn no_text_breaks_the_parsers(text in "\\PC{0,80}") {
            let _ = Control::from_json(&text);
            let _ = super::super::telemetry::Telemetry::from_json(&text);
            let _ = super::super::metering::TurnMetric::from_json(&text);
        }
    }
}
