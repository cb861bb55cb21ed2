//! Neighbours: the other agents on this host that this one knows, whether it introduced itself or they did.
//!
//! A neighbour is one life of one agent (its nonce). The engine's peers refer to neighbours; a neighbour that only
//! reaches into this agent's memory has no peer at all.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use kvrail_core::id::PeerId;
use kvrail_core::limits::PEERS_MAX;
use kvrail_core::time::Time;

use super::control::{Control, check_sealed};
use super::host::Nonce;
use super::layout::NEIGHBOURS_MAX;
use super::pace::Pace;
use super::process::Process;
use super::region::Remote;
use crate::memory::Mapping;

/// Different memories of one neighbour that may be mapped at a time.
pub(super) const MEMORIES_MAX: usize = 1 << 16;

const _: () = assert!(NEIGHBOURS_MAX >= PEERS_MAX, "every peer can be a neighbour");

/// One of a neighbour's shareable memories.
#[derive(Debug)]
pub(super) enum Memory {
    /// Asked for; ask again when this time has come.
    Wanted {
        ask_at: Time,
    },
    Mapped(Mapping),
    /// The neighbour has no such memory (any more).
    Refused,
}

/// What is known about reaching a neighbour's private memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Nothing was tried yet.
    Untried,
    /// It worked.
    Open,
    /// The kernel said no, with this errno, or the configuration did.
    Denied(i32),
}

#[derive(Debug)]
pub(super) struct Neighbour {
    pub(super) nonce: Nonce,
    /// Set once both know each other.
    pub(super) link: Option<Link>,
    /// While there is no link: when to knock again.
    pub(super) knock_at: Time,
    /// It is gone, or it refused to be known.
    pub(super) gone: bool,
    pub(super) peers: Vec<PeerId>,
    pub(super) memories: Vec<(u32, Memory)>,
    by_id: HashMap<u32, u32>,
    /// How many of its memories are asked for and not there yet.
    pub(super) wanted: usize,
    pub(super) access: Access,
    /// By direction: reads, writes.
    pub(super) pace: [Pace; 2],
    /// Visits to its regions so far: the number of the last one.
    pub(super) turn: u32,
}

/// A neighbour that can be reached.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) process: Process,
    pub(super) control: Control,
    /// This agent's number there.
    pub(super) slot: u32,
}

impl Neighbour {
    /// Where to find a memory; it is remembered as wanted when it is new. `None` at the limit.
    pub(super) fn memory(&mut self, id: u32) -> Option<usize> {
        // Regions come in runs from one memory.
        let last = self.memories.len().checked_sub(1).filter(|at| self.memories[*at].0 == id);
        if let Some(at) = last.or_else(|| self.by_id.get(&id).map(|at| *at as usize)) {
            // It had none of its regions when it was asked for last; now it has one again.
            if let (_, state @ Memory::Refused) = &mut self.memories[at] {
                *state = Memory::Wanted { ask_at: Time::ZERO };
                self.wanted += 1;
            }
            return Some(at);
        }
        if self.memories.len() >= MEMORIES_MAX {
            return None;
        }
        self.by_id.insert(id, self.memories.len() as u32);
        self.memories.push((id, Memory::Wanted { ask_at: Time::ZERO }));
        self.wanted += 1;
        Some(self.memories.len() - 1)
    }

    /// Unmaps everything; nothing refers to it any more.
    pub(super) fn forget_memories(&mut self) {
        self.memories.clear();
        self.by_id.clear();
        self.wanted = 0;
    }

    /// The neighbour's answer to a wish.
    pub(super) fn arrived(&mut self, id: u32, fd: Option<OwnedFd>) {
        let Some(at) = self.by_id.get(&id) else { return };
        let (_, memory) = &mut self.memories[*at as usize];
        if !matches!(memory, Memory::Wanted { .. }) {
            return;
        }
        let mapped = fd.and_then(|fd| {
            let len = usize::try_from(check_sealed(fd.as_fd(), 1).ok()?).ok()?;
            let mapping = Mapping::shared(fd.as_fd(), len, len >= 2 << 20).ok()?;
            // Where the owner got transparent huge pages, map them as such; elsewhere this says nothing.
            let _ = mapping.advise_huge();
            Some(mapping)
        });
        self.wanted -= 1;
        *memory = mapped.map_or(Memory::Refused, Memory::Mapped);
    }
}

/// A peer as the engine introduced it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) neighbour: u32,
    pub(super) regions: Vec<Remote>,
}

/// All neighbours, by their number here.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    slots: Vec<Option<Box<Neighbour>>>,
    by_nonce: HashMap<Nonce, u32>,
    free: Vec<u32>,
}

impl Neighbours {
    pub(super) fn find(&self, nonce: Nonce) -> Option<u32> {
        self.by_nonce.get(&nonce).copied()
    }

    /// The neighbour of that name, old or new; `None` at the limit.
    pub(super) fn find_or_insert(&mut self, nonce: Nonce) -> Option<u32> {
        if let Some(slot) = self.find(nonce) {
            return Some(slot);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < NEIGHBOURS_MAX => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        self.slots[slot as usize] = Some(Box::new(Neighbour {
            nonce,
            link: None,
            knock_at: Time::ZERO,
            gone: false,
            peers: Vec::new(),
            memories: Vec::new(),
            by_id: HashMap::new(),
            wanted: 0,
            access: Access::Untried,
            pace: [Pace::default(); 2],
            turn: 0,
        }));
        self.by_nonce.insert(nonce, slot);
        Some(slot)
    }

    #[inline]
    pub(super) fn at(&self, slot: u32) -> Option<&Neighbour> {
        self.slots.get(slot as usize)?.as_deref()
    }

    #[inline]
    pub(super) fn at_mut(&mut self, slot: u32) -> Option<&mut Neighbour> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    pub(super) fn remove(&mut self, slot: u32) {
        if let Some(neighbour) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            self.by_nonce.remove(&neighbour.nonce);
            self.free.push(slot);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Neighbour)> {
        self.slots.iter().enumerate().filter_map(|(slot, n)| Some((slot as u32, n.as_deref()?)))
    }
}
