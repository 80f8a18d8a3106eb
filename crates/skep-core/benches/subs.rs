//! What one committed event costs before it is in an outbox: who gets it, of how many.
//!
//! `cargo bench -p skep-core`

use divan::{Bencher, black_box};
use secp256k1::{Keypair, SECP256K1};
use skep_core::World;
use skep_core::subs::Subs;
use skep_proto::wire::SubId;
use skep_proto::{Draft, Filter, Kind, PubKey, Record, Seq};

fn main() {
    divan::main();
}

fn record() -> Record {
    let keys = Keypair::from_seckey_slice(SECP256K1, &[7; 32]).expect("a valid secret");
    Draft::new(Kind(1), 1_700_000_000, "x".repeat(300)).tag(["t", "bench"]).sign(&keys, &[0; 32]).into_record()
}

/// Subscribers with a connection each; `filter` gives what the n-th of them wants.
fn subs(count: u64, filter: impl Fn(u64) -> Filter) -> Subs<()> {
    let mut subs = Subs::default();
    let name: SubId = serde_json::from_str("\"s\"").expect("a valid name");
    for conn in 0..count {
        subs.open(conn, ());
        let mut work = subs.subscribe(conn, &name, [filter(conn)].into()).expect("an open connection");
        assert!(subs.index(&mut work, usize::MAX));
        subs.begin(conn, &name, Seq(0));
    }
    subs
}

fn deliver(bencher: Bencher<'_, '_>, mut subs: Subs<()>) {
    let (world, record) = (World::new(PubKey([9; 32])), record());
    bencher.bench_local(|| {
        let mut delivered = 0u64;
        subs.recipients(&world, Seq(1), black_box(record.as_ref()), 1_700_000_000, |_, ()| delivered += 1);
        delivered
    });
}

#[divan::bench(args = [100, 1_000, 10_000])]
fn everyone_wants_it(bencher: Bencher<'_, '_>, count: u64) {
    deliver(bencher, subs(count, |_| Filter { kinds: Some(vec![Kind(1)]), ..Filter::new() }));
}

/// The others want other tags: what is subscribed and does not match should cost nothing.
#[divan::bench(args = [100, 1_000, 10_000])]
fn one_in_a_hundred_wants_it(bencher: Bencher<'_, '_>, count: u64) {
    let wanted = |n: u64| if n.is_multiple_of(100) { "bench".to_owned() } else { n.to_string() };
    deliver(bencher, subs(count, |n| Filter { tags: vec![(b't', vec![wanted(n)])], ..Filter::new() }));
}
