//! What one instance of an agent tells the others, and the sender's screen: a message is over without an answer, or is
//! tried again. An answer tells itself.
//!
//! Each word has a date, and every row keeps the date of the newest word about it: an older one, or one that comes
//! again from another relay or after a restart, is of before and changes nothing.

use skep_proto::time::Timestamp;
use skep_proto::{Draft, EventId, Kind, RawEvent};

use super::row::{Row, State};
use crate::fate::STATUS_TAG;

/// A word about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its date, in seconds.
    pub at: Timestamp,
    /// [`State::Refused`], [`State::Expired`] or [`State::Dead`]; [`State::Queued`]: it is tried again.
    pub state: State,
    pub reason: String,
}

impl Told {
    /// `None`: this event is no such word. Who wrote it is the caller's to check.
    pub fn from_event(event: &RawEvent) -> Option<Self> {
        let tag = event.tags.named(STATUS_TAG).next()?;
        let state = [State::Refused, State::Expired, State::Dead, State::Queued]
            .into_iter()
            .find(|state| tag.value() == Some(state.as_str()))?;
        Some(Self { at: event.created_at, state, reason: tag.get(2).unwrap_or(&event.content).to_owned() })
    }

    /// The messages that a word names: the last is the one that it is about.
    pub fn names(event: &RawEvent) -> Vec<EventId> {
        event.tags.values("e").filter_map(|id| id.parse().ok()).collect()
    }
}

impl Row {
    /// What was called off is over for everybody else, though its turn has not ended yet.
    pub fn told_state(&self) -> &State {
        if self.called_off.is_some() { &State::Refused } else { &self.state }
    }

    /// The tag of a visible notice, whose text is the reason.
    pub fn notice_tag(&self) -> [String; 2] {
        [STATUS_TAG.to_owned(), self.told_state().as_str().to_owned()]
    }

