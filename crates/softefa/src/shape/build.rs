//! Puts shapes together and takes them to pieces: the builder that the data uses, the checks on what comes from outside.

use std::collections::BTreeSet;

use super::{
    BridgeKind, BridgeShape, EfaGeneration, GpuShape, NICS_MAX, NicShape, OtherShape, PciAddress, PciIds,
    PciLink, RootShape, Shape,
};

/// Logical CPUs a node can have at most: bounds what a shape from outside makes the writer do.
const CPUS_MAX: u64 = 1024;

/// A shape under construction, with the switch that devices are being put behind.
pub(super) struct Builder {
    shape: Shape,
    /// Bus of the current switch's downstream ports; `None` where devices sit on the root complex's bus itself.
    ports_bus: Option<u8>,
    bus: u8,
    numa_node: u32,
}

impl Builder {
    /// Starts from `shape`, which has no PCI devices yet.
    pub(super) fn new(shape: Shape) -> Builder {
        Builder { shape, ports_bus: None, bus: 0, numa_node: 0 }
    }

    /// A root complex without bridges, its devices all on one bus: what P4d shows.
    pub(super) fn flat_root(&mut self, bus: u8, numa_node: u32) {
        self.shape.roots.push(RootShape { domain: 0, bus, last_bus: bus, numa_node });
        (self.ports_bus, self.bus, self.numa_node) = (None, bus, numa_node);
    }

    /// A root complex whose root port leads to one switch, over `uplink`: what EC2 shows since P5. Root port on the
    /// first bus, the switch's upstream port on the second, its downstream ports on the third.
    pub(super) fn switched_root(&mut self, bus: u8, last_bus: u8, numa_node: u32, uplink: PciLink) {
        self.shape.roots.push(RootShape { domain: 0, bus, last_bus, numa_node });
        for (depth, kind) in [(0, BridgeKind::RootPort), (1, BridgeKind::SwitchUpstream)] {
            self.shape.bridges.push(BridgeShape {
                address: PciAddress::new(bus + depth, 0, 0),
                kind,
                secondary: bus + depth + 1,
                subordinate: last_bus,
                link: uplink,
                numa_node,
            });
        }
        (self.ports_bus, self.bus, self.numa_node) = (Some(bus + 2), bus, numa_node);
    }

    /// Address for a device: on `place` as a bus behind the switch (adding the downstream port that leads there; port
    /// n leads to the n-th bus after the ports' own), or as a slot of the flat root's bus.
    fn address(&mut self, place: u8, link: Option<PciLink>) -> PciAddress {
        let Some(ports_bus) = self.ports_bus else { return PciAddress::new(self.bus, place, 0) };
        let port = place - ports_bus - 1;
        self.shape.bridges.push(BridgeShape {
            address: PciAddress::new(ports_bus, port / 8, port % 8),
            kind: BridgeKind::SwitchDownstream,
            secondary: place,
            subordinate: place,
            link: link.unwrap_or(PciLink::new(1, 1)),
            numa_node: self.numa_node,
        });
        PciAddress::new(place, 0, 0)
    }

    /// An EFA device of `rate_gbps` Gb/s at `place`.
    pub(super) fn nic(
        &mut self,
        place: u8,
        generation: EfaGeneration,
        rate_gbps: u64,
        link: Option<PciLink>,
    ) {
        let address = self.address(place, link);
        self.shape.nics.push(NicShape {
            name: address.rdma_name(),
            address,
            generation,
            rate_bps: rate_gbps * 1_000_000_000,
            link,
            numa_node: self.numa_node,
        });
    }

    /// A GPU at `place`.
    pub(super) fn gpu(&mut self, place: u8, model: &str, ids: PciIds, link: PciLink) {
        let address = self.address(place, Some(link));
        let (model, numa_node) = (model.to_string(), self.numa_node);
        self.shape.gpus.push(GpuShape { model, address, ids, link: Some(link), numa_node });
    }

    /// Another function at `place`.
    pub(super) fn other(&mut self, place: u8, ids: PciIds, driver: &str, link: PciLink) {
        let address = self.address(place, Some(link));
        let (driver, numa_node) = (driver.to_string(), self.numa_node);
        self.shape.others.push(OtherShape { address, ids, driver, link: Some(link), numa_node });
    }

    pub(super) fn done(self) -> Shape {
        self.shape
    }
}

/// What does not fit in `shape`, in words.
pub(super) fn validate(shape: &Shape) -> Result<(), String> {
    let fail = |what: String| Err(what);
    if shape.nics.is_empty() || shape.nics.len() > NICS_MAX {
        return fail(format!("{} NICs, not 1 to {NICS_MAX}", shape.nics.len()));
    }
    for (what, text) in [("name", &shape.name), ("instance type", &shape.instance_type)] {
        if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic()) {
            return fail(format!("the {what} {text:?} is not one word"));
        }
    }
    validate_processors(shape)?;
    validate_tree(shape)?;
    let mut names = BTreeSet::new();
    for nic in &shape.nics {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if nic.name.is_empty()
            || nic.name.len() > softefa_fabric::nic::NAME_MAX
            || !nic.name.chars().all(plain)
        {
            return fail(format!("{:?} is no name for an RDMA device", nic.name));
        }
        if !names.insert(&nic.name) {
            return fail(format!("two NICs are named {}", nic.name));
        }
        if nic.rate_bps == 0 {
            return fail(format!("NIC {} has rate 0", nic.name));
        }
    }
    Ok(())
}

