//! The end of regions: a registration that a transfer or a peer's copy still uses ends later, by itself, and its
//! memory lives until then (KR-7).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use kvrail_core::error::RemoveRegionError;
use kvrail_core::region::RegionTable;
use kvrail_core::time::Time;
use kvrail_core::transport::RegionInfo;

use crate::core::Core;
use crate::memory::Memory;
use crate::progress::Awaited;
use crate::watch::Watch;

/// Until the next attempt when a transfer of this agent holds the region.
const BUSY_PAUSE: Duration = Duration::from_millis(2);
/// The same when a peer's copy does: the transport itself has waited for it already.
const IN_USE_PAUSE: Duration = Duration::from_millis(50);

/// The agent's regions; those that are about to end keep their number until they have.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    pub(crate) table: RegionTable,
    condemned: Vec<Grave>,
}

/// A region that is about to end.
#[derive(Debug)]
struct Grave {
    info: RegionInfo,
    memory: Memory,
    /// Lanes that have let go of it, in order.
    lanes_done: usize,
    reason: RemoveRegionError,
    free: Arc<AtomicBool>,
}

impl Regions {
    /// Those that peers may use.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &RegionInfo> {
        self.table.iter().filter(|info| self.condemned.iter().all(|grave| grave.info.id != info.id))
    }
}

/// What is known of the regions that are about to end without taking a lock.
#[derive(Debug, Default)]
pub(crate) struct Graveyard {
    len: AtomicUsize,
    retry_at: AtomicU64,
    watch: Watch,
}

impl Graveyard {
    /// When another attempt is worth it; `None`: nothing waits.
    #[inline]
    pub(crate) fn due(&self) -> Option<Time> {
        (self.len.load(Ordering::Acquire) > 0).then(|| Time(self.retry_at.load(Ordering::Relaxed)))
    }

    /// A wait for a region to be free.
    pub(crate) fn until<'a>(&'a self, free: &'a AtomicBool) -> impl Awaited<Output = ()> + 'a {
        Freed { graveyard: self, free }
    }
}

impl Core {
    /// Ends a region, at once if nothing uses it; otherwise what tells when it is free.
    pub(crate) fn condemn(&self, info: RegionInfo, memory: Memory) -> Option<Arc<AtomicBool>> {
        let mut regions = self.regions.lock();
        let reason = RemoveRegionError::Busy(info.id);
        let mut grave = Grave { info, memory, lanes_done: 0, reason, free: Arc::default() };
        if self.bury_one(&mut grave) {
            regions.table.remove(info.id);
            drop(regions);
            return None;
        }
        let free = grave.free.clone();
        regions.condemned.push(grave);
        self.graveyard.len.store(regions.condemned.len(), Ordering::Release);
        self.graveyard.retry_at.store((self.clock.now() + BUSY_PAUSE).0, Ordering::Relaxed);
        drop(regions);
        // The sleeper has a timer for it now.
        self.sleeper.kick();
        Some(free)
    }

    /// Ends the regions that nothing holds any more.
    pub(crate) fn bury(&self, now: Time) {
        let mut regions = self.regions.lock();
        let mut pause = BUSY_PAUSE;
        let mut done = Vec::new();
        let waiting = std::mem::take(&mut regions.condemned);
        for mut grave in waiting {
            if self.bury_one(&mut grave) {
                regions.table.remove(grave.info.id);
                done.push(grave);
            } else {
                if !matches!(grave.reason, RemoveRegionError::Busy(_)) {
                    pause = IN_USE_PAUSE;
                }
                regions.condemned.push(grave);
            }
        }
        self.graveyard.retry_at.store((now + pause).0, Ordering::Relaxed);
        self.graveyard.len.store(regions.condemned.len(), Ordering::Release);
        drop(regions);
        if !done.is_empty() {
            done.iter().for_each(|grave| grave.free.store(true, Ordering::Release));
            self.graveyard.watch.wake();
        }
        // The memory's owners are dropped here, with no lock held: they may be anything.
    }

    /// Drives and buries until no region is left, or none but those that the agent's own transfers use (`others_only`), or
    /// the deadline has passed.
    pub(crate) fn bury_until(&self, deadline: Time, others_only: bool) {
        let holds = |grave: &Grave| !others_only || !matches!(grave.reason, RemoveRegionError::Busy(_));
        loop {
            let now = self.clock.now();
            self.bury(now);
            if now >= deadline || !self.regions.lock().condemned.iter().any(holds) {
                return;
            }
            if !self.drive(now) {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    fn bury_one(&self, grave: &mut Grave) -> bool {
        for lane in &self.lanes[grave.lanes_done..] {
            let mut turn = lane.turn(self);
            let state = &mut *turn;
            match state.engine.remove_region(&mut *state.fabric, grave.info.id) {
                Ok(()) | Err(RemoveRegionError::Unknown(_)) => grave.lanes_done += 1,
                Err(reason) => {
                    grave.reason = reason;
                    return false;
                }
            }
        }
        true
    }

    /// What holds up a region that is about to end.
    pub(crate) fn held_up_by(&self, free: &Arc<AtomicBool>) -> Option<RemoveRegionError> {
        let regions = self.regions.lock();
        let grave = regions.condemned.iter().find(|grave| Arc::ptr_eq(&grave.free, free));
        grave.map(|grave| grave.reason.clone())
    }

    /// At the end of the agent: memory that is still in use is given up, never freed (KR-7).
    pub(crate) fn abandon_regions(&self) {
        let graves = std::mem::take(&mut self.regions.lock().condemned);
        self.graveyard.len.store(0, Ordering::Release);
        for grave in graves {
            tracing::error!(
                agent = %self.name, region = %grave.info.id, bytes = grave.info.len, reason = %grave.reason,
                "memory is still in use at the end of its agent and is leaked"
            );
            std::mem::forget(grave.memory);
        }
    }
}

/// Waits until a region is free.
struct Freed<'a> {
    graveyard: &'a Graveyard,
    free: &'a AtomicBool,
}

impl Awaited for Freed<'_> {
    type Output = ();

    fn ready(&mut self) -> Option<()> {
        self.free.load(Ordering::Acquire).then_some(())
    }

    fn register(&mut self, waker: &Waker) {
        self.graveyard.watch.register(waker);
    }
}
