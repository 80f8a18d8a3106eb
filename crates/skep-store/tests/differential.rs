//! LMDB against the dumb oracle: random events and filters, the same answers. `SKEP_CASES` sets how many (the slow
//! profile runs 100,000); a failing case prints its seed.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use secp256k1::{Keypair, SECP256K1};
use skep_proto::{Draft, EventRef, Filter, Kind, PubKey, Record};
use skep_store::conformance::{self, put, query};
use skep_store::{EventStore, LmdbStore, MemStore, Op, Options, Outcome, Progress, Scan, Visit, Visitor};

fn keys(n: u8) -> Keypair {
    Keypair::from_seckey_slice(SECP256K1, &[n + 1; 32]).unwrap()
}

fn pubkey(n: u8) -> PubKey {
    PubKey(keys(n).x_only_public_key().0.serialize())
}

/// A small world, so that random things meet: three authors, few times, few values.
const KINDS: [u16; 10] = [0, 1, 4, 5, 7, 62, 1059, 10_002, 30_023, 30_078];
const WORDS: [&str; 4] = ["bee hive", "Hive", "wax", ""];

#[derive(Debug, Clone)]
struct Plan {
    author: u8,
    kind: usize,
    at: u64,
    tags: Vec<(usize, usize)>,
    content: usize,
    expires: Option<u64>,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        0..3u8,
        0..KINDS.len(),
        0..6u64,
        prop::collection::vec((0..5usize, 0..6usize), 0..4),
        0..WORDS.len(),
        prop::option::weighted(0.1, 0..8u64),
    )
        .prop_map(|(author, kind, at, tags, content, expires)| Plan { author, kind, at, tags, content, expires })
}

/// Builds events in order, so that deletions can name earlier ones.
fn build(plans: &[Plan]) -> Vec<Record> {
    let mut made: Vec<Record> = Vec::new();
    for plan in plans {
        let kind = Kind(KINDS[plan.kind]);
        let mut draft = Draft::new(kind, 100 + plan.at, WORDS[plan.content]);
        for (name, value) in &plan.tags {
            let earlier = made.get(value * 3);
            draft = match (name, earlier) {
                (0, Some(earlier)) => draft.tag(["e", &earlier.as_ref().id().to_hex()]),
                (1, Some(earlier)) => {
                    let e = earlier.as_ref();
                    let d = std::str::from_utf8(e.identifier()).unwrap().to_owned();
                    draft.tag(["a", &format!("{}:{}:{d}", e.kind(), e.pubkey())])
                }
                (2, _) => draft.tag(["p", &pubkey(*value as u8 % 3).to_hex()]),
                (3, _) => draft.tag(["d", &format!("{}{}", "x".repeat(300), value % 2)]),
                _ => draft.tag(["t", ["a", "b", ""][value % 3]]),
            };
        }
        if let Some(expires) = plan.expires {
            draft = draft.tag(["expiration", &(100 + expires).to_string()]);
        }
        made.push(draft.sign(&keys(plan.author), &[0; 32]).into_record());
    }
    made
}

#[derive(Debug, Clone)]
struct FilterPlan {
    ids: Option<Vec<usize>>,
    authors: Option<Vec<u8>>,
    kinds: Option<Vec<usize>>,
    t: Option<Vec<usize>>,
    p: Option<Vec<u8>>,
    since: Option<u64>,
    until: Option<u64>,
    limit: Option<u64>,
    search: Option<usize>,
}

