//! What happens in one run, decided from its seed alone: hosts, rails, traffic, faults, kills.
//!
//! What is decided is the seed's; when it happens exactly is the machine's. A seed that fails is worth replaying a few times.

use kvrail_sim::rng::{Rng, mix};

use super::weather::Fault;
use crate::layout::Shape;

/// On what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ground {
    /// Processes on loopback over TCP: no faults but kills.
    Loopback,
    /// Emulated EFA nodes and this provider of libfabric.
    Emulated {
        /// `efa-direct`, `efa`.
        provider: String,
        /// Most rails of a node.
        rails_max: u16,
    },
}

/// What processes do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mix {
    /// Transfers that each process keeps in flight.
    pub in_flight: usize,
    /// Transfers in all per leg: no more are begun.
    pub transfers: usize,
    /// Reads, of a million.
    pub read_ppm: u32,
    /// With a notification.
    pub notify_ppm: u32,
    /// Cancelled at a random moment.
    pub cancel_ppm: u32,
    /// With a timeout that may be too short.
    pub hurry_ppm: u32,
    /// Regions that are registered anew instead of a transfer.
    pub renew_ppm: u32,
    /// Messages instead of a transfer.
    pub message_ppm: u32,
}

/// Something that goes wrong at its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// A fault of the fabric.
    Fault(Fault),
    /// All faults end.
    Clear,
    /// A node's process is killed, and comes back under its name.
    Kill(usize),
}

/// One run.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// What it is made from.
    pub seed: u64,
    /// Where.
    pub ground: Ground,
    /// Rails of each node's agent.
    pub rails: Vec<u16>,
    /// Whose agent has a progress thread.
    pub thread: Vec<bool>,
    /// Bytes of each region of each agent.
    pub regions: Vec<u64>,
    /// Words of `kvrail softefa run`.
    pub network: Vec<String>,
    /// When the device gives a silent peer up, milliseconds.
    pub unresponsive_ms: u64,
    /// When an agent gives a stalled route up, milliseconds.
    pub stall_ms: u64,
    /// When an agent gives a silent peer up, milliseconds.
    pub peer_timeout_ms: u64,
    /// The traffic.
    pub mix: Mix,
    /// Things go wrong.
    pub troubled: bool,
    /// How often: break, heal, demand.
    pub legs: u32,
    /// How long a leg breaks things, milliseconds.
    pub leg_ms: u64,
}

/// Bytes of the two regions: odd, so that ends are not aligned.
const REGIONS: [u64; 2] = [(24 << 20) + 333, (12 << 20) + 1];
/// Every so many seeds the same processes go on for longer, so that what grows slowly is seen.
const LONG_EVERY: u64 = 10;
/// For so many legs.
const LONG_LEGS: u32 = 12;
/// Least time that a transfer is given, milliseconds, when it is not in a hurry.
pub(super) const TIMEOUT_MS: u64 = 12_000;

