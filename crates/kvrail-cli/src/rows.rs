//! Rows of the document, made from what was measured.

use kvrail_engines::Name;
use kvrail_report::{Asked, Carriage, Distribution, Figures, RailEvent, RailRow, Row, Sides, Used};

use crate::case::{Case, Cooperate, Transport};
use crate::engines::Choice;
use crate::measure::Samples;

/// What really carried the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Carrier {
    pub(crate) engine: Choice,
    /// Its release, as it says itself.
    pub(crate) version: String,
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
    /// As the document tells it.
    pub(crate) fn used(&self) -> Used {
        Used::new(&self.engine.to_string(), self.sides.clone())
    }
}

/// The row of a case that nothing has been measured of yet.
pub(crate) fn empty(engine: &Choice, case: &Case) -> Row {
    Row {
        case: case.index,
        engine: engine.to_string(),
        engine_version: None,
        asked: asked(engine, case),
        op: case.op,
        transport: None,
        transport_reason: None,
        memory: case.memory,
        pages: None,
        layout: case.layout,
        block_bytes: case.block_bytes,
        batch: case.batch,
        pool_bytes: case.pool_bytes,
        threads: case.threads,
        notify: case.notify,
        cooperate: case.cooperate == Cooperate::On,
        verify: case.verify,
        verified: false,
        figures: None,
        failure: None,
        rails: Vec::new(),
        rail_events: Vec::new(),
        ceilings: Vec::new(),
        verdicts: Vec::new(),
    }
}

/// The row of a case.
pub(crate) fn row(
    case: &Case,
    carrier: &Carrier,
    samples: &Samples,
    verified: bool,
    (rails, rail_events): (Vec<RailRow>, Vec<RailEvent>),
) -> Row {
    Row {
        engine_version: Some(carrier.version.clone()).filter(|version| !version.is_empty()),
        transport: Some(carrier.transport.clone()),
        transport_reason: Some(carrier.reason.clone()),
        pages: Some(carrier.pages.clone()),
        verified,
        figures: Some(figures(case, carrier, samples)),
        rails,
        rail_events,
        ..empty(&carrier.engine, case)
    }
}

/// What was asked of an engine: nothing that it does not know.
fn asked(engine: &Choice, case: &Case) -> Asked {
    let way = || engine.way.clone();
    match engine.name {
        Name::Kvrail => {
            let asked = (case.transport != Transport::Auto).then(|| case.transport.to_string());
            Asked { transport: asked, ..Asked::default() }
        }
        Name::Nixl => Asked { backend: way(), ..Asked::default() },
        Name::Libfabric => Asked { provider: way(), ..Asked::default() },
        _ => Asked { transport: way(), ..Asked::default() },
    }
}

fn figures(case: &Case, carrier: &Carrier, samples: &Samples) -> Figures {
    let bandwidth_gbps = samples.bandwidth_gbps(case);
    let ceiling_gbps = samples.ceiling_gbps(case);
    let ceiling_percent = ceiling_gbps.map(|c| bandwidth_gbps / c * 100.0);
    Figures {
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
        ceiling_gbps,
        ceiling_percent,
        above_ceiling: ceiling_percent.is_some_and(|p| p > 100.0),
        line_rate_gbps: carrier.used().line_rate_gbps(),
        turns: samples.turns.list(),
        visible_late_us: (!samples.late.is_zero()).then_some(samples.late.as_secs_f64() * 1e6),
    }
}
