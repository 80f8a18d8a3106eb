//! The client's side of NIP-77.

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use skep_proto::wire::quote;
use skep_proto::{EventId, Filter, Timestamp, limits, reconcile as guarded};

use super::{Items, unique};
use crate::client::{Client, ClientError, RelayMsg};
use crate::transfer::TransferError;

/// More rounds than any reconciliation needs: one that does not end is a fault of the relay.
const ROUNDS_MAX: u32 = 10_000;

/// Ids that a relay may name as missing here: 40 bytes each. A relay cannot make us hold more.
const NEED_MAX: usize = 10_000_000;

const SUB: &str = "skep-sync";

/// Which ids one side has and the other lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// We have them, the relay lacks them.
    pub have: Vec<EventId>,
    /// The relay has them, we lack them.
    pub need: Vec<EventId>,
}

/// A stretch of time, both ends included; `None` is without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

/// The relay does not reconcile so many events at once; this is what it said.
pub(super) struct TooLarge(String);

impl TooLarge {
    pub fn into_error(self, url: &str) -> TransferError {
        TransferError::NoReconciliation { url: url.to_owned(), said: self.0 }
    }
}

impl Window {
    pub fn of(filter: &Filter) -> Self {
        Self { since: filter.since, until: filter.until }
    }

    fn holds(self, at: Timestamp) -> bool {
        self.since.is_none_or(|since| since <= at) && self.until.is_none_or(|until| at <= until)
    }

    /// Two windows that make up this one, the older first; `None` when it is one second.
    pub fn halves(self, now: Timestamp) -> Option<[Self; 2]> {
        let from = self.since.unwrap_or(0);
        // What is ahead of the clock is not taken apart: nobody stores much of it.
        let to = self.until.unwrap_or(now);
        let middle = from + to.checked_sub(from).filter(|length| *length > 0)? / 2;
        Some([Self { until: Some(middle), ..self }, Self { since: Some(middle + 1), ..self }])
    }
}

/// Reconciles a set of ours with what a relay has of a filter.
pub async fn reconcile(
    client: &mut Client,
    filter: &Filter,
    items: &[(Timestamp, EventId)],
) -> Result<Difference, TransferError> {
    let found = reconcile_window(client, filter, Window::of(filter), items).await?;
    found.map_err(|too_large| too_large.into_error(client.url().as_str()))
}

pub(super) async fn reconcile_window(
    client: &mut Client,
    filter: &Filter,
    window: Window,
    items: &[(Timestamp, EventId)],
) -> Result<Result<Difference, TooLarge>, TransferError> {
    let filter = Filter { since: window.since, until: window.until, limit: None, ..filter.clone() };
    let inside = items.iter().filter(|(at, _)| window.holds(*at)).copied().collect();
    let mut talk = Talk::new(client, inside)?;
    match talk.run(&filter).await? {
        None => Ok(Ok(talk.difference())),
        Some(said) => Ok(Err(TooLarge(said))),
    }
}

/// One reconciliation.
struct Talk<'c> {
    client: &'c mut Client,
    ours: Negentropy<'static, NegentropyStorageVector>,
    have: Vec<Id>,
    need: Vec<Id>,
}

impl<'c> Talk<'c> {
    fn new(client: &'c mut Client, items: Items) -> Result<Self, TransferError> {
        let broken = |error: negentropy::Error| protocol(client, error.to_string());
        let mut storage = NegentropyStorageVector::with_capacity(items.len());
        for (at, id) in items {
            storage.insert(at, Id::from_byte_array(id.0)).map_err(broken)?;
        }
        storage.seal().map_err(broken)?;
        let ours = Negentropy::owned(storage, limits::NEG_FRAME_BYTES as u64).map_err(broken)?;
        Ok(Self { client, ours, have: Vec::new(), need: Vec::new() })
    }

