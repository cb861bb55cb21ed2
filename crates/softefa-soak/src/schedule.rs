//! What happens in one run, decided from its seed alone: hosts, network, traffic, faults, kills, the end.

use softefa_fabric::{Fault, FaultKind, Scope};

use crate::random::Random;

/// Most nodes of a schedule.
pub const NODES_MAX: usize = 3;
/// Most processes of a node at the same time.
pub const PROCESSES_MAX: usize = 2;
/// How often a process may run: once, and once more after it was killed.
pub const LIVES_MAX: usize = 2;
/// Places for processes, each with its own memory.
pub const RANKS: usize = NODES_MAX * PROCESSES_MAX * LIVES_MAX;
/// Most NICs of a node.
pub const NICS_MAX: usize = 4;
/// Most faults of a schedule.
pub const FAULTS_MAX: usize = 8;

/// A process of a schedule.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rank(u8);

impl Rank {
    /// Process `process` of `node` in its life number `life`.
    #[must_use]
    pub fn of(node: usize, process: usize, life: usize) -> Self {
        assert!(node < NODES_MAX && process < PROCESSES_MAX && life < LIVES_MAX);
        Self(((node * PROCESSES_MAX + process) * LIVES_MAX + life) as u8)
    }

    /// The rank with this number.
    #[must_use]
    pub fn at(index: usize) -> Option<Self> {
        (index < RANKS).then_some(Self(index as u8))
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..RANKS as u8).map(Self)
    }

    /// Its number.
    #[must_use]
    pub fn index(self) -> usize {
        self.0.into()
    }

    /// Its node.
    #[must_use]
    pub fn node(self) -> usize {
        self.index() / LIVES_MAX / PROCESSES_MAX
    }

    /// Which of the node's processes.
    #[must_use]
    pub fn process(self) -> usize {
        self.index() / LIVES_MAX % PROCESSES_MAX
    }

    /// Which of its lives.
    #[must_use]
    pub fn life(self) -> usize {
        self.index() % LIVES_MAX
    }
}

/// The network, as the command line of `kvrail softefa run` describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// No time at all.
    Instant,
    /// The model's defaults.
    Default,
    /// 200 µs, 5 Gb/s.
    Slow,
    /// Bytes become visible after the acknowledgement.
    Commit,
    /// Every tenth packet is retransmitted and late.
    Lossy,
}

impl Network {
    const ALL: [Self; 5] = [Self::Instant, Self::Default, Self::Slow, Self::Commit, Self::Lossy];

    /// How long after its acknowledgement a write may be invisible, µs.
    #[must_use]
    pub fn commit_us(self) -> u64 {
        if self == Self::Commit { 300 } else { 0 }
    }

    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Instant => &["--instant"],
            Self::Default => &[],
            Self::Slow => &["--latency", "200us", "--jitter", "100us", "--rate", "5Gbps"],
            Self::Commit => &["--instant", "--commit-delay", "300us"],
            Self::Lossy => &["--latency", "20us", "--tail", "10%"],
        }
    }
}

/// What processes do.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Operations that each process keeps in flight.
    pub in_flight: usize,
    /// Receives that are posted on each NIC.
    pub receives: usize,
    /// Places for writes that each process has at each other.
    pub slots: usize,
    /// Bytes of such a place, and of the longest message.
    pub slot_bytes: usize,
    /// Completions are waited for on a completion channel rather than polled for.
    pub events: bool,
    /// Completions are read with `ibv_poll_cq` rather than with the extended functions.
    pub classic_poll: bool,
    /// Writes with immediate use up no receive.
    pub unsolicited: bool,
    /// How often a message is sent again to a peer that has no receive; 7 = for ever.
    pub rnr_retry: u8,
    /// Operations that must fail (bad keys, strangers) of a hundred.
    pub mischief_percent: u64,
}

/// A fault of a schedule. Its `until_ns` is not yet known.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// What goes wrong, and where.
    pub fault: Fault,
    /// After how many µs it ends by itself.
    pub lasts_us: Option<u64>,
    /// How it is set.
    pub by: By,
}

