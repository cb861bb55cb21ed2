//! What breaks and heals: rails, paths, processes.

use kvrail_core::id::LocalRail;
use kvrail_core::transport::{Event, OpError};

use super::node::{Node, RailState};
use super::{Happening, SimFabric, World};
use crate::model::{Chaos, Fault, US};

impl World {
    pub(crate) fn fault(&mut self, fault: Fault) {
        let now = self.time();
        self.trace.note(now, || format!("FAULT {fault:?}"));
        match fault {
            Fault::RailDown { node, rail } => self.rail_down(node, rail),
            Fault::RailSilent { node, rail } => self.set_rail(node, rail, RailState::Silent),
            Fault::RailUp { node, rail } => {
                self.rail_up(node, rail);
                self.resend();
            }
            Fault::BlackHole { from, to } => {
                self.holes.insert((from.0, from.1, to.0, to.1));
            }
            Fault::Partition { a, b } => {
                self.partitions.insert((a.min(b), a.max(b)));
            }
            Fault::Chaos(chaos) => self.chaos = chaos,
            Fault::Heal => {
                self.holes.clear();
                self.partitions.clear();
                self.chaos = Chaos::CALM;
                for node in 0..self.nodes.len() {
                    for rail in 0..self.nodes[node].rails.len() {
                        self.rail_up(node, rail);
                    }
                }
                self.resend();
            }
        }
        self.trace.record(now, "fault", &[]);
    }

    fn set_rail(&mut self, node: usize, rail: usize, state: RailState) {
        if let Some(rail) = self.nodes[node].rails.get_mut(rail) {
            rail.state = state;
        }
    }

    fn tell(&mut self, node: usize, event: Event) {
        let epoch = self.nodes[node].epoch;
        let at = self.now + self.rng.within(US, 20 * US);
        self.at(at, Happening::News { node, epoch, event });
    }

    fn rail_down(&mut self, node: usize, rail: usize) {
        if self.nodes[node].rails.get(rail).is_none_or(|r| r.state == RailState::Down) {
            return;
        }
        self.set_rail(node, rail, RailState::Down);
        self.tell(node, Event::RailDown { rail: LocalRail(rail as u16) });
        let epoch = self.nodes[node].epoch;
        let own =
            self.ops.keys(|op| op.initiator == (node, epoch) && op.route.local.index() == rail && !op.ended);
        for key in own {
            let at = self.now + self.rng.within(US, 100 * US);
            self.fail(key, at, OpError::RailDown);
        }
        let theirs =
            self.ops.keys(|op| op.responder == (node, epoch) && op.route.remote.index() == rail && !op.ended);
        let wait = self.model.unresponsive;
        for key in theirs {
            let at = self.now + self.rng.within(wait / 2, wait);
            self.fail(key, at, OpError::Unresponsive);
        }
    }

    fn rail_up(&mut self, node: usize, rail: usize) {
        let was = self.nodes[node].rails.get(rail).map(|r| r.state);
        self.set_rail(node, rail, RailState::Up);
        if was == Some(RailState::Down) && self.nodes[node].alive {
            // Must not overtake the news that it went down.
            let epoch = self.nodes[node].epoch;
            let event = Event::RailUp { rail: LocalRail(rail as u16) };
            self.at(self.now + 30 * US, Happening::News { node, epoch, event });
        }
    }

    pub(crate) fn kill(&mut self, node: usize) {
        if !self.nodes[node].alive {
            return;
        }
        let now = self.time();
        self.trace.note(now, || format!("FAULT node {node} dies"));
        self.trace.record(now, "kill", &[("node", node as u64)]);
        let epoch = self.nodes[node].epoch;
        self.nodes[node].die();
        // Packets that it sent may still be under way; nobody is left to hear how its ops end.
        let by = self.now + self.model.linger;
        for key in self.ops.keys(|op| op.initiator == (node, epoch)) {
            if let Some(op) = self.ops.get_mut(key) {
                op.ended = true;
                op.land_by = Some(op.land_by.map_or(by, |earlier| earlier.min(by)));
            }
        }
        self.ops.sweep();
        // Some of its peers hear of it.
        for other in 0..self.nodes.len() {
            let known: Vec<_> = self.nodes[other]
                .peers
                .values()
                .filter(|peer| peer.node == node && peer.epoch == epoch)
                .map(|peer| peer.id)
                .collect();
            for peer in known {
                if self.rng.chance(400_000) {
                    self.tell(other, Event::PeerGone { peer });
                }
            }
        }
    }

    pub(crate) fn restart(&mut self, node: usize) {
        self.kill(node);
        let now = self.time();
        self.trace.note(now, || format!("FAULT node {node} starts anew"));
        let old = &self.nodes[node];
        let mut fresh = Node::new(node, old.spec.clone(), old.epoch + 1);
        // The NICs are the host's: a dead one stays dead, and what they send, they send.
        for (new, old) in fresh.rails.iter_mut().zip(&old.rails) {
            (new.state, new.tx_free) = (old.state, old.tx_free);
        }
        self.nodes[node] = fresh;
        for rail in 0..self.nodes[node].rails.len() {
            if self.nodes[node].rails[rail].state == RailState::Down {
                self.tell(node, Event::RailDown { rail: LocalRail(rail as u16) });
            }
        }
    }
}

impl SimFabric {
    /// Regions registered at a node, in the fabric's own book.
    #[must_use]
    pub fn registrations(&self, node: usize) -> usize {
        self.world.borrow().nodes[node].registrations.len()
    }

    /// Rails of a node.
    #[must_use]
    pub fn rail_count(&self, node: usize) -> usize {
        self.world.borrow().nodes[node].rails.len()
    }
}
