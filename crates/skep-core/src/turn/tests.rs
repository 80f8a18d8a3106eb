//! The rules of [`super`], each by its name.

use super::*;
use crate::backend::{Counters, Scope, ToolCall, ToolKind, ToolStatus, Usage};
use proptest::prelude::*;

const TIMES: Times = Times { idle_ms: 900, turn_ms_max: 7_200, kill_step_ms: 5, liveness_ms: 10_000 };

fn turn() -> Turn {
    Turn::start(0, TIMES, vec![EventId([1; 32])], 1, None, "hello".into()).0
}

fn done(out: &[Effect]) -> Option<&Done> {
    out.iter().find_map(|effect| match effect {
        Effect::Done(done) => Some(&**done),
        _ => None,
    })
}

fn outcome(out: &[Effect]) -> Option<Outcome> {
    done(out).map(|done| done.outcome.clone())
}

fn ask(id: &str) -> Ask {
    let tool = ToolCall {
        id: "t".into(),
        title: "rm".into(),
        kind: ToolKind::Execute,
        status: ToolStatus::Pending,
        paths: Vec::new(),
    };
    Ask { id: AskId(id.into()), tool, detail: String::new(), options: Vec::new(), frame: None }
}

fn tells(out: &[Effect]) -> Vec<Order> {
    let orders = out.iter().filter_map(|effect| match effect {
        Effect::Tell(order) => Some(order.clone()),
        _ => None,
    });
    orders.collect()
}

#[test]
fn a_turn_prompts_once_and_gives_the_reply_with_its_usage() {
    let (mut turn, out) = Turn::start(0, TIMES, vec![EventId([1; 32])], 1, None, "hello".into());
    assert_eq!(tells(&out), [Order::Prompt { text: "hello".into() }]);
    turn.handle_said(1, Said::Ready(Session { id: "s".into(), is_new: true, ..Session::default() }));
    turn.handle_said(2, Said::Thought("hm".into()));
    turn.handle_said(3, Said::Text("a".into()));
    turn.handle_said(3, Said::Text("b".into()));
    let counters = Counters { input: Some(4), ..Counters::default() };
    turn.handle_said(4, Said::Usage(Usage { scope: Scope::Turn, counters }));
    let out = turn.handle_said(5, Said::Ended(Ended::EndTurn));
    let done = done(&out).expect("it is over");
    assert_eq!(done.outcome, Outcome::Reply { text: "ab".into(), is_cut: false });
    assert_eq!(done.observed.turn(), Some(counters));
    assert_eq!((done.elapsed_ms, done.is_reusable, done.stop), (5, true, StopReason::EndTurn));
    assert_eq!(done.session.as_ref().map(|session| session.id.as_str()), Some("s"));
    assert!(turn.is_over() && turn.wake_at().is_none());
}

#[test]
fn the_watchdog_goes_by_progress_not_by_the_clock_alone() {
    let mut turn = turn();
    for now in (0..5_000).step_by(800) {
        assert_eq!(turn.tick(now), []);
        turn.handle_said(now, Said::Thought(String::new()));
    }
    assert_eq!(turn.tick(4_800 + 899), []);
    assert_eq!(tells(&turn.tick(4_800 + 900)), [Order::Cancel]);
    let out = turn.handle_said(5_701, Said::Ended(Ended::Cancelled));
    assert_eq!(outcome(&out), Some(Outcome::Stuck));
}

#[test]
fn no_turn_is_longer_than_the_cap_however_busy() {
    let mut turn = turn();
    for now in 0..7_200 {
        assert_eq!(turn.tick(now), []);
        turn.handle_said(now, Said::Text(String::new()));
    }
    assert_eq!(tells(&turn.tick(7_200)), [Order::Cancel]);
    assert_eq!(outcome(&turn.handle_said(7_201, Said::Ended(Ended::Cancelled))), Some(Outcome::TooLong));
}

#[test]
fn waiting_for_a_permission_is_not_idleness() {
    let mut turn = turn();
    turn.handle_said(0, Said::Ask(ask("q")));
    assert_eq!(turn.tick(5_000), []);
    turn.answer(5_000, AskId("q".into()), None);
    assert_eq!(turn.tick(5_899), []);
    assert_eq!(tells(&turn.tick(5_900)), [Order::Cancel]);
}