    /// The word as a reaction: clients show it as one sign, and no agent takes it for a word to itself.
    pub fn sign(&self) -> Draft {
        let state = self.told_state();
        let sign = match state {
            State::Queued => "🔁",
            State::Expired => "⌛",
            _ => "🚫",
        };
        Draft::new(Kind::REACTION, self.told_at, sign).tag([STATUS_TAG, state.as_str(), &self.reason])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use skep_proto::lease::Epoch;
    use skep_proto::{PubKey, Sig};

    use super::super::{Ended, Input, Message, Priority, Queue, Settings};
    use super::*;
    use crate::backend::BackendError;
    use crate::queue::Effect;
    use crate::turn::{Cancel, TurnId};

    const ID: EventId = EventId([1; 32]);

    fn word(at: Timestamp, state: State) -> Told {
        Told { at, state, reason: "by another".into() }
    }

    /// An instance whose records hold one message that waits; it follows.
    struct Instance {
        queue: Queue,
        row: Row,
    }

    impl Instance {
        fn new() -> Self {
            let message = Message {
                id: ID,
                from: PubKey([9; 32]),
                channel: "c".into(),
                arrived_at: 1_000,
                expires_at: Some(90_000),
                priority: Priority::Normal,
            };
            let row = Row::new(message.clone(), 1_000);
            let mut this = Self { queue: Queue::new(Settings::default()), row };
            this.handle(Input::Arrived(message));
            this.handle(Input::Admitted(ID));
            this
        }

        fn at(&mut self, now: u64, input: Input) -> Vec<Effect> {
            let out = self.queue.handle(now, 0, input);
            out.iter().filter_map(Effect::row).for_each(|row| self.row = row.clone());
            out
        }

        fn handle(&mut self, input: Input) -> Vec<Effect> {
            self.at(5_000, input)
        }

        fn hear(&mut self, told: Told) -> Vec<Effect> {
            self.handle(Input::ToldElsewhere { row: self.row.clone(), told })
        }

        fn start(&mut self, epoch: Epoch) {
            self.handle(Input::Started { id: ID, turn: TurnId("t".into()), epoch });
        }

        fn retry(&mut self) -> Vec<Effect> {
            self.handle(Input::Retry(self.row.clone()))
        }
    }

    fn prompts(out: &[Effect]) -> usize {
        out.iter().filter(|effect| matches!(effect, Effect::Prompt { .. })).count()
    }

    fn tells(out: &[Effect]) -> usize {
        out.iter().filter(|effect| matches!(effect, Effect::Tell { .. })).count()
    }

    #[test]
    fn what_another_instance_ended_is_over_here_and_told_by_nobody_else() {
        for state in [State::Refused, State::Expired, State::Dead] {
            let mut this = Instance::new();
            let out = this.hear(word(4, state.clone()));
            assert_eq!((&this.row.state, this.row.reason.as_str(), tells(&out)), (&state, "by another", 0));
            assert_eq!(prompts(&this.handle(Input::Leading(true))), 0);
        }
    }

    #[test]
    fn a_turn_that_is_about_to_begin_does_not_and_one_that_runs_goes_on() {
        let mut this = Instance::new();
        assert_eq!(prompts(&this.handle(Input::Leading(true))), 1);
        this.hear(word(4, State::Refused));
        this.start(1);
        assert_eq!(this.row.state, State::Refused);

        let mut this = Instance::new();
        this.handle(Input::Leading(true));
        this.start(1);
        let out = this.hear(word(4, State::Dead));
        assert!(matches!(this.row.state, State::Prompted { .. }), "{out:?}");
        this.handle(Input::Ended { turn: TurnId("t".into()), how: Ended::Cancelled(Cancel::Stolen) });
        this.hear(word(4, State::Dead));
        assert_eq!(this.row.state, State::Queued, "that word was used up");
    }

    #[test]
    fn a_retry_is_told_and_a_word_from_before_it_does_not_end_the_message_again() {
        let mut this = Instance::new();
        this.hear(word(4, State::Dead));
        let out = this.retry();
        assert_eq!((tells(&out), this.row.told_at, this.row.state.clone()), (1, 5, State::Queued));
        this.hear(word(4, State::Dead));
        assert_eq!(this.row.state, State::Queued);
        assert_eq!(prompts(&this.handle(Input::Leading(true))), 1, "once");
        assert_eq!(tells(&this.retry()), 0, "what waits is not tried again");
    }

    #[test]
    fn a_word_is_later_than_the_one_before_whatever_the_clock_says() {
        let mut this = Instance::new();
        // Of an instance whose clock is ahead.
        this.hear(word(600, State::Dead));
        this.retry();
        assert_eq!((this.row.told_at, this.row.state.clone()), (601, State::Queued));
        this.hear(word(600, State::Dead));
        assert_eq!(this.row.state, State::Queued);
    }

    #[test]
    fn a_retry_elsewhere_brings_back_what_ended_here_and_begins_nothing_twice() {
        let mut this = Instance::new();
        this.hear(word(4, State::Dead));
        let out = this.hear(word(5, State::Queued));
        assert_eq!((this.row.state.clone(), this.row.message.expires_at, tells(&out)), (State::Queued, None, 0));
        assert_eq!(prompts(&this.handle(Input::Leading(true))), 1);
        assert_eq!(prompts(&this.hear(word(6, State::Queued))), 0);
        this.start(1);
        this.handle(Input::Ended { turn: TurnId("t".into()), how: Ended::Answered(None) });
        this.hear(word(7, State::Queued));
        assert_eq!(this.row.state, State::Answered { event: None });
    }

    /// What the store would give back after a crash.
    fn restored(this: &Instance, leads: bool) -> (Instance, Vec<Effect>) {
        let json = serde_json::to_string(&this.row).expect("a row is stored");
        let row: Row = serde_json::from_str(&json).expect("a row is read");
        let (queue, mut out) = Queue::restore(Settings::default(), [row.clone()], 6_000);
        let mut after = Instance { queue, row };
        out.iter().filter_map(Effect::row).for_each(|row| after.row = row.clone());
        out.extend(after.at(6_000, Input::Leading(leads)));
        (after, out)
    }

    fn call_off() -> Input {
        Input::CalledOff { turn: TurnId("t".into()), why: Cancel::Owner }
    }

    /// One whose turn runs.
    fn running() -> Instance {
        let mut this = Instance::new();
        this.handle(Input::Leading(true));
        this.start(3);
        this
    }

    #[test]
    fn what_is_called_off_is_stored_and_told_before_its_turn_hears_of_it() {
        let mut this = running();
        let out = this.handle(call_off());
        let [Effect::Tell { row, notice: None }, Effect::Cancel { why: Cancel::Owner, .. }] = out.as_slice() else {
            panic!("{out:?}")
        };
        assert_eq!((row.told_at, row.reason.as_str()), (5, "cancelled by the owner"));
        assert!(matches!(row.state, State::Prompted { .. }), "its turn has not ended");
        let sign = row.sign();
        let words: Vec<_> = sign.tags.named(STATUS_TAG).map(|tag| tag.value().map(str::to_owned)).collect();
        assert_eq!((sign.content.as_str(), words), ("🚫", vec![Some("refused".to_owned())]));
        assert_eq!(tells(&this.handle(call_off())), 0, "once");
    }

    #[test]
    fn what_was_called_off_before_a_crash_is_over_after_it_and_begins_once_more_when_it_is_wanted() {
        for leads in [true, false] {
            let mut this = running();
            this.handle(call_off());
            let (mut after, out) = restored(&this, leads);
            assert_eq!((&after.row.state, after.row.reason.as_str()), (&State::Refused, "cancelled by the owner"));
            assert_eq!((prompts(&out), tells(&out)), (0, 0), "it was told");
            after.hear(word(5, State::Refused));
            let out = after.retry();
            assert_eq!((tells(&out), after.row.told_at, after.row.called_off), (1, 6, None));
            assert_eq!(prompts(&out) + prompts(&after.handle(Input::Leading(true))), 1);
        }
    }

    #[test]
    fn a_row_of_a_version_that_called_nothing_off_is_read() {
        let this = running();
        let json = serde_json::to_string(&this.row).expect("a row is stored");
        assert!(!json.contains("called_off"), "and such a version reads ours: {json}");
        let (after, out) = restored(&this, true);
        assert_eq!((&after.row.state, prompts(&out)), (&State::Queued, 1), "begun again");
    }

    #[test]
    fn whatever_a_turn_that_was_called_off_comes_to_but_an_answer_its_message_is_over_and_told_once() {
        let error = BackendError::Busy { retry_after_secs: Some(3) };
        for how in [
            Ended::Cancelled(Cancel::Owner),
            Ended::Cancelled(Cancel::Stolen),
            Ended::Stuck,
            Ended::TooLong,
            Ended::Failed(error),
        ] {
            let mut this = running();
            this.handle(call_off());
            let out = this.handle(Input::Ended { turn: TurnId("t".into()), how });
            assert_eq!((&this.row.state, this.row.reason.as_str()), (&State::Refused, "cancelled by the owner"));
            assert_eq!((tells(&out), prompts(&this.handle(Input::Tick))), (0, 0));
        }
        let mut this = running();
        this.handle(call_off());
        this.handle(Input::Ended { turn: TurnId("t".into()), how: Ended::Answered(None) });
        assert_eq!((&this.row.state, this.row.called_off), (&State::Answered { event: None }, None));
    }

    #[test]
    fn what_is_tried_again_elsewhere_while_its_turn_is_ending_here_begins_after_it_and_under_a_newer_lease() {
        let mut this = running();
        this.handle(call_off());
        let out = this.hear(word(6, State::Queued));
        assert_eq!((&this.row.state, this.row.fence, prompts(&out)), (&State::Queued, Some(3), 0));
        let out = this.handle(Input::Ended { turn: TurnId("t".into()), how: Ended::Cancelled(Cancel::Owner) });
        let again = out.iter().filter(|effect| matches!(effect, Effect::Prompt { after: Some(3), .. }));
        assert_eq!((again.count(), tells(&out)), (1, 0), "{out:?}");
    }

    #[test]
    fn whoever_leads_tells_that_a_message_expired() {
        for leads in [true, false] {
            let mut this = Instance::new();
            this.handle(Input::Paused("x".into()));
            this.handle(Input::Leading(leads));
            let out = this.at(90_000, Input::Tick);
            assert_eq!((&this.row.state, tells(&out)), (&State::Expired, usize::from(leads)));
        }
        let mut unjudged = Queue::new(Settings::default());
        unjudged.handle(1_000, 0, Input::Leading(true));
        unjudged.handle(1_000, 0, Input::Arrived(Instance::new().row.message));
        assert_eq!(tells(&unjudged.handle(90_000, 0, Input::Tick)), 0, "a stranger's, perhaps");
    }

    #[test]
    fn strangers_are_told_nothing_and_who_has_talked_enough_is() {
        let mut this = Instance::new();
        assert_eq!(tells(&this.handle(Input::Refused { id: ID, reason: "x".into() })), 0);
        let mut this = Instance::new();
        assert_eq!(tells(&this.handle(Input::Stopped { id: ID, reason: "x".into() })), 1);
    }

    #[test]
    fn a_word_is_read_from_a_notice_and_from_a_sign() {
        let row = Row { state: State::Refused, told_at: 7, reason: "why".into(), ..Instance::new().row };
        let event = |draft: Draft| RawEvent {
            id: ID,
            pubkey: PubKey([1; 32]),
            created_at: draft.created_at,
            kind: draft.kind,
            tags: draft.tags,
            content: draft.content,
            sig: Sig([0; 64]),
        };
        let sign = event(row.sign().tag(["e", &"02".repeat(32)]));
        assert_eq!(sign.kind, Kind::REACTION);
        assert_eq!(Told::from_event(&sign), Some(Told { at: 7, state: State::Refused, reason: "why".into() }));
        assert_eq!(Told::names(&sign), [EventId([2; 32])]);
        let dead = Row { state: State::Dead, ..row };
        let notice = event(Draft::new(Kind::NOTE, 8, "gave up").tag(dead.notice_tag()));
        assert_eq!(Told::from_event(&notice), Some(Told { at: 8, state: State::Dead, reason: "gave up".into() }));
        for word in ["answered", "prompted", "stored", "", "x"] {
            assert_eq!(Told::from_event(&event(Draft::new(Kind::NOTE, 8, "x").tag([STATUS_TAG, word]))), None);
        }
    }

    proptest! {
        #[test]
        fn in_whatever_order_words_come_and_how_often_the_newest_decides(
            states in proptest::collection::vec(0usize..4, 1..8), order in any::<proptest::sample::Index>(), seed: u64,
        ) {
            let all = [State::Refused, State::Expired, State::Dead, State::Queued];
            let words: Vec<Told> =
                states.iter().zip(1..).map(|(state, at)| word(at, all[*state].clone())).collect();
            let mut heard: Vec<Told> = words.iter().chain(&words).cloned().collect();
            // Any order: sorted by a hash of the seed.
            heard.sort_by_key(|told| (told.at.wrapping_mul(seed | 1)).rotate_left(17));
            let at = order.index(heard.len());
            heard.rotate_left(at);
            let mut this = Instance::new();
            for told in heard {
                this.hear(told);
            }
            let newest = words.last().map(|told| told.state != State::Queued);
            prop_assert_eq!(Some(this.row.state.is_final()), newest);
        }
    }
}
