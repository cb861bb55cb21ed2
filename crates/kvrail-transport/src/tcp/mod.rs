//! TCP between any two hosts that reach each other, with nothing to install.
//!
//! A rail is one of a few connections to each peer. Connections are made when a route is first used, and one that the
//! peer made is used before another is dialed, so that an agent that cannot connect back still answers. Bytes go
//! straight from registered memory into the socket and straight from the socket into registered memory.
//!
//! # What it upholds
//! * KR-1, KR-2: a write completes when the target's process has placed all its bytes ([`Evidence::Delivered`]).
//! * KR-6: every accepted op is in exactly one queue, of its connection or of its peer's limbo, and leaves it with one
//!   event.
//! * KR-7: see *Fencing*. Memory is not touched after [`Transport::deregister`]: every access looks its region up.
//! * KR-8: every queue has a limit; a peer that does not take its answers is not listened to.
//! * KR-9: the target checks region, generation and bounds of every op.
//! * KR-11: a connection is for one instance of a `Tcp`; its successor at the same socket address is somebody else.
//!
//! # Fencing
//! When a connection breaks or is reset, bytes of its writes may still be on their way, and the target would place
//! them. So those writes are not reported as failed yet: the peer is asked over another connection (an existing one or
//! a new one) to close the broken one, and its answer is the proof that nothing of it can land any more. Reads need no
//! proof: this side has closed the connection that their data would come over. [`Caps::linger`] is therefore zero.
//!
//! The exception: no connection to the peer can be had for [`Config::fence_timeout`]. Then the writes fail unproven
//! ([`Counters::unfenced`]). Bytes of them can land later only if they had reached the peer's kernel before, the peer's
//! process did not run during all that time (stopped, starved), and when it runs again its kernel does not know yet
//! that the connection is dead (from the reset that this side sent, or from keep-alive when the link is cut). If it
//! knows, nothing is read: epoll is asked about a connection before it is read, unless it delivered bytes within the
//! last 100 µs.
//!
//! # Peers that are gone
//! [`Event::PeerGone`] is reported when the peer says goodbye, or when attempts to connect are denied at least three
//! times in a row and for 50 ms, on each of its addresses: refused by the host, or answered by another instance. A
//! peer that is silent, or behind a cut link, is not gone; its connections are tried again for ever, with growing
//! pauses, until it is removed.
//!
//! # Trust
//! Whoever knows the address, which holds 128 random bits, can read and write every registered region. There is no
//! encryption: use it on networks where that is acceptable.

mod address;
mod config;
mod conn;
mod drive;
mod fence;
mod frame;
mod inbox;
mod links;
mod outbox;
mod peer;
mod region;
mod requests;
mod sys;
mod table;

use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::time::Duration;

use kvrail_core::id::{LocalRail, PeerId, RegionId, RemoteRail, Route};
use kvrail_core::limits::{PEERS_MAX, RAILS_MAX, REGIONS_MAX};
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Direction, Event, Evidence, OpError, PeerError, PostError, RailInfo, RegionInfo,
    RegisterError, Transport,
};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

pub use config::{Config, Counters, RailCounters};

use crate::Fabric;
use address::{Address, SOCKETS_MAX};
use conn::ConnKey;
use frame::{Descriptor, MESSAGE_BYTES_MAX, OP_BYTES_MAX};
use inbox::{Effect, Scratch};
use peer::{Link, Peer};
use region::{Regions, Slice};
use requests::{OPS_OPEN_MAX, Pending};
use sys::{Epoll, Ready};
use table::{Conns, Timers};

/// Set in what epoll carries for a listener.
const LISTENER: u64 = 1 << 63;

/// Connections that the kernel may complete before they are accepted.
const LISTEN_BACKLOG: i32 = 1_024;

