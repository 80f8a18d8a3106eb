//! `POST /`: relay management (NIP-86). What a call changes is decided by `skep_core::management`.
//!
//! Must not: decide on a world that another call is about to change.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};
use skep_core::management::{self, Call};

use super::auth::{self, Asked};
use super::{Backend, error, json_answer, read_body, refused};

const CALL: &str = "application/nostr+json+rpc";

pub async fn call<B: Backend>(State(backend): State<Arc<B>>, request: Request) -> Response {
    if !is_call(request.headers()) {
        return error(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid: POST here takes application/nostr+json+rpc (NIP-86)",
        );
    }
    let (head, body) = match read_body(&*backend, request).await {
        Ok(parts) => parts,
        Err(answer) => return answer,
    };
    let asked = Asked { method: &head.method, uri: &head.uri, body: &body };
    let caller = match auth::caller(&*backend, &head.headers, asked) {
        Ok(caller) => caller,
        Err(refusal) => return refused(&refusal),
    };
    let call: Call = match serde_json::from_slice(&body) {
        Ok(call) => call,
        Err(_) => {
            return error(StatusCode::BAD_REQUEST, r#"invalid: the body is not {"method": "...", "params": [...]}"#);
        }
    };
    let (now, fresh) = (backend.now(), backend.fresh());
    // Held over the write to the store: a decision holds the whole new policy, so of two at once one would be lost.
    let turn = backend.policy_turn().lock().await;
    let outcome = match backend.with_world(|world| management::decide(world, &caller, &call, now, &fresh)) {
        Ok(decision) => {
            backend.apply(decision.change).await.map(|()| decision.result).map_err(|refusal| refusal.to_string())
        }
        Err(failed) => Err(failed.to_string()),
    };
    drop(turn);
    json_answer(
        StatusCode::OK,
        &outcome.map_or_else(|error| json!({ "error": error }), |result: Value| json!({ "result": result })),
    )
}

fn is_call(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(CALL))
}

/// A backend for the tests of this module and its children.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
pub mod fake {
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::SeqCst;

    use axum::http::HeaderMap;
    use base64::Engine;
    use secp256k1::{Keypair, SECP256K1};
    use sha2::{Digest, Sha256};
    use skep_core::world::{Policy, Registry};
    use skep_proto::limits::Limits;
    use skep_proto::{Draft, Kind, Record, Seq};
    use tower::ServiceExt;

    use super::super::*;

    pub const NOW: Timestamp = 1_700_000_000;

    pub struct Fake {
        world: Mutex<World>,
        used: Mutex<HashSet<EventId>>,
        turn: tokio::sync::Mutex<()>,
        pub identity: Identity,
        pub stored: Mutex<Vec<Record>>,
        pub not_ready: Option<String>,
        pub requests_left: AtomicU32,
        blobs: (tempfile::TempDir, BlobStore),
    }

    impl Fake {
        pub fn open() -> Arc<Self> {
            let world = World {
                relay: key(99),
                hosts: ["relay.example", "127.0.0.1:7777"].map(String::from).into(),
                admins: [key(50)].into_iter().collect(),
                members: Default::default(),
                is_closed: false,
                agent_depth: 1,
                min_pow: 0,
                is_search_on: true,
                channels: Default::default(),
                names: [("ann".to_owned(), key(1)), ("bob".to_owned(), key(2))].into(),
                limits: Limits { blob_bytes: 3_000_000, ..Limits::default() },
                policy: Policy::default(),
                registry: Registry::default(),
            };
            let identity = Identity {
                name: "a relay".into(),
                description: "for <bees> & friends".into(),
                icon: None,
                contact: Some("mailto:keeper@relay.example".into()),
                software: "https://skep.invalid/skep".into(),
                version: "0.1.0".into(),
                key: key(99),
                npub: "npub1relay".into(),
                admin: Some(key(50)),
                public_url: "wss://relay.example/".into(),
            };
            let dir = tempfile::tempdir().unwrap();
            let blobs = BlobStore::open(dir.path()).unwrap();
            let (world, blobs) = (Mutex::new(world), (dir, blobs));
            Arc::new(Self {
                world,
                used: Mutex::default(),
                turn: tokio::sync::Mutex::default(),
                identity,
                stored: Mutex::default(),
                not_ready: None,
                requests_left: AtomicU32::new(u32::MAX),
                blobs,
            })
        }

