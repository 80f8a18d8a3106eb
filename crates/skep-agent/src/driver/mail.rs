//! What an event is to this agent, and whether its author may prompt.

use skep_core::audience::{Asker, Fact, Loop, Place, Verdict};
use skep_core::door::Door;
use skep_core::permit::{Answer, Effect as Permit, Nonce};
use skep_core::{queue, turn};
use skep_proto::agent::control::{self, Control, Status};
use skep_proto::attestation::Attestation;
use skep_proto::lease::Claim;
use skep_proto::{EventId, Kind, PubKey, RawEvent, Timestamp, limits, mention, seal, thread};
use skep_store::StoreError;

use super::desk::Desk;
use super::letter::Letter;

impl<D: Door + 'static> Desk<D> {
    pub(super) fn receive(&mut self, event: Box<RawEvent>, relay: &str) -> Result<(), StoreError> {
        match event.kind {
            _ if event.pubkey == self.me => self.own_event(&event),
            Kind::DIRECT_MESSAGE | Kind::GIFT_WRAP => self.sealed(event, relay),
            // Never an event by itself.
            Kind::PRIVATE_MESSAGE => Ok(()),
            // The relay's word on a lease names the agent, and is no message to it.
            Kind::LEASE_STATE => Ok(()),
            // Also when it is from far ahead, or our clock behind: it is the owner's, and only they could lift it.
            Kind::APP_DATA => self.heed(&event).map(drop),
            // Nobody sends from so far ahead; a relay that takes it is no reason to.
            _ if event.created_at > self.unix_now() + AHEAD_SECS_MAX => Ok(()),
            Kind::AGENT_FRAME => self.control(&event),
            Kind::REACTION => self.reaction(&event),
            _ if self.setup.store.has_message(&event.id)? => Ok(()),
            _ if mention::find(&event, &self.me, Some(&self.setup.name)).is_some() => {
                let message = self.message(&event, channel(&event), event.pubkey, event.expiration());
                self.arrive(event, relay, message)
            }
            _ => Ok(()),
        }
    }

    /// A direct message: whoever wrote it is inside.
    fn sealed(&mut self, event: Box<RawEvent>, relay: &str) -> Result<(), StoreError> {
        if self.setup.store.has_message(&event.id)? {
            return Ok(());
        }
        let Some(letter) = Letter::read(&self.setup.keys, &event) else { return Ok(()) };
        if letter.pubkey == self.me {
            if let Some(told) = queue::Told::from_event(&letter) {
                return self.own_sealed_word(&letter, told);
            }
            self.own_event(&letter)?;
            return self.own_letter(&letter);
        }
        match letter.kind {
            _ if letter.created_at > self.unix_now() + AHEAD_SECS_MAX => Ok(()),
            Kind::REACTION => self.reaction(&letter),
            // A client that did not hear of its delivery wraps the same message again.
            Kind::DIRECT_MESSAGE | Kind::PRIVATE_MESSAGE if !self.setup.store.has_acted(&letter.id)? => {
                let channel = format!("dm:{}", letter.pubkey);
                let message = self.message(&event, channel, letter.pubkey, letter.expiration(&event));
                if let Some(told) = self.told.remove(&letter.id) {
                    self.told.insert(event.id, told);
                }
                self.arrive(event, relay, message)?;
                self.setup.store.act_once(&letter.id, self.unix_now()).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn message(
        &mut self,
        event: &RawEvent,
        channel: String,
        from: PubKey,
        expires: Option<Timestamp>,
    ) -> queue::Message {
        queue::Message {
            id: event.id,
            from,
            channel,
            arrived_at: self.arrival(),
            expires_at: expires.map(|at| at.saturating_mul(1_000)),
            priority: queue::Priority::Normal,
        }
    }

    /// What another instance published under our key: its final reply ends a message here, too, and so does its word.
    fn own_event(&mut self, event: &RawEvent) -> Result<(), StoreError> {
        if let Some(told) = queue::Told::from_event(event) {
            return self.own_word(event, told);
        }
        let Some(Ok(claim)) = Claim::from_event(event) else { return Ok(()) };
        match trigger_of(&claim) {
            Some(id) if claim.is_final => self.answered_elsewhere(id, event.id, self.setup.has_leases),
            _ => Ok(()),
        }
    }

    /// A copy for ourselves of what was said in a sealed conversation. One message may come in several wraps, each of
    /// which another instance may have seen first: their leases are not one lease, so it is known by what is inside.
    fn own_letter(&mut self, copy: &Letter) -> Result<(), StoreError> {
        let Some(Ok(claim)) = Claim::from_event(copy) else { return Ok(()) };
        let Some(said) = copy.tags.values("e").last().and_then(|id| id.parse().ok()) else { return Ok(()) };
        if !claim.is_final {
            return Ok(());
        }
        let claimed = trigger_of(&claim);
        for id in self.wraps_of(&said, copy)?.into_iter().filter(|id| claimed != Some(*id)) {
            self.answered_elsewhere(id, copy.id, false)?;
        }
        self.setup.store.act_once(&said, self.unix_now()).map(drop)
    }

    /// The messages of the conversation of a copy that wait or run and in which this was said.
    pub(super) fn wraps_of(&self, said: &EventId, copy: &Letter) -> Result<Vec<EventId>, StoreError> {
        let Some(partner) = copy.tags.values("p").next() else { return Ok(Vec::new()) };
        let channel = format!("dm:{partner}");
        let rows = self.queue.rows().filter(|row| row.message.channel == channel);
        let mut found = Vec::new();
        for id in rows.map(|row| row.message.id) {
            if self.letter(&id)?.is_some_and(|letter| letter.said.id == *said) {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// `is_decided`: of two replies to it, the relay takes one.
    fn answered_elsewhere(&mut self, id: EventId, event: EventId, is_decided: bool) -> Result<(), StoreError> {
        let (running, ours) = (self.turn_for(&id), self.setup.store.answer_to(&id)?);
        if ours == Some(event) || (running.is_some() && is_decided) {
            return Ok(());
        }
        // Of one second, the answer may come before its message; and an answer of ours may be refused later.
        if running.is_some() || ours.is_some() || !self.setup.store.has_message(&id)? {
            self.answered.insert(id, event);
            if self.answered.len() > ANSWERED_MAX {
                self.answered.pop_first();
            }
        }
        if let Some(turn) = running {
            return self.cancel_turn(&turn, turn::Cancel::NotWanted);
        }
        self.unjudged.remove(&id);
        self.tell_queue(queue::Input::AnsweredElsewhere { id, event })?;
        self.answered_after_all(&id, event)
    }

    pub(super) fn judge(&mut self, id: &EventId) -> Result<(), StoreError> {
        let Some(letter) = self.letter(id)? else { return Ok(()) };
        let asker = self.asker(&letter);
        let place = if letter.is_sealed() { Place::Direct } else { Place::Channel };
        let verdict = match self.setup.audience.judge(&asker, place) {
            Verdict::Admit => self.loops.judge(self.me, &asker, thread::hop(&letter), self.unix_now()),
            other => other,
        };
        let id = *id;
        match verdict {
            Verdict::Retry => {
                let of = self.ask_membership(&letter);
                self.unjudged.insert(id, Some(of));
                return Ok(());
            }
            Verdict::Admit => {
                self.loops.count(self.me, &asker, self.unix_now());
                self.tell_queue(queue::Input::Admitted(id))?;
            }
            Verdict::Refuse(reason) => {
                self.tell_queue(queue::Input::Refused { id, reason: reason.to_string() })?;
            }
            Verdict::AskOwner(why) => {
                let reason = why.to_string();
                // Each instance counts turns by itself, and who leads is heard; hops it reads from the message.
                let is_told = why == Loop::Pair && self.is_prompter();
                self.tell_queue(match is_told {
                    true => queue::Input::Stopped { id, reason },
                    false => queue::Input::Refused { id, reason },
                })?;
                if self.is_prompter() && self.loops.may_tell(self.me, &letter.pubkey, self.unix_now()) {
                    self.tell_owner(&letter, &format!("{why}; only you can let them go on"))?;
                }
            }
        }
        self.unjudged.remove(&id);
        Ok(())
    }

    /// What is known about an author: by their key, and by the attestation that agents put on what they say.
    pub(super) fn asker(&self, event: &RawEvent) -> Asker {
        let attested = Attestation::from_tags(&event.tags, &event.pubkey).and_then(Result::ok).filter(|attestation| {
            let conditions = &attestation.conditions;
            conditions.allow_kind(event.kind) && conditions.allow_time(event.created_at)
        });
        let fact = |yes: bool| if yes { Fact::Yes } else { Fact::No };
        let owner = self.setup.audience.owner;
        Asker {
            key: event.pubkey,
            is_sibling: fact(attested.as_ref().is_some_and(|attestation| Some(attestation.owner) == owner)),
            is_member: self.membership(event),
            is_agent: fact(attested.is_some() || thread::hop(event) > 0),
        }
    }

    /// A frame of the owner. It acts once, also after a restart, and is answered.
    fn control(&mut self, event: &RawEvent) -> Result<(), StoreError> {
        let Some(owner) = self.setup.audience.owner else { return Ok(()) };
        if control::check(event, &self.me, &owner, self.unix_now()).is_err() {
            return Ok(());
        }
        let Ok(text) = seal::open(&self.setup.keys, &owner, &event.content) else { return Ok(()) };
        let Ok(Some(control)) = Control::from_json(&text) else { return Ok(()) };
        if !self.setup.store.act_once(&event.id, self.unix_now())? {
            return Ok(());
        }
        let status = match &control {
            Control::CancelTurn { channel_id } => match self.cancel_channel(Some(channel_id))? {
                Ok(_) => Status::Sent,
                Err(_) => Status::NoActiveTurn,
            },
            Control::PermissionDecision { channel_id, request_nonce, option_id } => {
                let (channel, option) = (channel_id.clone(), option_id.clone());
                let answer = Answer::Control { nonce: Nonce(request_nonce.clone()), channel, option };
                let (status, effects) = self.permits.decide(self.mono_ms(), &answer);
                self.settle_permits(effects)?;
                status
            }
            // Whoever follows has no session that could tell what there is to switch to.
            Control::SwitchModel { .. } if !self.is_prompter() => return Ok(()),
            Control::SwitchModel { channel_id, model_id } => self.switch_model(channel_id, model_id)?,
            Control::ClaimLeadership { instance_id } if *instance_id == self.setup.instance => {
                self.setup.claims.notify_one();
                Status::Claimed
            }
            Control::ClaimLeadership { .. } => return Ok(()),
        };
        // Every instance hears it; one that has nothing to do with it leaves the answer to the one that has.
        if self.is_prompter() || status != Status::NoActiveTurn {
            self.observe_result(&control.answer(status).to_frame(event.id));
        }
        Ok(())
    }

    /// 👍 or 👎 of the owner on a card.
    fn reaction(&mut self, event: &RawEvent) -> Result<(), StoreError> {
        if self.setup.audience.owner != Some(event.pubkey) {
            return Ok(());
        }
        let Some(card) = event.tags.values("e").last().and_then(|id| id.parse().ok()) else { return Ok(()) };
        let card = self.carrier_of(&card).unwrap_or(card);
        let is_yes = match event.content.as_str() {
            "👍" | "+" | "✅" => true,
            "👎" | "-" | "❌" => false,
            _ => return Ok(()),
        };
        if event.created_at.abs_diff(self.unix_now()) > limits::CONTROL_FRESH_SECS {
            return Ok(());
        }
        // It may come by two relays, or again after a lost connection: the second one is not a late answer.
        if !self.permits.knows(&card) || !self.setup.store.act_once(&event.id, self.unix_now())? {
            return Ok(());
        }
        let answer = Answer::Reaction { card, author: event.pubkey, is_yes };
        let (status, effects) = self.permits.decide(self.mono_ms(), &answer);
        if status == Status::AlreadyDecided {
            let text = format!("Too late: {}.", self.late(&answer));
            self.tell_late(&card, &text)?;
        }
        self.settle_permits(effects)
    }

    pub(super) fn decide(
        &mut self,
        nonce: String,
        option: String,
        by: PubKey,
    ) -> Result<Result<String, String>, StoreError> {
        if self.setup.audience.owner != Some(by) {
            return Ok(Err("only the owner may decide".into()));
        }
        let answer = Answer::Local { nonce: Nonce(nonce), option };
        let (status, effects) = self.permits.decide(self.mono_ms(), &answer);
        self.settle_permits(effects)?;
        Ok(match status {
            Status::Sent => Ok("the answer was given".into()),
            Status::AlreadyDecided => Err(self.late(&answer).into()),
            _ => Err("there is no such question".into()),
        })
    }

    pub(super) fn settle_permits(&mut self, effects: Vec<Permit>) -> Result<(), StoreError> {
        for effect in effects {
            match effect {
                Permit::Answer { turn, request, option, authorization } => {
                    self.observe_answer(&turn, &authorization);
                    match self.waiting.remove(&request) {
                        Some(waiting) => self.decided(waiting, &turn, option.as_deref(), authorization.reason)?,
                        None => self.answer(&turn, request, option)?,
                    }
                }
                Permit::Show(card) => self.show_card(&card)?,
                Permit::Close { card: Some(card), reason, .. } => self.close_card(&card, &reason)?,
                Permit::Close { .. } => {}
            }
        }
        Ok(())
    }

    pub(super) fn cancel_channel(&mut self, channel: Option<&str>) -> Result<Result<String, String>, StoreError> {
        let turns = self.running_turns(channel);
        if turns.is_empty() {
            return Ok(Err("no turn is running".into()));
        }
        for turn in &turns {
            self.tell_queue(queue::Input::CalledOff { turn: turn.clone(), why: turn::Cancel::Owner })?;
        }
        Ok(Ok(format!("{} cancelled", turns.len())))
    }
}

/// The message whose turn a claim is about.
fn trigger_of(claim: &Claim) -> Option<EventId> {
    claim.resource.as_str().rsplit(':').next()?.parse().ok()
}

/// Seconds that an event may be ahead of our clock: what our own relay allows.
pub(super) const AHEAD_SECS_MAX: u64 = 900;

/// Answers of others that are kept until their messages come, or our own turn or answer is over. The id that is lowest
/// goes first: any may.
const ANSWERED_MAX: usize = 1_024;

/// What has one turn at a time: a channel, or what one person says outside of any.
fn channel(event: &RawEvent) -> String {
    if let Some(group) = event.tags.values("h").next() {
        return format!("h:{group}");
    }
    if event.kind == Kind::CHANNEL_MESSAGE
        && let Some(root) = thread::root_of(event)
    {
        return format!("c:{root}");
    }
    format!("notes:{}", event.pubkey)
}
