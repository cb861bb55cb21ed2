//! Transports that are broken on purpose: each checker of the suite must be able to fail (canaries).

use std::collections::HashMap;
use std::time::Duration;

use kvrail_core::id::{PeerId, RailSet, RegionId, Route};
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Event, Op, PeerError, PostError, RailCounters, RailInfo, RegionInfo, RegisterError,
    Transport,
};

use crate::{Limitations, NodeId, Property, Rig, Violation, World, properties};

/// What is wrong with a tampered transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Every fifth completion loses its last op.
    DropsACompletion,
    /// Every fifth completion is reported twice.
    RepeatsACompletion,
    /// Every fifth failure is not reported.
    DropsAFailure,
    /// Everything goes to the remote region's base: the field's best-known corruption.
    IgnoresTheRemoteOffset,
    /// The last byte of each op is not moved.
    LosesTheLastByte,
    /// One byte too many is moved.
    MovesOneByteMore,
    /// Every fifth message is accepted and forgotten.
    LosesAMessage,
    /// Every fifth message arrives twice.
    RepeatsAMessage,
    /// Every fifth message arrives with a flipped bit.
    FlipsABitOfAMessage,
    /// Resets do nothing, and nothing fails by itself.
    IgnoresResets,
    /// Peers are looked for where they were.
    IgnoresMoves,
    /// Peers stay.
    IgnoresRemovals,
    /// Regions stay registered.
    IgnoresDeregistration,
    /// Refused ops are reported as done.
    TurnsFailureIntoSuccess,
    /// Every fifth completion names ops that were not posted.
    ReportsWhatWasNeverPosted,
    /// Every fifth immediate is not reported (counted evidence).
    LosesAnImmediate,
    /// Every fifth immediate is reported twice (counted evidence).
    RepeatsAnImmediate,
}

/// A fault and a property that must catch it.
#[derive(Clone, Copy, Debug)]
pub struct Canary {
    /// What is broken.
    pub fault: Fault,
    /// What must notice.
    pub caught_by: Property,
}

macro_rules! canaries {
    ($($fault:ident => $property:ident),* $(,)?) => {
        /// Every fault with the property that catches it.
        pub const CANARIES: &[Canary] = &[$(Canary {
            fault: Fault::$fault,
            caught_by: Property { name: stringify!($property), check: properties::$property },
        }),*];
    };
}

canaries! {
    DropsACompletion => many_writes_at_random_offsets_land_in_place,
    RepeatsACompletion => many_writes_at_random_offsets_land_in_place,
    DropsAFailure => refused_ops_do_not_disturb_their_neighbours,
    IgnoresTheRemoteOffset => writes_move_exactly_the_given_bytes,
    IgnoresTheRemoteOffset => reads_move_exactly_the_given_bytes,
    LosesTheLastByte => reads_move_exactly_the_given_bytes,
    LosesTheLastByte => writes_move_exactly_the_given_bytes,
    MovesOneByteMore => writes_move_exactly_the_given_bytes,
    LosesAMessage => messages_of_every_size_arrive_intact,
    RepeatsAMessage => messages_of_every_size_arrive_intact,
    FlipsABitOfAMessage => messages_of_every_size_arrive_intact,
    LosesAMessage => messages_to_an_unpolled_peer_are_refused_or_arrive,
    IgnoresRemovals => a_removed_peer_can_be_added_again,
    IgnoresDeregistration => deregistered_memory_is_never_touched,
    TurnsFailureIntoSuccess => an_unknown_region_is_refused,
    TurnsFailureIntoSuccess => a_stale_generation_is_refused,
    TurnsFailureIntoSuccess => a_range_beyond_the_region_is_refused,
    ReportsWhatWasNeverPosted => many_reads_at_random_offsets_land_in_place,
}

