//! The whole line: an owner's mention over the wire, instances on two machines, one answer.

use std::collections::BTreeMap;
use std::time::Duration;

use skep_core::leader::Role;
use skep_node::agent::Instance;
use skep_node::agent::settings::{AgentSettings, BackendKind};
use skep_node::clock::unix_now;
use skep_proto::{EventId, Filter, Kind, RawEvent};
use tokio::time::timeout;

use crate::hive::{Hive, PATIENCE};

/// An instance with a home of its own, on a machine that is its lock directory.
pub fn instance(hive: &Hive, home: &str, machine: &str, script: &str) -> Instance {
    let settings = AgentSettings {
        name: "scout".into(),
        auth: hive.consent().into(),
        backend: BackendKind::Command,
        command: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        parallel: 2,
        relays: vec![hive.url()],
        ..AgentSettings::default()
    };
    Instance::start(hive.plan(&settings, &hive.agent, home, machine)).unwrap()
}

/// Waits until one of them prompts; gives which.
pub async fn prompter(instances: &[Instance]) -> usize {
    let found = timeout(PATIENCE, async {
        loop {
            let leads = |instance: &Instance| {
                instance.standing().is_ok_and(|standing| matches!(standing.borrow().role, Role::Prompter(_)))
            };
            if let Some(n) = instances.iter().position(leads) {
                return n;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.expect("somebody leads")
}

/// The replies of the agent, by what they answer.
async fn replies(hive: &Hive, wanted: usize) -> BTreeMap<EventId, Vec<RawEvent>> {
    let filter = Filter { kinds: Some(vec![Kind::NOTE]), authors: Some(vec![hive.agent.pubkey()]), ..Filter::new() };
    let mut by_trigger: BTreeMap<EventId, Vec<RawEvent>> = BTreeMap::new();
    for reply in hive.found(filter, wanted).await {
        let trigger = reply.tags.values("e").last().unwrap().parse().unwrap();
        by_trigger.entry(trigger).or_default().push(reply.raw().clone());
    }
    by_trigger
}

#[tokio::test(flavor = "multi_thread")]
async fn of_instances_on_two_machines_one_answers_also_when_they_come_and_go() {
    const MENTIONS: u64 = 40;
    let hive = Hive::start().await;
    let script = "cat >/dev/null; echo an answer";
    let mut instances = vec![
        instance(&hive, "home-a", "machine-1", script),
        instance(&hive, "home-b", "machine-1", script),
        instance(&hive, "home-c", "machine-2", script),
    ];
    let mut owner = hive.client(&hive.owner).await;
    let mut asked = Vec::new();
    for n in 0..MENTIONS {
        let event = hive.mention(unix_now(), &format!("job {n}"));
        assert!(owner.publish(&event).await.unwrap().accepted);
        asked.push(event.id);
        if n % 10 == 5 && instances.len() > 1 {
            let leads = prompter(&instances).await;
            instances.remove(leads).stop().await;
        }
    }
    let answered = replies(&hive, asked.len()).await;
    // Whoever would answer twice has had the time to: the last one has seen everything.
    let last = &instances[0];
    let over = timeout(PATIENCE, async {
        while !last.store().open_messages().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    over.await.expect("nothing waits");
    let answered_again = replies(&hive, asked.len()).await;
    assert_eq!(answered.len(), asked.len());
    for id in &asked {
        assert_eq!(answered_again[id].len(), 1, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_while_nobody_runs_is_answered_in_order_after_the_start() {
    let hive = Hive::start().await;
    let mut owner = hive.client(&hive.owner).await;
    let first = instance(&hive, "home", "machine", "cat >/dev/null; echo first");
    prompter(std::slice::from_ref(&first)).await;
    first.stop().await;
    let asked: Vec<RawEvent> = (0..30).map(|n| hive.mention(unix_now() - 30 + n, &format!("job {n}"))).collect();
    for event in &asked {
        assert!(owner.publish(event).await.unwrap().accepted);
    }
    let again = instance(&hive, "home", "machine", "cat >/dev/null; echo again");
    let answered = replies(&hive, asked.len()).await;
    assert!(asked.iter().all(|event| answered[&event.id].len() == 1));
    again.stop().await;
}
