//! The real binary in a home of its own. Every failure gives one clear line, a hint and the documented exit code.
#![expect(clippy::unwrap_used, reason = "a test")]

#[expect(dead_code, reason = "other suites use the rest")]
mod binary;
mod scripted;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const UNREACHABLE: &str = "ws://127.0.0.1:1";

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

    fn key_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("skep/keys").join(format!("{name}.key"))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = binary::in_place(binary::path(), self.dir.path(), &self.dir.path().join("skep"));
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn finish(command: Command, stdin: &str) -> Ran {
        let output = binary::pipe(command, stdin);
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn pipe(&self, args: &[&str], stdin: &str) -> Ran {
        Self::finish(self.command(args), stdin)
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.pipe(args, "")
    }

    fn with_passphrase(&self, passphrase: &str, args: &[&str]) -> Ran {
        let mut command = self.command(args);
        command.env("SKEP_PASSPHRASE", passphrase);
        Self::finish(command, "")
    }

    /// Runs what must succeed, in JSON.
    fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(&[args, &["--json"]].concat());
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
        serde_json::from_str(&ran.stdout).unwrap()
    }
}

impl Ran {
    /// One `error:` line and one `hint:` line, nothing on stdout.
    #[track_caller]
    fn fails(&self, code: i32, cause: &str, hint: &str) {
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert_eq!(self.code, code, "{}", self.stderr);
        assert_eq!(lines.len(), 2, "{}", self.stderr);
        assert!(lines[0].starts_with("error: ") && lines[0].contains(cause), "{} lacks {cause:?}", lines[0]);
        assert!(lines[1].starts_with("hint: ") && lines[1].contains(hint), "{} lacks {hint:?}", lines[1]);
        assert_eq!(self.stdout, "");
    }
}

#[test]
fn help_documents_every_exit_code() {
    let help = Place::new().run(&["--help"]);
    assert_eq!(help.code, 0);
    for code in 0..=6 {
        assert!(help.stdout.contains(&format!("\n  {code}  ")), "{}", help.stdout);
    }
}

#[test]
fn wrong_usage_is_2_and_says_what_was_meant() {
    let place = Place::new();
    place.run(&["event", "query", "--autor", "x"]).fails(2, "'--autor'", "--author");
    place.run(&["event", "query", "--bogus"]).fails(2, "unexpected argument '--bogus'", "usage: skep event query");
    place.run(&["evnt"]).fails(2, "'evnt'", "event");
    place.run(&["event"]).fails(2, "a command is missing", "--help");
    place.run(&[]).fails(2, "a command is missing", "--help");
    place.run(&["agent", "attest"]).fails(2, "<AGENT>", "usage: skep agent attest");
    place.run(&["event", "query", "--kind", "x"]).fails(2, "'x'", "--help");
    place.run(&["event", "publish", "--created-at", "5"]).fails(2, "--created-at", "draft");
}

#[test]
fn a_private_key_as_an_argument_is_refused_and_not_repeated() {
    let place = Place::new();
    let made = place.json(&["key", "generate"]);
    let nsec = place.run(&["key", "export", "--reveal"]).stdout.trim().to_owned();
    assert!(nsec.starts_with("nsec1") && made["npub"].as_str().unwrap().starts_with("npub1"));
    for args in [
        vec!["event", "publish", "--content", "x", "--key", &nsec],
        vec!["key", "import", &nsec],
        vec!["event", "query", "--author", &nsec],
        vec!["agent", "attest", &nsec],
    ] {
        let ran = place.run(&args);
        ran.fails(2, "must not be an argument", "consider this key leaked");
        assert!(!ran.stderr.contains(&nsec));
    }
}

#[test]
fn a_missing_key_or_file_is_3() {
    let place = Place::new();
    place.run(&["key", "show", "nobody"]).fails(3, "no key is named nobody", "skep key generate nobody");
    place.run(&["event", "publish", "--content", "x"]).fails(3, "no key is named default", "skep key generate");
    place.run(&["event", "publish", "--content", "x", "--key", "./none.key"]).fails(
        3,
        "none.key does not exist",
        "check the path",
    );
    place.run(&["event", "publish", "--content", "x", "--key", "env:NONE"]).fails(3, "NONE is not set", "exported");
    place.run(&["key", "show", "No Such"]).fails(2, "a key name is", "slash");
}

