//! What can be done to an agent that does not run: its records are taken for a moment, as if it did.

use std::path::Path;

use skep_agent::driver::{Heeded, note_here, note_word, pauses};
use skep_proto::pause::{Held, Reach};
use skep_proto::{RawEvent, Timestamp};
use skep_store::AgentStore;
use skep_store::lock::DirLock;

use crate::agent::{RECORDS, StartError, make_directory};
use crate::clock::unix_now;

/// Notes that no new turns begin in this home, or that they may, for the next time it starts. Fails while it runs.
pub fn set_pause(directory: &Path, held: Option<&Held>) -> Result<Vec<Held>, StartError> {
    with_records(directory, |store| {
        note_here(store, held)?;
        Ok(pauses(store)?.all())
    })
}

/// Notes its owner's word, for the next time it starts, and that its relays are told then. Fails while it runs. Gives
/// what holds then, and whether the word stands: it has no newer one.
pub fn heed(
    directory: &Path,
    reach: &Reach,
    event: &RawEvent,
    relays: &[String],
) -> Result<(Vec<Held>, bool), StartError> {
    with_records(directory, |store| {
        let mut all = pauses(store)?;
        let stands = matches!(note_word(store, &mut all, reach, event, unix_now())?, Heeded::New | Heeded::Again);
        if stands {
            store.enqueue(std::slice::from_ref(event), relays, unix_now())?;
        }
        Ok((all.all(), stands))
    })
}

/// What holds an agent by its records, also while it runs. What cannot be read is not known.
pub fn held(directory: &Path) -> Option<Vec<Held>> {
    let store = AgentStore::open_to_read(&directory.join(RECORDS)).ok()?;
    pauses(&store).ok().map(|all| all.all())
}

/// The date of its owner's last word; also while it runs. What cannot be read is not known.
pub fn newest_word(directory: &Path, reach: &Reach) -> Option<Timestamp> {
    let store = AgentStore::open_to_read(&directory.join(RECORDS)).ok()?;
    pauses(&store).ok()?.word(reach).map(|word| word.at)
}

fn with_records<T>(
    directory: &Path,
    work: impl FnOnce(&AgentStore) -> Result<T, skep_store::StoreError>,
) -> Result<T, StartError> {
    make_directory(directory)?;
    crate::home::check_directory(directory)?;
    let _lock = DirLock::acquire(directory)?;
    let store = AgentStore::open(&directory.join(RECORDS))?;
    Ok(work(&store)?)
}
