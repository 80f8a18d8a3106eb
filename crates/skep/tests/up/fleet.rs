//! The commands that speak to what runs: status, inbox, pause, lead, retry, new agents; and a node that is killed.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;
use skep_proto::{Filter, Kind};

use super::owner::Owner;
use super::place::{Place, Up, leads, until, write};

fn place_with(agents: &[&str]) -> Place {
    let place = Place::new();
    for name in agents {
        place.done(&["agent", "new", name, "--preset", "demo"]);
    }
    place
}

/// The state of a message, by `skep inbox`.
fn state(place: &Place, id: &str) -> Option<Value> {
    place.json(&["inbox"]).into_iter().find(|row| row["id"] == id)
}

fn until_state(place: &Place, id: &str, wanted: &str) -> Value {
    until(|| match state(place, id) {
        Some(row) if row["state"] == wanted => Ok(row),
        other => Err(format!("{other:?}")),
    })
}

#[test]
fn a_pause_holds_new_turns_back_with_its_reason_also_after_a_restart() {
    let place = place_with(&["scout", "other"]);
    let up = place.up();
    place.until_leads("scout");
    let said = place.done(&["agent", "pause", "@scout", "--reason", "over the weekend"]);
    assert!(said.starts_with("scout: paused"), "{said}");
    let mut owner = Owner::of(&place);
    let asked = owner.say("scout", "hello");
    until_state(&place, &asked.to_hex(), "queued");
    let status = place.done(&["status"]);
    assert!(status.contains("paused") && status.contains("over the weekend"), "{status}");
    assert_eq!(place.agent("other")["paused"], Value::Null, "one agent, not all");
    up.kill();
    let up = place.up();
    drop(owner);
    assert_eq!(place.agent("scout")["paused"][0]["reason"], "over the weekend");
    place.until_leads("scout");
    let mut owner = Owner::of(&place);
    assert!(owner.replies("scout", &asked).is_empty());
    let said = place.done(&["resume"]);
    assert!(said.contains("scout: still paused by its owner since"), "{said}");
    assert!(said.contains("; to lift that: skep agent resume scout"), "{said}");
    place.done(&["agent", "resume", "scout"]);
    owner.reply("scout", &asked);
    // While nothing runs it is noted for the next start.
    drop(owner);
    assert_eq!(up.stop(Signal::TERM), Some(0));
    let said = place.done(&["pause", "--reason", "a holiday"]);
    assert!(said.contains("scout: paused; it does not run") && said.contains("other: paused"), "{said}");
    assert_eq!(place.agent("other")["paused"][0]["reason"], "a holiday");
    place.done(&["agent", "new", "broken", "--command", "no-such-program"]);
    let _up = place.up();
    assert_eq!(place.agent("other")["paused"][0]["reason"], "a holiday");
    // One that still waits for the lease of the process before it is paused here only, and says so.
    place.until_leads("other");
    let said = place.done(&["pause", "--reason", "a longer one"]);
    assert!(said.contains("broken: paused; it does not run"), "{said}");
    assert_eq!(place.agent("scout")["paused"][0]["reason"], "a longer one");
    let broken = place.agent("broken");
    assert_eq!((&broken["state"], &broken["paused"][0]["by"]), (&"failed".into(), &"owner_of_all".into()), "{broken}");
    place.run(&["pause", "nobody"]).fails(3, "no agent is named \"nobody\"", "there are: ");
    place.run(&["agent", "pause"]).fails(2, "an agent's name is missing", "skep pause");
}