#[test]
fn a_wrong_key_is_3() {
    let place = Place::new();
    let npub = place.json(&["key", "generate", "a"])["npub"].as_str().unwrap().to_owned();
    place.pipe(&["key", "import", "b"], "not a key\n").fails(3, "stdin does not hold a private key", "generate");
    place.pipe(&["key", "import", "b"], &npub).fails(3, "stdin holds a public key", "generate");
    place.pipe(&["key", "import", "a"], "x").fails(3, "a key named a exists already", "rotate a");
    place.run(&["agent", "attest", "npub1zzz", "--owner", "a"]).fails(3, "npub1zzz", "key list");
    place.run(&["agent", "attest", "a", "--owner", "a"]).fails(3, "cannot own itself", "--owner");
    place.run(&["agent", "attest", &"ff".repeat(32), "--owner", "a"]).fails(3, "no point on the curve", "typing");
    assert!(!place.key_file("b").exists());
}

#[test]
fn a_key_file_open_to_others_is_5_with_the_command_that_mends_it() {
    let place = Place::new();
    place.json(&["key", "generate", "bob"]);
    let path = place.key_file("bob");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let mend = format!("chmod 600 {}", path.display());
    place.run(&["key", "show", "bob"]).fails(5, "open to others (mode 0644", &mend);
    place.run(&["event", "publish", "--content", "x", "--key", "bob"]).fails(5, "open to others", &mend);
    let hint = place.run(&["key", "show", "bob"]).stderr.lines().nth(1).unwrap().replace("hint: ", "");
    assert!(Command::new("sh").args(["-c", &hint]).status().unwrap().success());
    assert_eq!(place.run(&["key", "show", "bob"]).code, 0);
}

#[test]
fn an_invalid_filter_or_time_or_tag_is_3() {
    let place = Place::new();
    place.run(&["event", "query", "{\"kinds\":1}"]).fails(3, "the filter is invalid", "{\"kinds\":[1]");
    place.run(&["event", "query", "{\"kindz\":[1]}"]).fails(3, "unknown element", "authors");
    place.pipe(&["event", "count", "-"], "{\"ids\":[\"x\"]}").fails(3, "filter 1 of stdin is invalid", "JSON");
    place.pipe(&["event", "count", "-"], "").fails(3, "no filter", "{}");
    place.run(&["event", "query", "--since", "soon"]).fails(3, "\"soon\" is not a time", "2h");
    place.run(&["event", "query", "--tag", "title=x"]).fails(3, "\"title\"", "one letter");
    place.run(&["event", "query", "--id", "xyz"]).fails(3, "xyz", "64 lowercase hex");
    place.run(&["event", "query", "--relay", "http://x"]).fails(3, "ws://", "ws://127.0.0.1:7777");
}

#[test]
fn an_unreachable_relay_is_4() {
    let place = Place::new();
    place.json(&["key", "generate"]);
    for args in [
        vec!["event", "publish", "--content", "x"],
        vec!["event", "query"],
        vec!["event", "count"],
        vec!["agent", "revoke", "default"],
    ] {
        let ran = place.run(&[args.as_slice(), &["--relay", UNREACHABLE]].concat());
        ran.fails(4, "127.0.0.1:1/: connection refused", "skep relay");
    }
}

#[test]
fn a_key_can_be_encrypted_moved_and_rotated() {
    let place = Place::new();
    let made = place.json(&["key", "generate", "bob"]);
    place.run(&["key", "encrypt", "bob"]).fails(2, "no terminal", "SKEP_PASSPHRASE");
    assert_eq!(place.with_passphrase("sesame", &["key", "encrypt", "bob"]).code, 0);
    assert!(fs::read_to_string(place.key_file("bob")).unwrap().starts_with("ncryptsec1"));
    // What is public is known without the passphrase; the secret is not.
    assert_eq!(place.json(&["key", "show", "bob"])["npub"], made["npub"]);
    place.with_passphrase("guess", &["key", "export", "bob", "--reveal"]).fails(3, "passphrase does not fit", "check");
    place.run(&["key", "export", "bob"]).fails(2, "--reveal", "usage");

    let export = place.with_passphrase("sesame", &["key", "export", "bob", "--output", "out.nsec"]);
    assert_eq!(export.code, 0, "{}", export.stderr);
    let out = place.dir.path().join("out.nsec");
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(place.json(&["key", "import", "bob2", "--from", "./out.nsec"])["npub"], made["npub"]);

    let rotated = place.with_passphrase("sesame", &["key", "rotate", "bob", "--json"]);
    assert_eq!(rotated.code, 0, "{}", rotated.stderr);
    let rotated: Value = serde_json::from_str(&rotated.stdout).unwrap();
    assert!(rotated["npub"] != made["npub"] && rotated["encrypted"] == true);
    let listed = place.run(&["key", "list", "--json"]).stdout;
    let kept = listed.lines().filter(|line| line.contains(made["npub"].as_str().unwrap())).count();
    assert_eq!((listed.lines().count(), kept), (3, 2), "{listed}");
}

