//! The side that answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_agent::tools::is_same_user;
use skep_proto::control::{Answer, LineError, Reply, Request};
use skep_proto::limits;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{ControlError, DIRECTORY, Reach};
use crate::fleet::Fleet;
use crate::home::{self, Home};

const IDLE: Duration = Duration::from_secs(limits::CONTROL_IDLE_SECS);

/// A served socket. Dropped, it is gone, and so are its connections.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    /// Serves this process's socket below a home.
    pub fn start(home: &Home, fleet: Arc<Fleet>) -> Result<Self, ControlError> {
        let directory = home.directory(DIRECTORY)?;
        let name = format!("{}.sock", std::process::id());
        let path = directory.join(&name);
        // An earlier process of our number left it.
        home::remove(&path)?;
        let serve = || {
            let reach = Reach::of(&directory, &name)?;
            let listener = UnixListener::bind(&reach.path)?;
            // The directory is closed to others already; this is for whoever copies the socket's path elsewhere.
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = serve().map_err(|cause| ControlError::Serve { path: path.clone(), cause })?;
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, fleet)));
        Ok(Self { path, _task: task })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What stays behind is removed by the next client: no process of this number lives then.
        let _ = home::remove(&self.path);
    }
}

async fn accept(listener: UnixListener, fleet: Arc<Fleet>) {
    let places = Arc::new(Semaphore::new(limits::CONTROL_CONNECTIONS_MAX));
    // Ends with its task: connections die with the listener.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket takes no connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if !is_same_user(&stream) {
            tracing::warn!("somebody else's process was refused on the control socket");
            continue;
        }
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let fleet = Arc::clone(&fleet);
                connections.spawn(async move {
                    serve(stream, &fleet).await;
                    drop(place);
                });
            }
            Err(_) => {
                let why = format!("{} connections are served already", limits::CONTROL_CONNECTIONS_MAX);
                connections.spawn(async move { drop(turn_away(stream, why).await) });
            }
        }
    }
}

async fn turn_away(mut stream: UnixStream, why: String) -> std::io::Result<()> {
    send(&mut stream, Answer::Refused { why }).await
}

/// One request after another, each answered before the next is read, until the peer is silent or gone.
async fn serve(stream: UnixStream, fleet: &Arc<Fleet>) {
    let mut stream = BufReader::new(stream);
    loop {
        let Ok(Ok(Some(line))) = timeout(IDLE, read_line(&mut stream)).await else { return };
        let (answer, is_over) = match Request::from_line(&line) {
            Ok(request) => (fleet.answer(request.ask).await, false),
            // Where the next line begins is not known.
            Err(error @ LineError::TooLong) => (error.into(), true),
            Err(error) => (error.into(), false),
        };
        let sent = timeout(IDLE, send(stream.get_mut(), answer)).await;
        if is_over || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// A line without its end; of one that is too long only so much that this shows. `None`: the peer is done.
async fn read_line(stream: &mut BufReader<UnixStream>) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let most = limits::CONTROL_REQUEST_BYTES_MAX as u64 + 1;
    stream.take(most).read_until(b'\n', &mut line).await?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Some(line));
    }
    // Half a line at the end of the stream is nobody's request.
    Ok((line.len() as u64 == most).then_some(line))
}

async fn send(stream: &mut UnixStream, answer: Answer) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(&Reply::new(answer))?;
    if line.len() > limits::CONTROL_ANSWER_BYTES_MAX {
        let why = "the answer is too long; ask for one agent, or for fewer messages".to_owned();
        line = serde_json::to_vec(&Reply::new(Answer::Refused { why }))?;
    }
    line.push(b'\n');
    stream.write_all(&line).await
}
