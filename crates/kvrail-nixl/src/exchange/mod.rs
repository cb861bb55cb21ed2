//! Metadata exchange: how agents that were told each other's address or name get each other's metadata.
//!
//! By address: an agent that [listens](ExchangeConfig::listen) takes metadata in, gives its own away, and forgets whoever
//! asks for that; any agent can send to it and fetch from it. By name: metadata lies in etcd under
//! `NAMESPACE/AGENT/LABEL`; whoever fetched it forgets the agent once the key is gone.
//!
//! Calls queue what they are to do and return; what fails then is logged once, and callers ask whether the metadata is there.
//! The queue is bounded in errands and bytes, every errand has a deadline, and errands for one address keep their order. Only an agent
//! that does not listen waits in [`Exchange::send`] and [`Exchange::invalidate`] until an address was told (or was not, in time): such
//! programs end right after, as they may with NIXL.
//!
//! # What is trusted
//! Whoever reaches the port, or may write below the namespace in etcd, can introduce agents and have agents forgotten: that is
//! NIXL's way. Ports belong into a network that is trusted; etcd has users and TLS. What arrives is bounded before it is kept,
//! checksummed, and never makes an agent panic.
//!
//! # Differences from NIXL
//! - Peers have names or addresses of IPv4 and IPv6, not only addresses of IPv4.
//! - A fetch works without a listener of one's own.
//! - Keys in etcd live with a lease: a killed process leaves none, and one that ends takes its keys with it. While it lives it puts
//!   them back if etcd lost them.
//! - An agent takes back what it put itself, and nothing that another one of its name put since.
//! - No deletion is missed between reading a key and watching it.

mod config;
mod context;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(not(feature = "etcd"))]
#[path = "no_etcd.rs"]
mod etcd;
pub mod frame;
mod listener;
mod peer;
mod stream;
mod worker;

use std::fmt;
use std::net::TcpListener;
use std::sync::Weak;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, Result, Status};
use worker::{Lane, Task, Worker};

pub use config::{
    Destination, ExchangeConfig, LABEL_DEFAULT, LEASE_DEFAULT, NAMESPACE_DEFAULT, StoreConfig,
    WATCH_TIMEOUT_DEFAULT,
};

/// What the exchange needs of its agent. Its threads hold it weakly: an agent ends when its last owner drops it.
pub trait Host: Send + Sync + 'static {
    /// Name of the agent.
    fn name(&self) -> &str;
    /// Its full metadata as of now.
    ///
    /// # Errors
    /// When it has no backend that peers could use.
    fn metadata(&self) -> Result<Vec<u8>>;
    /// Imports a peer's metadata, which is input from outside, and tells the peer's name.
    ///
    /// # Errors
    /// When the bytes are not metadata, or no backend is common.
    fn load(&self, metadata: &[u8]) -> Result<String>;
    /// Forgets a peer. Nothing happens when it is not known.
    fn forget(&self, name: &str);
}

/// Longest value that etcd takes, bytes: its requests have at most 1.5 MiB where it is not told otherwise.
pub const STORE_VALUE_BYTES_MAX: usize = (3 << 19) - (8 << 10);
/// Longest label and longest host name, bytes.
const TEXT_BYTES_MAX: usize = 1024;
/// How long an agent that does not listen waits for an errand of its own.
const WAIT_MAX: Duration = Duration::from_secs(12);

const _: () = assert!(
    WAIT_MAX.as_secs() > stream::EXCHANGE_MAX.as_secs(),
    "an errand that does not wait for others ends before its caller stops waiting"
);

/// An agent's metadata exchange. It ends when it is dropped: what was queued to be sent has two seconds more, connections
/// are closed, keys are taken back from the store.
pub struct Exchange {
    /// A process that was forked off has this value, and no threads.
    process: u32,
    agent: String,
    port: Option<u16>,
    has_store: bool,
    state: Mutex<State>,
}

