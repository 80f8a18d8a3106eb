//! A network between one machine and the relay that can be made to fail: lines are cut, reset, stalled, or broken in
//! the middle of a message.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a stalled line looks whether it may go on.
const LOOK: Duration = Duration::from_millis(5);

/// Small, so that a break falls into a message.
const CHUNK_BYTES: usize = 4 * 1024;

/// Where the relay is now; it has another port after each start.
pub type Upstream = Arc<Mutex<SocketAddr>>;

/// How lines end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a FIN, as when a process ends.
    Closed,
    /// With an RST, as when a router forgets.
    Reset,
}

struct Line {
    near: TcpStream,
    far: TcpStream,
    is_reset: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    lines: Mutex<Vec<Line>>,
    is_stalled: AtomicBool,
    has_ended: AtomicBool,
    /// Bytes that still go to the relay before all lines end.
    left: Mutex<Option<usize>>,
}

pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    pub fn start(upstream: Upstream) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                if shared.has_ended.load(Ordering::SeqCst) {
                    return;
                }
                let to = *upstream.lock().unwrap();
                // A relay that is away refuses; the client sees its line end.
                if let (Ok(near), Ok(far)) = (near, TcpStream::connect(to)) {
                    shared.join(near, far);
                }
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Ends all lines; new ones are taken.
    pub fn cut(&self, end: End) {
        self.state.cut(end);
    }

    /// While stalled, nothing goes either way and nothing ends.
    pub fn stall(&self, is_stalled: bool) {
        self.state.is_stalled.store(is_stalled, Ordering::SeqCst);
    }

    /// Ends all lines when so many more bytes have gone to the relay.
    pub fn cut_after(&self, bytes: usize) {
        *self.state.left.lock().unwrap() = Some(bytes);
    }

    /// Everything passes.
    pub fn mend(&self) {
        self.stall(false);
        *self.state.left.lock().unwrap() = None;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.mend();
        self.state.has_ended.store(true, Ordering::SeqCst);
        self.state.cut(End::Closed);
        // Wakes the thread that listens.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn join(self: &Arc<Self>, near: TcpStream, far: TcpStream) {
        for stream in [&near, &far] {
            stream.set_nodelay(true).unwrap();
        }
        let clone = |stream: &TcpStream| stream.try_clone().unwrap();
        let is_reset = Arc::new(AtomicBool::new(false));
        let ways = [(clone(&near), clone(&far), true), (clone(&far), clone(&near), false)];
        {
            let mut lines = self.lines.lock().unwrap();
            lines.retain(|line| line.near.peer_addr().is_ok() && line.far.peer_addr().is_ok());
            lines.push(Line { near, far, is_reset: Arc::clone(&is_reset) });
        }
        for (from, to, is_up) in ways {
            let (state, is_reset) = (Arc::clone(self), Arc::clone(&is_reset));
            std::thread::spawn(move || {
                state.carry(&from, &to, is_up);
                if !is_reset.load(Ordering::SeqCst) {
                    // Gone already is as good.
                    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                }
            });
        }
    }

    fn carry(&self, mut from: &TcpStream, mut to: &TcpStream, is_up: bool) {
        let mut chunk = [0; CHUNK_BYTES];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            while self.is_stalled.load(Ordering::SeqCst) {
                std::thread::sleep(LOOK);
            }
            let allowed = if is_up { self.spend(length) } else { length };
            if to.write_all(&chunk[..allowed]).is_err() {
                return;
            }
            if allowed < length {
                return self.cut(End::Closed);
            }
        }
    }

    fn spend(&self, length: usize) -> usize {
        let mut left = self.left.lock().unwrap();
        let Some(bytes) = *left else { return length };
        *left = (bytes >= length).then(|| bytes - length);
        length.min(bytes)
    }

    fn cut(&self, end: End) {
        for Line { near, far, is_reset } in self.lines.lock().unwrap().drain(..) {
            let how = match end {
                End::Closed => Shutdown::Both,
                End::Reset => {
                    is_reset.store(true, Ordering::SeqCst);
                    for stream in [&near, &far] {
                        // Who closes last then sends an RST. It may be closed already.
                        let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
                    }
                    // Wakes whoever reads it, and tells the other side nothing.
                    Shutdown::Read
                }
            };
            let _ = (near.shutdown(how), far.shutdown(how));
        }
    }
}
