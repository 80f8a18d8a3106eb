//! Where state lives: `$SKEP_HOME`, or `~/.skep`.
//!
//! Directories are 0700, files 0600. A file is written whole: a temporary file beside it, fsync, then a rename
//! (or a link, where it must not exist), then fsync of the directory. The last component of a path is never
//! followed when it is a symbolic link.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use zeroize::Zeroizing;

/// What names the home directory in the environment.
pub const HOME_VARIABLE: &str = "SKEP_HOME";

/// Bytes of the largest file that is read whole; a key file has about 170.
const PRIVATE_BYTES_MAX: u64 = 64 * 1024;

/// Permission bits that make a secret someone else's: any of group or others.
const OTHERS: u32 = 0o077;
/// Permission bits by which others could swap a file in a directory.
const OTHERS_WRITE: u32 = 0o022;

/// The home directory. It need not exist until something is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

/// What may stand where a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Nothing: fail when there is a file, whoever made it and whenever.
    Keep,
    /// Anything but a directory, in one step.
    Replace,
}

/// Why a file or directory of ours could not be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("no home directory: neither {HOME_VARIABLE} nor HOME is set")]
    NoHome,
    #[error("{} does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("{} exists already", path.display())]
    Exists { path: PathBuf },
    #[error("{} is a symbolic link, which is not followed here", path.display())]
    Link { path: PathBuf },
    #[error("{} is not a {wanted}", path.display())]
    Type { path: PathBuf, wanted: &'static str },
    #[error("{} is open to others (mode {found:04o}, must be {wanted:04o} or tighter)", path.display())]
    TooOpen { path: PathBuf, found: u32, wanted: u32 },
    #[error("{} is larger than {PRIVATE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("cannot {verb} {}: {source}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
}

impl HomeError {
    /// What to try; for a wide mode the exact command.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoHome => Some(format!("export {HOME_VARIABLE}=/path/to/a/directory")),
            Self::TooOpen { path, wanted, .. } => Some(format!("chmod {wanted:o} {}", quoted(path))),
            Self::Link { path } => Some(format!("name the file it points to: readlink -f {}", quoted(path))),
            Self::Missing { .. } => Some("check the path".into()),
            Self::Exists { .. } => Some("choose another path, or move that file away".into()),
            Self::Type { wanted, .. } => Some(format!("name a {wanted}")),
            Self::Io { source, path, .. } => match source.kind() {
                io::ErrorKind::StorageFull => Some("free some space on the disk that holds it".into()),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    let place = path.parent().unwrap_or(path);
                    Some(format!("make {} writable for you, or choose another home: {HOME_VARIABLE}=…", quoted(place)))
                }
                io::ErrorKind::NotADirectory => {
                    Some(format!("a part of this path is a file; choose another home: {HOME_VARIABLE}=…"))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::NotFound if verb == "open" => Self::Missing { path },
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            _ => Self::Io { verb, path, source },
        }
    }
}

impl Home {
    /// From the environment.
    pub fn locate() -> Result<Self, HomeError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root =
            set(HOME_VARIABLE).or_else(|| set("HOME").map(|home| home.join(".skep"))).ok_or(HomeError::NoHome)?;
        let root = std::path::absolute(&root).map_err(HomeError::io("resolve", &root))?;
        Ok(Self { root })
    }

    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Makes a directory below the home where there is none, and refuses one that others may write to.
    pub fn directory(&self, name: &str) -> Result<PathBuf, HomeError> {
        let path = self.root.join(name);
        for path in [self.root.as_path(), &path] {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(HomeError::io("create", path))?;
        }
        check_directory(&path)?;
        Ok(path)
    }
}

/// Refuses what is no directory, or one in which others could swap a file.
pub fn check_directory(path: &Path) -> Result<(), HomeError> {
    let meta = fs::symlink_metadata(path).map_err(HomeError::io("open", path))?;
    if meta.is_symlink() {
        return Err(HomeError::Link { path: path.to_owned() });
    }
    if !meta.is_dir() {
        return Err(HomeError::Type { path: path.to_owned(), wanted: "directory" });
    }
    refuse_wider(path, meta.mode(), OTHERS_WRITE, 0o700)
}

/// Reads a secret file whole. It must be a regular file that nobody else may read.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, HomeError> {
    // NONBLOCK: opening a FIFO would wait for a writer before we could see what it is.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::LOOP) => return Err(HomeError::Link { path: path.to_owned() }),
        Err(error) => return Err(HomeError::io("open", path)(error.into())),
    };
    let meta = file.metadata().map_err(HomeError::io("read", path))?;
    if !meta.is_file() {
        return Err(HomeError::Type { path: path.to_owned(), wanted: "regular file" });
    }
    refuse_wider(path, meta.mode(), OTHERS, 0o600)?;
    if meta.len() > PRIVATE_BYTES_MAX {
        return Err(HomeError::TooLarge { path: path.to_owned() });
    }
    // Room for all of it at once: a buffer that grows leaves copies of the secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(meta.len() as usize + 1));
    file.take(PRIVATE_BYTES_MAX).read_to_end(&mut bytes).map_err(HomeError::io("read", path))?;
    Ok(bytes)
}