        /// A closed relay whose member is `key(1)`.
        pub fn closed() -> Arc<Self> {
            let fake = Self::open();
            fake.change(|world| {
                world.is_closed = true;
                world.members.insert(key(1));
            });
            fake
        }

        pub fn change(&self, f: impl FnOnce(&mut World)) {
            f(&mut self.world.lock().unwrap());
        }

        fn find(&self, readers: &Readers, filters: &[Filter]) -> Vec<Record> {
            let world = self.world.lock().unwrap();
            let stored = self.stored.lock().unwrap();
            let found = stored.iter().filter(|record| {
                let event = record.as_ref();
                skep_core::may_read(&world, readers, event, NOW) && filters.iter().any(|filter| filter.matches(event))
            });
            found.cloned().collect()
        }

        pub async fn call(self: &Arc<Self>, request: Request) -> Answer {
            let (head, body) = router(self.clone()).oneshot(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer { status: head.status.as_u16(), headers: head.headers, body }
        }
    }

    impl Backend for Fake {
        fn with_world<R>(&self, f: impl FnOnce(&World) -> R) -> R {
            f(&self.world.lock().unwrap())
        }
        fn now(&self) -> Timestamp {
            NOW
        }
        fn identity(&self) -> &Identity {
            &self.identity
        }
        fn fresh(&self) -> String {
            "f".repeat(32)
        }
        fn use_token(&self, id: EventId, _: Timestamp) -> bool {
            self.used.lock().unwrap().insert(id)
        }
        fn policy_turn(&self) -> &tokio::sync::Mutex<()> {
            &self.turn
        }
        async fn apply(&self, change: Change) -> Result<(), Refusal> {
            // Lets other calls run in between, as a disk would.
            tokio::task::yield_now().await;
            match change {
                Change::Nothing => {}
                Change::Policy(policy) => self.change(|world| world.policy = *policy),
                Change::Registry { agent, row } => self.change(|world| world.registry.set(agent, row)),
            }
            Ok(())
        }
        fn query(self: Arc<Self>, readers: Readers, filters: Vec<Filter>, _: Option<Caller>) -> Pieces {
            let found = self.find(&readers, &filters);
            let (sender, pieces) = mpsc::channel(found.len() + 1);
            let lines = found.iter().map(|record| Piece::Lines(format!("{}\n", record.as_ref().to_json()).into()));
            lines.chain([Piece::End]).for_each(|piece| sender.try_send(piece).unwrap());
            pieces
        }
        async fn count(&self, readers: Readers, filters: Vec<Filter>) -> Result<u64, Refusal> {
            Ok(self.find(&readers, &filters).len() as u64)
        }
        async fn submit(&self, _: Readers, event: RawEvent) -> Result<Accepted, Refusal> {
            let event = event.verify().map_err(|failed| Prefix::Invalid.because(failed.to_string()))?;
            let mut stored = self.stored.lock().unwrap();
            if stored.iter().any(|record| record.as_ref().id() == event.id) {
                return Ok(Accepted::Duplicate);
            }
            stored.push(event.into_record());
            Ok(Accepted::Stored(Seq(stored.len() as u64)))
        }
        fn take_request(&self, _: IpAddr) -> bool {
            self.requests_left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
        }
        fn metrics(&self) -> String {
            "# EOF\n".into()
        }
        fn ready(&self) -> Result<(), String> {
            self.not_ready.clone().map_or(Ok(()), Err)
        }
        fn blobs(&self) -> Option<&BlobStore> {
            Some(&self.blobs.1)
        }
    }

