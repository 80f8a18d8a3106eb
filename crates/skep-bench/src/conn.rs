//! One WebSocket connection of a client that costs as little as it can: no JSON, no split halves, batched writes.
//!
//! tungstenite was measured before a codec of our own was thought of: 1.1 µs a published event and 0.2 µs a received one, system
//! calls included, where a relay spends 40 µs and 2 µs. It stays.
//! Must not: reconnect. A connection that the relay ends is an error of the measurement, never a retry.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::answer::Answer;
use crate::target::Target;

/// How many connections are being opened at one time: enough to hide the round trip, few enough for any backlog.
const OPENING_MAX: usize = 64;

/// Longest time for a connection to open, TCP and WebSocket together.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// How much a connection reads at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffers {
    /// 128 KiB: large answers, few connections.
    Wide,
    /// 16 KiB: a thousand subscribers.
    Narrow,
    /// 256 bytes: ten thousand connections that hear a ping now and then.
    Idle,
}

impl Buffers {
    fn config(self) -> WebSocketConfig {
        let bytes = match self {
            Self::Wide => 128 << 10,
            Self::Narrow => 16 << 10,
            Self::Idle => 256,
        };
        WebSocketConfig::default().read_buffer_size(bytes)
    }
}

pub struct Conn {
    ws: WebSocketStream<TcpStream>,
}

impl Conn {
    /// Opens connection number `index`; the number decides which local address it comes from.
    pub async fn open(target: &Target, buffers: Buffers, index: usize) -> Result<Self> {
        let opening = tokio::time::timeout(OPEN_MAX, Self::open_slowly(target, buffers, index));
        opening.await.map_err(|_| {
            let (text, seconds) = (&target.url.text, OPEN_MAX.as_secs());
            anyhow!("{text} did not accept connection number {index} within {seconds} s")
        })?
    }

    async fn open_slowly(target: &Target, buffers: Buffers, index: usize) -> Result<Self> {
        let text = &target.url.text;
        let stream = connect(target, index)
            .await
            .map_err(|error| anyhow!("cannot reach {text}: {error}; is the relay running?"))?;
        let (ws, _) = client_async_with_config(text, stream, Some(buffers.config()))
            .await
            .with_context(|| format!("{text} did not accept a WebSocket (connection number {index})"))?;
        Ok(Self { ws })
    }

    /// Opens connections `0..count`, all before anything is measured.
    pub async fn open_all(target: &Target, buffers: Buffers, count: usize) -> Result<Vec<Self>> {
        let mut all = Vec::with_capacity(count);
        for first in (0..count).step_by(OPENING_MAX) {
            let batch = (first..count.min(first + OPENING_MAX)).map(|index| Self::open(target, buffers, index));
            all.extend(futures_util::future::try_join_all(batch).await?);
        }
        Ok(all)
    }

    /// Sends a REQ, and reads its stored events to the EOSE.
    pub async fn subscribe(&mut self, req: String, stall: Duration) -> Result<()> {
        let reading = async {
            self.send(req.into()).await?;
            loop {
                match Answer::read(&self.recv().await?) {
                    Answer::Eose => return Ok(()),
                    Answer::Closed { message } => bail!("the relay refused a subscription: {message}"),
                    _ => {}
                }
            }
        };
        within(stall, reading).await
    }

    /// Puts a message into the write buffer. It leaves with [`Self::flush`], or when the buffer is full.
    pub async fn feed(&mut self, text: Utf8Bytes) -> Result<()> {
        self.ws.feed(Message::Text(text)).await.map_err(explain)
    }

    pub async fn flush(&mut self) -> Result<()> {
        self.ws.flush().await.map_err(explain)
    }

    pub async fn send(&mut self, text: Utf8Bytes) -> Result<()> {
        self.feed(text).await?;
        self.flush().await
    }

    /// The next text message. Pings are answered on the way. Cancel-safe.
    pub async fn recv(&mut self) -> Result<Utf8Bytes> {
        loop {
            match self.ws.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Close(frame))) => return Err(closed(frame.map(|f| f.reason.to_string()))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(explain(error)),
                None => return Err(closed(None)),
            }
        }
    }

    /// A message that is here already.
    pub fn try_recv(&mut self) -> Result<Option<Utf8Bytes>> {
        self.recv().now_or_never().transpose()
    }
}

async fn connect(target: &Target, index: usize) -> std::io::Result<TcpStream> {
    let socket = if target.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = target.source(index) {
        socket.bind((source, 0).into())?;
    }
    let stream = socket.connect(target.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An answer, or an error after `stall`.
pub async fn within<T>(stall: Duration, answer: impl Future<Output = Result<T>>) -> Result<T> {
    let seconds = stall.as_secs();
    tokio::time::timeout(stall, answer).await.map_err(|_| anyhow!("the relay did not answer within {seconds} s"))?
}

fn explain(error: tungstenite::Error) -> anyhow::Error {
    anyhow!("the connection broke: {error}")
}

fn closed(reason: Option<String>) -> anyhow::Error {
    match reason {
        Some(reason) if !reason.is_empty() => anyhow!("the relay closed the connection: {reason}"),
        _ => anyhow!("the relay closed the connection"),
    }
}
