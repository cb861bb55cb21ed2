//! The result as data: schema `kvrail.bench.v1`, described in `docs/bench-schema.md`, and the same rows as CSV.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::carriage::{self, Carriage};
use crate::case::{Case, Cooperate, Layout, Memory, Op, Verify};
use crate::environment::Environment;
use crate::failure::Failure;
use crate::measure::Samples;
use crate::rails::{RailEvent, RailRow};

/// Name and version of the schema. Fields are added under the same version; a changed meaning raises it.
pub(crate) const SCHEMA: &str = "kvrail.bench.v1";

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) schema: &'static str,
    /// Every case was measured.
    pub(crate) complete: bool,
    /// Every byte that `verify` promises was right, in every case.
    pub(crate) verified: bool,
    /// What ended the run early.
    pub(crate) failure: Option<Failure>,
    pub(crate) seed: u64,
    pub(crate) environment: Sides<Option<Environment>>,
    /// What each transport that carried a case runs on.
    pub(crate) transports: Vec<Sides<Option<Carriage>>>,
    pub(crate) results: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) control: Option<Control>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) controls: Vec<Control>,
}

/// One value per side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Sides<T> {
    pub(crate) initiator: T,
    pub(crate) target: T,
}

/// What really carried the bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Carrier {
    /// `shm`, `ofi` or `tcp`.
    pub(crate) transport: String,
    /// Why that one.
    pub(crate) reason: String,
    /// The pages that the initiator's memory is on.
    pub(crate) pages: String,
    /// What it runs on.
    pub(crate) sides: Sides<Option<Carriage>>,
}

impl Carrier {
    /// What stands above the figures in a table.
    fn head(&self) -> Vec<String> {
        let Sides { initiator, target } = &self.sides;
        initiator.as_ref().map_or_else(Vec::new, |here| carriage::head(here, target.as_ref()))
    }

    /// The lower of both sides' line rates, GB/s, where it is known.
    fn line_rate_gbps(&self) -> Option<f64> {
        carriage::line_rate_gbps(self.sides.initiator.as_ref()?, self.sides.target.as_ref())
    }
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) case: u32,
    pub(crate) op: Op,
    pub(crate) transport: String,
    pub(crate) transport_reason: String,
    pub(crate) memory: Memory,
    pub(crate) pages: String,
    pub(crate) layout: Layout,
    pub(crate) block_bytes: u64,
    pub(crate) batch: u64,
    pub(crate) pool_bytes: u64,
    pub(crate) threads: u32,
    pub(crate) notify: bool,
    pub(crate) cooperate: bool,
    /// Timed transfers, all threads together.
    pub(crate) iterations: u64,
    pub(crate) bytes: u64,
    pub(crate) timed_s: f64,
    /// Median over laps.
    pub(crate) bandwidth_gbps: f64,
    /// All bytes over all timed time.
    pub(crate) bandwidth_total_gbps: f64,
    pub(crate) latency_us: Distribution,
    pub(crate) prepare_us: Distribution,
    pub(crate) post_us: Distribution,
    pub(crate) wire_us: Distribution,
    pub(crate) cpu_s: Sides<f64>,
    pub(crate) verify: Verify,
    /// Every byte that `verify` promises was right.
    pub(crate) verified: bool,
    pub(crate) ceiling_gbps: Option<f64>,
    /// `bandwidth_gbps` in percent of the ceiling.
    pub(crate) ceiling_percent: Option<f64>,
    pub(crate) above_ceiling: bool,
    /// The lower of both sides' sums of line rates, where all are known.
    pub(crate) line_rate_gbps: Option<f64>,
    /// The initiator's rails, over the whole case: warm-up, timed and verified transfers.
    pub(crate) rails: Vec<RailRow>,
    pub(crate) rail_events: Vec<RailEvent>,
    /// What stands above the figures in a table.
    #[serde(skip)]
    pub(crate) head: Vec<String>,
}

impl Row {
    pub(crate) fn new(
        case: &Case,
        carrier: &Carrier,
        samples: &Samples,
        verified: bool,
        (rails, rail_events): (Vec<RailRow>, Vec<RailEvent>),
    ) -> Self {
        let bandwidth_gbps = samples.bandwidth_gbps(case);
        let ceiling_gbps = samples.ceiling_gbps(case);
        let ceiling_percent = ceiling_gbps.map(|c| bandwidth_gbps / c * 100.0);
        Self {
            case: case.index,
            op: case.op,
            transport: carrier.transport.clone(),
            transport_reason: carrier.reason.clone(),
            memory: case.memory,
            pages: carrier.pages.clone(),
            layout: case.layout,
            block_bytes: case.block_bytes,
            batch: case.batch,
            pool_bytes: case.pool_bytes,
            threads: case.threads,
            notify: case.notify,
            cooperate: case.cooperate == Cooperate::On,
            iterations: samples.transfers,
            bytes: samples.bytes,
            timed_s: samples.wall.as_secs_f64(),
            bandwidth_gbps,
            bandwidth_total_gbps: samples.bandwidth_total_gbps(),
            latency_us: Distribution::new(&samples.latency),
            prepare_us: Distribution::new(&samples.prepare),
            post_us: Distribution::new(&samples.post),
            wire_us: Distribution::new(&samples.wire),
            cpu_s: Sides {
                initiator: samples.cpu_initiator.as_secs_f64(),
                target: samples.cpu_target.as_secs_f64(),
            },
            verify: case.verify,
            verified,
            ceiling_gbps,
            ceiling_percent,
            above_ceiling: ceiling_percent.is_some_and(|p| p > 100.0),
            line_rate_gbps: carrier.line_rate_gbps(),
            rails,
            rail_events,
            head: carrier.head(),
        }
    }
}