/// Writes a file of mode 0600 whole and durably, or not at all.
pub fn write_private(path: &Path, bytes: &[u8], existing: Existing) -> Result<(), HomeError> {
    let directory = directory_of(path);
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(|error| HomeError::io("name a file in", directory)(error.into()))?;
    let temporary = directory.join(format!(".skep-{:016x}.tmp", u64::from_le_bytes(suffix)));
    let written = write_beside(&temporary, bytes).and_then(|()| match existing {
        Existing::Replace => fs::rename(&temporary, path).map_err(HomeError::io("write", path)),
        // A link fails where a rename would replace.
        Existing::Keep => fs::hard_link(&temporary, path).map_err(HomeError::io("write", path)),
    });
    if existing == Existing::Keep || written.is_err() {
        // After a failure the file may not be there; the failure itself is what counts.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_directory(directory)
}

/// Waits until nobody else of ours changes files beside this one, and holds others back until it is dropped.
pub fn lock_beside(path: &Path) -> Result<File, HomeError> {
    let directory = directory_of(path);
    // The directory itself: no file of ours is left beside one that may be kept in a repository.
    let lock = File::open(directory).map_err(HomeError::io("open", directory))?;
    let locked = rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive));
    locked.map_err(|error| HomeError::io("lock", directory)(error.into()))?;
    Ok(lock)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_beside(temporary: &Path, bytes: &[u8]) -> Result<(), HomeError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
        .map_err(HomeError::io("create", temporary))?;
    // The umask may have taken our own bits.
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(HomeError::io("create", temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(HomeError::io("write", temporary))
}

/// Removes a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<(), HomeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(HomeError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Gives an existing file a second name, durably.
pub fn keep_as(path: &Path, second: &Path) -> Result<(), HomeError> {
    fs::hard_link(path, second).map_err(HomeError::io("write", second))?;
    second.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(path: &Path) -> Result<(), HomeError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(HomeError::io("sync", path))
}

fn refuse_wider(path: &Path, mode: u32, forbidden: u32, wanted: u32) -> Result<(), HomeError> {
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(HomeError::TooOpen { path: path.to_owned(), found: mode & 0o7777, wanted })
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it exists").mode() & 0o7777
    }

    #[test]
    fn a_file_is_private_and_written_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::at(dir.path().join("deep/home"));
        let keys = home.directory("keys").expect("made");
        assert_eq!((mode(home.path()), mode(&keys)), (0o700, 0o700));
        let file = keys.join("a");
        write_private(&file, b"one", Existing::Keep).expect("written");
        assert!(matches!(write_private(&file, b"two", Existing::Keep), Err(HomeError::Exists { .. })));
        assert_eq!(read_private(&file).expect("read").as_slice(), b"one");
        write_private(&file, b"two", Existing::Replace).expect("replaced");
        assert_eq!(read_private(&file).expect("read").as_slice(), b"two");
        assert_eq!(mode(&file), 0o600);
        assert_eq!(fs::read_dir(&keys).expect("a directory").count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_wider_mode_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("it's");
        write_private(&file, b"x", Existing::Keep).expect("written");
        for wide in [0o644, 0o640, 0o604, 0o601] {
            fs::set_permissions(&file, fs::Permissions::from_mode(wide)).expect("changed");
            let error = read_private(&file).expect_err("too open");
            let command = format!("chmod 600 '{}/it'\\''s'", dir.path().display());
            assert_eq!(error.hint(), Some(command), "{wide:o}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).expect("changed");
        assert!(read_private(&file).is_ok());
    }

    #[test]
    fn links_fifos_and_directories_are_not_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link, fifo) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("fifo"));
        write_private(&file, b"x", Existing::Keep).expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .expect("made");
        assert!(matches!(read_private(&link), Err(HomeError::Link { .. })));
        assert!(matches!(read_private(&fifo), Err(HomeError::Type { .. })));
        assert!(matches!(read_private(dir.path()), Err(HomeError::Type { .. })));
        assert!(matches!(read_private(&dir.path().join("none")), Err(HomeError::Missing { .. })));
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::at(dir.path().join("home"));
        let keys = home.directory("keys").expect("made");
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o770)).expect("changed");
        assert!(matches!(home.directory("keys"), Err(HomeError::TooOpen { wanted: 0o700, .. })));
    }
}
