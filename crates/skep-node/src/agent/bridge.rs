//! Where ACP programs find the tools of their sessions: a socket for each session, and `skep mcp`, which they start to
//! get there.
//!
//! A socket is `<home>/run/tools/<pid>-<random>.sock`, mode 0600 in a directory of mode 0700, and goes with its session.
//! What a program is given is the path of this program and of the socket: nothing secret. Who may connect is checked
//! where connections are taken, by the peer's user and by who started it.
//! Must not: leave sockets behind for longer than until the next start, or follow a link.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use skep_agent::tools::{self, Place};
use skep_agent::{McpServer, McpTransport};
use tokio::net::UnixListener;

use super::locks::is_running;
use crate::control::Reach;
use crate::home::{self, Home, HomeError};

/// Below the home.
const DIRECTORY: &str = "run/tools";

/// What the server is called: programs put it before the names of tools.
const SERVER: &str = "skep";

/// Names that are read to clear away what killed processes left.
const NAMES_MAX: usize = 4_096;

/// Makes sockets below one home.
#[derive(Debug, Clone)]
pub struct Bridge {
    home: PathBuf,
    /// This program.
    command: PathBuf,
}

/// Takes a socket away.
struct Guard(PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        // What stays behind is removed at a later start.
        let _ = home::remove(&self.0);
    }
}

impl Bridge {
    pub fn new(home: PathBuf, command: PathBuf) -> Self {
        Self { home, command }
    }

    /// Takes away the sockets that processes left that run no more. What is no socket stays, and so does a socket that
    /// somebody serves: a process that counts its processes by itself may share the home.
    pub fn sweep(&self) -> Result<(), HomeError> {
        let directory = self.directory()?;
        let failed = |source| HomeError::Io { verb: "list", path: directory.clone(), source };
        for entry in std::fs::read_dir(&directory).map_err(failed)?.take(NAMES_MAX) {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.split_once('-')?.0.parse().ok());
            let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
            if is_socket && pid.is_some_and(|pid| !is_running(pid)) && is_nobodys(&entry.path()) {
                home::remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Nobody else may write into it, nor into the one above.
    fn directory(&self) -> Result<PathBuf, HomeError> {
        let home = Home::at(std::path::absolute(&self.home).unwrap_or_else(|_| self.home.clone()));
        home.directory(crate::control::DIRECTORY)?;
        home.directory(DIRECTORY)
    }
}

impl tools::Bridge for Bridge {
    fn open(&self) -> io::Result<Place> {
        let directory = self.directory().map_err(io::Error::other)?;
        let number = getrandom::u64().map_err(io::Error::other)?;
        let name = format!("{}-{number:016x}.sock", std::process::id());
        let path = directory.join(&name);
        let listener = UnixListener::bind(&Reach::of(&directory, &name)?.path)?;
        let guard = Guard(path.clone());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        let args = vec!["mcp".to_owned(), "--socket".to_owned(), text(&path)?];
        let transport = McpTransport::Stdio { command: self.command.clone(), args, env: Vec::new() };
        let server = McpServer { name: SERVER.to_owned(), transport };
        Ok(Place { listener, server, guard: Box::new(guard) })
    }
}

fn text(path: &Path) -> io::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the home's path is not UTF-8"))
}

fn is_nobodys(socket: &Path) -> bool {
    connect(socket).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Connects to a session's socket, whose path may be longer than one of a socket can be.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let not_a_socket = || io::Error::new(io::ErrorKind::InvalidInput, "this is no path of a socket");
    let directory = socket.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = socket.file_name().and_then(|name| name.to_str()).ok_or_else(not_a_socket)?;
    UnixStream::connect(&Reach::of(directory, name)?.path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use skep_agent::tools::Bridge as _;

    use super::*;

    fn bridge(home: &Path) -> Bridge {
        Bridge::new(home.to_owned(), "/bin/skep".into())
    }

    fn sockets(home: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(home.join(DIRECTORY)).expect("a directory");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    }

    #[tokio::test]
    async fn a_socket_is_its_users_alone_and_goes_with_its_session() {
        let dir = tempfile::tempdir().expect("a directory");
        // Longer than the path of a socket can be.
        let home = dir.path().join("a".repeat(120));
        let place = bridge(&home).open().expect("a place");
        let McpTransport::Stdio { command, args, env } = &place.server.transport else { panic!("stdio") };
        assert_eq!(
            (command.as_path(), &args[..2], env.len()),
            (Path::new("/bin/skep"), &["mcp", "--socket"].map(String::from)[..], 0)
        );
        let socket = PathBuf::from(&args[2]);
        assert_eq!(sockets(&home), std::slice::from_ref(&socket));
        let mode = |path: &Path| path.metadata().expect("there").mode() & 0o777;
        assert_eq!((mode(&socket), mode(&home.join(DIRECTORY)), mode(&home.join("run"))), (0o600, 0o700, 0o700));
        let client = connect(&socket).expect("connected");
        drop(place.listener.accept().await.expect("a connection"));
        drop(client);
        drop(place);
        assert_eq!(sockets(&home), [] as [PathBuf; 0]);
        assert_eq!(connect(&socket).expect_err("gone").kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn what_a_killed_process_left_is_swept_away_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = bridge(dir.path()).open().expect("a place");
        let run = dir.path().join(DIRECTORY);
        // Beyond any pid that a system gives.
        let named = |what: &str| run.join(format!("{}-{what}.sock", i32::MAX));
        let bind = |path: &Path| std::os::unix::net::UnixListener::bind(path).expect("bound");
        drop(bind(&named("left")));
        // Of a process that is not one of those that we see.
        let served = bind(&named("served"));
        std::fs::create_dir(named("directory")).expect("made");
        for path in [named("file"), run.join("notes.txt")] {
            std::fs::write(path, "").expect("written");
        }
        assert_eq!(sockets(dir.path()).len(), 6);
        bridge(dir.path()).sweep().expect("swept");
        let left = sockets(dir.path());
        assert_eq!(left.len(), 5, "{left:?}");
        assert!(!left.contains(&named("left")), "{left:?}");
        drop(served);
        drop(place);
    }
}