/// A distribution of times.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Distribution {
    pub(crate) count: u64,
    pub(crate) min: f64,
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    /// `[upper bound in nanoseconds, count]`, ascending, buckets without entries left out.
    pub(crate) histogram_ns: Vec<(u64, u64)>,
}

impl Distribution {
    /// From nanoseconds.
    pub(crate) fn new(histogram: &Histogram<u64>) -> Self {
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

/// The control path: medians of several repetitions.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Control {
    pub(crate) transport: String,
    pub(crate) repetitions: u32,
    pub(crate) create_agent_ms: f64,
    pub(crate) register_10000_ms: f64,
    pub(crate) export_ms: f64,
    pub(crate) metadata_bytes: u64,
    pub(crate) import_ms: f64,
}

const CSV_HEADER: &str = "case,op,transport,memory,pages,layout,block_bytes,batch,pool_bytes,threads,notify,cooperate,iterations,\
bytes,timed_s,bandwidth_gbps,bandwidth_total_gbps,latency_p50_us,latency_p99_us,latency_max_us,prepare_p50_us,\
post_p50_us,wire_p50_us,cpu_initiator_s,cpu_target_s,verify,verified,ceiling_gbps,above_ceiling";

impl Report {
    /// As JSON, one document, with a final newline.
    pub(crate) fn json(&self) -> String {
        // Only maps with keys that are no strings, and failing writers, can fail here; there are none.
        serde_json::to_string(self).map_or_else(|e| format!("{{\"error\":\"{e}\"}}"), |s| s + "\n")
    }

    /// As CSV: a header and one line per case.
    pub(crate) fn csv(&self) -> String {
        if self.control.is_some() || !self.controls.is_empty() {
            let mut out = "transport,repetitions,create_agent_ms,register_10000_ms,export_ms,metadata_bytes,import_ms\n"
                .to_string();
            for c in self.control.iter().chain(&self.controls) {
                out += &format!(
                    "{},{},{},{},{},{},{}\n",
                    c.transport,
                    c.repetitions,
                    c.create_agent_ms,
                    c.register_10000_ms,
                    c.export_ms,
                    c.metadata_bytes,
                    c.import_ms
                );
            }
            return out;
        }
        let mut out = format!("{CSV_HEADER}\n");
        for row in &self.results {
            let cells = [
                row.case.to_string(),
                row.op.to_string(),
                quoted(&row.transport),
                row.memory.to_string(),
                quoted(&row.pages),
                row.layout.to_string(),
                row.block_bytes.to_string(),
                row.batch.to_string(),
                row.pool_bytes.to_string(),
                row.threads.to_string(),
                row.notify.to_string(),
                row.cooperate.to_string(),
                row.iterations.to_string(),
                row.bytes.to_string(),
                row.timed_s.to_string(),
                row.bandwidth_gbps.to_string(),
                row.bandwidth_total_gbps.to_string(),
                row.latency_us.p50.to_string(),
                row.latency_us.p99.to_string(),
                row.latency_us.max.to_string(),
                row.prepare_us.p50.to_string(),
                row.post_us.p50.to_string(),
                row.wire_us.p50.to_string(),
                row.cpu_s.initiator.to_string(),
                row.cpu_s.target.to_string(),
                row.verify.to_string(),
                row.verified.to_string(),
                row.ceiling_gbps.map_or_else(String::new, |c| c.to_string()),
                row.above_ceiling.to_string(),
            ];
            out += &cells.join(",");
            out.push('\n');
        }
        out
    }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn report() -> Report {
        let case = crate::case::example();
        let mut samples = Samples::new();
        samples.latency.record(1500).unwrap();
        let carrier = Carrier {
            transport: "shm".into(),
            reason: "same host".into(),
            pages: "4, \"KiB\"".into(),
            sides: Sides { initiator: None, target: None },
        };
        let row = Row::new(&case, &carrier, &samples, true, Default::default());
        Report {
            schema: SCHEMA,
            complete: true,
            verified: true,
            failure: None,
            seed: 1,
            environment: Sides { initiator: None, target: None },
            transports: Vec::new(),
            results: vec![row],
            control: None,
            controls: Vec::new(),
        }
    }

    #[test]
    fn every_csv_line_has_as_many_cells_as_the_header() {
        let csv = report().csv().replace("\"4, \"\"KiB\"\"\"", "x");
        let mut lines = csv.lines();
        let cells = lines.next().unwrap().split(',').count();
        assert_eq!(lines.next().unwrap().split(',').count(), cells);
        assert_eq!(lines.next(), None);
    }

    #[test]
    fn json_names_its_schema_and_keeps_the_histogram() {
        let json: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!(json["schema"], SCHEMA);
        let histogram = &json["results"][0]["latency_us"]["histogram_ns"];
        assert_eq!(histogram[0][1], 1);
        assert_eq!(json["results"][0]["ceiling_gbps"], serde_json::Value::Null);
        assert_eq!(json["results"][0]["layout"], "scattered");
    }
}
