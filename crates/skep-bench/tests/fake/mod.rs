//! A relay in memory that can lie in one way at a time, for the tests of a tool that must notice.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use skep_proto::wire::{self, ClientMsg};
use skep_proto::{Filter, Prefix, Record, order};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_tungstenite::tungstenite::Message;

/// What the relay does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    None,
    /// Every tenth event is refused.
    Refuses,
    /// Every event is there already.
    KnowsAll,
    /// Says nothing but a NOTICE.
    Mute,
    /// Every tenth live event is not delivered.
    DropsDeliveries,
    /// The newest event of each answer is left out.
    ShortAnswers,
}

struct State {
    lie: Lie,
    records: Mutex<Vec<Record>>,
    live: broadcast::Sender<Record>,
}

/// Starts the relay on a thread of its own, which ends with the test process.
pub fn start(lie: Lie) -> SocketAddr {
    let (told, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            told.send(listener.local_addr().expect("an address")).expect("the test waits");
            let state = Arc::new(State { lie, records: Mutex::default(), live: broadcast::channel(1 << 16).0 });
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&state)));
            }
        });
    });
    address.recv().expect("the relay starts")
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let Ok(mut ws) = tokio_tungstenite::accept_async(stream).await else { return };
    let mut live = state.live.subscribe();
    let mut sub: Option<(String, Vec<Filter>)> = None;
    let mut neg: Option<NegentropyStorageVector> = None;
    loop {
        let answers = tokio::select! {
            message = ws.next() => match message {
                Some(Ok(Message::Text(text))) => state.handle_message(&text, &mut sub, &mut neg),
                Some(Ok(_)) => continue,
                _ => return,
            },
            Ok(record) = live.recv() => match &sub {
                Some((name, filters)) if filters.iter().any(|filter| filter.matches(record.as_ref())) => {
                    vec![wire::event(name, record.as_ref())]
                }
                _ => continue,
            },
        };
        for answer in answers {
            if ws.feed(Message::text(answer)).await.is_err() {
                return;
            }
        }
        if ws.flush().await.is_err() {
            return;
        }
    }
}

impl State {
    fn handle_message(
        &self,
        text: &str,
        sub: &mut Option<(String, Vec<Filter>)>,
        neg: &mut Option<NegentropyStorageVector>,
    ) -> Vec<String> {
        match wire::decode(text).expect("the tool sends what a relay understands") {
            ClientMsg::Event(_) if self.lie == Lie::Mute => vec![wire::notice("I am not well")],
            ClientMsg::Event(event) => vec![self.publish(event.verify().expect("a valid event").into_record())],
            ClientMsg::Req { sub: name, filters } => {
                let name = wire::quote(name.as_str());
                let mut answers: Vec<String> =
                    self.query(&filters).iter().map(|record| wire::event(&name, record.as_ref())).collect();
                answers.push(wire::eose(&name));
                *sub = Some((name, filters));
                answers
            }
            ClientMsg::Count { sub, filters } => vec![wire::count(&sub, self.query(&filters).len() as u64, None)],
            ClientMsg::NegOpen { sub, filter, message } => {
                let mut storage = NegentropyStorageVector::new();
                for record in self.query(&[*filter]) {
                    let (at, id) = (record.as_ref().created_at(), record.as_ref().id());
                    storage.insert(at, Id::from_byte_array(id.0)).expect("an open storage");
                }
                storage.seal().expect("an open storage");
                let answer = reconcile(&storage, &message);
                *neg = Some(storage);
                vec![wire::neg_msg(&sub, &answer)]
            }
            ClientMsg::NegMsg { sub, message } => {
                vec![wire::neg_msg(&sub, &reconcile(neg.as_ref().expect("opened before"), &message))]
            }
            _ => Vec::new(),
        }
    }

    fn publish(&self, record: Record) -> String {
        let mut records = self.records.lock().expect("no panic before");
        records.push(record.clone());
        let tenth = records.len().is_multiple_of(10);
        let id = record.as_ref().id();
        match self.lie {
            Lie::Refuses if tenth => return wire::ok(&id.to_hex(), Err(&Prefix::Blocked.because("not today"))),
            Lie::KnowsAll => return wire::ok(&id.to_hex(), Ok("duplicate: have it")),
            Lie::DropsDeliveries if tenth => {}
            _ => drop(self.live.send(record)),
        }
        wire::ok_plain(&id)
    }

    fn query(&self, filters: &[Filter]) -> Vec<Record> {
        let records = self.records.lock().expect("no panic before");
        let filter = &filters[0];
        let mut found: Vec<_> = records.iter().filter(|record| filter.matches(record.as_ref())).cloned().collect();
        found.sort_by(|a, b| {
            let key = |r: &Record| (r.as_ref().created_at(), r.as_ref().id());
            let (a, b) = (key(a), key(b));
            order::serve_order((a.0, &a.1), (b.0, &b.1))
        });
        found.truncate(filter.limit.map_or(usize::MAX, |limit| limit as usize));
        if self.lie == Lie::ShortAnswers && !found.is_empty() {
            found.remove(0);
        }
        found
    }
}

fn reconcile(storage: &NegentropyStorageVector, message: &str) -> String {
    let mut bytes = vec![0; message.len() / 2];
    faster_hex::hex_decode(message.as_bytes(), &mut bytes).expect("hex");
    let mut side = Negentropy::borrowed(storage, 4096).expect("a valid frame size");
    faster_hex::hex_string(&side.reconcile(&bytes).expect("a valid message"))
}
