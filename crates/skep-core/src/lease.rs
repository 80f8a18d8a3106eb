//! Leases: the ledger's decisions. Whoever holds the rows calls these inside one transaction.

use skep_proto::attestation::Attestation;
use skep_proto::lease::{Claim, Conflict, Lease, Op, Request, Resource};
use skep_proto::{Kind, Prefix, PubKey, RawEvent, Refusal, Timestamp};

use crate::World;

/// The colony's record of leases. One voter keeps it in its own store; a Raft log can keep it for many.
///
/// Each call is atomic: no other call sees or changes the rows between its reads and its writes.
pub trait Ledger {
    type Error;

    /// Decides a request and records what it changes.
    fn request(
        &mut self,
        now: Timestamp,
        holder: PubKey,
        request: &Request,
    ) -> Result<Result<Lease, Refusal>, Self::Error>;

    /// Checks the claim of an event about to be stored, and completes its lease when it is final.
    /// Gives the completed lease.
    fn claim(
        &mut self,
        now: Timestamp,
        author: &PubKey,
        claim: &Claim,
    ) -> Result<Result<Option<Lease>, Refusal>, Self::Error>;
}

/// Rows by resource, in whatever keeps them. With one, [`Rows`] is a [`Ledger`].
pub trait LeaseTable {
    type Error;
    fn get(&self, resource: &Resource) -> Result<Option<Lease>, Self::Error>;
    fn put(&mut self, resource: &Resource, lease: &Lease) -> Result<(), Self::Error>;
}

/// The ledger of a single voter: decisions over a table.
pub struct Rows<T>(pub T);

impl<T: LeaseTable> Ledger for Rows<T> {
    type Error = T::Error;

    fn request(
        &mut self,
        now: Timestamp,
        holder: PubKey,
        request: &Request,
    ) -> Result<Result<Lease, Refusal>, T::Error> {
        let current = self.0.get(&request.resource)?;
        let decision = decide(now, current.as_ref(), holder, request);
        if let Ok(next) = &decision {
            self.0.put(&request.resource, next)?;
        }
        Ok(decision)
    }

    fn claim(
        &mut self,
        now: Timestamp,
        author: &PubKey,
        claim: &Claim,
    ) -> Result<Result<Option<Lease>, Refusal>, T::Error> {
        let current = self.0.get(&claim.resource)?;
        let decision = check_claim(now, current.as_ref(), author, claim);
        if let Ok(Some(completed)) = &decision {
            self.0.put(&claim.resource, completed)?;
        }
        Ok(decision)
    }
}

/// Who may ask for this, and in whose name the lease is held.
pub fn holder_for(world: &World, event: &RawEvent, request: &Request) -> Result<PubKey, Refusal> {
    let asker = event.pubkey;
    let Some(agent) = request.resource.agent() else {
        if matches!(request.resource.scope(), "prompter" | "turn") {
            return Err(Prefix::Invalid.because("the resource must name the agent by its public key in hex"));
        }
        return if !world.is_closed || world.has_standing(&asker) {
            Ok(asker)
        } else {
            Err(Prefix::Restricted.because("only members may hold leases here"))
        };
    };
    let is_owner = world.registry.owns(&asker, &agent);
    match request.op {
        Op::Steal { .. } if is_owner || (asker == agent && has_consent(world, event)) => Ok(agent),
        Op::Steal { .. } => {
            Err(Prefix::Restricted.because("to steal, the agent needs its owner's auth tag, or the owner asks"))
        }
        _ if asker == agent => Ok(agent),
        _ => Err(Prefix::Restricted.because("only the agent itself may ask for its lease")),
    }
}

/// An owner's consent is an attestation (NIP-OA) by the registered owner that covers this request.
fn has_consent(world: &World, event: &RawEvent) -> bool {
    match Attestation::from_tags(&event.tags, &event.pubkey) {
        Some(Ok(attestation)) => {
            world.registry.owns(&attestation.owner, &event.pubkey)
                && attestation.conditions.allow_kind(Kind::LEASE_REQUEST)
                && attestation.conditions.allow_time(event.created_at)
        }
        _ => false,
    }
}

