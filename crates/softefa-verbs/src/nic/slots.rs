//! The packet slots of this process: which are free, which are on their way, and to whom.

use std::collections::VecDeque;

use softefa_fabric::wire::{Arena, SLOTS};
use softefa_fabric::{PROCESSES_MAX, ProcessIndex};

use super::path::PathId;

/// Most slots that one path holds: 1.1 MB, more than 400 Gb/s hold in 20 µs. What is slow on one path (a delay, a low rate, a
/// peer that has stopped) leaves the others theirs.
const PER_PATH: u32 = 128;
/// Most slots that packets to one process hold, for the same reason.
const PER_PROCESS: u32 = 768;

const _: () = assert!((PER_PATH as usize) < SLOTS && (PER_PROCESS as usize) < SLOTS);

struct Flying {
    slot: u32,
    path: PathId,
    to: ProcessIndex,
}

/// The sender's book of its slots. The arena's own marks say only when the receiver has read one.
pub(super) struct Slots {
    /// Last in, first out: a slot that was used a moment ago is still in the cache.
    free: Vec<u32>,
    flying: VecDeque<Flying>,
    per_path: Vec<u32>,
    per_process: [u32; PROCESSES_MAX],
}

impl Slots {
    pub(super) fn new() -> Slots {
        Slots {
            free: (0..SLOTS as u32).rev().collect(),
            flying: VecDeque::with_capacity(SLOTS),
            per_path: Vec::new(),
            per_process: [0; PROCESSES_MAX],
        }
    }

    /// Takes a slot for a packet; `None` when the path, the peer or this process has used up what it may have.
    pub(super) fn take(&mut self, arena: Arena<'_>, path: PathId, to: ProcessIndex) -> Option<u32> {
        if self.per_path.len() <= path.0 as usize {
            self.per_path.resize(path.0 as usize + 1, 0);
        }
        if self.per_path[path.0 as usize] >= PER_PATH || self.per_process[to.get()] >= PER_PROCESS {
            return None;
        }
        let slot = self.free.pop()?;
        arena.hold(slot);
        self.per_path[path.0 as usize] += 1;
        self.per_process[to.get()] += 1;
        self.flying.push_back(Flying { slot, path, to });
        Some(slot)
    }

    /// Takes back the slot that was taken last, whose packet did not leave.
    pub(super) fn undo(&mut self, arena: Arena<'_>, slot: u32) {
        arena.release(slot);
        debug_assert!(self.flying.back().is_some_and(|last| last.slot == slot), "the last comes back first");
        if let Some(Flying { slot, path, to }) = self.flying.pop_back() {
            self.per_path[path.0 as usize] -= 1;
            self.per_process[to.get()] -= 1;
            self.free.push(slot);
        }
    }

    /// Looks which slots have been read. The oldest usually are; all are looked at only when that gives nothing.
    pub(super) fn harvest(&mut self, arena: Arena<'_>) {
        while let Some(first) = self.flying.front() {
            if arena.is_held(first.slot) {
                break;
            }
            self.return_front();
        }
    }

    /// As [`Slots::harvest`], and looks at every slot.
    pub(super) fn harvest_all(&mut self, arena: Arena<'_>) {
        for _ in 0..self.flying.len() {
            match self.flying.front() {
                Some(first) if arena.is_held(first.slot) => self.flying.rotate_left(1),
                Some(_) => self.return_front(),
                None => break,
            }
        }
    }

    fn return_front(&mut self) {
        if let Some(Flying { slot, path, to }) = self.flying.pop_front() {
            self.per_path[path.0 as usize] -= 1;
            self.per_process[to.get()] -= 1;
            self.free.push(slot);
        }
    }

    /// Takes back everything that is on its way to a process that is gone.
    pub(super) fn reclaim(&mut self, arena: Arena<'_>, from: ProcessIndex) {
        for flying in self.flying.iter().filter(|flying| flying.to == from) {
            arena.release(flying.slot);
        }
        self.harvest_all(arena);
    }

    /// The processes that hold slots: bit s for slot s of the process table.
    pub(super) fn holders(&self) -> u64 {
        let bits = self.per_process.iter().enumerate().filter(|(_, held)| **held != 0);
        bits.fold(0, |mask, (at, _)| mask | 1 << at)
    }
}

#[cfg(test)]
mod tests {
    use softefa_fabric::{Fabric, Limits, Model, NicSpec, Spec};

    use super::*;

    #[test]
    fn a_path_and_a_process_have_their_share_and_get_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let nics = vec![NicSpec { name: "a".into(), rate_bps: 1 }];
        let spec = Spec { nodes: 1, nics, seed: 0, model: Model::instant(), limits: Limits::default() };
        let fabric = Fabric::create(&dir.path().join("fabric"), &spec).unwrap();
        let arena = fabric.arena(fabric.attach(0).unwrap().process);
        let (a, b) = (ProcessIndex::new(1).unwrap(), ProcessIndex::new(2).unwrap());
        let mut slots = Slots::new();
        let taken: Vec<u32> = std::iter::from_fn(|| slots.take(arena, PathId(0), a)).collect();
        assert_eq!(taken.len(), PER_PATH as usize);
        let more = (1..20).map(|path| std::iter::from_fn(|| slots.take(arena, PathId(path), a)).count());
        assert_eq!(more.sum::<usize>(), (PER_PROCESS - PER_PATH) as usize);
        assert!(slots.take(arena, PathId(30), b).is_some(), "others have theirs");
        assert_eq!(slots.holders(), 0b110);
        for slot in &taken[5..] {
            arena.release(*slot);
        }
        slots.harvest(arena);
        assert_eq!(slots.take(arena, PathId(0), a), None, "the oldest is not read yet");
        slots.harvest_all(arena);
        assert_eq!(
            slots.take(arena, PathId(0), a),
            taken.last().copied(),
            "the last one is still in the cache"
        );
        slots.reclaim(arena, a);
        slots.reclaim(arena, b);
        assert_eq!((slots.free.len(), slots.holders()), (SLOTS, 0));
    }
}
