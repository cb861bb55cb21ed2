//! What properties hold in their hands: a world, its nodes introduced to each other, and the books of every node.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use kvrail_core::id::{Generation, LocalRail, PeerId, RailSet, RegionId, RemoteRail, Route, Token};
use kvrail_core::limits::RAILS_MAX;
use kvrail_core::time::Time;
use kvrail_core::transport::{
    Batch, Caps, Device, Direction, Event, Evidence, Op, PeerError, PostError, RegionInfo, Transport,
};

use crate::faults::{Tamper, Tampered};
use crate::ledger::{Ledger, Standing};
use crate::{Limitations, NodeId, Verdict, Violation, World, demand, pattern, violated};

/// Memory of a node that was registered.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Index of the node in the rig.
    pub node: usize,
    /// As registered.
    pub info: RegionInfo,
}

/// One node and everything that it was told.
struct Node {
    id: NodeId,
    alive: bool,
    polled: bool,
    caps: Caps,
    rails: usize,
    ledger: Ledger,
    immediates: Vec<u32>,
    messages: Vec<Vec<u8>>,
    sends_failed: usize,
    /// Its address changed; the others are told with the next [`Rig::pump`].
    moved: bool,
    gone: Vec<PeerId>,
    events: Vec<Event>,
}

/// Whom a posting concerned.
#[derive(Clone, Copy)]
struct Posting {
    from: usize,
    to: usize,
    direction: Direction,
}

/// A world, its nodes, and their books.
pub struct Rig<'w> {
    world: &'w mut dyn World,
    limits: Limitations,
    tamper: Option<Tamper>,
    nodes: Vec<Node>,
    peers: HashMap<(usize, usize), (PeerId, Vec<Route>)>,
    /// Peers that a node removed.
    removed: HashSet<(usize, PeerId)>,
    postings: HashMap<Token, Posting>,
    tokens: u32,
    regions: u32,
}

impl std::fmt::Debug for Rig<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rig").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

impl<'w> Rig<'w> {
    /// A rig around a fresh world.
    pub fn new(world: &'w mut dyn World) -> Self {
        let limits = world.limitations();
        Self {
            world,
            limits,
            tamper: None,
            nodes: Vec::new(),
            peers: HashMap::new(),
            removed: HashSet::new(),
            postings: HashMap::new(),
            tokens: 0,
            regions: 0,
        }
    }

    /// The same with transports that are broken on purpose.
    pub(crate) fn tampered(world: &'w mut dyn World, tamper: Tamper) -> Self {
        let mut rig = Self::new(world);
        rig.tamper = Some(tamper);
        rig
    }

    pub(crate) fn limits(&self) -> &Limitations {
        &self.limits
    }

    pub(crate) fn now(&self) -> Time {
        self.world.now()
    }

    /// Calls a node's transport.
    pub(crate) fn on<R>(&mut self, node: usize, f: impl FnOnce(&mut dyn Transport, Time) -> R) -> R {
        let now = self.world.now();
        let transport = self.world.transport(self.nodes[node].id);
        match &mut self.tamper {
            None => f(transport, now),
            Some(tamper) => f(&mut Tampered::new(transport, tamper, node), now),
        }
    }

    // --- nodes and peers ---

    /// A fresh node; its caps are checked by `caps_are_sane`.
    pub(crate) fn node(&mut self) -> usize {
        let id = self.world.add_node();
        let transport = self.world.transport(id);
        let (caps, rails) = (transport.caps().clone(), transport.rails().len());
        self.nodes.push(Node {
            id,
            alive: true,
            polled: true,
            caps,
            rails,
            ledger: Ledger::default(),
            immediates: Vec::new(),
            messages: Vec::new(),
            sends_failed: 0,
            moved: false,
            gone: Vec::new(),
            events: Vec::new(),
        });
        self.nodes.len() - 1
    }

    /// Two nodes that know each other.
    pub(crate) fn pair(&mut self) -> Result<(usize, usize), Violation> {
        let (a, b) = (self.node(), self.node());
        self.introduce(a, b)?;
        Ok((a, b))
    }

    /// Makes two nodes known to each other.
    pub(crate) fn introduce(&mut self, a: usize, b: usize) -> Verdict {
        self.add_peer(a, b, Generation(1))
            .map_err(|e| Violation(format!("add_peer refused a live node: {e}")))?;
        self.add_peer(b, a, Generation(1))
            .map_err(|e| Violation(format!("add_peer refused a live node: {e}")))
    }

