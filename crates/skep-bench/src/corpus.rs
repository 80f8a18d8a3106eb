//! Events to publish: a function of a seed, so that a small manifest says everything about a million of them.
//!
//! Neighbours: `ingest` and `preload` publish it, `query` and `reconcile` ask for it by a [`Manifest`].
//! Must not: sign while a clock runs.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use secp256k1::{Keypair, SECP256K1};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skep_proto::{Draft, EventId, Kind, PubKey, RawEvent, Sig, VerifiedEvent};
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// Events that refer to each other by `e` tags; the unit of parallel work.
const CHUNK: usize = 64;

/// What is published: by uniformly drawn authors, 60 % notes, 20 % reactions, 10 % reposts, 10 % comments; each with
/// one or two `p` tags and, but for one in 64, an `e` tag to an event before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corpus {
    pub seed: u64,
    pub events: usize,
    pub authors: usize,
    pub content_bytes: usize,
    /// `created_at` of the first and of the last event; the others are evenly between them.
    pub oldest: u64,
    pub newest: u64,
}

/// What an event is, before it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    pub author: usize,
    pub kind: Kind,
    pub created_at: u64,
    pub mentions: [Option<usize>; 2],
}

/// An event ready to be sent: all that the hot path needs.
#[derive(Debug, Clone)]
pub struct Signed {
    /// In hex, as it comes back in OK.
    pub id: [u8; 64],
    /// `["EVENT",{…}]`
    pub frame: Utf8Bytes,
}

/// The keys of the authors of a corpus.
pub struct Authors {
    keys: Vec<Keypair>,
    pubkeys: Vec<PubKey>,
    hex: Vec<String>,
}

impl Authors {
    pub fn hex(&self, author: usize) -> &str {
        &self.hex[author]
    }
}

impl Corpus {
    pub fn authors(&self) -> Result<Authors> {
        let keys = (0..self.authors).map(|author| keypair(self.seed, author)).collect::<Result<Vec<_>>>()?;
        let pubkeys: Vec<PubKey> = keys.iter().map(|key| PubKey(key.x_only_public_key().0.serialize())).collect();
        let hex = pubkeys.iter().map(|pubkey| pubkey.to_hex()).collect();
        Ok(Authors { keys, pubkeys, hex })
    }

    pub fn traits(&self, index: usize) -> Traits {
        let draw = |salt: u64| mix(self.seed ^ mix(index as u64 ^ salt << 56));
        let author = |salt| (draw(salt) % self.authors as u64) as usize;
        let kind = Kind([1, 1, 1, 1, 1, 1, 7, 7, 6, 1111][(draw(1) % 10) as usize]);
        let (first, second) = (author(3), author(4));
        let second = (draw(5).is_multiple_of(2) && second != first).then_some(second);
        let span = self.newest - self.oldest;
        let created_at = self.oldest + (span as u128 * index as u128 / self.events.max(1) as u128) as u64;
        Traits { author: author(2), kind, created_at, mentions: [Some(first), second] }
    }

    /// The same text for the same event; different for different ones, so that nothing is compressed away.
    fn content(&self, index: usize) -> String {
        let mut text = format!("{index}");
        let mut state = self.seed ^ index as u64;
        while text.len() < self.content_bytes {
            state = mix(state);
            text.push(' ');
            text.push_str(&format!("{:x}", state >> (state % 40)));
        }
        text.truncate(self.content_bytes);
        text
    }

    /// Makes the events of one chunk in order; `finish` gives the id of each.
    fn chunk<T>(
        &self,
        authors: &Authors,
        first: usize,
        mut finish: impl FnMut(Draft, usize) -> (EventId, T),
    ) -> Vec<T> {
        let mut before: Option<EventId> = None;
        let last = self.events.min(first + CHUNK);
        let make = |index: usize| {
            let traits = self.traits(index);
            let mut draft = Draft::new(traits.kind, traits.created_at, self.content(index));
            if let Some(id) = before {
                draft = draft.tag(["e", &id.to_hex()]);
            }
            for author in traits.mentions.into_iter().flatten() {
                draft = draft.tag(["p", authors.hex(author)]);
            }
            let (id, made) = finish(draft, traits.author);
            before = Some(id);
            made
        };
        (first..last).map(make).collect()
    }

    /// Signs events `range` on all cores. The range is rounded out to whole chunks.
    pub fn sign(&self, authors: &Authors, range: std::ops::Range<usize>) -> Vec<Signed> {
        let chunks = range.start / CHUNK..range.end.min(self.events).div_ceil(CHUNK);
        on_all_cores(chunks, |chunk| {
            self.chunk(authors, chunk * CHUNK, |draft, author| {
                let event = draft.sign(&authors.keys[author], &[0; 32]);
                (event.id, Signed::new(&event))
            })
        })
    }

