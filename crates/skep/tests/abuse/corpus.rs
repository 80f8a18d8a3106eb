//! Messages that are wrong, each with its exact answer. The connection is kept; what is malformed is counted.

use serde_json::{Value, json};
use skep_proto::{Draft, Kind, VerifiedEvent};

use crate::load_harness::{Relay, keys, now};
use crate::raw::{BINARY, Raw, TEXT};
use crate::{UNHURRIED, alone};

/// What is sent, and what comes back: all exactly, but of the last element only how it begins.
pub struct Case {
    sent: String,
    answer: Value,
}

fn case(sent: impl Into<String>, answer: Value) -> Case {
    Case { sent: sent.into(), answer }
}

impl Case {
    #[track_caller]
    fn check(&self, answer: &Value) {
        let shown: String = self.sent.chars().take(80).collect();
        let (wanted, got) = (self.answer.as_array().unwrap(), answer.as_array().unwrap());
        let (last, firsts) = wanted.split_last().unwrap();
        let is_same = wanted.len() == got.len() && got.starts_with(firsts) && begins(&got[firsts.len()], last);
        assert!(is_same, "{shown}\n   got {answer}\nwanted {}", self.answer);
    }
}

fn begins(text: &Value, prefix: &Value) -> bool {
    match (text.as_str(), prefix.as_str()) {
        (Some(text), Some(prefix)) => text.starts_with(prefix),
        _ => text == prefix,
    }
}

fn notice(text: &str) -> Value {
    json!(["NOTICE", text])
}

fn closed(text: &str) -> Value {
    json!(["CLOSED", "s", text])
}

fn refused(id: &str, text: &str) -> Value {
    json!(["OK", id, false, text])
}

fn neg_err(text: &str) -> Value {
    json!(["NEG-ERR", "s", text])
}

