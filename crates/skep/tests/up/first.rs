//! The first start, from nothing; and the second.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use super::owner::Owner;
use super::place::{Place, processes_of, until};

/// Every file of a directory, with its content.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read =
        |entry: std::fs::DirEntry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    std::fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap())).collect()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn from_nothing_there_is_an_owner_an_agent_that_answers_and_a_configuration_and_the_next_start_keeps_them() {
    let place = Place::new();
    let up = place.spawn(&["up"]);
    let said = up.until(|line| line.starts_with("Ctrl-C")).join("\n");
    for wanted in ["Skep 0.", &place.url(), "new: this is you", "scout", "built-in demo", "ready", "skep ask @scout"] {
        assert!(said.contains(wanted), "{wanted:?} is not in\n{said}");
    }
    assert!(said.contains("npm install -g opencode-ai"), "how to get a real agent is not in\n{said}");
    assert!(!said.contains('\u{1b}'), "no colours where there is no terminal");
    for file in ["keys/owner.key", "keys/scout.key", "config.toml"] {
        assert_eq!(mode(&place.home().join(file)), 0o600, "{file}");
    }
    place.until_leads("scout");
    let mut owner = Owner::of(&place);
    let asked = owner.say("scout", "hello");
    assert!(owner.reply("scout", &asked).content.ends_with("You said: hello"));
    drop(owner);
    let (config, keys) = (std::fs::read(place.config()).unwrap(), files(&place.home().join("keys")));
    assert_eq!(up.stop(Signal::TERM), Some(0));
    assert_eq!(processes_of(place.dir()), Vec::<String>::new(), "nothing is left running");

    let up = place.up();
    assert_eq!(std::fs::read(place.config()).unwrap(), config);
    assert_eq!(files(&place.home().join("keys")), keys);
    place.until_leads("scout");
    let mut owner = Owner::of(&place);
    assert_eq!(owner.replies("scout", &asked).len(), 1, "what was answered is not answered again");
    let again = owner.say("scout", "and again");
    owner.reply("scout", &again);
    assert_eq!(up.stderr().matches("first start").count(), 1);
    assert_eq!(up.stop(Signal::INT), Some(0));
}

#[test]
fn a_key_named_default_is_the_owner_and_stays_as_it_is() {
    let place = Place::new();
    place.done(&["key", "generate"]);
    let before = files(&place.home().join("keys"));
    let up = place.up();
    let after = files(&place.home().join("keys"));
    assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)));
    assert!(!after.contains_key("owner.key"), "one owner is enough");
    place.until_leads("scout");
    let mut owner = Owner::with(&place, "default");
    let asked = owner.say("scout", "hello");
    owner.reply("scout", &asked);
    drop(up);
}

#[test]
fn each_program_that_is_installed_is_an_agent_and_one_that_cannot_run_stops_nobody() {
    let place = Place::new();
    // It says its version, and speaks ACP as the real one does.
    let demo = format!("exec '{}' agent demo", crate::binary::path());
    place.install("opencode", &format!("if [ \"$1\" = --version ]; then echo 1.18.33; else {demo}; fi"));
    place.install("codex-acp", "read line");
    let up = place.spawn(&["up"]);
    let said = up.until(|line| line.starts_with("Ctrl-C")).join("\n");
    assert!(said.contains("OpenCode 1.18.33") && said.contains("Codex"), "{said}");
    assert!(!said.contains("npm install"), "who has agents need not be told how to get them: {said}");
    let config = std::fs::read_to_string(place.config()).unwrap();
    assert!(config.contains("preset = \"opencode\"") && config.contains("preset = \"codex\""), "{config}");
    place.until_leads("opencode");
    let mut owner = Owner::of(&place);
    let asked = owner.say("opencode", "hello");
    owner.reply("opencode", &asked);
    drop((owner, up));
    let said = place.spawn(&["up"]).until(|line| line.starts_with("Ctrl-C")).join("\n");
    assert!(said.contains("OpenCode 1.18.33"), "versions are told at each start: {said}");

    let place = Place::new();
    place.done(&["agent", "new", "works", "--preset", "demo"]);
    place.done(&["agent", "new", "broken", "--command", "no-such-program"]);
    let up = place.up();
    place.until_leads("works");
    let broken = place.agent("broken");
    assert_eq!(broken["state"], "failed");
    assert!(broken["reason"].as_str().unwrap().contains("command: is not a program in PATH"), "{broken}");
    let mut owner = Owner::of(&place);
    let asked = owner.say("works", "hello");
    owner.reply("works", &asked);
    drop(up);
}

#[test]
fn programs_get_one_line_of_json_and_the_second_signal_does_not_wait() {
    let place = Place::new();
    let mut up = place.spawn(&["up", "--json"]);
    let line: Value = serde_json::from_str(&up.until(|_| true)[0]).unwrap();
    assert_eq!(line["status"]["relay"]["url"], place.url());
    assert_eq!((line["made"]["owner"].as_str(), &line["made"]["agents"][0]), (Some("owner"), &"scout".into()));
    assert_eq!(line["status"]["pid"], up.pid());
    place.until_leads("scout");
    // A turn that does not end by itself makes the first signal wait for it.
    let mut owner = Owner::of(&place);
    owner.say("scout", "wait");
    place.until_agent("scout", |agent| agent["turns"].as_array().is_some_and(|turns| !turns.is_empty()));
    up.signal(Signal::TERM);
    until(|| match place.home().join("run").join(format!("{}.sock", up.pid())).exists() {
        true => Err("it has not begun to stop"),
        false => Ok(()),
    });
    if up.child.try_wait().unwrap().is_none() {
        up.signal(Signal::TERM);
    }
    let code = until(|| up.child.try_wait().unwrap().ok_or("it runs on")).code();
    // It may have been done before the second came.
    assert!(matches!(code, Some(0 | 143)), "{code:?}");
    until(|| match processes_of(place.dir()).as_slice() {
        [] => Ok(()),
        left => Err(left.join("; ")),
    });
}
