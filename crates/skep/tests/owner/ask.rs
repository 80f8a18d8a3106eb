//! `skep ask`, `skep say`, `skep watch`.

use std::io::{Read, Write};

use serde_json::Value;
use skep_proto::{Filter, Kind};

use crate::hive::{Hive, demo, eventually, pubkey, script};

#[test]
fn an_answer_goes_to_stdout_and_how_it_came_about_to_stderr() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    let ran = hive.run(&["ask", "@scout", "hello there"]).succeeds();
    assert_eq!(ran.stdout, "Hello! I am Skep's demo agent. You said: hello there\n");
    assert!(ran.stderr.contains("taken by") && ran.stderr.contains("👀 @scout reads it"), "{}", ran.stderr);
    let ran = hive.pipe(&["ask", "scout", "--quiet"], "from\nstdin\n").succeeds();
    assert_eq!(
        (ran.stdout.lines().last(), ran.stderr.as_str()),
        (Some("Hello! I am Skep's demo agent. You said: stdin"), "")
    );
}

#[test]
fn in_json_each_step_is_one_value_a_line() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    let steps = hive.run(&["ask", "@scout", "hello there", "--json"]).succeeds().json();
    let types: Vec<&str> = steps.iter().map(|step| step["type"].as_str().unwrap()).collect();
    assert_eq!((types[0], types.last()), ("sent", Some(&"reply")), "{types:?}");
    assert!(types.contains(&"reading"), "{types:?}");
    let reply = steps.last().unwrap();
    assert_eq!((&reply["name"], &reply["agent"]), (&"@scout".into(), &pubkey("scout").to_hex().into()));
    assert!(reply["text"].as_str().unwrap().ends_with("You said: hello there"));
    assert_eq!(reply["events"].as_array().unwrap().len(), 1);
}

#[test]
fn live_text_and_tool_calls_come_before_the_answer() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    let mut ask = hive.start(&["ask", "@scout", "write live.txt"]);
    ask.wait_for("asks for a permission");
    ask.wait_for("⚙ Write live.txt");
    hive.run(&["approve", "--all"]).succeeds();
    let ran = ask.finish().succeeds();
    assert_eq!(ran.stdout, "I wrote live.txt.\n");
    assert!(ran.stderr.contains("skep approve "), "without a terminal it says how to answer: {}", ran.stderr);
}

#[test]
fn an_answer_of_many_parts_is_printed_in_full() {
    let text = "for i in $(seq 1 20000); do echo line $i of many; done";
    let mut hive = Hive::new(&[script("scout", &format!("cat >/dev/null; {text}"))]);
    hive.run_agents("home");
    let ran = hive.run(&["ask", "@scout", "go"]).succeeds();
    let expected: String = (1..=20_000).map(|i| format!("line {i} of many\n")).collect();
    assert!(expected.len() > 5 * 65_536 && ran.stdout == expected, "{} bytes", ran.stdout.len());
}

#[test]
fn several_agents_are_asked_at_once_and_a_name_from_a_profile_is_known() {
    let mut hive =
        Hive::new(&[script("scout", "cat >/dev/null; echo one"), script("critic", "cat >/dev/null; echo two")]);
    hive.run_agents("home");
    let ran = hive.run(&["ask", "@scout", "@critic", "what do you say?"]).succeeds();
    let mut lines: Vec<&str> = ran.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["one", "two", "── @critic", "── @scout"]);
    // From a home that knows of no agents: by the profile that its owner signed for.
    let profile = r#"{"name":"helper"}"#;
    let auth = format!("[{}]", crate::hive::consent("scout").map(|part| format!("{part:?}")).join(","));
    let args = ["event", "publish", "--kind", "0", "--content", profile, "--key", "scout", "--tag", &auth, "--relay"];
    hive.run(&[&args[..], &[&hive.url()]].concat()).succeeds();
    let config = hive.path("empty.toml");
    std::fs::write(&config, "").unwrap();
    let (url, config) = (hive.url(), config.to_str().unwrap().to_owned());
    let elsewhere = ["--config", &config, "--relay", &url];
    let ran = hive.run(&[&["ask", "@helper", "and you?"], &elsewhere[..]].concat()).succeeds();
    assert_eq!(ran.stdout, "one\n");
    hive.run(&[&["ask", "@helpre", "and you?"], &elsewhere[..]].concat()).fails(
        3,
        "no agent is named \"helpre\"",
        "did you mean @helper?",
    );
}

