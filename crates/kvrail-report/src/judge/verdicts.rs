//! What a figure and its ceilings say together, in sentences that name the numbers.

use crate::units::Size;
use crate::{Ceiling, CeilingKind, Document, Failure, Row, Severity, Used, Verdict, Verify};

/// A line rate is exact, a clock is not: what exceeds it by no more may have crossed it.
const CLOCK_TOLERANCE: f64 = 1.02;
/// A figure within this share of one rail's rate equals one rail.
const ONE_RAIL_TOLERANCE: f64 = 0.10;
/// One rail carries all when it carries at least this share of the bytes.
const ONE_RAIL_SHARE: f64 = 0.9;
/// Smaller transfers are not striped by any engine, and pass every rate on the way up of a sweep.
const STRIPED_BYTES_MIN: u64 = 1 << 20;

/// A verdict.
pub(crate) fn verdict(id: &str, severity: Severity, text: String) -> Verdict {
    Verdict { id: id.into(), severity, text }
}

/// The verdicts on a row that need no expectation.
pub(super) fn of_row(document: &Document, row: &Row, ceilings: &[Ceiling]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    verdicts.extend(row.failure.as_ref().map(failed));
    verdicts.extend(fallback(document, row));
    if let Some(figures) = &row.figures {
        let crossed = not_crossed(document, row, figures.bandwidth_gbps, ceilings);
        let impossible = crossed.is_some();
        verdicts.extend(crossed);
        verdicts.extend(unproved(row));
        verdicts.extend(figures.visible_late_us.map(done_before_visible));
        if !impossible {
            verdicts.extend(one_rail(document, row, figures.bandwidth_gbps));
            verdicts.extend(crate::expect::low(document, row));
            verdicts.extend(above_copy(figures.bandwidth_gbps, ceilings));
        }
    }
    verdicts
}

/// Whether both ends are on one host, so that no wire needs to be between them.
pub(crate) fn carried_on_one_host(document: &Document, row: &Row) -> bool {
    if matches!(row.transport.as_deref(), Some("shm" | "memcpy")) {
        return true;
    }
    let sides = &document.environment;
    match (&sides.initiator, &sides.target) {
        (Some(here), Some(there)) => here.host == there.host,
        // A run that never met its target had none elsewhere, as far as it knows.
        _ => false,
    }
}

fn failed(failure: &Failure) -> Verdict {
    let advice: String = failure.hints.iter().map(|hint| format!("; {hint}")).collect();
    verdict("engine-failed", Severity::Bad, format!("{}{advice}", failure.what))
}

/// Completion came before the bytes: the engine says only that they have left.
fn done_before_visible(late_us: f64) -> Verdict {
    let text = format!(
        "writes were reported done before their bytes were at the target, which had them up to {} later: who reads on completion \
         reads old bytes; this engine's notification is the only evidence",
        crate::units::span(std::time::Duration::from_secs_f64(late_us.clamp(0.0, 1e9) / 1e6))
    );
    verdict("done-before-visible", Severity::Warning, text)
}

fn unproved(row: &Row) -> Option<Verdict> {
    match row.verify {
        Verify::Off => Some(verdict(
            "unseen",
            Severity::Bad,
            "nobody looked at the bytes: whether this figure counts cannot be told".into(),
        )),
        _ if !row.verified => Some(verdict(
            "wrong-bytes",
            Severity::Bad,
            "bytes arrived wrong: this figure does not count".into(),
        )),
        _ => None,
    }
}

/// Above what its wires carry: the bytes took another way.
fn not_crossed(document: &Document, row: &Row, gbps: f64, ceilings: &[Ceiling]) -> Option<Verdict> {
    let wires = |ceiling: &&Ceiling| matches!(ceiling.kind, CeilingKind::LineRate | CeilingKind::Pcie);
    let ceiling = ceilings.iter().filter(wires).find(|ceiling| gbps > ceiling.gbps * CLOCK_TOLERANCE)?;
    let host = document.environment.initiator.as_ref().map(|here| here.host.as_str());
    let way = match host.filter(|_| carried_on_one_host(document, row)) {
        Some(host) => format!("both sides are on {host}, where memory is shared"),
        None => "look whether both sides are on one host (shared memory, CUDA IPC), and whether the tool counts bits or \
                 several directions"
            .into(),
    };
    let text = format!(
        "{} GB/s did not cross the network: it is {:.1} times the {} GB/s of the {}; {way}",
        number(gbps),
        gbps / ceiling.gbps,
        number(ceiling.gbps),
        ceiling.source,
    );
    Some(verdict("did-not-cross-the-network", Severity::Bad, text))
}

