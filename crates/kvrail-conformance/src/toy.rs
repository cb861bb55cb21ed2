//! The smallest fabric that keeps every promise: shows that the suite can be passed, and that broken copies of it are
//! caught. Ops are executed when the target polls, so that silence and resets mean something.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use kvrail_core::id::{LocalRail, PeerId, RegionId, Route, Token};
use kvrail_core::limits::MESSAGE_BYTES_MIN;
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Direction, Event, Evidence, Op, OpError, PeerError, PostError, RailInfo, RegionInfo,
    RegisterError, Transport,
};

use crate::faults::{CANARIES, Canary, Fault, catch};
use crate::{Limitations, NodeId, PROPERTIES, Property, Rig, World, properties};

const QUEUE: usize = 64;
const INBOX: usize = 16;

/// A request on its way.
struct Request {
    from: usize,
    to: usize,
    peer: PeerId,
    direction: Direction,
    token: Token,
    index: u32,
    op: Op,
    /// As the initiator believes.
    region: Option<RegionInfo>,
    immediate: Option<u32>,
}

#[derive(Default)]
struct Net {
    alive: Vec<bool>,
    memory: HashMap<(usize, u64), Vec<u8>>,
    regions: HashMap<(usize, RegionId), RegionInfo>,
    wire: VecDeque<Request>,
    events: Vec<Vec<Event>>,
    messages: Vec<usize>,
}

impl Net {
    fn serve(&mut self, target: usize) {
        for _ in 0..self.wire.len() {
            let request = self.wire.pop_front().expect("the length was just read");
            if request.to == target || !self.alive[request.to] {
                let event = self.execute(&request);
                self.events[request.from].push(event);
            } else {
                self.wire.push_back(request);
            }
        }
    }

    fn execute(&mut self, request: &Request) -> Event {
        let Request { token, index: first, op, .. } = *request;
        let failed = |error| Event::Failed { token, first, count: 1, error };
        if !self.alive[request.to] {
            return failed(OpError::Unreachable);
        }
        let local = self.regions[&(request.from, op.local_region)];
        let known = self.regions.get(&(request.to, op.remote_region)).copied();
        let same = |r: &RegionInfo| request.region.is_some_and(|b| b.generation == r.generation);
        let inside =
            |r: &RegionInfo| op.remote_offset.checked_add(u64::from(op.len)).is_some_and(|end| end <= r.len);
        let Some(remote) = known.filter(same).filter(inside) else { return failed(OpError::BadKey) };
        let here = ((request.from, local.base), op.local_offset as usize);
        let there = ((request.to, remote.base), op.remote_offset as usize);
        let (source, target) = match request.direction {
            Direction::Write => (here, there),
            Direction::Read => (there, here),
        };
        let len = op.len as usize;
        let bytes = self.memory[&source.0][source.1..source.1 + len].to_vec();
        let memory = self.memory.get_mut(&target.0).expect("registered memory exists");
        memory[target.1..target.1 + len].copy_from_slice(&bytes);
        if let Some(value) = request.immediate {
            self.events[request.to].push(Event::Immediate { rail: LocalRail(0), value });
        }
        Event::Completed { token, first, count: 1 }
    }
}

struct Toy {
    node: usize,
    net: Rc<RefCell<Net>>,
    caps: Caps,
    rails: Vec<RailInfo>,
    peers: HashMap<PeerId, usize>,
    imported: HashMap<(PeerId, RegionId), RegionInfo>,
}

impl Toy {
    fn flush(&mut self, peer: PeerId) {
        let net = &mut *self.net.borrow_mut();
        let node = self.node;
        let (flushed, kept) = net.wire.drain(..).partition(|r: &Request| r.from == node && r.peer == peer);
        net.wire = kept;
        let flushed: VecDeque<Request> = flushed;
        let error = OpError::Flushed;
        net.events[node].extend(flushed.iter().map(|r| Event::Failed {
            token: r.token,
            first: r.index,
            count: 1,
            error,
        }));
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.net.borrow_mut().alive[self.node] = false;
    }
}

impl Transport for Toy {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rails(&self) -> &[RailInfo] {
        &self.rails
    }

