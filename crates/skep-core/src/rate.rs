//! Token buckets. Time comes in as milliseconds of any monotonic clock.

use ahash::AHashMap;
use std::hash::Hash;

/// Tokens refill at a steady rate up to a burst.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    tokens: f64,
    at_ms: u64,
}

/// A rate: tokens a second, and how many may be saved up. A rate of 0 is no bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub per_second: f64,
    pub burst: f64,
}

impl Rate {
    /// Bursts of ten seconds' worth pass, so that a client that comes back with a backlog is not punished.
    pub fn per_second(rate: u32) -> Self {
        Self { per_second: rate.into(), burst: f64::from(rate) * 10.0 }
    }

    /// A rate by the minute: the whole minute's worth may come at once.
    pub fn per_minute(rate: u32) -> Self {
        Self { per_second: f64::from(rate) / 60.0, burst: rate.into() }
    }

    fn is_unbounded(&self) -> bool {
        self.per_second <= 0.0
    }
}

impl Bucket {
    pub fn full(rate: Rate, now_ms: u64) -> Self {
        Self { tokens: rate.burst, at_ms: now_ms }
    }

    /// Takes a token; `false` when there is none.
    pub fn take(&mut self, rate: Rate, now_ms: u64) -> bool {
        if rate.is_unbounded() {
            return true;
        }
        let passed = now_ms.saturating_sub(self.at_ms) as f64 / 1_000.0;
        self.tokens = (self.tokens + passed * rate.per_second).min(rate.burst);
        self.at_ms = self.at_ms.max(now_ms);
        let has_one = self.tokens >= 1.0;
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }

    fn is_full(&self, rate: Rate, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.at_ms) as f64 / 1_000.0;
        self.tokens + passed * rate.per_second >= rate.burst
    }
}

/// A bucket for each key. Full buckets say nothing, so they are forgotten when there are many.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    buckets: AHashMap<K, Bucket>,
    sweep_at: usize,
}

/// Buckets kept before full ones are looked for.
const SWEEP_AT_MIN: usize = 10_000;

impl<K: Hash + Eq> Buckets<K> {
    pub fn new(rate: Rate) -> Self {
        Self { rate, buckets: AHashMap::new(), sweep_at: SWEEP_AT_MIN }
    }

    pub fn take(&mut self, key: K, now_ms: u64) -> bool {
        if self.rate.is_unbounded() {
            return true;
        }
        if self.buckets.len() >= self.sweep_at {
            let rate = self.rate;
            self.buckets.retain(|_, bucket| !bucket.is_full(rate, now_ms));
            // Twice what is left, so that sweeping costs a constant for each key.
            self.sweep_at = (self.buckets.len() * 2).max(SWEEP_AT_MIN);
        }
        self.buckets.entry(key).or_insert_with(|| Bucket::full(self.rate, now_ms)).take(self.rate, now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut buckets = Buckets::new(Rate { per_second: 2.0, burst: 3.0 });
        assert_eq!((0..5).filter(|_| buckets.take("a", 1_000)).count(), 3);
        assert!(buckets.take("b", 1_000), "keys do not share");
        assert!(!buckets.take("a", 1_400));
        assert!(buckets.take("a", 1_500));
        assert!(!buckets.take("a", 0), "a clock that goes back gives nothing");
    }

    #[test]
    fn no_rate_is_no_bound_and_full_buckets_are_forgotten() {
        let mut open = Buckets::new(Rate::per_second(0));
        assert!((0..1_000_000).all(|_| open.take(1, 0)));
        let mut buckets = Buckets::new(Rate::per_minute(60));
        for key in 0..(SWEEP_AT_MIN as u64 * 3) {
            assert!(buckets.take(key, key * 1_000));
        }
        assert!(buckets.buckets.len() <= SWEEP_AT_MIN);
    }
}