/// Several rails, and the rate of one.
fn one_rail(document: &Document, row: &Row, gbps: f64) -> Option<Verdict> {
    if row.transfer_bytes() < STRIPED_BYTES_MIN {
        return None;
    }
    let used = document.used(row)?;
    let rails = &used.initiator.as_ref()?.rails;
    let asked = row.asked.rails.map_or(0, |rails| rails as usize);
    let count = rails.len().max(asked);
    let fastest = rails.iter().map(|rail| rail.rate_bps).max().filter(|bps| *bps > 0)?;
    let one = fastest as f64 / 8e9;
    if count < 2 || (gbps / one - 1.0).abs() > ONE_RAIL_TOLERANCE {
        return None;
    }
    // Where the rails' own counters are known, they decide: half a line rate over two rails is no single rail.
    let carried: u64 = row.rails.iter().map(|rail| rail.bytes_posted).sum();
    let most = row.rails.iter().max_by_key(|rail| rail.bytes_posted);
    let evidence = match most.filter(|_| carried > 0) {
        Some(rail) if rail.bytes_posted as f64 >= ONE_RAIL_SHARE * carried as f64 => {
            format!(
                ": {} carried {:.0}% of the bytes",
                rail.name,
                rail.bytes_posted as f64 / carried as f64 * 100.0
            )
        }
        Some(_) => return None,
        None => String::new(),
    };
    let text = format!(
        "striping is off: {} GB/s is what one rail carries ({} GB/s), and there are {count}{evidence}",
        number(gbps),
        number(one)
    );
    Some(verdict("striping-is-off", Severity::Warning, text))
}

/// More than one copying loop reaches, which is possible, and worth a word.
fn above_copy(gbps: f64, ceilings: &[Ceiling]) -> Option<Verdict> {
    let copy = ceilings.iter().find(|ceiling| ceiling.kind == CeilingKind::Memcpy)?;
    let above = gbps / copy.gbps;
    (above > 1.0).then(|| {
        let text = format!(
            "{above:.2} times the plain copy ({} GB/s): more cores, or stores past the cache, than one copying loop has",
            number(copy.gbps)
        );
        verdict("above-plain-copy", Severity::Note, text)
    })
}

/// Something else than was asked for, or the slow way although the fast one is there.
fn fallback(document: &Document, row: &Row) -> Option<Verdict> {
    let used = document.used(row);
    let side = used.and_then(|used| used.initiator.as_ref());
    let differs = |asked: &Option<String>, got: Option<&str>| match (asked, got) {
        (Some(asked), Some(got)) if !asked.eq_ignore_ascii_case(got) => {
            Some((asked.clone(), got.to_string()))
        }
        _ => None,
    };
    let say = |what: &str, asked: &str, got: &str| {
        let why = row.transport_reason.as_deref().map_or_else(String::new, |why| format!(" ({why})"));
        let text = format!("{what} {asked} was asked for, and {got} was used{why}");
        Some(verdict("fallback", Severity::Warning, text))
    };
    // Other engines take lists and aliases of transports, of which they use some, and nothing else.
    if row.engine == "kvrail"
        && let Some((asked, got)) = differs(&row.asked.transport, row.transport.as_deref())
    {
        return say("transport", &asked, &got);
    }
    if let Some((asked, got)) = differs(&row.asked.provider, side.and_then(|side| side.provider())) {
        return say("provider", &asked, &got);
    }
    if let Some((asked, got)) = differs(&row.asked.backend, side.and_then(|side| side.backend())) {
        return say("backend", &asked, &got);
    }
    let rails = side.map(|side| side.rails.len()).filter(|rails| *rails > 0);
    if let (Some(asked), Some(got)) = (row.asked.rails, rails)
        && got < asked as usize
    {
        return say("that", &format!("{asked} rails are used"), &format!("{got}"));
    }
    slow_way(document, row, used?)
}

/// TCP between hosts that have RDMA NICs, without anybody having asked for it.
fn slow_way(document: &Document, row: &Row, used: &Used) -> Option<Verdict> {
    let side = used.initiator.as_ref()?;
    let tcp = |name: Option<&str>| name.is_some_and(|name| name.to_ascii_lowercase().starts_with("tcp"));
    let asked = tcp(row.asked.transport.as_deref()) || tcp(row.asked.provider.as_deref());
    if asked || !(tcp(Some(&side.transport)) || tcp(side.provider())) || carried_on_one_host(document, row) {
        return None;
    }
    let topology = document.fingerprint.initiator.as_ref()?.topology.as_ref()?;
    let rdma = |driver: &str| ["efa", "mlx5_core", "mlx4_core", "bnxt_en", "irdma", "cxi"].contains(&driver);
    let idle = topology.nics.iter().find(|nics| rdma(&nics.kind))?;
    let text = format!(
        "TCP was used although this host has {} {} NIC{}; see what `kvrail topo` says of them, and whether the library \
         that should drive them loads",
        idle.count,
        idle.kind,
        if idle.count == 1 { "" } else { "s" }
    );
    Some(verdict("fallback", Severity::Warning, text))
}

/// Three significant digits, without zeros that say nothing.
pub(crate) fn number(gbps: f64) -> String {
    let text = match gbps {
        gbps if gbps < 0.1 => format!("{gbps:.4}"),
        gbps if gbps < 10.0 => format!("{gbps:.2}"),
        gbps => format!("{gbps:.1}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').into()
}

/// What a row is, in few words: `write, 100 x 32 KiB scattered`.
pub(crate) fn shape(row: &Row) -> String {
    let batch =
        if row.batch == 1 { String::new() } else { format!("{} x ", crate::units::grouped(row.batch)) };
    format!("{}, {batch}{} {}", row.op, Size(row.block_bytes), row.layout)
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
