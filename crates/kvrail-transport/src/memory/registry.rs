//! Which addresses of this process are shareable memory: every live [`super::SharedMemory`], by address.
//!
//! Registration with a transport finds by address what backs a region, so that callers hand over plain pointers
//! and need not say again where they came from.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Memory that peers can map.
#[derive(Clone, Debug)]
pub(crate) struct Backing {
    /// Unique in this process; never reused.
    pub(crate) id: u32,
    /// Address of its first byte here.
    pub(crate) base: usize,
    /// Bytes mapped.
    pub(crate) len: usize,
    /// What a peer maps.
    pub(crate) fd: Arc<OwnedFd>,
}

impl Backing {
    /// The range's offset, when it lies inside.
    pub(crate) fn offset_of(&self, base: u64, len: u64) -> Option<u64> {
        let offset = base.checked_sub(self.base as u64)?;
        let end = offset.checked_add(len)?;
        (end <= self.len as u64).then_some(offset)
    }
}

static LIVE: RwLock<BTreeMap<usize, Backing>> = RwLock::new(BTreeMap::new());
static NEXT_ID: AtomicU32 = AtomicU32::new(1);
static EPOCH: AtomicU32 = AtomicU32::new(0);

/// Changes whenever the set of live mappings does: what was looked up in the same epoch still holds.
pub(crate) fn epoch() -> u32 {
    EPOCH.load(Ordering::Acquire)
}

pub(super) fn insert(base: usize, len: usize, fd: Arc<OwnedFd>) -> u32 {
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let mut live = LIVE.write().unwrap_or_else(PoisonError::into_inner);
    live.insert(base, Backing { id, base, len, fd });
    EPOCH.fetch_add(1, Ordering::Release);
    id
}

pub(super) fn remove(base: usize) {
    let mut live = LIVE.write().unwrap_or_else(PoisonError::into_inner);
    live.remove(&base);
    EPOCH.fetch_add(1, Ordering::Release);
}

/// The mapping that holds all of `base..base + len`, if one does.
pub(crate) fn find(base: u64, len: u64) -> Option<Backing> {
    let start = usize::try_from(base).ok()?;
    let live = LIVE.read().unwrap_or_else(PoisonError::into_inner);
    let (_, backing) = live.range(..=start).next_back()?;
    backing.offset_of(base, len)?;
    Some(backing.clone())
}
