//! Permissions: asked for on a card, answered once, by the owner, from wherever the owner is.

use std::time::Duration;

use serde_json::Value;
use skep_node::client::Options;
use skep_node::clock::unix_now;
use skep_node::owner::watch::{Item, Seen, Shown, Watch};
use skep_node::owner::{Feed, Heard, cards, open_frame};
use skep_proto::agent::control::{Control, Status, control_draft};
use skep_proto::agent::permission::CardTag;
use skep_proto::{Draft, Filter, Kind, RawEvent, seal};

use crate::hive::{Hive, PATIENCE, demo, eventually, keys, pubkey};

fn options() -> Options {
    Options { credentials: Some(keys("owner").into()), timeout: Duration::from_secs(30) }
}

fn tag(card: &Value) -> CardTag {
    let text = |name: &str| card[name].as_str().unwrap().to_owned();
    CardTag {
        nonce: text("nonce"),
        channel: text("channel"),
        turn: text("turn"),
        allow: text("allow"),
        reject: text("reject"),
        expires_at: card["expires_at"].as_u64().unwrap(),
    }
}

/// What agents tell the owner, as it comes.
struct Frames {
    feed: Feed,
    watch: Watch,
}

impl Frames {
    async fn of(hive: &Hive) -> Self {
        let filter = Filter {
            kinds: Some(vec![Kind::AGENT_FRAME]),
            tags: vec![(b'p', vec![pubkey("owner").to_hex()])],
            since: Some(unix_now() - 200),
            ..Filter::new()
        };
        Self { feed: Feed::open(&hive.url(), options(), vec![filter]).await.unwrap(), watch: Watch::default() }
    }

    /// The next items, in their order.
    async fn next(&mut self) -> Vec<Item> {
        loop {
            let heard = tokio::time::timeout(PATIENCE, self.feed.next()).await.expect("frames").unwrap();
            let events = match heard {
                Heard::Stored(events) => events,
                Heard::Event(event) => vec![*event],
                Heard::Lost { .. } | Heard::Refused(_) => continue,
            };
            let opened = events.iter().filter_map(|event| Some((event.pubkey, open_frame(&keys("owner"), event)?)));
            let seen = self.watch.take_all(opened.collect()).into_iter();
            return seen.filter_map(|seen| if let Seen::Item(item) = seen { Some(*item) } else { None }).collect();
        }
    }
}

/// A decision as the owner would send it, sealed by somebody.
fn frame(from: &str, control: &Control) -> RawEvent {
    let sealed = seal::seal(keys(from).keypair(), &pubkey("scout"), &control.to_json().unwrap(), [7; 32]).unwrap();
    keys(from).sign(control_draft(&pubkey("scout"), unix_now(), sealed)).raw().clone()
}

async fn decide(hive: &Hive, card: &CardTag, is_yes: bool) -> Status {
    cards::decide(&hive.url(), &options(), &keys("owner"), &pubkey("scout"), card, is_yes).await.unwrap()
}

#[test]
fn a_card_is_listed_allowed_and_rejected_from_the_command_line() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    assert_eq!(hive.run(&["approve"]).succeeds().stdout, "nothing is open\n");
    hive.run(&["approve", "abcd"]).fails(1, "no open request begins with \"abcd\"", "skep approve lists");
    hive.run(&["deny", "--all"]).fails(1, "nothing is open", "skep approve lists");

    let ask = hive.start(&["ask", "@scout", "write one.txt"]);
    let card = hive.cards(1).remove(0);
    let listed = hive.run(&["approve"]).succeeds().stdout;
    let nonce = card["nonce"].as_str().unwrap();
    assert!(
        listed.starts_with(&nonce[..8]) && listed.contains("@scout") && listed.contains("Write one.txt"),
        "{listed}"
    );
    assert!(listed.contains(" left\n") && listed.contains(&format!("skep approve {}", &nonce[..8])), "{listed}");
    assert!(!hive.workdir("scout").join("one.txt").exists(), "not before it is allowed");
    // What a script makes of a variable that is not set.
    hive.run(&["approve", ""]).fails(3, "\"\" is too short for a request's name", "skep approve lists");
    assert!(!hive.workdir("scout").join("one.txt").exists(), "nobody allowed it");
    let said = hive.run(&["approve", &nonce[..6]]).succeeds().stdout;
    assert_eq!(said, "allowed @scout: Write one.txt\n");
    assert_eq!(ask.finish().succeeds().stdout, "I wrote one.txt.\n");
    assert!(hive.workdir("scout").join("one.txt").exists());
    assert_eq!(hive.run(&["approve"]).succeeds().stdout, "nothing is open\n");

    let ask = hive.start(&["ask", "@scout", "write two.txt", "--json"]);
    let card = hive.cards(1).remove(0);
    let result = hive.run(&["deny", card["nonce"].as_str().unwrap(), "--json"]).succeeds().json().remove(0);
    assert_eq!((&result["status"], &result["option"]), (&"sent".into(), &"reject".into()));
    let steps = ask.finish().succeeds().json();
    assert!(steps.iter().any(|step| step["type"] == "permission" && step["nonce"] == card["nonce"]));
    assert_eq!(steps.last().unwrap()["text"], "You said no: I did not write two.txt.");
    assert!(!hive.workdir("scout").join("two.txt").exists());
}

