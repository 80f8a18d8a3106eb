//! Which agents there are, by name: those of the configuration, and those whose profile on a relay carries the owner's
//! attestation.
//!
//! Must not: give a name to an agent that its owner did not sign for.

use skep_proto::attestation::Attestation;
use skep_proto::name::AgentName;
use skep_proto::{Filter, Kind, PubKey, RawEvent, Tags};

use super::is_attested;
use crate::agent::settings::AgentSettings;
use crate::client::{Client, ClientError};
use crate::config::Settings;
use crate::keys::{self, KeyState, Keyring, npub};

/// Profiles that are looked at. A relay with more gives its newest, and a key can always be named by its npub.
const PROFILES_MAX: u64 = 2_000;

/// Names that are offered for one that is unknown.
const NEAR_MAX: usize = 3;

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// `None`: named by its key, and known by no name.
    pub name: Option<AgentName>,
    pub key: PubKey,
    /// As the configuration says; the first is its home. Empty: not in it.
    pub relays: Vec<String>,
    /// Whether the owner's attestation was seen.
    pub is_ours: bool,
}

impl Agent {
    /// `@name`, or the beginning and end of its npub.
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => format!("@{name}"),
            None => short(&self.key),
        }
    }
}

/// `npub1abcd…wxyz`.
pub fn short(key: &PubKey) -> String {
    let text = npub(key);
    format!("{}…{}", &text[..9], &text[text.len() - 4..])
}

/// Why a name is nobody's, or not one agent's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    #[error("no agent is named {name:?}")]
    Name { name: String, near: Vec<String>, known: Vec<String> },
    #[error("several agents are named {name}: {}", .npubs.join(", "))]
    Several { name: String, npubs: Vec<String> },
}

impl Unknown {
    /// What to try.
    pub fn hint(&self) -> String {
        match self {
            Self::Name { near, .. } if !near.is_empty() => format!("did you mean {}?", near.join(" or ")),
            Self::Name { known, .. } if known.is_empty() => {
                "no agent is known here: add one to the configuration, or give its npub".into()
            }
            Self::Name { known, .. } => format!("there are: {}", known.join(", ")),
            Self::Several { .. } => "give the npub of the one that you mean".into(),
        }
    }
}

/// The agents that one owner knows.
#[derive(Debug, Clone)]
pub struct Directory {
    owner: PubKey,
    agents: Vec<Agent>,
}

impl Directory {
    /// Of the configuration. An agent whose key is not in the key ring is left out: nobody could tell which it is.
    pub fn of(owner: PubKey, settings: &Settings, ring: &Keyring) -> Self {
        let known = |agent: &AgentSettings| {
            let state = ring.state(&agent.key_name().parse().ok()?);
            let Ok(KeyState { pubkey: Some(key), .. }) = state else { return None };
            let tags = Tags::from_iter([&agent.auth]);
            let attestation = Attestation::from_tags(&tags, &key).and_then(Result::ok);
            let is_ours = attestation.is_some_and(|attestation| attestation.owner == owner);
            Some(Agent { name: agent.name.parse().ok(), key, relays: agent.relays.clone(), is_ours })
        };
        Self { owner, agents: settings.agent.iter().filter_map(known).collect() }
    }

    /// Adds those whose profile on this relay carries the owner's attestation. What the configuration says stands.
    pub async fn learn(&mut self, client: &mut Client) -> Result<(), ClientError> {
        let filter = Filter { kinds: Some(vec![Kind::PROFILE]), limit: Some(PROFILES_MAX), ..Filter::new() };
        for profile in client.query(vec![filter]).await? {
            self.add_profile(&profile);
        }
        Ok(())
    }

