//! Two agents of one owner that mention each other on one relay: they stop by themselves, and the owner is asked.

use std::time::Duration;

use skep_core::audience::RespondTo;
use skep_node::agent::Instance;
use skep_node::agent::settings::{AgentSettings, BackendKind};
use skep_node::clock::unix_now;
use skep_node::keys::Keys;
use skep_proto::attestation::{Conditions, attest};
use skep_proto::{Draft, Filter, Kind, PubKey, RawEvent, limits, thread};
use tokio::time::timeout;

use crate::hive::{Hive, PATIENCE};
use crate::story::prompter;

fn agent(hive: &Hive, name: &str, keys: &Keys) -> Instance {
    let auth = attest(hive.owner.keypair(), &keys.pubkey(), &Conditions::default(), &[0; 32]);
    let settings = AgentSettings {
        name: name.into(),
        auth: auth.into(),
        backend: BackendKind::Command,
        command: "/bin/sh".into(),
        args: vec!["-c".into(), "cat >/dev/null; echo and you?".into()],
        respond_to: RespondTo::Siblings,
        relays: vec![hive.url()],
        ..AgentSettings::default()
    };
    Instance::start(hive.plan(&settings, keys, name, "locks")).unwrap()
}

async fn said_by(hive: &Hive, authors: &[PubKey]) -> Vec<RawEvent> {
    let filter = Filter { kinds: Some(vec![Kind::NOTE]), authors: Some(authors.to_vec()), ..Filter::new() };
    let found = hive.client(&hive.owner).await.query(vec![filter.normalized()]).await.unwrap();
    found.iter().map(|event| event.raw().clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_that_answer_each_other_stop_at_the_hop_limit_and_the_owner_is_asked_once() {
    let hive = Hive::start().await;
    let keys = [Keys::generate().unwrap(), Keys::generate().unwrap()];
    let [ann, bee] = [("ann", &keys[0]), ("bee", &keys[1])].map(|(name, keys)| agent(&hive, name, keys));
    for instance in [&ann, &bee] {
        prompter(std::slice::from_ref(instance)).await;
    }
    let authors = [keys[0].pubkey(), keys[1].pubkey()];
    // The owner speaks to one; its answer names the owner. So the other is brought in by an agent's word.
    let auth = attest(hive.owner.keypair(), &authors[0], &Conditions::default(), &[0; 32]);
    let first = Draft::new(Kind::NOTE, unix_now(), "let us talk").tag(["p", &authors[1].to_hex()]).tag(&auth);
    let first = keys[0].sign(first.tag(["hop", "1"])).raw().clone();
    assert!(hive.client(&hive.owner).await.publish(&first).await.unwrap().accepted);
    let owner = hive.owner.pubkey().to_hex();
    let is_word_to_owner = |event: &RawEvent| event.tags.values("p").collect::<Vec<_>>() == [owner.as_str()];
    let asked = timeout(PATIENCE, async {
        loop {
            let said = said_by(&hive, &authors).await;
            if said.iter().any(is_word_to_owner) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    asked.await.expect("the owner is asked");
    // Whoever would go on has nothing left to answer.
    let quiet = timeout(PATIENCE, async {
        while !ann.store().open_messages().unwrap().is_empty() || !bee.store().open_messages().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    quiet.await.expect("nothing waits");
    let said = said_by(&hive, &authors).await;
    let (words, replies): (Vec<_>, Vec<_>) = said.into_iter().partition(is_word_to_owner);
    assert_eq!(words.len(), 1, "{words:?}");
    assert!(words[0].content.contains("answered each other"), "{}", words[0].content);
    let highest = replies.iter().map(thread::hop).max();
    assert_eq!(highest, Some(limits::HOPS_MAX));
    assert_eq!(replies.len(), limits::HOPS_MAX as usize, "the first, and one for each hop");
    ann.stop().await;
    bee.stop().await;
}
