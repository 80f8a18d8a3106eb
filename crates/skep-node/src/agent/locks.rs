//! The files by which the instances of an agent on one machine agree who leads (NIP-LE).
//!
//! Beside each other in one directory: `<agent>.lock` says who claims, `<agent>.hold` is locked for as long as its
//! process leads, `machine` holds a random name of this machine. Locks are flock(2), as flock(1) and other NIP-LE
//! programs take them.
//! Must not: unlink a file (another may have it open), follow a link, or write what is not locked.

use std::fs::File as OsFile;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use skep_core::leader::{File, Hold, LockFile, Pid};
use skep_proto::time::UnixMs;
use skep_proto::{PubKey, limits};

use crate::home::{self, Existing, HomeError};

/// How long a lock may take: others hold it for the time of a read and a write.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// A file that is replaced while it is being locked is opened again so often.
const OPENS_MAX: u32 = 5;

/// Room for a claim, so that reading it takes one read and one that finds the end.
const USUAL_BYTES: usize = 256;

const MACHINE: &str = "machine";

/// The files of one agent.
#[derive(Debug, Clone)]
pub struct Locks {
    directory: PathBuf,
    agent: String,
    machine: String,
}

/// The held lock. Dropped, it is free.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "the lock is the open file")] OsFile);

/// Why the lock file could not be locked.
#[derive(Debug, thiserror::Error)]
enum LockError {
    #[error("not to be opened: {0}")]
    Open(Errno),
    #[error("not a regular file")]
    Type,
    #[error("another process keeps it locked")]
    Busy,
    #[error("it is replaced again and again")]
    Replaced,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Locks {
    /// Makes the directory when there is none, and gives the machine its name.
    pub fn open(directory: &Path, agent: &PubKey) -> Result<Self, HomeError> {
        let failed = |source| HomeError::Io { verb: "create", path: directory.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        home::check_directory(directory)?;
        let machine = machine(&directory.join(MACHINE))?;
        Ok(Self { directory: directory.to_owned(), agent: agent.to_hex(), machine })
    }

    /// A name for one launch of a process: `<machine>/<random>`.
    pub fn new_instance(&self) -> Result<String, HomeError> {
        Ok(format!("{}/{}", self.machine, random_name(&self.directory)?))
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Name of the lock file in its directory.
    pub fn lock_name(&self) -> String {
        format!("{}.lock", self.agent)
    }

    fn hold_path(&self) -> PathBuf {
        self.directory.join(format!("{}.hold", self.agent))
    }

    /// Locks the lock file. What cannot be locked reads as [`File::Unreadable`] and is not written.
    pub fn lock(&self) -> Locked {
        match self.try_lock() {
            Ok(file) => Locked(Some(file)),
            Err(error) => {
                tracing::warn!(directory = %self.directory.display(), %error, "the leader lock is not used");
                Locked(None)
            }
        }
    }

    fn try_lock(&self) -> Result<OsFile, LockError> {
        let path = self.directory.join(self.lock_name());
        let deadline = Instant::now() + LOCK_WAIT;
        for _ in 0..OPENS_MAX {
            let file = open(&path)?;
            while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
                match error {
                    Errno::WOULDBLOCK if Instant::now() >= deadline => return Err(LockError::Busy),
                    Errno::WOULDBLOCK => std::thread::sleep(LOCK_RETRY),
                    Errno::INTR => {}
                    other => return Err(LockError::Io(other.into())),
                }
            }
            // Software that writes by rename leaves us with a file that nobody else sees.
            let (ours, found) = (file.metadata()?, std::fs::symlink_metadata(&path));
            if found.is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino())) {
                return Ok(file);
            }
        }
        Err(LockError::Replaced)
    }

    /// Whether the lock file still is what was written; read without the lock, which tells the old from the new, too.
    pub fn still_says(&self, written: &[u8]) -> bool {
        let Ok(file) = open(&self.directory.join(self.lock_name())) else { return false };
        let mut found = Vec::with_capacity(written.len() + 1);
        // A byte more than was written, so that what is longer is not the same.
        file.take(written.len() as u64 + 1).read_to_end(&mut found).is_ok() && found == written
    }

    /// Takes the hold when it is free.
    pub fn take_hold(&self) -> Result<Held, Hold> {
        let file = open(&self.hold_path()).map_err(|_| Hold::Unavailable)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Held(file)),
            Err(Errno::WOULDBLOCK) => Err(Hold::Others),
            Err(_) => Err(Hold::Unavailable),
        }
    }

    /// Waits until the hold is free and takes it: at once when its process dies. For a thread of its own.
    pub fn await_hold(&self) -> Option<Held> {
        let file = open(&self.hold_path()).ok()?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Some(Held(file)),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}

