//! What the agent says of itself: its profile (kind 0), where it writes and reads (10002, NIP-65), and where its direct
//! messages go (10050, NIP-17). Said once by the one who leads, and again when it changes.
//!
//! Must not: write over what somebody else made with this key. What is there before the first time stays.

use serde_json::json;
use skep_core::door::Door;
use skep_proto::{Draft, Filter, Kind, RawEvent};
use skep_store::StoreError;

use super::desk::{Desk, Inner};

/// In the records: somebody else's is there.
const OTHERS: &str = "others";

/// Between two looks at a relay that does not answer.
const AGAIN_MS: u64 = 30_000;

const KINDS: [Kind; 3] = [Kind::PROFILE, Kind::RELAY_LIST, Kind::DIRECT_RELAYS];

fn fact(kind: Kind) -> String {
    format!("said:{kind}")
}

impl<D: Door + 'static> Desk<D> {
    /// Each with what it says, which is what is compared.
    fn statements(&self) -> [Draft; 3] {
        let draft = |kind, content: String| Draft::new(kind, self.unix_now(), content);
        let name = self.setup.name.to_string();
        let profile = json!({ "name": name, "display_name": name, "about": self.setup.about, "bot": true });
        let relays = &self.setup.relays;
        [
            draft(KINDS[0], profile.to_string()),
            relays.iter().fold(draft(KINDS[1], String::new()), |draft, relay| draft.tag(["r", relay])),
            relays.iter().fold(draft(KINDS[2], String::new()), |draft, relay| draft.tag(["relay", relay])),
        ]
    }

    fn is_said(&self, draft: &Draft) -> Result<bool, StoreError> {
        let known = self.setup.store.fact(&fact(draft.kind))?;
        Ok(known.is_some_and(|known| known == OTHERS || known == said(draft)))
    }

    pub(super) fn has_to_introduce(&self) -> bool {
        self.is_prompter() && self.introduces_at != u64::MAX
    }

    /// Says what is not said yet. The first time it looks whether something is there.
    pub(super) fn introduce(&mut self) -> Result<(), StoreError> {
        if !self.is_prompter() || self.mono_ms() < self.introduces_at {
            return Ok(());
        }
        let mut unsaid = Vec::new();
        for draft in self.statements() {
            if !self.is_said(&draft)? {
                unsaid.push(draft.kind);
            }
        }
        // Nothing changes while it runs; a relay that does not answer is asked later.
        self.introduces_at = if unsaid.is_empty() { u64::MAX } else { self.mono_ms() + AGAIN_MS };
        if unsaid.is_empty() {
            return Ok(());
        }
        let filter = Filter { kinds: Some(unsaid), authors: Some(vec![self.me]), ..Filter::new() };
        let (look, inner) = (self.setup.library.look_up(vec![filter]), self.inner.clone());
        tokio::spawn(async move {
            let found = look.await;
            // The loop has ended: the next one looks.
            let _ = inner.send(Inner::Introduced(found)).await;
        });
        Ok(())
    }

    pub(super) fn introduced(&mut self, found: Option<Vec<RawEvent>>) -> Result<(), StoreError> {
        let Some(found) = found.filter(|_| self.is_prompter()) else { return Ok(()) };
        for draft in self.statements() {
            if self.is_said(&draft)? {
                continue;
            }
            let name = fact(draft.kind);
            let is_first = self.setup.store.fact(&name)?.is_none();
            let there = found.iter().filter(|event| event.kind == draft.kind).max_by_key(|event| event.created_at);
            let same = there.is_some_and(|there| said_by(there) == said(&draft));
            if same || (is_first && there.is_some()) {
                self.setup.store.set_fact(&name, Some(if same { said(&draft) } else { OTHERS.to_owned() }.as_str()))?;
                continue;
            }
            let text = said(&draft);
            // Later than the one before, which may be of this second.
            let at = there.map_or(0, |there| there.created_at + 1).max(draft.created_at);
            let event = self.sign(Draft { created_at: at, ..draft });
            self.enqueue(&[event])?;
            self.setup.store.set_fact(&name, Some(&text))?;
        }
        Ok(())
    }
}

/// What a statement says, without its date and its attestation.
fn said(draft: &Draft) -> String {
    let tags: Vec<Vec<&str>> = draft.tags.iter().map(|tag| tag.elements().collect()).collect();
    json!([draft.content, tags]).to_string()
}

fn said_by(event: &RawEvent) -> String {
    let own = event.tags.iter().filter(|tag| tag.name() != "auth");
    let tags: Vec<Vec<&str>> = own.map(|tag| tag.elements().collect()).collect();
    json!([event.content, tags]).to_string()
}
