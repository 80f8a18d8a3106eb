//! The rules of [`super`], each by its name.

use super::*;
use crate::backend::{AskOption, ToolCall, ToolKind, ToolStatus};
use proptest::prelude::*;

const OWNER: PubKey = PubKey([1; 32]);

fn option(id: &str, kind: AskKind) -> AskOption {
    AskOption { id: id.into(), name: format!("the option {id}"), kind }
}

fn ask(id: &str) -> Ask {
    let tool = ToolCall {
        id: "t".into(),
        title: "cargo test".into(),
        kind: ToolKind::Execute,
        status: ToolStatus::Pending,
        paths: Vec::new(),
    };
    let options = vec![
        option("always", AskKind::AllowAlways),
        option("yes", AskKind::AllowOnce),
        option("no", AskKind::RejectOnce),
    ];
    Ask { id: AskId(id.into()), tool, detail: "x".repeat(limits::PERMIT_DETAIL_BYTES_MAX + 7), options, frame: None }
}

fn origin() -> Origin {
    Origin {
        agent: PubKey([2; 32]),
        channel: "c".into(),
        session: "s".into(),
        turn: TurnId("t".into()),
        is_by_owner: true,
        is_sealed: false,
        turn_ends_ms: u64::MAX,
    }
}

fn permits(stance: Stance) -> Permits {
    Permits::new(Policy { policy: stance, rules: Vec::new() }, Some(OWNER))
}

fn nonce(n: u8) -> Nonce {
    Nonce(format!("n{n}"))
}

fn local(n: u8, option: &str) -> Answer {
    Answer::Local { nonce: nonce(n), option: option.into() }
}

/// What was written to the backend.
fn written(out: &[Effect]) -> Vec<(Option<&str>, Reason)> {
    let answers = out.iter().filter_map(|effect| match effect {
        Effect::Answer { option, authorization, .. } => {
            Some((option.as_deref(), authorization.reason.clone().expect("an answer has its reason")))
        }
        _ => None,
    });
    answers.collect()
}

fn shown(out: &[Effect]) -> Option<&Card> {
    out.iter().find_map(|effect| match effect {
        Effect::Show(card) => Some(&**card),
        _ => None,
    })
}

#[test]
fn a_policy_answers_by_itself_and_never_with_always() {
    let out = permits(Stance::Allow).ask(0, origin(), &ask("q"), nonce(1));
    assert_eq!(written(&out), [(Some("yes"), Reason::Allowed)]);
    let out = permits(Stance::Reject).ask(0, origin(), &ask("q"), nonce(1));
    assert_eq!(written(&out), [(Some("no"), Reason::Rejected)]);
    let mut only_always = ask("q");
    only_always.options.remove(1);
    let out = permits(Stance::Allow).ask(0, origin(), &only_always, nonce(1));
    assert_eq!(written(&out), [(Some("no"), Reason::AllowFailedClosed)]);
    let mut nothing = ask("q");
    nothing.options.clear();
    let out = permits(Stance::Reject).ask(0, origin(), &nothing, nonce(1));
    assert_eq!(written(&out), [(None, Reason::Rejected)]);
}

#[test]
fn a_card_shows_two_options_and_texts_that_are_cut() {
    let out = permits(Stance::Ask).ask(0, origin(), &ask("q"), nonce(1));
    let card = shown(&out).expect("a card");
    assert_eq!((card.allow.option.as_str(), card.reject.option.as_str()), ("yes", "no"));
    let whole = limits::PERMIT_DETAIL_BYTES_MAX;
    assert_eq!(card.detail, format!("{}… (at least 7 bytes more)", "x".repeat(whole)));
    assert_eq!(written(&out), []);
}

#[test]
fn only_an_owner_initiated_turn_may_raise_a_card() {
    let peer = Origin { is_by_owner: false, ..origin() };
    let out = permits(Stance::Ask).ask(0, peer, &ask("q"), nonce(1));
    assert_eq!(written(&out), [(Some("no"), Reason::Rejected)]);
    let out = Permits::new(Policy::default(), None).ask(0, origin(), &ask("q"), nonce(1));
    assert_eq!(written(&out), [(Some("no"), Reason::Rejected)], "without an owner nobody can be asked");
}

