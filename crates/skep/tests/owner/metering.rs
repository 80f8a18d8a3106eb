//! Bills: what the model server billed is what the owner reads, to the token, and nobody else reads any of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use skep_node::clock::unix_now;
use skep_proto::agent::control::{Control, control_draft};
use skep_proto::agent::metering::{StopReason, TurnMetric};
use skep_proto::{Draft, Filter, Kind, RawEvent, seal};

use crate::hive::{Hive, demo, eventually, keys, model, pubkey};
use crate::mock_model::{Asked, Bill, MockModel, Reply};

/// The metrics that an owner's client finds, as it opens them, in order of time.
async fn metrics(hive: &Hive, count: usize) -> Vec<(RawEvent, TurnMetric)> {
    let mut owner = hive.client("owner").await;
    let filter = Filter {
        kinds: Some(vec![Kind::AGENT_METRIC]),
        tags: vec![(b'p', vec![pubkey("owner").to_hex()])],
        ..Filter::new()
    };
    let deadline = tokio::time::Instant::now() + crate::hive::PATIENCE;
    loop {
        let found = owner.query(vec![filter.clone()]).await.unwrap();
        if found.len() >= count {
            let open = |event: &RawEvent| {
                let text = seal::open(keys("owner").keypair(), &event.pubkey, &event.content).unwrap();
                (event.clone(), TurnMetric::from_json(&text).unwrap())
            };
            let mut opened: Vec<_> = found.iter().map(|event| open(event.raw())).collect();
            opened.sort_by_key(|(_, metric)| metric.timestamp);
            return opened;
        }
        assert!(tokio::time::Instant::now() < deadline, "{} of {count} metrics", found.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a metric says of its turn: input, cached, output, total.
fn tokens(metric: &TurnMetric) -> [Option<u64>; 4] {
    let turn = &metric.turn;
    [turn.input_tokens, turn.cache_read_tokens, turn.output_tokens, turn.total_tokens]
}

fn billed(bills: &[Bill]) -> [Option<u64>; 4] {
    let sum = |of: fn(&Bill) -> u64| Some(bills.iter().map(of).sum());
    [sum(|bill| bill.input), sum(|bill| bill.cached), sum(|bill| bill.output), sum(|bill| bill.input + bill.output)]
}

/// The text after the harness's envelope decides.
fn says(asked: &Asked, word: &str) -> bool {
    asked.text.contains(word)
}

fn tool() -> Reply {
    Reply::Tool { name: "nothing".into(), arguments: json!({}) }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_model_billed_is_what_the_owner_reads_to_the_token() {
    let mock = MockModel::start(|asked| match asked.is_tool_answer {
        false if says(asked, "twice") => tool(),
        _ => Reply::Text("one two three four".into()),
    })
    .await;
    let mut hive = Hive::new(&[model("scout", &mock.base_url())]);
    hive.run_agents("home");
    assert_eq!(hive.run(&["ask", "@scout", "once"]).succeeds().stdout, "one two three four\n");
    hive.run(&["ask", "@scout", "twice"]).succeeds();
    let found = metrics(&hive, 2).await;
    let ledger = mock.ledger();
    assert_eq!(ledger.len(), 3, "the second turn needed two calls");
    assert_eq!(tokens(&found[0].1), billed(&ledger[..1]));
    assert_eq!(tokens(&found[1].1), billed(&ledger[1..]));
    assert!(ledger.iter().all(|bill| bill.cached > 0), "cached tokens are a part of this");
    for (n, (event, metric)) in found.iter().enumerate() {
        assert_eq!((metric.turn_seq, metric.stop_reason), (Some(n as u64 + 1), Some(StopReason::EndTurn)));
        assert_eq!((metric.model.as_deref(), metric.triggering_event_ids.len()), (Some("mock"), 1));
        assert!(event.tags.named("h").next().is_none() && !event.content.contains("scout"));
    }
    let total = hive.run(&["usage", "--json"]).succeeds().json().pop().unwrap();
    let [input, cached, output, all] = billed(&ledger).map(Option::unwrap);
    let known = |name: &str| total[name]["known"].as_u64().unwrap();
    assert_eq!((known("input_tokens"), known("cached_tokens")), (input, cached));
    assert_eq!((known("output_tokens"), known("total_tokens"), total["turns"].as_u64()), (output, all, Some(2)));
    let table = hive.run(&["usage"]).succeeds().stdout;
    assert!(
        table.lines().nth(1).unwrap().split_whitespace().eq([
            "scout",
            "2",
            &n(input),
            &n(cached),
            &n(output),
            &n(all),
            "-"
        ]),
        "{table}"
    );
    let by_task = hive.run(&["usage", "--by", "task", "--json"]).succeeds().json();
    assert_eq!(by_task.len(), 3, "each message began a thread");
}

/// As a person writes it; the sums here are small.
fn n(number: u64) -> String {
    if number < 1_000 { number.to_string() } else { format!("{},{:03}", number / 1_000, number % 1_000) }
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_that_were_cancelled_or_failed_are_billed_as_far_as_they_were_seen() {
    let mock = MockModel::start(|asked| match (asked.is_tool_answer, says(asked, "slow"), says(asked, "break")) {
        (false, true, _) | (false, _, true) => tool(),
        (true, true, _) => Reply::Slow("word ".repeat(10_000), Duration::from_millis(20)),
        (true, _, true) => Reply::Status { status: 401, retry_after: None, code: "invalid_api_key" },
        _ => Reply::Disconnect("never told".into()),
    })
    .await;
    let mut hive = Hive::new(&[model("scout", &mock.base_url())]);
    hive.run_agents("home");

    let mut ask = hive.start(&["ask", "@scout", "slow"]);
    ask.wait_for("👀");
    eventually("the second call", || (mock.asked().len() == 2).then_some(()));
    let cancel = Control::CancelTurn { channel_id: format!("notes:{}", pubkey("owner")) };
    let sealed = seal::seal(keys("owner").keypair(), &pubkey("scout"), &cancel.to_json().unwrap(), [9; 32]).unwrap();
    let frame = keys("owner").sign(control_draft(&pubkey("scout"), unix_now(), sealed));
    assert!(hive.client("owner").await.publish(&frame).await.unwrap().accepted);
    ask.finish().fails(1, "@scout refused: cancelled by the owner", "respond_to");
    let (_, cancelled) = metrics(&hive, 1).await.remove(0);
    assert_eq!(cancelled.stop_reason, Some(StopReason::Cancelled));
    assert_eq!(tokens(&cancelled), billed(&mock.ledger()[..1]), "the call that was told");

    // A key that the provider refuses pauses the agent; what was used before it is billed.
    hive.run(&["ask", "@scout", "break"]).fails(8, "@scout is paused", "skep agent resume scout");
    let (_, failed) = metrics(&hive, 2).await.remove(1);
    assert_eq!(failed.stop_reason, Some(StopReason::Error));
    assert_eq!(tokens(&failed), billed(&mock.ledger()[2..3]));
    assert_eq!(failed.turn_seq, Some(2), "of the same session");
    let total = hive.run(&["usage", "--json"]).succeeds().json().pop().unwrap();
    assert_eq!((&total["turns"], &total["unknown_turns"]), (&json!(2), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_begins_anew_is_another_series_and_nothing_is_counted_twice() {
    let mock = MockModel::start(|_| Reply::Text("one two three".into())).await;
    let mut hive = Hive::new(&[model("scout", &mock.base_url())]);
    for life in 1..=2 {
        hive.run_agents("home");
        hive.run(&["ask", "@scout", "hello"]).succeeds();
        hive.run(&["ask", "@scout", "hello again"]).succeeds();
        metrics(&hive, 2 * life).await;
        hive.stop_agents();
    }
    let found = metrics(&hive, 4).await;
    let sessions: Vec<&Option<String>> = found.iter().map(|(_, metric)| &metric.session_id).collect();
    assert!(sessions[0] == sessions[1] && sessions[1] != sessions[2] && sessions[2] == sessions[3], "{sessions:?}");
    let seqs: Vec<Option<u64>> = found.iter().map(|(_, metric)| metric.turn_seq).collect();
    assert_eq!(seqs, [1, 2, 1, 2].map(Some));
    let total = hive.run(&["usage", "--json"]).succeeds().json().pop().unwrap();
    let [input, _, output, _] = billed(&mock.ledger()).map(Option::unwrap);
    assert_eq!((&total["input_tokens"]["known"], &total["output_tokens"]["known"]), (&json!(input), &json!(output)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_lost_its_count_is_unknown_for_a_turn_and_nothing_is_guessed() {
    let mut hive = Hive::new(&[demo("scout")]);
    for life in 1..=2 {
        hive.run_agents("home");
        // The program takes its session up again, and counts its words from nothing.
        hive.run(&["ask", "@scout", "hello"]).succeeds();
        hive.run(&["ask", "@scout", "hello again"]).succeeds();
        metrics(&hive, 2 * life).await;
        hive.stop_agents();
    }
    let found = metrics(&hive, 4).await;
    let outputs: Vec<Option<u64>> = found.iter().map(|(_, metric)| metric.turn.output_tokens).collect();
    let words = |said: &str| {
        let all = format!("A greeting is polite. Hello! I am Skep's demo agent. You said: {said}");
        Some(all.split_whitespace().count() as u64)
    };
    assert_eq!(outputs, [words("hello"), words("hello again"), None, words("hello again")]);
    let total = hive.run(&["usage", "--json"]).succeeds().json().pop().unwrap();
    let known: u64 = outputs.iter().flatten().sum();
    assert_eq!(total["output_tokens"], json!({ "known": known, "unknown_turns": 1 }));
    let table = hive.run(&["usage"]).succeeds().stdout;
    assert!(table.contains(&format!("{known}+?")) && table.contains("+?  not known of some turns"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_owner_reads_a_bill_by_any_path() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    hive.run(&["ask", "@scout", "hello"]).succeeds();
    let (event, _) = metrics(&hive, 1).await.remove(0);
    let (id, author, owner) = (event.id.to_hex(), event.pubkey.to_hex(), pubkey("owner").to_hex());
    let filters = [
        json!({ "ids": [id] }),
        json!({ "kinds": [event.kind.0] }),
        json!({ "kinds": [event.kind.0], "#p": [owner] }),
        json!({ "authors": [author], "kinds": [event.kind.0] }),
        json!({ "authors": [author] }),
        json!({ "#p": [owner] }),
        json!({ "#agent": [author] }),
        json!({}),
    ];
    for filter in filters {
        let filter = filter.to_string();
        for reader in [Some("stranger"), Some("scout"), None] {
            let found = seen(&hive, "query", &filter, reader);
            assert!(!found.contains(&id), "{reader:?} {filter}: {found}");
            assert!(!http(&hive, "/query", &filter, reader).contains(&id), "HTTP {reader:?} {filter}");
        }
    }
    let exact = json!({ "ids": [id] }).to_string();
    let others = [Some("stranger"), Some("scout"), None];
    for reader in others {
        let counted = seen(&hive, "count", &exact, reader);
        assert!(counted.trim() == "0" || counted.is_empty(), "{reader:?}: {counted}");
        let counted = http(&hive, "/count", &exact, reader);
        assert!(counted.contains("\"count\":0") || !counted.starts_with("HTTP/1.1 200"), "{reader:?}: {counted}");
    }
    // The same paths show it to the owner: the test would see it.
    assert!(seen(&hive, "query", &exact, Some("owner")).contains(&id));
    assert_eq!(seen(&hive, "count", &exact, Some("owner")).trim(), "1");
    assert!(http(&hive, "/query", &exact, Some("owner")).contains(&id));
    // And whoever had the event could not open it.
    assert!(seal::open(keys("stranger").keypair(), &event.pubkey, &event.content).is_err());
    let theirs = hive.run(&["usage", "--key", "stranger"]).succeeds();
    assert_eq!(theirs.stdout, "no bills\n");
}

/// What `skep event` says to somebody; a refusal says nothing on stdout.
fn seen(hive: &Hive, verb: &str, filter: &str, reader: Option<&str>) -> String {
    let url = hive.url();
    let mut args = vec!["event", verb, filter, "--relay", &url];
    args.extend(reader.into_iter().flat_map(|reader| ["--key", reader]));
    hive.run(&args).stdout
}

/// The answer to a POST, with a token of somebody (NIP-98).
fn http(hive: &Hive, path: &str, body: &str, reader: Option<&str>) -> String {
    let host = hive.url().trim_start_matches("ws://").to_owned();
    let token = reader.map(|reader| {
        let hash: String = Sha256::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let draft = Draft::new(Kind::HTTP_AUTH, unix_now(), "")
            .tag(["u", &format!("http://{host}{path}")])
            .tag(["method", "POST"])
            .tag(["payload", &hash]);
        // Equal requests in one second would be one token otherwise.
        let nonce = Value::from(rand::random::<u64>()).to_string();
        let event = keys(reader).sign(draft.tag(["nonce", &nonce]));
        format!("Authorization: Nostr {}\r\n", base64::engine::general_purpose::STANDARD.encode(event.raw().to_json()))
    });
    let mut stream = TcpStream::connect(&host).unwrap();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    write!(stream, "{head}{}\r\n{body}", token.unwrap_or_default()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_says_what_it_left_out_and_what_it_does_not_know() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    hive.run(&["ask", "@scout", "hello"]).succeeds();
    metrics(&hive, 1).await;
    // A bill that says nothing which can be read, by the same agent.
    let spoiled = |content: String| {
        let draft = Draft::new(Kind::AGENT_METRIC, unix_now(), content)
            .tag(["p", &pubkey("owner").to_hex()])
            .tag(["agent", &pubkey("scout").to_hex()]);
        keys("scout").sign(draft.tag(crate::hive::consent("scout")))
    };
    let sealed = seal::seal(keys("scout").keypair(), &pubkey("owner"), "no metric", [3; 32]).unwrap();
    let mut scout = hive.client("scout").await;
    assert!(scout.publish(&spoiled(sealed)).await.unwrap().accepted);
    let ran = hive.run(&["usage"]).succeeds();
    assert_eq!(ran.stderr, "1 bills could not be read with this key, and are not counted\n");
    assert!(ran.stdout.contains("-   not known"), "of costs nothing is known: {}", ran.stdout);
    let total = hive.run(&["usage", "--json"]).succeeds().json().pop().unwrap();
    assert_eq!((&total["turns"], &total["left_out"]["unreadable"]), (&json!(1), &json!(1)));
    let csv = hive.run(&["usage", "--by", "day", "--csv"]).succeeds().stdout;
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert!(rows.len() == 2 && rows[0].len() == rows[1].len() && rows[0][0] == "day", "{csv}");
    let later = hive.run(&["usage", "--since", "2999-01-01T00:00:00Z"]).succeeds();
    assert_eq!(later.stdout, "no bills\n");
    hive.run(&["usage", "--since", "soon"]).fails(3, "\"soon\" is not a time", "7d");
    hive.run(&["usage", "--by", "moon"]).fails(2, "moon", "see --help");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimated_cost_is_marked_and_stands_apart_from_a_reported_one() {
    let mock = MockModel::start(|_| Reply::Text("one two three".into())).await;
    let price = "price = { input = 3000.0, output = 15000.0, cache_read = 300.0, date = \"2026-11-01\" }\n";
    let mut hive = Hive::new(&[format!("{}{price}", model("scout", &mock.base_url())), demo("critic")]);
    hive.run_agents("home");
    hive.run(&["ask", "@scout", "hello"]).succeeds();
    hive.run(&["ask", "@critic", "hello"]).succeeds();
    metrics(&hive, 2).await;
    let bill = mock.ledger().remove(0);
    let plain = (bill.input - bill.cached) as f64 * 0.003;
    let expected = plain + bill.cached as f64 * 0.0003 + bill.output as f64 * 0.015;
    let rows = hive.run(&["usage", "--json"]).succeeds().json();
    let of = |key: &str| rows.iter().find(|row| row["key"] == key).unwrap();
    let (scout, critic) = (of("scout"), of("critic"));
    assert!((scout["estimated_usd"].as_f64().unwrap() - expected).abs() < 1e-9, "{scout} {expected}");
    assert_eq!((&scout["reported_usd"], &critic["cost_unknown_turns"]), (&json!(0.0), &json!(1)));
    let table = hive.run(&["usage"]).succeeds().stdout;
    let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("scout").ends_with(&format!("~{expected:.4}")) && line("critic").ends_with('-'), "{table}");
    assert!(line("all").ends_with("+?") && table.contains("~   estimated from a price list"), "{table}");
}

#[test]
fn a_message_that_waits_for_its_budget_says_so() {
    let mut hive = Hive::new(&[format!("{}budget = {{ turns_per_hour = 1 }}\n", demo("scout"))]);
    hive.run_agents("home");
    hive.run(&["ask", "@scout", "hello"]).succeeds();
    let ran = hive.run(&["ask", "@scout", "and again", "--timeout", "5s"]);
    ran.fails(7, "@scout did not answer within 5s", "skep watch");
    assert!(ran.stderr.contains("⏳ @scout has it waiting:") && ran.stderr.contains("budget"), "{}", ran.stderr);
}
