//! The client against scripted relays, good and bad.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};
use skep_node::client::{Client, ClientError, Counted, Credentials, Options, Update};
use skep_node::keys::Keys;
use skep_proto::{Draft, Filter, Kind, RawEvent};
use tokio_tungstenite::tungstenite::{self, Message};

/// A relay for one connection: says `greeting`, then for each message what `script` answers.
fn relay(greeting: &[Value], mut script: impl FnMut(&Value) -> Vec<Value> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let greeting = greeting.to_vec();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut socket = tungstenite::accept(stream).unwrap();
        for message in greeting {
            socket.send(Message::text(message.to_string())).unwrap();
        }
        while let Ok(message) = socket.read() {
            let Message::Text(text) = message else { continue };
            for answer in script(&serde_json::from_str(&text).unwrap()) {
                if socket.send(Message::text(answer.to_string())).is_err() {
                    return;
                }
            }
        }
    });
    url
}

fn options(keys: Option<&Keys>) -> Options {
    Options { credentials: keys.cloned().map(Credentials::from), timeout: Duration::from_secs(5) }
}

fn impatient() -> Options {
    Options { credentials: None, timeout: Duration::from_millis(200) }
}

fn note(keys: &Keys, content: &str) -> RawEvent {
    keys.sign(Draft::new(Kind(1), 1_700_000_000, content)).raw().clone()
}

#[tokio::test]
async fn an_event_is_published_and_its_own_ok_is_the_answer() {
    let keys = Keys::generate().unwrap();
    let url = relay(&[], |message| {
        let id = &message[1]["id"];
        vec![json!(["NOTICE", "hi"]), json!(["OK", "00", true, ""]), json!(["OK", id, false, "blocked: no"])]
    });
    let mut client = Client::connect(&url, options(None)).await.unwrap();
    let verdict = client.publish(&note(&keys, "x")).await.unwrap();
    assert_eq!((verdict.accepted, verdict.message.as_str()), (false, "blocked: no"));
}

#[tokio::test]
async fn a_challenge_at_connect_is_answered_before_anything_is_asked() {
    let keys = Keys::generate().unwrap();
    let mut order = Vec::new();
    let url = relay(&[json!(["AUTH", "c1"])], move |message| {
        order.push(message[0].as_str().unwrap().to_owned());
        match message[0].as_str().unwrap() {
            "AUTH" => {
                let event: RawEvent = serde_json::from_value(message[1].clone()).unwrap();
                let event = event.verify().unwrap();
                assert_eq!((event.kind, event.tags.single("challenge")), (Kind::AUTH, Some("c1")));
                assert_eq!(event.tags.named("auth").next().unwrap().len(), 4);
                vec![json!(["OK", event.id, true, ""])]
            }
            _ => vec![json!(["COUNT", message[1], {"count": order.len()}])],
        }
    });
    let attestation = Some(["auth".into(), "a".into(), String::new(), "c".into()]);
    let credentials = Some(Credentials { keys, attestation });
    let mut client = Client::connect(&url, Options { credentials, ..options(None) }).await.unwrap();
    assert!(client.is_authenticated());
    let counted = client.count(&[Filter::new()]).await.unwrap();
    assert_eq!(counted, Counted { count: 2, approximate: false, hll: None }, "AUTH came first");
}

/// Challenges only when asked for something, as many relays do; serves one event to whoever authenticated.
fn shy_relay(event: RawEvent) -> String {
    let mut known = false;
    relay(&[], move |message| match message[0].as_str().unwrap() {
        "AUTH" => {
            known = true;
            vec![json!(["OK", message[1]["id"], true, ""])]
        }
        "REQ" if known => vec![json!(["EVENT", message[1], event]), json!(["EOSE", message[1]])],
        "EVENT" if known => vec![json!(["OK", message[1]["id"], true, ""])],
        "EVENT" => vec![json!(["AUTH", "c"]), json!(["OK", message[1]["id"], false, "auth-required: who?"])],
        "REQ" | "COUNT" => vec![json!(["CLOSED", message[1], "auth-required: who?"]), json!(["AUTH", "c"])],
        _ => vec![],
    })
}

