//! `GET /`: the relay's information document (NIP-11), or the page for a person.
//!
//! Must not: name a limit that is not the one enforced, or a NIP that is not.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Map, Value, json};
use skep_core::World;
use skep_proto::limits::SUB_ID_CHARS_MAX;

use super::{Backend, Identity, answer, pages};

const DOCUMENT: &str = "application/nostr+json";

pub async fn root<B: Backend>(State(backend): State<Arc<B>>, headers: HeaderMap) -> Response {
    let identity = backend.identity();
    let wanted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut answer = if wanted.into_iter().any(|value| value.to_ascii_lowercase().contains(DOCUMENT)) {
        let document = backend.with_world(|world| document(identity, world));
        answer(StatusCode::OK, DOCUMENT, document.to_string())
    } else {
        pages::home(identity, &backend.with_world(|world| Shown::of(identity, world)))
    };
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    answer
}

/// What an administrator may have changed since the configuration was read.
pub struct Shown {
    pub name: String,
    pub description: String,
    pub icon: Option<String>,
    pub is_closed: bool,
}

impl Shown {
    pub fn of(identity: &Identity, world: &World) -> Self {
        let policy = &world.policy;
        Self {
            name: policy.name.as_ref().unwrap_or(&identity.name).clone(),
            description: policy.description.as_ref().unwrap_or(&identity.description).clone(),
            icon: policy.icon.as_ref().or(identity.icon.as_ref()).cloned(),
            is_closed: world.is_closed,
        }
    }
}

fn document(identity: &Identity, world: &World) -> Value {
    let Shown { name, description, icon, .. } = Shown::of(identity, world);
    let mut document = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            document.insert(name.to_owned(), value);
        }
    };
    put("name", json!(name));
    put("description", json!(description));
    put("icon", json!(icon));
    put("pubkey", json!(identity.admin));
    put("self", json!(identity.key));
    put("contact", json!(identity.contact));
    put("software", json!(identity.software));
    put("version", json!(identity.version));
    put("supported_nips", json!(supported_nips(world)));
    put("limitation", limitation(world));
    Value::Object(document)
}

/// The NIPs that the relay itself acts on. What it merely stores for its clients is not here.
fn supported_nips(world: &World) -> Vec<u16> {
    let mut nips = vec![1, 4, 9, 11, 17, 40, 42, 43, 45, 59, 62, 70, 77, 86, 98];
    nips.extend((world.min_pow > 0).then_some(13));
    nips.extend(world.is_search_on.then_some(50));
    nips.sort_unstable();
    nips
}

fn limitation(world: &World) -> Value {
    let limits = &world.limits;
    let mut limitation = json!({
        "max_message_length": limits.frame_bytes,
        "max_subscriptions": limits.subscriptions,
        "max_filters": limits.filters,
        "max_limit": limits.results,
        "default_limit": limits.results,
        "max_subid_length": SUB_ID_CHARS_MAX,
        "max_event_tags": limits.tags,
        "max_content_length": limits.content_chars(),
        "min_pow_difficulty": world.min_pow,
        "auth_required": world.is_closed,
        "restricted_writes": world.is_closed || world.min_pow > 0,
        "payment_required": false,
        "created_at_upper_limit": limits.created_at_ahead_secs,
    });
    if limits.created_at_behind_secs > 0 {
        limitation["created_at_lower_limit"] = json!(limits.created_at_behind_secs);
    }
    limitation
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::super::fake::{self, Fake, NOW, request};
    use super::*;
    use skep_core::door::Origin;
    use skep_core::intake::screen;
    use skep_proto::{Draft, Kind};

    async fn fetch(backend: &Arc<Fake>) -> Value {
        let answer = backend.call(request("GET", "/", &["Accept: text/html, application/nostr+json"], "")).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, DOCUMENT));
        answer.json()
    }

    #[tokio::test]
    async fn the_document_shows_the_limits_that_hold() {
        let backend = Fake::open();
        backend.change(|world| {
            world.limits.frame_bytes = 1_111;
            world.limits.subscriptions = 22;
            world.limits.results = 333;
            world.limits.tags = 44;
            world.limits.filters = 5;
            world.limits.created_at_ahead_secs = 66;
            world.limits.created_at_behind_secs = 77;
            world.min_pow = 8;
        });
        let shown = &fetch(&backend).await["limitation"];
        for (field, value) in [
            ("max_message_length", 1_111),
            ("max_subscriptions", 22),
            ("max_limit", 333),
            ("default_limit", 333),
            ("max_event_tags", 44),
            ("max_filters", 5),
            ("max_subid_length", 64),
            ("created_at_upper_limit", 66),
            ("created_at_lower_limit", 77),
            ("min_pow_difficulty", 8),
        ] {
            assert_eq!(shown[field], value, "{field}");
        }
    }

    #[tokio::test]
    async fn a_content_of_the_longest_length_shown_passes_and_one_more_does_not() {
        let backend = Fake::open();
        let max = fetch(&backend).await["limitation"]["max_content_length"].as_u64().unwrap() as usize;
        for (length, passes) in [(max, true), (max + 1, false)] {
            let event = fake::sign(Draft::new(Kind(1), NOW, "x".repeat(length)), 1);
            let bytes = event.to_json().len();
            let screened = backend.with_world(|world| screen(world, Origin::Client, &event, bytes, NOW));
            assert_eq!(screened.is_ok(), passes, "{length}");
        }
    }

    #[tokio::test]
    async fn what_an_administrator_changed_wins() {
        let backend = Fake::open();
        assert_eq!(fetch(&backend).await["name"], "a relay");
        assert_eq!(fetch(&backend).await.get("icon"), None);
        backend.change(|world| {
            world.policy.name = Some("renamed".into());
            world.policy.description = Some("described".into());
            world.policy.icon = Some("https://relay.example/i.png".into());
        });
        let document = fetch(&backend).await;
        assert_eq!(document["name"], "renamed");
        assert_eq!(document["description"], "described");
        assert_eq!(document["icon"], "https://relay.example/i.png");
        assert_eq!(document["self"], fake::key(99).to_hex());
        assert_eq!(document["pubkey"], fake::key(50).to_hex());
    }

    #[tokio::test]
    async fn only_what_holds_is_claimed() {
        for (backend, closed) in [(Fake::open(), false), (Fake::closed(), true)] {
            let document = fetch(&backend).await;
            assert_eq!(document["limitation"]["auth_required"], closed);
            assert_eq!(document["limitation"]["restricted_writes"], closed);
            let claims =
                |document: &Value, nip: u16| document["supported_nips"].as_array().unwrap().contains(&json!(nip));
            assert!(claims(&document, 50) && !claims(&document, 13));
            backend.change(|world| {
                world.is_search_on = false;
                world.min_pow = 1;
            });
            let document = fetch(&backend).await;
            assert!(!claims(&document, 50) && claims(&document, 13));
        }
    }
}