/// What an agent's lock file says, for a screen: read without the lock, so it may be of a moment ago.
pub fn peek(directory: &Path, agent: &PubKey) -> Option<LockFile> {
    let file = OsFile::open(directory.join(format!("{}.lock", agent.to_hex()))).ok()?;
    let mut bytes = Vec::new();
    file.take(limits::LEADER_FILE_BYTES_MAX as u64).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whether the process of a claim lives and renews it.
pub fn is_alive(claim: &LockFile, now: UnixMs) -> bool {
    let is_fresh = now.saturating_sub(claim.claimed_at.0) <= limits::LEADER_STALE_MS;
    is_fresh && is_running(claim.pid)
}

/// Whether there is a process of this number.
pub fn is_running(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(Errno::SRCH))
}

/// Whether two instances run on one machine, as far as their names tell.
pub fn is_same_machine(a: &str, b: &str) -> bool {
    matches!((a.split_once('/'), b.split_once('/')), (Some((a, _)), Some((b, _))) if a == b && !a.is_empty())
}

/// The lock file while it is locked.
#[derive(Debug)]
pub struct Locked(Option<OsFile>);

impl Locked {
    pub fn read(&self) -> File {
        let Some(file) = self.0.as_ref() else { return File::Unreadable };
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        match file.take(limits::LEADER_FILE_BYTES_MAX as u64).read_to_end(&mut bytes) {
            Ok(_) => File::Text(String::from_utf8_lossy(&bytes).into_owned()),
            Err(_) => File::Unreadable,
        }
    }

    /// Writes in place, and gives back what the file now holds, if it could be locked. Who reads without the lock sees the old claim or the new one, and never half of one: what is
    /// shorter than the old one is filled up with spaces, in one write, and cut afterwards.
    pub fn write(&self, claim: &LockFile) -> std::io::Result<Option<Vec<u8>>> {
        let Some(file) = &self.0 else { return Ok(None) };
        let mut bytes = serde_json::to_vec(claim)?;
        let (length, found) = (bytes.len() as u64, file.metadata()?.len());
        bytes.resize(length.max(found.min(limits::LEADER_FILE_BYTES_MAX as u64)) as usize, b' ');
        file.write_all_at(&bytes, 0)?;
        // Each change wakes whoever watches: none that is not needed.
        if found > length {
            file.set_len(length)?;
            bytes.truncate(length as usize);
        }
        Ok(Some(bytes))
    }

    pub fn truncate(&self) -> std::io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |file| file.set_len(0))
    }
}

/// Whether the process that a lock file names lives.
pub fn pid_of(file: &File) -> Pid {
    #[derive(serde::Deserialize)]
    struct Named {
        pid: i32,
    }
    let File::Text(text) = file else { return Pid::Alive };
    let Ok(Named { pid }) = serde_json::from_str(text) else { return Pid::Alive };
    // 0 and below name groups of processes: no statement about one.
    let Some(pid) = (pid > 0).then(|| rustix::process::Pid::from_raw(pid)).flatten() else { return Pid::Alive };
    match rustix::process::test_kill_process(pid) {
        Err(Errno::SRCH) => Pid::Dead,
        _ => Pid::Alive,
    }
}

fn open(path: &Path) -> Result<OsFile, LockError> {
    // NONBLOCK: opening a FIFO would wait.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OsFile::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(LockError::Open)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(LockError::Type) }
}

/// The name of this machine; made by whoever is first.
fn machine(path: &Path) -> Result<String, HomeError> {
    loop {
        match home::read_private(path) {
            Ok(bytes) => {
                let name = String::from_utf8_lossy(&bytes).trim().to_owned();
                let is_ours = name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
                if is_ours {
                    return Ok(name);
                }
                let source = std::io::Error::new(ErrorKind::InvalidData, "it does not hold 16 hex digits");
                return Err(HomeError::Io { verb: "use", path: path.to_owned(), source });
            }
            Err(HomeError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
        match home::write_private(path, random_name(path)?.as_bytes(), Existing::Keep) {
            // Another was first: its name is the machine's.
            Ok(()) | Err(HomeError::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

fn random_name(path: &Path) -> Result<String, HomeError> {
    let failed = |error: getrandom::Error| HomeError::Io { verb: "name", path: path.to_owned(), source: error.into() };
    Ok(format!("{:016x}", getrandom::u64().map_err(failed)?))
}