    #[derive(Debug)]
    pub struct Answer {
        pub status: u16,
        headers: HeaderMap,
        pub body: Bytes,
    }

    impl Answer {
        pub fn json(&self) -> Value {
            serde_json::from_slice(&self.body).unwrap()
        }
        pub fn text(&self) -> &str {
            std::str::from_utf8(&self.body).unwrap()
        }
        /// `""` without it.
        pub fn header(&self, name: &str) -> &str {
            self.headers.get(name).map_or("", |value| value.to_str().unwrap())
        }
    }

    fn keys(n: u8) -> Keypair {
        Keypair::from_seckey_slice(SECP256K1, &[n; 32]).unwrap()
    }

    pub fn key(n: u8) -> PubKey {
        PubKey(keys(n).x_only_public_key().0.serialize())
    }

    pub fn sign(draft: Draft, n: u8) -> RawEvent {
        draft.sign(&keys(n), &[0; 32]).raw().clone()
    }

    pub fn nip98(url: &str, method: &str, body: &[u8]) -> Draft {
        let payload = hash_of(body);
        Draft::new(Kind::HTTP_AUTH, NOW, "").tag(["u", url]).tag(["method", method]).tag(["payload", &payload])
    }

    /// A Blossom token about these blobs.
    pub fn blossom(verb: &str, blobs: &[&str]) -> Draft {
        let draft = Draft::new(Kind::BLOB_AUTH, NOW, "").tag(["t", verb]).tag(["expiration", &(NOW + 60).to_string()]);
        blobs.iter().fold(draft, |draft, id| draft.tag(["x", id]))
    }

    pub fn hash_of(bytes: &[u8]) -> String {
        format!("{:x}", Sha256::digest(bytes))
    }

    pub fn authorization(event: &RawEvent) -> HeaderMap {
        let token = base64::engine::general_purpose::STANDARD.encode(event.to_json());
        HeaderMap::from_iter([(header::AUTHORIZATION, format!("Nostr {token}").parse().unwrap())])
    }

    /// `headers` are lines of `Name: value`.
    pub fn request(method: &str, uri: &str, headers: &[&str], body: impl Into<Body>) -> Request {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers.iter().filter_map(|line| line.split_once(": ")) {
            request = request.header(name, value);
        }
        request.body(body.into()).unwrap()
    }

