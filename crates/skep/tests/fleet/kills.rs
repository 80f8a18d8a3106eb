//! kill -9 of the harness at any point of a turn: the mention is answered once all the same, and nothing is left.

use std::time::Duration;

use rand::Rng;

use crate::hive::{Agent, Hive, Plan, descendants, lives, marked, now, publish, until};
use crate::model::{Job, Model, answered, assert_answered_once_in_order};
use crate::waiting::until_answered;
use crate::{knob, seeded};

/// From the OK of a mention to its reply, with the model's time, and somewhat more.
const TURN_MS: u64 = 450;

#[test]
fn killed_at_any_point_of_a_turn_the_harness_leaves_one_answer_and_no_process() {
    let kills = knob("SKEP_KILLS", 15);
    let mut rng = seeded("killed_at_any_point_of_a_turn_the_harness_leaves_one_answer_and_no_process");
    let model = Model::new();
    let agent = Agent::new("scout", 23, model.settings());
    let mut hive = Hive::new(Plan::of(agent, [0]));
    let key = hive.agent().pubkey();
    let (mut jobs, mut at) = (Vec::new(), now());
    for n in 0..kills {
        hive.start(0);
        hive.until_led();
        at = now().max(at + 1);
        let job = Job::new(&key, format!("j{n}"), n % 3, at, 0, "0.2 leave");
        publish(&hive.upstream(), std::slice::from_ref(&job.event));
        jobs.push(job);
        // Not a wait for anything: these moments are what is being tested.
        std::thread::sleep(Duration::from_millis(rng.random_range(0..TURN_MS)));
        let below = descendants(hive.slots[0].process.as_ref().unwrap().pid());
        hive.kill(0);
        until("what it had started is gone", || {
            marked(&hive.run).is_empty() && !below.iter().any(|process| lives(*process))
        });
    }
    let interrupted = kills - answered(&hive, &jobs);
    hive.start(0);
    until_answered(&hive, &model, &jobs);
    hive.stop(0);
    assert_eq!(marked(&hive.run), [0; 0], "nothing outlives a stop");
    assert_answered_once_in_order(&hive, &model, &jobs);
    println!("killed {kills} times, {interrupted} mentions were without an answer by then");
}
