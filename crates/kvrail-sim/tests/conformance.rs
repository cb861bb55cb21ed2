//! The simulator keeps the contract that real fabrics keep: the same suite, in virtual time.

use std::time::Duration;

use kvrail_conformance::faults::{Canary, Fault, catch};
use kvrail_conformance::{Limitations, NodeId, World};
use kvrail_core::time::Time;
use kvrail_core::transport::{Evidence, Transport};
use kvrail_sim::fabric::{NodeSpec, SimFabric, SimTransport};
use kvrail_sim::model::{Model, US};

/// Where acknowledgements precede visibility, the suite knows by counting immediates that bytes are visible; those of
/// flushed ops, which may come or not, spoil the count.
const EARLY: &[(&str, &str)] = &[
    ("a_route_works_again_after_a_reset", "strays of the reset hide that bytes are not visible yet"),
    ("a_removed_peer_can_be_added_again", "strays of the removal hide that bytes are not visible yet"),
];

/// Nodes of the simulated fabric, with unequal rails.
struct SimWorld {
    fabric: SimFabric,
    not_claimed: &'static [(&'static str, &'static str)],
    sockets: usize,
    nodes: Vec<SimTransport>,
}

impl SimWorld {
    fn new(evidence: Evidence, commit_max: u64) -> Self {
        let model = Model {
            evidence,
            commit_max,
            op_bytes_max: 1 << 20,
            ops_in_flight_max: 256,
            overflow_is_violation: false,
            ..Model::default()
        };
        let fabric = SimFabric::new(1, model, Vec::new(), false);
        fabric.self_clocked();
        let not_claimed = if commit_max > 0 { EARLY } else { &[] };
        Self { fabric, not_claimed, sockets: 1, nodes: Vec::new() }
    }

    /// Regions are on the rails near them only, and a reset replaces the endpoint of its rail.
    fn with_topology(evidence: Evidence) -> Self {
        let model = Model {
            evidence,
            op_bytes_max: 1 << 20,
            ops_in_flight_max: 256,
            overflow_is_violation: false,
            reset_replaces_endpoint: true,
            ..Model::default()
        };
        let fabric = SimFabric::new(1, model, Vec::new(), false);
        fabric.self_clocked();
        Self { fabric, not_claimed: &[], sockets: 2, nodes: Vec::new() }
    }
}

impl World for SimWorld {
    fn add_node(&mut self) -> NodeId {
        let rails = match self.sockets {
            1 => 1 + self.nodes.len() % 3,
            _ => 4 + 2 * self.nodes.len() % 4,
        };
        let rails = vec![100_000_000_000; rails];
        let node = self.fabric.add_node(NodeSpec { rails, memory: 0, sockets: self.sockets });
        self.nodes.push(self.fabric.transport(node));
        NodeId(node)
    }

    fn drop_node(&mut self, node: NodeId) {
        self.fabric.kill(node.0);
    }

    fn transport(&mut self, node: NodeId) -> &mut dyn Transport {
        &mut self.nodes[node.0]
    }

    fn alloc(&mut self, node: NodeId, bytes: usize) -> u64 {
        self.fabric.memory(node.0, |memory| memory.grow(bytes))
    }

    fn write_memory(&mut self, node: NodeId, base: u64, offset: u64, bytes: &[u8]) {
        self.fabric.memory(node.0, |memory| {
            let area = memory.slice_mut(base + offset, bytes.len() as u64).expect("inside an allocation");
            area.copy_from_slice(bytes);
        });
    }

    fn read_memory(&mut self, node: NodeId, base: u64, offset: u64, bytes: &mut [u8]) {
        self.fabric.memory(node.0, |memory| {
            bytes.copy_from_slice(
                memory.slice(base + offset, bytes.len() as u64).expect("inside an allocation"),
            );
        });
    }

    fn now(&self) -> Time {
        self.fabric.now()
    }

    fn step(&mut self) {
        let soon = Time(self.fabric.now().0 + 100 * US);
        self.fabric.run_until(self.fabric.next_at().map_or(soon, |next| next.min(soon)));
    }

    fn limitations(&self) -> Limitations {
        Limitations {
            patience: Duration::from_secs(10),
            vigil: Duration::from_millis(20),
            volume: 1_500,
            not_claimed: self.not_claimed,
        }
    }
}

mod counted {
    kvrail_conformance::conformance_suite!(|| super::SimWorld::new(super::Evidence::Counted, 0));
}

mod acknowledged_before_visible {
    kvrail_conformance::conformance_suite!(|| super::SimWorld::new(super::Evidence::Counted, 2_000_000));
}

mod delivered {
    kvrail_conformance::conformance_suite!(|| super::SimWorld::new(super::Evidence::Delivered, 0));
}

kvrail_conformance::conformance_canaries!(|| SimWorld::new(Evidence::Counted, 0));

mod near_rails_and_replaced_endpoints {
    kvrail_conformance::conformance_suite!(|| super::SimWorld::with_topology(super::Evidence::Counted));
    kvrail_conformance::conformance_canaries!(|| super::SimWorld::with_topology(super::Evidence::Delivered));
}

#[test]
fn a_transport_that_looks_for_peers_where_they_were_is_caught() {
    let name = "a_reset_does_not_change_what_peers_reach_for_long";
    let check = kvrail_conformance::properties::a_reset_does_not_change_what_peers_reach_for_long;
    let caught_by = kvrail_conformance::Property { name, check };
    let canary = Canary { fault: Fault::IgnoresMoves, caught_by };
    catch(&mut SimWorld::with_topology(Evidence::Counted), &canary).unwrap();
}
