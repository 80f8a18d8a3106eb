//! What ends without an answer ends for every instance, once, until somebody tries it again.

use std::path::Path;

use skep_proto::wrap;

use super::*;
use crate::leading::until_is;
use crate::sealed::{fresh, old, opened, private};

/// Answers when there is a file of that name, and fails else.
fn when_there_is(go: &Path) -> Backend {
    script(&format!("cat >/dev/null; [ -e {} ] && echo done", go.display()))
}

fn done() -> Backend {
    script("cat >/dev/null; echo done")
}

async fn flush(instance: &Instance) {
    let (done, flushed) = oneshot::channel();
    instance.tell(Input::Flushed(done)).await;
    flushed.await.unwrap();
}

/// All that the relay has of the agent, in its order, to an instance.
async fn catch_up(instance: &Instance, relay: &Relay) {
    for event in relay.all() {
        if event.pubkey == pubkey(AGENT) || event.kind == Kind::GIFT_WRAP {
            instance.event(&event).await;
        }
    }
    flush(instance).await;
}

fn state(instance: &Instance, event: &RawEvent) -> (String, String) {
    let row: queue::Row =
        serde_json::from_str(&instance.store.message(&event.id).unwrap().unwrap().state.detail).unwrap();
    (row.state.as_str().to_owned(), row.reason)
}

fn turns(instance: &Instance) -> usize {
    instance.store.newest_turns(99).unwrap().len()
}

/// A turn that runs here and is cancelled by the owner.
async fn cancelled(instance: &Instance, asked: &RawEvent) {
    instance.event(asked).await;
    until_is(&instance.store, &asked.id, "prompted").await;
    assert_eq!(command(instance, Command::Cancel { channel: None }).await, Ok("1 cancelled".into()));
    until_is(&instance.store, &asked.id, "refused").await;
}

/// Its turns do not end, whatever they are told: a test of what is so before they have.
fn stubborn(dir: &Path, name: &str) -> Setup {
    let base = setup(dir, name, script("trap '' TERM; cat >/dev/null; while :; do sleep 1; done"));
    let long = Duration::from_secs(3_600);
    let ladder = skep_agent::child::Ladder { ask: long, terminate: long };
    let timing = skep_agent::Timing { ladder, ..base.spec.timing };
    let times = turn::Times { kill_step_ms: long.as_millis() as u64, ..base.times };
    Setup { spec: Spec { timing, ..base.spec }, times, ..base }
}

/// The signs that tell of an end.
fn ends(relay: &Relay) -> usize {
    relay.accepted(Kind::REACTION).iter().filter(|sign| sign.content == "🚫").count()
}

/// The word of an instance on a message.
fn word(on: &RawEvent, at: u64, word: &str) -> RawEvent {
    let draft = Draft::new(Kind::REACTION, at, "🚫").tag(["e", &on.id.to_hex()]).tag(["status", word, "why"]);
    draft.sign(&keys(AGENT), &[0; 32]).raw().clone()
}

#[tokio::test]
async fn a_turn_that_its_owner_cancelled_is_not_begun_again_by_whoever_leads_next() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let one = Instance::start(setup(dir.path(), "one", demo()), &relay);
    let two = Instance::start(setup(dir.path(), "two", done()), &relay);
    one.tell(PROMPTER).await;
    let asked = mention(OWNER, "wait");
    two.event(&asked).await;
    cancelled(&one, &asked).await;
    let sign = relay.wait_for(Kind::REACTION, 2).await.pop().unwrap();
    assert_eq!((sign.content.as_str(), e_tag(&sign)), ("🚫", asked.id.to_hex()));
    assert_eq!(sign.tags.values("p").collect::<Vec<_>>(), [pubkey(OWNER).to_hex()], "and it names nobody else");
    assert_eq!(relay.accepted(Kind::NOTE), [], "nothing that anybody would answer");
    catch_up(&two, &relay).await;
    assert_eq!(state(&two, &asked), ("refused".into(), "cancelled by the owner".into()));
    one.kill();
    two.tell(PROMPTER).await;
    let next = mention(OWNER, "next");
    two.event(&next).await;
    until_is(&two.store, &next.id, "answered").await;
    assert_eq!(turns(&two), 1);
    assert_eq!(ends(&relay), 1, "told once");
}