    fn add_profile(&mut self, profile: &RawEvent) {
        if profile.kind != Kind::PROFILE || !is_attested(profile, &self.owner) {
            return;
        }
        match self.agents.iter_mut().find(|agent| agent.key == profile.pubkey) {
            Some(agent) => {
                agent.is_ours = true;
                agent.name = agent.name.take().or_else(|| name_of(profile));
            }
            None => self.agents.push(Agent {
                name: name_of(profile),
                key: profile.pubkey,
                relays: Vec::new(),
                is_ours: true,
            }),
        }
    }

    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }

    pub fn is_ours(&self, key: &PubKey) -> bool {
        self.agents.iter().any(|agent| agent.key == *key && agent.is_ours)
    }

    /// How an agent is called here.
    pub fn label(&self, key: &PubKey) -> String {
        self.agents.iter().find(|agent| agent.key == *key).map_or_else(|| short(key), Agent::label)
    }

    /// The agent of a name (with or without `@`, in any case), npub, nprofile or hex key.
    pub fn find(&self, text: &str) -> Result<Agent, Unknown> {
        let name = text.strip_prefix('@').unwrap_or(text);
        if let Ok(key) = keys::pubkey(name) {
            let known = self.agents.iter().find(|agent| agent.key == key).cloned();
            return Ok(known.unwrap_or(Agent { name: None, key, relays: Vec::new(), is_ours: false }));
        }
        let lower = name.to_lowercase();
        let has_name = |agent: &&Agent| agent.name.as_ref().is_some_and(|name| name.as_str() == lower);
        let found: Vec<&Agent> = self.agents.iter().filter(has_name).collect();
        match found.as_slice() {
            [agent] => Ok((*agent).clone()),
            [] => Err(self.unknown(name, &lower)),
            several => {
                let npubs = several.iter().map(|agent| npub(&agent.key)).collect();
                Err(Unknown::Several { name: lower, npubs })
            }
        }
    }

    fn unknown(&self, name: &str, lower: &str) -> Unknown {
        let names = self.agents.iter().filter_map(|agent| agent.name.as_ref()).map(AgentName::as_str);
        let mut known: Vec<String> = names.map(|name| format!("@{name}")).collect();
        known.sort();
        known.dedup();
        let mut near: Vec<(usize, String)> = known
            .iter()
            .map(|known| (distance(lower, &known[1..]), known.clone()))
            .filter(|(distance, known)| *distance <= known.len().saturating_sub(1) / 3 + 1)
            .collect();
        near.sort();
        near.truncate(NEAR_MAX);
        let near = near.into_iter().map(|(_, name)| name).collect();
        Unknown::Name { name: name.chars().take(80).collect(), near, known }
    }
}

/// The name in a profile, where it is one that an agent can have.
fn name_of(profile: &RawEvent) -> Option<AgentName> {
    let json: serde_json::Value = serde_json::from_str(&profile.content).ok()?;
    json["name"].as_str()?.to_lowercase().parse().ok()
}

/// How many characters must be changed, added or taken away to make one word the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    // Names are at most 63 characters; what is typed may be anything.
    let a: Vec<char> = a.chars().take(80).collect();
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, c) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in a.iter().enumerate() {
            let replaced = diagonal + usize::from(*other != c);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use skep_proto::Draft;
    use skep_proto::attestation::{Conditions, attest};

    fn directory(owner: &Keys, profiles: &[(&str, &Keys, &Keys)]) -> Directory {
        let mut directory = Directory { owner: owner.pubkey(), agents: Vec::new() };
        for (content, agent, attester) in profiles {
            let tag = attest(attester.keypair(), &agent.pubkey(), &Conditions::default(), &[0; 32]);
            directory.add_profile(&agent.sign(Draft::new(Kind::PROFILE, 5, *content).tag(tag)));
        }
        directory
    }

    fn keys() -> Keys {
        Keys::generate().expect("randomness")
    }

    #[test]
    fn only_agents_that_the_owner_signed_for_have_a_name() {
        let (owner, other, scout, fake) = (keys(), keys(), keys(), keys());
        let named = r#"{"name":"Scout"}"#;
        let directory = directory(&owner, &[(named, &scout, &owner), (named, &fake, &other)]);
        for text in ["@scout", "scout", "SCOUT", &scout.pubkey().to_hex(), &npub(&scout.pubkey())] {
            assert_eq!(directory.find(text).expect(text).key, scout.pubkey());
        }
        assert!(directory.is_ours(&scout.pubkey()) && !directory.is_ours(&fake.pubkey()));
        let by_key = directory.find(&npub(&fake.pubkey())).expect("a key is a key");
        assert_eq!((by_key.name, by_key.is_ours), (None, false));
        assert_eq!(directory.label(&fake.pubkey()), short(&fake.pubkey()));
    }

    #[test]
    fn an_unknown_name_gives_those_that_are_near() {
        let (owner, a, b, c) = (keys(), keys(), keys(), keys());
        let named = |name: &str| format!(r#"{{"name":"{name}"}}"#);
        let all = [named("scout"), named("scoot"), named("librarian"), named("a b\u{1b}[2J")];
        let (d, e) = (keys(), keys());
        let directory = directory(
            &owner,
            &[(&all[0], &a, &owner), (&all[1], &b, &owner), (&all[2], &c, &owner), (&all[3], &d, &owner)],
        );
        let unknown = |text: &str| directory.find(text).expect_err("nobody");
        assert_eq!(unknown("@scuot").hint(), "did you mean @scoot or @scout?");
        assert_eq!(unknown("zzzzzzzz").hint(), "there are: @librarian, @scoot, @scout");
        assert_eq!(unknown("@scuot").to_string(), r#"no agent is named "scuot""#);
        assert_eq!(directory.label(&d.pubkey()), short(&d.pubkey()), "no name that could not be typed");
        let twice = r#"{"name":"twin"}"#;
        let twins = super::tests::directory(&owner, &[(twice, &a, &owner), (twice, &e, &owner)]);
        assert!(matches!(twins.find("twin"), Err(Unknown::Several { npubs, .. }) if npubs.len() == 2));
    }

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, expected) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("ab", "ba", 2), ("é", "e", 1)] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
