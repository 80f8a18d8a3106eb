//! Latencies, one number for each operation: quantiles come from all of them, not from averages or buckets.

use std::time::Duration;

#[derive(Debug, Clone, Default)]
pub struct Latencies {
    nanos: Vec<u64>,
}

/// In milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Latencies {
    pub fn record(&mut self, took: Duration) {
        self.nanos.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn merge(&mut self, mut other: Self) {
        self.nanos.append(&mut other.nanos);
    }

    /// `None` when nothing was measured.
    pub fn quantiles(&mut self) -> Option<Quantiles> {
        self.nanos.sort_unstable();
        let last = self.nanos.len().checked_sub(1)?;
        // The nearest rank: the smallest value that at least q of all are not above.
        let at = |q: f64| self.nanos[((q * (last + 1) as f64).ceil() as usize).clamp(1, last + 1) - 1] as f64 / 1e6;
        Some(Quantiles { p50: at(0.5), p99: at(0.99), max: at(1.0) })
    }
}

/// The middle value, the mean of the two middle ones for an even count; `None` for none.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let mut all = Latencies::default();
        (1..=200).rev().for_each(|ms| all.record(Duration::from_millis(ms)));
        assert_eq!(all.quantiles(), Some(Quantiles { p50: 100.0, p99: 198.0, max: 200.0 }));
        assert_eq!(Latencies::default().quantiles(), None);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
