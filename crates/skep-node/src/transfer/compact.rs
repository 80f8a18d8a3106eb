//! The store without its free pages.

use std::fs::{self, File};
use std::path::Path;

use super::offline::{DATA_FILE, Missing};
use super::{Offline, TransferError, file_error};
use crate::config::RelaySettings;
use crate::home::Home;
use skep_store::{LmdbStore, Options};

/// Where the copy is made, inside the data directory: a rename must not cross file systems.
const COPY_DIR: &str = "compact.tmp";

/// Bytes of the data file, before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    pub events: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// Writes a copy, opens it to see that it holds every event, and puts it in the store's place in one step. Until
/// then the store is untouched; a crash leaves a directory that the next run removes.
pub fn compact(settings: &RelaySettings, home: &Home) -> Result<Compacted, TransferError> {
    let offline = Offline::open(settings, home, Missing::Fail)?;
    let dir = offline.dir().to_owned();
    let copy_dir = dir.join(COPY_DIR);
    remove_dir(&copy_dir)?;
    let swapped = fs::create_dir(&copy_dir)
        .map_err(file_error("create", &copy_dir))
        .and_then(|()| copy_and_swap(&offline, &dir, &copy_dir));
    // After a failure the failure is what counts.
    let removed = remove_dir(&copy_dir);
    let compacted = swapped?;
    removed?;
    Ok(compacted)
}

fn copy_and_swap(offline: &Offline, dir: &Path, copy_dir: &Path) -> Result<Compacted, TransferError> {
    let (old, copy) = (dir.join(DATA_FILE), copy_dir.join(DATA_FILE));
    let meta = fs::metadata(&old).map_err(file_error("read", &old))?;
    let expected = offline.len()?;
    offline.store().compact_to(&copy)?;
    fs::set_permissions(&copy, meta.permissions()).map_err(file_error("write", &copy))?;
    let found = {
        let options = Options::new(copy_dir);
        LmdbStore::open(&options)?.len()?
    };
    if found != expected {
        return Err(TransferError::Copy { found, expected });
    }
    let bytes_after = sync(&copy)?;
    fs::rename(&copy, &old).map_err(file_error("replace", &old))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(file_error("flush", dir))?;
    Ok(Compacted { events: found, bytes_before: meta.len(), bytes_after })
}

fn sync(path: &Path) -> Result<u64, TransferError> {
    let file = File::open(path).map_err(file_error("open", path))?;
    file.sync_all().map_err(file_error("flush", path))?;
    Ok(file.metadata().map_err(file_error("read", path))?.len())
}

fn remove_dir(path: &Path) -> Result<(), TransferError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file_error("remove", path)(error)),
        _ => Ok(()),
    }
}