/// The TCP transport. See the module.
pub struct Tcp {
    config: Config,
    caps: Caps,
    rails: Vec<RailInfo>,
    rail_counters: Vec<RailCounters>,
    counters: Counters,
    address: Address,
    epoll: Epoll,
    listeners: Vec<Socket>,
    regions: Regions,
    peers: Slab<Peer>,
    directory: HashMap<PeerId, usize>,
    /// The peer with that instance, of those that the engine knows.
    instances: HashMap<u128, usize>,
    conns: Conns,
    /// Connections that each instance dialed.
    accepted: HashMap<u128, Vec<ConnKey>>,
    accepted_count: usize,
    /// Accepted connections in order of arrival, to find those that do not greet.
    handshakes: VecDeque<ConnKey>,
    /// Number of the next connection that this side dials.
    dials: u64,
    timers: Timers,
    /// Connections that have something to send.
    dirty: Vec<ConnKey>,
    /// Connections on which bytes arrived a moment ago.
    hot: Vec<ConnKey>,
    polls: u32,
    /// The last poll moved bytes.
    served: bool,
    /// Events that were decided outside of `poll`.
    backlog: Vec<Event>,
    scratch: Scratch,
    ready: Vec<Ready>,
    effects: Vec<Effect>,
    warned: bool,
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tcp")
            .field("listening", &self.address.sockets)
            .field("peers", &self.directory.len())
            .field("connections", &self.conns.len())
            .finish_non_exhaustive()
    }
}

impl Tcp {
    /// Listens, and is ready for peers.
    ///
    /// # Errors
    /// The system's, with what was tried; `InvalidInput` for settings out of range.
    pub fn new(config: Config) -> io::Result<Self> {
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if !(1..=RAILS_MAX).contains(&usize::from(config.connections)) {
            return invalid(format!("tcp: connections is {}, not 1 to {RAILS_MAX}", config.connections));
        }
        if !(1..=OPS_OPEN_MAX).contains(&(config.ops_in_flight_max as usize)) {
            return invalid(format!(
                "tcp: ops_in_flight_max is {}, not 1 to {OPS_OPEN_MAX}",
                config.ops_in_flight_max
            ));
        }
        let epoll = Epoll::new()?;
        let mut listeners = Vec::new();
        let mut sockets = Vec::new();
        for (i, at) in config.listen.iter().enumerate() {
            let listener = listen(*at)
                .map_err(|e| io::Error::new(e.kind(), format!("tcp: cannot listen on {at}: {e}")))?;
            epoll.add(&listener, LISTENER | i as u64, sys::READABLE)?;
            let bound = listener.local_addr()?.as_socket().unwrap_or(*at);
            sockets.extend(reachable_at(bound)?);
            listeners.push(listener);
        }
        if !config.advertise.is_empty() {
            sockets.clone_from(&config.advertise);
        }
        sockets.truncate(SOCKETS_MAX);
        let rail = |i| RailInfo { name: format!("tcp{i}"), rate_bps: 0 };
        let rails: Vec<RailInfo> = (0..config.connections).map(rail).collect();
        let caps = Caps {
            name: "tcp",
            evidence: Evidence::Delivered,
            op_bytes_max: OP_BYTES_MAX,
            message_bytes_max: MESSAGE_BYTES_MAX as usize,
            ops_in_flight_max: config.ops_in_flight_max,
            turn_ops_max: u32::MAX,
            // Unread messages wait in the kernel's buffers and stop their sender: nothing can overflow.
            receives_max: 1 << 20,
            linger: Duration::ZERO,
            stall_timeout: config.stall_timeout,
        };
        Ok(Self {
            rail_counters: vec![RailCounters::default(); rails.len()],
            address: Address { instance: sys::random()?, rails: config.connections, sockets },
            config,
            caps,
            rails,
            counters: Counters::default(),
            epoll,
            listeners,
            regions: Regions::default(),
            peers: Slab::new(),
            directory: HashMap::new(),
            instances: HashMap::new(),
            conns: Conns::default(),
            accepted: HashMap::new(),
            accepted_count: 0,
            handshakes: VecDeque::new(),
            dials: 0,
            timers: BinaryHeap::new(),
            dirty: Vec::new(),
            hot: Vec::new(),
            polls: 0,
            served: false,
            backlog: Vec::new(),
            scratch: Scratch::default(),
            ready: Vec::new(),
            effects: Vec::new(),
            warned: false,
        })
    }

    /// Where this transport listens, with the ports that it got.
    #[must_use]
    pub fn listening(&self) -> &[SocketAddr] {
        &self.address.sockets
    }

    /// What went over each local rail.
    #[must_use]
    pub fn rail_counters(&self) -> &[RailCounters] {
        &self.rail_counters
    }

