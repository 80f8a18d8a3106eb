//! The slow lane: threads of their own for what takes long, so that nothing quick waits behind it.
//!
//! Job: run the slices of queries that have had their light share, read large messages, and index large subscriptions.
//! The event loop cannot take a core back from a task; the kernel can take it back from a thread. A connection has one
//! piece of work here at a time and waits for it, so whoever asks for much waits for others who do, first come first
//! served, and for nobody else does it take longer. Neighbours: `conn` and `scans` give it work.
//! Must not: run anything that waits for a client or for a commit.

use std::thread::JoinHandle;

use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// The way into the lane. Overflow policy of its inbox: senders wait, and so do their clients.
pub(crate) struct SlowLane(async_channel::Sender<Work>);

/// How much these threads give way: they weigh a third of another when all want a core. More would be little gain for
/// others, and a thread that waits for a core in the middle of a slice may hold up the writer for as long.
const NICE: i32 = 5;

/// Pieces of work waiting for a thread. More connections than these wait outside, in the same order.
const WAITING_MAX: usize = 64;

impl SlowLane {
    /// Starts threads for half of the cores: the other half is never taken by what is slow (ADR 13). They end when the
    /// lane is closed.
    pub(crate) fn start(cores: usize) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (sender, inbox) = async_channel::bounded::<Work>(WAITING_MAX);
        let one = |i| {
            let inbox = inbox.clone();
            std::thread::Builder::new().name(format!("skep-slow-{i}")).spawn(move || {
                // On Linux a thread's own. Where it may not be changed, half of the cores is what others have.
                let _ = rustix::process::nice(NICE);
                while let Ok(work) = inbox.recv_blocking() {
                    // A panic is a bug of ours: it costs whoever waits for this work, not the lane.
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                        tracing::error!("a piece of slow work failed");
                    }
                }
            })
        };
        let threads = (0..(cores / 2).max(1)).map(one).collect::<std::io::Result<_>>()?;
        Ok((Self(sender), threads))
    }

    /// Runs a short piece of long work; `None` when the relay stops.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        // Who asked may be gone by now: then nobody wants it.
        let work = Box::new(move || {
            if !sender.is_closed() {
                drop(sender.send(work()));
            }
        });
        self.0.send(work).await.ok()?;
        receiver.await.ok()
    }

    /// No more work; the threads end when they have done what is waiting.
    pub(crate) fn close(&self) {
        self.0.close();
    }
}
