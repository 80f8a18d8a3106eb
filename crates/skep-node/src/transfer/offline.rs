//! The store while no relay runs, behind the same rules as the relay's door.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use skep_core::door::{Accepted, Origin};
use skep_core::intake::{self, Admission, Deliverer};
use skep_core::world::Ownership;
use skep_core::{Readers, World, may_read};
use skep_proto::{EventId, EventRef, Filter, Kind, PubKey, RawEvent, Seq, Timestamp};
use skep_store::{EventStore, LmdbStore, Op, Progress as ScanProgress, Scan, Visit};

use super::{Tally, TransferError};
use crate::config::RelaySettings;
use crate::home::Home;
use crate::keys::{KeyName, Keyring};
use crate::relay::{self, KEY_NAME};

/// Records looked at in one read transaction.
const SLICE_RECORDS: usize = 1_024;

/// The file that LMDB keeps its pages in.
pub(super) const DATA_FILE: &str = "data.mdb";

/// Whether a store may be made where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Create,
    Fail,
}

/// An open store with the rules that its relay has. While it lives, no relay can use the directory.
#[derive(Debug)]
pub struct Offline {
    store: LmdbStore,
    /// A lock, because threads judge while the owner of this value learns who owns an agent.
    world: RwLock<World>,
    from: Deliverer,
    is_durable: bool,
}

/// What the rules make of one event, before the store has decided.
#[derive(Debug)]
pub enum Fate {
    /// It may be stored.
    Store {
        op: Op,
        learn: Option<(PubKey, Ownership)>,
    },
    Duplicate,
    /// The reason, as a client would be told.
    Refused(String),
    /// It is not a valid event.
    Bad(String),
}

impl Offline {
    pub fn open(settings: &RelaySettings, home: &Home, missing: Missing) -> Result<Self, TransferError> {
        let options = relay::store_options(settings, home.path());
        if missing == Missing::Fail && !options.dir.join(DATA_FILE).exists() {
            return Err(TransferError::NoStore { path: options.dir });
        }
        let mut world = world(settings, home)?;
        let store = LmdbStore::open(&options)?;
        skep_relay::recall(&mut world, &store)?;
        let is_durable = options.is_durable;
        Ok(Self { store, world: RwLock::new(world), from: Deliverer::default(), is_durable })
    }

    pub fn dir(&self) -> &Path {
        self.store.dir()
    }

    pub(super) fn store(&self) -> &LmdbStore {
        &self.store
    }

    /// Whether what is committed survives a power cut.
    pub fn is_durable(&self) -> bool {
        self.is_durable
    }

    /// How many events there are.
    pub fn len(&self) -> Result<u64, TransferError> {
        Ok(self.store.len()?)
    }

    pub fn is_empty(&self) -> Result<bool, TransferError> {
        Ok(self.len()? == 0)
    }

    /// Bytes that the events take on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }

    fn world(&self) -> RwLockReadGuard<'_, World> {
        self.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads, hashes, verifies and judges one event as a record from elsewhere. Any thread may call it.
    pub fn judge_text(&self, text: &[u8], now: Timestamp) -> Fate {
        match serde_json::from_slice::<RawEvent>(text) {
            Ok(event) => self.judge(event, now),
            Err(error) => Fate::Bad(format!("not an event: {error}")),
        }
    }

    /// The same for an event that is parsed.
    pub fn judge(&self, event: RawEvent, now: Timestamp) -> Fate {
        let bytes = skep_relay::event_bytes(&event);
        if event.kind.is_ephemeral() && event.kind != Kind::AUTH {
            return Fate::Refused("invalid: ephemeral events are never stored".into());
        }
        let screened = intake::screen(&self.world(), Origin::Record, &event, bytes, now);
        if let Err(refusal) = screened {
            return Fate::Refused(refusal.to_string());
        }
        let event = match event.hash() {
            Ok(event) => event,
            Err(error) => return Fate::Bad(error.to_string()),
        };
        // A failure to look is no answer; the store then answers for itself.
        if self.store.contains(&event.id()).unwrap_or(false) {
            return Fate::Duplicate;
        }
        let event = match event.verify() {
            Ok(event) => event,
            Err(error) => return Fate::Bad(error.to_string()),
        };
        // Not inside the match: its second look at the world would wait for a writer that waits for its first.
        let admission = intake::judge(&self.world(), Origin::Record, &self.from, &event, now);
        match admission {
            Ok(Admission::Store { claim: _, learn }) => {
                let record = event.into_record();
                let words = skep_relay::search_words(&self.world(), &record);
                Fate::Store { op: Op::Put { record, words, guard: None }, learn }
            }
            Ok(_) => Fate::Refused("invalid: this kind is an act, not a record".into()),
            Err(refusal) => Fate::Refused(refusal.to_string()),
        }
    }