    /// What concerns all rails.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Connections of any kind that exist now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// The standing connection of a route, or what a post to it is answered. Starts connecting where needed.
    fn usable(&mut self, now: Time, peer: PeerId, route: Route) -> Result<Option<ConnKey>, PostError> {
        let index = *self.directory.get(&peer).ok_or(PostError::UnknownPeer)?;
        let known = &self.peers[index];
        let exists = route.local.index() < self.rails.len() && route.remote.0 < known.address.rails;
        if known.gone || !exists {
            return Err(PostError::RouteDown);
        }
        match known.link(route) {
            Link::Open(key) => Ok(Some(key)),
            Link::Idle => {
                self.connect(now, index, route, false);
                match self.peers[index].link(route) {
                    Link::Open(key) => Ok(Some(key)),
                    _ => Ok(None),
                }
            }
            Link::Dialing { again: false, .. } => Ok(None),
            Link::Dialing { again: true, .. } | Link::Waiting => Err(PostError::RouteDown),
        }
    }
}

fn listen(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A successor may listen while connections of its predecessor linger in the kernel.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket)
}

/// The addresses by which a listener is reached.
fn reachable_at(bound: SocketAddr) -> io::Result<Vec<SocketAddr>> {
    if !bound.ip().is_unspecified() {
        return Ok(vec![bound]);
    }
    let same_family = |ip: &IpAddr| ip.is_ipv4() == bound.is_ipv4();
    let found = sys::interface_addresses()?;
    Ok(found.into_iter().filter(same_family).map(|ip| SocketAddr::new(ip, bound.port())).collect())
}

impl Transport for Tcp {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn rails(&self) -> &[RailInfo] {
        &self.rails
    }

    fn address(&self, out: &mut Vec<u8>) {
        self.address.encode(out);
    }

    fn register(&mut self, region: &RegionInfo) -> Result<(), RegisterError> {
        self.regions.register(region)
    }

    fn region_key(&self, _region: RegionId, _out: &mut Vec<u8>) {}

    fn deregister(&mut self, region: RegionId) -> Result<(), String> {
        for conn in self.conns.values_mut().filter(|c| !c.outbox.is_empty()) {
            conn.outbox.detach(region.0, &self.regions);
        }
        self.regions.deregister(region);
        Ok(())
    }

    fn add_peer(&mut self, now: Time, peer: PeerId, address: &[u8]) -> Result<Vec<RailInfo>, PeerError> {
        let address = Address::decode(address)?;
        if self.directory.len() >= PEERS_MAX {
            return Err(PeerError::Exhausted(format!("tcp: more than {PEERS_MAX} peers")));
        }
        if self.directory.contains_key(&peer) {
            self.remove_peer(now, peer);
        }
        let rails = (0..address.rails).map(|i| RailInfo { name: format!("tcp{i}"), rate_bps: 0 }).collect();
        let instance = address.instance;
        let index = self.peers.insert(Peer::new(peer, address));
        self.directory.insert(peer, index);
        self.instances.insert(instance, index);
        Ok(rails)
    }

    fn remove_peer(&mut self, now: Time, peer: PeerId) {
        self.forget(now, peer);
    }

    fn import_region(&mut self, peer: PeerId, region: &RegionInfo, _key: &[u8]) -> Result<(), PeerError> {
        let Some(index) = self.directory.get(&peer) else {
            return Err(PeerError::Unreachable(format!("tcp: {peer} is not known")));
        };
        let imported = &mut self.peers[*index].imported;
        if imported.len() >= REGIONS_MAX && !imported.contains_key(&region.id) {
            return Err(PeerError::Exhausted(format!("tcp: more than {REGIONS_MAX} regions of {peer}")));
        }
        imported.insert(region.id, region.generation.0);
        Ok(())
    }

