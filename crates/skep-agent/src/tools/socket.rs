//! The socket of one session's tools: who may connect, and how many.

use std::sync::Arc;
use std::time::Duration;

use skep_proto::limits;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::{Place, Toolbox, mcp};

/// Between two tries when no connection can be taken, for want of descriptors say.
const REST: Duration = Duration::from_secs(1);

/// Serves the tools there until it is dropped; with it go the connections and the socket.
pub(crate) async fn serve(place: Place, toolbox: Arc<dyn Toolbox>) {
    let Place { listener, guard: _guard, .. } = place;
    let mut connections = JoinSet::new();
    loop {
        let stream = accept(&listener).await;
        while connections.try_join_next().is_some() {}
        if !is_same_user(&stream) {
            tracing::warn!("somebody else's process was refused on a socket of tools");
        } else if connections.len() >= limits::TOOL_CONNECTIONS_MAX {
            tracing::warn!("a program opens too many connections to its tools");
        } else {
            connections.spawn(mcp::serve(stream, Arc::clone(&toolbox)));
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

fn is_same_user(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}
