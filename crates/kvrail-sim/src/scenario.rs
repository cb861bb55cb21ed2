//! What one seed is: a world, its size, how it misbehaves, and when.
//!
//! Phase one breaks things; then everything heals, and phase two demands progress. Figures are scaled down from
//! [`Model::default`] (small queues, small memories, short time-outs) so that limits are met often and a run takes
//! milliseconds.

use kvrail_core::transport::Evidence;

use crate::fabric::NodeSpec;
use crate::model::{Chaos, Fault, MS, Model, US};
use crate::rng::Rng;

/// A fault of the script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// One of the fabric's.
    Fabric(Fault),
    /// A node's process dies.
    Kill(usize),
    /// A node's process dies and starts anew under the same name.
    Restart(usize),
    /// A node polls rarely for a while.
    Slow {
        /// Which.
        node: usize,
        /// Longest wait between an arrival and the poll that sees it, ns.
        delay: u64,
    },
    /// A node's application forgets a peer, and is introduced to it again.
    Forget {
        /// Who forgets.
        node: usize,
        /// Whom.
        peer: usize,
    },
}

/// How much of what the workload does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mix {
    /// Transfers of phase one.
    pub transfers: u32,
    /// Mean time between actions, ns.
    pub pace: u64,
    /// Posts followed by a cancel at a random moment.
    pub cancel_ppm: u32,
    /// Actions that take a region away and bring it back.
    pub reregister_ppm: u32,
    /// Posts that carry a notification.
    pub notify_ppm: u32,
    /// Posts of an earlier plan.
    pub repost_ppm: u32,
    /// Reads among the posts.
    pub read_ppm: u32,
    /// Drives after which the application takes its own news only, and leaves peers' messages where they are.
    pub unread_ppm: u32,
    /// Peers' messages that an engine keeps for its application.
    pub inbox_messages_max: usize,
    /// Transfers of one engine at a time.
    pub transfers_max: usize,
}

/// One seed, spelled out.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The fabric's figures.
    pub model: Model,
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
    /// The workload of phase one.
    pub mix: Mix,
    /// What goes wrong in phase one, by time.
    pub troubles: Vec<(u64, Trouble)>,
    /// End of phase one: everything heals.
    pub heal_at: u64,
}

impl Scenario {
    /// The scenario of a seed.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        let model = model(rng);
        let nodes = nodes(rng);
        let mut mix = mix(rng);
        let heal_at = 2 * MS + u64::from(mix.transfers) * mix.pace * 2 + rng.below(10 * MS);
        let mut troubles = Vec::new();
        if rng.chance(600_000) {
            troubles.push((rng.below(heal_at / 4), Trouble::Fabric(Fault::Chaos(chaos(rng)))));
        }
        for _ in 0..rng.pick(&[0, 0, 1, 1, 2, 3, 5]) {
            troubles.push((rng.below(heal_at), trouble(rng, &nodes)));
        }
        if rng.chance(150_000) {
            // A process that hardly polls while everybody writes to it: what credits are for.
            troubles.push((0, Trouble::Slow { node: rng.index(nodes.len()), delay: 5 * MS }));
            (mix.transfers, mix.pace, mix.read_ppm) = (24, 5 * US, 0);
        }
        if rng.chance(200_000) {
            for _ in 0..rng.within(1, 4) {
                let node = rng.index(nodes.len());
                let peer = (node + 1 + rng.index(nodes.len() - 1)) % nodes.len();
                troubles.push((rng.below(heal_at), Trouble::Forget { node, peer }));
            }
        }
        if rng.chance(200_000) {
            mix.inbox_messages_max = rng.pick(&[1, 2, 8]);
            mix.unread_ppm = rng.pick(&[0, 300_000, 900_000]);
        }
        if rng.chance(100_000) {
            mix.transfers_max = rng.pick(&[1, 3]);
        }
        troubles.sort_by_key(|(at, _)| *at);
        let removal_leaves_ops = rng.chance(800_000);
        let model = Model { removal_leaves_ops, ..model };
        Self { model, nodes, mix, troubles, heal_at }
    }

    /// A line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let rails: Vec<usize> = self.nodes.iter().map(|node| node.rails.len()).collect();
        let sockets: Vec<usize> = self.nodes.iter().map(|node| node.sockets).collect();
        format!(
            "{} evidence, rails {rails:?} on sockets {sockets:?}{}{}, mtu {}, commit ≤ {} µs, linger {} µs, queue {}, \
             receives {}, {} transfers, {} troubles",
            self.model.evidence,
            if self.model.reset_replaces_endpoint { ", resets replace endpoints" } else { "" },
            if self.model.removal_leaves_ops { ", removals leave ops" } else { "" },
            self.model.mtu,
            self.model.commit_max / US,
            self.model.linger / US,
            self.model.ops_in_flight_max,
            self.model.receives_max,
            self.mix.transfers,
            self.troubles.len()
        )
    }
}

