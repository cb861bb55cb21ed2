//! A node: one process at a time, its memory, its NICs, what it registered and whom it knows.

use std::collections::{BTreeMap, VecDeque};

use kvrail_core::id::{Generation, PeerId, RailSet, RegionId};
use kvrail_core::transport::{Event, RailInfo, RegionInfo};

use crate::memory::Arena;
use crate::rng::mix;

/// What a node is made of.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Line rate of each NIC, bits per second. Unequal counts and rates are ordinary.
    pub rails: Vec<u64>,
    /// Memory of its process, bytes.
    pub memory: u64,
    /// NUMA nodes. A region has keys only on the rails near its memory; which node that is goes by the region's number,
    /// and now and then it is all of them. One, or more than there are rails: every region is on all rails.
    pub sockets: usize,
}

impl NodeSpec {
    /// The rails near a region.
    pub(crate) fn near(&self, region: RegionId) -> RailSet {
        let (sockets, region) = (self.sockets.min(self.rails.len()), region.index());
        if sockets <= 1 || region % (sockets + 1) == sockets {
            return RailSet::ALL;
        }
        let near = (0..self.rails.len()).filter(|rail| rail % sockets == region % (sockets + 1));
        near.fold(RailSet::NONE, RailSet::with)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RailState {
    Up,
    /// Dead, and everybody is told.
    Down,
    /// Dead, and nobody is told.
    Silent,
}

/// What a queue entry gives back when it is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Slot {
    /// A place in the send queue.
    Send,
    /// A posted receive.
    Receive,
    /// Nothing: the entry is not the engine's doing (a duplicate, news of a rail).
    None,
}

#[derive(Clone, Debug)]
pub(crate) struct Rail {
    pub(crate) info: RailInfo,
    pub(crate) state: RailState,
    /// Which of the endpoints that this process had on the rail, one after the other: part of its address.
    pub(crate) endpoint: u64,
    /// When the NIC has sent everything given to it so far.
    pub(crate) tx_free: u64,
    /// Completions, immediates and messages, unread.
    pub(crate) queue: VecDeque<(Slot, Event)>,
    pub(crate) ops_in_flight: u32,
    pub(crate) sends_in_flight: u32,
    /// Immediates and messages unread.
    pub(crate) unread: u32,
    /// Immediates unread.
    pub(crate) immediates: u32,
}

/// A registration: one key for each NIC near the memory.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) info: RegionInfo,
    pub(crate) rails: RailSet,
    /// By rail.
    pub(crate) keys: BTreeMap<usize, u64>,
}

/// A peer's region as its metadata described it.
#[derive(Clone, Debug)]
pub(crate) struct Imported {
    pub(crate) info: RegionInfo,
    /// By rail.
    pub(crate) keys: BTreeMap<usize, u64>,
}

/// An address handle: a peer's process as this process knows it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) node: usize,
    pub(crate) epoch: u64,
    /// Its endpoints, by rail.
    pub(crate) endpoints: Vec<u64>,
    pub(crate) regions: BTreeMap<u32, Imported>,
}

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) spec: NodeSpec,
    /// Which life of the node this is.
    pub(crate) epoch: u64,
    pub(crate) alive: bool,
    pub(crate) rails: Vec<Rail>,
    pub(crate) arena: Arena,
    pub(crate) registrations: BTreeMap<u32, Registration>,
    /// Key → region and the NIC that it is for.
    pub(crate) keys: BTreeMap<u64, (RegionId, usize)>,
    pub(crate) peers: BTreeMap<u32, Peer>,
    /// `(node, epoch)` of every peer with its endpoints: whose ops this node's NICs answer.
    pub(crate) known: BTreeMap<(usize, u64), Vec<u64>>,
    /// News that belong to no queue.
    pub(crate) news: VecDeque<Event>,
    /// Something arrived since the driver last asked.
    pub(crate) wake: bool,
    registered: u64,
}

