//! One instance leads, whatever becomes of the others.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use skep_agent::driver::Input;
use skep_core::leader::{File, LockFile, Mode, RelayLease, Role};
use skep_node::agent::door::RemoteDoor;
use skep_node::agent::lead::{Lead, Settings, Standing};
use skep_node::agent::locks::Locks;
use skep_node::client::Credentials;
use skep_node::clock::unix_now_ms;
use skep_node::keys::StoredKey;
use skep_proto::PubKey;
use skep_proto::time::Moment;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::hive::{Hive, PATIENCE};

const AGENT: PubKey = PubKey([7; 32]);

/// A directory of locks.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("locks")
    }

    fn locks(&self) -> Locks {
        Locks::open(&self.dir(), &AGENT).unwrap()
    }

    fn file(&self) -> PathBuf {
        self.dir().join(format!("{AGENT}.lock"))
    }
}

/// An instance without a relay.
struct Instance {
    lead: Lead,
    standing: watch::Receiver<Standing>,
    inputs: mpsc::Receiver<Input>,
    _sender: mpsc::Sender<Input>,
}

impl Instance {
    fn start(locks: Locks, lease: Option<(Credentials, RemoteDoor)>) -> Self {
        let (sender, inputs) = mpsc::channel(16);
        let instance = locks.new_instance().unwrap();
        let settings =
            Settings { locks, instance, mode: Mode::Auto, lease, news: mpsc::channel(1).1, inputs: sender.downgrade() };
        let lead = Lead::start(settings).unwrap();
        Self { standing: lead.standing(), lead, inputs, _sender: sender }
    }

    async fn until(&mut self, wanted: impl Fn(&Role) -> bool) -> Role {
        let found = timeout(PATIENCE, self.standing.wait_for(|now| wanted(&now.role))).await;
        found.expect("in time").unwrap().role.clone()
    }

    async fn leads(&mut self) {
        self.until(|role| matches!(role, Role::Prompter(_))).await;
    }

    /// The next role that the driver is told.
    async fn told(&mut self) -> Role {
        match timeout(PATIENCE, self.inputs.recv()).await.expect("in time").unwrap() {
            Input::Role(role) => role,
            other => panic!("{other:?}"),
        }
    }
}

/// Another program claims, as NIP-LE has it: with the file locked.
fn claim(place: &Place, id: &str, pid: u32) {
    let claim = LockFile { instance_id: id.into(), pid, claimed_at: Moment(unix_now_ms()), holds: false };
    place.locks().lock().write(&claim).unwrap();
}

fn flock(path: &Path) -> bool {
    Command::new("flock").arg("-n").arg(path).arg("true").status().unwrap().success()
}

const PYTHON: &str = "import fcntl,sys
file = open(sys.argv[1],'r+')
try: fcntl.flock(file, fcntl.LOCK_EX|fcntl.LOCK_NB)
except BlockingIOError: sys.exit(1)
if len(sys.argv) > 2: print('locked', flush=True); sys.stdin.read()";

