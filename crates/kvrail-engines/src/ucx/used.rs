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
        let Some(said) = said.as_deref().and_then(protocol) else { return };
        let direction = match direction {
            Direction::Write => "put",
            Direction::Read => "get",
        };
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() < KINDS_MAX {
            kinds.insert((direction, bytes), said);
        }
    }

    /// Whether any of it names a lane.
    fn names(&self, lane: &Transport) -> bool {
        let resource = format!("{}/{}", lane.name, lane.device);
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.values().any(|said| said.split_whitespace().any(|word| word == resource))
    }

    fn facts(&self) -> Vec<Fact> {
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds
            .iter()
            .map(|((direction, bytes), said)| Fact::new(format!("{direction} of {bytes} B"), said))
            .collect()
    }
}

/// Lanes of an endpoint that carry puts and gets: those that UCX named when it was asked about operations. Releases that do not say emulate
/// both by messages, with memory that UCX did not allocate and transports of processes, and have one lane for both elsewhere: those for
/// messages. Else all.
fn carriers<'a>(lanes: &'a [Transport], said: &Said) -> Vec<&'a Transport> {
    let named: Vec<_> = lanes.iter().filter(|lane| said.names(lane)).collect();
    let messages = || lanes.iter().filter(|lane| lane.uses.split(' ').any(|word| word == "am")).collect();
    [named, messages(), lanes.iter().collect()]
        .into_iter()
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// What UCX said of an operation, without the state of the request and UCX's estimates of rate and time, which are no measurements:
/// `zero-copy cma/memory` of `{proto|cb|init} put from host memory length 8 zero-copy cma/memory 12.9 MB/s 0.59 us`. None where it
/// says nothing.
fn protocol(said: &str) -> Option<String> {
    if said.contains("no debug info") {
        return None;
    }
    let words: Vec<&str> = said.split_whitespace().collect();
    let begin = words.iter().position(|word| *word == "length").map_or(0, |at| at + 2);
    let end = words.iter().position(|word| *word == "MB/s").map_or(words.len(), |at| at.saturating_sub(1));
    words.get(begin..end).filter(|words| !words.is_empty()).map(|words| words.join(" "))
}

pub(super) fn report(library: &Library, handling: ErrorHandling, lanes: &[Transport], said: &Said) -> Used {
    let mut facts = vec![Fact::new("library", library.to_string())];
    let carriers = carriers(lanes, said);
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
    fn what_carries_bytes_is_what_ucx_named_else_what_carries_messages() {
        let lanes = [lane("posix", "memory", "am am_bw#0"), lane("cma", "memory", "rma_bw#0")];
        let said = Said::default();
        assert_eq!(carriers(&lanes, &said), [&lanes[0]]);
        said.note(
            Direction::Write,
            8,
            Some("{proto} put length 8 zero-copy cma/memory 1.0 MB/s 9 us".into()),
        );
        assert_eq!(carriers(&lanes, &said), [&lanes[1]]);
        said.note(Direction::Read, 8, Some("get length 8 software emulation posix/memory".into()));
        assert_eq!(carriers(&lanes, &said), [&lanes[0], &lanes[1]]);
        let silent = [lane("tcp", "eth0", "")];
        assert_eq!(carriers(&silent, &said), [&silent[0]]);
        assert!(carriers(&[], &said).is_empty());
    }

    #[test]
    fn estimates_and_states_are_left_out() {
        let said = "{proto|cb|init} put from host memory length 8 zero-copy cma/memory 12.9 MB/s 0.59 us";
        assert_eq!(protocol(said).as_deref(), Some("zero-copy cma/memory"));
        assert_eq!(protocol("flags:0x40 <no debug info>"), None);
        for odd in ["", "length", "length 8", "MB/s", "length 8 MB/s"] {
            assert_eq!(protocol(odd), None, "{odd}");
        }
        assert_eq!(protocol("something new").as_deref(), Some("something new"));
    }
}
