//! Nothing that was acknowledged is lost: killed at any moment, with the disk full, without descriptors, stopped.
//!
//! `SKEP_KILLS` says how often the relay is killed; a run prints its seed and the command that repeats it.
#![expect(clippy::unwrap_used, reason = "a test")]

#[expect(dead_code, reason = "other suites use the rest")]
mod binary;
mod relay_harness;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use relay_harness::client::{Client, Verdict, frame};
use relay_harness::script::{Epochs, Script, Sent, Traffic, seeded, unix_now};
use relay_harness::volume::Volume;
use relay_harness::{Place, Relay};
use rustix::process::{Pid, Signal, kill_process};
use secp256k1::{Keypair, SECP256K1};
use skep_proto::{Draft, Kind, RawEvent};

const CONNECTIONS: usize = 4;

/// More than a connection publishes in [`KILL_AT_MS_MAX`], so that the relay is never killed at rest.
const EVENTS: usize = 1_200;

/// The latest moment of a kill, after the first connection; and while a relay opens what the last one left.
const KILL_AT_MS_MAX: u64 = 300;
const KILL_OPENING_AT_MS_MAX: u64 = 30;

/// Every so many rounds the relay lives so many times longer, and goes through several logs (8,000 events each).
const LONG_ROUND_EVERY: usize = 10;
const LONG_ROUND: usize = 6;

/// What SIGTERM may take on a machine of any speed. The relay itself says when its ten seconds were not enough.
const STOP: Duration = Duration::from_secs(60);
const LATE: &str = "did not end in time";

#[track_caller]
fn assert_kept(script: &Script, client: &mut Client, place: &Place) {
    let faults = script.faults(client);
    let some = faults[..faults.len().min(5)].join("\n");
    assert!(faults.is_empty(), "{} faults:\n{some}\nthe relay said:\n{}", faults.len(), place.log());
}

/// A client that tries again is told what is: stored already, deleted, or stored now. Nothing is stored twice.
fn publish_again(script: &mut Script, client: &mut Client, rng: &mut StdRng) {
    for i in 0..script.sent.len() {
        let Sent { event, was_sent, verdict, .. } = &script.sent[i];
        let (is_unknown, was_taken) = (verdict.is_none(), matches!(verdict, Some(Verdict::Taken(_))));
        let is_record = event.kind == Kind(1) || event.kind == Kind::DELETION;
        if !is_record || !was_sent || !(is_unknown || rng.random_bool(0.02)) {
            continue;
        }
        let (is_gone, may_be_gone) =
            (script.deleted(true).names(&script.sent[i]), script.deleted(false).names(&script.sent[i]));
        let verdict = client.publish(event);
        match &verdict {
            Verdict::Refused(text) if was_taken => assert!(may_be_gone && text.starts_with("blocked: "), "{text}"),
            Verdict::Taken(text) if was_taken => assert!(!is_gone && text.starts_with("duplicate: "), "{text}"),
            Verdict::Refused(_) => {}
            Verdict::Taken(_) => assert!(is_unknown && !is_gone, "it was refused before"),
        }
        if is_unknown {
            script.sent[i].verdict = Some(verdict);
        }
    }
}

/// Publishes on several connections at once; `stop` is called meanwhile.
fn publish_until(relay: &mut Relay, lines: &mut [Vec<Script>], stop: impl FnOnce(&mut Relay, &Traffic)) {
    let traffic = Traffic::default();
    let url = relay.url.clone();
    std::thread::scope(|scope| {
        for scripts in lines {
            scope.spawn(|| scripts.iter_mut().for_each(|script| script.publish(&url, &traffic)));
        }
        stop(relay, &traffic);
    });
}

