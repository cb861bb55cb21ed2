//! What arrives without being asked for: notifications, and news of peers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use kvrail_core::error::PeerLostCause;
use kvrail_core::id::Route;
use kvrail_core::transport::OpError;
use parking_lot::Mutex;

use crate::core::Core;
use crate::progress::Awaited;
use crate::watch::Watch;

/// News of peers that are kept until they are read; the oldest goes first. They inform, nothing depends on them.
const NEWS_MAX: usize = 4096;

/// A message of a peer. When it came with a transfer, every byte of that transfer is visible here (KR-2).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Notification {
    /// Who sent it.
    pub peer_name: Arc<str>,
    /// What it said. Input from outside.
    pub message: Vec<u8>,
}

/// News of a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PeerEvent {
    /// Both agents know each other; transfers flow.
    Ready {
        /// Whom it concerns.
        peer_name: Arc<str>,
    },
    /// It is gone; transfers to and from it have ended or are about to.
    Lost {
        /// Whom it concerns.
        peer_name: Arc<str>,
        /// Why.
        cause: PeerLostCause,
    },
    /// The peer's transfer that was to bring this notification ended badly: the notification will not come, and
    /// the bytes are in an unknown state (KR-4).
    TransferFailed {
        /// Whose transfer.
        peer_name: Arc<str>,
        /// The notification that would have come.
        message: Vec<u8>,
    },
    /// A route failed; transfers go on by the others.
    RouteDown {
        /// Whom it concerns.
        peer_name: Arc<str>,
        /// The name of its local rail.
        rail: Arc<str>,
        /// Which pair of rails.
        route: Route,
        /// Why.
        error: OpError,
    },
    /// A route works again.
    RouteUp {
        /// Whom it concerns.
        peer_name: Arc<str>,
        /// The name of its local rail.
        rail: Arc<str>,
        /// Which pair of rails.
        route: Route,
    },
}

/// Why no notification was returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitNotificationError {
    /// None came in time.
    #[error("no notification came within {waited:?}; {peers} peers are connected")]
    Deadline {
        /// Time waited.
        waited: Duration,
        /// Peers that are connected.
        peers: usize,
    },
    /// The agent is closed and its inbox empty.
    #[error("the agent is closed")]
    AgentClosed,
}

impl WaitNotificationError {
    /// Whether waiting again may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Deadline { .. })
    }
}

/// Both queues.
#[derive(Debug)]
pub(crate) struct Inbox {
    notifications: Mutex<VecDeque<Notification>>,
    /// Beyond this the engines keep what comes, and hold the peers back.
    capacity: usize,
    held_back: AtomicBool,
    /// Length of `notifications`, so that an empty queue costs a poller no lock.
    waiting: AtomicUsize,
    news: Mutex<News>,
    watch: Watch,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct News {
    queue: VecDeque<PeerEvent>,
    missed: u64,
}

impl Inbox {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            notifications: Mutex::default(),
            capacity,
            held_back: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            news: Mutex::default(),
            watch: Watch::default(),
            closed: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) < self.capacity
    }

    /// Notes that an engine keeps messages that were not taken over. True: there is room now, and whoever made it
    /// may not have seen the note.
    pub(crate) fn hold_back(&self) -> bool {
        self.held_back.store(true, Ordering::SeqCst);
        self.has_room()
    }

    pub(crate) fn push(&self, peer_name: Arc<str>, message: Vec<u8>, wakers: &mut Vec<Waker>) {
        let mut queue = self.notifications.lock();
        queue.push_back(Notification { peer_name, message });
        self.waiting.store(queue.len(), Ordering::Release);
        drop(queue);
        self.watch.take(wakers);
    }

    pub(crate) fn announce(&self, event: PeerEvent) {
        let mut news = self.news.lock();
        if news.queue.len() == NEWS_MAX {
            news.queue.pop_front();
            news.missed += 1;
        }
        news.queue.push_back(event);
    }

    pub(crate) fn pop(&self) -> Option<Notification> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut queue = self.notifications.lock();
        let first = queue.pop_front();
        self.waiting.store(queue.len(), Ordering::SeqCst);
        first
    }

    /// Notifications that wait to be read.
    pub(crate) fn len(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    pub(crate) fn pop_event(&self) -> Option<PeerEvent> {
        self.news.lock().queue.pop_front()
    }

    pub(crate) fn missed_events(&self) -> u64 {
        self.news.lock().missed
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.watch.wake();
    }
}

impl Core {
    /// Takes a notification; when that made room, fetches what was held back.
    pub(crate) fn pop_notification(&self) -> Option<Notification> {
        let notification = self.inbox.pop();
        if self.inbox.held_back.load(Ordering::SeqCst)
            && self.inbox.has_room()
            && self.inbox.held_back.swap(false, Ordering::SeqCst)
        {
            for lane in &self.lanes {
                let mut turn = lane.turn(self);
                turn.settle(None);
                // The engine has room again, and peers that it refused try again.
                turn.leave_to_driver();
            }
            return notification.or_else(|| self.inbox.pop());
        }
        notification
    }
}

/// Waits for a notification, or for the end of the agent.
pub(crate) struct NextNotification<'a>(pub(crate) &'a Core);

impl Awaited for NextNotification<'_> {
    type Output = Result<Notification, WaitNotificationError>;

    fn ready(&mut self) -> Option<Self::Output> {
        match self.0.pop_notification() {
            Some(notification) => Some(Ok(notification)),
            None if self.0.inbox.closed.load(Ordering::SeqCst) => {
                Some(Err(WaitNotificationError::AgentClosed))
            }
            None => None,
        }
    }

    fn register(&mut self, waker: &Waker) {
        self.0.inbox.watch.register(waker);
    }
}
