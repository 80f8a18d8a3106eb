//! What the agent publishes: replies, reactions, cards and bills through the outbox; frames, which are worth nothing
//! later, straight through the door.

use skep_core::audience::next_hop;
use skep_core::door::Door;
use skep_core::frames::Observation;
use skep_core::permit::Card;
use skep_core::prompt::{self, Boundary, Relation, Verified};
use skep_core::queue::{self, Row};
use skep_core::turn::TurnId;
use skep_proto::agent::control::ControlResult;
use skep_proto::agent::metering::TurnMetric;
use skep_proto::agent::permission::CardTag;
use skep_proto::agent::telemetry::{Authorization, Payload, Reason, TelemetryKind, telemetry_draft};
use skep_proto::lease::{Claim, Epoch, Resource};
use skep_proto::thread::{self, Reply};
use skep_proto::time::Moment;
use skep_proto::{Draft, EventId, Kind, RawEvent, Timestamp, seal};
use skep_store::StoreError;

use super::desk::Desk;
use super::letter::{Form, Letter};

impl<D: Door + 'static> Desk<D> {
    /// Signs, with the owner's attestation where there is one.
    pub(super) fn sign(&self, draft: Draft) -> RawEvent {
        self.attested(draft).sign(&self.setup.keys, &self.random()).raw().clone()
    }

    pub(super) fn attested(&self, draft: Draft) -> Draft {
        match &self.setup.attestation {
            Some(attestation) => draft.tag(attestation),
            None => draft,
        }
    }

    pub(super) fn enqueue(&mut self, events: &[RawEvent]) -> Result<(), StoreError> {
        self.setup.store.enqueue(events, &self.setup.relays, self.unix_now())?;
        self.setup.outbox.notify_one();
        Ok(())
    }

    /// What the model will see of a message, and of what was said before it.
    pub(super) fn render(
        &self,
        message: &queue::Message,
        trigger: &Letter,
        earlier: &[RawEvent],
    ) -> Result<String, StoreError> {
        let said = |event: &RawEvent, verified| self.quote(&message.channel, event, verified);
        let verified = if trigger.form == Form::Wrapped { Verified::Seal } else { Verified::Signature };
        let asked = prompt::Said { id: trigger.carrier, ..said(&trigger.said, verified) };
        let earlier: Vec<_> = earlier.iter().map(|event| said(event, Verified::Signature)).collect();
        let prompt = prompt::build(&self.setup.system, &earlier, &[asked], Boundary(self.random()));
        Ok(format!("{}\n{}", prompt.system.trim_start(), prompt.user))
    }

    /// A page of the conversation, for an agent that asked for it.
    pub(super) fn render_page(&self, channel: &str, events: &[RawEvent]) -> String {
        let said: Vec<_> = events.iter().map(|event| self.quote(channel, event, Verified::Signature)).collect();
        prompt::page(&said, Boundary(self.random()))
    }

    fn quote(&self, channel: &str, event: &RawEvent, verified: Verified) -> prompt::Said {
        prompt::Said {
            id: event.id,
            from: event.pubkey,
            name: None,
            relation: self.relation(event),
            verified,
            at: Moment::from_secs(event.created_at),
            channel: channel.to_owned(),
            text: event.content.clone(),
        }
    }

    pub(super) fn relation(&self, event: &RawEvent) -> Relation {
        let asker = self.asker(event);
        if asker.key == self.me {
            Relation::Own
        } else if self.setup.audience.owner == Some(asker.key) {
            Relation::Owner
        } else if asker.is_sibling == skep_core::audience::Fact::Yes {
            Relation::Sibling
        } else if asker.is_member == skep_core::audience::Fact::Yes {
            Relation::Member
        } else {
            Relation::Other
        }
    }

    /// The reply in as many events as it needs; the last one completes the turn's lease.
    pub(super) fn reply(
        &mut self,
        trigger: &Letter,
        text: &str,
        is_cut: bool,
        resource: &Resource,
        epoch: Epoch,
    ) -> Vec<RawEvent> {
        let mut text = if text.trim().is_empty() { "(the agent said nothing)".to_owned() } else { text.to_owned() };
        if is_cut {
            text.push_str("\n\n(cut short)");
        }
        // Without leases nobody checks the claim, and it still says which turn this is.
        let claim = Some(Claim { resource: resource.clone(), epoch, is_final: true });
        self.under(trigger, &text, claim)
    }

    /// Something said under a message.
    fn under(&mut self, parent: &Letter, text: &str, claim: Option<Claim>) -> Vec<RawEvent> {
        self.under_with(parent, text, claim, &[])
    }

    /// The same with a tag, for programs.
    fn under_with(&mut self, parent: &Letter, text: &str, claim: Option<Claim>, tag: &[String]) -> Vec<RawEvent> {
        let drafts = self.drafts_under(parent, text, claim, self.unix_now());
        let tagged = |draft: Draft| if tag.is_empty() { draft } else { draft.tag(tag) };
        drafts.into_iter().flat_map(|draft| self.say(parent.form, &parent.said.pubkey, tagged(draft))).collect()
    }

    fn drafts_under(&self, parent: &Letter, text: &str, claim: Option<Claim>, now: Timestamp) -> Vec<Draft> {
        let hop = next_hop(thread::hop(parent), self.asker(parent).is_agent);
        let relay = self.setup.relays.first().map_or("", String::as_str);
        let task = self.task_of(parent);
        Reply { parent: &parent.said, relay, now, hop, task: task.as_deref(), claim }.drafts(text)
    }

    /// Not to a direct message: a reaction is for all to see.
    pub(super) fn publish_reaction(&mut self, to: &Letter, sign: &str) -> Result<(), StoreError> {
        if to.is_sealed() {
            return Ok(());
        }
        let event = self.sign(reaction(to, Draft::new(Kind::REACTION, self.unix_now(), sign)));
        self.enqueue(&[event])
    }

    /// The word on where a message stands, for our other instances and, in clear, for whoever sent it: a sentence under
    /// it, or a sign on it. It is dated as the row says; a sentence that must be later dates the row.
    pub(super) fn word(&mut self, row: &mut Row, notice: Option<&str>) -> Result<Vec<RawEvent>, StoreError> {
        let Some(letter) = self.letter(&row.message.id)? else { return Ok(Vec::new()) };
        let mut events = Vec::new();
        if let Some(text) = notice {
            let drafts = self.drafts_under(&letter, text, None, row.told_at);
            row.told_at = drafts.iter().map(|draft| draft.created_at).fold(row.told_at, u64::max);
            let tag = row.notice_tag();
            let say = |draft: Draft| self.say(letter.form, &letter.said.pubkey, draft.tag(&tag));
            events.extend(drafts.into_iter().flat_map(say));
        }
        match letter.form {
            // Of a sentence in a wrap there is a copy for ourselves.
            Form::Open | Form::Wrapped if notice.is_some() => {}
            Form::Open => events.push(self.sign(reaction(&letter, row.sign()))),
            Form::Old | Form::Wrapped => events.extend(self.word_to_self(&letter, row.sign())),
        }
        Ok(events)
    }

    /// A note to the owner about a message. It names nobody else: agents that are told would answer.
    pub(super) fn tell_owner(&mut self, about: &Letter, text: &str) -> Result<(), StoreError> {
        self.tell_owner_in(about.form, &about.id, text)
    }

    /// The same in the form of what it is about. What was said in a direct message is not named in clear.
    pub(super) fn tell_owner_in(&mut self, form: Form, about: &EventId, text: &str) -> Result<(), StoreError> {
        let Some(owner) = self.setup.audience.owner else { return Ok(()) };
        if form != Form::Open {
            let events = self.direct(form, &owner, text);
            return self.enqueue(&events);
        }
        let draft = Draft::new(Kind::NOTE, self.unix_now(), text)
            .tag(["e", &about.to_hex(), "", "mention"])
            .tag(["p", &owner.to_hex()]);
        let event = self.sign(draft);
        self.enqueue(&[event])
    }

    /// The encrypted bill of one turn.
    pub(super) fn bill(&self, metric: &TurnMetric) -> Option<RawEvent> {
        let owner = self.setup.audience.owner?;
        let sealed = seal::seal(&self.setup.keys, &owner, &metric.to_json().ok()?, self.random()).ok()?;
        Some(self.sign(metric.draft(&self.me, &owner, sealed, None)))
    }

    pub(super) fn observe(&mut self, channel: &str, kind: TelemetryKind, payload: Payload) {
        self.observe_under(channel, kind, payload, None);
    }

    fn observe_under(&mut self, channel: &str, kind: TelemetryKind, payload: Payload, question: Option<Authorization>) {
        let observation = Observation {
            kind,
            channel_id: Some(channel.to_owned()),
            session_id: self.session_of(channel),
            turn_id: self.turn_of(channel),
            authorization: question,
            payload,
        };
        self.frames.push(Moment(self.unix_ms()), observation);
    }

    pub(super) fn observe_result(&mut self, result: &ControlResult) {
        let payload = Payload::of(result);
        let observation = Observation {
            kind: TelemetryKind::ControlResult,
            channel_id: None,
            session_id: None,
            turn_id: None,
            authorization: None,
            payload,
        };
        self.frames.push(Moment(self.unix_ms()), observation);
        self.send_frames();
    }

    /// The frame that asks for a permission, with the name of the question (NIP-AO).
    pub(super) fn observe_question(&mut self, channel: &str, frame: &str, authorization: Authorization) {
        self.observe_under(channel, TelemetryKind::AcpRead, Payload::raw(frame), Some(authorization));
    }

    pub(super) fn observe_answer(&mut self, turn: &TurnId, authorization: &Authorization) {
        let observation = Observation {
            kind: TelemetryKind::PermissionTerminal,
            channel_id: self.channel_of(turn),
            session_id: None,
            turn_id: Some(turn.0.clone()),
            authorization: Some(authorization.clone()),
            payload: Payload::of(&serde_json::json!({})),
        };
        self.frames.push(Moment(self.unix_ms()), observation);
    }

    pub(super) fn send_frames(&mut self) {
        let Some(owner) = self.setup.audience.owner else { return };
        let Some(text) = self.frames.poll_frame(Moment(self.unix_ms())) else { return };
        let Ok(sealed) = seal::seal(&self.setup.keys, &owner, &text, self.random()) else { return };
        let event = self.sign(telemetry_draft(&self.me, &owner, self.unix_now(), sealed));
        let door = std::sync::Arc::clone(&self.door);
        // Nobody may be watching; a frame that is lost shows as a gap in its numbers.
        tokio::spawn(async move { drop(door.submit(event).await) });
    }

    /// A card in the thread: any client can answer it with a reaction.
    pub(super) fn show_card(&mut self, card: &Card) -> Result<(), StoreError> {
        let Some(trigger) = self.trigger_of_turn(&card.origin.turn).cloned() else { return Ok(()) };
        let seconds = card.expires_ms.saturating_sub(self.mono_ms()) / 1_000;
        let text = card.text(seconds);
        let tag = CardTag {
            nonce: card.nonce.0.clone(),
            channel: card.origin.channel.clone(),
            turn: card.origin.turn.0.clone(),
            allow: card.allow.option.clone(),
            reject: card.reject.option.clone(),
            expires_at: self.unix_now() + seconds,
        };
        let events = self.under_with(&trigger, &text, None, &tag.tag());
        if let Some(event) = events.last() {
            self.permits.published(&card.nonce, event.id);
        }
        self.enqueue(&events)
    }

    pub(super) fn close_card(&mut self, card: &EventId, reason: &Reason) -> Result<(), StoreError> {
        if self.permits.is_sealed(card) {
            return Ok(());
        }
        let owner = self.setup.audience.owner.map(|owner| owner.to_hex()).unwrap_or_default();
        let sign = match reason {
            Reason::Applied | Reason::Allowed => "☑️",
            _ => "⌛",
        };
        let draft = Draft::new(Kind::REACTION, self.unix_now(), sign).tag(["e", &card.to_hex()]).tag(["p", &owner]);
        let event = self.sign(draft);
        self.enqueue(&[event])
    }
}

/// With the tags of a reaction to a message (NIP-25).
fn reaction(to: &Letter, draft: Draft) -> Draft {
    let (id, author, kind) = (to.id.to_hex(), to.pubkey.to_hex(), to.kind.to_string());
    draft.tag(["e", &id]).tag(["p", &author]).tag(["k", &kind])
}