#[test]
fn somebody_else_sees_no_cards_and_answers_none() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    let _ask = hive.start(&["ask", "@scout", "write mine.txt"]);
    let card = hive.cards(1).remove(0);
    let by_stranger = ["approve", card["nonce"].as_str().unwrap(), "--key", "stranger"];
    hive.run(&by_stranger).fails(1, "no open request", "skep approve lists");
    hive.run(&["deny", "--all"]).succeeds();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_answers_one_wins_and_both_are_told() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    for round in 0..3 {
        let name = format!("race{round}.txt");
        hive.mention("owner", "scout", &format!("write {name}")).await;
        let card = tag(&hive.cards(1)[0]);
        let (yes, no) = tokio::join!(decide(&hive, &card, true), decide(&hive, &card, false));
        let is_allowed = yes == Status::Sent;
        let expected = if is_allowed { Status::AlreadyDecided } else { Status::Sent };
        assert_eq!(no, expected, "{yes:?}");
        hive.cards(0);
        let answer = format!("{} {name}.", if is_allowed { "I wrote" } else { "I did not write" });
        eventually("the answer", || {
            let args = ["event", "query", "--author", "scout", "--kind", "1", "--json", "--relay", &hive.url()];
            hive.run(&args).succeeds().stdout.contains(&answer).then_some(())
        });
        assert_eq!(hive.workdir("scout").join(&name).exists(), is_allowed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_a_foreign_a_replayed_and_a_late_decision_do_nothing() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    hive.mention("owner", "scout", "write safe.txt").await;
    let card = tag(&hive.cards(1)[0]);
    let mut frames = Frames::of(&hive).await;

    let altered = |change: fn(&mut CardTag)| {
        let mut card = card.clone();
        change(&mut card);
        card
    };
    assert_eq!(decide(&hive, &altered(|card| card.allow = "allow_always".into()), true).await, Status::NoActiveTurn);
    assert_eq!(decide(&hive, &altered(|card| card.nonce.push('0')), true).await, Status::NoActiveTurn);
    assert_eq!(decide(&hive, &altered(|card| card.channel.push('0')), true).await, Status::NoChannel);
    let mut owner = hive.client("owner").await;
    let foreign = frame("stranger", &card.decision(true));
    let verdict = hive.client("stranger").await.publish(&foreign).await.unwrap();
    assert!(!verdict.accepted && verdict.message.starts_with("restricted:"), "{}", verdict.message);
    let mut tampered = frame("owner", &card.decision(true));
    tampered.content = frame("owner", &card.decision(false)).content.replacen('A', "B", 1);
    assert!(!owner.publish(&tampered).await.unwrap().accepted, "its id and signature do not fit");
    assert_eq!(hive.cards(1).len(), 1, "still open");

    let decision = frame("owner", &card.decision(false));
    assert!(owner.publish(&decision).await.unwrap().accepted);
    hive.cards(0);
    assert_eq!(decide(&hive, &card, true).await, Status::AlreadyDecided);
    // A relay that forgot the frame takes it again; the agent has not forgotten.
    hive.kill_relay();
    hive.start_relay();
    let mut owner = hive.client("owner").await;
    assert!(owner.publish(&decision).await.unwrap().accepted);
    eventually("the agent is back", || {
        hive.run(&["ask", "@scout", "hello", "--timeout", "20s"]).stdout.contains("hello").then_some(())
    });
    assert_eq!(decide(&hive, &card, true).await, Status::AlreadyDecided);

    let mut results = Vec::new();
    while results.iter().filter(|status| **status == Status::AlreadyDecided).count() < 2 {
        for item in frames.next().await {
            if let Shown::Control(result) = &item.shown
                && result.request_nonce.as_ref() == Some(&card.nonce)
            {
                results.push(result.status.clone());
            }
        }
    }
    use Status::{AlreadyDecided, NoActiveTurn, NoChannel, Sent};
    assert_eq!(results, [NoActiveTurn, NoChannel, Sent, AlreadyDecided, AlreadyDecided], "the replay has no result");
    assert!(!hive.workdir("scout").join("safe.txt").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reaction_answers_a_card_and_a_late_one_is_told_so() {
    let mut hive = Hive::new(&[demo("scout")]);
    hive.run_agents("home");
    hive.mention("owner", "scout", "write liked.txt").await;
    let card = hive.cards(1).remove(0);
    let react = |who: &str, sign: &str| {
        let event = card["event"].as_str().unwrap();
        let draft = Draft::new(Kind::REACTION, unix_now(), sign).tag(["e", event]);
        keys(who).sign(draft.tag(["p", &pubkey("scout").to_hex()])).raw().clone()
    };
    let mut stranger = hive.client("stranger").await;
    assert!(stranger.publish(&react("stranger", "👍")).await.unwrap().accepted, "anybody may react");
    assert_eq!(hive.cards(1).len(), 1, "and it means nothing");
    let mut owner = hive.client("owner").await;
    assert!(owner.publish(&react("owner", "👍")).await.unwrap().accepted);
    hive.cards(0);
    eventually("the file", || hive.workdir("scout").join("liked.txt").exists().then_some(()));
    assert!(owner.publish(&react("owner", "👎")).await.unwrap().accepted);
    let late = eventually("a word to who was late", || {
        let args = ["event", "query", "--author", "scout", "--kind", "1", "--json", "--relay", &hive.url()];
        let found = hive.run(&args).succeeds().json();
        found.into_iter().find(|event| event["content"].as_str().unwrap().starts_with("Too late"))
    });
    let to: Vec<&Value> = late["tags"].as_array().unwrap().iter().filter(|tag| tag[0] == "p").collect();
    assert_eq!((to.len(), &to[0][1]), (1, &pubkey("owner").to_hex().into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_turn_that_the_owner_began_may_raise_a_card() {
    let siblings = format!("{}respond_to = \"siblings\"\n", demo("scout"));
    let mut hive = Hive::new(&[siblings]);
    hive.run_agents("home");
    let asked = hive.mention("critic", "scout", "write theirs.txt").await;
    let reply = eventually("the answer", || {
        let args = ["event", "query", "--author", "scout", "--kind", "1", "--json", "--relay", &hive.url()];
        let found = hive.run(&args).succeeds().json();
        found.into_iter().find(|event| event["tags"].to_string().contains(&asked.id.to_hex()))
    });
    assert_eq!(reply["content"], "You said no: I did not write theirs.txt.");
    assert_eq!(hive.run(&["approve"]).succeeds().stdout, "nothing is open\n");
    assert!(!hive.workdir("scout").join("theirs.txt").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_frame_that_asks_names_the_question_and_says_whether_it_can_be_answered() {
    let mut hive = Hive::new(&[demo("scout"), format!("{}policy = \"reject\"\n", demo("critic"))]);
    hive.run_agents("home");
    let mut frames = Frames::of(&hive).await;
    hive.mention("owner", "scout", "write asked.txt").await;
    hive.mention("owner", "critic", "write refused.txt").await;
    let nonce = hive.cards(1).remove(0)["nonce"].as_str().unwrap().to_owned();
    hive.run(&["deny", &nonce]).succeeds();

    let (mut asked, mut ended) = (Vec::new(), Vec::new());
    while asked.len() < 2 || ended.len() < 2 {
        for item in frames.next().await {
            let is_request = item.telemetry.payload.as_str().contains("session/request_permission");
            let named = item.telemetry.authorization.clone();
            assert!(is_request || named.is_none() || matches!(item.shown, Shown::Permission(_)), "{item:?}");
            match (&item.shown, named) {
                (Shown::Asks(_), named) => asked.push((item.agent, named.expect("the name of its question"))),
                (Shown::Permission(_), Some(named)) => ended.push((item.agent, named)),
                _ => assert!(!is_request, "shown once: {item:?}"),
            }
        }
    }
    for (agent, question) in &asked {
        assert_eq!((question.actionable, &question.reason), (*agent == pubkey("scout"), &None));
        let end = ended.iter().find(|(of, _)| of == agent).expect("its end");
        assert_eq!(end.1.request_nonce, question.request_nonce, "one name for the question and its end");
    }
    let of_scout = asked.iter().find(|(agent, _)| *agent == pubkey("scout")).unwrap();
    assert_eq!(of_scout.1.request_nonce, nonce, "that of the card");
}
