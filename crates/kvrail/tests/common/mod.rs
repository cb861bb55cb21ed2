//! A fabric whose ops end when the test says so: for everything that is about time and order. It moves no bytes.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kvrail::{Agent, Descriptors, Memory, Peer, Plan, Progress, Region, TransportConfig};
use kvrail_core::id::{LocalRail, PeerId, RegionId, Route, Token};
use kvrail_core::limits::MESSAGE_BYTES_MIN;
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Event, Evidence, OpError, PeerError, PostError, RailInfo, RegionInfo, RegisterError,
    Transport,
};
use kvrail_transport::Fabric;

/// How patient every wait of these tests is.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What connects the gate fabrics of one test.
#[derive(Clone, Default)]
pub struct Net(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    nodes: Vec<Node>,
}

struct Node {
    events: Vec<Event>,
    held: Vec<(PeerId, Token, u32, u32)>,
    closed: bool,
    stubborn: bool,
    refuse_registration_at: Option<u64>,
    registered: u64,
    alive: bool,
    peers: HashMap<PeerId, usize>,
    bell: OwnedFd,
}

impl Node {
    fn push(&mut self, event: Event) {
        self.events.push(event);
        rustix::io::write(&self.bell, &1u64.to_ne_bytes()).unwrap();
    }
}

impl Net {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn transport(&self) -> TransportConfig {
        let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        let wait = bell.as_raw_fd();
        let node = Node {
            events: Vec::new(),
            held: Vec::new(),
            closed: false,
            stubborn: false,
            refuse_registration_at: None,
            registered: 0,
            alive: true,
            peers: HashMap::new(),
            bell,
        };
        let mut state = self.lock();
        state.nodes.push(node);
        let caps = Caps {
            name: "gate",
            evidence: Evidence::Delivered,
            op_bytes_max: 1 << 20,
            message_bytes_max: MESSAGE_BYTES_MIN,
            ops_in_flight_max: 1024,
            turn_ops_max: u32::MAX,
            receives_max: 1024,
            linger: Duration::ZERO,
            stall_timeout: Duration::from_millis(40),
        };
        let rails = vec![RailInfo { name: "gate0".into(), rate_bps: 0 }];
        let gate = Gate { net: self.clone(), index: state.nodes.len() - 1, caps, rails, wait };
        TransportConfig::custom(Box::new(gate))
    }

    /// From now on ops of that node stay in flight.
    pub fn close_gate(&self, node: usize) {
        self.lock().nodes[node].closed = true;
    }

    /// Ends the ops in flight of that node well, and those to come at once.
    pub fn open_gate(&self, node: usize) {
        let node = &mut self.lock().nodes[node];
        node.closed = false;
        for (_, token, first, count) in std::mem::take(&mut node.held) {
            node.push(Event::Completed { token, first, count });
        }
    }

    /// Resets do not flush any more: ops stay in flight whatever is asked.
    pub fn make_stubborn(&self, node: usize) {
        self.lock().nodes[node].stubborn = true;
    }

    /// Refuses the registration after this many.
    pub fn refuse_registration_at(&self, node: usize, count: u64) {
        self.lock().nodes[node].refuse_registration_at = Some(count);
    }

    pub fn registered(&self, node: usize) -> u64 {
        self.lock().nodes[node].registered
    }

    pub fn in_flight(&self, node: usize) -> usize {
        self.lock().nodes[node].held.len()
    }

    /// Like a process that is killed: says nothing, and its peers' fabrics notice.
    pub fn kill(&self, index: usize) {
        let mut state = self.lock();
        state.nodes[index].alive = false;
        for node in &mut state.nodes {
            let gone: Vec<_> = node.peers.iter().filter(|(_, n)| **n == index).map(|(p, _)| *p).collect();
            for peer in gone {
                node.push(Event::PeerGone { peer });
            }
        }
    }
}

struct Gate {
    net: Net,
    index: usize,
    caps: Caps,
    rails: Vec<RailInfo>,
    wait: RawFd,
}

impl Gate {
    fn flush(&self, peer: PeerId) {
        let node = &mut self.net.lock().nodes[self.index];
        if node.stubborn {
            return;
        }
        let flushed: Vec<_> = node.held.extract_if(.., |held| held.0 == peer).collect();
        for (_, token, first, count) in flushed {
            node.push(Event::Failed { token, first, count, error: OpError::Flushed });
        }
    }
}

