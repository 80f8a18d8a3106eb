//! The rules of [`super`], each by its name.

use super::*;
use proptest::prelude::*;
use skep_proto::PubKey;
use std::collections::BTreeMap;

fn id(n: u8) -> EventId {
    EventId([n; 32])
}

fn message(n: u8, channel: &str, at: UnixMs) -> Message {
    Message {
        id: id(n),
        from: PubKey([9; 32]),
        channel: channel.into(),
        arrived_at: at,
        expires_at: None,
        priority: Priority::Normal,
    }
}

fn turn(n: u8) -> TurnId {
    TurnId(format!("t{n}"))
}

fn queue(settings: Settings) -> Queue {
    let mut queue = Queue::new(settings);
    queue.handle(0, 0, Input::Leading(true));
    queue
}

fn send(queue: &mut Queue, n: u8, channel: &str, now: UnixMs) -> Vec<Effect> {
    let mut out = queue.handle(now, 0, Input::Arrived(message(n, channel, now)));
    out.extend(queue.handle(now, 0, Input::Admitted(id(n))));
    out
}

fn start(queue: &mut Queue, n: u8, now: UnixMs) -> Vec<Effect> {
    queue.handle(now, 0, Input::Started { id: id(n), turn: turn(n), epoch: 1 })
}

fn end(queue: &mut Queue, n: u8, now: UnixMs, how: Ended) -> Vec<Effect> {
    queue.handle(now, u64::MAX, Input::Ended { turn: turn(n), how })
}

fn prompts(out: &[Effect]) -> Vec<(u8, u32)> {
    let prompts = out.iter().filter_map(|effect| match effect {
        Effect::Prompt { message, attempt, .. } => Some((message.id.0[0], *attempt)),
        _ => None,
    });
    prompts.collect()
}

/// The state and reason that were stored last.
fn stored(out: &[Effect]) -> Option<(State, String)> {
    out.iter().rev().find_map(Effect::row).map(|row| (row.state.clone(), row.reason.clone()))
}

/// What the other instances are told: the row, and the sentence for its sender.
fn told(out: &[Effect]) -> Option<(&Row, Option<&str>)> {
    out.iter().find_map(|effect| match effect {
        Effect::Tell { row, notice } => Some((row, notice.as_deref())),
        _ => None,
    })
}

fn has_notice(out: &[Effect]) -> bool {
    out.iter().any(|effect| matches!(effect, Effect::Tell { notice: Some(_), .. }))
}

#[test]
fn a_message_goes_from_stored_to_queued_to_prompted_to_answered_with_eyes_on_the_prompt() {
    let mut queue = queue(Settings::default());
    let out = send(&mut queue, 1, "c", 10);
    let states: Vec<_> =
        out.iter().filter_map(|e| if let Effect::Store(row) = e { Some(row.state.as_str()) } else { None }).collect();
    assert_eq!(states, ["stored", "queued"]);
    assert_eq!(prompts(&out), [(1, 1)]);
    assert!(!out.iter().any(|effect| matches!(effect, Effect::React { .. })), "not on receipt");
    let out = start(&mut queue, 1, 11);
    assert!(out.contains(&Effect::React { id: id(1), reaction: Reaction::Eyes }));
    let out = end(&mut queue, 1, 12, Ended::Answered(Some(id(77))));
    assert_eq!(stored(&out), Some((State::Answered { event: Some(id(77)) }, String::new())));
    assert_eq!(queue.rows().count(), 0);
}

#[test]
fn one_turn_in_a_channel_in_order_and_parallel_over_channels() {
    let mut queue = queue(Settings { parallel: 2, ..Settings::default() });
    assert_eq!(prompts(&send(&mut queue, 1, "a", 1)), [(1, 1)]);
    start(&mut queue, 1, 1);
    let out = send(&mut queue, 2, "a", 2);
    assert_eq!(prompts(&out), []);
    assert!(out.contains(&Effect::React { id: id(2), reaction: Reaction::Hourglass }));
    assert_eq!(prompts(&send(&mut queue, 3, "b", 3)), [(3, 1)]);
    assert_eq!(prompts(&send(&mut queue, 4, "c", 4)), [], "two at once are enough");
    start(&mut queue, 3, 4);
    assert_eq!(prompts(&end(&mut queue, 1, 5, Ended::Answered(None))), [(2, 1)]);
}