    /// Stores what may be stored in one transaction, then counts. `u64` is the line, for those that are bad.
    pub fn commit(&self, batch: Vec<(u64, Fate)>, tally: &mut Tally) -> Result<(), TransferError> {
        let mut ops = Vec::with_capacity(batch.len());
        let mut owners: Vec<(PubKey, Ownership)> = Vec::new();
        let mut told = Tally::default();
        for (line, fate) in batch {
            match fate {
                Fate::Store { op, learn } => {
                    ops.push(op);
                    owners.extend(learn);
                }
                Fate::Duplicate => told.duplicates += 1,
                Fate::Refused(reason) => told.refuse(&reason),
                Fate::Bad(why) => told.bad(line, why),
            }
        }
        let (puts, owners) = (ops.len(), self.first_statements(owners));
        ops.extend(owners.iter().map(|(agent, row)| own(*agent, row)));
        if !ops.is_empty() {
            for outcome in self.store.apply(ops)?.into_iter().take(puts) {
                match skep_relay::accepted(outcome) {
                    Ok(Accepted::Duplicate) => told.verdict(true, "duplicate:"),
                    Ok(_) => told.verdict(true, ""),
                    Err(refusal) => told.verdict(false, &refusal.to_string()),
                }
            }
        }
        told.owners_learned = owners.len() as u64;
        if !owners.is_empty() {
            let mut world = self.world.write().unwrap_or_else(PoisonError::into_inner);
            owners.into_iter().for_each(|(agent, row)| world.registry.set(agent, row));
        }
        tally.add(told);
        Ok(())
    }

    /// Of several statements on one agent, judged at the same time, the first counts.
    fn first_statements(&self, owners: Vec<(PubKey, Ownership)>) -> Vec<(PubKey, Ownership)> {
        let world = self.world();
        let mut first: Vec<(PubKey, Ownership)> = Vec::with_capacity(owners.len());
        for (agent, row) in owners {
            if world.registry.get(&agent).is_none() && first.iter().all(|(known, _)| *known != agent) {
                first.push((agent, row));
            }
        }
        first
    }

    /// Every stored event that matches, once, newest first, whoever may read it, but what has expired.
    /// `wanted` ends the walk with its error.
    pub fn each<E: From<TransferError>>(
        &self,
        filters: Vec<Filter>,
        now: Timestamp,
        mut wanted: impl FnMut(EventRef<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let filters: Arc<[Filter]> = filters.into();
        let mut scan = Scan::new(filters, Seq(self.store.next_seq().0.saturating_sub(1)), u64::MAX);
        let mut failed = None;
        loop {
            let progress = self.store.scan(&mut scan, SLICE_RECORDS, &mut |_: Seq, event: EventRef<'_>| {
                if failed.is_some() || event.is_expired(now) {
                    return Visit::Hide;
                }
                failed = wanted(event).err();
                Visit::Serve
            });
            let progress = progress.map_err(|error| E::from(error.into()))?;
            match failed.take() {
                Some(error) => return Err(error),
                None if progress == ScanProgress::Done => return Ok(()),
                None => {}
            }
        }
    }

    /// Whether these readers may see an event: what they may not see must not go to another relay in their name.
    pub fn may_read(&self, readers: &Readers, event: EventRef<'_>, now: Timestamp) -> bool {
        may_read(&self.world(), readers, event, now)
    }

    /// One event.
    pub fn get(&self, id: &EventId) -> Result<Option<RawEvent>, TransferError> {
        let found = self.store.get(id)?;
        Ok(found.and_then(|(_, record)| serde_json::from_str(&record.as_ref().to_json()).ok()))
    }
}

fn own(agent: PubKey, row: &Ownership) -> Op {
    let row = serde_json::to_vec(row).expect("invariant: a row of keys and numbers serializes");
    Op::Own { agent, row }
}

/// The rules of the relay that these settings make.
fn world(settings: &RelaySettings, home: &Home) -> Result<World, TransferError> {
    let name: KeyName = KEY_NAME.parse()?;
    let ring = Keyring::of(home);
    // Without a key the relay has never run: nothing can be signed by it. No point of the curve is zero.
    let key = if ring.path(&name).exists() { ring.state(&name)?.pubkey } else { None };
    let address = settings.listen.parse().unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7777)));
    Ok(relay::world(settings, key.unwrap_or(PubKey([0; 32])), address)?)
}
