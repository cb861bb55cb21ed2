//! The hosts that commands see: their devices by name and rate, and their private /sys.

use std::fs;
use std::path::Path;

use softefa_fabric::nic::NicIndex;
use softefa_fabric::{Counter, Fabric, Limits, NicSpec};

use super::environment::node_directory;
use super::error::Error;
use super::plan::{Numa, Request};
use crate::shape::{EfaGeneration, Shape, ShapeError};
use crate::sysfs::{CounterNames, Root};

/// NICs of a node whose shape says nothing about them.
const NICS: u32 = 1;
/// Bit of [`Limits::capabilities`] for RDMA write, as `efadv_query_device` reports it.
const RDMA_WRITE: u32 = 1 << 3;
/// Where the kernel lists this host's own NUMA nodes.
const HOST_NUMA: &str = "/sys/devices/system/node";

/// What every node of a fabric is made of.
pub(super) struct Hardware {
    shape: Shape,
    nics: Vec<NicSpec>,
}

impl Hardware {
    /// What a request asks for.
    pub(super) fn of(request: &Request) -> Result<Self, Error> {
        let refused = |e: ShapeError| Error::Request(e.to_string());
        let asked = request.nics.map(|nics| nics as usize);
        let shape = match request.shape.as_deref() {
            None | Some("generic") => Shape::generic(asked.unwrap_or(NICS as usize)),
            Some(name) => Shape::named(name).and_then(|shape| match asked {
                Some(nics) => shape.with_nics(nics),
                None => Ok(shape),
            }),
        };
        let mut shape = shape.map_err(refused)?;
        if request.numa == Numa::Host {
            shape = shape.folded_to_numa_nodes(host_numa_nodes()).map_err(refused)?;
        }
        for nic in &mut shape.nics {
            nic.rate_bps = request.rate_bps.unwrap_or(nic.rate_bps);
        }
        let nic = |nic: &crate::shape::NicShape| NicSpec { name: nic.name.clone(), rate_bps: nic.rate_bps };
        Ok(Self { nics: shape.nics.iter().map(nic).collect(), shape })
    }

    /// The shape's name.
    pub(super) fn shape(&self) -> &str {
        &self.shape.name
    }

    /// The NICs of each node.
    pub(super) fn nics(&self) -> &[NicSpec] {
        &self.nics
    }

    /// What people should know of this hardware on this host.
    pub(super) fn note(&self) -> Option<String> {
        let (own, host) = (self.shape.numa_nodes.len(), host_numa_nodes());
        (own > host as usize).then(|| {
            format!(
                "{} has {own} NUMA nodes and this host {host}: programs that also ask libnuma (NIXL does) may refuse \
                 its NICs; --numa host folds them",
                self.shape.name
            )
        })
    }

    /// What the devices report as their limits.
    pub(super) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        if let Some(nic) = self.shape.nics.first() {
            limits.part = nic.generation.device_id().into();
            if !EfaGeneration::has_rdma_write(nic.generation) {
                limits.capabilities &= !RDMA_WRITE;
            }
        }
        limits
    }

    /// Writes the private /sys of a node, with all counters at 0.
    pub(super) fn lay_out(&self, directory: &Path, node: u32) -> Result<Root, Error> {
        let root = node_directory(directory, node);
        let gid = |nic: usize| NicIndex { node, nic: nic as u32 }.gid().0;
        Root::create(&root, &self.shape, node, self.shape.nics.len(), gid, CounterNames::EFA)
            .map_err(|e| Error::Sysfs(e.to_string()))
    }
}

fn host_numa_nodes() -> u32 {
    let number = |name: &str| name.strip_prefix("node").is_some_and(|n| n.parse::<u32>().is_ok());
    let entries = fs::read_dir(HOST_NUMA).into_iter().flatten().flatten();
    let nodes = entries.filter(|entry| entry.file_name().to_str().is_some_and(number)).count();
    u32::try_from(nodes).unwrap_or(1).max(1)
}

/// The counters' files of all nodes.
pub(super) struct CounterFiles {
    roots: Vec<Root>,
    /// What the files show, by node, NIC and counter.
    shown: Vec<u64>,
}

impl CounterFiles {
    pub(super) fn of(roots: Vec<Root>) -> Self {
        Self { roots, shown: Vec::new() }
    }

    /// Writes those that have changed since the last call.
    pub(super) fn refresh(&mut self, fabric: &Fabric) -> Result<(), Error> {
        let mut changed: Vec<Vec<(usize, &'static str, u64)>> = vec![Vec::new(); self.roots.len()];
        self.shown.resize(fabric.nics().count() * Counter::ALL.len(), 0);
        let cells =
            fabric.nics().flat_map(|(at, nic)| Counter::ALL.iter().map(move |counter| (at, nic, *counter)));
        for ((at, nic, counter), shown) in cells.zip(&mut self.shown) {
            let now = nic.counter(counter);
            if now != *shown
                && let Some(changed) = changed.get_mut(at.node as usize)
            {
                changed.push((at.nic as usize, counter.name(), now));
                *shown = now;
            }
        }
        for (root, changed) in self.roots.iter_mut().zip(changed) {
            root.counters().update(changed).map_err(|e| Error::Sysfs(e.to_string()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(shape: Option<&str>, nics: Option<u32>) -> Result<Hardware, Error> {
        let mut request = Request::new(1);
        request.shape = shape.map(String::from);
        request.nics = nics;
        Hardware::of(&request)
    }

    #[test]
    fn a_shape_brings_its_nics_and_without_one_there_is_what_was_asked_for() {
        assert_eq!(of(None, None).unwrap().nics().len(), 1);
        assert_eq!(of(None, Some(32)).unwrap().nics().len(), 32);
        assert_eq!(of(Some("p5"), None).unwrap().nics().len(), 32);
        assert_eq!(of(Some("p5"), Some(4)).unwrap().nics().len(), 4);
        assert_eq!(of(Some("p4d"), None).unwrap().limits().capabilities & RDMA_WRITE, 0, "P4d only reads");
        let Err(error) = of(Some("p99"), None) else { panic!("made") };
        assert!(error.to_string().contains("p99") && error.to_string().contains("p6-b200"), "{error}");
    }

    #[test]
    fn counters_reach_their_files() {
        let directory = tempfile::tempdir().unwrap();
        let hardware = of(None, Some(2)).unwrap();
        let roots = (0..2).map(|node| hardware.lay_out(directory.path(), node).unwrap()).collect();
        let spec = softefa_fabric::Spec {
            nodes: 2,
            nics: hardware.nics().to_vec(),
            seed: 0,
            model: softefa_fabric::Model::default(),
            limits: hardware.limits(),
        };
        let fabric = Fabric::create(&directory.path().join("fabric"), &spec).unwrap();
        let mut files = CounterFiles::of(roots);
        fabric.nic(NicIndex { node: 1, nic: 1 }).unwrap().count(Counter::TxPackets, 7);
        files.refresh(&fabric).unwrap();
        let device = &hardware.nics()[1].name;
        let shown = |node: u32| {
            let file = format!("node{node}/sys/class/infiniband/{device}/ports/1/hw_counters/tx_pkts");
            fs::read_to_string(directory.path().join(file)).unwrap().trim().to_owned()
        };
        assert_eq!((shown(0).as_str(), shown(1).as_str()), ("0", "7"));
    }
}
