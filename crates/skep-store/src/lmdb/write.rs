//! One batch: duplicate, replacement, deletion and lease are all decided inside it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_proto::filter::{content_of, words};
use skep_proto::kind::Class;
use skep_proto::lease::{Lease, Resource};
use skep_proto::{EventId, EventRef, Kind, PubKey, Record, Seq, Timestamp, kind, order};

use super::env::{META_POLICY, META_SEQ, Table};
use super::layers::{Layer, Slot, View};
use super::{Inner, SEQ_BLOCK, keys};
use crate::{Change, Guard, LeaseRows, Op, Outcome, StoreError};

pub(super) fn apply(store: &Inner, ops: Vec<Op>) -> Result<Vec<Outcome>, StoreError> {
    let mut wal = store.wal();
    let mut next = store.next_seq.load(Ordering::Acquire);
    // Each operation makes at most two events: itself and the lease state that it changes.
    let last = next + 2 * ops.len() as u64;
    let must_reserve = last > store.reserved.load(Ordering::Acquire);
    if !must_reserve && !ops.iter().any(Op::is_durable) {
        let outcomes = ops.into_iter().map(|op| ring(op, &mut next)).collect();
        store.next_seq.store(next, Ordering::Release);
        return Ok(outcomes);
    }
    store.wait_for_room(&mut wal)?;
    let reserved = must_reserve.then(|| last + SEQ_BLOCK);
    let (outcomes, batch, next) = decide(store, ops, next, reserved)?;
    if !batch.is_empty() {
        store.commit(&mut wal, batch)?;
    }
    store.next_seq.store(next, Ordering::Release);
    if let Some(reserved) = reserved {
        store.reserved.store(reserved, Ordering::Release);
    }
    Ok(outcomes)
}

/// What a batch changes. Nothing is changed yet.
fn decide(
    store: &Inner,
    ops: Vec<Op>,
    next: u64,
    reserve: Option<u64>,
) -> Result<(Vec<Outcome>, Layer, u64), StoreError> {
    let layers = store.layers();
    let mut writing = Writing { view: store.view(&layers)?, batch: Layer::default(), next };
    if let Some(reserve) = reserve {
        writing.put(Table::Meta, META_SEQ, &reserve.to_be_bytes());
    }
    let outcomes = ops.into_iter().map(|op| writing.run(op)).collect::<Result<Vec<_>, _>>()?;
    Ok((outcomes, writing.batch, writing.next))
}

fn ring(op: Op, next: &mut u64) -> Outcome {
    let Op::Ring(record) = op else { return Outcome::Done };
    let seq = Seq(*next);
    *next += 1;
    Outcome::Stored(vec![Change { seq, record }])
}

/// A batch being decided: what it changes, above everything that is stored.
struct Writing<'v> {
    view: View<'v>,
    batch: Layer,
    next: u64,
}