#[test]
fn an_attestation_is_what_nip_oa_verifies() {
    let place = Place::new();
    let agent = place.json(&["key", "generate", "agent"]);
    let owner = place.json(&["key", "generate", "owner"]);
    let said = place.json(&["agent", "attest", "agent", "--owner", "owner", "--kind", "1,7", "--before", "2000000000"]);
    assert_eq!((&said["agent"], &said["owner"]), (&agent["pubkey"], &owner["pubkey"]));
    assert_eq!(said["conditions"], "kind=1&kind=7&created_at<2000000000");
    let tags: skep_proto::Tags = serde_json::from_value(json!([said["tag"]])).unwrap();
    let agent = serde_json::from_value(agent["pubkey"].clone()).unwrap();
    let verified = skep_proto::attestation::Attestation::from_tags(&tags, &agent).unwrap().unwrap();
    assert_eq!(json!(verified.owner), owner["pubkey"]);
}

#[test]
fn events_are_verified_one_by_one() {
    let place = Place::new();
    let (url, _) = scripted::relay();
    place.json(&["key", "generate"]);
    place.json(&["event", "publish", "--content", "good", "--relay", &url]);
    let good = place.run(&["event", "query", "--relay", &url]).stdout;
    let bad = good.replace("good", "evil");
    let ran = place.pipe(&["event", "verify"], &format!("{good}{bad}{{\"kind\":1}}\n"));
    assert_eq!(ran.code, 1);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("ok ") && lines[1].contains("the id is not"), "{}", ran.stdout);
    assert!(lines[2].starts_with("BAD  value 3  missing field"), "{}", ran.stdout);
    assert!(ran.stderr.contains("2 of 3 events do not verify"), "{}", ran.stderr);
    assert_eq!(place.pipe(&["event", "verify", "--quiet"], &good).stdout, "");
    place.pipe(&["event", "verify"], "").fails(3, "no event", "query");
    place.pipe(&["event", "verify"], "rubbish").fails(3, "not JSON", "one JSON value a line");
}

#[test]
fn flags_drafts_and_signed_events_are_published_and_found() {
    let place = Place::new();
    let (url, seen) = scripted::relay();
    let made = place.json(&["key", "generate"]);
    let npub = made["npub"].as_str().unwrap();
    let relay = ["--relay", url.as_str()];
    let published = place.json(
        &[
            ["event", "publish", "--kind", "7", "--content", "-", "--created-at", "5"].as_slice(),
            &["--tag", "t=a,b", "--tag", &format!("p={npub}")],
            &relay,
        ]
        .concat(),
    );
    assert_eq!(published["accepted"], true);
    let event = seen.lock().unwrap()[0].clone();
    assert_eq!((&event["id"], &event["pubkey"]), (&published["id"], &made["pubkey"]));
    assert_eq!(event["tags"], json!([["t", "a", "b"], ["p", made["pubkey"]]]));
    assert_eq!((&event["created_at"], &event["content"]), (&json!(5), &json!("-")));

    let input = format!("{event}\n{}\n", json!({"kind": 1, "content": "draft"}));
    let ran = place.pipe(&[["event", "publish"].as_slice(), &relay].concat(), &input);
    assert_eq!((ran.code, ran.stdout.lines().count()), (0, 2), "{}", ran.stderr);
    assert!(ran.stdout.lines().all(|line| line.starts_with("accepted  ")), "{}", ran.stdout);

    let found = place.run(&[["event", "query", "--author", "default", "--limit", "9"].as_slice(), &relay].concat());
    assert_eq!((found.code, found.stdout.lines().count()), (0, 3), "{}", found.stderr);
    let filter = scripted::last_filter(&url);
    assert_eq!(filter, json!({"authors": [made["pubkey"]], "limit": 9}));
    let counted = place.run(&[["event", "count", "--kind", "7"].as_slice(), &relay].concat());
    assert_eq!((counted.code, counted.stdout.as_str()), (0, "3\n"), "{}", counted.stderr);
}