#[test]
fn the_ladder_asks_then_terminates_then_kills_then_gives_up() {
    let mut turn = turn();
    assert_eq!(tells(&turn.cancel(100, Cancel::Owner)), [Order::Cancel]);
    assert_eq!(turn.cancel(101, Cancel::Stolen), [], "the first reason stands");
    assert_eq!(turn.tick(104), []);
    assert_eq!(turn.tick(105), [Effect::Terminate]);
    assert_eq!(turn.tick(109), []);
    assert_eq!(turn.tick(110), [Effect::Kill]);
    let out = turn.tick(115);
    let done = done(&out).expect("given up");
    assert_eq!((done.outcome.clone(), done.is_reusable), (Outcome::Cancelled(Cancel::Owner), false));
    assert_eq!(turn.tick(999), []);
}

#[test]
fn a_backend_that_dies_while_it_is_ended_was_cancelled_and_one_that_dies_by_itself_failed() {
    let mut ended = turn();
    ended.cancel(1, Cancel::Stolen);
    ended.tick(6);
    assert_eq!(outcome(&ended.handle_said(7, Said::Gone("killed".into()))), Some(Outcome::Cancelled(Cancel::Stolen)));
    let out = turn().handle_said(7, Said::Gone("segfault".into()));
    assert_eq!(outcome(&out), Some(Outcome::Failed(BackendError::Disconnected("segfault".into()))));
}

#[test]
fn a_reply_that_was_ready_when_the_turn_was_cancelled_is_not_published() {
    let mut turn = turn();
    turn.handle_said(1, Said::Text("too late".into()));
    turn.cancel(2, Cancel::Stolen);
    assert_eq!(outcome(&turn.handle_said(3, Said::Ended(Ended::EndTurn))), Some(Outcome::Cancelled(Cancel::Stolen)));
}

#[test]
fn a_reply_that_comes_after_the_watchdog_spoke_is_a_reply() {
    let mut turn = turn();
    turn.handle_said(1, Said::Text("slow".into()));
    turn.tick(901);
    let reply = Outcome::Reply { text: "slow".into(), is_cut: false };
    assert_eq!(outcome(&turn.handle_said(902, Said::Ended(Ended::EndTurn))), Some(reply));
}

#[test]
fn each_question_is_answered_exactly_once_also_by_the_end() {
    let mut turn = turn();
    assert_eq!(turn.handle_said(1, Said::Ask(ask("a"))), [Effect::Ask(ask("a"))]);
    assert_eq!(turn.handle_said(1, Said::Ask(ask("a"))), [], "the same question");
    turn.handle_said(1, Said::Ask(ask("b")));
    let answer =
        |id: &str, option: Option<&str>| Order::Answer { request: AskId(id.into()), option: option.map(str::to_owned) };
    assert_eq!(tells(&turn.answer(2, AskId("a".into()), Some("yes".into()))), [answer("a", Some("yes"))]);
    assert_eq!(turn.answer(2, AskId("a".into()), None), []);
    assert_eq!(tells(&turn.cancel(3, Cancel::Owner)), [answer("b", None), Order::Cancel]);
    assert_eq!(turn.answer(4, AskId("b".into()), Some("yes".into())), []);
    assert_eq!(tells(&turn.handle_said(4, Said::Ask(ask("c")))), [answer("c", None)], "too late to be permitted");
}

#[test]
fn the_frame_of_a_question_is_shown_once_with_its_question_or_else_as_it_is() {
    let mut turn = turn();
    let with_frame = |id: &str| Ask { frame: Some("{}".into()), ..ask(id) };
    let shown = || Effect::Observe { kind: TelemetryKind::AcpRead, payload: Payload::raw("{}") };
    assert_eq!(turn.handle_said(1, Said::Ask(with_frame("a"))), [Effect::Ask(with_frame("a"))]);
    assert_eq!(turn.handle_said(1, Said::Ask(with_frame("a"))), [shown()], "the same question");
    turn.cancel(2, Cancel::Owner);
    assert_eq!(turn.handle_said(3, Said::Ask(with_frame("b")))[0], shown(), "nobody will be asked");
}

