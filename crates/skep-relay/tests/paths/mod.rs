//! A relay in this process, and readers that ask it by every path there is.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::HeaderValue;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use secp256k1::{Keypair, SECP256K1};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skep_core::World;
use skep_core::world::{Channel, ChannelAccess, Ownership, Policy, Registry, Source};
use skep_proto::kind;
use skep_proto::limits::Limits;
use skep_proto::{Draft, EventId, Kind, PubKey, Record};
use skep_relay::http::Identity;
use skep_relay::{Config, Relay};
use skep_store::{Op, Options};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

pub fn key(n: u8) -> Keypair {
    Keypair::from_seckey_slice(SECP256K1, &[n + 1; 32]).unwrap()
}

pub fn pubkey(n: u8) -> PubKey {
    PubKey(key(n).x_only_public_key().0.serialize())
}

pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A message that never comes must fail the test, not hang it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A way to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    Kindless,
    Kinds,
    Ids,
    Authors,
    Tags,
    Search,
    Count,
    Negentropy,
    Http,
    HttpCount,
}

impl Path {
    pub const STORED: [Self; 10] = [
        Self::Kindless,
        Self::Kinds,
        Self::Ids,
        Self::Authors,
        Self::Tags,
        Self::Search,
        Self::Count,
        Self::Negentropy,
        Self::Http,
        Self::HttpCount,
    ];
}

/// What a path showed: ids, or how many.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Ids(BTreeSet<EventId>),
    Count(usize),
}

pub struct Rig {
    relay: Relay,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub async fn start() -> Self {
        Self::start_in(|_| {}).await
    }

    /// A relay whose rules are not the usual ones.
    pub async fn start_in(change: impl FnOnce(&mut World)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut world = world(&address.to_string());
        change(&mut world);
        let config = Config {
            keys: key(99),
            world,
            identity: identity(&format!("ws://{address}")),
            store: Options { is_durable: false, map_bytes: 1 << 30, ..Options::new(dir.path().join("data")) },
            has_blobs: false,
        };
        let relay = Relay::start(config, listener).await.unwrap();
        let rig = Self { relay, _dir: dir };
        let row = serde_json::to_vec(&ownership()).unwrap();
        rig.relay.commit(vec![Op::Own { agent: pubkey(crate::AGENT), row }]).await.unwrap();
        rig.relay.learn(pubkey(crate::AGENT), ownership());
        rig
    }

    /// Ends the relay, so that a test may start hundreds.
    pub async fn stop(self) {
        self.relay.shutdown().await;
    }

    /// Past the door: events of every kind must be there, also those that only the relay may publish.
    pub async fn store(&self, records: &[Record]) {
        let ops = records.iter().map(|record| {
            let event = record.as_ref();
            if event.kind().is_ephemeral() {
                Op::Ring(record.clone())
            } else {
                let words =
                    if kind::rule(event.kind()).search { vec!["needle".into(), "haystack".into()] } else { Vec::new() };
                Op::Put { record: record.clone(), words, guard: None }
            }
        });
        self.relay.commit(ops.collect()).await.unwrap();
    }

    /// What this reader should see, by the table written in the test.
    pub fn readable(&self, keys: &[u8], records: &[Record]) -> BTreeSet<EventId> {
        let visible = records.iter().filter(|record| crate::should_see(keys, record));
        visible.map(|record| record.as_ref().id()).collect()
    }

    /// The records that are still stored (not replaced, not deleted), or in the ring.
    pub fn kept(&self, records: &[Record]) -> Vec<Record> {
        let store = self.relay.store();
        let is_kept = |record: &&Record| {
            let event = record.as_ref();
            event.kind().is_ephemeral() || skep_store::EventStore::contains(&**store, &event.id()).unwrap()
        };
        records.iter().filter(is_kept).cloned().collect()
    }