#[test]
fn a_message_that_is_answered_elsewhere_while_its_turn_is_about_to_begin_has_none() {
    let mut queue = queue(Settings::default());
    assert_eq!(prompts(&send(&mut queue, 1, "a", 1)), [(1, 1)]);
    send(&mut queue, 2, "a", 2);
    assert!(queue.is_starting(&id(1)));
    let out = queue.handle(3, 0, Input::AnsweredElsewhere { id: id(1), event: id(77) });
    let states = out.iter().filter_map(|e| if let Effect::Store(row) = e { Some(row.state.clone()) } else { None });
    assert_eq!(states.collect::<Vec<_>>(), [State::Answered { event: Some(id(77)) }]);
    assert_eq!(prompts(&out), [(2, 1)], "the channel is free");
    assert!(!queue.is_starting(&id(1)));
    let out = start(&mut queue, 1, 4);
    assert_eq!(out, [Effect::Cancel { turn: turn(1), why: Cancel::NotWanted }]);
    let out = start(&mut queue, 2, 5);
    assert!(matches!(stored(&out), Some((State::Prompted { .. }, _))));
    queue.handle(6, 0, Input::AnsweredElsewhere { id: id(2), event: id(78) });
    assert_eq!(queue.rows().count(), 1, "what runs goes on");
}

#[test]
fn a_message_whose_replies_are_refused_each_time_is_given_up_in_the_end() {
    let mut queue = queue(Settings::default());
    let mut out = send(&mut queue, 1, "a", 0);
    for attempt in 1..=limits::ATTEMPTS_MAX {
        let now = u64::from(attempt) * limits::RETRY_MS_MAX;
        out.extend(queue.handle(now, 0, Input::Tick));
        assert_eq!(prompts(&out), [(1, attempt)]);
        queue.handle(now, 0, Input::Started { id: id(1), turn: turn(1), epoch: attempt.into() });
        let ended = end(&mut queue, 1, now, Ended::Answered(Some(id(77))));
        let Some(Effect::Store(row)) = ended.into_iter().next() else { panic!("stored") };
        assert_eq!(row.attempts, attempt - 1);
        out = queue.handle(now, 1_000, Input::GivenBack { row: row.clone(), reason: "conflict: x".into() });
        if attempt < limits::ATTEMPTS_MAX {
            assert_eq!(queue.handle(now, 1_000, Input::GivenBack { row, reason: "again".into() }), []);
        }
    }
    assert_eq!(stored(&out), Some((State::Dead, "conflict: x".into())));
    assert!(has_notice(&out));
}

#[test]
fn a_failed_message_keeps_its_place_in_its_channel() {
    let mut queue = queue(Settings::default());
    send(&mut queue, 1, "a", 1);
    start(&mut queue, 1, 1);
    send(&mut queue, 2, "a", 2);
    let out = end(&mut queue, 1, 10, Ended::Failed(BackendError::Other("x".into())));
    assert_eq!(prompts(&out), [], "the second does not overtake the first");
    let Some(Effect::WakeAt(at)) = out.last() else { panic!("a time to wake") };
    assert!((10..=5_010).contains(at));
    assert_eq!(prompts(&queue.handle(*at, 0, Input::Tick)), [(1, 2)]);
}

