//! Turn metrics (NIP-AM): from what a backend says about its usage to what its owner is told, once a turn.
//!
//! Job: keep one series of counters for each session, and say what of a turn is known. Lives as long as its agent; the
//! shell stores each [`Series`] before it publishes the metric that came with it, so that no number is given twice.
//! Must not: take unknown for zero, add counters to a total, or compare one session with another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skep_proto::agent::metering::{CostBasis, PricingIdentity, StopReason, Tally, TurnMetric};
use skep_proto::time::Moment;

use crate::backend::{Counters, Scope, Session, Usage};

/// What a backend said about its usage during one turn.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Observed {
    calls: Option<Counters>,
    turn: Option<Counters>,
    session: Option<Counters>,
}

impl Observed {
    pub fn hear(&mut self, usage: &Usage) {
        let counters = sane(usage.counters);
        match usage.scope {
            Scope::Call => self.calls = Some(self.calls.map_or(counters, |sum| add(&sum, &counters))),
            Scope::Turn => self.turn = Some(counters),
            Scope::Session => self.session = Some(counters),
        }
    }

    /// Of the turn by itself: what was said of it as a whole, or else its calls together.
    pub fn turn(&self) -> Option<Counters> {
        self.turn.or(self.calls)
    }

    /// Of the session so far, as it was last said.
    pub fn session(&self) -> Option<Counters> {
        self.session
    }
}

/// What the next cumulative counters of a session are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// We saw the session begin, so nothing was used yet.
    Zero,
    /// Nobody told.
    Unknown,
    Counters(Counters),
}

/// One session's counters, as the shell keeps them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The `sessionId` of its metrics: the backend's own id, and what makes it one series only.
    pub name: String,
    /// The `turnSeq` of the newest metric; 0 before the first.
    pub seq: u64,
    pub baseline: Baseline,
}

/// The facts about a turn that ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The backend's session id; `None` when it never opened one.
    pub session: Option<String>,
    pub turn_id: String,
    pub channel_id: Option<String>,
    pub model: Option<String>,
    pub stop: StopReason,
    pub ended_at: Moment,
    pub observed: Observed,
    /// Who bills it as what, where that is certain.
    pub pricing: Option<PricingIdentity>,
}

/// US dollars for a million tokens of each sort.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Price {
    pub input: f64,
    pub output: f64,
    pub cache_read: f64,
    pub cache_write: f64,
}

/// List prices of one source at one date.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PriceTable {
    pub source: String,
    /// `2026-11-01`.
    pub date: String,
    pub rows: Vec<(PricingIdentity, Price)>,
    /// Of whoever is not in the list.
    #[serde(default)]
    pub others: Option<Price>,
}

impl PriceTable {
    /// What these counters cost by the list. `None` without a price, or when input or output is unknown.
    fn estimate(&self, identity: Option<&PricingIdentity>, counters: &Counters) -> Option<f64> {
        let listed = self.rows.iter().find(|(row, _)| Some(row) == identity).map(|(_, price)| price);
        let price = listed.or(self.others.as_ref())?;
        let (input, output) = (counters.input?, counters.output?);
        let (read, write) = (counters.cache_read.unwrap_or(0), counters.cache_write.unwrap_or(0));
        let plain = input.saturating_sub(read.saturating_add(write));
        let cost = |tokens: u64, usd: f64| tokens as f64 * usd / 1e6;
        let parts = [
            cost(plain, price.input),
            cost(output, price.output),
            cost(read, price.cache_read),
            cost(write, price.cache_write),
        ];
        Some(parts.iter().sum()).filter(|usd: &f64| is_cost(*usd))
    }

    fn basis(&self) -> CostBasis {
        CostBasis::Estimated { source: self.source.clone(), date: self.date.clone() }
    }
}

/// The metering of one agent.
#[derive(Debug)]
pub struct Meter {
    harness: String,
    series: BTreeMap<String, Series>,
}

impl Meter {
    /// `rows`: the stored series by the backend's session id.
    pub fn new(harness: impl Into<String>, rows: impl IntoIterator<Item = (String, Series)>) -> Self {
        Self { harness: harness.into(), series: rows.into_iter().collect() }
    }