    /// The ids of the events that `wanted` picks, with their times, without a signature being made.
    pub fn ids(&self, authors: &Authors, wanted: impl Fn(Traits) -> bool + Sync) -> Vec<(u64, EventId)> {
        on_all_cores(0..self.events.div_ceil(CHUNK), |chunk| {
            let first = chunk * CHUNK;
            let mut ids = self.chunk_ids(authors, first);
            let mut index = first;
            ids.retain(|_| {
                index += 1;
                wanted(self.traits(index - 1))
            });
            ids
        })
    }

    /// The id of one event.
    pub fn id(&self, authors: &Authors, index: usize) -> EventId {
        let first = index / CHUNK * CHUNK;
        self.chunk_ids(authors, first)[index - first].1
    }

    fn chunk_ids(&self, authors: &Authors, first: usize) -> Vec<(u64, EventId)> {
        self.chunk(authors, first, |draft, author| {
            let Draft { created_at, kind, tags, content } = draft;
            let (id, sig) = (EventId([0; 32]), Sig([0; 64]));
            let raw = RawEvent { id, pubkey: authors.pubkeys[author], created_at, kind, tags, content, sig };
            let id = raw.computed_id();
            (id, (created_at, id))
        })
    }
}

impl Signed {
    pub fn new(event: &VerifiedEvent) -> Self {
        let mut id = [0; 64];
        id.copy_from_slice(event.id.to_hex().as_bytes());
        Self { id, frame: format!(r#"["EVENT",{}]"#, event.record().as_ref().to_json()).into() }
    }
}

/// Key number `author` of a seed.
pub fn keypair(seed: u64, author: usize) -> Result<Keypair> {
    let secret = Sha256::digest(format!("skep-bench {seed} {author}"));
    Keypair::from_seckey_slice(SECP256K1, &secret).context("one secret in 2^128 is not valid; take another --seed")
}

/// Runs `make` for each number, on all cores, and keeps the order.
pub fn on_all_cores<T: Send>(numbers: std::ops::Range<usize>, make: impl Fn(usize) -> Vec<T> + Sync) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let share = numbers.len().div_ceil(cores).max(1);
    let make = &make;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (numbers.start..numbers.end)
            .step_by(share)
            .map(|first| {
                scope.spawn(move || (first..numbers.end.min(first + share)).flat_map(make).collect::<Vec<T>>())
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("invariant: making events does not panic")).collect()
    })
}

/// SplitMix64's finalizer: every bit of the input moves every bit of the output.
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What `preload` leaves for `query`, `count` and `negentropy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    /// The relay that holds it, for people.
    pub relay: String,
    pub corpus: Corpus,
}

impl Manifest {
    const VERSION: u32 = 1;

    pub fn new(relay: String, corpus: Corpus) -> Self {
        Self { version: Self::VERSION, relay, corpus }
    }

    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let text =
            std::fs::read(path).with_context(|| format!("cannot read the manifest {name}; make one with preload"))?;
        let found: Self =
            serde_json::from_slice(&text).with_context(|| format!("{name} is not a manifest of preload"))?;
        if found.version != Self::VERSION {
            bail!("{name} has version {}, this program reads {}; run preload again", found.version, Self::VERSION);
        }
        let Corpus { events, authors, oldest, newest, .. } = found.corpus;
        ensure!(events > 0 && authors > 0 && oldest <= newest, "{name} is not a manifest of preload");
        Ok(found)
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text).with_context(|| format!("cannot write the manifest {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus() -> Corpus {
        Corpus { seed: 7, events: 150, authors: 5, content_bytes: 300, oldest: 1000, newest: 2000 }
    }

    #[test]
    fn ids_without_signatures_are_the_ids_of_the_signed_events() {
        let corpus = corpus();
        let authors = corpus.authors().expect("keys");
        let signed: Vec<String> = corpus
            .sign(&authors, 0..150)
            .iter()
            .map(|event| String::from_utf8(event.id.to_vec()).expect("hex"))
            .collect();
        let ids: Vec<String> = corpus.ids(&authors, |_| true).iter().map(|(_, id)| id.to_hex()).collect();
        assert_eq!(signed, ids);
        assert_eq!(corpus.id(&authors, 130).to_hex(), signed[130]);
        assert_eq!(signed.iter().collect::<std::collections::HashSet<_>>().len(), 150);
    }

    #[test]
    fn events_verify_and_have_the_content_asked_for() {
        let corpus = corpus();
        let authors = corpus.authors().expect("keys");
        for (index, event) in corpus.sign(&authors, 64..128).iter().enumerate() {
            let json =
                event.frame.strip_prefix(r#"["EVENT","#).and_then(|text| text.strip_suffix(']')).expect("a frame");
            let raw: RawEvent = serde_json::from_str(json).expect("an event");
            assert_eq!((raw.content.len(), raw.kind), (300, corpus.traits(64 + index).kind));
            raw.verify().expect("a valid signature");
        }
    }
}
