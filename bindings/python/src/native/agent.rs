//! The agent: one process's endpoint.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use kvrail::{CloseError, WaitNotificationError};
use parking_lot::Mutex;
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use super::build::{self, Options};
use super::error::{Failure, closed, raised};
use super::facts;
use super::foreign::{self, name_of};
use super::inbox::{self, Notification};
use super::peer::{Peer, Server};
use super::region::{Region, RegionCell, Registry};
use super::slices::Given;
use super::transfer::{Plan, message};
use super::value::dict;
use super::wait;
use super::wake::{Subscribers, Wakeups};
use crate::own::Own;

/// One process's endpoint: owns rails, regions and the acquaintance with peers.
///
/// A context manager; usable from any thread. Settings that are not given have the defaults that
/// `config()` shows; the environment overrides them unless `ignore_environment` is set. Times are
/// in seconds.
#[pyclass(frozen, weakref, subclass, module = "kvrail")]
pub(crate) struct Agent {
    shared: Own<Arc<Shared>>,
}

struct Shared {
    agent: kvrail::Agent,
    registry: Arc<Registry>,
    closed: AtomicBool,
    /// Tasks that wait for a notification.
    subscribers: Arc<Subscribers>,
    /// Always the same, so that it is registered once.
    waker: Waker,
    inline: bool,
}

impl Shared {
    /// Ends the agent, and then what it registered: before, a peer would have to be cut off.
    fn close(&self) -> Result<(), CloseError> {
        self.closed.store(true, Ordering::Release);
        let ended = self.agent.close();
        self.registry.clear();
        ended
    }
}

/// Agents that may have to say goodbye when the interpreter ends, each with its process.
static ALIVE: Mutex<Vec<(u32, Weak<Shared>)>> = Mutex::new(Vec::new());

/// Closes every agent of this process: peers hear of the end, instead of finding out.
#[pyfunction]
pub(crate) fn close_all(py: Python<'_>) {
    let own = std::process::id();
    // In a forked child the lock may have been left locked; then there is nothing of its own to close either.
    let alive = ALIVE.try_lock().map(|mut list| std::mem::take(&mut *list)).unwrap_or_default();
    for shared in alive.into_iter().filter(|(process, _)| *process == own).filter_map(|(_, s)| s.upgrade()) {
        // Nobody is left to be told that transfers had not drained; the log has it.
        let _ = py.detach(move || shared.close());
    }
}

impl Agent {
    fn agent(&self) -> PyResult<&kvrail::Agent> {
        Ok(&self.shared.get()?.agent)
    }
}

#[pymethods]
impl Agent {
    #[new]
    #[pyo3(signature = (
        name, *, transports=None, progress=None, timeout=None, peer_timeout=None, close_timeout=None, spin=None,
        inline_bytes_max=None, stripe_bytes_min=None, inbox_messages_max=None, transfers_max=None,
        ignore_environment=false
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new(
        py: Python<'_>,
        name: String,
        transports: Option<Bound<'_, PyAny>>,
        progress: Option<String>,
        timeout: Option<f64>,
        peer_timeout: Option<f64>,
        close_timeout: Option<f64>,
        spin: Option<f64>,
        inline_bytes_max: Option<u64>,
        stripe_bytes_min: Option<u32>,
        inbox_messages_max: Option<usize>,
        transfers_max: Option<usize>,
        ignore_environment: bool,
    ) -> PyResult<Self> {
        let inline = progress.as_deref() == Some("inline");
        let options = Options {
            transports,
            progress,
            timeout,
            peer_timeout,
            close_timeout,
            spin,
            inline_bytes_max,
            stripe_bytes_min,
            inbox_messages_max,
            transfers_max,
            ignore_environment,
        };
        let agent = build::build(py, name, options)?;
        let subscribers = Arc::<Subscribers>::default();
        let waker = subscribers.waker();
        let shared = Arc::new(Shared {
            agent,
            registry: Arc::default(),
            closed: AtomicBool::new(false),
            subscribers,
            waker,
            inline,
        });
        if let Some(mut alive) = ALIVE.try_lock_for(std::time::Duration::from_secs(1)) {
            alive.retain(|(_, shared)| shared.strong_count() > 0);
            alive.push((std::process::id(), Arc::downgrade(&shared)));
        }
        Ok(Self { shared: Own::new(shared) })
    }

