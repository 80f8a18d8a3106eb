//! Abuse as a process of its own: this test binary, started again, on one core, in the scheduling class for what only
//! takes what nobody else wants (`SCHED_IDLE`).
//!
//! An attacker is on another machine. On this one, in the measuring process or at its priority, it would take the time
//! of the client that is measured, and the figures would tell about the kernel's scheduler: the control, which never
//! touches the relay, tells how much of that is left. What such an attacker takes from others it takes through the relay.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;
use skep_proto::{Draft, Kind};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::bombs::{bombs, request};
use crate::load_harness::{Client, keys, now};
use crate::raw::{Raw, TEXT, frame};

/// Which abuse a started process commits, and against whom.
const ATTACK: &str = "SKEP_TEST_ATTACK";
const ADDRESS: &str = "SKEP_TEST_ATTACK_ADDRESS";

/// Bytes that an attacker's kernel takes of what it sends. Of its own it takes megabytes and delivers them in one piece
/// within whoever reads or acknowledges next, for 1 to 2 ms, in which no thread gets that core: between two machines a
/// wire stands in between. What the relay is sent in all is not less (678 MB/s of malformed messages, with this 758).
const SEND_BUFFER_BYTES: u32 = 16 * 1024;

/// What the process says when its attack has begun.
const BEGUN: &str = "the attack has begun";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// The control: takes what it can get in the same class, and never touches the relay.
    BusyNeighbour,
    Slowloris,
    FilterBombs,
    /// From one address, which the relay has a limit for.
    MalformedFlood,
    /// Each connection from another address, as of a net of many machines.
    MalformedFromMany,
    /// Not one: 8 MB/s of events by a client that does as it should.
    Publisher,
    NeverReading,
}

impl Attack {
    pub const ALL: [Self; 7] = [
        Self::BusyNeighbour,
        Self::Slowloris,
        Self::FilterBombs,
        Self::MalformedFlood,
        Self::MalformedFromMany,
        Self::Publisher,
        Self::NeverReading,
    ];

    /// What goes on already when it begins, and is no abuse: there is nothing to leave unread where nobody publishes.
    pub fn beside(self) -> Option<Self> {
        (self == Self::NeverReading).then_some(Self::Publisher)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::BusyNeighbour => "busy neighbour",
            Self::Slowloris => "slowloris",
            Self::FilterBombs => "filter bombs",
            Self::MalformedFlood => "malformed flood",
            Self::MalformedFromMany => "malformed from many",
            Self::Publisher => "8 MB/s published",
            Self::NeverReading => "never-reading",
        }
    }
}

/// A process that attacks. Dropping it kills it.
pub struct Attacker {
    attack: Attack,
    child: Child,
    /// Held open: what it says of its end must go somewhere.
    _stdout: BufReader<ChildStdout>,
}

