//! The rules of [`super`], each by its name.

use super::*;
use proptest::prelude::*;

const AGENT: PubKey = PubKey([1; 32]);
const DAY: Timestamp = DAY_SECS;

fn budget(limits: Limits) -> Budget {
    let mut budget = Budget::new();
    budget.set(Scope::Agent(AGENT), limits);
    budget
}

fn turn(n: usize) -> TurnId {
    TurnId(n.to_string())
}

fn reserve(budget: &mut Budget, now: Timestamp, n: usize) -> Result<(), Limit> {
    budget.reserve(now, &turn(n), AGENT, None).map_err(|exhausted| exhausted.limit)
}

fn usd(usd: f64) -> Spent {
    Spent { usd: Some(usd), tokens: None }
}

const USD_DAY: Limits =
    Limits { usd_per_day: Some(1.0), tokens_per_day: None, usd_per_turn: Some(0.4), turns_per_hour: None };

#[test]
fn an_estimate_is_the_cap_or_a_tenth_of_the_day_and_then_the_recent_median() {
    let mut budget = budget(USD_DAY);
    let set_aside = |budget: &mut Budget| budget.today(0, &Scope::Agent(AGENT)).1.usd;
    assert_eq!(reserve(&mut budget, 0, 1), Ok(()));
    assert_eq!(set_aside(&mut budget), 100_000);
    assert_eq!(reserve(&mut budget, 0, 2), Ok(()));
    budget.settle(0, &turn(1), usd(0.3));
    budget.settle(0, &turn(2), usd(0.35));
    assert_eq!(set_aside(&mut budget), 0);
    assert_eq!(reserve(&mut budget, 0, 3), Ok(()));
    assert_eq!(set_aside(&mut budget), 350_000);
    assert_eq!(reserve(&mut budget, 0, 4), Err(Limit::UsdPerDay), "0.65 are spent and 0.35 set aside of 1");
    let mut much = self::budget(Limits { usd_per_day: Some(100.0), ..USD_DAY });
    assert_eq!(reserve(&mut much, 0, 1), Ok(()));
    assert_eq!(set_aside(&mut much), 400_000, "no more than one turn may cost");
}

#[test]
fn what_is_not_known_costs_what_was_set_aside_and_at_most_a_tenth_of_the_day() {
    let mut budget = budget(USD_DAY);
    for n in 0..10 {
        assert_eq!(reserve(&mut budget, 0, n), Ok(()));
        let stored = budget.settle(0, &turn(n), Spent::default()).expect("it was reserved");
        assert_eq!(stored.spent.usd, 100_000);
    }
    assert_eq!(reserve(&mut budget, 0, 10), Err(Limit::UsdPerDay));
    for (known, charged) in [(0.02, 20_000), (0.35, 100_000)] {
        let mut budget = self::budget(USD_DAY);
        reserve(&mut budget, 0, 1).expect("the first");
        budget.settle(0, &turn(1), usd(known));
        reserve(&mut budget, 0, 2).expect("the second");
        let stored = budget.settle(0, &turn(2), Spent::default()).expect("it was reserved");
        assert_eq!(stored.spent.usd, charged, "the median, or the tenth");
    }
}

#[test]
fn a_turn_of_which_nothing_is_known_takes_a_tenth_of_each_account_that_pays() {
    let tokens = |most| Limits { tokens_per_day: Some(most), ..Limits::default() };
    let shared = Shared { fleet: tokens(10_000), task: tokens(100) };
    let mut budget = shared.budget(10, Some("t"), []);
    budget.reserve(10, &turn(1), AGENT, Some("t".into())).expect("the first");
    let of = |budget: &mut Budget, scope| budget.today(10, &scope);
    assert_eq!(of(&mut budget, Scope::Fleet).1.tokens, 1_000);
    assert_eq!(of(&mut budget, Scope::Task("t".into())).1.tokens, 10);
    budget.settle(10, &turn(1), Spent::default()).expect("it was reserved");
    assert_eq!(of(&mut budget, Scope::Fleet), (Amount { usd: 0, tokens: 1_000 }, Amount::default()));
    assert_eq!(of(&mut budget, Scope::Task("t".into())), (Amount { usd: 0, tokens: 10 }, Amount::default()));
    budget.reserve(10, &turn(2), AGENT, Some("t".into())).expect("there is enough for others");
}

