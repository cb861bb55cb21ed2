//! A distribution of times, with all that was recorded.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A distribution of times.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Distribution {
    /// Number of values.
    pub count: u64,
    /// Least, microseconds.
    pub min: f64,
    /// Mean, microseconds.
    pub mean: f64,
    /// Median, microseconds.
    pub p50: f64,
    /// Nine in ten are not above it, microseconds.
    pub p90: f64,
    /// 99 in 100 are not above it, microseconds.
    pub p99: f64,
    /// 999 in 1,000 are not above it, microseconds.
    pub p999: f64,
    /// Most, microseconds.
    pub max: f64,
    /// `[upper bound in nanoseconds, count]`, ascending, buckets without entries left out.
    pub histogram_ns: Vec<(u64, u64)>,
}

impl Distribution {
    /// From nanoseconds.
    #[must_use]
    pub fn new(histogram: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |q| us(histogram.value_at_quantile(q));
        Self {
            count: histogram.len(),
            min: us(histogram.min()),
            mean: if histogram.is_empty() { 0.0 } else { histogram.mean() / 1e3 },
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(histogram.max()),
            histogram_ns: histogram
                .iter_recorded()
                .map(|v| (v.value_iterated_to(), v.count_at_value()))
                .collect(),
        }
    }
}
