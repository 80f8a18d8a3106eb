//! What was used, read from turn metrics (NIP-AM): the owner's side of [`crate::meter`], for `skep usage` and budgets.
//!
//! Must not: order by `created_at`, compare one session with another, take unknown for zero, or add reported costs to
//! estimated ones.

use std::collections::BTreeMap;

use skep_proto::agent::metering::{CostBasis, Tally, TurnMetric};
use skep_proto::{EventId, PubKey};

use crate::backend::Counters;
use crate::meter::{counters, difference};

/// A metric as it was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    pub event: EventId,
    pub agent: PubKey,
    pub metric: TurnMetric,
}

/// What one metric says was used.
#[derive(Debug, Clone, PartialEq)]
pub struct Spent {
    pub reading: Reading,
    pub counters: Counters,
    pub how: How,
}

/// How much the counters of a [`Spent`] are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// From two neighbours of a series.
    Recomputed,
    /// From neighbours with this many metrics missing between them, whose usage is in it.
    Spans(u64),
    /// As its publisher said.
    Published,
    /// There was a turn, and what it used is not known.
    Unknown,
}

/// What each metric adds. Doubles by event id, and by place in a series, count once. In order of series, then turns.
pub fn recompute(readings: impl IntoIterator<Item = Reading>) -> Vec<Spent> {
    let mut series: BTreeMap<(PubKey, String), BTreeMap<u64, Reading>> = BTreeMap::new();
    let mut loose: BTreeMap<EventId, Reading> = BTreeMap::new();
    for reading in readings {
        match (&reading.metric.session_id, reading.metric.turn_seq) {
            (Some(session), Some(seq)) => {
                let slot = series.entry((reading.agent, session.clone())).or_default().entry(seq);
                // Of two that claim one place, the smaller id stands, whichever came first.
                slot.and_modify(|kept| {
                    if reading.event < kept.event {
                        *kept = reading.clone();
                    }
                })
                .or_insert(reading);
            }
            _ => drop(loose.insert(reading.event, reading)),
        }
    }
    let in_series = series.into_values().flat_map(recompute_series);
    in_series.chain(loose.into_values().map(as_published)).collect()
}

fn recompute_series(series: BTreeMap<u64, Reading>) -> Vec<Spent> {
    let mut before: Option<(u64, Tally, Option<CostBasis>)> = None;
    let mut out = Vec::with_capacity(series.len());
    for (seq, reading) in series {
        let next = reading.metric.cumulative.map(|tally| (seq, tally, reading.metric.cost_basis.clone()));
        out.push(match (&before, &next) {
            (Some(before), Some(now)) => between(before, now, reading),
            _ => as_published(reading),
        });
        // A metric without cumulative counters breaks no series: the next difference spans it.
        before = next.or(before);
    }
    out
}

fn between(
    (seq_before, before, basis_before): &(u64, Tally, Option<CostBasis>),
    (seq, now, basis): &(u64, Tally, Option<CostBasis>),
    reading: Reading,
) -> Spent {
    let (mut before, now) = (counters(before), counters(now));
    if basis_before != basis {
        before.cost_usd = None;
    }
    let gap = seq - seq_before - 1;
    match difference(&before, &now) {
        None => Spent { reading, counters: Counters::default(), how: How::Unknown },
        Some(counters) if gap > 0 => Spent { reading, counters, how: How::Spans(gap) },
        Some(counters) => {
            // What the series does not tell, the publisher may have observed by itself.
            let published = published(&reading.metric);
            let counters = Counters {
                input: counters.input.or(published.input),
                output: counters.output.or(published.output),
                total: counters.total.or(published.total),
                cache_read: counters.cache_read.or(published.cache_read),
                cache_write: counters.cache_write.or(published.cache_write),
                cost_usd: counters.cost_usd.or(published.cost_usd),
            };
            Spent { reading, counters, how: How::Recomputed }
        }
    }
}

fn as_published(reading: Reading) -> Spent {
    let how =
        if reading.metric.delta_reliable && reading.metric.turn.is_observed() { How::Published } else { How::Unknown };
    Spent { counters: published(&reading.metric), reading, how }
}

fn published(metric: &TurnMetric) -> Counters {
    if metric.delta_reliable { counters(&metric.turn) } else { Counters::default() }
}

/// A sum, and for how many turns the number was unknown.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sum {
    pub known: u64,
    pub unknown_turns: u64,
}

/// Everything of one group. Costs stand apart by their basis.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Total {
    pub turns: u64,
    pub input: Sum,
    /// Parts of the input that came from a cache.
    pub cached: Sum,
    pub output: Sum,
    pub total: Sum,
    pub reported_usd: f64,
    pub estimated_usd: f64,
    /// From publishers that do not say where a cost comes from.
    pub unlabelled_usd: f64,
    pub cost_unknown_turns: u64,
}

impl Sum {
    fn add(&mut self, count: Option<u64>) {
        match count {
            Some(count) => self.known = self.known.saturating_add(count),
            None => self.unknown_turns += 1,
        }
    }
}

impl Total {
    pub fn add(&mut self, spent: &Spent) {
        self.turns += 1;
        self.input.add(spent.counters.input);
        self.cached.add(spent.counters.cache_read);
        self.output.add(spent.counters.output);
        self.total.add(spent.counters.total);
        match (spent.counters.cost_usd, &spent.reading.metric.cost_basis) {
            (None, _) => self.cost_unknown_turns += 1,
            (Some(usd), Some(CostBasis::Reported)) => self.reported_usd += usd,
            (Some(usd), Some(CostBasis::Estimated { .. })) => self.estimated_usd += usd,
            (Some(usd), None) => self.unlabelled_usd += usd,
        }
    }
}

