//! Messages on their way to one connection.
//!
//! Answers (OK) always fit: a connection has a bounded number of events in flight. Live events are bounded in bytes;
//! past that the connection is *behind*: nothing more is queued, and when it has read what is there, it catches up
//! from the store. So a slow reader costs a fixed amount of memory and loses nothing while it is connected.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_proto::{Seq, limits};
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// The queue of one connection.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// A lock, because fan-out and the writer push while the connection pops. Held for one push or pop.
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Utf8Bytes>,
    bytes: usize,
    /// The first event that was not queued.
    behind: Option<Seq>,
    /// Catching up has sent everything to here; fan-out may still come by with some of it.
    seen: Seq,
    /// The newest live event, and the subscriptions that it was queued for: one of several may not have had room.
    newest: Seq,
    queued_for: Vec<Arc<str>>,
}

/// What became of a live event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Queued,
    /// The reader has to catch up; this says whether it just fell behind.
    Behind {
        is_new: bool,
    },
}

impl Outbox {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an answer.
    pub(crate) fn answer(&self, text: impl Into<Utf8Bytes>) {
        let text = text.into();
        let mut queue = self.queue();
        queue.bytes += text.len();
        queue.messages.push_back(text);
        drop(queue);
        self.wake.notify_one();
    }

    /// Queues a live event, unless the connection is behind or falls behind with it.
    pub(crate) fn deliver(&self, seq: Seq, sub: &Arc<str>, text: Utf8Bytes) -> Delivery {
        let mut queue = self.queue();
        if seq <= queue.seen {
            return Delivery::Queued;
        }
        if queue.behind.is_some() {
            return Delivery::Behind { is_new: false };
        }
        if queue.bytes + text.len() > limits::OUTBOX_BYTES_MAX {
            queue.behind = Some(seq);
            return Delivery::Behind { is_new: true };
        }
        if queue.newest != seq {
            queue.newest = seq;
            queue.queued_for.clear();
        }
        queue.queued_for.push(Arc::clone(sub));
        queue.bytes += text.len();
        queue.messages.push_back(text);
        let is_first = queue.messages.len() == 1;
        drop(queue);
        if is_first {
            self.wake.notify_one();
        }
        Delivery::Queued
    }

    /// Up to `bytes` of messages, oldest first.
    pub(crate) fn take(&self, bytes: usize, into: &mut Vec<Utf8Bytes>) {
        let mut queue = self.queue();
        let mut taken = 0;
        while taken < bytes
            && let Some(text) = queue.messages.pop_front()
        {
            taken += text.len();
            queue.bytes -= text.len();
            into.push(text);
        }
        if queue.messages.is_empty() && queue.messages.capacity() > 64 {
            // An idle connection must not keep the memory of its busiest moment.
            queue.messages = VecDeque::new();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue().messages.is_empty()
    }

    /// Where catching up has to begin, once everything queued is gone.
    pub(crate) fn behind(&self) -> Option<Seq> {
        let queue = self.queue();
        queue.behind.filter(|_| queue.messages.is_empty())
    }

    /// Whether a live event was queued for a subscription before the connection fell behind with it.
    pub(crate) fn had_room_for(&self, seq: Seq, sub: &str) -> bool {
        let queue = self.queue();
        queue.newest == seq && queue.queued_for.iter().any(|queued| **queued == *sub)
    }

    /// Everything to `seen` was sent. `is_level`: fan-out is not past it, so live delivery goes on.
    pub(crate) fn caught_up(&self, seen: Seq, is_level: bool) {
        let mut queue = self.queue();
        queue.seen = seen;
        queue.behind = (!is_level).then(|| seen.next());
    }

    /// Waits until something was queued.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}
