//! What rank 0 makes of the figures: nixlbench's table as they come, and the document.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::SystemTime;

use hdrhistogram::Histogram;
use kvrail_engines::{Direction, Engine, Name};
use kvrail_report::{
    Asked, Carriage, Distribution, Document, Environment, Figures as Measured, Fingerprint, Layout, Op, Row,
    Sides, Turn, Used, Verify, nixlbench_table,
};
use serde::{Deserialize, Serialize};

use crate::carriage::carriage;
use crate::environment::{self, VERSION};
use crate::failure::Failure;
use crate::measure;

use super::engine;
use super::figures::{self, Figures};
use super::flags::Format;
use super::plan::{Plan, Side, Size};
use super::settings::Settings;
use super::table;

/// What a participant runs on.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Means {
    carriages: Vec<Carriage>,
    version: String,
    pages: String,
    /// Of the first initiator and the first target.
    host: Option<(Environment, Fingerprint)>,
}

impl Means {
    pub(crate) fn new(engine: &dyn Engine, pages: &str, plan: &Plan, rank: u32) -> Self {
        let used = engine.used();
        let speaks = rank == 0 || rank == plan.initiators();
        Self {
            carriages: used.iter().map(carriage).collect(),
            version: used.first().map(|used| used.version.clone()).unwrap_or_default(),
            pages: pages.to_owned(),
            host: speaks.then(|| (environment::here(), Fingerprint::read(VERSION))),
        }
    }

    /// Sum of the line rates of the rails used, 10^9 bytes per second; none when one is unknown, or there are none.
    pub(crate) fn line_rate_gbps(&self) -> Option<f64> {
        let rates: Option<Vec<f64>> = self.carriages.iter().map(Carriage::line_rate_gbps).collect();
        rates.map(|rates| rates.iter().sum()).filter(|rate| *rate > 0.0)
    }
}

/// What is said of a run, as it goes on.
pub(crate) struct Recorder {
    format: Format,
    output: Option<PathBuf>,
    /// Once it has begun, which it does at rank 0.
    begun: Option<Begun>,
}

struct Begun {
    document: Document,
    file: Option<File>,
}

impl Recorder {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self { format: settings.flags.format, output: settings.flags.output.clone(), begun: None }
    }

    /// Everybody is connected.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn begin(&mut self, settings: &Settings, means: &[Means], seed: u64) -> Result<(), Failure> {
        let cannot = |path: &PathBuf, e| {
            Failure::environment(format!("cannot write --output {}: {e}", path.display()))
        };
        let file =
            self.output.as_ref().map(|path| File::create(path).map_err(|e| cannot(path, e))).transpose()?;
        let mut document = Document::begin(SystemTime::now(), environment::random_seed(), seed);
        document.command = environment::command();
        let target = means.get(settings.plan.initiators() as usize);
        let host = |means: Option<&Means>| means.and_then(|means| means.host.clone()).unzip();
        let (initiator_host, initiator_print) = host(means.first());
        let (target_host, target_print) = host(target);
        document.environment = Sides { initiator: initiator_host, target: target_host };
        document.fingerprint = Sides { initiator: initiator_print, target: target_print };
        document.met(used(settings, means));
        self.begun = Some(Begun { document, file });
        if self.format == Format::Nixlbench {
            let wide = table::is_wide(&settings.plan);
            say(&format!("{}{}", table::configuration(settings), nixlbench_table::header(wide)))?;
        }
        Ok(())
    }

    /// A size was measured, and every byte was right.
    ///
    /// # Errors
    /// When nobody reads stdout.
    pub(crate) fn row(
        &mut self,
        settings: &Settings,
        means: &[Means],
        index: u32,
        size: Size,
        all: &[Figures],
    ) -> Result<(), Failure> {
        let Some(begun) = &mut self.begun else { return Ok(()) };
        let wide = table::is_wide(&settings.plan);
        let Some(line) = figures::line(size, all, wide) else { return Ok(()) };
        begun.document.results.push(row(settings, means, index, size, all));
        if self.format == Format::Nixlbench {
            say(&line.text())?;
        }
        Ok(())
    }

    /// The run has ended so; what was measured is written in any case.
    ///
    /// # Errors
    /// How the run ended, or else what could not be written.
    pub(crate) fn finish(self, ended: Result<(), Failure>) -> Result<(), Failure> {
        let Some(Begun { mut document, file }) = self.begun else { return ended };
        document.conclude(ended.clone());
        let written = match self.format {
            Format::Nixlbench => Ok(()),
            Format::Json => say(&document.json()),
            Format::Csv => say(&kvrail_report::csv::csv(&document)),
        };
        let saved = match file {
            None => Ok(()),
            Some(mut file) => file
                .write_all(document.json().as_bytes())
                .map_err(|e| Failure::environment(format!("cannot write --output: {e}"))),
        };
        ended.and(written).and(saved)
    }
}

