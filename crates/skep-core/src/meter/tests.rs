//! The rules of the spec's section on metering, each by its name.

use super::*;
use proptest::prelude::*;
use skep_proto::agent::metering::Authority;

fn new_session(id: &str, is_new: bool) -> Session {
    Session { id: id.into(), is_new, program: "p".into(), ..Session::default() }
}

fn fresh_meter() -> Meter {
    let mut meter = Meter::new("skep", []);
    meter.open(&new_session("s", true), 1);
    meter
}

fn tokens(input: u64, output: u64) -> Counters {
    Counters { input: Some(input), output: Some(output), ..Counters::default() }
}

fn observed(scope: Scope, counters: Counters) -> Observed {
    let mut observed = Observed::default();
    observed.hear(&Usage { scope, counters });
    observed
}

fn measured(observed: Observed) -> Measured {
    Measured {
        session: Some("s".into()),
        turn_id: "t".into(),
        channel_id: None,
        model: Some("m".into()),
        stop: StopReason::EndTurn,
        ended_at: Moment(1_500),
        observed,
        pricing: None,
    }
}

fn publish(meter: &mut Meter, observed: Observed) -> TurnMetric {
    let (metric, _) = meter.measure(measured(observed), None).expect("something was observed");
    assert_eq!(metric.check(), Ok(()));
    metric
}

fn identity() -> PricingIdentity {
    PricingIdentity { authority: Authority::Anthropic, model: "m".into(), cache_class: None }
}

fn prices() -> PriceTable {
    let price = Price { input: 3.0, output: 15.0, cache_read: 0.3, cache_write: 3.75 };
    PriceTable { source: "list".into(), date: "2026-11-01".into(), rows: vec![(identity(), price)], others: None }
}

fn any_counters() -> impl Strategy<Value = Counters> {
    let count = || proptest::option::of(0u64..1_000_000);
    let cost = prop_oneof![Just(None), Just(Some(f64::NAN)), Just(Some(-1.0)), (0.0..100.0f64).prop_map(Some)];
    (count(), count(), count(), count(), count(), cost).prop_map(|(input, output, total, read, write, cost_usd)| {
        Counters { input, output, total, cache_read: read, cache_write: write, cost_usd }
    })
}

fn any_usage() -> impl Strategy<Value = Usage> {
    let scope = proptest::sample::select(vec![Scope::Call, Scope::Turn, Scope::Session]);
    (scope, any_counters()).prop_map(|(scope, counters)| Usage { scope, counters })
}

/// A turn as several words about usage; between turns sessions are opened anew, taken up, noted or forgotten.
fn any_turns() -> impl Strategy<Value = Vec<(u8, Vec<Usage>)>> {
    proptest::collection::vec((0u8..8, proptest::collection::vec(any_usage(), 0..4)), 1..20)
}

fn run(turns: &[(u8, Vec<Usage>)]) -> Vec<TurnMetric> {
    let mut meter = Meter::new("skep", []);
    let mut out = Vec::new();
    for (i, (what, usages)) in turns.iter().enumerate() {
        match what {
            0 => meter.open(&new_session("s", true), i as u64),
            1 => meter.open(&new_session("s", false), i as u64),
            2 => meter.forget("s"),
            3 => meter.note("s", Counters::default()),
            _ => {}
        }
        let mut observed = Observed::default();
        usages.iter().for_each(|usage| observed.hear(usage));
        out.extend(meter.measure(measured(observed), Some(&prices())).map(|(metric, _)| metric));
    }
    out
}

#[test]
fn no_metric_when_nothing_was_observed() {
    let mut meter = fresh_meter();
    assert_eq!(meter.measure(measured(Observed::default()), None), None);
    assert_eq!(meter.measure(measured(observed(Scope::Session, Counters::default())), None), None);
    assert_eq!(publish(&mut meter, observed(Scope::Turn, tokens(1, 1))).turn_seq, Some(1), "and no number is used up");
}

#[test]
fn a_cancelled_or_failed_turn_is_metered_when_usage_was_observed() {
    for stop in [StopReason::Cancelled, StopReason::Error] {
        let turn = Measured { stop, ..measured(observed(Scope::Turn, tokens(5, 0))) };
        let (metric, _) = fresh_meter().measure(turn, None).expect("usage was observed");
        assert_eq!((metric.stop_reason, metric.turn.input_tokens), (Some(stop), Some(5)));
    }
}

#[test]
fn created_at_is_the_timestamp_truncated() {
    let metric = publish(&mut fresh_meter(), observed(Scope::Turn, tokens(1, 1)));
    let key = skep_proto::PubKey([1; 32]);
    assert_eq!(metric.draft(&key, &key, String::new(), None).created_at, 1);
}

#[test]
fn a_lost_counter_starts_a_new_session_id() {
    let mut meter = fresh_meter();
    let before = publish(&mut meter, observed(Scope::Session, tokens(10, 1)));
    // A restart without the stored row, with a session that goes on.
    let mut restarted = Meter::new("skep", []);
    restarted.open(&new_session("s", false), 0xbee);
    let after = publish(&mut restarted, observed(Scope::Session, tokens(15, 2)));
    assert_eq!(after.session_id.as_deref(), Some("s~0000000000000bee"));
    assert_ne!(after.session_id, before.session_id);
}