fn filter_plan() -> impl Strategy<Value = FilterPlan> {
    let list = |n: usize| prop::option::weighted(0.35, prop::collection::vec(0..n, 0..4));
    let keys = || prop::option::weighted(0.3, prop::collection::vec(0..4u8, 0..4));
    (
        prop::option::weighted(0.15, prop::collection::vec(0..30usize, 0..6)),
        keys(),
        list(KINDS.len()),
        list(3),
        keys(),
        prop::option::weighted(0.3, 0..7u64),
        prop::option::weighted(0.3, 0..7u64),
        prop::option::weighted(0.4, 0..6u64),
        prop::option::weighted(0.1, 0..3usize),
    )
        .prop_map(|(ids, authors, kinds, t, p, since, until, limit, search)| FilterPlan {
            ids,
            authors,
            kinds,
            t,
            p,
            since,
            until,
            limit,
            search,
        })
}

fn filter(plan: &FilterPlan, records: &[Record]) -> Filter {
    let mut tags = Vec::new();
    if let Some(values) = &plan.t {
        tags.push((b't', values.iter().map(|v| ["a", "b", ""][*v].to_owned()).collect()));
    }
    if let Some(values) = &plan.p {
        tags.push((b'p', values.iter().map(|v| pubkey(v % 3).to_hex()).collect()));
    }
    Filter {
        ids: plan.ids.as_ref().map(|ids| ids.iter().filter_map(|i| records.get(*i)).map(|r| r.as_ref().id()).collect()),
        authors: plan.authors.as_ref().map(|all| all.iter().map(|n| pubkey(*n)).collect()),
        kinds: plan.kinds.as_ref().map(|all| all.iter().map(|n| Kind(KINDS[*n])).collect()),
        tags,
        since: plan.since.map(|t| 100 + t),
        until: plan.until.map(|t| 100 + t),
        limit: plan.limit,
        search: plan.search.map(|n| WORDS[n].to_owned()),
        unknown: None,
    }
    .normalized()
}

fn words_of(record: &Record) -> Vec<String> {
    let event = record.as_ref();
    if !skep_proto::kind::rule(event.kind()).search {
        return Vec::new();
    }
    skep_proto::filter::words(&skep_proto::filter::content_of(event).unwrap()).collect()
}

fn put_with_words(store: &dyn EventStore, record: &Record) -> Outcome {
    let op = Op::Put { record: record.clone(), words: words_of(record), guard: None };
    store.apply(vec![op]).unwrap().pop().unwrap()
}

/// The kind of outcome: numbers differ between stores.
fn shape(outcome: &Outcome) -> std::mem::Discriminant<Outcome> {
    std::mem::discriminant(outcome)
}

/// One store for all cases: opening LMDB costs more than a case. Each case empties it by opening a new directory
/// only every so often; between, keys differ by case.
struct Fresh {
    dir: tempfile::TempDir,
    count: u32,
}

static NOTHING: LazyLock<Filter> = LazyLock::new(Filter::new);