#[test]
fn a_refused_event_is_1_and_the_others_still_go() {
    let place = Place::new();
    let (url, _) = scripted::relay();
    place.json(&["key", "generate"]);
    let input = "{\"kind\":1,\"content\":\"refuse \\u001b[2J me\"}\n{\"kind\":1,\"content\":\"take me\"}";
    let ran = place.pipe(&["event", "publish", "--relay", &url], input);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!((ran.code, lines.len()), (1, 2), "{}", ran.stderr);
    assert!(lines[0].starts_with("refused ") && lines[1].starts_with("accepted"), "{}", ran.stdout);
    assert!(lines[0].ends_with(r"blocked: refuse \u{1b}[2J me"), "hostile text is escaped: {}", lines[0]);
    assert!(ran.stderr.contains("refused 1 of 2 events"), "{}", ran.stderr);
}

#[test]
fn bad_input_on_stdin_is_3_before_anything_is_sent() {
    let place = Place::new();
    place.json(&["key", "generate"]);
    let publish = ["event", "publish", "--relay", UNREACHABLE];
    place.pipe(&publish, "").fails(3, "no event", "--content");
    place.pipe(&publish, "hello").fails(3, "not JSON", "JSON value");
    place.pipe(&publish, "{\"content\":\"x\"}").fails(3, "value 1 of stdin: missing field `kind`", "draft");
    place.pipe(&publish, "{\"kind\":1,\"sig\":\"x\"}").fails(3, "value 1 of stdin", "draft");
    let other = format!("{{\"kind\":1,\"pubkey\":\"{}\"}}", "0".repeat(64));
    place.pipe(&publish, &other).fails(3, "another author", "draft");
}

#[test]
fn a_closed_pipe_is_quiet() {
    let place = Place::new();
    let (url, seen) = scripted::relay();
    place.json(&["key", "generate"]);
    let many: String = (0..300).map(|i| format!("{{\"kind\":1,\"content\":\"{i}{}\"}}\n", "x".repeat(900))).collect();
    assert_eq!(place.pipe(&["event", "publish", "--relay", &url], &many).code, 0);
    assert_eq!(seen.lock().unwrap().len(), 300);
    let mut child = place.command(&["event", "query", "--relay", &url]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

#[test]
fn following_shows_stored_events_in_order_of_time_and_then_live_ones() {
    use std::io::{BufRead, BufReader};
    let place = Place::new();
    let (url, _) = scripted::relay();
    place.json(&["key", "generate"]);
    // Newest first, as a relay keeps them.
    for (at, content) in [("30", "third"), ("20", "second"), ("10", "first")] {
        place.json(&["event", "publish", "--content", content, "--created-at", at, "--relay", &url]);
    }
    let mut child = place.command(&["event", "query", "--follow", "--relay", &url]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap()["content"].clone();
    assert_eq!([next(), next(), next()], ["first", "second", "third"]);
    place.json(&["event", "publish", "--content", "live", "--relay", &url]);
    assert_eq!(next(), "live");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_exported_file_is_never_written_over() {
    let place = Place::new();
    place.json(&["key", "generate"]);
    assert_eq!(place.run(&["key", "export", "--output", "out"]).code, 0);
    place.run(&["key", "export", "--output", "out"]).fails(3, "out exists already", "another path");
    place.run(&["key", "export", "--output", "none/out"]).fails_plainly(3, "none");
}

impl Ran {
    /// One `error:` line where there is nothing more to advise.
    #[track_caller]
    fn fails_plainly(&self, code: i32, cause: &str) {
        assert_eq!((self.code, self.stderr.lines().count()), (code, 1), "{}", self.stderr);
        assert!(self.stderr.starts_with("error: ") && self.stderr.contains(cause), "{}", self.stderr);
    }
}

#[test]
fn a_relay_that_cannot_be_told_of_a_rotation_is_named_and_the_key_is_rotated_all_the_same() {
    let place = Place::new();
    let (url, _) = scripted::relay();
    let old = place.json(&["key", "generate", "agent"]);
    place.json(&["key", "generate", "owner"]);
    // It authenticates the new key, and has no management API to revoke the old one.
    let ran = place.run(&["key", "rotate", "agent", "--owner", "owner", "--relay", &url]);
    let revoke = format!("skep agent revoke {}", old["pubkey"].as_str().unwrap());
    assert!(
        ran.code == 4 && ran.stderr.contains("the relay does not know") && ran.stderr.contains(&revoke),
        "{}",
        ran.stderr
    );
    assert!(ran.stdout.contains("[\"auth\",\""), "{}", ran.stdout);
    assert_ne!(place.json(&["key", "show", "agent"])["pubkey"], old["pubkey"]);
    place.run(&["key", "rotate", "agent", "--owner", "agent"]).fails(3, "cannot own itself", "--owner");
}
