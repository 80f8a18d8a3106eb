//! Micro benchmarks of what every event costs: check, decode, record, match.
//!
//! `cargo bench -p skep-bench`. Scans: `cargo bench -p skep-store`. Fan-out: `cargo bench -p skep-core`.

use divan::{Bencher, black_box};
use secp256k1::{Keypair, SECP256K1};
use skep_proto::{Draft, Filter, Kind, Record, VerifiedEvent, wire};

fn main() {
    divan::main();
}

fn event(content_bytes: usize) -> VerifiedEvent {
    let keys = Keypair::from_seckey_slice(SECP256K1, &[7; 32]).expect("a valid secret");
    let other = "ab".repeat(32);
    Draft::new(Kind(1), 1_700_000_000, "x".repeat(content_bytes))
        .tag(["e", &other, "", "reply"])
        .tag(["p", &other])
        .tag(["t", "bench"])
        .sign(&keys, &[0; 32])
}

/// Hash, signature, record: all that stands between a parsed event and the store.
#[divan::bench(args = [300, 10_000])]
fn verify(bencher: Bencher<'_, '_>, content_bytes: usize) {
    let raw = event(content_bytes).raw().clone();
    bencher.with_inputs(|| raw.clone()).bench_values(|raw| raw.verify());
}

/// The hash alone.
#[divan::bench(args = [300, 10_000])]
fn computed_id(bencher: Bencher<'_, '_>, content_bytes: usize) {
    let event = event(content_bytes);
    bencher.bench(|| black_box(&event).raw().computed_id());
}

#[divan::bench(args = [300, 10_000])]
fn decode_event(bencher: Bencher<'_, '_>, content_bytes: usize) {
    let text = format!(r#"["EVENT",{}]"#, event(content_bytes).record().as_ref().to_json());
    bencher.bench(|| wire::decode(black_box(&text)));
}

#[divan::bench(args = [1, 100, 1_000])]
fn decode_req(bencher: Bencher<'_, '_>, authors: usize) {
    let keys: Vec<String> = (0..authors).map(|n| format!("{n:064x}")).collect();
    let filter = format!(r#"{{"authors":{keys:?},"kinds":[1,6,7],"limit":50}}"#);
    let text = format!(r#"["REQ","sub",{filter}]"#);
    bencher.bench(|| wire::decode(black_box(&text)));
}

/// Signing is the only public way to a record; the signature is most of it. `verify` less `computed_id` says the rest.
#[divan::bench]
fn sign_and_build_record(bencher: Bencher<'_, '_>) {
    let keys = Keypair::from_seckey_slice(SECP256K1, &[7; 32]).expect("a valid secret");
    let text = "x".repeat(300);
    bencher
        .with_inputs(|| Draft::new(Kind(1), 1_700_000_000, text.clone()).tag(["t", "bench"]))
        .bench_values(|draft| draft.sign(&keys, &[0; 32]));
}

/// What reading a stored event costs before it is sent.
#[divan::bench]
fn record_from_bytes(bencher: Bencher<'_, '_>) {
    let bytes = event(300).record().as_bytes().to_vec();
    bencher.bench(|| Record::from_bytes(black_box(&bytes)));
}

#[divan::bench(args = ["{\"kinds\":[1]}", "{\"authors\":[]}", "{\"#t\":[\"bench\"]}", "{\"#p\":[\"ab\"],\"kinds\":[1,6,7],\"since\":5}", "{\"search\":\"xx\"}"])]
fn filter_match(bencher: Bencher<'_, '_>, filter: &str) {
    let filter: Filter = serde_json::from_str(filter).expect("a valid filter");
    let event = event(300);
    bencher.bench(|| black_box(&filter).matches(black_box(event.record().as_ref())));
}
