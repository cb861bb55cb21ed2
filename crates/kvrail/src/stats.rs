//! Statistics: what was moved, by which rail, and how long it took.
//!
//! Always on: recording one latency is an index computation and an increment, made by the thread that holds the
//! rails anyway.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest latency that is told apart from longer ones, ns: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// A distribution of durations, 1 ns to 1 hour, with an error of at most 1 %.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl Latency {
    /// An empty distribution.
    #[must_use]
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 2)
            .expect("the bounds are constants that a test constructs");
        Self { histogram }
    }

    #[inline]
    pub(crate) fn record(&mut self, duration: Duration) {
        self.histogram.saturating_record(duration.as_nanos().min(u128::from(LATENCY_NS_MAX)) as u64);
    }

    /// Number of durations recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The duration that `percent` percent of all do not exceed; zero when there is none.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        if self.histogram.is_empty() {
            return Duration::ZERO;
        }
        Duration::from_nanos(self.histogram.value_at_percentile(percent))
    }

    /// The median.
    #[must_use]
    pub fn p50(&self) -> Duration {
        self.percentile(50.0)
    }

    /// The 99th percentile.
    #[must_use]
    pub fn p99(&self) -> Duration {
        self.percentile(99.0)
    }

    /// The longest.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.histogram.max())
    }

    /// The mean.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.histogram.mean() as u64)
    }

    /// Adds another distribution to this one.
    pub fn merge(&mut self, other: &Self) {
        // Equal bounds by construction, so that nothing can be refused.
        let _ = self.histogram.add(&other.histogram);
    }

    /// The buckets that are not empty, ascending: upper end of the bucket and number of durations in it.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        self.histogram.iter_recorded().map(|bucket| {
            (Duration::from_nanos(bucket.value_iterated_to()), bucket.count_since_last_iteration())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_one_percent_and_extremes_do_not_panic() {
        let mut latency = Latency::new();
        assert_eq!(latency.p99(), Duration::ZERO);
        for us in 1..=1000 {
            latency.record(Duration::from_micros(us));
        }
        let p50 = latency.p50().as_nanos() as f64;
        assert!((p50 / 500_000.0 - 1.0).abs() < 0.01, "{p50}");
        latency.record(Duration::ZERO);
        latency.record(Duration::MAX);
        assert_eq!(latency.count(), 1002);
        assert_eq!(latency.buckets().map(|(_, n)| n).sum::<u64>(), 1002);
    }
}