#[test]
fn the_answer_arrives_through_a_relay_that_is_killed_meanwhile() {
    let mut hive =
        Hive::new(&[script("scout", "cat >/dev/null; until [ -e go ]; do sleep 0.1; done; echo here it is")]);
    hive.run_agents("home");
    let mut ask = hive.start(&["ask", "@scout", "take your time"]);
    ask.wait_for("👀");
    hive.kill_relay();
    ask.wait_for("connection lost");
    std::fs::write(hive.workdir("scout").join("go"), "").unwrap();
    hive.start_relay();
    assert_eq!(ask.finish().succeeds().stdout, "here it is\n");
}

#[test]
fn each_way_not_to_be_answered_has_its_line_and_its_code() {
    let mut hive = Hive::new(&[demo("scout"), demo("critic")]);
    hive.run(&["ask", "@scuot", "x"]).fails(3, "no agent is named \"scuot\"", "did you mean @scout?");
    hive.run(&["ask", "@scout", " "]).fails(3, "the text is empty", "skep ask");
    hive.run(&["ask"]).fails(2, "required", "usage");
    hive.run(&["ask", "@scout", "x", "--key", "nobody"]).fails(3, "no key is named nobody", "skep key");
    hive.run(&["ask", "@scout", "x", "--relay", "ws://127.0.0.1:1"]).fails(4, "cannot reach", "skep relay");
    hive.run(&["ask", "@scout", "x", "--timeout", "2s"]).fails(7, "@scout gave no sign within 2s", "skep status");
    hive.run_agents("home");
    hive.run(&["ask", "@critic", "hello"]).succeeds();
    hive.run(&["ask", "@scout", "fail", "--timeout", "5s"]).fails(
        7,
        "it last said: the demo was asked to fail",
        "skep watch",
    );
    hive.run(&["ask", "@critic", "wait", "--timeout", "3s"]).fails(7, "@critic did not answer within 3s", "skep watch");
    let by_stranger = ["ask", "@critic", "hello", "--key", "stranger", "--timeout", "2s"];
    hive.run(&by_stranger).fails(7, "gave no sign", "listen to you");
}

