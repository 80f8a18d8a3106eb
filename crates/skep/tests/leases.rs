#![expect(clippy::unwrap_used, reason = "a test")]
//! Leases over the wire: many want one, one gets it, and what it was told stays true whatever happens.
//!
//! `SKEP_LEASE_ROUNDS` says how many rounds the contest has.

#[expect(dead_code, reason = "other suites use the rest")]
mod binary;
mod load_harness;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use load_harness::{Client, Relay, keys, now, pubkey, publication};
use rand_like::Dice;
use secp256k1::Keypair;
use serde_json::{Value, json};
use skep_proto::attestation::{Conditions, attest};
use skep_proto::{Draft, Kind, VerifiedEvent};
use tokio::task::JoinSet;

/// No rates: a hundred acquirers use one key.
const UNHURRIED: &str = "[relay.limits]
events_per_second = 0
events_per_second_per_ip = 0
events_per_second_per_pubkey = 0
connections_per_ip = 1000
";

const ACQUIRERS: usize = 100;

/// Numbers that are the same in every run.
mod rand_like {
    /// A linear congruential generator (Knuth's constants).
    pub struct Dice(pub u64);

    impl Dice {
        /// A number below `sides`.
        pub fn roll(&mut self, sides: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % sides
        }
    }
}

/// An agent, and the owner that attested it.
struct Colony {
    agent: Keypair,
    owner: Keypair,
}

impl Colony {
    /// Registers the owner by the agent's profile.
    async fn register(relay: &Relay) -> Self {
        let colony = Self { agent: keys(21), owner: keys(22) };
        let profile = Draft::new(Kind(0), now(), "{}").tag(colony.consent()).sign(&colony.agent, &[0; 32]);
        assert_eq!(Client::connect(relay).await.publish(&profile).await, (true, String::new()));
        colony
    }

    fn consent(&self) -> [String; 4] {
        attest(&self.owner, &pubkey(&self.agent), &Conditions::default(), &[0; 32])
    }

    fn resource(&self, name: &str) -> String {
        format!("turn:{}:{name}", pubkey(&self.agent))
    }
}

/// A lease request: what and by which instance; more tags as they are needed.
fn ask(resource: &str, op: &str, instance: &str) -> Draft {
    Draft::new(Kind::LEASE_REQUEST, now(), "").tag(["resource", resource]).tag(["op", op]).tag(["instance", instance])
}

/// What the relay said to a request.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Granted { epoch: u64, expires: u64 },
    Conflict(String),
}

/// Reads `lease: epoch=8 expires=1700000015` and `conflict: …`; anything else fails the test.
#[track_caller]
fn read((is_taken, text): (bool, String)) -> Answer {
    let number = |name: &str| text.split([' ', '=']).skip_while(|word| *word != name).nth(1)?.parse().ok();
    match text.split_once(": ").map(|(prefix, _)| prefix) {
        Some("lease") if is_taken => {
            Answer::Granted { epoch: number("epoch").unwrap(), expires: number("expires").unwrap() }
        }
        Some("conflict") if !is_taken => Answer::Conflict(text),
        _ => panic!("{is_taken} {text:?}"),
    }
}

impl Answer {
    #[track_caller]
    fn epoch(&self) -> u64 {
        match self {
            Self::Granted { epoch, .. } => *epoch,
            Self::Conflict(text) => panic!("{text}"),
        }
    }

    #[track_caller]
    fn refusal(self) -> String {
        match self {
            Self::Granted { .. } => panic!("{self:?}"),
            Self::Conflict(text) => text,
        }
    }
}

async fn send(client: &mut Client, by: &Keypair, draft: Draft) -> Answer {
    read(client.publish(&draft.sign(by, &[0; 32])).await)
}

/// A note that acts under a lease.
fn act(by: &Keypair, resource: &str, epoch: u64, is_final: bool) -> VerifiedEvent {
    let epoch = epoch.to_string();
    let mut claim = vec!["lease", resource, &epoch];
    claim.extend(is_final.then_some("final"));
    Draft::new(Kind(1), now(), format!("done {resource} {epoch}")).tag(claim).sign(by, &[0; 32])
}

fn rounds() -> u64 {
    std::env::var("SKEP_LEASE_ROUNDS").map_or(1_000, |text| text.parse().unwrap())
}

