//! The side that asks.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use skep_proto::control::{Answer, Ask, Reply, Request};
use skep_proto::limits;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{ControlError, DIRECTORY, Reach};
use crate::agent::locks::is_running;
use crate::home::{self, Home, HomeError};

/// A process on this machine answers at once, or after the time that it may take to do what was asked.
const LOOK_MAX: Duration = Duration::from_secs(5);
const ACT_MAX: Duration = Duration::from_secs(limits::CONTROL_ACT_SECS + 5);

/// Processes that are asked: each runs agents of this home, and an agent runs in one of them.
const SOCKETS_MAX: usize = 64;

/// Names that are read to find them: killed processes leave theirs, and a look clears away the first of those.
const NAMES_MAX: usize = 4_096;

/// One process, and what it said.
#[derive(Debug)]
pub struct Asked {
    pub pid: u32,
    pub answer: Result<Answer, ControlError>,
}

/// Asks every process that runs agents of this home. None: nothing runs.
pub async fn ask_all(home: &Home, ask: &Ask) -> Result<Vec<Asked>, ControlError> {
    let directory = home.path().join(DIRECTORY);
    let pids = match pids(&directory) {
        Ok(pids) => pids,
        Err(HomeError::Missing { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let asked = pids.into_iter().map(|pid| async move { (pid, ask_one(home, pid, ask).await) });
    let said = join_all(asked).await.into_iter();
    Ok(said.filter_map(|(pid, answer)| Some(Asked { pid, answer: answer.transpose()? })).collect())
}

/// Asks one process. `None`: it is gone, or has no socket.
pub async fn ask_one(home: &Home, pid: u32, ask: &Ask) -> Result<Option<Answer>, ControlError> {
    let directory = home.path().join(DIRECTORY);
    let name = format!("{pid}.sock");
    let silent = |why: String| ControlError::Silent { pid, why };
    let reach = match Reach::of(&directory, &name) {
        Ok(reach) => reach,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(silent(error.to_string())),
    };
    let stream = match UnixStream::connect(&reach.path).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            // Nobody listens. One that lives may be about to.
            if !is_running(pid) {
                home::remove(&directory.join(&name))?;
            }
            return Ok(None);
        }
        Err(error) => return Err(silent(error.to_string())),
    };
    let patience = if matches!(ask, Ask::Status | Ask::Inbox { .. }) { LOOK_MAX } else { ACT_MAX };
    match timeout(patience, exchange(stream, ask)).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error)) => Err(silent(error.to_string())),
        Err(_) => Err(silent(format!("nothing within {} s", patience.as_secs()))),
    }
}

async fn exchange(stream: UnixStream, ask: &Ask) -> std::io::Result<Answer> {
    let mut stream = BufReader::new(stream);
    let mut line = serde_json::to_vec(&Request::new(ask.clone()))?;
    line.push(b'\n');
    // One that turns us away does not read; what it said is still there.
    let _ = stream.get_mut().write_all(&line).await;
    let mut line = Vec::new();
    stream.take(limits::CONTROL_ANSWER_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice::<Reply>(&line)?.answer)
}

/// The processes that have a socket there; if they are too many, those first that are running.
fn pids(directory: &Path) -> Result<Vec<u32>, HomeError> {
    home::check_directory(directory)?;
    let failed = |source| HomeError::Io { verb: "list", path: directory.to_owned(), source };
    let mut found: Vec<u32> = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)?.take(NAMES_MAX) {
        let name = entry.map_err(failed)?.file_name();
        let pid: Option<u32> =
            name.to_str().and_then(|name| name.strip_suffix(".sock")).and_then(|pid| pid.parse().ok());
        found.extend(pid);
    }
    found.sort_by_cached_key(|pid| (!is_running(*pid), *pid));
    found.truncate(SOCKETS_MAX);
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dead_processes_left_hides_nobody_who_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::at(dir.path().join("home"));
        let run = home.directory(DIRECTORY).expect("made");
        // Beyond any pid that a system gives.
        let dead = (0..2_000).map(|n| i32::MAX as u32 - n);
        let alive = std::process::id();
        for pid in dead.chain([alive]) {
            std::fs::write(run.join(format!("{pid}.sock")), "").expect("written");
        }
        let found = pids(&run).expect("listed");
        assert_eq!(found.len(), SOCKETS_MAX);
        assert!(found.contains(&alive));
    }
}
