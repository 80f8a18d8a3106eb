//! An agent with two relays, each with a ledger of its own: the turn's lease is in the home relay's.

use skep_proto::lease::{Op, Request, Resource};

use super::*;
use crate::leading::until_is;
use crate::relay::{SECOND, send_due};

fn two_relays(setup: Setup) -> Setup {
    Setup { relays: vec![HOME.into(), SECOND.into()], ..setup }
}

#[tokio::test]
async fn a_relay_that_never_granted_the_lease_takes_the_reply_with_leases_at_home_and_without() {
    for has_leases in [true, false] {
        let (dir, relay, second) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()), Relay::default());
        let setup = Setup { has_leases, ..setup(dir.path(), "a", script("cat >/dev/null; echo done")) };
        let instance = Instance::start(two_relays(setup), &relay);
        instance.tell(Input::CaughtUp).await;
        instance.tell(PROMPTER).await;
        let asked = ask(&instance, "work").await;
        let reply = relay.wait_for(Kind::NOTE, 1).await;
        until_is(&instance.store, &asked.id, "answered").await;
        until_sent(&instance, &second, 1).await;
        assert_eq!(second.accepted(Kind::NOTE), reply);
        assert_eq!(instance.store.outbox_len().unwrap().1, 0, "nothing is refused");
        assert_eq!(instance.store.message(&asked.id).unwrap().unwrap().state.name, "answered");
    }
}

#[tokio::test]
async fn a_reply_that_the_home_relay_refuses_is_given_to_no_other() {
    let (dir, relay, second) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()), Relay::default());
    let instance = Instance::start(two_relays(setup(dir.path(), "a", script("cat >/dev/null; echo done"))), &relay);
    // Its home relay is not to be reached when the reply is there.
    instance.pump.abort();
    instance.tell(PROMPTER).await;
    let asked = ask(&instance, "work").await;
    until_is(&instance.store, &asked.id, "answered").await;
    let stale = instance.store.answer_to(&asked.id).unwrap().unwrap();
    send_due(&second, SECOND, &instance.store, &instance.inputs).await;
    assert_eq!(second.accepted(Kind::NOTE), [], "the turn may be another's by now");
    // It is, and that one is asked no more: the message is ours again.
    let resource = Resource::new(&format!("turn:{}:{}", pubkey(AGENT), asked.id)).unwrap();
    let steal = Request { resource, op: Op::Steal { ttl_secs: 1 }, instance: "other".into() };
    skep_core::door::Door::submit(&*relay, steal.draft(now()).sign(&keys(AGENT), &[0; 32]).raw().clone())
        .await
        .unwrap();
    let answered = tokio::time::timeout(Duration::from_secs(30), async {
        while relay.accepted(Kind::NOTE).is_empty() {
            send_due(&relay, HOME, &instance.store, &instance.inputs).await;
            send_due(&second, SECOND, &instance.store, &instance.inputs).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    answered.await.unwrap();
    until_sent(&instance, &second, 1).await;
    assert_eq!(second.accepted(Kind::NOTE), relay.accepted(Kind::NOTE));
    assert_ne!(second.accepted(Kind::NOTE)[0].id, stale);
}

/// Sends to the second relay until it has so many notes.
async fn until_sent(instance: &Instance, second: &Relay, count: usize) {
    let sent = tokio::time::timeout(Duration::from_secs(30), async {
        while second.accepted(Kind::NOTE).len() < count {
            send_due(second, SECOND, &instance.store, &instance.inputs).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    sent.await.unwrap();
}
