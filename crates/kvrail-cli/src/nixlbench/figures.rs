//! What was measured: the steps of transfers, and what they add up to for one initiator and for all of them.

use std::time::Duration;

use hdrhistogram::Histogram;
use kvrail_report::Distribution;
use kvrail_report::nixlbench_table::{Aggregate, Line};
use serde::{Deserialize, Serialize};

use crate::measure;

use super::plan::Size;

/// The durations of one step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    histogram: Histogram<u64>,
    /// Exact, for the mean.
    sum: Duration,
}

impl Step {
    fn new() -> Self {
        Self { histogram: measure::histogram(), sum: Duration::ZERO }
    }

    #[inline]
    pub(crate) fn record(&mut self, duration: Duration) {
        measure::record(&mut self.histogram, duration);
        self.sum += duration;
    }

    fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let added = self.histogram.add(&other.histogram);
        debug_assert!(added.is_ok(), "{added:?}");
        self.sum += other.sum;
    }

    /// Mean and 99th percentile, µs: the value at index 0.99 n of n sorted ones, as nixlbench takes it. Zeros without any.
    pub(crate) fn pair(&self) -> (f64, f64) {
        let count = self.histogram.len();
        if count == 0 {
            return (0.0, 0.0);
        }
        let index = (count as f64 * 0.99) as u64;
        let quantile = (index.min(count - 1) + 1) as f64 / count as f64;
        let mean = self.sum.as_nanos() as f64 / count as f64 / 1e3;
        (mean, self.histogram.value_at_quantile(quantile) as f64 / 1e3)
    }
}

/// The steps of all transfers of a phase.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    pub(crate) prepare: Step,
    pub(crate) post: Step,
    /// From posted to ended.
    pub(crate) transfer: Step,
    /// Both together.
    pub(crate) latency: Step,
}

impl Samples {
    pub(crate) fn new() -> Self {
        Self { prepare: Step::new(), post: Step::new(), transfer: Step::new(), latency: Step::new() }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.prepare.add(&other.prepare);
        self.post.add(&other.post);
        self.transfer.add(&other.transfer);
        self.latency.add(&other.latency);
    }
}

/// One initiator's figures of one size, as it tells them to rank 0.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Transfers of all threads.
    pub(crate) transfers: u64,
    pub(crate) bytes: u64,
    /// The whole timed part, µs.
    pub(crate) total_us: f64,
    /// Time per block of a thread, µs.
    pub(crate) latency_us: f64,
    pub(crate) prepare_us: (f64, f64),
    pub(crate) post_us: (f64, f64),
    pub(crate) transfer_us: (f64, f64),
    /// All of the same, for documents.
    pub(crate) prepare: Distribution,
    pub(crate) post: Distribution,
    pub(crate) transfer: Distribution,
    pub(crate) latency: Distribution,
    /// CPU time of the process in the timed part, seconds.
    pub(crate) cpu_s: f64,
    /// Of the rails used, 10^9 bytes per second; none when unknown.
    pub(crate) line_rate_gbps: Option<f64>,
}

impl Figures {
    /// What the samples of one initiator say. `weight` batches were moved by each transfer of a thread.
    pub(crate) fn new(
        samples: &Samples,
        total: Duration,
        size: Size,
        weight: u64,
        per_thread: u32,
        cpu: Duration,
        line_rate_gbps: Option<f64>,
    ) -> Self {
        let transfers = samples.transfer.histogram.len();
        let blocks = size.batch * weight;
        let total_us = total.as_nanos() as f64 / 1e3;
        Self {
            transfers,
            bytes: transfers * blocks * size.block_bytes,
            total_us,
            latency_us: total_us / (f64::from(per_thread.max(1)) * blocks as f64),
            prepare_us: samples.prepare.pair(),
            post_us: samples.post.pair(),
            transfer_us: samples.transfer.pair(),
            prepare: Distribution::new(&samples.prepare.histogram),
            post: Distribution::new(&samples.post.histogram),
            transfer: Distribution::new(&samples.transfer.histogram),
            latency: Distribution::new(&samples.latency.histogram),
            cpu_s: cpu.as_secs_f64(),
            line_rate_gbps,
        }
    }

    /// 10^9 bytes per second.
    pub(crate) fn bandwidth_gbps(&self) -> f64 {
        self.bytes as f64 / 1e3 / self.total_us.max(1e-6)
    }
}

/// The row of all initiators, of which the first is rank 0; none without any. `wide` has columns for all of them.
pub(crate) fn line(size: Size, all: &[Figures], wide: bool) -> Option<Line> {
    let first = all.first()?;
    let aggregate_gbps: f64 = all.iter().map(Figures::bandwidth_gbps).sum();
    // Known only when it is of all of them.
    let line_rate: Option<f64> = all.iter().map(|figures| figures.line_rate_gbps).sum();
    let percent = line_rate.filter(|rate| *rate > 0.0).map(|rate| aggregate_gbps / rate * 100.0);
    Some(Line {
        block_bytes: size.block_bytes,
        batch: size.batch,
        gbps: first.bandwidth_gbps(),
        latency_us: first.latency_us,
        prepare_us: first.prepare_us,
        post_us: first.post_us,
        transfer_us: first.transfer_us,
        aggregate: wide.then_some(Aggregate { gbps: aggregate_gbps, percent }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { block_bytes: 4096, batch: 2 };

    fn samples(durations_us: impl Iterator<Item = u64>) -> Samples {
        let mut samples = Samples::new();
        for us in durations_us {
            samples.transfer.record(Duration::from_micros(us));
        }
        samples
    }

    #[test]
    fn bandwidth_and_latency_are_of_the_whole_timed_part() {
        let samples = samples((0..100).map(|_| 10));
        let figures = Figures::new(&samples, Duration::from_millis(1), SIZE, 3, 50, Duration::ZERO, None);
        assert_eq!((figures.transfers, figures.bytes), (100, 100 * 6 * 4096));
        assert!((figures.bandwidth_gbps() - 2.4576).abs() < 1e-9);
        assert!((figures.latency_us - 1000.0 / 300.0).abs() < 1e-9);
    }

    #[test]
    fn the_99th_percentile_is_the_value_at_that_index() {
        let (mean, p99) = samples(1..=100).transfer.pair();
        assert!((mean - 50.5).abs() < 1e-9);
        assert!((p99 / 100.0 - 1.0).abs() < 0.002, "{p99}");
        assert_eq!(samples(std::iter::empty()).transfer.pair(), (0.0, 0.0));
    }

    #[test]
    fn all_initiators_add_up_and_an_unknown_line_rate_makes_the_sum_unknown() {
        let one =
            Figures::new(&samples(1..=10), Duration::from_millis(1), SIZE, 1, 10, Duration::ZERO, Some(50.0));
        let other = Figures { line_rate_gbps: None, ..one.clone() };
        let row = line(SIZE, &[one.clone(), one.clone()], true).unwrap();
        let all = row.aggregate.unwrap();
        assert!((all.gbps - 2.0 * row.gbps).abs() < 1e-12);
        assert!((all.percent.unwrap() - all.gbps).abs() < 1e-12);
        assert_eq!(line(SIZE, &[one.clone(), other], true).unwrap().aggregate.unwrap().percent, None);
        assert_eq!(line(SIZE, &[one], false).unwrap().aggregate, None);
        assert_eq!(line(SIZE, &[], true), None);
    }
}
