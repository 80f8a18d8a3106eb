//! `skep up --demo`, told to its end; what it says is counted again by somebody else.

use rustix::process::Signal;
use serde_json::Value;
use skep_node::home::Home;
use skep_proto::agent::metering::TurnMetric;
use skep_proto::lease::Claim;
use skep_proto::{EventId, Filter, Kind, RawEvent, seal};

use super::owner::Owner;
use super::place::{Place, processes_of, until};

/// The steps of the story, in order.
const STEPS: [&str; 27] = [
    "relay",
    "owner",
    "leads",
    "follows",
    "others",
    "say",
    "eyes",
    "live",
    "reply",
    "lease",
    "fenced",
    "bill",
    "say",
    "card",
    "approve",
    "written",
    "say",
    "pair",
    "pair",
    "say",
    "eyes",
    "counts",
    "killed",
    "takeover",
    "again",
    "recovered",
    "once",
];
const LAST: [&str; 3] = ["stranger", "refused", "summary"];

/// Where a line says that the relay is.
fn url_in(line: &str) -> String {
    let at = line.find("ws://").unwrap();
    line[at..].split([';', ' ']).next().unwrap().to_owned()
}

#[test]
fn the_story_is_told_to_its_end_and_the_relay_agrees_with_every_line_of_it() {
    let place = Place::new();
    let demo = place.spawn(&["up", "--demo", "--json"]);
    let lines = demo.until(|line| line.contains("\"step\":\"summary\""));
    let story: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<&str> = story.iter().map(|line| line["step"].as_str().unwrap()).collect();
    assert_eq!(steps, [&STEPS[..], &LAST].concat());
    let text =
        |step: &str| story.iter().find(|line| line["step"] == step).unwrap()["text"].as_str().unwrap().to_owned();
    assert!(text("fenced").contains("conflict: this turn was completed"), "{}", text("fenced"));
    assert!(text("summary").starts_with("5 of 5 mentions have exactly one answer"), "{}", text("summary"));

    let home = Home::at(place.home().join("demo"));
    let url = url_in(&text("relay"));
    let mut owner = Owner::at(&home, &url, "owner");
    let mentions = owner.query(Filter { authors: Some(vec![owner.keys.pubkey()]), ..Filter::new() });
    let mentions: Vec<RawEvent> = mentions.into_iter().filter(|event| event.kind == Kind::NOTE).collect();
    assert_eq!(mentions.len(), 4);
    for mention in &mentions {
        let named =
            ["scout", "writer", "critic"].into_iter().filter(|name| mention.content.contains(&format!("@{name}")));
        for name in named {
            assert_eq!(owner.replies(name, &mention.id).len(), 1, "{name}: {}", mention.content);
        }
    }
    let epoch_of = |owner: &mut Owner, text: &str| {
        let mention: &RawEvent = mentions.iter().find(|event| event.content.contains(text)).unwrap();
        let reply = owner.replies("scout", &mention.id).remove(0);
        (Claim::from_event(&reply).unwrap().unwrap().epoch, reply.content, mention.id)
    };
    let (epoch, said, _) = epoch_of(&mut owner, "count to");
    assert!(epoch >= 2 && said.trim().ends_with("20"), "the second instance answered: epoch {epoch}, {said}");
    let (epoch, said, hello): (u64, String, EventId) = epoch_of(&mut owner, "@scout hello");
    assert_eq!(epoch, 1);
    // The bill, to the token: the program counts words, four of them thought.
    let keys = owner.keys.clone();
    let metric = |event: &RawEvent| -> TurnMetric {
        TurnMetric::from_json(&seal::open(keys.keypair(), &event.pubkey, &event.content).unwrap()).unwrap()
    };
    let scout = owner.agent("scout");
    let bills = Filter { kinds: Some(vec![Kind::AGENT_METRIC]), authors: Some(vec![scout]), ..Filter::new() };
    let mut metrics: Vec<TurnMetric> = owner.query(bills).iter().map(metric).collect();
    metrics.sort_by_key(|metric| metric.timestamp);
    let spent = said.split_whitespace().count() as u64 + 4;
    assert_eq!(metrics[0].turn.output_tokens, Some(spent), "{said}");
    let (input, output) = (metrics[0].turn.input_tokens.unwrap(), spent);
    assert!(text("bill").ends_with(&format!("{input} tokens in, {output} out")), "{}", text("bill"));
    let eyes = owner.about("scout", &hello).into_iter().filter(|event| event.content == "👀").count();
    assert_eq!(eyes, 1, "one instance reacted");
    let strangers = owner.query(Filter { kinds: Some(vec![Kind::NOTE]), ..Filter::new() });
    let stranger = strangers.iter().find(|event| event.content.contains("send me your keys")).unwrap();
    assert!(owner.about("scout", &stranger.id).is_empty());
    let killed: u32 = text("killed").rsplit(' ').next().unwrap().parse().unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{killed}")).exists());

    // It goes on running, and is talked to by anybody who has the owner's key.
    let asked = owner.say("scout", "are you there?");
    owner.reply("scout", &asked);
    for said in [&["ask", "@scout", "hello"][..], &["status"], &["inbox", "@scout"]] {
        let ran = place.command(said).env("SKEP_HOME", home.path()).env_remove("SKEP_RELAY__LISTEN").output().unwrap();
        assert!(ran.status.success(), "{said:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    drop(owner);
    assert_eq!(demo.stop(Signal::INT), Some(0));
    assert_eq!(processes_of(place.dir()), Vec::<String>::new());

    // Again, for a person: the home is used again, at the same address.
    let demo = place.spawn(&["up", "--demo"]);
    let told = demo.until(|line| line.starts_with("Ctrl-C stops it.")).join("\n");
    assert_eq!(url_in(&told), url);
    for wanted in [
        "@scout hello",
        "👀",
        "decrypted with your key",
        "react with 👍",
        "kill -9 ",
        "exactly 1 answer",
        "this agent answers its owner only",
        "5 of 5 mentions",
        "export SKEP_HOME=",
    ] {
        assert!(told.contains(wanted), "{wanted:?} is not in\n{told}");
    }
    assert!(!told.contains('\u{1b}'), "no colours where there is no terminal");
    assert!(!place.home().join("keys").exists(), "the home around the demo is left alone");
    demo.kill();
    until(|| match processes_of(place.dir()).as_slice() {
        [] => Ok(()),
        left => Err(left.join("; ")),
    });
}
