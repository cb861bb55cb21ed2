//! Rails that carry less than their siblings, or than their line.

use super::super::facts::{Counted, Facts, Rail};
use super::super::rules::SLOW_RAIL;
use super::NAMED_MAX;
use crate::finding::Finding;
use crate::rule::Confidence;

/// Below this share of the median of all rails one is slow; on emulated devices the host's scheduler has a say.
const SIBLINGS_SHARE: f64 = 0.6;
const SIBLINGS_SHARE_EMULATED: f64 = 0.15;
/// Rails without which there is no median to compare with.
const SIBLINGS_MIN: usize = 3;
/// Below this share of its line rate a rail is slow whatever its siblings do.
const LINE_SHARE: f64 = 0.5;

/// Rails that carry far less than most: worth a second look before anybody calls them slow.
#[must_use]
pub fn far_below(rails: &[Rail]) -> Vec<usize> {
    let mut rates: Vec<f64> = rails.iter().filter_map(Rail::rate).collect();
    rates.sort_by(f64::total_cmp);
    let Some(&median) = rates.get(rates.len() / 2) else { return Vec::new() };
    let below = |rail: &Rail| rail.rate().is_some_and(|rate| rate < SIBLINGS_SHARE * median);
    (0..rails.len()).filter(|at| below(&rails[*at])).collect()
}

pub(super) fn slow(facts: &Facts) -> Vec<Finding> {
    let measured: Vec<(&Rail, f64)> =
        facts.rails.iter().filter_map(|rail| Some((rail, rail.rate()?))).collect();
    let mut rates: Vec<f64> = measured.iter().map(|(_, rate)| *rate).collect();
    rates.sort_by(f64::total_cmp);
    let Some(&median) = rates.get(rates.len() / 2) else { return Vec::new() };
    // What bounds figures of emulated devices and debug builds is this host's memory and cores, not a line.
    let real = ![&facts.here, &facts.there].iter().any(|side| side.emulated || side.debug_build);
    let share = if real { SIBLINGS_SHARE } else { SIBLINGS_SHARE_EMULATED };
    let below = |(rail, rate): &(&Rail, f64)| {
        real && facts.is_fabric() && rail.line().is_some_and(|line| *rate < LINE_SHARE * line)
    };
    let outliers: Vec<&(&Rail, f64)> = measured
        .iter()
        .filter(|(_, rate)| measured.len() >= SIBLINGS_MIN && *rate < share * median)
        .collect();
    let mut findings: Vec<Finding> = outliers
        .iter()
        .take(NAMED_MAX)
        .map(|(rail, rate)| {
            let title = format!(
                "rail {} carries {:.2} GB/s, its siblings {:.2}",
                rail.name(),
                rate / 1e9,
                median / 1e9
            );
            about_speed(Finding::new(&SLOW_RAIL, title).confidence(Confidence::Likely), facts, rail, *rate)
        })
        .collect();
    let slow: Vec<&(&Rail, f64)> = measured
        .iter()
        .filter(|one| below(one) && !outliers.iter().any(|(rail, _)| std::ptr::eq(*rail, one.0)))
        .collect();
    if let Some((rail, rate)) = slow.first() {
        let line = rail.line().unwrap_or_default();
        let title = format!(
            "{} of {} rails carry at most {:.0} % of their line rate, as {} with {:.2} of {:.1} GB/s",
            slow.len(),
            facts.rails.len(),
            slow.iter()
                .map(|(rail, rate)| 100.0 * rate / rail.line().unwrap_or(f64::MAX))
                .fold(0.0, f64::max),
            rail.name(),
            rate / 1e9,
            line / 1e9
        );
        let finding = Finding::new(&SLOW_RAIL, title)
            .cause("all are slow alike: a busy NIC, memory or process of this host, or a setting that concerns all of them")
            .confidence(Confidence::Possible);
        findings.push(about_speed(finding, facts, rail, *rate));
    }
    findings
}

fn about_speed(mut finding: Finding, facts: &Facts, rail: &Rail, rate: f64) -> Finding {
    if let Some(line) = rail.line() {
        let seen = format!("{:.2} GB/s of {:.2} GB/s", rate / 1e9, line / 1e9);
        finding = finding.evidence(format!("line rate of {}", rail.name()), seen);
    }
    for (side, counted) in [(&facts.here, rail.counted_here), (&facts.there, rail.counted_there)] {
        if let Some(Counted { tx, again: Some(again), .. }) = counted
            && again > tx / 100
        {
            let seen = format!("{again} of {tx} packets were sent again: loss on the way");
            finding = finding.evidence(format!("retrans_pkts of {} on {}", rail.here, side.host), seen);
        }
    }
    if facts.here.emulated || facts.there.emulated {
        finding = finding
            .evidence("ceiling", "the devices are emulated: only rails beside each other can be compared");
    }
    finding.fix("PCIe links and NUMA nodes of the NICs, on both hosts", "kvrail topo").fix(
        "measure one rail at length",
        {
            let device =
                if rail.here.is_empty() { String::new() } else { format!(" --devices {}", rail.here) };
            format!("kvrail bench --transport ofi{device} --connect {}:7100", facts.there.host)
        },
    )
}
