//! What a provider refuses, from its HTTP answer to where the message stands.

use skep_agent::openai::OpenAi;

use super::*;
use crate::leading::until_is;
use crate::mock_model::{MockModel, Reply};

fn status(status: u16, retry_after: Option<u64>, code: &'static str) -> Reply {
    Reply::Status { status, retry_after, code }
}

async fn start(dir: &std::path::Path, relay: &Arc<Relay>, mock: &MockModel, machine: &Arc<Machine>) -> Instance {
    let backend = Backend::OpenAi(OpenAi::new(mock.base_url().parse().unwrap(), "mock"));
    prompter(Setup { host: machine.clone(), ..setup(dir, "a", backend) }, relay).await
}

/// The row as it is shown.
fn row(instance: &Instance, event: &RawEvent) -> queue::Row {
    serde_json::from_str(&instance.store.message(&event.id).unwrap().unwrap().state.detail).unwrap()
}

async fn until_ended(instance: &Instance, turns: usize) {
    let ended = tokio::time::timeout(Duration::from_secs(30), async {
        let count = || instance.store.newest_turns(99).unwrap().iter().filter(|turn| turn.end.is_some()).count();
        while count() < turns {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    ended.await.unwrap();
}

#[tokio::test]
async fn a_busy_provider_is_left_alone_for_as_long_as_it_says_and_no_attempt_is_used_up() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let (mock, machine) =
        (MockModel::queue([status(429, Some(600), ""), Reply::Text("done".into())]).await, Arc::default());
    let instance = start(dir.path(), &relay, &mock, &machine).await;
    let (asked, other) = (mention(OWNER, "work"), mention(OWNER, "more work"));
    instance.event(&asked).await;
    until_ended(&instance, 1).await;
    until_is(&instance.store, &asked.id, "queued").await;
    instance.event(&other).await;
    instance.flush().await;
    let found = row(&instance, &asked);
    assert_eq!((found.attempts, found.reason.as_str()), (0, "the provider is busy; it says to come back in 600 s"));
    assert_eq!(mock.asked().len(), 1, "nothing else is asked of it meanwhile");
    machine.ahead_ms.store(601_000, std::sync::atomic::Ordering::Relaxed);
    // Whatever happens next, it is looked again.
    instance.event(&mention(OWNER, "wake up")).await;
    until_is(&instance.store, &asked.id, "answered").await;
}

#[tokio::test]
async fn bad_credentials_and_used_up_quota_pause_the_agent_with_their_reason() {
    for (refusal, reason) in [
        (status(401, None, "invalid_api_key"), "the provider refuses the credentials: HTTP 401: the mock refuses"),
        (status(429, None, "insufficient_quota"), "the provider's quota is used up: HTTP 429: the mock refuses"),
    ] {
        let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
        let mock = MockModel::queue([refusal, Reply::Text("done".into())]).await;
        let instance = start(dir.path(), &relay, &mock, &Arc::default()).await;
        let (asked, other) = (mention(OWNER, "work"), mention(OWNER, "more work"));
        instance.event(&asked).await;
        instance.event(&other).await;
        until_ended(&instance, 1).await;
        until_is(&instance.store, &asked.id, "queued").await;
        assert_eq!((row(&instance, &asked).attempts, row(&instance, &asked).reason.as_str()), (0, reason));
        let told = relay.wait_for(Kind::NOTE, 1).await.pop().unwrap();
        assert!(told.content.contains(reason), "{}", told.content);
        assert_eq!(told.tags.values("p").collect::<Vec<_>>(), [pubkey(OWNER).to_hex()]);
        assert_eq!(mock.asked().len(), 1, "it begins no turn");
        assert_eq!(command(&instance, Command::Resume).await, Ok("resumed".into()));
        until_is(&instance.store, &asked.id, "answered").await;
        until_is(&instance.store, &other.id, "answered").await;
    }
}

#[tokio::test]
async fn a_dead_letter_has_one_notice_and_can_be_tried_again() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let mock = MockModel::queue([status(500, None, ""), status(500, None, ""), Reply::Text("done".into())]).await;
    let backend = Backend::OpenAi(OpenAi::new(mock.base_url().parse().unwrap(), "mock"));
    let machine = Arc::new(Machine::default());
    let setup = setup(dir.path(), "a", backend);
    let queue = queue::Settings { attempts_max: 2, ..setup.queue };
    let instance = prompter(Setup { queue, host: machine.clone(), ..setup }, &relay).await;
    let asked = ask(&instance, "work").await;
    until_ended(&instance, 1).await;
    machine.ahead_ms.store(10_000, std::sync::atomic::Ordering::Relaxed);
    until_is(&instance.store, &asked.id, "dead").await;
    let notice = relay.wait_for(Kind::NOTE, 1).await.pop().unwrap();
    assert_eq!(notice.content, "gave up after 2 attempts: HTTP 500: the mock refuses; `skep retry` tries again");
    assert_eq!(e_tag(&notice), asked.id.to_hex());
    assert_eq!(command(&instance, Command::Retry(asked.id)).await, Ok("it will be tried again".into()));
    until_is(&instance.store, &asked.id, "answered").await;
    relay.wait_for(Kind::NOTE, 2).await;
    assert_eq!(relay.accepted(Kind::NOTE).len(), 2, "one notice, one answer");
}

#[tokio::test]
async fn a_provider_that_said_when_to_come_back_is_left_alone_over_a_restart_until_then_or_until_resumed() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let (mock, machine) =
        (MockModel::queue([status(429, Some(1_200), ""), Reply::Text("done".into())]).await, Arc::default());
    let instance = start(dir.path(), &relay, &mock, &machine).await;
    let asked = ask(&instance, "work").await;
    until_ended(&instance, 1).await;
    until_is(&instance.store, &asked.id, "queued").await;
    instance.kill();
    let instance = start(dir.path(), &relay, &mock, &machine).await;
    // Another channel, which knows nothing of it.
    let other = ask_in(&instance, "elsewhere", "other").await;
    until_is(&instance.store, &other.id, "queued").await;
    instance.flush().await;
    assert_eq!(mock.asked().len(), 1, "it said not to come back before");
    assert_eq!(command(&instance, Command::Resume).await, Ok("resumed".into()));
    until_is(&instance.store, &other.id, "answered").await;
    instance.kill();
    // What the owner lifted stays lifted.
    let instance = start(dir.path(), &relay, &mock, &machine).await;
    let third = ask_in(&instance, "elsewhere", "third").await;
    until_is(&instance.store, &third.id, "answered").await;
}

async fn ask_in(instance: &Instance, group: &str, text: &str) -> RawEvent {
    let draft = Draft::new(Kind::CHAT, now(), text).tag(["h", group]).tag(["p", &pubkey(AGENT).to_hex()]);
    let asked = draft.sign(&keys(OWNER), &[0; 32]).raw().clone();
    instance.event(&asked).await;
    asked
}
