//! Leases on the wire: the request (kind 24480), its answer, and the `lease` tag of an event that acts under one.

use std::fmt;

use crate::{Draft, Kind, Prefix, PubKey, RawEvent, Refusal, Timestamp, limits};

/// What a lease is on: `prompter:<agent>`, `turn:<agent>:<trigger id>`, `task:<ref>`, …
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource(Box<str>);

impl Resource {
    /// 1 to [`limits::LEASE_RESOURCE_BYTES_MAX`] printable ASCII characters without space, `<scope>:<name>`.
    pub fn new(text: &str) -> Option<Self> {
        let fits = (1..=limits::LEASE_RESOURCE_BYTES_MAX).contains(&text.len());
        let (scope, name) = text.split_once(':')?;
        let whole = !scope.is_empty() && !name.is_empty();
        (fits && whole && text.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The agent that alone may ask, for `prompter:` and `turn:`; `None` for other scopes or a bad key.
    pub fn agent(&self) -> Option<PubKey> {
        let (scope, rest) = self.0.split_once(':')?;
        let agent = match scope {
            "prompter" => rest,
            "turn" => rest.split_once(':')?.0,
            _ => return None,
        };
        agent.parse().ok()
    }

    pub fn scope(&self) -> &str {
        self.0.split_once(':').map_or("", |(scope, _)| scope)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The fencing number of a lease: it only grows.
pub type Epoch = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Take it when it is free or expired.
    Acquire { ttl_secs: u64 },
    /// Keep it.
    Renew { epoch: Epoch, ttl_secs: u64 },
    /// Give it back.
    Release { epoch: Epoch },
    /// Take it from whoever holds it.
    Steal { ttl_secs: u64 },
    /// End it for ever: nobody can acquire it again.
    Complete { epoch: Epoch },
}

/// A lease request, as its tags say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub resource: Resource,
    pub op: Op,
    /// Which process asks: one of the instances of a key.
    pub instance: String,
}

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("needs one resource tag, like prompter:<agent>")]
    Resource,
    #[error("needs one op tag: acquire, renew, release, steal or complete")]
    Op,
    #[error("needs one instance tag of 1 to 128 printable characters")]
    Instance,
    #[error("renew, release and complete need an epoch tag")]
    Epoch,
    #[error("ttl is from 1 to 86400 seconds")]
    Ttl,
}

impl Request {
    pub fn from_event(event: &RawEvent) -> Result<Self, RequestError> {
        let tag = |name| event.tags.single(name);
        let resource = tag("resource").and_then(Resource::new).ok_or(RequestError::Resource)?;
        let instance = tag("instance").filter(|text| is_instance(text)).ok_or(RequestError::Instance)?;
        let epoch = || tag("epoch").and_then(|text| text.parse().ok()).ok_or(RequestError::Epoch);
        let ttl_secs = match tag("ttl") {
            None => limits::LEASE_TTL_SECS_DEFAULT,
            Some(text) => text.parse().map_err(|_| RequestError::Ttl)?,
        };
        if !(1..=limits::LEASE_TTL_SECS_MAX).contains(&ttl_secs) {
            return Err(RequestError::Ttl);
        }
        let op = match tag("op").ok_or(RequestError::Op)? {
            "acquire" => Op::Acquire { ttl_secs },
            "renew" => Op::Renew { epoch: epoch()?, ttl_secs },
            "release" => Op::Release { epoch: epoch()? },
            "steal" => Op::Steal { ttl_secs },
            "complete" => Op::Complete { epoch: epoch()? },
            _ => return Err(RequestError::Op),
        };
        Ok(Self { resource, op, instance: instance.to_owned() })
    }

    /// The request as an event for its holder to sign.
    pub fn draft(&self, now: Timestamp) -> Draft {
        let (op, epoch, ttl_secs) = match self.op {
            Op::Acquire { ttl_secs } => ("acquire", None, Some(ttl_secs)),
            Op::Renew { epoch, ttl_secs } => ("renew", Some(epoch), Some(ttl_secs)),
            Op::Release { epoch } => ("release", Some(epoch), None),
            Op::Steal { ttl_secs } => ("steal", None, Some(ttl_secs)),
            Op::Complete { epoch } => ("complete", Some(epoch), None),
        };
        let mut draft = Draft::new(Kind::LEASE_REQUEST, now, "")
            .tag(["resource", self.resource.as_str()])
            .tag(["op", op])
            .tag(["instance", &self.instance]);
        for (name, number) in [("epoch", epoch), ("ttl", ttl_secs)] {
            if let Some(number) = number {
                draft = draft.tag([name, &number.to_string()]);
            }
        }
        draft
    }
}

