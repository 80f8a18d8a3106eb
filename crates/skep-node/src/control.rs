//! The control socket: how commands and screens of this user speak to the processes that run agents here.
//!
//! Every such process serves `<home>/run/<pid>.sock` (directory 0700, socket 0600, peers of the same user only); a
//! client asks all of them and removes what a dead process left. What is said is [`skep_proto::control`].
//! Must not: trust a peer of another user, read a line without a bound, or wait for anybody for ever.

mod client;
mod server;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::home::HomeError;

pub use client::{Asked, ask_all, ask_one};
pub use server::Server;

/// Below the home.
pub(crate) const DIRECTORY: &str = "run";

/// Bytes of a socket's path that every system takes (`sun_path` has 104 on macOS, 108 on Linux).
const PATH_BYTES_MAX: usize = 103;

/// Why there is no socket, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("cannot serve the control socket {}: {cause}", path.display())]
    Serve { path: PathBuf, cause: std::io::Error },
    #[error("process {pid} does not answer on its control socket: {why}")]
    Silent { pid: u32, why: String },
}

impl ControlError {
    /// What to try.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Home(error) => error.hint(),
            Self::Serve { .. } => Some("check the directory's owner and mode, and the disk".into()),
            Self::Silent { pid, .. } => Some(format!("if it hangs, end it: kill {pid}")),
        }
    }
}

/// A path by which a socket can be reached, though its own may be too long for one.
pub(crate) struct Reach {
    pub(crate) path: PathBuf,
    /// The directory that a short path goes through; open as long as the path is used.
    _directory: Option<OwnedFd>,
}

impl Reach {
    pub(crate) fn of(directory: &Path, name: &str) -> std::io::Result<Self> {
        use std::os::fd::AsRawFd;
        let path = directory.join(name);
        if path.as_os_str().len() <= PATH_BYTES_MAX || cfg!(not(target_os = "linux")) {
            return Ok(Self { path, _directory: None });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(directory, flags, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", open.as_raw_fd()));
        Ok(Self { path, _directory: Some(open) })
    }
}
