//! `skep pause` and `skep resume`: what the owner says once holds on every machine, from then on, and nobody else's word
//! does.

use std::fs;
use std::time::Instant;

use skep_node::clock::unix_now;
use skep_proto::pause::{Pause, Reach};
use skep_proto::{Draft, EventId, Filter, Kind, RawEvent};
use skep_store::AgentStore;

use super::hive::{Hive, eventually, keys, pubkey, script};
use super::scripted;

/// Says in its directory that it was prompted.
const SCRIPT: &str = "text=$(cat); echo run >> runs; case \"$text\" in *slow*) sleep 2;; esac; echo done";

fn scout() -> [String; 1] {
    [script("scout", SCRIPT)]
}

/// Turns that the agent began in all of these homes.
fn runs(hive: &Hive, homes: &[&str]) -> usize {
    let count = |home: &&str| {
        let path = hive.path(home).join("agents/scout/work/runs");
        fs::read_to_string(path).map_or(0, |text| text.lines().count())
    };
    homes.iter().map(count).sum()
}

fn records(hive: &Hive, home: &str) -> Option<AgentStore> {
    AgentStore::open_to_read(&hive.path(home).join("agents/scout/agent.db")).ok()
}

/// Whether the owner's last word is known there, and is this.
fn knows(hive: &Hive, home: &str, paused: bool) -> bool {
    let fact = records(hive, home).and_then(|store| store.fact("pause:fleet").ok()?);
    fact.is_some_and(|text| text.contains(&format!("\"paused\":{paused}")))
}

fn has(hive: &Hive, home: &str, message: &EventId) -> bool {
    records(hive, home).is_some_and(|store| store.has_message(message).unwrap_or(false))
}

async fn replies(hive: &Hive, message: &EventId) -> Vec<RawEvent> {
    let filter = Filter {
        authors: Some(vec![pubkey("scout")]),
        kinds: Some(vec![Kind::NOTE]),
        tags: vec![(b'e', vec![message.to_hex()])],
        ..Filter::new()
    };
    let found = hive.client("owner").await.query(vec![filter]).await.unwrap();
    found.iter().map(|event| event.raw().clone()).collect()
}

