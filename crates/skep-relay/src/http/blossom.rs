//! Blobs over HTTP: Blossom (BUD-01, 02, 06, 11, 12).
//!
//! Who may do what:
//! - **upload**: keys with a standing here (admins, members, their agents; on an open relay registered agents and
//!   owners). On an open relay that has no members at all, any key that signs. Never a banned key.
//! - **get, list**: everyone on an open relay; on a closed one keys with a standing, by a token of their own.
//! - **delete**: an owner of the blob, its own claim only.
//!
//! Must not: let an uploaded page act on this origin (it is sandboxed, and never shown as a page); change a byte;
//! answer 201 before the blob is durable; hold a blocking thread while a client is slow.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use skep_proto::{PubKey, Refusal};
use skep_store::blob::{BlobError, BlobId, BlobMeta, BlobStore, Claim, Quota, Upload};

use super::auth::{self, Verb};
use super::pages::web_url;
use super::{Backend, Span, json_answer, query_value, set, status_of, text};

/// Bytes gathered before they go to the disk: a 64 MiB blob takes 64 trips to a blocking thread.
const WRITE_BYTES: usize = 1024 * 1024;

/// Bytes read from the disk at a time.
const READ_BYTES: usize = 256 * 1024;

/// An upload without a byte for this long is given up.
const STALL_MAX: Duration = Duration::from_secs(30);

/// Descriptors on one page of a list.
const LIST_DEFAULT: usize = 100;
const LIST_MAX: usize = 1_000;

/// Bytes of a content type that is kept.
const TYPE_BYTES_MAX: usize = 127;
const TYPE_UNKNOWN: &str = "application/octet-stream";

type Answer = Result<Response, Problem>;

/// Why a request is refused; the reason goes into `X-Reason`.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    reason: Cow<'static, str>,
}

fn problem(status: StatusCode, reason: impl Into<Cow<'static, str>>) -> Problem {
    Problem { status, reason: reason.into() }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        problem(status_of(refusal.prefix), refusal.to_string())
    }
}

impl From<BlobError> for Problem {
    fn from(error: BlobError) -> Self {
        let status = match &error {
            BlobError::NotFound => StatusCode::NOT_FOUND,
            BlobError::NotOwner | BlobError::TooManyOwners => StatusCode::FORBIDDEN,
            BlobError::TooLarge { .. } | BlobError::KeyFull { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            BlobError::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
            BlobError::WrongHash { .. } => StatusCode::CONFLICT,
            BlobError::DiskFull => return problem(StatusCode::INSUFFICIENT_STORAGE, "the relay's disk is full"),
            BlobError::Io(error) => {
                tracing::warn!(%error, "blob storage failed");
                return unavailable();
            }
        };
        problem(status, error.to_string())
    }
}

fn unavailable() -> Problem {
    problem(StatusCode::SERVICE_UNAVAILABLE, "the relay's blob storage failed")
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut answer = super::error(self.status, &self.reason);
        if let Ok(reason) = HeaderValue::from_str(&self.reason) {
            answer.headers_mut().insert("x-reason", reason);
        }
        answer
    }
}

fn store<B: Backend>(backend: &B) -> Result<&BlobStore, Problem> {
    backend.blobs().ok_or_else(|| problem(StatusCode::NOT_FOUND, "this relay keeps no blobs"))
}

/// Runs work that waits for the disk where it holds up nobody.
async fn on_disk<B: Backend, T: Send + 'static>(
    backend: &Arc<B>,
    work: impl FnOnce(&BlobStore) -> Result<T, BlobError> + Send + 'static,
) -> Result<T, Problem> {
    let backend = backend.clone();
    let done = tokio::task::spawn_blocking(move || Ok(work(store(&*backend)?)?));
    done.await.map_err(|_| unavailable())?
}