    /// Its name; agents that meet need different ones.
    #[getter]
    fn name(&self) -> PyResult<&str> {
        Ok(self.agent()?.name())
    }

    /// Its life: random, so that a restarted process is a different agent.
    #[getter]
    fn incarnation(&self) -> PyResult<String> {
        Ok(self.agent()?.incarnation().to_string())
    }

    /// Its transports, in order of preference.
    #[getter]
    fn transports(&self) -> PyResult<Vec<&'static str>> {
        Ok(self.agent()?.transports())
    }

    /// Registers memory with every transport.
    ///
    /// Takes NumPy arrays, torch tensors, whatever speaks DLPack, the CUDA array interface or the
    /// buffer protocol, and `kvrail.shared`. It stays registered, and is kept alive, until
    /// `Region.deregister` or the agent's end. It must be writable, and one block without gaps (in
    /// any order of dimensions).
    fn register(&self, py: Python<'_>, memory: Bound<'_, PyAny>) -> PyResult<Region> {
        let mut regions = self.register_list(py, vec![memory])?;
        regions.pop().ok_or_else(|| PyValueError::new_err("nothing to register"))
    }

    /// Registers a list at once: much cheaper than one by one, and all or nothing.
    fn register_many(&self, py: Python<'_>, memory: &Bound<'_, PyAny>) -> PyResult<Vec<Region>> {
        let list: Vec<Bound<'_, PyAny>> = memory.try_iter()?.collect::<PyResult<_>>()?;
        self.register_list(py, list)
    }

    /// What a peer imports with `connect`.
    ///
    /// This agent's addresses and its regions, or only some of them.
    #[pyo3(signature = (regions=None))]
    fn metadata<'py>(
        &self,
        py: Python<'py>,
        regions: Option<Vec<Bound<'py, Region>>>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let agent = self.agent()?;
        let bytes = match regions {
            None => py.detach(|| agent.metadata()),
            Some(regions) => {
                let cells: Vec<Arc<RegionCell>> =
                    regions.iter().map(|region| region.get().cell().cloned()).collect::<PyResult<_>>()?;
                py.detach(|| RegionCell::registered(&cells, |regions| agent.metadata_of(regions)))?
            }
        };
        Ok(PyBytes::new(py, &bytes.map_err(raised)?))
    }

    /// Listens for peers that `connect`: at "HOST:PORT", or at a port of loopback (0: any).
    ///
    /// Anyone who reaches the port may connect: choose the address accordingly.
    fn serve(&self, py: Python<'_>, address: &Bound<'_, PyAny>) -> PyResult<Server> {
        let agent = self.agent()?;
        let address = match address.extract::<u16>() {
            Ok(port) => format!("127.0.0.1:{port}"),
            Err(_) => address.extract::<String>().map_err(|_| {
                let kind = name_of(address);
                PyTypeError::new_err(format!("serve takes a port or \"HOST:PORT\", not a {kind}"))
            })?,
        };
        let server = py.detach(|| agent.serve(address.as_str()));
        server.map(Server::new).map_err(raised)
    }

    /// Connects to a peer: by its metadata, or by the "HOST:PORT" where it serves.
    ///
    /// An address is tried until somebody answers, at most for `timeout`. Metadata of a known peer
    /// adds its regions to what is known; metadata of a restarted one makes a new peer.
    #[pyo3(signature = (target, *, timeout=30.0))]
    fn connect(&self, py: Python<'_>, target: &Bound<'_, PyAny>, timeout: f64) -> PyResult<Peer> {
        let agent = self.agent()?;
        if let Ok(metadata) = target.cast::<PyBytes>() {
            let metadata = metadata.as_bytes();
            return py.detach(|| agent.connect(metadata)).map(Peer::new).map_err(raised);
        }
        let address: String = target.extract().map_err(|_| {
            let kind = name_of(target);
            PyTypeError::new_err(format!("connect takes metadata (bytes) or \"HOST:PORT\", not a {kind}"))
        })?;
        let (agent, deadline) = (agent.clone(), wait::timeout(timeout)?);
        wait::aside(py, move || agent.connect_to(&address, deadline))?.map(Peer::new).map_err(raised)
    }

    /// All peers that were imported.
    #[getter]
    fn peers(&self, py: Python<'_>) -> PyResult<Vec<Peer>> {
        let agent = self.agent()?;
        Ok(py.detach(|| agent.peers()).into_iter().map(Peer::new).collect())
    }

    /// The peer of that name that was imported last, or `KeyError`.
    fn peer(&self, py: Python<'_>, name: &str) -> PyResult<Peer> {
        let agent = self.agent()?;
        let peer = py.detach(|| agent.peer(name)).map(Peer::new);
        peer.ok_or_else(|| PyKeyError::new_err(name.to_owned()))
    }

    /// Pairs local with remote slices, one by one, of equal lengths.
    ///
    /// They are checked, coalesced and divided among rails: everything that can be decided before
    /// the first byte moves is decided here, once.
    fn prepare(
        &self,
        py: Python<'_>,
        peer: &Bound<'_, Peer>,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
    ) -> PyResult<Plan> {
        let (agent, peer) = (self.agent()?, peer.get().peer()?);
        // Its regions are gone too; that the agent is closed says more.
        if self.shared.get()?.closed.load(Ordering::Acquire) {
            return Err(closed().into());
        }
        let (local, remote) = (Given::read(local)?, Given::read(remote)?);
        let ((local, cells), (remote, meant)) = (local.local(agent.incarnation())?, remote.remote(peer)?);
        let plan = py.detach(|| -> Result<_, Failure> {
            let plan = agent.prepare(peer, local, remote)?;
            // Generations only grow, on either side: those that are current now were so when the plan bound them (KR-9).
            if let Some(cell) = cells.iter().find(|cell| !cell.is_registered()) {
                return Err(cell.gone());
            }
            match meant.iter().find(|(id, generation)| {
                peer.region(*id).is_none_or(|region| region.generation != *generation)
            }) {
                None => Ok(plan),
                Some((id, _)) => {
                    let message = format!("{} replaced {id} since its slices were taken", peer.name());
                    Err(Failure::new("PrepareError", message)
                        .hint("take the slices anew from peer.regions")
                        .fact("peer_name", peer.name())
                        .fact("region", id.0))
                }
            }
        })?;
        Ok(Plan::new(plan, cells.to_vec()))
    }

    /// Sends a message.
    ///
    /// It arrives exactly once, as a notification, independently of transfers.
    fn send(&self, py: Python<'_>, peer: &Bound<'_, Peer>, message: &Bound<'_, PyAny>) -> PyResult<()> {
        let (agent, peer) = (self.agent()?, peer.get().peer()?);
        let message = self::message(message)?;
        py.detach(|| agent.send(peer, message)).map_err(raised)
    }

    /// The next notification, if there is one.
    fn poll_notification(&self, py: Python<'_>) -> PyResult<Option<Notification>> {
        let agent = self.agent()?;
        Ok(py.detach(|| agent.poll_notification()).map(Notification::new))
    }

    /// The next notification; `WaitTimeout` when none comes in time.
    #[pyo3(signature = (timeout=30.0))]
    fn wait_notification(&self, py: Python<'_>, timeout: f64) -> PyResult<Notification> {
        let agent = self.agent()?;
        let waited = wait::timeout(timeout)?;
        let mut known = 0;
        let came = wait::until(py, waited, |slice| match agent.wait_notification(slice) {
            Err(WaitNotificationError::Deadline { peers, .. }) => {
                known = peers;
                None
            }
            result => Some(result),
        })?;
        let result = came.unwrap_or(Err(WaitNotificationError::Deadline { waited, peers: known }));
        result.map(Notification::new).map_err(raised)
    }

    /// Notifications as they come, for `for` and `async for`, until the agent is closed.
    ///
    /// With a timeout, a step that waits longer raises `WaitTimeout`.
    #[pyo3(signature = (*, timeout=None))]
    fn notifications<'py>(this: &Bound<'py, Self>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(timeout) = timeout {
            wait::timeout(timeout)?;
        }
        let class = this.py().import("kvrail._inbox")?.getattr("Notifications")?;
        class.call1((this, timeout))
    }

    /// The next notification; when there is none, `wakeups` tells of one under this number.
    fn _next_notification(
        &self,
        py: Python<'_>,
        wakeups: &Bound<'_, Wakeups>,
        number: u64,
    ) -> PyResult<Option<Notification>> {
        let shared = self.shared.get()?;
        if shared.inline {
            return Err(Failure::new("Error", "with progress=\"inline\" nobody wakes an event loop")
                .hint("make the agent with progress=\"thread\", or poll it")
                .into());
        }
        let due = wakeups.get().due()?;
        shared.subscribers.add(due, number);
        let next = py.detach(|| shared.agent.poll_next_notification(&mut Context::from_waker(&shared.waker)));
        match next {
            Poll::Pending => Ok(None),
            Poll::Ready(result) => {
                shared.subscribers.remove(due, number);
                result.map(|notification| Some(Notification::new(notification))).map_err(raised)
            }
        }
    }

    /// Nobody waits under this number any more.
    fn _unwatch(&self, wakeups: &Bound<'_, Wakeups>, number: u64) -> PyResult<()> {
        self.shared.get()?.subscribers.remove(wakeups.get().due()?, number);
        Ok(())
    }

    /// News of peers since the last call.
    ///
    /// Ready, lost, routes down and up, transfers that failed there.
    fn events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let agent = self.agent()?;
        // Only those that are there now: who reads on while more comes would never end.
        let events = py.detach(|| {
            let mut events = Vec::new();
            while events.len() < EVENTS_MAX
                && let Some(event) = agent.poll_event()
            {
                events.push(inbox::event(event));
            }
            events
        });
        events.iter().map(|event| dict(py, event)).collect()
    }

    /// Makes progress once, for agents without a progress thread. True: call again.
    fn progress(&self, py: Python<'_>) -> PyResult<bool> {
        let agent = self.agent()?;
        Ok(py.detach(|| agent.progress()))
    }

    /// What was counted: bytes, transfers, ops by rail, distributions of latencies.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let agent = self.agent()?;
        dict(py, &py.detach(|| facts::stats(&agent.stats())))
    }

    /// What it runs on: transports, rails, who chose them, and what was passed over and why.
    fn facts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let agent = self.agent()?;
        dict(py, &py.detach(|| facts::facts(&agent.facts())))
    }

    /// Every setting with its value, its unit, and where the value came from.
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dict(py, &facts::config(self.agent()?.config()))
    }

    /// Ends the agent.
    ///
    /// Cancels its transfers, tells its peers, waits for the drain. Twice is harmless.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let shared = self.shared.get()?;
        py.detach(|| shared.close()).map_err(raised)
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        match self.shared.peek() {
            Some(shared) => {
                let agent = &shared.agent;
                let over = agent.transports().join(", ");
                format!("<kvrail.Agent {} {} over {over}>", agent.name(), agent.incarnation())
            }
            None => "<kvrail.Agent of another process>".into(),
        }
    }
}

/// Most events that one call returns; more than an agent keeps.
const EVENTS_MAX: usize = 8192;

impl Agent {
    /// All or nothing.
    fn register_list(&self, py: Python<'_>, list: Vec<Bound<'_, PyAny>>) -> PyResult<Vec<Region>> {
        let agent = self.agent()?;
        let memory = list.iter().map(foreign::memory_of).collect::<PyResult<Vec<_>>>()?;
        let regions = py.detach(|| agent.register_many(memory)).map_err(raised)?;
        let sources = list.into_iter().map(Bound::unbind);
        let (registry, life) = (&self.shared.get()?.registry, agent.incarnation());
        Ok(regions
            .into_iter()
            .zip(sources)
            .map(|(region, source)| Region::new(registry, region, life, source))
            .collect())
    }
}