#[test]
fn the_inbox_says_what_became_of_each_message_while_it_runs_and_after() {
    let place = place_with(&["scout"]);
    assert_eq!(place.json(&["inbox"]), Vec::<Value>::new());
    let up = place.up();
    place.until_leads("scout");
    assert_eq!(
        place.json(&["inbox"]),
        Vec::<Value>::new(),
        "the state of its lease names the agent, and is no message"
    );
    let mut owner = Owner::of(&place);
    let answered = owner.say("scout", "hello");
    owner.reply("scout", &answered);
    // Another agent of the same owner may speak on this relay, and scout answers its owner only.
    place.done(&["agent", "new", "stranger", "--preset", "demo"]);
    until(|| {
        place
            .run(&[
                "event",
                "publish",
                "--key",
                "stranger",
                "--relay",
                &place.url(),
                "--content",
                "hi",
                "--tag",
                &format!("p={}", owner.agent("scout")),
            ])
            .code
            .filter(|code| *code == 0)
            .ok_or("refused")
    });
    let refused = until(|| {
        let rows = place.json(&["inbox", "@scout", "--state", "refused"]);
        rows.into_iter().next().ok_or("nothing was refused")
    });
    assert_eq!(refused["reason"], "this agent answers its owner only");
    assert_eq!(refused["from"], owner.agent("stranger").to_hex());
    let text = place.done(&["inbox"]);
    let id = &refused["id"].as_str().unwrap()[..8];
    assert!(text.contains(id) && text.contains(&answered.to_hex()[..8]) && text.contains("answered"), "{text}");
    // The owner may want it answered all the same.
    let said = place.done(&["agent", "retry", "scout", id]);
    assert!(said.contains("tried again"), "{said}");
    until_state(&place, refused["id"].as_str().unwrap(), "answered");
    place.run(&["agent", "retry", "scout", "ffffffff"]).fails(
        3,
        "no message of scout begins with",
        "skep inbox @scout",
    );
    place.run(&["inbox", "@nobody"]).fails(3, "there is no agent \"nobody\"", "skep agent list");
    let before = place.json(&["inbox"]);
    drop(owner);
    assert_eq!(up.stop(Signal::TERM), Some(0));
    assert_eq!(place.json(&["inbox"]), before, "the same from the records alone");
    let ran = place.run(&["status"]);
    ran.fails(1, "nothing of", "skep up");
    assert!(ran.stdout.contains("stopped"), "{}", ran.stdout);
}