    pub(crate) fn add_peer(
        &mut self,
        of: usize,
        other: usize,
        generation: Generation,
    ) -> Result<(), PeerError> {
        let mut address = Vec::new();
        self.on(other, |t, _| t.address(&mut address));
        let peer = PeerId { slot: other as u32, generation };
        let rails = self.on(of, |t, now| t.add_peer(now, peer, &address))?;
        let (l, r) = (self.nodes[of].rails, rails.len());
        let route = |i: usize| Route { local: LocalRail((i % l) as u16), remote: RemoteRail((i % r) as u16) };
        self.peers.insert((of, other), (peer, (0..l.max(r)).map(route).collect()));
        Ok(())
    }

    /// Removes a peer.
    pub(crate) fn remove_peer(&mut self, of: usize, other: usize) {
        let peer = self.peer(of, other);
        self.removed.insert((of, peer));
        self.on(of, |t, now| t.remove_peer(now, peer));
    }

    pub(crate) fn peer(&self, of: usize, other: usize) -> PeerId {
        self.peers[&(of, other)].0
    }

    pub(crate) fn routes(&self, of: usize, other: usize) -> &[Route] {
        &self.peers[&(of, other)].1
    }

    /// The rails at both ends that an op may use, as the transport says, and that there are.
    pub(crate) fn rails_for(&mut self, of: usize, other: usize, op: &Op) -> (RailSet, RailSet) {
        let peer = self.peer(of, other);
        let count = (self.nodes[of].rails, self.nodes[other].rails);
        let here = self.on(of, |t, _| t.region_rails(op.local_region));
        let there = self.on(of, |t, _| t.imported_rails(peer, op.remote_region));
        (existing(here, count.0), existing(there, count.1))
    }

    /// Routes that an op may use, each rail of both ends on one; all of them where the transport knows no such regions.
    pub(crate) fn routes_for(&mut self, of: usize, other: usize, op: &Op) -> Vec<Route> {
        let (here, there) = self.rails_for(of, other, op);
        let l: Vec<_> = here.below(RAILS_MAX).collect();
        let r: Vec<_> = there.below(RAILS_MAX).collect();
        if l.is_empty() || r.is_empty() {
            return self.routes(of, other).to_vec();
        }
        let route = |i: usize| Route {
            local: LocalRail(l[i % l.len()] as u16),
            remote: RemoteRail(r[i % r.len()] as u16),
        };
        (0..l.len().max(r.len())).map(route).collect()
    }

    /// Rails of a node.
    pub(crate) fn rails(&self, node: usize) -> usize {
        self.nodes[node].rails
    }

    /// The node's process vanishes.
    pub(crate) fn drop_node(&mut self, node: usize) {
        self.world.drop_node(self.nodes[node].id);
        self.nodes[node].alive = false;
    }

    /// Whether [`Rig::pump`] polls this node.
    pub(crate) fn set_polled(&mut self, node: usize, polled: bool) {
        self.nodes[node].polled = polled;
    }

    pub(crate) fn caps(&self, node: usize) -> &Caps {
        &self.nodes[node].caps
    }

    pub(crate) fn ledger(&self, node: usize) -> &Ledger {
        &self.nodes[node].ledger
    }

    pub(crate) fn messages(&self, node: usize) -> &[Vec<u8>] {
        &self.nodes[node].messages
    }

    pub(crate) fn immediates(&self, node: usize) -> &[u32] {
        &self.nodes[node].immediates
    }

    pub(crate) fn sends_failed(&self, node: usize) -> usize {
        self.nodes[node].sends_failed
    }

    pub(crate) fn gone(&self, node: usize) -> &[PeerId] {
        &self.nodes[node].gone
    }

    // --- memory ---

    /// Fresh memory of a node, filled with the seed's pattern and registered.
    pub(crate) fn area(&mut self, node: usize, len: usize, seed: u64) -> Result<Area, Violation> {
        let base = self.world.alloc(self.nodes[node].id, len);
        self.world.write_memory(self.nodes[node].id, base, 0, &pattern::bytes(seed, len));
        self.regions += 1;
        let info = RegionInfo {
            id: RegionId(self.regions),
            generation: Generation(1),
            base,
            len: len as u64,
            device: Device::Host,
        };
        self.register(Area { node, info })
    }

