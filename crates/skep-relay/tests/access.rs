//! One access function: every read path of a running relay shows each reader the same events, for events of every
//! kind in the table; and to a stranger "absent" and "not yours" look alike.
#![expect(clippy::unwrap_used, reason = "a test")]

mod paths;

use std::collections::BTreeSet;

use paths::{Path, Rig, key, pubkey};
use skep_proto::kind::{TABLE, WriteRule};
use skep_proto::{Draft, Kind, Record};

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
const GONE: u8 = 6;

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