#[test]
fn a_reply_is_bounded_and_cut_between_characters() {
    let mut turn = turn();
    turn.handle_said(1, Said::Text("x".repeat(limits::REPLY_BYTES_MAX - 1)));
    turn.handle_said(1, Said::Text("é more".into()));
    turn.handle_said(1, Said::Text("more".into()));
    let Some(Outcome::Reply { text, is_cut }) = outcome(&turn.handle_said(2, Said::Ended(Ended::EndTurn))) else {
        panic!("a reply");
    };
    assert!(is_cut && text.len() <= limits::REPLY_BYTES_MAX);
    assert_eq!(
        outcome(&self::turn().handle_said(2, Said::Ended(Ended::MaxTokens))),
        Some(Outcome::Reply { text: String::new(), is_cut: true })
    );
}

#[test]
fn a_watcher_sees_the_turn_begin_live_and_end() {
    let (mut turn, mut out) = Turn::start(0, Times { liveness_ms: 10, ..TIMES }, vec![], 2, None, String::new());
    out.extend(turn.handle_said(1, Said::Frame { direction: Direction::ToBackend, json: "{\"a\":1}".into() }));
    out.extend(turn.tick(9));
    out.extend(turn.tick(10));
    out.extend(turn.handle_said(11, Said::Ended(Ended::Error(BackendError::Other("x".into())))));
    let seen = out.iter().filter_map(|effect| match effect {
        Effect::Observe { kind, payload } => Some((kind.as_str(), payload.as_str())),
        _ => None,
    });
    assert_eq!(
        seen.collect::<Vec<_>>(),
        [
            ("turn_started", r#"{"triggeringEventIds":[],"attempt":2}"#),
            ("acp_write", r#"{"a":1}"#),
            ("turn_liveness", r#"{"elapsedMs":10,"idleMs":9}"#),
            ("turn_error", r#"{"stopReason":"error","elapsedMs":11,"error":"x"}"#),
        ]
    );
}

fn any_said() -> impl Strategy<Value = Said> {
    prop_oneof![
        Just(Said::Ready(Session::default())),
        "[a-z]{0,4}".prop_map(Said::Text),
        (0u8..3).prop_map(|id| Said::Ask(ask(&id.to_string()))),
        Just(Said::Usage(Usage::default())),
        Just(Said::Ended(Ended::EndTurn)),
        Just(Said::Ended(Ended::Cancelled)),
        Just(Said::Ended(Ended::Error(BackendError::Busy { retry_after_secs: None }))),
        Just(Said::Gone("x".into())),
        Just(Said::Thought(String::new())),
    ]
}

#[derive(Debug, Clone)]
enum Act {
    Said(Said),
    Answer(u8),
    Cancel,
    Tick,
}

proptest! {
    #[test]
    fn whatever_happens_there_is_exactly_one_outcome_and_one_answer_to_each_question(
        acts in proptest::collection::vec((0u64..400, prop_oneof![
            any_said().prop_map(Act::Said), (0u8..3).prop_map(Act::Answer), Just(Act::Cancel), Just(Act::Tick),
        ]), 0..40),
    ) {
        let (mut turn, mut out) = Turn::start(0, TIMES, vec![], 1, None, String::new());
        let mut now = 0;
        for (wait, act) in acts {
            now += wait;
            out.extend(match act {
                Act::Said(said) => turn.handle_said(now, said),
                Act::Answer(id) => turn.answer(now, AskId(id.to_string()), None),
                Act::Cancel => turn.cancel(now, Cancel::Owner),
                Act::Tick => turn.tick(now),
            });
        }
        // Then the backend falls silent for ever, and only time passes.
        let mut wakes = 0;
        while let Some(at) = turn.wake_at() {
            now = now.max(at);
            out.extend(turn.tick(now));
            wakes += 1;
            prop_assert!(wakes < 100, "time alone ends every turn");
        }
        let dones = out.iter().filter(|effect| matches!(effect, Effect::Done(_))).count();
        prop_assert_eq!(dones, 1);
        prop_assert!(matches!(out.last(), Some(Effect::Done(_))), "and nothing comes after it");
        let asked = out.iter().filter(|effect| matches!(effect, Effect::Ask(_))).count();
        let answers = tells(&out).iter().filter(|order| matches!(order, Order::Answer { .. })).count();
        let lost = if turn.asks.is_empty() { 0 } else { turn.asks.len() };
        prop_assert!(answers + lost >= asked, "{answers} answers, {asked} questions");
    }
}
