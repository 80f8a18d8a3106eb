//! One access function: every read path of a running relay shows each reader the same events, for events of every
//! kind in the table; and to a stranger "absent" and "not yours" look alike.
#![expect(clippy::unwrap_used, reason = "a test")]

mod drawn;
mod paths;

use std::collections::BTreeSet;

use drawn::{Case, Drawn, truth};
use paths::{Path, Reader, Rig, Seen, key, pubkey};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::json;
use skep_proto::kind::{TABLE, WriteRule};
use skep_proto::{Draft, EventId, Kind, Record};

/// Who asks. Several keys at once is a reader of its own.
const READERS: [(&str, &[u8]); 7] = [
    ("nobody", &[]),
    ("author (an agent)", &[AGENT]),
    ("recipient", &[OTHER]),
    ("owner", &[OWNER]),
    ("member", &[MEMBER]),
    ("stranger", &[STRANGER]),
    ("stranger and owner", &[STRANGER, OWNER]),
];

pub const AGENT: u8 = 1;
pub const OWNER: u8 = 2;
pub const OTHER: u8 = 3;
pub const MEMBER: u8 = 4;
pub const STRANGER: u8 = 5;
pub const GONE: u8 = 6;

/// Two events of each kind that can be stored or ringed: one to the owner, one to somebody else; some in a channel.
fn events(now: u64) -> Vec<Record> {
    let mut all = Vec::new();
    for row in TABLE.iter().filter(|row| row.write != WriteRule::Never && row.write != WriteRule::LeaseRequest) {
        for (i, recipient) in [OWNER, OTHER].into_iter().enumerate() {
            for channel in [None, Some("members-only"), Some("open-to-all")] {
                let mut draft = Draft::new(Kind(row.first), now - i as u64, "needle in a haystack")
                    .tag(["p", &pubkey(recipient).to_hex()])
                    .tag(["d", &identifier(row.first, i, channel)])
                    .tag(["x", "all"]);
                if let Some(channel) = channel {
                    draft = draft.tag(["h", channel]);
                }
                // A request to vanish would take the agent's other events with it.
                let author = if row.first == 62 { GONE } else { AGENT };
                all.push(draft.sign(&key(author), &[0; 32]).into_record());
            }
        }
    }
    all
}

/// Half of the application data is a read state, which is its author's alone.
fn identifier(kind: u16, i: usize, channel: Option<&str>) -> String {
    let prefix = if kind == 30_078 && i == 0 { "read-state:" } else { "" };
    format!("{prefix}{kind}-{i}-{channel:?}")
}

