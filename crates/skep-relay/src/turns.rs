//! A socket that is read in turns.
//!
//! Job: whoever sends one large message has the same share of the event loop as whoever sends many small ones. Without
//! it a message of half a megabyte is one turn of its connection, as long as what is sent is already here.
//! Must not: hold bytes back; what was not read stays where it was.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};

use skep_proto::limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives way after each [`limits::TURN_BYTES_MAX`] that were there to be read.
pub(crate) struct InTurns<S> {
    socket: S,
    /// Bytes read since others had their turn.
    read: usize,
}

impl<S> InTurns<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self { socket, read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for InTurns<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        if self.read >= limits::TURN_BYTES_MAX {
            self.read = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(context, buffer);
        self.read = if polled.is_ready() { self.read + buffer.filled().len() - before } else { 0 };
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for InTurns<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn others_have_their_turn_while_much_is_read() {
        let parts = 5;
        let bytes = vec![7; parts * limits::TURN_BYTES_MAX];
        let mut socket = InTurns::new(bytes.as_slice());
        let mut read = Vec::new();
        let mut turns = 0;
        {
            let mut reading = std::pin::pin!(async {
                // As a WebSocket reads.
                let mut part = vec![0; 16 * limits::KIB];
                loop {
                    match socket.read(&mut part).await.expect("a slice is read") {
                        0 => return,
                        n => read.extend_from_slice(&part[..n]),
                    }
                }
            });
            std::future::poll_fn(|context| {
                turns += 1;
                reading.as_mut().poll(context)
            })
            .await;
        }
        assert_eq!(read, bytes, "nothing is lost in between");
        assert_eq!(turns, parts + 1);
    }
}
