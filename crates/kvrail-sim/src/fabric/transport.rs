//! The fabric as one process sees it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use kvrail_core::id::{PeerId, RailSet, RegionId, RemoteRail, Route};
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Direction, Event, PeerError, PostError, RailInfo, RegionInfo, RegisterError, Transport,
};

use super::World;
use super::deliver::Mail;
use super::node::{Imported, Peer, RailState, inside};
use super::op::{Fate, OpState};
use crate::violation::Checker;

/// First bytes of an address, so that another transport's is told apart.
const MAGIC: [u8; 4] = *b"SIM1";

/// Sends that one moment may see: more is an engine that never comes back.
const SENDS_AT_ONCE_MAX: u32 = 10_000;

/// One process's end of the fabric. Outlives the process harmlessly: after its death it does nothing.
pub struct SimTransport {
    world: Rc<RefCell<World>>,
    node: usize,
    epoch: u64,
    caps: Caps,
    rails: Vec<RailInfo>,
    /// A post was refused although there was room: when to try again, since no event will say so.
    retry: Option<Time>,
    /// A moment, and the sends asked for in it.
    sends: (Time, u32),
}

impl SimTransport {
    pub(super) fn new(world: &Rc<RefCell<World>>, node: usize) -> Self {
        let shared = world.borrow();
        let model = &shared.model;
        let caps = Caps {
            name: "sim",
            evidence: model.evidence,
            op_bytes_max: model.op_bytes_max,
            message_bytes_max: model.message_bytes_max,
            ops_in_flight_max: model.ops_in_flight_max,
            turn_ops_max: model.turn_ops_max,
            receives_max: model.receives_max,
            linger: model.linger(),
            stall_timeout: core::time::Duration::from_nanos(model.stall_timeout),
        };
        let rails = shared.nodes[node].rails.iter().map(|rail| rail.info.clone()).collect();
        let epoch = shared.nodes[node].epoch;
        drop(shared);
        Self { world: Rc::clone(world), node, epoch, caps, rails, retry: None, sends: (Time::ZERO, 0) }
    }

    /// Whether the process that this transport belongs to still lives.
    fn lives(&self, world: &World) -> bool {
        world.nodes[self.node].alive && world.nodes[self.node].epoch == self.epoch
    }

    /// Where a route leads: both rails exist and the local one works.
    fn check_route(world: &mut World, node: usize, peer: &Peer, route: Route) -> Result<(), PostError> {
        let (local, remote) = (route.local.index(), route.remote.index());
        let rails = peer.endpoints.len();
        if local >= world.nodes[node].rails.len() || remote >= rails {
            world.violate(
                Checker::Addressing,
                format!("node {node} used {route} to node {}, which has {rails} rails", peer.node),
            );
            return Err(PostError::RouteDown);
        }
        if world.nodes[node].rails[local].state == RailState::Down {
            return Err(PostError::RouteDown);
        }
        Ok(())
    }
}

/// An address in parts.
struct Address {
    node: usize,
    epoch: u64,
    /// Rate and endpoint.
    rails: Vec<(u64, u64)>,
}

impl Address {
    fn parse(bytes: &[u8]) -> Result<Self, PeerError> {
        let mut bytes = Reader(bytes);
        if bytes.number::<4>()? != MAGIC {
            return Err(PeerError::Malformed("not a sim address".into()));
        }
        let node = usize::from(u16::from_le_bytes(bytes.number()?));
        let epoch = u64::from_le_bytes(bytes.number()?);
        let count = usize::from(u16::from_le_bytes(bytes.number()?));
        let mut rails = Vec::new();
        for _ in 0..count {
            rails.push((u64::from_le_bytes(bytes.number()?), u64::from_le_bytes(bytes.number()?)));
        }
        bytes.end()?;
        Ok(Self { node, epoch, rails })
    }
}

/// Takes the later of two endpoints of each rail; whether one was later than what was known.
fn follow(known: &mut [u64], rails: &[(u64, u64)]) -> bool {
    let mut changed = false;
    for (known, (_, endpoint)) in known.iter_mut().zip(rails) {
        changed |= *endpoint > *known;
        *known = (*known).max(*endpoint);
    }
    changed
}

/// Little-endian numbers off the front of a peer's bytes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number<const N: usize>(&mut self) -> Result<[u8; N], PeerError> {
        let (head, tail) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| PeerError::Malformed(format!("sim bytes end {} short", N - self.0.len())))?;
        self.0 = tail;
        Ok(*head)
    }

    fn end(&self) -> Result<(), PeerError> {
        match self.0.len() {
            0 => Ok(()),
            n => Err(PeerError::Malformed(format!("{n} bytes too many after a sim address or key"))),
        }
    }
}