/// What a request makes of a lease.
fn decide(now: Timestamp, current: Option<&Lease>, holder: PubKey, request: &Request) -> Result<Lease, Refusal> {
    let next = |epoch, ttl| Lease {
        holder,
        instance: request.instance.clone(),
        epoch,
        expires_at: now.saturating_add(ttl),
        completed: false,
        noted_at: noted_at(now, current),
    };
    let is_completing = matches!(request.op, Op::Complete { .. });
    if let Some(Lease { epoch, .. }) = current.filter(|lease| lease.completed && !is_completing) {
        return Err(Conflict::Completed { epoch: *epoch }.refusal());
    }
    match (request.op, current) {
        (Op::Acquire { ttl_secs }, None) => Ok(next(1, ttl_secs)),
        (Op::Acquire { ttl_secs }, Some(lease)) if !lease.is_held(now) => Ok(next(lease.epoch + 1, ttl_secs)),
        (Op::Acquire { ttl_secs }, Some(lease)) if is_mine(lease, holder, request) => Ok(next(lease.epoch, ttl_secs)),
        (Op::Acquire { .. }, Some(lease)) => Err(Conflict::held(lease).refusal()),
        (Op::Steal { ttl_secs }, lease) => Ok(next(lease.map_or(1, |lease| lease.epoch + 1), ttl_secs)),
        (_, None) => Err(Conflict::Nobody.refusal()),
        (Op::Renew { epoch, ttl_secs }, Some(lease)) => {
            let lease = check_mine(now, lease, holder, request, epoch)?;
            Ok(next(lease.epoch, ttl_secs))
        }
        (Op::Release { epoch }, Some(lease)) => {
            let lease = check_mine(now, lease, holder, request, epoch)?;
            Ok(Lease { expires_at: now, noted_at: noted_at(now, current), ..lease.clone() })
        }
        (Op::Complete { epoch }, Some(lease)) => complete(now, lease, holder, epoch),
    }
}

/// As with a claim on an event ([`check_claim`]), the key and the epoch decide: an epoch was given to one instance
/// only, and one that starts again has another name. Whoever completed it and did not hear so may ask again.
fn complete(now: Timestamp, lease: &Lease, holder: PubKey, epoch: u64) -> Result<Lease, Refusal> {
    if lease.holder == holder && lease.epoch == epoch {
        let noted_at = if lease.completed { lease.noted_at } else { noted_at(now, Some(lease)) };
        return Ok(Lease { completed: true, noted_at, ..lease.clone() });
    }
    Err(if lease.completed { Conflict::Completed { epoch: lease.epoch } } else { Conflict::held(lease) }.refusal())
}

/// Later than the state event before it, so that the newest state is the one that is kept.
fn noted_at(now: Timestamp, current: Option<&Lease>) -> Timestamp {
    now.max(current.map_or(0, |lease| lease.noted_at + 1))
}

fn is_mine(lease: &Lease, holder: PubKey, request: &Request) -> bool {
    lease.holder == holder && lease.instance == request.instance
}

/// An expired lease is lost even when nobody took it: its holder must acquire it again, with a new epoch.
fn check_mine<'a>(
    now: Timestamp,
    lease: &'a Lease,
    holder: PubKey,
    request: &Request,
    epoch: u64,
) -> Result<&'a Lease, Refusal> {
    if !lease.is_held(now) {
        return Err(Conflict::Expired { epoch: lease.epoch, expires_at: lease.expires_at }.refusal());
    }
    if is_mine(lease, holder, request) && lease.epoch == epoch {
        Ok(lease)
    } else {
        Err(Conflict::held(lease).refusal())
    }
}

