//! A child of the harness has nothing of ours, nor has what it starts to reach its tools: no key and no token, in its
//! environment, arguments, open files or memory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use skep_node::keys::{Keyring, StoredKey};

use crate::hive::{Agent, Hive, Plan, descendants, mention, now, publish, read, until};

/// A program that waits until the file `go` is beside it.
const WAITS: &str = "while [ ! -e go ]; do sleep 0.05; done; echo done";

/// What an operator may have in the environment, and no child may have.
const PASSPHRASE: &str = "correct-horse-battery-staple";
const TOKEN: &str = "token-of-a-provider-that-nobody-named";

/// Bytes of one mapping that are looked at: far more than these programs have.
const MAPPING_BYTES_MAX: u64 = 64 << 20;

struct Secret {
    what: String,
    bytes: Vec<u8>,
}

fn secrets(hive: &Hive) -> Vec<Secret> {
    let mut all = vec![
        Secret { what: "the passphrase".into(), bytes: PASSPHRASE.into() },
        Secret { what: "the token".into(), bytes: TOKEN.into() },
    ];
    for agent in &hive.agents {
        let hex = agent.keys.display_secret().to_string();
        let StoredKey::Plain(keys) = StoredKey::parse(&hex, "a test").unwrap() else { panic!("plain") };
        let forms = [hex.clone().into_bytes(), keys.nsec().as_bytes().to_vec(), agent.keys.secret_bytes().to_vec()];
        let named = |(form, bytes)| Secret { what: format!("the key of {} as {form}", agent.name), bytes };
        all.extend(["hex", "nsec", "bytes"].into_iter().zip(forms).map(named));
    }
    all
}

#[track_caller]
fn assert_none(secrets: &[Secret], place: &str, bytes: &[u8]) {
    for Secret { what, bytes: secret } in secrets {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{what} is in {place}");
    }
}

/// Where its descriptors lead, by their names in `/proc`. Nowhere when it has ended.
fn files(pid: u32) -> BTreeSet<PathBuf> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links.filter_map(|link| fs::read_link(link.path()).ok()).collect()
}

/// What it can write to: heap, stacks, data. Says how many bytes that were.
fn memory(pid: u32, mut look: impl FnMut(&str, &[u8])) -> u64 {
    let Ok(file) = File::open(format!("/proc/{pid}/mem")) else { return 0 };
    let mut seen = 0;
    for line in read(format!("/proc/{pid}/maps").as_ref()).lines().filter(|line| line.contains(" rw")) {
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (from, to) = (hex(from), hex(to));
        let mut bytes = vec![0; (to - from).min(MAPPING_BYTES_MAX) as usize];
        // The kernel's own pages cannot be read this way.
        if let Ok(length) = file.read_at(&mut bytes, from) {
            seen += length as u64;
            look(line, &bytes[..length]);
        }
    }
    seen
}

/// The processes of backends, with what they start, once both run.
fn children(hive: &Hive) -> Vec<u32> {
    let harness = hive.slots[0].process.as_ref().unwrap().pid();
    let command = |pid: u32| read(format!("/proc/{pid}/cmdline").as_ref());
    let mut found = Vec::new();
    until("both backends and the way to the tools run", || {
        found = descendants(harness).into_iter().map(|(pid, _)| pid).filter(|pid| *pid != harness).collect();
        let runs = |what: &str| found.iter().any(|pid| command(*pid).contains(what));
        runs("while [") && runs("demo") && runs("mcp\0--socket")
    });
    found
}

#[test]
fn a_child_has_no_key_or_token_of_ours_in_its_environment_arguments_files_or_memory() {
    let binary = crate::binary::path();
    let plain = format!("backend = \"command\"\ncommand = \"/bin/sh\"\nargs = [\"-c\", {WAITS:?}]");
    // It starts its tools, as programs do, and leaves them open.
    let tools = "../../../run/tools/*.sock";
    let starts = format!(
        "(until ls {tools} >/dev/null 2>&1; do sleep 0.05; done; sleep 600 | {binary} mcp --socket $(ls {tools})) \
         >/dev/null & exec {binary} agent demo"
    );
    let acp = format!("backend = \"acp\"\ncommand = \"/bin/sh\"\nargs = [\"-c\", {starts:?}]");
    let nsec_of_somebody = format!("nsec1{}", "q".repeat(58));
    let plan = Plan {
        agents: vec![Agent::new("plain", 31, plain), Agent::new("acp", 32, acp)],
        env: vec![("SKEP_PASSPHRASE", PASSPHRASE.into()), ("PROVIDER_TOKEN", TOKEN.into()), ("TERM", nsec_of_somebody)],
        ..Plan::of(Agent::new("x", 1, ""), [0])
    };
    let mut hive = Hive::new(plan);
    hive.start(0);
    hive.until_led();
    let ask = |agent: &Agent| mention(&agent.pubkey(), None, now(), "wait");
    let asked: Vec<_> = hive.agents.iter().map(ask).collect();
    publish(&hive.upstream(), &asked);
    let children = children(&hive);
    let secrets = secrets(&hive);
    let harness = hive.slots[0].process.as_ref().unwrap().pid();
    let (ours, home) = (files(harness), hive.slots[0].home.clone());
    assert!(ours.iter().any(|file| file.starts_with(&home)), "the harness has files of its home open");
    let mut seen = 0;
    for pid in &children {
        for name in ["environ", "cmdline", "maps"] {
            let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            assert_none(&secrets, name, &bytes);
            assert!(!String::from_utf8_lossy(&bytes).contains("nsec1"), "a key of anybody is in {name}");
        }
        let theirs = files(*pid);
        let below_home = |file: &&PathBuf| file.starts_with(&home) && !file.starts_with(home.join("agents/plain/work"));
        assert_eq!(theirs.iter().find(below_home), None, "a file of our home");
        let is_shared = |file: &&PathBuf| {
            let name = file.to_string_lossy();
            ours.contains(*file)
                && !name.starts_with("pipe:")
                && !name.starts_with("anon_inode:")
                && name != "/dev/null"
        };
        assert_eq!(theirs.iter().find(is_shared), None, "a file that we use");
        seen += memory(*pid, |place, bytes| assert_none(&secrets, place, bytes));
    }
    println!("{} processes, {seen} bytes of their memory", children.len());
    // The test sees what it looks for: the harness itself does have the keys.
    let mut is_found = false;
    let keys = Keyring::of(&skep_node::home::Home::at(home)).list().unwrap();
    assert_eq!(keys.len(), 2);
    let key = hive.agents[0].keys.secret_bytes();
    let looked = memory(harness, |_, bytes| is_found |= bytes.windows(32).any(|window| window == key));
    assert!(is_found || looked == 0, "a search that finds nothing anywhere shows nothing");
}