impl Transport for SimTransport {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rails(&self) -> &[RailInfo] {
        &self.rails
    }

    fn address(&self, out: &mut Vec<u8>) {
        out.extend(MAGIC);
        out.extend((self.node as u16).to_le_bytes());
        out.extend(self.epoch.to_le_bytes());
        out.extend((self.rails.len() as u16).to_le_bytes());
        let world = self.world.borrow();
        for (index, rail) in self.rails.iter().enumerate() {
            out.extend(rail.rate_bps.to_le_bytes());
            let endpoint = if self.lives(&world) { world.nodes[self.node].rails[index].endpoint } else { 0 };
            out.extend(endpoint.to_le_bytes());
        }
    }

    fn register(&mut self, region: &RegionInfo) -> Result<(), RegisterError> {
        let mut world = self.world.borrow_mut();
        if !self.lives(&world) {
            return Err(RegisterError::Refused("the process is gone".into()));
        }
        if world.nodes[self.node].register(self.node, region) {
            return Ok(());
        }
        Err(RegisterError::Refused(format!(
            "{} at {:#x} for {} bytes is registered already or is not this process's memory",
            region.id, region.base, region.len
        )))
    }

    fn region_key(&self, region: RegionId, out: &mut Vec<u8>) {
        let world = self.world.borrow();
        if let Some(registration) = world.nodes[self.node].registrations.get(&region.0) {
            out.extend((registration.keys.len() as u16).to_le_bytes());
            for (rail, key) in &registration.keys {
                out.extend((*rail as u16).to_le_bytes());
                out.extend(key.to_le_bytes());
            }
        }
    }

    fn region_rails(&self, region: RegionId) -> RailSet {
        let world = self.world.borrow();
        world.nodes[self.node].registrations.get(&region.0).map_or(RailSet::NONE, |r| r.rails)
    }

    fn deregister(&mut self, region: RegionId) -> Result<(), String> {
        let world = &mut *self.world.borrow_mut();
        if !self.lives(world) {
            return Ok(());
        }
        let me = (self.node, self.epoch);
        let now = world.now;
        let busy = world
            .ops
            .iter()
            .find(|(_, op)| op.initiator == me && op.local_region == region && !op.is_quiet(now))
            .map(|(_, op)| (op.direction, op.token, op.index));
        if let Some((direction, token, index)) = busy {
            let checker = match direction {
                Direction::Read => Checker::LateWrite,
                Direction::Write => Checker::LateRead,
            };
            world.violate(
                checker,
                format!(
                    "node {} deregistered {region} while op {index} of its own {direction} in slot {} uses it",
                    self.node, token.slot
                ),
            );
        }
        if let Some(info) = world.nodes[self.node].registrations.get(&region.0).map(|r| r.info) {
            world.settle_commits(self.node, info.base, info.len);
        }
        world.nodes[self.node].deregister(region);
        Ok(())
    }

    fn add_peer(&mut self, _now: Time, peer: PeerId, address: &[u8]) -> Result<Vec<RailInfo>, PeerError> {
        let Address { node, epoch, rails } = Address::parse(address)?;
        let count = rails.len();
        let world = &mut *self.world.borrow_mut();
        if node >= world.nodes.len() || count == 0 {
            return Err(PeerError::Unreachable(format!("there is no node {node} with {count} rails")));
        }
        if !self.lives(world) {
            return Err(PeerError::Unreachable("the process is gone".into()));
        }
        let me = &mut world.nodes[self.node];
        if let Some(tenant) = me.peers.get(&peer.slot) {
            return Err(PeerError::Exhausted(format!("{} still has the slot of {peer}", tenant.id)));
        }
        let endpoints: Vec<u64> = rails.iter().map(|(_, endpoint)| *endpoint).collect();
        follow(me.known.entry((node, epoch)).or_insert_with(|| endpoints.clone()), &rails);
        me.peers.insert(peer.slot, Peer { id: peer, node, epoch, endpoints, regions: BTreeMap::new() });
        let name = |(rail, (rate_bps, _)): (usize, (u64, u64))| RailInfo {
            name: format!("sim{node}n{rail}"),
            rate_bps,
        };
        Ok(rails.into_iter().enumerate().map(name).collect())
    }

    fn readdress(&mut self, _now: Time, peer: PeerId, address: &[u8]) -> Result<bool, PeerError> {
        let address = Address::parse(address)?;
        let world = &mut *self.world.borrow_mut();
        let me = &mut world.nodes[self.node];
        let Some(known) = me.peers.get_mut(&peer.slot).filter(|known| known.id == peer) else {
            return Err(PeerError::Unreachable(format!("{peer} is not known")));
        };
        let process = (address.node, address.epoch);
        if (known.node, known.epoch) != process || known.endpoints.len() != address.rails.len() {
            return Err(PeerError::Malformed(format!("another process's address for {peer}")));
        }
        let changed = follow(&mut known.endpoints, &address.rails);
        if let Some(endpoints) = me.known.get_mut(&process) {
            follow(endpoints, &address.rails);
        }
        Ok(changed)
    }

