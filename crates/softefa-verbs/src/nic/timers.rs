//! What is to happen at a later time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use softefa_fabric::nic::Owner;
use softefa_fabric::wire::Packet;

use super::path::{PathId, Repeat};
use super::slab::{Key, Slab};

/// Something to do later.
pub(super) enum Timer {
    /// Look at a path again.
    Path(PathId),
    /// An operation's wait is over.
    Operation(Key),
    /// A lost packet is to be sent again.
    Repeat(PathId, Repeat),
    /// A lost acknowledgement is to be sent again, if the path still leads to the same process.
    Control(PathId, Owner, Packet, u32),
}

/// All timers, the next one first.
pub(super) struct Timers {
    order: BinaryHeap<Reverse<(u64, Key)>>,
    timers: Slab<Timer>,
}

impl Timers {
    pub(super) fn new() -> Timers {
        Timers { order: BinaryHeap::new(), timers: Slab::new() }
    }

    pub(super) fn at(&mut self, at_ns: u64, timer: Timer) {
        let key = self.timers.insert(timer);
        self.order.push(Reverse((at_ns, key)));
    }

    pub(super) fn next_ns(&self) -> u64 {
        self.order.peek().map_or(u64::MAX, |Reverse((at, _))| *at)
    }

    /// Takes a timer that is due.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Option<Timer> {
        if self.next_ns() > now_ns {
            return None;
        }
        let Reverse((_, key)) = self.order.pop()?;
        self.timers.remove(key)
    }

    /// Forgets everything that belongs to a process that is gone.
    pub(super) fn forget(&mut self, owner: Owner) {
        let of_owner = |timer: &Timer| matches!(timer, Timer::Control(_, it, _, _) if *it == owner);
        for key in self.timers.keys_where(of_owner) {
            self.timers.remove(key);
        }
        // Entries whose timer is gone would only wake the thread for nothing.
        let timers = &self.timers;
        self.order.retain(|Reverse((_, key))| timers.get(*key).is_some());
    }
}
