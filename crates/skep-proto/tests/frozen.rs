//! Wire forms, frozen: a change of these bytes is a change of the protocol, and needs a reason in the CHANGELOG.
//!
//! `frozen/events.jsonl` holds what Skep's own kinds look like, signed; `frozen/client.txt` every message of a client
//! with what we understand by it. The answers of a relay are frozen beside `wire::ok`, a plain event in
//! `frozen/event.json`.
#![expect(clippy::unwrap_used, reason = "a test")]

use secp256k1::{Keypair, SECP256K1};
use skep_proto::agent::{self, Direction, Frame, Metric};
use skep_proto::attestation::{self, Attestation, Conditions};
use skep_proto::lease::{self, Claim, Lease, Op, Request, Resource};
use skep_proto::wire::{self, ClientMsg};
use skep_proto::{Draft, Filter, Kind, PubKey, RawEvent, VerifiedEvent, reconcile, seal};

const AT: u64 = 1_700_000_000;

fn keys(n: u8) -> Keypair {
    Keypair::from_seckey_slice(SECP256K1, &[n; 32]).unwrap()
}

fn pubkey(n: u8) -> PubKey {
    PubKey(keys(n).x_only_public_key().0.serialize())
}

const AGENT: u8 = 7;
const OWNER: u8 = 9;
const RELAY: u8 = 11;

fn sign(n: u8, draft: Draft) -> VerifiedEvent {
    draft.sign(&keys(n), &[0; 32])
}

fn resource() -> Resource {
    Resource::new(&format!("prompter:{}", pubkey(AGENT))).unwrap()
}

fn consent() -> [String; 4] {
    let conditions: Conditions = "kind=24480&created_at<1700000300".parse().unwrap();
    attestation::attest(&keys(OWNER), &pubkey(AGENT), &conditions, &[0; 32])
}

fn request(op: &str) -> Draft {
    Draft::new(Kind::LEASE_REQUEST, AT, "")
        .tag(["resource", resource().as_str()])
        .tag(["op", op])
        .tag(["instance", "desk-1"])
}

fn held() -> Lease {
    let (holder, instance) = (pubkey(AGENT), "desk-1".to_owned());
    Lease { holder, instance, epoch: 8, expires_at: AT + 15, completed: false, noted_at: AT }
}

/// A NIP-44 v2 payload as far as its shape goes.
fn sealed() -> String {
    format!("Ag{}", "A".repeat(130))
}

fn envelope(kind: Kind, to: u8) -> Draft {
    Draft::new(kind, AT, sealed()).tag(["p", &pubkey(to).to_hex()]).tag(["agent", &pubkey(AGENT).to_hex()])
}

/// Every signed form of ours, in the order of the file.
fn events() -> Vec<VerifiedEvent> {
    let resource = resource();
    vec![
        sign(AGENT, request("acquire").tag(["ttl", "15"])),
        sign(AGENT, request("renew").tag(["epoch", "8"]).tag(["ttl", "15"])),
        sign(AGENT, request("release").tag(["epoch", "8"])),
        sign(AGENT, request("complete").tag(["epoch", "8"])),
        sign(AGENT, request("steal").tag(["ttl", "15"]).tag(consent())),
        sign(RELAY, held().state(&resource)),
        sign(RELAY, Lease { completed: true, ..held() }.state(&resource)),
        sign(AGENT, Draft::new(Kind(1), AT, "done").tag(["lease", resource.as_str(), "8", "final"])),
        sign(AGENT, envelope(Kind::AGENT_FRAME, OWNER).tag(["frame", "telemetry"])),
        sign(OWNER, envelope(Kind::AGENT_FRAME, AGENT).tag(["frame", "control"])),
        sign(AGENT, envelope(Kind::AGENT_METRIC, OWNER)),
        sign(
            AGENT,
            Draft::new(Kind::AUTH, AT, "").tag(["relay", "ws://127.0.0.1:7777"]).tag(["challenge", "c"]).tag(consent()),
        ),
    ]
}