#[test]
fn attempts_end_in_a_dead_letter_with_one_notice_and_a_retry_by_hand() {
    let mut queue = queue(Settings::default());
    send(&mut queue, 1, "a", 0);
    let (mut now, mut notices, mut last) = (0, 0, Vec::new());
    for attempt in 1..=limits::ATTEMPTS_MAX {
        queue.handle(now, 0, Input::Started { id: id(1), turn: turn(1), epoch: attempt.into() });
        last = end(&mut queue, 1, now, Ended::Failed(BackendError::Disconnected("x".into())));
        notices += usize::from(has_notice(&last));
        now += limits::RETRY_MS_MAX;
        queue.handle(now, 0, Input::Tick);
    }
    assert_eq!(notices, 1);
    let dead = last.iter().find_map(Effect::row).expect("it is stored");
    assert_eq!((&dead.state, dead.attempts), (&State::Dead, limits::ATTEMPTS_MAX));
    let out = queue.handle(now, 0, Input::Retry(dead.clone()));
    assert_eq!(prompts(&out), [(1, 1)]);
}

#[test]
fn a_turn_whose_end_we_saw_may_be_followed_under_the_same_lease() {
    let mut queue = queue(Settings::default());
    send(&mut queue, 1, "a", 0);
    start(&mut queue, 1, 0);
    end(&mut queue, 1, 1, Ended::Failed(BackendError::Other("x".into())));
    queue.handle(10_000, 0, Input::Tick);
    // Whoever holds a lease and acquires it again gets the same epoch.
    assert!(start(&mut queue, 1, 10_001).contains(&Effect::React { id: id(1), reaction: Reaction::Eyes }));
}

#[test]
fn a_hard_limit_of_the_provider_pauses_the_agent_and_burns_no_attempt() {
    for error in [BackendError::Auth("401".into()), BackendError::Quota("month".into())] {
        let mut queue = queue(Settings::default());
        send(&mut queue, 1, "a", 0);
        start(&mut queue, 1, 0);
        let out = end(&mut queue, 1, 1, Ended::Failed(error.clone()));
        let is_paused =
            |effect: &Effect| matches!(effect, Effect::PauseAgent { reason, .. } if *reason == error.to_string());
        assert!(out.iter().any(is_paused));
        assert_eq!(stored(&out), Some((State::Queued, error.to_string())));
        assert_eq!(prompts(&queue.handle(999_999, 0, Input::Tick)), []);
        let out = queue.handle(1_000_000, 0, Input::Resumed);
        assert_eq!(prompts(&out), [(1, 1)], "the first attempt, still");
    }
}

#[test]
fn a_pause_and_what_the_shell_holds_are_lifted_each_by_itself() {
    let mut queue = queue(Settings::default());
    for input in [Input::Held(true), Input::Paused("by hand".into())] {
        queue.handle(0, 0, input);
    }
    send(&mut queue, 1, "a", 0);
    for input in [Input::Resumed, Input::Paused("by hand".into()), Input::Held(false), Input::Tick] {
        assert_eq!(prompts(&queue.handle(1, 0, input)), [], "one of them holds still");
    }
    assert!(!queue.may_begin());
    assert_eq!(prompts(&queue.handle(2, 0, Input::Resumed)), [(1, 1)]);
}

#[test]
fn retry_after_is_obeyed_by_the_whole_agent_and_burns_no_attempt() {
    let mut queue = queue(Settings { parallel: 2, ..Settings::default() });
    send(&mut queue, 1, "a", 0);
    start(&mut queue, 1, 0);
    let out = end(&mut queue, 1, 1_000, Ended::Failed(BackendError::Busy { retry_after_secs: Some(60) }));
    assert!(out.contains(&Effect::WakeAt(61_000)));
    assert_eq!(prompts(&send(&mut queue, 2, "b", 2_000)), []);
    assert_eq!(prompts(&queue.handle(60_999, 0, Input::Tick)), []);
    assert_eq!(prompts(&queue.handle(61_000, 0, Input::Tick)), [(1, 1), (2, 1)]);
}