    pub fn expected(&self, path: Path, may: &BTreeSet<EventId>, records: &[Record]) -> Seen {
        let stored = self.kept(records).into_iter().filter(|record| {
            let event = record.as_ref();
            may.contains(&event.id())
                && !event.kind().is_ephemeral()
                && (path != Path::Search || kind::rule(event.kind()).search)
        });
        let ids: BTreeSet<EventId> = stored.map(|record| record.as_ref().id()).collect();
        match path {
            Path::Count | Path::HttpCount => Seen::Count(ids.len()),
            _ => Seen::Ids(ids),
        }
    }

    pub async fn connect(&self, keys: &[u8]) -> Reader {
        let url = format!("ws://{}", self.relay.address());
        let stream = TcpStream::connect(self.relay.address()).await.unwrap();
        // Two small messages in a row must not wait for each other's acknowledgement.
        stream.set_nodelay(true).unwrap();
        let (socket, _) = tokio_tungstenite::client_async(&url, stream).await.unwrap();
        let mut reader = Reader { socket, url, keys: keys.to_vec() };
        let Value::Array(greeting) = reader.receive().await else { panic!("a message is an array") };
        let challenge = greeting[1].as_str().unwrap().to_owned();
        for n in keys {
            let event = Draft::new(Kind::AUTH, unix_now(), "")
                .tag(["relay", &reader.url])
                .tag(["challenge", &challenge])
                .sign(&key(*n), &[0; 32]);
            reader.send(&json!(["AUTH", event.raw()])).await;
            assert_eq!(reader.receive().await[2], json!(true), "authentication");
        }
        reader
    }
}

fn ownership() -> Ownership {
    Ownership { owner: Some(pubkey(crate::OWNER)), source: Source::Admin, since: 0 }
}

fn world(host: &str) -> World {
    let channel = |access| Channel {
        name: String::new(),
        access,
        members: [pubkey(crate::AGENT), pubkey(crate::MEMBER)].into(),
        admins: BTreeSet::new(),
    };
    let channels = [
        ("members-only".to_owned(), channel(ChannelAccess::Members)),
        ("open-to-all".to_owned(), channel(ChannelAccess::Open)),
    ];
    let mut registry = Registry::default();
    registry.set(pubkey(crate::AGENT), ownership());
    World {
        relay: pubkey(99),
        hosts: [host.to_owned()].into(),
        admins: Default::default(),
        members: [pubkey(crate::MEMBER)].into_iter().collect(),
        is_closed: false,
        agent_depth: 1,
        min_pow: 0,
        is_search_on: true,
        channels: channels.into_iter().collect(),
        names: Default::default(),
        limits: Limits {
            connections_per_ip: 1_000,
            requests_per_second: 0,
            http_requests_per_second_per_ip: 0,
            ..Limits::default()
        },
        policy: Policy::default(),
        registry,
    }
}

fn identity(url: &str) -> Identity {
    Identity {
        name: "t".into(),
        description: String::new(),
        icon: None,
        contact: None,
        software: String::new(),
        version: "0".into(),
        key: pubkey(99),
        npub: String::new(),
        admin: None,
        public_url: url.into(),
    }
}

pub struct Reader {
    socket: WebSocketStream<TcpStream>,
    url: String,
    keys: Vec<u8>,
}

impl Reader {
    /// The keys that this reader proved to hold.
    pub fn keys(&self) -> &[u8] {
        &self.keys
    }

