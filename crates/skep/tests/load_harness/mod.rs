//! The real relay as a process with a home of its own, and a client that speaks to it.
//!
//! Used by the suites that load a relay. It waits for the line that says where the relay listens, kills by process
//! id, and shows the relay's log when a test fails.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use secp256k1::{Keypair, SECP256K1};
use serde_json::{Value, json};
use skep_proto::{Draft, Kind, PubKey, VerifiedEvent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::binary::{self, Listening};

/// For anything that a relay under load answers at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where metrics are asked from: no test is about it, so asking takes none of the places and requests that one counts.
const ASKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 250);

/// A running relay. Dropping it kills it.
pub struct Relay {
    pub child: Child,
    /// Held open: a relay whose stdout is closed could fail at its last line.
    _stdout: ChildStdout,
    /// Its home, with `data` in it.
    pub place: tempfile::TempDir,
    pub address: SocketAddr,
    pub key: String,
}

impl Relay {
    /// Starts one with this `config.toml`, on a port of its own.
    pub fn start(config: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("config.toml"), config).unwrap();
        let mut child = spawn(place.path());
        let (_stdout, address, key) = wait_until_it_listens(&mut child, place.path());
        Self { child, _stdout, place, address, key }
    }

    /// kill -9, then a start over what is on the disk.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.child = spawn(self.place.path());
        (self._stdout, self.address, self.key) = wait_until_it_listens(&mut self.child, self.place.path());
    }

    fn kill(&mut self) {
        binary::end(&mut self.child);
    }

    /// Panics when the process has ended.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "the relay process has ended");
    }

    /// Memory of the process in KiB: `RssAnon` is what it allocated, `VmRSS` has the pages of its files too.
    pub fn memory_kib(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// A metric, by its name without `skep_relay_`; 0 while it has not been counted.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = tokio::time::timeout(PATIENCE, self.metrics()).await.expect("metrics in time");
        let value = |line: &str| line.strip_prefix("skep_relay_")?.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value).unwrap_or(0)
    }

    /// Asks until there is a place: a connection that has ended for its client keeps its own for a moment more.
    async fn metrics(&self) -> String {
        loop {
            let mut stream = dial(self.address, ASKER, None).await.unwrap();
            // Who is turned away may be so before the request is read: what was said then is still there.
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8(answer).unwrap();
            match answer.split_once("\r\n\r\n") {
                Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => return body.to_owned(),
                _ => assert!(answer.starts_with("HTTP/1.1 503 "), "{answer:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.place.path().join("log")).unwrap_or_default();
            eprintln!("log of the relay:\n{log}");
        }
    }
}

fn spawn(place: &Path) -> Child {
    let log = File::options().create(true).append(true).open(place.join("log")).unwrap();
    binary::in_place(binary::path(), place, &place.join("home"))
        .args(["relay", "--listen", "127.0.0.1:0", "--data", "data", "--config", "config.toml"])
        .env("RUST_LOG", "warn")
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn wait_until_it_listens(child: &mut Child, place: &Path) -> (ChildStdout, SocketAddr, String) {
    let Listening { url, pubkey, stdout } = binary::listening(child).unwrap_or_else(|line| {
        let log = fs::read_to_string(place.join("log")).unwrap_or_default();
        panic!("the relay did not start; it said {line:?}\n{log}")
    });
    (stdout, url.strip_prefix("ws://").unwrap().parse().unwrap(), pubkey)
}

/// A well-behaved client. What it waits for comes within a minute, or the test fails.
pub struct Client {
    socket: WebSocketStream<TcpStream>,
    /// Of the relay's greeting (NIP-42).
    challenge: String,
}

impl Client {
    pub async fn connect(relay: &Relay) -> Self {
        Self::connect_from(relay, Ipv4Addr::LOCALHOST, None).await
    }

    /// From an address of this machine; with a receive buffer in bytes when the kernel's own is too kind.
    pub async fn connect_from(relay: &Relay, source: Ipv4Addr, buffer: Option<u32>) -> Self {
        Self::over(dial(relay.address, source, buffer).await.unwrap()).await
    }

    /// Over a TCP connection to a relay, which another process may have started.
    pub async fn over(stream: TcpStream) -> Self {
        let address = stream.peer_addr().unwrap();
        let (socket, _) = client_async(format!("ws://{address}"), stream).await.unwrap();
        let mut client = Self { socket, challenge: String::new() };
        let greeting = client.recv().await;
        assert_eq!(greeting[0], "AUTH");
        client.challenge = greeting[1].as_str().unwrap().to_owned();
        client
    }

    /// Puts a message in the write buffer; [`Self::flush`] sends it.
    pub async fn feed(&mut self, text: impl Into<Utf8Bytes>) {
        self.socket.feed(Message::Text(text.into())).await.unwrap();
    }

    pub async fn flush(&mut self) {
        self.socket.flush().await.unwrap();
    }

    pub async fn send(&mut self, text: impl Into<Utf8Bytes>) {
        let sent = self.try_send(text).await;
        assert!(sent, "the relay closed the connection");
    }

    /// `false` when the connection has ended; what came before its end can still be received.
    pub async fn try_send(&mut self, text: impl Into<Utf8Bytes>) -> bool {
        self.socket.send(Message::Text(text.into())).await.is_ok()
    }

    /// The next message as text.
    pub async fn recv_text(&mut self) -> Utf8Bytes {
        self.try_recv().await.unwrap_or_else(|why| panic!("the relay closed the connection: {why}"))
    }

    /// The next message, or the code and reason of the end of the connection.
    pub async fn try_recv(&mut self) -> Result<Utf8Bytes, String> {
        // Around the whole loop: pings must not prolong the wait.
        tokio::time::timeout(PATIENCE, self.next_text()).await.expect("an answer in time")
    }

    async fn next_text(&mut self) -> Result<Utf8Bytes, String> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err(format!("{} {}", u16::from(frame.code), frame.reason));
                }
                Some(Ok(Message::Close(None))) | None => return Err("gone".into()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.to_string()),
            }
        }
    }

    /// The next message.
    pub async fn recv(&mut self) -> Value {
        serde_json::from_str(&self.recv_text().await).unwrap()
    }

    /// Sends an event and waits for its OK; what else comes meanwhile is dropped.
    pub async fn publish(&mut self, event: &VerifiedEvent) -> (bool, String) {
        self.send(publication(event)).await;
        self.answer_to(event).await
    }

    /// The OK of the only event on its way: several are answered in any order.
    pub async fn answer_to(&mut self, event: &VerifiedEvent) -> (bool, String) {
        loop {
            let (id, is_taken, text) = self.next_ok().await;
            if id == event.id.to_hex() {
                return (is_taken, text);
            }
        }
    }

    /// The next OK: id, whether it was taken, and what was said.
    pub async fn next_ok(&mut self) -> (String, bool, String) {
        loop {
            let answer = self.recv().await;
            let text = |n: usize| answer[n].as_str().unwrap().to_owned();
            if answer[0] == "OK" {
                return (text(1), answer[2].as_bool().unwrap(), text(3));
            }
        }
    }

    /// Subscribes as `sub`, and gives the stored events once they have all come.
    pub async fn request(&mut self, sub: &str, filter: &Value) -> Vec<Value> {
        self.send(json!(["REQ", sub, filter]).to_string()).await;
        let mut found = Vec::new();
        loop {
            let mut answer = self.recv().await;
            match answer[0].as_str().unwrap() {
                "EVENT" if answer[1] == sub => found.push(answer[2].take()),
                "EOSE" if answer[1] == sub => return found,
                "CLOSED" => panic!("{answer}"),
                _ => {}
            }
        }
    }

    /// Proves a key (NIP-42).
    pub async fn authenticate(&mut self, relay: &Relay, keys: &Keypair) {
        let draft = Draft::new(Kind::AUTH, now(), "")
            .tag(["relay", &format!("ws://{}", relay.address)])
            .tag(["challenge", &self.challenge]);
        let event = draft.sign(keys, &[0; 32]);
        self.send(format!(r#"["AUTH",{}]"#, event.raw().to_json())).await;
        assert_eq!(self.answer_to(&event).await, (true, String::new()));
    }
}

/// A TCP connection from an address of this machine.
pub async fn dial(to: SocketAddr, source: Ipv4Addr, buffer: Option<u32>) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The EVENT message of an event.
pub fn publication(event: &VerifiedEvent) -> String {
    format!(r#"["EVENT",{}]"#, event.record().as_ref().to_json())
}

/// Key number `n`, from 1 on.
pub fn keys(n: u64) -> Keypair {
    let mut secret = [0; 32];
    secret[24..].copy_from_slice(&n.to_be_bytes());
    Keypair::from_seckey_slice(SECP256K1, &secret).unwrap()
}

pub fn pubkey(keys: &Keypair) -> PubKey {
    PubKey(keys.x_only_public_key().0.serialize())
}

/// Unix seconds.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
