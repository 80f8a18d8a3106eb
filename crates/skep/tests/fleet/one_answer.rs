//! However many instances run under one key, on however many machines, each mention is answered once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::Rng;

use crate::chaos::Chaos;
use crate::hive::{Agent, Hive, Plan, now, publish};
use crate::model::{Job, Model, assert_answered_once_in_order};
use crate::waiting::{until_answered, until_none};
use crate::{knob, seeded};

/// Mentions of one channel at the most: a channel has one turn at a time.
const PER_CHANNEL: usize = 20;

/// All of these start while the instances run, so this is also for how long they are disturbed: 60 x 350 ms is 21 s.
const GAP_MS: u64 = 350;
const GAP_MS_OF_MANY: u64 = 100;

/// The sizes of the environment, or the usual one.
fn sizes(usual: usize) -> Vec<usize> {
    let given = std::env::var("SKEP_INSTANCES");
    given.map_or_else(|_| vec![usual], |list| list.split(',').map(|text| text.trim().parse().unwrap()).collect())
}

/// `machine` of each instance. Each is asked many times while they come and go.
fn contest(test: &str, instances: usize, machine: impl Fn(usize) -> usize) {
    let mentions = knob("SKEP_MENTIONS", 60);
    let mut rng = seeded(test);
    let model = Model::new();
    let agent = Agent::new("scout", 21, model.settings());
    let key = agent.pubkey();
    let mut hive = Hive::new(Plan::of(agent, (0..instances).map(machine).collect::<Vec<_>>()));
    (0..instances).for_each(|n| hive.start(n));
    hive.until_led();
    let channels = mentions.div_ceil(PER_CHANNEL);
    let gap = Duration::from_millis(if mentions > 100 { GAP_MS_OF_MANY } else { GAP_MS });
    let (upstream, is_asking) = (hive.upstream(), AtomicBool::new(true));
    let mut holds: Vec<u64> = (0..mentions).map(|_| rng.random_range(0..400)).collect();
    let mut jobs = Vec::new();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut last = vec![0; channels];
            for (n, hold) in holds.drain(..).enumerate() {
                let channel = n % channels;
                // In a channel no two are of one second: who comes late knows their order by that alone.
                last[channel] = now().max(last[channel] + 1);
                let rest = format!("0.{hold:03}");
                let job = Job::new(&key, format!("j{n}"), channel, last[channel], 0, &rest);
                publish(&upstream, std::slice::from_ref(&job.event));
                jobs.push(job);
                std::thread::sleep(gap);
            }
            is_asking.store(false, Ordering::SeqCst);
        });
        Chaos::new(&mut hive, rng).run(|| is_asking.load(Ordering::SeqCst) && !asking.is_finished());
        asking.join().unwrap();
    });
    until_answered(&hive, &model, &jobs);
    // What lies in an outbox still, of one who was replaced, comes now if ever.
    hive.stop_all();
    (0..instances).for_each(|n| hive.start(n));
    let last = Job::new(&key, "last", 0, now() + 1, 0, "0");
    publish(&hive.upstream(), std::slice::from_ref(&last.event));
    jobs.push(last);
    until_answered(&hive, &model, &jobs);
    let sum = |of: &dyn Fn(usize) -> usize| -> usize { (0..instances).map(of).sum() };
    until_none(&hive, &model, &jobs, "events in the outboxes", || {
        sum(&|n| hive.records(n).outbox_len().unwrap().0 as usize)
    });
    until_none(&hive, &model, &jobs, "messages that an instance waits for", || {
        sum(&|n| hive.records(n).open_messages().unwrap().len())
    });
    hive.stop_all();
    assert_answered_once_in_order(&hive, &model, &jobs);
}

#[test]
fn instances_of_one_machine_answer_each_mention_once() {
    for instances in sizes(2) {
        contest("instances_of_one_machine_answer_each_mention_once", instances, |_| 0);
    }
}

#[test]
fn instances_that_have_only_the_relay_in_common_answer_each_mention_once() {
    for instances in sizes(2) {
        contest("instances_that_have_only_the_relay_in_common_answer_each_mention_once", instances, |n| n);
    }
}

#[test]
fn instances_on_machines_with_several_answer_each_mention_once() {
    for instances in sizes(5) {
        contest("instances_on_machines_with_several_answer_each_mention_once", instances, |n| n / 2);
    }
}
