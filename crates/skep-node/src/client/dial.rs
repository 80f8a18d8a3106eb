//! From a URL to a connection: TCP, TLS for `wss`, then WebSocket or HTTP on top.

use std::error::Error;
use std::io;

use skep_agent::tls;
use skep_proto::limits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, protocol::WebSocketConfig};
use url::{Host, Url};

use super::ClientError;

/// Read buffer of a connection, which is cleared before each read: about 20 events of usual size. A node has one
/// connection for each agent and relay, and most of them are idle.
const READ_BUFFER_BYTES: usize = 16 * limits::KIB;

/// Bytes of one message from a relay: our own frame limit is 512 KiB, others allow more.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes that a URL may have; longer ones are a mistake.
const URL_BYTES_MAX: usize = 2_048;

/// A connected byte stream, plain or TLS.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Reads the URL of a relay: `ws` or `wss`, with a host, and nothing secret in it.
pub fn parse_relay_url(text: &str) -> Result<Url, ClientError> {
    let bad = |why| ClientError::BadUrl { url: text.chars().take(200).collect(), why };
    if text.len() > URL_BYTES_MAX {
        return Err(bad("it is too long"));
    }
    let url = Url::parse(text).map_err(|_| bad("it cannot be read"))?;
    if !matches!(url.scheme(), "ws" | "wss") {
        return Err(bad("it must begin with ws:// or wss://"));
    }
    if url.host().is_none() {
        return Err(bad("it has no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ClientError::BadUrl { url: "the given text".into(), why: "user names and passwords are not used" });
    }
    Ok(url)
}

/// Connects and upgrades.
pub(super) async fn websocket(url: &Url) -> Result<WebSocketStream<Box<dyn Transport>>, ClientError> {
    let stream = transport(url).await?;
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = READ_BUFFER_BYTES;
    config.max_message_size = Some(MESSAGE_BYTES_MAX);
    config.max_frame_size = Some(MESSAGE_BYTES_MAX);
    match tokio_tungstenite::client_async_with_config(url.as_str(), stream, Some(config)).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => {
            let cause = format!("HTTP status {}", response.status().as_u16());
            Err(ClientError::NotARelay { url: url.to_string(), cause })
        }
        Err(WsError::Io(cause)) => Err(unreachable(url, &cause)),
        Err(cause) => Err(ClientError::NotARelay { url: url.to_string(), cause: cause.to_string() }),
    }
}

/// Connects to the host of a URL, with TLS for `wss` and `https`.
pub(super) async fn transport(url: &Url) -> Result<Box<dyn Transport>, ClientError> {
    let secure = matches!(url.scheme(), "wss" | "https");
    let port = url.port().unwrap_or(if secure { 443 } else { 80 });
    let connected = match url.host() {
        Some(Host::Domain(name)) => TcpStream::connect((name, port)).await,
        Some(Host::Ipv4(address)) => TcpStream::connect((address, port)).await,
        Some(Host::Ipv6(address)) => TcpStream::connect((address, port)).await,
        None => return Err(ClientError::BadUrl { url: url.to_string(), why: "it has no host" }),
    };
    let tcp = connected.map_err(|cause| unreachable(url, &cause))?;
    // Requests are small and answers are awaited: waiting to fill a packet only adds latency.
    tcp.set_nodelay(true).map_err(|cause| unreachable(url, &cause))?;
    if !secure {
        return Ok(Box::new(tcp));
    }
    let name = match url.host() {
        Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()).ok(),
        Some(Host::Ipv4(address)) => Some(ServerName::IpAddress(address.into())),
        Some(Host::Ipv6(address)) => Some(ServerName::IpAddress(address.into())),
        None => None,
    };
    let name = name.ok_or_else(|| ClientError::BadUrl { url: url.to_string(), why: "TLS cannot name this host" })?;
    let no_tls = |cause: io::Error| ClientError::NotARelay { url: url.to_string(), cause: format!("TLS: {cause}") };
    Ok(Box::new(tls().connect(name, tcp).await.map_err(no_tls)?))
}

/// The operating system's words, without its number.
fn unreachable(url: &Url, cause: &io::Error) -> ClientError {
    let cause = match cause.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        _ => cause.source().map_or_else(|| cause.to_string(), |inner| inner.to_string()),
    };
    ClientError::Unreachable { url: url.to_string(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_url_of_a_relay_is_taken() {
        for good in ["ws://127.0.0.1:7777", "wss://relay.example/path?x=1", "ws://[::1]:1", "ws://localhost"] {
            assert!(parse_relay_url(good).is_ok(), "{good}");
        }
        let long = format!("ws://a/{}", "a".repeat(3_000));
        for bad in ["", "relay", "http://x", "ws://", "127.0.0.1:7777", "file:///etc/passwd", long.as_str()] {
            assert!(matches!(parse_relay_url(bad), Err(ClientError::BadUrl { .. })), "{bad}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        let error = parse_relay_url("ws://me:hunter2@relay.example").expect_err("refused").to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[tokio::test]
    async fn a_closed_port_is_unreachable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let url = parse_relay_url(&format!("ws://127.0.0.1:{port}")).expect("a url");
        assert!(matches!(websocket(&url).await, Err(ClientError::Unreachable { .. })));
    }
}