fn validate_processors(shape: &Shape) -> Result<(), String> {
    let cpu = &shape.cpu;
    let cpus = (cpu.packages.len() as u64)
        .saturating_mul(u64::from(cpu.cores_per_package))
        .saturating_mul(u64::from(cpu.threads_per_core));
    if cpus == 0 || cpus > CPUS_MAX {
        return Err(format!("{cpus} logical CPUs, not 1 to {CPUS_MAX}"));
    }
    let mut seen = BTreeSet::new();
    for (node, numa) in shape.numa_nodes.iter().enumerate() {
        for package in &numa.packages {
            if *package as usize >= cpu.packages.len() || !seen.insert(package) {
                return Err(format!(
                    "NUMA node {node} holds package {package}, which is elsewhere or nowhere"
                ));
            }
        }
        if numa.distances.len() != shape.numa_nodes.len() {
            return Err(format!("NUMA node {node} gives distances to {} nodes", numa.distances.len()));
        }
    }
    if seen.len() != cpu.packages.len() {
        return Err("a package is on no NUMA node".to_string());
    }
    if cpu.packages.iter().collect::<BTreeSet<_>>().len() != cpu.packages.len() {
        return Err("two packages have the same id".to_string());
    }
    if cpu.caches.len() > 8 {
        return Err(format!("{} caches", cpu.caches.len()));
    }
    for cache in &cpu.caches {
        let sharing = 1..=cpu.cores_per_package;
        if !sharing.contains(&cache.cores) || cache.ways == 0 || !(1..=3).contains(&cache.level) {
            return Err(format!(
                "a level {} cache of {} ways shared by {} cores",
                cache.level, cache.ways, cache.cores
            ));
        }
    }
    Ok(())
}

fn validate_tree(shape: &Shape) -> Result<(), String> {
    let mut addresses = BTreeSet::new();
    let mut secondaries = shape.roots.iter().map(|root| (root.domain, root.bus)).collect::<BTreeSet<_>>();
    let mut roots = shape.roots.iter().map(|root| (root.domain, root.bus, root.last_bus)).collect::<Vec<_>>();
    roots.sort_unstable();
    let overlap = |pair: &[(u16, u8, u8)]| pair[0].0 == pair[1].0 && pair[0].2 >= pair[1].1;
    if roots.iter().any(|(_, first, last)| last < first) || roots.windows(2).any(overlap) {
        return Err("root complexes overlap".to_string());
    }
    if let Some(root) = shape.roots.iter().find(|root| root.numa_node as usize >= shape.numa_nodes.len()) {
        return Err(format!(
            "root complex {:02x} is on NUMA node {}, which does not exist",
            root.bus, root.numa_node
        ));
    }
    for bridge in &shape.bridges {
        let (address, first, last) = (bridge.address, bridge.secondary, bridge.subordinate);
        if first <= address.bus || last < first {
            return Err(format!("bridge {address} leads to buses {first:02x}-{last:02x}"));
        }
        if !secondaries.insert((address.domain, first)) {
            return Err(format!("bus {first:02x} is reached twice"));
        }
    }
    let bridges = shape.bridges.iter().map(|it| (it.address, it.numa_node, Some(it.link)));
    let nics = shape.nics.iter().map(|it| (it.address, it.numa_node, it.link));
    let gpus = shape.gpus.iter().map(|it| (it.address, it.numa_node, it.link));
    let others = shape.others.iter().map(|it| (it.address, it.numa_node, it.link));
    for (address, numa_node, link) in bridges.chain(nics).chain(gpus).chain(others) {
        if address.device > 31 || address.function > 7 || !addresses.insert(address) {
            return Err(format!("address {address} is used twice or cannot be"));
        }
        if numa_node as usize >= shape.numa_nodes.len() {
            return Err(format!("{address} is on NUMA node {numa_node}, which does not exist"));
        }
        if link.is_some_and(|link| !link.is_valid()) {
            return Err(format!("{address} has a link that PCI Express does not know"));
        }
        if !secondaries.contains(&(address.domain, address.bus)) || shape.root(address).is_none() {
            return Err(format!("no bridge leads to {address}"));
        }
        // Each step up goes to a lower bus (checked above), so every way ends; it must end on the first bus of the root
        // complex whose range the address lies in.
        let top = shape.bridges_above(address).first().map_or(address.bus, |bridge| bridge.address.bus);
        if shape.root(address).is_none_or(|root| root.bus != top) {
            return Err(format!(
                "the bridges above {address} lead to bus {top:02x}, which is no root complex of its"
            ));
        }
    }
    Ok(())
}