    /// A backend opened a session or took one up. `fresh` is random: it makes the name of a new series, since a
    /// backend may give an id again, and a series that begins anew under an old name would turn its counter back.
    pub fn open(&mut self, session: &Session, fresh: u64) {
        if !session.is_new && self.series.contains_key(&session.id) {
            return;
        }
        let baseline = if session.is_new { Baseline::Zero } else { Baseline::Unknown };
        let name = format!("{}~{fresh:016x}", session.id);
        self.series.insert(session.id.clone(), Series { name, seq: 0, baseline });
    }

    /// The `sessionId` that this session's metrics bear.
    pub fn name(&self, session: &str) -> Option<&str> {
        self.series.get(session).map(|series| series.name.as_str())
    }

    /// What is to be stored of a session.
    pub fn series(&self, session: &str) -> Option<&Series> {
        self.series.get(session)
    }

    /// A session is over. Should it come back, it is another series.
    pub fn forget(&mut self, session: &str) {
        self.series.remove(session);
    }

    /// Usage that was told when no turn was running: it belongs to no turn, so only the baseline moves.
    pub fn note(&mut self, session: &str, counters: Counters) {
        if let Some(series) = self.series.get_mut(session) {
            series.baseline = Baseline::Counters(sane(counters));
        }
    }

    /// What a running turn has cost so far in US dollars; `None`: nobody knows.
    pub fn cost(
        &self,
        session: Option<&str>,
        observed: &Observed,
        pricing: Option<&PricingIdentity>,
        prices: Option<&PriceTable>,
    ) -> Option<f64> {
        let baseline = session.and_then(|id| self.series.get(id)).map_or(Baseline::Unknown, |series| series.baseline);
        let (mut counters, _) = of_turn(observed, baseline);
        if counters.cost_usd.is_none() {
            settle_cost(&mut counters, None, pricing, prices);
        }
        counters.cost_usd
    }

    /// The metric of a turn that ended, and the series to store before it is published. `None`: nothing was observed.
    pub fn measure(&mut self, turn: Measured, prices: Option<&PriceTable>) -> Option<(TurnMetric, Option<Series>)> {
        let series = turn.session.as_ref().and_then(|id| self.series.get_mut(id));
        let baseline = series.as_ref().map_or(Baseline::Unknown, |series| series.baseline);
        let (mut counters, delta_reliable) = of_turn(&turn.observed, baseline);
        let cumulative = turn.observed.session.filter(|_| series.is_some());
        let cost_basis = settle_cost(&mut counters, cumulative.as_ref(), turn.pricing.as_ref(), prices);
        let mut metric = TurnMetric {
            harness: self.harness.clone(),
            timestamp: turn.ended_at,
            model: turn.model,
            channel_id: turn.channel_id,
            session_id: None,
            turn_id: Some(turn.turn_id),
            turn_seq: None,
            turn: tally(&counters),
            cumulative: cumulative.map(|counters| tally(&counters)).filter(Tally::is_observed),
            delta_reliable,
            stop_reason: Some(turn.stop),
            pricing_identity: turn.pricing,
            cost_basis,
            triggering_event_ids: Vec::new(),
            root_event_id: None,
            task: None,
        };
        if !metric.turn.is_observed() && metric.cumulative.is_none() {
            return None;
        }
        let series = series.map(|series| {
            series.seq += 1;
            if let Some(counters) = turn.observed.session {
                series.baseline = Baseline::Counters(counters);
            }
            metric.session_id = Some(series.name.clone());
            metric.turn_seq = Some(series.seq);
            series.clone()
        });
        Some((metric, series))
    }
}

/// Of the turn: what was said of it, and for what was not said the session's difference. `false`: the difference was
/// all there was, and it is not known.
fn of_turn(observed: &Observed, baseline: Baseline) -> (Counters, bool) {
    let told = observed.turn();
    let Some(now) = observed.session else { return (told.unwrap_or_default(), true) };
    let difference = match baseline {
        Baseline::Zero => Some(now),
        Baseline::Unknown => None,
        Baseline::Counters(before) => difference(&before, &now),
    };
    match (told, difference) {
        (Some(told), Some(difference)) => (merge(&told, &difference), true),
        (Some(told), None) => (told, true),
        (None, Some(difference)) => (difference, is_observed(&difference)),
        (None, None) => (Counters::default(), false),
    }
}

