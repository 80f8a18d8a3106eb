//! The operator's commands, on the real binary: nothing is lost, nothing doubled, and what is wrong has a name.
#![expect(clippy::unwrap_used, reason = "a test")]

#[expect(dead_code, reason = "other suites use the rest")]
mod binary;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use secp256k1::{Keypair, SECP256K1};
use serde_json::{Value, json};
use skep_proto::attestation::{Conditions, attest};
use skep_proto::{Draft, Kind, PubKey};

/// A hermetic place to run the binary in.
struct Place {
    dir: tempfile::TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = binary::in_place(binary::path(), self.dir.path(), &self.path("home"));
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn pipe(&self, args: &[&str], stdin: &str) -> Ran {
        let output = binary::pipe(self.command(args), stdin);
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.pipe(args, "")
    }

    /// Runs what must succeed, in JSON.
    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(&[args, &["--json"]].concat());
        assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.stdout, ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// Starts a relay and waits until it says that it serves.
    fn relay(&self, data: &str) -> Relay {
        let config = self.write("relay.toml", "[relay.limits]\nevents_per_second_per_pubkey = 0\n");
        self.serve(data, &config)
    }

    fn serve(&self, data: &str, config: &Path) -> Relay {
        let config = config.to_str().unwrap();
        let args = ["relay", "--listen", "127.0.0.1:0", "--data", data, "--config", config, "--json"];
        let mut child = self.command(&args).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        Relay { url: said["listening"].as_str().unwrap().to_owned(), child }
    }

