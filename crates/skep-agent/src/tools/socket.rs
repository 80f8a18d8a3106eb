//! The socket of one session's tools: who may connect, and how many.

use std::sync::Arc;
use std::time::Duration;

use skep_proto::limits;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::{Place, Toolbox, mcp};
use crate::child::Family;

/// Between two tries when no connection can be taken, for want of descriptors say.
const REST: Duration = Duration::from_secs(1);

/// For a peer to take some of an answer.
const PATIENCE: Duration = Duration::from_secs(limits::TOOL_SEND_SECS);

/// Serves the tools there, to this program and what it started, until it is dropped; with it go the connections and the
/// socket.
pub(crate) async fn serve(place: Place, family: Family, toolbox: Arc<dyn Toolbox>) {
    let Place { listener, guard: _guard, .. } = place;
    let mut connections = JoinSet::new();
    loop {
        let stream = accept(&listener).await;
        while connections.try_join_next().is_some() {}
        if !is_same_user(&stream) {
            tracing::warn!("somebody else's process was refused on a socket of tools");
        } else if !is_of(&stream, &family) {
            tracing::warn!("a process that the session's program did not start was refused on its socket of tools");
        } else if connections.len() >= limits::TOOL_CONNECTIONS_MAX {
            tracing::warn!("a program opens too many connections to its tools");
        } else {
            connections.spawn(mcp::serve(stream, Arc::clone(&toolbox), PATIENCE));
        }
    }
}

async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a socket of tools takes no connection");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Whether whoever connected runs as our own user.
pub fn is_same_user(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

/// Whether it was, when it connected, the session's program or one that this started. Where the system does not tell
/// who started whom, every process of our user is.
fn is_of(stream: &UnixStream, family: &Family) -> bool {
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid()?.try_into().ok());
    !cfg!(target_os = "linux") || peer.is_some_and(|pid| family.has(pid))
}