/// Everybody asks at once. Gives who got it, with what epoch; checks that nobody else did.
async fn contest(clients: &mut [Client], colony: &Colony, resource: &str) -> (usize, u64) {
    let requests: Vec<VerifiedEvent> = (0..clients.len())
        .map(|n| ask(resource, "acquire", &instance(n)).tag(["ttl", "60"]).sign(&colony.agent, &[0; 32]))
        .collect();
    for (client, request) in clients.iter_mut().zip(&requests) {
        client.feed(publication(request)).await;
    }
    for client in clients.iter_mut() {
        client.flush().await;
    }
    let (mut winner, mut refusals) = (None, Vec::new());
    for (n, (client, request)) in clients.iter_mut().zip(&requests).enumerate() {
        match read(client.answer_to(request).await) {
            Answer::Granted { epoch, .. } => {
                assert_eq!(winner.replace((n, epoch)), None, "two were granted {resource}");
            }
            Answer::Conflict(text) => refusals.push(text),
        }
    }
    let (n, epoch) = winner.expect("one of them gets it");
    let held = format!("conflict: held by {} epoch={epoch} expires=", instance(n));
    assert!(refusals.iter().all(|text| text.starts_with(&held)), "{held} {refusals:?}");
    (n, epoch)
}

fn instance(n: usize) -> String {
    format!("pod-{n}")
}

/// What ends a round, and what it makes of the lease.
struct Contest {
    dice: Dice,
    turn: u64,
    resource: String,
    /// Who was told that it holds which epoch of what. Nobody is told what another was.
    holders: BTreeMap<(String, u64), String>,
    newest: BTreeMap<String, u64>,
    finals: u64,
    steals: u64,
}

impl Contest {
    fn new(colony: &Colony) -> Self {
        let resource = colony.resource("0");
        Self {
            dice: Dice(4),
            turn: 0,
            resource,
            holders: BTreeMap::new(),
            newest: BTreeMap::new(),
            finals: 0,
            steals: 0,
        }
    }

    /// A new grant: a new epoch, larger than all before it.
    fn note(&mut self, epoch: u64, instance: &str) {
        let other = self.holders.insert((self.resource.clone(), epoch), instance.to_owned());
        assert_eq!(other, None, "two holders of {} epoch {epoch}", self.resource);
        let before = self.newest.insert(self.resource.clone(), epoch).unwrap_or(0);
        assert!(epoch > before, "epoch {epoch} after {before}");
    }

    async fn end_round(&mut self, clients: &mut [Client], colony: &Colony, winner: usize, epoch: u64) {
        let (holder, resource) = (instance(winner), self.resource.clone());
        let with_epoch = |op: &str| ask(&resource, op, &holder).tag(["epoch", &epoch.to_string()]);
        match self.dice.roll(10) {
            0 => {
                let completed = send(&mut clients[winner], &colony.agent, with_epoch("complete")).await;
                assert_eq!(completed.epoch(), epoch);
                self.next_resource(clients, colony, winner).await;
            }
            1 => {
                let last = act(&colony.agent, &self.resource, epoch, true);
                assert_eq!(clients[winner].publish(&last).await, (true, String::new()));
                self.next_resource(clients, colony, winner).await;
            }
            2..=4 => {
                let thief = (winner + 1) % clients.len();
                let steal = ask(&self.resource, "steal", &instance(thief)).tag(colony.consent());
                let stolen = send(&mut clients[thief], &colony.agent, steal).await.epoch();
                self.note(stolen, &instance(thief));
                self.steals += 1;
                // The old holder notices at its next word.
                let renewal = send(&mut clients[winner], &colony.agent, with_epoch("renew")).await.refusal();
                assert!(
                    renewal.starts_with(&format!("conflict: held by {} epoch={stolen} ", instance(thief))),
                    "{renewal}"
                );
                let late = clients[winner].publish(&act(&colony.agent, &self.resource, epoch, false)).await;
                assert!(!late.0 && late.1.starts_with("conflict: "), "{late:?}");
                let release = ask(&self.resource, "release", &instance(thief)).tag(["epoch", &stolen.to_string()]);
                assert_eq!(send(&mut clients[thief], &colony.agent, release).await.epoch(), stolen);
            }
            _ => assert_eq!(send(&mut clients[winner], &colony.agent, with_epoch("release")).await.epoch(), epoch),
        }
    }