/// What two cumulative counters of one session differ by; unknown where one of them is. `None` when any went down: the
/// counter was reset, and nothing about it can be said.
pub(crate) fn difference(before: &Counters, now: &Counters) -> Option<Counters> {
    let less = |before: Option<u64>, now: Option<u64>| match (before, now) {
        (Some(before), Some(now)) => now.checked_sub(before).map(Some),
        _ => Some(None),
    };
    let cost_usd = match (before.cost_usd, now.cost_usd) {
        (Some(before), Some(now)) if now < before => return None,
        (Some(before), Some(now)) => Some(now - before),
        _ => None,
    };
    Some(Counters {
        input: less(before.input, now.input)?,
        output: less(before.output, now.output)?,
        total: less(before.total, now.total)?,
        cache_read: less(before.cache_read, now.cache_read)?,
        cache_write: less(before.cache_write, now.cache_write)?,
        cost_usd,
    })
}

/// A reported cost, of the turn or its session, leaves no room for an estimate in the same metric.
fn settle_cost(
    turn: &mut Counters,
    cumulative: Option<&Counters>,
    identity: Option<&PricingIdentity>,
    prices: Option<&PriceTable>,
) -> Option<CostBasis> {
    if turn.cost_usd.is_some() || cumulative.is_some_and(|counters| counters.cost_usd.is_some()) {
        return Some(CostBasis::Reported);
    }
    let prices = prices?;
    turn.cost_usd = Some(prices.estimate(identity, turn)?);
    Some(prices.basis())
}

/// The calls of a turn together. A sum with an unknown part is unknown; totals are only added to totals.
fn add(a: &Counters, b: &Counters) -> Counters {
    let sum = |a: Option<u64>, b: Option<u64>| a.zip(b).and_then(|(a, b)| a.checked_add(b));
    Counters {
        input: sum(a.input, b.input),
        output: sum(a.output, b.output),
        total: sum(a.total, b.total),
        cache_read: sum(a.cache_read, b.cache_read),
        cache_write: sum(a.cache_write, b.cache_write),
        cost_usd: a.cost_usd.zip(b.cost_usd).map(|(a, b)| a + b).filter(|usd| is_cost(*usd)),
    }
}

fn merge(told: &Counters, difference: &Counters) -> Counters {
    Counters {
        input: told.input.or(difference.input),
        output: told.output.or(difference.output),
        total: told.total.or(difference.total),
        cache_read: told.cache_read.or(difference.cache_read),
        cache_write: told.cache_write.or(difference.cache_write),
        cost_usd: told.cost_usd.or(difference.cost_usd),
    }
}

/// Without what cannot be: a cost that is no cost, cache parts that are more than the whole.
fn sane(counters: Counters) -> Counters {
    let parts = counters.cache_read.unwrap_or(0).saturating_add(counters.cache_write.unwrap_or(0));
    let fits = counters.input.is_none_or(|input| parts <= input);
    Counters {
        cache_read: counters.cache_read.filter(|_| fits),
        cache_write: counters.cache_write.filter(|_| fits),
        cost_usd: counters.cost_usd.filter(|usd| is_cost(*usd)),
        ..counters
    }
}

fn is_cost(usd: f64) -> bool {
    usd.is_finite() && usd >= 0.0
}

fn is_observed(counters: &Counters) -> bool {
    tally(counters).is_observed()
}

fn tally(counters: &Counters) -> Tally {
    Tally {
        input_tokens: counters.input,
        output_tokens: counters.output,
        total_tokens: counters.total,
        cost_usd: counters.cost_usd,
        cache_read_tokens: counters.cache_read,
        cache_write_tokens: counters.cache_write,
    }
}

pub(crate) fn counters(tally: &Tally) -> Counters {
    Counters {
        input: tally.input_tokens,
        output: tally.output_tokens,
        total: tally.total_tokens,
        cache_read: tally.cache_read_tokens,
        cache_write: tally.cache_write_tokens,
        cost_usd: tally.cost_usd,
    }
}

#[cfg(test)]
mod tests;
