//! Who sends an HTTP request: NIP-98 tokens (kind 27235) and Blossom tokens (kind 24242, BUD-11).
//!
//! Job: turn an `Authorization: Nostr <base64 event>` header into a proved key, or into a refusal that is a 401
//! (403 for a banned key). Neighbours: every handler of this module's parent that needs to know its caller.
//! Must not: spend a single-use token before everything else about it was found to be good; answer what it may not.

use axum::http::{HeaderMap, Method, Uri, header};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest, Sha256};
use skep_core::intake::host_of;
use skep_core::{Readers, World};
use skep_proto::limits::HTTP_AUTH_FRESH_SECS;
use skep_proto::{Kind, Prefix, PubKey, RawEvent, Refusal, Timestamp, VerifiedEvent};
use skep_store::blob::BlobId;

use super::Backend;

/// Bytes of an Authorization header: 16 KiB holds an event with about a hundred `x` tags.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The example in NIP-98 has no padding, the one before it had: both are read.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

fn refuse(text: &'static str) -> Refusal {
    Prefix::AuthRequired.because(text)
}

/// The request that a NIP-98 token must be about.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub body: &'a [u8],
}

/// The key that signed this request; a request without a token is refused.
pub fn caller<B: Backend>(backend: &B, headers: &HeaderMap, asked: Asked<'_>) -> Result<PubKey, Refusal> {
    let now = backend.now();
    let event = token(headers, Kind::HTTP_AUTH)?.ok_or_else(|| refuse("this request needs a NIP-98 token"))?;
    backend.with_world(|world| check_nip98(world, &event, asked, now))?;
    if !backend.use_token(event.id, now) {
        return Err(refuse("this token was used before; sign a new one"));
    }
    Ok(event.pubkey)
}

/// The reader behind this request: nobody when there is no token, but never nobody when there is a bad one.
pub fn reader<B: Backend>(backend: &B, headers: &HeaderMap, asked: Asked<'_>) -> Result<Readers, Refusal> {
    if !headers.contains_key(header::AUTHORIZATION) {
        return Ok(Readers::none());
    }
    caller(backend, headers, asked).map(|key| Readers::from_iter([key]))
}

/// The event in the header with its id and signature checked; `None` without the header.
fn token(headers: &HeaderMap, kind: Kind) -> Result<Option<VerifiedEvent>, Refusal> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    if value.len() > TOKEN_BYTES_MAX {
        return Err(refuse("the Authorization header is longer than 16 KiB"));
    }
    let (scheme, text) = value.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("nostr") {
        return Err(refuse("the Authorization header is not of the form: Nostr <base64 event>"));
    }
    let text = text.trim();
    let engine = if text.contains(['-', '_']) { URL_SAFE } else { STANDARD };
    let json = engine.decode(text).map_err(|_| refuse("the token is not base64"))?;
    let event: RawEvent = serde_json::from_slice(&json).map_err(|_| refuse("the token is not an event"))?;
    if event.kind != kind {
        return Err(Prefix::AuthRequired.because(format!("this request needs a token of kind {kind}")));
    }
    event.verify().map(Some).map_err(|_| refuse("the token's id or signature is wrong"))
}

fn check_nip98(world: &World, event: &RawEvent, asked: Asked<'_>, now: Timestamp) -> Result<(), Refusal> {
    if event.created_at.abs_diff(now) > HTTP_AUTH_FRESH_SECS {
        return Err(refuse("the token's created_at is more than 60 s from the relay's clock"));
    }
    if !event.tags.single("u").is_some_and(|url| is_this_url(world, url, asked.uri)) {
        return Err(refuse("the token's u tag is not the URL of this request"));
    }
    if event.tags.single("method") != Some(asked.method.as_str()) {
        return Err(refuse("the token's method tag is not the method of this request"));
    }
    let hash = BlobId(Sha256::digest(asked.body).into()).to_string();
    if !event.tags.single("payload").is_some_and(|payload| payload.eq_ignore_ascii_case(&hash)) {
        return Err(refuse("the token's payload tag is not the SHA-256 of the body of this request"));
    }
    check_banned(world, event)
}