#[test]
fn an_answer_that_the_relay_refuses_is_told_as_given_up() {
    // Parts of a long answer are 64 KiB.
    let small = "[relay.limits]\nevent_bytes = 32768\n";
    let long = |bytes: u32| format!("cat >/dev/null; head -c {bytes} /dev/zero | tr '\\0' x");
    let mut hive = Hive::with(small, &[script("scout", &long(50_000)), script("critic", &long(70_000))]);
    hive.run_agents("home");
    hive.run(&["ask", "@scout", "go"]).fails(
        9,
        "@scout gave up: invalid: the event is larger",
        "skep agent retry scout",
    );
    // Of two parts the last one is short.
    let ran = hive.run(&["ask", "@critic", "go"]);
    ran.fails(1, "the answer of @critic is not whole: 1 of its 2 parts", "as long as its parts");
    assert_eq!(ran.stdout.trim_end().len(), 70_000 - 65_536);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_is_published_as_it_is_said() {
    let hive = Hive::new(&[demo("scout")]);
    let id = hive.run(&["say", "@scout", "hello"]).succeeds().stdout;
    let again = hive.run(&["say", "@scout", "hello"]).succeeds().stdout;
    assert_ne!(id, again, "what is said twice in one second is said twice");
    let json = hive.run(&["say", "@scout", "in a group", "--channel", "team", "--json"]).succeeds().json();
    assert_eq!(json[0]["type"], "sent");
    let mut client = hive.client("owner").await;
    let found = client.query(vec![Filter { authors: Some(vec![pubkey("owner")]), ..Filter::new() }]).await.unwrap();
    let by_id = |id: &str| found.iter().find(|event| event.id.to_hex() == id).unwrap();
    let (note, chat) = (by_id(id.trim()), by_id(json[0]["id"].as_str().unwrap()));
    assert_eq!((note.kind, note.content.as_str()), (Kind::NOTE, "hello"));
    assert_eq!((chat.kind, chat.tags.single("h")), (Kind::CHAT, Some("team")));
    assert_eq!(chat.tags.single("p"), Some(pubkey("scout").to_hex().as_str()));
    hive.run(&["say", "@nobody", "hello"]).fails(3, "no agent is named \"nobody\"", "there are: @scout");
}

#[test]
fn a_watcher_sees_turns_tools_text_and_who_leads() {
    let mut hive = Hive::new(&[demo("scout")]);
    let mut people = hive.start(&["watch", "@scout"]);
    let mut programs = hive.start(&["watch", "--json"]);
    let mut raw = hive.start(&["watch", "--raw", "--since", "5m"]);
    for watch in [&mut people, &mut programs, &mut raw] {
        watch.wait_for("watching");
    }
    hive.run_agents("home");
    people.wait_for("leads");
    hive.run(&["ask", "@scout", "hello there"]).succeeds();
    for text in ["▶ turn begins", "│ Hello! I am Skep's demo agent. You said: hello there", "■ turn ends"] {
        people.wait_for(text);
    }
    programs.wait_for("turn_completed");
    raw.wait_for("agent_message_chunk");
    assert!(!people.stop().contains("missing"), "nothing was lost");
    let items: Vec<Value> = programs.stop().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seqs: Vec<u64> = items.iter().map(|item| item["seq"].as_u64().unwrap()).collect();
    assert!(seqs.is_sorted() && items.iter().all(|item| item["name"] == "@scout"));
    assert!(items.iter().all(|item| item["instanceId"] == items[0]["instanceId"]));
}

#[test]
fn frames_of_an_agent_that_is_not_yours_are_not_shown() {
    let hive = Hive::new(&[demo("scout")]);
    let mut watch = hive.start(&["watch", "@scout", "--key", "other"]);
    watch.wait_for("watching");
    let mut hive = hive;
    hive.run_agents("home");
    hive.run(&["ask", "@scout", "hello"]).succeeds();
    assert_eq!(watch.stop(), "");
}

#[test]
fn an_idle_agent_has_an_empty_inbox() {
    let mut hive = Hive::new(&[demo("scout")]);
    let mut watch = hive.start(&["watch"]);
    watch.wait_for("watching");
    hive.run_agents("home");
    // Its lease was granted and told, renewed, and told again.
    watch.wait_for("leads");
    hive.run(&["ask", "@scout", "hello"]).succeeds();
    watch.wait_for("turn ends");
    assert!(!watch.stop().contains("refused"), "the relay's word on a lease is no message");
}

#[test]
fn the_last_key_of_a_home_is_the_owner() {
    let hive = Hive::new(&[demo("scout")]);
    let keys = hive.path("home/keys");
    std::fs::remove_file(keys.join("owner.key")).unwrap();
    hive.run(&["say", "@scout", "x"]).fails(3, "there is no key named owner or default", "skep key generate owner");
    std::fs::rename(keys.join("other.key"), keys.join("default.key")).unwrap();
    hive.run(&["say", "@scout", "x"]).succeeds();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_message_is_asked_answered_and_decided_without_a_word_in_clear() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    let ran = hive.run(&["ask", "@scout", "--dm", "hello in private"]).succeeds();
    assert_eq!(ran.stdout, "Hello! I am Skep's demo agent. You said: hello in private\n");
    let mut ask = hive.start(&["ask", "@scout", "--dm", "write private.txt"]);
    ask.wait_for("asks for a permission");
    let card = hive.cards(1).remove(0);
    assert!(card["channel"].as_str().unwrap().starts_with("dm:"), "{card}");
    hive.run(&["approve", card["nonce"].as_str().unwrap()]).succeeds();
    assert_eq!(ask.finish().succeeds().stdout, "I wrote private.txt.\n");
    hive.run(&["ask", "@scout", "@critic", "--dm", "x"]).fails(3, "no agent is named \"critic\"", "@scout");
    let owner = pubkey("owner").to_hex();
    hive.run(&["say", "@scout", &owner, "--dm", "x"]).fails(2, "a direct message is for one agent", "one by one");
    let mut anyone = hive.client("owner").await;
    let found = anyone.query(vec![Filter::new()]).await.unwrap();
    let wraps = found.iter().filter(|event| event.kind == Kind::GIFT_WRAP).count();
    assert_eq!(wraps, 5, "what the owner may read: two copies, a card, two answers");
    for event in &found {
        let json = event.raw().to_json();
        assert!(!json.contains("private") && !json.contains("dm:"), "{json}");
        assert!(![Kind::NOTE, Kind::REACTION, Kind::PRIVATE_MESSAGE].contains(&event.kind), "{json}");
    }
}

/// Runs a command whose stdin and stderr are a terminal; gives it and the other end of the terminal.
fn on_a_terminal(hive: &Hive, args: &[&str]) -> (std::process::Child, std::fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    let theirs = std::fs::File::options().read(true).write(true).open(name).unwrap();
    let stdin = theirs.try_clone().unwrap();
    let child = hive.command(args).stdin(stdin).stderr(theirs).spawn().unwrap();
    (child, ours.into())
}

/// Reads what a terminal shows, up to a text.
fn shown_until(terminal: &mut std::fs::File, text: &str) -> String {
    let mut shown = Vec::new();
    while !String::from_utf8_lossy(&shown).contains(text) {
        let mut bytes = [0; 1024];
        // The other end is closed when the command has ended.
        let count = terminal.read(&mut bytes).unwrap_or(0);
        assert!(count > 0, "no {text:?} in:\n{}", String::from_utf8_lossy(&shown));
        shown.extend_from_slice(&bytes[..count]);
    }
    String::from_utf8_lossy(&shown).into_owned()
}

#[test]
fn on_a_terminal_a_permission_is_asked_for_and_answered() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    for (typed, again, answer) in
        [("y\n", false, "I wrote t.txt."), ("maybe\nno\n", true, "You said no: I did not write t.txt.")]
    {
        let (child, mut terminal) = on_a_terminal(&hive, &["ask", "@scout", "write t.txt"]);
        let shown = shown_until(&mut terminal, "allow? [y/n]");
        assert!(shown.contains("Write t.txt") && shown.contains("\u{1b}[2m"), "dim: {shown}");
        terminal.write_all(typed.as_bytes()).unwrap();
        if again {
            shown_until(&mut terminal, "y allows it, n rejects it");
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), answer);
    }
    // Answered elsewhere while it waits for a word.
    let (child, mut terminal) = on_a_terminal(&hive, &["ask", "@scout", "write u.txt"]);
    shown_until(&mut terminal, "allow? [y/n]");
    hive.run(&["approve", "--all"]).succeeds();
    shown_until(&mut terminal, "it was answered");
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), "I wrote u.txt.\n");
}

