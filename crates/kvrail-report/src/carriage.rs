//! What an engine really ran on, as the document and the head of a table tell it (KR-13).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What one engine ran on with one transport, on both sides.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Used {
    /// The engine, as rows name it.
    #[serde(default = "crate::row::kvrail")]
    pub engine: String,
    /// The initiator's side; null where it is not known.
    pub initiator: Option<Carriage>,
    /// The target's.
    pub target: Option<Carriage>,
}

impl Used {
    /// What stands above the figures in a table.
    #[must_use]
    pub fn head(&self) -> Vec<String> {
        self.initiator.as_ref().map_or_else(Vec::new, |here| head(here, self.target.as_ref()))
    }

    /// The lower of both sides' line rates, GB/s, where it is known.
    #[must_use]
    pub fn line_rate_gbps(&self) -> Option<f64> {
        line_rate_gbps(self.initiator.as_ref()?, self.target.as_ref())
    }

    /// Name of the transport, where a side is known.
    #[must_use]
    pub fn transport(&self) -> Option<&str> {
        let side = self.initiator.as_ref().or(self.target.as_ref())?;
        Some(&side.transport)
    }
}

/// One side's transport.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Carriage {
    /// Its name: `shm`, `ofi`, `tcp`, `ucx`…
    pub transport: String,
    /// What proves that a write is visible: `counted`, `delivered`; empty where the engine does not say.
    pub evidence: String,
    /// In the order of their indices.
    pub rails: Vec<Rail>,
    /// Over libfabric only.
    pub libfabric: Option<Libfabric>,
    /// The way between these rails and host memory, where the topology shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
    /// What else the engine says of itself, in its own words: backend, lanes, protocols, parameters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
}

/// One rail.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rail {
    /// Its name.
    pub name: String,
    /// Line rate, bits per second; 0 when unknown.
    pub rate_bps: u64,
    /// PCI address.
    pub pci: Option<String>,
    /// NUMA node.
    pub numa: Option<u16>,
}

/// What PCIe lets through between the rails and memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Path {
    /// Bits per second in one direction, packet headers not taken off: 5–20 % above what can be reached.
    pub bps: u64,
    /// What sets it, for people: `PCIe 5.0 x16 link of bridge 0000:10:01.0`.
    pub bound: String,
}

/// What libfabric is and grants.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Libfabric {
    /// The provider that carries the bytes: `efa-direct`, `efa`, `tcp`…
    pub provider: String,
    /// Its fabric.
    pub fabric: String,
    /// Providers that were asked before, and why they were not used.
    pub passed_over: Vec<String>,
    /// NICs that are there and no rails, and why.
    pub left_out: Vec<String>,
    /// The library's file.
    pub path: String,
    /// The release that the file's name stands for.
    pub file: Option<String>,
    /// The release that the library says it is.
    pub release: String,
    /// Its highest symbol version.
    pub symbols: String,
    /// Why writes are proved that way.
    pub evidence_why: String,
    /// How immediates are received.
    pub receives: String,
    /// How an idle thread is woken.
    pub wait: String,
    /// Memory for messages, contexts and receives of all rails together.
    pub control_bytes: u64,
}

/// Longest line of a head.
const COLUMNS: usize = 100;

impl Carriage {
    /// The libfabric provider, where there is one.
    #[must_use]
    pub fn provider(&self) -> Option<&str> {
        let own = self.libfabric.as_ref().map(|libfabric| libfabric.provider.as_str());
        own.or_else(|| self.facts.get("provider").map(String::as_str))
    }

    /// The backend of an engine that has several.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        self.facts.get("backend").map(String::as_str)
    }

    /// Sum of the rails' line rates, GB/s; nothing when one is unknown.
    #[must_use]
    pub fn line_rate_gbps(&self) -> Option<f64> {
        let known = !self.rails.is_empty() && self.rails.iter().all(|rail| rail.rate_bps > 0);
        known.then(|| self.rails.iter().map(|rail| rail.rate_bps as f64).sum::<f64>() / 8e9)
    }

    /// `32 rails of 100 Gb/s, rdmap79s0 to rdmap113s0`.
    fn inventory(&self) -> String {
        let count = match self.rails.len() {
            1 => "1 rail".into(),
            n => format!("{n} rails"),
        };
        let rates: Vec<u64> = self.rails.iter().map(|rail| rail.rate_bps).collect();
        let gbps = |bps: u64| bps as f64 / 1e9;
        let rates = match (rates.iter().min(), rates.iter().max()) {
            (Some(0), _) | (None, _) => "of unknown rate".into(),
            (Some(least), Some(most)) if least == most => format!("of {} Gb/s", gbps(*least)),
            (Some(least), Some(most)) => format!("of {} to {} Gb/s", gbps(*least), gbps(*most)),
            (Some(_), None) => String::new(),
        };
        let names = match self.rails.as_slice() {
            [] => String::new(),
            [one] => format!(", {}", one.name),
            [first, .., last] => format!(", {} to {}", first.name, last.name),
        };
        format!("{count} {rates}{names}")
    }
}

