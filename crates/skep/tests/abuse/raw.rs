//! A WebSocket client that sends what no library would: any frame, in any pieces, and nothing when it likes.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load_harness::{Relay, dial};

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;

pub const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

pub struct Raw {
    stream: TcpStream,
    /// Read, but not yet looked at.
    ahead: Vec<u8>,
}

impl Raw {
    /// A finished handshake.
    pub async fn open(relay: &Relay) -> Self {
        let stream = dial(relay.address, Ipv4Addr::LOCALHOST, None).await.unwrap();
        Self::upgrade(stream).await.unwrap()
    }

    /// The handshake on a stream; an error is the status that came instead of 101.
    pub async fn upgrade(mut stream: TcpStream) -> Result<Self, u16> {
        // A relay that refuses may close before it has read this.
        let _ = stream.write_all(UPGRADE.as_bytes()).await;
        let mut raw = Self { stream, ahead: Vec::new() };
        let head_end = loop {
            if let Some(at) = raw.ahead.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(raw.read_more().await, "the relay closed without an answer");
        };
        let status = std::str::from_utf8(&raw.ahead[9..12]).unwrap().parse().unwrap();
        raw.ahead.drain(..head_end);
        raw.ahead.shrink_to_fit();
        if status == 101 { Ok(raw) } else { Err(status) }
    }

    /// A whole message in one masked frame.
    pub async fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.bytes(&frame(opcode, true, true, payload)).await;
    }

    /// Bytes as they are. The relay may have closed: what it said before is still to be read.
    pub async fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next text message.
    pub async fn recv(&mut self) -> Value {
        match self.next_frame().await {
            Some((TEXT, payload)) => serde_json::from_slice(&payload).unwrap(),
            other => panic!("a text message was expected, not {other:?}"),
        }
    }

    /// The code and reason of the relay's close frame; `None` when the connection ended without one.
    pub async fn end(&mut self) -> Option<(u16, String)> {
        loop {
            match self.next_frame().await? {
                (CLOSE, payload) if payload.len() >= 2 => {
                    let code = u16::from_be_bytes([payload[0], payload[1]]);
                    return Some((code, String::from_utf8(payload[2..].to_vec()).unwrap()));
                }
                (CLOSE, _) => return None,
                _ => {}
            }
        }
    }

    /// The next frame of any kind; `None` at the end of the stream.
    pub async fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((opcode, head, length)) = self.head()
                && self.ahead.len() >= head + length
            {
                let payload = self.ahead[head..head + length].to_vec();
                self.ahead.drain(..head + length);
                return Some((opcode, payload));
            }
            if !self.read_more().await {
                return None;
            }
        }
    }

    /// Opcode, bytes of the head, bytes of the payload.
    fn head(&self) -> Option<(u8, usize, usize)> {
        let opcode = self.ahead.first()? & 0x0f;
        match *self.ahead.get(1)? {
            126 => Some((opcode, 4, u16::from_be_bytes(self.ahead.get(2..4)?.try_into().unwrap()).into())),
            127 => Some((opcode, 10, u64::from_be_bytes(self.ahead.get(2..10)?.try_into().unwrap()) as usize)),
            short => Some((opcode, 2, short.into())),
        }
    }

    /// `false` at the end of the stream.
    async fn read_more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.ahead);
        let read = tokio::time::timeout(Duration::from_secs(90), read).await;
        matches!(read.expect("an answer in time"), Ok(1..))
    }
}

/// One frame of a client: masked, as RFC 6455 wants, or not.
pub fn frame(opcode: u8, is_final: bool, is_masked: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame_head(opcode, is_final, is_masked, payload.len());
    if is_masked {
        let mask = [0x5a, 0xa5, 0x01, 0x80];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    } else {
        frame.extend(payload);
    }
    frame
}

/// The head alone, without the mask: it says how much is to come.
pub fn frame_head(opcode: u8, is_final: bool, is_masked: bool, length: usize) -> Vec<u8> {
    let mut head = vec![opcode | if is_final { 0x80 } else { 0 }];
    let masked = if is_masked { 0x80 } else { 0 };
    match length {
        0..=125 => head.push(masked | length as u8),
        126..=0xffff => {
            head.push(masked | 126);
            head.extend((length as u16).to_be_bytes());
        }
        _ => {
            head.push(masked | 127);
            head.extend((length as u64).to_be_bytes());
        }
    }
    head
}
