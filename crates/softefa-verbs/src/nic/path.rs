//! Paths: from one of this process's NICs to one NIC of a peer process.

use std::collections::VecDeque;

use softefa_fabric::NicIndex;
use softefa_fabric::nic::Owner;
use softefa_fabric::wire::Packet;

use super::faults::Block;
use super::slab::Key;

/// Which path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct PathId(pub(super) u32);

/// What names a path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct PathKey {
    pub(super) from: NicIndex,
    pub(super) to: NicIndex,
    pub(super) owner: Owner,
}

/// Something that has packets to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Job {
    /// An own operation.
    Operation(Key),
    /// The answer to a peer's read.
    Answer(Key),
}

/// A packet that was lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeat {
    pub(super) job: Job,
    /// Which packet of it.
    pub(super) index: u32,
    /// How often it was lost.
    pub(super) tries: u32,
}

/// Jobs among which the next to send is chosen at random.
pub(super) const ACTIVE_MAX: usize = 64;
/// Operations that wait for their acknowledgement. It bounds what a peer has to remember of this path.
pub(super) const IN_FLIGHT_MAX: u32 = 1024;

/// What is to go from one NIC to one other, and whether it can.
pub(super) struct Path {
    pub(super) key: PathKey,
    /// Operations that wait for others to end.
    pub(super) queue: VecDeque<Key>,
    pub(super) active: VecDeque<Job>,
    /// Operations that are active or wait for their acknowledgement.
    pub(super) in_flight: u32,
    /// Lost packets whose time has come.
    pub(super) repeats: VecDeque<Repeat>,
    /// Acknowledgements that a fault keeps back.
    pub(super) control: VecDeque<Packet>,
    /// The fault that lets nothing through, when the last packet was sent.
    pub(super) block: Option<Block>,
    /// When to try again, and how long the last wait was.
    pub(super) retry_at_ns: u64,
    pub(super) wait_ns: u64,
    /// When a timer looks at it again; 0 = there is none.
    pub(super) timer_ns: u64,
    /// It is in the list of paths that are to be looked at.
    pub(super) listed: bool,
    /// Its peer is there.
    pub(super) alive: bool,
}

impl Path {
    pub(super) fn new(key: PathKey) -> Path {
        Path {
            key,
            queue: VecDeque::new(),
            active: VecDeque::new(),
            in_flight: 0,
            repeats: VecDeque::new(),
            control: VecDeque::new(),
            block: None,
            retry_at_ns: 0,
            wait_ns: 0,
            timer_ns: 0,
            listed: false,
            alive: true,
        }
    }

    /// Whether there is something to send.
    pub(super) fn has_work(&self) -> bool {
        let next = !self.queue.is_empty() && self.in_flight < IN_FLIGHT_MAX;
        next || !self.active.is_empty() || !self.repeats.is_empty() || !self.control.is_empty()
    }
}
