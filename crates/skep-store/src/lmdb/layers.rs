//! Rows that are durable (in the log) but not yet in LMDB, as layers above it.
//!
//! A batch is staged, logged, then joins the active layer; a full active layer is frozen and flushed to LMDB in one
//! sorted transaction. A reader asks the newest layer first, then the older ones, then LMDB.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use heed::{RoTxn, WithoutTls};
use skep_proto::{EventRef, Record, Seq};
use smallvec::SmallVec;

use super::env::{Db, Table, classify};
use super::keys;
use crate::StoreError;

/// Row keys stand in the tree itself: the longest usual one is an address.
pub(super) type KeyBuf = SmallVec<[u8; 66]>;

/// What a layer says of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Slot {
    Gone,
    /// Present, with no value: an index row.
    Empty,
    Bytes(Arc<[u8]>),
}

impl Slot {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Gone | Self::Empty => &[],
        }
    }
}

/// Rows of all tables.
#[derive(Debug, Default)]
pub(super) struct Layer {
    tables: [BTreeMap<KeyBuf, Slot>; Table::ALL.len()],
    rows: usize,
    bytes: usize,
}

impl Layer {
    pub(super) fn set(&mut self, table: Table, key: KeyBuf, slot: Slot) {
        self.bytes += key.len() + slot.bytes().len();
        self.rows += 1;
        self.tables[table as usize].insert(key, slot);
    }

    fn get(&self, table: Table, key: &[u8]) -> Option<&Slot> {
        self.tables[table as usize].get(key)
    }

    /// Rows written, repeats included: the measure of a flush.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Takes over what is newer.
    pub(super) fn absorb(&mut self, newer: Self) {
        for (mine, theirs) in self.tables.iter_mut().zip(newer.tables) {
            theirs.into_iter().for_each(|(key, slot)| drop(mine.insert(key, slot)));
        }
        self.rows += newer.rows;
        self.bytes += newer.bytes;
    }

    /// Every row, table by table, in key order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Table, &KeyBuf, &Slot)> {
        Table::ALL
            .into_iter()
            .zip(&self.tables)
            .flat_map(|(table, rows)| rows.iter().map(move |(key, slot)| (table, key, slot)))
    }
}

/// The layers that readers see.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub active: Layer,
    /// Being flushed.
    pub frozen: Option<Arc<Layer>>,
}

impl Layers {
    pub(super) fn bytes(&self) -> usize {
        self.active.bytes() + self.frozen.as_ref().map_or(0, |frozen| frozen.bytes())
    }
}

/// One consistent state: layers, newest first, over a snapshot of LMDB.
///
/// The snapshot must be taken while the layers are held: a flush commits to LMDB first and drops its layer after.
pub(super) struct View<'v> {
    layers: SmallVec<[&'v Layer; 3]>,
    tables: &'v [Db; Table::ALL.len()],
    txn: RoTxn<'v, WithoutTls>,
    map_bytes: u64,
}

impl<'v> View<'v> {
    pub(super) fn new(
        layers: &'v Layers,
        tables: &'v [Db; Table::ALL.len()],
        txn: RoTxn<'v, WithoutTls>,
        map_bytes: u64,
    ) -> Self {
        let layers = std::iter::once(&layers.active).chain(layers.frozen.as_deref()).filter(|layer| !layer.is_empty());
        Self { layers: layers.collect(), tables, txn, map_bytes }
    }

    fn error(&self, error: heed::Error) -> StoreError {
        classify(error, self.map_bytes)
    }

    /// The value of a row; `None` when there is no such row. `above` is a layer of the caller's own.
    pub(super) fn get<'a>(
        &'a self,
        above: Option<&'a Layer>,
        table: Table,
        key: &[u8],
    ) -> Result<Option<&'a [u8]>, StoreError> {
        for layer in above.into_iter().chain(self.layers.iter().copied()) {
            match layer.get(table, key) {
                Some(Slot::Gone) => return Ok(None),
                Some(slot) => return Ok(Some(slot.bytes())),
                None => {}
            }
        }
        self.tables[table as usize].get(&self.txn, key).map_err(|error| self.error(error))
    }

    pub(super) fn record(&self, above: Option<&Layer>, seq: Seq) -> Result<Option<Record>, StoreError> {
        let bytes = self.get(above, Table::Events, &seq.0.to_be_bytes())?;
        bytes.map(|bytes| Record::from_bytes(bytes).ok_or(StoreError::Corrupt("event"))).transpose()
    }

    pub(super) fn event(&self, seq: Seq) -> Result<Option<EventRef<'_>>, StoreError> {
        let bytes = self.get(None, Table::Events, &seq.0.to_be_bytes())?;
        bytes.map(|bytes| EventRef::from_bytes(bytes).ok_or(StoreError::Corrupt("event"))).transpose()
    }

    pub(super) fn seq_of(&self, above: Option<&Layer>, id: &skep_proto::EventId) -> Result<Option<Seq>, StoreError> {
        self.get(above, Table::Ids, &id.0)?.map(keys::seq_from).transpose()
    }

    /// Calls `row` with each key and value from `from` on, in key order, until it says stop.
    pub(super) fn walk(
        &self,
        above: Option<&Layer>,
        table: Table,
        from: &[u8],
        mut row: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let bounds = (Bound::Included(from), Bound::Unbounded);
        let mut base = self.tables[table as usize].range(&self.txn, &bounds).map_err(|error| self.error(error))?;
        let mut tops: SmallVec<[_; 4]> = above
            .into_iter()
            .chain(self.layers.iter().copied())
            .map(|layer| layer.tables[table as usize].range::<[u8], _>(bounds).peekable())
            .collect();
        let mut under = base.next().transpose().map_err(|error| self.error(error))?;
        loop {
            let newest = tops.iter_mut().filter_map(|top| top.peek().map(|(key, _)| key.as_slice())).min();
            let Some(key) = newest.into_iter().chain(under.map(|(key, _)| key)).min() else { return Ok(()) };
            // Of one key the newest layer decides; the others move on.
            let mut value = None;
            let is_under = under.is_some_and(|(below, _)| below == key);
            let key: KeyBuf = key.into();
            for top in &mut tops {
                if let Some((_, slot)) = top.next_if(|(found, _)| **found == key) {
                    value.get_or_insert(slot);
                }
            }
            let go_on = match value {
                Some(Slot::Gone) => true,
                Some(slot) => row(&key, slot.bytes()),
                None => row(&key, under.map_or(&[], |(_, value)| value)),
            };
            if !go_on {
                return Ok(());
            }
            if is_under {
                under = base.next().transpose().map_err(|error| self.error(error))?;
            }
        }
    }
}