impl Transport for Gate {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn rails(&self) -> &[RailInfo] {
        &self.rails
    }
    fn address(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.index as u64).to_le_bytes());
    }
    fn register(&mut self, _region: &RegionInfo) -> Result<(), RegisterError> {
        let node = &mut self.net.lock().nodes[self.index];
        if node.refuse_registration_at == Some(node.registered) {
            return Err(RegisterError::Exhausted("the gate's limit is reached".into()));
        }
        node.registered += 1;
        Ok(())
    }
    fn region_key(&self, _region: RegionId, _out: &mut Vec<u8>) {}
    fn deregister(&mut self, _region: RegionId) -> Result<(), String> {
        self.net.lock().nodes[self.index].registered -= 1;
        Ok(())
    }
    fn add_peer(&mut self, _: Time, peer: PeerId, address: &[u8]) -> Result<Vec<RailInfo>, PeerError> {
        let index = address.try_into().map(u64::from_le_bytes).ok();
        let mut state = self.net.lock();
        let index = index.map(|i| i as usize).filter(|i| *i < state.nodes.len());
        let index = index.ok_or_else(|| PeerError::Malformed("no such node".into()))?;
        state.nodes[self.index].peers.insert(peer, index);
        Ok(self.rails.clone())
    }
    fn remove_peer(&mut self, _: Time, peer: PeerId) {
        self.flush(peer);
        self.net.lock().nodes[self.index].peers.remove(&peer);
    }
    fn import_region(&mut self, _: PeerId, _: &RegionInfo, _: &[u8]) -> Result<(), PeerError> {
        Ok(())
    }
    fn post(&mut self, _: Time, batch: &Batch<'_>) -> Result<usize, PostError> {
        let node = &mut self.net.lock().nodes[self.index];
        let (token, first, count) = (batch.token, batch.first, batch.ops.len() as u32);
        if node.closed {
            node.held.push((batch.peer, token, first, count));
        } else {
            node.push(Event::Completed { token, first, count });
        }
        Ok(batch.ops.len())
    }
    fn send(&mut self, _: Time, peer: PeerId, _: Route, message: &[u8]) -> Result<bool, PostError> {
        let mut state = self.net.lock();
        let to = *state.nodes[self.index].peers.get(&peer).ok_or(PostError::UnknownPeer)?;
        if state.nodes[self.index].alive && state.nodes[to].alive {
            state.nodes[to].push(Event::Message { rail: LocalRail(0), bytes: message.to_vec() });
        }
        Ok(true)
    }
    fn poll(&mut self, _: Time, events: &mut Vec<Event>) {
        events.append(&mut self.net.lock().nodes[self.index].events);
    }
    fn reset(&mut self, _: Time, peer: PeerId, _: Route) {
        self.flush(peer);
    }
}

impl Fabric for Gate {
    fn wait_fd(&self) -> RawFd {
        self.wait
    }
    fn arm(&mut self) -> bool {
        let node = &self.net.lock().nodes[self.index];
        let _ = rustix::io::read(&node.bell, &mut [0u8; 8]);
        node.events.is_empty()
    }
}

/// Both modes of progress: most properties hold in each.
pub const MODES: [Progress; 2] = [Progress::Thread, Progress::Inline];

/// Two agents that know each other, a region on each side, and a plan of four blocks of 4 KiB.
pub struct Pair {
    pub net: Net,
    pub here: Agent,
    pub there: Agent,
    pub source: Region,
    pub target: Region,
    pub peer: Peer,
    pub plan: Plan,
}

pub fn pair(progress: Progress) -> Pair {
    let net = Net::default();
    let agent = |name: &str| {
        let agent = Agent::builder(name).transports([net.transport()]).ignore_environment();
        agent.progress(progress).close_timeout(Duration::from_millis(300)).build().unwrap()
    };
    let (here, there) = (agent("here"), agent("there"));
    let source = here.register(Memory::private(64 << 10).unwrap()).unwrap();
    let target = there.register(Memory::private(64 << 10).unwrap()).unwrap();
    let peer = here.connect(&there.metadata().unwrap()).unwrap();
    let plan = here.prepare(&peer, &blocks(&source), &blocks_of(target.id())).unwrap();
    // Inline agents answer only when called: greet before the test begins.
    while peer.state() != kvrail::PeerState::Ready {
        here.progress();
        there.progress();
    }
    Pair { net, here, there, source, target, peer, plan }
}

pub fn blocks(region: &Region) -> Descriptors {
    blocks_of(region.id())
}

pub fn blocks_of(region: RegionId) -> Descriptors {
    (0..4).map(|i| (region, 8192 * i, 4096)).collect()
}