#[tokio::test]
async fn a_word_that_comes_before_its_message_ends_it() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let one = Instance::start(setup(dir.path(), "one", demo()), &relay);
    one.tell(PROMPTER).await;
    let (asked, (_, wrapped)) = (mention(OWNER, "wait"), private(OWNER, "wait", 7));
    cancelled(&one, &asked).await;
    cancelled(&one, &wrapped).await;
    relay.wait_for(Kind::GIFT_WRAP, 1).await;
    let two = Instance::start(setup(dir.path(), "two", done()), &relay);
    two.tell(PROMPTER).await;
    catch_up(&two, &relay).await;
    for event in [&asked, &wrapped] {
        two.event(event).await;
        until_is(&two.store, &event.id, "refused").await;
    }
    assert_eq!(turns(&two), 0);
}

#[tokio::test]
async fn a_retry_stands_however_often_the_word_from_before_it_comes() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let one = Instance::start(setup(dir.path(), "one", demo()), &relay);
    one.tell(PROMPTER).await;
    let asked = mention(OWNER, "wait");
    cancelled(&one, &asked).await;
    let over = relay.wait_for(Kind::REACTION, 2).await.pop().unwrap();
    one.kill();

    let store = Arc::new(AgentStore::open(&dir.path().join("two.db")).unwrap());
    let start = |name: &str| {
        let setup = Setup { store: Arc::clone(&store), ..setup(dir.path(), name, done()) };
        Instance::start(setup, &relay)
    };
    let two = start("two");
    two.tell(PROMPTER).await;
    command(&two, Command::Pause("by hand".into())).await.unwrap();
    two.event(&asked).await;
    catch_up(&two, &relay).await;
    assert_eq!(state(&two, &asked).0, "refused");
    command(&two, Command::Retry(asked.id)).await.unwrap();
    // By another relay, say.
    two.event(&over).await;
    flush(&two).await;
    assert_eq!(state(&two, &asked).0, "queued");
    two.kill();
    let two = start("again");
    two.tell(PROMPTER).await;
    two.event(&over).await;
    flush(&two).await;
    assert_eq!(state(&two, &asked).0, "queued", "also after a restart");
    command(&two, Command::Resume).await.unwrap();
    until_is(&store, &asked.id, "answered").await;
    catch_up(&two, &relay).await;
    assert_eq!((turns(&two), state(&two, &asked).0.as_str()), (1, "answered"));
}