/// Whether an event may act under its claim; `Some` with the completed lease when it ends it.
///
/// An expired lease that nobody took still has the newest epoch: its work is not yet anybody else's, so it may end.
/// One that was never granted here is another ledger's to judge: an agent sends one reply to all of its relays, and rows
/// are kept for ever, so a ledger that granted it knows it.
fn check_claim(
    now: Timestamp,
    current: Option<&Lease>,
    author: &PubKey,
    claim: &Claim,
) -> Result<Option<Lease>, Refusal> {
    let Some(lease) = current else { return Ok(None) };
    if lease.holder != *author {
        return Err(Prefix::Conflict.because(format!("{} is held by another key", claim.resource)));
    }
    // The parts before the final one belong to the same turn, also when they come after it.
    if lease.completed && (claim.is_final || claim.epoch != lease.epoch) {
        return Err(Prefix::Conflict.because(format!("{} was completed in epoch={}", claim.resource, lease.epoch)));
    }
    if claim.epoch != lease.epoch {
        return Err(Prefix::Conflict.because(format!("epoch={} is not the lease's epoch={}", claim.epoch, lease.epoch)));
    }
    Ok(claim.is_final.then(|| Lease { completed: true, noted_at: noted_at(now, current), ..lease.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    #[derive(Default)]
    struct Table(BTreeMap<String, Lease>);

    impl LeaseTable for Table {
        type Error = Infallible;
        fn get(&self, resource: &Resource) -> Result<Option<Lease>, Infallible> {
            Ok(self.0.get(resource.as_str()).cloned())
        }
        fn put(&mut self, resource: &Resource, lease: &Lease) -> Result<(), Infallible> {
            self.0.insert(resource.as_str().into(), lease.clone());
            Ok(())
        }
    }

    const KEY: PubKey = PubKey([1; 32]);

    fn ask(ledger: &mut Rows<Table>, now: u64, instance: &str, op: Op) -> Result<Lease, Refusal> {
        let request = Request { resource: resource(), op, instance: instance.into() };
        let Ok(answer) = ledger.request(now, KEY, &request);
        answer
    }

    fn claim(ledger: &mut Rows<Table>, author: PubKey, epoch: u64, is_final: bool) -> Result<(), Refusal> {
        let Ok(answer) = ledger.claim(200, &author, &Claim { resource: resource(), epoch, is_final });
        answer.map(drop)
    }

    fn resource() -> Resource {
        Resource::new("task:x").expect("a valid resource")
    }

    const TTL: u64 = 10;
    const ACQUIRE: Op = Op::Acquire { ttl_secs: TTL };

    #[test]
    fn a_held_lease_is_refused_until_it_expires_and_then_has_a_new_epoch() {
        let mut ledger = Rows(Table::default());
        assert_eq!(ask(&mut ledger, 100, "a", ACQUIRE).map(|l| (l.epoch, l.expires_at)), Ok((1, 110)));
        let refusal = ask(&mut ledger, 109, "b", ACQUIRE).expect_err("held");
        assert_eq!(refusal.to_string(), "conflict: held by a epoch=1 expires=110");
        assert_eq!(ask(&mut ledger, 110, "b", ACQUIRE).map(|l| l.epoch), Ok(2));
        assert!(ask(&mut ledger, 111, "a", Op::Renew { epoch: 1, ttl_secs: TTL }).is_err());
    }

    #[test]
    fn a_final_event_completes_its_lease_once() {
        let mut ledger = Rows(Table::default());
        assert!(claim(&mut ledger, KEY, 1, true).is_ok(), "granted by another ledger, or by none");
        assert_eq!(ledger.0.0.len(), 0, "and not acted on");
        assert!(ask(&mut ledger, 100, "a", ACQUIRE).is_ok());
        assert!(claim(&mut ledger, PubKey([2; 32]), 1, false).is_err(), "another key");
        assert!(claim(&mut ledger, KEY, 1, false).is_ok());
        assert!(ask(&mut ledger, 101, "b", Op::Steal { ttl_secs: TTL }).is_ok());
        assert!(claim(&mut ledger, KEY, 1, true).is_err(), "a stale epoch");
        assert!(claim(&mut ledger, KEY, 2, true).is_ok());
        assert!(claim(&mut ledger, KEY, 2, true).is_err(), "completed");
        assert!(claim(&mut ledger, KEY, 2, false).is_ok(), "a part of the same reply that comes late");
        assert!(claim(&mut ledger, KEY, 1, false).is_err(), "a part of another");
        assert!(ask(&mut ledger, 999, "c", ACQUIRE).is_err(), "completed for ever");
    }

    #[test]
    fn a_lease_is_completed_by_its_epoch_also_late_and_again_and_then_by_no_other() {
        let mut ledger = Rows(Table::default());
        let complete = |ledger: &mut Rows<Table>, now, instance: &str, epoch| {
            ask(ledger, now, instance, Op::Complete { epoch }).map(|lease| lease.completed)
        };
        assert!(complete(&mut ledger, 100, "a", 1).is_err(), "nobody holds it");
        assert!(ask(&mut ledger, 100, "a", ACQUIRE).is_ok());
        assert!(ask(&mut ledger, 101, "b", Op::Steal { ttl_secs: TTL }).is_ok());
        let refusal = complete(&mut ledger, 102, "a", 1).expect_err("it was taken over");
        assert_eq!(Conflict::read(&refusal), Some(Conflict::Held { instance: "b".into(), epoch: 2, expires_at: 111 }));
        assert_eq!(complete(&mut ledger, 500, "b, started again", 2), Ok(true), "expired, and nobody's");
        assert_eq!(complete(&mut ledger, 501, "b, started again", 2), Ok(true), "the answer was lost");
        let refusal = complete(&mut ledger, 502, "a", 1).expect_err("another ended it");
        assert_eq!(Conflict::read(&refusal), Some(Conflict::Completed { epoch: 2 }));
        assert!(ask(&mut ledger, 999, "b", ACQUIRE).is_err());
    }

    fn any_op() -> impl Strategy<Value = Op> {
        prop_oneof![
            Just(ACQUIRE),
            Just(Op::Steal { ttl_secs: TTL }),
            (0..6u64).prop_map(|epoch| Op::Renew { epoch, ttl_secs: TTL }),
            (0..6u64).prop_map(|epoch| Op::Release { epoch }),
            (0..6u64).prop_map(|epoch| Op::Complete { epoch }),
        ]
    }

    proptest! {
        #[test]
        fn two_instances_never_hold_one_epoch_and_epochs_only_grow(
            steps in prop::collection::vec((0..4u64, 0..3u8, any_op()), 1..60)
        ) {
            let mut ledger = Rows(Table::default());
            let mut now = 1_000;
            let mut holder_of: BTreeMap<u64, String> = BTreeMap::new();
            let mut newest = 0;
            for (wait, who, op) in steps {
                now += wait * 4;
                let instance = format!("i{who}");
                if let Ok(lease) = ask(&mut ledger, now, &instance, op) {
                    prop_assert!(lease.epoch >= newest);
                    newest = lease.epoch;
                    let first = holder_of.entry(lease.epoch).or_insert_with(|| lease.instance.clone());
                    prop_assert_eq!(&*first, &lease.instance);
                }
            }
        }
    }
}
