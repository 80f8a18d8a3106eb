//! The owner of a home, as any Nostr client: says something to agents, and counts what the relay has.

use std::time::Duration;

use skep_node::client::{Client, Credentials, Options};
use skep_node::clock::unix_now;
use skep_node::home::Home;
use skep_node::keys::{Keyring, Keys, SecretText};
use skep_proto::lease::Claim;
use skep_proto::{Draft, EventId, Filter, Kind, PubKey, RawEvent};
use tokio::runtime::Runtime;

use super::place::{Place, until};

pub struct Owner {
    runtime: Runtime,
    client: Client,
    pub keys: Keys,
    ring: Keyring,
}

impl Owner {
    /// With the key `owner` of a home.
    pub fn of(place: &Place) -> Self {
        Self::with(place, "owner")
    }

    pub fn with(place: &Place, key: &str) -> Self {
        Self::at(&Home::at(place.home()), &place.url(), key)
    }

    pub fn at(home: &Home, url: &str, key: &str) -> Self {
        let ring = Keyring::of(home);
        let keys = ring.load(&key.parse().unwrap(), |_| Ok(SecretText::default())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(connect(url, &keys));
        Self { runtime, client, keys, ring }
    }

    pub fn agent(&self, name: &str) -> PubKey {
        self.ring.pubkey(name).unwrap()
    }

    /// A note that mentions an agent; taken by the relay.
    #[track_caller]
    pub fn say(&mut self, name: &str, text: &str) -> EventId {
        let draft = Draft::new(Kind::NOTE, unix_now(), text).tag(["p", &self.agent(name).to_hex()]);
        self.publish(draft)
    }

    /// Signed, and taken by the relay.
    #[track_caller]
    pub fn publish(&mut self, draft: Draft) -> EventId {
        let event = self.keys.sign(draft);
        let verdict = self.runtime.block_on(self.client.publish(event.raw())).unwrap();
        assert!(verdict.accepted, "{}", verdict.message);
        event.raw().id
    }

    pub fn query(&mut self, filter: Filter) -> Vec<RawEvent> {
        let found = self.runtime.block_on(self.client.query(vec![filter])).unwrap();
        found.into_iter().map(|event| event.raw().clone()).collect()
    }

    /// What an agent said about a message.
    pub fn about(&mut self, name: &str, message: &EventId) -> Vec<RawEvent> {
        let naming = Filter { tags: vec![(b'e', vec![message.to_hex()])], ..Filter::new() };
        let author = self.agent(name);
        self.query(Filter { authors: Some(vec![author]), ..naming })
    }

    /// The final replies to a message.
    pub fn replies(&mut self, name: &str, message: &EventId) -> Vec<RawEvent> {
        let mut all = self.about(name, message);
        all.retain(|event| {
            let claim = Claim::from_event(event).and_then(Result::ok);
            claim.is_some_and(|claim| claim.is_final && claim.resource.as_str().ends_with(&message.to_hex()))
        });
        all
    }

    /// Waits for the reply; there may be no second.
    #[track_caller]
    pub fn reply(&mut self, name: &str, message: &EventId) -> RawEvent {
        until(|| match self.replies(name, message).as_slice() {
            [] => Err("no reply"),
            [one] => Ok(one.clone()),
            several => panic!("{} replies to one message", several.len()),
        })
    }
}

async fn connect(url: &str, keys: &Keys) -> Client {
    let options = Options { credentials: Some(Credentials::from(keys.clone())), timeout: Duration::from_secs(30) };
    Client::connect(url, options).await.unwrap()
}
