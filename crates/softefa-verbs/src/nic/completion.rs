//! Completion queues.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use softefa_fabric::NicIndex;

use super::device::Device;
use super::event::Channel;
use super::pair::QueuePair;
use super::shared::Shared;
use super::types::{Completion, Limit};

/// A completion, and the queue pair whose send queue it makes room in when it is polled.
struct Entry {
    completion: Completion,
    frees: Option<Arc<QueuePair>>,
}

/// Where completions of several queue pairs are collected.
pub struct CompletionQueue {
    shared: Arc<Shared>,
    nic: NicIndex,
    capacity: usize,
    entries: Mutex<VecDeque<Entry>>,
    /// Number of entries, to be looked at without the lock.
    ready: AtomicUsize,
    armed: AtomicBool,
    /// It has overflowed or was closed: it takes no more.
    ended: AtomicBool,
    channel: Option<Arc<Channel>>,
    token: usize,
}

/// What became of a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pushed {
    Taken,
    /// There was no room: the queue has just gone into its error state.
    Overflowed,
    /// The queue takes no more.
    Ended,
}

impl CompletionQueue {
    /// A queue of `capacity` entries on `device`. An event on `channel` carries `token`.
    ///
    /// # Errors
    /// [`Limit::Beyond`] when the device has no queues of this size, [`Limit::Gone`] after a fork.
    pub fn new(
        device: &Device,
        capacity: u32,
        channel: Option<Arc<Channel>>,
        token: usize,
    ) -> Result<Arc<CompletionQueue>, Limit> {
        device.shared.check()?;
        if capacity == 0 || capacity > device.limits().completion_queue {
            return Err(Limit::Beyond);
        }
        Ok(Arc::new(CompletionQueue {
            shared: device.shared.clone(),
            nic: device.index(),
            capacity: capacity as usize,
            entries: Mutex::new(VecDeque::new()),
            ready: AtomicUsize::new(0),
            armed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            channel,
            token,
        }))
    }

    /// The oldest completion. When there is none, the calling thread moves packets for a while and looks again.
    #[must_use]
    pub fn poll(&self) -> Option<Completion> {
        if self.shared.check().is_err() {
            return None;
        }
        if let Some(completion) = self.take() {
            self.shared.found_something();
            return Some(completion);
        }
        self.shared.poll_progress();
        self.take()
    }

    fn take(&self) -> Option<Completion> {
        if self.ready.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut entries = self.lock();
        let entry = entries.pop_front()?;
        self.ready.store(entries.len(), Ordering::Release);
        drop(entries);
        if let Some(pair) = entry.frees {
            pair.free_send();
        }
        Some(entry.completion)
    }

    /// The next completion gives an event on the channel.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Ends the queue: what is in it is lost.
    pub fn close(&self) {
        self.ended.store(true, Ordering::Release);
        if self.shared.check().is_ok() {
            let lost = std::mem::take(&mut *self.lock());
            self.ready.store(0, Ordering::Release);
            drop(lost);
        }
    }

    pub(super) fn nic(&self) -> NicIndex {
        self.nic
    }

    pub(super) fn token(&self) -> usize {
        self.token
    }

    pub(super) fn belongs_to(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Adds a completion. `most` is what a fault leaves of the capacity.
    pub(super) fn push(
        &self,
        completion: Completion,
        frees: Option<Arc<QueuePair>>,
        most: Option<usize>,
    ) -> Pushed {
        if self.ended.load(Ordering::Acquire) {
            return Pushed::Ended;
        }
        let mut entries = self.lock();
        if entries.len() >= most.map_or(self.capacity, |most| most.min(self.capacity)) {
            self.ended.store(true, Ordering::Release);
            return Pushed::Overflowed;
        }
        entries.push_back(Entry { completion, frees });
        self.ready.store(entries.len(), Ordering::Release);
        drop(entries);
        if self.armed.swap(false, Ordering::SeqCst)
            && let Some(channel) = &self.channel
        {
            channel.push(self.token);
        }
        Pushed::Taken
    }

    /// Takes all completions of a queue pair out.
    pub(super) fn forget(&self, nic: NicIndex, qpn: u32) {
        let mut entries = self.lock();
        if self.nic == nic {
            entries.retain(|entry| entry.completion.qpn != qpn);
        }
        self.ready.store(entries.len(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
