//! JSONL in: into the store while the relay is down, or through a running relay.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use skep_proto::{RawEvent, Timestamp, VerifiedEvent};

use super::lines::{self, Block, Line};
use super::{Fate, Journal, Observer, Offline, Pipeline, Progress, Tally, TransferError, file_error};
use crate::client::Client;
use crate::clock::unix_now;

/// Blocks that go into one transaction when they are ready: 16 x 256 events share two flushes.
const BLOCKS_PER_COMMIT: usize = 16;

/// Where lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Stdin,
    File(PathBuf),
}

impl Source {
    /// Bytes in all, where that is known.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Self::Stdin => None,
            Self::File(path) => std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len()),
        }
    }

    /// Whether it can be read at all: to be known before anything is made for it.
    pub fn check(&self) -> Result<(), TransferError> {
        self.open(0).map(drop)
    }

    fn open(&self, offset: u64) -> Result<Box<dyn Read + Send>, TransferError> {
        let Self::File(path) = self else { return Ok(Box::new(io::stdin())) };
        let mut file = File::open(path).map_err(file_error("open", path))?;
        if file.metadata().is_ok_and(|meta| meta.is_dir()) {
            return Err(is_directory(path));
        }
        if offset > 0 {
            file.seek(SeekFrom::Start(offset)).map_err(file_error("read", path))?;
        }
        Ok(Box::new(file))
    }
}

fn is_directory(path: &Path) -> TransferError {
    file_error("read", path)(io::ErrorKind::IsADirectory.into())
}

/// One import: what comes in, and what is kept about it.
pub struct Import<'a> {
    pub source: Source,
    /// Told how far it is; it also says where to begin.
    pub journal: Option<&'a mut Journal>,
    /// Stop at the first line that holds no valid event; what is before it stays.
    pub is_strict: bool,
    pub observer: &'a mut Observer<'a>,
}

impl Import<'_> {
    fn start(&self) -> Result<async_channel::Receiver<io::Result<Block>>, TransferError> {
        let (bytes, lines) = self.journal.as_ref().map_or((0, 0), |journal| journal.done());
        lines::start(self.source.open(bytes)?, bytes, lines)
    }

    /// Everything before `bytes` is committed.
    fn note(&mut self, bytes: u64, lines: u64, tally: &Tally) -> Result<(), TransferError> {
        if let Some(journal) = &mut self.journal {
            journal.note(bytes, lines)?;
        }
        (self.observer)(Progress { bytes, events: tally.seen() });
        Ok(())
    }
}

/// Imports into an open store. All cores verify; one transaction takes what is ready.
pub fn import_store(store: &Offline, mut import: Import<'_>, tally: &mut Tally) -> Result<(), TransferError> {
    let blocks = import.start()?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let (done, judged) = async_channel::bounded::<io::Result<Judged>>(lines::BLOCKS_MAX);
    let now = unix_now();
    std::thread::scope(|scope| {
        for i in 0..cores {
            let (blocks, done) = (blocks.clone(), done.clone());
            let judge = move || {
                while let Ok(block) = blocks.recv_blocking() {
                    if done.send_blocking(block.map(|block| Judged::of(store, block, now))).is_err() {
                        return;
                    }
                }
            };
            let name = format!("skep-import-{i}");
            std::thread::Builder::new().name(name).spawn_scoped(scope, judge).map_err(TransferError::Thread)?;
        }
        drop((blocks, done));
        commit_in_order(store, &judged, &mut import, tally)
    })
}

/// A block whose events were judged.
struct Judged {
    block: Block,
    fates: Vec<(u64, Fate)>,
}

impl Judged {
    fn of(store: &Offline, mut block: Block, now: Timestamp) -> Self {
        let fates = std::mem::take(&mut block.lines).into_iter().map(|line| (line.number, fate(store, &line, now)));
        Self { fates: fates.collect(), block }
    }
}

fn fate(store: &Offline, line: &Line, now: Timestamp) -> Fate {
    match &line.text {
        Some(text) => store.judge_text(text, now),
        None => Fate::Bad(too_long()),
    }
}

