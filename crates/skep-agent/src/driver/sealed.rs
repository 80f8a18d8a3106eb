//! Direct messages: what is said in one goes out sealed, and a wrapped reply waits for the end of its turn's lease.
//!
//! A wrap is signed by a key that is thrown away, so it cannot carry the agent's claim, and the relay cannot take it
//! and end the lease in one step. So the reply is stored and held; the lease is ended by a request (`complete`, which
//! says yes again when it was said before); then the reply is let go. Whoever died between goes on where it was.
//! Must not: let a reply go whose lease is another's, or put any of it in clear.

use std::sync::Arc;

use skep_core::door::{Accepted, Door};
use skep_proto::lease::{Epoch, Op};
use skep_proto::tag::Tag;
use skep_proto::{Draft, EventId, Kind, Prefix, PubKey, RawEvent, Refusal, seal, wrap};
use skep_store::StoreError;
use skep_store::agent::TurnRow;

use super::desk::{Desk, Inner};
use super::lease::turn_resource;
use super::letter::{Form, Letter};

/// What was said in direct messages and may be reacted to: more than the questions that may wait at once.
const SAID_MAX: usize = 256;

/// What a message of the old form shows beside its text: to whom and under what it is, its turn's lease, its place
/// among parts, and how many agents answered each other.
const OLD_TAGS: [&str; 5] = ["p", "e", "lease", "part", "hop"];

/// A reply that waits for the end of its turn's lease.
pub(super) struct Held {
    trigger: EventId,
    epoch: Epoch,
    answer: EventId,
    is_asking: bool,
}

impl Held {
    fn of(row: TurnRow) -> Option<(String, Self)> {
        let answer = row.end?.answer?;
        Some((row.turn, Self { trigger: row.trigger, epoch: row.epoch, answer, is_asking: false }))
    }
}