    /// Registers an area (again).
    pub(crate) fn register(&mut self, area: Area) -> Result<Area, Violation> {
        let refused = |e| Violation(format!("host memory was refused: {e}"));
        self.on(area.node, |t, _| t.register(&area.info)).map_err(refused)?;
        Ok(area)
    }

    /// Ends a registration; a transport may ask for patience while copies are under way.
    pub(crate) fn deregister(&mut self, area: Area) -> Verdict {
        let give_up = self.now() + self.limits.patience;
        loop {
            match self.on(area.node, |t, _| t.deregister(area.info.id)) {
                Ok(()) => return Ok(()),
                Err(why) if self.now() > give_up => violated!("deregister still refuses: {why}"),
                Err(_) => self.pump()?,
            }
        }
    }

    /// Imports an area at another node.
    pub(crate) fn share(&mut self, area: Area, with: usize) -> Verdict {
        let mut key = Vec::new();
        self.on(area.node, |t, _| t.region_key(area.info.id, &mut key));
        let peer = self.peer(with, area.node);
        let refused = |e| Violation(format!("a valid region key was refused: {e}"));
        self.on(with, |t, _| t.import_region(peer, &area.info, &key)).map_err(refused)
    }

    pub(crate) fn read(&mut self, area: Area) -> Vec<u8> {
        let mut bytes = vec![0; area.info.len as usize];
        self.world.read_memory(self.nodes[area.node].id, area.info.base, 0, &mut bytes);
        bytes
    }

    pub(crate) fn write(&mut self, area: Area, offset: u64, bytes: &[u8]) {
        self.world.write_memory(self.nodes[area.node].id, area.info.base, offset, bytes);
    }

    /// The whole area holds exactly these bytes: what was sent, and the guards beside it.
    pub(crate) fn expect_bytes(&mut self, area: Area, expected: &[u8], what: &str) -> Verdict {
        let seen = self.read(area);
        if seen == expected {
            return Ok(());
        }
        let first = seen.iter().zip(expected).position(|(s, e)| s != e).unwrap_or(0);
        let wrong = seen.iter().zip(expected).filter(|(s, e)| s != e).count();
        violated!("{what}: {wrong} wrong bytes, the first at offset {first} of {}", area.info.len)
    }

    // --- ops ---

    /// One attempt to post; what is accepted is entered in the books.
    pub(crate) fn try_post(
        &mut self,
        from: usize,
        to: usize,
        route: Route,
        direction: Direction,
        token: Token,
        ops: &[Op],
    ) -> Result<Result<usize, PostError>, Violation> {
        let first = self.nodes[from].ledger.of(token).len() as u32;
        let peer = self.peer(from, to);
        let counted = self.nodes[from].caps.evidence == Evidence::Counted && direction == Direction::Write;
        let immediate = counted.then_some(token.slot);
        let batch = Batch { peer, route, direction, token, first, ops, immediate };
        let taken = self.on(from, |t, now| t.post(now, &batch));
        if let Ok(taken) = taken {
            demand!(taken <= ops.len(), "post took {taken} of {} ops", ops.len());
            self.nodes[from].ledger.accept(token, taken);
            self.postings.insert(token, Posting { from, to, direction });
        }
        Ok(taken)
    }

    /// A token that was not used yet.
    pub(crate) fn token(&mut self) -> Token {
        self.tokens += 1;
        Token { slot: self.tokens, generation: Generation(1) }
    }

    /// Posts all ops on a route, resuming where the queue was full.
    pub(crate) fn post_on(
        &mut self,
        from: usize,
        to: usize,
        route: Route,
        direction: Direction,
        ops: &[Op],
    ) -> Result<Token, Violation> {
        let token = self.token();
        let mut give_up = self.now() + self.limits.patience;
        let mut rest = ops;
        while !rest.is_empty() {
            let taken = match self.try_post(from, to, route, direction, token, rest)? {
                Ok(taken) => taken,
                Err(PostError::RouteDown) => 0,
                Err(e) => violated!("post refused a valid batch: {e:?}"),
            };
            rest = &rest[taken..];
            if taken > 0 {
                give_up = self.now() + self.limits.patience;
            } else {
                let waited = self.limits.patience;
                demand!(self.now() < give_up, "post took nothing for {waited:?} ({} ops left)", rest.len());
                self.pump()?;
            }
        }
        Ok(token)
    }

