//! Notices that a file in a directory has changed: by inotify on Linux, elsewhere by looking every second.
//!
//! rustix gives inotify without a further dependency; the `notify` crate would bring seven.

use std::path::Path;

#[cfg(target_os = "linux")]
pub use linux::Notice;
#[cfg(not(target_os = "linux"))]
pub use other::Notice;

#[cfg(target_os = "linux")]
mod linux {
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;

    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
    use rustix::io::Errno;
    use tokio::io::unix::AsyncFd;

    use super::Path;

    /// Watches the directory, so that a file that is replaced is still seen.
    pub struct Notice {
        fd: AsyncFd<OwnedFd>,
        name: String,
    }

    impl Notice {
        /// Not when a file was opened and closed: whoever looks at it does that.
        pub fn new(directory: &Path, name: String) -> std::io::Result<Self> {
            let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
            inotify::add_watch(&fd, directory, what)?;
            #[expect(
                deprecated,
                reason = "its successor is unsafe, for types whose descriptor may change; an OwnedFd's does not"
            )]
            let fd = AsyncFd::new(fd)?;
            Ok(Self { fd, name })
        }

        /// Waits for the next change; several at once are one.
        pub async fn changed(&self) -> std::io::Result<()> {
            loop {
                let mut ready = self.fd.readable().await?;
                let found = self.drain()?;
                ready.clear_ready();
                if found {
                    return Ok(());
                }
            }
        }

        fn drain(&self) -> std::io::Result<bool> {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
            let mut found = false;
            loop {
                match reader.next() {
                    Ok(event) => {
                        let is_it = event.file_name().is_some_and(|name| name.to_bytes() == self.name.as_bytes());
                        found |= is_it || event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    }
                    Err(Errno::WOULDBLOCK) => return Ok(found),
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::time::{Duration, SystemTime};

    use super::Path;

    pub struct Notice {
        path: PathBuf,
        /// A lock, because two may wait for one notice; it is not held over an await.
        seen: Mutex<Option<SystemTime>>,
    }

    impl Notice {
        pub fn new(directory: &Path, name: String) -> std::io::Result<Self> {
            Ok(Self { path: directory.join(name), seen: Mutex::new(None) })
        }

        pub async fn changed(&self) -> std::io::Result<()> {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let now = std::fs::symlink_metadata(&self.path).and_then(|meta| meta.modified()).ok();
                let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if std::mem::replace(&mut *seen, now) != now {
                    return Ok(());
                }
            }
        }
    }
}