#[test]
fn a_turn_without_progress_is_tried_once_more_and_then_dead() {
    let mut queue = queue(Settings::default());
    send(&mut queue, 1, "a", 0);
    start(&mut queue, 1, 0);
    assert_eq!(stored(&end(&mut queue, 1, 1, Ended::Stuck)).map(|(state, _)| state), Some(State::Queued));
    queue.handle(10_000, 0, Input::Tick);
    queue.handle(10_000, 0, Input::Started { id: id(1), turn: turn(1), epoch: 2 });
    let out = end(&mut queue, 1, 20_000, Ended::Stuck);
    assert_eq!(stored(&out), Some((State::Dead, "no progress, twice".into())));
    assert!(has_notice(&out));
}

#[test]
fn a_turn_that_was_stolen_is_left_unanswered_and_one_that_the_owner_ended_is_over() {
    for (why, state) in
        [(Cancel::Stolen, State::Queued), (Cancel::Shutdown, State::Queued), (Cancel::Owner, State::Refused)]
    {
        let mut queue = queue(Settings::default());
        send(&mut queue, 1, "a", 0);
        start(&mut queue, 1, 0);
        let out = end(&mut queue, 1, 1, Ended::Cancelled(why));
        let row = out.iter().find_map(Effect::row).expect("it is stored");
        assert_eq!((&row.state, row.attempts, row.reason.as_str()), (&state, 0, why.as_str()));
        assert_eq!(told(&out).is_some(), state == State::Refused, "what is over is told, once, quietly");
        assert!(!has_notice(&out));
    }
}

#[test]
fn only_the_prompter_prompts_and_a_deposed_one_ends_its_turns() {
    let mut queue = Queue::new(Settings::default());
    assert_eq!(prompts(&send(&mut queue, 1, "a", 0)), []);
    assert_eq!(prompts(&queue.handle(1, 0, Input::Leading(true))), [(1, 1)]);
    start(&mut queue, 1, 2);
    let out = queue.handle(3, 0, Input::Leading(false));
    assert_eq!(out, [Effect::Cancel { turn: turn(1), why: Cancel::Stolen }]);
    assert_eq!(prompts(&end(&mut queue, 1, 4, Ended::Cancelled(Cancel::Stolen))), []);
}

#[test]
fn a_turn_that_begins_after_the_lead_was_lost_is_ended() {
    let mut queue = queue(Settings::default());
    send(&mut queue, 1, "a", 0);
    queue.handle(1, 0, Input::Leading(false));
    assert!(start(&mut queue, 1, 2).contains(&Effect::Cancel { turn: turn(1), why: Cancel::Stolen }));
}

#[test]
fn after_a_crash_a_prompted_message_is_prompted_again_under_a_newer_lease_only() {
    let mut before = queue(Settings::default());
    send(&mut before, 1, "a", 0);
    before.handle(0, 0, Input::Started { id: id(1), turn: turn(1), epoch: 5 });
    let rows: Vec<_> = before.rows().cloned().collect();
    let json = serde_json::to_string(&rows).expect("rows are stored");
    let rows: Vec<Row> = serde_json::from_str(&json).expect("rows are read");
    let (mut after, _) = Queue::restore(Settings::default(), rows, 100);
    let out = after.handle(100, 0, Input::Leading(true));
    let Some(Effect::Prompt { attempt: 2, after: Some(5), .. }) = out.first() else { panic!("{out:?}") };
    let out = after.handle(101, 0, Input::Started { id: id(1), turn: turn(2), epoch: 5 });
    assert!(out.contains(&Effect::Cancel { turn: turn(2), why: Cancel::Fenced }));
    assert!(!out.iter().any(|effect| matches!(effect, Effect::React { .. })));
    after.handle(limits::RETRY_MS_MIN + 101, 0, Input::Tick);
    let out = after.handle(6_000, 0, Input::Started { id: id(1), turn: turn(3), epoch: 6 });
    assert!(out.contains(&Effect::React { id: id(1), reaction: Reaction::Eyes }));
}

