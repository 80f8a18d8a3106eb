//! Live matching against the dumbest possible one: every subscription asked, every filter tried.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use secp256k1::{Keypair, SECP256K1};
use skep_core::subs::{Indexing, Subs};
use skep_core::{Readers, World, may_read};
use skep_proto::wire::SubId;
use skep_proto::{Draft, EventRef, Filter, Kind, PubKey, Record, Seq};

const NOW: u64 = 105;

fn keys(n: u8) -> Keypair {
    Keypair::from_seckey_slice(SECP256K1, &[n + 1; 32]).unwrap()
}

fn pubkey(n: u8) -> PubKey {
    PubKey(keys(n).x_only_public_key().0.serialize())
}

fn event() -> impl Strategy<Value = Record> {
    let kind = prop::sample::select(vec![1u16, 4, 7, 1059, 20_001, 30_023]);
    let tags = prop::collection::vec((prop::sample::select(vec!["e", "p", "t"]), 0..3u8), 0..4);
    (0..3u8, kind, 100..106u64, tags, prop::option::weighted(0.2, 103..108u64)).prop_map(
        |(author, kind, at, tags, expires)| {
            let mut draft = Draft::new(Kind(kind), at, "bee");
            for (name, value) in tags {
                let value = if name == "t" { value.to_string() } else { pubkey(value).to_hex() };
                draft = draft.tag([name, &value]);
            }
            if let Some(expires) = expires {
                draft = draft.tag(["expiration", &expires.to_string()]);
            }
            draft.sign(&keys(author), &[0; 32]).into_record()
        },
    )
}

fn filter() -> impl Strategy<Value = Filter> {
    let keys = || prop::option::weighted(0.3, prop::collection::vec(0..4u8, 0..3));
    let kinds = prop::sample::select(vec![1u16, 4, 7, 1059, 20_001, 30_023]);
    (
        keys(),
        keys(),
        prop::option::weighted(0.3, prop::collection::vec(0..3u8, 0..3)),
        prop::option::weighted(0.4, prop::collection::vec(kinds, 0..3)),
        prop::option::weighted(0.2, 100..106u64),
        prop::option::weighted(0.2, 100..106u64),
        prop::option::weighted(0.2, 0..3u64),
    )
        .prop_map(|(authors, p, t, kinds, since, until, limit)| {
            let mut tags = Vec::new();
            tags.extend(p.map(|all| (b'p', all.iter().map(|n| pubkey(*n).to_hex()).collect())));
            tags.extend(t.map(|all| (b't', all.iter().map(u8::to_string).collect())));
            Filter {
                ids: None,
                authors: authors.map(|all| all.iter().map(|n| pubkey(*n)).collect()),
                kinds: kinds.map(|all| all.into_iter().map(Kind).collect()),
                tags,
                since,
                until,
                limit,
                search: None,
                unknown: None,
            }
            .normalized()
        })
}

#[derive(Debug, Clone)]
enum Step {
    Subscribe { conn: u64, name: u8, filters: Vec<Filter>, after: u64 },
    Unsubscribe { conn: u64, name: u8 },
    Authenticate { conn: u64, key: u8 },
    Close { conn: u64 },
    Event(Record),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3u64, 0..3u8, prop::collection::vec(filter(), 1..4), 0..40u64)
            .prop_map(|(conn, name, filters, after)| Step::Subscribe { conn, name, filters, after }),
        1 => (0..3u64, 0..3u8).prop_map(|(conn, name)| Step::Unsubscribe { conn, name }),
        1 => (0..3u64, 0..4u8).prop_map(|(conn, key)| Step::Authenticate { conn, key }),
        1 => (0..3u64).prop_map(|conn| Step::Close { conn }),
        6 => event().prop_map(Step::Event),
    ]
}

/// The oracle: a list.
#[derive(Default)]
struct Naive {
    subs: Vec<(u64, u8, Vec<Filter>, u64)>,
    readers: std::collections::BTreeMap<u64, Readers>,
}