#[tokio::test]
async fn a_retry_where_another_instance_leads_is_done_by_that_one_and_its_answer_counts_for_both() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let go = dir.path().join("go");
    let once = |setup: Setup| Setup { queue: queue::Settings { attempts_max: 1, ..setup.queue }, ..setup };
    let leads = Instance::start(once(setup(dir.path(), "leads", when_there_is(&go))), &relay);
    let follows = Instance::start(once(setup(dir.path(), "follows", done())), &relay);
    leads.tell(PROMPTER).await;
    let asked = mention(OWNER, "work");
    follows.event(&asked).await;
    leads.event(&asked).await;
    until_is(&leads.store, &asked.id, "dead").await;
    let notice = relay.wait_for(Kind::NOTE, 1).await.remove(0);
    assert!(notice.content.starts_with("gave up after one attempt"), "{}", notice.content);
    catch_up(&follows, &relay).await;
    assert_eq!(state(&follows, &asked), ("dead".into(), notice.content));

    std::fs::write(&go, "").unwrap();
    assert_eq!(command(&follows, Command::Retry(asked.id)).await, Ok("it will be tried again".into()));
    assert_eq!(state(&follows, &asked).0, "queued");
    let again = |relay: &Relay| relay.accepted(Kind::REACTION).iter().any(|sign| sign.content == "🔁");
    let told = tokio::time::timeout(Duration::from_secs(30), async {
        while !again(&relay) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    told.await.unwrap();
    catch_up(&leads, &relay).await;
    until_is(&leads.store, &asked.id, "answered").await;
    relay.wait_for(Kind::NOTE, 2).await;
    catch_up(&follows, &relay).await;
    assert_eq!(state(&follows, &asked).0, "answered");
    assert_eq!((turns(&leads), turns(&follows)), (2, 0));
}

#[tokio::test]
async fn what_was_given_up_here_and_answered_elsewhere_is_answered() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::without_leases()));
    let setup = Setup { has_leases: false, ..setup(dir.path(), "a", done()) };
    let instance = Instance::start(setup, &relay);
    let asked = mention(OWNER, "work");
    instance.event(&asked).await;
    instance.event(&word(&asked, now(), "dead")).await;
    flush(&instance).await;
    assert_eq!(state(&instance, &asked).0, "dead");
    let resource = skep_proto::lease::Resource::new(&format!("turn:{}:{}", pubkey(AGENT), asked.id)).unwrap();
    let claim = skep_proto::lease::Claim { resource, epoch: 1, is_final: true };
    let theirs = Draft::new(Kind::NOTE, now(), "theirs").tag(claim.tag()).sign(&keys(AGENT), &[0; 32]).raw().clone();
    instance.event(&theirs).await;
    flush(&instance).await;
    assert_eq!(state(&instance, &asked).0, "answered");
    let refused = command(&instance, Command::Retry(asked.id)).await;
    assert_eq!(refused, Err("it is answered already".into()), "there are no leases to stop a second one");
}

#[tokio::test]
async fn a_turn_that_runs_goes_on_though_an_instance_that_lost_its_lease_says_that_it_is_over() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let go = dir.path().join("go");
    let wait = script(&format!("cat >/dev/null; until [ -e {} ]; do sleep 0.02; done; echo done", go.display()));
    let instance = Instance::start(setup(dir.path(), "a", wait), &relay);
    instance.tell(PROMPTER).await;
    let asked = mention(OWNER, "work");
    instance.event(&asked).await;
    until_is(&instance.store, &asked.id, "prompted").await;
    instance.event(&word(&asked, now(), "dead")).await;
    flush(&instance).await;
    assert_eq!(state(&instance, &asked).0, "prompted");
    std::fs::write(&go, "").unwrap();
    until_is(&instance.store, &asked.id, "answered").await;
    relay.wait_for(Kind::NOTE, 1).await;
}

#[tokio::test]
async fn only_the_agents_own_word_counts_and_none_from_far_ahead() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = Instance::start(setup(dir.path(), "a", done()), &relay);
    let asked = mention(OWNER, "work");
    instance.event(&asked).await;
    for author in [OWNER, STRANGER] {
        let draft = Draft::new(Kind::REACTION, now(), "🚫").tag(["e", &asked.id.to_hex()]).tag(["status", "dead", "x"]);
        instance.event(draft.sign(&keys(author), &[0; 32]).raw()).await;
    }
    instance.event(&word(&asked, u64::MAX, "dead")).await;
    instance.event(&word(&asked, now(), "answered")).await;
    flush(&instance).await;
    assert_eq!(state(&instance, &asked).0, "queued");
    instance.tell(PROMPTER).await;
    until_is(&instance.store, &asked.id, "answered").await;
}

#[tokio::test]
async fn a_cancelled_turn_and_its_word_survive_a_crash_together() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let store = Arc::new(AgentStore::open(&dir.path().join("one.db")).unwrap());
    let start = |name: &str| {
        let setup = Setup { store: Arc::clone(&store), ..setup(dir.path(), name, demo()) };
        Instance::start(setup, &relay)
    };
    let first = start("first");
    // The relay is not to be reached.
    first.pump.abort();
    first.tell(PROMPTER).await;
    let asked = mention(OWNER, "wait");
    cancelled(&first, &asked).await;
    first.kill();
    let second = start("second");
    second.tell(PROMPTER).await;
    let signs = relay.wait_for(Kind::REACTION, 2).await;
    assert_eq!(queue::Told::from_event(signs.last().unwrap()).unwrap().state, queue::State::Refused);
    assert_eq!(turns(&second), 1, "it is not begun again");
}