fn cases(default: u32) -> u32 {
    std::env::var("SKEP_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn lmdb_and_the_oracle_give_the_same_answers() {
    let mut fresh = Fresh { dir: tempfile::tempdir_in(scratch()).unwrap(), count: 0 };
    let mut runner = TestRunner::new(Config { cases: cases(400) / 20, failure_persistence: None, ..Config::default() });
    // Each case stores up to 30 events and asks 20 questions: a case of the issue is one question.
    let strategy =
        (prop::collection::vec(plan(), 1..30), prop::collection::vec(prop::collection::vec(filter_plan(), 1..4), 20));
    let fresh = std::cell::RefCell::new(&mut fresh);
    let rows = std::cell::Cell::new(0);
    runner
        .run(&strategy, |(plans, questions)| {
            let mut fresh = fresh.borrow_mut();
            fresh.count += 1;
            let dir = fresh.dir.path().join(fresh.count.to_string());
            let options = Options { map_bytes: 64 << 20, is_durable: false, ..Options::new(&dir) };
            let mut lmdb = LmdbStore::open(&options).unwrap();
            let mem = MemStore::default();
            let records = build(&plans);
            for (i, record) in records.iter().enumerate() {
                let (real, oracle) = (put_with_words(&lmdb, record), put_with_words(&mem, record));
                prop_assert_eq!(shape(&real), shape(&oracle), "{:?}: {:?} {:?}", record, real, oracle);
                match i % 7 {
                    // Some rows in LMDB, some in the log, some both ways: answers must not depend on it.
                    3 => drop(lmdb.len().unwrap()),
                    6 => {
                        drop(lmdb);
                        lmdb = LmdbStore::open(&options).unwrap();
                    }
                    _ => {}
                }
            }
            for question in &questions {
                let filters: Vec<Filter> = question.iter().map(|plan| filter(plan, &records)).collect();
                let (real, oracle) = (query(&lmdb, &filters), query(&mem, &filters));
                prop_assert_eq!(ids(&real), ids(&oracle), "{:?}", filters);
                prop_assert_eq!(hidden(&lmdb, &filters), hidden(&mem, &filters), "hiding, {:?}", filters);
                let (by_rows, by_events) = (Tally::of(&lmdb, &filters), Tally::of(&mem, &filters));
                prop_assert_eq!(by_rows.served, by_events.served, "counting, {:?}", filters);
                rows.set(rows.get() + by_rows.rows);
            }
            let sweep = |store: &dyn EventStore| store.apply(vec![Op::Sweep { now: 104, most: 1_000 }]).unwrap();
            prop_assert_eq!(sweep(&lmdb), sweep(&mem));
            prop_assert_eq!(
                ids(&query(&lmdb, std::slice::from_ref(&NOTHING))),
                ids(&query(&mem, std::slice::from_ref(&NOTHING)))
            );
            drop(lmdb);
            std::fs::remove_dir_all(&dir).unwrap();
            Ok(())
        })
        .unwrap();
    assert!(rows.get() > 0, "no count was made by rows: the comparison above says nothing");
}

/// Enough of each condition that its rows are read in several parts, and so few of both that most are skipped.
#[test]
fn conditions_that_meet_rarely_often_and_never_give_the_same_answers() {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let lmdb = LmdbStore::open(&Options { is_durable: false, ..Options::new(dir.path().join("s")) }).unwrap();
    let mem = MemStore::default();
    let event = |n: u64| {
        // Runs of 100 by one author; one in 97 has the rare tag; the last third has the late one.
        let author = (n / 100 % 2) as u8 + u8::from(n.is_multiple_of(211));
        let tag = |draft: Draft, is: bool, value| if is { draft.tag(["t", value]) } else { draft };
        let draft = Draft::new(Kind([1, 7][usize::from(n.is_multiple_of(3))]), 1_000 + n / 5, WORDS[n as usize % 4]);
        let draft = tag(tag(draft.tag(["t", "all"]), n.is_multiple_of(97), "rare"), n > 1_000, "late");
        draft.tag(["p", &pubkey((n % 3) as u8).to_hex()]).sign(&keys(author), &[0; 32]).into_record()
    };
    let records: Vec<Record> = (0..1_500).map(event).collect();
    let op = |record: &Record| Op::Put { record: record.clone(), words: words_of(record), guard: None };
    for (i, part) in records.chunks(500).enumerate() {
        lmdb.apply(part.iter().map(op).collect()).unwrap();
        mem.apply(part.iter().map(op).collect()).unwrap();
        if i == 1 {
            lmdb.len().unwrap();
        }
    }
    let author_sets = [None, Some(vec![0]), Some(vec![2]), Some(vec![3]), Some(vec![0, 1, 2])];
    let tags: [&[&str]; 6] = [&["all"], &["rare"], &["late"], &["none"], &["rare", "late"], &["all", "none"]];
    let mut found = 0;
    for authors in &author_sets {
        for (t, p) in tags.iter().flat_map(|t| [None, Some(0), Some(2)].map(|p| (t, p))) {
            for (kinds, limit, until, search) in [
                (None, None, None, None),
                (Some(vec![Kind(1)]), Some(20), None, None),
                (Some(vec![Kind(1), Kind(7)]), None, Some(1_250), None),
                (None, Some(3), None, Some("hive")),
            ] {
                let mut conditions = vec![(b't', t.iter().map(|value| (*value).to_owned()).collect())];
                conditions.extend(p.map(|n| (b'p', vec![pubkey(n).to_hex()])));
                let filter = Filter {
                    authors: authors.as_ref().map(|all| all.iter().map(|n| pubkey(*n)).collect()),
                    kinds,
                    tags: conditions,
                    limit,
                    until,
                    since: until.map(|until| until - 200),
                    search: search.map(str::to_owned),
                    ..Filter::new()
                };
                let filters = [filter.normalized()];
                let (real, oracle) = (query(&lmdb, &filters), query(&mem, &filters));
                assert_eq!(ids(&real), ids(&oracle), "{filters:?}");
                let (by_rows, by_events) = (Tally::of(&lmdb, &filters), Tally::of(&mem, &filters));
                assert_eq!(by_rows.served, by_events.served, "in short steps, {filters:?}");
                found += real.len();
            }
        }
    }
    assert!(found > 5_000, "{found} found: the comparison says little");
}

/// Counts with rows taken for kinds that "everyone may read"; of the others, one author is hidden.
#[derive(Default)]
struct Tally {
    served: u64,
    rows: u64,
}

impl Tally {
    fn of(store: &dyn EventStore, filters: &[Filter]) -> Self {
        let newest = skep_proto::Seq(store.next_seq().0 - 1);
        let mut scan = Scan::new(filters.to_vec().into(), newest, 10_000);
        let mut tally = Self::default();
        while store.scan(&mut scan, 7, &mut tally).unwrap() == Progress::More {}
        tally
    }

    fn is_open(kind: Kind) -> bool {
        kind.0.is_multiple_of(2)
    }
}

impl Visitor for Tally {
    fn event(&mut self, _: skep_proto::Seq, event: EventRef<'_>) -> Visit {
        if event.pubkey() == pubkey(1) && !(Self::is_open(event.kind()) && event.expires_at() == u64::MAX) {
            return Visit::Hide;
        }
        self.served += 1;
        Visit::Serve
    }

    fn row(&mut self, kind: Kind) -> bool {
        let is_taken = Self::is_open(kind);
        self.served += u64::from(is_taken);
        self.rows += u64::from(is_taken);
        is_taken
    }
}

/// What is served when every second author is hidden: hidden events must not use up a limit.
fn hidden(store: &dyn EventStore, filters: &[Filter]) -> Vec<String> {
    let newest = skep_proto::Seq(store.next_seq().0 - 1);
    let scan = Scan::new(filters.to_vec().into(), newest, 10_000);
    let hide = pubkey(1);
    let found =
        store.collect(scan, &mut |event| if event.pubkey() == hide { Visit::Hide } else { Visit::Serve }).unwrap();
    ids(&found)
}

fn ids(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| record.as_ref().id().to_hex()).collect()
}