#[tokio::test]
async fn after_auth_required_a_request_is_made_again_with_credentials() {
    let keys = Keys::generate().unwrap();
    let event = note(&keys, "secret");
    let mut client = Client::connect(&shy_relay(event.clone()), options(Some(&keys))).await.unwrap();
    let found = client.query(vec![Filter::new()]).await.unwrap();
    assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), [event.id]);

    let mut client = Client::connect(&shy_relay(event.clone()), options(Some(&keys))).await.unwrap();
    assert!(client.publish(&event).await.unwrap().accepted);
}

#[tokio::test]
async fn after_auth_required_a_client_without_credentials_is_told() {
    let keys = Keys::generate().unwrap();
    let mut client = Client::connect(&shy_relay(note(&keys, "x")), options(None)).await.unwrap();
    let Err(ClientError::Refused { message, .. }) = client.count(&[Filter::new()]).await else { panic!("refused") };
    assert_eq!(message, "auth-required: who?");
}

#[tokio::test]
async fn a_relay_that_refuses_our_auth_may_still_serve() {
    let keys = Keys::generate().unwrap();
    let url = relay(&[json!(["AUTH", "c"])], |message| match message[0].as_str().unwrap() {
        "AUTH" => vec![json!(["OK", message[1]["id"], false, "restricted: go away"])],
        _ => vec![json!(["EOSE", message[1]])],
    });
    let mut client = Client::connect(&url, options(Some(&keys))).await.unwrap();
    assert_eq!(client.auth_refusal(), Some("restricted: go away"));
    assert!(client.query(vec![Filter::new()]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_forged_event_is_named_and_not_passed_on() {
    let keys = Keys::generate().unwrap();
    let mut forged = note(&keys, "I owe you 5");
    forged.content = "I owe you 5000".into();
    let good = note(&keys, "good");
    let (bad_id, good_id) = (forged.id, good.id);
    let url = relay(&[], move |message| {
        let sub = &message[1];
        vec![
            json!(["EVENT", "other", good]),
            json!(["EVENT", sub, {"id": "malformed"}]),
            json!(["EVENT", sub, forged]),
            json!(["EVENT", sub, good]),
            json!(["EOSE", sub]),
        ]
    });
    let mut client = Client::connect(&url, options(None)).await.unwrap();
    let mut sub = client.subscribe(vec![Filter::new()]).await.unwrap();
    assert!(matches!(client.next_update(&mut sub).await.unwrap(), Update::Forged { id, .. } if id == bad_id));
    assert!(matches!(client.next_update(&mut sub).await.unwrap(), Update::Event(event) if event.id == good_id));
    assert!(matches!(client.next_update(&mut sub).await.unwrap(), Update::CaughtUp));
}

#[tokio::test]
async fn a_failed_query_is_an_error_and_never_an_empty_answer() {
    let url = relay(&[], |message| vec![json!(["CLOSED", message[1], "error: shutting down"])]);
    let mut client = Client::connect(&url, options(None)).await.unwrap();
    assert!(matches!(client.query(vec![Filter::new()]).await, Err(ClientError::Refused { .. })));
}

#[tokio::test]
async fn silence_times_out_with_the_last_notice() {
    let url = relay(&[], |_| vec![json!(["NOTICE", "unknown message type COUNT"])]);
    let mut client = Client::connect(&url, impatient()).await.unwrap();
    let error = client.count(&[Filter::new()]).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }));
    assert!(error.to_string().contains("unknown message type COUNT"), "{error}");
}

#[tokio::test]
async fn a_listener_that_says_nothing_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let connected = Client::connect(&url, impatient()).await;
    assert!(matches!(connected, Err(ClientError::Timeout { doing: "connecting", .. })));
}

#[tokio::test]
async fn a_web_server_is_not_a_relay() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4_096];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let connected = Client::connect(&url, options(None)).await;
    assert!(matches!(connected, Err(ClientError::NotARelay { cause, .. }) if cause == "HTTP status 404"));
}

#[tokio::test]
async fn a_connection_that_ends_is_lost_and_not_an_answer() {
    let url = relay(&[], |_| panic!("the relay dies"));
    let mut client = Client::connect(&url, options(None)).await.unwrap();
    assert!(matches!(client.query(vec![Filter::new()]).await, Err(ClientError::Lost { .. })));
}