    /// The old one has ended for ever; the next rounds are about another.
    async fn next_resource(&mut self, clients: &mut [Client], colony: &Colony, n: usize) {
        let again = send(&mut clients[n], &colony.agent, ask(&self.resource, "acquire", "anybody")).await.refusal();
        assert!(again.starts_with("conflict: completed"), "{again}");
        self.finals += 1;
        self.turn += 1;
        self.resource = colony.resource(&self.turn.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_acquirers_one_holds_and_no_epoch_has_two_holders() {
    let mut relay = Relay::start(UNHURRIED);
    let colony = Colony::register(&relay).await;
    let mut clients = Vec::new();
    for _ in 0..ACQUIRERS {
        clients.push(Client::connect(&relay).await);
    }
    let mut contest_state = Contest::new(&colony);
    let started = std::time::Instant::now();
    for round in 0..rounds() {
        let resource = contest_state.resource.clone();
        let (winner, epoch) = contest(&mut clients, &colony, &resource).await;
        contest_state.note(epoch, &instance(winner));
        contest_state.end_round(&mut clients, &colony, winner, epoch).await;
        if round % 1_000 == 999 {
            println!("round {}: {:.1?}", round + 1, started.elapsed());
        }
    }
    relay.assert_alive();
    let Contest { holders, finals, steals, .. } = contest_state;
    println!(
        "{} rounds of {ACQUIRERS} acquirers in {:.1?}: {} grants, {steals} stolen, {finals} leases completed; memory of the relay {} KiB",
        rounds(),
        started.elapsed(),
        holders.len(),
        relay.memory_kib("RssAnon"),
    );
    assert_eq!(relay.metric("store_errors_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_expires_by_the_ledgers_clock_and_not_by_the_clients() {
    let relay = Relay::start(UNHURRIED);
    let colony = Colony::register(&relay).await;
    let mut client = Client::connect(&relay).await;
    let at = |shift: i64, instance: &str| {
        let draft = ask(&colony.resource("x"), "acquire", instance).tag(["ttl", "5"]);
        Draft { created_at: now().saturating_add_signed(shift), ..draft }
    };
    let before = now();
    let Answer::Granted { epoch: 1, expires } = send(&mut client, &colony.agent, at(-200, "slow-clock")).await else {
        panic!("it is free")
    };
    assert!((before + 5..=now() + 5).contains(&expires), "the ledger's clock and not the request's: {expires}");
    // A request from the future does not see the lease expired, nor one from the past hold it for longer.
    let mut early = 0;
    let (epoch, taken_at) = loop {
        let shift = if early % 2 == 0 { 200 } else { -200 };
        let asked_at = now();
        match send(&mut client, &colony.agent, at(shift, "fast-clock")).await {
            Answer::Granted { epoch, .. } => break (epoch, now()),
            Answer::Conflict(text) => {
                assert_eq!(text, format!("conflict: held by slow-clock epoch=1 expires={expires}"));
                assert!(asked_at < expires, "not free at {asked_at} though it expired at {expires}");
                early += 1;
            }
        }
    };
    assert_eq!(epoch, 2);
    assert!(taken_at >= expires, "taken at {taken_at}, before it expired at {expires}");
    assert!(early > 0, "it was never seen held");
    // The first holder's epoch is stale, whatever its clock says.
    let renew = ask(&colony.resource("x"), "renew", "slow-clock").tag(["epoch", "1"]);
    assert!(send(&mut client, &colony.agent, renew).await.refusal().starts_with("conflict: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_of_a_stale_epoch_is_refused_and_a_second_final_too() {
    let relay = Relay::start(UNHURRIED);
    let colony = Colony::register(&relay).await;
    let mut client = Client::connect(&relay).await;
    let resource = colony.resource("x");
    let elsewhere = act(&colony.agent, &colony.resource("elsewhere"), 1, true);
    assert_eq!(client.publish(&elsewhere).await, (true, String::new()), "another relay's lease");
    let act = |epoch, is_final| act(&colony.agent, &resource, epoch, is_final);
    assert_eq!(send(&mut client, &colony.agent, ask(&resource, "acquire", "a")).await.epoch(), 1);
    let steal = ask(&resource, "steal", "b").tag(colony.consent());
    assert_eq!(send(&mut client, &colony.agent, steal).await.epoch(), 2);
    for (epoch, is_final) in [(1, false), (1, true), (3, false), (3, true)] {
        let (is_taken, text) = client.publish(&act(epoch, is_final)).await;
        assert!(!is_taken && text == format!("conflict: epoch={epoch} is not the lease's epoch=2"), "{text}");
    }
    assert_eq!(client.publish(&act(2, false)).await, (true, String::new()));

    // Many finals at once, of one epoch: one is stored, with the completion, and no other.
    let mut finals = JoinSet::new();
    let relay = Arc::new(relay);
    for n in 0..20 {
        let (relay, resource, agent) = (Arc::clone(&relay), resource.clone(), colony.agent);
        finals.spawn(async move {
            let draft = Draft::new(Kind(1), now(), format!("final {n}")).tag(["lease", &resource, "2", "final"]);
            Client::connect(&relay).await.publish(&draft.sign(&agent, &[0; 32])).await
        });
    }
    let answers = finals.join_all().await;
    assert_eq!(answers.iter().filter(|(is_taken, _)| *is_taken).count(), 1, "{answers:?}");
    let is_conflict = |(is_taken, text): &(bool, String)| *is_taken || text.starts_with("conflict: ");
    assert!(answers.iter().all(is_conflict), "{answers:?}");
    let stored = client.request("q", &json!({ "kinds": [1] })).await;
    // The one of another relay's lease, the one that was not final, and one of the finals.
    assert_eq!(stored.len(), 3, "the refused ones are not stored: {stored:?}");
    for op in ["acquire", "steal"] {
        let again = ask(&resource, op, "c").tag(colony.consent());
        assert!(send(&mut client, &colony.agent, again).await.refusal().starts_with("conflict: completed"), "{op}");
    }
}

/// An agent need not wait for its lease before it acts, nor for one version before it sends the next.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_connection_sends_in_a_row_is_committed_in_that_order() {
    const ROUNDS: u64 = 400;
    let relay = Relay::start(UNHURRIED);
    let colony = Colony::register(&relay).await;
    let mut client = Client::connect(&relay).await;
    let mut expected = BTreeMap::new();
    for n in 0..ROUNDS {
        let resource = colony.resource(&n.to_string());
        let request = ask(&resource, "acquire", "a").sign(&colony.agent, &[0; 32]);
        let version = Draft::new(Kind(10_002), now() - ROUNDS + n, "").sign(&colony.agent, &[0; 32]);
        // Three a round, and batches of a power of two: requests and what needs them fall into different batches.
        let sent = [(request, "lease: epoch=1 "), (act(&colony.agent, &resource, 1, true), ""), (version, "")];
        for (event, answer) in sent {
            client.feed(publication(&event)).await;
            expected.insert(event.id.to_hex(), answer);
        }
    }
    client.flush().await;
    while !expected.is_empty() {
        let (id, is_taken, text) = client.next_ok().await;
        let begin = expected.remove(&id).unwrap();
        assert!(is_taken && text.starts_with(begin) && text.is_empty() == begin.is_empty(), "{id}: {text}");
    }
    let newest = client.request("q", &json!({ "kinds": [10_002] })).await;
    assert_eq!(newest.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_agent_asks_and_only_with_its_owners_consent_it_steals() {
    let relay = Relay::start(UNHURRIED);
    let colony = Colony::register(&relay).await;
    let mut client = Client::connect(&relay).await;
    let resource = colony.resource("x");
    let stranger = keys(99);
    let (is_taken, text) = client.publish(&ask(&resource, "acquire", "s").sign(&stranger, &[0; 32])).await;
    assert!(!is_taken && text.starts_with("restricted: "), "{text}");
    assert_eq!(send(&mut client, &colony.agent, ask(&resource, "acquire", "a")).await.epoch(), 1);
    let forged = attest(&stranger, &pubkey(&colony.agent), &Conditions::default(), &[0; 32]);
    for steal in [ask(&resource, "steal", "b"), ask(&resource, "steal", "b").tag(forged)] {
        let (is_taken, text) = client.publish(&steal.sign(&colony.agent, &[0; 32])).await;
        assert!(!is_taken && text.starts_with("restricted: "), "{text}");
    }
    assert_eq!(send(&mut client, &colony.owner, ask(&resource, "steal", "b")).await.epoch(), 2);
    // A request is an act: one from an hour ago is none.
    let old = Draft { created_at: now() - 3_600, ..ask(&resource, "acquire", "c") };
    let (is_taken, text) = client.publish(&old.sign(&colony.agent, &[0; 32])).await;
    assert!(!is_taken && text.starts_with("invalid: "), "{text}");
}

fn tag(event: &Value, name: &str) -> String {
    let tags = event["tags"].as_array().unwrap();
    tags.iter().find(|tag| tag[0] == name).unwrap()[1].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_watches_every_epoch_in_order_and_a_stranger_none() {
    let relay = Relay::start(UNHURRIED);
    let colony = Colony::register(&relay).await;
    let resource = colony.resource("x");
    let filter = json!({ "kinds": [Kind::LEASE_STATE], "#d": [resource] });
    let mut stranger = Client::connect(&relay).await;
    stranger.authenticate(&relay, &keys(99)).await;
    let mut owner = Client::connect(&relay).await;
    owner.authenticate(&relay, &colony.owner).await;
    for client in [&mut stranger, &mut owner] {
        assert_eq!(client.request("w", &filter).await, Vec::<Value>::new());
    }
    let mut client = Client::connect(&relay).await;
    let mut wanted = Vec::new();
    for n in 1..=50u64 {
        let holder = instance(n as usize);
        assert_eq!(send(&mut client, &colony.agent, ask(&resource, "acquire", &holder)).await.epoch(), n);
        wanted.push((n, holder.clone(), "held"));
        let op = if n == 50 { "complete" } else { "release" };
        send(&mut client, &colony.agent, ask(&resource, op, &holder).tag(["epoch", &n.to_string()])).await.epoch();
        wanted.push((n, holder, if n == 50 { "completed" } else { "held" }));
    }
    let mut times = BTreeSet::new();
    for (epoch, holder, state) in wanted {
        let event = owner.recv().await[2].take();
        assert_eq!(event["pubkey"], json!(relay.key));
        let got = (tag(&event, "epoch"), tag(&event, "instance"), tag(&event, "state"));
        assert_eq!(got, (epoch.to_string(), holder, state.to_owned()));
        assert_eq!(tag(&event, "p"), pubkey(&colony.agent).to_hex());
        assert!(times.last() < Some(&event["created_at"].as_u64().unwrap()), "each is newer than the one before");
        times.insert(event["created_at"].as_u64().unwrap());
    }
    let kept = owner.request("q", &filter).await;
    assert_eq!((kept.len(), tag(&kept[0], "state")), (1, "completed".to_owned()));
    // Nothing came to the stranger before the answer to what it asks last.
    assert_eq!(stranger.request("q", &filter).await, Vec::<Value>::new());
}

/// One acquirer of the crash test: takes and gives back until the relay goes; what it was told is the result.
async fn hammer(mut client: Client, agent: Keypair, resource: String, instance: String) -> u64 {
    let mut newest = 0;
    loop {
        for draft in [
            ask(&resource, "acquire", &instance).tag(["ttl", "60"]),
            ask(&resource, "release", &instance).tag(["epoch", &newest.to_string()]),
        ] {
            // A socket that breaks at the sending says so at the receiving.
            let _ = client.try_send(publication(&draft.sign(&agent, &[0; 32]))).await;
            match client.try_recv().await {
                Err(_) => return newest,
                Ok(text) => {
                    let answer: Value = serde_json::from_str(&text).unwrap();
                    let told = (answer[2].as_bool().unwrap(), answer[3].as_str().unwrap().to_owned());
                    if let Answer::Granted { epoch, .. } = read(told) {
                        assert!(epoch >= newest, "epoch {epoch} after {newest}");
                        newest = epoch;
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_epochs_do_not_go_back_and_what_was_completed_stays_so() {
    let mut relay = Relay::start(UNHURRIED);
    let colony = Colony::register(&relay).await;
    let (mut newest, mut completed) = (0, Vec::<String>::new());
    let mut dice = Dice(9);
    for kill in 0..8 {
        let mut client = Client::connect(&relay).await;
        // What was told before the kill holds after it.
        for resource in &completed {
            let again = send(&mut client, &colony.agent, ask(resource, "acquire", "z")).await.refusal();
            assert!(again.starts_with("conflict: completed"), "{again}");
        }
        let steal = ask(&colony.resource("x"), "steal", "after-the-restart").tag(colony.consent());
        let steal = send(&mut client, &colony.agent, steal).await.epoch();
        assert!(steal > newest, "epoch {steal} after the restart, {newest} before");
        newest = steal;
        let release = ask(&colony.resource("x"), "release", "after-the-restart").tag(["epoch", &steal.to_string()]);
        send(&mut client, &colony.agent, release).await.epoch();

        let mut hammers = JoinSet::new();
        for n in 0..10 {
            let client = Client::connect(&relay).await;
            hammers.spawn(hammer(client, colony.agent, colony.resource("x"), instance(n)));
        }
        // The kill comes right after some OK, among others that are on their way.
        for n in 0..20 + dice.roll(100) {
            let resource = colony.resource(&format!("{kill}-{n}"));
            assert_eq!(send(&mut client, &colony.agent, ask(&resource, "acquire", "a")).await.epoch(), 1);
            let last = act(&colony.agent, &resource, 1, true);
            assert_eq!(client.publish(&last).await, (true, String::new()));
            completed.push(resource);
        }
        relay.kill_and_restart();
        newest = hammers.join_all().await.into_iter().max().unwrap().max(newest);
    }
    println!("8 kills: epoch {newest}, {} leases completed", completed.len());
}
