//! What both worlds play: derived from the simulator's own scenario of the seed, as far as both can express it.

use kvrail_sim::model::Fault;
use kvrail_sim::rng::{Rng, mix};
use kvrail_sim::scenario::{Scenario, Trouble};

use crate::layout::Shape;
use crate::talk::Way;

/// How long the first phase lasts, milliseconds: what a scenario has in a few of its own is stretched to this, so that a machine's
/// own pauses are small beside it.
pub(super) const PHASE_MS: u64 = 1_500;
/// Rate of every NIC, bits per second: slow, so that transfers are in flight when something happens.
pub(super) const RATE_BPS: u64 = 400_000_000;
/// When a fabric gives a silent peer up, milliseconds.
pub(super) const UNRESPONSIVE_MS: u64 = 150;
/// When an agent gives a stalled route up, milliseconds.
pub(super) const STALL_MS: u64 = 300;
/// When an agent gives a silent peer up, milliseconds.
pub(super) const PEER_TIMEOUT_MS: u64 = 10_000;
/// What a transfer is given, milliseconds.
pub(super) const TIMEOUT_MS: u64 = 4_000;
/// How late packets are in the worlds' bad weather, microseconds, at most.
pub(super) const LATE_US: u64 = 5_000;
/// How long a new process takes until it is known, milliseconds: nothing else happens meanwhile.
pub(super) const SETTLE_MS: u64 = 700;
/// Bytes of each process's region.
pub(super) const REGION: u64 = 8 << 20;
/// Most rails of a node.
const RAILS_MAX: usize = 8;
/// Most transfers.
const TRANSFERS_MAX: u32 = 10;

/// A fault that both worlds have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strike {
    /// A NIC dies, and its operations fail.
    RailDown(usize, usize),
    /// Nothing passes a NIC, and nobody says so.
    RailSilent(usize, usize),
    /// A NIC returns.
    RailUp(usize, usize),
    /// What one NIC sends to another vanishes; the sender's fabric finds out.
    BlackHole((usize, usize), (usize, usize)),
    /// Nothing passes between the nodes.
    Partition,
    /// All of these end.
    Heal,
    /// Packets are late, and overtake each other.
    Late,
    /// A node's process dies and starts anew under its name.
    Restart(usize),
}

/// A transfer of a script.
#[derive(Clone, Copy, Debug)]
pub struct Post {
    /// Who posts it: node 0 or 1, with the other.
    pub from: usize,
    /// Which way.
    pub way: Way,
    /// Its slices.
    pub shape: Shape,
    /// Tell the peer.
    pub notify: bool,
    /// Cancel it after so long.
    pub cancel_us: Option<u64>,
}

/// What happens at a moment.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// Transfer number so-and-so is posted.
    Post(usize),
    /// Something breaks, or mends.
    Strike(Strike),
}

/// A seed's script for two nodes.
#[derive(Clone, Debug)]
pub struct Script {
    /// The seed.
    pub seed: u64,
    /// Rails of each node.
    pub rails: [usize; 2],
    /// The transfers of both phases.
    pub posts: Vec<Post>,
    /// What happens when, milliseconds, in order.
    pub events: Vec<(u64, Event)>,
    /// When everything mends, milliseconds.
    pub heal_ms: u64,
    /// Transfers from here on are posted after that, and must succeed.
    pub demanded: usize,
    /// What the scenario has and the emulated device has not.
    pub omitted: u32,
}