    fn remove_peer(&mut self, _now: Time, peer: PeerId) {
        let world = &mut *self.world.borrow_mut();
        if !self.lives(world) {
            return;
        }
        if !world.model.removal_leaves_ops {
            world.flush((self.node, self.epoch), |op| op.peer == peer);
        }
        let me = &mut world.nodes[self.node];
        let Some(gone) = me.peer(peer).map(|gone| (gone.node, gone.epoch)) else { return };
        me.peers.remove(&peer.slot);
        if !me.peers.values().any(|other| (other.node, other.epoch) == gone) {
            me.known.remove(&gone);
        }
    }

    fn import_region(&mut self, peer: PeerId, region: &RegionInfo, key: &[u8]) -> Result<(), PeerError> {
        let mut bytes = Reader(key);
        let count = usize::from(u16::from_le_bytes(bytes.number()?));
        let mut keys = BTreeMap::new();
        for _ in 0..count {
            keys.insert(
                usize::from(u16::from_le_bytes(bytes.number()?)),
                u64::from_le_bytes(bytes.number()?),
            );
        }
        bytes.end()?;
        let world = &mut *self.world.borrow_mut();
        let me = &mut world.nodes[self.node];
        let Some(known) = me.peers.get_mut(&peer.slot).filter(|known| known.id == peer) else {
            return Err(PeerError::Unreachable(format!("{peer} is not known")));
        };
        let rails = known.endpoints.len();
        if keys.is_empty() || keys.keys().any(|rail| *rail >= rails) {
            return Err(PeerError::Malformed(format!("keys {keys:?} for {rails} rails of {peer}")));
        }
        known.regions.insert(region.id.0, Imported { info: *region, keys });
        Ok(())
    }

    fn imported_rails(&self, peer: PeerId, region: RegionId) -> RailSet {
        let world = self.world.borrow();
        let known = world.nodes[self.node].peer(peer).and_then(|known| known.regions.get(&region.0));
        known.map_or(RailSet::NONE, |region| region.keys.keys().copied().fold(RailSet::NONE, RailSet::with))
    }

    fn post(&mut self, now: Time, batch: &Batch<'_>) -> Result<usize, PostError> {
        let world = &mut *self.world.borrow_mut();
        if !self.lives(world) {
            return Err(PostError::UnknownPeer);
        }
        let Some(peer) = world.nodes[self.node].peer(batch.peer).cloned() else {
            return Err(PostError::UnknownPeer);
        };
        Self::check_route(world, self.node, &peer, batch.route)?;
        let (local, remote) = (batch.route.local.index(), batch.route.remote.index());
        let used = world.nodes[self.node].rails[local].ops_in_flight;
        let room = world.model.ops_in_flight_max.saturating_sub(used) as usize;
        let mut take = room.min(batch.ops.len());
        if take > 0 && world.rng.chance(world.chaos.full_ppm) {
            take = world.rng.index(take);
            self.retry = Some(Time(now.0 + world.model.latency / 4));
        }
        let counted = world.counted() && batch.direction == Direction::Write;
        if counted && batch.immediate.is_none() {
            world
                .violate(Checker::Addressing, format!("node {} posted a write without immediate", self.node));
        }
        for (i, op) in batch.ops[..take].iter().enumerate() {
            let registration = world.nodes[self.node].registrations.get(&op.local_region.0);
            let mine = registration.map(|r| r.info);
            let theirs = peer.regions.get(&op.remote_region.0);
            let near = registration.is_none_or(|r| r.rails.contains(local))
                && theirs.is_none_or(|theirs| theirs.keys.contains_key(&remote));
            if !near {
                world.violate(
                    Checker::Addressing,
                    format!(
                        "node {} posted over {}, where a region has no key: {op:?}",
                        self.node, batch.route
                    ),
                );
            }
            let fits = |info: &RegionInfo, offset: u64| {
                info.base.checked_add(offset).is_some_and(|at| inside(info, at, u64::from(op.len)))
            };
            let sound = op.len > 0
                && op.len <= world.model.op_bytes_max
                && mine.is_some_and(|info| fits(&info, op.local_offset))
                && theirs.is_none_or(|theirs| fits(&theirs.info, op.remote_offset));
            if !sound {
                world.violate(
                    Checker::Addressing,
                    format!("node {} posted outside its regions: {op:?}", self.node),
                );
            }
            let fate = fate(world);
            let launched = OpState {
                initiator: (self.node, self.epoch),
                responder: (peer.node, peer.epoch),
                peer: batch.peer,
                route: batch.route,
                endpoints: (world.nodes[self.node].rails[local].endpoint, peer.endpoints[remote]),
                direction: batch.direction,
                token: batch.token,
                index: batch.first + i as u32,
                local: mine.map_or(0, |info| info.base.wrapping_add(op.local_offset)),
                remote: theirs.map_or(0, |theirs| theirs.info.base.wrapping_add(op.remote_offset)),
                local_region: op.local_region,
                remote_region: op.remote_region,
                generation: theirs.map_or(kvrail_core::id::Generation(0), |theirs| theirs.info.generation),
                key: theirs
                    .and_then(|theirs| theirs.keys.get(&remote))
                    .filter(|_| near)
                    .copied()
                    .unwrap_or(0),
                len: op.len,
                immediate: batch.immediate.filter(|_| counted),
                posted: world.now,
                fate,
                unarrived: op.len,
                invisible: op.len,
                ended: false,
                failing: false,
                land_by: None,
                parked: Vec::new(),
                parked_end: false,
                references: 0,
            };
            world.nodes[self.node].rails[local].ops_in_flight += 1;
            world.launch(launched);
        }
        Ok(take)
    }

