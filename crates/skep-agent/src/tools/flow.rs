//! What stands between a session's socket and the protocol's crate, which takes each request at once and lets the answers
//! wait for as long as nobody reads them.
//!
//! Job: read no further while [`limits::TOOL_REQUESTS_MAX`] requests have no answer that is written, and end a connection
//! whose peer takes nothing for a while.
//! Must not: rely on a peer to read, or to number its requests as it should.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rmcp::RoleServer;
use rmcp::model::{ClientNotification, GetExtensions, JsonRpcMessage, RequestId};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use skep_proto::limits;
use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

/// A transport that is read only as fast as its answers are taken.
pub(super) struct Flow<T> {
    inner: T,
    open: Arc<Open>,
    cut: CancellationToken,
}

/// The requests whose answers are not written yet.
#[derive(Default)]
struct Open {
    requests: Mutex<HashMap<RequestId, State>>,
    fewer: Notify,
}

/// How far a request is.
enum State {
    Asked(TakenBack),
    /// It keeps its place until it has ended: the crate holds an answer that nobody waits for, too.
    TakenBack,
    Answered,
}

/// Cancelled when its peer waits for a request no longer. Each request carries one.
#[derive(Debug, Clone, Default)]
pub(super) struct TakenBack(pub CancellationToken);

/// An answer on its way. Dropped, it is written or will never be.
struct Written(Arc<Open>, RequestId);

impl<T> Flow<T> {
    pub(super) fn new(inner: T, cut: CancellationToken) -> Self {
        Self { inner, open: Arc::default(), cut }
    }
}

impl<T: Transport<RoleServer>> Transport<RoleServer> for Flow<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let id = match &message {
            JsonRpcMessage::Response(answer) => Some(answer.id.clone()),
            JsonRpcMessage::Error(answer) => answer.id.clone(),
            JsonRpcMessage::Request(_) | JsonRpcMessage::Notification(_) => None,
        };
        let (written, is_wanted) = id.map(|id| self.open.answer(id)).unzip();
        let sending = is_wanted.unwrap_or(true).then(|| self.inner.send(message));
        async move {
            let _written = written;
            match sending {
                Some(sending) => sending.await,
                None => Ok(()),
            }
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            let mut message = tokio::select! {
                biased;
                () = self.cut.cancelled() => return None,
                message = async {
                    self.open.has_place().await;
                    self.inner.receive().await
                } => message?,
            };
            if self.open.take(&mut message) {
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.inner.close().await
    }
}

impl Open {
    /// Held for one step, never over an await.
    fn requests(&self) -> MutexGuard<'_, HashMap<RequestId, State>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn has_place(&self) {
        while self.requests().len() >= limits::TOOL_REQUESTS_MAX {
            self.fewer.notified().await;
        }
    }

    /// Whether the message is to be passed on: not a request whose number is one of those that wait, and not a word that
    /// one is taken back, which is obeyed here.
    fn take(&self, message: &mut RxJsonRpcMessage<RoleServer>) -> bool {
        match message {
            JsonRpcMessage::Request(request) => {
                let mut requests = self.requests();
                if requests.contains_key(&request.id) {
                    return false;
                }
                let taken_back = TakenBack::default();
                request.request.extensions_mut().insert(taken_back.clone());
                requests.insert(request.id.clone(), State::Asked(taken_back));
                true
            }
            JsonRpcMessage::Notification(told) => {
                let ClientNotification::CancelledNotification(cancelled) = &told.notification else { return true };
                if let Some(id) = &cancelled.params.request_id
                    && let Some(state) = self.requests().get_mut(id)
                    && let State::Asked(taken_back) = state
                {
                    taken_back.0.cancel();
                    *state = State::TakenBack;
                }
                false
            }
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => true,
        }
    }

    /// And whether it is waited for.
    fn answer(self: &Arc<Self>, id: RequestId) -> (Written, bool) {
        let before = self.requests().insert(id.clone(), State::Answered);
        (Written(Arc::clone(self), id), !matches!(before, Some(State::TakenBack)))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.0.requests().remove(&self.1);
        self.0.fewer.notify_one();
    }
}

/// A writer that gives up on a peer that takes nothing for so long, and cuts the connection.
pub(super) struct Patient<W> {
    inner: W,
    patience: Duration,
    cut: CancellationToken,
    /// While the peer takes nothing.
    waits: Option<Pin<Box<Sleep>>>,
}