/// How a fault is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// With `--fault` of `kvrail softefa run`.
    Start,
    /// With `kvrail softefa fault`.
    Command,
    /// Directly in the shared memory, as fast as can be.
    Memory,
}

/// Something that happens while the traffic runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Fault number so-and-so begins.
    Set(usize),
    /// It is cleared, if it has not ended.
    Clear(usize),
    /// A process is killed in its first life; it comes back if the schedule says so.
    Kill(Rank),
    /// The command of a node is killed; its processes run on without a parent.
    KillCommand(usize),
    /// `kvrail softefa status` is asked.
    Status,
}

/// How the run ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// All faults are cleared, all operations end, all processes leave.
    Drained,
    /// Processes leave while operations are in flight, which end flushed.
    Flushed,
    /// SIGKILL of the front.
    KillFront,
    /// SIGKILL of the keeper.
    KillKeeper,
    /// SIGKILL of both, the front first or the keeper first.
    KillBoth {
        /// Which.
        front_first: bool,
    },
    /// A signal to the front: SIGINT or SIGTERM.
    Signal(i32),
}

/// One run.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// What it is made from.
    pub seed: u64,
    /// Emulated hosts.
    pub nodes: usize,
    /// NICs of each.
    pub nics: usize,
    /// Processes of each.
    pub processes: usize,
    /// Timing.
    pub network: Network,
    /// NICs may send to themselves.
    pub loopback: bool,
    /// When an operation without an answer ends, ms.
    pub unresponsive_ms: u64,
    /// What processes do.
    pub traffic: Traffic,
    /// Faults, whenever they begin.
    pub faults: Vec<Planned>,
    /// What happens at which µs after all processes are ready, in order.
    pub timeline: Vec<(u64, Act)>,
    /// Whether killed processes come back.
    pub restarts: bool,
    /// When the end begins, µs after all processes are ready.
    pub run_us: u64,
    /// How it ends.
    pub ending: Ending,
}