    fn post(&mut self, now: Time, batch: &Batch<'_>) -> Result<usize, PostError> {
        let Some(key) = self.usable(now, batch.peer, batch.route)? else { return Ok(0) };
        let imported = &self.peers[self.directory[&batch.peer]].imported;
        let Some(conn) = self.conns.get_mut(key) else { return Err(PostError::RouteDown) };
        let room = (self.config.ops_in_flight_max as usize).saturating_sub(conn.requests.ops_open());
        let taken = room.min(batch.ops.len());
        let queue = match batch.direction {
            Direction::Write => &mut conn.requests.writes_queued,
            Direction::Read => &mut conn.requests.reads_queued,
        };
        queue.reserve(taken);
        // Neighbours mostly share their regions: one lookup per run.
        let (mut local, mut remote) = ((RegionId(u32::MAX), 0), (RegionId(u32::MAX), 0));
        for (op, index) in batch.ops[..taken].iter().zip(batch.first..) {
            if op.local_region != local.0 {
                local = (op.local_region, self.regions.generation(op.local_region));
            }
            if op.remote_region != remote.0 {
                // Generation 0 is nobody: the peer will refuse it.
                remote = (op.remote_region, imported.get(&op.remote_region).copied().unwrap_or(0));
            }
            let len = op.len;
            let slice = Slice { region: local.0.0, generation: local.1, offset: op.local_offset, len };
            let descriptor =
                Descriptor { region: remote.0.0, generation: remote.1, offset: op.remote_offset, len };
            let pending = Pending { token: batch.token, index, local: slice, remote: descriptor };
            if self.regions.resolve(&slice).is_some() && (1..=OP_BYTES_MAX).contains(&len) {
                queue.push_back(pending);
            } else {
                // Nothing that a caller may do; but an op that this side cannot execute must not break its neighbours.
                requests::report(&pending, Some(OpError::Fault(libc::EINVAL)), &mut self.backlog);
            }
        }
        if taken > 0 && !conn.dirty {
            conn.dirty = true;
            self.dirty.push(key);
        }
        Ok(taken)
    }

    fn send(&mut self, now: Time, peer: PeerId, route: Route, message: &[u8]) -> Result<bool, PostError> {
        if message.is_empty() || message.len() > self.caps.message_bytes_max {
            return Err(PostError::TooLong);
        }
        let Some(key) = self.usable(now, peer, route)? else { return Ok(false) };
        let Some(conn) = self.conns.get_mut(key) else { return Err(PostError::RouteDown) };
        let taken = conn.requests.queue_message(message);
        if taken && !conn.dirty {
            conn.dirty = true;
            self.dirty.push(key);
        }
        Ok(taken)
    }

    fn poll(&mut self, now: Time, events: &mut Vec<Event>) {
        self.served = false;
        self.drive(now, events);
    }

    fn served(&self) -> bool {
        self.served
    }

    fn reset(&mut self, now: Time, peer: PeerId, route: Route) {
        if let Some(index) = self.directory.get(&peer)
            && let Link::Open(key) = self.peers[*index].link(route)
        {
            self.close(now, key, inbox::Broken::Closed(OpError::Flushed));
        }
    }

    fn rail_counters(&mut self) -> Vec<kvrail_core::transport::RailCounters> {
        let open = |rail: usize| -> u64 {
            let on_rail = self.conns.iter().map(|(_, conn)| conn).filter(|conn| conn.rail.index() == rail);
            on_rail.map(|conn| (conn.requests.ops_open() + conn.requests.messages_open()) as u64).sum()
        };
        let counters = |(rail, counted): (usize, &RailCounters)| kvrail_core::transport::RailCounters {
            posted: counted.ops_completed + counted.ops_failed + counted.messages_tx + open(rail),
            completed: counted.ops_completed + counted.messages_tx,
            failed: counted.ops_failed,
            received: counted.messages_rx + counted.ops_served,
            // Interfaces count everyone's packets: they say nothing about these connections.
            device: None,
        };
        self.rail_counters.iter().enumerate().map(counters).collect()
    }

    fn poll_timeout(&self) -> Option<Time> {
        if !self.backlog.is_empty() || !self.dirty.is_empty() {
            return Some(Time::ZERO);
        }
        self.timers.peek().map(|timer| timer.0.0)
    }
}

impl Fabric for Tcp {
    fn wait_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn arm(&mut self) -> bool {
        // Level-triggered: whatever is ready in the kernel makes the descriptor readable.
        self.backlog.is_empty() && self.dirty.is_empty()
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.say_goodbye();
    }
}

/// The route of a connection that the peer dialed, from this side's point of view.
fn route_of(rail: LocalRail, remote_rail: u16) -> Route {
    Route { local: rail, remote: RemoteRail(remote_rail) }
}
