//! The listener: accepts, bounds connections in all and by address, and splits WebSocket from HTTP.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use skep_core::session::Cut;
use skep_proto::limits;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::conn;
use crate::http;
use crate::metrics::Reason;
use crate::shared::Shared;
use crate::turns::InTurns;

/// How long to wait when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The longest that one plain HTTP connection may last: a large blob on a slow line.
const HTTP_SECS_MAX: u64 = 600;

/// Read buffer of a connection: about 20 events of usual size, and the largest part of an idle connection's memory.
const READ_BUFFER_BYTES: usize = 16 * limits::KIB;

/// Bytes gathered before a write: what one slice of a query makes.
const WRITE_BUFFER_BYTES: usize = 64 * limits::KIB;

/// Accepts until the relay stops.
pub(crate) async fn run(shared: Arc<Shared>, listener: TcpListener, router: Router, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match Place::take(&shared, peer) {
                Ok(place) => {
                    drop(tasks.spawn(serve(Arc::clone(&shared), stream, place, router.clone(), tasks.clone())))
                }
                Err(reason) => {
                    shared.metrics.refused_connections.get_or_create(&Reason::new(reason)).inc();
                    tasks.spawn(turn_away(stream));
                }
            },
            Err(error) => {
                // Out of descriptors, mostly: those who are here go on, newcomers wait in the backlog.
                shared.metrics.accept_errors.inc();
                tracing::warn!(%error, "cannot accept a connection; will try again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One place among the connections of a relay and of an address; given back on drop.
struct Place {
    shared: Arc<Shared>,
    ip: IpAddr,
}

impl Place {
    fn take(shared: &Arc<Shared>, peer: SocketAddr) -> Result<Self, &'static str> {
        let ip = peer.ip().to_canonical();
        let (all_max, ip_max, is_blocked) = {
            let world = shared.world();
            let is_blocked = world.policy.blocked_ips.contains_key(&ip);
            (world.limits.connections, world.limits.connections_per_ip, is_blocked)
        };
        if is_blocked {
            return Err(Cut::Blocked.as_str());
        }
        let mut addresses = shared.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = addresses.values().sum();
        if all >= all_max {
            return Err("too many connections");
        }
        let count = addresses.entry(ip).or_insert(0);
        if *count >= ip_max {
            return Err("too many connections from one address");
        }
        *count += 1;
        drop(addresses);
        Ok(Self { shared: Arc::clone(shared), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut addresses = self.shared.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.ip);
            }
        }
    }
}

async fn turn_away(mut stream: TcpStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 30\r\nConnection: close\r\nContent-Length: 21\r\n\r\ntoo many connections\n";
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(ANSWER)).await;
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, place: Place, router: Router, tasks: TaskTracker) {
    let _ = stream.set_nodelay(true);
    let place = Arc::new(place);
    // The relay's own stop ends it too.
    let hang_up = shared.stop.child_token();
    let caller = http::Caller { ip: place.ip, hang_up: hang_up.clone() };
    let service = hyper::service::service_fn(move |mut request: Request<hyper::body::Incoming>| {
        let (shared, router, place, tasks) = (Arc::clone(&shared), router.clone(), Arc::clone(&place), tasks.clone());
        request.extensions_mut().insert(caller.clone());
        async move {
            match upgrade_key(request.headers()) {
                Some(key) => Ok(upgrade(shared, place, request, &key, &tasks)),
                None => router.oneshot(request.map(Body::new)).await,
            }
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(limits::HEAD_SECS_MAX))
        .max_buf_size(64 * limits::KIB)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        () = hang_up.cancelled() => {}
        _ = tokio::time::timeout(Duration::from_secs(HTTP_SECS_MAX), connection) => {}
    }
}

/// The key of a WebSocket upgrade request, when it is one (RFC 6455, 4.2.1).
fn upgrade_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let has = |name, token: &str| {
        let value = headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or("");
        value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    let is_upgrade = has(CONNECTION, "upgrade") && has(UPGRADE, "websocket") && has(SEC_WEBSOCKET_VERSION, "13");
    headers.get(SEC_WEBSOCKET_KEY).filter(|_| is_upgrade).cloned()
}

fn upgrade(
    shared: Arc<Shared>,
    place: Arc<Place>,
    request: Request<hyper::body::Incoming>,
    key: &HeaderValue,
    tasks: &TaskTracker,
) -> Response<Body> {
    // Tracked: a relay that stops waits until its connections have said goodbye.
    tasks.spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let frame = shared.world().limits.frame_bytes;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(WRITE_BUFFER_BYTES)
            .max_message_size(Some(frame))
            .max_frame_size(Some(frame));
        // Back to the bare socket: no hyper in the path of a message.
        if let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() {
            let stream = parts.io.into_inner();
            let _ = SockRef::from(&stream).set_send_buffer_size(limits::SEND_BUFFER_BYTES);
            let stream = InTurns::new(stream);
            let socket =
                WebSocketStream::from_partially_read(stream, parts.read_buf.into(), Role::Server, Some(config)).await;
            let ip = place.ip;
            let cut = conn::run(Arc::clone(&shared), socket, ip).await;
            if matches!(cut, Some(Cut::Strikes | Cut::NoisyAddress)) {
                // Its place stays taken, so that coming again at once gains nothing.
                let cooling = tokio::time::sleep(Duration::from_secs(limits::COOLING_SECS));
                let _ = shared.stop.run_until_cancelled(cooling).await;
            }
        }
        drop(place);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}
