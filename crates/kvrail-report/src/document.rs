//! The result as data: schema `kvrail.bench.v1`, described in `docs/bench-schema.md`.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{Carriage, Failure, Fingerprint, Ratio, Row, Used, time};

/// Name and version of the schema. Fields are added under the same version; a changed meaning raises it.
pub const SCHEMA: &str = "kvrail.bench.v1";

/// A whole run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: String,
    /// Names the run among all runs; empty in documents of before.
    #[serde(default)]
    pub run_id: String,
    /// When it began, RFC 3339, UTC; empty in documents of before.
    #[serde(default)]
    pub started: String,
    /// The program's command line, secrets taken out.
    #[serde(default)]
    pub command: Vec<String>,
    /// Every case was measured.
    pub complete: bool,
    /// Every byte that `verify` promises was right, in every case.
    pub verified: bool,
    /// What ended the run early.
    pub failure: Option<Failure>,
    /// Repeats layout and pattern.
    pub seed: u64,
    /// The hosts in short.
    pub environment: Sides<Option<Environment>>,
    /// The hosts at length: what the figures may depend on.
    #[serde(default)]
    pub fingerprint: Sides<Option<Fingerprint>>,
    /// What each engine and transport that carried a case ran on.
    pub transports: Vec<Used>,
    /// One row per engine and case, in the order in which they were measured.
    pub results: Vec<Row>,
    /// Engines set against each other.
    #[serde(default)]
    pub ratios: Vec<Ratio>,
    /// The control path, of one transport.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    /// The control path, of several transports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<Control>,
}

/// One value per side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sides<T> {
    /// The side that posts.
    pub initiator: T,
    /// The side that offers its memory.
    pub target: T,
}

/// Facts about one side's host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Environment {
    /// Version of the program.
    pub kvrail: String,
    /// Build profile of the program: `release`, `debug`.
    pub profile: String,
    /// Host name.
    pub host: String,
    /// Kernel name and release.
    pub kernel: String,
    /// CPU as the kernel names it.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory of the host, bytes.
    pub memory_bytes: u64,
}

/// The control path: medians of several repetitions.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Control {
    /// The transport that the importing side chose.
    pub transport: String,
    /// How often everything was done.
    pub repetitions: u32,
    /// Creating an agent with its transports, milliseconds.
    pub create_agent_ms: f64,
    /// Registering 10,000 regions, milliseconds.
    pub register_10000_ms: f64,
    /// Writing the metadata, milliseconds.
    pub export_ms: f64,
    /// Its size.
    pub metadata_bytes: u64,
    /// Importing it at the peer, milliseconds.
    pub import_ms: f64,
}

/// Why a text is no document that this program reads.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No JSON, or fields are missing or of another type.
    #[error("it is no {SCHEMA} document: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Another schema, or a later version of this one.
    #[error("its schema is {0:?}, and this program reads {SCHEMA:?}")]
    Schema(String),
    /// JSON without a schema.
    #[error("it names no schema; {SCHEMA} documents come from: kvrail bench --format json")]
    NoSchema,
}

impl Document {
    /// The document of a run that begins now. `random` tells runs of the same second apart.
    #[must_use]
    pub fn begin(now: SystemTime, random: u64, seed: u64) -> Self {
        Self {
            schema: SCHEMA.into(),
            run_id: time::run_id(now, random),
            started: time::rfc3339(now),
            command: Vec::new(),
            complete: false,
            verified: false,
            failure: None,
            seed,
            environment: Sides::default(),
            fingerprint: Sides::default(),
            transports: Vec::new(),
            results: Vec::new(),
            ratios: Vec::new(),
            control: None,
            controls: Vec::new(),
        }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// That it is none, or of another version.
    pub fn read(text: &str) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct Head {
            schema: Option<String>,
        }
        match serde_json::from_str::<Head>(text)?.schema {
            Some(schema) if schema == SCHEMA => Ok(serde_json::from_str(text)?),
            Some(schema) => Err(ReadError::Schema(schema)),
            None => Err(ReadError::NoSchema),
        }
    }

    /// As JSON, one document, with a final newline.
    #[must_use]
    pub fn json(&self) -> String {
        // Only maps with keys that are no strings, and failing writers, can fail here; there are none.
        serde_json::to_string(self).map_or_else(|e| format!("{{\"error\":\"{e}\"}}"), |s| s + "\n")
    }

    /// Takes in what a case ran on, once.
    pub fn met(&mut self, used: Used) {
        if !self.transports.contains(&used) {
            self.transports.push(used);
        }
    }

    /// What a row's engine ran on.
    #[must_use]
    pub fn used(&self, row: &Row) -> Option<&Used> {
        let transport = row.transport.as_deref()?;
        self.transports.iter().find(|used| used.engine == row.engine && used.transport() == Some(transport))
    }

    /// Says how the run ended, and what follows from its rows. Idempotent.
    pub fn conclude(&mut self, ended: Result<(), Failure>) {
        self.complete = ended.is_ok() && self.results.iter().all(|row| row.failure.is_none());
        self.verified = self.complete && self.results.iter().all(|row| row.verified);
        self.failure = ended.err();
        let failures = self.results.iter_mut().filter_map(|row| row.failure.as_mut());
        failures.chain(self.failure.as_mut()).for_each(Failure::redact);
        self.judge();
    }

    /// Engines that have rows, in the order of their first.
    #[must_use]
    pub fn engines(&self) -> Vec<&str> {
        let mut engines: Vec<&str> = Vec::new();
        for row in &self.results {
            if !engines.contains(&row.engine.as_str()) {
                engines.push(&row.engine);
            }
        }
        engines
    }