impl Schedule {
    /// The schedule of a seed.
    #[must_use]
    pub fn of(seed: u64, ground: &Ground) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = rng.pick(&[2, 2, 2, 3]);
        let rails_max = match ground {
            Ground::Loopback => 4,
            Ground::Emulated { rails_max, .. } => u64::from(*rails_max),
        };
        let equal = rng.chance(500_000).then(|| rng.pick(&[1, 2, 2, 4, 8, 32]));
        let mut rails = || equal.unwrap_or_else(|| rng.pick(&[1, 2, 4, 8])).min(rails_max) as u16;
        let rails: Vec<u16> = (0..nodes).map(|_| rails()).collect();
        let network = rng.pick(&[
            &["--instant"][..],
            &[],
            &["--latency", "200us", "--jitter", "100us"],
            &["--instant", "--commit-delay", "300us"],
            &["--latency", "20us", "--tail", "5%"],
        ]);
        Self {
            seed,
            ground: ground.clone(),
            thread: rails.iter().map(|_| rng.chance(700_000)).collect(),
            rails,
            regions: REGIONS.to_vec(),
            network: network.iter().map(|word| (*word).to_owned()).collect(),
            unresponsive_ms: rng.within(100, 600),
            stall_ms: rng.pick(&[300, 700]),
            peer_timeout_ms: rng.pick(&[1_000, 3_000]),
            mix: Mix {
                in_flight: rng.pick(&[1, 4, 12]),
                transfers: 3_000,
                read_ppm: rng.pick(&[0, 300_000, 500_000, 1_000_000]),
                notify_ppm: rng.pick(&[300_000, 1_000_000]),
                cancel_ppm: rng.pick(&[0, 50_000, 300_000]),
                hurry_ppm: rng.pick(&[0, 50_000]),
                renew_ppm: rng.pick(&[0, 0, 10_000]),
                message_ppm: rng.pick(&[0, 50_000]),
            },
            troubled: rng.chance(850_000),
            legs: if seed.is_multiple_of(LONG_EVERY) { LONG_LEGS } else { 3 },
            leg_ms: 2_500,
        }
    }

    /// A schedule in which nothing goes wrong: for canaries.
    #[must_use]
    pub fn calm(seed: u64, ground: &Ground) -> Self {
        let mut schedule = Self::of(seed, ground);
        let (cancel_ppm, hurry_ppm, renew_ppm) = (0, 0, 0);
        schedule.mix = Mix {
            in_flight: 4,
            transfers: 60,
            read_ppm: 300_000,
            notify_ppm: 800_000,
            message_ppm: 50_000,
            cancel_ppm,
            hurry_ppm,
            renew_ppm,
        };
        schedule.troubled = false;
        schedule.legs = 3;
        schedule.leg_ms = 400;
        schedule
    }

    /// The provider has pools of packets of its own, which fill as packets come.
    pub(super) fn keeps_packet_pools(&self) -> bool {
        matches!(&self.ground, Ground::Emulated { provider, .. } if provider == "efa")
    }

    /// What goes wrong in a leg, by time in milliseconds.
    #[must_use]
    pub fn acts(&self, leg: u32) -> Vec<(u64, Act)> {
        let mut rng = Rng::new(mix(self.seed) ^ mix(u64::from(leg)));
        let mut acts = Vec::new();
        if !self.troubled {
            return acts;
        }
        let nodes = self.rails.len();
        let nics = usize::from(self.rails.iter().copied().max().unwrap_or(1));
        if self.ground != Ground::Loopback {
            for _ in 0..rng.pick(&[0, 1, 1, 2, 3]) {
                let fault = Fault::random(&mut rng, nodes, nics, self.leg_ms);
                acts.push((rng.below(self.leg_ms), Act::Fault(fault)));
            }
            if rng.chance(200_000) {
                acts.push((rng.below(self.leg_ms), Act::Clear));
            }
        }
        if rng.chance(250_000) {
            acts.push((rng.below(self.leg_ms), Act::Kill(rng.index(nodes))));
        }
        acts.sort_by_key(|(at, _)| *at);
        acts
    }

    /// In one line, for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let ground = match &self.ground {
            Ground::Loopback => "tcp".into(),
            Ground::Emulated { provider, .. } => format!("{provider} {}", self.network.join(" ")),
        };
        let acts: Vec<String> = (0..self.legs)
            .map(|leg| {
                let said = |(at, act): &(u64, Act)| match act {
                    Act::Fault(fault) => format!("{at} ms {}", fault.words().join(" ")),
                    Act::Clear => format!("{at} ms clear"),
                    Act::Kill(node) => format!("{at} ms kill node {node}"),
                };
                let acts: Vec<String> = self.acts(leg).iter().map(said).collect();
                format!("[{}]", acts.join("; "))
            })
            .collect();
        format!(
            "{ground}, rails {:?}, progress threads {:?}, unresponsive {} ms, stall {} ms, peer {} ms, {:?}, acts {}",
            self.rails,
            self.thread,
            self.unresponsive_ms,
            self.stall_ms,
            self.peer_timeout_ms,
            self.mix,
            acts.join(" ")
        )
    }
}

/// What slices a transfer has.
pub(super) fn shape(rng: &mut Rng) -> Shape {
    let seed = rng.bits();
    let (count, len_min, len_max, gap_max) = match rng.below(100) {
        0..20 => (1, 1, 64, 0),
        20..60 => (rng.within(1, 64) as u32, 1, rng.pick(&[512, 4 << 10, 32 << 10]), 4096),
        60..80 => (rng.within(200, 2_500) as u32, 1, rng.pick(&[100, 1024]), rng.pick(&[0, 64])),
        80..95 => (rng.within(1, 4) as u32, 64 << 10, 1 << 20, 100),
        _ => (rng.within(1, 2) as u32, 1 << 20, 5 << 20, 8192),
    };
    Shape { seed, count, len_min, len_max, gap_max, shuffled: rng.chance(500_000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_schedule_and_seeds_differ() {
        let ground = Ground::Emulated { provider: "efa-direct".into(), rails_max: 32 };
        let text = |seed| Schedule::of(seed, &ground).summary();
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
        let unequal = (0..200).filter(|seed| {
            let rails = Schedule::of(*seed, &ground).rails;
            rails[0] != rails[1]
        });
        assert!(unequal.count() > 30);
    }

    #[test]
    fn every_transfer_fits_a_region() {
        let mut rng = Rng::new(3);
        for _ in 0..500 {
            let layout = shape(&mut rng).layout();
            assert!(layout.local_bytes.max(layout.remote_bytes) <= REGIONS[1], "{}", layout.bytes);
        }
    }
}