/// Who may read what, written a second time from the design's table and not from the code.
pub fn should_see(keys: &[u8], record: &Record) -> bool {
    let event = record.as_ref();
    let has = |key: u8| keys.contains(&key);
    let is_recipient = [OWNER, OTHER].into_iter().any(|n| has(n) && event.names(b'p', &pubkey(n)));
    let stands = has(AGENT) || has(OWNER) || has(MEMBER);
    let is_shut = event.tag_values(b'h').any(|h| h == b"members-only");
    match event.kind().0 {
        1059 | 24_133 | 24_200 | 44_200 => is_recipient,
        4 | 13 | 4481 | 4482 => has(AGENT) || is_recipient,
        30_482 => has(AGENT) || is_recipient || has(OWNER),
        8000 | 8001 | 13_534 | 20_001 | 24_481 | 30_480 | 30_481 => stands,
        28_934..=28_936 => false,
        30_078 => has(AGENT) || !event.identifier().starts_with(b"read-state:"),
        0 | 3 | 5 | 62 | 1617 | 1618 | 1621 | 1630..=1633 | 10_002 | 10_050 | 30_023 | 30_315 | 30_617 => true,
        _ => !is_shut || has(AGENT) || has(MEMBER),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_read_path_shows_a_reader_the_same_events_and_only_those_it_may_see() {
    let rig = Rig::start().await;
    let now = paths::unix_now();
    let records = events(now);
    rig.store(&records).await;
    assert!(rig.kept(&records).len() > 150, "there is something to see");
    let absent = Draft::new(Kind(44_200), now, "never stored").sign(&key(AGENT), &[0; 32]).into_record();
    for (name, keys) in READERS {
        let may: BTreeSet<_> = rig.readable(keys, &records);
        let mut reader = rig.connect(keys).await;
        for path in Path::STORED {
            let got = reader.read(path, &records).await;
            let expected = rig.expected(path, &may, &records);
            assert_eq!(got, expected, "{name} by {path:?}");
        }
        // What may not be seen is answered like what is not there.
        for record in records.iter().step_by(3) {
            if !may.contains(&record.as_ref().id()) {
                let (hidden, nothing) = (reader.probe(record).await, reader.probe(&absent).await);
                assert_eq!(hidden, nothing, "{name} can tell kind {} from nothing", record.as_ref().kind());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn live_delivery_shows_the_same_as_every_other_path() {
    let rig = Rig::start().await;
    let now = paths::unix_now();
    let records = events(now);
    let mut readers = Vec::new();
    for (name, keys) in READERS {
        let mut reader = rig.connect(keys).await;
        reader.watch_all().await;
        readers.push((name, keys, reader));
    }
    rig.store(&records).await;
    for (name, keys, mut reader) in readers {
        let may = rig.readable(keys, &rig.kept(&records));
        let all = rig.readable(keys, &records);
        let got = reader.live_until_marker(&rig).await;
        assert!(got.is_subset(&all), "{name} sees live what it may not");
        assert!(got.is_superset(&may), "{name} misses live what it may see");
    }
}

/// Each case is a relay of its own with 3 readers of 4 questions, each asked on every path; a case of `SKEP_CASES` is
/// one question.
const READERS_DRAWN: usize = 3;
const QUESTIONS: usize = 4;

#[test]
fn all_paths_agree_with_the_truth_table_for_drawn_worlds_events_readers_and_filters() {
    let questions = std::env::var("SKEP_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let cases = (questions / (READERS_DRAWN * QUESTIONS) as u32).max(1);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let strategy = drawn::case(READERS_DRAWN, QUESTIONS);
    runner.run(&strategy, |case| runtime.block_on(ask_everything(&case)).map_err(TestCaseError::fail)).unwrap();
}

/// One drawn relay, from its start to its end, also when something is wrong: a failing case is run again and again.
async fn ask_everything(case: &Case) -> Result<(), String> {
    let now = paths::unix_now();
    let all = drawn::build(&case.plans, now);
    let rig = Rig::start_in(|world| drawn::furnish(world, &case.world, &all)).await;
    let answered = store_and_ask(&rig, case, &all, now).await;
    rig.stop().await;
    answered
}

/// Every reader watches, everything is stored, then every reader asks every question on every path.
async fn store_and_ask(rig: &Rig, case: &Case, all: &[Drawn], now: u64) -> Result<(), String> {
    let marker = Draft::new(Kind(29_999), now, "marker").sign(&key(AGENT), &[0; 32]).into_record();
    let mut readers = Vec::new();
    for (keys, questions) in &case.readers {
        let keys: Vec<u8> = keys.iter().copied().filter(|n| !(*n == OWNER && case.world.is_owner_banned)).collect();
        let mut reader = rig.connect(&keys).await;
        let filter = drawn::filter(&questions[0], all, now);
        let is_live = reader.watch(&filter, &json!({ "ids": [marker.as_ref().id()] })).await;
        readers.push((reader, questions, is_live));
    }
    let records: Vec<Record> = all.iter().map(|drawn| drawn.record.clone()).collect();
    rig.store(&records).await;
    rig.store(std::slice::from_ref(&marker)).await;
    let there: BTreeSet<_> = rig.kept(&records).iter().map(|record| record.as_ref().id()).collect();
    let kept: Vec<Drawn> = all.iter().filter(|drawn| there.contains(&drawn.record.as_ref().id())).cloned().collect();
    let scene = Scene { case, all, kept: &kept, now };
    for (mut reader, questions, is_live) in readers {
        let got = if is_live { reader.live_until(marker.as_ref().id()).await } else { BTreeSet::new() };
        scene.check_live(reader.keys(), &questions[0], &got)?;
        for question in questions {
            scene.ask(&mut reader, question).await?;
        }
        scene.check_absence(&mut reader).await?;
    }
    Ok(())
}

struct Scene<'a> {
    case: &'a Case,
    all: &'a [Drawn],
    kept: &'a [Drawn],
    now: u64,
}

impl Scene<'_> {
    /// Live delivery gives what matches and may be seen; what was replaced in the same batch may or may not come.
    fn check_live(&self, keys: &[u8], question: &drawn::Question, got: &BTreeSet<EventId>) -> Result<(), String> {
        let visible = |list: &[Drawn]| -> BTreeSet<EventId> {
            let visible = list.iter().filter(|drawn| {
                truth::matches(question, drawn, self.all, self.now) && truth::sees(&self.case.world, keys, drawn)
            });
            visible.map(|drawn| drawn.record.as_ref().id()).collect()
        };
        let (least, most) = (visible(self.kept), visible(self.all));
        let is_right = got.is_subset(&most) && got.is_superset(&least);
        let told = || format!("live: {keys:?} of {question:?} got {}", self.told(got, &least));
        if is_right { Ok(()) } else { Err(told()) }
    }

    async fn ask(&self, reader: &mut Reader, question: &drawn::Question) -> Result<(), String> {
        let filter = drawn::filter(question, self.all, self.now);
        let keys = reader.keys().to_vec();
        let answer = |keys: &[u8]| truth::answer(&self.case.world, keys, question, (self.all, self.kept), self.now);
        // An HTTP request carries one token, of one key.
        let (whole, last) = (answer(&keys), answer(keys.last().map_or(&[], std::slice::from_ref)));
        let seen = [
            ("REQ", reader.request(&filter).await, Seen::Ids(whole.served)),
            ("COUNT", reader.count(&filter).await, Seen::Count(whole.stored.len())),
            ("negentropy", reader.reconcile(&filter).await, Seen::Ids(whole.stored)),
            ("HTTP query", reader.http_query(&filter).await, Seen::Ids(last.served)),
            ("HTTP count", reader.http_count(&filter).await, Seen::Count(last.stored.len())),
        ];
        for (path, got, expected) in seen {
            match (&got, &expected) {
                _ if got == expected => {}
                (Seen::Ids(got), Seen::Ids(expected)) => {
                    return Err(format!("{path}: {keys:?} of {filter} got {}", self.told(got, expected)));
                }
                _ => return Err(format!("{path}: {keys:?} of {filter} got {got:?}, should {expected:?}")),
            }
        }
        Ok(())
    }

    /// What may not be seen is answered on every path like what is not there.
    async fn check_absence(&self, reader: &mut Reader) -> Result<(), String> {
        let keys = reader.keys().to_vec();
        let http = keys.last().map_or(&[][..], std::slice::from_ref);
        let is_hidden =
            |drawn: &Drawn| !truth::sees(&self.case.world, &keys, drawn) && !truth::sees(&self.case.world, http, drawn);
        // Every fourth is enough for one case, and asking costs most of a case's time.
        for (i, drawn) in self.all.iter().enumerate().filter(|(_, drawn)| is_hidden(drawn)).step_by(4) {
            let event = drawn.record.as_ref();
            let pairs = [
                (json!({ "ids": [event.id()] }), json!({ "ids": ["00".repeat(32)] })),
                (
                    json!({ "kinds": [event.kind()], "authors": [event.pubkey()], "#z": [i.to_string()], "since": 1 }),
                    json!({ "kinds": [event.kind()], "authors": [event.pubkey()], "#z": ["nothing"], "since": 1 }),
                ),
            ];
            for (hidden, absent) in pairs {
                let (hidden, absent) = (reader.answers(&hidden).await, reader.answers(&absent).await);
                if hidden != absent {
                    return Err(format!("{keys:?} can tell {:?} from nothing: {hidden:?} {absent:?}", drawn.plan));
                }
            }
        }
        Ok(())
    }

    /// The difference between two answers, as plans: what a person can read.
    fn told(&self, got: &BTreeSet<EventId>, expected: &BTreeSet<EventId>) -> String {
        let plans = |ids: Vec<&EventId>| -> Vec<&drawn::Plan> {
            self.all
                .iter()
                .filter(|drawn| ids.contains(&&drawn.record.as_ref().id()))
                .map(|drawn| &drawn.plan)
                .collect()
        };
        let (more, less) = (got.difference(expected).collect(), expected.difference(got).collect());
        format!("what it may not see {:?}, and lacks {:?}", plans(more), plans(less))
    }
}