#[test]
fn a_crash_in_every_turn_ends_in_a_dead_letter_where_the_agent_leads() {
    let mut row = Row::new(message(1, "a", 0), 0);
    row.attempts = limits::ATTEMPTS_MAX - 1;
    row.state = State::Prompted { turn: turn(1), epoch: 1 };
    let (mut queue, out) = Queue::restore(Settings::default(), [row], 1);
    assert!(!has_notice(&out) && queue.rows().count() == 1, "another may have answered it");
    let out = queue.handle(2, 0, Input::Leading(true));
    assert!(has_notice(&out) && queue.rows().count() == 0);
}

#[test]
fn a_budget_or_a_lease_makes_a_message_wait_with_its_reason_and_burns_no_attempt() {
    let mut queue = queue(Settings::default());
    send(&mut queue, 1, "a", 0);
    let why = NotStarted::Wait { reason: "budget".into(), until: 500 };
    let out = queue.handle(1, 0, Input::NotStarted { id: id(1), why });
    assert_eq!(stored(&out), Some((State::Queued, "budget".into())));
    assert!(out.contains(&Effect::WakeAt(500)));
    assert_eq!(prompts(&queue.handle(500, 0, Input::Tick)), [(1, 1)]);
    let why = NotStarted::Answered(Some(id(8)));
    let out = queue.handle(501, 0, Input::NotStarted { id: id(1), why });
    assert_eq!(stored(&out).map(|(state, _)| state), Some(State::Answered { event: Some(id(8)) }));
}

#[test]
fn what_waits_past_its_deadline_expires_and_what_runs_goes_on() {
    let mut queue = queue(Settings::default());
    let late = |n, at| Message { expires_at: Some(50), ..message(n, "a", at) };
    for n in [1, 2] {
        queue.handle(0, 0, Input::Arrived(late(n, n.into())));
        queue.handle(0, 0, Input::Admitted(id(n)));
    }
    start(&mut queue, 1, 3);
    let out = queue.handle(50, 0, Input::Tick);
    assert_eq!(stored(&out).map(|(state, _)| state), Some(State::Expired));
    assert_eq!(queue.rows().map(|row| row.message.id).collect::<Vec<_>>(), [id(1)]);
}

#[test]
fn an_interrupt_ends_the_turn_and_the_newer_message_is_next() {
    let mut queue = queue(Settings { mode: Mode::Interrupt, ..Settings::default() });
    send(&mut queue, 1, "a", 0);
    start(&mut queue, 1, 0);
    let out = send(&mut queue, 2, "a", 1);
    let cancel = Effect::Cancel { turn: turn(1), why: Cancel::Interrupted };
    assert_eq!(out.iter().rposition(|e| *e == cancel), out.iter().rposition(|e| e.row().is_some()).map(|n| n + 1));
    assert_eq!(told(&out).map(|(row, _)| row.reason.as_str()), Some("interrupted by a newer message"));
    let out = end(&mut queue, 1, 2, Ended::Cancelled(Cancel::Interrupted));
    assert_eq!(stored(&out).map(|(state, _)| state), Some(State::Refused));
    assert_eq!(prompts(&out), [(2, 1)]);
}

#[test]
fn a_steered_message_shares_the_fate_of_the_turn_that_took_it() {
    let mut queue = queue(Settings { mode: Mode::Steer, ..Settings::default() });
    send(&mut queue, 1, "a", 0);
    start(&mut queue, 1, 0);
    for n in [2, 3] {
        let out = send(&mut queue, n, "a", n.into());
        assert!(out.iter().any(|effect| matches!(effect, Effect::Steer { .. })));
        let steered = Input::Steered { id: id(n), turn: turn(1), is_taken: n == 2 };
        queue.handle(5, 0, steered);
    }
    let out = end(&mut queue, 1, 6, Ended::Answered(Some(id(70))));
    let answered =
        out.iter().filter(|e| matches!(e, Effect::Store(row) if matches!(row.state, State::Answered { .. })));
    assert_eq!(answered.count(), 2);
    assert_eq!(prompts(&out), [(3, 1)], "one that was not taken has a turn of its own");
}

