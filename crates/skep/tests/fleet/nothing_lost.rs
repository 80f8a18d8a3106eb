//! What was asked while nobody ran, or was on its way when a line broke, is answered all the same.

use rand::Rng;

use crate::hive::{Agent, Hive, Plan, now, publish};
use crate::model::{Job, Model, answered, assert_answered_once_in_order};
use crate::proxy::End;
use crate::waiting::{until_answered, until_none};
use crate::{knob, seeded};

/// Stored events that the relay gives for one request.
const PAGE: usize = 50;

const CHANNELS: usize = 4;

fn hive(model: &Model) -> Hive {
    let agent = Agent::new("scout", 22, model.settings());
    Hive::new(Plan { limits: "results = 50", ..Plan::of(agent, [0]) })
}

#[test]
fn what_is_asked_while_the_agent_is_away_is_answered_in_order_through_restarts_and_cuts() {
    let mut rng = seeded("what_is_asked_while_the_agent_is_away_is_answered_in_order_through_restarts_and_cuts");
    let mentions = knob("SKEP_MENTIONS", 160);
    assert!(mentions > 2 * PAGE, "more than a page");
    let model = Model::new();
    let mut hive = hive(&model);
    hive.start(0);
    hive.until_led();
    hive.kill(0);
    // In a channel no two are of one second; all are of the time since the agent went, or of the minutes before, in
    // which a clock may be behind.
    let (key, from) = (hive.agent().pubkey(), now() - (mentions / CHANNELS) as u64);
    // More of one second than the relay gives at once.
    let at = |n: usize| from + if n < mentions / 3 { 0 } else { (n / CHANNELS) as u64 };
    let in_one_second = |n: usize| n < mentions / 3;
    let job = |n: usize| {
        // Who comes late knows no order among those of one second: each has a channel of its own.
        let channel = if in_one_second(n) { CHANNELS + n } else { n % CHANNELS };
        Job::new(&key, format!("j{n}"), channel, at(n), 0, "0")
    };
    let jobs: Vec<Job> = (0..mentions).map(job).collect();
    let events: Vec<_> = jobs.iter().map(|job| job.event.clone()).collect();
    let (early, late) = events.split_at(mentions / 2);
    publish(&hive.upstream(), early);
    hive.relay_down();
    hive.relay_up();
    publish(&hive.upstream(), late);
    hive.start(0);
    for part in 1..=4 {
        let wanted = mentions * part / 6;
        until_none(&hive, &model, &jobs, "answers before the next fault", || {
            wanted.saturating_sub(answered(&hive, &jobs))
        });
        match rng.random_range(0..3) {
            0 => {
                hive.relay_down();
                hive.relay_up();
            }
            1 => hive.slots[0].proxy.cut_after(rng.random_range(0..5_000)),
            _ => hive.slots[0].proxy.cut(End::Reset),
        }
    }
    until_answered(&hive, &model, &jobs);
    until_none(&hive, &model, &jobs, "events in the outbox", || hive.records(0).outbox_len().unwrap().0 as usize);
    assert_eq!(hive.records(0).open_messages().unwrap().len(), 0, "no message waits");
    hive.stop(0);
    assert_answered_once_in_order(&hive, &model, &jobs);
}

#[test]
fn a_reply_in_parts_comes_whole_and_once_though_lines_break_in_it() {
    let mut rng = seeded("a_reply_in_parts_comes_whole_and_once_though_lines_break_in_it");
    const BYTES: usize = 200_000;
    let model = Model::new();
    let mut hive = hive(&model);
    hive.start(0);
    hive.until_led();
    let key = hive.agent().pubkey();
    let jobs: Vec<Job> = (0..4).map(|n| Job::new(&key, format!("j{n}"), n, now(), BYTES, "0")).collect();
    for job in &jobs {
        hive.slots[0].proxy.cut_after(rng.random_range(1_000..BYTES));
        publish(&hive.upstream(), std::slice::from_ref(&job.event));
        until_answered(&hive, &model, std::slice::from_ref(job));
    }
    hive.stop(0);
    assert_answered_once_in_order(&hive, &model, &jobs);
}
