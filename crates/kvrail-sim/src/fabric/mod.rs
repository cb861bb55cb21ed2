//! The fake fabric: one world with virtual time and one seed; nodes with NICs; a [`SimTransport`] for each.
//!
//! Semantics are those of SRD: reliable, unordered between ops and inside them, completion is local, no loopback, a
//! write's immediate says that this write is visible and nothing else (KR-1). Every fault is an event of the same queue,
//! so a seed is a run.

mod deliver;
mod fault;
mod node;
mod op;
mod transport;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::rc::Rc;

use kvrail_core::time::Time;
use kvrail_core::transport::{Event, OpError};

pub use node::NodeSpec;
pub use transport::SimTransport;

use crate::memory::Arena;
use crate::model::{Chaos, Fault, Model};
use crate::rng::Rng;
use crate::territory::Territory;
use crate::trace::Trace;
use crate::violation::{Checker, Violation};
use deliver::Mail;
use node::Node;
use op::{OpKey, Ops};

/// What happens at a moment.
#[derive(Debug)]
enum Happening {
    /// A packet of an op reaches the memory that it is for.
    Packet { op: OpKey, offset: u32, len: u32 },
    /// Bytes that were acknowledged become visible.
    Commit { op: OpKey, offset: u32, bytes: Box<[u8]> },
    /// An op ends at its initiator.
    End { op: OpKey, error: Option<OpError> },
    /// A message reaches its target.
    Mail(Box<Mail>),
    /// News for a process, if it still lives.
    News { node: usize, epoch: u64, event: Event },
    /// A scripted fault.
    Fault(Fault),
    /// The driver asked to be called.
    Driver(u64),
}

struct Entry {
    at: u64,
    sequence: u64,
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// Everything that the nodes share.
pub(crate) struct World {
    now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    rng: Rng,
    model: Model,
    chaos: Chaos,
    nodes: Vec<Node>,
    ops: Ops,
    /// `(from node, from rail, to node, to rail)`.
    holes: BTreeSet<(usize, usize, usize, usize)>,
    /// `(smaller, larger)`.
    partitions: BTreeSet<(usize, usize)>,
    scratch: Vec<u8>,
    /// Polls move the clock: for users without a driver.
    self_clocked: bool,
    territory: Territory,
    violations: Vec<Violation>,
    trace: Trace,
}

/// Violations kept per run; the first one tells the story.
const VIOLATIONS_MAX: usize = 16;

impl World {
    fn at(&mut self, at: u64, what: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse(Entry { at: at.max(self.now), sequence: self.sequence, what }));
    }

    fn time(&self) -> Time {
        Time(self.now)
    }

    fn violate(&mut self, checker: Checker, what: String) {
        let at = self.time();
        self.trace.note(at, || format!("VIOLATION {checker}: {what}"));
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { checker, at, what });
        }
    }

    /// One packet's way: latency, jitter, now and then a long tail.
    fn latency(&mut self) -> u64 {
        let model = &self.model;
        let mut ns = model.latency + self.rng.below(model.jitter + 1);
        if self.rng.chance(model.tail_ppm) {
            ns += self.rng.within(model.tail_min, model.tail_max);
        }
        if self.rng.chance(self.chaos.reorder_ppm) {
            ns += self.rng.below(self.chaos.delay_max + 1);
        }
        ns
    }

    /// Takes the next event off the queue and lets it happen. `None` when nothing is left.
    fn step(&mut self) -> Option<Option<u64>> {
        let Reverse(entry) = self.queue.pop()?;
        self.now = entry.at;
        match entry.what {
            Happening::Packet { op, offset, len } => self.packet(op, offset, len),
            Happening::Commit { op, offset, bytes } => self.commit(op, offset, &bytes),
            Happening::End { op, error } => self.end(op, error),
            Happening::Mail(mail) => self.mail(*mail),
            Happening::News { node, epoch, event } => self.news(node, epoch, event),
            Happening::Fault(fault) => self.fault(fault),
            Happening::Driver(cookie) => return Some(Some(cookie)),
        }
        Some(None)
    }

    fn run_until(&mut self, until: u64) {
        while self.queue.peek().is_some_and(|Reverse(entry)| entry.at <= until) {
            self.step();
        }
        self.now = self.now.max(until);
    }
}

/// A handle on the world; clones share it.
#[derive(Clone)]
pub struct SimFabric {
    world: Rc<RefCell<World>>,
}