impl Naive {
    fn recipients(&self, world: &World, seq: u64, event: EventRef<'_>) -> BTreeSet<(u64, String)> {
        let none = Readers::none();
        let matches = |(conn, _, filters, after): &&(u64, u8, Vec<Filter>, u64)| {
            seq > *after
                && filters.iter().any(|filter| !filter.matches_nothing() && filter.matches(event))
                && may_read(world, self.readers.get(conn).unwrap_or(&none), event, NOW)
        };
        self.subs.iter().filter(matches).map(|(conn, name, ..)| (*conn, format!("\"{name}\""))).collect()
    }
}

/// Puts subscriptions into the index, or takes them out, a value at a time; looks at the rest in between.
fn index(subs: &mut Subs<()>, work: impl IntoIterator<Item = Indexing>, look: &mut dyn FnMut(&mut Subs<()>)) {
    for mut work in work {
        look(subs);
        while !subs.index(&mut work, 1) {
            look(subs);
        }
    }
}

/// What is delivered meanwhile goes to those who are there, and to nobody who comes or goes.
fn nobody_else<'a>(world: &'a World, naive: &'a Naive) -> impl FnMut(&mut Subs<()>) + 'a {
    let draft = Draft::new(Kind(1), 103, "bee").tag(["p", &pubkey(1).to_hex()]).tag(["t", "1"]);
    let record = draft.sign(&keys(1), &[0; 32]).into_record();
    move |subs| {
        let mut got = BTreeSet::new();
        subs.recipients(world, Seq(1_000), record.as_ref(), NOW, |sub, ()| {
            got.insert((sub.conn, sub.quoted.to_string()));
        });
        assert_eq!(got, naive.recipients(world, 1_000, record.as_ref()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_event_goes_exactly_to_the_subscriptions_that_match_and_may_read_it(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        let world = World::new(pubkey(9));
        let mut subs: Subs<()> = Subs::default();
        let mut naive = Naive::default();
        (0..3).for_each(|conn| subs.open(conn, ()));
        let mut seq = 0;
        for step in steps {
            match step {
                Step::Subscribe { conn, name, filters, after } => {
                    let sub = SubId::new(&name.to_string()).unwrap();
                    naive.subs.retain(|s| (s.0, s.1) != (conn, name));
                    let old = subs.unsubscribe(conn, &sub);
                    index(&mut subs, old, &mut nobody_else(&world, &naive));
                    let new = subs.subscribe(conn, &sub, Arc::from(filters.clone()));
                    index(&mut subs, new, &mut nobody_else(&world, &naive));
                    subs.begin(conn, &sub, Seq(after));
                    naive.subs.push((conn, name, filters, after));
                }
                Step::Unsubscribe { conn, name } => {
                    naive.subs.retain(|s| (s.0, s.1) != (conn, name));
                    let old = subs.unsubscribe(conn, &SubId::new(&name.to_string()).unwrap());
                    index(&mut subs, old, &mut nobody_else(&world, &naive));
                }
                Step::Authenticate { conn, key } => {
                    let readers = naive.readers.entry(conn).or_default();
                    readers.add(pubkey(key));
                    subs.authenticate(conn, readers.clone());
                }
                Step::Close { conn } => {
                    naive.subs.retain(|s| s.0 != conn);
                    naive.readers.remove(&conn);
                    let old = subs.close(conn);
                    index(&mut subs, old, &mut nobody_else(&world, &naive));
                    subs.open(conn, ());
                }
                Step::Event(record) => {
                    seq += 1;
                    let mut got = Vec::new();
                    subs.recipients(&world, Seq(seq), record.as_ref(), NOW, |sub, ()| got.push((sub.conn, sub.quoted.to_string())));
                    let count = got.len();
                    let got: BTreeSet<_> = got.into_iter().collect();
                    prop_assert_eq!(got.len(), count, "sent once");
                    prop_assert_eq!(got, naive.recipients(&world, seq, record.as_ref()));
                }
            }
            prop_assert_eq!(subs.len(), naive.subs.len());
        }
    }
}
