//! What tools answer with, made of what a relay gave: a page of a conversation, and the agents of one owner.
//!
//! Must not: give what somebody wrote without its envelope, or a name to an agent that its owner did not sign for.

use serde_json::{Value, json};
use skep_proto::attestation::Attestation;
use skep_proto::name::AgentName;
use skep_proto::{Filter, Kind, PubKey, RawEvent, Timestamp, limits, mention};

use super::CallError;
use crate::prompt::{self, earlier};

/// What to ask a relay for, for a page of the conversation of a message. Nothing: nothing was said before it.
pub fn filters(message: &RawEvent, before: Option<Timestamp>) -> Vec<Filter> {
    let until = before.map_or(message.created_at, |before| before.min(message.created_at));
    let of_page = |filter: Filter| match filter.until {
        Some(_) => Filter { until: Some(until), ..filter },
        // The one that began it, by its id.
        None => filter,
    };
    earlier::filters(message).into_iter().map(of_page).collect()
}

/// The newest of what a relay gave that belong to the page, in order.
pub fn choose(message: &RawEvent, found: Vec<RawEvent>, before: Option<Timestamp>, limit: usize) -> Vec<RawEvent> {
    let found = found.into_iter().filter(|event| before.is_none_or(|before| event.created_at <= before)).collect();
    let mut page = earlier::choose(message, found, &Default::default());
    page.split_off(page.len().saturating_sub(limit))
}

/// An agent of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    pub key: PubKey,
    pub name: AgentName,
    /// Untrusted.
    pub about: String,
}

/// Looking for the agents of an owner on a relay that has anybody's profiles: page by page, the newest first. No filter
/// asks for an attestation, so that each page is looked through, and only what the owner signed for is kept.
#[derive(Debug)]
pub struct Search {
    owner: PubKey,
    me: PubKey,
    found: Vec<(Timestamp, Sibling)>,
    /// Agents that were found before; none when they were asked for.
    known: Vec<PubKey>,
    until: Option<Timestamp>,
    pages: usize,
}

impl Search {
    /// Those that are known are found wherever they stand.
    pub fn new(owner: PubKey, me: PubKey, known: Vec<PubKey>) -> Self {
        Self { owner, me, found: Vec::new(), known, until: None, pages: 0 }
    }

    /// What to ask next.
    pub fn ask(&self) -> Vec<Filter> {
        let profiles = Filter { kinds: Some(vec![Kind::PROFILE]), ..Filter::new() };
        vec![match self.known.is_empty() {
            false => Filter { authors: Some(self.known.clone()), ..profiles },
            true => Filter { until: self.until, limit: Some(limits::LOOKUP_EVENTS_MAX as u64), ..profiles },
        }]
    }

    /// Takes what a relay gave; says whether there is more to ask.
    pub fn take(&mut self, page: &[RawEvent]) -> bool {
        let kept: Vec<_> = attested(page, self.owner, self.me).collect();
        self.found.extend(kept);
        self.found = newest(std::mem::take(&mut self.found));
        if !self.known.is_empty() {
            self.known.clear();
            return true;
        }
        self.pages += 1;
        let oldest = page.iter().map(|event| event.created_at).min();
        // A relay may have as many of one second as it gives at once.
        self.until = oldest.map(|oldest| oldest.saturating_sub(u64::from(self.until == Some(oldest))));
        page.len() >= limits::PROFILES_PAGE_MIN && self.pages < limits::PROFILES_PAGES_MAX
    }

    pub fn end(self) -> Vec<Sibling> {
        listed(self.found)
    }
}

/// Those of the profiles that this owner signed for, but for the one who asks; by name, the first of them.
pub fn siblings(found: &[RawEvent], owner: PubKey, me: PubKey) -> Vec<Sibling> {
    listed(newest(attested(found, owner, me).collect()))
}

fn attested(found: &[RawEvent], owner: PubKey, me: PubKey) -> impl Iterator<Item = (Timestamp, Sibling)> {
    let others = found.iter().filter(move |event| event.kind == Kind::PROFILE && event.pubkey != me);
    others.filter_map(move |event| Some((event.created_at, sibling(event, owner)?)))
}

