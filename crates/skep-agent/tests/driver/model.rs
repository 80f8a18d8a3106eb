//! The owner chooses another model for a channel.

use skep_agent::openai::OpenAi;

use super::*;
use crate::leading::until_is;
use crate::mock_model::{MockModel, Reply};

fn switch(model: &str, n: u8) -> RawEvent {
    let channel_id = format!("notes:{}", pubkey(OWNER));
    let control = Control::SwitchModel { channel_id, model_id: model.into() };
    let sealed = seal::seal(&keys(OWNER), &pubkey(AGENT), &control.to_json().unwrap(), [n; 32]).unwrap();
    control_draft(&pubkey(AGENT), now(), sealed).sign(&keys(OWNER), &[0; 32]).raw().clone()
}

/// Waits for the answer to a control frame.
async fn until_told(relay: &Relay, status: &str) {
    let wanted = format!("\"status\":\"{status}\"");
    let found = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let frames = relay.accepted(Kind::AGENT_FRAME);
            let open = |event: &RawEvent| seal::open(&keys(OWNER), &pubkey(AGENT), &event.content).ok();
            if frames.iter().filter_map(open).any(|text| text.contains("switch_model") && text.contains(&wanted)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("nobody said {status}"));
}

fn models(mock: &MockModel) -> Vec<String> {
    mock.asked().iter().map(|asked| asked.body["model"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_idle_channel_goes_on_with_the_model_and_a_running_turn_begins_anew_with_it() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let mock = MockModel::start(|asked| match asked.body["model"].as_str() {
        Some("slow") => Reply::Slow("one two three four".into(), Duration::from_secs(20)),
        Some(model) => Reply::Text(format!("by {model}")),
        None => Reply::Text("no model".into()),
    })
    .await;
    let store = Arc::new(AgentStore::open(&dir.path().join("one.db")).unwrap());
    let start = |name: &str| {
        let backend = Backend::OpenAi(OpenAi::new(mock.base_url().parse().unwrap(), "first"));
        Instance::start(Setup { store: Arc::clone(&store), ..setup(dir.path(), name, backend) }, &relay)
    };
    let instance = start("a");
    instance.tell(PROMPTER).await;
    let asked = ask(&instance, "one").await;
    until_is(&store, &asked.id, "answered").await;
    instance.event(&switch("slow", 1)).await;
    until_told(&relay, "switched").await;
    let asked = ask(&instance, "two").await;
    until_is(&store, &asked.id, "prompted").await;
    let begun = tokio::time::timeout(Duration::from_secs(30), async {
        while models(&mock).len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    begun.await.unwrap();
    instance.event(&switch("third", 2)).await;
    until_told(&relay, "sent").await;
    until_is(&store, &asked.id, "answered").await;
    assert_eq!(models(&mock), ["first", "slow", "third"]);
    let replies = relay.wait_for(Kind::NOTE, 2).await;
    assert_eq!((replies[1].content.as_str(), e_tag(&replies[1])), ("by third", asked.id.to_hex()));
    instance.kill();

    let instance = start("b");
    instance.tell(PROMPTER).await;
    let asked = ask(&instance, "three").await;
    until_is(&store, &asked.id, "answered").await;
    assert_eq!(models(&mock).last().map(String::as_str), Some("third"), "also after a restart");
}

#[tokio::test]
async fn what_is_not_offered_is_not_chosen() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = prompter(setup(dir.path(), "a", demo()), &relay).await;
    let asked = ask(&instance, "hello").await;
    until_is(&instance.store, &asked.id, "answered").await;
    instance.event(&switch("no-such-model", 1)).await;
    until_told(&relay, "unsupported_model").await;
}