#[test]
fn text_of_others_cannot_steer_the_terminal() {
    let hostile = "cat >/dev/null; printf 'a\\033[2Jb\\033]0;owned\\007\\nnext line'";
    let mut hive = Hive::new(&[script("scout", hostile)]);
    hive.run_agents("home");
    let (mut child, mut terminal) = on_a_terminal(&hive, &["ask", "@scout", "say it"]);
    let shown = shown_until(&mut terminal, "reads it");
    assert!(!shown.contains("\u{1b}[2J"), "{shown:?}");
    child.wait().unwrap();
    // To a file it goes as it is: what reads it decides.
    assert!(hive.run(&["ask", "@scout", "say it"]).succeeds().stdout.contains("a\u{1b}[2Jb"));
    let json = hive.run(&["ask", "@scout", "say it", "--json"]).succeeds().stdout;
    assert!(!json.contains('\u{1b}') && json.contains("\\u001b[2J"), "{json}");
}

#[test]
fn what_was_told_while_the_relay_was_away_is_a_gap_that_a_watcher_sees() {
    let mut hive = Hive::new(&[demo("scout")]);
    let mut watch = hive.start(&["watch"]);
    watch.wait_for("watching");
    hive.run_agents("home");
    watch.wait_for("leads");
    hive.kill_relay();
    watch.wait_for("connection lost");
    // Longer than between two words of an instance on whether it leads.
    std::thread::sleep(std::time::Duration::from_secs(7));
    hive.start_relay();
    watch.wait_for("items are missing here");
    hive.run(&["ask", "@scout", "hello"]).succeeds();
    watch.wait_for("turn ends");
}

