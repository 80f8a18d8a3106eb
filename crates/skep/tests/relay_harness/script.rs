//! What one author publishes, what the relay said of it, and so what must and must not be there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use secp256k1::{Keypair, SECP256K1};
use serde_json::json;
use skep_proto::kind::Class;
use skep_proto::{Draft, EventId, Kind, RawEvent, order};

use super::Relay;
use super::client::{Client, Verdict, frame};

/// Events sent and not yet answered, at most.
const WINDOW: usize = 64;

/// Resources that every author of a test wants.
const RESOURCES: usize = 4;

pub struct Sent {
    pub event: RawEvent,
    /// `kind:pubkey:d` of what has versions.
    address: Option<String>,
    pub was_sent: bool,
    /// `None` when the relay had no time to answer.
    pub verdict: Option<Verdict>,
}

pub struct Script {
    keys: Keypair,
    pub sent: Vec<Sent>,
}

/// What deletions name.
#[derive(Default)]
pub struct Deleted {
    ids: HashSet<EventId>,
    /// Versions up to this time.
    addresses: HashMap<String, u64>,
}

impl Deleted {
    pub fn names(&self, sent: &Sent) -> bool {
        let up_to = sent.address.as_ref().and_then(|address| self.addresses.get(address));
        let is_named = self.ids.contains(&sent.event.id) || up_to.is_some_and(|up_to| sent.event.created_at <= *up_to);
        is_named && sent.event.kind != Kind::DELETION
    }
}

/// What publishers and whoever stops them share.
#[derive(Default)]
pub struct Traffic {
    /// From here on an OK proves nothing: it may be read after the power was cut.
    pub is_cut: AtomicBool,
    /// How many were taken so far.
    pub taken: AtomicUsize,
}

pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

impl Script {
    /// Events of all classes, deletions, lease requests, and some with a signature that does not fit.
    pub fn draw(rng: &mut StdRng, count: usize) -> Self {
        let keys = Keypair::from_seckey_slice(SECP256K1, &rng.random::<[u8; 32]>()).unwrap();
        let mut script = Self { keys, sent: Vec::with_capacity(count) };
        let now = unix_now();
        for i in 0..count {
            let draft = script.draft(rng, i, now);
            let mut event = draft.tag(["t", "kept"]).tag(["n", &i.to_string()]).sign(&keys, &[0; 32]).raw().clone();
            if rng.random_bool(0.04) {
                event.sig.0[63] ^= 1;
            }
            script.sent.push(Sent { address: address(&event), event, was_sent: false, verdict: None });
        }
        script
    }

    fn draft(&self, rng: &mut StdRng, i: usize, now: u64) -> Draft {
        // Times go up and down, so that some versions are older than what is there.
        let at = now - rng.random_range(0..1_000);
        let text = "bees ".repeat(rng.random_range(0..120));
        let d = rng.random_range(0..8).to_string();
        match rng.random_range(0..100) {
            0..8 => Draft::new(Kind(10_002), at, text),
            8..28 => Draft::new(Kind(30_023), at, text).tag(["d", &d]),
            28..36 if i > 0 => {
                let event = &self.sent[rng.random_range(0..i)].event;
                Draft::new(Kind::DELETION, now, "").tag(["e", &event.id.to_hex()])
            }
            36..38 => {
                let address = format!("30023:{}:{d}", self.keys.x_only_public_key().0);
                Draft::new(Kind::DELETION, at, "").tag(["a", &address])
            }
            38..48 => {
                let op = if rng.random_bool(0.6) { "steal" } else { "acquire" };
                lease_request(&resource(rng.random_range(0..RESOURCES)), op, &format!("i{:x}", rng.random::<u64>()))
            }
            _ => Draft::new(Kind(1), at, text),
        }
    }