/// One life of a relay: several connections publish, kill -9 in the middle, and another kill while the next one opens.
fn live_and_die(place: &Place, rng: &mut StdRng, length: usize) -> Vec<Script> {
    let mut lines: Vec<Vec<Script>> =
        (0..CONNECTIONS).map(|_| (0..length).map(|_| Script::draw(rng, EVENTS)).collect()).collect();
    // Not a wait for anything: these moments are what is being tested.
    let delay = Duration::from_millis(rng.random_range(0..KILL_AT_MS_MAX * length as u64));
    let opening = Duration::from_millis(rng.random_range(0..KILL_OPENING_AT_MS_MAX));
    let mut relay = place.start();
    publish_until(&mut relay, &mut lines, |relay, _| {
        std::thread::sleep(delay);
        relay.child.kill().unwrap();
    });
    drop(relay);
    let mut next = place.command("").spawn().unwrap();
    std::thread::sleep(opening);
    next.kill().unwrap();
    next.wait().unwrap();
    lines.into_iter().flatten().collect()
}

#[test]
fn an_acknowledged_event_survives_kill_9_at_any_moment() {
    let kills: usize = std::env::var("SKEP_KILLS").map_or(50, |text| text.parse().unwrap());
    let mut rng = seeded("an_acknowledged_event_survives_kill_9_at_any_moment");
    let place = Place::new(None, "");
    let mut epochs = Epochs::default();
    let mut kept: Vec<Script> = Vec::new();
    let (mut taken, mut unknown) = (0, 0);
    for round in 1..=kills {
        let length = if round % LONG_ROUND_EVERY == 0 { LONG_ROUND } else { 1 };
        let mut scripts = live_and_die(&place, &mut rng, length);
        scripts.retain(|script| script.sent.iter().any(|sent| sent.was_sent));
        let relay = place.start();
        let mut client = Client::connect(&relay.url).unwrap();
        for script in &mut scripts {
            taken += script.taken().count();
            unknown += script.sent.iter().filter(|sent| sent.was_sent && sent.verdict.is_none()).count();
            epochs.learn(script);
            assert_kept(script, &mut client, &place);
            if round % 5 == 1 {
                publish_again(script, &mut client, &mut rng);
                assert_kept(script, &mut client, &place);
            }
        }
        epochs.check(&relay, &mut rng);
        kept.append(&mut scripts);
    }
    let relay = place.start();
    let mut client = Client::connect(&relay.url).unwrap();
    kept.iter().for_each(|script| assert_kept(script, &mut client, &place));
    println!("killed {kills} times; {taken} events were taken, {unknown} had no answer; all is as it was said");
}

#[test]
fn a_relay_that_is_told_to_stop_ends_with_0_in_time_and_keeps_what_it_acknowledged() {
    let mut rng = seeded("a_relay_that_is_told_to_stop_ends_with_0_in_time_and_keeps_what_it_acknowledged");
    let place = Place::new(None, "");
    // Many more than are taken before it is told, so that it is in the middle however late this thread is.
    let mut lines: Vec<Vec<Script>> =
        (0..CONNECTIONS).map(|_| (0..LONG_ROUND).map(|_| Script::draw(&mut rng, EVENTS)).collect()).collect();
    let mut relay = place.start();
    publish_until(&mut relay, &mut lines, |relay, traffic| {
        while traffic.taken.load(Ordering::SeqCst) < 500 {
            std::thread::yield_now();
        }
        let begin = Instant::now();
        kill_process(Pid::from_child(&relay.child), Signal::TERM).unwrap();
        let status = relay.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", place.log());
        assert!(begin.elapsed() < STOP && !place.log().contains(LATE), "{:?}: {}", begin.elapsed(), place.log());
    });
    let mut scripts: Vec<Script> = lines.into_iter().flatten().collect();
    scripts.retain(|script| script.sent.iter().any(|sent| sent.was_sent));
    let is_cut = |script: &Script| script.sent.iter().any(|sent| sent.was_sent && sent.verdict.is_none());
    assert!(scripts.iter().any(is_cut), "it was not in the middle");
    let relay = place.start();
    let mut client = Client::connect(&relay.url).unwrap();
    scripts.iter().for_each(|script| assert_kept(script, &mut client, &place));
}

