//! What can be done to an agent that does not run: its records are taken for a moment, as if it did.

use std::path::Path;

use skep_agent::driver::PAUSED;
use skep_store::AgentStore;
use skep_store::lock::DirLock;

use crate::agent::{RECORDS, StartError, make_directory};

/// Notes that no new turns begin, or that they may, for the next time it starts. Fails while it runs.
pub fn set_pause(directory: &Path, reason: Option<&str>) -> Result<(), StartError> {
    make_directory(directory)?;
    crate::home::check_directory(directory)?;
    let _lock = DirLock::acquire(directory)?;
    let store = AgentStore::open(&directory.join(RECORDS))?;
    Ok(store.set_fact(PAUSED, reason)?)
}