/// Address spaces of different nodes and lives do not overlap, so that a mixed-up address is never right by luck.
pub(crate) const fn arena_base(node: usize, epoch: u64) -> u64 {
    0x7000_0000_0000 + ((node as u64) << 36) + ((epoch & 0xFF) << 28) + 0x1000
}

impl Node {
    pub(crate) fn new(index: usize, spec: NodeSpec, epoch: u64) -> Self {
        let rails = spec
            .rails
            .iter()
            .enumerate()
            .map(|(rail, rate)| Rail {
                info: RailInfo { name: format!("sim{index}n{rail}"), rate_bps: *rate },
                state: RailState::Up,
                endpoint: 1,
                tx_free: 0,
                queue: VecDeque::new(),
                ops_in_flight: 0,
                sends_in_flight: 0,
                unread: 0,
                immediates: 0,
            })
            .collect();
        let arena = Arena::new(arena_base(index, epoch), spec.memory as usize, 0xA5 ^ epoch as u8);
        Self {
            spec,
            epoch,
            alive: true,
            rails,
            arena,
            registrations: BTreeMap::new(),
            keys: BTreeMap::new(),
            peers: BTreeMap::new(),
            known: BTreeMap::new(),
            news: VecDeque::new(),
            wake: false,
            registered: 0,
        }
    }

    /// The process dies: what it held in the NICs is gone. Its bytes stay readable for packets under way.
    pub(crate) fn die(&mut self) {
        self.alive = false;
        self.registrations.clear();
        self.keys.clear();
        self.peers.clear();
        self.known.clear();
        self.news.clear();
        for rail in &mut self.rails {
            rail.queue.clear();
            (rail.ops_in_flight, rail.sends_in_flight, rail.unread, rail.immediates) = (0, 0, 0, 0);
        }
    }

    pub(crate) fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(&id.slot).filter(|peer| peer.id == id)
    }

    pub(crate) fn register(&mut self, index: usize, info: &RegionInfo) -> bool {
        if self.registrations.contains_key(&info.id.0) || self.arena.slice(info.base, info.len).is_none() {
            return false;
        }
        self.registered += 1;
        let root = mix(self.epoch ^ mix(index as u64 ^ (self.registered << 20)));
        let rails = self.spec.near(info.id);
        let keys: BTreeMap<usize, u64> =
            rails.below(self.rails.len()).map(|rail| (rail, mix(root ^ rail as u64))).collect();
        self.keys.extend(keys.iter().map(|(rail, key)| (*key, (info.id, *rail))));
        self.registrations.insert(info.id.0, Registration { info: *info, rails, keys });
        true
    }

    pub(crate) fn deregister(&mut self, region: RegionId) {
        if let Some(registration) = self.registrations.remove(&region.0) {
            for key in registration.keys.values() {
                self.keys.remove(key);
            }
        }
    }

    /// Whether this node's NICs answer an endpoint of a process.
    pub(crate) fn knows(&self, process: (usize, u64), rail: usize, endpoint: u64) -> bool {
        self.known.get(&process).and_then(|endpoints| endpoints.get(rail)) == Some(&endpoint)
    }

    /// Whether a NIC of this node lets a packet with this key touch these addresses.
    pub(crate) fn admits(&self, key: u64, rail: usize, address: u64, len: u64) -> bool {
        let Some((region, owner)) = self.keys.get(&key) else { return false };
        *owner == rail && self.registrations.get(&region.0).is_some_and(|r| inside(&r.info, address, len))
    }

    /// Whether this very registration still stands and spans these addresses: a refusal would then be the
    /// initiator's mistake.
    pub(crate) fn exports(&self, region: RegionId, generation: Generation, address: u64, len: u64) -> bool {
        let stands = |r: &Registration| r.info.generation == generation && inside(&r.info, address, len);
        self.registrations.get(&region.0).is_some_and(stands)
    }
}

/// Whether `len` bytes at `address` lie in the region.
pub(crate) fn inside(info: &RegionInfo, address: u64, len: u64) -> bool {
    address >= info.base && address - info.base <= info.len && len <= info.len - (address - info.base)
}