impl Schedule {
    /// The schedule of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed, 0);
        let nodes = *random.pick(&[1, 2, 2, 2, 3]);
        let nics = random.between(1, NICS_MAX as u64) as usize;
        let processes = if nodes == 1 { 2 } else { *random.pick(&[1, 1, 2]) };
        let network = *random.pick(&Network::ALL);
        let run_us = random.between(15, 60) * 1000;
        let mut schedule = Self {
            seed,
            nodes,
            nics,
            processes,
            network,
            loopback: nodes * nics == 1 || random.chance(10),
            unresponsive_ms: random.between(15, 50),
            traffic: traffic(&mut random),
            faults: Vec::new(),
            timeline: Vec::new(),
            restarts: random.chance(50),
            run_us,
            ending: ending(&mut random),
        };
        schedule.plan_faults(&mut random);
        schedule.plan_kills(&mut random);
        if random.chance(5) {
            schedule.timeline.push((random.below(run_us), Act::Status));
        }
        schedule.timeline.sort_by_key(|(at, _)| *at);
        schedule
    }

    fn plan_faults(&mut self, random: &mut Random) {
        // One in six runs without any: what goes wrong then has no excuse.
        let count = if random.chance(16) { 0 } else { random.between(1, FAULTS_MAX as u64) };
        for number in 0..count as usize {
            let fault = self.fault(random);
            let by = match random.below(100) {
                0..3 => By::Start,
                3..7 => By::Command,
                _ => By::Memory,
            };
            // What is there from the start must end: processes could not even register their memory.
            let lasts = random.chance(40) || by == By::Start;
            let lasts_us = lasts.then(|| random.between(1000, self.run_us));
            self.faults.push(Planned { fault, lasts_us, by });
            let at = random.below(self.run_us);
            if by != By::Start {
                self.timeline.push((at, Act::Set(number)));
            }
            if random.chance(50) {
                self.timeline.push((random.between(at, self.run_us), Act::Clear(number)));
            }
        }
    }

    fn fault(&self, random: &mut Random) -> Fault {
        let kind = *random.pick(&FaultKind::ALL);
        let mut some = |n: usize, percent| random.chance(percent).then(|| random.below(n as u64) as u32);
        let scope = Scope {
            node: some(self.nodes, 80),
            nic: some(self.nics, 70),
            peer_node: some(self.nodes, 30),
            peer_nic: some(self.nics, 20),
        };
        let mut fault = Fault::new(kind, scope);
        if kind == FaultKind::RailDown || kind == FaultKind::NoRegistration {
            // They sit on a NIC, whoever the peer is.
            fault.scope = Scope { peer_node: None, peer_nic: None, ..scope };
        }
        if random.chance(25) {
            fault.probability_ppm = random.between(10_000, 900_000) as u32;
        }
        if random.chance(25) {
            fault.count = random.between(1, 40);
        }
        if random.chance(10) {
            fault.after = random.between(1, 40);
        }
        match kind {
            FaultKind::BlackHole => fault.amount = random.below(2),
            FaultKind::Drop => fault.probability_ppm = random.between(1_000, 400_000) as u32,
            FaultKind::Delay => {
                fault.amount = random.between(1, 4_000) * 1000;
                fault.spread = random.below(2_000) * 1000;
            }
            FaultKind::Rate => fault.amount = random.between(50, 5_000) * 1_000_000,
            FaultKind::Unreachable | FaultKind::Unresponsive => fault.amount = random.below(10) * 1_000_000,
            FaultKind::CqOverflow => fault.amount = random.between(1, 16),
            _ => {}
        }
        fault
    }

    fn plan_kills(&mut self, random: &mut Random) {
        if random.chance(25) {
            for _ in 0..random.between(1, 2) {
                let (node, process) = (random.below(self.nodes as u64), random.below(self.processes as u64));
                let act = Act::Kill(Rank::of(node as usize, process as usize, 0));
                if !self.timeline.iter().any(|(_, other)| *other == act) {
                    self.timeline.push((random.below(self.run_us), act));
                }
            }
        }
        if random.chance(3) {
            let node = random.below(self.nodes as u64) as usize;
            self.timeline.push((random.below(self.run_us), Act::KillCommand(node)));
        }
    }

    /// The arguments of `kvrail softefa run`, up to the command.
    #[must_use]
    pub fn words(&self, name: &str) -> Vec<String> {
        let mut words: Vec<String> =
            ["softefa", "run", "--quiet", "--libfabric", "none", "--deadline", "60s"]
                .map(String::from)
                .to_vec();
        let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
        add("--name", name.to_owned());
        add("--nodes", self.nodes.to_string());
        add("--nics", self.nics.to_string());
        add("--seed", self.seed.to_string());
        add("--unresponsive-after", format!("{}ms", self.unresponsive_ms));
        for planned in self.faults.iter().filter(|planned| planned.by == By::Start) {
            add("--fault", planned.words().join(" "));
        }
        words.extend(self.network.words().iter().map(|&word| word.to_owned()));
        if self.loopback {
            words.push("--loopback".into());
        }
        words.push("--".into());
        words
    }

    /// In one line, for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let faults: Vec<String> = self.faults.iter().map(|planned| planned.words().join(" ")).collect();
        format!(
            "{} nodes x {} NICs x {} processes, {:?}{}, {:?}, {} ms, ends {:?}; faults: {}",
            self.nodes,
            self.nics,
            self.processes,
            self.network,
            if self.loopback { " with loop-back" } else { "" },
            self.timeline,
            self.run_us / 1000,
            self.ending,
            if faults.is_empty() { "none".into() } else { faults.join("; ") },
        )
    }
}