#[test]
fn what_has_not_exactly_one_way_to_allow_and_one_to_reject_is_denied() {
    for change in [
        (|ask: &mut Ask| ask.options.push(option("yes2", AskKind::AllowOnce))) as fn(&mut Ask),
        |ask| ask.options[2].id = "yes".into(),
        |ask| drop(ask.options.remove(2)),
        |ask| ask.options[1].id = "y".repeat(limits::PERMIT_ID_BYTES_MAX + 1),
        |ask| ask.id = AskId(String::new()),
    ] {
        let mut ask = ask("q");
        change(&mut ask);
        let out = permits(Stance::Ask).ask(0, origin(), &ask, nonce(1));
        assert!(shown(&out).is_none() && written(&out).len() == 1, "{ask:?}");
        assert_ne!(written(&out)[0].0, Some("yes"));
    }
}

#[test]
fn the_first_answer_wins_and_a_late_one_is_told_so() {
    let mut permits = permits(Stance::Ask);
    permits.ask(0, origin(), &ask("q"), nonce(1));
    permits.published(&nonce(1), EventId([7; 32]));
    let (status, out) = permits.decide(1, &local(1, "no"));
    assert_eq!((status, written(&out)), (Status::Sent, vec![(Some("no"), Reason::Applied)]));
    let control = Answer::Control { nonce: nonce(1), channel: "c".into(), option: "yes".into() };
    let reaction = Answer::Reaction { card: EventId([7; 32]), author: OWNER, is_yes: true };
    for late in [control, reaction, local(1, "yes")] {
        assert_eq!(permits.decide(2, &late), (Status::AlreadyDecided, vec![]));
        assert_eq!(permits.ended(&late), Some(&Reason::Applied));
    }
}

#[test]
fn who_is_late_can_be_told_how_it_ended() {
    let reaction = Answer::Reaction { card: EventId([7; 32]), author: OWNER, is_yes: true };
    for reason in [Reason::TimedOut, Reason::Cancelled] {
        let mut permits = permits(Stance::Ask);
        permits.ask(0, origin(), &ask("q"), nonce(1));
        permits.published(&nonce(1), EventId([7; 32]));
        assert_eq!(permits.ended(&reaction), None, "it is open");
        let out =
            if reason == Reason::TimedOut { permits.tick(u64::MAX) } else { permits.end_turn(&TurnId("t".into())) };
        assert_eq!(out.len(), 2, "an answer, and the end of its card");
        assert_eq!([permits.ended(&reaction), permits.ended(&local(1, "yes"))], [Some(&reason); 2]);
        assert_eq!(permits.ended(&local(2, "yes")), None, "another");
    }
}

#[test]
fn answers_come_from_cli_control_frame_and_reaction() {
    let control = Answer::Control { nonce: nonce(1), channel: "c".into(), option: "yes".into() };
    let reaction = Answer::Reaction { card: EventId([7; 32]), author: OWNER, is_yes: true };
    for answer in [control, reaction, local(1, "yes")] {
        let mut permits = permits(Stance::Ask);
        permits.ask(0, origin(), &ask("q"), nonce(1));
        permits.published(&nonce(1), EventId([7; 32]));
        let (status, out) = permits.decide(1, &answer);
        assert_eq!((status, written(&out)), (Status::Sent, vec![(Some("yes"), Reason::Applied)]));
        assert!(matches!(&out[1], Effect::Close { card: Some(_), reason: Reason::Applied, .. }));
    }
}

#[test]
fn what_is_altered_foreign_or_unknown_is_no_answer() {
    let mut permits = permits(Stance::Ask);
    permits.ask(0, origin(), &ask("q"), nonce(1));
    permits.published(&nonce(1), EventId([7; 32]));
    let control = |nonce: Nonce, channel: &str, option: &str| Answer::Control {
        nonce,
        channel: channel.into(),
        option: option.into(),
    };
    for (answer, status) in [
        (control(nonce(2), "c", "yes"), Status::NoActiveTurn),
        (control(nonce(1), "d", "yes"), Status::NoChannel),
        (control(nonce(1), "c", "always"), Status::NoActiveTurn),
        (control(nonce(1), "c", "invented"), Status::NoActiveTurn),
        (Answer::Reaction { card: EventId([7; 32]), author: PubKey([9; 32]), is_yes: true }, Status::NoActiveTurn),
        (Answer::Reaction { card: EventId([8; 32]), author: OWNER, is_yes: true }, Status::NoActiveTurn),
    ] {
        assert_eq!(permits.decide(1, &answer), (status, vec![]), "{answer:?}");
    }
    assert_eq!(permits.decide(1, &local(1, "yes")).0, Status::Sent, "the question is still open");
}