/// No JSON, or no message, as far as it can be read: there is nobody to answer but the connection.
fn unreadable() -> Vec<Case> {
    let mut cases: Vec<Case> =
        ["", " ", "{", "[", "nul", "\u{0}", "[\"REQ\",\"s", "[\"REQ\",\"s\u{0}\",{}]", "\u{feff}[]"]
            .map(|sent| case(sent, notice("invalid: ")))
            .into();
    cases.extend(
        ["null", "7", "\"EVENT\"", "{}", "[]", "[null]", "[7,8]", "[[\"REQ\"]]"]
            .map(|sent| case(sent, notice("invalid: "))),
    );
    cases.extend(["[\"WHAT\"]", "[\"event\",{}]", "[\"\"]", "[\"REQ \",\"s\",{}]", "[\"OK\",\"x\",true,\"\"]"].map(
        |sent| {
            case(
                sent,
                notice("invalid: unknown message type; known: EVENT REQ CLOSE AUTH COUNT NEG-OPEN NEG-MSG NEG-CLOSE"),
            )
        },
    ));
    let deep = "[".repeat(400_000);
    let bushy = format!("[{}[]]", "[],".repeat(170_000));
    let objects = "{\"a\":".repeat(80_000);
    let wide = format!("[\"EVENT\",{{\"x\":[{}7]}}]", "{\"a\":1},".repeat(60_000));
    let nested = [
        deep.clone(),
        objects,
        format!("[\"WHAT\",{deep}"),
        format!("[\"EVENT\",{deep}"),
        format!("{deep}{}", "]".repeat(100_000)),
        bushy.clone(),
        wide,
        format!("[\"EVENT\",{bushy}]"),
    ];
    cases.extend(nested.map(|sent| case(sent, notice("invalid: "))));
    // Half a surrogate pair is no character: the JSON form of bad UTF-8.
    cases.extend([r#"["REQ","\ud800",{}]"#, r#"["CLOSE","\udc00\ud800"]"#].map(|sent| case(sent, notice("invalid: "))));
    cases
}

/// A message type that we know, with something in it that has the wrong type.
fn wrong_types() -> Vec<Case> {
    let mut cases: Vec<Case> = ["EVENT", "AUTH", "REQ", "COUNT", "CLOSE", "NEG-OPEN", "NEG-MSG", "NEG-CLOSE"]
        .iter()
        .flat_map(|verb| ["", ",7", ",null", ",[]", ",true", ",{}"].map(|rest| format!("[\"{verb}\"{rest}]")))
        .map(|sent| case(sent, notice("invalid: ")))
        .collect();
    cases.extend(["REQ", "COUNT"].into_iter().flat_map(|verb| {
        ["", ",7", ",null", ",[]", ",\"{}\"", ",{},7"]
            .map(|rest| case(format!("[\"{verb}\",\"s\"{rest}]"), closed("invalid: ")))
    }));
    cases.extend(
        ["", ",7,\"61\"", ",{}", ",{},61", ",{\"kinds\":7},\"61\"", ",[],\"61\""]
            .map(|rest| case(format!("[\"NEG-OPEN\",\"s\"{rest}]"), neg_err("invalid: "))),
    );
    cases.extend(["", ",7", ",null"].map(|rest| case(format!("[\"NEG-MSG\",\"s\"{rest}]"), neg_err("invalid: "))));
    let filters = [
        "{\"kinds\":1}",
        "{\"kinds\":[\"1\"]}",
        "{\"kinds\":[65536]}",
        "{\"kinds\":[-1]}",
        "{\"kinds\":[1.5]}",
        "{\"kinds\":[1],\"kinds\":[2]}",
        "{\"ids\":[\"abc\"]}",
        "{\"ids\":[7]}",
        "{\"authors\":{}}",
        "{\"authors\":null,\"ids\":\"x\"}",
        "{\"#e\":\"x\"}",
        "{\"#e\":[7]}",
        "{\"search\":7}",
        "{\"since\":\"1\"}",
        "{\"limit\":-1}",
    ];
    cases.extend(filters.map(|filter| case(format!("[\"REQ\",\"s\",{filter}]"), closed("invalid: "))));
    // No JSON, but whom it was for was read before its fault.
    let deep = "[".repeat(400_000);
    cases.extend(
        ["", ",", ",{", ",{}", ",{}]]", &format!(",{{\"x\":{deep}")]
            .map(|rest| case(format!("[\"REQ\",\"s\"{rest}"), closed("invalid: "))),
    );
    let upper = format!("{{\"ids\":[\"{}\"]}}", "AB".repeat(32));
    cases.push(case(format!("[\"REQ\",\"s\",{upper}]"), closed("invalid: ")));
    cases
}

/// Numbers that no field holds.
fn huge_numbers() -> Vec<Case> {
    let digits = "9".repeat(100_000);
    let numbers = ["1e999", "18446744073709551616", "-1", "1e18", "0.5", &digits];
    // Also a number that JSON itself cannot hold is answered where it came from.
    let mut cases: Vec<Case> = numbers
        .iter()
        .flat_map(|number| ["since", "until", "limit"].map(|field| format!("[\"REQ\",\"s\",{{\"{field}\":{number}}}]")))
        .map(|sent| case(sent, closed("invalid: ")))
        .collect();
    let event = sample(Draft::new(Kind(1), now(), "x")).raw().to_json();
    let id = &event[7..71];
    for number in ["18446744073709551616", "-1", "1.5", "\"1\""] {
        let changed = event.replacen("\"kind\":1", &format!("\"kind\":{number}"), 1);
        cases.push(case(format!("[\"EVENT\",{changed}]"), refused(id, "invalid: ")));
    }
    cases
}

fn sample(draft: Draft) -> VerifiedEvent {
    draft.sign(&keys(3), &[0; 32])
}

/// What can be read, and is refused for a rule: no strike.
fn refused_by_rule() -> Vec<Case> {
    let mut cases = refused_events();
    let filters = |count: usize, filter: &str| format!("[\"REQ\",\"s\"{}]", format!(",{filter}").repeat(count));
    cases.push(case(filters(21, "{}"), closed("invalid: more than 20 filters in one message")));
    cases.push(case(filters(1_000, "{}"), closed("invalid: more than 20 filters in one message")));
    let kinds: Vec<u16> = (0..5_001).collect();
    cases.push(case(
        json!(["REQ", "s", { "kinds": kinds }]).to_string(),
        closed("invalid: more than 5000 values in the filters"),
    ));
    cases.push(case(
        json!(["COUNT", "s", { "kinds": kinds }]).to_string(),
        closed("invalid: more than 5000 values in the filters"),
    ));
    cases.push(case(
        json!(["NEG-OPEN", "s", { "kinds": kinds }, "61"]).to_string(),
        neg_err("invalid: more than 5000 values"),
    ));
    for unknown in ["kindz", "#", "#ee", "#1", "", "&t", "\\u0000"] {
        cases.push(case(
            format!("[\"REQ\",\"s\",{{\"{unknown}\":[1]}}]"),
            closed("unsupported: unknown filter element"),
        ));
    }
    cases.push(case(r#"["REQ","s",{"search":"bees"}]"#, closed("unsupported: search is off on this relay")));
    cases.push(case(r#"["REQ","s",{"kinds":[1059]}]"#, closed("auth-required: ")));
    let hostile = "6100000".to_owned() + "2bfffffffffff7f";
    for noise in
        ["0", "zz", "6", "61000002", "610000", &hostile, "61ffffffffffffffffffff7f", "6100000201", "61000005", ""]
    {
        cases.push(case(format!("[\"NEG-OPEN\",\"s\",{{\"kinds\":[1]}},\"{noise}\"]"), neg_err("invalid: ")));
    }
    cases.push(case(r#"["NEG-MSG","s","61"]"#, neg_err("invalid: closed: no such reconciliation")));
    cases.push(case(r#"["NEG-MSG","s","no hex"]"#, neg_err("invalid: the message is not hex")));
    cases
}

fn refused_events() -> Vec<Case> {
    let with = |event: &VerifiedEvent, text: &str| {
        case(format!("[\"EVENT\",{}]", event.raw().to_json()), refused(&event.id.to_hex(), text))
    };
    let draft = |content: &str| Draft::new(Kind(1), now(), content);
    let tagged = |count: usize, value: &str| sample((0..count).fold(draft(""), |draft, _| draft.tag([value])));
    let mut cases = vec![
        with(&sample(draft(&"x".repeat(300_000))), "invalid: the event is larger than 262144 bytes"),
        with(&tagged(100_000, ""), "invalid: the event is larger than 262144 bytes"),
        with(&tagged(2_001, "t"), "invalid: the event has more than 2000 tags"),
        with(&sample(draft("").tag(["t", &"x".repeat(8_193)])), "invalid: a tag value is longer than 8192 bytes"),
        with(&sample(draft("").tag([&"x".repeat(200_000)])), "invalid: a tag value is longer than 8192 bytes"),
        with(&sample(Draft::new(Kind(1), now() + 100_000, "")), "invalid: created_at is more than 900 s ahead"),
        with(&sample(Draft::new(Kind(1), u64::MAX, "")), "invalid: created_at is more than 900 s ahead"),
        with(&sample(draft("").tag(["expiration", "1"])), "invalid: the event has expired"),
        with(&sample(Draft::new(Kind::AUTH, now(), "")), "invalid: kind 22242 is never published as an event"),
    ];
    let good = sample(draft("good"));
    let changed = good.raw().to_json().replace("good", "evil");
    cases
        .push(case(format!("[\"EVENT\",{changed}]"), refused(&good.id.to_hex(), "invalid: the id is not the SHA-256")));
    let mut forged = good.raw().clone();
    forged.sig.0[7] ^= 1;
    cases.push(case(
        format!("[\"EVENT\",{}]", forged.to_json()),
        refused(&good.id.to_hex(), "invalid: the signature does not verify"),
    ));
    cases
}

/// Odd, but right.
fn accepted() -> Vec<Case> {
    let eose = || json!(["EOSE", "s"]);
    let requests = [
        "{\"limit\":18446744073709551615}",
        "{\"limit\":0}",
        "{\"since\":18446744073709551615}",
        "{\"until\":0}",
        "{\"kinds\":[]}",
        "{\"#t\":[\"\"]}",
        "{\"since\":5,\"until\":4}",
        "{},\"more\"",
    ];
    // `"more"` is not a filter, and filters go to the end of the message.
    let mut cases: Vec<Case> =
        requests[..7].iter().map(|filter| case(format!("[\"REQ\",\"s\",{filter}]"), eose())).collect();
    cases.push(case(format!("[\"REQ\",\"s\",{}]", requests[7]), closed("invalid: ")));
    let twenty = format!(" [ \"REQ\" , \"s\" {} ] ", ",{}".repeat(20));
    cases.push(case(twenty, eose()));
    let longest = "é".repeat(64);
    cases.push(case(json!(["REQ", longest, {}]).to_string(), json!(["EOSE", longest])));
    cases.push(case(r#"["REQ","\u0000",{}]"#, json!(["EOSE", "\u{0}"])));
    cases.push(case(r#"["NEG-OPEN","s",{},"62"]"#, json!(["NEG-MSG", "s", "61"])));
    let kinds: Vec<u16> = (1_000..6_000).collect();
    cases.push(case(json!(["COUNT", "s", { "kinds": kinds }]).to_string(), json!(["COUNT", "s", { "count": 0 }])));
    let event = sample(Draft::new(Kind(1), now(), "odd").tag([""]).tag(["t", ""]));
    cases.push(case(format!("[\"EVENT\",{},7,{{}}]", event.raw().to_json()), json!(["OK", event.id, true, ""])));
    cases
}

/// Sends each on a connection of its own, which must still be served afterwards.
async fn run(relay: &Relay, cases: &[Case]) {
    for case in cases {
        let mut client = Raw::open(relay).await;
        assert_eq!(client.recv().await[0], "AUTH");
        client.send(TEXT, case.sent.as_bytes()).await;
        case.check(&client.recv().await);
        assert_served(&mut client).await;
    }
}

async fn assert_served(client: &mut Raw) {
    client.send(TEXT, br#"["COUNT","alive",{"kinds":[9]}]"#).await;
    assert_eq!(client.recv().await, json!(["COUNT", "alive", { "count": 0 }]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_message_is_answered_counted_and_the_connection_kept() {
    let _turn = alone().await;
    let mut relay = Relay::start(UNHURRIED);
    run(&relay, &[case(r#"["COUNT","s",{}]"#, json!(["COUNT", "s", { "count": 0 }]))]).await;
    let before = relay.memory_kib("RssAnon");
    let mut count = 0;
    for cases in [unreadable(), wrong_types(), huge_numbers()] {
        run(&relay, &cases).await;
        count += cases.len() as u64;
    }
    let long = json!(["REQ", "é".repeat(65), {}]).to_string();
    run(&relay, &[case(long, notice("invalid: a subscription id has 1 to 64 characters"))]).await;
    assert_eq!(relay.metric("malformed_total").await, count + 1);
    assert_eq!(relay.metric("cut_total{reason=\"malformed messages\"}").await, 0);
    relay.assert_alive();
    let grown = relay.memory_kib("RssAnon").saturating_sub(before);
    println!("{} malformed messages: the relay's memory grew by {grown} KiB", count + 1);
    assert!(grown < 64 * 1024, "memory grew by {grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_breaks_a_rule_is_refused_and_is_no_strike() {
    let _turn = alone().await;
    let mut relay = Relay::start(UNHURRIED);
    run(&relay, &refused_by_rule()).await;
    assert_eq!(relay.metric("malformed_total").await, 0);
    assert!(relay.metric("refused_total{reason=\"invalid\"}").await >= 11);
    relay.assert_alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_message_that_is_right_is_served() {
    let _turn = alone().await;
    let relay = Relay::start(UNHURRIED);
    run(&relay, &accepted()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binary_message_is_malformed_and_the_connection_kept() {
    let _turn = alone().await;
    let relay = Relay::start(UNHURRIED);
    let mut client = Raw::open(&relay).await;
    client.recv().await;
    client.send(BINARY, br#"["REQ","s",{}]"#).await;
    assert_eq!(client.recv().await[0], "NOTICE");
    assert_served(&mut client).await;
    assert_eq!(relay.metric("malformed_total").await, 1);
}