/// Runs a canary: the property must be violated when its world's transports are broken.
///
/// # Errors
/// When the fault went unnoticed.
pub fn catch(world: &mut dyn World, canary: &Canary) -> Result<(), Violation> {
    if world.limitations().not_claimed.iter().any(|(name, _)| *name == canary.caught_by.name) {
        return Ok(());
    }
    let mut hasty = Hasty(world);
    match (canary.caught_by.check)(&mut Rig::tampered(&mut hasty, Tamper::new(canary.fault))) {
        Err(_) => Ok(()),
        Ok(()) => Err(Violation(format!("{:?} was not caught by {}", canary.fault, canary.caught_by.name))),
    }
}

/// A world with little patience: canaries that hang are caught when it ends.
struct Hasty<'w>(&'w mut dyn World);

impl World for Hasty<'_> {
    fn add_node(&mut self) -> NodeId {
        self.0.add_node()
    }
    fn drop_node(&mut self, node: NodeId) {
        self.0.drop_node(node);
    }
    fn transport(&mut self, node: NodeId) -> &mut dyn Transport {
        self.0.transport(node)
    }
    fn alloc(&mut self, node: NodeId, bytes: usize) -> u64 {
        self.0.alloc(node, bytes)
    }
    fn write_memory(&mut self, node: NodeId, base: u64, offset: u64, bytes: &[u8]) {
        self.0.write_memory(node, base, offset, bytes);
    }
    fn read_memory(&mut self, node: NodeId, base: u64, offset: u64, bytes: &mut [u8]) {
        self.0.read_memory(node, base, offset, bytes);
    }
    fn now(&self) -> Time {
        self.0.now()
    }
    fn step(&mut self) {
        self.0.step();
    }
    fn limitations(&self) -> Limitations {
        let limits = self.0.limitations();
        Limitations { patience: limits.patience.min(Duration::from_millis(500)), ..limits }
    }
}

/// A fault and its state, for all nodes of a rig.
pub(crate) struct Tamper {
    fault: Fault,
    count: u32,
    lengths: HashMap<(usize, RegionId), u64>,
}

impl Tamper {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { fault, count: 0, lengths: HashMap::new() }
    }

    /// True for every fifth occasion.
    fn strikes(&mut self) -> bool {
        self.count += 1;
        self.count.is_multiple_of(5)
    }
}

/// A transport seen through a fault.
pub(crate) struct Tampered<'a> {
    inner: &'a mut dyn Transport,
    tamper: &'a mut Tamper,
    node: usize,
}

impl<'a> Tampered<'a> {
    pub(crate) fn new(inner: &'a mut dyn Transport, tamper: &'a mut Tamper, node: usize) -> Self {
        Self { inner, tamper, node }
    }

    fn tampered_op(&self, op: &Op) -> Op {
        match self.tamper.fault {
            Fault::IgnoresTheRemoteOffset => Op { remote_offset: 0, ..*op },
            Fault::LosesTheLastByte if op.len > 1 => Op { len: op.len - 1, ..*op },
            Fault::MovesOneByteMore => {
                let room = self.tamper.lengths.get(&(self.node, op.local_region)).copied().unwrap_or(0);
                let fits =
                    op.local_offset + u64::from(op.len) < room && op.len < self.inner.caps().op_bytes_max;
                Op { len: op.len + u32::from(fits), ..*op }
            }
            _ => *op,
        }
    }

