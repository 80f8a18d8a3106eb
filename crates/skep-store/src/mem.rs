//! The oracle: the same promises as the real store, kept in the dumbest way, to test against. Not for use.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_proto::filter::{content_of, search_words, words};
use skep_proto::kind::Class;
use skep_proto::lease::{Lease, Resource};
use skep_proto::{EventId, EventRef, Kind, PubKey, Record, Seq, order};

use crate::{Change, EventStore, LeaseRows, Op, Outcome, Progress, Scan, StoreError, Visit, Visitor};

/// Events in a list; every question is a walk through all of it.
#[derive(Default)]
pub struct MemStore(Mutex<Inner>);

#[derive(Default, Clone)]
struct Inner {
    events: Vec<(Seq, Record)>,
    requests: Vec<Record>,
    leases: BTreeMap<String, Lease>,
    owners: BTreeMap<PubKey, Vec<u8>>,
    policy: Option<Vec<u8>>,
    last: u64,
}

impl MemStore {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventStore for MemStore {
    fn apply(&self, ops: Vec<Op>) -> Result<Vec<Outcome>, StoreError> {
        let mut inner = self.inner();
        let mut next = inner.clone();
        let outcomes = ops.into_iter().map(|op| next.run(op)).collect::<Result<_, _>>()?;
        *inner = next;
        Ok(outcomes)
    }

    fn scan(&self, scan: &mut Scan, _: usize, visitor: &mut dyn Visitor) -> Result<Progress, StoreError> {
        let mut all = self.inner().events.clone();
        all.sort_by(|a, b| {
            let (a, b) = (a.1.as_ref(), b.1.as_ref());
            order::serve_order((a.created_at(), &a.id()), (b.created_at(), &b.id()))
        });
        for (seq, record) in all.iter().filter(|(seq, _)| *seq <= scan.up_to) {
            let open: Vec<usize> = (0..scan.filters.len())
                .filter(|i| scan.remaining[*i] > 0 && matches(&scan.filters[*i], record.as_ref()))
                .collect();
            if !open.is_empty() && visitor.event(*seq, record.as_ref()) != Visit::Hide {
                open.iter().for_each(|i| scan.remaining[*i] -= 1);
            }
        }
        Ok(Progress::Done)
    }

    fn get(&self, id: &EventId) -> Result<Option<(Seq, Record)>, StoreError> {
        Ok(self.inner().events.iter().find(|(_, record)| record.as_ref().id() == *id).cloned())
    }

    fn contains(&self, id: &EventId) -> Result<bool, StoreError> {
        Ok(self.get(id)?.is_some())
    }

    fn read_after(&self, after: Seq, most: usize) -> Result<Vec<(Seq, Record)>, StoreError> {
        Ok(self.inner().events.iter().filter(|(seq, _)| *seq > after).take(most).cloned().collect())
    }

    fn next_seq(&self) -> Seq {
        Seq(self.inner().last + 1)
    }

    fn owners(&self) -> Result<Vec<(PubKey, Vec<u8>)>, StoreError> {
        Ok(self.inner().owners.clone().into_iter().collect())
    }

    fn policy(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.inner().policy.clone())
    }
}

/// Filter matching written a second time, from NIP-01's text, over the JSON.
fn matches(filter: &skep_proto::Filter, event: EventRef<'_>) -> bool {
    let Ok(json) = serde_json::from_str::<serde_json::Value>(&event.to_json()) else { return false };
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    let at = json["created_at"].as_u64().unwrap_or(0);
    let has_tag = |letter: u8, wanted: &[String]| {
        let tags = json["tags"].as_array().cloned().unwrap_or_default();
        tags.iter().any(|tag| {
            let name = tag[0].as_str().unwrap_or_default();
            name == (letter as char).to_string()
                && tag[1].as_str().is_some_and(|value| wanted.iter().any(|w| w == value))
        })
    };
    let has_words = |search: &str| {
        let have: Vec<String> = words(&content_of(event).unwrap_or_default()).collect();
        skep_proto::kind::rule(event.kind()).search && search_words(search).iter().all(|word| have.contains(word))
    };
    filter.ids.as_ref().is_none_or(|ids| ids.iter().any(|id| id.to_hex() == text("id")))
        && filter.authors.as_ref().is_none_or(|keys| keys.iter().any(|key| key.to_hex() == text("pubkey")))
        && filter.kinds.as_ref().is_none_or(|kinds| kinds.iter().any(|kind| json["kind"] == kind.0))
        && filter.tags.iter().all(|(letter, wanted)| has_tag(*letter, wanted))
        && filter.since.is_none_or(|since| at >= since)
        && filter.until.is_none_or(|until| at <= until)
        && filter.search.as_deref().is_none_or(has_words)
}