    async fn send(&mut self, message: &Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn receive(&mut self) -> Value {
        // Around the whole loop: pings must not prolong the wait.
        let text = tokio::time::timeout(PATIENCE, self.next_text()).await.expect("a message in time");
        serde_json::from_str(&text).unwrap()
    }

    async fn next_text(&mut self) -> Utf8Bytes {
        loop {
            if let Message::Text(text) = self.socket.next().await.unwrap().unwrap() {
                return text;
            }
        }
    }

    fn name(&self) -> String {
        // Across readers: a token of one must not be a replay of another's.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        format!("s{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub async fn read(&mut self, path: Path, records: &[Record]) -> Seen {
        let kinds: BTreeSet<u16> = records.iter().map(|record| record.as_ref().kind().0).collect();
        let ids: Vec<EventId> = records.iter().map(|record| record.as_ref().id()).collect();
        let all = json!({ "#x": ["all"] });
        match path {
            Path::Kindless => self.request(&json!({})).await,
            Path::Kinds => self.request(&json!({ "kinds": kinds })).await,
            Path::Ids => self.request(&json!({ "ids": ids })).await,
            Path::Authors => self.request(&json!({ "authors": [pubkey(crate::AGENT), pubkey(6)] })).await,
            Path::Tags => self.request(&all).await,
            Path::Search => self.request(&json!({ "search": "needle" })).await,
            Path::Count => self.count(&all).await,
            Path::Negentropy => self.reconcile(&all).await,
            Path::Http => self.http_query(&all).await,
            Path::HttpCount => self.http_count(&all).await,
        }
    }

    /// One COUNT; a CLOSED answer counts nothing.
    pub async fn count(&mut self, filter: &Value) -> Seen {
        let name = self.name();
        self.send(&json!(["COUNT", name, filter])).await;
        Seen::Count(self.receive().await[2]["count"].as_u64().unwrap_or(0) as usize)
    }

    pub async fn http_query(&mut self, filter: &Value) -> Seen {
        let answer = self.post("/query", filter).await;
        let lines = answer.text.lines().filter(|_| answer.status == 200);
        Seen::Ids(lines.map(|line| id_of(&serde_json::from_str(line).unwrap())).collect())
    }

    pub async fn http_count(&mut self, filter: &Value) -> Seen {
        let answer: Value = serde_json::from_str(&self.post("/count", filter).await.text).unwrap();
        Seen::Count(answer["count"].as_u64().unwrap_or(0) as usize)
    }

    /// One REQ; a CLOSED answer shows nothing.
    pub async fn request(&mut self, filter: &Value) -> Seen {
        let name = self.name();
        self.send(&json!(["REQ", name, filter])).await;
        let mut ids = BTreeSet::new();
        loop {
            let message = self.receive().await;
            match message[0].as_str().unwrap() {
                "EVENT" => drop(ids.insert(id_of(&message[2]))),
                "EOSE" => break,
                _ => return Seen::Ids(ids),
            }
        }
        self.send(&json!(["CLOSE", name])).await;
        Seen::Ids(ids)
    }

    /// The ids that the relay has and an empty set lacks; a NEG-ERR answer shows nothing.
    pub async fn reconcile(&mut self, filter: &Value) -> Seen {
        let mut storage = NegentropyStorageVector::new();
        storage.seal().unwrap();
        let mut client = Negentropy::owned(storage, 0).unwrap();
        let name = self.name();
        let first = faster_hex::hex_string(&client.initiate().unwrap());
        self.send(&json!(["NEG-OPEN", name, filter, first])).await;
        let (mut have, mut need): (Vec<Id>, Vec<Id>) = (Vec::new(), Vec::new());
        loop {
            let message = self.receive().await;
            if message[0] == "NEG-ERR" {
                return Seen::Ids(BTreeSet::new());
            }
            assert_eq!(message[0], "NEG-MSG", "{message}");
            let hex = message[2].as_str().unwrap();
            let mut bytes = vec![0; hex.len() / 2];
            faster_hex::hex_decode(hex.as_bytes(), &mut bytes).unwrap();
            match client.reconcile_with_ids(&bytes, &mut have, &mut need).unwrap() {
                Some(next) => self.send(&json!(["NEG-MSG", name, faster_hex::hex_string(&next)])).await,
                None => break,
            }
        }
        self.send(&json!(["NEG-CLOSE", name])).await;
        Seen::Ids(need.into_iter().map(|id| EventId(id.to_bytes())).collect())
    }

    /// The answers about one id, names taken out: what a stranger could compare.
    pub async fn probe(&mut self, record: &Record) -> Vec<String> {
        self.answers(&json!({ "ids": [record.as_ref().id()] })).await
    }

    /// The first answer on every path to a filter that should find nothing, names taken out.
    pub async fn answers(&mut self, filter: &Value) -> Vec<String> {
        let mut answers = Vec::new();
        for (verb, end) in [("REQ", "CLOSE"), ("COUNT", "CLOSE"), ("NEG-OPEN", "NEG-CLOSE")] {
            let name = self.name();
            let message = match verb {
                // Version 0x61 and an empty list of ids up to the end of time.
                "NEG-OPEN" => json!([verb, name, filter, "6100000200"]),
                _ => json!([verb, name, filter]),
            };
            self.send(&message).await;
            answers.push(self.receive().await.to_string().replace(&name, "name"));
            self.send(&json!([end, name])).await;
        }
        for path in ["/query", "/count"] {
            answers.push(format!("{:?}", self.post(path, filter).await));
        }
        answers
    }

    pub async fn watch_all(&mut self) {
        self.send(&json!(["REQ", "live", { "#x": ["all"] }])).await;
        assert_eq!(self.receive().await, json!(["EOSE", "live"]));
    }

    /// Subscribes to a filter and to the events in `beside`. `false`: this reader gets nothing here.
    pub async fn watch(&mut self, filter: &Value, beside: &Value) -> bool {
        self.send(&json!(["REQ", "live", filter, beside])).await;
        self.receive().await[0] == "EOSE"
    }

    /// Live events up to the one with this id; then the subscription ends.
    pub async fn live_until(&mut self, last: EventId) -> BTreeSet<EventId> {
        let mut got = BTreeSet::new();
        loop {
            let message = self.receive().await;
            let id = id_of(&message[2]);
            if id == last {
                self.send(&json!(["CLOSE", "live"])).await;
                return got;
            }
            got.insert(id);
        }
    }

    /// Live events up to one that everybody may see and that is stored last.
    pub async fn live_until_marker(&mut self, rig: &Rig) -> BTreeSet<EventId> {
        let marker = Draft::new(Kind(1), unix_now(), format!("marker {:?}", self.keys)).tag(["x", "all"]);
        let marker = marker.sign(&key(crate::STRANGER), &[0; 32]).into_record();
        rig.store(std::slice::from_ref(&marker)).await;
        let mut got = BTreeSet::new();
        loop {
            let message = self.receive().await;
            let event: skep_proto::RawEvent = serde_json::from_value(message[2].clone()).unwrap();
            if event.id == marker.as_ref().id() {
                return got;
            }
            if !event.content.starts_with("marker") {
                got.insert(event.id);
            }
        }
    }

    async fn post(&mut self, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        let address = self.url.strip_prefix("ws://").unwrap().to_owned();
        let address = address.as_str();
        let nonce = self.name();
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = hyper::Request::post(path).header("Host", address);
        // One token stands for one key; a reader with several asks with the last, which is the one that sees most.
        if let Some(n) = self.keys.last() {
            let hash = faster_hex::hex_string(&Sha256::digest(&body));
            let token = Draft::new(Kind::HTTP_AUTH, unix_now(), "")
                .tag(["u", &format!("http://{address}{path}")])
                .tag(["method", "POST"])
                .tag(["payload", &hash])
                .tag(["n", &nonce])
                .sign(&key(*n), &[0; 32]);
            use base64::Engine;
            let token = base64::engine::general_purpose::STANDARD.encode(token.raw().to_json());
            request = request.header("Authorization", format!("Nostr {token}"));
        }
        let answer = sender.send_request(request.body(Full::<bytes::Bytes>::from(body)).unwrap()).await.unwrap();
        let (status, content_type) = (answer.status().as_u16(), answer.headers().get("content-type").cloned());
        assert!(matches!(status, 200 | 401 | 403), "{status}");
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        drop(sender);
        connection.await.unwrap().unwrap();
        Answer { status, content_type, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }
}

/// What an HTTP path answered, as far as a reader could compare it.
#[derive(Debug)]
struct Answer {
    status: u16,
    #[expect(dead_code, reason = "compared as printed text")]
    content_type: Option<HeaderValue>,
    text: String,
}

fn id_of(event: &Value) -> EventId {
    event["id"].as_str().unwrap().parse().unwrap()
}
