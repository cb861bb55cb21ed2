//! What a side's transport runs on, taken over from the library's facts.

use std::collections::BTreeMap;

use kvrail::TransportFacts;
use kvrail_report::fingerprint::path_ceiling;
use kvrail_report::{Carriage, Libfabric, Path, Rail};
use kvrail_topology::Topology;

/// One side's transport.
pub(crate) fn carriage(facts: &TransportFacts) -> Carriage {
    let ofi = facts.ofi.as_deref();
    let at = |index: usize| ofi.and_then(|ofi| ofi.rails.get(index));
    let rails = facts.rails.iter().enumerate();
    let rails: Vec<Rail> = rails
        .map(|(index, rail)| Rail {
            name: rail.name.clone(),
            rate_bps: rail.rate_bps,
            pci: at(index).and_then(|rail| rail.pci.clone()),
            numa: at(index).and_then(|rail| rail.numa),
        })
        .collect();
    let texts = |passed: &[kvrail::ofi::PassedOver]| passed.iter().map(ToString::to_string).collect();
    Carriage {
        transport: facts.name.into(),
        evidence: facts.evidence.to_string(),
        path: ofi.and_then(|_| path(&rails)),
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
        facts: BTreeMap::new(),
    }
}

/// What PCIe lets through to the rails; nothing where the topology cannot be read.
fn path(rails: &[Rail]) -> Option<Path> {
    path_ceiling(&Topology::read_default().ok()?, rails.iter().map(|rail| rail.name.as_str()))
}