    fn address(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"toy");
        out.push(self.node as u8);
    }

    fn register(&mut self, region: &RegionInfo) -> Result<(), RegisterError> {
        self.net.borrow_mut().regions.insert((self.node, region.id), *region);
        Ok(())
    }

    fn region_key(&self, _region: RegionId, _out: &mut Vec<u8>) {}

    fn deregister(&mut self, region: RegionId) -> Result<(), String> {
        self.net.borrow_mut().regions.remove(&(self.node, region));
        Ok(())
    }

    fn add_peer(&mut self, _now: Time, peer: PeerId, address: &[u8]) -> Result<Vec<RailInfo>, PeerError> {
        match address {
            [b't', b'o', b'y', node] => self.peers.insert(peer, usize::from(*node)),
            _ => return Err(PeerError::Malformed("not a toy's address".into())),
        };
        Ok(self.rails.clone())
    }

    fn remove_peer(&mut self, _now: Time, peer: PeerId) {
        self.peers.remove(&peer);
        self.flush(peer);
    }

    fn import_region(&mut self, peer: PeerId, region: &RegionInfo, _key: &[u8]) -> Result<(), PeerError> {
        self.imported.insert((peer, region.id), *region);
        Ok(())
    }

    fn post(&mut self, _now: Time, batch: &Batch<'_>) -> Result<usize, PostError> {
        let to = *self.peers.get(&batch.peer).ok_or(PostError::UnknownPeer)?;
        let net = &mut *self.net.borrow_mut();
        let in_flight = net.wire.iter().filter(|r| r.from == self.node).count();
        let taken = batch.ops.len().min(QUEUE - in_flight);
        net.wire.extend(batch.ops[..taken].iter().zip(batch.first..).map(|(op, index)| Request {
            from: self.node,
            to,
            peer: batch.peer,
            direction: batch.direction,
            token: batch.token,
            index,
            op: *op,
            region: self.imported.get(&(batch.peer, op.remote_region)).copied(),
            immediate: batch.immediate,
        }));
        Ok(taken)
    }

    fn send(&mut self, _now: Time, peer: PeerId, _route: Route, message: &[u8]) -> Result<bool, PostError> {
        let to = *self.peers.get(&peer).ok_or(PostError::UnknownPeer)?;
        if message.len() > self.caps.message_bytes_max {
            return Err(PostError::TooLong);
        }
        let net = &mut *self.net.borrow_mut();
        if net.messages[to] == INBOX {
            return Ok(false);
        }
        net.messages[to] += 1;
        net.events[to].push(Event::Message { rail: LocalRail(0), bytes: message.to_vec() });
        Ok(true)
    }

    fn poll(&mut self, _now: Time, events: &mut Vec<Event>) {
        let net = &mut *self.net.borrow_mut();
        net.serve(self.node);
        net.messages[self.node] = 0;
        events.append(&mut net.events[self.node]);
    }

    fn reset(&mut self, _now: Time, peer: PeerId, _route: Route) {
        self.flush(peer);
    }
}

struct ToyWorld {
    net: Rc<RefCell<Net>>,
    nodes: Vec<Option<Toy>>,
    evidence: Evidence,
    now: Time,
}

impl ToyWorld {
    fn new(evidence: Evidence) -> Self {
        Self { net: Rc::default(), nodes: Vec::new(), evidence, now: Time::ZERO }
    }
}

impl World for ToyWorld {
    fn add_node(&mut self) -> NodeId {
        let node = self.nodes.len();
        let net = &mut *self.net.borrow_mut();
        net.alive.push(true);
        net.events.push(Vec::new());
        net.messages.push(0);
        let caps = Caps {
            name: "toy",
            evidence: self.evidence,
            op_bytes_max: 1 << 20,
            message_bytes_max: MESSAGE_BYTES_MIN,
            ops_in_flight_max: QUEUE as u32,
            turn_ops_max: u32::MAX,
            receives_max: INBOX as u32,
            linger: Duration::ZERO,
            stall_timeout: Duration::from_millis(100),
        };
        self.nodes.push(Some(Toy {
            node,
            net: Rc::clone(&self.net),
            caps,
            rails: vec![RailInfo { name: "toy0".into(), rate_bps: 0 }],
            peers: HashMap::new(),
            imported: HashMap::new(),
        }));
        NodeId(node)
    }

    fn drop_node(&mut self, node: NodeId) {
        self.nodes[node.0] = None;
    }

    fn transport(&mut self, node: NodeId) -> &mut dyn Transport {
        self.nodes[node.0].as_mut().expect("not dropped")
    }

    fn alloc(&mut self, node: NodeId, bytes: usize) -> u64 {
        let net = &mut *self.net.borrow_mut();
        let base = (1 + net.memory.len() as u64) << 32;
        net.memory.insert((node.0, base), vec![0; bytes]);
        base
    }

    fn write_memory(&mut self, node: NodeId, base: u64, offset: u64, bytes: &[u8]) {
        let net = &mut *self.net.borrow_mut();
        let memory = net.memory.get_mut(&(node.0, base)).expect("allocated");
        memory[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn read_memory(&mut self, node: NodeId, base: u64, offset: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.net.borrow().memory[&(node.0, base)][offset as usize..][..bytes.len()]);
    }

    fn now(&self) -> Time {
        self.now
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_micros(100);
    }

    fn limitations(&self) -> Limitations {
        Limitations { patience: Duration::from_secs(2), volume: 400, ..Limitations::default() }
    }
}

mod delivered {
    use super::*;
    crate::conformance_suite!(|| ToyWorld::new(Evidence::Delivered));
    crate::conformance_canaries!(|| ToyWorld::new(Evidence::Delivered));
}

mod counted {
    use super::*;
    crate::conformance_suite!(|| ToyWorld::new(Evidence::Counted));
}

#[test]
fn a_reset_that_does_nothing_is_caught() {
    let check = properties::a_reset_towards_a_silent_peer_pays_all_debts;
    let caught_by = Property { name: "a_reset_towards_a_silent_peer_pays_all_debts", check };
    let canary = Canary { fault: Fault::IgnoresResets, caught_by };
    catch(&mut ToyWorld::new(Evidence::Delivered), &canary).unwrap();
}

#[test]
fn a_counted_fabric_that_loses_immediates_is_caught() {
    let verdict = |fault| {
        let mut world = ToyWorld::new(Evidence::Counted);
        properties::immediates_follow_their_bytes(&mut Rig::tampered(
            &mut world,
            crate::faults::Tamper::new(fault),
        ))
    };
    assert!(verdict(Fault::LosesAnImmediate).is_err());
    assert!(verdict(Fault::RepeatsAnImmediate).is_err());
    assert!(verdict(Fault::LosesTheLastByte).is_err());
}

#[test]
fn canaries_name_properties_of_the_suite() {
    for canary in CANARIES {
        assert!(PROPERTIES.iter().any(|p| p.name == canary.caught_by.name), "{canary:?}");
    }
}