impl<D: Door + 'static> Desk<D> {
    /// One thing said, in as many events as its form needs; the last is the one that its reader gets.
    pub(super) fn say(&mut self, form: Form, to: &PubKey, draft: Draft) -> Vec<RawEvent> {
        match form {
            Form::Open => vec![self.sign(draft)],
            Form::Old => {
                let keys = &self.setup.keys;
                let Ok(content) = seal::seal_old(keys, to, &draft.content, self.random()) else { return Vec::new() };
                // Its tags are for all to see: none that only programs of the two would read.
                let is_shown = |tag: &Tag<'_>| OLD_TAGS.contains(&tag.name());
                let tags = draft.tags.iter().filter(is_shown).map(|tag| tag.elements()).collect();
                let event = self.sign(Draft { content, tags, ..draft });
                self.note_said(event.id, event.id);
                vec![event]
            }
            Form::Wrapped => self.wrap(to, draft),
        }
    }

    /// Two wraps of one rumor: a copy for ourselves, by which other instances learn of it, and the reader's.
    fn wrap(&mut self, to: &PubKey, draft: Draft) -> Vec<RawEvent> {
        let rumor = wrap::rumor(self.attested(draft), self.me);
        match [self.me, *to].map(|reader| self.wrap_for(&rumor, &reader)) {
            [Some(copy), Some(event)] => {
                self.note_said(rumor.id, event.id);
                vec![copy, event]
            }
            _ => Vec::new(),
        }
    }

    /// A word on a sealed message, for our other instances alone. It names the message as the inbox here calls it and as
    /// it is called inside: another instance may know another wrap of it.
    pub(super) fn word_to_self(&self, about: &Letter, draft: Draft) -> Option<RawEvent> {
        let (partner, carrier, said) = (about.pubkey.to_hex(), about.carrier.to_hex(), about.id.to_hex());
        let rumor = wrap::rumor(draft.tag(["p", &partner]).tag(["e", &carrier]).tag(["e", &said]), self.me);
        self.wrap_for(&rumor, &self.me)
    }

    fn wrap_for(&self, rumor: &RawEvent, reader: &PubKey) -> Option<RawEvent> {
        let fresh = wrap::Fresh {
            secret: self.random(),
            seal_nonce: self.random(),
            wrap_nonce: self.random(),
            aux: self.random(),
            seal_back: self.setup.host.random_u64(),
            wrap_back: self.setup.host.random_u64(),
        };
        let wrapped = wrap::wrap(&self.setup.keys, rumor, reader, self.unix_now(), &fresh);
        let warn = |error| tracing::warn!(agent = %self.setup.name, %error, "what was to be said cannot be sealed");
        wrapped.map_err(warn).ok()
    }

    fn note_said(&mut self, rumor: EventId, event: EventId) {
        if self.said_sealed.len() >= SAID_MAX {
            self.said_sealed.pop_front();
        }
        self.said_sealed.push_back((rumor, event));
    }

    /// The event in which a rumor of ours went out: clients react to the one, our records know the other.
    pub(super) fn carrier_of(&self, rumor: &EventId) -> Option<EventId> {
        self.said_sealed.iter().find(|(known, _)| known == rumor).map(|(_, event)| *event)
    }

    /// A message of ours to one person that is no reply.
    pub(super) fn direct(&mut self, form: Form, to: &PubKey, text: &str) -> Vec<RawEvent> {
        let kind = if form == Form::Old { Kind::DIRECT_MESSAGE } else { Kind::PRIVATE_MESSAGE };
        let draft = Draft::new(kind, self.unix_now(), text).tag(["p", &to.to_hex()]);
        self.say(form, to, draft)
    }

    /// A reply was stored and is held: the end of its lease is asked for at once.
    pub(super) fn hold_reply(&mut self, turn: &str, trigger: EventId, epoch: Epoch, answer: EventId) {
        self.held.insert(turn.to_owned(), Held { trigger, epoch, answer, is_asking: false });
        self.complete_held();
    }

    /// Takes up the replies that are held. Without leases nothing holds them any more.
    pub(super) fn take_up_held(&mut self) -> Result<(), StoreError> {
        let home = self.setup.relays.first().filter(|_| self.setup.has_leases);
        self.setup.store.release_strays(home.map(String::as_str))?;
        let Some(home) = home else { return Ok(()) };
        let rows = self.setup.store.held_turns(home)?;
        self.held.extend(rows.into_iter().filter_map(Held::of));
        Ok(())
    }

    /// Asks the relay to end the leases of held replies, each until it says its word.
    pub(super) fn complete_held(&mut self) {
        let due: Vec<(String, EventId, Epoch)> = self
            .held
            .iter_mut()
            .filter(|(_, held)| !held.is_asking)
            .map(|(turn, held)| {
                held.is_asking = true;
                (turn.clone(), held.trigger, held.epoch)
            })
            .collect();
        for (turn, trigger, epoch) in due {
            let event = self.request(&turn_resource(&self.me, &trigger), Op::Complete { epoch });
            let (door, inner) = (Arc::clone(&self.door), self.inner.clone());
            tokio::spawn(async move {
                let answer = door.submit(event).await;
                // The loop has ended: the reply is held in the records.
                let _ = inner.send(Inner::Completed { turn, answer }).await;
            });
        }
    }

    pub(super) fn completed(&mut self, turn: &str, answer: Result<Accepted, Refusal>) -> Result<(), StoreError> {
        match answer {
            Ok(Accepted::Answered(_)) => {
                self.held.remove(turn);
                self.setup.store.release_held(turn)?;
                self.setup.outbox.notify_one();
                Ok(())
            }
            Err(refusal) if refusal.prefix == Prefix::Conflict => {
                let Some(held) = self.held.remove(turn) else { return Ok(()) };
                self.take_back(&held.answer, &refusal.to_string())
            }
            Ok(_) | Err(_) => {
                // Asked again at the next beat.
                self.held.get_mut(turn).into_iter().for_each(|held| held.is_asking = false);
                Ok(())
            }
        }
    }
}