impl Attacker {
    /// Gives it back when the attack has begun. `test` is the test that begins with [`attack_if_told`].
    pub fn start(attack: Attack, address: SocketAddr, test: &str) -> Self {
        let core = std::thread::available_parallelism().unwrap().get() - 1;
        // Each of these becomes the program that it starts, so the process id is the attacker's.
        let mut child = Command::new("taskset")
            .args(["--cpu-list", &core.to_string(), "chrt", "--idle", "0"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ATTACK, attack.name())
            .env(ADDRESS, address.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.ends_with(&format!("{BEGUN}\n")) {
            assert_ne!(stdout.read_line(&mut said).unwrap(), 0, "{attack:?} did not begin: {said}");
        }
        Self { attack, child, _stdout: stdout }
    }

    /// Panics when the process has ended: it met something that an attacker should not.
    #[track_caller]
    pub fn assert_attacks(&mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "{:?} has ended", self.attack);
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        // SIGKILL to this process id; an error means that it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Attacks, if this process was started for that; then it does not come back.
pub async fn attack_if_told() {
    let Ok(name) = std::env::var(ATTACK) else { return };
    let address = std::env::var(ADDRESS).unwrap().parse().unwrap();
    let attack = Attack::ALL.into_iter().find(|attack| attack.name() == name).unwrap();
    let mut tasks = match attack {
        Attack::BusyNeighbour => busy_neighbour(),
        Attack::Slowloris => slowloris(address),
        Attack::FilterBombs => filter_bombs(address),
        Attack::MalformedFlood => malformed_flood(address, |_| Ipv4Addr::new(127, 0, 0, 2)),
        Attack::MalformedFromMany => malformed_flood(address, |n| Ipv4Addr::from_bits((127 << 24) + (1 << 16) + n)),
        Attack::Publisher => publisher(address),
        Attack::NeverReading => silent_subscribers(address),
    };
    println!("{BEGUN}");
    // None ends but by a panic; then the attack as a whole has failed.
    panic!("{attack:?}: {:?}", tasks.join_next().await);
}

/// An attacker's connection; `receive` is how much its kernel holds that it has not read, where that is not left to it.
async fn dial(relay: SocketAddr, source: Ipv4Addr, receive: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.set_send_buffer_size(SEND_BUFFER_BYTES).unwrap();
    if let Some(bytes) = receive {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    let stream = socket.connect(relay).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn client(relay: SocketAddr, receive: Option<u32>) -> Client {
    Client::over(dial(relay, Ipv4Addr::LOCALHOST, receive).await).await
}

/// Repeats `once` in `count` tasks.
fn repeat<F>(count: usize, once: impl Fn() -> F) -> JoinSet<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    (0..count).map(|_| once()).collect()
}

/// Threads that only count, more than there are cores to have.
fn busy_neighbour() -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..std::thread::available_parallelism().unwrap().get() {
        tasks.spawn_blocking(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    tasks
}

/// 200 requests of which a byte comes every 50 ms, started again when they are cut.
fn slowloris(address: SocketAddr) -> JoinSet<()> {
    repeat(200, || async move {
        loop {
            let mut stream = dial(address, Ipv4Addr::LOCALHOST, None).await;
            while stream.write_all(b"G").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    })
}

/// Four connections that send one bomb after another, as fast as they are answered.
fn filter_bombs(address: SocketAddr) -> JoinSet<()> {
    let requests: Arc<Vec<String>> = Arc::new(bombs().iter().map(|(_, filters, _)| request("s", filters)).collect());
    repeat(4, || {
        let requests = Arc::clone(&requests);
        async move {
            let mut client = client(address, None).await;
            for request in requests.iter().cycle() {
                client.send(request.clone()).await;
                while !client.recv_text().await.starts_with("[\"EOSE\"") {}
            }
        }
    })
}

/// Four clients that send noise until they are cut, and come again, each time from the address of `nth`.
fn malformed_flood(address: SocketAddr, nth: fn(u32) -> Ipv4Addr) -> JoinSet<()> {
    let bushy = format!("[\"EVENT\",{{\"x\":[{}7]}}]", "{\"a\":1},".repeat(60_000));
    let noise = Arc::new(frame(TEXT, true, true, bushy.as_bytes()));
    let came = Arc::new(AtomicU32::new(0));
    repeat(4, || {
        let (noise, came) = (Arc::clone(&noise), Arc::clone(&came));
        async move {
            loop {
                let source = nth(came.fetch_add(1, Ordering::Relaxed));
                let stream = dial(address, source, None).await;
                // The places of who was cut cool: one that is very fast finds none.
                let Ok(mut raw) = Raw::upgrade(stream).await else { continue };
                // Each write is short: the kernel takes a core from nobody in the middle of one.
                for part in (0..21).flat_map(|_| noise.chunks(16 * 1024)) {
                    raw.bytes(part).await;
                }
                // A reset, when the relay had not read all of it.
                raw.end().await;
            }
        }
    })
}

/// 20 subscribers that never read: 8 MB/s for each.
fn silent_subscribers(address: SocketAddr) -> JoinSet<()> {
    repeat(20, || async move {
        loop {
            let mut silent = client(address, Some(64 * 1024)).await;
            silent.request("s", &json!({ "kinds": [2], "limit": 0 })).await;
            // As long as it takes to be cut.
            tokio::time::sleep(Duration::from_secs(12)).await;
        }
    })
}

/// An event of 40 kB every 5 ms.
fn publisher(address: SocketAddr) -> JoinSet<()> {
    repeat(1, || async move {
        let mut client = client(address, None).await;
        let author = keys(9);
        for n in 0u64.. {
            let event = Draft::new(Kind(2), now(), format!("{n:040000}")).sign(&author, &[0; 32]);
            client.publish(&event).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}
