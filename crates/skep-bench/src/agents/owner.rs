//! The owner's connection: proves its key, asks agents, and hears what the relay says of them.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use secp256k1::Keypair;
use serde_json::{Value, json};
use skep_proto::agent::control::{Control, control_draft};
use skep_proto::{Draft, EventId, Kind, PubKey, RawEvent, seal};

use crate::cli::unix_now;
use crate::conn::{Buffers, Conn, within};
use crate::target::{RelayUrl, Target};

/// Longer than any takeover: a lease of 15 s, and as much again.
const STALL: Duration = Duration::from_secs(60);

pub struct Owner {
    conn: Conn,
    keys: Keypair,
    /// Events that came while something else was awaited, and when.
    waiting: VecDeque<(Instant, RawEvent)>,
}

/// Who has an agent's lease.
pub struct Lease {
    pub instance: String,
    pub at: Instant,
}

impl Owner {
    pub async fn connect(url: &RelayUrl, keys: Keypair) -> Result<Self> {
        let mut conn = Conn::open(&Target::resolve(url)?, Buffers::Wide, 0).await?;
        let greeting: Value = serde_json::from_str(&within(STALL, conn.recv()).await?)?;
        let challenge =
            greeting[1].as_str().filter(|_| greeting[0] == "AUTH").context("the relay sent no challenge")?;
        let auth = Draft::new(Kind::AUTH, unix_now(), "").tag(["relay", &url.text]).tag(["challenge", challenge]);
        let auth = auth.sign(&keys, &[0; 32]).raw().clone();
        conn.send(format!("[\"AUTH\",{}]", auth.to_json()).into()).await?;
        let mut owner = Self { conn, keys, waiting: VecDeque::new() };
        owner.ok(&auth.id).await?;
        Ok(owner)
    }

    /// Subscribes to leases and notes of agents, from now on.
    pub async fn follow(&mut self, agents: &[PubKey]) -> Result<()> {
        let leases: Vec<String> = agents.iter().map(|agent| format!("prompter:{agent}")).collect();
        let leases = json!({ "kinds": [Kind::LEASE_STATE], "#d": leases });
        let notes = json!({ "kinds": [Kind::NOTE], "authors": agents, "limit": 0 });
        self.conn.subscribe(json!(["REQ", "agents", leases, notes]).to_string(), STALL).await
    }

    pub fn mention(&self, agent: &PubKey, text: &str) -> Result<RawEvent> {
        self.sign(Draft::new(Kind::NOTE, unix_now(), text).tag(["p", &agent.to_hex()]))
    }

    /// The order that an instance is to lead (NIP-AO, and NIP-LE's claim).
    pub fn claim(&self, agent: &PubKey, instance: &str) -> Result<RawEvent> {
        let control = Control::ClaimLeadership { instance_id: instance.to_owned() }.to_json()?;
        let sealed = seal::seal(&self.keys, agent, &control, rand::random())?;
        self.sign(control_draft(agent, unix_now(), sealed))
    }

    fn sign(&self, draft: Draft) -> Result<RawEvent> {
        Ok(draft.sign(&self.keys, &rand::random()).raw().clone())
    }

    /// Publishes; gives when the OK was here.
    pub async fn publish(&mut self, event: &RawEvent) -> Result<SystemTime> {
        self.conn.send(format!("[\"EVENT\",{}]", event.to_json()).into()).await?;
        self.ok(&event.id).await
    }

    async fn ok(&mut self, id: &EventId) -> Result<SystemTime> {
        loop {
            let text = within(STALL, self.conn.recv()).await?;
            let (at, wall) = (Instant::now(), SystemTime::now());
            let message: Value = serde_json::from_str(&text)?;
            match message[0].as_str() {
                Some("OK") if message[1] == json!(id) => match message[2].as_bool() {
                    Some(true) => return Ok(wall),
                    _ => bail!("the relay refused: {}", message[3]),
                },
                _ => self.keep(at, message)?,
            }
        }
    }

    fn keep(&mut self, at: Instant, mut message: Value) -> Result<()> {
        match message[0].as_str() {
            Some("EVENT") => self.waiting.push_back((at, serde_json::from_value(message[2].take())?)),
            Some("CLOSED") => bail!("the relay closed the subscription: {}", message[2]),
            _ => {}
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<(Instant, RawEvent)> {
        loop {
            if let Some(next) = self.waiting.pop_front() {
                return Ok(next);
            }
            let text = within(STALL, self.conn.recv()).await?;
            self.keep(Instant::now(), serde_json::from_str(&text)?)?;
        }
    }

    /// Waits until another instance than this one has a lease.
    pub async fn lease_of_another(&mut self, than: &str) -> Result<Lease> {
        loop {
            let (at, event) = self.next().await?;
            if let Some(instance) = event.tags.single("instance").filter(|_| event.kind == Kind::LEASE_STATE)
                && instance != than
            {
                return Ok(Lease { instance: instance.to_owned(), at });
            }
        }
    }

    /// Waits until so many agents have a lease.
    pub async fn leases_of_all(&mut self, agents: usize) -> Result<()> {
        let mut seen = BTreeSet::new();
        while seen.len() < agents {
            let (_, event) = self.next().await?;
            seen.extend(event.tags.single("d").filter(|_| event.kind == Kind::LEASE_STATE).map(str::to_owned));
        }
        Ok(())
    }

    /// Waits for the reply to a mention; gives when it was here.
    pub async fn reply_to(&mut self, id: &EventId) -> Result<Instant> {
        let (begin, hex) = (Instant::now(), id.to_hex());
        loop {
            let (at, event) = self.next().await?;
            if event.kind == Kind::NOTE && event.tags.values("e").any(|parent| parent == hex) {
                return Ok(at);
            }
            if begin.elapsed() > STALL {
                return Err(anyhow!("a mention was not answered within {} s", STALL.as_secs()));
            }
        }
    }
}