#[test]
fn a_kept_counter_goes_on_after_a_restart() {
    let mut meter = fresh_meter();
    let turn = measured(observed(Scope::Session, tokens(10, 1)));
    let (_, row) = meter.measure(turn, None).expect("usage was observed");
    let row = serde_json::to_string(&row.expect("a series")).expect("it is stored");
    let mut restarted = Meter::new("skep", [("s".into(), serde_json::from_str(&row).expect("it is read"))]);
    restarted.open(&new_session("s", false), 7);
    let next = publish(&mut restarted, observed(Scope::Session, tokens(15, 2)));
    assert_eq!((next.session_id.as_deref(), next.turn_seq), (Some("s~0000000000000001"), Some(2)));
    assert_eq!((next.turn.input_tokens, next.delta_reliable), (Some(5), true));
}

#[test]
fn null_is_never_zero() {
    let mut meter = fresh_meter();
    let first = publish(&mut meter, observed(Scope::Session, Counters { input: Some(0), ..Counters::default() }));
    assert_eq!((first.turn.input_tokens, first.turn.output_tokens), (Some(0), None));
    // A call that does not tell its output makes the turn's output unknown, not smaller.
    let mut calls = observed(Scope::Call, tokens(10, 4));
    calls.hear(&Usage { scope: Scope::Call, counters: Counters { input: Some(3), ..Counters::default() } });
    assert_eq!(calls.turn(), Some(Counters { input: Some(13), ..Counters::default() }));
}

#[test]
fn a_negative_delta_nulls_the_turn_and_says_so() {
    let mut meter = fresh_meter();
    let full = |input, cost| Counters { cost_usd: Some(cost), ..tokens(input, 5) };
    publish(&mut meter, observed(Scope::Session, full(100, 1.0)));
    for (counters, seq) in [(full(99, 2.0), 2), (full(200, 0.5), 3)] {
        let metric = publish(&mut meter, observed(Scope::Session, counters));
        assert_eq!((metric.turn, metric.delta_reliable), (Tally::default(), false));
        assert_eq!((metric.turn_seq, metric.cumulative), (Some(seq), Some(tally(&counters))));
    }
    let after = publish(&mut meter, observed(Scope::Session, full(210, 0.75)));
    assert_eq!((after.turn.input_tokens, after.turn.cost_usd, after.delta_reliable), (Some(10), Some(0.25), true));
}

#[test]
fn a_missing_baseline_nulls_the_turn_and_says_so() {
    let mut meter = Meter::new("skep", []);
    meter.open(&new_session("s", false), 1);
    let metric = publish(&mut meter, observed(Scope::Session, tokens(100, 5)));
    assert_eq!((metric.turn, metric.delta_reliable), (Tally::default(), false));
    assert_eq!(metric.cumulative.and_then(|tally| tally.input_tokens), Some(100));
}

#[test]
fn usage_between_turns_moves_the_baseline_only() {
    let mut meter = fresh_meter();
    publish(&mut meter, observed(Scope::Session, tokens(100, 5)));
    meter.note("s", tokens(150, 6));
    let metric = publish(&mut meter, observed(Scope::Session, tokens(160, 7)));
    assert_eq!((metric.turn.input_tokens, metric.turn_seq), (Some(10), Some(2)));
}

#[test]
fn no_diff_across_sessions() {
    let mut meter = fresh_meter();
    let before = publish(&mut meter, observed(Scope::Session, tokens(100, 5)));
    // The backend begins anew and gives the same id again: `session-1` after a restart.
    meter.open(&new_session("s", true), 9);
    let metric = publish(&mut meter, observed(Scope::Session, tokens(120, 6)));
    assert_eq!(metric.turn.input_tokens, Some(120));
    assert_ne!(metric.session_id, before.session_id);
    assert_eq!(metric.turn_seq, Some(1));
}

#[test]
fn a_cost_missing_on_one_side_is_null_and_the_tokens_stay() {
    let mut meter = fresh_meter();
    publish(&mut meter, observed(Scope::Session, tokens(100, 5)));
    let metric = publish(&mut meter, observed(Scope::Session, Counters { cost_usd: Some(1.0), ..tokens(110, 6) }));
    assert_eq!((metric.turn.input_tokens, metric.turn.cost_usd, metric.delta_reliable), (Some(10), None, true));
    assert_eq!(metric.cost_basis, Some(CostBasis::Reported));
}

#[test]
fn tokens_of_the_turn_and_cost_of_the_session_stand_beside_each_other() {
    // ACP: usage at the end of a turn, cost in the session's updates.
    let mut both = observed(Scope::Turn, tokens(10, 2));
    both.hear(&Usage { scope: Scope::Session, counters: Counters { cost_usd: Some(0.5), ..Counters::default() } });
    let metric = publish(&mut fresh_meter(), both);
    assert_eq!((metric.turn.input_tokens, metric.turn.cost_usd), (Some(10), Some(0.5)));
    assert_eq!(metric.cumulative.and_then(|tally| tally.cost_usd), Some(0.5));
}

