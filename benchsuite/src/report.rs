//! The row that a case prints.

use serde::Serialize;

use crate::fabric::Facts;
use crate::memory::Memory;
use crate::workload::{Case, Kind, Layout, Op, Wait};

/// Version of the rows' fields.
pub(crate) const SCHEMA: &str = "kvrail.limits.v1";

/// Requests of one repetition, one entry a request, in microseconds.
pub(crate) type RequestsUs = Vec<f64>;

/// Median and ends over the repetitions.
#[derive(Debug, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self {
            median: percentile(&samples, 0.5),
            min: percentile(&samples, 0.0),
            max: percentile(&samples, 1.0),
        }
    }
}

/// Over all requests of all repetitions.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

/// One measured case.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    schema: &'static str,
    engine: &'static str,
    limit: Kind,
    op: Op,
    memory: Memory,
    layout: Layout,
    block_bytes: usize,
    batch: usize,
    pool_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    slices_per_call: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<Wait>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fabric: Option<Facts>,
    iterations: usize,
    repetitions: usize,
    /// Median over the repetitions, GB = 10^9 bytes.
    bandwidth_gbps: f64,
    bandwidth_spread_gbps: Spread,
    latency_us: Latency,
    verified: bool,
}

impl Row {
    /// The row of `case`, whose repetitions have all been verified.
    pub(crate) fn verified(case: &Case, repetitions: &[RequestsUs]) -> Self {
        let request_bytes = (case.block_bytes * case.batch) as f64;
        let gbps = |requests: &RequestsUs| {
            request_bytes * requests.len() as f64 / requests.iter().sum::<f64>() / 1_000.0
        };
        let bandwidth_spread_gbps = Spread::of(repetitions.iter().map(gbps).collect());
        let mut all: Vec<f64> = repetitions.iter().flatten().copied().collect();
        all.sort_by(f64::total_cmp);
        Self {
            schema: SCHEMA,
            engine: "plain loop",
            limit: case.kind,
            op: case.op,
            memory: case.memory(),
            layout: case.layout,
            block_bytes: case.block_bytes,
            batch: case.batch,
            pool_bytes: case.pool_bytes,
            slices_per_call: (case.kind == Kind::ProcessVm).then_some(case.slices_per_call),
            wait: matches!(case.kind, Kind::Tcp | Kind::Fabric).then_some(case.wait),
            fabric: None,
            iterations: case.iterations,
            repetitions: repetitions.len(),
            bandwidth_gbps: bandwidth_spread_gbps.median,
            bandwidth_spread_gbps,
            latency_us: Latency {
                p50: percentile(&all, 0.5),
                p99: percentile(&all, 0.99),
                max: percentile(&all, 1.0),
            },
            verified: true,
        }
    }

    /// With what the fabric was.
    pub(crate) fn over(self, fabric: Facts) -> Self {
        Self { fabric: Some(fabric), ..self }
    }
}

/// The sample at `share` of the sorted samples, interpolated between neighbours.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    let below = sorted[at.floor() as usize];
    let above = sorted[at.ceil() as usize];
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_between_neighbours() {
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0], 0.5), 2.5);
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 1.0), 3.0);
        assert_eq!(percentile(&[5.0], 0.99), 5.0);
    }
}
