//! The engine: everything that one process's NICs are doing, behind one lock.
//!
//! [`Engine::run`] does a bounded amount of all that can be done now, and says when there is more. The parts are in their own files:
//! what leaves in `sender`, `transmit` and `link`, what arrives in `receiver`, what peers ask for in `target`, what they answer in `initiator`,
//! what changes in the fabric in `change`.

use std::sync::Arc;

use softefa_fabric::nic::Owner;
use softefa_fabric::{Counter, Model, NicIndex, clock};

use super::completion::{CompletionQueue, Pushed};
use super::copy::{Copier, Piece};
use super::event::{AsyncEvent, Events};
use super::faults::Faults;
use super::handles::Handles;
use super::hash::Map;
use super::link::Links;
use super::operation::{Answer, Operation};
use super::pair::QueuePair;
use super::path::{Path, PathId, PathKey};
use super::random::Random;
use super::receiver::{Arrival, Arrivals};
use super::region::{Region, Regions};
use super::shared::Core;
use super::slab::Slab;
use super::slots::Slots;
use super::target::{Inbound, InboundKey};
use super::timers::{Timer, Timers};
use super::types::{Completion, Status};

/// One NIC of this process's node, as far as only this process is concerned.
pub(super) struct Port {
    pub(super) handles: Handles,
    events: Arc<Events<AsyncEvent>>,
    /// Programs were told that the link is down.
    pub(super) told_down: bool,
}

/// Everything that one process's NICs are doing.
pub(super) struct Engine {
    pub(super) core: Arc<Core>,
    pub(super) model: Model,
    pub(super) faults: Faults,
    /// The generation of the fabric that `model` and `faults` are of.
    pub(super) generation: u32,
    /// When they have to be read again although nobody has changed them: a fault ends.
    pub(super) refresh_at_ns: u64,
    pub(super) random: Random,
    pub(super) ports: Vec<Port>,
    pub(super) regions: Regions,
    pub(super) pairs: Map<(u32, u32), Arc<QueuePair>>,
    pub(super) operations: Slab<Operation>,
    pub(super) answers: Slab<Answer>,
    pub(super) paths: Vec<Path>,
    pub(super) paths_free: Vec<u32>,
    pub(super) path_ids: Map<PathKey, PathId>,
    pub(super) links: Links,
    pub(super) slots: Slots,
    pub(super) arrivals: Arrivals,
    pub(super) inbound: Map<InboundKey, Inbound>,
    /// When a peer's queue pair was last heard, by own NIC and peer.
    pub(super) heard: Map<u64, u64>,
    pub(super) timers: Timers,
    /// When operations on blocked paths have to be looked at.
    pub(super) scan_at_ns: u64,
    pub(super) copier: Copier,
    pub(super) pieces: Vec<Piece>,
    pub(super) batch: Vec<Arrival>,
    posted: Vec<(NicIndex, u32)>,
    next_due_ns: u64,
}

impl Engine {
    pub(super) fn new(core: Arc<Core>, events: Vec<Arc<Events<AsyncEvent>>>) -> Engine {
        let fabric = &core.fabric;
        let port = |events| Port { handles: Handles::default(), events, told_down: false };
        Engine {
            model: fabric.model(),
            faults: Faults::default(),
            // Any other than the fabric's: the first run reads everything.
            generation: fabric.generation().wrapping_sub(1),
            refresh_at_ns: 0,
            random: Random::new(fabric.seed(), core.node, core.me.process.get()),
            ports: events.into_iter().map(port).collect(),
            regions: Regions::default(),
            pairs: Map::default(),
            operations: Slab::new(),
            answers: Slab::new(),
            paths: Vec::new(),
            paths_free: Vec::new(),
            path_ids: Map::default(),
            links: Links::new(),
            slots: Slots::new(),
            arrivals: Arrivals::default(),
            inbound: Map::default(),
            heard: Map::default(),
            timers: Timers::new(),
            scan_at_ns: u64::MAX,
            copier: Copier::new(),
            pieces: Vec::new(),
            batch: Vec::new(),
            posted: Vec::new(),
            next_due_ns: 0,
            core,
        }
    }

    /// Does what can be done now, a bounded amount of it. True when there is more.
    pub(super) fn run(&mut self) -> bool {
        let now_ns = clock::now_ns();
        if self.core.fabric.generation() != self.generation || now_ns >= self.refresh_at_ns {
            self.refresh(now_ns);
        }
        self.start_posted(now_ns);
        let mut more = self.take_in(now_ns);
        more |= self.execute_due(now_ns);
        self.fire_timers(now_ns);
        if now_ns >= self.scan_at_ns {
            self.scan_blocked(now_ns);
        }
        more |= self.send(now_ns);
        self.ring_bells(now_ns);
        self.next_due_ns = if more { 0 } else { self.next_event_ns(now_ns) };
        more
    }