#[tokio::test]
async fn a_cancel_stands_though_its_instance_dies_before_the_turn_has_ended() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let store = Arc::new(AgentStore::open(&dir.path().join("one.db")).unwrap());
    let first = Instance::start(Setup { store: Arc::clone(&store), ..stubborn(dir.path(), "first") }, &relay);
    // The relay is not to be reached.
    first.pump.abort();
    first.tell(PROMPTER).await;
    let asked = mention(OWNER, "work");
    first.event(&asked).await;
    until_is(&store, &asked.id, "prompted").await;
    assert_eq!(command(&first, Command::Cancel { channel: None }).await, Ok("1 cancelled".into()));
    assert_eq!(state(&first, &asked), ("prompted".into(), "cancelled by the owner".into()), "it runs still");
    first.kill();

    let second = Instance::start(Setup { store: Arc::clone(&store), ..setup(dir.path(), "second", done()) }, &relay);
    flush(&second).await;
    assert_eq!(state(&second, &asked), ("refused".into(), "cancelled by the owner".into()), "whoever leads");
    second.tell(PROMPTER).await;
    // In its channel, after it.
    let next = mention(OWNER, "next");
    second.event(&next).await;
    until_is(&store, &next.id, "answered").await;
    let signs = relay.wait_for(Kind::REACTION, 3).await;
    let told: Vec<queue::Told> = signs.iter().filter_map(queue::Told::from_event).collect();
    assert_eq!(
        (told.len(), &told[0].state, told[0].reason.as_str()),
        (1, &queue::State::Refused, "cancelled by the owner")
    );
    assert_eq!((turns(&second), state(&second, &asked).0.as_str()), (2, "refused"));
    assert_eq!(command(&second, Command::Retry(asked.id)).await, Ok("it will be tried again".into()));
    until_is(&store, &asked.id, "answered").await;
    assert_eq!((turns(&second), ends(&relay)), (3, 1));
}

#[tokio::test]
async fn the_others_hear_of_a_cancel_before_its_turn_has_ended_and_whoever_tries_again_is_heard() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let one = Instance::start(stubborn(dir.path(), "one"), &relay);
    let two = Instance::start(setup(dir.path(), "two", done()), &relay);
    one.tell(PROMPTER).await;
    for asked in [mention(OWNER, "work"), private(OWNER, "work", 7).1] {
        one.event(&asked).await;
        two.event(&asked).await;
        until_is(&one.store, &asked.id, "prompted").await;
        assert_eq!(
            command(&one, Command::Cancel { channel: None }).await.map(|said| said.contains("cancelled")),
            Ok(true)
        );
        let ends = async {
            while state(&two, &asked).0 != "refused" {
                catch_up(&two, &relay).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ends).await.unwrap();
        assert_eq!(state(&one, &asked).0, "prompted");
        // What comes back to the one who told it is no news.
        catch_up(&one, &relay).await;
        assert_eq!(state(&one, &asked).0, "prompted");
        command(&two, Command::Retry(asked.id)).await.unwrap();
        let again = async {
            while state(&one, &asked).0 != "queued" {
                catch_up(&one, &relay).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), again).await.unwrap();
        assert_eq!(state(&one, &asked).1, "tried again by hand", "it waits for the turn that is ending");
    }
    assert_eq!(turns(&one), 2);
    one.kill();
    two.tell(PROMPTER).await;
    let over = async {
        while !two.store.open_messages().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), over).await.unwrap();
    assert_eq!((turns(&two), ends(&relay)), (2, 1));
}

