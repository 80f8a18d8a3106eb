//! What a query costs inside the store, without a socket: 50,000 notes by 50 authors, all of them in LMDB.
//!
//! `cargo bench -p skep-store`

use std::sync::LazyLock;

use divan::Bencher;
use secp256k1::{Keypair, SECP256K1};
use skep_proto::{Draft, EventId, EventRef, Filter, Kind, PubKey, Seq};
use skep_store::{EventStore, LmdbStore, Op, Options, Progress, Scan, Visit, Visitor};

const EVENTS: u64 = 50_000;
const AUTHORS: u64 = 50;

/// Work of one step; the relay's slice.
const SLICE: usize = 256;

fn main() {
    divan::main();
}

struct Loaded {
    store: LmdbStore,
    author: PubKey,
    id: EventId,
    _dir: tempfile::TempDir,
}

static LOADED: LazyLock<Loaded> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options { is_durable: false, ..Options::new(dir.path().join("s")) };
    let store = LmdbStore::open(&options).expect("a store");
    let keys: Vec<Keypair> =
        (1..=AUTHORS).map(|n| Keypair::from_seckey_slice(SECP256K1, &[n as u8; 32]).expect("a valid secret")).collect();
    let note = |n: u64| {
        let other = keys[((n / 7) % AUTHORS) as usize].x_only_public_key().0.to_string();
        let draft = Draft::new(Kind(if n.is_multiple_of(4) { 7 } else { 1 }), 1_700_000_000 + n, "x".repeat(300));
        draft.tag(["p", &other]).tag(["t", "all"]).sign(&keys[(n % AUTHORS) as usize], &[0; 32]).into_record()
    };
    let records: Vec<_> = (0..EVENTS).map(note).collect();
    for chunk in records.chunks(1_000) {
        store.apply(chunk.iter().cloned().map(Op::put).collect()).expect("stored");
    }
    assert_eq!(store.len().expect("counted"), EVENTS);
    let event = records[10].as_ref();
    Loaded { author: event.pubkey(), id: event.id(), store, _dir: dir }
});

/// Copies out what is served, as the relay does; may count by rows.
struct Reader {
    bytes: usize,
    served: u64,
    takes_rows: bool,
}

impl Visitor for Reader {
    fn event(&mut self, _: Seq, event: EventRef<'_>) -> Visit {
        self.bytes += event.to_json().len();
        self.served += 1;
        Visit::Serve
    }

    fn row(&mut self, _: Kind) -> bool {
        self.served += u64::from(self.takes_rows);
        self.takes_rows
    }
}

fn read(filter: &Filter, takes_rows: bool) -> u64 {
    let mut scan = Scan::new([filter.clone()].into(), Seq(u64::MAX >> 1), u64::MAX);
    let mut reader = Reader { bytes: 0, served: 0, takes_rows };
    while LOADED.store.scan(&mut scan, SLICE, &mut reader).expect("a scan") == Progress::More {}
    reader.served
}

fn bench(bencher: Bencher<'_, '_>, filter: Filter, served: u64) {
    assert_eq!(read(&filter, false), served);
    bencher.bench(|| read(&filter, false));
}

#[divan::bench]
fn one_id(bencher: Bencher<'_, '_>) {
    bench(bencher, Filter { ids: Some(vec![LOADED.id]), ..Filter::new() }, 1);
}

#[divan::bench]
fn author_limit_50(bencher: Bencher<'_, '_>) {
    bench(bencher, Filter { authors: Some(vec![LOADED.author]), limit: Some(50), ..Filter::new() }, 50);
}

#[divan::bench]
fn kind_limit_100(bencher: Bencher<'_, '_>) {
    bench(bencher, Filter { kinds: Some(vec![Kind(7)]), limit: Some(100), ..Filter::new() }, 100);
}

#[divan::bench]
fn p_tag_limit_100(bencher: Bencher<'_, '_>) {
    let tags = vec![(b'p', vec![LOADED.author.to_hex()])];
    bench(bencher, Filter { tags, limit: Some(100), ..Filter::new() }, 100);
}

/// Two conditions of one value; every note has the tag.
#[divan::bench]
fn author_and_common_tag(bencher: Bencher<'_, '_>) {
    let tags = vec![(b't', vec!["all".into()])];
    bench(bencher, Filter { authors: Some(vec![LOADED.author]), tags, ..Filter::new() }, EVENTS / AUTHORS);
}

/// The same, where nearly every row that is walked is one that is wanted.
#[divan::bench]
fn p_tag_and_common_tag_limit_100(bencher: Bencher<'_, '_>) {
    let tags = vec![(b'p', vec![LOADED.author.to_hex()]), (b't', vec!["all".into()])];
    bench(bencher, Filter { tags, limit: Some(100), ..Filter::new() }, 100);
}

#[divan::bench]
fn limit_500(bencher: Bencher<'_, '_>) {
    bench(bencher, Filter { limit: Some(500), ..Filter::new() }, 500);
}

#[divan::bench(args = [true, false])]
fn count_1000_of_an_author(bencher: Bencher<'_, '_>, takes_rows: bool) {
    let filter = Filter { authors: Some(vec![LOADED.author]), ..Filter::new() };
    assert_eq!(read(&filter, takes_rows), EVENTS / AUTHORS);
    bencher.bench(|| read(&filter, takes_rows));
}
