//! The handle on a backend: words in, words out, both bounded.

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use skep_core::backend::{BackendError, Ended, Order, Said};

use crate::spec::{Kind, Spec};
use crate::{acp, command, openai};

/// Orders under way: a prompt, a cancel, a close, and an answer for each of 32 pending questions, rounded up.
/// A full queue makes the sender wait.
pub const ORDERS_MAX: usize = 64;

/// Words under way. A full queue makes the backend stop reading from its program, which then waits on its pipe.
/// A word carries [`crate::text::PIECE_BYTES_MAX`] at most: 64 x 64 KiB = 4 MiB.
pub const SAID_MAX: usize = 64;

/// The backend has ended; it said why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the backend has ended")]
pub struct Closed;

/// A running backend: one task, with a process or a connection behind it. Dropped, it is gone.
pub struct Backend {
    orders: mpsc::Sender<Order>,
    said: mpsc::Receiver<Said>,
    task: JoinHandle<()>,
}

impl Backend {
    /// Starts at once and says [`Said::Ready`] when it can be prompted. When it cannot: [`Said::Ended`] with the
    /// typed reason, then [`Said::Gone`]. A prompt may be ordered before it is ready.
    ///
    /// Needs a tokio runtime around it.
    pub fn start(spec: Spec) -> Self {
        let (orders, to_backend) = mpsc::channel(ORDERS_MAX);
        let (to_harness, said) = mpsc::channel(SAID_MAX);
        let task = tokio::spawn(run(spec, to_backend, to_harness));
        Self { orders, said, task }
    }

    /// Waits while the queue of orders is full.
    pub async fn order(&self, order: Order) -> Result<(), Closed> {
        self.orders.send(order).await.map_err(|_| Closed)
    }

    /// A way to give orders while another part of the program listens.
    pub fn orders(&self) -> mpsc::Sender<Order> {
        self.orders.clone()
    }

    /// The next word; `None` after [`Said::Gone`]. May be dropped and called again.
    pub async fn said(&mut self) -> Option<Said> {
        self.said.recv().await
    }

    /// Ends it in an orderly way, a running turn first, and returns when nothing of it is left.
    pub async fn close(mut self) {
        // Gone already is what was wanted.
        let _ = self.orders.send(Order::Cancel).await;
        let _ = self.orders.send(Order::Close).await;
        while self.said.recv().await.is_some() {}
        let _ = (&mut self.task).await;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut spec: Spec, orders: mpsc::Receiver<Order>, said: mpsc::Sender<Said>) {
    // Held until the backend has ended: nobody removes what it works in.
    let _place = match spec.tree.take() {
        None => None,
        Some(conversation) => match conversation.prepare().await {
            Ok(place) => {
                spec.cwd.clone_from(&place.path);
                spec.branch.clone_from(&place.branch);
                Some(place)
            }
            Err(error) => {
                // The harness may be gone.
                let _ = said.send(Said::Ended(Ended::Error(BackendError::Place(error.to_string())))).await;
                let _ = said.send(Said::Gone(error.to_string())).await;
                return;
            }
        },
    };
    match &spec.kind {
        Kind::Acp { .. } => acp::run(&spec, orders, said).await,
        Kind::OpenAi(_) => openai::run(&spec, orders, said).await,
        Kind::Command { .. } => command::run(&spec, orders, said).await,
    }
}