fn blob_id(text: &str) -> Result<BlobId, Problem> {
    text.parse().map_err(|_| problem(StatusCode::BAD_REQUEST, "a blob is named by 64 lowercase hex characters"))
}

/// The blob that a path names: `/<sha256>` with any extension.
fn blob_in(uri: &Uri) -> Result<BlobId, Problem> {
    let name = uri.path().trim_start_matches('/');
    let id = name.split_once('.').map_or(name, |(id, _)| id);
    id.parse().map_err(|_| problem(StatusCode::NOT_FOUND, "there is nothing here"))
}

/// `PUT /upload` (BUD-02).
pub async fn upload<B: Backend>(State(backend): State<Arc<B>>, request: Request) -> Answer {
    store(&*backend)?;
    let (head, body) = request.into_parts();
    let announced = text(&head.headers, "x-sha-256").map(blob_id).transpose()?;
    let token = auth::uploader(&*backend, &head.headers, announced.as_ref())?;
    let length = text(&head.headers, "content-length").and_then(|length| length.parse::<u64>().ok());
    let bounds = bounds(&*backend);
    bounds.check(store(&*backend)?, &token.key, announced.as_ref(), length.unwrap_or(0))?;
    let received = receive(&backend, body, bounds).await?;
    let claim = Claim { owner: token.key, media_type: media_type(&head.headers), now: backend.now() };
    let expected = announced.map_or_else(|| token.blobs.clone(), |id| vec![id]);
    let stored = on_disk(&backend, move |blobs| blobs.commit(received, &expected, claim)).await;
    let stored = stored.map_err(|problem| match (problem.status, announced) {
        // Without the header it is the token that does not name what was sent.
        (StatusCode::CONFLICT, None) => Problem { status: StatusCode::UNAUTHORIZED, ..problem },
        _ => problem,
    })?;
    let status = if stored.is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json_answer(status, &descriptor(&*backend, &stored.id, &stored.meta)))
}

/// `HEAD /upload` (BUD-06): whether an upload would be taken.
pub async fn may_upload<B: Backend>(State(backend): State<Arc<B>>, headers: HeaderMap) -> Answer {
    store(&*backend)?;
    let id = text(&headers, "x-sha-256").map(blob_id).transpose()?;
    let id = id.ok_or_else(|| problem(StatusCode::BAD_REQUEST, "X-SHA-256 is missing"))?;
    let token = auth::uploader(&*backend, &headers, Some(&id))?;
    let length = text(&headers, "x-content-length");
    let length = length.ok_or_else(|| problem(StatusCode::LENGTH_REQUIRED, "X-Content-Length is missing"))?;
    let length = length.parse().map_err(|_| problem(StatusCode::BAD_REQUEST, "X-Content-Length is not a number"))?;
    bounds(&*backend).check(store(&*backend)?, &token.key, Some(&id), length)?;
    Ok(StatusCode::OK.into_response())
}

/// What an upload may have.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    blob: u64,
    quota: Quota,
}

fn bounds<B: Backend>(backend: &B) -> Bounds {
    backend.with_world(|world| {
        let limits = &world.limits;
        let quota = Quota { per_key: limits.blob_bytes_per_key, total: limits.blob_bytes_total };
        Bounds { blob: limits.blob_bytes as u64, quota }
    })
}

impl Bounds {
    /// Before the first byte is received; an upload that does not say its size is stopped on its way.
    fn check(self, blobs: &BlobStore, owner: &PubKey, id: Option<&BlobId>, size: u64) -> Result<(), BlobError> {
        if size > self.blob {
            return Err(BlobError::TooLarge { max: self.blob });
        }
        blobs.check_room(owner, id, size, self.quota)
    }
}