fn frozen_events() -> Vec<RawEvent> {
    include_str!("frozen/events.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_we_sign_has_the_frozen_form() {
    let made: String = events().iter().map(|event| event.to_json() + "\n").collect();
    assert_eq!(made, include_str!("frozen/events.jsonl"));
}

#[test]
fn lease_requests_are_read_as_they_were_frozen() {
    let frozen = frozen_events();
    let ops = [
        Op::Acquire { ttl_secs: 15 },
        Op::Renew { epoch: 8, ttl_secs: 15 },
        Op::Release { epoch: 8 },
        Op::Complete { epoch: 8 },
        Op::Steal { ttl_secs: 15 },
    ];
    for (event, op) in frozen.iter().zip(ops) {
        let event = event.clone().verify().unwrap();
        assert_eq!(event.kind, Kind(24_480));
        let request = Request { resource: resource(), op, instance: "desk-1".into() };
        assert_eq!(Request::from_event(&event), Ok(request));
    }
}

#[test]
fn lease_answers_states_and_claims_are_frozen() {
    assert_eq!(lease::granted_text(&held()), "lease: epoch=8 expires=1700000015");
    let row = r#"{"holder":"KEY","instance":"desk-1","epoch":8,"expires_at":1700000015,"completed":false,"noted_at":1700000000}"#;
    assert_eq!(serde_json::to_string(&held()).unwrap(), row.replace("KEY", &pubkey(AGENT).to_hex()));
    let frozen = frozen_events();
    assert_eq!((frozen[5].kind, frozen[5].tags.single("state")), (Kind(30_480), Some("held")));
    assert_eq!((frozen[6].kind, frozen[6].tags.single("state")), (Kind(30_480), Some("completed")));
    let claim = Claim { resource: resource(), epoch: 8, is_final: true };
    assert_eq!(Claim::from_event(&frozen[7]), Some(Ok(claim)));
}

#[test]
fn envelopes_are_read_as_they_were_frozen() {
    let frozen = frozen_events();
    let (agent, owner) = (pubkey(AGENT), pubkey(OWNER));
    let telemetry = Frame { direction: Direction::Telemetry, agent, owner, known: true };
    assert_eq!((frozen[8].kind, agent::frame(&frozen[8])), (Kind(24_200), Ok(telemetry)));
    assert_eq!(agent::frame(&frozen[9]), Ok(Frame { direction: Direction::Control, ..telemetry }));
    assert_eq!((frozen[10].kind, agent::metric(&frozen[10])), (Kind(44_200), Ok(Metric { agent, owner })));
    assert!(seal::is_plausible(&frozen[10].content));
}

#[test]
fn an_attestation_holds_wherever_it_was_frozen() {
    let frozen = frozen_events();
    for event in [&frozen[4], &frozen[11]] {
        let found = Attestation::from_tags(&event.tags, &event.pubkey).unwrap().unwrap();
        assert_eq!((found.owner, found.conditions.to_string().as_str()), (pubkey(OWNER), CONSENT));
    }
}

const CONSENT: &str = "kind=24480&created_at<1700000300";

/// What we understand by a message, as text.
fn understood(line: &str) -> String {
    let filters = |all: &[Filter]| serde_json::to_string(all).unwrap();
    match wire::decode(line) {
        Ok(ClientMsg::Event(event)) => format!("event {}", event.verify().unwrap().id),
        Ok(ClientMsg::Auth(event)) => format!("auth {}", event.verify().unwrap().id),
        Ok(ClientMsg::Req { sub, filters: all }) => format!("req {sub} {}", filters(&all)),
        Ok(ClientMsg::Count { sub, filters: all }) => format!("count {sub} {}", filters(&all)),
        Ok(ClientMsg::Close { sub }) => format!("close {sub}"),
        Ok(ClientMsg::NegOpen { sub, filter, message }) => format!("neg-open {sub} {} {message}", filters(&[*filter])),
        Ok(ClientMsg::NegMsg { sub, message }) => format!("neg-msg {sub} {message}"),
        Ok(ClientMsg::NegClose { sub }) => format!("neg-close {sub}"),
        Err(error) => format!("{:?} {}", error.target, error.refusal),
    }
}

#[test]
fn every_client_message_is_understood_as_it_was_frozen() {
    let text = include_str!("frozen/client.txt");
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks(2) {
        assert_eq!(understood(pair[0]), pair[1], "{}", pair[0]);
    }
    let verbs = ["EVENT", "AUTH", "REQ", "COUNT", "CLOSE", "NEG-OPEN", "NEG-MSG", "NEG-CLOSE"];
    for verb in verbs {
        assert!(text.contains(&format!("[\"{verb}\",")), "{verb} has a frozen form");
    }
}

#[test]
fn frozen_negentropy_messages_pass_the_guard() {
    for (hex, verdict) in [
        // The whole range as an empty list of ids; the same as a fingerprint; up to a bound with a prefix, skipped;
        // one id. The last is another version.
        ("6100000200", Ok(true)),
        ("61000001ffffffffffffffffffffffffffffffff", Ok(true)),
        ("6185d5e2f40101ab0000000200", Ok(true)),
        ("6100000201abababababababababababababababababababababababababababababababab", Ok(true)),
        ("62000000", Ok(false)),
    ] {
        let mut bytes = vec![0; hex.len() / 2];
        faster_hex::hex_decode(hex.as_bytes(), &mut bytes).unwrap();
        assert_eq!(reconcile::guard(&bytes), verdict, "{hex}");
    }
}