/// Memory-backed when there is some: these tests are about answers, not about disks.
fn scratch() -> std::path::PathBuf {
    let shm = std::path::Path::new("/dev/shm");
    if shm.is_dir() { shm.into() } else { std::env::temp_dir() }
}

#[test]
fn both_stores_pass_the_conformance_suite() {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let fresh = |name: &str| -> [Box<dyn EventStore>; 2] {
        [Box::new(MemStore::default()), Box::new(LmdbStore::open(&Options::new(dir.path().join(name))).unwrap())]
    };
    let record = |kind: u16, at: u64| Draft::new(Kind(kind), at, "x").sign(&keys(0), &[0; 32]).into_record();
    let records: Vec<Record> = (0..40).map(|at| record(if at % 3 == 0 { 0 } else { 1 }, at)).collect();
    fresh("numbers").iter().for_each(|store| conformance::numbers_only_grow(&**store, &records));
    fresh("guard")
        .iter()
        .for_each(|store| conformance::a_refused_guard_leaves_no_trace(&**store, &record(1, 1), &record(1, 2)));
    fresh("facts").iter().for_each(|store| conformance::owners_and_policy_are_kept(&**store));
}

#[test]
fn a_deletion_that_came_first_blocks_its_author_only() {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let store = LmdbStore::open(&Options::new(dir.path().join("s"))).unwrap();
    let target = Draft::new(Kind(1), 5, "mine").sign(&keys(0), &[0; 32]).into_record();
    let deletion =
        |author| Draft::new(Kind(5), 6, "").tag(["e", &target.as_ref().id().to_hex()]).sign(&keys(author), &[0; 32]);
    assert!(matches!(put(&store, deletion(1).record()), Outcome::Stored(_)));
    assert!(matches!(put(&store, &target), Outcome::Stored(_)), "another's deletion does not block");
    assert!(matches!(put(&store, deletion(0).record()), Outcome::Stored(_)));
    assert_eq!(query(&store, &[Filter { kinds: Some(vec![Kind(1)]), ..Filter::new() }]), []);
    assert_eq!(put(&store, &target), Outcome::Deleted, "it cannot come back");
}