    /// Talks until both sides are through. `Some`: the relay finds the set too large.
    async fn run(&mut self, filter: &Filter) -> Result<Option<String>, TransferError> {
        let first = self.ours.initiate().map_err(|error| protocol(self.client, error.to_string()))?;
        let filter = serde_json::to_string(filter).expect("invariant: a filter is strings and numbers");
        let hex = faster_hex::hex_string(&first);
        self.client.send(format!(r#"["NEG-OPEN",{},{filter},"{hex}"]"#, quote(SUB))).await?;
        for round in 0..ROUNDS_MAX {
            let answer = match self.answer(round == 0).await? {
                Ok(answer) => answer,
                Err(too_large) => return Ok(Some(too_large)),
            };
            let Some(next) = self.step(&answer)? else {
                self.client.send(format!(r#"["NEG-CLOSE",{}]"#, quote(SUB))).await?;
                return Ok(None);
            };
            let hex = faster_hex::hex_string(&next);
            self.client.send(format!(r#"["NEG-MSG",{},"{hex}"]"#, quote(SUB))).await?;
        }
        Err(protocol(self.client, format!("no end after {ROUNDS_MAX} rounds")))
    }

    /// Takes one message of the relay. `None`: nothing is left to ask.
    fn step(&mut self, answer: &[u8]) -> Result<Option<Vec<u8>>, TransferError> {
        // Lengths in it are the relay's word: they are walked before anything is reserved for them.
        match guarded::guard(answer) {
            Ok(true) => {}
            Ok(false) => return Err(protocol(self.client, "another version of negentropy".into())),
            Err(error) => return Err(protocol(self.client, error.to_string())),
        }
        let next = self.ours.reconcile_with_ids(answer, &mut self.have, &mut self.need);
        let next = next.map_err(|error| protocol(self.client, error.to_string()))?;
        if self.need.len() > NEED_MAX {
            return Err(protocol(self.client, format!("it names more than {NEED_MAX} ids")));
        }
        Ok(next)
    }

    /// The relay's next message. The inner `Err`: it finds the set too large.
    async fn answer(&mut self, is_first: bool) -> Result<Result<Vec<u8>, String>, TransferError> {
        loop {
            let message = match self.client.receive("waiting for NEG-MSG").await {
                Err(ClientError::Timeout { url, waited, notice, .. }) if is_first => {
                    let said = notice.unwrap_or_else(|| format!("no answer within {} s", waited.as_secs()));
                    return Err(TransferError::NoReconciliation { url, said });
                }
                other => other?,
            };
            match message {
                RelayMsg::NegMsg { sub, message } if sub == SUB => {
                    let mut bytes = vec![0; message.len() / 2];
                    return match faster_hex::hex_decode(message.as_bytes(), &mut bytes) {
                        Ok(()) => Ok(Ok(bytes)),
                        Err(_) => Err(protocol(self.client, "its message is not hex".into())),
                    };
                }
                RelayMsg::NegErr { sub, reason } if sub == SUB => {
                    if is_first && reason.starts_with("blocked:") {
                        return Ok(Err(reason));
                    }
                    return Err(no_reconciliation(self.client, reason));
                }
                RelayMsg::Closed { sub, message } if sub == SUB => return Err(no_reconciliation(self.client, message)),
                RelayMsg::Notice(said) if is_first && is_about_neg(&said) => {
                    return Err(no_reconciliation(self.client, said));
                }
                _ => {}
            }
        }
    }

    fn difference(self) -> Difference {
        let ids = |ids: Vec<Id>| unique(ids.into_iter().map(|id| EventId(id.to_bytes())));
        Difference { have: ids(self.have), need: ids(self.need) }
    }
}

/// How relays without NIP-77 answer NEG-OPEN: in a NOTICE, in their own words.
fn is_about_neg(notice: &str) -> bool {
    let notice = notice.to_ascii_lowercase();
    ["neg", "unknown", "unsupported", "unrecogni", "bad msg", "not supported", "invalid"]
        .iter()
        .any(|word| notice.contains(word))
}

fn protocol(client: &Client, why: String) -> TransferError {
    TransferError::Reconciliation { url: client.url().to_string(), why }
}

fn no_reconciliation(client: &Client, said: String) -> TransferError {
    TransferError::NoReconciliation { url: client.url().to_string(), said }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_cover_the_window_and_come_to_an_end() {
        let mut windows = vec![Window { since: None, until: None }];
        let mut seconds = Vec::new();
        while let Some(window) = windows.pop() {
            match window.halves(9) {
                Some(halves) => {
                    for at in [0, 3, 4, 9, 10, u64::MAX].into_iter().filter(|at| window.holds(*at)) {
                        assert_eq!(halves.iter().filter(|half| half.holds(at)).count(), 1, "{at} in {halves:?}");
                    }
                    windows.extend(halves);
                }
                None => seconds.push(window),
            }
            assert!(seconds.len() < 30);
        }
        assert!(seconds.iter().any(|window| window.since == Some(4) && window.until == Some(4)));
    }
}
