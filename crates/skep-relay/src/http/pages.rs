//! What people and their tools look at: the home page, health, metrics, and names (NIP-05).
//!
//! Must not: load anything from elsewhere, run a script, or show a text of somebody's that is not escaped.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::nip11::Shown;
use super::{Backend, Identity, answer, json_answer, query_value};

const TEXT: &str = "text/plain; charset=utf-8";

/// Bytes of a NIP-05 answer stay small: whoever wants one name asks for it.
const NAMES_MAX: usize = 1_000;

/// The process serves.
pub async fn health() -> Response {
    answer(StatusCode::OK, TEXT, "ok\n")
}

/// Events can be taken and served.
pub async fn ready<B: Backend>(State(backend): State<Arc<B>>) -> Response {
    match backend.ready() {
        Ok(()) => answer(StatusCode::OK, TEXT, "ready\n"),
        Err(reason) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, reason + "\n"),
    }
}

pub async fn metrics<B: Backend>(State(backend): State<Arc<B>>) -> Response {
    let text = backend.metrics();
    let content_type = if text.ends_with("# EOF\n") {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    };
    answer(StatusCode::OK, content_type, text)
}

/// `/.well-known/nostr.json?name=<local name>`; all names without `name`.
pub async fn names<B: Backend>(State(backend): State<Arc<B>>, uri: Uri) -> Response {
    let wanted = query_value(&uri, "name");
    let url = &backend.identity().public_url;
    let (mut names, mut relays) = (Map::new(), Map::new());
    backend.with_world(|world| {
        let known = world.local_names().into_iter().filter(|(name, _)| wanted.is_none_or(|wanted| wanted == *name));
        for (name, key) in known.take(NAMES_MAX) {
            names.insert(name.to_owned(), json!(key));
            relays.insert(key.to_hex(), json!([url]));
        }
    });
    json_answer(StatusCode::OK, &json!({ "names": Value::Object(names), "relays": Value::Object(relays) }))
}

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#d9d4c7;--quiet:#6b6558}\
@media(prefers-color-scheme:dark){:root{--line:#3d3a33;--quiet:#a39d8f}}\
body{font:16px/1.6 system-ui,sans-serif;max-width:38rem;margin:4rem auto;padding:0 1.25rem}\
h1{font-size:1.6rem;margin:0}h2{font-size:1rem;margin:2.5rem 0 .5rem}\
p{margin:.5rem 0}.quiet,dt,footer{color:var(--quiet)}\
dl{border-top:1px solid var(--line);margin:2rem 0 0}dt{font-size:.85rem;margin-top:1rem}dd{margin:0}\
code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}\
footer{border-top:1px solid var(--line);margin-top:3rem;padding-top:1rem;font-size:.85rem}";

/// The page of `GET /` for a person.
pub fn home(identity: &Identity, shown: &Shown) -> Response {
    let mut page = answer(StatusCode::OK, "text/html; charset=utf-8", html(identity, shown));
    let rule =
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(rule));
    page.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    page
}

fn html(identity: &Identity, shown: &Shown) -> String {
    let (name, description) = (escape(&shown.name), escape(&shown.description));
    let url = escape(&identity.public_url);
    let who = if shown.is_closed {
        "It is for its members: a client signs in with its key when it connects."
    } else {
        "Anyone may read and write here, within its rules."
    };
    let contact = identity.contact.as_deref().map(|contact| row("Contact", contact)).unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{name}</title><style>{STYLE}</style></head><body>\n\
         <h1>{name}</h1>\n<p>{description}</p>\n\
         <p class=\"quiet\">This is a Nostr relay. {who}</p>\n\
         <dl>{}{}{contact}</dl>\n\
         <h2>How to connect</h2>\n\
         <p>Add <code>{url}</code> to the relays of your Nostr client. Nothing else is needed.</p>\n\
         <p>Its rules and limits, for programs: \
         <code>curl -H 'Accept: application/nostr+json' {}</code></p>\n\
         <footer>Skep {}</footer>\n</body></html>\n",
        row("Relay", &identity.public_url),
        row("Key", &identity.npub),
        escape(&web_url(identity)),
        escape(&identity.version),
    )
}

fn row(term: &str, value: &str) -> String {
    format!("<dt>{term}</dt><dd><code>{}</code></dd>", escape(value))
}

/// The relay's URL for HTTP, without a slash at its end.
pub fn web_url(identity: &Identity) -> String {
    let url = identity.public_url.trim_end_matches('/');
    match url.split_once("://") {
        Some(("wss", rest)) => format!("https://{rest}"),
        Some(("ws", rest)) => format!("http://{rest}"),
        _ => url.to_owned(),
    }
}

/// Text as HTML, fit for an attribute too.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' | '\'' => write!(out, "&#{};", c as u32).unwrap_or_default(),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::super::fake::{Fake, key, request};
    use super::*;

    async fn get(backend: &Arc<Fake>, path: &str) -> super::super::fake::Answer {
        backend.call(request("GET", path, &[], "")).await
    }

    #[tokio::test]
    async fn the_page_says_where_to_connect_and_escapes_what_others_wrote() {
        let backend = Fake::open();
        backend.change(|world| world.policy.name = Some("<script>alert('x')</script>\"".into()));
        let page = get(&backend, "/").await;
        let text = page.text();
        assert!(text.contains("wss://relay.example/") && text.contains("npub1relay"));
        assert!(text.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&#34;"));
        assert!(text.contains("for &lt;bees&gt; &amp; friends"));
        assert!(!text.contains("<script") && !text.contains("src=") && !text.contains("href="));
        assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    }

    #[tokio::test]
    async fn health_is_of_the_process_and_ready_is_of_the_relay() {
        let mut backend = Fake::open();
        assert_eq!(get(&backend, "/ready").await.status, 200);
        Arc::get_mut(&mut backend).unwrap().not_ready = Some("the store is read-only".into());
        assert_eq!(get(&backend, "/health").await.status, 200);
        let answer = get(&backend, "/ready").await;
        assert_eq!((answer.status, answer.text()), (503, "the store is read-only\n"));
        assert_eq!(get(&backend, "/metrics").await.status, 200);
    }

    #[tokio::test]
    async fn a_name_is_answered_with_its_key_and_an_unknown_one_with_none() {
        let backend = Fake::open();
        let ann = key(1).to_hex();
        let found = get(&backend, "/.well-known/nostr.json?name=ann").await.json();
        assert_eq!(found, json!({ "names": { "ann": ann }, "relays": { ann: ["wss://relay.example/"] } }));
        let unknown = get(&backend, "/.well-known/nostr.json?x=1&name=carl").await;
        assert_eq!((unknown.status, unknown.json()), (200, json!({ "names": {}, "relays": {} })));
        let all = get(&backend, "/.well-known/nostr.json").await.json();
        assert_eq!(all["names"].as_object().unwrap().len(), 2);
    }
}
