//! A [`World`] of real time and real memory: several transports of this process, polled by one thread.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use kvrail_core::time::Time;
use kvrail_core::transport::Transport;

use crate::{Limitations, NodeId, World};

/// A piece of memory that a transport is told the address of.
pub trait Memory {
    /// Address of the first byte.
    fn base(&self) -> u64;
    /// Copies in. `offset + bytes.len()` is within the memory.
    fn write(&self, offset: usize, bytes: &[u8]);
    /// Copies out. `offset + bytes.len()` is within the memory.
    fn read(&self, offset: usize, bytes: &mut [u8]);
}

/// Private memory. Atomics, because the transport (or the kernel for it) writes behind the compiler's back.
#[derive(Debug)]
pub struct PrivateMemory(Box<[AtomicU8]>);

impl PrivateMemory {
    /// `bytes` zeros.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self((0..bytes).map(|_| AtomicU8::new(0)).collect())
    }
}

impl Memory for PrivateMemory {
    fn base(&self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        for (cell, byte) in self.0[offset..offset + bytes.len()].iter().zip(bytes) {
            cell.store(*byte, Ordering::Relaxed);
        }
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) {
        let cells = &self.0[offset..offset + bytes.len()];
        for (byte, cell) in bytes.iter_mut().zip(cells) {
            *byte = cell.load(Ordering::Relaxed);
        }
    }
}

/// Makes the transport of a new node.
type Maker = Box<dyn FnMut() -> Box<dyn Transport>>;
/// Makes a node's memory.
type Allocator = Box<dyn FnMut(usize) -> Box<dyn Memory>>;

/// Nodes in one process, in real time. Memory outlives the transports: fields drop in this order.
pub struct LocalWorld {
    nodes: Vec<Option<Box<dyn Transport>>>,
    memory: Vec<(NodeId, Box<dyn Memory>)>,
    make: Maker,
    allocate: Allocator,
    origin: Instant,
    steps: u32,
    limitations: Limitations,
}

impl std::fmt::Debug for LocalWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalWorld").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

impl LocalWorld {
    /// A world whose nodes have the transports that `make` makes, and private memory.
    pub fn new(make: impl FnMut() -> Box<dyn Transport> + 'static) -> Self {
        Self {
            nodes: Vec::new(),
            memory: Vec::new(),
            make: Box::new(make),
            allocate: Box::new(|bytes| Box::new(PrivateMemory::new(bytes))),
            origin: Instant::now(),
            steps: 0,
            limitations: Limitations::default(),
        }
    }

    /// The same with memory of another kind.
    #[must_use]
    pub fn with_memory(mut self, allocate: impl FnMut(usize) -> Box<dyn Memory> + 'static) -> Self {
        self.allocate = Box::new(allocate);
        self
    }

    /// The same with other limitations.
    #[must_use]
    pub fn with_limitations(mut self, limitations: Limitations) -> Self {
        self.limitations = limitations;
        self
    }

    fn memory_at(&self, node: NodeId, base: u64) -> &dyn Memory {
        let found = self.memory.iter().find(|(owner, memory)| *owner == node && memory.base() == base);
        found.expect("the suite names memory that it allocated").1.as_ref()
    }
}

impl World for LocalWorld {
    fn add_node(&mut self) -> NodeId {
        self.nodes.push(Some((self.make)()));
        NodeId(self.nodes.len() - 1)
    }

    fn drop_node(&mut self, node: NodeId) {
        self.nodes[node.0] = None;
    }

    fn transport(&mut self, node: NodeId) -> &mut dyn Transport {
        self.nodes[node.0].as_mut().expect("the suite does not poll nodes that it dropped").as_mut()
    }

    fn alloc(&mut self, node: NodeId, bytes: usize) -> u64 {
        let memory = (self.allocate)(bytes);
        let base = memory.base();
        self.memory.push((node, memory));
        base
    }

    fn write_memory(&mut self, node: NodeId, base: u64, offset: u64, bytes: &[u8]) {
        self.memory_at(node, base).write(offset as usize, bytes);
    }

    fn read_memory(&mut self, node: NodeId, base: u64, offset: u64, bytes: &mut [u8]) {
        self.memory_at(node, base).read(offset as usize, bytes);
    }

    fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    fn step(&mut self) {
        self.steps = self.steps.wrapping_add(1);
        // Mostly a yield, so that fast fabrics stay fast; now and then a nap, so that waiting for a deadline is not
        // a busy core.
        if self.steps.is_multiple_of(64) {
            std::thread::sleep(Duration::from_micros(100));
        } else {
            std::thread::yield_now();
        }
    }

    fn limitations(&self) -> Limitations {
        self.limitations.clone()
    }
}
