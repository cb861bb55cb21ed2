//! What a step may need of the host, and whether it is there. What is not is the reason for which a step is skipped, by name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use kvrail_topology::{Nic, NicKind, Source, Topology};

/// Something that not every host has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Need {
    /// The real NIXL.
    Nixl,
    /// A UCX.
    Ucx,
    /// A libfabric.
    Libfabric,
    /// A NIC that does RDMA, of any kind.
    RdmaNic,
    /// An EFA NIC.
    Efa,
    /// A GPU.
    Gpu,
    /// Transfers from and to GPU memory.
    GpuMemory,
    /// Another host that waits for this one.
    Peer,
    /// Huge pages.
    HugePages,
}

impl Need {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Nixl, "nixl"),
        (Self::Ucx, "ucx"),
        (Self::Libfabric, "libfabric"),
        (Self::RdmaNic, "rdma-nic"),
        (Self::Efa, "efa"),
        (Self::Gpu, "gpu"),
        (Self::GpuMemory, "gpu-memory"),
        (Self::Peer, "peer"),
        (Self::HugePages, "huge-pages"),
    ];

    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().map(|(need, _)| need)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Self::ALL.iter().find(|(need, _)| need == self).map_or("?", |(_, name)| name))
    }
}

impl FromStr for Need {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|(_, name)| *name == word).map(|(need, _)| *need).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(_, name)| *name).collect();
            format!("there is no need `{word}`; there are {}", names.join(", "))
        })
    }
}

/// What this host has.
#[derive(Clone, Debug)]
pub(super) struct Host {
    found: BTreeMap<Need, Result<String, String>>,
}

impl Host {
    /// Looks. `peer`: where another host waits.
    pub(super) fn look(peer: Option<&str>) -> Self {
        let topology = Topology::read(&Source::default()).map_err(|e| e.to_string());
        let found = Need::all().map(|need| (need, look(need, &topology, peer))).collect();
        Self { found }
    }

    /// What was found (`libfabric 2.5 in /usr/lib`), or why it is missing.
    pub(super) fn finding(&self, need: Need) -> Result<&str, &str> {
        match self.found.get(&need) {
            Some(Ok(found)) => Ok(found),
            Some(Err(missing)) => Err(missing),
            None => Err("not looked for"),
        }
    }

    /// The first of them that is missing, as a reason.
    pub(super) fn missing<'a>(&self, needs: impl IntoIterator<Item = &'a Need>) -> Option<String> {
        needs.into_iter().find_map(|need| self.finding(*need).err().map(|why| format!("needs {need}: {why}")))
    }
}

fn look(need: Need, topology: &Result<Topology, String>, peer: Option<&str>) -> Result<String, String> {
    let nics = |wanted: fn(&Nic) -> bool, what: &str| {
        let topology = topology.as_ref().map_err(Clone::clone)?;
        let nics: Vec<_> = topology.nics().iter().filter(|nic| wanted(nic)).collect();
        match nics.iter().filter(|nic| nic.state.is_usable()).count() {
            0 if nics.is_empty() => Err(format!("this host has no {what}")),
            0 => Err(format!("no {what} of {} is usable (`kvrail topo` says why)", nics.len())),
            usable => Ok(format!("{usable} of {}", nics.len())),
        }
    };
    match need {
        Need::Nixl => super::components::nixl(),
        Need::Ucx => super::components::ucx(),
        Need::Libfabric => super::components::libfabric(),
        Need::RdmaNic => nics(|nic| nic.kind == NicKind::Rdma, "RDMA NIC"),
        Need::Efa => nics(|nic| nic.driver.as_deref() == Some("efa"), "EFA NIC"),
        Need::Gpu => match topology.as_ref().map_err(Clone::clone)?.gpus() {
            [] => Err("this host has no GPU".into()),
            gpus => Ok(format!("{}", gpus.len())),
        },
        Need::GpuMemory => Err("this release moves host memory only".into()),
        Need::Peer => peer.map(str::to_string).ok_or_else(|| {
            "no second host: start `kvrail bench --listen 0.0.0.0:7100` there and give --peer HOST:7100"
                .into()
        }),
        Need::HugePages => huge_pages(),
    }
}

fn huge_pages() -> Result<String, String> {
    let text = std::fs::read_to_string("/proc/meminfo").map_err(|e| format!("/proc/meminfo: {e}"))?;
    let free = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    match free.and_then(|value| value.trim().parse::<u64>().ok()) {
        Some(0) | None => Err("none are reserved and free (sysctl vm.nr_hugepages=N)".into()),
        Some(free) => Ok(format!("{free} free")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_that_is_missing_is_a_reason_that_names_it() {
        let host = Host::look(None);
        let reason = host.missing(&[Need::Peer]).unwrap();
        assert!(reason.starts_with("needs peer: no second host"), "{reason}");
        assert_eq!(host.missing(&[]), None);
        assert_eq!(Host::look(Some("there:7100")).missing(&[Need::Peer]), None);
    }

    #[test]
    fn names_are_read_as_they_are_printed() {
        for need in Need::all() {
            assert_eq!(need.to_string().parse(), Ok(need));
        }
        assert!("luck".parse::<Need>().unwrap_err().contains("huge-pages"));
    }
}