impl Planned {
    /// The words of `kvrail softefa fault`.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let fault = &self.fault;
        let us = |ns: u64| format!("{}us", ns / 1000);
        let mut words = vec![fault.kind.name().to_owned()];
        match fault.kind {
            FaultKind::BlackHole if fault.amount == 1 => words.push("--silent".into()),
            FaultKind::Drop => words.push(format!("{}ppm", fault.probability_ppm)),
            FaultKind::Delay => words.extend([us(fault.amount), us(fault.spread)]),
            FaultKind::Rate => words.push(format!("{}bps", fault.amount)),
            FaultKind::Unreachable | FaultKind::Unresponsive if fault.amount > 0 => {
                words.push(us(fault.amount));
            }
            FaultKind::CqOverflow => words.extend(["--capacity".into(), fault.amount.to_string()]),
            _ => {}
        }
        let mut add = |flag: &str, value: Option<String>| {
            words.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
        };
        let scope = fault.scope;
        add("--node", scope.node.map(|n| n.to_string()));
        add("--nic", scope.nic.map(|n| n.to_string()));
        add("--peer-node", scope.peer_node.map(|n| n.to_string()));
        add("--peer-nic", scope.peer_nic.map(|n| n.to_string()));
        add("--for", self.lasts_us.map(|us| format!("{}ms", us.div_ceil(1000))));
        add("--count", (fault.count != u64::MAX).then(|| fault.count.to_string()));
        add("--after", (fault.after > 0).then(|| fault.after.to_string()));
        let always = fault.probability_ppm == 1_000_000 || fault.kind == FaultKind::Drop;
        add("--probability", (!always).then(|| format!("{}ppm", fault.probability_ppm)));
        words
    }
}

fn traffic(random: &mut Random) -> Traffic {
    let (slots, slot_bytes) = *random.pick(&[(16, 8 << 10), (12, 12 << 10), (8, 24 << 10), (3, 128 << 10)]);
    Traffic {
        in_flight: random.between(1, 24) as usize,
        receives: *random.pick(&[2, 8, 16]),
        slots,
        slot_bytes,
        events: random.chance(30),
        classic_poll: random.chance(30),
        unsolicited: random.chance(50),
        rnr_retry: *random.pick(&[7, 7, 7, 3, 0]),
        mischief_percent: *random.pick(&[0, 2, 5]),
    }
}

fn ending(random: &mut Random) -> Ending {
    match random.below(100) {
        0..60 => Ending::Drained,
        60..70 => Ending::Flushed,
        70..76 => Ending::KillFront,
        76..82 => Ending::KillKeeper,
        82..88 => Ending::KillBoth { front_first: random.chance(50) },
        88..94 => Ending::Signal(libc::SIGINT),
        _ => Ending::Signal(libc::SIGTERM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_schedule_and_another_seed_another_one() {
        let text = |seed| format!("{:?}", Schedule::of(seed));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }

    #[test]
    fn a_thousand_seeds_have_every_fault_every_ending_and_every_network() {
        let schedules: Vec<_> = (0..1000).map(Schedule::of).collect();
        for kind in FaultKind::ALL {
            assert!(schedules.iter().any(|s| s.faults.iter().any(|f| f.fault.kind == kind)), "{kind}");
        }
        for network in Network::ALL {
            assert!(schedules.iter().any(|s| s.network == network), "{network:?}");
        }
        let endings = [
            Ending::Drained,
            Ending::Flushed,
            Ending::KillFront,
            Ending::KillKeeper,
            Ending::KillBoth { front_first: true },
            Ending::KillBoth { front_first: false },
            Ending::Signal(libc::SIGINT),
            Ending::Signal(libc::SIGTERM),
        ];
        for ending in endings {
            assert!(schedules.iter().any(|s| s.ending == ending), "{ending:?}");
        }
        assert!(schedules.iter().all(|s| s.faults.len() <= FAULTS_MAX));
    }

    #[test]
    fn ranks_tell_their_node_process_and_life() {
        for rank in Rank::all() {
            assert_eq!(Rank::of(rank.node(), rank.process(), rank.life()), rank);
        }
    }
}
