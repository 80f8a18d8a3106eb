//! Negentropy (NIP-77): a client that has nothing, half, or all of a set finds out what it lacks.
//!
//! The set is that of some of the corpus's authors, so that what must be found is known exactly.
//! Must not: fetch the events; that is a query, and measured there.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use skep_proto::{EventId, reconcile::guard};

use crate::answer::Answer;
use crate::cli::{Common, FromManifest, at_least_one};
use crate::conn::{Buffers, Conn, within};
use crate::corpus::{Corpus, Manifest};
use crate::meter::Meter;
use crate::sheet::{Metric, Outcome, Sheet};

/// More rounds than any reconciliation needs: one that does not end is a fault of the relay.
const ROUNDS_MAX: u32 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Have {
    Nothing,
    Half,
    All,
}

#[derive(Debug, Clone, Args)]
pub struct Reconcile {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub from: FromManifest,
    /// What the client has at the start, one measurement for each
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nothing,half,all")]
    pub have: Vec<Have>,
    /// Size of the set, about
    #[arg(long, default_value_t = 100_000, value_parser = at_least_one)]
    pub events: usize,
    /// Bytes of one message of ours, before hex
    #[arg(long, default_value_t = 61_440)]
    pub frame_bytes: u64,
}

/// What one reconciliation took.
#[derive(Default)]
struct Talk {
    rounds: u32,
    sent: usize,
    received: usize,
    have: Vec<Id>,
    need: Vec<Id>,
}

impl Reconcile {
    pub fn run(&self) -> Result<Outcome> {
        ensure!(
            self.frame_bytes == 0 || self.frame_bytes >= 4096,
            "--frame-bytes must be 0 (no bound) or at least 4096"
        );
        let corpus = Manifest::read(&self.from.manifest)?.corpus;
        let (filter, set) = self.set(&corpus)?;
        self.common.repeat("negentropy", || {
            self.have.iter().map(|have| self.common.block_on(self.measure(*have, &filter, &set))).collect()
        })
    }

    /// The filter, and the ids that are in it.
    fn set(&self, corpus: &Corpus) -> Result<(String, Vec<(u64, EventId)>)> {
        let authors = corpus.authors()?;
        let chosen = (self.events * corpus.authors).div_ceil(corpus.events).clamp(1, corpus.authors);
        let names: Vec<&str> = (0..chosen).map(|author| authors.hex(author)).collect();
        let filter = format!(r#"{{"authors":{}}}"#, serde_json::to_string(&names)?);
        Ok((filter, corpus.ids(&authors, |traits| traits.author < chosen)))
    }

    async fn measure(&self, have: Have, filter: &str, set: &[(u64, EventId)]) -> Result<Sheet> {
        let mut storage = NegentropyStorageVector::with_capacity(set.len());
        let mut lacking = HashSet::new();
        for (index, (at, id)) in set.iter().enumerate() {
            let has = match have {
                Have::Nothing => false,
                Have::Half => index % 2 == 0,
                Have::All => true,
            };
            if has {
                storage.insert(*at, Id::from_byte_array(id.0)).map_err(wrong)?;
            } else {
                lacking.insert(id.0);
            }
        }
        storage.seal().map_err(wrong)?;
        let mut conn = Conn::open(&self.common.target()?, Buffers::Wide, 0).await?;
        let client = Negentropy::borrowed(&storage, self.frame_bytes).map_err(wrong)?;
        let name = format!("{have:?}").to_lowercase();
        let mut sheet = Sheet::new(format!("{} events, client has {name}", set.len()));
        let meter = Meter::start(self.common.pid);
        let start = Instant::now();
        let talk = talk(&mut conn, client, filter, self.common.stall()).await?;
        sheet.set_rate(set.len() as u64, start.elapsed().as_secs_f64());
        meter.stop(set.len() as u64, &mut sheet);
        sheet.set(Metric::Rounds, f64::from(talk.rounds));
        sheet.set(Metric::SentBytes, talk.sent as f64);
        sheet.set(Metric::ReceivedBytes, talk.received as f64);
        let found: HashSet<[u8; 32]> = talk.need.iter().map(|id| **id).collect();
        if found != lacking || !talk.have.is_empty() {
            sheet.fault(format!(
                "found {} ids to fetch and {} to send; expected {} and 0",
                found.len(),
                talk.have.len(),
                lacking.len()
            ));
        }
        Ok(sheet)
    }
}

async fn talk(
    conn: &mut Conn,
    mut client: Negentropy<'_, NegentropyStorageVector>,
    filter: &str,
    stall: Duration,
) -> Result<Talk> {
    let mut talk = Talk::default();
    let first = faster_hex::hex_string(&client.initiate().map_err(wrong)?);
    let mut frame = format!(r#"["NEG-OPEN","n",{filter},"{first}"]"#);
    loop {
        talk.rounds += 1;
        ensure!(talk.rounds <= ROUNDS_MAX, "no end after {ROUNDS_MAX} rounds");
        talk.sent += frame.len();
        conn.send(frame.into()).await?;
        let (message, bytes) = within(stall, hear(conn)).await.context("negentropy (NIP-77)")?;
        talk.received += bytes;
        let Talk { have, need, .. } = &mut talk;
        match client.reconcile_with_ids(&message, have, need).map_err(wrong)? {
            Some(next) => frame = format!(r#"["NEG-MSG","n","{}"]"#, faster_hex::hex_string(&next)),
            None => break,
        }
    }
    conn.send(r#"["NEG-CLOSE","n"]"#.into()).await?;
    Ok(talk)
}

/// The relay's next message, and the size of its frame.
async fn hear(conn: &mut Conn) -> Result<(Vec<u8>, usize)> {
    loop {
        let text = conn.recv().await?;
        match Answer::read(&text) {
            Answer::NegMsg { hex } => {
                let mut message = vec![0; hex.len() / 2];
                faster_hex::hex_decode(hex.as_bytes(), &mut message).ok().context("a NEG-MSG is not hex")?;
                // The crate below trusts the lengths in a message; we do not.
                ensure!(guard(&message).context("malformed NEG-MSG")?, "the relay speaks another protocol version");
                return Ok((message, text.len()));
            }
            Answer::NegErr { message } => bail!("the relay refused the reconciliation: {message}"),
            Answer::Notice { message } => bail!("the relay answered with a NOTICE: {message}"),
            _ => {}
        }
    }
}

fn wrong(error: negentropy::Error) -> anyhow::Error {
    anyhow!("negentropy: {error}")
}