enum State {
    /// Nothing has needed the thread yet.
    Idle(Weak<dyn Host>),
    Running(Worker),
    /// Taken away by [`Drop`].
    Ended,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agent, port, has_store, .. } = self;
        f.debug_struct("Exchange")
            .field("agent", agent)
            .field("port", port)
            .field("has_store", has_store)
            .finish_non_exhaustive()
    }
}

impl Exchange {
    /// Opens the port where one is asked for. A store that cannot be reached is no error here: that is logged.
    ///
    /// # Errors
    /// [`Status::Backend`]: the port is taken, or no thread can be had; [`Status::InvalidParam`]: the agent's name cannot be used.
    pub fn start(host: Weak<dyn Host>, config: ExchangeConfig) -> Result<Self> {
        let ExchangeConfig { agent, listen, watch_timeout, store } = config;
        if agent.len() > frame::NAME_BYTES_MAX {
            let what =
                format!("the agent's name has {} bytes; it may have {}", agent.len(), frame::NAME_BYTES_MAX);
            return Err(Error::new(Status::InvalidParam, what));
        }
        let listener = listen.map(|port| listener::open(&agent, port)).transpose()?;
        let port = listener.as_ref().and_then(|listener: &TcpListener| listener.local_addr().ok());
        let has_store = store.is_some();
        // Most agents exchange nothing this way: they have no thread.
        let state = if listener.is_none() && !has_store {
            State::Idle(host)
        } else {
            let store = store.map(|store| etcd::Store::new(store, &agent, watch_timeout));
            State::Running(Worker::start(agent.clone(), host, listener, store)?)
        };
        Ok(Self {
            process: std::process::id(),
            agent,
            port: port.map(|address| address.port()),
            has_store,
            state: Mutex::new(state),
        })
    }

    /// The port that it listens on: the one that the system chose when 0 was asked for.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether anything can be sent there or fetched from there: callers ask before they make metadata.
    ///
    /// # Errors
    /// [`Status::InvalidParam`]: no address and no store, or no such host or label; [`Status::NotAllowed`] in a process that was forked off.
    pub fn check(&self, to: &Destination) -> Result<()> {
        self.lane(to, Lane::Store).map(|_| ())
    }

    /// Sends the agent's metadata to a peer, which loads it, or puts it into the store.
    ///
    /// # Errors
    /// As [`Exchange::check`]; [`Status::InvalidParam`] when it is too long; [`Status::NotAllowed`] when the queue is full. That the peer or the
    /// store could not be reached is logged.
    pub fn send(&self, blob: Vec<u8>, to: &Destination) -> Result<()> {
        let lane = self.lane(to, Lane::Store)?;
        let (longest, hint) = match lane {
            Lane::Peer(_) => (frame::METADATA_BYTES_MAX, "register fewer, larger regions"),
            _ => (
                STORE_VALUE_BYTES_MAX,
                "etcd takes no longer values: put parts under labels of their own, or send to the peers' addresses",
            ),
        };
        if blob.len() > longest {
            let what = format!(
                "the metadata of agent {} has {} bytes; {to} takes {longest}",
                self.agent,
                blob.len()
            );
            return Err(Error::new(Status::InvalidParam, what).hint(hint));
        }
        let bytes = blob.len();
        let task = Task::Send { metadata: blob, label: label(to) };
        self.submit(lane, task, bytes)
    }

    /// Sends a part of the agent's metadata. In the store it needs a label of its own.
    ///
    /// # Errors
    /// As [`Exchange::send`]; [`Status::InvalidParam`] without a label.
    pub fn send_partial(&self, blob: Vec<u8>, to: &Destination) -> Result<()> {
        let lane = self.lane(to, Lane::Store)?;
        if lane == Lane::Store && to.label.is_empty() {
            let what = "partial metadata needs a label to be put into the store under";
            return Err(Error::new(Status::InvalidParam, what));
        }
        self.send(blob, to)
    }