/// Writes to stdout, now: who reads it may wait for the row.
fn say(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|e| Failure::environment(format!("cannot write to stdout: {e}")))
}

/// What carried the bytes, seen from rank 0 and its first target.
fn used(settings: &Settings, means: &[Means]) -> Used {
    let initiator = means.first().and_then(|means| means.carriages.first()).cloned();
    let target = means.get(settings.plan.initiators() as usize).and_then(|means| {
        let same =
            |carriage: &&Carriage| Some(&carriage.transport) == initiator.as_ref().map(|i| &i.transport);
        means.carriages.iter().find(same).cloned()
    });
    Used::new(&engine::choice(settings).to_string(), Sides { initiator, target })
}

fn row(settings: &Settings, means: &[Means], index: u32, size: Size, all: &[Figures]) -> Row {
    let flags = &settings.flags;
    let shape = settings.plan.shape();
    let carrier = used(settings, means);
    let (bytes, transfers) = (all.iter().map(|f| f.bytes).sum(), all.iter().map(|f| f.transfers).sum());
    let bandwidth_gbps = all.iter().map(Figures::bandwidth_gbps).sum();
    let merged = |of: fn(&Figures) -> &Distribution| merged(all.iter().map(of));
    let latency_us = merged(|f| &f.latency);
    Row {
        case: index,
        engine: carrier.engine.clone(),
        engine_version: means
            .first()
            .map(|means| means.version.clone())
            .filter(|version| !version.is_empty()),
        asked: Asked {
            backend: (flags.engine == Name::Nixl).then(|| flags.backend.clone()),
            ..Asked::default()
        },
        op: match settings.direction {
            Direction::Write => Op::Write,
            Direction::Read => Op::Read,
        },
        transport: carrier.transport().map(str::to_owned),
        transport_reason: None,
        memory: flags.memory,
        pages: means.first().map(|means| means.pages.clone()),
        layout: Layout::Contiguous,
        block_bytes: size.block_bytes,
        batch: size.batch,
        pool_bytes: settings.plan.pool_bytes(Side::Initiator),
        threads: shape.threads,
        notify: engine::notification(flags.engine).is_some(),
        cooperate: true,
        verify: Verify::Last,
        verified: true,
        figures: Some(Measured {
            iterations: transfers,
            bytes,
            timed_s: all.iter().map(|f| f.total_us).fold(0.0, f64::max) / 1e6,
            bandwidth_gbps,
            bandwidth_total_gbps: bandwidth_gbps,
            turns: vec![Turn { bandwidth_gbps, latency_p50_us: latency_us.p50 }],
            latency_us,
            prepare_us: merged(|f| &f.prepare),
            post_us: merged(|f| &f.post),
            wire_us: merged(|f| &f.transfer),
            cpu_s: Sides { initiator: all.iter().map(|f| f.cpu_s).sum(), target: 0.0 },
            line_rate_gbps: all.iter().map(|f| f.line_rate_gbps).sum(),
            ..Measured::default()
        }),
        failure: None,
        rails: Vec::new(),
        rail_events: Vec::new(),
        ceilings: Vec::new(),
        verdicts: Vec::new(),
    }
}

/// The distributions of several initiators as one.
fn merged<'a>(all: impl Iterator<Item = &'a Distribution>) -> Distribution {
    let mut histogram: Histogram<u64> = measure::histogram();
    for (bound, count) in all.flat_map(|distribution| &distribution.histogram_ns) {
        histogram.saturating_record_n(*bound, *count);
    }
    Distribution::new(&histogram)
}