#[test]
fn flock_and_python_agree_with_our_lock() {
    let place = Place::new();
    let locked = place.locks().lock();
    let python = |path: &Path| Command::new("python3").args(["-c", PYTHON]).arg(path).status();
    assert!(!flock(&place.file()));
    if let Ok(status) = python(&place.file()) {
        assert_eq!(status.code(), Some(1));
    }
    drop(locked);
    assert!(flock(&place.file()));
    let mut by_flock = Command::new("flock");
    by_flock.arg(place.file()).args(["sh", "-c", "echo locked; cat"]);
    let mut by_python = Command::new("python3");
    by_python.args(["-c", PYTHON]).arg(place.file()).arg("hold");
    for mut other in [by_flock, by_python] {
        let Ok(mut other) = other.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            println!("SKIPPED: {other:?} cannot be started");
            continue;
        };
        let mut said = String::new();
        BufReader::new(other.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "locked\n");
        assert_eq!(place.locks().lock().read(), File::Unreadable, "it is locked by another");
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(place.locks().lock().read(), File::Text(String::new()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_other_software_is_followed_until_its_process_is_gone() {
    let place = Place::new();
    let locks = place.locks();
    claim(&place, "other", std::process::id());
    let mut instance = Instance::start(locks, None);
    instance.until(|role| *role == Role::Follows(Some("other".into()))).await;
    assert!(!instance.lead.may_act().await);
    assert_eq!(instance.told().await, Role::Follows(Some("other".into())));
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    // The change is seen at once, not at the next tick.
    claim(&place, "other", child.id());
    instance.leads().await;
    assert_eq!(instance.told().await, Role::Prompter(None));
    assert!(instance.lead.may_act().await);
    claim(&place, "thief", std::process::id());
    assert!(!instance.lead.may_act().await, "the file is read before each act");
    instance.until(|role| *role == Role::Follows(Some("thief".into()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_empty_malformed_and_linked_files_lead_and_a_link_is_not_followed() {
    for content in [None, Some(""), Some("{"), Some("{\"instance_id\":3}")] {
        let place = Place::new();
        let locks = place.locks();
        if let Some(content) = content {
            fs::write(place.file(), content).unwrap();
        }
        let mut instance = Instance::start(locks, None);
        instance.leads().await;
        assert!(fs::read_to_string(place.file()).unwrap().contains(r#""holds":true"#));
    }
    let place = Place::new();
    let (locks, target) = (place.locks(), place.0.path().join("target"));
    fs::write(&target, "precious").unwrap();
    std::os::unix::fs::symlink(&target, place.file()).unwrap();
    let mut instance = Instance::start(locks, None);
    instance.leads().await;
    instance.lead.release().await;
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_truncates_what_is_its_own_and_never_a_successors() {
    let place = Place::new();
    let mut instance = Instance::start(place.locks(), None);
    instance.leads().await;
    instance.lead.release().await;
    assert_eq!(fs::read(place.file()).unwrap(), b"", "truncated, not unlinked");
    let mut instance = Instance::start(place.locks(), None);
    instance.leads().await;
    claim(&place, "successor", std::process::id());
    let successor = fs::read_to_string(place.file()).unwrap();
    instance.lead.release().await;
    assert_eq!(fs::read_to_string(place.file()).unwrap(), successor);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_are_private_and_a_claim_is_never_read_in_half() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let mut instance = Instance::start(place.locks(), None);
    instance.leads().await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place.dir()), 0o700);
    for entry in fs::read_dir(place.dir()).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    let text = fs::read_to_string(place.file()).unwrap();
    let locked = place.locks().lock();
    let mut claim: LockFile = serde_json::from_str(&text).unwrap();
    claim.instance_id = "short".into();
    let written = locked.write(&claim).unwrap().unwrap();
    let text = fs::read_to_string(place.file()).unwrap();
    assert!(text.ends_with('}') && text.contains("short"), "{text}");
    assert_eq!(text.as_bytes(), written);
    assert!(place.locks().still_says(&written));
    for other in [text.replace("short", "other"), text.clone() + " ", String::new()] {
        fs::write(place.file(), other).unwrap();
        assert!(!place.locks().still_says(&written), "whatever another wrote is not ours");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_moves_the_lead_and_who_lost_it_stands_down() {
    let place = Place::new();
    let mut first = Instance::start(place.locks(), None);
    first.leads().await;
    let mut second = Instance::start(place.locks(), None);
    second.until(|role| matches!(role, Role::Follows(Some(_)))).await;
    second.lead.claim().await;
    second.leads().await;
    first.until(|role| matches!(role, Role::Follows(Some(_)))).await;
    assert!(!first.lead.may_act().await);
    second.lead.release().await;
}

/// Whom a system has that owns nothing.
const NOBODY: u32 = 65_534;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_not_be_read_leads_and_is_not_written() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let (place, hive) = (Place::new(), Hive::start().await);
    let file = place.dir().join(format!("{}.lock", hive.agent.pubkey()));
    drop(Locks::open(&place.dir(), &hive.agent.pubkey()).unwrap());
    let claim = r#"{"instance_id":"other","pid":1,"claimed_at":"2100-01-01T00:00:00Z"}"#;
    fs::write(&file, claim).unwrap();
    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set_mode(&file, 0o000);
    let mut command = Command::new(std::env::current_exe().unwrap());
    if rustix::process::geteuid().is_root() {
        // Root reads everything: the leader is somebody else's process, in a directory of theirs.
        let as_nobody = || {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".into()]);
            command
        };
        if !as_nobody().arg("true").status().is_ok_and(|status| status.success()) {
            return println!("SKIPPED: setpriv is not here");
        }
        set_mode(place.0.path(), 0o755);
        for path in [place.dir(), place.dir().join("machine")] {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // Where this program lies they may not come: they get a copy.
        let copy = place.0.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        command = as_nobody();
        command.arg(copy);
    }
    let mut leader = leads_in(command, &place.dir(), None, &hive);
    set_mode(&file, 0o600);
    assert_eq!(fs::read_to_string(&file).unwrap(), claim, "what cannot be read is not written");
    leader.kill().unwrap();
    leader.wait().unwrap();
}

/// A leader in a process of its own: this test again, with what it needs in its environment.
const DIRECTORY: &str = "SKEP_TEST_LOCKS";
const RELAY: &str = "SKEP_TEST_RELAY";
const SECRET: &str = "SKEP_TEST_AGENT";
const CONSENT: &str = "SKEP_TEST_CONSENT";

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_in_a_process_of_its_own() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let var = |name| std::env::var(name).unwrap();
    let StoredKey::Plain(keys) = StoredKey::parse(&var(SECRET), "a test").unwrap() else { panic!("plain") };
    let attestation = serde_json::from_str(&var(CONSENT)).unwrap();
    let locks = Locks::open(Path::new(&directory), &keys.pubkey()).unwrap();
    let lease = std::env::var(RELAY).ok().map(|relay| {
        let credentials = Credentials { keys: keys.clone(), attestation: Some(attestation) };
        (credentials.clone(), RemoteDoor::open(relay, credentials))
    });
    let mut instance = Instance::start(locks, lease);
    instance.leads().await;
    println!("\nleads");
    std::future::pending::<()>().await;
}

fn leader_process(directory: &Path, relay: Option<&str>, hive: &Hive) -> Child {
    leads_in(Command::new(std::env::current_exe().unwrap()), directory, relay, hive)
}

/// Waits until it leads.
fn leads_in(mut command: Command, directory: &Path, relay: Option<&str>, hive: &Hive) -> Child {
    command.args(["lead::a_leader_in_a_process_of_its_own", "--exact", "--nocapture"]);
    command.env(DIRECTORY, directory).env(SECRET, hive.agent.nsec().as_str());
    command.env(CONSENT, serde_json::to_string(&hive.consent()).unwrap());
    relay.map(|relay| command.env(RELAY, relay));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).find(|line| line == "leads").expect("it leads");
    child
}

async fn takeover(relay: Option<&str>, hive: &Hive) -> (Duration, Standing) {
    let place = Place::new();
    let mut leader = leader_process(&place.dir(), relay, hive);
    let locks = Locks::open(&place.dir(), &hive.agent.pubkey()).unwrap();
    let lease = relay.map(|relay| (hive.credentials(), RemoteDoor::open(relay, hive.credentials())));
    let mut follower = Instance::start(locks, lease);
    follower.until(|role| matches!(role, Role::Follows(Some(_)))).await;
    let since = Instant::now();
    leader.kill().unwrap();
    follower.leads().await;
    let took = since.elapsed();
    leader.wait().unwrap();
    let standing = follower.standing.borrow().clone();
    follower.lead.release().await;
    (took, standing)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_nine_the_follower_leads_at_once_with_and_without_a_relay() {
    let hive = Hive::start().await;
    for _ in 0..5 {
        let (alone, standing) = takeover(None, &hive).await;
        assert_eq!(standing.role, Role::Prompter(None));
        let (with_relay, standing) = takeover(Some(&hive.url()), &hive).await;
        assert!(matches!(standing.role, Role::Prompter(Some(_))), "{standing:?}");
        println!("takeover after kill -9: {alone:?} by the files alone, {with_relay:?} with the relay's lease");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_machines_one_leads_and_the_other_after_a_release() {
    let hive = Hive::start().await;
    let (here, there) = (Place::new(), Place::new());
    let on = |place: &Place| {
        let locks = Locks::open(&place.dir(), &hive.agent.pubkey()).unwrap();
        Instance::start(locks, Some((hive.credentials(), RemoteDoor::open(hive.url(), hive.credentials()))))
    };
    let mut first = on(&here);
    first.leads().await;
    let mut second = on(&there);
    let found = timeout(PATIENCE, second.standing.wait_for(|now| now.lease == RelayLease::Others)).await;
    let standing = found.expect("in time").unwrap().clone();
    assert!(standing.said.unwrap().starts_with("conflict: held by "));
    assert!(!second.lead.may_act().await);
    first.lead.release().await;
    second.leads().await;
}
