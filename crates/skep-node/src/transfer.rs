//! Events in bulk: import and export as JSONL, and the store while the relay is down.
//!
//! Job: stream any number of events in constant memory, and say exactly what became of each.
//! Neighbours: the store, opened directly ([`Offline`]), or a running relay through [`crate::client`]; [`crate::sync`]
//! moves events by the same two ways.
//! Must not: print, or count an event as taken before it is committed or the relay has said OK.

mod compact;
mod export;
mod import;
mod lines;
mod offline;
mod pages;
mod pipeline;
mod resume;
mod tally;

pub use compact::{Compacted, compact};
pub use export::{Written, export_relay, export_store};
pub use import::{Import, Source, import_relay, import_store};
pub use offline::{Fate, Missing, Offline};
pub use pages::Pages;
pub(crate) use pages::{fetch, fetch_ids};
pub use pipeline::Pipeline;
pub use resume::Journal;
pub use tally::{BadLine, Tally};

use std::path::{Path, PathBuf};

use skep_relay::StartError;
use skep_store::StoreError;

use crate::client::ClientError;
use crate::config::ConfigError;
use crate::home::HomeError;
use crate::keys::KeyError;

/// How far a transfer has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that are done with, or of the output that are written.
    pub bytes: u64,
    pub events: u64,
}

/// Told after each step. It may draw, but must not block.
pub type Observer<'o> = dyn FnMut(Progress) + 'o;

/// Why a transfer stopped. What was committed until then stays.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Store(StoreError),
    #[error("the data directory {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("there is no store in {}", path.display())]
    NoStore { path: PathBuf },
    #[error("cannot {verb} {}: {cause}", path.display())]
    File { verb: &'static str, path: PathBuf, cause: std::io::Error },
    #[error("cannot read the input: {0}")]
    Input(std::io::Error),
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
    #[error("line {line}: {why}")]
    BadLine { line: u64, why: String },
    #[error("{url} has more events of the second {second} than it gives at once, and no NIP-77 to list them: {said}")]
    Crowded { url: String, second: u64, said: String },
    #[error("{url} does not reconcile (NIP-77): {said}")]
    NoReconciliation { url: String, said: String },
    #[error("{url} does not follow NIP-77: {why}")]
    Reconciliation { url: String, why: String },
    #[error("the compacted copy holds {found} events instead of {expected}; the store is as it was")]
    Copy { found: u64, expected: u64 },
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl TransferError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Client(error) => return error.hint(),
            Self::Home(error) => return error.hint(),
            Self::Key(error) => return error.hint(),
            Self::Config(_) => "see docs/config.md for every setting and its default",
            Self::Store(StoreError::DiskFull) => "make room on the disk; what was committed stays, run it again",
            Self::Store(_) => "check the data directory's owner and mode, and the disk",
            Self::InUse { .. } => "stop the relay that uses it, or go through it with --relay URL",
            Self::NoStore { .. } => "name the directory with --data DIR, or the relay's file with --config FILE",
            Self::File { .. } => "check the path",
            Self::BadLine { .. } => "the lines before it are in; without --strict bad lines are counted and skipped",
            Self::Crowded { .. } => "export from the data directory while that relay is down",
            Self::NoReconciliation { .. } => "move the events with: skep export --relay URL | skep import --relay URL",
            Self::Reconciliation { .. } => "try again; a relay that goes on like this cannot be synced with",
            Self::Copy { .. } => "the disk may be failing; export the events to another disk",
            Self::Input(_) | Self::Output(_) | Self::Thread(_) => return None,
        };
        Some(hint.to_owned())
    }
}

impl From<StoreError> for TransferError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Locked { path } => Self::InUse { path: path.into() },
            other => Self::Store(other),
        }
    }
}

impl From<StartError> for TransferError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Store(error) => error.into(),
            other => Self::Store(StoreError::Other(other.to_string())),
        }
    }
}

fn file_error(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TransferError {
    let path = path.to_owned();
    move |cause| TransferError::File { verb, path, cause }
}