    /// Fetches the metadata of agent `remote` and loads it. From the store it waits for a key that is not there yet, as long as was
    /// configured; from there on the agent is forgotten when the key goes.
    ///
    /// # Errors
    /// As [`Exchange::check`]; [`Status::NotAllowed`] when the queue is full. That the peer or the store could not be reached is logged.
    pub fn fetch(&self, remote: &str, from: &Destination) -> Result<()> {
        let lane = self.lane(from, Lane::Remote(remote.into()))?;
        if remote.len() > frame::NAME_BYTES_MAX {
            let what = format!("no agent has a name of {} bytes", remote.len());
            return Err(Error::new(Status::InvalidParam, what));
        }
        self.submit(lane, Task::Fetch { remote: remote.into(), label: label(from) }, remote.len())
    }

    /// Has a peer forget this agent, or takes all of this agent's keys out of the store, whereupon all who fetched them forget it.
    ///
    /// # Errors
    /// As [`Exchange::fetch`].
    pub fn invalidate(&self, at: &Destination) -> Result<()> {
        let lane = self.lane(at, Lane::Store)?;
        self.submit(lane, Task::Forget, 0)
    }

    /// No longer cares what becomes of an agent's keys in the store: it was forgotten by other means.
    pub fn unwatch(&self, remote: &str) {
        if self.has_store && self.is_ours().is_ok() {
            // A full queue or an exchange that ends: then the watch goes on, and forgets who is not known.
            let _ = self.submit(Lane::Remote(remote.into()), Task::Unwatch { remote: remote.into() }, 0);
        }
    }

    fn is_ours(&self) -> Result<()> {
        if self.process == std::process::id() {
            return Ok(());
        }
        let what = format!(
            "agent {} belongs to process {}; this is process {}, which was forked off",
            self.agent,
            self.process,
            std::process::id()
        );
        Err(Error::new(Status::NotAllowed, what)
            .hint("make another agent here, or fork before agents are made"))
    }

    fn lane(&self, to: &Destination, by_name: Lane) -> Result<Lane> {
        self.is_ours()?;
        let invalid = |what| Error::new(Status::InvalidParam, what);
        match &to.address {
            Some((host, _)) if host.len() > TEXT_BYTES_MAX => {
                Err(invalid(format!("no host has a name of {} bytes", host.len())))
            }
            Some((host, port)) if !host.is_empty() => Ok(Lane::Peer((host.clone(), *port))),
            _ if !self.has_store => Err(config::no_store()),
            _ if to.label.len() > TEXT_BYTES_MAX => {
                Err(invalid(format!("a label has at most {TEXT_BYTES_MAX} bytes, not {}", to.label.len())))
            }
            _ => Ok(by_name),
        }
    }

    fn submit(&self, lane: Lane, task: Task, bytes: usize) -> Result<()> {
        let waits = self.port.is_none()
            && matches!((&lane, &task), (Lane::Peer(_), Task::Send { .. } | Task::Forget));
        let ended = {
            let mut state = self.state.lock();
            if let State::Idle(host) = &*state {
                let started = Worker::start(self.agent.clone(), host.clone(), None, None)?;
                *state = State::Running(started);
            }
            let State::Running(worker) = &*state else {
                return Err(Error::new(Status::Unknown, "the metadata exchange has ended"));
            };
            worker.submit(lane, task, bytes)?
        };
        if waits && ended.recv_timeout(WAIT_MAX) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("agent {}: metadata for others is still under way after {WAIT_MAX:?}", self.agent);
        }
        Ok(())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let ours = self.is_ours().is_ok();
        // Not locked: in a process that was forked off a thread may have had the lock that is not there.
        match std::mem::replace(self.state.get_mut(), State::Ended) {
            State::Running(worker) if !ours => worker.abandon(),
            state => drop(state),
        }
    }
}

fn label(destination: &Destination) -> String {
    if destination.label.is_empty() { LABEL_DEFAULT.into() } else { destination.label.clone() }
}
