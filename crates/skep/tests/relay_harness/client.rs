//! A client that blocks: one thread, one connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::time::Duration;

use secp256k1::{Keypair, SECP256K1};
use serde_json::{Value, json};
use skep_proto::{Draft, EventId, Kind, RawEvent};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use super::script::unix_now;

/// Longer than anything that the relay may take; a test that meets it fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ids in one REQ: well below the relay's limits on values, results and bytes of a frame.
const IDS_AT_ONCE: usize = 500;

pub struct Client {
    socket: WebSocket<TcpStream>,
}

/// What became of an event, as the relay said; `None` while it has said nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Taken(String),
    Refused(String),
}

impl Client {
    pub fn connect(url: &str) -> Result<Self, String> {
        let stream = TcpStream::connect(url.strip_prefix("ws://").unwrap()).map_err(|error| error.to_string())?;
        Self::over(stream, PATIENCE)
    }

    /// Over a connection that the relay may not have taken yet.
    pub fn over(stream: TcpStream, patience: Duration) -> Result<Self, String> {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(patience)).unwrap();
        let url = format!("ws://{}/", stream.peer_addr().map_err(|error| error.to_string())?);
        let (socket, _) = tungstenite::client(url, stream).map_err(|error| error.to_string())?;
        socket.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(Self { socket })
    }

    /// A member's connection: it may read what strangers may not.
    pub fn of_member(url: &str) -> Self {
        let mut client = Self::connect(url).unwrap();
        let greeting = client.next(&["AUTH"]).unwrap();
        let challenge = greeting[1].as_str().unwrap();
        let draft = Draft::new(Kind(22_242), unix_now(), "").tag(["relay", url]).tag(["challenge", challenge]);
        let event = draft.sign(&member(), &[0; 32]);
        client.send(&json!(["AUTH", event.raw()]).to_string()).unwrap();
        assert_eq!(client.next_verdict().unwrap(), (event.id, Verdict::Taken(String::new())));
        client
    }

    pub fn send(&mut self, text: &str) -> Result<(), String> {
        self.socket.send(Message::text(text)).map_err(|error| error.to_string())
    }

    /// The next message of one of these sorts.
    pub fn next(&mut self, sorts: &[&str]) -> Result<Value, String> {
        loop {
            if let Message::Text(text) = self.socket.read().map_err(|error| error.to_string())? {
                let message: Value = serde_json::from_str(&text).unwrap();
                if sorts.contains(&message[0].as_str().unwrap()) {
                    return Ok(message);
                }
            }
        }
    }

    pub fn next_verdict(&mut self) -> Result<(EventId, Verdict), String> {
        let ok = self.next(&["OK"])?;
        let text = ok[3].as_str().unwrap().to_owned();
        let verdict = if ok[2] == true { Verdict::Taken(text) } else { Verdict::Refused(text) };
        Ok((ok[1].as_str().unwrap().parse().unwrap(), verdict))
    }

    pub fn publish(&mut self, event: &RawEvent) -> Verdict {
        self.send(&frame(event)).unwrap();
        let (id, verdict) = self.next_verdict().unwrap();
        assert_eq!(id, event.id);
        verdict
    }

    /// What a filter finds. The relay may send no event twice.
    pub fn query(&mut self, filter: &Value) -> Vec<RawEvent> {
        self.send(&json!(["REQ", "q", filter]).to_string()).unwrap();
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        loop {
            let mut message = self.next(&["EVENT", "EOSE", "CLOSED"]).unwrap();
            match message[0].as_str().unwrap() {
                "EVENT" => {
                    let event: RawEvent = serde_json::from_value(message[2].take()).unwrap();
                    assert!(seen.insert(event.id), "sent twice: {}", event.id);
                    found.push(event);
                }
                "EOSE" => break,
                _ => panic!("{filter} was refused: {message}"),
            }
        }
        self.send(r#"["CLOSE","q"]"#).unwrap();
        found
    }

    /// Those of these ids that are stored.
    pub fn stored(&mut self, ids: &[EventId]) -> BTreeMap<EventId, RawEvent> {
        let find = |part: &[EventId]| self.query(&json!({ "ids": part }));
        ids.chunks(IDS_AT_ONCE).flat_map(find).map(|event| (event.id, event)).collect()
    }

    pub fn count(&mut self, filter: &Value) -> u64 {
        self.send(&json!(["COUNT", "c", filter]).to_string()).unwrap();
        let answer = self.next(&["COUNT", "CLOSED"]).unwrap();
        answer[2]["count"].as_u64().unwrap_or_else(|| panic!("{filter} was refused: {answer}"))
    }
}

/// The one member of every relay of these tests.
pub fn member() -> Keypair {
    Keypair::from_seckey_slice(SECP256K1, &[7; 32]).unwrap()
}

/// The message that publishes an event.
pub fn frame(event: &RawEvent) -> String {
    format!("[\"EVENT\",{}]", event.to_json())
}