    /// Publishes in order, until all is answered or the connection ends.
    pub fn publish(&mut self, url: &str, traffic: &Traffic) {
        let Ok(mut client) = Client::connect(url) else { return };
        let places: HashMap<EventId, usize> =
            self.sent.iter().enumerate().map(|(i, sent)| (sent.event.id, i)).collect();
        let (mut next, mut answered) = (0, 0);
        while answered < self.sent.len() {
            while next < self.sent.len() && next - answered < WINDOW {
                self.sent[next].was_sent = true;
                if client.send(&frame(&self.sent[next].event)).is_err() {
                    return;
                }
                next += 1;
            }
            let Ok((id, verdict)) = client.next_verdict() else { return };
            if traffic.is_cut.load(Ordering::SeqCst) {
                return;
            }
            answered += 1;
            traffic.taken.fetch_add(usize::from(matches!(verdict, Verdict::Taken(_))), Ordering::SeqCst);
            self.sent[places[&id]].verdict = Some(verdict);
        }
    }

    /// What is wrong with what the relay has of this script; empty when nothing is.
    pub fn faults(&self, client: &mut Client) -> Vec<String> {
        let ids: Vec<EventId> = self.sent.iter().map(|sent| sent.event.id).collect();
        let (stored, surely, maybe) = (client.stored(&ids), self.deleted(true), self.deleted(false));
        let fault = |sent: &Sent| {
            let wrong = self.fault(sent, &stored, &surely, &maybe)?;
            let RawEvent { id, kind, created_at, .. } = &sent.event;
            Some(format!("{wrong}: kind {kind} of {created_at} {id} {:?} {:?}", sent.address, sent.verdict))
        };
        let mut faults: Vec<String> = self.sent.iter().filter_map(fault).collect();
        let mut addresses = BTreeSet::new();
        let doubled = stored.values().filter_map(address).filter(|address| !addresses.insert(address.clone()));
        faults.extend(doubled.map(|address| format!("two versions at {address}")));
        // Every index must know each event once. By id one is found once, whatever else there is.
        let author = self.sent[0].event.pubkey;
        for kinds in [vec![1], vec![5], vec![10_002, 30_023]] {
            let expected = stored.values().filter(|event| kinds.contains(&event.kind.0)).count() as u64;
            let found = client.count(&json!({ "authors": [author], "kinds": kinds }));
            faults.extend((found != expected).then(|| format!("{expected} of kinds {kinds:?}, COUNT says {found}")));
        }
        for filter in [json!({ "authors": [author] }), json!({ "authors": [author], "#t": ["kept"] })] {
            let (found, expected) = (client.count(&filter), stored.len() as u64);
            faults.extend((found != expected).then(|| format!("{expected} by id, {filter} counts {found}")));
        }
        faults
    }

    fn fault(
        &self,
        sent: &Sent,
        stored: &BTreeMap<EventId, RawEvent>,
        surely: &Deleted,
        maybe: &Deleted,
    ) -> Option<&'static str> {
        let event = &sent.event;
        let is_there = stored.contains_key(&event.id);
        // A newer version took its place; that one is there, or was deleted in its turn.
        let took_its_place = |other: &Sent| {
            let newer = &other.event;
            sent.address == other.address
                && order::replaces((newer.created_at, &newer.id), (event.created_at, &event.id))
                && !matches!(other.verdict, Some(Verdict::Refused(_)))
                && (stored.contains_key(&newer.id) || maybe.names(other))
        };
        let may_be_replaced = || sent.address.is_some() && self.sent.iter().any(took_its_place);
        match &sent.verdict {
            Some(Verdict::Taken(_)) if event.kind == Kind::LEASE_REQUEST => {
                is_there.then_some("a request is no record")
            }
            Some(Verdict::Refused(_)) => is_there.then_some("refused, and there"),
            _ if surely.names(sent) => is_there.then_some("deleted, and there"),
            Some(Verdict::Taken(_)) if !is_there && !maybe.names(sent) && !may_be_replaced() => {
                Some("taken, and not there")
            }
            _ => None,
        }
    }

    /// What was deleted: by requests that were taken, or also by those that may have been.
    pub fn deleted(&self, surely: bool) -> Deleted {
        let mut deleted = Deleted::default();
        let counts = |sent: &&Sent| match sent.verdict {
            Some(Verdict::Taken(_)) => true,
            Some(Verdict::Refused(_)) => false,
            None => sent.was_sent && !surely,
        };
        for request in self.sent.iter().filter(|sent| sent.event.kind == Kind::DELETION).filter(counts) {
            let RawEvent { tags, created_at, .. } = &request.event;
            deleted.ids.extend(tags.values("e").map(|id| id.parse::<EventId>().unwrap()));
            for address in tags.values("a") {
                let up_to = deleted.addresses.entry(address.into()).or_default();
                *up_to = (*up_to).max(*created_at);
            }
        }
        deleted
    }

    pub fn taken(&self) -> impl Iterator<Item = &Sent> {
        self.sent.iter().filter(|sent| matches!(sent.verdict, Some(Verdict::Taken(_))))
    }
}

