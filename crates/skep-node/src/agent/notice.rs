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
    use std::path::PathBuf;
    use std::sync::{Mutex, PoisonError};

    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
    use rustix::io::Errno;
    use tokio::io::unix::AsyncFd;

    use super::Path;

    /// Watches the file for its contents, and the directory for another file under its name. Not the directory for
    /// contents: with fifty agents in it each of them would wake for the files of all.
    pub struct Notice {
        fd: AsyncFd<OwnedFd>,
        path: PathBuf,
        name: String,
        /// The watch on the file, when there is one. A lock, because two may wait for one notice; it is not held over
        /// an await.
        file: Mutex<Option<i32>>,
    }

    impl Notice {
        /// Not when a file was opened and closed: whoever looks at it does that.
        pub fn new(directory: &Path, name: String) -> std::io::Result<Self> {
            let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            let what = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
            inotify::add_watch(&fd, directory, what)?;
            #[expect(
                deprecated,
                reason = "its successor is unsafe, for types whose descriptor may change; an OwnedFd's does not"
            )]
            let fd = AsyncFd::new(fd)?;
            let notice = Self { fd, path: directory.join(&name), name, file: Mutex::new(None) };
            notice.watch_file();
            Ok(notice)
        }

        /// A file that is not there yet is watched when the directory tells of it.
        fn watch_file(&self) {
            let what = WatchFlags::MODIFY | WatchFlags::DONT_FOLLOW;
            let watch = inotify::add_watch(self.fd.get_ref(), &self.path, what).ok();
            let before = std::mem::replace(&mut *self.file.lock().unwrap_or_else(PoisonError::into_inner), watch);
            if let Some(before) = before.filter(|before| Some(*before) != watch) {
                // The file that it was on is gone, and the watch with it, or nobody's business any more.
                let _ = inotify::remove_watch(self.fd.get_ref(), before);
            }
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
            let (mut found, mut is_another) = (false, false);
            loop {
                match reader.next() {
                    Ok(event) => {
                        let is_named = event.file_name().is_some_and(|name| name.to_bytes() == self.name.as_bytes());
                        let watched = *self.file.lock().unwrap_or_else(PoisonError::into_inner);
                        let is_overflow = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                        is_another |= is_named || is_overflow;
                        found |= is_another || watched == Some(event.wd());
                    }
                    Err(Errno::WOULDBLOCK) => break,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if is_another {
                self.watch_file();
            }
            Ok(found)
        }
    }

    #[cfg(test)]
    mod tests {
        use std::time::Duration;

        use super::*;

        const QUIET: Duration = Duration::from_millis(50);
        const PATIENCE: Duration = Duration::from_secs(30);

        #[tokio::test]
        async fn changes_of_one_file_are_told_also_of_another_under_its_name_and_none_of_its_neighbours() {
            let dir = tempfile::tempdir().expect("a directory");
            let (file, neighbour) = (dir.path().join("a.lock"), dir.path().join("b.lock"));
            let write = |path: &Path, text: &str| std::fs::write(path, text).expect("written");
            write(&neighbour, "");
            let notice = Notice::new(dir.path(), "a.lock".into()).expect("a notice");
            let told = async |within| tokio::time::timeout(within, notice.changed()).await.is_ok();
            write(&file, "made");
            assert!(told(PATIENCE).await, "made");
            write(&neighbour, "other");
            assert!(!told(QUIET).await, "a neighbour");
            write(&file, "changed");
            assert!(told(PATIENCE).await, "changed");
            write(&dir.path().join("new"), "replaced");
            std::fs::rename(dir.path().join("new"), &file).expect("renamed");
            assert!(told(PATIENCE).await, "replaced");
            write(&file, "changed again");
            assert!(told(PATIENCE).await, "the new one is watched");
            std::fs::remove_file(&file).expect("removed");
            assert!(told(PATIENCE).await, "removed");
            write(&file, "made again");
            assert!(told(PATIENCE).await, "made again");
            while told(QUIET).await {}
            write(&file, "and changed");
            assert!(told(PATIENCE).await, "and changed");
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
