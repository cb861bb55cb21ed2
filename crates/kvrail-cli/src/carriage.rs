//! What a side's transport runs on, taken over from the library's facts.

use std::collections::BTreeMap;

use kvrail_engines::{PASSED_OVER, Used};
use kvrail_report::fingerprint::path_ceiling;
use kvrail_report::{Carriage, Libfabric, Path, Rail};
use kvrail_topology::Topology;

/// One side's transport.
pub(crate) fn carriage(used: &Used) -> Carriage {
    let ofi = used.ofi.as_deref();
    let rails = used.rails.iter().map(|rail| Rail {
        name: rail.name.clone(),
        rate_bps: rail.rate_bps,
        pci: rail.pci.clone(),
        numa: rail.numa,
    });
    let rails: Vec<Rail> = rails.collect();
    let texts = |passed: &[kvrail::ofi::PassedOver]| passed.iter().map(ToString::to_string).collect();
    Carriage {
        transport: used.transport.clone(),
        evidence: used.evidence.clone(),
        path: path(&rails),
        rails,
        libfabric: ofi.map(|ofi| Libfabric {
            provider: ofi.provider.clone(),
            fabric: ofi.fabric.clone(),
            passed_over: texts(&ofi.passed),
            left_out: texts(&ofi.left_out),
            path: ofi.library.path.display().to_string(),
            file: ofi.library.file.clone(),
            release: ofi.library.release.clone(),
            symbols: ofi.library.symbols.clone(),
            evidence_why: ofi.evidence_why.into(),
            receives: ofi.receives.to_string(),
            wait: ofi.wait.to_string(),
            control_bytes: ofi.control_bytes,
        }),
        facts: facts(used),
    }
}

/// What else it says; a name that comes more than once has its values joined.
fn facts(used: &Used) -> BTreeMap<String, String> {
    let mut facts: BTreeMap<String, String> = BTreeMap::new();
    for fact in used.facts.iter().filter(|fact| fact.name != PASSED_OVER) {
        let value = facts.entry(fact.name.clone()).or_default();
        if !value.is_empty() {
            value.push_str("; ");
        }
        value.push_str(&fact.value);
    }
    facts
}

/// What PCIe lets through to the rails; nothing where the topology cannot be read.
fn path(rails: &[Rail]) -> Option<Path> {
    if rails.iter().all(|rail| rail.rate_bps == 0) {
        return None;
    }
    path_ceiling(&Topology::read_default().ok()?, rails.iter().map(|rail| rail.name.as_str()))
}
