//! The relay as the HTTP face sees it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_core::door::{Accepted, Origin};
use skep_core::management::Change;
use skep_core::{Readers, World, may_read};
use skep_proto::{EventId, EventRef, Filter, Prefix, PubKey, RawEvent, Record, Refusal, Seq, Timestamp, limits};
use skep_store::{BlobStore, Progress, Scan, Visit};

use crate::http::{Backend, Identity};
use crate::shared::{Shared, random, unix_now};

impl Backend for Shared {
    fn with_world<R>(&self, f: impl FnOnce(&World) -> R) -> R {
        f(&Shared::world(self))
    }

    fn now(&self) -> Timestamp {
        unix_now()
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn fresh(&self) -> String {
        faster_hex::hex_string(&random()[..16])
    }

    fn use_token(&self, id: EventId, now: Timestamp) -> bool {
        Shared::use_token(self, id, now)
    }

    fn policy_turn(&self) -> &tokio::sync::Mutex<()> {
        &self.policy_turn
    }

    async fn apply(&self, change: Change) -> Result<(), Refusal> {
        match change {
            Change::Nothing => Ok(()),
            Change::Policy(policy) => self.set_policy(*policy).await,
            Change::Registry { agent, row } => self.own(agent, row).await,
        }
    }

    async fn query(&self, readers: Readers, filters: Vec<Filter>) -> Result<Vec<Record>, Refusal> {
        let most = self.with_world(|world| world.limits.results);
        let filters: Arc<[Filter]> = filters.into();
        let up_to = self.tail.newest();
        let mut found = self.recent(&filters, up_to, &readers);
        let mut bytes: usize = found.iter().map(|record| record.as_bytes().len()).sum();
        let scan = Scan::new(filters, up_to, most);
        run(self, scan, &readers, |event| {
            bytes += event.as_bytes().len();
            let fits = bytes <= limits::HTTP_ANSWER_BYTES_MAX;
            if fits {
                found.push(event.to_record());
            }
            fits
        })
        .await?;
        if bytes > limits::HTTP_ANSWER_BYTES_MAX {
            let most = limits::HTTP_ANSWER_BYTES_MAX >> 20;
            return Err(Prefix::Blocked
                .because(format!("the answer is larger than {most} MiB; ask for less and page with until")));
        }
        Ok(found)
    }

    async fn count(&self, readers: Readers, filters: Vec<Filter>) -> Result<u64, Refusal> {
        let mut count = 0;
        let scan = Scan::unlimited(filters.into(), self.tail.newest());
        run(self, scan, &readers, |_| {
            count += 1;
            true
        })
        .await?;
        Ok(count)
    }

    async fn submit(&self, readers: Readers, event: RawEvent) -> Result<Accepted, Refusal> {
        Shared::submit(self, Origin::Client, readers, event).await
    }

    fn metrics(&self) -> String {
        let stats = self.writer.stats();
        let metrics = &self.metrics;
        metrics.commits.set(stats.commits.load(Ordering::Relaxed) as i64);
        metrics.commit_micros.set(stats.commit_us.load(Ordering::Relaxed) as i64);
        metrics.ring_dropped.set(self.tail.dropped() as i64);
        metrics.text()
    }

    fn ready(&self) -> Result<(), String> {
        if self.stop.is_cancelled() {
            return Err("the relay is stopping".into());
        }
        self.store.contains(&EventId([0; 32])).map(drop).map_err(|error| error.to_string())?;
        match self.writer.stats().is_failing.load(Ordering::Relaxed) {
            true => Err("the last commit failed; writes are refused until one succeeds".into()),
            false => Ok(()),
        }
    }

    fn blobs(&self) -> Option<&BlobStore> {
        self.blobs.as_ref()
    }

    fn names(&self) -> Vec<(String, PubKey)> {
        self.names.clone()
    }
}

/// Runs a scan in slices, letting others run in between: to its end, or until `found` says that it is enough.
async fn run(
    shared: &Shared,
    mut scan: Scan,
    readers: &Readers,
    mut found: impl FnMut(EventRef<'_>) -> bool + Send,
) -> Result<(), Refusal> {
    let mut is_enough = false;
    loop {
        let progress = {
            let (world, now) = (shared.world(), unix_now());
            let mut visit = |_: Seq, event: EventRef<'_>| {
                if !may_read(&world, readers, event, now) {
                    return Visit::Hide;
                }
                is_enough |= !found(event);
                if is_enough { Visit::ServeLast } else { Visit::Serve }
            };
            shared.store.scan(&mut scan, limits::SLICE_RECORDS_MAX, &mut visit)
        };
        if progress.map_err(|error| shared.refuse_for(&error))? == Progress::Done || is_enough {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
}