fn check_banned(world: &World, event: &RawEvent) -> Result<(), Refusal> {
    if world.is_banned(&event.pubkey) {
        return Err(Prefix::Restricted.because("this key is banned here"));
    }
    Ok(())
}

/// Whether `url` is this relay, by any of its names and schemes, with the path and query of the request.
fn is_this_url(world: &World, url: &str, uri: &Uri) -> bool {
    let Some(host) = host_of(url) else { return false };
    let after_scheme = url.trim().split_once("://").map_or("", |(_, rest)| rest);
    let path = after_scheme.find(['/', '?', '#']).map_or("", |at| &after_scheme[at..]);
    let slash = if path.starts_with('/') { "" } else { "/" };
    let asked = uri.path_and_query().map_or("/", |path| path.as_str());
    world.hosts.contains(&host) && format!("{slash}{path}") == asked
}

/// What a Blossom token permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Get,
    Upload,
    List,
    Delete,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Upload => "upload",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// A Blossom token that is good here and now for one verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobToken {
    pub key: PubKey,
    /// The blobs that it is about (`x` tags).
    pub blobs: Vec<BlobId>,
}

impl BlobToken {
    pub fn names(&self, id: &BlobId) -> Result<(), Refusal> {
        if self.blobs.contains(id) {
            return Ok(());
        }
        Err(refuse("the token has no x tag with the SHA-256 of this blob"))
    }
}

/// The Blossom token of a request; a request without one is refused.
pub fn blob_token<B: Backend>(backend: &B, headers: &HeaderMap, verb: Verb) -> Result<BlobToken, Refusal> {
    let event = token(headers, Kind::BLOB_AUTH)?;
    let event = event.ok_or_else(|| refuse("this request needs a Blossom token of kind 24242"))?;
    let now = backend.now();
    backend.with_world(|world| check_blob_token(world, &event, verb, now))?;
    let blobs = event.tags.values("x").filter_map(|text| text.parse().ok()).collect();
    Ok(BlobToken { key: event.pubkey, blobs })
}

fn check_blob_token(world: &World, event: &RawEvent, verb: Verb, now: Timestamp) -> Result<(), Refusal> {
    let tags = &event.tags;
    if event.created_at > now + HTTP_AUTH_FRESH_SECS {
        return Err(refuse("the token is from the future"));
    }
    let expires_at = tags.single("expiration").and_then(|text| text.parse::<Timestamp>().ok());
    if expires_at.is_none_or(|at| at <= now) {
        return Err(refuse("the token has expired, or has no expiration tag"));
    }
    if tags.single("t") != Some(verb.as_str()) {
        return Err(Prefix::AuthRequired.because(format!("the token's t tag is not {}", verb.as_str())));
    }
    if tags.named("server").next().is_some() && !tags.values("server").any(|name| is_this_server(world, name)) {
        return Err(refuse("the token's server tags name other servers"));
    }
    check_banned(world, event)
}

/// `server` is a bare domain (BUD-11), or a URL as the older BUD-01 had it.
fn is_this_server(world: &World, name: &str) -> bool {
    let host = host_of(name).unwrap_or_else(|| name.to_ascii_lowercase());
    let domain = |known: &str| known.rsplit_once(':').map_or(known, |(domain, _)| domain).to_owned();
    world.hosts.iter().any(|known| *known == host || domain(known) == host)
}

/// Who uploads a blob, announced or not (`X-SHA-256`): a key with a standing; on an open relay without members any.
pub fn uploader<B: Backend>(
    backend: &B,
    headers: &HeaderMap,
    announced: Option<&BlobId>,
) -> Result<BlobToken, Refusal> {
    let token = blob_token(backend, headers, Verb::Upload)?;
    match announced {
        Some(id) => token.names(id)?,
        None if token.blobs.is_empty() => return Err(refuse("the token has no x tag")),
        None => {}
    }
    let may_upload = |world: &World| {
        let has_members = !(world.members.is_empty() && world.policy.allowed_keys.is_empty());
        world.has_standing(&token.key) || !(world.is_closed || has_members)
    };
    if backend.with_world(may_upload) {
        Ok(token)
    } else {
        Err(Prefix::Restricted.because("this key may not upload here"))
    }
}

