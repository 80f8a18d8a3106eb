//! Turn metrics (NIP-AM) that agents sent their owner, from any number of relays.
//!
//! Must not: count what is not signed by an agent of this owner, or what cannot be read; both are counted apart.

use std::collections::BTreeMap;

use skep_proto::agent::metering::TurnMetric;
use skep_proto::{EventId, Filter, Kind, RawEvent, Timestamp, agent, seal};

use super::usage::Reading;
use super::{Directory, is_attested};
use crate::client::Client;
use crate::keys::Keys;
use crate::transfer::{Pages, TransferError};

/// Why a metric does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// Not the envelope of a metric to this owner.
    Envelope,
    /// Its author is no agent of this owner, as far as anybody signed.
    Stranger,
    /// It does not open with this key, or what is inside is no metric.
    Unreadable,
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Bills {
    readings: BTreeMap<EventId, Reading>,
    left_out: BTreeMap<EventId, LeftOut>,
    /// Events whose signature does not fit.
    pub forged: u64,
}

impl Bills {
    /// All that a relay has since a time, whatever it gives at once.
    pub async fn read(
        &mut self,
        client: &mut Client,
        keys: &Keys,
        directory: &Directory,
        since: Option<Timestamp>,
    ) -> Result<(), TransferError> {
        let filter = Filter {
            kinds: Some(vec![Kind::AGENT_METRIC]),
            tags: vec![(b'p', vec![keys.pubkey().to_hex()])],
            since,
            ..Filter::new()
        };
        let mut pages = Pages::new(filter);
        while pages.peek(client).await?.is_some() {
            let Some(event) = pages.take() else { break };
            self.take(&event, keys, directory);
        }
        self.forged += pages.forged();
        Ok(())
    }

    fn take(&mut self, event: &RawEvent, keys: &Keys, directory: &Directory) {
        match open(event, keys, directory) {
            Ok(metric) => {
                self.readings.insert(event.id, Reading { event: event.id, agent: event.pubkey, metric });
            }
            Err(why) => drop(self.left_out.insert(event.id, why)),
        }
    }

    pub fn readings(&self) -> impl Iterator<Item = &Reading> {
        self.readings.values()
    }

    /// How many were left out, and why.
    pub fn left_out(&self, why: LeftOut) -> usize {
        self.left_out.values().filter(|found| **found == why).count()
    }
}

fn open(event: &RawEvent, keys: &Keys, directory: &Directory) -> Result<TurnMetric, LeftOut> {
    let metric = agent::metric(event).ok().filter(|metric| metric.owner == keys.pubkey()).ok_or(LeftOut::Envelope)?;
    if !is_attested(event, &metric.owner) && !directory.is_ours(&metric.agent) {
        return Err(LeftOut::Stranger);
    }
    let text = seal::open(keys.keypair(), &metric.agent, &event.content).map_err(|_| LeftOut::Unreadable)?;
    TurnMetric::from_json(&text).map_err(|_| LeftOut::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::home::Home;
    use crate::keys::{Keyring, fresh_aux};
    use skep_proto::attestation::{Conditions, attest};

    fn metric(agent: &Keys, owner: &Keys, inside: &str, attester: Option<&Keys>) -> RawEvent {
        let json = r#"{"harness":"x","timestamp":"2026-07-01T20:11:03Z","turn":{"inputTokens":5}}"#;
        let metric = TurnMetric::from_json(json).expect("a metric");
        let sealed = seal::seal(agent.keypair(), &owner.pubkey(), inside, fresh_aux()).expect("sealed");
        let draft = metric.draft(&agent.pubkey(), &owner.pubkey(), sealed, None);
        let tag = attester.map(|owner| attest(owner.keypair(), &agent.pubkey(), &Conditions::default(), &[0; 32]));
        agent.sign(tag.iter().fold(draft, |draft, tag| draft.tag(tag))).raw().clone()
    }

    #[test]
    fn only_metrics_of_the_owners_agents_count_and_the_others_are_told_apart() {
        let keys = || Keys::generate().expect("randomness");
        let (owner, agent, other) = (keys(), keys(), keys());
        let home = Home::at("nowhere");
        let directory = Directory::of(owner.pubkey(), &Settings::default(), &Keyring::of(&home));
        let good = r#"{"harness":"x","timestamp":"2026-07-01T20:11:03Z","turn":{"inputTokens":5}}"#;
        let mut bills = Bills::default();
        for event in [
            metric(&agent, &owner, good, Some(&owner)),
            metric(&agent, &owner, good, None),
            metric(&agent, &owner, good, Some(&other)),
            metric(&agent, &owner, "not a metric", Some(&owner)),
            metric(&agent, &other, good, Some(&other)),
        ] {
            bills.take(&event, &owner, &directory);
            bills.take(&event, &owner, &directory);
        }
        let counts = [LeftOut::Envelope, LeftOut::Stranger, LeftOut::Unreadable].map(|why| bills.left_out(why));
        assert_eq!((bills.readings().count(), counts), (1, [1, 2, 1]));
    }
}
