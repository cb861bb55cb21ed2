//! One-sided ops on their way: packets, landing, acknowledgement, strays.
//!
//! An op's packets travel alone. The source is read when a packet lands (the latest moment that the fabric may do so), so
//! memory that was handed back too early is caught. After an error entry or a reset, what is still under way are strays:
//! they may land until `land_by`, never later ([`kvrail_core::transport::Caps::linger`]).

use kvrail_core::id::{Generation, LocalRail, PeerId, RegionId, Route, Token};
use kvrail_core::transport::{Direction, Event, Evidence, OpError};

use super::node::{RailState, Slot};
use super::{Happening, World};
use crate::territory::Access;
use crate::violation::Checker;

/// An op in the slab, with the slot's tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpKey {
    slot: u32,
    serial: u64,
}

/// What chance decided when the op was posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// It ends as the network lets it.
    Well,
    /// Its packets vanish; no completion until a reset.
    Lost,
    /// It lands; its acknowledgement vanishes.
    AckLost,
    /// An error entry comes; of its packets so many of a million land.
    Error { landing_ppm: u32, immediate: bool },
}

/// An op that was posted.
#[derive(Clone, Debug)]
pub(crate) struct OpState {
    pub(crate) initiator: (usize, u64),
    pub(crate) responder: (usize, u64),
    pub(crate) peer: PeerId,
    pub(crate) route: Route,
    /// The endpoints at both ends of the route, as the initiator knew them: its own, the responder's.
    pub(crate) endpoints: (u64, u64),
    pub(crate) direction: Direction,
    pub(crate) token: Token,
    pub(crate) index: u32,
    pub(crate) local: u64,
    pub(crate) remote: u64,
    pub(crate) local_region: RegionId,
    pub(crate) remote_region: RegionId,
    pub(crate) generation: Generation,
    pub(crate) key: u64,
    pub(crate) len: u32,
    pub(crate) immediate: Option<u32>,
    pub(crate) posted: u64,
    pub(crate) fate: Fate,
    /// Bytes that did not reach the far NIC yet.
    pub(crate) unarrived: u32,
    /// Bytes that are not visible yet.
    pub(crate) invisible: u32,
    /// Its end was reported (or nobody is left to hear it).
    pub(crate) ended: bool,
    /// An error entry is under way.
    pub(crate) failing: bool,
    /// Its bytes are strays: none lands after this moment.
    pub(crate) land_by: Option<u64>,
    /// Packets that silence swallowed; a heal may send them again.
    pub(crate) parked: Vec<(u32, u32)>,
    /// The acknowledgement that silence swallowed.
    pub(crate) parked_end: bool,
    /// Events in the queue that name this op.
    pub(crate) references: u32,
}

impl OpState {
    fn source(&self) -> (usize, u64) {
        match self.direction {
            Direction::Write => (self.initiator.0, self.local),
            Direction::Read => (self.responder.0, self.remote),
        }
    }

    fn target(&self) -> (usize, u64) {
        match self.direction {
            Direction::Write => (self.responder.0, self.remote),
            Direction::Read => (self.initiator.0, self.local),
        }
    }

    /// No byte of it can touch memory any more.
    pub(crate) fn is_quiet(&self, now: u64) -> bool {
        // A failure that was on its way when the op succeeded holds a reference and moves nothing.
        let idle = u32::from(self.failing);
        self.ended && (self.references == idle || self.land_by.is_some_and(|by| by < now))
    }
}

/// All ops that the fabric still knows.
#[derive(Debug, Default)]
pub(crate) struct Ops {
    slots: Vec<Option<(u64, OpState)>>,
    free: Vec<u32>,
    serial: u64,
}

impl Ops {
    pub(crate) fn insert(&mut self, op: OpState) -> OpKey {
        self.serial += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some((self.serial, op));
        OpKey { slot, serial: self.serial }
    }