fn too_long() -> String {
    format!("longer than {} bytes", lines::LINE_BYTES_MAX)
}

/// Blocks come as threads finish them; they are committed as they stand in the input, so that "everything before
/// this byte" is true.
fn commit_in_order(
    store: &Offline,
    judged: &async_channel::Receiver<io::Result<Judged>>,
    import: &mut Import<'_>,
    tally: &mut Tally,
) -> Result<(), TransferError> {
    let mut next = 0;
    let mut waiting = BTreeMap::new();
    while let Ok(first) = judged.recv_blocking() {
        let mut arrived = Some(first);
        while let Some(judged_block) = arrived {
            let judged_block = judged_block.map_err(TransferError::Input)?;
            waiting.insert(judged_block.block.number, judged_block);
            arrived = judged.try_recv().ok();
        }
        while waiting.contains_key(&next) {
            let mut batch = Vec::new();
            let mut held = Vec::new();
            while held.len() < BLOCKS_PER_COMMIT
                && let Some(Judged { block, mut fates }) = waiting.remove(&next)
            {
                batch.append(&mut fates);
                held.push(block);
                next += 1;
            }
            let stop = if import.is_strict { cut_at_first_bad(&mut batch) } else { None };
            store.commit(batch, tally)?;
            if let Some((line, why)) = stop {
                return Err(TransferError::BadLine { line, why });
            }
            if let Some(last) = held.last() {
                import.note(last.end, last.last_line, tally)?;
            }
        }
    }
    Ok(())
}

fn cut_at_first_bad(batch: &mut Vec<(u64, Fate)>) -> Option<(u64, String)> {
    let at = batch.iter().position(|(_, fate)| matches!(fate, Fate::Bad(_)))?;
    let rest = batch.split_off(at);
    rest.into_iter().find_map(|(line, fate)| if let Fate::Bad(why) = fate { Some((line, why)) } else { None })
}

/// Imports through a running relay, which judges; what does not verify is not sent.
pub async fn import_relay(client: &mut Client, mut import: Import<'_>, tally: &mut Tally) -> Result<(), TransferError> {
    let blocks = import.start()?;
    let mut pipeline = Pipeline::new(client);
    // Lines without an answer, by number, and where they begin: everything before the first of them is done with.
    let mut open: BTreeMap<u64, u64> = BTreeMap::new();
    let mut end = (0, 0);
    while let Ok(block) = blocks.recv().await {
        let block = block.map_err(TransferError::Input)?;
        for line in &block.lines {
            match parse(line) {
                Ok(event) => {
                    open.insert(line.number, line.start);
                    pipeline.send(line.number, &event).await?;
                }
                Err(why) if import.is_strict => {
                    pipeline.settle().await?;
                    count(&mut pipeline, &mut open, tally);
                    return Err(TransferError::BadLine { line: line.number, why });
                }
                Err(why) => tally.bad(line.number, why),
            }
            count(&mut pipeline, &mut open, tally);
        }
        end = (block.end, block.last_line);
        let (bytes, lines) = open.first_key_value().map_or(end, |(line, start)| (*start, line - 1));
        import.note(bytes, lines, tally)?;
    }
    pipeline.settle().await?;
    count(&mut pipeline, &mut open, tally);
    import.note(end.0, end.1, tally)
}

fn count(pipeline: &mut Pipeline<'_, u64>, open: &mut BTreeMap<u64, u64>, tally: &mut Tally) {
    for (line, verdict) in pipeline.answers() {
        open.remove(&line);
        tally.verdict(verdict.accepted, &verdict.message);
    }
}

fn parse(line: &Line) -> Result<VerifiedEvent, String> {
    let text = line.text.as_ref().ok_or_else(too_long)?;
    let event: RawEvent = serde_json::from_slice(text).map_err(|error| format!("not an event: {error}"))?;
    event.verify().map_err(|error| error.to_string())
}
