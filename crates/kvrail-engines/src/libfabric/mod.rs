//! Plain `fi_write` and `fi_read`: what software can reach on a provider when nothing stands between a loop and it.
//!
//! A rail is an endpoint on a domain of its own, one for each NIC as kvrail's own transport picks them; each posting thread has
//! rails of its own. Blocks go over the rails in turn, in bursts that ring one doorbell (`FI_MORE`), as many in flight as the
//! provider takes. A block is cut only where it is longer than the provider's longest operation, or where there are fewer blocks
//! than rails. There is no retry, no failover, no notification; what is the same as in kvrail is the evidence (`lane.rs`):
//! a figure for writes whose arrival nobody knows of would be no ceiling of anything.

mod lane;
mod offer;
mod rail;

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvrail::Memory;
use kvrail::ofi::Provider;
use kvrail_core::transport::Evidence;
use kvrail_sys::libfabric::abi::{FI_OPT_EFA_EMULATED_READ, FI_OPT_EFA_EMULATED_WRITE, FI_PROGRESS_MANUAL};
use kvrail_sys::libfabric::{Library, Search};
use kvrail_topology::{Source, Topology};
use kvrail_transport::ofi::config::Config;
use kvrail_transport::ofi::offers::{Discovery, discover};
use kvrail_transport::ofi::{counters, evidence};

use crate::engine::{Blocks, Direction, Engine, Name, PeerId, Posting};
use crate::error::{EngineError, Kind};
use crate::metadata;
use crate::used::{Fact, Rail as UsedRail, Used};
use lane::{Lane, Plan};
use offer::{LANES_MAX, Offer, VERSION};
use rail::{DEPTH_MAX, Op, Rail, Setup, open_failed};

/// How often a greeting that was not answered is repeated.
const GREET_EVERY: Duration = Duration::from_millis(200);
/// Looks at a flight between two at the clock.
const LOOKS_PER_CLOCK: u32 = 4096;
/// A piece of a block that is cut to give every rail one is a multiple of this, and not shorter.
const PIECE_BYTES: u64 = 64 << 10;

/// What is asked for, as of kvrail's own transport.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// libfabric.so.1 or its directory; none: searched for.
    pub library: Option<PathBuf>,
    /// Which provider; the best that has a NIC by default.
    pub provider: Provider,
    /// NICs; all if empty.
    pub devices: Vec<String>,
    /// Rails; one for each NIC if none.
    pub rails: Option<u16>,
    /// Operations in flight on a rail; as many as the provider takes, up to 2,048, if none.
    pub depth: Option<u32>,
}

/// The engine.
pub struct Libfabric {
    shared: Option<Arc<Shared>>,
    library: Arc<Library>,
    found: Discovery,
    evidence: Evidence,
    depth: usize,
    lanes: usize,
    tag: u32,
    facts: Vec<Fact>,
}

/// What postings hold on to. The lanes, whose endpoints let go of all memory, go before the memory.
struct Shared {
    lanes: Vec<Mutex<Lane>>,
    memory: Memory,
    op_bytes_max: u64,
}