fn is_instance(text: &str) -> bool {
    (1..=limits::LEASE_INSTANCE_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// One lease as the ledger holds it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lease {
    pub holder: PubKey,
    pub instance: String,
    pub epoch: Epoch,
    /// By the ledger's clock; free from this second on.
    pub expires_at: Timestamp,
    /// Ended for ever.
    pub completed: bool,
    /// `created_at` of the newest state event: two changes in one second must not look like one.
    #[serde(default)]
    pub noted_at: Timestamp,
}

impl Lease {
    pub fn is_held(&self, now: Timestamp) -> bool {
        !self.completed && now < self.expires_at
    }

    /// The state event (kind 30480) that others watch, for the relay to sign. NIP-40 would remove it; so none here.
    pub fn state(&self, resource: &Resource) -> Draft {
        let state = if self.completed { "completed" } else { "held" };
        Draft::new(Kind::LEASE_STATE, self.noted_at, "")
            .tag(["d", resource.as_str()])
            .tag(["p", &self.holder.to_hex()])
            .tag(["instance", &self.instance])
            .tag(["epoch", &self.epoch.to_string()])
            .tag(["expires", &self.expires_at.to_string()])
            .tag(["state", state])
    }
}

/// The text of a positive answer: `lease: epoch=8 expires=1700000015`.
pub fn granted_text(lease: &Lease) -> String {
    format!("lease: epoch={} expires={}", lease.epoch, lease.expires_at)
}

/// The epoch in a positive answer; `None` when it is not one.
pub fn granted_epoch(text: &str) -> Option<Epoch> {
    text.strip_prefix("lease: epoch=")?.split(' ').next()?.parse().ok()
}

/// Why a ledger does not grant a request: what it says, and what whoever asked tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    Held {
        instance: String,
        epoch: Epoch,
        expires_at: Timestamp,
    },
    /// Whoever held it lost it, though nobody has taken it.
    Expired {
        epoch: Epoch,
        expires_at: Timestamp,
    },
    /// Ended for ever, by whoever held it in this epoch.
    Completed {
        epoch: Epoch,
    },
    Nobody,
}

impl Conflict {
    pub fn held(lease: &Lease) -> Self {
        Self::Held { instance: lease.instance.clone(), epoch: lease.epoch, expires_at: lease.expires_at }
    }

    pub fn refusal(&self) -> Refusal {
        Prefix::Conflict.because(self.to_string())
    }

    /// `None`: the refusal is about something else.
    pub fn read(refusal: &Refusal) -> Option<Self> {
        let (head, rest) = refusal.text.split_once(' ').filter(|_| refusal.prefix == Prefix::Conflict)?;
        let number = |name: &str| {
            let mut pairs = rest.split(' ').filter_map(|word| word.split_once('='));
            pairs.find(|(key, _)| *key == name)?.1.parse().ok()
        };
        match head {
            "held" => {
                let instance = rest.strip_prefix("by ")?.split(' ').next()?.to_owned();
                Some(Self::Held { instance, epoch: number("epoch")?, expires_at: number("expires")? })
            }
            "expired:" => Some(Self::Expired { epoch: number("epoch")?, expires_at: number("expires")? }),
            "completed:" => Some(Self::Completed { epoch: number("epoch")? }),
            _ => (refusal.text == Self::Nobody.to_string()).then_some(Self::Nobody),
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { instance, epoch, expires_at } => {
                write!(f, "held by {instance} epoch={epoch} expires={expires_at}")
            }
            Self::Expired { epoch, expires_at } => write!(f, "expired: epoch={epoch} expires={expires_at}"),
            Self::Completed { epoch } => write!(f, "completed: epoch={epoch} ended this lease for ever"),
            Self::Nobody => f.write_str("nobody holds this lease"),
        }
    }
}

/// The tag `["lease", resource, epoch]`, or `["lease", resource, epoch, "final"]` on the event that completes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub resource: Resource,
    pub epoch: Epoch,
    pub is_final: bool,
}

impl Claim {
    /// The tag, for an event that acts under this lease.
    pub fn tag(&self) -> Vec<String> {
        let mut tag = vec!["lease".to_owned(), self.resource.to_string(), self.epoch.to_string()];
        tag.extend(self.is_final.then(|| "final".to_owned()));
        tag
    }

    /// `None` without a tag; an error for a tag that is not one, or for two.
    pub fn from_event(event: &RawEvent) -> Option<Result<Self, ClaimError>> {
        let mut tags = event.tags.named("lease");
        let tag = tags.next()?;
        if tags.next().is_some() {
            return Some(Err(ClaimError));
        }
        let claim = || {
            let is_final = match (tag.len(), tag.get(3)) {
                (3, _) => false,
                (4, Some("final")) => true,
                _ => return None,
            };
            Some(Self { resource: Resource::new(tag.get(1)?)?, epoch: tag.get(2)?.parse().ok()?, is_final })
        };
        Some(claim().ok_or(ClaimError))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a lease tag is [\"lease\", resource, epoch] or [\"lease\", resource, epoch, \"final\"], at most one")]
pub struct ClaimError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_ledger_says_is_what_its_asker_reads() {
        for conflict in [
            Conflict::Held { instance: "m/1".into(), epoch: 7, expires_at: 99 },
            Conflict::Expired { epoch: 7, expires_at: 99 },
            Conflict::Completed { epoch: 7 },
            Conflict::Nobody,
        ] {
            assert_eq!(Conflict::read(&conflict.refusal()).as_ref(), Some(&conflict));
            assert_eq!(Conflict::read(&Prefix::Error.because(conflict.to_string())), None);
        }
        for other in ["", "held", "held by", "held by m/1", "completed: now", "epoch=1 is not the lease's epoch=2"] {
            assert_eq!(Conflict::read(&Prefix::Conflict.because(other)), None, "{other}");
        }
    }
}