    fn send(&mut self, now: Time, peer: PeerId, route: Route, message: &[u8]) -> Result<bool, PostError> {
        let world = &mut *self.world.borrow_mut();
        if !self.lives(world) {
            return Err(PostError::UnknownPeer);
        }
        self.sends = if self.sends.0 == now { (now, self.sends.1 + 1) } else { (now, 1) };
        if self.sends.1 > SENDS_AT_ONCE_MAX {
            // The driver cannot step in while the engine drives.
            world.violate(Checker::Progress, format!("node {} sends without an end", self.node));
            return Err(PostError::UnknownPeer);
        }
        if message.len() > world.model.message_bytes_max {
            return Err(PostError::TooLong);
        }
        let Some(known) = world.nodes[self.node].peer(peer).cloned() else {
            return Err(PostError::UnknownPeer);
        };
        Self::check_route(world, self.node, &known, route)?;
        if world.rng.chance(world.chaos.full_ppm) {
            self.retry = Some(Time(now.0 + world.model.latency / 4));
            return Ok(false);
        }
        let rail = &mut world.nodes[self.node].rails[route.local.index()];
        if rail.sends_in_flight >= world.model.sends_in_flight_max {
            return Ok(false);
        }
        rail.sends_in_flight += 1;
        let endpoints = (rail.endpoint, known.endpoints[route.remote.index()]);
        world.dispatch(Mail {
            endpoints,
            from: (self.node, self.epoch),
            to: (known.node, known.epoch),
            peer,
            route: Route { local: route.local, remote: RemoteRail(route.remote.0) },
            bytes: message.to_vec(),
            duplicate: false,
            sent: world.now,
        });
        Ok(true)
    }

    fn poll(&mut self, now: Time, events: &mut Vec<Event>) {
        let world = &mut *self.world.borrow_mut();
        if world.self_clocked {
            world.run_until(now.0);
        }
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
        }
        if self.lives(world) {
            world.drain(self.node, events);
        }
    }

    fn reset(&mut self, _now: Time, peer: PeerId, route: Route) {
        let world = &mut *self.world.borrow_mut();
        if self.lives(world) {
            let now = world.time();
            world.trace.record(now, "reset", &[("node", self.node as u64), ("peer", u64::from(peer.slot))]);
            if world.model.reset_replaces_endpoint {
                world.replace_endpoint(self.node, route.local.index());
            } else {
                world.flush((self.node, self.epoch), |op| op.peer == peer && op.route == route);
            }
        }
    }

    fn poll_timeout(&self) -> Option<Time> {
        let world = self.world.borrow();
        if !self.lives(&world) {
            return None;
        }
        if !world.self_clocked {
            // The driver wakes the engine when something arrives.
            return self.retry;
        }
        let next = world.queue.peek().map(|std::cmp::Reverse(entry)| Time(entry.at));
        match (self.retry, next) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

/// What chance decides about an op at its post.
fn fate(world: &mut World) -> Fate {
    let chaos = world.chaos;
    if world.rng.chance(chaos.drop_ppm) {
        Fate::Lost
    } else if world.rng.chance(chaos.ack_loss_ppm) {
        Fate::AckLost
    } else if world.rng.chance(chaos.error_ppm) {
        let landing_ppm = world.rng.pick(&[0, 500_000, 1_000_000]);
        Fate::Error { landing_ppm, immediate: true }
    } else if world.rng.chance(chaos.not_ready_ppm) {
        Fate::Error { landing_ppm: 1_000_000, immediate: false }
    } else {
        Fate::Well
    }
}