#[test]
fn an_agent_is_added_to_what_runs_and_answers_at_once_and_the_file_keeps_its_comments() {
    let place = place_with(&["scout"]);
    let config = std::fs::read_to_string(place.config()).unwrap();
    write(&place.config(), &format!("# mine\n{config}# and this\n"));
    let _up = place.up();
    let new = place.json(&["agent", "new", "rita", "--preset", "demo"]);
    assert_eq!((new[0]["name"].as_str(), new[0]["started"].as_bool()), (Some("rita"), Some(true)));
    let config = std::fs::read_to_string(place.config()).unwrap();
    assert!(config.starts_with("# mine\n") && config.contains("# and this\n"), "{config}");
    place.until_leads("rita");
    let mut owner = Owner::of(&place);
    let asked = owner.say("rita", "hello");
    owner.reply("rita", &asked);
    let list = place.json(&["agent", "list"]);
    let names: Vec<&str> = list.iter().map(|agent| agent["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["rita", "scout"]);
    assert!(list.iter().all(|agent| agent["owner"] == owner.keys.pubkey().to_hex()), "{list:?}");
    place.run(&["agent", "new", "rita", "--preset", "demo"]).fails(3, "rita is configured already", "another name");
    place.run(&["agent", "new", "Rita", "--preset", "demo"]).fails(3, "is not a name", "skep agent list");
    place.run(&["agent", "new", "owner", "--preset", "demo"]).fails(3, "kept for something else", "another name");
    place.run(&["agent", "new", "x", "--preset", "nope"]).fails(3, "no preset is called \"nope\"", "claude, codex");
    place.run(&["agent", "new", "x"]).fails(2, "--preset", "usage: skep agent new");
    assert_eq!(std::fs::read_to_string(place.config()).unwrap(), config, "a refusal changes nothing");
}

#[test]
fn an_agent_whose_program_is_missing_is_told_at_once_how_to_get_it() {
    let place = place_with(&["scout"]);
    let hint = "OpenCode is not in PATH: npm install -g opencode-ai";
    let said = place.done(&["agent", "new", "early", "--preset", "opencode"]);
    assert!(said.contains("It cannot start yet") && said.contains(hint), "{said}");
    let _up = place.up();
    let said = place.done(&["agent", "new", "late", "--preset", "opencode"]);
    assert!(said.contains("It is not started") && said.contains(hint), "{said}");
    let told = place.json(&["agent", "new", "later", "--preset", "opencode"]);
    assert_eq!(told[0]["started"], false);
    assert!(told[0]["reason"].as_str().is_some_and(|reason| reason.contains(hint)), "{told:?}");
}

/// Another process with an instance of an agent: a home of its own, the same key, the same lock directory.
fn twin(place: &Place, name: &str) -> (Up, PathBuf) {
    let home = place.dir().join("twin");
    let config = std::fs::read_to_string(place.config()).unwrap();
    write(&home.join("config.toml"), &config);
    let key = format!("keys/{name}.key");
    std::fs::create_dir(home.join("keys")).unwrap();
    std::fs::copy(place.home().join(&key), home.join(&key)).unwrap();
    for dir in [home.clone(), home.join("keys")] {
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    }
    let mut command = place.command(&["agent", "run", name]);
    command.env("SKEP_HOME", &home);
    let up = place.spawn_with(command);
    up.until(|line| line.starts_with("running "));
    (up, home)
}

/// A command about the other home.
fn at(place: &Place, home: &PathBuf, args: &[&str]) -> super::place::Ran {
    let mut command = place.command(args);
    command.env("SKEP_HOME", home);
    super::place::Ran::of(command.output().unwrap())
}

#[test]
fn who_leads_is_told_a_claim_asks_nicely_and_a_steal_takes_over_in_mid_turn_and_is_billed() {
    let place = place_with(&["scout"]);
    let up = place.up();
    place.until_leads("scout");
    let (_twin, home) = twin(&place, "scout");
    let twin_agent = || -> Value {
        let status: Value = serde_json::from_str(&at(&place, &home, &["status", "--json"]).stdout).unwrap();
        status["nodes"][0]["agents"][0].clone()
    };
    until(|| match twin_agent() {
        agent if agent["standing"]["claim"]["pid"] == up.pid() && !leads(&agent) => Ok(()),
        other => Err(other.to_string()),
    });
    let text = at(&place, &home, &["status"]).stdout;
    assert!(text.contains(&format!("follows process {}", up.pid())), "{text}");
    at(&place, &home, &["agent", "claim", "scout"])
        .fails_with_one_line(1, &format!("process {} on this machine leads", up.pid()));
    assert!(place.done(&["agent", "claim", "scout"]).contains("it leads already"));
    at(&place, &home, &["agent", "pause", "scout", "--here"]).fails_with_one_line(
        1,
        &format!("paused here only: this instance follows process {} on this machine, which is not paused", up.pid()),
    );
    assert_eq!((&twin_agent()["paused"][0]["by"], &place.agent("scout")["paused"]), (&"here".into(), &Value::Null));
    let resumed = at(&place, &home, &["agent", "resume", "scout"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);

    let mut owner = Owner::of(&place);
    let asked = owner.say("scout", "count to 40");
    place.until_agent("scout", |agent| agent["turns"].as_array().is_some_and(|turns| !turns.is_empty()));
    let stolen = at(&place, &home, &["agent", "steal", "scout"]);
    assert_eq!(stolen.code, Some(0), "{}", stolen.stderr);
    assert!(stolen.stdout.contains("it leads now"), "{}", stolen.stdout);
    place.until_agent("scout", |agent| !leads(agent) && agent["turns"].as_array().is_some_and(Vec::is_empty));
    let reply = owner.reply("scout", &asked);
    assert!(reply.content.trim().ends_with("40"), "{}", reply.content);
    // Two bills: of the turn that was cancelled, and of the one that answered.
    let bills = || Filter { kinds: Some(vec![Kind::AGENT_METRIC]), ..Filter::new() };
    until(|| match owner.query(bills()).len() {
        2.. => Ok(()),
        n => Err(format!("{n} bills")),
    });
    place.run(&["agent", "claim", "nobody"]).fails(3, "there is no agent", "there are: scout");
}

#[test]
fn a_node_that_is_killed_in_mid_turn_leaves_nothing_in_the_way_and_answers_once_after_its_restart() {
    let place = place_with(&["scout"]);
    let up = place.up();
    place.until_leads("scout");
    let mut owner = Owner::of(&place);
    let asked = owner.say("scout", "count to 10");
    place.until_agent("scout", |agent| agent["turns"].as_array().is_some_and(|turns| !turns.is_empty()));
    let socket = place.home().join("run").join(format!("{}.sock", up.pid()));
    assert!(socket.exists());
    up.kill();
    drop(owner);
    place.run(&["status"]).fails(1, "nothing of", "skep up");
    assert!(!socket.exists(), "what a dead process left is cleared away");
    until_state(&place, &asked.to_hex(), "prompted");
    let _up = place.up();
    let mut owner = Owner::of(&place);
    owner.reply("scout", &asked);
    until_state(&place, &asked.to_hex(), "answered");
    assert_eq!(owner.replies("scout", &asked).len(), 1);
}

#[test]
fn on_a_relay_without_leases_the_status_says_what_is_not_guaranteed() {
    let place = place_with(&["scout"]);
    let config = std::fs::read_to_string(place.config()).unwrap();
    write(&place.config(), &format!("{config}leases = false\n"));
    let _up = place.up();
    place.until_agent("scout", leads);
    let status = place.done(&["status"]);
    assert!(status.contains("grants no leases: one answer is certain on this machine only"), "{status}");
}