    /// Posts all ops on the first route that they may use.
    pub(crate) fn post(
        &mut self,
        from: usize,
        to: usize,
        direction: Direction,
        ops: &[Op],
    ) -> Result<Token, Violation> {
        let route = self.routes_for(from, to, &ops[0])[0];
        self.post_on(from, to, route, direction, ops)
    }

    /// Every op of the token succeeded.
    pub(crate) fn expect_completed(&self, node: usize, token: Token) -> Verdict {
        match self.nodes[node].ledger.of(token).iter().position(|s| *s != Standing::Completed) {
            None => Ok(()),
            Some(i) => violated!("op {i} did not succeed: {:?}", self.nodes[node].ledger.of(token)[i]),
        }
    }

    // --- messages ---

    /// One attempt to send.
    pub(crate) fn try_send(&mut self, from: usize, to: usize, message: &[u8]) -> Result<bool, PostError> {
        let route = self.routes(from, to)[0];
        self.try_send_on(from, to, route, message)
    }

    fn try_send_on(
        &mut self,
        from: usize,
        to: usize,
        route: Route,
        message: &[u8],
    ) -> Result<bool, PostError> {
        let peer = self.peer(from, to);
        self.on(from, |t, now| t.send(now, peer, route, message))
    }

    /// Sends on the first route, waiting while the peer is full.
    pub(crate) fn send(&mut self, from: usize, to: usize, message: &[u8]) -> Verdict {
        let route = self.routes(from, to)[0];
        self.send_on(from, to, route, message)
    }

    /// Sends, waiting while the peer is full.
    pub(crate) fn send_on(&mut self, from: usize, to: usize, route: Route, message: &[u8]) -> Verdict {
        let give_up = self.now() + self.limits.patience;
        loop {
            match self.try_send_on(from, to, route, message) {
                Ok(true) => return Ok(()),
                Ok(false) | Err(PostError::RouteDown) => {
                    demand!(self.now() < give_up, "send took nothing for {:?}", self.limits.patience);
                    self.pump()?;
                }
                Err(e) => violated!("send refused a valid message: {e:?}"),
            }
        }
    }

    // --- time ---

    /// Polls one node and enters what it says in the books.
    pub(crate) fn poll(&mut self, node: usize) -> Verdict {
        let mut events = std::mem::take(&mut self.nodes[node].events);
        self.on(node, |t, now| t.poll(now, &mut events));
        for event in events.drain(..) {
            self.enter(node, event)?;
        }
        self.nodes[node].events = events;
        Ok(())
    }

    fn enter(&mut self, at: usize, event: Event) -> Verdict {
        let node = &mut self.nodes[at];
        let known = |rail: LocalRail| rail.index() < node.rails;
        match event {
            Event::Completed { token, first, count } => {
                node.ledger.resolve(token, first, count, Standing::Completed)?;
            }
            Event::Failed { token, first, count, error } => {
                node.ledger.resolve(token, first, count, Standing::Failed(error))?;
            }
            Event::Immediate { rail, value } => {
                demand!(known(rail), "an immediate came from {rail}, which this node does not have");
                node.immediates.push(value);
            }
            Event::Message { rail, bytes } => {
                demand!(known(rail), "a message came from {rail}, which this node does not have");
                node.messages.push(bytes);
            }
            Event::SendFailed { .. } => node.sends_failed += 1,
            Event::PeerGone { peer } => node.gone.push(peer),
            Event::AddressChanged => node.moved = true,
            Event::RailDown { .. } | Event::RailUp { .. } => {}
        }
        Ok(())
    }

    /// What an engine's greeting does after [`Event::AddressChanged`]: the nodes that know this one learn where it is now.
    fn tell_of_moves(&mut self) -> Verdict {
        for node in 0..self.nodes.len() {
            if !self.nodes[node].alive || !std::mem::take(&mut self.nodes[node].moved) {
                continue;
            }
            let mut address = Vec::new();
            self.on(node, |t, _| t.address(&mut address));
            let knows = self.peers.iter().filter(|((_, other), _)| *other == node);
            let mut knows: Vec<_> = knows.map(|((of, _), (peer, _))| (*of, *peer)).collect();
            knows.sort_unstable();
            for (of, peer) in knows {
                if self.nodes[of].alive {
                    let answer = self.on(of, |t, now| t.readdress(now, peer, &address));
                    if let Err(e) = answer
                        && !self.removed.contains(&(of, peer))
                    {
                        violated!("readdress refused a live node's new address: {e}");
                    }
                }
            }
        }
        Ok(())
    }