#[tokio::test]
async fn of_a_sealed_message_the_other_instances_alone_are_told() {
    for is_old in [false, true] {
        let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
        let one = Instance::start(setup(dir.path(), "one", demo()), &relay);
        let two = Instance::start(setup(dir.path(), "two", done()), &relay);
        one.tell(PROMPTER).await;
        let (rumor, wrapped) = private(OWNER, "wait", 7);
        let asked = if is_old { old(OWNER, "wait") } else { wrapped };
        // A client may wrap one message twice, and each instance see another wrap first.
        let again = wrap::wrap(&keys(OWNER), &rumor, &pubkey(AGENT), now(), &fresh(8)).unwrap();
        let theirs = if is_old { asked.clone() } else { again };
        two.event(&theirs).await;
        cancelled(&one, &asked).await;
        relay.wait_for(Kind::GIFT_WRAP, 1).await;
        assert_eq!(opened(&relay, OWNER), [], "nothing for its sender, who hears of it in frames");
        let word = opened(&relay, AGENT).remove(0);
        assert_eq!((word.kind, word.pubkey), (Kind::REACTION, pubkey(AGENT)));
        for kind in [Kind::NOTE, Kind::REACTION, Kind::DIRECT_MESSAGE] {
            assert_eq!(relay.accepted(kind), [], "{kind}");
        }
        catch_up(&two, &relay).await;
        assert_eq!(state(&two, &theirs), ("refused".into(), "cancelled by the owner".into()));
        one.kill();
        two.tell(PROMPTER).await;
        command(&two, Command::Retry(theirs.id)).await.unwrap();
        catch_up(&two, &relay).await;
        until_is(&two.store, &theirs.id, "answered").await;
        assert_eq!(turns(&two), 1);
    }
}

#[tokio::test]
async fn a_sealed_dead_letter_is_told_to_its_sender_and_to_the_other_instances() {
    for is_old in [false, true] {
        let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
        let fails = setup(dir.path(), "one", when_there_is(&dir.path().join("never")));
        let fails = Setup { queue: queue::Settings { attempts_max: 1, ..fails.queue }, ..fails };
        let (one, two) = (Instance::start(fails, &relay), Instance::start(setup(dir.path(), "two", done()), &relay));
        one.tell(PROMPTER).await;
        let asked = if is_old { old(OWNER, "work") } else { private(OWNER, "work", 7).1 };
        two.event(&asked).await;
        one.event(&asked).await;
        until_is(&one.store, &asked.id, "dead").await;
        relay.wait_for(Kind::GIFT_WRAP, if is_old { 1 } else { 2 }).await;
        let notice = match is_old {
            true => {
                let notice = relay.wait_for(Kind::DIRECT_MESSAGE, 1).await.remove(0);
                assert_eq!(notice.tags.named("status").count(), 0, "that would be in clear");
                seal::open_old(&keys(OWNER), &pubkey(AGENT), &notice.content).unwrap()
            }
            false => opened(&relay, OWNER).remove(0).content,
        };
        assert!(notice.starts_with("gave up"), "{notice}");
        catch_up(&two, &relay).await;
        two.tell(PROMPTER).await;
        flush(&two).await;
        assert_eq!((state(&two, &asked).0.as_str(), turns(&two)), ("dead", 0));
    }
}

#[tokio::test]
async fn a_reply_that_the_relay_will_never_take_is_a_dead_letter_for_all() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let instance = Instance::start(setup(dir.path(), "a", done()), &relay);
    instance.pump.abort();
    instance.tell(PROMPTER).await;
    let asked = mention(OWNER, "work");
    instance.event(&asked).await;
    until_is(&instance.store, &asked.id, "answered").await;
    let answer = instance.store.answer_to(&asked.id).unwrap().unwrap();
    let delivery = Delivery::Refused("invalid: too large".into());
    instance.store.delivered(&answer, HOME, &delivery).unwrap();
    instance.tell(Input::Delivered { id: answer, relay: HOME.into(), delivery }).await;
    until_is(&instance.store, &asked.id, "dead").await;
    let due = instance.store.due(HOME, u64::MAX >> 1, 9).unwrap();
    let word = due.iter().find_map(|outgoing| queue::Told::from_event(&outgoing.event)).unwrap();
    assert_eq!((word.state, word.reason.as_str()), (queue::State::Dead, "invalid: too large"));
}