/// Takes a body to the disk, a batch at a time.
async fn receive<B: Backend>(backend: &Arc<B>, mut body: Body, bounds: Bounds) -> Result<Upload, Problem> {
    let mut upload = on_disk(backend, move |blobs| blobs.begin(bounds.blob, bounds.quota)).await?;
    let mut batch = Vec::new();
    loop {
        let frame = tokio::time::timeout(STALL_MAX, body.frame()).await;
        let frame = frame.map_err(|_| problem(StatusCode::REQUEST_TIMEOUT, "the upload stalled"))?;
        let frame = frame.transpose().map_err(|_| problem(StatusCode::BAD_REQUEST, "the upload broke off"))?;
        let is_last = frame.is_none();
        if let Some(bytes) = frame.and_then(|frame| frame.into_data().ok()) {
            batch.extend_from_slice(&bytes);
        }
        if is_last || batch.len() >= WRITE_BYTES {
            let full = std::mem::take(&mut batch);
            upload = on_disk(backend, move |_| upload.write(&full).map(|()| upload)).await?;
        }
        if is_last {
            return Ok(upload);
        }
    }
}

/// The content type to keep; what could not be served again as a header is unknown.
fn media_type(headers: &HeaderMap) -> String {
    let given = text(headers, "content-type").map(str::trim).unwrap_or_default();
    let is_usable = given.len() <= TYPE_BYTES_MAX && given.contains('/');
    if is_usable { given.to_owned() } else { TYPE_UNKNOWN.to_owned() }
}