#[test]
fn an_owner_with_agents_on_several_relays_sees_all_of_them() {
    let mut elsewhere = Hive::new(&[]);
    let critic = format!("{}relays = [{:?}]\n", demo("critic"), elsewhere.url());
    let mut hive = Hive::new(&[demo("scout"), critic]);
    let mut watch = hive.start(&["watch"]);
    watch.wait_for("watching");
    hive.run_agents("home");
    let together = hive.run(&["ask", "@scout", "@critic", "hello"]);
    together.fails(3, "@scout and @critic have no relay in common", "--relay");
    let asks = ["scout", "critic"].map(|name| hive.start(&["ask", name, &format!("write {name}.txt")]));
    assert_eq!(hive.cards(2).len(), 2, "one on each");
    hive.run(&["approve", "--all"]).succeeds();
    for (ask, name) in asks.into_iter().zip(["scout", "critic"]) {
        assert_eq!(ask.finish().succeeds().stdout, format!("I wrote {name}.txt.\n"));
        watch.wait_for(&format!("@{name}  "));
    }
    let rows = || hive.run(&["usage", "--json"]).succeeds().json();
    let all = eventually("both bills", || Some(rows()).filter(|rows| rows.len() == 3));
    assert_eq!((&all[0]["key"], &all[1]["key"]), (&"critic".into(), &"scout".into()));
    elsewhere.kill_relay();
    let ran = hive.run(&["usage"]).succeeds();
    assert!(ran.stderr.contains(" is left out: ") && ran.stdout.contains("scout"), "{}", ran.stderr);
    assert!(!ran.stdout.contains("critic"));
}

#[test]
fn questions_of_several_agents_are_asked_one_after_the_other() {
    let mut hive = Hive::new(&[demo("scout"), demo("critic")]);
    hive.run_agents("home");
    let (child, mut terminal) = on_a_terminal(&hive, &["ask", "@scout", "@critic", "write both.txt"]);
    hive.cards(2);
    let first = shown_until(&mut terminal, "allow? [y/n]");
    terminal.write_all(b"y\n").unwrap();
    let second = shown_until(&mut terminal, "allow? [y/n]");
    terminal.write_all(b"n\n").unwrap();
    let asks = |shown: &str, name: &str| shown.contains(&format!("{name} asks for a permission"));
    assert!(asks(&first, "@scout") != asks(&second, "@scout"), "{first}\n{second}");
    let stdout = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(stdout.contains("I wrote both.txt.") && stdout.contains("You said no"), "{stdout}");
}