#[test]
fn numbers_are_not_used_again_after_ephemeral_events_and_a_restart() {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let options = Options::new(dir.path().join("s"));
    let ring = |store: &LmdbStore| {
        let record = Draft::new(Kind(20_001), 5, "").sign(&keys(0), &[0; 32]).into_record();
        let outcomes = store.apply(vec![Op::Ring(record)]).unwrap();
        let [Outcome::Stored(changes)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
        changes[0].seq
    };
    let store = LmdbStore::open(&options).unwrap();
    let first = ring(&store);
    drop(store);
    let store = LmdbStore::open(&options).unwrap();
    assert!(ring(&store) > first);
}

#[test]
fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let options = Options::new(dir.path().join("s"));
    let _store = LmdbStore::open(&options).unwrap();
    let error = LmdbStore::open(&options).unwrap_err();
    assert!(matches!(error, skep_store::StoreError::Locked { .. }), "{error}");
}

#[test]
fn more_ids_than_a_slice_looks_at_are_all_found() {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let store = LmdbStore::open(&Options::new(dir.path().join("s"))).unwrap();
    let records: Vec<Record> =
        (0..1_200).map(|at| Draft::new(Kind(1), at, "x").sign(&keys(0), &[0; 32]).into_record()).collect();
    store.apply(records.iter().cloned().map(Op::put).collect()).unwrap();
    let ids = records.iter().map(|record| record.as_ref().id()).collect();
    assert_eq!(query(&store, &[Filter { ids: Some(ids), ..Filter::new() }]).len(), records.len());
}

/// More than LMDB takes in one transaction: between two of them, and after them, each event is there once.
#[test]
fn events_larger_than_a_transaction_together_are_carried_over_in_several() {
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let options = Options::new(dir.path().join("s"));
    let store = LmdbStore::open(&options).unwrap();
    let content = "x".repeat(512 << 10);
    let everything = [Filter { kinds: Some(vec![Kind(1)]), ..Filter::new() }];
    for at in 0..80 {
        let note = Draft::new(Kind(1), at, content.clone()).sign(&keys(0), &[0; 32]).into_record();
        assert!(matches!(put(&store, &note), Outcome::Stored(_)));
        let found: Vec<u64> = query(&store, &everything).iter().map(|note| note.as_ref().created_at()).collect();
        assert_eq!(found, (0..=at).rev().collect::<Vec<u64>>());
    }
    assert_eq!(store.len().unwrap(), 80);
    drop(store);
    let store = LmdbStore::open(&options).unwrap();
    assert_eq!((store.len().unwrap(), query(&store, &everything).len()), (80, 80));
}