fn essence(media_type: &str) -> String {
    media_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// The blob descriptor (BUD-02).
fn descriptor<B: Backend>(backend: &B, id: &BlobId, meta: &BlobMeta) -> Value {
    let essence = essence(&meta.media_type);
    let extension = match essence.split_once('/').map_or("", |(_, subtype)| subtype) {
        same @ ("png" | "gif" | "webp" | "mp4" | "webm" | "html" | "json" | "pdf" | "zip") => same,
        "jpeg" => "jpg",
        "svg+xml" => "svg",
        "mpeg" => "mp3",
        "plain" => "txt",
        "markdown" => "md",
        _ => "bin",
    };
    json!({
        "url": format!("{}/{id}.{extension}", web_url(backend.identity())),
        "sha256": id.to_string(),
        "size": meta.size,
        "type": meta.media_type,
        "uploaded": meta.uploaded,
    })
}

/// `DELETE /<sha256>` (BUD-12).
pub async fn delete<B: Backend>(State(backend): State<Arc<B>>, uri: Uri, headers: HeaderMap) -> Answer {
    let id = blob_in(&uri)?;
    store(&*backend)?;
    let token = auth::blob_token(&*backend, &headers, Verb::Delete)?;
    token.names(&id)?;
    on_disk(&backend, move |blobs| blobs.release(&id, &token.key)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /list/<pubkey>` (BUD-12), newest first; `limit` and `cursor` page.
pub async fn list<B: Backend>(State(backend): State<Arc<B>>, uri: Uri, headers: HeaderMap) -> Answer {
    let bad = |what| problem(StatusCode::BAD_REQUEST, what);
    let key = uri.path().trim_start_matches("/list/").parse().map_err(|_| bad("this is not a public key in hex"))?;
    auth::check_blob_reader(&*backend, &headers, Verb::List, None)?;
    let limit = query_value(&uri, "limit").map_or(Ok(LIST_DEFAULT), str::parse);
    let limit = limit.map_err(|_| bad("limit is not a number"))?.min(LIST_MAX);
    let cursor = query_value(&uri, "cursor").map(blob_id).transpose()?;
    let found = store(&*backend)?.list(&key, cursor, limit);
    let found = found.map_err(|_| bad("the cursor is not a blob of this list"))?;
    let page: Value = found.iter().map(|(id, meta)| descriptor(&*backend, id, meta)).collect();
    Ok(json_answer(StatusCode::OK, &page))
}

/// `GET` and `HEAD /<sha256>[.ext]` (BUD-01).
pub async fn fetch<B: Backend>(State(backend): State<Arc<B>>, method: Method, uri: Uri, headers: HeaderMap) -> Answer {
    let id = blob_in(&uri)?;
    auth::check_blob_reader(&*backend, &headers, Verb::Get, Some(&id))?;
    let meta = store(&*backend)?.stat(&id).ok_or(BlobError::NotFound)?;
    let tag = format!("\"{id}\"");
    let mut answer = if text(&headers, "if-none-match").is_some_and(|known| known.contains(&tag) || known == "*") {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let may_be_part = method == Method::GET && text(&headers, "if-range").is_none_or(|known| known == tag);
        let span = Span::of(text(&headers, "range").filter(|_| may_be_part), meta.size);
        let (status, first, length) = match span {
            Span::Whole => (StatusCode::OK, 0, meta.size),
            Span::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
            Span::Nowhere => {
                let mut answer = problem(StatusCode::RANGE_NOT_SATISFIABLE, "the blob is shorter").into_response();
                set(&mut answer, header::CONTENT_RANGE, &format!("bytes */{}", meta.size));
                return Ok(answer);
            }
        };
        let body = if method == Method::HEAD { Body::empty() } else { open(&backend, id, first, length).await? };
        let mut answer = (status, body).into_response();
        set(&mut answer, header::CONTENT_LENGTH, &length.to_string());
        if let Span::Part { first, last } = span {
            set(&mut answer, header::CONTENT_RANGE, &format!("bytes {first}-{last}/{}", meta.size));
        }
        answer
    };
    let is_closed = backend.with_world(|world| world.is_closed);
    describe(&mut answer, &tag, &meta.media_type, is_closed);
    Ok(answer)
}

/// The headers of a blob. It was made by a stranger: whatever it is, it gets an origin of its own, no scripts, and
/// is shown in place only when it is of a type that cannot be a program.
fn describe(answer: &mut Response, tag: &str, media_type: &str, is_closed: bool) {
    let essence = essence(media_type);
    let is_media = ["image/", "audio/", "video/"].iter().any(|family| essence.starts_with(family));
    let is_still = essence == "text/plain" || (is_media && essence != "image/svg+xml");
    set(answer, header::CONTENT_TYPE, TYPE_UNKNOWN);
    set(answer, header::CONTENT_TYPE, media_type);
    set(answer, header::CONTENT_DISPOSITION, if is_still { "inline" } else { "attachment" });
    let rule = "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'";
    set(answer, header::CONTENT_SECURITY_POLICY, rule);
    set(answer, HeaderName::from_static("cross-origin-resource-policy"), "cross-origin");
    set(answer, header::ETAG, tag);
    set(answer, header::ACCEPT_RANGES, "bytes");
    let audience = if is_closed { "private" } else { "public" };
    set(answer, header::CACHE_CONTROL, &format!("{audience}, max-age=31536000, immutable"));
}

/// Part of a blob, read as the client takes it.
async fn open<B: Backend>(backend: &Arc<B>, id: BlobId, first: u64, length: u64) -> Result<Body, Problem> {
    let file = on_disk(backend, move |blobs| {
        let mut file = blobs.read(&id)?;
        file.seek(SeekFrom::Start(first))?;
        Ok(file)
    });
    let chunks = stream::try_unfold((file.await?, length), |(file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let (chunk, file) = tokio::task::spawn_blocking(move || read_chunk(file, left)).await??;
        let left = left - chunk.len() as u64;
        Ok::<_, io::Error>(Some((chunk, (file, left))))
    });
    Ok(Body::from_stream(chunks))
}

/// The next bytes, at most `left`; an error when the file ends too soon, so that the client sees a broken answer.
fn read_chunk(mut file: File, left: u64) -> io::Result<(Bytes, File)> {
    let mut chunk = vec![0; READ_BYTES.min(usize::try_from(left).unwrap_or(READ_BYTES))];
    file.read_exact(&mut chunk)?;
    Ok((chunk.into(), file))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::super::fake::{self, Answer, Fake, blossom, hash_of, key, request, signed};
    use super::*;
    use skep_proto::Draft;

    fn upload_request(bytes: &[u8], headers: &[&str], token: Draft, n: u8) -> Request {
        signed(request("PUT", "/upload", headers, bytes.to_vec()), token, n)
    }

    async fn put(backend: &Arc<Fake>, bytes: &[u8], content_type: &str, n: u8) -> Answer {
        let token = blossom("upload", &[&hash_of(bytes)]);
        backend.call(upload_request(bytes, &[&format!("Content-Type: {content_type}")], token, n)).await
    }

    async fn get(backend: &Arc<Fake>, path: &str, headers: &[&str]) -> Answer {
        backend.call(request("GET", path, headers, "")).await
    }

    async fn remove(backend: &Arc<Fake>, id: &str, n: u8) -> u16 {
        backend.call(signed(request("DELETE", &format!("/{id}"), &[], ""), blossom("delete", &[id]), n)).await.status
    }

    #[tokio::test]
    async fn a_blob_comes_back_as_it_was_sent() {
        let backend = Fake::open();
        let bytes: Vec<u8> = (0..2_500_000u32).map(|n| (n % 251) as u8).collect();
        let answer = put(&backend, &bytes, "image/png", 1).await;
        let (id, url) = (hash_of(&bytes), format!("https://relay.example/{}.png", hash_of(&bytes)));
        let wanted = json!({ "url": url, "sha256": id, "size": 2_500_000, "type": "image/png", "uploaded": fake::NOW });
        assert_eq!((answer.status, answer.json()), (201, wanted.clone()));
        assert_eq!(put(&backend, &bytes, "image/png", 2).await.status, 200);
        let answer = get(&backend, &format!("/{id}.jpg"), &[]).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "image/png"));
        assert!(answer.body == bytes && answer.header("content-length") == "2500000");
        let head = backend.call(request("HEAD", &format!("/{id}"), &[], "")).await;
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "2500000", 0));
        assert_eq!(get(&backend, &format!("/list/{}", key(2)), &[]).await.json(), json!([wanted]));
        let tag = format!("If-None-Match: \"{id}\"");
        assert_eq!(get(&backend, &format!("/{id}"), &[&tag]).await.status, 304);
        assert_eq!(get(&backend, &format!("/{}", hash_of(b"absent")), &[]).await.status, 404);
    }

    #[tokio::test]
    async fn a_range_is_served_as_asked() {
        let backend = Fake::open();
        put(&backend, b"0123456789", "text/plain", 1).await;
        let path = format!("/{}", hash_of(b"0123456789"));
        for (range, status, body, shown) in [
            ("bytes=2-4", 206, "234", "bytes 2-4/10"),
            ("bytes=7-", 206, "789", "bytes 7-9/10"),
            ("bytes=-3", 206, "789", "bytes 7-9/10"),
            ("bytes=-30", 206, "0123456789", "bytes 0-9/10"),
            ("bytes=8-99", 206, "89", "bytes 8-9/10"),
            ("bytes=4-2", 200, "0123456789", ""),
            ("bytes=0-1,4-5", 200, "0123456789", ""),
            ("lines=0-1", 200, "0123456789", ""),
        ] {
            let answer = get(&backend, &path, &[&format!("Range: {range}")]).await;
            assert_eq!(
                (answer.status, answer.text(), answer.header("content-range")),
                (status, body, shown),
                "{range}"
            );
        }
        let answer = get(&backend, &path, &["Range: bytes=10-"]).await;
        assert_eq!((answer.status, answer.header("content-range")), (416, "bytes */10"));
        let other = get(&backend, &path, &["Range: bytes=0-1", "If-Range: \"other\""]).await;
        assert_eq!(other.status, 200);
    }

    #[tokio::test]
    async fn an_html_blob_cannot_act_on_this_origin() {
        let backend = Fake::open();
        for content_type in ["text/html", "image/svg+xml; charset=utf-8", "nonsense", "application/xhtml+xml"] {
            let bytes = format!("<script>alert('{content_type}')</script>");
            put(&backend, bytes.as_bytes(), content_type, 1).await;
            let answer = get(&backend, &format!("/{}.png", hash_of(bytes.as_bytes())), &[]).await;
            assert_eq!(answer.status, 200);
            assert!(answer.header("content-security-policy").starts_with("sandbox; default-src 'none'"));
            assert_eq!(
                (answer.header("content-disposition"), answer.header("x-content-type-options")),
                ("attachment", "nosniff")
            );
        }
    }

    #[tokio::test]
    async fn a_strangers_delete_is_refused() {
        let backend = Fake::open();
        put(&backend, b"mine", "text/plain", 1).await;
        put(&backend, b"mine", "text/plain", 2).await;
        let id = hash_of(b"mine");
        assert_eq!(backend.call(request("DELETE", &format!("/{id}"), &[], "")).await.status, 401);
        let other = signed(request("DELETE", &format!("/{id}"), &[], ""), blossom("delete", &[&hash_of(b"x")]), 1);
        assert_eq!(backend.call(other).await.status, 401);
        assert_eq!(remove(&backend, &id, 3).await, 403);
        assert_eq!(remove(&backend, &id, 1).await, 204);
        assert_eq!(get(&backend, &format!("/{id}"), &[]).await.text(), "mine");
        assert_eq!(remove(&backend, &id, 2).await, 204);
        assert_eq!(get(&backend, &format!("/{id}"), &[]).await.status, 404);
        assert_eq!(remove(&backend, &id, 2).await, 404);
    }

    #[tokio::test]
    async fn an_upload_is_what_its_hashes_say() {
        let backend = Fake::open();
        let (this, that) = (hash_of(b"this"), hash_of(b"that"));
        let announce = |id: &str| format!("X-SHA-256: {id}");
        let upload = async |headers: &[&str], x: &[&str]| {
            let answer = backend.call(upload_request(b"this", headers, blossom("upload", x), 1)).await;
            assert_eq!(answer.status < 400, answer.header("x-reason").is_empty());
            answer.status
        };
        assert_eq!(upload(&[], &[]).await, 401);
        assert_eq!(upload(&[], &[&that]).await, 401);
        assert_eq!(upload(&[&announce(&that)], &[&that]).await, 409);
        assert_eq!(upload(&[&announce(&that)], &[&this]).await, 401);
        assert_eq!(upload(&["X-SHA-256: nothing"], &[&this]).await, 400);
        assert_eq!(get(&backend, &format!("/{this}"), &[]).await.status, 404);
        assert_eq!(upload(&[&announce(&this)], &[&that, &this]).await, 201);
    }

    #[tokio::test]
    async fn a_blob_over_the_limit_is_refused_whether_or_not_it_says_so() {
        let backend = Fake::open();
        backend.change(|world| world.limits.blob_bytes = 4);
        assert_eq!(put(&backend, b"1234", "", 1).await.status, 201);
        assert_eq!(put(&backend, b"12345", "", 1).await.status, 413);
        let said = upload_request(b"1", &["Content-Length: 5"], blossom("upload", &[&hash_of(b"1")]), 1);
        assert_eq!(backend.call(said).await.status, 413);
    }

    #[tokio::test]
    async fn quotas_of_a_key_and_of_the_relay_are_told_apart_before_and_during_an_upload() {
        let backend = Fake::open();
        backend.change(|world| (world.limits.blob_bytes_per_key, world.limits.blob_bytes_total) = (6, 10));
        assert_eq!(put(&backend, b"1234", "", 1).await.status, 201);
        let over = put(&backend, b"567", "", 1).await;
        let reason = "this key's blobs may have 6 bytes together; delete one to make room";
        assert_eq!((over.status, over.header("x-reason")), (413, reason));
        assert_eq!(put(&backend, b"12345", "", 2).await.status, 201);
        let full = put(&backend, b"67", "", 3).await;
        let reason = "the blobs of this relay may have 10 bytes together, and they do; try again later";
        assert_eq!((full.status, full.header("x-reason")), (507, reason));
        let ask = async |bytes: &[u8], n| {
            let id = format!("X-SHA-256: {}", hash_of(bytes));
            let headers = [&*id, &*format!("X-Content-Length: {}", bytes.len())];
            let token = blossom("upload", &[&hash_of(bytes)]);
            backend.call(signed(request("HEAD", "/upload", &headers, ""), token, n)).await.status
        };
        assert_eq!((ask(b"567", 1).await, ask(b"67", 3).await, ask(b"1234", 3).await), (413, 507, 200));
        let gone = request("DELETE", &format!("/{}", hash_of(b"1234")), &[], "");
        assert_eq!(backend.call(signed(gone, blossom("delete", &[&hash_of(b"1234")]), 1)).await.status, 204);
        assert_eq!(put(&backend, b"567", "", 1).await.status, 201, "what is deleted makes room");
    }

    #[tokio::test]
    async fn an_upload_can_be_asked_about_first() {
        let backend = Fake::closed();
        let ask = async |headers: &[&str], n: u8| {
            let token = blossom("upload", &[&hash_of(b"x")]);
            backend.call(signed(request("HEAD", "/upload", headers, ""), token, n)).await.status
        };
        let id = &*format!("X-SHA-256: {}", hash_of(b"x"));
        assert_eq!(ask(&[id, "X-Content-Length: 1"], 1).await, 200);
        assert_eq!(ask(&[id, "X-Content-Length: 1"], 2).await, 403);
        assert_eq!(ask(&[id, "X-Content-Length: 3000001"], 1).await, 413);
        assert_eq!(ask(&[id], 1).await, 411);
        assert_eq!(ask(&["X-Content-Length: 1"], 1).await, 400);
        assert_eq!(backend.call(request("HEAD", "/upload", &[id, "X-Content-Length: 1"], "")).await.status, 401);
    }

    #[tokio::test]
    async fn a_closed_relay_takes_and_shows_blobs_to_members_only() {
        let backend = Fake::closed();
        assert_eq!(put(&backend, b"b", "", 2).await.status, 403);
        assert_eq!(put(&backend, b"b", "", 1).await.status, 201);
        let path = format!("/{}", hash_of(b"b"));
        assert_eq!(get(&backend, &path, &[]).await.status, 401);
        let get_as = async |n, x: &[&str]| {
            backend.call(signed(request("GET", &path, &[], ""), blossom("get", x), n)).await.status
        };
        assert_eq!((get_as(1, &[]).await, get_as(2, &[]).await), (200, 403));
        assert_eq!(get_as(1, &[&hash_of(b"another")]).await, 401);
        assert_eq!(get(&backend, &format!("/list/{}", key(1)), &[]).await.status, 401);
    }

    #[tokio::test]
    async fn a_list_takes_a_limit_and_a_cursor() {
        let backend = Fake::open();
        for n in 0..3u8 {
            put(&backend, &[n], "", 1).await;
        }
        let list = async |query: &str| get(&backend, &format!("/list/{}?{query}", key(1)), &[]).await;
        let first = list("limit=2").await.json();
        let cursor = first[1]["sha256"].as_str().unwrap();
        let rest = list(&format!("cursor={cursor}&limit=2")).await.json();
        assert_eq!((first.as_array().unwrap().len(), rest.as_array().unwrap().len()), (2, 1));
        assert_eq!(list("limit=abc").await.status, 400);
        assert_eq!(list(&format!("cursor={}", hash_of(b"no"))).await.status, 400);
        assert_eq!(get(&backend, "/list/nobody", &[]).await.status, 400);
    }
}