impl Writing<'_> {
    fn run(&mut self, op: Op) -> Result<Outcome, StoreError> {
        match op {
            Op::Put { record, words, guard } => self.put_event(record, &words, guard),
            Op::Ring(_) => Ok(ring(op, &mut self.next)),
            Op::Lease(call) => match call(self)? {
                Ok((lease, state)) => {
                    let changes = self.put_own(state)?;
                    Ok(Outcome::Leased(lease, changes))
                }
                Err(refusal) => Ok(Outcome::Refused(refusal)),
            },
            Op::Own { agent, row } => {
                self.put(Table::Owners, &agent.0, &row);
                Ok(Outcome::Done)
            }
            Op::Policy(document) => {
                self.put(Table::Meta, META_POLICY, &document);
                Ok(Outcome::Done)
            }
            Op::Sweep { now, most } => self.sweep(now, most).map(Outcome::Swept),
        }
    }

    fn put_event(&mut self, record: Record, words: &[String], guard: Option<Guard>) -> Result<Outcome, StoreError> {
        let event = record.as_ref();
        if self.seq_of(&event.id())?.is_some() {
            return Ok(Outcome::Duplicate);
        }
        if let Some(gone) = self.is_gone(event)? {
            return Ok(gone);
        }
        let address = keys::address_of(event);
        let replaced = match &address {
            Some(address) => match self.replaced_by(event, address)? {
                Replaced::Newer => return Ok(Outcome::Superseded),
                Replaced::Older(seq) => Some(seq),
                Replaced::Nothing => None,
            },
            None => None,
        };
        let beside = match guard.map(|guard| guard(self)).transpose()? {
            Some(Err(refusal)) => return Ok(Outcome::Refused(refusal)),
            Some(Ok(beside)) => beside,
            None => None,
        };
        if let Some(old) = replaced {
            self.remove(old)?;
        }
        match event.kind() {
            Kind::DELETION => self.delete_for(event)?,
            Kind::VANISH => self.vanish(event)?,
            _ => {}
        }
        let seq = self.insert(&record, address.as_ref(), words)?;
        let mut changes = vec![Change { seq, record }];
        if let Some(beside) = beside {
            changes.append(&mut self.put_own(beside)?);
        }
        Ok(Outcome::Stored(changes))
    }

    /// Stores an event of the relay's own: it is never refused and replaces what is there.
    fn put_own(&mut self, record: Record) -> Result<Vec<Change>, StoreError> {
        match self.put_event(record, &[], None)? {
            Outcome::Stored(changes) => Ok(changes),
            _ => Ok(Vec::new()),
        }
    }

    fn insert(&mut self, record: &Record, address: Option<&[u8; 66]>, words: &[String]) -> Result<Seq, StoreError> {
        let seq = Seq(self.next);
        self.next += 1;
        let number = seq.0.to_be_bytes();
        let event = record.as_ref();
        self.batch.set(Table::Events, number[..].into(), Slot::Bytes(record.clone().into_bytes()));
        self.put(Table::Ids, &event.id().0, &number);
        keys::index(event, seq, |table, key| self.batch.set(table, key.as_bytes().into(), Slot::Empty));
        for word in words {
            let key = keys::word(word).with(keys::Pos::of(event, seq));
            self.batch.set(Table::Tags, key.as_bytes().into(), Slot::Empty);
        }
        if let Some(address) = address {
            self.put(Table::Addresses, address, &number);
        }
        Ok(seq)
    }

    fn remove(&mut self, seq: Seq) -> Result<(), StoreError> {
        let Some(record) = self.record(seq)? else { return Ok(()) };
        let event = record.as_ref();
        keys::index(event, seq, |table, key| self.batch.set(table, key.as_bytes().into(), Slot::Gone));
        if kind::rule(event.kind()).search {
            // Rows that were never made are not there to delete; that is no error.
            for word in words(&content_of(event).unwrap_or_default()) {
                self.delete(Table::Tags, keys::word(&word).with(keys::Pos::of(event, seq)).as_bytes());
            }
        }
        if let Some(address) = keys::address_of(event) {
            let current = self.get(Table::Addresses, &address)?;
            if current.map(keys::seq_from).transpose()? == Some(seq) {
                self.delete(Table::Addresses, &address);
            }
        }
        self.delete(Table::Ids, &event.id().0);
        self.delete(Table::Events, &seq.0.to_be_bytes());
        Ok(())
    }

    /// Whether its author already asked for this event's end.
    fn is_gone(&self, event: EventRef<'_>) -> Result<Option<Outcome>, StoreError> {
        let author = event.pubkey();
        let is_deleted = self.has(Table::DeletedIds, &tombstone(&event.id(), &author))?
            || match keys::address_of(event) {
                Some(address) => self.time_at(Table::DeletedAddresses, &address)? >= Some(event.created_at()),
                None => false,
            };
        if is_deleted && event.kind() != Kind::DELETION && event.kind() != Kind::VANISH {
            return Ok(Some(Outcome::Deleted));
        }
        if event.kind() == Kind::VANISH {
            return Ok(None);
        }
        let mut vanished = self.time_at(Table::Vanished, &author.0)? >= Some(event.created_at());
        if event.kind() == Kind::GIFT_WRAP && !vanished {
            for key in parties(event) {
                vanished |= self.time_at(Table::Vanished, &key.0)? >= Some(event.created_at());
            }
        }
        Ok(vanished.then_some(Outcome::Vanished))
    }

    fn replaced_by(&self, event: EventRef<'_>, address: &[u8; 66]) -> Result<Replaced, StoreError> {
        let Some(bytes) = self.get(Table::Addresses, address)? else { return Ok(Replaced::Nothing) };
        let seq = keys::seq_from(bytes)?;
        let Some(old) = self.record(seq)? else { return Ok(Replaced::Nothing) };
        let old = old.as_ref();
        let (new_id, old_id) = (event.id(), old.id());
        if order::replaces((event.created_at(), &new_id), (old.created_at(), &old_id)) {
            Ok(Replaced::Older(seq))
        } else {
            Ok(Replaced::Newer)
        }
    }

    /// NIP-09: only what its author published, by id or by address up to the request's time.
    fn delete_for(&mut self, request: EventRef<'_>) -> Result<(), StoreError> {
        let author = request.pubkey();
        for id in request.tag_values(b'e').filter_map(|value| std::str::from_utf8(value).ok()?.parse::<EventId>().ok())
        {
            self.put(Table::DeletedIds, &tombstone(&id, &author), &request.created_at().to_be_bytes());
            if let Some(seq) = self.seq_of(&id)? {
                let is_theirs = self.record(seq)?.is_some_and(|found| {
                    let event = found.as_ref();
                    event.pubkey() == author && event.kind() != Kind::DELETION && event.kind() != Kind::VANISH
                });
                if is_theirs {
                    self.remove(seq)?;
                }
            }
        }
        for address in request.tag_values(b'a').filter_map(|value| own_address(value, &author)) {
            let up_to = self.time_at(Table::DeletedAddresses, &address)?.max(Some(request.created_at())).unwrap_or(0);
            self.put(Table::DeletedAddresses, &address, &up_to.to_be_bytes());
            let current = self.get(Table::Addresses, &address)?;
            if let Some(seq) = current.map(keys::seq_from).transpose()?
                && self.record(seq)?.is_some_and(|found| found.as_ref().created_at() <= up_to)
            {
                self.remove(seq)?;
            }
        }
        Ok(())
    }

    /// NIP-62: everything of this author up to the request's time, and the wraps sent to them.
    fn vanish(&mut self, request: EventRef<'_>) -> Result<(), StoreError> {
        let author = request.pubkey();
        let up_to = request.created_at();
        let newest = self.time_at(Table::Vanished, &author.0)?.map_or(up_to, |before| before.max(up_to));
        self.put(Table::Vanished, &author.0, &newest.to_be_bytes());
        let mut gone = self.positions(Table::Authors, keys::author(&author), up_to)?;
        let wraps = self.positions(Table::Tags, keys::tag(b'p', author.to_hex().as_bytes()), up_to)?;
        for seq in wraps {
            let found = self.record(seq)?;
            if found
                .is_some_and(|found| found.as_ref().kind() == Kind::GIFT_WRAP && found.as_ref().names(b'p', &author))
            {
                gone.push(seq);
            }
        }
        gone.into_iter().try_for_each(|seq| self.remove(seq))
    }

    fn positions(&self, table: Table, prefix: keys::Key, up_to: Timestamp) -> Result<Vec<Seq>, StoreError> {
        let from = prefix.with(keys::Pos::at(up_to));
        let mut found = Vec::new();
        self.view.walk(Some(&self.batch), table, from.as_bytes(), |key, _| {
            let is_in = key.starts_with(prefix.as_bytes());
            found.extend(keys::Pos::read(key).filter(|_| is_in).map(keys::Pos::seq));
            is_in
        })?;
        Ok(found)
    }

    fn sweep(&mut self, now: Timestamp, most: usize) -> Result<usize, StoreError> {
        let end = keys::expiration(now, Seq::MAX);
        let mut due = Vec::new();
        self.view.walk(Some(&self.batch), Table::Expirations, &[0], |key, _| {
            let is_due = key <= end.as_bytes() && due.len() < most;
            due.extend(key.get(8..).filter(|_| is_due).map(keys::seq_from));
            is_due
        })?;
        let due = due.into_iter().collect::<Result<Vec<Seq>, _>>()?;
        due.iter().try_for_each(|seq| self.remove(*seq))?;
        Ok(due.len())
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.batch.set(table, key.into(), Slot::Bytes(Arc::from(value)));
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.batch.set(table, key.into(), Slot::Gone);
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        self.view.get(Some(&self.batch), table, key)
    }

    fn has(&self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.get(table, key)?.is_some())
    }

    fn record(&self, seq: Seq) -> Result<Option<Record>, StoreError> {
        self.view.record(Some(&self.batch), seq)
    }

    fn seq_of(&self, id: &EventId) -> Result<Option<Seq>, StoreError> {
        self.view.seq_of(Some(&self.batch), id)
    }

    fn time_at(&self, table: Table, key: &[u8]) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.get(table, key)?.map(keys::seq_from).transpose()?.map(|time| time.0))
    }
}

