//! The published vectors: NIP-44 v2 and NIP-OA.
#![expect(clippy::unwrap_used, reason = "a test")]

use nostr::nips::nip44::v2::{self, ConversationKey};
use serde_json::Value;
use sha2::{Digest, Sha256};
use skep_proto::attestation::{self, Attestation, Conditions};
use skep_proto::{PubKey, RawEvent, Tags, seal};

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    let mut out = vec![0; text.len() / 2];
    faster_hex::hex_decode(text.as_bytes(), &mut out).unwrap();
    out
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

#[test]
fn nip_oa_valid_vectors_verify_step_by_step() {
    let all = vectors(include_str!("vectors/nip-oa.json"));
    for case in all["valid"].as_array().unwrap() {
        let agent: PubKey = text(case, "agent_pubkey").parse().unwrap();
        let conditions: Conditions = text(case, "conditions").parse().unwrap();
        let preimage = attestation::preimage(&agent, &conditions);
        assert_eq!(preimage, text(case, "preimage"));
        assert_eq!(faster_hex::hex_string(&Sha256::digest(&preimage)), text(case, "sha256"));
        let event: RawEvent = serde_json::from_value(case["event"].clone()).unwrap();
        let event = event.verify().unwrap();
        let attested = Attestation::from_tags(&event.tags, &event.pubkey).unwrap().unwrap();
        assert_eq!(attested.owner.to_hex(), text(case, "owner_pubkey"));
        assert!(attested.conditions.allow_time(event.created_at) && attested.conditions.allow_kind(event.kind));
        assert!(!attested.conditions.allow_time(1_713_957_000), "the bound is exclusive");
        assert!(!attested.conditions.allow_kind(skep_proto::Kind(7)));
    }
}

#[test]
fn nip_oa_invalid_conditions_are_refused() {
    let all = vectors(include_str!("vectors/nip-oa.json"));
    for conditions in all["invalid_conditions"].as_array().unwrap() {
        assert!(conditions.as_str().unwrap().parse::<Conditions>().is_err(), "{conditions}");
    }
}

#[test]
fn nip_oa_invalid_shapes_are_refused() {
    let all = vectors(include_str!("vectors/nip-oa.json"));
    let case = &all["valid"][0];
    let (owner, conditions, sig) = (text(case, "owner_pubkey"), text(case, "conditions"), text(case, "sig"));
    let agent: PubKey = text(case, "agent_pubkey").parse().unwrap();
    let holds = |tags: &[&[&str]], agent: &PubKey| {
        let tags: Tags = tags.iter().map(|tag| tag.iter()).collect();
        matches!(Attestation::from_tags(&tags, agent), Some(Ok(_)))
    };
    let good: &[&str] = &["auth", owner, conditions, sig];
    assert!(holds(&[good], &agent));
    assert!(!holds(&[good, good], &agent), "two auth tags");
    assert!(!holds(&[&good[..3]], &agent), "three elements");
    assert!(!holds(&[&["auth", owner, conditions, sig, ""]], &agent), "five elements");
    assert!(!holds(&[good], &owner.parse().unwrap()), "owner equals agent");
    assert!(!holds(&[&["auth", &owner.to_uppercase(), conditions, sig]], &agent), "uppercase owner");
    assert!(!holds(&[&["auth", owner, conditions, &sig[..127]]], &agent), "127 characters of signature");
    assert!(!holds(&[good], &PubKey([3; 32])), "another agent");
}

#[test]
fn nip44_conversation_keys_agree() {
    let all = vectors(include_str!("vectors/nip44.vectors.json"));
    for case in all["v2"]["valid"]["get_conversation_key"].as_array().unwrap() {
        let secret = nostr::key::SecretKey::from_slice(&bytes(&case["sec1"])).unwrap();
        let public = nostr::key::PublicKey::from_hex(text(case, "pub2")).unwrap();
        let key = ConversationKey::derive(&secret, &public).unwrap();
        assert_eq!(key.as_bytes(), bytes(&case["conversation_key"]));
    }
}

#[test]
fn nip44_payloads_agree_both_ways() {
    let all = vectors(include_str!("vectors/nip44.vectors.json"));
    for case in all["v2"]["valid"]["encrypt_decrypt"].as_array().unwrap() {
        let key = ConversationKey::from_slice(&bytes(&case["conversation_key"])).unwrap();
        let payload = text(case, "payload");
        assert!(seal::is_plausible(payload));
        let decoded = base64(payload);
        assert_eq!(v2::decrypt_to_bytes(&key, &decoded).unwrap(), text(case, "plaintext").as_bytes());
    }
}

#[test]
fn nip44_invalid_payloads_are_refused() {
    let all = vectors(include_str!("vectors/nip44.vectors.json"));
    for case in all["v2"]["invalid"]["decrypt"].as_array().unwrap() {
        let key = ConversationKey::from_slice(&bytes(&case["conversation_key"])).unwrap();
        let payload = text(case, "payload");
        let refused = !seal::is_plausible(payload) || v2::decrypt_to_bytes(&key, &base64(payload)).is_err();
        assert!(refused, "{}", text(case, "note"));
    }
}

fn base64(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default()
}