#[test]
fn the_deadline_is_the_smaller_of_300_seconds_and_the_turns_end_and_then_it_is_denied() {
    for (turn_ends_ms, deadline) in [(u64::MAX, 300_000), (5_000, 5_000)] {
        let mut permits = permits(Stance::Ask);
        permits.ask(0, Origin { turn_ends_ms, ..origin() }, &ask("q"), nonce(1));
        assert_eq!(permits.wake_at(), Some(deadline));
        assert_eq!(permits.tick(deadline - 1), []);
        assert_eq!(written(&permits.tick(deadline)), [(Some("no"), Reason::TimedOut)]);
        assert_eq!(permits.decide(deadline, &local(1, "yes")), (Status::AlreadyDecided, vec![]));
    }
    // An answer that arrives at the deadline before the clock did is late, too.
    let mut permits = permits(Stance::Ask);
    permits.ask(0, origin(), &ask("q"), nonce(1));
    let (status, out) = permits.decide(300_000, &local(1, "yes"));
    assert_eq!((status, written(&out)), (Status::NoActiveTurn, vec![(Some("no"), Reason::TimedOut)]));
}

#[test]
fn the_end_of_a_turn_closes_its_questions_and_no_others() {
    let mut permits = permits(Stance::Ask);
    permits.ask(0, origin(), &ask("q"), nonce(1));
    let other = Origin { turn: TurnId("u".into()), ..origin() };
    permits.ask(0, other, &ask("q"), nonce(2));
    assert_eq!(written(&permits.end_turn(&TurnId("t".into()))), [(None, Reason::Cancelled)]);
    assert_eq!(permits.pending().count(), 1);
}

#[test]
fn questions_are_bounded_and_a_nonce_serves_once() {
    let mut permits = permits(Stance::Ask);
    for n in 0..limits::PERMITS_PENDING_MAX as u8 {
        permits.ask(0, origin(), &ask(&n.to_string()), nonce(n));
    }
    let out = permits.ask(0, origin(), &ask("more"), nonce(200));
    assert_eq!(written(&out), [(Some("no"), Reason::Rejected)]);
    permits.decide(1, &local(0, "yes"));
    let out = permits.ask(2, origin(), &ask("again"), nonce(0));
    assert_eq!(written(&out), [(Some("no"), Reason::Rejected)], "a nonce that was used");
}

proptest! {
    #[test]
    fn every_question_gets_exactly_one_answer_whatever_happens(
        acts in proptest::collection::vec((0u8..6, 0u8..8, 0u64..100_000), 0..60),
    ) {
        let mut permits = permits(Stance::Ask);
        let (mut now, mut asked, mut out) = (0, 0, Vec::new());
        for (act, n, wait) in acts {
            now += wait;
            match act {
                0 | 1 => {
                    asked += 1;
                    out.extend(permits.ask(now, origin(), &ask(&asked.to_string()), Nonce(format!("n{asked}"))));
                }
                2 | 3 => out.extend(permits.decide(now, &local(n, if act == 2 { "yes" } else { "always" })).1),
                4 => out.extend(permits.tick(now)),
                _ => out.extend(permits.end_turn(&origin().turn)),
            }
        }
        out.extend(permits.tick(u64::MAX));
        prop_assert_eq!(written(&out).len(), asked);
        prop_assert_eq!(permits.pending().count(), 0);
        let always = written(&out).iter().filter(|(option, _)| *option == Some("always")).count();
        prop_assert_eq!(always, 0);
    }
}

#[test]
fn of_a_sealed_question_it_is_known_as_long_as_the_question_is() {
    let mut permits = permits(Stance::Ask);
    for (n, is_sealed) in [(1, true), (2, false)] {
        let card = EventId([n; 32]);
        let nonce = Nonce(format!("nonce {n}"));
        permits.ask(0, Origin { is_sealed, turn: TurnId(n.to_string()), ..origin() }, &ask("r"), nonce.clone());
        permits.published(&nonce, card);
        assert_eq!(permits.is_sealed(&card), is_sealed);
        permits.end_turn(&TurnId(n.to_string()));
        assert_eq!((permits.knows(&card), permits.is_sealed(&card)), (true, is_sealed), "also decided");
    }
}
