//! What goes wrong at a start: one clear line, what mends it, and an exit code.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use super::place::{Place, write};
use super::volume::Volume;

const MIB: u64 = 1 << 20;

/// A configuration with one agent on the built-in program, as `skep agent new` makes it.
fn with_agent() -> Place {
    let place = Place::new();
    place.done(&["agent", "new", "scout", "--preset", "demo"]);
    place
}

#[test]
fn a_mistake_in_the_configuration_is_told_with_its_line_and_column() {
    let place = Place::new();
    let path = place.config().display().to_string();
    for (text, place_in_file, cause) in [
        ("[relay]\nlisten = 127.0.0.1:1\n", "2:", ""),
        ("[relay]\nname = \"x\"\nlissten = \"y\"\n", "3:1", "lissten"),
        ("# a\n\n[relay]\nmap_gib = \"many\"\n", "4:1", "map_gib"),
        ("[relay]\n[[agent]]\nname = \"a\"\npreset = \"demo\"\nrelays = []\n", "5:1", "agent \"a\": relays"),
        ("[relay]\n\n[relay.limits]\nevent_bytes = 600000\nframe_bytes = 600000\n", "5:1", "frame_bytes"),
    ] {
        write(&place.config(), text);
        let ran = place.run(&["up"]);
        ran.fails(3, &format!("{path}:{place_in_file}"), "docs/config.md");
        assert!(ran.stderr.contains(cause), "{}", ran.stderr);
    }
}

#[test]
fn a_port_that_is_taken_says_how_to_find_who_has_it_and_which_setting_is_another() {
    let place = with_agent();
    let _other = TcpListener::bind(&place.listen).unwrap();
    let port = place.listen.rsplit(':').next().unwrap();
    let ran = place.run(&["up"]);
    ran.fails(4, &format!("{} is taken by another program", place.listen), &format!("sport = :{port}"));
    assert!(ran.stderr.contains("`listen` in [relay] of") && ran.stderr.contains("config.toml"), "{}", ran.stderr);
}

#[test]
fn a_home_that_is_running_is_not_started_twice() {
    let place = with_agent();
    let up = place.up();
    let pid = up.pid().to_string();
    place.run(&["up"]).fails(1, &format!("process {pid} runs this home already"), &format!("kill {pid}"));
    place.until_leads("scout");
    drop(up);
}

#[test]
fn a_key_that_others_may_read_stops_everything_with_the_command_that_mends_it() {
    let place = with_agent();
    for key in ["scout", "relay"] {
        let path = place.home().join("keys").join(format!("{key}.key"));
        if !path.exists() {
            place.done(&["key", "generate", key]);
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let mend = format!("chmod 600 {}", path.display());
        place.run(&["up"]).fails(5, "is open to others (mode 0644", &mend);
        let mut words = mend.split(' ');
        assert!(std::process::Command::new(words.next().unwrap()).args(words).status().unwrap().success());
    }
    // At a first start it is the owner's.
    let place = Place::new();
    place.done(&["key", "generate", "owner"]);
    let path = place.home().join("keys/owner.key");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    place.run(&["up"]).fails(5, "owner.key is open to others", &format!("chmod 600 {}", path.display()));
    assert!(!place.config().exists(), "nothing was begun");
}

#[test]
fn without_a_home_or_where_it_may_not_be_made_it_says_what_to_set() {
    let place = Place::new();
    let mut command = place.command(&["up"]);
    command.env_remove("HOME").env_remove("SKEP_HOME");
    let ran = super::place::Ran::of(command.output().unwrap());
    ran.fails(3, "neither SKEP_HOME nor HOME is set", "export SKEP_HOME=");
    // Nobody may make a directory there, root neither.
    let mut command = place.command(&["up"]);
    command.env("SKEP_HOME", "/sys/skep");
    let ran = super::place::Ran::of(command.output().unwrap());
    ran.fails(5, "cannot create /sys/skep", "make /sys writable for you, or choose another home: SKEP_HOME=");
    let mut command = place.command(&["up"]);
    write(&place.dir().join("file"), "");
    command.env("SKEP_HOME", place.dir().join("file/skep"));
    let ran = super::place::Ran::of(command.output().unwrap());
    ran.fails(3, "ot a directory", "choose another home: SKEP_HOME=");
}

#[test]
fn a_full_disk_says_so_and_leaves_nothing_half_made() {
    let volume = match Volume::new(160 * MIB) {
        Ok(volume) => volume,
        Err(why) => return println!("SKIPPED: no file system of its own can be mounted here: {why}"),
    };
    let place = Place::new();
    let home = volume.path().join("skep");
    let mut ballast = std::fs::File::create(volume.path().join("ballast")).unwrap();
    // Whatever fits, and then the rest byte by byte.
    for chunk in [vec![1; MIB as usize], vec![1; 1024], vec![1; 1]] {
        while ballast.write_all(&chunk).is_ok() {}
    }
    let up = || {
        let mut command = place.command(&["up"]);
        command.env("SKEP_HOME", &home);
        super::place::Ran::of(command.output().unwrap())
    };
    up().fails(6, "No space left on device", "free some space");
    assert!(!home.join("config.toml").exists());
    drop(ballast);
    std::fs::remove_file(volume.path().join("ballast")).unwrap();
    // With room it goes on as if it were the first start.
    let mut command = place.command(&["up"]);
    command.env("SKEP_HOME", &home);
    let running = place.spawn_with(command);
    running.until(|line| line.starts_with("Ctrl-C"));
    assert!(home.join("config.toml").exists());
    drop(running);
}

/// A relay that takes no WebSocket, and tells the time by a clock that is so many seconds off.
fn relay_with_a_clock(off: i64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 2048];
            // One read has all of a request's head here; what it says does not matter.
            let _ = stream.read(&mut head);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.checked_add_signed(off).unwrap());
            let date = httpdate::fmt_http_date(at);
            let answer = format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
fn a_clock_an_hour_off_is_told_at_the_start_and_by_the_doctor() {
    for (off, word) in [(3_600, "behind"), (-3_600, "ahead of")] {
        let place = Place::new();
        let url = relay_with_a_clock(off);
        place.done(&["agent", "new", "far", "--preset", "demo", "--relay", &url]);
        let up = place.up();
        let wanted = format!("s {word} that of {url}");
        super::place::until(|| match up.stderr() {
            text if text.contains(&wanted) && text.contains("WARNING") && text.contains("timedatectl") => Ok(()),
            text => Err(text),
        });
        drop(up);
        let doctor = place.run(&["doctor"]);
        assert_eq!(doctor.code, Some(1), "{}", doctor.stderr);
        let wrong: Vec<&str> = doctor.stdout.lines().filter(|line| line.starts_with("WRONG")).collect();
        assert!(wrong.len() == 1 && wrong[0].contains("clock") && wrong[0].contains(&wanted), "{}", doctor.stdout);
    }
    let place = Place::new();
    place.done(&["agent", "new", "far", "--preset", "demo", "--relay", &relay_with_a_clock(5)]);
    let up = place.up();
    assert!(!up.stderr().contains("WARNING"), "{}", up.stderr());
}