impl Shared {
    /// A lane; one that a panic left is closed by its next error.
    #[inline]
    fn lane(&self, index: usize) -> MutexGuard<'_, Lane> {
        self.lanes[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Libfabric {
    /// Loads a libfabric and finds the provider and the NICs.
    ///
    /// # Errors
    /// When there is no libfabric, or it offers nothing of what is asked for.
    pub fn open(options: &Options) -> Result<Self, EngineError> {
        let library = Library::load(&Search::new(options.library.as_deref())).map_err(|error| {
            let failed = EngineError::new(Kind::Environment, error.to_string());
            error.hints().into_iter().fold(failed, EngineError::hint)
        })?;
        let config = Config {
            provider: options.provider.clone(),
            devices: options.devices.clone(),
            rails: options.rails,
            ..Config::default()
        };
        config.validate().map_err(|error| open_failed(&error))?;
        // Without it NICs have no NUMA node and no rate of the kernel's; the provider's word is taken.
        let topology = Topology::read(&Source::Sysfs(counters::sysfs_root(None))).ok();
        let found = discover(&library, &config, topology.as_ref()).map_err(|error| open_failed(&error))?;
        let evidence = evidence::of(&found.choice.provider).evidence;
        let random = RandomState::new().hash_one(std::process::id()) as u32;
        Ok(Self {
            shared: None,
            library,
            found,
            evidence,
            depth: options.depth.map_or(DEPTH_MAX, |depth| depth as usize).clamp(1, DEPTH_MAX),
            lanes: 1,
            tag: random & !0xff,
            facts: Vec::new(),
        })
    }

    fn shared(&self) -> Result<&Arc<Shared>, EngineError> {
        let missing = || EngineError::new(Kind::Usage, "engine libfabric was given no memory");
        self.shared.as_ref().ok_or_else(missing)
    }

    fn provider(&self) -> &str {
        &self.found.choice.provider
    }

    fn open_lane(&self, index: usize, memory: &Memory) -> Result<Lane, EngineError> {
        let rails =
            self.found.choice.rails.iter().zip(&self.found.infos).enumerate().map(|(i, (chosen, info))| {
                // Not every provider keeps the keys of domains apart, and a stale key shall meet nothing.
                let key_bits = (8 * info.first().mr_key_bytes()).clamp(8, 63) as u32;
                let first = u64::from(self.tag) >> 8 << 16;
                let key = (first + 2 * (index * offer::RAILS_MAX + i) as u64 + 1) & ((1 << key_bits) - 1);
                let (name, provider, depth) = (chosen.name.as_str(), self.provider(), self.depth);
                Rail::open(&Setup { name, provider, info, memory, depth, key })
            });
        let rails = rails.collect::<Result<_, _>>()?;
        Ok(Lane::new(self.tag | index as u32, self.evidence == Evidence::Counted, self.lanes, rails))
    }
}

impl Engine for Libfabric {
    fn name(&self) -> Name {
        Name::Libfabric
    }

    fn used(&self) -> Vec<Used> {
        let rails = self.found.choice.rails.iter().map(|rail| UsedRail {
            name: rail.name.clone(),
            rate_bps: rail.rate_bps,
            pci: rail.pci.map(|pci| pci.to_string()),
            numa: rail.numa,
        });
        let (major, minor) = self.library.version();
        let mut facts = vec![
            Fact::new("provider", self.provider()),
            Fact::new("library", self.library.path().display().to_string()),
            Fact::new("lanes", self.lanes.to_string()),
        ];
        if let Some(first) = self.found.infos.first().map(|info| info.first()) {
            let version = first.fabric().map_or(0, |fabric| fabric.prov_version);
            facts.push(Fact::new("fabric", first.fabric_name()));
            facts.push(Fact::new("provider_version", format!("{}.{}", version >> 16, version & 0xffff)));
        }
        facts.extend(self.facts.iter().cloned());
        for passed in &self.found.choice.passed {
            facts.push(Fact::new("passed_over", passed.to_string()));
        }
        for left_out in &self.found.choice.left_out {
            facts.push(Fact::new("left_out", left_out.to_string()));
        }
        vec![Used {
            version: format!("{major}.{minor}"),
            transport: self.provider().into(),
            evidence: self.evidence.to_string(),
            rails: rails.collect(),
            facts,
            ofi: None,
        }]
    }

    fn lanes(&mut self, count: u32) -> Result<(), EngineError> {
        let count = count as usize;
        if !(1..=LANES_MAX).contains(&count) {
            let what = format!("engine libfabric serves 1 to {LANES_MAX} posting threads, not {count}");
            return Err(EngineError::new(Kind::Usage, what));
        }
        self.lanes = count;
        Ok(())
    }

    fn register(&mut self, memory: &Memory) -> Result<(), EngineError> {
        let lanes =
            (0..self.lanes).map(|index| self.open_lane(index, memory)).collect::<Result<Vec<_>, _>>()?;
        let rails = || lanes.iter().flat_map(Lane::rails);
        let op_bytes_max = rails().map(|rail| rail.op_bytes_max as u64).min().unwrap_or(1);
        let depth = rails().map(Rail::depth).min().unwrap_or(0);
        self.facts = vec![Fact::new("depth", depth.to_string())];
        if self.provider().starts_with("efa") {
            // A release that cannot say (before 1.18) emulates both.
            let emulates = |option| rails().any(|rail| rail.flag(option).unwrap_or(true));
            for (what, option) in
                [("emulated_read", FI_OPT_EFA_EMULATED_READ), ("emulated_write", FI_OPT_EFA_EMULATED_WRITE)]
            {
                self.facts.push(Fact::new(what, emulates(option).to_string()));
            }
        }
        let lanes = lanes.into_iter().map(Mutex::new).collect();
        self.shared = Some(Arc::new(Shared { lanes, memory: memory.clone(), op_bytes_max }));
        Ok(())
    }

    fn metadata(&mut self) -> Result<Vec<u8>, EngineError> {
        let shared = self.shared()?;
        let lane = |index| shared.lane(index).rails().iter().map(Rail::offer).collect::<Result<Vec<_>, _>>();
        let offer = Offer {
            provider: self.provider().into(),
            tag: self.tag,
            len: shared.memory.len() as u64,
            lanes: (0..shared.lanes.len()).map(lane).collect::<Result<_, _>>()?,
        };
        metadata::seal(Name::Libfabric, VERSION, &offer)
    }

    fn admit(&mut self, metadata: &[u8]) -> Result<(), EngineError> {
        let offer: Offer = metadata::open(Name::Libfabric, VERSION, metadata)?;
        offer.check(self.provider())?;
        let shared = self.shared()?;
        let lanes = shared.lanes.len();
        (0..lanes).try_for_each(|index| shared.lane(index).admit(&offer, (index, lanes)))
    }

    fn connect(&mut self, metadata: &[u8], within: Duration) -> Result<PeerId, EngineError> {
        let offer: Offer = metadata::open(Name::Libfabric, VERSION, metadata)?;
        offer.check(self.provider())?;
        let shared = self.shared()?;
        let deadline = Instant::now() + within;
        let mut peer = 0;
        for index in 0..shared.lanes.len() {
            peer = shared.lane(index).meet(&offer, index)?;
            let mut greet_at = Instant::now();
            loop {
                let now = Instant::now();
                let mut lane = shared.lane(index);
                let answered = lane.welcomed(peer);
                if answered >= lane.rails().len() {
                    break;
                }
                if now >= deadline {
                    let what = format!(
                        "the target answered over {answered} of {} rails within {within:?}",
                        lane.rails().len()
                    );
                    return Err(EngineError::new(Kind::Peer, what)
                        .hint("it must admit this side and be driven; a security group must allow all traffic to itself"));
                }
                if now >= greet_at {
                    lane.greet(peer)?;
                    greet_at = now + GREET_EVERY;
                }
                let moved = lane.turn()?;
                drop(lane);
                if !moved {
                    // The target may need this core to answer.
                    std::thread::yield_now();
                }
            }
        }
        Ok(PeerId(peer))
    }

    fn prepare(&self, blocks: &Blocks<'_>) -> Result<Box<dyn Posting>, EngineError> {
        let usage = |what: String| EngineError::new(Kind::Usage, what);
        if blocks.notification.is_some() {
            return Err(usage("engine libfabric has no notifications".into()));
        }
        let shared = Arc::clone(self.shared()?);
        let index = blocks.lane as usize;
        if index >= shared.lanes.len() {
            return Err(usage(format!("lane {index} of {}", shared.lanes.len())));
        }
        let (rails, remote_bytes) = {
            let lane = shared.lane(index);
            let remote_bytes = lane.target_len(blocks.peer.0);
            (
                self.found.choice.rails.len(),
                remote_bytes.ok_or_else(|| usage("engine libfabric was told of no such peer".into()))?,
            )
        };
        let ops = divide(blocks, &shared.memory, remote_bytes, rails, shared.op_bytes_max)?;
        let plan = Plan { peer: blocks.peer.0, read: blocks.direction == Direction::Read, ops };
        let timeout = blocks.timeout;
        Ok(Box::new(Transfer {
            shared,
            lane: index,
            plan: Arc::new(plan),
            flight: None,
            deadline: None,
            timeout,
            looks: 0,
        }))
    }

    fn needs_driving(&self) -> bool {
        let manual = |info: &kvrail_sys::libfabric::Info| info.first().data_progress() == FI_PROGRESS_MANUAL;
        // Counts are told by whoever polls, whatever moves the bytes.
        self.evidence == Evidence::Counted || self.found.infos.iter().any(manual)
    }

    fn drive(&self) -> bool {
        let Some(shared) = &self.shared else { return false };
        let mut moved = false;
        for lane in &shared.lanes {
            // Who holds it makes progress.
            let Ok(mut lane) = lane.try_lock() else { continue };
            // What failed is said to who posts; at a target, by the initiator's deadline and here.
            moved |= lane.turn().unwrap_or(false);
        }
        moved
    }

    fn notifications(&self, awaited: u64, _within: Duration) -> Result<u64, EngineError> {
        match awaited {
            0 => Ok(0),
            _ => Err(EngineError::new(Kind::Usage, "engine libfabric has no notifications")),
        }
    }
}

/// Each rail's operations: the blocks in turn, checked against both memories (KR-9).
fn divide(
    blocks: &Blocks<'_>,
    memory: &Memory,
    remote_bytes: u64,
    rails: usize,
    op_bytes_max: u64,
) -> Result<Vec<Vec<Op>>, EngineError> {
    let len = blocks.block_bytes;
    let count = blocks.local.len();
    if count != blocks.remote.len() || count == 0 || len == 0 {
        let what = format!(
            "{count} blocks here and {} there, of {len} bytes each, are no transfer",
            blocks.remote.len()
        );
        return Err(EngineError::new(Kind::Usage, what));
    }
    let piece = piece_bytes(len, count, rails).min(op_bytes_max);
    let inside = |offset: u64, of: u64| offset.checked_add(len).is_some_and(|end| end <= of);
    let mut ops = vec![Vec::with_capacity(count / rails + 1); rails];
    let mut next = 0;
    for (i, (&local, &remote)) in blocks.local.iter().zip(blocks.remote).enumerate() {
        for (offset, of, whose) in [(local, memory.len() as u64, "local"), (remote, remote_bytes, "remote")] {
            if !inside(offset, of) {
                let what =
                    format!("block {i} ends outside of the {whose} memory: {len} bytes at {offset} of {of}");
                return Err(EngineError::new(Kind::Usage, what));
            }
        }
        let mut at = 0;
        while at < len {
            let bytes = piece.min(len - at);
            let address = (memory.base() + local + at) as usize;
            let local = std::ptr::with_exposed_provenance_mut(address);
            ops[next % rails].push(Op { local, remote: remote + at, bytes: bytes as usize });
            next += 1;
            at += bytes;
        }
    }
    Ok(ops)
}

/// Bytes of a piece such that every rail has one, as far as blocks are long enough for that.
fn piece_bytes(block_bytes: u64, blocks: usize, rails: usize) -> u64 {
    if blocks >= rails {
        return block_bytes;
    }
    block_bytes.div_ceil(rails.div_ceil(blocks) as u64).next_multiple_of(PIECE_BYTES)
}

/// A prepared transfer.
struct Transfer {
    shared: Arc<Shared>,
    lane: usize,
    plan: Arc<Plan>,
    flight: Option<u32>,
    deadline: Option<Instant>,
    timeout: Duration,
    looks: u32,
}

impl Posting for Transfer {
    fn post(&mut self) -> Result<(), EngineError> {
        if self.flight.is_some() {
            return Err(EngineError::new(Kind::Usage, "a transfer was posted again before it had ended"));
        }
        self.flight = Some(self.shared.lane(self.lane).post(&self.plan)?);
        self.looks = 0;
        self.deadline = None;
        Ok(())
    }

    #[inline]
    fn poll(&mut self) -> Option<Result<(), EngineError>> {
        let flight = self.flight?;
        let mut lane = self.shared.lane(self.lane);
        if let Err(error) = lane.turn() {
            self.flight = None;
            return Some(Err(error));
        }
        if lane.end(flight) {
            self.flight = None;
            return Some(Ok(()));
        }
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_PER_CLOCK) {
            // From the first look at the clock on, which is less than a millisecond late.
            let now = Instant::now();
            if now >= *self.deadline.get_or_insert(now + self.timeout) {
                let in_flight: usize = lane.rails().iter().map(Rail::in_flight).sum();
                let what = format!(
                    "a transfer has not ended within {:?}: {in_flight} operations are in flight; the target is gone or is not driven",
                    self.timeout
                );
                self.flight = None;
                return Some(Err(lane.close(EngineError::new(Kind::Peer, what))));
            }
        }
        None
    }

    fn cancel(&mut self) {
        if self.flight.is_some() {
            // libfabric takes no transfer back but by closing its endpoint.
            self.shared.lane(self.lane).close(EngineError::new(Kind::Usage, "the transfer was given up"));
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(flight) = self.flight {
            self.shared.lane(self.lane).abandon(flight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(offsets: &[u64], block_bytes: u64, rails: usize, op_bytes_max: u64) -> Vec<Vec<(u64, usize)>> {
        let memory = Memory::private(1 << 20).unwrap();
        let blocks = Blocks {
            direction: Direction::Read,
            peer: PeerId(0),
            lane: 0,
            local: offsets,
            remote: offsets,
            block_bytes,
            notification: None,
            timeout: Duration::from_secs(1),
        };
        let ops = divide(&blocks, &memory, 1 << 20, rails, op_bytes_max).unwrap();
        for op in ops.iter().flatten() {
            assert_eq!(op.local.addr() as u64 - memory.base(), op.remote);
        }
        ops.iter().map(|rail| rail.iter().map(|op| (op.remote, op.bytes)).collect()).collect()
    }

    #[test]
    fn blocks_go_over_the_rails_in_turn() {
        let ops = cut(&[10, 200, 300, 50, 0], 10, 2, 1 << 30);
        assert_eq!(ops, [vec![(10, 10), (300, 10), (0, 10)], vec![(200, 10), (50, 10)]]);
    }

    #[test]
    fn a_block_is_cut_where_it_is_too_long_or_rails_would_be_idle() {
        assert_eq!(cut(&[0], 25, 1, 10), [vec![(0, 10), (10, 10), (20, 5)]]);
        let quarter = 256 << 10;
        let four = cut(&[0], 1 << 20, 4, 1 << 30);
        assert_eq!(four, [0, 1, 2, 3].map(|i| vec![(i * quarter, quarter as usize)]));
        // Not into crumbs.
        let crumbs = cut(&[0], 100 << 10, 4, 1 << 30);
        assert_eq!(crumbs.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 0, 0]);
        assert_eq!(cut(&[0, 1 << 19], 1 << 19, 2, 1 << 30).iter().flatten().count(), 2);
    }
}