fn model(rng: &mut Rng) -> Model {
    let evidence = if rng.chance(600_000) { Evidence::Counted } else { Evidence::Delivered };
    let linger = rng.pick(&[0, 200 * US, 2 * MS]);
    // Bytes of an acknowledged op are visible before those of a failed one can still land.
    let commit_max = match evidence {
        Evidence::Counted => rng.pick(&[0, linger / 4, linger]),
        Evidence::Delivered => 0,
    };
    let reset_replaces_endpoint = rng.chance(400_000);
    // Where a reset costs an endpoint, what is merely late must not be taken for lost: the tail ends at 4 ms.
    let stall_timeout = if reset_replaces_endpoint {
        rng.pick(&[10 * MS, 20 * MS])
    } else {
        rng.pick(&[2 * MS, 5 * MS, 10 * MS])
    };
    Model {
        evidence,
        mtu: rng.pick(&[64, 256, 1024, 8928]),
        latency: rng.within(8 * US, 15 * US),
        jitter: rng.within(3 * US, 5 * US),
        tail_ppm: rng.pick(&[0, 1_000, 10_000]),
        commit_max,
        linger,
        stall_timeout,
        unresponsive: rng.pick(&[200 * US, MS, 3 * MS]),
        op_bytes_max: rng.pick(&[256, 1000, 1 << 20]),
        ops_in_flight_max: rng.pick(&[2, 8, 32, 128]),
        sends_in_flight_max: rng.pick(&[2, 8, 64]),
        receives_max: rng.pick(&[16, 16, 32, 64, 512]),
        poll_budget: rng.pick(&[1, 8, 256]),
        target_knows_initiator: rng.chance(500_000),
        turn_ops_max: rng.pick(&[1, 8, 64, u32::MAX]),
        reset_replaces_endpoint,
        ..Model::default()
    }
}

fn nodes(rng: &mut Rng) -> Vec<NodeSpec> {
    let count = rng.pick(&[2, 2, 2, 2, 3, 3, 4]);
    let equal = rng.chance(300_000).then(|| rng.within(1, 4));
    (0..count)
        .map(|_| {
            let rails = equal.unwrap_or_else(|| rng.pick(&[1, 1, 2, 2, 3, 4, 4, 8, 8, 32]));
            let rates = [100_000_000_000, 200_000_000_000, 400_000_000_000];
            let first = rng.pick(&rates);
            let mixed = rng.chance(200_000);
            let rails = (0..rails).map(|_| if mixed { rng.pick(&rates) } else { first }).collect();
            NodeSpec { rails, memory: rng.pick(&[16 << 10, 32 << 10]), sockets: rng.pick(&[1, 1, 2, 2, 4]) }
        })
        .collect()
}

fn mix(rng: &mut Rng) -> Mix {
    Mix {
        transfers: rng.within(3, 24) as u32,
        pace: rng.pick(&[5 * US, 50 * US, 300 * US]),
        cancel_ppm: rng.pick(&[0, 100_000, 400_000]),
        reregister_ppm: rng.pick(&[0, 0, 80_000]),
        notify_ppm: rng.pick(&[300_000, 700_000, 1_000_000]),
        repost_ppm: rng.pick(&[0, 300_000]),
        read_ppm: rng.pick(&[0, 300_000, 500_000, 1_000_000]),
        unread_ppm: 0,
        inbox_messages_max: 65_536,
        transfers_max: kvrail_core::limits::TRANSFERS_MAX,
    }
}

fn chaos(rng: &mut Rng) -> Chaos {
    let mut some = |choices: &[u32]| if rng.chance(500_000) { 0 } else { rng.pick(choices) };
    Chaos {
        full_ppm: some(&[10_000, 200_000]),
        error_ppm: some(&[2_000, 30_000, 150_000]),
        drop_ppm: some(&[1_000, 10_000, 50_000]),
        ack_loss_ppm: some(&[1_000, 10_000, 50_000]),
        duplicate_ppm: some(&[20_000, 300_000]),
        late_message_ppm: some(&[20_000, 300_000]),
        message_loss_ppm: some(&[5_000, 50_000]),
        send_error_ppm: some(&[5_000, 50_000]),
        not_ready_ppm: some(&[2_000, 30_000]),
        reorder_ppm: some(&[10_000, 300_000]),
        delay_max: [20 * US, 500 * US, 5 * MS][some(&[1, 2]) as usize],
    }
}

fn trouble(rng: &mut Rng, nodes: &[NodeSpec]) -> Trouble {
    let node = rng.index(nodes.len());
    let other = (node + 1 + rng.index(nodes.len() - 1)) % nodes.len();
    let (rail, other_rail) = (rng.index(nodes[node].rails.len()), rng.index(nodes[other].rails.len()));
    match rng.below(16) {
        0..=2 => Trouble::Fabric(Fault::RailDown { node, rail }),
        3..=4 => Trouble::Fabric(Fault::RailSilent { node, rail }),
        5..=6 => Trouble::Fabric(Fault::RailUp { node, rail }),
        7..=8 => Trouble::Fabric(Fault::BlackHole { from: (node, rail), to: (other, other_rail) }),
        9 => Trouble::Fabric(Fault::Partition { a: node, b: other }),
        10 => Trouble::Fabric(Fault::Heal),
        11 => Trouble::Kill(node),
        12..=13 => Trouble::Restart(node),
        _ => Trouble::Slow { node, delay: rng.pick(&[50 * US, 500 * US, 3 * MS]) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_scenario_and_rails_are_often_unequal() {
        let mut unequal = 0;
        for seed in 0..200 {
            let (a, b) = (Scenario::new(&mut Rng::new(seed)), Scenario::new(&mut Rng::new(seed)));
            assert_eq!((a.summary(), &a.troubles), (b.summary(), &b.troubles));
            unequal += u32::from(a.nodes[0].rails.len() != a.nodes[1].rails.len());
            assert!(a.model.commit_max <= a.model.linger);
        }
        assert!(unequal > 60);
    }
}
