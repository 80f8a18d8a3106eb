//! A relay that keeps what it gets in memory and checks nothing; it refuses events whose content begins so.

use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message};

/// The events it has, in order.
pub type Seen = Arc<Mutex<Vec<Value>>>;

static FILTERS: Mutex<Vec<(String, Value)>> = Mutex::new(Vec::new());

pub fn relay() -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let seen = Seen::default();
    let (name, events) = (url.clone(), Arc::clone(&seen));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (name, events) = (name.clone(), Arc::clone(&events));
            std::thread::spawn(move || serve(stream.unwrap(), &name, &events));
        }
    });
    (url, seen)
}

/// What the last REQ to a relay asked for.
pub fn last_filter(url: &str) -> Value {
    let filters = FILTERS.lock().unwrap();
    filters.iter().rev().find(|(name, _)| name == url).unwrap().1.clone()
}

fn serve(stream: TcpStream, name: &str, events: &Seen) {
    let Ok(mut socket) = tungstenite::accept(stream) else { return };
    // Between messages it looks for events that are new to its open subscription.
    socket.get_ref().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut live: Option<(Value, usize)> = None;
    let mut out = vec![json!(["AUTH", "challenge"])];
    loop {
        for message in out.drain(..) {
            if socket.send(Message::text(message.to_string())).is_err() {
                return;
            }
        }
        match socket.read() {
            Ok(Message::Text(text)) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                out = answer(&message, name, events);
                if message[0] == "REQ" {
                    live = Some((message[1].clone(), events.lock().unwrap().len()));
                }
            }
            Ok(Message::Close(_)) => return,
            Ok(_) => {}
            Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        if let Some((sub, next)) = &mut live {
            let events = events.lock().unwrap();
            out.extend(events[*next..].iter().map(|event| json!(["EVENT", sub, event])));
            *next = events.len();
        }
    }
}

fn answer(message: &Value, name: &str, events: &Seen) -> Vec<Value> {
    let mut events = events.lock().unwrap();
    let second = &message[1];
    match message[0].as_str().unwrap() {
        "AUTH" => vec![json!(["OK", second["id"], true, ""])],
        "EVENT" => {
            let content = second["content"].as_str().unwrap();
            if content.starts_with("refuse") {
                return vec![json!(["OK", second["id"], false, format!("blocked: {content}")])];
            }
            events.push(second.clone());
            vec![json!(["OK", second["id"], true, ""])]
        }
        "REQ" => {
            FILTERS.lock().unwrap().push((name.to_owned(), message[2].clone()));
            let mut out: Vec<Value> = events.iter().map(|event| json!(["EVENT", second, event])).collect();
            out.push(json!(["EOSE", second]));
            out
        }
        "COUNT" => vec![json!(["COUNT", second, {"count": events.len()}])],
        _ => vec![],
    }
}
