//! Budgets of the fleet and of a task, over processes and restarts.

use std::fs;
use std::io::Write;

use serde_json::Value;
use skep_proto::{Filter, Kind};

use super::hive::{Hive, eventually, model, pubkey};
use crate::mock_model::{MockModel, Reply};

/// Why everything waits.
const REFUSAL: &str = "budget: tokens_per_day of the fleet is used up until ";

fn limit(hive: &Hive, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(hive.path("home/config.toml")).unwrap();
    write!(file, "\n{text}\n").unwrap();
}

/// What the agents told the owner about budgets.
async fn told(hive: &Hive) -> Vec<String> {
    let authors = Some(vec![pubkey("scout"), pubkey("critic")]);
    let filter = Filter { authors, kinds: Some(vec![Kind::NOTE]), ..Filter::new() };
    let found = hive.client("owner").await.query(vec![filter]).await.unwrap();
    found.iter().map(|event| event.content.clone()).filter(|text| text.starts_with("budget: ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleets_budget_that_one_agent_used_up_stops_the_other_in_another_process_too() {
    let mock = MockModel::start(|_| Reply::Text("done".into())).await;
    let mut hive = Hive::new(&[model("scout", &mock.base_url()), model("critic", &mock.base_url())]);
    limit(&hive, "[budget]\ntokens_per_day = 1");
    hive.run_agent("home", "scout");
    hive.run_agent("home", "critic");
    hive.run(&["ask", "@scout", "hello"]).succeeds();
    let waits = hive.run(&["ask", "@critic", "hello", "--timeout", "3s"]);
    waits.fails(7, REFUSAL, "it goes on without us");
    hive.run(&["ask", "@scout", "again", "--timeout", "3s"]).fails(7, REFUSAL, "");
    // kill -9, and as one process.
    assert_eq!(hive.kill_agents(), 2);
    hive.run_agents("home");
    // In another channel: one behind another waits for that one.
    hive.run(&["say", "@critic", "and now?", "--channel", "other"]).succeeds();
    eventually("all three wait for it", || {
        let rows = hive.run(&["inbox", "--state", "queued", "--json"]).succeeds().json();
        let is_told = |row: &Value| row["reason"].as_str().is_some_and(|why| why.starts_with(REFUSAL));
        (rows.len() == 3 && rows.iter().all(is_told)).then_some(())
    });
    assert_eq!(mock.ledger().len(), 1, "nothing was spent");
    assert_eq!(told(&hive).await.len(), 1, "one for the fleet, not one for each");
    // Another limit holds from the next start on.
    hive.kill_agents();
    let config = hive.path("home/config.toml");
    let text = fs::read_to_string(&config).unwrap().replace("tokens_per_day = 1", "tokens_per_day = 1000000");
    fs::write(&config, text).unwrap();
    hive.run_agents("home");
    eventually("all are answered", || (mock.ledger().len() == 4).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_has_a_budget_of_its_own_and_its_turns_are_counted_by_it() {
    let mock = MockModel::start(|_| Reply::Text("done".into())).await;
    let mut hive = Hive::new(&[model("scout", &mock.base_url())]);
    limit(&hive, "[budget.task]\nturns_per_hour = 1");
    hive.run_agents("home");
    let asked = hive.run(&["ask", "@scout", "one", "--task", "T1", "--json"]).succeeds().json();
    let reply = asked.iter().find(|line| line["type"] == "reply").unwrap()["events"][0].as_str().unwrap().to_owned();
    let filter = Filter { ids: Some(vec![reply.parse().unwrap()]), ..Filter::new() };
    let found = hive.client("owner").await.query(vec![filter]).await.unwrap();
    assert_eq!(found[0].tags.single("task"), Some("T1"), "an answer carries it on");
    let waits = hive.run(&["ask", "@scout", "two", "--task", "T1", "--dm", "--timeout", "3s"]);
    waits.fails(7, "budget: turns_per_hour of task T1 is used up until ", "");
    // In another conversation: a channel keeps its order.
    hive.run(&["ask", "@scout", "three", "--task", "T2"]).succeeds();
    hive.run(&["ask", "@scout", "four"]).succeeds();
    let usage = eventually("three bills", || {
        let rows = hive.run(&["usage", "--by", "task", "--json"]).succeeds().json();
        (rows.iter().filter(|row| row.to_string().contains("\"T")).count() == 2 && rows.len() >= 3).then_some(rows)
    });
    for task in ["T1", "T2"] {
        let row = usage.iter().find(|row| row.to_string().contains(&format!("\"{task}\""))).unwrap();
        assert_eq!(row["turns"], 1, "{row}");
    }
    hive.run(&["say", "@scout", "x", "--task", "two words"]).fails(2, "without spaces", "");
}
