//! The agent: one process's endpoint.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use kvrail_core::engine::RailStats;
use kvrail_core::id::Incarnation;

use crate::builder::AgentBuilder;
use crate::config::Config;
use crate::core::{Core, Handle};
use crate::inbox::{NextNotification, Notification, PeerEvent, WaitNotificationError};
use crate::progress::Awaited;
use crate::stats::Latency;

/// One process's endpoint: owns rails, regions and the acquaintance with peers. Cheap to clone; all clones are the
/// same agent, usable from any thread.
///
/// It lives as long as any of its handles: clones, regions, peers, plans, transfers. [`Agent::close`] ends it
/// earlier.
#[derive(Clone)]
pub struct Agent {
    handle: Arc<Handle>,
}

/// Transfers were in flight when the agent was closed and had not drained within the close timeout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{transfers} transfers had not drained when the agent was closed; their memory is leaked, not freed")]
pub struct CloseError {
    /// How many.
    pub transfers: usize,
}

/// What an agent counted since it was built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Per transport, in order of preference.
    pub transports: Vec<TransportStats>,
    /// Peers that were imported.
    pub peers: usize,
    /// Regions that are registered.
    pub regions: usize,
    /// Notifications that wait to be read.
    pub notifications_waiting: usize,
    /// Peer events that were dropped unread.
    pub peer_events_missed: u64,
}

/// What one transport counted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TransportStats {
    /// Its name.
    pub name: &'static str,
    /// Its rails.
    pub rails: Vec<NamedRailStats>,
    /// The engine's counters: transfers, bytes, control messages.
    pub engine: kvrail_core::engine::Stats,
    /// Transfers that have not ended.
    pub transfers_in_flight: usize,
    /// How long `prepare` took.
    pub prepare: Latency,
    /// How long posting took, the caller's share.
    pub post: Latency,
    /// From posting to the end of the transfer as this agent saw it, of those that ended well.
    pub wire: Latency,
}

/// Counters of one rail.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct NamedRailStats {
    /// The rail's name.
    pub name: String,
    /// Its line rate, bits per second; 0 when unknown.
    pub rate_bps: u64,
    /// What it did.
    pub counters: RailStats,
}

impl Stats {
    /// Bytes of transfers that ended well, all transports together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.transports.iter().map(|t| t.engine.bytes_done).sum()
    }

    /// Transfers that ended well, all transports together.
    #[must_use]
    pub fn transfers(&self) -> u64 {
        self.transports.iter().map(|t| t.engine.transfers_done).sum()
    }

    /// Fabric ops that succeeded, all rails together.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.transports.iter().flat_map(|t| &t.rails).map(|rail| rail.counters.ops_done).sum()
    }
}

impl Agent {
    /// Begins an agent of that name (1 to 256 bytes). Names tell agents apart for people and for each other: two
    /// agents that meet need different ones.
    pub fn builder(name: impl Into<String>) -> AgentBuilder {
        AgentBuilder::new(name.into())
    }

    pub(crate) fn new(handle: Arc<Handle>) -> Self {
        Self { handle }
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core().name
    }

    /// Its life: random, so that a restarted process is a different agent (KR-11).
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.core().incarnation
    }

    /// The settings it runs with, and where each came from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.core().config
    }

    /// Its transports, in order of preference.
    #[must_use]
    pub fn transports(&self) -> Vec<&'static str> {
        self.core().lanes.iter().map(|lane| lane.name).collect()
    }

    /// Makes progress once. True: something happened, another call may be worth it. Needed with
    /// [`crate::Progress::Inline`] when nothing else is called; harmless otherwise.
    pub fn progress(&self) -> bool {
        let core = self.core();
        core.drive(core.clock.now())
    }

    /// The next notification, if there is one. With inline progress the rails are driven once if there is none.
    #[must_use]
    pub fn poll_notification(&self) -> Option<Notification> {
        let core = self.core();
        let waiting = core.pop_notification();
        if waiting.is_some() || core.progress == crate::Progress::Thread {
            return waiting;
        }
        core.drive(core.clock.now());
        core.pop_notification()
    }

    /// Blocks until a notification comes, at most for `timeout`.
    ///
    /// # Errors
    /// [`WaitNotificationError`].
    pub fn wait_notification(&self, timeout: Duration) -> Result<Notification, WaitNotificationError> {
        let core = self.core();
        let deadline = core.clock.after(timeout);
        core.wait_until(deadline, NextNotification(core)).unwrap_or_else(|| {
            Err(WaitNotificationError::Deadline { waited: timeout, peers: core.peers.lock().len() })
        })
    }

    /// The next notification for a task: when there is none, the task is woken by the next one, or by the end of the agent.
    /// With inline progress somebody else has to drive.
    pub fn poll_next_notification(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Notification, WaitNotificationError>> {
        let mut next = NextNotification(self.core());
        // Registered before the second look, so that what comes in between is not missed.
        let first = next.ready().or_else(|| {
            next.register(context.waker());
            next.ready()
        });
        first.map_or(Poll::Pending, Poll::Ready)
    }

    /// The next news of a peer, if there is any. News inform; the oldest are dropped when nobody reads them.
    #[must_use]
    pub fn poll_event(&self) -> Option<PeerEvent> {
        let core = self.core();
        if core.progress == crate::Progress::Inline {
            core.drive(core.clock.now());
        }
        core.inbox.pop_event()
    }

    /// What was counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let core = self.core();
        let transports = core.lanes.iter().map(|lane| {
            let turn = lane.turn(core);
            let engine = turn.engine.stats();
            let rails = turn.fabric.rails().iter().zip(&engine.rails);
            let rails = rails
                .map(|(info, counters)| NamedRailStats {
                    name: info.name.clone(),
                    rate_bps: info.rate_bps,
                    counters: *counters,
                })
                .collect();
            TransportStats {
                name: lane.name,
                rails,
                transfers_in_flight: turn.engine.active_transfers(),
                prepare: turn.prepare.clone(),
                post: turn.post.clone(),
                wire: turn.wire.clone(),
                engine,
            }
        });
        Stats {
            transports: transports.collect(),
            peers: core.peers.lock().len(),
            regions: core.regions.lock().usable().count(),
            notifications_waiting: core.inbox.len(),
            peer_events_missed: core.inbox.missed_events(),
        }
    }

    /// Ends the agent now: cancels its transfers, says goodbye to its peers, waits for the drain at most the close
    /// timeout. Its handles stay and answer that the agent is closed. Closing twice is harmless.
    ///
    /// # Errors
    /// [`CloseError`]: the agent is closed all the same.
    pub fn close(&self) -> Result<(), CloseError> {
        match self.handle.close() {
            0 => Ok(()),
            transfers => Err(CloseError { transfers }),
        }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core().fmt(f)
    }
}