#[test]
fn the_owner_is_told_once_for_each_limit_and_day() {
    let mut budget = budget(Limits { usd_per_day: Some(0.0), ..Limits::default() });
    let mut ask = |now| budget.reserve(now, &turn(1), AGENT, None).expect_err("nothing may be spent");
    let first = ask(5);
    assert_eq!((first.limit, first.until, first.is_news), (Limit::UsdPerDay, DAY, true));
    assert!(!ask(6).is_news);
    assert!(ask(DAY).is_news);
}

#[test]
fn a_new_day_begins_with_nothing_spent() {
    let mut budget = budget(USD_DAY);
    reserve(&mut budget, 0, 1).expect("the first");
    budget.settle(DAY - 1, &turn(1), usd(0.9));
    assert_eq!(reserve(&mut budget, DAY - 1, 2), Err(Limit::UsdPerDay));
    assert_eq!(reserve(&mut budget, DAY, 2), Ok(()));
}

#[test]
fn without_anything_to_go_by_ten_turns_may_run_beside_each_other() {
    let mut budget = budget(Limits { tokens_per_day: Some(1_000), ..Limits::default() });
    assert!((0..10).all(|n| reserve(&mut budget, 0, n).is_ok()));
    assert_eq!(reserve(&mut budget, 0, 10), Err(Limit::TokensPerDay));
    budget.settle(0, &turn(1), Spent { usd: None, tokens: Some(50) });
    assert_eq!(reserve(&mut budget, 0, 10), Ok(()), "the other half of a tenth is left, and the median is no more");
    assert_eq!(reserve(&mut budget, 0, 11), Err(Limit::TokensPerDay));
}

#[test]
fn what_is_set_aside_is_waited_for_and_is_no_news() {
    let mut budget = budget(Limits { tokens_per_day: Some(1_000), ..Limits::default() });
    assert!((10..20).all(|n| reserve(&mut budget, 10, n).is_ok()));
    let waits = budget.reserve(10, &turn(2), AGENT, None).expect_err("all is set aside");
    assert_eq!((waits.is_aside, waits.is_news), (true, false));
    assert!((11..100).contains(&waits.until), "{waits}");
    budget.settle(20, &turn(10), Spent { usd: None, tokens: Some(1_000) });
    let full = budget.reserve(20, &turn(2), AGENT, None).expect_err("all is spent");
    assert_eq!((full.is_aside, full.is_news, full.until), (false, true, DAY));
}

#[test]
fn very_many_tasks_are_forgotten_but_not_the_one_that_is_asked_about_or_runs() {
    let mut budget = Budget::new();
    let once = Limits { turns_per_hour: Some(1), ..Limits::default() };
    let mut ask = |n: usize| {
        let task = n.to_string();
        budget.set(Scope::Task(task.clone()), once);
        budget.reserve(0, &turn(n), AGENT, Some(task)).expect("its first");
        if n > 0 {
            budget.settle(0, &turn(n), Spent::default());
        }
        budget.accounts.len()
    };
    let most = (0..10_000).map(&mut ask).max().expect("some");
    assert!(most <= limits::TASK_ACCOUNTS_MAX + 2, "{most}");
    let again = |budget: &mut Budget, task: &str| budget.reserve(0, &turn(0), AGENT, Some(task.into())).is_err();
    assert!(again(&mut budget, "0") && again(&mut budget, "9999"), "what runs, and the last");
}