enum Replaced {
    Nothing,
    Older(Seq),
    Newer,
}

impl LeaseRows for Writing<'_> {
    fn get(&self, resource: &Resource) -> Result<Option<Lease>, StoreError> {
        let found = Writing::get(self, Table::Leases, resource.as_str().as_bytes())?;
        found.map(|bytes| serde_json::from_slice(bytes).map_err(|_| StoreError::Corrupt("lease"))).transpose()
    }

    fn put(&mut self, resource: &Resource, lease: &Lease) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(lease).map_err(|error| StoreError::Other(error.to_string()))?;
        Writing::put(self, Table::Leases, resource.as_str().as_bytes(), &bytes);
        Ok(())
    }
}

fn tombstone(id: &EventId, author: &PubKey) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(&id.0);
    key[32..].copy_from_slice(&author.0);
    key
}

fn parties(event: EventRef<'_>) -> impl Iterator<Item = PubKey> {
    event.tag_values(b'p').filter_map(|value| std::str::from_utf8(value).ok()?.parse().ok())
}

/// `kind:pubkey:d` as a key, when it is the author's own and names something replaceable.
fn own_address(value: &[u8], author: &PubKey) -> Option<[u8; 66]> {
    let (kind, pubkey, d) = split_address(value)?;
    let has_address = match kind.class() {
        Class::Replaceable => d.is_empty(),
        Class::Addressable => true,
        Class::Regular | Class::Ephemeral => false,
    };
    (pubkey == *author && has_address).then(|| keys::address(kind, author, d.as_bytes()))
}

fn split_address(value: &[u8]) -> Option<(Kind, PubKey, &str)> {
    let mut parts = std::str::from_utf8(value).ok()?.splitn(3, ':');
    let kind = Kind(parts.next()?.parse().ok()?);
    Some((kind, parts.next()?.parse().ok()?, parts.next().unwrap_or("")))
}
