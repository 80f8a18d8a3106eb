//! What an agent looks up at its relay: who is a member there, and what was said before.

use std::time::Duration;

use skep_core::audience::RespondTo;
use skep_node::agent::settings::{AgentSettings, BackendKind};
use skep_node::agent::{Instance, library::Library};
use skep_node::clock::unix_now;
use skep_node::keys::Keys;
use skep_proto::{Draft, EventId, Filter, Kind, RawEvent};
use tokio::time::timeout;

use crate::hive::{Hive, PATIENCE};
use crate::story::prompter;

async fn until_is(instance: &Instance, id: &EventId, name: &str) {
    let found = timeout(PATIENCE, async {
        while instance.store().message(id).unwrap().is_none_or(|message| message.state.name != name) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("not {name}: {:?}", instance.store().message(id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_the_relay_may_prompt_and_the_prompt_has_what_was_said_before() {
    let (member, other) = (Keys::generate().unwrap(), Keys::generate().unwrap());
    let name = member.pubkey().to_hex();
    let hive = Hive::with(|settings| settings.members.push(name)).await;
    let settings = AgentSettings {
        name: "scout".into(),
        auth: hive.consent().into(),
        backend: BackendKind::Command,
        command: "/bin/cat".into(),
        respond_to: RespondTo::Members,
        relays: vec![hive.url()],
        ..AgentSettings::default()
    };
    let instance = Instance::start(hive.plan(&settings, &hive.agent, "home", "locks")).unwrap();
    prompter(std::slice::from_ref(&instance)).await;

    let agent = hive.agent.pubkey().to_hex();
    let root = other.sign(Draft::new(Kind::NOTE, unix_now() - 9, "honey first")).raw().clone();
    let asking = |keys: &Keys| {
        let draft = Draft::new(Kind::NOTE, unix_now(), "what is the plan?").tag(["p", &agent]);
        keys.sign(draft.tag(["e", &root.id.to_hex(), "", "root"])).raw().clone()
    };
    let (theirs, others) = (asking(&member), asking(&other));
    for (keys, event) in [(&other, &root), (&member, &theirs), (&other, &others)] {
        assert!(hive.client(keys).await.publish(event).await.unwrap().accepted);
    }
    until_is(&instance, &theirs.id, "answered").await;
    until_is(&instance, &others.id, "refused").await;
    let turns = instance.store().newest_turns(9).unwrap();
    assert_eq!(turns.len(), 1);
    let prompt = &turns[0].prompt;
    assert!(prompt.contains("honey first") && prompt.contains("who=\"somebody else\""), "{prompt}");
    assert!(prompt.contains("who=\"a member\""), "{prompt}");
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_a_relay_that_is_away_says_nothing() {
    use skep_agent::driver::Library as _;
    let mut hive = Hive::start().await;
    let library = Library::new(hive.url(), hive.credentials());
    let wanted = vec![Filter { kinds: Some(vec![Kind::MEMBER_LIST]), ..Filter::new() }];
    let key = library.relay_key().await.expect("it answers").expect("it has one");
    let found: Vec<RawEvent> = library.look_up(wanted.clone()).await.expect("it answers");
    assert_eq!(found.iter().map(|event| event.pubkey).collect::<Vec<_>>(), [key]);
    hive.down().await;
    assert_eq!(library.look_up(wanted).await, None);
    assert_eq!(library.relay_key().await, Some(Some(key)), "a key is kept");
    assert_eq!(Library::new(hive.url(), hive.credentials()).relay_key().await, None);
}