#[test]
fn a_refusal_names_whose_limit_it_is() {
    let refusal =
        |scope| Exhausted { scope, limit: Limit::UsdPerDay, until: 0, is_aside: false, is_news: true }.to_string();
    let end = "is used up until 1970-01-01T00:00:00.000Z";
    assert_eq!(refusal(Scope::Agent(AGENT)), format!("budget: usd_per_day {end}"));
    assert_eq!(refusal(Scope::Task("T1".into())), format!("budget: usd_per_day of task T1 {end}"));
    assert_eq!(refusal(Scope::Fleet), format!("budget: usd_per_day of the fleet {end}"));
}

#[test]
fn entries_of_a_home_count_those_that_ended_those_that_run_and_those_that_were_lost() {
    let shared = Shared { fleet: Limits { tokens_per_day: Some(100), ..Limits::default() }, task: Limits::default() };
    let charge = |tokens| Charge { agent: AGENT, task: None, at: 10, spent: Amount { usd: 0, tokens }, of_task: None };
    let entry = |n, tokens, is_open| Entry {
        turn: turn(n),
        began: 10,
        charge: charge(tokens),
        known: Spent::default(),
        is_open,
    };
    let mut entries = vec![entry(1, 50, true), entry(2, 40, true), entry(3, 40, true)];
    let end = |n, spent| End { turn: turn(n), at: 20, spent };
    let changed = shared.end(&mut entries, &end(1, Some(Spent { usd: None, tokens: Some(30) })));
    assert_eq!(changed, Some(Change::Put(entries[0].clone())));
    assert_eq!((entries[0].charge.spent.tokens, entries[0].is_open), (30, false));
    assert_eq!(shared.end(&mut entries, &end(3, None)), Some(Change::Remove(turn(3))));
    assert_eq!((shared.end(&mut entries, &end(1, None)), entries.len()), (None, 2), "it has ended");
    let mut soon = shared.budget(30, None, entries.clone());
    assert_eq!(soon.today(30, &Scope::Fleet), (Amount { usd: 0, tokens: 30 }, Amount { usd: 0, tokens: 40 }));
    let later = 10 + 3 * 3_600;
    let mut lost = shared.budget(later, None, entries);
    assert_eq!(lost.today(later, &Scope::Fleet), (Amount { usd: 0, tokens: 40 }, Amount::default()));
}

#[test]
fn a_running_turn_that_passes_its_cap_is_to_be_cancelled_and_the_next_may_begin() {
    let mut budget = budget(USD_DAY);
    reserve(&mut budget, 0, 1).expect("the first");
    assert_eq!(budget.overspent(&turn(1), 0.4), None);
    assert_eq!(budget.overspent(&turn(1), 0.41), Some(Scope::Agent(AGENT)));
    assert_eq!(budget.overspent(&turn(9), 99.0), None);
    budget.settle(0, &turn(1), usd(0.5));
    assert_eq!(reserve(&mut budget, 0, 2), Ok(()), "an expensive turn does not end the agent for ever");
}

#[test]
fn turns_are_limited_by_the_last_hour() {
    let mut budget = budget(Limits { turns_per_hour: Some(2), ..Limits::default() });
    reserve(&mut budget, 10, 1).expect("the first");
    reserve(&mut budget, 20, 2).expect("the second");
    let exhausted = budget.reserve(30, &turn(3), AGENT, None).expect_err("the third");
    assert_eq!((exhausted.limit, exhausted.until), (Limit::TurnsPerHour, 3_610));
    assert_eq!(reserve(&mut budget, 3_610, 3), Ok(()));
    budget.cancel(&turn(3));
    assert_eq!(reserve(&mut budget, 3_610, 4), Ok(()), "one that never began was none");
}