    pub fn signed(mut request: Request, token: Draft, n: u8) -> Request {
        request.headers_mut().extend(authorization(&sign(token, n)));
        request
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::super::fake::{self, Answer, Fake, key, request, signed};
    use super::*;

    fn post(body: &str) -> Request {
        request("POST", "/", &["Content-Type: application/nostr+json+rpc"], body.to_owned())
    }

    async fn manage(backend: &Arc<Fake>, n: u8, method: &str, params: Value) -> Answer {
        let body = json!({ "method": method, "params": params }).to_string();
        let token = fake::nip98("wss://relay.example", "POST", body.as_bytes()).tag(["nonce", &format!("{n}{body}")]);
        backend.call(signed(post(&body), token, n)).await
    }

    #[tokio::test]
    async fn an_admin_changes_the_relay_and_sees_it() {
        let backend = Fake::open();
        let answer = manage(&backend, 50, "changerelayname", json!(["hive"])).await;
        assert_eq!((answer.status, answer.json()), (200, json!({ "result": true })));
        assert_eq!(backend.with_world(|world| world.policy.name.clone()), Some("hive".into()));
        let claim = manage(&backend, 50, "createclaim", json!([])).await.json();
        assert_eq!(claim, json!({ "result": "f".repeat(32) }));
        let listed = manage(&backend, 50, "supportedmethods", json!([])).await.json();
        assert!(listed["result"].as_array().unwrap().contains(&json!("banpubkey")));
    }

    #[tokio::test]
    async fn a_name_is_served_from_the_moment_it_is_added_until_it_is_removed() {
        let backend = Fake::open();
        let served = async |name: &str| {
            let uri = format!("/.well-known/nostr.json?name={name}");
            backend.call(request("GET", &uri, &[], "")).await.json()["names"][name].clone()
        };
        let call = async |method: &str, params: Value| manage(&backend, 50, method, params).await.json();
        assert_eq!(call("addname", json!(["cleo", key(3)])).await, json!({ "result": true }));
        assert_eq!(call("addname", json!(["ann", key(4)])).await, json!({ "result": true }));
        let listed = json!([
            { "name": "ann", "pubkey": key(4) }, { "name": "bob", "pubkey": key(2) }, { "name": "cleo", "pubkey": key(3) },
        ]);
        assert_eq!(call("listnames", json!([])).await["result"], listed);
        assert_eq!((served("cleo").await, served("ann").await), (json!(key(3)), json!(key(4))));
        for name in ["cleo", "ann"] {
            assert_eq!(call("removename", json!([name])).await, json!({ "result": true }));
        }
        assert_eq!((served("cleo").await, served("ann").await), (Value::Null, json!(key(1))), "as configured");
        for bad in [json!(["bob"]), json!(["nobody"]), json!(["No Name"])] {
            assert!(call("removename", bad).await["error"].is_string());
        }
        assert!(manage(&backend, 3, "addname", json!(["eve", key(3)])).await.json()["error"].is_string());
        assert!(call("addname", json!(["Eve", key(3)])).await["error"].is_string(), "a name is lowercase");
    }

    #[tokio::test]
    async fn a_stranger_gets_an_error_and_changes_nothing() {
        let backend = Fake::open();
        let answer = manage(&backend, 3, "banpubkey", json!([key(1)])).await;
        assert_eq!(answer.status, 200);
        assert!(answer.json()["error"].is_string() && answer.json().get("result").is_none());
        assert!(backend.with_world(|world| world.policy.banned_keys.is_empty()));
    }

    #[tokio::test]
    async fn a_call_without_a_good_token_is_401() {
        let backend = Fake::open();
        let body = r#"{"method":"banpubkey","params":[]}"#;
        let other_body = fake::nip98("https://relay.example/", "POST", b"{}");
        for request in [post(body), signed(post(body), other_body, 50)] {
            let answer = backend.call(request).await;
            assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Nostr"));
            assert!(answer.json()["error"].as_str().unwrap().starts_with("auth-required: "));
        }
    }

    #[tokio::test]
    async fn a_call_sent_twice_is_done_once() {
        let backend = Fake::open();
        let body = r#"{"method":"changerelayname","params":["hive"]}"#;
        let token = fake::nip98("https://relay.example/", "POST", body.as_bytes());
        assert_eq!(backend.call(signed(post(body), token.clone(), 50)).await.status, 200);
        assert_eq!(backend.call(signed(post(body), token, 50)).await.status, 401);
    }

    #[tokio::test]
    async fn of_two_calls_at_once_none_is_lost() {
        let backend = Fake::open();
        let body = |n| json!({ "method": "banpubkey", "params": [key(n)] }).to_string();
        let router = super::super::router(backend.clone());
        let send = |n: u8| {
            let token = fake::nip98("https://relay.example/", "POST", body(n).as_bytes());
            tower::ServiceExt::oneshot(router.clone(), signed(post(&body(n)), token, 50))
        };
        let (first, second, third) = tokio::join!(send(1), send(2), send(3));
        assert!([first, second, third].iter().all(|answer| answer.as_ref().unwrap().status() == 200));
        assert_eq!(backend.with_world(|world| world.policy.banned_keys.len()), 3);
    }

    #[tokio::test]
    async fn an_unknown_method_and_another_content_type_are_told() {
        let backend = Fake::open();
        let unknown = manage(&backend, 50, "selfdestruct", json!([])).await;
        assert_eq!(unknown.status, 200);
        assert!(unknown.json()["error"].as_str().unwrap().contains("selfdestruct"));
        assert_eq!(backend.call(request("POST", "/", &["Content-Type: application/json"], "{}")).await.status, 415);
    }
}