/// Of two profiles of one key the newest counts.
fn newest(mut all: Vec<(Timestamp, Sibling)>) -> Vec<(Timestamp, Sibling)> {
    all.sort_by_key(|(at, sibling)| (sibling.key, std::cmp::Reverse(*at)));
    all.dedup_by_key(|(_, sibling)| sibling.key);
    all
}

fn listed(all: Vec<(Timestamp, Sibling)>) -> Vec<Sibling> {
    let mut all: Vec<Sibling> = all.into_iter().map(|(_, sibling)| sibling).collect();
    all.sort_by(|a, b| (&a.name, a.key).cmp(&(&b.name, b.key)));
    all.truncate(limits::AGENTS_LISTED_MAX);
    all
}

fn sibling(profile: &RawEvent, owner: PubKey) -> Option<Sibling> {
    let attestation = Attestation::from_tags(&profile.tags, &profile.pubkey)?.ok()?;
    let conditions = &attestation.conditions;
    let covers = conditions.allow_kind(profile.kind) && conditions.allow_time(profile.created_at);
    if attestation.owner != owner || !covers {
        return None;
    }
    let json: Value = serde_json::from_str(&profile.content).ok()?;
    let name = json["name"].as_str()?.to_lowercase().parse().ok()?;
    let about: String = json["about"].as_str().unwrap_or_default().chars().take(ABOUT_CHARS_MAX).collect();
    Some(Sibling { key: profile.pubkey, name, about })
}

/// Characters of what an agent says of itself: two lines.
const ABOUT_CHARS_MAX: usize = 160;

/// The one of a name.
pub fn find<'a>(siblings: &'a [Sibling], name: &AgentName) -> Result<&'a Sibling, CallError> {
    let found: Vec<&Sibling> = siblings.iter().filter(|sibling| sibling.name == *name).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let known = siblings.iter().map(|sibling| sibling.name.to_string()).collect();
            Err(CallError::NoSuchAgent { name: name.clone(), known })
        }
        _ => Err(CallError::Ambiguous { name: name.clone() }),
    }
}

/// The lease of an agent's prompter.
fn prompter(key: &PubKey) -> String {
    format!("prompter:{key}")
}

/// What to ask a relay for, whose own key is known, to learn who of them is at work.
pub fn leases(siblings: &[Sibling], relay: PubKey) -> Vec<Filter> {
    let resources: Vec<String> = siblings.iter().map(|sibling| prompter(&sibling.key)).collect();
    let lease = Filter { kinds: Some(vec![Kind::LEASE_STATE]), authors: Some(vec![relay]), ..Filter::new() };
    if resources.is_empty() { Vec::new() } else { vec![Filter { tags: vec![(b'd', resources)], ..lease }] }
}

/// The list as a model reads it: JSON, one agent a line. `leases`: the relay's own words; `None`: it was not asked or
/// did not answer.
pub fn list(siblings: &[Sibling], leases: Option<&[RawEvent]>, now: Timestamp) -> String {
    if siblings.is_empty() {
        return "your owner has no other agents on this relay".to_owned();
    }
    let row = |sibling: &Sibling| {
        let at_work = match leases.map(|leases| is_held(leases, &sibling.key, now)) {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        let about = prompt::visible(&sibling.about);
        let npub = mention::npub(&sibling.key);
        json!({ "name": sibling.name, "npub": npub, "about": about, "at_work": at_work }).to_string()
    };
    siblings.iter().map(row).collect::<Vec<_>>().join("\n")
}

fn is_held(leases: &[RawEvent], key: &PubKey, now: Timestamp) -> bool {
    let resource = prompter(key);
    let of_key = leases.iter().filter(|lease| lease.tags.single("d") == Some(&resource));
    let newest = of_key.max_by_key(|lease| lease.created_at);
    let expires = newest.and_then(|lease| lease.tags.single("expires")?.parse::<Timestamp>().ok());
    expires.is_some_and(|expires| now < expires)
}
