//! What the relay counts, served at `/metrics`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use skep_core::door::Accepted;
use skep_core::session::Cut;

use crate::verify::Verdict;

/// A label with one value out of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    reason: &'static str,
}

impl Reason {
    pub(crate) fn new(reason: &'static str) -> Self {
        Self { reason }
    }
}

macro_rules! metrics {
    ($($name:ident : $type:ty, $kind:literal, $help:literal;)*) => {
        /// Every metric of the relay. Their names on the wire begin with `skep_relay_`.
        pub(crate) struct Metrics {
            $(pub $name: $type,)*
            registry: Registry,
        }

        impl Metrics {
            pub(crate) fn new() -> Self {
                let mut registry = Registry::with_prefix("skep_relay");
                $(let $name = <$type>::default(); registry.register(stringify!($name), $help, $name.clone());)*
                Self { $($name,)* registry }
            }
        }

        /// (name, type, meaning) of each metric, for the generated page.
        pub fn table() -> Vec<(&'static str, &'static str, &'static str)> {
            vec![$((stringify!($name), $kind, $help),)*]
        }
    };
}

metrics! {
    connections: Gauge, "gauge", "Open WebSocket connections";
    connected: Counter, "counter", "WebSocket connections opened";
    refused_connections: Family<Reason, Counter>, "counter by reason", "Connections refused before they opened";
    cut: Family<Reason, Counter>, "counter by reason", "Connections cut by the relay, HTTP ones too";
    accepted: Counter, "counter", "Events committed or put in the ring";
    duplicates: Counter, "counter", "Events that were here already";
    refused: Family<Reason, Counter>, "counter by reason", "Events refused, by prefix";
    verified: Counter, "counter", "Signatures checked";
    requests: Counter, "counter", "REQ messages";
    counts: Counter, "counter", "COUNT messages";
    limited_requests: Counter, "counter", "HTTP requests refused for their rate";
    negotiations: Counter, "counter", "Reconciliations opened";
    served: Counter, "counter", "Stored events sent";
    delivered: Counter, "counter", "Live events queued for a subscription";
    fell_behind: Counter, "counter", "Times that a connection's outbox was full and it went on from the store";
    malformed: Counter, "counter", "Messages that could not be understood";
    store_errors: Counter, "counter", "Operations that the store refused";
    accept_errors: Counter, "counter", "Failed accepts, mostly for want of file descriptors";
    subscriptions: Gauge, "gauge", "Live subscriptions";
    commits: Gauge, "gauge", "Transactions committed";
    commit_micros: Gauge, "gauge", "Time spent in transactions, microseconds";
    ring_dropped: Gauge, "gauge", "Events that left the memory ring because it was full";
}

impl Metrics {
    pub(crate) fn count_verdicts(&self, verdicts: &[Verdict]) {
        for (_, verdict) in verdicts {
            match verdict {
                Ok(Accepted::Stored(_) | Accepted::Answered(_)) => self.accepted.inc(),
                Ok(Accepted::Duplicate) => self.duplicates.inc(),
                Ok(Accepted::Dropped) => self.refused.get_or_create(&Reason::new("dropped")).inc(),
                Err(refusal) => self.refused.get_or_create(&Reason::new(refusal.prefix.as_str())).inc(),
            };
        }
    }

    pub(crate) fn count_cut(&self, cut: Cut) {
        self.cut.get_or_create(&Reason::new(cut.as_str())).inc();
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}