    fn tampered_event(&mut self, event: Event, out: &mut Vec<Event>) {
        match (self.tamper.fault, event) {
            (Fault::DropsACompletion, Event::Completed { token, first, count }) => {
                let count = if self.tamper.strikes() { count - 1 } else { count };
                if count > 0 {
                    out.push(Event::Completed { token, first, count });
                }
            }
            (Fault::RepeatsACompletion, event @ Event::Completed { .. }) => {
                if self.tamper.strikes() {
                    out.push(event.clone());
                }
                out.push(event);
            }
            (Fault::ReportsWhatWasNeverPosted, Event::Completed { token, first, count }) => {
                let count = if self.tamper.strikes() { count + (1 << 20) } else { count };
                out.push(Event::Completed { token, first, count });
            }
            (Fault::DropsAFailure, event @ Event::Failed { .. }) => {
                if !self.tamper.strikes() {
                    out.push(event);
                }
            }
            (Fault::TurnsFailureIntoSuccess, Event::Failed { token, first, count, .. }) => {
                out.push(Event::Completed { token, first, count });
            }
            (Fault::LosesAnImmediate, event @ Event::Immediate { .. }) => {
                if !self.tamper.strikes() {
                    out.push(event);
                }
            }
            (Fault::RepeatsAMessage, event @ Event::Message { .. })
            | (Fault::RepeatsAnImmediate, event @ Event::Immediate { .. }) => {
                if self.tamper.strikes() {
                    out.push(event.clone());
                }
                out.push(event);
            }
            (Fault::FlipsABitOfAMessage, Event::Message { rail, mut bytes }) => {
                if self.tamper.strikes() {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                }
                out.push(Event::Message { rail, bytes });
            }
            (_, event) => out.push(event),
        }
    }
}

impl Transport for Tampered<'_> {
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn rails(&self) -> &[RailInfo] {
        self.inner.rails()
    }

    fn address(&self, out: &mut Vec<u8>) {
        self.inner.address(out);
    }

    fn register(&mut self, region: &RegionInfo) -> Result<(), RegisterError> {
        self.tamper.lengths.insert((self.node, region.id), region.len);
        self.inner.register(region)
    }

    fn region_key(&self, region: RegionId, out: &mut Vec<u8>) {
        self.inner.region_key(region, out);
    }

    fn region_rails(&self, region: RegionId) -> RailSet {
        self.inner.region_rails(region)
    }

    fn imported_rails(&self, peer: PeerId, region: RegionId) -> RailSet {
        self.inner.imported_rails(peer, region)
    }

    fn readdress(&mut self, now: Time, peer: PeerId, address: &[u8]) -> Result<bool, PeerError> {
        if self.tamper.fault == Fault::IgnoresMoves {
            Ok(false)
        } else {
            self.inner.readdress(now, peer, address)
        }
    }

    fn served(&self) -> bool {
        self.inner.served()
    }

    fn rail_counters(&mut self) -> Vec<RailCounters> {
        self.inner.rail_counters()
    }

    fn deregister(&mut self, region: RegionId) -> Result<(), String> {
        if self.tamper.fault == Fault::IgnoresDeregistration { Ok(()) } else { self.inner.deregister(region) }
    }

    fn add_peer(&mut self, now: Time, peer: PeerId, address: &[u8]) -> Result<Vec<RailInfo>, PeerError> {
        self.inner.add_peer(now, peer, address)
    }

    fn remove_peer(&mut self, now: Time, peer: PeerId) {
        if self.tamper.fault != Fault::IgnoresRemovals {
            self.inner.remove_peer(now, peer);
        }
    }

    fn import_region(&mut self, peer: PeerId, region: &RegionInfo, key: &[u8]) -> Result<(), PeerError> {
        self.inner.import_region(peer, region, key)
    }

    fn post(&mut self, now: Time, batch: &Batch<'_>) -> Result<usize, PostError> {
        let ops: Vec<Op> = batch.ops.iter().map(|op| self.tampered_op(op)).collect();
        self.inner.post(now, &Batch { ops: &ops, ..*batch })
    }

    fn send(&mut self, now: Time, peer: PeerId, route: Route, message: &[u8]) -> Result<bool, PostError> {
        if self.tamper.fault == Fault::LosesAMessage && self.tamper.strikes() {
            return Ok(true);
        }
        self.inner.send(now, peer, route, message)
    }

    fn poll(&mut self, now: Time, events: &mut Vec<Event>) {
        let mut seen = Vec::new();
        self.inner.poll(now, &mut seen);
        for event in seen {
            self.tampered_event(event, events);
        }
    }

    fn reset(&mut self, now: Time, peer: PeerId, route: Route) {
        if self.tamper.fault != Fault::IgnoresResets {
            self.inner.reset(now, peer, route);
        }
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.inner.poll_timeout()
    }
}