impl SimFabric {
    /// A world at time zero.
    #[must_use]
    pub fn new(seed: u64, model: Model, nodes: Vec<NodeSpec>, trace: bool) -> Self {
        let nodes = nodes.into_iter().enumerate().map(|(i, spec)| Node::new(i, spec, 1)).collect();
        let world = World {
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            rng: Rng::new(seed),
            model,
            chaos: Chaos::CALM,
            nodes,
            ops: Ops::default(),
            holes: BTreeSet::new(),
            partitions: BTreeSet::new(),
            scratch: Vec::new(),
            self_clocked: false,
            territory: Territory::default(),
            violations: Vec::new(),
            trace: Trace::new(trace),
        };
        Self { world: Rc::new(RefCell::new(world)) }
    }

    /// A further node; its number.
    pub fn add_node(&self, spec: NodeSpec) -> usize {
        let mut world = self.world.borrow_mut();
        let index = world.nodes.len();
        world.nodes.push(Node::new(index, spec, 1));
        index
    }

    /// When the next thing happens.
    #[must_use]
    pub fn next_at(&self) -> Option<Time> {
        self.world.borrow().queue.peek().map(|Reverse(entry)| Time(entry.at))
    }

    /// Lets every poll move the world's clock to the time it is given, for users without a driver.
    pub fn self_clocked(&self) {
        self.world.borrow_mut().self_clocked = true;
    }

    /// The transport of a node's process that lives now.
    #[must_use]
    pub fn transport(&self, node: usize) -> SimTransport {
        SimTransport::new(&self.world, node)
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.world.borrow().time()
    }

    /// Calls the driver back, from [`SimFabric::step`], with this number.
    pub fn schedule(&self, at: Time, cookie: u64) {
        self.world.borrow_mut().at(at.0, Happening::Driver(cookie));
    }

    /// Lets a fault happen at a time.
    pub fn schedule_fault(&self, at: Time, fault: Fault) {
        self.world.borrow_mut().at(at.0, Happening::Fault(fault));
    }

    /// Lets a fault happen now.
    pub fn inject(&self, fault: Fault) {
        self.world.borrow_mut().fault(fault);
    }

    /// Lets the next thing happen. `None`: nothing is left. `Some(Some(n))`: the driver's call `n` is due.
    pub fn step(&self) -> Option<Option<u64>> {
        self.world.borrow_mut().step()
    }

    /// Lets everything happen up to a time, which becomes now. For users without a driver.
    pub fn run_until(&self, until: Time) {
        self.world.borrow_mut().run_until(until.0);
    }

    /// Whether something arrived at a node since this was last asked.
    #[must_use]
    pub fn take_wake(&self, node: usize) -> bool {
        std::mem::take(&mut self.world.borrow_mut().nodes[node].wake)
    }

    /// A node's process dies.
    pub fn kill(&self, node: usize) {
        self.world.borrow_mut().kill(node);
    }

    /// A node's process starts anew, with new memory; it is killed first if it still lives.
    pub fn restart(&self, node: usize) -> SimTransport {
        self.world.borrow_mut().restart(node);
        self.transport(node)
    }

    /// Which life of a node this is, and whether it lasts.
    #[must_use]
    pub fn life(&self, node: usize) -> (u64, bool) {
        let world = self.world.borrow();
        (world.nodes[node].epoch, world.nodes[node].alive)
    }

    /// Looks at or changes a node's memory, as its application would.
    pub fn memory<R>(&self, node: usize, f: impl FnOnce(&mut Arena) -> R) -> R {
        f(&mut self.world.borrow_mut().nodes[node].arena)
    }

    /// The claims on memory.
    pub fn territory<R>(&self, f: impl FnOnce(&mut Territory) -> R) -> R {
        f(&mut self.world.borrow_mut().territory)
    }

    /// The record of the run.
    pub fn trace<R>(&self, f: impl FnOnce(&mut Trace) -> R) -> R {
        f(&mut self.world.borrow_mut().trace)
    }

    /// Adds a checker's finding.
    pub fn violate(&self, checker: Checker, what: String) {
        self.world.borrow_mut().violate(checker, what);
    }

    /// What the checkers found so far.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.world.borrow().violations.clone()
    }

    /// Whether any checker found anything.
    #[must_use]
    pub fn violated(&self) -> bool {
        !self.world.borrow().violations.is_empty()
    }

    /// Ops that are not ended at their initiator, per node: for the checkers.
    #[must_use]
    pub fn ops_in_flight(&self, node: usize) -> usize {
        let world = self.world.borrow();
        let epoch = world.nodes[node].epoch;
        world.ops.iter().filter(|(_, op)| op.initiator == (node, epoch) && !op.ended).count()
    }
}

#[cfg(test)]
mod tests;