/// `kind:pubkey:d` of what has versions.
fn address(event: &RawEvent) -> Option<String> {
    match event.kind.class() {
        Class::Replaceable | Class::Addressable => {
            Some(format!("{}:{}:{}", event.kind, event.pubkey, event.tags.identifier()))
        }
        Class::Regular | Class::Ephemeral => None,
    }
}

fn resource(i: usize) -> String {
    format!("task:wanted-{i}")
}

fn lease_request(resource: &str, op: &str, instance: &str) -> Draft {
    let draft = Draft::new(Kind::LEASE_REQUEST, unix_now(), "");
    draft.tag(["resource", resource]).tag(["op", op]).tag(["instance", instance]).tag(["ttl", "600"])
}

/// Every epoch that was granted, of all authors.
#[derive(Default)]
pub struct Epochs(BTreeMap<String, BTreeSet<u64>>);

impl Epochs {
    /// What a script was granted. Every request comes from an instance of its own, so no epoch is granted twice.
    pub fn learn(&mut self, script: &Script) {
        for sent in script.taken().filter(|sent| sent.event.kind == Kind::LEASE_REQUEST) {
            let Some(Verdict::Taken(text)) = &sent.verdict else { continue };
            self.grant(sent.event.tags.single("resource").unwrap(), epoch_of(text));
        }
    }

    fn grant(&mut self, resource: &str, epoch: u64) {
        let is_new = self.0.entry(resource.into()).or_default().insert(epoch);
        assert!(is_new, "{resource} epoch={epoch} was granted twice");
    }

    /// The state that others watch is not behind, and the next holder gets a larger epoch than anybody before.
    pub fn check(&mut self, relay: &Relay, rng: &mut StdRng) {
        let mut client = Client::of_member(&relay.url);
        let keys = Keypair::from_seckey_slice(SECP256K1, &rng.random::<[u8; 32]>()).unwrap();
        for resource in (0..RESOURCES).map(resource) {
            let Some(newest) = self.0.get(&resource).and_then(|epochs| epochs.last().copied()) else { continue };
            let states = client.query(&json!({ "kinds": [30_480], "authors": [relay.pubkey], "#d": [resource] }));
            assert_eq!(states.len(), 1, "{resource}: {states:?}");
            let noted: u64 = states[0].tags.single("epoch").unwrap().parse().unwrap();
            assert!(noted >= newest, "{resource}: epoch={newest} was granted, the state says {noted}");
            let steal = lease_request(&resource, "steal", &format!("probe{:x}", rng.random::<u64>()));
            let verdict = client.publish(steal.sign(&keys, &[0; 32]).raw());
            let Verdict::Taken(text) = verdict else { panic!("{resource}: {verdict:?}") };
            let epoch = epoch_of(&text);
            assert!(epoch > noted, "{resource}: epoch={noted} is stored, then {epoch} was granted");
            self.grant(&resource, epoch);
        }
    }
}

fn epoch_of(text: &str) -> u64 {
    let rest = text.split_once("epoch=").unwrap().1;
    rest.split_once(' ').unwrap().0.parse().unwrap()
}

/// A seed from the environment, or a new one; printed with the command that repeats the test with it.
pub fn seeded(test: &str) -> StdRng {
    let seed = std::env::var("SKEP_SEED").map_or_else(|_| rand::rng().random(), |text| text.parse().unwrap());
    let file = if test.starts_with("power") { "powercut" } else { "crash" };
    println!("seed {seed}; repeat with: SKEP_SEED={seed} cargo test -p skep --test {file} {test} -- --nocapture");
    StdRng::seed_from_u64(seed)
}
