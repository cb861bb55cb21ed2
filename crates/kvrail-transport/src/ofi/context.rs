//! Room under every op in flight, and what is known of it.
//!
//! A provider keeps its own words under an op until the op has ended, and gives back their address as the op's name. So
//! the room has a fixed address, is one op's alone, and outlives the endpoint; and a context that comes back is looked
//! up, never dereferenced: one that nobody gave out resolves nothing.

use std::cell::UnsafeCell;
use std::ffi::c_void;

/// What `FI_CONTEXT2` asks for: eight words, on a cache line of their own.
#[repr(C, align(64))]
struct Room(UnsafeCell<[usize; 8]>);

const ROOM_BYTES: usize = size_of::<Room>();

const _: () = assert!(ROOM_BYTES == 64, "a context is found by a shift");

// SAFETY: this process never reads or writes a room; the provider does, from the thread that owns the endpoint or from
// one of its own.
unsafe impl Sync for Room {}

/// Contexts in one piece of memory, each with an entry of the owner's while it is in use.
pub(super) struct Contexts<T> {
    rooms: Box<[Room]>,
    entries: Vec<Option<T>>,
    /// Unused ones. Last in, first out: its room is still in the cache.
    free: Vec<u32>,
}

impl<T> Contexts<T> {
    /// `count` of them, all unused.
    pub(super) fn new(count: usize) -> Self {
        Self {
            rooms: (0..count).map(|_| Room(UnsafeCell::new([0; 8]))).collect(),
            entries: (0..count).map(|_| None).collect(),
            free: (0..count as u32).rev().collect(),
        }
    }

    /// How many are unused.
    #[inline]
    pub(super) fn unused(&self) -> usize {
        self.free.len()
    }

    /// How many are in use.
    pub(super) fn in_use(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Takes one; gives the entry back when all are in use.
    #[inline]
    pub(super) fn take(&mut self, entry: T) -> Result<u32, T> {
        let Some(index) = self.free.pop() else { return Err(entry) };
        self.entries[index as usize] = Some(entry);
        Ok(index)
    }

    /// Ends the use of one; `None` when it was not in use.
    #[inline]
    pub(super) fn release(&mut self, index: u32) -> Option<T> {
        let entry = self.entries.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(entry)
    }

    /// The entry of one in use.
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize)?.as_ref()
    }

    /// The context to be given to the provider.
    #[inline]
    pub(super) fn context(&self, index: u32) -> *mut c_void {
        self.rooms[index as usize].0.get().cast()
    }

    /// Which one a context is; `None` when it is none of these.
    #[inline]
    pub(super) fn index_of(&self, context: *mut c_void) -> Option<u32> {
        let offset = context.addr().wrapping_sub(self.rooms.as_ptr().addr());
        let index = offset / ROOM_BYTES;
        (index < self.rooms.len() && offset.is_multiple_of(ROOM_BYTES)).then_some(index as u32)
    }

    /// The entries of those in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }

    /// Ends the use of all of them.
    pub(super) fn drain(&mut self) -> Vec<T> {
        let entries = self.entries.iter_mut().filter_map(Option::take).collect();
        self.free = (0..self.entries.len() as u32).rev().collect();
        entries
    }

    /// Bytes for `count` contexts.
    pub(super) const fn bytes(count: usize) -> usize {
        count * (ROOM_BYTES + size_of::<Option<T>>() + size_of::<u32>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_resolves_its_own_entry_once() {
        let mut contexts = Contexts::new(3);
        let taken: Vec<u32> = (0..3).map(|i| contexts.take(i * 10).unwrap()).collect();
        assert_eq!(contexts.take(99), Err(99), "all are in use");
        let context = contexts.context(taken[1]);
        assert_eq!(context.addr() % 64, 0);
        let index = contexts.index_of(context).unwrap();
        assert_eq!((contexts.release(index), contexts.release(index)), (Some(10), None));
        assert_eq!((contexts.unused(), contexts.in_use()), (1, 2));
    }

    #[test]
    fn what_was_never_given_out_is_nobodys() {
        let contexts: Contexts<u32> = Contexts::new(4);
        let first = contexts.context(0);
        assert_eq!(contexts.index_of(std::ptr::null_mut()), None);
        assert_eq!(contexts.index_of(first.wrapping_byte_add(8)), None);
        assert_eq!(contexts.index_of(first.wrapping_byte_add(4 * 64)), None);
        assert_eq!(contexts.index_of(first.wrapping_byte_sub(64)), None);
        assert_eq!(contexts.index_of(first.wrapping_byte_add(3 * 64)), Some(3));
    }

    #[test]
    fn draining_empties_and_reuses() {
        let mut contexts = Contexts::new(4);
        for i in 0..4 {
            contexts.take(i).unwrap();
        }
        contexts.release(2);
        assert_eq!(contexts.iter().copied().collect::<Vec<_>>(), [0, 1, 3]);
        let mut left = contexts.drain();
        left.sort_unstable();
        assert_eq!((left, contexts.unused()), (vec![0, 1, 3], 4));
    }
}