#[test]
fn a_message_whose_sender_is_not_judged_yet_holds_up_nobody() {
    let mut queue = queue(Settings::default());
    queue.handle(0, 0, Input::Arrived(message(1, "a", 0)));
    assert_eq!(prompts(&send(&mut queue, 2, "a", 1)), [(2, 1)]);
    let out = queue.handle(2, 0, Input::Refused { id: id(1), reason: "not a member".into() });
    assert_eq!(stored(&out), Some((State::Refused, "not a member".into())));
}

#[test]
fn a_full_inbox_refuses_the_newest_visibly_and_a_double_changes_nothing() {
    let mut queue = queue(Settings { waiting_max: 1, ..Settings::default() });
    send(&mut queue, 1, "a", 0);
    assert_eq!(queue.handle(1, 0, Input::Arrived(message(1, "a", 0))), []);
    let out = queue.handle(1, 0, Input::Arrived(message(2, "a", 1)));
    assert_eq!(stored(&out), Some((State::Refused, "the inbox is full".into())));
    assert_eq!(queue.refused_full, 1);
}

#[test]
fn the_more_urgent_channel_goes_first() {
    let mut queue = Queue::new(Settings::default());
    for (n, priority) in [(1, Priority::Low), (2, Priority::Normal), (3, Priority::High)] {
        let message = Message { priority, ..message(n, &n.to_string(), n.into()) };
        queue.handle(0, 0, Input::Arrived(message));
        queue.handle(0, 0, Input::Admitted(id(n)));
    }
    assert_eq!(prompts(&queue.handle(1, 0, Input::Leading(true))), [(3, 1)]);
}

#[derive(Debug, Clone)]
enum Act {
    Send(u8, u8),
    Start(u8, bool),
    End(u8, u8),
    CallOff(u8),
    Crash,
    Lead(bool),
    Resume,
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0u8..12, 0u8..3).prop_map(|(n, channel)| Act::Send(n, channel)),
        4 => (0u8..12, any::<bool>()).prop_map(|(n, begins)| Act::Start(n, begins)),
        4 => (0u8..12, 0u8..7).prop_map(|(n, how)| Act::End(n, how)),
        1 => (0u8..12).prop_map(Act::CallOff),
        1 => Just(Act::Crash),
        1 => any::<bool>().prop_map(Act::Lead),
        1 => Just(Act::Resume),
    ]
}

fn any_end(n: u8) -> Ended {
    match n {
        0 => Ended::Answered(Some(id(99))),
        1 => Ended::Failed(BackendError::Other("x".into())),
        2 => Ended::Failed(BackendError::Busy { retry_after_secs: Some(3) }),
        3 => Ended::Stuck,
        4 => Ended::Cancelled(Cancel::Stolen),
        5 => Ended::Cancelled(Cancel::Owner),
        _ => Ended::Failed(BackendError::Quota("x".into())),
    }
}

/// What the shell's store holds, and what it saw.
#[derive(Default)]
struct Shell {
    rows: BTreeMap<EventId, Row>,
    called_off: BTreeSet<EventId>,
    epoch: u64,
}

