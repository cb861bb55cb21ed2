//! What a row's figure cannot honestly exceed, with the source of each number.

use crate::{Carriage, Ceiling, CeilingKind, Document, Row, Sides};

/// Lowest first.
pub(super) fn of_row(document: &Document, row: &Row) -> Vec<Ceiling> {
    let limits = [line_rate(document, row), pcie(document, row), memcpy(row), raw_fabric(document, row)];
    let mut ceilings: Vec<Ceiling> = limits
        .into_iter()
        .flatten()
        .filter(|(_, gbps, _)| gbps.is_finite() && *gbps > 0.0)
        .map(|(kind, gbps, source)| {
            let percent = row.figures.as_ref().map(|figures| figures.bandwidth_gbps / gbps * 100.0);
            Ceiling { kind, gbps, source, percent }
        })
        .collect();
    ceilings.sort_by(|a, b| a.gbps.total_cmp(&b.gbps));
    ceilings
}

type Limit = Option<(CeilingKind, f64, String)>;

/// The line rate of the rails that carried bytes, of the side where it is lower. Where an engine does not say which rails
/// it used, all NICs of the host are what it cannot exceed; that counts only between hosts.
fn line_rate(document: &Document, row: &Row) -> Limit {
    let carried: Vec<u64> =
        row.rails.iter().filter(|rail| rail.bytes_posted > 0).map(|rail| rail.rate_bps).collect();
    let used = document.used(row);
    let here = rates(&carried).map(|sum| (sum, "rails that carried bytes")).or_else(|| {
        let rates_there: Vec<u64> =
            used?.initiator.as_ref()?.rails.iter().map(|rail| rail.rate_bps).collect();
        carried.is_empty().then(|| rates(&rates_there)).flatten().map(|sum| (sum, "the initiator's rails"))
    });
    let there = used.and_then(|used| used.target.as_ref()).and_then(Carriage::line_rate_gbps);
    match (here, there) {
        (Some(((sum, how), of)), Some(there)) if there < sum => {
            Some((CeilingKind::LineRate, there, format!("line rate of the target's rails; {of}: {how}")))
        }
        (Some(((sum, how), of)), _) => {
            Some((CeilingKind::LineRate, sum, format!("line rate of {of}: {how}")))
        }
        (None, _) => all_nics(document, row),
    }
}

/// Sum of rates, GB/s, and how it comes about; nothing when one is unknown.
fn rates(bps: &[u64]) -> Option<(f64, String)> {
    let known = !bps.is_empty() && bps.iter().all(|bps| *bps > 0);
    let gbit = |bps: u64| bps as f64 / 1e9;
    known.then(|| {
        let equal = bps.windows(2).all(|pair| pair[0] == pair[1]);
        let rates: Vec<String> = bps.iter().map(|bps| gbit(*bps).to_string()).collect();
        let how = if equal {
            format!("{} of {} Gb/s", bps.len(), rates[0])
        } else {
            format!("{} Gb/s", rates.join(" + "))
        };
        (bps.iter().map(|bps| *bps as f64).sum::<f64>() / 8e9, how)
    })
}

fn all_nics(document: &Document, row: &Row) -> Limit {
    if super::carried_on_one_host(document, row) {
        return None;
    }
    let Sides { initiator, target } = &document.fingerprint;
    let sum = |side: &Option<crate::Fingerprint>| {
        let nics = &side.as_ref()?.topology.as_ref()?.nics;
        let known = !nics.is_empty() && nics.iter().all(|nics| nics.rate_bps > 0);
        known.then(|| nics.iter().map(|nics| nics.count as f64 * nics.rate_bps as f64).sum::<f64>() / 8e9)
    };
    let (here, there) = (sum(initiator)?, sum(target)?);
    let source = "line rate of all NICs of the host; which of them were used is not known";
    Some((CeilingKind::LineRate, here.min(there), source.into()))
}

fn pcie(document: &Document, row: &Row) -> Limit {
    let used = document.used(row)?;
    let sides = [("initiator", &used.initiator), ("target", &used.target)];
    let paths = sides.into_iter().filter_map(|(name, side)| Some((name, side.as_ref()?.path.as_ref()?)));
    let (side, path) = paths.min_by_key(|(_, path)| path.bps)?;
    Some((CeilingKind::Pcie, path.bps as f64 / 8e9, format!("{}, {side}", path.bound)))
}

fn memcpy(row: &Row) -> Limit {
    let gbps = row.figures.as_ref()?.ceiling_gbps?;
    Some((CeilingKind::Memcpy, gbps, "plain copies of the same blocks, in turns with the transfers".into()))
}

/// Plain operations of the same case in the same run, over the same provider where both say theirs.
fn raw_fabric(document: &Document, row: &Row) -> Limit {
    let is_raw = |row: &Row| row.engine.split(':').next() == Some("libfabric");
    let provider = |row: &Row| document.used(row)?.initiator.as_ref()?.provider().map(str::to_string);
    if is_raw(row) || provider(row).is_none() {
        return None;
    }
    let raw = document.results.iter().find(|other| {
        is_raw(other)
            && other.case == row.case
            && other.bandwidth_gbps().is_some()
            && provider(other) == provider(row)
    })?;
    let source = format!("plain operations of provider {} in the same run", provider(raw)?);
    Some((CeilingKind::RawFabric, raw.bandwidth_gbps()?, source))
}