    /// Polls every live node once and lets time pass.
    pub(crate) fn pump(&mut self) -> Verdict {
        for node in 0..self.nodes.len() {
            if self.nodes[node].alive && self.nodes[node].polled {
                self.poll(node)?;
            }
        }
        self.tell_of_moves()?;
        self.world.step();
        Ok(())
    }

    /// Pumps until something holds; a violation when patience ends first.
    pub(crate) fn pump_until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) -> Verdict {
        let give_up = self.now() + self.limits.patience;
        while !holds(self) {
            if self.now() > give_up {
                let open: Vec<usize> = self.nodes.iter().map(|n| n.ledger.open()).collect();
                violated!("waited {:?} for this: {what}; open ops per node: {open:?}", self.limits.patience);
            }
            self.pump()?;
        }
        Ok(())
    }

    /// Pumps for a while, to see what must not happen.
    pub(crate) fn pump_for(&mut self, span: Duration) -> Verdict {
        let end = self.now() + span;
        while self.now() < end {
            self.pump()?;
        }
        Ok(())
    }

    /// Pumps until every debt of the live nodes is paid and the evidence of every completed write has arrived.
    pub(crate) fn settle(&mut self) -> Verdict {
        self.pump_until("every accepted op is resolved, and its evidence is there", |rig| {
            let paid = rig.nodes.iter().all(|n| !n.alive || n.ledger.open() == 0);
            paid && (0..rig.nodes.len()).all(|n| rig.evidence_is_in(n))
        })
    }

    /// With counted evidence a completion at the initiator may precede visibility: the target's count decides.
    fn evidence_is_in(&self, target: usize) -> bool {
        let counted = self.nodes[target].caps.evidence == Evidence::Counted;
        if !counted || !self.nodes[target].alive || !self.nodes[target].polled {
            return true;
        }
        self.nodes[target].immediates.len() >= self.writes_completed_to(target)
    }

    pub(crate) fn writes_completed_to(&self, target: usize) -> usize {
        let to_target = |p: &Posting| p.to == target && p.direction == Direction::Write;
        let completed = |(token, p): (&Token, &Posting)| {
            self.nodes[p.from].ledger.of(*token).iter().filter(|s| **s == Standing::Completed).count()
        };
        self.postings.iter().filter(|(_, p)| to_target(p)).map(completed).sum()
    }

    /// What an engine does about silence: once nothing moved for the stall timeout, the routes are reset. Pumps
    /// until the node's debts are paid.
    pub(crate) fn settle_as_an_engine(&mut self, node: usize, other: usize) -> Verdict {
        let stall = self.nodes[node].caps.stall_timeout;
        let mut open = self.ledger(node).open();
        let mut moved = self.now();
        let mut give_up = self.now() + stall + self.limits.patience;
        let mut resets = false;
        while self.ledger(node).open() > 0 {
            self.pump()?;
            if self.ledger(node).open() < open {
                open = self.ledger(node).open();
                moved = self.now();
                give_up = moved + stall + self.limits.patience;
            }
            if !resets && self.now().since(moved) >= stall {
                self.reset(node, other);
                resets = true;
            }
            demand!(self.now() < give_up, "{open} ops stay unresolved after the stall timeout and a reset");
        }
        Ok(())
    }

    /// Resets one route to a peer.
    pub(crate) fn reset_route(&mut self, node: usize, other: usize, route: Route) {
        let peer = self.peer(node, other);
        self.on(node, |t, now| t.reset(now, peer, route));
    }

    /// Resets all routes to a peer.
    pub(crate) fn reset(&mut self, node: usize, other: usize) {
        let (peer, routes) = self.peers[&(node, other)].clone();
        for route in routes {
            self.on(node, |t, now| t.reset(now, peer, route));
        }
    }
}

/// The rails of a set that exist.
fn existing(set: RailSet, count: usize) -> RailSet {
    set.below(count).fold(RailSet::NONE, RailSet::with)
}