#[test]
fn whoever_is_connected_is_told_that_the_relay_stops_and_who_does_not_read_does_not_hold_it_up() {
    let place = Place::new(None, "");
    let mut relay = place.start();
    let mut clients: Vec<Client> = (0..40).map(|_| Client::connect(&relay.url).unwrap()).collect();
    let author = Keypair::from_seckey_slice(SECP256K1, &[3; 32]).unwrap();
    let mut publisher = Client::connect(&relay.url).unwrap();
    for n in 0..200 {
        let event = Draft::new(Kind(1), unix_now(), format!("{n:060000}")).sign(&author, &[0; 32]);
        assert_eq!(publisher.publish(event.raw()), Verdict::Taken(String::new()));
    }
    // 12 MB for each of these, who read nothing of it; the others have been greeted, and are idle.
    let mut silent: Vec<Client> = (0..3).map(|_| Client::connect(&relay.url).unwrap()).collect();
    silent.iter_mut().for_each(|client| client.send(r#"["REQ","s",{"kinds":[1]}]"#).unwrap());
    clients.iter_mut().for_each(|client| drop(client.next(&["AUTH"]).unwrap()));
    silent.iter_mut().for_each(|client| drop(client.next(&["EVENT"]).unwrap()));
    let begin = Instant::now();
    kill_process(Pid::from_child(&relay.child), Signal::TERM).unwrap();
    for client in &mut clients {
        assert_eq!(client.next(&["NOTICE"]).unwrap()[1], "closing: the relay stops");
    }
    assert_eq!(relay.child.wait().unwrap().code(), Some(0), "{}", place.log());
    assert!(begin.elapsed() < STOP && !place.log().contains(LATE), "{:?}: {}", begin.elapsed(), place.log());
}

#[test]
fn a_second_relay_on_the_same_data_is_refused_with_one_line_and_a_hint() {
    let place = Place::new(None, "");
    let relay = place.start();
    let mut client = Client::connect(&relay.url).unwrap();
    let mut command = place.command("");
    let second = command.stderr(std::process::Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((second.status.code(), lines.len(), second.stdout.as_slice()), (Some(6), 2, b"".as_slice()), "{said}");
    let data = place.data().display().to_string();
    assert!(lines[0].starts_with("error: another process uses ") && lines[0].contains(&data), "{said}");
    assert!(lines[1].starts_with("hint: ") && lines[1].contains("one relay at a time"), "{said}");
    let mut rng = seeded("a_second_relay_on_the_same_data_is_refused_with_one_line_and_a_hint");
    let mut author = Author::new(&mut rng);
    assert_eq!(client.publish(&author.note(10)), Verdict::Taken(String::new()), "the first goes on");
}

/// Publishes notes, one after another, and remembers what became of them.
struct Author {
    keys: Keypair,
    count: u64,
    taken: Vec<RawEvent>,
    refused: Vec<RawEvent>,
}

impl Author {
    fn new(rng: &mut StdRng) -> Self {
        let keys = Keypair::from_seckey_slice(SECP256K1, &rng.random::<[u8; 32]>()).unwrap();
        Self { keys, count: 0, taken: Vec::new(), refused: Vec::new() }
    }

    fn note(&mut self, bytes: usize) -> RawEvent {
        self.count += 1;
        let text = format!("{} {}", self.count, "x".repeat(bytes));
        Draft::new(Kind(1), unix_now(), text).sign(&self.keys, &[0; 32]).raw().clone()
    }

    /// Publishes a window of notes at once; gives the refusals.
    fn publish(&mut self, client: &mut Client, count: usize, bytes: usize) -> Vec<String> {
        let mut notes: Vec<RawEvent> = (0..count).map(|_| self.note(bytes)).collect();
        notes.iter().for_each(|note| client.send(&frame(note)).unwrap());
        let mut refusals = Vec::new();
        for _ in 0..count {
            let (id, verdict) = client.next_verdict().unwrap();
            let note = notes.swap_remove(notes.iter().position(|note| note.id == id).unwrap());
            match verdict {
                Verdict::Taken(_) => self.taken.push(note),
                Verdict::Refused(text) => {
                    self.refused.push(note);
                    refusals.push(text);
                }
            }
        }
        refusals
    }

    /// Publishes until the relay refuses all of a window for want of room.
    fn fill(&mut self, client: &mut Client) {
        loop {
            let refusals = self.publish(client, 32, 4_000);
            let is_clear = |text: &String| text.starts_with("error: ") && text.contains("disk is full");
            assert!(refusals.iter().all(is_clear), "{refusals:?}");
            if refusals.len() == 32 {
                return;
            }
        }
    }

    /// Whatever was taken is there, whatever was refused is not.
    #[track_caller]
    fn assert_kept(&self, client: &mut Client) {
        let ids = |events: &[RawEvent]| events.iter().map(|event| event.id).collect::<Vec<_>>();
        let (taken, refused) = (client.stored(&ids(&self.taken)), client.stored(&ids(&self.refused)));
        assert_eq!((taken.len(), refused.len()), (self.taken.len(), 0));
        let author = &self.keys.x_only_public_key().0.to_string();
        assert_eq!(client.count(&serde_json::json!({ "authors": [author] })), self.taken.len() as u64);
    }
}

/// One HTTP connection that is kept open.
struct Http(BufReader<TcpStream>);

impl Http {
    fn open(relay: &Relay) -> Self {
        let stream = TcpStream::connect(relay.url.strip_prefix("ws://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self(BufReader::new(stream))
    }

    fn get(&mut self, path: &str) -> (u16, String) {
        self.0.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n").as_bytes()).unwrap();
        let (mut code, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            code = code.or_else(|| line.split(' ').nth(1)?.parse().ok());
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (code.unwrap(), String::from_utf8(body).unwrap())
    }

    fn metric(&mut self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn with_the_disk_full_nothing_is_acknowledged_that_is_not_stored_and_reads_go_on() {
    let volume = match Volume::new(160 * MIB) {
        Ok(volume) => volume,
        Err(why) => return println!("SKIPPED: no file system of its own can be mounted here: {why}"),
    };
    let mut rng = seeded("with_the_disk_full_nothing_is_acknowledged_that_is_not_stored_and_reads_go_on");
    let ballasts = [("ballast-1", 16 * MIB), ("ballast-2", 80 * MIB)].map(|(name, bytes)| {
        let path = volume.path().join(name);
        std::fs::write(&path, vec![1; bytes as usize]).unwrap();
        path
    });
    let place = Place::new(Some(&volume.path()), "");
    let relay = place.start();
    let (mut client, mut author) = (Client::connect(&relay.url).unwrap(), Author::new(&mut rng));
    assert_eq!(ready(&relay), 200);

    assert_eq!(ready_when_full(&relay, &mut author, &mut client, |_, _| ()), 503, "writes fail");
    author.assert_kept(&mut client);
    let needs_no_disk = |author: &mut Author, client: &mut Client| {
        let known = author.taken[0].clone();
        assert!(matches!(client.publish(&known), Verdict::Taken(text) if text.starts_with("duplicate: ")));
        let passing = Draft::new(Kind(20_001), unix_now(), "").sign(&author.keys, &[0; 32]);
        let verdict = client.publish(passing.raw());
        assert!(matches!(&verdict, Verdict::Taken(_)), "it needs no disk: {verdict:?}");
    };
    let code = ready_when_full(&relay, &mut author, &mut client, needs_no_disk);
    assert_eq!(code, 503, "writes fail still, whatever else succeeds");

    std::fs::remove_file(&ballasts[0]).unwrap();
    recover(&mut author, &mut client);
    assert_eq!(ready(&relay), 200, "writes succeed");
    author.assert_kept(&mut client);

    author.fill(&mut client);
    drop(relay);
    // Killed with the disk full, it comes up to be read, and says that it cannot write.
    let relay = place.start();
    let mut client = Client::connect(&relay.url).unwrap();
    author.assert_kept(&mut client);
    assert_eq!(ready_when_full(&relay, &mut author, &mut client, |_, _| ()), 503);
    std::fs::remove_file(&ballasts[1]).unwrap();
    recover(&mut author, &mut client);
    println!("{} were taken, {} refused", author.taken.len(), author.refused.len());
}

/// By a new connection: the relay ends one that is idle for ten seconds.
fn ready(relay: &Relay) -> u16 {
    Http::open(relay).get("/ready").0
}

/// Fills the disk, does what needs none, and asks whether the relay is ready.
///
/// Every ten seconds the relay looks by itself whether it can write again; what it writes then is small and may fit, and
/// what moves from the log into the store makes room. Where that came in between, it is done once more.
fn ready_when_full(
    relay: &Relay,
    author: &mut Author,
    client: &mut Client,
    needs_no_disk: impl Fn(&mut Author, &mut Client),
) -> u16 {
    let mut code = 200;
    for _ in 0..9 {
        author.fill(client);
        needs_no_disk(author, client);
        code = ready(relay);
        if code != 200 {
            break;
        }
    }
    code
}

/// Room was made: the relay takes events again, by itself.
fn recover(author: &mut Author, client: &mut Client) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while !author.publish(client, 1, 100).is_empty() {
        assert!(Instant::now() < deadline, "no event is taken, though there is room");
    }
}

/// Descriptors of the relay in the test below, and connections that it is asked for.
const DESCRIPTORS: usize = 64;

#[test]
fn without_file_descriptors_those_who_are_connected_are_served_and_others_wait_their_turn() {
    let mut rng = seeded("without_file_descriptors_those_who_are_connected_are_served_and_others_wait_their_turn");
    // The others answer no ping, however long this takes.
    let place = Place::with_limits(None, "", "ping_secs = 3600");
    let relay = place.try_start(&format!("ulimit -n {DESCRIPTORS}")).unwrap();
    // Kept open, for there will be no other: it is asked at each step, or the relay would end it.
    let mut http = Http::open(&relay);
    let mut is_felt = || http.metric("skep_relay_accept_errors_total") > 0;
    assert!(!is_felt());
    let (mut client, mut author) = (Client::connect(&relay.url).unwrap(), Author::new(&mut rng));
    let mut others = Vec::new();
    let address = relay.url.strip_prefix("ws://").unwrap();
    let waiting = loop {
        let stream = TcpStream::connect(address).unwrap();
        let other = stream.try_clone().unwrap();
        match (Client::over(other, Duration::from_millis(500)), is_felt()) {
            (Ok(other), _) => others.push(other),
            (Err(_), true) => break stream,
            // The limit only where the relay says so: the machine may be slow.
            (Err(_), false) => {}
        }
        assert!(others.len() < DESCRIPTORS, "the limit is not felt");
    };
    drop(waiting);
    assert!(is_felt());
    // Enough for new logs, which need descriptors too.
    for _ in 0..80 {
        assert_eq!(author.publish(&mut client, 250, 100), Vec::<String>::new());
    }
    author.assert_kept(&mut client);
    let (place_left, last) = (others.len() / 2, others.last_mut().unwrap());
    author.assert_kept(last);
    others.truncate(place_left);
    let mut late = Client::connect(&relay.url).unwrap();
    author.assert_kept(&mut late);
    assert_eq!(author.publish(&mut late, 250, 100), Vec::<String>::new());
    println!("{} connections beside ours, then no more; {} events", place_left * 2, author.taken.len());
    drop(relay);
    let relay = place.start();
    author.assert_kept(&mut Client::connect(&relay.url).unwrap());
}