async fn until_answered(hive: &Hive, message: &EventId) {
    let begin = Instant::now();
    while replies(hive, message).await.is_empty() {
        assert!(begin.elapsed() < super::hive::PATIENCE, "it is never answered");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_the_owner_says_once_holds_on_every_machine_until_they_lift_it() {
    let mut hive = Hive::new(&scout());
    let homes = ["home", "second", "third"];
    hive.home_on("second", "locks-2", &scout());
    hive.home_on("third", "locks-3", &scout());
    hive.home("phone", &[]);
    let url = hive.url();
    hive.run_agents("home");
    hive.run_agents("second");
    hive.run(&["ask", "@scout", "hello"]).succeeds();
    // A turn that runs is left to end.
    let slow = hive.mention("owner", "scout", "slow").await;
    eventually("the turn", || (runs(&hive, &homes) == 2).then_some(()));
    let said = Instant::now();
    hive.run_at("phone", &["pause", "--reason", "a holiday", "--relay", &url]).succeeds();
    eventually("both obey", || homes[..2].iter().all(|home| knows(&hive, home, true)).then_some(()));
    println!("from the start of skep pause to the word in the records of two machines: {:?}", said.elapsed());
    until_answered(&hive, &slow.id).await;
    let waits = hive.mention("owner", "scout", "and now").await;
    eventually("it arrives", || homes[..2].iter().all(|home| has(&hive, home, &waits.id)).then_some(()));
    let ask = hive.run(&["ask", "@scout", "anybody?"]);
    ask.fails(8, "@scout is paused by its owner, with all agents since ", "skep resume");
    assert!(ask.stderr.contains("a holiday"), "{}", ask.stderr);
    let inbox = hive.run(&["inbox", "--state", "queued", "--json"]).succeeds().json();
    assert!(inbox[0]["reason"].as_str().unwrap().starts_with("paused by its owner, with all agents"), "{inbox:?}");

    // One is killed, and another begins only now: on a relay that is not there at first.
    assert_eq!(hive.kill_agents(), 2);
    hive.kill_relay();
    hive.run_agents("home");
    hive.run_agents("third");
    hive.start_relay();
    eventually("it hears and has it", || (knows(&hive, "third", true) && has(&hive, "third", &waits.id)).then_some(()));
    eventually("one leads", || {
        let leads = |home: &&str| hive.run_at(home, &["status", "--json"]).stdout.contains("\"leads\"");
        ["home", "third"].iter().any(leads).then_some(())
    });
    let status = hive.run_at("third", &["status"]).stdout;
    assert!(status.contains("scout: paused by its owner, with all agents since") && status.contains("; skep resume"));
    assert_eq!(runs(&hive, &homes), 2, "nothing began");

    hive.run_at("phone", &["resume", "--relay", &url]).succeeds();
    until_answered(&hive, &waits.id).await;
    hive.run(&["ask", "@scout", "and you?"]).succeeds();
    assert_eq!(replies(&hive, &waits.id).await.len(), 1);
    // hello, slow, and now, anybody, and you.
    assert_eq!(runs(&hive, &homes), 5, "each once");
}

/// What the owner asks, on no relay yet.
fn asks(text: &str) -> RawEvent {
    let draft = Draft::new(Kind::NOTE, unix_now(), text).tag(["p", &pubkey("scout").to_hex()]);
    keys("owner").sign(draft).raw().clone()
}

#[tokio::test]
async fn nobody_elses_word_counts_and_no_older_one_though_a_second_relay_gives_it() {
    let mut hive = Hive::new(&[]);
    // One that gives whatever it has, in order, whatever it is asked for.
    let (first, (second, has)) = (hive.url(), scripted::relay());
    let give = |event: &RawEvent| has.lock().unwrap().push(serde_json::from_str(&event.to_json()).unwrap());
    let agent = format!("{}relays = [{first:?}, {second:?}]\n", scout()[0]);
    hive.home("home", &[agent]);
    hive.run_agents("home");
    let at = unix_now();
    let word = |who: &str, paused, at| {
        let said = Pause { paused, reason: "forged".into() };
        keys(who).sign(said.draft(&Reach::Fleet, at)).raw().clone()
    };
    for who in ["stranger", "critic", "scout"] {
        give(&word(who, true, at));
    }
    // It comes after them, over the same line.
    let asked = asks("one");
    give(&asked);
    until_answered(&hive, &asked.id).await;
    let pause = word("owner", true, at);
    give(&pause);
    eventually("it is heard", || knows(&hive, "home", true).then_some(()));
    // Dated in the second of the pause or before it by this clock: it is newer all the same.
    let said = hive.run(&["resume", "--json"]).succeeds().json();
    assert_eq!(said.iter().filter(|line| line["relay"].is_string() && line["done"] == true).count(), 2, "{said:?}");
    eventually("it is heard", || knows(&hive, "home", false).then_some(()));
    give(&pause);
    let asked = asks("two");
    give(&asked);
    until_answered(&hive, &asked.id).await;
    assert_eq!(runs(&hive, &["home"]), 2);
}

#[tokio::test]
async fn a_node_without_its_relay_obeys_over_its_socket_and_passes_the_word_on() {
    let mut hive = Hive::new(&scout());
    hive.run_agents("home");
    hive.run(&["ask", "@scout", "hello"]).succeeds();
    hive.kill_relay();
    let paused = hive.run(&["agent", "pause", "scout"]).succeeds();
    assert!(paused.stdout.contains("scout: paused by its owner since"), "{}", paused.stdout);
    assert!(paused.stderr.contains("the agents here pass it on"), "{}", paused.stderr);
    hive.start_relay();
    let reach = Reach::Agent(pubkey("scout"));
    let filter = Filter {
        authors: Some(vec![pubkey("owner")]),
        kinds: Some(vec![Kind::APP_DATA]),
        tags: vec![(b'd', vec![reach.identifier()])],
        ..Filter::new()
    };
    let begin = Instant::now();
    loop {
        let found = hive.client("owner").await.query(vec![filter.clone()]).await.unwrap();
        if let Some((of, said)) = found.first().and_then(|event| Pause::from_event(event)) {
            assert_eq!((of, said.paused), (reach, true));
            break;
        }
        assert!(begin.elapsed() < super::hive::PATIENCE, "the relay never has it");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // What holds here only is said so, and is another thing.
    let here = hive.run(&["pause", "--here", "--reason", "hot"]).succeeds();
    assert!(here.stdout.contains("scout: paused"), "{}", here.stdout);
    // Each is lifted by itself, and what still holds is told.
    let resumed = hive.run(&["resume"]).succeeds().stdout;
    let mend = "to lift that: skep agent resume scout";
    assert!(resumed.contains("scout: still paused by its owner since") && resumed.contains(mend), "{resumed}");
    assert!(resumed.contains("still paused on this machine only since") && resumed.contains(": hot;"), "{resumed}");
    let resumed = hive.run(&["resume", "--here"]).succeeds();
    assert!(!resumed.stdout.contains("on this machine only"), "{}", resumed.stdout);
    assert!(resumed.stdout.contains("still paused by its owner since"), "{}", resumed.stdout);
    // The agent took the word, and will not pass it on where it does not publish.
    let elsewhere = hive.run(&["agent", "pause", "scout", "--relay", "ws://127.0.0.1:9"]);
    elsewhere.fails(4, "ws://127.0.0.1:9", "did not hear it");
    hive.run(&["pause", "--here"]).succeeds();
    let named = hive.run(&["agent", "resume", &pubkey("scout").to_hex()]).succeeds();
    assert!(named.stdout.contains("scout: resumed"), "{}", named.stdout);
    hive.run(&["ask", "@scout", "and now?"]).succeeds();
    // A home that knows no owner's key says that it speaks for itself only.
    fs::remove_file(hive.path("home/keys/owner.key")).unwrap();
    let alone = hive.run(&["pause"]).succeeds();
    assert!(alone.stderr.contains("for this home only"), "{}", alone.stderr);
    let status = hive.run(&["status"]).stdout;
    assert!(status.contains("paused on this machine only since"), "{status}");
}

#[tokio::test]
async fn a_word_that_no_relay_has_is_an_error_and_one_that_is_dated_ahead_is_replaced() {
    let hive = Hive::new(&[]);
    let nowhere = hive.run(&["pause", "--relay", "ws://127.0.0.1:9"]);
    nowhere.fails(4, "ws://127.0.0.1:9", "did not hear it");
    let ahead =
        keys("owner").sign(Pause { paused: true, reason: String::new() }.draft(&Reach::Fleet, unix_now() + 899));
    let verdict = hive.client("owner").await.publish(ahead.raw()).await.unwrap();
    assert!(verdict.accepted, "{}", verdict.message);
    hive.run(&["resume", "--relay", &hive.url()]).succeeds();
    let long = "x".repeat(513);
    hive.run(&["pause", "--reason", &long]).fails(2, "at most 512 bytes", "");
}
