//! What a benchmark run yields: one document (`kvrail.bench.v1`, described in `docs/bench-schema.md`), and everything that
//! is made from it.
//!
//! The [`Document`] is the source of every table, file and verdict; nothing here measures, and what is rendered is a pure
//! function of documents, so that a report made a year later says what the run's own table said. Only [`fingerprint`] looks
//! at the machine.
//!
//! Figures are decimal (GB/s = 10^9 bytes per second), sizes binary (KiB = 1,024 bytes), and both are always named.
#![forbid(unsafe_code)]

pub mod compare;
pub mod csv;
pub mod document;
pub mod expect;
pub mod failure;
pub mod fingerprint;
pub mod html;
pub mod junit;
pub mod markdown;
pub mod nixlbench_table;
pub mod redact;
pub mod table;
pub mod time;
pub mod units;
pub mod versus;
pub mod words;

mod carriage;
mod distribution;
mod figures;
mod judge;
mod ratio;
mod row;
mod turns;

pub use carriage::{Carriage, Libfabric, Path, Rail, Used, head};
pub use distribution::Distribution;
pub use document::{Control, Document, Environment, ReadError, SCHEMA, Sides};
pub use failure::{Failure, Kind};
pub use figures::Figures;
pub use fingerprint::Fingerprint;
pub use ratio::{Ratio, Spread, ratios};
pub use row::{Asked, Ceiling, CeilingKind, RailEvent, RailRow, Row, Severity, Verdict};
pub use turns::{Turn, Turns};
pub use words::{Layout, Memory, Op, Verify};