    fn next_event_ns(&self, now_ns: u64) -> u64 {
        let stalled = self.links.next_look_ns(now_ns);
        let events = [self.arrivals.next_ns(), self.timers.next_ns(), self.scan_at_ns, self.refresh_at_ns];
        events.into_iter().fold(stalled, u64::min)
    }

    /// When there is something to do, if nothing happens before; 0 = now.
    pub(super) fn next_due_ns(&self) -> u64 {
        self.next_due_ns
    }

    /// The generation of the fabric that it has seen.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    fn start_posted(&mut self, now_ns: u64) {
        let mut posted = std::mem::take(&mut self.posted);
        self.core.take_posted(&mut posted);
        for (nic, qpn) in posted.drain(..) {
            let Some(pair) = self.pairs.get(&(nic.nic, qpn)).cloned() else { continue };
            pair.unlist();
            while let Some(request) = pair.take_send() {
                self.start(&pair, request, now_ns);
            }
        }
        self.posted = posted;
    }

    fn fire_timers(&mut self, now_ns: u64) {
        // As many as there are now: those that set themselves again wait for the next run.
        for _ in 0..256 {
            match self.timers.take_due(now_ns) {
                None => break,
                Some(Timer::Path(path)) => {
                    self.paths[path.0 as usize].timer_ns = 0;
                    self.list_path(path);
                }
                Some(Timer::Operation(key)) => self.operation_is_due(key, now_ns),
                Some(Timer::Repeat(path, repeat)) => {
                    self.paths[path.0 as usize].repeats.push_back(repeat);
                    self.list_path(path);
                }
                Some(Timer::Control(path, owner, packet, tries)) => {
                    if self.paths[path.0 as usize].key.owner == owner {
                        self.send_control(path, packet, tries, now_ns);
                    }
                }
            }
        }
    }

    /// Looks at operations whose path is blocked, and ends those that have waited for too long.
    pub(super) fn scan_blocked(&mut self, now_ns: u64) {
        self.scan_at_ns = u64::MAX;
        let mut over = Vec::new();
        for (key, operation) in self.operations.iter() {
            let Some(deadline_ns) = self.deadline_ns(operation, now_ns) else { continue };
            if deadline_ns <= now_ns {
                over.push((key, self.unheard(operation)));
            } else {
                self.scan_at_ns = self.scan_at_ns.min(deadline_ns);
            }
        }
        for (key, status) in over {
            self.finish(key, status);
        }
    }

    /// When an operation ends because its path is blocked; `None` when it is not, or nobody is to know.
    pub(super) fn deadline_ns(&self, operation: &Operation, now_ns: u64) -> Option<u64> {
        let (from, to) = (operation.pair.nic(), operation.to);
        let loopback = self.model.loopback != 0;
        let there = self.faults.blocked(from, to, loopback, now_ns);
        let back = self.faults.blocked(to, from, loopback, now_ns);
        let silent = [there, back].into_iter().flatten().any(|(block, _)| block.silent);
        let since_ns = [there, back].into_iter().flatten().map(|(_, since_ns)| since_ns).min()?;
        if silent || matches!(operation.wait, super::operation::Wait::Doom(_)) {
            return None;
        }
        let heard_ns = self.last_heard(operation).unwrap_or(0);
        Some(since_ns.max(operation.since_ns).max(heard_ns).saturating_add(self.model.unresponsive_ns))
    }

    fn last_heard(&self, operation: &Operation) -> Option<u64> {
        self.heard.get(&heard_key(operation.pair.nic(), operation.to, operation.request.qpn)).copied()
    }

    /// How an operation ends whose peer does not answer.
    pub(super) fn unheard(&self, operation: &Operation) -> Status {
        match self.last_heard(operation) {
            Some(_) => Status::UnresponsiveRemote,
            None => Status::UnreachableRemote,
        }
    }

    pub(super) fn hear(&mut self, here: NicIndex, peer: NicIndex, qpn: u32, now_ns: u64) {
        // Queue pair numbers come from peers: a table of what was heard must not grow for ever.
        const HEARD_MAX: usize = 1 << 18;
        if self.heard.len() >= HEARD_MAX {
            let old_ns = now_ns.saturating_sub(10 * self.model.unresponsive_ns);
            self.heard.retain(|_, heard_ns| *heard_ns > old_ns);
            if self.heard.len() >= HEARD_MAX {
                self.heard.clear();
            }
        }
        self.heard.insert(heard_key(here, peer, qpn), now_ns);
    }

    pub(super) fn count(&self, nic: NicIndex, counter: Counter, n: u64) {
        if let Some(nic) = self.core.fabric.nic(nic) {
            nic.count(counter, n);
        }
    }

    /// The path from one of this process's NICs to a peer's.
    pub(super) fn path(&mut self, key: PathKey) -> PathId {
        if let Some(id) = self.path_ids.get(&key) {
            return *id;
        }
        let id = match self.paths_free.pop() {
            Some(free) => {
                self.paths[free as usize] = Path::new(key);
                PathId(free)
            }
            None => {
                self.paths.push(Path::new(key));
                PathId(self.paths.len() as u32 - 1)
            }
        };
        self.path_ids.insert(key, id);
        id
    }

    /// The processes that paths lead to.
    pub(super) fn owners(&self) -> Vec<Owner> {
        let mut owners: Vec<Owner> = Vec::new();
        for key in self.path_ids.keys() {
            if !owners.contains(&key.owner) {
                owners.push(key.owner);
            }
        }
        owners
    }

    /// Puts a completion into a queue; says it to the program when there was no room.
    pub(super) fn complete(
        &mut self,
        queue: &CompletionQueue,
        completion: Completion,
        frees: Option<Arc<QueuePair>>,
    ) {
        let nic = queue.nic();
        let limit = self.faults.completions_max(nic, clock::now_ns());
        let most = limit.map(|(_, most)| usize::try_from(most).unwrap_or(usize::MAX));
        if queue.push(completion, frees, most) == Pushed::Overflowed {
            if let Some((fault, _)) = limit {
                let _ = self.core.fabric.fault_bites(fault, clock::now_ns());
            }
            self.tell(nic, AsyncEvent::CompletionQueueError { token: queue.token() });
        }
    }

    /// Tells the program what happened to a NIC.
    pub(super) fn tell(&self, nic: NicIndex, event: AsyncEvent) {
        if let Some(port) = self.ports.get(nic.nic as usize) {
            port.events.push(event);
        }
    }

    pub(super) fn refuses_registration(&mut self, nic: NicIndex) -> bool {
        let now_ns = clock::now_ns();
        if self.core.fabric.generation() != self.generation {
            self.refresh(now_ns);
        }
        let Engine { faults, core, random, .. } = self;
        faults.refuses_registration(&core.fabric, random, nic, now_ns)
    }

    pub(super) fn add_region(&mut self, nic: NicIndex, region: Region) -> u32 {
        let core = self.core.clone();
        let cell = core.fabric.nic(nic).expect("devices are made for NICs of the fabric");
        loop {
            let key = cell.next_key(nic);
            if !self.regions.contains(nic.nic, key) {
                self.regions.insert(nic.nic, key, region);
                return key;
            }
        }
    }

    pub(super) fn remove_region(&mut self, nic: NicIndex, key: u32) -> Option<Region> {
        self.regions.remove(nic.nic, key)
    }

    pub(super) fn handles(&mut self, nic: NicIndex) -> &mut Handles {
        &mut self.ports[nic.nic as usize].handles
    }

    pub(super) fn open_pair(&mut self, pair: &Arc<QueuePair>) {
        self.pairs.insert((pair.nic().nic, pair.number()), pair.clone());
    }

    pub(super) fn close_pair(&mut self, nic: NicIndex, qpn: u32) {
        self.pairs.remove(&(nic.nic, qpn));
        if let Some(cell) = self.core.fabric.nic(nic) {
            cell.close_qp(qpn, self.core.me);
        }
    }

    /// Ends all requests of a queue pair, with a completion each (`tell`) or without.
    pub(super) fn flush_pair(&mut self, nic: NicIndex, qpn: u32, tell: bool) {
        let Some(pair) = self.pairs.get(&(nic.nic, qpn)).cloned() else { return };
        let of_pair = |operation: &Operation| Arc::ptr_eq(&operation.pair, &pair);
        for key in self.operations.keys_where(of_pair) {
            if tell {
                self.finish(key, Status::Flushed);
            } else {
                self.drop_operation(key);
            }
        }
        while let Some(request) = pair.take_send() {
            if tell {
                self.complete_send(&pair, &request, 0, Status::Flushed);
            } else {
                pair.free_send();
            }
        }
        self.forget_inbound(nic, qpn, clock::now_ns());
        while let Some(receive) = pair.take_receive() {
            if tell {
                self.complete_flushed_receive(&pair, receive.id);
            }
        }
    }

    /// Lets go of everything: the host is gone.
    pub(super) fn detach(&mut self) {
        let pairs: Vec<_> = self.pairs.keys().copied().collect();
        for (nic, qpn) in pairs {
            let nic = NicIndex { node: self.core.node, nic };
            self.flush_pair(nic, qpn, false);
            self.close_pair(nic, qpn);
        }
        self.ring_bells(clock::now_ns());
    }
}

/// Own NIC, peer's NIC and queue pair in one number.
fn heard_key(here: NicIndex, peer: NicIndex, qpn: u32) -> u64 {
    let [here, node, nic] = [here.nic, peer.node, peer.nic].map(|n| u64::from(n & 0xff));
    here << 48 | node << 40 | nic << 32 | u64::from(qpn)
}