    /// All control measurements.
    pub fn all_controls(&self) -> impl Iterator<Item = &Control> {
        self.control.iter().chain(&self.controls)
    }
}

impl Used {
    /// What one engine ran on.
    #[must_use]
    pub fn new(engine: &str, sides: Sides<Option<Carriage>>) -> Self {
        Self { engine: engine.into(), initiator: sides.initiator, target: sides.target }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Asked, Distribution, Figures, Layout, Memory, Op, Turn, Verify};

    pub(crate) fn row() -> Row {
        let latency = Distribution {
            count: 1,
            p50: 1.5,
            p99: 1.5,
            max: 1.5,
            histogram_ns: vec![(1500, 1)],
            ..Distribution::default()
        };
        Row {
            case: 0,
            engine: "kvrail".into(),
            engine_version: Some("0.1.0".into()),
            asked: Asked::default(),
            op: Op::Write,
            transport: Some("shm".into()),
            transport_reason: Some("same host".into()),
            memory: Memory::Shared,
            pages: Some("4, \"KiB\"".into()),
            layout: Layout::Scattered,
            block_bytes: 32 << 10,
            batch: 100,
            pool_bytes: 64 << 20,
            threads: 1,
            notify: false,
            cooperate: true,
            verify: Verify::Every,
            verified: true,
            figures: Some(Figures {
                iterations: 5,
                bytes: 5 * 100 * (32 << 10),
                timed_s: 0.001,
                bandwidth_gbps: 10.0,
                bandwidth_total_gbps: 9.5,
                latency_us: latency,
                ceiling_gbps: Some(12.0),
                ceiling_percent: Some(83.3),
                turns: vec![Turn { bandwidth_gbps: 10.0, latency_p50_us: 1.5 }],
                ..Figures::default()
            }),
            failure: None,
            rails: Vec::new(),
            rail_events: Vec::new(),
            ceilings: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    pub(crate) fn document() -> Document {
        let mut document = Document::begin(SystemTime::UNIX_EPOCH, 1, 1);
        document.results.push(row());
        document.conclude(Ok(()));
        document
    }

    #[test]
    fn a_document_survives_being_written_and_read() {
        let mut document = document();
        let failed = Row { engine: "nixl:UCX".into(), figures: None, transport: None, pages: None, ..row() };
        document.results.push(Row { failure: Some(Failure::engine("it died").hint("look")), ..failed });
        document.met(Used::new("kvrail", Sides::default()));
        document.met(Used::new("kvrail", Sides::default()));
        document.conclude(Ok(()));
        assert!(!document.complete && !document.verified);
        let read = Document::read(&document.json()).unwrap();
        assert_eq!(read, document);
        assert_eq!((read.transports.len(), read.engines()), (1, vec!["kvrail", "nixl:UCX"]));
    }

    #[test]
    fn figures_lie_among_the_fields_of_their_row_and_a_failed_engine_has_none() {
        let json: serde_json::Value = serde_json::from_str(&document().json()).unwrap();
        assert_eq!(json["schema"], SCHEMA);
        let row = &json["results"][0];
        assert_eq!(row["latency_us"]["histogram_ns"][0][1], 1);
        assert_eq!((&row["bandwidth_gbps"], &row["layout"]), (&10.0.into(), &"scattered".into()));
        let failed = serde_json::to_value(Row { figures: None, ..self::row() }).unwrap();
        assert!(failed.get("bandwidth_gbps").is_none() && failed["failure"].is_null());
    }

    #[test]
    fn what_a_failure_quotes_is_redacted_before_it_is_written() {
        let mut document = document();
        let failure = Failure::peer("http://root:hunter2@etcd:2379 is gone").hint("token: hunter2");
        document.results[0].failure = Some(failure.clone());
        document.conclude(Err(failure));
        assert!(!document.json().contains("hunter2"), "{}", document.json());
    }

    #[test]
    fn a_document_of_before_is_read_as_one_of_kvrail_alone() {
        let mut json: serde_json::Value = serde_json::from_str(&document().json()).unwrap();
        for field in ["run_id", "started", "command", "fingerprint", "ratios"] {
            json.as_object_mut().unwrap().remove(field);
        }
        let row = json["results"][0].as_object_mut().unwrap();
        for field in ["engine", "engine_version", "asked", "failure", "turns", "ceilings", "verdicts"] {
            row.remove(field);
        }
        let read = Document::read(&json.to_string()).unwrap();
        assert_eq!(read.results[0].engine, "kvrail");
        assert_eq!(read.results[0].figures.as_ref().unwrap().turns, []);
    }

    #[test]
    fn what_is_no_document_is_refused_with_what_it_is() {
        let later = r#"{"schema":"kvrail.bench.v2"}"#;
        assert!(Document::read(later).unwrap_err().to_string().contains("kvrail.bench.v2"));
        assert!(matches!(Document::read("{}").unwrap_err(), ReadError::NoSchema));
        for text in ["", "[]", "nothing", r#"{"schema":"kvrail.bench.v1"}"#] {
            assert!(matches!(Document::read(text).unwrap_err(), ReadError::Malformed(_)), "{text}");
        }
        let mut json: serde_json::Value = serde_json::from_str(&document().json()).unwrap();
        json["results"][0]["timed_s"] = "soon".into();
        assert!(Document::read(&json.to_string()).unwrap_err().to_string().contains("soon"));
    }
}
