//! The control socket, spoken to as anybody might.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use skep_proto::limits;

use super::place::{PATIENCE, Place, Ran, Up};

fn running() -> (Place, Up, PathBuf) {
    let place = Place::new();
    place.done(&["agent", "new", "scout", "--preset", "demo"]);
    let up = place.up();
    let socket = place.home().join("run").join(format!("{}.sock", up.pid()));
    (place, up, socket)
}

fn connect(socket: &Path) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}

fn ask(stream: &mut BufReader<UnixStream>, line: &[u8]) -> Value {
    stream.get_mut().write_all(line).unwrap();
    stream.get_mut().write_all(b"\n").unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

#[test]
fn garbage_is_refused_in_words_and_the_connection_goes_on_but_a_line_without_end_ends_it() {
    let (place, up, socket) = running();
    let mut stream = connect(&socket);
    for bad in [&b"{"[..], b"", b"\xff\xfe\x00", b"[]", br#"{"v":1,"ask":"dance"}"#, br#"{"v":1,"ask":"claim"}"#] {
        let answer = ask(&mut stream, bad);
        assert_eq!(answer["answer"], "refused", "{answer}");
        assert!(answer["why"].as_str().unwrap().starts_with("not a request: "), "{answer}");
    }
    let newer = ask(&mut stream, br#"{"v":9,"ask":"status"}"#);
    assert!(newer["why"].as_str().unwrap().contains("version 9"), "{newer}");
    let status = ask(&mut stream, br#"{"v":1,"ask":"status","more":[1]}"#);
    assert_eq!((status["answer"].as_str(), &status["pid"]), (Some("status"), &up.pid().into()));
    let unknown = ask(&mut stream, br#"{"v":1,"ask":"claim","agent":"nobody"}"#);
    assert!(unknown["why"].as_str().unwrap().contains("no agent nobody"), "{unknown}");
    // One byte more than a request may have, and no end of the line.
    let mut stream = connect(&socket);
    stream.get_mut().write_all(&vec![b'x'; limits::CONTROL_REQUEST_BYTES_MAX + 1]).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("a request is at most") && rest.lines().count() == 1, "{rest}");
    // Half a request, and gone.
    connect(&socket).get_mut().write_all(br#"{"v":1,"#).unwrap();
    place.until_leads("scout");
}

#[test]
fn more_connections_than_there_are_places_are_told_so() {
    let (place, _up, socket) = running();
    let mut all: Vec<_> = (0..limits::CONTROL_CONNECTIONS_MAX).map(|_| connect(&socket)).collect();
    for stream in &mut all {
        assert_eq!(ask(stream, br#"{"v":1,"ask":"status"}"#)["answer"], "status");
    }
    let mut one_more = String::new();
    connect(&socket).read_to_string(&mut one_more).unwrap();
    assert!(one_more.contains("connections are served already"), "{one_more}");
    drop(all);
    place.until_leads("scout");
}

#[test]
fn a_process_that_hangs_is_not_taken_for_one_that_is_gone() {
    let (place, up, socket) = running();
    place.until_leads("scout");
    up.signal(Signal::STOP);
    let ran = place.run(&["status"]);
    ran.fails(4, &format!("process {} does not answer on its control socket", up.pid()), "if it hangs, end it");
    assert!(ran.stdout.contains("unknown") && !ran.stdout.contains("stopped"), "{}", ran.stdout);
    assert!(socket.exists());
    up.signal(Signal::CONT);
    place.until_leads("scout");
}

#[test]
fn nobody_elses_process_is_heard() {
    let (place, up, socket) = running();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(socket.parent().unwrap()), mode(&socket)), (0o700, 0o600));
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: another user's process needs root to be started");
    }
    // Everything on the way is opened, so that nothing but the socket itself is in the way.
    let open = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    for path in [place.dir(), &place.home(), socket.parent().unwrap()] {
        open(path, 0o755);
    }
    open(&socket, 0o666);
    let command = place.command(&["agent", "pause", "scout", "--here"]);
    let binary = place.dir().join("skep-copy");
    std::fs::copy(command.get_program(), &binary).unwrap();
    let mut other = Command::new("setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary).args(command.get_args());
    for (name, value) in command.get_envs() {
        other.env(name, value.unwrap());
    }
    open(&place.config(), 0o644);
    let ran = Ran::of(other.output().unwrap());
    ran.fails(4, &format!("process {} does not answer", up.pid()), "kill");
    open(&socket, 0o600);
    for path in [place.dir(), &place.home(), socket.parent().unwrap()] {
        open(path, 0o700);
    }
    assert_eq!(place.agent("scout")["paused"], Value::Null);
}

#[test]
fn a_home_with_a_long_path_has_a_socket_too() {
    let place = Place::new();
    let home = place.dir().join("long".repeat(30)).join("skep");
    let at = |args: &[&str]| {
        let mut command = place.command(args);
        command.env("SKEP_HOME", &home);
        command
    };
    let up = place.spawn_with(at(&["up"]));
    up.until(|line| line.starts_with("Ctrl-C"));
    let status = at(&["status"]).output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
}
