//! A row of the document: what one engine made of one case.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{Failure, Figures, Layout, Memory, Op, Verify};

/// One engine's result of one case.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Position of the case in the run, from 0; the rows of all engines of a case have the same.
    pub case: u32,
    /// What was driven, as `--engine` names it: `kvrail`, `nixl:UCX`, `memcpy`.
    #[serde(default = "kvrail")]
    pub engine: String,
    /// Its version, as it says itself.
    #[serde(default)]
    pub engine_version: Option<String>,
    /// What was asked for; [`Row::transport`] and [`crate::Used`] say what was got.
    #[serde(default)]
    pub asked: Asked,
    /// Direction.
    pub op: Op,
    /// What really carried the bytes; null when the engine failed before that was known.
    pub transport: Option<String>,
    /// Why that one.
    pub transport_reason: Option<String>,
    /// Kind of memory.
    pub memory: Memory,
    /// The pages that were really obtained; null when the engine failed before.
    pub pages: Option<String>,
    /// How the blocks lie.
    pub layout: Layout,
    /// Bytes per block.
    pub block_bytes: u64,
    /// Blocks per transfer.
    pub batch: u64,
    /// Size of the region on each side.
    pub pool_bytes: u64,
    /// Posting threads of the initiator.
    pub threads: u32,
    /// Each transfer carried a notification, and all of them arrived.
    pub notify: bool,
    /// The target's cores could help with private memory.
    pub cooperate: bool,
    /// How much was to be looked at.
    pub verify: Verify,
    /// Every byte that `verify` promises was right.
    pub verified: bool,
    /// What was measured; nothing when the engine failed before its first verified round.
    #[serde(flatten, deserialize_with = "figures")]
    pub figures: Option<Figures>,
    /// What ended this engine's part of the case.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// The initiator's rails, over the whole case: warm-up, timed and verified transfers.
    #[serde(default)]
    pub rails: Vec<RailRow>,
    /// Rails that failed or returned meanwhile.
    #[serde(default)]
    pub rail_events: Vec<RailEvent>,
    /// What the figure cannot honestly exceed, lowest first.
    #[serde(default)]
    pub ceilings: Vec<Ceiling>,
    /// What figure and ceilings say together.
    #[serde(default)]
    pub verdicts: Vec<Verdict>,
}

/// The engine of documents that name none.
pub(crate) fn kvrail() -> String {
    "kvrail".into()
}

/// The figures are there when the first of them is; then a bad one is an error, not a row without figures.
fn figures<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Figures>, D::Error> {
    let fields = Map::deserialize(from)?;
    if fields.get("bandwidth_gbps").is_none_or(Value::is_null) {
        return Ok(None);
    }
    serde_json::from_value(Value::Object(fields)).map(Some).map_err(serde::de::Error::custom)
}

impl Row {
    /// Bytes of one transfer.
    #[must_use]
    pub const fn transfer_bytes(&self) -> u64 {
        self.block_bytes.saturating_mul(self.batch)
    }

    /// Median bandwidth, GB/s, where there is one that counts for anything: measured, and not known to be wrong.
    #[must_use]
    pub fn bandwidth_gbps(&self) -> Option<f64> {
        let wrong = !self.verified && self.verify != Verify::Off;
        self.figures.as_ref().filter(|_| !wrong).map(|figures| figures.bandwidth_gbps)
    }

    /// What carried the bytes, for people.
    #[must_use]
    pub fn carrier(&self) -> &str {
        self.transport.as_deref().unwrap_or("unknown transport")
    }
}

/// What was asked for; null: nothing in particular.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// Transport.
    pub transport: Option<String>,
    /// libfabric provider.
    pub provider: Option<String>,
    /// Backend of an engine that has several.
    pub backend: Option<String>,
    /// Number of rails.
    pub rails: Option<u32>,
}

/// What a rail did in one case.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RailRow {
    /// Its name.
    pub name: String,
    /// Line rate, bits per second; 0 when unknown.
    pub rate_bps: u64,
    /// Bytes posted.
    pub bytes_posted: u64,
    /// Ops posted.
    pub ops_posted: u64,
    /// Ops that completed.
    pub ops_done: u64,
    /// Ops that failed here and were repeated, on another rail where one was up.
    pub ops_failed: u64,
    /// How often one of its routes went down.
    pub downs: u32,
    /// How long its routes were down, seconds, all together.
    pub down_s: f64,
    /// Bytes posted on it since it last returned; nothing if it has not been down or has not returned.
    pub bytes_since_return: Option<u64>,
}

/// Something that happened to a rail.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RailEvent {
    /// Seconds since the run began.
    pub at_s: f64,
    /// The initiator's rail.
    pub rail: String,
    /// Indices of the initiator's rail and of the target's.
    pub route: (u16, u16),
    /// Whether it works now.
    pub up: bool,
    /// Why it does not.
    pub why: Option<String>,
}

/// What kind of limit a ceiling is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CeilingKind {
    /// The rails' line rate.
    LineRate,
    /// The PCIe links between the rails and memory.
    Pcie,
    /// A plain copy of the same blocks here.
    Memcpy,
    /// Plain operations of the same provider, measured in the same run.
    RawFabric,
}

/// What a figure cannot honestly exceed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ceiling {
    /// What kind of limit.
    pub kind: CeilingKind,
    /// GB/s.
    pub gbps: f64,
    /// Where the number comes from, for people.
    pub source: String,
    /// The row's bandwidth in percent of it; null without figures.
    pub percent: Option<f64>,
}

/// How bad a verdict is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Good,
    /// Worth knowing.
    Note,
    /// Something is not as asked for or as it could be.
    Warning,
    /// The figure does not mean what it says, or misses what is expected.
    Bad,
}

/// What figure and ceilings, or expectations, say together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Stable name: `did-not-cross-the-network`.
    pub id: String,
    /// How bad.
    pub severity: Severity,
    /// One sentence or more, with the numbers.
    pub text: String,
}