impl Inner {
    fn run(&mut self, op: Op) -> Result<Outcome, StoreError> {
        match op {
            Op::Put { record, guard, .. } => {
                if let Some(outcome) = self.is_refused(record.as_ref()) {
                    return Ok(outcome);
                }
                let beside = match guard.map(|guard| guard(self)).transpose()? {
                    Some(Err(refusal)) => return Ok(Outcome::Refused(refusal)),
                    Some(Ok(beside)) => beside,
                    None => None,
                };
                let mut changes = vec![self.store(record)];
                changes.extend(beside.map(|beside| self.store(beside)));
                Ok(Outcome::Stored(changes))
            }
            Op::Ring(record) => {
                self.last += 1;
                Ok(Outcome::Stored(vec![Change { seq: Seq(self.last), record }]))
            }
            Op::Lease(call) => Ok(match call(self)? {
                Ok((lease, state)) => {
                    let change = self.store(state);
                    Outcome::Leased(lease, vec![change])
                }
                Err(refusal) => Outcome::Refused(refusal),
            }),
            Op::Own { agent, row } => {
                self.owners.insert(agent, row);
                Ok(Outcome::Done)
            }
            Op::Policy(document) => {
                self.policy = Some(document);
                Ok(Outcome::Done)
            }
            Op::Sweep { now, most } => {
                let due: Vec<Seq> = self
                    .events
                    .iter()
                    .filter(|(_, r)| r.as_ref().is_expired(now))
                    .map(|(seq, _)| *seq)
                    .take(most)
                    .collect();
                self.events.retain(|(seq, _)| !due.contains(seq));
                Ok(Outcome::Swept(due.len()))
            }
        }
    }

    fn is_refused(&self, event: EventRef<'_>) -> Option<Outcome> {
        if self.events.iter().any(|(_, record)| record.as_ref().id() == event.id()) {
            return Some(Outcome::Duplicate);
        }
        let is_request = matches!(event.kind(), Kind::DELETION | Kind::VANISH);
        if !is_request && self.requests.iter().any(|request| deletes(request.as_ref(), event)) {
            return Some(Outcome::Deleted);
        }
        if event.kind() != Kind::VANISH && self.requests.iter().any(|request| vanishes(request.as_ref(), event)) {
            return Some(Outcome::Vanished);
        }
        let is_newer = |old: EventRef<'_>| {
            same_address(old, event)
                && !order::replaces((event.created_at(), &event.id()), (old.created_at(), &old.id()))
        };
        self.events.iter().any(|(_, record)| is_newer(record.as_ref())).then_some(Outcome::Superseded)
    }

    fn store(&mut self, record: Record) -> Change {
        let event = record.as_ref();
        self.events.retain(|(_, old)| !same_address(old.as_ref(), event));
        if matches!(event.kind(), Kind::DELETION | Kind::VANISH) {
            self.requests.push(record.clone());
            self.events.retain(|(_, old)| {
                let old = old.as_ref();
                let is_request = matches!(old.kind(), Kind::DELETION | Kind::VANISH);
                !((deletes(event, old) && !is_request) || vanishes(event, old))
            });
        }
        self.last += 1;
        let seq = Seq(self.last);
        self.events.push((seq, record.clone()));
        Change { seq, record }
    }
}

fn same_address(a: EventRef<'_>, b: EventRef<'_>) -> bool {
    let is_one = a.kind() == b.kind() && a.pubkey() == b.pubkey();
    match a.kind().class() {
        Class::Replaceable => is_one,
        Class::Addressable => is_one && a.identifier() == b.identifier(),
        _ => false,
    }
}

fn deletes(request: EventRef<'_>, event: EventRef<'_>) -> bool {
    let address = match event.kind().class() {
        Class::Replaceable => Some(format!("{}:{}:", event.kind(), event.pubkey()).into_bytes()),
        Class::Addressable => {
            Some([format!("{}:{}:", event.kind(), event.pubkey()).as_bytes(), event.identifier()].concat())
        }
        _ => None,
    };
    request.kind() == Kind::DELETION
        && request.pubkey() == event.pubkey()
        && (request.tag_values(b'e').any(|id| id == event.id().to_hex().as_bytes())
            || (event.created_at() <= request.created_at()
                && address.is_some_and(|address| request.tag_values(b'a').any(|a| a == address))))
}

fn vanishes(request: EventRef<'_>, event: EventRef<'_>) -> bool {
    request.kind() == Kind::VANISH
        && event.created_at() <= request.created_at()
        && (event.pubkey() == request.pubkey()
            || (event.kind() == Kind::GIFT_WRAP && event.names(b'p', &request.pubkey())))
}

impl LeaseRows for Inner {
    fn get(&self, resource: &Resource) -> Result<Option<Lease>, StoreError> {
        Ok(self.leases.get(resource.as_str()).cloned())
    }

    fn put(&mut self, resource: &Resource, lease: &Lease) -> Result<(), StoreError> {
        self.leases.insert(resource.as_str().into(), lease.clone());
        Ok(())
    }
}
