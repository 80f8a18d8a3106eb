//! Where the load goes: a relay's URL, resolved once, and the local addresses it comes from.
//!
//! Must not: speak WebSocket (that is `conn`), or measure anything.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use anyhow::{Context, Result};
use tokio_tungstenite::tungstenite::http::Uri;

/// Connections from one loopback address before the next is used: relays commonly allow 64 per address.
const CONNECTIONS_PER_SOURCE: usize = 50;

/// A plain WebSocket URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayUrl {
    pub text: String,
    host: String,
    port: u16,
}

impl FromStr for RelayUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{error}; expected ws://host:port"))?;
        match uri.scheme_str() {
            Some("ws") => {}
            Some("wss") => return Err("TLS is not measured; give the relay's plain ws:// address".into()),
            _ => return Err("expected ws://host:port".into()),
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("the URL has no host; expected ws://host:port")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { text: text.to_owned(), host, port: uri.port_u16().unwrap_or(80) })
    }
}

/// A relay's URL with its address.
#[derive(Debug, Clone)]
pub struct Target {
    pub url: RelayUrl,
    pub address: SocketAddr,
}

impl Target {
    pub fn resolve(url: &RelayUrl) -> Result<Self> {
        let address = (url.host.as_str(), url.port)
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve {}", url.text))?
            .next()
            .with_context(|| format!("{} has no address", url.text))?;
        Ok(Self { url: url.clone(), address })
    }

    /// The address that connection number `index` comes from; `None` leaves it to the system.
    ///
    /// Only on IPv4 loopback, where all of 127/8 is ours: so that neither a relay's limit per address nor the
    /// 28,000 ports of one address pair end a measurement.
    pub fn source(&self, index: usize) -> Option<IpAddr> {
        let block = index / CONNECTIONS_PER_SOURCE;
        if block == 0 || !matches!(self.address.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
            return None;
        }
        let [third, fourth] = [block / 250, block % 250 + 2];
        Some(IpAddr::V4(Ipv4Addr::new(127, 0, u8::try_from(third).ok()?, u8::try_from(fourth).ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_websocket_urls_are_taken() {
        for good in ["ws://127.0.0.1:7777", "ws://localhost/nostr", "ws://[::1]:80/"] {
            assert!(good.parse::<RelayUrl>().is_ok(), "{good}");
        }
        for bad in ["", "http://a", "wss://a", "127.0.0.1:7777", "ws://", "ws://a b"] {
            assert!(bad.parse::<RelayUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ten_thousand_connections_stay_under_64_for_each_address() {
        let target = Target::resolve(&"ws://127.0.0.1:1".parse().expect("a valid URL")).expect("loopback resolves");
        let mut seen = std::collections::HashMap::new();
        for index in 0..10_000 {
            *seen.entry(target.source(index)).or_insert(0) += 1;
        }
        assert!(seen.values().all(|&count| count <= CONNECTIONS_PER_SOURCE));
    }
}
