//! What the handles of one agent share: its lanes, regions, peers and inbox.
//!
//! Locks are taken in one order: regions or peers first, then a lane's token; never two tokens at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kvrail_core::id::Incarnation;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::config::{Config, Id, Source};
use crate::graveyard::{Graveyard, Regions};
use crate::inbox::Inbox;
use crate::lane::Lane;
use crate::peer::{Absent, PeerRecord};
use crate::progress::Progress;
use crate::sleep::Sleeper;
use crate::transfer::TransferError;
use crate::watch::Watch;

/// Shared by all handles of an agent and by its progress thread.
pub(crate) struct Core {
    pub(crate) name: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) progress: Progress,
    pub(crate) spin_time: Duration,
    /// In the agent's order of preference.
    pub(crate) lanes: Vec<Lane>,
    /// Transports that were to be used where they are possible, and are not possible here; in order of preference.
    pub(crate) absent: Vec<Absent>,
    /// Who chose the transports.
    pub(crate) chosen_by: Source,
    pub(crate) regions: Mutex<Regions>,
    pub(crate) graveyard: Graveyard,
    /// By name; one entry per name, that of the last incarnation.
    pub(crate) peers: Mutex<HashMap<Arc<str>, Arc<PeerRecord>>>,
    pub(crate) inbox: Inbox,
    pub(crate) sleeper: Sleeper,
    /// Held by the caller who sleeps on the fabrics for all (inline progress).
    pub(crate) leader: Mutex<()>,
    pub(crate) leader_left: Watch,
    pub(crate) stop: AtomicBool,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agent({} {})", self.name, self.incarnation)
    }
}

impl Core {
    /// Ends the agent: cancels what is in flight, says goodbye, waits for the drain at most the close timeout.
    /// Returns the number of transfers that had not drained by then.
    pub(crate) fn shut_down(&self) -> usize {
        let deadline = self.clock.after(self.config.ms(Id::CloseTimeout));
        for lane in &self.lanes {
            let mut turn = lane.turn(self);
            if std::mem::replace(&mut turn.closed, true) {
                continue;
            }
            let now = self.clock.now();
            let state = &mut *turn;
            state.engine.close(now);
            turn.leave_to_driver();
        }
        let mut left = 0;
        for lane in &self.lanes {
            // One round in any case: the goodbye is to leave the process.
            loop {
                let mut turn = lane.turn(self);
                let now = self.clock.now();
                let moved = turn.drive(now);
                let in_flight = turn.in_flight();
                if (turn.engine.is_settled() && !moved) || now >= deadline {
                    left += in_flight;
                    turn.abandon(&TransferError::AgentClosed);
                    break;
                }
                drop(turn);
                if !moved {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        }
        self.inbox.close();
        left
    }
}

/// What handles hold. The last one ends the agent.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    pub(crate) fn start(core: Core) -> std::io::Result<Arc<Self>> {
        let core = Arc::new(core);
        let thread = match core.progress {
            Progress::Inline => None,
            Progress::Thread => {
                let core = core.clone();
                let name: String = format!("kvrail-{}", core.name).chars().take(15).collect();
                let life = move || {
                    let _guard = FailOnPanic(&core);
                    core.run();
                };
                Some(std::thread::Builder::new().name(name).spawn(life)?)
            }
        };
        Ok(Arc::new(Self { core, thread: Mutex::new(thread) }))
    }

    /// Ends the agent's work. Handles stay and answer that it is closed.
    pub(crate) fn close(&self) -> usize {
        let core = &self.core;
        let deadline = core.clock.after(core.config.ms(Id::CloseTimeout));
        // As long as peers know this agent, a word makes them give up its regions; later they would have to be cut off.
        core.bury_until(deadline, true);
        let left = core.shut_down();
        core.stop.store(true, Ordering::Release);
        core.sleeper.kick();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            // The last handle may be dropped by a waker that the progress thread runs: it ends by itself then.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
        core.bury_until(deadline, false);
        core.abandon_regions();
        left
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let left = self.close();
        if left > 0 {
            tracing::warn!(agent = %self.core.name, transfers = left, "agent ended before its transfers had drained");
        }
    }
}

/// If the progress thread panics, nobody waits for ever (KR-4).
struct FailOnPanic<'a>(&'a Core);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for lane in &self.0.lanes {
                let mut turn = lane.turn(self.0);
                turn.closed = true;
                turn.abandon(&TransferError::AgentClosed);
            }
            self.0.inbox.close();
        }
    }
}
