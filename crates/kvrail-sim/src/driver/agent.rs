//! One process: an engine, its transport, its memory, whom it knows.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvrail_core::engine::{Engine, EngineConfig};
use kvrail_core::id::{Generation, Incarnation, PeerId, RegionId};
use kvrail_core::plan::Plan;
use kvrail_core::region::RegionTable;
use kvrail_core::transport::Device;
use kvrail_core::wire::metadata::{Metadata, TransportMetadata};

use super::layout::{Layout, Slice};
use super::ledger::Life;
use crate::canary::{Canary, Planted, Saboteur};
use crate::fabric::SimFabric;
use crate::rng::{Rng, mix};

/// A region in one of its generations; none while an area is not registered.
pub(crate) type Tenant = Option<(RegionId, Generation)>;

/// A plan that can be posted again.
pub(crate) struct Known {
    pub(crate) peer: Life,
    pub(crate) plan: Arc<Plan>,
    pub(crate) slices: Vec<Slice>,
    /// The areas' regions when it was made: local, remote.
    pub(crate) regions: Vec<(Tenant, Tenant)>,
}

/// One process.
pub(crate) struct Agent {
    pub(crate) life: Life,
    pub(crate) name: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) engine: Engine<Planted>,
    pub(crate) transport: Saboteur,
    pub(crate) table: RegionTable,
    pub(crate) layout: Layout,
    /// Peers by node, and the life that is meant.
    pub(crate) peers: BTreeMap<usize, (PeerId, u64)>,
    pub(crate) plans: Vec<Known>,
    /// When it will poll; `u64::MAX`: not before something arrives.
    pub(crate) wake_at: u64,
}

impl Agent {
    /// Starts a process on a node, with all its memory registered.
    pub(crate) fn new(
        fabric: &SimFabric,
        node: usize,
        config: EngineConfig,
        canary: Option<Canary>,
        rng: &mut Rng,
    ) -> Self {
        let epoch = fabric.life(node).0;
        let transport = Saboteur::new(fabric.transport(node), canary);
        let incarnation = Incarnation(mix(rng.bits()) | 1);
        let name = format!("agent-{node}");
        let config = EngineConfig { name: name.clone(), incarnation, ..config };
        let engine = Engine::with_hazards(config, &transport, Planted(canary))
            .unwrap_or_else(|error| panic!("the simulator configures an engine wrongly: {error}"));
        let (base, len) = fabric.memory(node, |memory| (memory.base(), memory.len()));
        let mut agent = Self {
            life: (node, epoch),
            name,
            incarnation,
            engine,
            transport,
            table: RegionTable::new(),
            layout: Layout::new(base, len, rng),
            peers: BTreeMap::new(),
            plans: Vec::new(),
            wake_at: u64::MAX,
        };
        for area in 0..agent.layout.areas.len() {
            agent.register(area);
        }
        agent
    }

    /// Registers an area.
    pub(crate) fn register(&mut self, index: usize) {
        let area = &mut self.layout.areas[index];
        let info = self
            .table
            .insert(area.base, area.len, Device::Host)
            .unwrap_or_else(|error| panic!("the simulator made an impossible region: {error}"));
        self.engine
            .add_region(&mut self.transport, &info)
            .unwrap_or_else(|error| panic!("the fabric refused {}: {error}", info.id));
        area.region = Some(info.id);
    }

    /// An area's region with its generation.
    pub(crate) fn region_of(&self, area: usize) -> Tenant {
        let id = self.layout.areas[area].region?;
        self.table.get(id).map(|info| (info.id, info.generation))
    }

    /// Whether what this node knows of a peer's region is what the peer has now, for this slice.
    pub(crate) fn knows(&self, other: usize, slice: &Slice, peer: &Self) -> bool {
        let Some((id, _)) = self.peers.get(&other) else { return false };
        let mut known = self.engine.peer_regions(*id).map(|info| (info.id, info.generation));
        peer.region_of(slice.remote_area).is_some_and(|region| known.any(|other| other == region))
    }

    /// What a peer needs to know, as bytes.
    pub(crate) fn metadata(&self) -> Vec<u8> {
        let regions: Vec<_> = self.table.iter().copied().collect();
        let offer = TransportMetadata::of(&self.transport, &regions);
        Metadata { name: self.name.clone(), incarnation: self.incarnation, transports: vec![offer], regions }
            .encode()
    }
}