/// The lower of both sides' line rates.
pub(crate) fn line_rate_gbps(initiator: &Carriage, target: Option<&Carriage>) -> Option<f64> {
    let there = target.map_or(initiator, |there| there).line_rate_gbps()?;
    initiator.line_rate_gbps().map(|here| here.min(there))
}

/// What stands above the figures, for a transport over libfabric.
#[must_use]
pub fn head(initiator: &Carriage, target: Option<&Carriage>) -> Vec<String> {
    let Some(here) = &initiator.libfabric else { return Vec::new() };
    let mut lines = Vec::new();
    let library = |of: &Libfabric| {
        let file = of.file.as_deref().unwrap_or("file without version");
        let first = format!("provider {}, libfabric {} ({file}, {}):", of.provider, of.release, of.symbols);
        [first, format!("  {}", of.path)]
    };
    let there = target.and_then(|target| target.libfabric.as_ref());
    match there {
        Some(there) if library(there) != library(here) => {
            for (side, of) in [("initiator", here), ("target", there)] {
                let [first, path] = library(of);
                lines.extend([format!("{side}: {first}"), path]);
            }
        }
        _ => lines.extend(library(here)),
    }
    match target {
        Some(target) if target.inventory() != initiator.inventory() => {
            lines.push(format!("initiator: {}", initiator.inventory()));
            lines.push(format!("target: {}", target.inventory()));
        }
        _ => lines.push(format!("{} on each side", initiator.inventory())),
    }
    lines.extend(here.left_out.iter().map(|left| format!("left out: {left}")));
    lines.push(format!("evidence {}; idle threads are woken {}", initiator.evidence, here.wait));
    if let Some(rate) = line_rate_gbps(initiator, target) {
        lines.push(format!("ceilings: the rails' line rate, {rate:.3} GB/s, and a plain copy on this host"));
    }
    lines.iter().map(|line| shortened(line)).collect()
}

/// A line that fits a terminal: what is too much is taken out of its middle, where the long paths are.
fn shortened(line: &str) -> String {
    let count = line.chars().count();
    if count <= COLUMNS {
        return line.into();
    }
    let (first, last) = (COLUMNS / 2, COLUMNS - COLUMNS / 2 - 1);
    let head: String = line.chars().take(first).collect();
    let tail: String = line.chars().skip(count - last).collect();
    format!("{head}…{tail}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn carriage(rails: u16, rate_bps: u64) -> Carriage {
        let rail = |i: u16| Rail { name: format!("rdmap{i}s0"), rate_bps, pci: None, numa: Some(i / 16) };
        Carriage {
            transport: "ofi".into(),
            evidence: "counted".into(),
            rails: (0..rails).map(rail).collect(),
            libfabric: Some(Libfabric {
                provider: "efa-direct".into(),
                fabric: "efa-direct".into(),
                passed_over: Vec::new(),
                left_out: Vec::new(),
                path: format!("/{}/libfabric.so.1", "long".repeat(30)),
                file: Some("v2.5".into()),
                release: "2.5".into(),
                symbols: "FABRIC_1.9".into(),
                evidence_why: String::new(),
                receives: String::new(),
                wait: "by a timer".into(),
                control_bytes: 1 << 20,
            }),
            ..Carriage::default()
        }
    }

    #[test]
    fn the_head_names_provider_library_rails_and_the_ceiling() {
        let p5 = carriage(32, 100_000_000_000);
        let lines = head(&p5, Some(&p5));
        assert_eq!(lines[0], "provider efa-direct, libfabric 2.5 (v2.5, FABRIC_1.9):");
        assert!(lines[1].starts_with("  /long") && lines[1].ends_with("long/libfabric.so.1"), "{lines:?}");
        assert_eq!(lines[2], "32 rails of 100 Gb/s, rdmap0s0 to rdmap31s0 on each side");
        assert!(lines[4].contains("400.000 GB/s"), "{lines:?}");
        assert!(lines.iter().all(|line| line.chars().count() <= COLUMNS));
    }

    #[test]
    fn sides_that_differ_are_told_apart_and_the_slower_one_bounds() {
        let (one, many) = (carriage(1, 100_000_000_000), carriage(32, 100_000_000_000));
        assert_eq!(line_rate_gbps(&many, Some(&one)), Some(12.5));
        let lines = head(&many, Some(&one));
        assert!(lines.iter().any(|line| line == "target: 1 rail of 100 Gb/s, rdmap0s0"), "{lines:?}");
        assert_eq!(line_rate_gbps(&carriage(2, 0), None), None);
    }
}
