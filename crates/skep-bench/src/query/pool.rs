//! The requests of each type, written out before the clock starts, with what must come back.

use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::Type;
use crate::corpus::{Authors, Corpus, mix, on_all_cores};

/// Different requests of one type; more than any cache of answers should hold.
const POOL: usize = 4096;

/// The kinds of a corpus.
const KINDS: [u16; 4] = [1, 6, 7, 1111];

pub struct Request {
    pub frame: Utf8Bytes,
    /// Events, or the number that COUNT must give.
    pub expected: u64,
    /// `false` where events that are not of the corpus may add to it.
    pub exact: bool,
}

/// How many events of a corpus each author wrote, each is mentioned in, each kind has.
pub struct Shares {
    by_author: Vec<u64>,
    by_mention: Vec<u64>,
    by_kind: [u64; KINDS.len()],
}

impl Shares {
    pub fn of(corpus: &Corpus) -> Self {
        let zeros = vec![0; corpus.authors];
        let mut shares = Self { by_author: zeros.clone(), by_mention: zeros, by_kind: [0; KINDS.len()] };
        for traits in (0..corpus.events).map(|index| corpus.traits(index)) {
            shares.by_author[traits.author] += 1;
            traits.mentions.into_iter().flatten().for_each(|author| shares.by_mention[author] += 1);
            if let Some(kind) = KINDS.iter().position(|kind| *kind == traits.kind.0) {
                shares.by_kind[kind] += 1;
            }
        }
        shares
    }
}

fn req(conditions: String, limit: u64, matching: u64, exact: bool) -> Request {
    Request {
        frame: format!(r#"["REQ","q",{{{conditions}"limit":{limit}}}]"#).into(),
        expected: matching.min(limit),
        exact: exact || matching >= limit,
    }
}

fn count(conditions: String, expected: u64, exact: bool) -> Request {
    Request { frame: format!(r#"["COUNT","q",{{{conditions}}}]"#).into(), expected, exact }
}

/// Requests of one type. Authors are drawn anew for each seed, so answers about them are exact.
pub fn requests(kind: Type, corpus: &Corpus, authors: &Authors, shares: &Shares) -> Vec<Request> {
    let pick = |at: usize, of: usize| (mix(at as u64 ^ 0xb00c) % of as u64) as usize;
    let people = (0..corpus.authors.min(POOL)).map(|at| pick(at, corpus.authors));
    let kinds = KINDS.iter().zip(shares.by_kind);
    match kind {
        Type::Id => on_all_cores(0..POOL.min(corpus.events), |at| {
            let id = corpus.id(authors, pick(at, corpus.events));
            vec![Request { frame: format!(r#"["REQ","q",{{"ids":["{id}"]}}]"#).into(), expected: 1, exact: true }]
        }),
        Type::Author => {
            let one = |n| req(format!(r#""authors":["{}"],"#, authors.hex(n)), 50, shares.by_author[n], true);
            people.map(one).collect()
        }
        Type::P => {
            let one = |n| req(format!(r##""#p":["{}"],"##, authors.hex(n)), 100, shares.by_mention[n], true);
            people.map(one).collect()
        }
        Type::Kind => kinds.map(|(kind, n)| req(format!(r#""kinds":[{kind}],"#), 100, n, false)).collect(),
        Type::Latest => vec![req(String::new(), 500, corpus.events as u64, false)],
        Type::CountAuthor => {
            people.map(|n| count(format!(r#""authors":["{}"]"#, authors.hex(n)), shares.by_author[n], true)).collect()
        }
        Type::CountP => {
            people.map(|n| count(format!(r##""#p":["{}"]"##, authors.hex(n)), shares.by_mention[n], true)).collect()
        }
        Type::CountKind => kinds.map(|(kind, n)| count(format!(r#""kinds":[{kind}]"#), n, false)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::wire;

    #[test]
    fn every_request_is_one_that_a_relay_understands() {
        use clap::ValueEnum;
        let corpus = Corpus { seed: 1, events: 700, authors: 9, content_bytes: 20, oldest: 1, newest: 9 };
        let (authors, shares) = (corpus.authors().expect("keys"), Shares::of(&corpus));
        for kind in Type::value_variants() {
            for request in requests(*kind, &corpus, &authors, &shares) {
                wire::decode(&request.frame).unwrap_or_else(|error| panic!("{}: {error:?}", request.frame));
                assert!(request.expected > 0, "{}", request.frame);
            }
        }
        assert_eq!(shares.by_author.iter().sum::<u64>(), 700);
        assert_eq!(shares.by_kind.iter().sum::<u64>(), 700);
    }
}