impl<W> Patient<W> {
    pub(super) fn new(inner: W, patience: Duration, cut: CancellationToken) -> Self {
        Self { inner, patience, cut, waits: None }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Patient<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.cut.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if let Poll::Ready(done) = Pin::new(&mut this.inner).poll_write(cx, piece) {
            this.waits = None;
            return Poll::Ready(done);
        }
        let patience = this.patience;
        let waits = this.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(waits.as_mut().poll(cx));
        tracing::warn!("a program does not read what its tools answer, and is cut off");
        this.cut.cancel();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test")]
mod tests {
    use futures_util::future::BoxFuture;
    use serde_json::{Value, json};
    use skep_core::backend::ToolKind;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixStream;
    use tokio::time::timeout;

    use super::*;
    use crate::tools::{Tool, ToolAnswer, Toolbox, mcp};

    /// Its list has 4 KB.
    struct Wordy;

    impl Toolbox for Wordy {
        fn tools(&self) -> Vec<Tool> {
            let (name, description) = ("say".to_owned(), "x".repeat(4_000));
            vec![Tool { name, description, parameters: json!({}), kind: ToolKind::Read, asks: false, writes: false }]
        }

        fn call<'a>(&'a self, _: &'a str, _: Value) -> BoxFuture<'a, ToolAnswer> {
            Box::pin(async { ToolAnswer::ok("said") })
        }
    }

    const DEADLINE: Duration = Duration::from_secs(60);

    fn serve(patience: Duration) -> BufReader<UnixStream> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(mcp::serve(ours, Arc::new(Wordy), patience));
        BufReader::new(theirs)
    }

    async fn send(stream: &mut BufReader<UnixStream>, message: Value) {
        stream.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn next(stream: &mut BufReader<UnixStream>) -> Value {
        let mut line = String::new();
        timeout(DEADLINE, stream.read_line(&mut line)).await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"))
    }

    async fn greet(stream: &mut BufReader<UnixStream>) {
        let hello = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
        send(stream, json!({ "jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": hello })).await;
        assert_eq!(next(stream).await["id"], "hello");
        send(stream, json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
    }

    fn list(id: u32) -> Value {
        json!({ "jsonrpc": "2.0", "id": id, "method": "tools/list" })
    }

    #[cfg(target_os = "linux")]
    fn resident_kib() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Asks without reading; returns how many requests could be written before the connection was cut.
    #[cfg(target_os = "linux")]
    async fn flood(stream: &mut BufReader<UnixStream>, request: impl Fn(u32) -> Vec<Value>) -> u32 {
        for n in 0..100_000 {
            let lines: String = request(n).iter().map(|line| format!("{line}\n")).collect();
            if timeout(DEADLINE, stream.write_all(lines.as_bytes())).await.expect("cut off").is_err() {
                return n;
            }
        }
        100_000
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn who_asks_without_reading_fills_no_memory_and_is_cut_off_while_others_are_answered() {
        let cancel = |n| json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": n } });
        let before = resident_kib();
        let mut other = serve(DEADLINE);
        greet(&mut other).await;
        for kind in 0..3 {
            let mut stream = serve(Duration::from_secs(2));
            greet(&mut stream).await;
            let asking = flood(&mut stream, move |n| match kind {
                0 => vec![list(n)],
                // By one number, and with each taken back.
                1 => vec![list(7)],
                _ => vec![list(n), cancel(n)],
            });
            let (asked, ()) = tokio::join!(asking, async {
                for n in 0..100 {
                    send(&mut other, list(n)).await;
                    assert_eq!(next(&mut other).await["id"], n);
                }
            });
            let grown = resident_kib().saturating_sub(before);
            assert!(grown < 32 * 1024, "{grown} KiB for {asked} requests of kind {kind}");
            // What nobody waits for needs no cut.
            assert!(kind != 0 || asked < 100_000, "all were taken");
        }
    }

    #[tokio::test]
    async fn who_reads_is_answered_each_time_also_after_calls_that_were_taken_back() {
        let mut stream = serve(DEADLINE);
        greet(&mut stream).await;
        for n in 0..5 * limits::TOOL_REQUESTS_MAX as u32 {
            send(&mut stream, list(n)).await;
            send(
                &mut stream,
                json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": n } }),
            )
            .await;
            send(&mut stream, json!({ "jsonrpc": "2.0", "id": format!("p{n}"), "method": "ping" })).await;
            while next(&mut stream).await["id"] != format!("p{n}") {}
        }
    }
}
