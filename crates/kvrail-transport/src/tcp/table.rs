//! Connections by key, and timers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kvrail_core::id::{PeerId, Route};
use kvrail_core::time::Time;
use slab::Slab;

use super::conn::{Conn, ConnKey};

/// All connections. A key names one tenant of a slot, so that a stale one finds nothing.
#[derive(Default)]
pub(crate) struct Conns {
    slots: Slab<(u32, Conn)>,
    generations: u32,
}

impl Conns {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn insert(&mut self, conn: Conn) -> ConnKey {
        self.generations = self.generations.wrapping_add(1) & 0x7fff_ffff;
        let generation = self.generations;
        ConnKey { index: self.slots.insert((generation, conn)) as u32, generation }
    }

    pub(crate) fn get(&self, key: ConnKey) -> Option<&Conn> {
        let (generation, conn) = self.slots.get(key.index as usize)?;
        (*generation == key.generation).then_some(conn)
    }

    pub(crate) fn get_mut(&mut self, key: ConnKey) -> Option<&mut Conn> {
        let (generation, conn) = self.slots.get_mut(key.index as usize)?;
        (*generation == key.generation).then_some(conn)
    }

    pub(crate) fn remove(&mut self, key: ConnKey) -> Option<Conn> {
        self.get(key)?;
        Some(self.slots.remove(key.index as usize).1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConnKey, &Conn)> {
        self.slots.iter().map(|(index, (generation, conn))| {
            (ConnKey { index: index as u32, generation: *generation }, conn)
        })
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Conn> {
        self.slots.iter_mut().map(|(_, (_, conn))| conn)
    }
}

/// What is due at a point in time. Stale ones find nothing to do when they fire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Timer {
    /// A connection should stand by now.
    Greeted(ConnKey),
    /// The next attempt of a link.
    Dial { peer: usize, id: PeerId, route: Route },
    /// Writes in limbo have waited long enough.
    Limbo { peer: usize, id: PeerId },
    /// A listener that ran out of descriptors tries again.
    Listen(usize),
}

/// Timers, the next one first.
pub(crate) type Timers = BinaryHeap<Reverse<(Time, Timer)>>;
