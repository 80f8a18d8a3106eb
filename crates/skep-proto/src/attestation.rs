//! Owner attestations (NIP-OA): an owner's signature that says "this agent is mine", under conditions.

use std::fmt;

use secp256k1::{Keypair, SECP256K1, XOnlyPublicKey, schnorr::Signature};
use sha2::{Digest, Sha256};

use crate::tag::Tag;
use crate::{Kind, PubKey, Sig, Tags, Timestamp, event};

/// The tag `["auth", owner, conditions, sig]`, checked against an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    pub owner: PubKey,
    pub conditions: Conditions,
}

/// What an attestation is limited to. Empty: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    text: String,
    clauses: Vec<Clause>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clause {
    Kind(Kind),
    Before(Timestamp),
    After(Timestamp),
}

/// Why an attestation does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttestationError {
    #[error("an auth tag has exactly four elements: auth, owner, conditions, signature")]
    Shape,
    #[error("the owner is not a public key in lowercase hex")]
    Owner,
    #[error("an agent cannot own itself")]
    SelfOwned,
    #[error("the conditions are not canonical: kind=N, created_at<N, created_at>N, joined by &")]
    Conditions,
    #[error("the owner's signature does not verify for this agent")]
    Signature,
}

impl Attestation {
    /// The attestation in an event's tags. No tag, or more than one, is `None`: two make none (NIP-OA).
    pub fn from_tags(tags: &Tags, agent: &PubKey) -> Option<Result<Self, AttestationError>> {
        let mut found = tags.named("auth");
        let tag = found.next()?;
        if found.next().is_some() {
            return None;
        }
        Some(Self::verify(tag, agent))
    }

    /// Checks one tag exactly: shape, keys, conditions, signature.
    pub fn verify(tag: Tag<'_>, agent: &PubKey) -> Result<Self, AttestationError> {
        let (4, Some(owner), Some(conditions), Some(sig)) = (tag.len(), tag.get(1), tag.get(2), tag.get(3)) else {
            return Err(AttestationError::Shape);
        };
        let owner: PubKey = owner.parse().map_err(|_| AttestationError::Owner)?;
        if owner == *agent {
            return Err(AttestationError::SelfOwned);
        }
        let conditions: Conditions = conditions.parse()?;
        let sig: Sig = sig.parse().map_err(|_| AttestationError::Signature)?;
        let key = XOnlyPublicKey::from_slice(&owner.0).map_err(|_| AttestationError::Owner)?;
        let sig = Signature::from_slice(&sig.0).map_err(|_| AttestationError::Signature)?;
        let hash = preimage_hash(agent, &conditions);
        SECP256K1.verify_schnorr(&sig, &hash, &key).map_err(|_| AttestationError::Signature)?;
        Ok(Self { owner, conditions })
    }
}

/// Makes the tag: the owner attests the agent.
pub fn attest(owner: &Keypair, agent: &PubKey, conditions: &Conditions, aux: &[u8; 32]) -> [String; 4] {
    let sig = event::sign_bytes(&preimage_hash(agent, conditions), owner, aux);
    let owner = PubKey(owner.x_only_public_key().0.serialize());
    ["auth".into(), owner.to_hex(), conditions.text.clone(), Sig(sig).to_hex()]
}

/// The text that the owner signs the SHA-256 of.
pub fn preimage(agent: &PubKey, conditions: &Conditions) -> String {
    format!("nostr:agent-auth:{agent}:{conditions}")
}

fn preimage_hash(agent: &PubKey, conditions: &Conditions) -> [u8; 32] {
    Sha256::digest(preimage(agent, conditions)).into()
}

impl Conditions {
    pub fn is_empty(&self) -> bool {
        self.clauses.is_empty()
    }

    /// Whether an event of this kind is within the `kind=` clauses; several allow several kinds.
    pub fn allow_kind(&self, kind: Kind) -> bool {
        let mut kinds = self.clauses.iter().filter_map(|clause| match clause {
            Clause::Kind(allowed) => Some(*allowed),
            _ => None,
        });
        match kinds.next() {
            None => true,
            Some(first) => first == kind || kinds.any(|allowed| allowed == kind),
        }
    }

    /// Whether a time is within every `created_at` clause.
    pub fn allow_time(&self, at: Timestamp) -> bool {
        self.clauses.iter().all(|clause| match clause {
            Clause::Kind(_) => true,
            Clause::Before(bound) => at < *bound,
            Clause::After(bound) => at > *bound,
        })
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Conditions {
    type Err = AttestationError;

    fn from_str(text: &str) -> Result<Self, AttestationError> {
        let clauses = if text.is_empty() {
            Vec::new()
        } else {
            text.split('&').map(clause).collect::<Option<_>>().ok_or(AttestationError::Conditions)?
        };
        Ok(Self { text: text.to_owned(), clauses })
    }
}

fn clause(text: &str) -> Option<Clause> {
    if let Some(number) = text.strip_prefix("kind=") {
        return canonical(number, u16::MAX.into()).map(|n| Clause::Kind(Kind(n as u16)));
    }
    if let Some(number) = text.strip_prefix("created_at<") {
        return canonical(number, u32::MAX.into()).map(Clause::Before);
    }
    text.strip_prefix("created_at>").and_then(|number| canonical(number, u32::MAX.into())).map(Clause::After)
}

/// A decimal without sign, leading zero or space, at most `max`.
fn canonical(text: &str, max: u64) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number <= max && number.to_string() == text).then_some(number)
}