/// Totals by agent, model, day, channel, or whatever `key` says.
pub fn total_by<'a, K: Ord>(
    spent: impl IntoIterator<Item = &'a Spent>,
    key: impl Fn(&Spent) -> K,
) -> BTreeMap<K, Total> {
    let mut totals: BTreeMap<K, Total> = BTreeMap::new();
    for one in spent {
        totals.entry(key(one)).or_default().add(one);
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use skep_proto::time::Moment;

    fn tally(input: Option<u64>, cost_usd: Option<f64>) -> Tally {
        Tally { input_tokens: input, cost_usd, ..Tally::default() }
    }

    fn reading(id: u8, session: &str, seq: u64, turn: Tally, cumulative: Option<Tally>) -> Reading {
        let metric = TurnMetric {
            harness: "x".into(),
            timestamp: Moment(0),
            model: None,
            channel_id: None,
            session_id: Some(session.into()),
            turn_id: None,
            turn_seq: Some(seq),
            turn,
            cumulative,
            delta_reliable: turn.is_observed(),
            stop_reason: None,
            pricing_identity: None,
            cost_basis: None,
            triggering_event_ids: Vec::new(),
            root_event_id: None,
            task: None,
        };
        Reading { event: EventId([id; 32]), agent: PubKey([1; 32]), metric }
    }

    fn step(id: u8, seq: u64, cumulative: u64) -> Reading {
        reading(id, "s", seq, Tally::default(), Some(tally(Some(cumulative), None)))
    }

    fn inputs(readings: Vec<Reading>) -> Vec<(Option<u64>, How)> {
        recompute(readings).into_iter().map(|spent| (spent.counters.input, spent.how)).collect()
    }

    #[test]
    fn a_series_is_ordered_by_turn_seq_and_a_gap_is_spanned() {
        let readings = vec![step(3, 5, 90), step(1, 1, 10), step(2, 2, 30)];
        let expected = [(None, How::Unknown), (Some(20), How::Recomputed), (Some(60), How::Spans(2))];
        assert_eq!(inputs(readings), expected);
    }

    #[test]
    fn a_decreasing_series_is_unknown_never_negative() {
        let readings = vec![step(1, 1, 10), step(2, 2, 4), step(3, 3, 9)];
        assert_eq!(inputs(readings)[1..], [(None, How::Unknown), (Some(5), How::Recomputed)]);
    }

    #[test]
    fn sessions_are_not_compared_and_doubles_count_once() {
        let other = reading(9, "other", 2, Tally::default(), Some(tally(Some(500), None)));
        let mut double = step(7, 2, 77);
        double.event = EventId([8; 32]);
        let readings = vec![step(1, 1, 10), step(2, 2, 30), step(2, 2, 30), double, other];
        let expected = [(None, How::Unknown), (None, How::Unknown), (Some(20), How::Recomputed)];
        assert_eq!(inputs(readings), expected);
    }

    #[test]
    fn what_the_series_does_not_tell_is_taken_from_the_publisher() {
        let acp = |id, seq, tokens, cost| {
            reading(id, "s", seq, tally(Some(tokens), Some(1.0)), Some(tally(None, Some(cost))))
        };
        let spent = recompute([acp(1, 1, 10, 1.0), acp(2, 2, 20, 3.0)]);
        assert_eq!((spent[1].counters.input, spent[1].counters.cost_usd), (Some(20), Some(2.0)));
    }

    #[test]
    fn reported_estimated_and_unlabelled_costs_are_never_mixed() {
        let with = |id, basis| {
            let mut reading = reading(id, "s", id.into(), tally(Some(1), Some(2.0)), None);
            reading.metric.cost_basis = basis;
            reading
        };
        let estimated = CostBasis::Estimated { source: "list".into(), date: "2026-11-01".into() };
        let spent = recompute([with(1, Some(CostBasis::Reported)), with(2, Some(estimated)), with(3, None)]);
        let totals = total_by(&spent, |_| ());
        let total = &totals[&()];
        assert_eq!((total.reported_usd, total.estimated_usd, total.unlabelled_usd), (2.0, 2.0, 2.0));
        assert_eq!((total.turns, total.output.unknown_turns, total.output.known), (3, 3, 0));
    }

    #[test]
    fn a_cost_is_not_compared_with_one_of_another_basis() {
        let with = |id, cost, basis| {
            let mut reading = reading(id, "s", id.into(), Tally::default(), Some(tally(Some(id.into()), Some(cost))));
            reading.metric.cost_basis = basis;
            reading
        };
        let spent = recompute([with(1, 1.0, None), with(2, 5.0, Some(CostBasis::Reported))]);
        assert_eq!((spent[1].counters.input, spent[1].counters.cost_usd), (Some(1), None));
    }

    proptest! {
        #[test]
        fn the_sum_of_a_series_is_its_growth_whatever_is_missing_and_in_whatever_order(
            steps in proptest::collection::vec((0u64..1_000, any::<bool>(), any::<u32>()), 2..30),
        ) {
            let mut at = 0;
            let mut readings = Vec::new();
            for (i, (more, is_lost, order)) in steps.iter().enumerate() {
                at += more;
                if !is_lost {
                    readings.push((*order, step(i as u8, i as u64, at), at));
                }
            }
            let growth = readings.last().map_or(0, |(_, _, at)| *at) - readings.first().map_or(0, |(_, _, at)| *at);
            readings.sort_by_key(|(order, _, _)| *order);
            let spent = recompute(readings.into_iter().map(|(_, reading, _)| reading));
            let sum: u64 = spent.iter().filter_map(|spent| spent.counters.input).sum();
            prop_assert_eq!(sum, growth);
        }
    }
}