    /// What a store holds, as it exports it.
    #[track_caller]
    fn export(&self, data: &str) -> String {
        let ran = self.run(&["export", "--data", data]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout
    }
}

impl Ran {
    /// One `error:` line and one `hint:` line at the end.
    #[track_caller]
    fn fails(&self, code: i32, cause: &str, hint: &str) {
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert_eq!(self.code, code, "{}", self.stderr);
        let [.., error, help] = lines[..] else { panic!("{}", self.stderr) };
        assert!(error.starts_with("error: ") && error.contains(cause), "{error} lacks {cause:?}");
        assert!(help.starts_with("hint: ") && help.contains(hint), "{help} lacks {hint:?}");
    }
}

struct Relay {
    url: String,
    child: Child,
}

impl Drop for Relay {
    fn drop(&mut self) {
        binary::end(&mut self.child);
    }
}

fn keys(seed: u8) -> Keypair {
    Keypair::from_seckey_slice(SECP256K1, &[seed; 32]).unwrap()
}

fn line(seed: u8, draft: Draft) -> String {
    format!("{}\n", draft.sign(&keys(seed), &[0; 32]).raw().to_json())
}

/// Notes by eight authors, three a second.
fn notes(range: std::ops::Range<u64>) -> String {
    range.map(|i| line((i % 8) as u8 + 1, Draft::new(Kind(1), 1_700_000_000 + i / 3, format!("note {i}")))).collect()
}

/// One event of every sort that is stored.
fn medley() -> String {
    let at = 1_700_000_000;
    let other = "ab".repeat(32);
    [
        line(1, Draft::new(Kind(0), at, "{\"name\":\"bee\"}")),
        line(1, Draft::new(Kind(1), at + 1, "control \u{7} \u{9b} \u{202e} 🐝 \\ \" \n")),
        line(2, Draft::new(Kind(1), at + 1, "same second")),
        line(1, Draft::new(Kind(4), at + 2, "c2VjcmV0?iv=eA==").tag(["p", &other])),
        line(3, Draft::new(Kind(1059), at + 3, "wrapped").tag(["p", &other])),
        line(1, Draft::new(Kind(30_023), at + 4, "long").tag(["d", ""])),
        line(1, Draft::new(Kind(30_023), at + 4, "long").tag(["d", &"x".repeat(300)])),
        line(2, Draft::new(Kind(5), at + 5, "").tag(["e", &other])),
        line(2, Draft::new(Kind(1), at + 6, "kept for long").tag(["expiration", "4102444800"])),
        line(2, Draft::new(Kind(1), at + 7, "mine only").tag(["-"])),
    ]
    .concat()
}

fn lines(text: &str) -> BTreeSet<&str> {
    text.lines().collect()
}

#[test]
fn export_and_import_are_a_round_trip() {
    let place = Place::new();
    place.write("in.jsonl", &medley());
    let first = place.json(&["import", "in.jsonl", "--data", "a"]);
    assert_eq!((first["imported"].as_u64(), first["bad"].as_u64()), (Some(10), Some(0)), "{first}");
    let told = place.json(&["export", "--data", "a", "-o", "out.jsonl"]);
    assert_eq!(told["events"], 10);
    let mode = fs::metadata(place.path("out.jsonl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "private messages may be in it");
    assert_eq!(lines(&place.read("out.jsonl")), lines(&medley()), "byte for byte, gated kinds too");
    assert_eq!(place.pipe(&["import", "--data", "b"], &place.read("out.jsonl")).code, 0);
    assert_eq!(place.export("b"), place.read("out.jsonl"), "in the same order, too");
    let again = place.json(&["import", "out.jsonl", "--data", "b"]);
    assert_eq!((again["imported"].as_u64(), again["duplicates"].as_u64()), (Some(0), Some(10)), "{again}");
    assert!(
        !fs::read_dir(place.dir.path())
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().contains("partial") })
    );
}

#[test]
fn export_takes_filters_and_counts_an_event_once() {
    let place = Place::new();
    place.write("in.jsonl", &medley());
    place.json(&["import", "in.jsonl", "--data", "a"]);
    let args = ["export", "--data", "a", "--filter", r#"{"kinds":[1]}"#, "--filter", r#"{"kinds":[1,0],"limit":2}"#];
    assert_eq!(place.run(&args).stdout.lines().count(), 4);
    place.run(&["export", "--data", "a", "--filter", "{"]).fails(3, "the filter is invalid", "JSON object");
}

#[test]
fn an_import_that_is_killed_goes_on_where_it_was() {
    const EVENTS: u64 = 30_000;
    let place = Place::new();
    place.write("in.jsonl", &notes(0..EVENTS));
    let has_journal = || {
        fs::read_dir(place.path("home/imports"))
            .is_ok_and(|dir| dir.flatten().any(|entry| entry.path().extension().is_some_and(|name| name == "json")))
    };
    // Where it was through before this test came to kill it, another one is begun.
    let data: Vec<String> = (0..10).map(|n| format!("a{n}")).collect();
    let is_killed_in_the_middle = |data: &&String| {
        // What a kill at the very end left.
        let _ = fs::remove_dir_all(place.path("home/imports"));
        let mut child = place.command(&["import", "in.jsonl", "--data", data]).spawn().unwrap();
        wait_for(|| has_journal() || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        let is_killed = child.wait().unwrap().signal() == Some(9);
        is_killed && has_journal() && (place.export(data).lines().count() as u64) < EVENTS
    };
    let data = data.iter().find(is_killed_in_the_middle).expect("one that was not through");
    let before = place.export(data).lines().count() as u64;
    assert!(0 < before, "what is in the journal is in the store");
    let rest = place.json(&["import", "in.jsonl", "--data", data, "--resume"]);
    let skipped = rest["resumed_after_line"].as_u64().unwrap();
    assert!(skipped > 0 && skipped <= before, "only what is committed is skipped: {rest}, {before} were there");
    assert_eq!(rest["imported"].as_u64(), Some(EVENTS - before), "{rest}");
    assert_eq!(rest["duplicates"].as_u64(), Some(before - skipped), "{rest}");
    let (after, input) = (place.export(data), place.read("in.jsonl"));
    assert_eq!(after.lines().count() as u64, EVENTS, "nothing is doubled");
    assert!(lines(&after) == lines(&input), "nothing is lost");
    assert_eq!(fs::read_dir(place.path("home/imports")).unwrap().count(), 0, "the journal ends with the import");
}

/// Waits for a condition that must come.
#[track_caller]
fn wait_for(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "it did not come");
        std::thread::yield_now();
    }
}

#[test]
fn bad_lines_are_reported_with_their_numbers_and_the_rest_is_taken() {
    let place = Place::new();
    let good = notes(0..3);
    let good: Vec<&str> = good.lines().collect();
    let forged = good[0].replace("note 0", "note X");
    let mut input = vec![good[0].to_owned(), "nonsense".into(), String::new(), forged, good[1].to_owned()];
    input.extend((0..20).map(|_| "{}".to_owned()));
    input.push(good[2].to_owned());
    let text = input.join("\n");
    let ran = place.pipe(&["import", "--data", "a", "--json"], &text);
    ran.fails(1, "22 bad lines, 0 events refused", "mend");
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((told["imported"].as_u64(), told["bad"].as_u64()), (Some(3), Some(22)));
    let numbers: Vec<u64> =
        told["bad_lines"].as_array().unwrap().iter().map(|line| line["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [2, 4, 6, 7, 8, 9, 10, 11, 12, 13], "the first ten");
    assert!(told["bad_lines"][1]["why"].as_str().unwrap().contains("SHA-256"));

    let ran = place.pipe(&["import", "--data", "b", "--strict"], &text);
    ran.fails(1, "line 2: not an event", "without --strict");
    assert_eq!(place.export("b").lines().count(), 1, "what is before the line is in, nothing after it");
}

#[test]
fn what_the_door_refuses_is_refused_here_with_its_reason() {
    let place = Place::new();
    let at = 1_700_000_000;
    let input = [
        line(1, Draft::new(Kind(1), at, "expired").tag(["expiration", "1700000001"])),
        line(1, Draft::new(Kind(20_001), at, "ephemeral")),
        line(1, Draft::new(Kind(22_242), at, "auth")),
        line(1, Draft::new(Kind(10_002), at, "new")),
        line(1, Draft::new(Kind(10_002), at - 1, "old")),
    ]
    .concat();
    let ran = place.pipe(&["import", "--data", "a", "--json"], &input);
    ran.fails(1, "0 bad lines, 3 events refused", "which rule");
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((told["imported"].as_u64(), told["superseded"].as_u64()), (Some(1), Some(1)), "{told}");
    assert_eq!(told["refused"].as_object().unwrap().len(), 3, "{told}");
}

#[test]
fn a_store_in_use_is_named_and_the_way_through_its_relay_works() {
    let place = Place::new();
    place.write("in.jsonl", &notes(0..1_500));
    let relay = place.relay("a");
    for args in [
        vec!["import", "in.jsonl", "--data", "a"],
        vec!["export", "--data", "a"],
        vec!["relay", "compact", "--data", "a"],
        vec!["relay", "sync", "ws://127.0.0.1:1", "--data", "a"],
    ] {
        place.run(&args).fails(6, "in use by another process", "--relay URL");
    }
    let told = place.json(&["import", "in.jsonl", "--relay", &relay.url]);
    assert_eq!(told["imported"], 1_500, "{told}");
    let again = place.json(&["import", "in.jsonl", "--relay", &relay.url]);
    assert_eq!(again["duplicates"], 1_500, "{again}");
    let paged = place.run(&["export", "--relay", &relay.url]).stdout;
    drop(relay);
    assert_eq!(paged, place.export("a"), "page by page it is the same");
}

#[test]
fn a_relay_gives_every_event_of_a_second_that_is_larger_than_a_page() {
    let place = Place::new();
    let crowd: String = (0..1_700).map(|i| line(1, Draft::new(Kind(1), 1_700_000_005, format!("{i}")))).collect();
    place.write("in.jsonl", &[notes(0..60), crowd].concat());
    assert_eq!(place.json(&["import", "in.jsonl", "--data", "a"])["imported"], 1_760);
    let relay = place.relay("a");
    let paged = place.run(&["export", "--relay", &relay.url]);
    assert_eq!(paged.code, 0, "{}", paged.stderr);
    let told = place.json(&["export", "--relay", &relay.url, "--filter", r#"{"limit":700}"#, "-o", "few.jsonl"]);
    assert_eq!(told["events"], 700);
    drop(relay);
    assert!(paged.stdout == place.export("a"), "no event lost, repeated or out of order");
    assert!(paged.stdout.starts_with(&place.read("few.jsonl")), "a limit takes the newest");
}

#[test]
fn compacting_keeps_every_event_and_gives_space_back() {
    let place = Place::new();
    let replaced: String =
        (0..4_000).map(|i| line(1, Draft::new(Kind(10_002), 1_700_000_000 + i, "x".repeat(2_000)))).collect();
    place.write("in.jsonl", &[notes(0..500), replaced].concat());
    place.json(&["import", "in.jsonl", "--data", "a"]);
    let before = place.export("a");
    let told = place.json(&["relay", "compact", "--data", "a"]);
    let bytes = |name: &str| told[name].as_u64().unwrap();
    assert!(bytes("bytes_after") < bytes("bytes_before"), "{told}");
    assert_eq!(
        (told["events"].as_u64(), fs::metadata(place.path("a/data.mdb")).unwrap().len()),
        (Some(501), bytes("bytes_after"))
    );
    assert_eq!(place.export("a"), before);
    assert!(!place.path("a/compact.tmp").exists());
    let more = place.pipe(&["import", "--data", "a", "--json"], &notes(500..600));
    assert_eq!(more.code, 0, "the store goes on: {}", more.stderr);
    assert_eq!(place.export("a").lines().count(), 601);
    place.run(&["relay", "compact", "--data", "nowhere"]).fails(3, "there is no store in nowhere", "--data");
    assert!(!place.path("nowhere").exists(), "looking makes nothing");
}

/// Two stores with 1,000 events in common and 1,000 of their own each, many in the same second.
fn two_stores(place: &Place) {
    let crowd = |range: std::ops::Range<u64>| -> String {
        range.map(|i| line(9, Draft::new(Kind(1), 1_700_000_100, format!("crowd {i}")))).collect()
    };
    let a = [notes(0..1_400), crowd(0..600)].concat();
    let b = [notes(700..2_100), crowd(300..900)].concat();
    for (data, text) in [("a", a), ("b", b)] {
        assert_eq!(place.pipe(&["import", "--data", data], &text).code, 0);
    }
}

#[test]
fn a_sync_makes_two_running_relays_equal() {
    let place = Place::new();
    two_stores(&place);
    let (a, b) = (place.relay("a"), place.relay("b"));
    let told = place.json(&["relay", "sync", &b.url, "--relay", &a.url]);
    assert_eq!((told["down"]["new"].as_u64(), told["up"]["new"].as_u64()), (Some(1_000), Some(1_000)), "{told}");
    let again = place.json(&["relay", "sync", &b.url, "--relay", &a.url]);
    assert_eq!(
        (again["local"].as_u64(), again["down"]["new"].as_u64(), again["up"]["new"].as_u64()),
        (Some(3_000), Some(0), Some(0))
    );
    drop((a, b));
    let (a, b) = (place.export("a"), place.export("b"));
    assert_eq!(a.lines().count(), 3_000);
    assert!(a == b, "byte for byte");
}

#[test]
fn a_sync_of_a_store_goes_one_way_when_asked_and_keeps_secrets_here() {
    let place = Place::new();
    two_stores(&place);
    place.write("secret.jsonl", &medley());
    place.json(&["import", "secret.jsonl", "--data", "a"]);
    let b = place.relay("b");
    let told = place.json(&["relay", "sync", &b.url, "--data", "a", "--dir", "down"]);
    assert_eq!((told["down"]["new"].as_u64(), told["up"]["new"].as_u64()), (Some(1_000), Some(0)), "{told}");
    let up = place.run(&["relay", "sync", &b.url, "--data", "a", "--dir", "up", "--filter", r#"{"kinds":[1,4,1059]}"#]);
    up.fails(1, "1 events were refused", "--key");
    drop(b);
    let b = place.export("b");
    assert_eq!(b.lines().count(), 2_000 + 1_000 + 3, "the notes, but not the protected one");
    assert!(!b.contains("\"kind\":4,") && !b.contains("\"kind\":1059,"), "what nobody may read stays here");
}

#[test]
fn a_relay_that_cannot_reconcile_is_told_apart_from_one_that_is_not_there() {
    let place = Place::new();
    place.write("in.jsonl", &notes(0..3));
    place.json(&["import", "in.jsonl", "--data", "a"]);
    place.run(&["relay", "sync", "ws://127.0.0.1:1", "--data", "a"]).fails(4, "cannot reach", "running");
    place.run(&["relay", "sync", "http://x", "--data", "a"]).fails(3, "not the URL of a relay", "ws://");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        use tokio_tungstenite::tungstenite::{Message, accept};
        let mut socket = accept(listener.accept().unwrap().0).unwrap();
        let _ = socket.read().unwrap();
        socket.send(Message::text(r#"["NOTICE","unknown message type NEG-OPEN"]"#)).unwrap();
        while socket.read().is_ok() {}
    });
    place.run(&["relay", "sync", &url, "--data", "a"]).fails(1, "does not reconcile (NIP-77)", "skep export");
}

#[test]
fn doctor_names_relaxed_durability_and_says_how_to_mend_what_is_wrong() {
    let place = Place::new();
    place.write("in.jsonl", &notes(0..3));
    place.json(&["import", "in.jsonl", "--data", "a"]);
    place.write(
        "ok.toml",
        "[relay]\ndata = \"a\"\ndurability = \"relaxed\"\n[relay.limits]\nconnections = 7\nfilters = 3\n",
    );
    let ran = place.run(&["doctor", "--config", "ok.toml"]);
    assert_eq!(ran.code, 0, "a choice is not a fault: {}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("WARNING  durability  RELAXED: a power cut may take"), "{}", ran.stdout);
    assert!(ran.stdout.contains("3 events"), "{}", ran.stdout);
    let filters = ran.stdout.lines().find(|line| line.contains(" filters ")).unwrap();
    assert!(filters.ends_with("3 filters (default 20)"), "{filters}");

    fs::set_permissions(place.path("a"), fs::Permissions::from_mode(0o755)).unwrap();
    let ran = place.run(&["doctor", "--config", "ok.toml"]);
    ran.fails(1, "1 things are wrong", "WRONG");
    assert!(ran.stdout.contains("mend        chmod 700 a"), "{}", ran.stdout);

    place.write("bad.toml", "[relay]\ndurabilty = \"full\"\n");
    let ran = place.run(&["doctor", "--config", "bad.toml", "--json"]);
    assert_eq!(ran.code, 1);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    let config = told["checks"].as_array().unwrap().iter().find(|check| check["name"] == "config").unwrap();
    assert_eq!((told["ok"].as_bool(), config["state"].as_str()), (Some(false), Some("wrong")));
    assert!(config["found"].as_str().unwrap().contains("durabilty"), "{config}");
}

#[test]
fn doctor_sees_a_store_in_use_and_an_event_from_the_future() {
    let place = Place::new();
    let ahead = Draft::new(Kind(1), 4_000_000_000, "from a machine whose clock is wrong");
    assert_eq!(place.pipe(&["import", "--data", "a"], &line(1, ahead)).code, 0);
    let config = place.write("c.toml", "[relay]\ndata = \"a\"\n[relay.limits]\nconnections = 7\n");
    let config = config.to_str().unwrap().to_owned();
    let ran = place.run(&["doctor", "--config", &config]);
    ran.fails(1, "1 things are wrong", "WRONG");
    assert!(ran.stdout.contains("s ahead of this clock"), "{}", ran.stdout);
    let _relay = place.relay("a");
    let ran = place.run(&["doctor", "--config", &config]);
    assert!(ran.code == 0 && ran.stdout.contains("in use by a relay"), "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn channels_are_listed_from_the_file_and_from_the_relay() {
    let place = Place::new();
    let admin = place.json(&["key", "generate", "admin"]);
    let admin = admin["npub"].as_str().unwrap();
    let config = format!(
        "[relay]\nadmins = [\"{admin}\"]\n[[relay.channels]]\nid = \"hive\"\nname = \"Hive\"\naccess = \"members\"\nmembers = [\"{admin}\"]\n"
    );
    let config = place.write("c.toml", &config);
    let from_file = place.json(&["channels", "--config", "c.toml"]);
    assert_eq!((from_file["id"].as_str(), from_file["rule"]["access"].as_str()), (Some("hive"), Some("members")));
    let shown = place.run(&["channels", "--config", "c.toml"]).stdout;
    assert_eq!(shown, "hive  members  members=1 admins=0  Hive\n");
    let relay = place.serve("r", &config);
    let from_relay = place.json(&["channels", "--relay", &relay.url, "--key", "admin"]);
    assert_eq!(from_relay, from_file);
    assert_eq!(json!(from_relay["rule"]["members"]).as_array().unwrap().len(), 1);
}

#[test]
fn an_import_knows_of_owners_what_the_events_say_and_nothing_else() {
    let place = Place::new();
    let admin = place.json(&["key", "generate", "admin"]);
    let config = place.write("c.toml", &format!("[relay]\nadmins = [{}]\n", admin["npub"]));
    let [owner, attested, assigned, revoked] = [1, 3, 4, 5].map(keys);
    let profile = |seed, agent: &Keypair, is_attested| {
        let tag = attest(&owner, &key_of(agent), &Conditions::default(), &[0; 32]);
        let draft = Draft::new(Kind::PROFILE, 1_700_000_000, "{}");
        line(seed, if is_attested { draft.tag(tag) } else { draft })
    };
    let profiles = [profile(3, &attested, true), profile(4, &assigned, false), profile(5, &revoked, true)].concat();
    {
        let relay = place.serve("a", &config);
        assert_eq!(place.pipe(&["import", "--relay", &relay.url], &profiles).code, 0);
        let hex = |keys: &Keypair| key_of(keys).to_hex();
        let call = ["--key", "admin", "--relay", &relay.url];
        place.json(&[&["agent", "assign", &hex(&assigned), "--owner", &hex(&owner)], &call[..]].concat());
        place.json(&[&["agent", "revoke", &hex(&revoked)], &call[..]].concat());
    }
    let told = place.pipe(&["import", "--data", "b", "--json"], &place.export("a"));
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    // Both profiles that carry an attestation. Neither what an admin assigned nor what was revoked is an event: for
    // those the data directory is copied, as the help of `export` says.
    assert_eq!((&told["imported"], &told["owners_learned"]), (&json!(3), &json!(2)), "{told}");
}

fn key_of(keys: &Keypair) -> PubKey {
    PubKey(keys.x_only_public_key().0.serialize())
}

#[test]
fn a_local_name_is_added_listed_and_removed_while_the_relay_runs_and_outlives_a_restart() {
    let place = Place::new();
    let admin = place.json(&["key", "generate", "admin"]);
    let (npub, hex) = (admin["npub"].as_str().unwrap(), admin["pubkey"].as_str().unwrap());
    let config = format!("[relay]\nadmins = [\"{npub}\"]\n[relay.names]\nkeeper = \"{npub}\"\n");
    let config = place.write("c.toml", &config);
    let list = |url: &str| place.run(&["relay", "name", "list", "--key", "admin", "--relay", url]).stdout;
    {
        let relay = place.serve("a", &config);
        let call = ["--key", "admin", "--relay", &relay.url];
        place.json(&[&["relay", "name", "add", "alice", "admin"], &call[..]].concat());
        assert_eq!(list(&relay.url), format!("{hex}  alice\n{hex}  keeper\n"));
        let refused = place.run(&[&["relay", "name", "remove", "keeper"], &call[..]].concat());
        assert!(refused.code != 0 && refused.stderr.contains("in the relay's configuration"), "{}", refused.stderr);
    }
    let relay = place.serve("a", &config);
    let call = ["--key", "admin", "--relay", &relay.url];
    assert_eq!(list(&relay.url), format!("{hex}  alice\n{hex}  keeper\n"));
    place.json(&[&["relay", "name", "remove", "alice"], &call[..]].concat());
    assert_eq!(list(&relay.url), format!("{hex}  keeper\n"));
}
