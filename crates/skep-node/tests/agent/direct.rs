//! Direct messages over a real relay: wrapped ones that came while nobody ran, old ones, and nothing in clear.

use std::time::Duration;

use skep_node::agent::Instance;
use skep_node::clock::unix_now;
use skep_node::keys::Keys;
use skep_proto::{Draft, Filter, Kind, RawEvent, seal, wrap};
use tokio::time::timeout;

use crate::hive::{Hive, PATIENCE};
use crate::story::{instance, prompter};

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// A private message to the agent, dated as far back as a wrap may be.
fn private(hive: &Hive, from: &Keys, text: &str) -> (RawEvent, RawEvent) {
    let agent = hive.agent.pubkey();
    let draft = Draft::new(Kind::PRIVATE_MESSAGE, unix_now(), text).tag(["p", &agent.to_hex()]);
    let rumor = wrap::rumor(draft, from.pubkey());
    let oldest = wrap::BACK_SECS_MAX - 1;
    let fresh = wrap::Fresh {
        secret: random(),
        seal_nonce: random(),
        wrap_nonce: random(),
        aux: random(),
        seal_back: oldest,
        wrap_back: oldest,
    };
    let wrapped = wrap::wrap(from.keypair(), &rumor, &agent, unix_now(), &fresh).unwrap();
    (rumor, wrapped)
}

/// Waits for the wraps that the owner can open.
async fn replies(hive: &Hive, wanted: usize) -> Vec<RawEvent> {
    let owner = hive.owner.pubkey().to_hex();
    let filter = Filter { kinds: Some(vec![Kind::GIFT_WRAP]), tags: vec![(b'p', vec![owner])], ..Filter::new() };
    hive.found(filter, wanted).await.iter().map(|event| wrap::unwrap(hive.owner.keypair(), event).unwrap()).collect()
}

async fn stop(instance: Instance) {
    let store = std::sync::Arc::clone(instance.store());
    instance.stop().await;
    assert_eq!(store.open_messages().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrapped_messages_are_answered_once_also_those_of_a_time_when_nobody_ran() {
    let hive = Hive::start().await;
    let mut owner = hive.client(&hive.owner).await;
    let script = "cat >/dev/null; echo sesame";
    let first = instance(&hive, "home", "machine", script);
    prompter(std::slice::from_ref(&first)).await;
    let (asked, wrapped) = private(&hive, &hive.owner, "open it");
    assert!(owner.publish(&wrapped).await.unwrap().accepted);
    let answered = replies(&hive, 1).await;
    assert_eq!((answered[0].content.trim(), answered[0].pubkey), ("sesame", hive.agent.pubkey()));
    assert_eq!(answered[0].tags.values("e").last(), Some(asked.id.to_hex().as_str()));
    stop(first).await;

    let asked: Vec<_> = (0..5).map(|n| private(&hive, &hive.owner, &format!("job {n}"))).collect();
    for (_, wrapped) in &asked {
        assert!(owner.publish(wrapped).await.unwrap().accepted);
    }
    let again = instance(&hive, "home", "machine", script);
    let answered = replies(&hive, 6).await;
    for (rumor, _) in &asked {
        let id = rumor.id.to_hex();
        assert_eq!(answered.iter().filter(|reply| reply.tags.values("e").any(|e| e == id)).count(), 1);
    }
    stop(again).await;
    let clear = Filter { authors: Some(vec![hive.agent.pubkey()]), ..Filter::new() };
    let clear = owner.query(vec![clear]).await.unwrap();
    let spoken = [Kind::NOTE, Kind::REACTION, Kind::COMMENT, Kind::CHAT, Kind::DIRECT_MESSAGE];
    assert!(clear.iter().all(|event| !spoken.contains(&event.kind)), "{clear:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_direct_message_is_answered_in_its_form() {
    let hive = Hive::start().await;
    let mut owner = hive.client(&hive.owner).await;
    let instance = instance(&hive, "home", "machine", "cat >/dev/null; echo sesame");
    prompter(std::slice::from_ref(&instance)).await;
    let agent = hive.agent.pubkey();
    let sealed = seal::seal_old(hive.owner.keypair(), &agent, "open it", random()).unwrap();
    let draft = Draft::new(Kind::DIRECT_MESSAGE, unix_now(), sealed).tag(["p", &agent.to_hex()]);
    assert!(owner.publish(hive.owner.sign(draft).raw()).await.unwrap().accepted);
    let filter = Filter { kinds: Some(vec![Kind::DIRECT_MESSAGE]), authors: Some(vec![agent]), ..Filter::new() };
    let reply = timeout(PATIENCE, async {
        loop {
            if let Some(reply) = owner.query(vec![filter.clone()]).await.unwrap().pop() {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let reply = reply.await.expect("in time");
    let text = seal::open_old(hive.owner.keypair(), &agent, &reply.content).unwrap();
    assert_eq!(text.trim(), "sesame");
    stop(instance).await;
}