#[test]
fn a_cost_is_reported_or_estimated_and_labelled() {
    let measure = |counters, pricing| {
        let turn = Measured { pricing, ..measured(observed(Scope::Turn, counters)) };
        fresh_meter().measure(turn, Some(&prices())).expect("observed").0
    };
    let reported = measure(Counters { cost_usd: Some(9.0), ..tokens(1_000_000, 0) }, Some(identity()));
    assert_eq!((reported.turn.cost_usd, reported.cost_basis), (Some(9.0), Some(CostBasis::Reported)));
    let cached = Counters { cache_read: Some(500_000), cache_write: Some(100_000), ..tokens(1_000_000, 100_000) };
    let estimated = measure(cached, Some(identity()));
    let usd = estimated.turn.cost_usd.expect("a price is listed");
    assert!((usd - (0.4 * 3.0 + 0.1 * 15.0 + 0.5 * 0.3 + 0.1 * 3.75)).abs() < 1e-9, "{usd}");
    assert_eq!(estimated.cost_basis, Some(prices().basis()));
    let uncertain = measure(tokens(1_000_000, 0), None);
    assert_eq!((uncertain.turn.cost_usd, uncertain.cost_basis), (None, None), "no price by the model's name alone");
    let half = measure(Counters { output: None, ..tokens(1_000_000, 0) }, Some(identity()));
    assert_eq!(half.turn.cost_usd, None, "tokens that are unknown have no price");
}

#[test]
fn a_turn_without_a_session_has_no_series() {
    let turn = Measured { session: None, ..measured(observed(Scope::Session, tokens(1, 1))) };
    assert_eq!(fresh_meter().measure(turn, None), None, "whose cumulative counters these are is unknown");
    let turn = Measured { session: None, ..measured(observed(Scope::Turn, tokens(1, 1))) };
    let (metric, row) = fresh_meter().measure(turn, None).expect("observed");
    assert_eq!((metric.session_id, metric.turn_seq, metric.cumulative, row), (None, None, None, None));
}

proptest! {
    #[test]
    fn turn_seq_strictly_increases_per_session(turns in any_turns()) {
        let mut last = std::collections::HashMap::new();
        for metric in run(&turns) {
            if let (Some(session), Some(seq)) = (metric.session_id, metric.turn_seq) {
                let before = last.insert(session, seq);
                prop_assert!(before.is_none_or(|before| before < seq));
            }
        }
    }

    #[test]
    fn every_metric_is_valid_and_no_counter_is_negative_or_invented(turns in any_turns()) {
        for metric in run(&turns) {
            prop_assert_eq!(metric.check(), Ok(()));
            prop_assert!(metric.delta_reliable || !metric.turn.is_observed(), "unreliable counters are null");
            let has_cost = metric.turn.cost_usd.is_some() || metric.cumulative.is_some_and(|t| t.cost_usd.is_some());
            prop_assert_eq!(metric.cost_basis.is_some(), has_cost, "a cost has its label");
        }
    }

    #[test]
    fn cumulative_needs_session_id_and_turn_seq(turns in any_turns()) {
        for metric in run(&turns) {
            prop_assert!(metric.cumulative.is_none() || (metric.session_id.is_some() && metric.turn_seq.is_some()));
        }
    }

    #[test]
    fn totals_are_never_summed(mut turns in any_turns()) {
        turns.iter_mut().flat_map(|(_, usages)| usages).for_each(|usage| usage.counters.total = None);
        for metric in run(&turns) {
            prop_assert_eq!(metric.turn.total_tokens, None);
            prop_assert_eq!(metric.cumulative.and_then(|tally| tally.total_tokens), None);
        }
    }

    #[test]
    fn cache_reads_and_writes_are_parts_of_the_input(usage in any_usage()) {
        let heard = observed(usage.scope, usage.counters);
        let counters = heard.turn().or(heard.session()).unwrap_or_default();
        let parts = counters.cache_read.unwrap_or(0) + counters.cache_write.unwrap_or(0);
        prop_assert!(counters.input.is_none_or(|input| parts <= input));
        prop_assert_eq!(counters.input, usage.counters.input);
    }

    #[test]
    fn the_turns_of_a_growing_series_add_up_to_its_end(steps in proptest::collection::vec((0u64..1_000, 0u64..1_000), 1..20)) {
        let mut meter = fresh_meter();
        let (mut input, mut output, mut sum) = (0, 0, (0, 0));
        for (more_in, more_out) in steps {
            (input, output) = (input + more_in, output + more_out);
            let metric = publish(&mut meter, observed(Scope::Session, tokens(input, output)));
            prop_assert!(metric.delta_reliable);
            sum.0 += metric.turn.input_tokens.unwrap_or(0);
            sum.1 += metric.turn.output_tokens.unwrap_or(0);
        }
        prop_assert_eq!(sum, (input, output));
    }
}