#[test]
fn agent_task_and_fleet_all_have_to_agree_and_one_refusal_takes_nothing() {
    let mut budget = Budget::new();
    budget.set(Scope::Fleet, Limits { turns_per_hour: Some(1), ..Limits::default() });
    budget.set(Scope::Task("t".into()), Limits { usd_per_day: Some(1.0), ..Limits::default() });
    budget.reserve(0, &turn(1), AGENT, Some("t".into())).expect("the first");
    let other = PubKey([2; 32]);
    let exhausted = budget.reserve(0, &turn(2), other, None).expect_err("the fleet's hour is full");
    assert_eq!(exhausted.scope, Scope::Fleet);
    assert_eq!(budget.today(0, &Scope::Agent(other)), Default::default());
    assert_eq!(budget.today(0, &Scope::Task("t".into())).1.usd, 100_000);
}

#[test]
fn what_was_spent_before_a_restart_still_counts() {
    let mut before = budget(USD_DAY);
    reserve(&mut before, 0, 1).expect("the first");
    let stored = before.settle(10, &turn(1), usd(0.9)).expect("it was reserved");
    let json = serde_json::to_string(&stored).expect("it is stored");
    let mut after = budget(USD_DAY);
    after.restore(0, &serde_json::from_str(&json).expect("it is read"), usd(0.9));
    assert_eq!(reserve(&mut after, 20, 2), Err(Limit::UsdPerDay));
    let mut hourly = budget(Limits { turns_per_hour: Some(1), ..Limits::default() });
    hourly.restore(0, &stored, usd(0.9));
    let exhausted = hourly.reserve(20, &turn(2), AGENT, None).expect_err("one in an hour");
    assert_eq!(exhausted.to_string(), "budget: turns_per_hour is used up until 1970-01-01T01:00:00.000Z");
    assert_eq!(reserve(&mut hourly, 3_600, 2), Ok(()));
    assert_eq!(hourly.reserved(&turn(2)).map(|charge| charge.spent.usd), Some(900_000), "as the one before");
}

#[test]
fn an_amount_that_is_none_is_unknown_and_a_limit_that_is_none_lets_nothing_through() {
    let mut budget = budget(USD_DAY);
    reserve(&mut budget, 0, 1).expect("the first");
    assert_eq!(budget.settle(0, &turn(1), usd(f64::NAN)).map(|charge| charge.spent.usd), Some(100_000));
    let mut broken = self::budget(Limits { usd_per_day: Some(f64::NAN), ..Limits::default() });
    assert_eq!(reserve(&mut broken, 0, 1), Err(Limit::UsdPerDay));
}

proptest! {
    #[test]
    fn what_is_spent_and_set_aside_never_passes_the_days_limit_when_turns_keep_to_their_estimate(
        acts in proptest::collection::vec((any::<bool>(), 0usize..6, 0.0..0.4f64, 0u64..20_000), 1..80),
    ) {
        let mut budget = budget(USD_DAY);
        let (mut now, mut open) = (0, BTreeMap::new());
        for (is_begin, n, cost, wait) in acts {
            now += wait;
            if is_begin && !open.contains_key(&n) {
                let before = budget.today(now, &Scope::Agent(AGENT)).1.usd;
                if reserve(&mut budget, now, n).is_ok() {
                    let set_aside = budget.today(now, &Scope::Agent(AGENT)).1.usd - before;
                    open.insert(n, set_aside);
                    let (spent, reserved) = budget.today(now, &Scope::Agent(AGENT));
                    prop_assert!(spent.usd + reserved.usd <= 1_000_000);
                }
            } else if let Some(set_aside) = open.remove(&n) {
                let cost = (cost * 1e6).floor().min(set_aside as f64) / 1e6;
                budget.settle(now, &turn(n), usd(cost));
            }
        }
        for n in open.into_keys() {
            budget.cancel(&turn(n));
        }
        prop_assert_eq!(budget.today(now, &Scope::Agent(AGENT)).1, Amount::default(), "nothing stays set aside");
    }
}