impl Shell {
    fn carry_out(&mut self, out: Vec<Effect>) -> Result<(), TestCaseError> {
        for effect in out {
            match effect {
                Effect::Store(row) | Effect::Tell { row, .. } => {
                    if row.called_off.is_some() {
                        self.called_off.insert(row.message.id);
                    }
                    let before = self.rows.insert(row.message.id, row);
                    let was_final = before.is_some_and(|before| before.state.is_final());
                    prop_assert!(!was_final, "what has ended does not begin again by itself");
                }
                Effect::Prompt { message, .. } => {
                    let row = &self.rows[&message.id];
                    prop_assert_eq!(&row.state, &State::Queued);
                    prop_assert!(!self.called_off.contains(&message.id), "what was called off is over");
                    let older = self.rows.values().filter(|other| {
                        other.message.channel == row.message.channel
                            && other.place() < row.place()
                            && !other.state.is_final()
                            && other.state != State::Stored
                    });
                    prop_assert_eq!(older.count(), 0, "a channel keeps its order and has one turn");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_whatever_happens(acts in proptest::collection::vec((0u64..20_000, any::<u64>(), any_act()), 0..80)) {
        let settings = Settings { parallel: 2, ..Settings::default() };
        let mut queue = queue(settings);
        let mut shell = Shell::default();
        let mut sent = BTreeSet::new();
        let mut now = 0;
        for (wait, random, act) in acts {
            now += wait;
            let inputs = match act {
                Act::Send(n, channel) => {
                    if !sent.insert(id(n)) {
                        continue;
                    }
                    vec![Input::Arrived(message(n, &channel.to_string(), now)), Input::Admitted(id(n))]
                }
                Act::Start(n, true) => {
                    shell.epoch += 1;
                    vec![Input::Started { id: id(n), turn: turn(n), epoch: shell.epoch }]
                }
                Act::Start(n, false) => {
                    let why = NotStarted::Wait { reason: "budget".into(), until: now + 10 };
                    vec![Input::NotStarted { id: id(n), why }]
                }
                Act::CallOff(n) => vec![Input::CalledOff { turn: turn(n), why: Cancel::Owner }],
                Act::End(n, how) => vec![Input::Ended { turn: turn(n), how: any_end(how) }],
                Act::Lead(leads) => vec![Input::Leading(leads)],
                Act::Resume => vec![Input::Resumed],
                Act::Crash => {
                    let (restored, out) = Queue::restore(settings, shell.rows.values().cloned(), now);
                    queue = restored;
                    shell.carry_out(out)?;
                    vec![Input::Leading(true)]
                }
            };
            for input in inputs {
                let out = queue.handle(now, random, input);
                shell.carry_out(out)?;
            }
            let waiting: BTreeSet<_> = queue.rows().map(|row| row.message.id).collect();
            for id in &sent {
                let row = &shell.rows[id];
                prop_assert_eq!(waiting.contains(id), !row.state.is_final(), "waiting, or visibly ended");
            }
            prop_assert!(queue.lanes.busy() <= 2);
        }
    }

    #[test]
    fn every_message_ends_when_the_faults_end(n in 1u8..10, fails in proptest::collection::vec(0u8..7, 0..30)) {
        let mut queue = queue(Settings::default());
        let mut out: Vec<Effect> = (0..n).flat_map(|n| send(&mut queue, n, "a", n.into())).collect();
        let mut fails = fails.into_iter();
        let (mut now, mut epoch) = (100, 0);
        for _ in 0..2_000 {
            let Some((n, _)) = prompts(&out).pop() else {
                if queue.rows().count() == 0 {
                    break;
                }
                now += limits::RETRY_MS_MAX;
                queue.handle(now, 0, Input::Paused("x".into()));
                out = queue.handle(now, 0, Input::Resumed);
                continue;
            };
            epoch += 1;
            queue.handle(now, 0, Input::Started { id: id(n), turn: turn(n), epoch });
            out = end(&mut queue, n, now, any_end(fails.next().unwrap_or(0)));
        }
        prop_assert_eq!(queue.rows().count(), 0);
    }

    #[test]
    fn the_wait_is_spread_over_the_whole_backoff(attempts in 1u32..40, random: u64) {
        let cap = (5_000u64 << (attempts - 1).min(10)).min(300_000);
        prop_assert!(backoff_ms(attempts, random) <= cap);
        prop_assert_eq!(backoff_ms(attempts, cap), cap, "its end is reached");
    }
}
