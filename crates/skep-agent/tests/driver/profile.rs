//! What an agent says of itself: once, again when it changes, and never over what somebody else made.

use super::*;

fn start(
    dir: &std::path::Path,
    relay: &Arc<Relay>,
    shelf: &Arc<Shelf>,
    store: &Arc<AgentStore>,
    about: &str,
) -> Instance {
    let setup = setup(dir, "a", script("cat >/dev/null; echo done"));
    let (library, about) = (shelf.clone(), about.into());
    Instance::start(Setup { library, about, store: Arc::clone(store), ..setup }, relay)
}

async fn until_seen_to(instance: &Instance) {
    let found = tokio::time::timeout(Duration::from_secs(30), async {
        while instance.store.fact("said:10050").unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.unwrap();
}

#[tokio::test]
async fn the_leader_says_who_it_is_once_and_again_when_that_changes() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let (shelf, store) = (Arc::default(), Arc::new(AgentStore::open(&dir.path().join("one.db")).unwrap()));
    let instance = start(dir.path(), &relay, &shelf, &store, "works");
    instance.tell(PROMPTER).await;
    let profile = relay.wait_for(Kind::PROFILE, 1).await.pop().unwrap();
    let content: serde_json::Value = serde_json::from_str(&profile.content).unwrap();
    assert_eq!(
        (&content["name"], &content["about"], &content["bot"]),
        (&"worker".into(), &"works".into(), &true.into())
    );
    let auth = attestation::Attestation::from_tags(&profile.tags, &pubkey(AGENT)).unwrap().unwrap();
    assert_eq!(auth.owner, pubkey(OWNER), "by which relays learn whose it is");
    let direct = relay.wait_for(Kind(10050), 1).await.pop().unwrap();
    assert_eq!(direct.tags.values("relay").collect::<Vec<_>>(), [HOME]);
    assert_eq!(relay.wait_for(Kind(10002), 1).await[0].tags.values("r").collect::<Vec<_>>(), [HOME]);
    instance.kill();
    let again = start(dir.path(), &relay, &shelf, &store, "works");
    again.tell(PROMPTER).await;
    again.event(&mention(OWNER, "hello")).await;
    relay.wait_for(Kind::NOTE, 1).await;
    again.kill();
    *shelf.events.lock().unwrap() = relay.all();
    let changed = start(dir.path(), &relay, &shelf, &store, "works hard");
    changed.tell(PROMPTER).await;
    let profiles = relay.wait_for(Kind::PROFILE, 2).await;
    assert!(profiles[1].content.contains("works hard") && profiles[1].created_at > profiles[0].created_at);
    assert_eq!((relay.accepted(Kind::PROFILE).len(), relay.accepted(Kind(10050)).len()), (2, 1));
}

#[tokio::test]
async fn a_profile_that_somebody_made_stays() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let (shelf, store) = (Arc::new(Shelf::default()), Arc::new(AgentStore::open(&dir.path().join("one.db")).unwrap()));
    let theirs = Draft::new(Kind::PROFILE, 5, r#"{"name":"Worker Bee","picture":"https://x/y.png"}"#);
    shelf.events.lock().unwrap().push(theirs.sign(&keys(AGENT), &[0; 32]).raw().clone());
    for about in ["works", "works hard"] {
        let instance = start(dir.path(), &relay, &shelf, &store, about);
        instance.tell(PROMPTER).await;
        until_seen_to(&instance).await;
        instance.event(&mention(OWNER, about)).await;
        relay.wait_for(Kind::NOTE, if about == "works" { 1 } else { 2 }).await;
        instance.kill();
    }
    assert_eq!(relay.accepted(Kind::PROFILE), []);
    assert_eq!(relay.accepted(Kind(10050)).len(), 1, "but where its direct messages go is said");
}
