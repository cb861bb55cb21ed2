//! What was measured in one row.

use serde::{Deserialize, Serialize};

use crate::{Distribution, Sides, Turn};

/// The figures of a row. They lie among the row's own fields; a row of an engine that failed has none of them.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Timed transfers, all threads together.
    pub iterations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Time of the timed laps, seconds.
    pub timed_s: f64,
    /// Median over laps, GB/s.
    pub bandwidth_gbps: f64,
    /// All bytes over all timed time, GB/s.
    pub bandwidth_total_gbps: f64,
    /// From just before a transfer is posted until its completion was seen.
    pub latency_us: Distribution,
    /// Preparing the plan of one transfer.
    pub prepare_us: Distribution,
    /// The call that posts.
    pub post_us: Distribution,
    /// From the return of that call until completion.
    pub wire_us: Distribution,
    /// CPU time of the whole process during the timed laps, seconds.
    pub cpu_s: Sides<f64>,
    /// Median of plain memory copies of the same blocks, GB/s.
    pub ceiling_gbps: Option<f64>,
    /// `bandwidth_gbps` in percent of it.
    pub ceiling_percent: Option<f64>,
    /// More than a plain copy.
    pub above_ceiling: bool,
    /// The lower of both sides' sums of line rates, GB/s, where all are known.
    pub line_rate_gbps: Option<f64>,
    /// The longest time after which the bytes of a write that had ended were right at its target at last, microseconds, the target's
    /// way to look included; null where they were right at once. Only of engines that do not promise it otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visible_late_us: Option<f64>,
    /// What each turn yielded, in order.
    #[serde(default)]
    pub turns: Vec<Turn>,
}
