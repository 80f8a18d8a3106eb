//! The lease of a turn: taken before it, kept while it runs.
//!
//! Must not: begin a turn beside another of its channel, or one whose lease is not newer than the one before.

use skep_core::door::{Accepted, Door};
use skep_core::queue::{self, NotStarted};
use skep_proto::lease::{Conflict, Epoch, Op, Request, Resource, granted_epoch};
use skep_proto::{EventId, Kind, Prefix, PubKey, RawEvent, Refusal, limits};
use skep_store::StoreError;

use super::desk::{Desk, Inner, Prompt};
use super::work::Running;

/// Seconds that a turn's lease is good for, and milliseconds between renewals: two may fail.
const LEASE_SECS: u64 = 30;
const RENEW_MS: u64 = 10_000;

/// Milliseconds until a turn that could not begin for want of the relay's word is tried again.
const NO_WORD_MS: u64 = 1_000;

/// Why a turn does not begin beside another of its channel or its message.
const STILL_RUNS: &str = "the turn before it may still run";

/// Why none begins while nobody could tell us to stop.
const AWAY: &str = "its home relay is away, and what its owner says is not heard";

impl<D: Door + 'static> Desk<D> {
    /// Asks the relay for the turn's lease. An instance that died may hold it; whoever prompts now takes it over, and
    /// the epoch keeps the old one out.
    pub(super) fn take_lease(&mut self, prompt: Prompt) -> Result<(), StoreError> {
        let look_back = self.look_back(&prompt)?;
        let inner = self.inner.clone();
        let after = prompt.after;
        if !self.setup.has_leases {
            let answer = Ok(after.map_or(1, |epoch| epoch + 1));
            tokio::spawn(async move {
                let earlier = look_back.await;
                drop(inner.send(Inner::Leased { prompt, answer, earlier }).await);
            });
            return Ok(());
        }
        let resource = turn_resource(&self.me, &prompt.message.id);
        let acquire = self.request(&resource, Op::Acquire { ttl_secs: LEASE_SECS });
        let steal = self.request(&resource, Op::Steal { ttl_secs: LEASE_SECS });
        let door = std::sync::Arc::clone(&self.door);
        let lease = async move {
            let mut answer =
                if after.is_some() { door.submit(steal.clone()).await } else { door.submit(acquire.clone()).await };
            if answer.as_ref().is_err_and(is_held) {
                answer = door.submit(steal).await;
            }
            if matches!(&answer, Err(refusal) if refusal.prefix == Prefix::Restricted) {
                // An agent whose owner did not say that it may take leases over waits until the old one runs out.
                answer = door.submit(acquire).await;
            }
            answer.and_then(epoch_of)
        };
        tokio::spawn(async move {
            let (answer, earlier) = tokio::join!(lease, look_back);
            // The loop has ended: nobody waits for it.
            let _ = inner.send(Inner::Leased { prompt, answer, earlier }).await;
        });
        Ok(())
    }

    pub(super) fn request(&self, resource: &Resource, op: Op) -> RawEvent {
        let request = Request { resource: resource.clone(), op, instance: self.setup.instance.clone() };
        self.sign(request.draft(self.unix_now()))
    }

    pub(super) fn leased(
        &mut self,
        prompt: Prompt,
        answer: Result<Epoch, Refusal>,
        earlier: Vec<RawEvent>,
    ) -> Result<(), StoreError> {
        let id = prompt.message.id;
        for word in earlier.iter().filter(|event| event.kind == Kind::APP_DATA) {
            self.heed(word)?;
        }
        if !self.queue.is_starting(&id) {
            // It was answered while the relay was asked.
            self.give_back(&prompt.turn);
            return Ok(());
        }
        let wait = |reason: String, until| NotStarted::Wait { reason, until };
        let soon = self.unix_ms() + NO_WORD_MS;
        let why = match answer {
            Err(refusal) if matches!(Conflict::read(&refusal), Some(Conflict::Completed { .. })) => {
                NotStarted::Answered(None)
            }
            Err(refusal) => wait(refusal.to_string(), soon),
            Ok(epoch) if prompt.after.is_some_and(|before| epoch <= before) => {
                wait(STILL_RUNS.into(), self.unix_ms() + limits::RETRY_MS_MIN)
            }
            Ok(_) if self.turn_of(&prompt.message.channel).is_some() => {
                wait(STILL_RUNS.into(), self.unix_ms() + limits::RETRY_MS_MIN)
            }
            // It was told while the relay was asked.
            Ok(_) if !self.queue.may_begin() => {
                let is_paused = self.queue.paused().is_some() || self.pauses.of_owner().is_some();
                wait(if is_paused { "paused" } else { AWAY }.into(), soon)
            }
            Ok(epoch) => match self.letter(&id)?.filter(|_| self.is_prompter()) {
                Some(letter) => return self.begin(prompt, letter, epoch, earlier),
                None => wait("another instance leads".into(), soon),
            },
        };
        self.give_back(&prompt.turn);
        self.tell_queue(queue::Input::NotStarted { id, why })
    }

    pub(super) fn renew_leases(&mut self) {
        let now = self.mono_ms();
        let is_due = |turn: &&mut Running| now.saturating_sub(turn.renewed) >= RENEW_MS;
        if !self.setup.has_leases {
            return;
        }
        let mut due = Vec::new();
        for turn in self.live.values_mut().filter_map(|live| live.turn.as_mut()).filter(is_due) {
            turn.renewed = now;
            due.push((turn.id.clone(), turn_resource(&self.me, &turn.trigger.carrier), turn.epoch));
        }
        for (turn, resource, epoch) in due {
            let event = self.request(&resource, Op::Renew { epoch, ttl_secs: LEASE_SECS });
            let (door, inner) = (std::sync::Arc::clone(&self.door), self.inner.clone());
            tokio::spawn(async move {
                let answer = door.submit(event).await;
                // A lease that ran out while nobody wanted it still has our epoch: only another's ends the turn.
                if answer.as_ref().is_err_and(is_held) {
                    let _ = inner.send(Inner::Fenced(turn)).await;
                }
            });
        }
    }
}

fn is_held(refusal: &Refusal) -> bool {
    matches!(Conflict::read(refusal), Some(Conflict::Held { .. }))
}

pub(super) fn turn_resource(agent: &PubKey, trigger: &EventId) -> Resource {
    Resource::new(&format!("turn:{agent}:{trigger}")).expect("invariant: two keys in hex are a resource")
}

fn epoch_of(accepted: Accepted) -> Result<Epoch, Refusal> {
    match accepted {
        Accepted::Answered(text) => granted_epoch(&text),
        _ => None,
    }
    .ok_or_else(|| Prefix::Error.because("the relay granted no lease"))
}