/// Whether this request may read blobs: on a closed relay it takes a token of a key with a standing.
pub fn check_blob_reader<B: Backend>(
    backend: &B,
    headers: &HeaderMap,
    verb: Verb,
    id: Option<&BlobId>,
) -> Result<(), Refusal> {
    if !backend.with_world(|world| world.is_closed) {
        return Ok(());
    }
    let token = blob_token(backend, headers, verb)?;
    if let Some(id) = id.filter(|_| !token.blobs.is_empty()) {
        token.names(id)?;
    }
    if backend.with_world(|world| world.has_standing(&token.key)) {
        return Ok(());
    }
    Err(Prefix::Restricted.because("this relay is for its members"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::super::fake::{self, Fake, NOW};
    use super::*;
    use skep_proto::Draft;

    const BODY: &[u8] = b"{}";

    fn check(backend: &Fake, event: &RawEvent, uri: &str) -> Result<PubKey, Refusal> {
        let (headers, uri) = (fake::authorization(event), uri.parse().unwrap());
        caller(backend, &headers, Asked { method: &Method::POST, uri: &uri, body: BODY })
    }

    fn draft() -> Draft {
        fake::nip98("https://relay.example/", "POST", BODY)
    }

    #[test]
    fn a_token_works_once() {
        let backend = Fake::open();
        let event = fake::sign(draft(), 1);
        assert_eq!(check(&backend, &event, "/"), Ok(event.pubkey));
        let again = check(&backend, &event, "/").unwrap_err();
        assert_eq!((again.prefix, again.text.contains("used before")), (Prefix::AuthRequired, true));
    }

    #[test]
    fn a_bad_token_is_not_spent() {
        let backend = Fake::open();
        let event = fake::sign(draft(), 1);
        assert!(check(&backend, &event, "/other").is_err());
        assert!(check(&backend, &event, "/").is_ok());
    }

    #[test]
    fn the_url_is_compared_by_host_path_and_query_in_any_scheme() {
        let backend = Fake::open();
        let ok = |url: &str, uri: &str| check(&backend, &fake::sign(fake::nip98(url, "POST", BODY), 1), uri).is_ok();
        for scheme in ["http", "https", "ws", "wss", "WSS"] {
            assert!(ok(&format!("{scheme}://RELAY.example"), "/"), "{scheme}");
        }
        assert!(ok("https://relay.example/?a=1", "/?a=1") && ok("http://127.0.0.1:7777/query", "/query"));
        for (url, uri) in [
            ("https://other.example/", "/"),
            ("https://relay.example/query", "/"),
            ("https://relay.example/", "/?a=1"),
            ("https://relay.example/?a=1", "/"),
            ("https://relay.example@other.example/", "/"),
            ("https://relay.example/#x", "/"),
            ("ftp://relay.example/", "/"),
            ("relay.example", "/"),
        ] {
            assert!(!ok(url, uri), "{url} for {uri}");
        }
    }

    #[test]
    fn wrong_method_payload_time_kind_or_signature_is_refused() {
        let backend = Fake::open();
        let with = |change: fn(&mut Draft)| {
            let mut draft = draft();
            change(&mut draft);
            check(&backend, &fake::sign(draft, 1), "/").map_err(|refusal| refusal.prefix)
        };
        assert!(with(|_| ()).is_ok());
        assert!(with(|draft| draft.created_at = NOW - 60).is_ok() && with(|draft| draft.created_at = NOW + 60).is_ok());
        let changes: [fn(&mut Draft); 7] = [
            |draft| *draft = fake::nip98("https://relay.example/", "GET", BODY),
            |draft| *draft = fake::nip98("https://relay.example/", "POST", b"another body"),
            |draft| draft.tags = skep_proto::Tags::from_iter([["u", "https://relay.example/"], ["method", "POST"]]),
            |draft| draft.tags.push(["method", "POST"]),
            |draft| draft.created_at = NOW - 61,
            |draft| draft.created_at = NOW + 61,
            |draft| draft.kind = Kind(24_242),
        ];
        for (i, change) in changes.into_iter().enumerate() {
            assert_eq!(with(change), Err(Prefix::AuthRequired), "change {i}");
        }
        let mut forged = fake::sign(draft(), 1);
        forged.sig.0[5] ^= 1;
        assert!(check(&backend, &forged, "/").is_err());
    }

    #[test]
    fn a_banned_key_is_nobody_here() {
        let backend = Fake::open();
        let event = fake::sign(draft(), 1);
        backend.change(|world| drop(world.policy.banned_keys.insert(event.pubkey.to_hex(), String::new())));
        assert_eq!(check(&backend, &event, "/").map_err(|refusal| refusal.prefix), Err(Prefix::Restricted));
    }

    #[test]
    fn every_spelling_of_base64_is_read() {
        let event = fake::sign(draft(), 1);
        let json = event.to_json();
        for text in [
            base64::engine::general_purpose::STANDARD.encode(&json),
            base64::engine::general_purpose::STANDARD_NO_PAD.encode(&json),
            base64::engine::general_purpose::URL_SAFE.encode(&json),
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&json),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, format!("Nostr {text}").parse().unwrap());
            assert!(token(&headers, Kind::HTTP_AUTH).unwrap().is_some());
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "Basic YTpi".parse().unwrap());
        assert!(token(&headers, Kind::HTTP_AUTH).is_err(), "another scheme is not the same as none");
    }

    #[test]
    fn a_blob_token_is_for_one_verb_one_time_and_the_servers_it_names() {
        let backend = Fake::open();
        let with = |change: fn(Draft) -> Draft| {
            let headers = fake::authorization(&fake::sign(change(fake::blossom("upload", &[])), 1));
            blob_token(&*backend, &headers, Verb::Upload).is_ok()
        };
        assert!(with(|draft| draft));
        assert!(with(|draft| draft.tag(["server", "elsewhere.example"]).tag(["server", "relay.example"])));
        assert!(with(|draft| draft.tag(["server", "https://relay.example/"])));
        assert!(with(|draft| draft.tag(["server", "127.0.0.1"])));
        assert!(!with(|draft| draft.tag(["server", "elsewhere.example"])));
        assert!(!with(|draft| draft.tag(["server"])));
        assert!(!with(|_| fake::blossom("delete", &[])));
        assert!(!with(|mut draft| {
            draft.created_at = NOW + 61;
            draft
        }));
        assert!(!with(|draft| Draft::new(draft.kind, NOW, "")
            .tag(["t", "upload"])
            .tag(["expiration", &NOW.to_string()])));
        assert!(!with(|draft| Draft::new(draft.kind, NOW, "").tag(["t", "upload"])));
    }

    #[test]
    fn on_an_open_relay_with_members_a_stranger_may_not_upload() {
        let backend = Fake::open();
        let upload = |n| {
            let headers = fake::authorization(&fake::sign(fake::blossom("upload", &[&"ab".repeat(32)]), n));
            uploader(&*backend, &headers, None).map(drop).map_err(|refusal| refusal.prefix)
        };
        assert_eq!(upload(7), Ok(()));
        backend.change(|world| world.members.extend([fake::key(1)]));
        assert_eq!((upload(7), upload(1), upload(50)), (Err(Prefix::Restricted), Ok(()), Ok(())));
        backend.change(|world| drop(world.policy.banned_keys.insert(fake::key(1).to_hex(), String::new())));
        assert_eq!(upload(1), Err(Prefix::Restricted));
    }
}
