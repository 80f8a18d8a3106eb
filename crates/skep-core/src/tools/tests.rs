//! What a call may say, and what it may not.

use proptest::prelude::*;
use secp256k1::{Keypair, SECP256K1};
use skep_proto::attestation::{Conditions, attest};
use skep_proto::{Draft, Kind, PubKey, RawEvent};

use super::page::{self, Sibling};
use super::*;

fn read(tool: &str, arguments: Value) -> Result<Call, CallError> {
    let names: Vec<&str> = Name::ALL.iter().map(|name| name.as_str()).collect();
    Call::read(&Grants::read(&names).expect("all are tools"), tool, arguments)
}

#[test]
fn what_is_not_granted_looks_like_what_does_not_exist() {
    let few = Grants::read(&["progress"]).expect("a tool");
    let error = |tool: &str| Call::read(&few, tool, json!({})).expect_err("not granted").to_string();
    assert_eq!(error("history").replace("history", "no_such"), error("no_such"));
    assert_eq!(few.names().collect::<Vec<_>>(), [Name::Progress]);
    let unknown = Grants::read(&["histry"]).expect_err("no tool").to_string();
    assert_eq!(unknown, r#"there is no tool "histry"; there are: progress, history, agents, ask_agent, ask_human"#);
}

#[test]
fn without_a_word_an_agent_has_what_changes_nothing() {
    let default = Grants::default();
    assert_eq!(default.names().map(Name::as_str).collect::<Vec<_>>(), ["progress", "history", "agents"]);
    assert!(Name::ALL.iter().all(|name| default.has(*name) != name.writes()));
    assert!(Grants::none().is_empty() && Grants::read::<&str>(&[]).expect("none").is_empty());
}

#[test]
fn each_schema_is_of_an_object_that_takes_nothing_else_and_names_what_it_needs() {
    for name in Name::ALL {
        let schema = name.schema();
        assert_eq!((&schema["type"], &schema["additionalProperties"]), (&json!("object"), &json!(false)), "{name:?}");
        let properties = schema["properties"].as_object().expect("properties");
        for needed in schema["required"].as_array().expect("a list") {
            assert!(properties.contains_key(needed.as_str().expect("a name")), "{name:?}");
        }
        assert!(name.description().len() > 40 && !name.description().starts_with(' '), "{name:?}");
        assert!(read(name.as_str(), json!({ "surprise": 1 })).is_err(), "{name:?}");
    }
}

#[test]
fn a_call_is_read_whole_or_told_what_is_wrong() {
    assert_eq!(read("progress", json!({ "text": " half\n done " })), Ok(Call::Progress { text: "half done".into() }));
    assert_eq!(read("agents", Value::Null), Ok(Call::Agents));
    let page = |limit, before| Ok(Call::History { limit, before });
    assert_eq!(read("history", json!({})), page(limits::HISTORY_PAGE_MESSAGES, None));
    assert_eq!(read("history", json!({ "limit": 3, "before": "1970-01-01T00:01:00.000Z" })), page(3, Some(60)));
    let asked = read("ask_agent", json!({ "name": "@Scout", "text": "where?" }));
    assert_eq!(asked, Ok(Call::AskAgent { name: "scout".parse().expect("a name"), text: "where?".into() }));

    let options = ["Yes", "No"].map(str::to_owned);
    let asked = read("ask_human", json!({ "question": "now?" }));
    assert_eq!(asked, Ok(Call::AskHuman { question: "now?".into(), options }));

    let long = "x".repeat(limits::PROGRESS_BYTES_MAX + 1);
    for (tool, arguments, why) in [
        ("progress", json!({}), "missing field `text`"),
        ("progress", json!({ "text": " \n" }), "a text is empty"),
        ("progress", json!({ "text": long }), "a text has 501 bytes"),
        ("ask_human", json!({ "question": "x", "options": ["only one"] }), "invalid length 1"),
        ("ask_human", json!({ "question": "x", "options": ["a", " "] }), "a text is empty"),
        ("progress", json!({ "text": 1 }), "invalid type"),
        ("progress", json!([]), "text"),
        ("history", json!({ "limit": 0 }), "limit is from 1 to 50"),
        ("history", json!({ "limit": -1 }), "invalid value"),
        ("history", json!({ "before": "yesterday" }), "RFC 3339"),
        ("ask_agent", json!({ "name": "a b", "text": "x" }), "is not a name"),
    ] {
        let error = read(tool, arguments.clone()).expect_err("wrong").to_string();
        assert!(error.contains(why), "{arguments}: {error}");
        assert!(error.contains("call it again with an object of this schema"), "it says what to try: {error}");
    }
}

#[test]
fn progress_is_told_at_most_every_two_seconds() {
    assert_eq!(progress_wait(None, 0), Ok(()));
    assert_eq!(progress_wait(Some(1_000), 1_001), Err(CallError::TooSoon { secs: 2 }));
    assert_eq!(progress_wait(Some(1_000), 2_999), Err(CallError::TooSoon { secs: 1 }));
    assert_eq!(progress_wait(Some(1_000), 3_000), Ok(()));
}

fn keys(n: u8) -> Keypair {
    Keypair::from_seckey_slice(SECP256K1, &[n; 32]).expect("a secret")
}

fn key(n: u8) -> PubKey {
    PubKey(keys(n).x_only_public_key().0.serialize())
}

/// A profile of `agent` with an attestation of `owner`.
fn profile(agent: u8, owner: u8, at: Timestamp, content: &str) -> RawEvent {
    let tag = attest(&keys(owner), &key(agent), &Conditions::default(), &[0; 32]);
    Draft::new(Kind::PROFILE, at, content).tag(tag).sign(&keys(agent), &[0; 32]).raw().clone()
}

#[test]
fn agents_are_those_that_the_owner_signed_for_by_their_newest_word() {
    let (owner, me) = (1, 2);
    let found = [
        profile(3, owner, 5, r#"{"name":"Scout","about":"old"}"#),
        profile(3, owner, 9, r#"{"name":"Scout","about":"looks\u001b[2J around"}"#),
        profile(4, 9, 5, r#"{"name":"scout","about":"of somebody else"}"#),
        profile(5, owner, 5, r#"{"name":"not a name"}"#),
        profile(6, owner, 5, r#"{"name":"clerk"}"#),
        profile(me, owner, 5, r#"{"name":"me"}"#),
        Draft::new(Kind::PROFILE, 5, r#"{"name":"nobody"}"#).sign(&keys(7), &[0; 32]).raw().clone(),
    ];
    let siblings = page::siblings(&found, key(owner), key(me));
    let names: Vec<&str> = siblings.iter().map(|sibling| sibling.name.as_str()).collect();
    assert_eq!(names, ["clerk", "scout"]);
    let scout = page::find(&siblings, &"scout".parse().expect("a name")).expect("one");
    assert_eq!(scout.key, key(3));
    let error = page::find(&siblings, &"scot".parse().expect("a name")).expect_err("nobody").to_string();
    assert_eq!(error, "your owner has no other agent named scot; there are: clerk, scout");

    let lease = |at, expires: &str| {
        let draft = Draft::new(Kind::LEASE_STATE, at, "").tag(["d", &format!("prompter:{}", key(3))]);
        draft.tag(["expires", expires]).sign(&keys(8), &[0; 32]).raw().clone()
    };
    let list = page::list(&siblings, Some(&[lease(1, "9"), lease(2, "20")]), 10);
    let rows: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&rows[0]["at_work"], &rows[1]["at_work"]), (&json!("no"), &json!("yes")));
    assert_eq!(rows[1]["about"], "looks␛[2J around", "nothing in it moves a screen");
    assert!(rows[1]["npub"].as_str().expect("a key").starts_with("npub1"));
    assert!(page::list(&siblings, None, 10).contains(r#""at_work":"unknown""#), "unknown is called unknown");
    assert!(page::list(&siblings, Some(&[lease(1, "9"), lease(2, "20")]), 20).contains(r#""at_work":"no""#));
    assert!(page::leases(&[], key(8)).is_empty(), "no filter that asks for everything");
}

#[test]
fn a_name_of_two_agents_is_nobodys() {
    let name: AgentName = "twin".parse().expect("a name");
    let twin = |n| Sibling { key: key(n), name: name.clone(), about: String::new() };
    assert_eq!(page::find(&[twin(3), twin(4)], &name), Err(CallError::Ambiguous { name: name.clone() }));
}

fn note(n: u8, at: Timestamp) -> RawEvent {
    let root = "03".repeat(32);
    Draft::new(Kind::NOTE, at, n.to_string()).tag(["e", &root, "", "root"]).sign(&keys(n), &[0; 32]).raw().clone()
}

#[test]
fn a_page_is_the_newest_before_a_time_and_never_later_than_the_message() {
    let message = note(9, 50);
    let said: Vec<RawEvent> = (1..=6).map(|n| note(n, u64::from(n) * 10)).collect();
    let page = |before, limit| -> Vec<String> {
        let page = page::choose(&message, said.clone(), before, limit);
        page.into_iter().map(|event| event.content).collect()
    };
    assert_eq!(page(None, 2), ["4", "5"]);
    assert_eq!(page(Some(40), 2), ["3", "4"], "what is of that second comes again, so that nothing is skipped");
    assert_eq!(page(Some(99), 50).len(), 5, "what came after the message is not before it");
    let until = |before| page::filters(&message, before).iter().filter_map(|filter| filter.until).max();
    assert_eq!((until(None), until(Some(40)), until(Some(99))), (Some(50), Some(40), Some(50)));
    assert!(page::filters(&message, Some(40)).iter().any(|filter| filter.ids.is_some()), "and the one that began it");
}

proptest! {
    #[test]
    fn no_argument_breaks_a_call(tool in "(progress|history|agents|ask_agent|x)", text in "\\PC*", n in any::<i64>()) {
        for arguments in [json!({ "text": text, "name": text }), json!({ "limit": n, "before": text }), json!(text)] {
            if let Ok(Call::Progress { text } | Call::AskAgent { text, .. }) = read(&tool, arguments) {
                prop_assert!(!text.trim().is_empty() && text.len() <= limits::TOOL_TEXT_BYTES_MAX);
            }
        }
    }
}

/// What a relay with these gives: the newest first, and no more than it was asked for.
fn answer(all: &[RawEvent], filters: &[skep_proto::Filter]) -> Vec<RawEvent> {
    let matching = |filter: &skep_proto::Filter| -> Vec<RawEvent> {
        let by_author =
            |event: &&RawEvent| filter.authors.as_ref().is_none_or(|authors| authors.contains(&event.pubkey));
        let in_time = |event: &&RawEvent| filter.until.is_none_or(|until| event.created_at <= until);
        let mut found: Vec<RawEvent> = all.iter().filter(by_author).filter(in_time).cloned().collect();
        found.sort_by_key(|event| std::cmp::Reverse(event.created_at));
        found.truncate(filter.limit.map_or(usize::MAX, |limit| limit as usize));
        found
    };
    filters.iter().flat_map(matching).collect()
}

#[test]
fn profiles_of_strangers_hide_no_agent() {
    let owner = 1;
    let stranger = |at| Draft::new(Kind::PROFILE, at, "{}").sign(&keys(9), &[0; 32]).raw().clone();
    // More than a page of one second, and half a page of one that is earlier.
    let mut all: Vec<RawEvent> = (0..700_u64).map(|n| stranger(if n < 250 { 900 } else { 899 - n / 2 })).collect();
    all.push(profile(3, owner, 5, r#"{"name":"scout"}"#));
    let search = |known: Vec<PubKey>, all: &[RawEvent]| {
        let (mut search, mut asked) = (page::Search::new(key(owner), key(2), known), 1);
        while search.take(&answer(all, &search.ask())) {
            asked += 1;
        }
        let names: Vec<String> = search.end().iter().map(|sibling| sibling.name.to_string()).collect();
        (names, asked)
    };
    assert_eq!(
        page::siblings(&answer(&all, &page::Search::new(key(owner), key(2), vec![]).ask()), key(owner), key(2)),
        []
    );
    let (names, asked) = search(vec![], &all);
    assert_eq!(names, ["scout"]);
    assert!((4..=limits::PROFILES_PAGES_MAX).contains(&asked), "{asked}");
    // However many there are, looking ends; who was found before is found again.
    all.extend((0..5_000).map(|n| stranger(1_000 + n)));
    assert_eq!(search(vec![], &all), (vec![], limits::PROFILES_PAGES_MAX));
    assert_eq!(search(vec![key(3)], &all), (vec!["scout".to_owned()], limits::PROFILES_PAGES_MAX + 1));
    assert_eq!(search(vec![], &all[..10]).1, 1, "a relay with few is asked once");
}
