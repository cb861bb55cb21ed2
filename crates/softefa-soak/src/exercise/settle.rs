//! What has to be true of an operation that ended well: its bytes are at the target, nothing around them has changed, and its
//! immediate has been received once.

use std::sync::atomic::Ordering;

use softefa_fabric::clock::now_ns;

use super::operation::Operation;
use super::worker::{Slot, Worker};
use crate::memory::GUARD_BYTES;
use crate::pattern;
use crate::plant::Plant;
use crate::schedule::Rank;

/// How much later than the model says bytes may become visible: the target's device may have to wait for a processor.
const VISIBLE_MAX_NS: u64 = 5_000_000_000;

/// An operation that ended well and is not yet known to be right.
pub(super) struct Settling {
    pub(super) operation: Operation,
    pub(super) completed_ns: u64,
}

/// What is known.
enum Settled {
    Right,
    /// Not yet known.
    Open,
    /// Never: the target is dead or deaf.
    Unknowable,
    Wrong(String),
}

impl Worker {
    /// Checks an operation that has just ended well.
    pub(super) fn settle(&mut self, settling: Settling) {
        if settling.operation.kind.is_write() {
            self.plant_in_slot(&settling.operation);
        }
        match self.judge(&settling) {
            Settled::Open => self.settling.push(settling),
            settled => self.close(&settling, settled),
        }
    }

    /// Checks again what could not be told before.
    pub(super) fn settle_more(&mut self) {
        for settling in std::mem::take(&mut self.settling) {
            match self.judge(&settling) {
                Settled::Open => self.settling.push(settling),
                settled => self.close(&settling, settled),
            }
        }
    }

    fn close(&mut self, settling: &Settling, settled: Settled) {
        let operation = &settling.operation;
        let free = match settled {
            Settled::Right => true,
            Settled::Unknowable | Settled::Open => false,
            Settled::Wrong(text) => {
                self.violate(&format!("{operation}: {text}"));
                false
            }
        };
        let Some(slot) = operation.slot else { return };
        if free {
            let at = self.memory.slot(self.rank, slot);
            self.memory.clear(operation.target, at + operation.at, operation.len);
            self.slots[operation.target.index()][slot] = Slot::Free;
            if self.plants(Plant::LateByte) && operation.len > 0 {
                self.plant = None;
                self.memory.write(operation.target, at + operation.at, &[1]);
            }
        } else {
            self.taint(operation, slot);
        }
    }

    fn judge(&mut self, settling: &Settling) -> Settled {
        let operation = &settling.operation;
        let target = self.board.cell(operation.target);
        let deaf = target.rails[operation.target_rail].overflowed.load(Ordering::Acquire);
        let killed = target.was_killed();
        if let Some(slot) = operation.slot {
            let wrong = self.look_at_slot(
                operation.target,
                slot,
                operation.number,
                operation.at,
                operation.len,
                true,
            );
            if let Err(text) = wrong {
                let visible_ns = self.schedule.network.commit_us() * 1000;
                if killed {
                    return Settled::Unknowable;
                }
                let late = now_ns() > settling.completed_ns + visible_ns + VISIBLE_MAX_NS;
                if visible_ns == 0 || late {
                    return Settled::Wrong(format!("it ended well, and {text}"));
                }
                return Settled::Open;
            }
        }
        let Some(message) = operation.message else { return Settled::Right };
        let received = self.board.cell(self.rank).messages[message].received.load(Ordering::Acquire);
        match received {
            // The receiver complains about more than one.
            1.. => Settled::Right,
            0 if killed || deaf => Settled::Unknowable,
            0 => Settled::Open,
        }
    }

    /// Whether a slot holds the pattern at its place and is zero elsewhere, with the guards. `whole`: all of the pattern, not only some
    /// bytes of it.
    fn look_at_slot(
        &mut self,
        target: Rank,
        slot: usize,
        number: u64,
        at: usize,
        len: usize,
        whole: bool,
    ) -> Result<(), String> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let bytes = self.memory.read_slot(target, self.rank, slot, &mut scratch);
        let (before, rest) = bytes.split_at(GUARD_BYTES + at);
        let (inside, behind) = rest.split_at(len);
        let wrong = if whole { pattern::wrong(inside, number) } else { pattern::foreign(inside, number) };
        let found = if let Some(place) = wrong {
            Err(format!("byte {place} at the target is {:#04x}, which was not written", inside[place]))
        } else if let Some(place) = pattern::touched(before) {
            Err(format!("byte {} before it changed at the target", before.len() - place))
        } else if let Some(place) = pattern::touched(behind) {
            Err(format!("byte {place} behind it changed at the target"))
        } else {
            Ok(())
        };
        self.scratch = scratch;
        found
    }

    /// Looks at all of this process's slots everywhere, once nothing is under way any more.
    pub(super) fn sweep(&mut self) {
        for target in Rank::all() {
            for slot in 0..self.schedule.traffic.slots {
                let (number, at, len) = match self.slots[target.index()][slot] {
                    Slot::Unused => continue,
                    Slot::Free => (0, 0, 0),
                    Slot::Busy { number, at, len } | Slot::Tainted { number, at, len } => (number, at, len),
                };
                if let Err(text) = self.look_at_slot(target, slot, number, at, len, false) {
                    let place = format!("slot {slot} at node {} process {}", target.node(), target.process());
                    self.violate(&format!("{place}, in the end: {text}"));
                }
            }
        }
    }

    fn plant_in_slot(&mut self, operation: &Operation) {
        let Some(slot) = operation.slot.filter(|_| operation.len > 0) else { return };
        let at = self.memory.slot(self.rank, slot);
        if self.plants(Plant::WrongByte) {
            self.memory.write(operation.target, at + operation.at + operation.len - 1, &[0xee]);
        } else if self.plants(Plant::StrayByte) {
            self.memory.write(operation.target, at - 1, &[1]);
        } else {
            return;
        }
        self.plant = None;
    }
}