impl Script {
    /// The script of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        // As the simulator's own driver makes it.
        let scenario = Scenario::new(&mut Rng::new(seed).fork());
        let mut rng = Rng::new(mix(seed ^ 0x5C41));
        let rails = [0, 1].map(|node| scenario.nodes[node].rails.len().clamp(1, RAILS_MAX));
        let scale = |at: u64| at.saturating_mul(PHASE_MS) / scenario.heal_at.max(1);
        let mut events = Vec::new();
        let mut omitted = 0;
        for (at, trouble) in &scenario.troubles {
            match strike(trouble, rails) {
                Some(strike) => events.push((scale(*at), Event::Strike(strike))),
                None => omitted += 1,
            }
        }
        let mut posts = Vec::new();
        let post = |rng: &mut Rng, mix: &kvrail_sim::scenario::Mix| Post {
            from: rng.index(2),
            way: if rng.chance(mix.read_ppm) { Way::Read } else { Way::Write },
            shape: shape(rng),
            notify: rng.chance(mix.notify_ppm),
            cancel_us: rng.chance(mix.cancel_ppm).then(|| rng.below(60_000)),
        };
        for _ in 0..scenario.mix.transfers.min(TRANSFERS_MAX) {
            events.push((rng.below(PHASE_MS), Event::Post(posts.len())));
            posts.push(post(&mut rng, &scenario.mix));
        }
        events.sort_by_key(|(at, _)| *at);
        // A process takes its time to start, and is known by nobody meanwhile.
        let mut later = 0;
        for (at, event) in &mut events {
            *at += later;
            if matches!(event, Event::Strike(Strike::Restart(_))) {
                later += SETTLE_MS;
            }
        }
        let demanded = posts.len();
        for (from, way) in [(0, Way::Write), (0, Way::Read), (1, Way::Write), (1, Way::Read)] {
            posts.push(Post { from, way, notify: true, cancel_us: None, shape: shape(&mut rng) });
        }
        Self { seed, rails, posts, events, heal_ms: PHASE_MS + later, demanded, omitted }
    }

    /// When a transfer of the first phase is posted, milliseconds.
    #[must_use]
    pub fn posted_at(&self, number: usize) -> Option<u64> {
        let is_it = |event: &Event| matches!(event, Event::Post(other) if *other == number);
        self.events.iter().find(|(_, event)| is_it(event)).map(|(at, _)| *at)
    }

    /// Faults with their times.
    pub fn strikes(&self) -> impl Iterator<Item = (u64, Strike)> + '_ {
        self.events.iter().filter_map(|(at, event)| match event {
            Event::Strike(strike) => Some((*at, *strike)),
            Event::Post(_) => None,
        })
    }

    /// In one line, for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let strikes: Vec<String> = self.strikes().map(|(at, strike)| format!("{at} ms {strike:?}")).collect();
        let cancels = self.posts.iter().filter(|post| post.cancel_us.is_some()).count();
        format!(
            "rails {}:{}, {} transfers, {cancels} cancels, {}",
            self.rails[0],
            self.rails[1],
            self.posts.len(),
            if strikes.is_empty() { "no faults".into() } else { strikes.join("; ") }
        )
    }
}

/// A trouble that the emulated device has as well.
fn strike(trouble: &Trouble, rails: [usize; 2]) -> Option<Strike> {
    let here = |node: usize, rail: usize| (node < 2).then(|| (node, rail % rails[node]));
    match *trouble {
        Trouble::Fabric(Fault::RailDown { node, rail }) => {
            here(node, rail).map(|(n, r)| Strike::RailDown(n, r))
        }
        Trouble::Fabric(Fault::RailSilent { node, rail }) => {
            here(node, rail).map(|(n, r)| Strike::RailSilent(n, r))
        }
        Trouble::Fabric(Fault::RailUp { node, rail }) => here(node, rail).map(|(n, r)| Strike::RailUp(n, r)),
        Trouble::Fabric(Fault::BlackHole { from, to }) if from.0 != to.0 => {
            Some(Strike::BlackHole(here(from.0, from.1)?, here(to.0, to.1)?))
        }
        Trouble::Fabric(Fault::Partition { a, b }) => (a < 2 && b < 2).then_some(Strike::Partition),
        Trouble::Fabric(Fault::Heal) => Some(Strike::Heal),
        Trouble::Fabric(Fault::Chaos(chaos)) if chaos.reorder_ppm > 0 => Some(Strike::Late),
        Trouble::Restart(node) => (node < 2).then_some(Strike::Restart(node)),
        // A fabric that loses or doubles single ops, a process that is killed for good, one that polls rarely, one that forgets.
        _ => None,
    }
}

fn shape(rng: &mut Rng) -> Shape {
    let seed = rng.bits();
    let (count, len_min, len_max) = match rng.below(4) {
        0 => (1, 1, 4096),
        1 => (rng.within(2, 40) as u32, 1, 8192),
        2 => (rng.within(100, 400) as u32, 1, 256),
        _ => (rng.within(1, 3) as u32, 128 << 10, 600 << 10),
    };
    Shape { seed, count, len_min, len_max, gap_max: 200, shuffled: rng.chance(500_000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_thousand_seeds_have_every_fault_and_unequal_rails() {
        let scripts: Vec<_> = (0..1000).map(Script::of).collect();
        let has = |wanted: fn(&Strike) -> bool| scripts.iter().any(|s| s.strikes().any(|(_, x)| wanted(&x)));
        assert!(has(|s| matches!(s, Strike::RailDown(..))));
        assert!(has(|s| matches!(s, Strike::RailSilent(..))));
        assert!(has(|s| matches!(s, Strike::RailUp(..))));
        assert!(has(|s| matches!(s, Strike::BlackHole(..))));
        assert!(has(|s| matches!(s, Strike::Partition)));
        assert!(has(|s| matches!(s, Strike::Heal)));
        assert!(has(|s| matches!(s, Strike::Late)));
        assert!(has(|s| matches!(s, Strike::Restart(_))));
        assert!(scripts.iter().filter(|s| s.rails[0] != s.rails[1]).count() > 300);
        assert!(scripts.iter().any(|s| s.posts.iter().any(|p| p.cancel_us.is_some())));
    }
}
