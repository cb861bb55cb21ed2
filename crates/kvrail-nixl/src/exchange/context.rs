//! What every errand and every connection of an exchange shares: the agent, room for long metadata, and what was complained about.

use std::cell::Cell;
use std::fmt;
use std::sync::Weak;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Host;
use super::stream::Room;
use crate::error::{Error, Result, Status};

/// How long an agent may take to come into being after its exchange.
const HOST_MAX: Duration = Duration::from_secs(1);
const HOST_POLL: Duration = Duration::from_millis(5);

/// At most so many lines of log in [`QUIET`]: a port that strangers play with does not fill a disk.
const COMPLAINTS_MAX: u32 = 20;
const QUIET: Duration = Duration::from_secs(60);

thread_local! {
    /// Whether this thread belongs to an exchange: it cannot wait for itself to end.
    static OWN: Cell<bool> = const { Cell::new(false) };
}

/// Marks the calling thread as one of an exchange's.
pub(super) fn mark_thread() {
    OWN.set(true);
}

/// Whether the calling thread is one of an exchange's.
pub(super) fn is_own_thread() -> bool {
    OWN.get()
}

pub(super) struct Context {
    pub(super) agent: String,
    pub(super) room: Room,
    host: Weak<dyn Host>,
    stopping: watch::Receiver<bool>,
    complaints: Mutex<Complaints>,
}

struct Complaints {
    since: Instant,
    count: u32,
}

impl Context {
    pub(super) fn new(agent: String, host: Weak<dyn Host>, stopping: watch::Receiver<bool>) -> Self {
        let complaints = Mutex::new(Complaints { since: Instant::now(), count: 0 });
        Self { agent, room: Room::new(), host, stopping, complaints }
    }

    /// Comes back once the exchange is to end.
    pub(super) async fn stopped(&self) {
        // The sender is dropped last of all: an error means the same.
        let _ = self.stopping.clone().wait_for(|&stopping| stopping).await;
    }

    /// Asks the agent for something that may take its time: on a thread where nothing else waits for it.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&dyn Host) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let ending = || Error::new(Status::NotAllowed, format!("agent {} is ending", self.agent));
        let began = Instant::now();
        // An agent that is being made is not there yet although its port is open.
        let host = loop {
            match self.host.upgrade() {
                Some(host) => break host,
                None if *self.stopping.borrow() || began.elapsed() > HOST_MAX => return Err(ending()),
                None => tokio::time::sleep(HOST_POLL).await,
            }
        };
        let asked = tokio::task::spawn_blocking(move || {
            mark_thread();
            what(&*host)
        });
        asked.await.unwrap_or_else(|error| {
            Err(Error::new(Status::Unknown, format!("agent {}: {error}", self.agent)))
        })
    }

    /// Has the agent forget a peer.
    pub(super) async fn forget(&self, name: String) -> Result<()> {
        let forget = move |host: &dyn Host| {
            host.forget(&name);
            Ok(())
        };
        self.ask(forget).await
    }

    /// Says what went wrong where it is decided; beyond a number of lines per minute only that there were more.
    pub(super) fn complain(&self, what: fmt::Arguments<'_>) {
        let mut complaints = self.complaints.lock();
        if complaints.since.elapsed() > QUIET {
            if complaints.count > COMPLAINTS_MAX {
                let more = complaints.count - COMPLAINTS_MAX;
                tracing::warn!("agent {}: {more} more troubles of the metadata exchange", self.agent);
            }
            *complaints = Complaints { since: Instant::now(), count: 0 };
        }
        complaints.count = complaints.count.saturating_add(1);
        if complaints.count <= COMPLAINTS_MAX {
            tracing::warn!("agent {}: {what}", self.agent);
        }
    }
}
