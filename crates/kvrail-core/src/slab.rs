//! Slots with generations: a stale name finds nothing.

use alloc::vec::Vec;

use crate::id::Generation;

#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    generation: Generation,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// The name that the next `insert` will give.
    pub(crate) fn next(&self) -> (u32, Generation) {
        match self.free.last() {
            Some(&slot) => (slot, self.entries[slot as usize].generation),
            None => (self.entries.len() as u32, Generation(1)),
        }
    }

    pub(crate) fn insert(&mut self, value: T) -> (u32, Generation) {
        let name = self.next();
        match self.free.pop() {
            Some(slot) => self.entries[slot as usize].value = Some(value),
            None => self.entries.push(Entry { generation: name.1, value: Some(value) }),
        }
        name
    }

    pub(crate) fn remove(&mut self, slot: u32, generation: Generation) -> Option<T> {
        let entry = self.entries.get_mut(slot as usize).filter(|e| e.generation == generation)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.next();
        self.free.push(slot);
        Some(value)
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32, generation: Generation) -> Option<&T> {
        self.entries.get(slot as usize).filter(|e| e.generation == generation)?.value.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32, generation: Generation) -> Option<&mut T> {
        self.entries.get_mut(slot as usize).filter(|e| e.generation == generation)?.value.as_mut()
    }

    pub(crate) fn at(&self, slot: u32) -> Option<(Generation, &T)> {
        let entry = self.entries.get(slot as usize)?;
        entry.value.as_ref().map(|value| (entry.generation, value))
    }

    pub(crate) fn slots(&self) -> u32 {
        self.entries.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_name_finds_nothing() {
        let mut slab = Slab::new();
        let (slot, first) = slab.insert('a');
        assert_eq!(slab.remove(slot, first), Some('a'));
        assert_eq!(slab.remove(slot, first), None);
        let (again, second) = slab.insert('b');
        assert_eq!(again, slot);
        assert_eq!(slab.get(slot, first), None);
        assert_eq!(slab.get(slot, second), Some(&'b'));
        assert_eq!(slab.len(), 1);
    }
}