    pub(crate) fn get_mut(&mut self, key: OpKey) -> Option<&mut OpState> {
        match self.slots.get_mut(key.slot as usize)? {
            Some((serial, op)) if *serial == key.serial => Some(op),
            _ => None,
        }
    }

    fn remove(&mut self, key: OpKey) {
        if self.get_mut(key).is_some() {
            self.slots[key.slot as usize] = None;
            self.free.push(key.slot);
        }
    }

    /// Forgets every op that is over and that nothing under way names.
    pub(crate) fn sweep(&mut self) {
        for key in self.keys(|op| op.ended && op.references == 0) {
            self.remove(key);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (OpKey, &OpState)> {
        self.slots.iter().enumerate().filter_map(|(slot, entry)| {
            entry.as_ref().map(|(serial, op)| (OpKey { slot: slot as u32, serial: *serial }, op))
        })
    }

    /// Keys of the ops that a predicate picks, in slot order.
    pub(crate) fn keys(&self, pick: impl Fn(&OpState) -> bool) -> Vec<OpKey> {
        self.iter().filter(|(_, op)| pick(op)).map(|(key, _)| key).collect()
    }
}

/// Whether packets pass between an op's two NICs.
enum Path {
    Open,
    /// Swallowed; nobody is told.
    Silent,
    /// Swallowed; the fabric may find out and say so.
    Hole,
    LocalDown,
    RemoteDown,
    RemoteGone,
    RemoteRestarted,
    /// Another endpoint has taken the place of the one that it was sent to.
    RemoteReplaced,
    UnknownInitiator,
}

impl World {
    /// Schedules an event that names an op.
    fn at_op(&mut self, at: u64, key: OpKey, what: Happening) {
        if let Some(op) = self.ops.get_mut(key) {
            op.references += 1;
            self.at(at, what);
        }
    }

    /// An op was posted: its packets leave one after the other and arrive each in its own time.
    pub(crate) fn launch(&mut self, op: OpState) {
        let (len, fate, direction) = (op.len, op.fate, op.direction);
        let (sender, rail) = match direction {
            Direction::Write => (op.initiator.0, op.route.local.index()),
            Direction::Read => (op.responder.0, op.route.remote.index()),
        };
        let facts = [
            ("node", op.initiator.0 as u64),
            ("local", u64::from(op.route.local.0)),
            ("remote", u64::from(op.route.remote.0)),
            ("slot", u64::from(op.token.slot)),
            ("op", u64::from(op.index)),
            ("len", u64::from(len)),
        ];
        let now = self.time();
        self.trace.record(
            now,
            if direction == Direction::Write { "post write" } else { "post read" },
            &facts,
        );
        let key = self.ops.insert(op);
        // A read's request travels first; its bytes leave the responder's NIC.
        let start = self.now + if direction == Direction::Read { self.latency() } else { 0 };
        let rate = self.nodes[sender].rails.get(rail).map_or(1, |r| r.info.rate_bps.max(1_000_000));
        let mut offset = 0;
        while offset < len {
            let bytes = self.model.mtu.min(len - offset);
            // Bits to nanoseconds, at a percentage of the rate.
            let wire = u64::from(bytes) * 8 * 100_000_000_000 / (rate * self.model.goodput_percent);
            let mut departs = start;
            if let Some(nic) = self.nodes[sender].rails.get_mut(rail) {
                departs = nic.tx_free.max(start) + wire;
                // A request that is still under way does not hold up what the responder sends meanwhile.
                nic.tx_free =
                    if direction == Direction::Write { departs } else { nic.tx_free.max(self.now) + wire };
            }
            let arrives = departs + self.latency();
            self.at_op(arrives, key, Happening::Packet { op: key, offset, len: bytes });
            offset += bytes;
        }
        if let Fate::Error { .. } = fate {
            let soon = self.now + self.rng.below(8 * self.model.latency + 1);
            let error = self.rng.pick(&[OpError::Unresponsive, OpError::Unreachable, OpError::Unknown(4)]);
            self.fail(key, soon, error);
        }
    }

    fn path(&self, op: &OpState) -> Path {
        let (initiator, responder) = (&self.nodes[op.initiator.0], &self.nodes[op.responder.0]);
        let (local, remote) = (op.route.local.index(), op.route.remote.index());
        if op.initiator.0 == op.responder.0 {
            return Path::Silent;
        }
        let state = |rail: usize, node: &super::node::Node| node.rails.get(rail).map(|r| r.state);
        match (state(local, initiator), state(remote, responder)) {
            (Some(RailState::Silent), _) | (_, Some(RailState::Silent)) => return Path::Silent,
            (Some(RailState::Down) | None, _) => return Path::LocalDown,
            (_, Some(RailState::Down) | None) => return Path::RemoteDown,
            _ => {}
        }
        if self.cut(op.initiator.0, local, op.responder.0, remote) {
            return Path::Hole;
        }
        if responder.epoch != op.responder.1 {
            return Path::RemoteRestarted;
        }
        if !responder.alive {
            return Path::RemoteGone;
        }
        if responder.rails[remote].endpoint != op.endpoints.1 {
            return Path::RemoteReplaced;
        }
        if self.model.target_knows_initiator && !responder.knows(op.initiator, local, op.endpoints.0) {
            return Path::UnknownInitiator;
        }
        Path::Open
    }

    /// Whether a black hole or a partition lies between two NICs, in either direction: packets one way,
    /// acknowledgements the other.
    pub(crate) fn cut(&self, a: usize, a_rail: usize, b: usize, b_rail: usize) -> bool {
        self.partitions.contains(&(a.min(b), a.max(b)))
            || self.holes.contains(&(a, a_rail, b, b_rail))
            || self.holes.contains(&(b, b_rail, a, a_rail))
    }

    pub(crate) fn packet(&mut self, key: OpKey, offset: u32, len: u32) {
        let Some(op) = self.ops.get_mut(key) else { return };
        op.references -= 1;
        let stray = op.land_by.is_some();
        if op.land_by.is_some_and(|by| by < self.now) || (op.ended && !stray) {
            self.retire(key);
            return;
        }
        match op.fate {
            Fate::Lost if !stray => op.parked.push((offset, len)),
            Fate::Error { landing_ppm, .. } if !self.rng.chance(landing_ppm) => {}
            _ if stray => self.arrive(key, offset, len),
            _ => {
                let op = op.clone();
                match self.path(&op) {
                    Path::Open => self.arrive(key, offset, len),
                    Path::Silent => self.park(key, offset, len),
                    Path::Hole => {
                        let first = op.parked.is_empty();
                        self.park(key, offset, len);
                        if first && self.rng.chance(500_000) {
                            self.fail_later(key, OpError::Unresponsive);
                        }
                    }
                    Path::LocalDown => self.fail(key, self.now + 1_000, OpError::RailDown),
                    Path::RemoteDown | Path::RemoteGone => self.fail_later(key, OpError::Unresponsive),
                    Path::RemoteRestarted => {
                        self.fail(key, self.now + self.model.latency, OpError::PeerRestarted)
                    }
                    // Nobody is there: the fabric finds out, or nothing is ever heard of it.
                    Path::RemoteReplaced if self.rng.chance(500_000) => self.park(key, offset, len),
                    Path::RemoteReplaced => self.fail_later(key, OpError::Unreachable),
                    Path::UnknownInitiator => {
                        self.fail(key, self.now + self.model.latency, OpError::Unreachable)
                    }
                }
            }
        }
        self.retire(key);
    }

    fn park(&mut self, key: OpKey, offset: u32, len: u32) {
        if let Some(op) = self.ops.get_mut(key) {
            op.parked.push((offset, len));
        }
    }

    /// A packet is at the NIC of the memory that it is for: key, bounds, claims; then the bytes.
    fn arrive(&mut self, key: OpKey, offset: u32, len: u32) {
        let Some(op) = self.ops.get_mut(key).map(|op| op.clone()) else { return };
        let responder = &self.nodes[op.responder.0];
        if self.nodes[op.initiator.0].epoch != op.initiator.1
            || responder.epoch != op.responder.1
            || !responder.alive
            || (op.direction == Direction::Read && !self.nodes[op.initiator.0].alive)
        {
            // A stray of a life that is over.
            return;
        }
        let remote = op.remote + u64::from(offset);
        if !responder.admits(op.key, op.route.remote.index(), remote, u64::from(len)) {
            if responder.exports(op.remote_region, op.generation, remote, u64::from(len)) {
                self.violate(
                    Checker::Addressing,
                    format!(
                        "node {} used a key on {} of node {} that is not this rail's key for {}",
                        op.initiator.0, op.route.remote, op.responder.0, op.remote_region
                    ),
                );
            }
            let error = if op.unarrived == op.len { OpError::BadKey } else { OpError::Fault(14) };
            self.fail(key, self.now + self.model.latency, error);
            return;
        }
        let ((source_node, source), (target_node, target)) = (op.source(), op.target());
        let access = Access {
            initiator: op.initiator,
            posted: kvrail_core::time::Time(op.posted),
            source_node,
            source: source + u64::from(offset),
            target_node,
            target: target + u64::from(offset),
            len: u64::from(len),
        };
        if let Err(trespass) = self.territory.check(&access) {
            self.violate(trespass.checker, trespass.what);
        }
        let Some(bytes) = self.nodes[source_node].arena.slice(access.source, access.len) else {
            self.violate(
                Checker::Fabric,
                format!("source {:#x} is outside node {source_node}", access.source),
            );
            return;
        };
        self.scratch.clear();
        self.scratch.extend_from_slice(bytes);
        if let Some(op) = self.ops.get_mut(key) {
            op.unarrived = op.unarrived.saturating_sub(len);
        }
        if self.model.commit_max > 0 && op.direction == Direction::Write {
            let bytes: Box<[u8]> = self.scratch.as_slice().into();
            let at = self.now + self.rng.below(self.model.commit_max + 1);
            self.at_op(at, key, Happening::Commit { op: key, offset, bytes });
        } else {
            self.place(key, target_node, access.target, len);
        }
        if op.unarrived == len {
            self.acknowledge(key);
        }
    }

    /// The far NIC has every byte: the acknowledgement leaves.
    fn acknowledge(&mut self, key: OpKey) {
        let latency = self.latency();
        let Some(op) = self.ops.get_mut(key) else { return };
        if op.ended || op.fate != Fate::Well {
            return;
        }
        let delay = if op.direction == Direction::Read { 200 } else { latency };
        self.at_op(self.now + delay, key, Happening::End { op: key, error: None });
    }

    pub(crate) fn commit(&mut self, key: OpKey, offset: u32, bytes: &[u8]) {
        let Some(op) = self.ops.get_mut(key) else { return };
        op.references -= 1;
        let op = op.clone();
        let responder = &self.nodes[op.responder.0];
        let gone = responder.epoch != op.responder.1 || !responder.alive;
        if gone || op.land_by.is_some_and(|by| by < self.now) {
            self.retire(key);
            return;
        }
        let access = Access {
            initiator: op.initiator,
            posted: kvrail_core::time::Time(op.posted),
            source_node: op.initiator.0,
            source: op.local + u64::from(offset),
            target_node: op.responder.0,
            target: op.remote + u64::from(offset),
            len: bytes.len() as u64,
        };
        if let Err(trespass) = self.territory.check(&access)
            // The source was read when the packet arrived.
            && trespass.checker != Checker::LateRead
        {
            self.violate(trespass.checker, trespass.what);
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(bytes);
        self.place(key, op.responder.0, access.target, bytes.len() as u32);
        self.retire(key);
    }

    /// The bytes in `scratch` become visible.
    fn place(&mut self, key: OpKey, node: usize, address: u64, len: u32) {
        let now = self.time();
        self.trace.record(now, "land", &[("node", node as u64), ("at", address), ("len", u64::from(len))]);
        let Some(target) = self.nodes[node].arena.slice_mut(address, u64::from(len)) else {
            self.violate(Checker::Fabric, format!("target {address:#x} is outside node {node}"));
            return;
        };
        target.copy_from_slice(&self.scratch);
        let Some(op) = self.ops.get_mut(key) else { return };
        op.invisible = op.invisible.saturating_sub(len);
        if op.invisible > 0 || matches!(op.fate, Fate::Error { immediate: false, .. }) {
            return;
        }
        if let Some(value) = op.immediate.take() {
            let (responder, rail) = (op.responder, LocalRail(op.route.remote.0));
            let endpoint = op.endpoints.1;
            if self.nodes[responder.0].rails[rail.index()].endpoint != endpoint {
                // Its bytes are visible; who counts has another endpoint since.
                return;
            }
            self.receive(responder.0, rail.index(), Slot::Receive, Event::Immediate { rail, value });
        }
    }

    /// An error entry will come, unless one is under way.
    pub(crate) fn fail(&mut self, key: OpKey, at: u64, error: OpError) {
        let Some(op) = self.ops.get_mut(key) else { return };
        if op.ended || op.failing {
            return;
        }
        op.failing = true;
        self.at_op(at, key, Happening::End { op: key, error: Some(error) });
    }

    fn fail_later(&mut self, key: OpKey, error: OpError) {
        let wait = self.model.unresponsive;
        let at = self.now + self.rng.within(wait / 2, wait);
        self.fail(key, at, error);
    }

    /// An op's end reaches its initiator's completion queue.
    pub(crate) fn end(&mut self, key: OpKey, error: Option<OpError>) {
        let Some(op) = self.ops.get_mut(key) else { return };
        op.references -= 1;
        op.failing &= error.is_none();
        if op.ended {
            self.retire(key);
            return;
        }
        if error.is_none() && op.land_by.is_none() {
            let op = op.clone();
            if op.direction == Direction::Write && matches!(self.path(&op), Path::Silent | Path::Hole) {
                if let Some(op) = self.ops.get_mut(key) {
                    op.parked_end = true;
                }
                return;
            }
        }
        let linger = self.model.linger;
        let now = self.now;
        let Some(op) = self.ops.get_mut(key) else { return };
        op.ended = true;
        if error.is_none() {
            // A reset that came too late: what was acknowledged becomes visible, in its own time.
            op.land_by = None;
        }
        if let Some(error) = error {
            // A refused op never lands; of any other, strays may.
            let by = if error.never_landed() { now.saturating_sub(1) } else { now + linger };
            op.land_by = Some(op.land_by.map_or(by, |earlier| earlier.min(by)));
            if error.never_landed() && op.unarrived < op.len {
                let what = format!("an op of node {} landed in part and was then refused", op.initiator.0);
                self.violate(Checker::Fabric, what);
            }
        }
        let Some(op) = self.ops.get_mut(key) else { return };
        let (token, first, count) = (op.token, op.index, 1);
        let event = match error {
            None => Event::Completed { token, first, count },
            Some(error) => Event::Failed { token, first, count, error },
        };
        let (initiator, rail) = (op.initiator, op.route.local.index());
        if error.is_some() {
            self.scatter_strays(key);
        }
        if self.nodes[initiator.0].epoch == initiator.1 && self.nodes[initiator.0].alive {
            self.receive(initiator.0, rail, Slot::Send, event);
        }
        self.retire(key);
    }

    /// Packets that were swallowed may have been stuck anywhere: some of them land at random moments until `land_by`.
    fn scatter_strays(&mut self, key: OpKey) {
        let Some(op) = self.ops.get_mut(key) else { return };
        let (parked, by) = (std::mem::take(&mut op.parked), op.land_by.unwrap_or(0));
        if by < self.now || self.rng.chance(500_000) {
            return;
        }
        for (offset, len) in parked {
            if self.rng.chance(700_000) {
                let at = self.rng.within(self.now, by);
                self.at_op(at, key, Happening::Packet { op: key, offset, len });
            }
        }
    }

    /// Takes back those of a process's ops in flight that a predicate picks.
    pub(crate) fn flush(&mut self, initiator: (usize, u64), pick: impl Fn(&OpState) -> bool) {
        let keys = self.ops.keys(|op| op.initiator == initiator && !op.ended && pick(op));
        let by = self.now + self.model.linger;
        for key in keys {
            let at = self.now + self.rng.below(self.model.flush_max + 1);
            let Some(op) = self.ops.get_mut(key) else { continue };
            op.land_by = Some(op.land_by.map_or(by, |earlier| earlier.min(by)));
            op.failing = true;
            self.at_op(at, key, Happening::End { op: key, error: Some(OpError::Flushed) });
        }
    }

    /// The endpoint of a rail is given up, with all that is in flight on it, and another takes its place: nobody knows
    /// that one yet.
    pub(crate) fn replace_endpoint(&mut self, node: usize, rail: usize) {
        let epoch = self.nodes[node].epoch;
        self.flush((node, epoch), |op| op.route.local.index() == rail);
        let forgets = self.rng.chance(500_000);
        let rail = &mut self.nodes[node].rails[rail];
        rail.endpoint += 1;
        rail.sends_in_flight = 0;
        if forgets {
            // Nobody had read them yet.
            let before = rail.queue.len();
            rail.queue.retain(|(_, event)| !matches!(event, Event::Immediate { .. }));
            rail.unread -= (before - rail.queue.len()) as u32;
            rail.immediates = 0;
        }
        self.news(node, epoch, Event::AddressChanged);
    }

    /// What silence swallowed is sent again where the path is open: all of an op or nothing of it.
    pub(crate) fn resend(&mut self) {
        let keys = self.ops.keys(|op| !op.ended && (op.parked_end || !op.parked.is_empty()));
        for key in keys {
            let Some(op) = self.ops.get_mut(key).map(|op| op.clone()) else { continue };
            if op.fate == Fate::Lost || !matches!(self.path(&op), Path::Open) || self.rng.chance(400_000) {
                continue;
            }
            if let Some(op) = self.ops.get_mut(key) {
                op.parked.clear();
                op.parked_end = false;
            }
            for (offset, len) in op.parked {
                let at = self.now + self.latency();
                self.at_op(at, key, Happening::Packet { op: key, offset, len });
            }
            if op.parked_end {
                let at = self.now + self.latency();
                self.at_op(at, key, Happening::End { op: key, error: None });
            }
        }
    }

    /// The memory of a region is about to be handed back: acknowledged bytes reach it now or never.
    pub(crate) fn settle_commits(&mut self, node: usize, base: u64, len: u64) {
        let queue = std::mem::take(&mut self.queue).into_vec();
        let mut due = Vec::new();
        for std::cmp::Reverse(entry) in queue {
            let hit = match &entry.what {
                Happening::Commit { op, offset, .. } => self.ops.get_mut(*op).is_some_and(|op| {
                    let at = op.remote + u64::from(*offset);
                    op.responder.0 == node && at >= base && at < base + len
                }),
                _ => false,
            };
            if hit {
                due.push(entry);
            } else {
                self.queue.push(std::cmp::Reverse(entry));
            }
        }
        due.sort_unstable_by_key(|entry| (entry.at, entry.sequence));
        for entry in due {
            if let Happening::Commit { op, offset, bytes } = entry.what {
                self.commit(op, offset, &bytes);
            }
        }
    }

    /// Forgets an op that is over and that nothing under way names.
    fn retire(&mut self, key: OpKey) {
        if self.ops.get_mut(key).is_some_and(|op| op.ended && op.references == 0) {
            self.ops.remove(key);
        }
    }

    /// Whether evidence on this fabric is counted by the target.
    pub(crate) fn counted(&self) -> bool {
        self.model.evidence == Evidence::Counted
    }
}
