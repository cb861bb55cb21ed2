//! What UCX really used: its own words, and what they mean for a report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use kvrail_sys::ucp::{ErrorHandling, Library, Transport};
use kvrail_topology::Topology;

use crate::engine::Direction;
use crate::used::{Fact, Rail, Used};

/// Most kinds of transfers whose descriptions are kept.
const KINDS_MAX: usize = 64;

/// What UCX said of operations in flight, by direction and bytes.
#[derive(Default)]
pub(super) struct Said {
    kinds: Mutex<BTreeMap<(&'static str, usize), String>>,
}

impl Said {
    pub(super) fn note(&self, direction: Direction, bytes: usize, said: Option<String>) {
        let Some(said) = said else { return };
        let direction = match direction {
            Direction::Write => "put",
            Direction::Read => "get",
        };
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() < KINDS_MAX {
            kinds.insert((direction, bytes), said);
        }
    }

    fn facts(&self) -> Vec<Fact> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds
            .iter()
            .map(|((direction, bytes), said)| Fact::new(format!("{direction} of {bytes} B"), said))
            .collect()
    }
}

/// Lanes of an endpoint that carry puts and gets: those that UCX says are for them, else, where UCX emulates both by messages, those for
/// messages, else all.
pub(super) fn carriers(lanes: &[Transport]) -> Vec<&Transport> {
    let of = |word: &str| lanes.iter().filter(|lane| lane.uses.contains(word)).collect::<Vec<_>>();
    [of("rma"), of("am"), lanes.iter().collect()]
        .into_iter()
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

pub(super) fn report(library: &Library, handling: ErrorHandling, lanes: &[Transport], said: &Said) -> Used {
    let mut facts = vec![Fact::new("library", library.to_string())];
    let carriers = carriers(lanes);
    if !lanes.is_empty() {
        let words: Vec<String> = lanes
            .iter()
            .map(|lane| match lane.uses.as_str() {
                "" => format!("{}/{}", lane.name, lane.device),
                uses => format!("{}/{} ({uses})", lane.name, lane.device),
            })
            .collect();
        facts.push(Fact::new("lanes", words.join(", ")));
    }
    let handling = match handling {
        ErrorHandling::Peer => "peer",
        ErrorHandling::None => "none",
    };
    facts.push(Fact::new("error handling", handling));
    facts.extend(said.facts());
    let names: BTreeSet<&str> = carriers.iter().map(|lane| lane.name.as_str()).collect();
    let transport =
        if names.is_empty() { "unknown".into() } else { names.into_iter().collect::<Vec<_>>().join("+") };
    Used {
        version: library.version().to_owned(),
        transport,
        evidence: "flushed".into(),
        rails: rails(&carriers),
        facts,
        ofi: None,
    }
}

/// The NICs among the devices, with what the host's topology knows of them.
fn rails(carriers: &[&Transport]) -> Vec<Rail> {
    let mut devices: Vec<&str> = Vec::new();
    for lane in carriers {
        // `memory` is no device; `mlx5_0:1` is port 1 of one.
        let device = lane.device.split(':').next().unwrap_or_default();
        if !device.is_empty() && device != "memory" && !devices.contains(&device) {
            devices.push(device);
        }
    }
    if devices.is_empty() {
        return Vec::new();
    }
    let topology = Topology::read_default().ok();
    let rail = |device: &str| {
        let known = topology
            .as_ref()
            .and_then(|topology| topology.nic_by_name(device).or_else(|| topology.nic_by_interface(device)));
        Rail {
            name: device.to_owned(),
            rate_bps: known.and_then(|nic| nic.rate_bps).unwrap_or(0),
            pci: known.and_then(|nic| nic.pci).map(|pci| pci.to_string()),
            numa: known.and_then(|nic| nic.numa).and_then(|numa| u16::try_from(numa).ok()),
        }
    };
    devices.into_iter().map(rail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(name: &str, device: &str, uses: &str) -> Transport {
        let mut lane = Transport::default();
        (lane.name, lane.device, lane.uses) = (name.into(), device.into(), uses.into());
        lane
    }

    #[test]
    fn what_carries_bytes_is_told_from_what_carries_messages() {
        let both = [lane("posix", "memory", "am am_bw#0"), lane("cma", "memory", "rma_bw#0")];
        assert_eq!(carriers(&both), [&both[1]]);
        assert_eq!(carriers(&both[..1]), [&both[0]]);
        let silent = [lane("tcp", "eth0", "")];
        assert_eq!(carriers(&silent), [&silent[0]]);
        assert!(carriers(&[]).is_empty());
    }
}
