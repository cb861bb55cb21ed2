//! The agent, with NIXL's method names. Every call that may wait, copy or take a lock gives the GIL away.
#![allow(unsafe_code)]

use std::sync::{Arc, Weak};

use kvrail_nixl::exchange::Destination;
use kvrail_nixl::list::{MemoryKind, RegList, Strided, XferList};
use kvrail_nixl::{BackendKind, Error, Handle, Known, LOCAL_SIDE, Params, Pieces, Status};
use parking_lot::Mutex;
use pyo3::Borrowed;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use super::arrays;
use super::config::AgentConfig;
use super::enums::{Memory, Operation, Outcome};
use super::errors::{OrRaise, raised};
use super::lists::{RegDList, RemoteDList, XferDList};
use super::text::{Blob, Name};
use crate::own::Own;

/// Agents that are to be closed before the interpreter ends: what a transport does at the end of a process is not for a thread of its to race with.
static LIVE: Mutex<Vec<(u32, Weak<kvrail_nixl::Agent>)>> = Mutex::new(Vec::new());

/// Closes all agents of this process.
#[pyfunction]
pub(crate) fn close_all(py: Python<'_>) {
    py.detach(|| {
        // A child may have been forked while its parent held the lock.
        let Some(mut live) = LIVE.try_lock_for(std::time::Duration::from_secs(1)) else { return };
        let all = std::mem::take(&mut *live);
        drop(live);
        let own = all.into_iter().filter(|(process, _)| *process == crate::own::process());
        own.filter_map(|(_, agent)| agent.upgrade()).for_each(|agent| agent.close());
    });
}

/// Handles of backends: a list of them, or one.
struct Backends(Vec<Handle>);

impl<'a, 'py> FromPyObject<'a, 'py> for Backends {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(none) = object.cast::<PyList>()
            && none.is_empty()
        {
            return Ok(Self(Vec::new()));
        }
        if let Ok(one) = object.extract::<Handle>() {
            return Ok(Self(vec![one]));
        }
        let all = object.extract::<Vec<Handle>>();
        all.map(Self).map_err(|_| PyTypeError::new_err("backends are a list of handles of createBackend"))
    }
}

/// Times and sizes of a transfer.
#[pyclass(name = "nixlXferTelemetry", module = "kvrail.nixl._bindings", frozen)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct XferTelemetry {
    /// Beginning, microseconds of the monotonic clock.
    #[pyo3(get, name = "startTime")]
    started_us: u64,
    /// The call that posted, microseconds.
    #[pyo3(get, name = "postDuration")]
    post_us: u64,
    /// From the posting to the end, microseconds.
    #[pyo3(get, name = "xferDuration")]
    total_us: u64,
    /// Bytes moved.
    #[pyo3(get, name = "totalBytes")]
    bytes: u64,
    /// Descriptors moved, after merging.
    #[pyo3(get, name = "descCount")]
    descriptors: u64,
}

#[pymethods]
impl XferTelemetry {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn __repr__(&self) -> String {
        let Self { started_us, post_us, total_us, bytes, descriptors } = self;
        format!(
            "nixlXferTelemetry(startTime={started_us}, postDuration={post_us}, xferDuration={total_us}, totalBytes={bytes}, descCount={descriptors})"
        )
    }
}

/// An agent.
#[pyclass(name = "nixlAgent", module = "kvrail.nixl._bindings", frozen, weakref, subclass)]
pub(crate) struct Agent {
    agent: Own<Arc<kvrail_nixl::Agent>>,
}

impl Agent {
    /// Calls the agent without the GIL.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        body: impl FnOnce(&kvrail_nixl::Agent) -> kvrail_nixl::Result<T> + Send,
    ) -> PyResult<T> {
        let agent = self.agent.get()?;
        py.detach(|| body(agent)).or_raise(py)
    }

    /// Calls the agent with the GIL held: for what takes less time than giving it away.
    fn quick<T>(
        &self,
        py: Python<'_>,
        body: impl FnOnce(&kvrail_nixl::Agent) -> kvrail_nixl::Result<T>,
    ) -> PyResult<T> {
        body(self.agent.get()?).or_raise(py)
    }
}

/// Names of kinds of memory.
fn names(kinds: &[MemoryKind]) -> Vec<&'static str> {
    kinds.iter().map(|kind| kind.name()).collect()
}

fn destination(ip_addr: String, port: i64, label: String) -> PyResult<Destination> {
    if ip_addr.is_empty() {
        return Ok(Destination { address: None, label });
    }
    let port = u16::try_from(port)
        .map_err(|_| PyValueError::new_err(format!("port {port} is not one: they go from 0 to 65535")))?;
    Ok(Destination { address: Some((ip_addr, port)), label })
}

/// The arguments of NIXL's three forms of `prepXferDlist`.
struct Preparation<'py> {
    side: String,
    descs: Bound<'py, PyAny>,
    kind: Option<Memory>,
    backends: Vec<Handle>,
}

impl<'py> Preparation<'py> {
    fn read(args: &Bound<'py, PyTuple>, named: Option<&Bound<'py, PyDict>>) -> PyResult<Self> {
        let usage = || {
            PyTypeError::new_err(
                "prepXferDlist takes (agent_name, descs: nixlXferDList, backends=[]), (descs: nixlXferDList, backends=[]) or \
                 (agent_name, mem_type: nixl_mem_t, descs: Nx5 numpy array, backends=[])",
            )
        };
        let mut args = args.iter();
        let mut found: [Option<Bound<'py, PyAny>>; 4] = [None, None, None, None];
        for (key, value) in named.into_iter().flat_map(|named| named.iter()) {
            let slot = match key.extract::<String>()?.as_str() {
                "agent_name" => 0,
                "mem_type" => 1,
                "descs" => 2,
                "backend" | "backends" => 3,
                _ => return Err(usage()),
            };
            found[slot] = Some(value);
        }
        let mut next = args.next();
        if found[0].is_none() && next.as_ref().is_some_and(|first| !first.is_instance_of::<XferDList>()) {
            found[0] = std::mem::replace(&mut next, args.next());
        }
        if found[1].is_none() && next.as_ref().is_some_and(|one| one.is_instance_of::<Memory>()) {
            found[1] = std::mem::replace(&mut next, args.next());
        }
        for slot in [2, 3] {
            if found[slot].is_none() && next.is_some() {
                found[slot] = std::mem::replace(&mut next, args.next());
            }
        }
        if next.is_some() {
            return Err(usage());
        }
        let [side, kind, descs, backends] = found;
        Ok(Self {
            side: side.map_or(Ok(Name(LOCAL_SIDE.into())), |side| side.extract())?.0,
            descs: descs.ok_or_else(usage)?,
            kind: kind.as_ref().map(|kind| kind.extract::<Memory>()).transpose().map_err(PyErr::from)?,
            backends: backends.map_or(Ok(Backends(Vec::new())), |backends| backends.extract())?.0,
        })
    }
}

#[pymethods]
impl Agent {
    #[new]
    fn new(py: Python<'_>, name: Name, config: &AgentConfig) -> PyResult<Self> {
        let config = config.resolve()?;
        let Name(name) = name;
        if name.is_empty() {
            return Err(PyValueError::new_err("Agent needs a non-empty name"));
        }
        // As from NIXL's constructor: a value that cannot be is a ValueError, what the system or the environment refuses a RuntimeError.
        let agent =
            py.detach(|| kvrail_nixl::Agent::create(&name, &config)).map_err(|error| match error.status {
                Status::InvalidParam => PyValueError::new_err(error.to_string()),
                _ => PyRuntimeError::new_err(error.to_string()),
            })?;
        let agent = Arc::new(agent);
        let mut live = LIVE.lock();
        live.retain(|(_, agent)| agent.strong_count() > 0);
        live.push((crate::own::process(), Arc::downgrade(&agent)));
        drop(live);
        Ok(Self { agent: Own::new(agent) })
    }

    fn __repr__(&self) -> String {
        match self.agent.peek() {
            Some(agent) => format!("<nixlAgent {:?} of kvrail>", agent.name()),
            None => "<nixlAgent of another process>".into(),
        }
    }

    /// Names of the backends that can be created.
    #[pyo3(name = "getAvailPlugins")]
    fn plugins(&self) -> Vec<&'static str> {
        BackendKind::ALL.iter().map(|kind| kind.name()).collect()
    }

    /// Parameters and their defaults, and kinds of memory, of a backend that can be created.
    #[pyo3(name = "getPluginParams")]
    fn plugin_params(&self, py: Python<'_>, r#type: &str) -> PyResult<(Params, Vec<&'static str>)> {
        let kind = BackendKind::named(r#type).or_raise(py)?;
        Ok((kind.params(), names(kind.kinds())))
    }

    /// Parameters and kinds of memory of a backend that was created.
    #[pyo3(name = "getBackendParams")]
    fn backend_params(&self, py: Python<'_>, backend: Handle) -> PyResult<(Params, Vec<&'static str>)> {
        let (params, kinds) = self.quick(py, |agent| agent.backend_params(backend))?;
        Ok((params, names(kinds)))
    }

    /// Creates a backend and returns its handle.
    #[pyo3(name = "createBackend", signature = (r#type, init_params))]
    fn create_backend(&self, py: Python<'_>, r#type: &str, init_params: Params) -> PyResult<Handle> {
        self.call(py, |agent| agent.create_backend(r#type, &init_params))
    }

    /// Registers memory. The addresses are the caller's promise: they stay mapped until `deregisterMem` has returned.
    #[pyo3(name = "registerMem", signature = (descs, backends=None))]
    fn register(&self, py: Python<'_>, descs: &RegDList, backends: Option<Backends>) -> PyResult<Outcome> {
        let list: &RegList = &descs.list;
        let Backends(backends) = backends.unwrap_or(Backends(Vec::new()));
        // SAFETY: NIXL's contract, which the documentation of this method repeats, is what is asked for: who registers an address keeps the memory behind
        // it mapped until it was deregistered. Python code holds no Rust references.
        self.call(py, |agent| unsafe { agent.register(list, &backends) })?;
        Ok(Outcome::Success)
    }

    /// Ends registrations, and waits until nothing touches the memory any more.
    #[pyo3(name = "deregisterMem", signature = (descs, backends=None))]
    fn deregister(&self, py: Python<'_>, descs: &RegDList, backends: Option<Backends>) -> PyResult<Outcome> {
        let list: &RegList = &descs.list;
        let Backends(backends) = backends.unwrap_or(Backends(Vec::new()));
        self.call(py, |agent| agent.deregister(list, &backends))?;
        Ok(Outcome::Success)
    }

    /// What a backend knows of each descriptor: a dictionary, or None of what does not exist.
    #[pyo3(name = "queryMem")]
    fn query(&self, py: Python<'_>, descs: &RegDList, backend: Handle) -> PyResult<Vec<Option<Params>>> {
        let list: &RegList = &descs.list;
        self.call(py, |agent| agent.query(list, backend))
    }

    /// Connects ahead of the first transfer.
    #[pyo3(name = "makeConnection", signature = (remote_agent, backends=None))]
    fn connect(&self, py: Python<'_>, remote_agent: Name, backends: Option<Backends>) -> PyResult<Outcome> {
        let Backends(backends) = backends.unwrap_or(Backends(Vec::new()));
        self.call(py, |agent| agent.connect(&remote_agent.0, &backends))?;
        Ok(Outcome::Success)
    }

    /// Prepares descriptors, and returns the handle of the list: (agent_name, descs, backends=[]), (descs, backends=[]), or
    /// (agent_name, mem_type, Nx5 array, backends=[]).
    #[pyo3(name = "prepXferDlist", signature = (*args, **kwargs))]
    fn prepare(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Handle> {
        let Preparation { side, descs, kind, backends } = Preparation::read(args, kwargs)?;
        if let Some(kind) = kind {
            let rows = arrays::rows::<5>(&descs)?;
            let runs: Vec<Strided> = rows
                .into_iter()
                .map(|[addr, len, device, stride, count]| Strided { addr, len, device, stride, count })
                .collect();
            return self
                .call(py, |agent| agent.prepare(&side, kind.into(), Pieces::Strided(&runs), &backends));
        }
        let list = descs.cast::<XferDList>().map_err(|_| {
            PyTypeError::new_err("descs is a nixlXferDList, or a Nx5 numpy array after a mem_type")
        })?;
        let list = list.borrow();
        let list: &XferList = &list.list;
        self.call(py, |agent| agent.prepare(&side, list.kind, Pieces::Each(&list.descs), &backends))
    }

    /// Makes a transfer of chosen descriptors of two prepared lists, and returns its handle.
    #[pyo3(name = "makeXferReq", signature = (
        operation, local_side, local_indices, remote_side, remote_indices, notif_msg=Blob(Vec::new()), backend=None, skip_desc_merg=false
    ))]
    #[expect(clippy::too_many_arguments, reason = "NIXL's method has them")]
    fn make_request(
        &self,
        py: Python<'_>,
        operation: Operation,
        local_side: Handle,
        local_indices: &Bound<'_, PyAny>,
        remote_side: Handle,
        remote_indices: &Bound<'_, PyAny>,
        notif_msg: Blob,
        backend: Option<Backends>,
        skip_desc_merg: bool,
    ) -> PyResult<Handle> {
        // The planner merges what is adjacent on both sides; there is nothing to skip.
        let _ = skip_desc_merg;
        let local = arrays::indices(local_indices, "local")?;
        let remote = arrays::indices(remote_indices, "remote")?;
        let Backends(backends) = backend.unwrap_or(Backends(Vec::new()));
        let Blob(message) = notif_msg;
        self.call(py, |agent| {
            let (local, remote) = ((local_side, local.as_slice()), (remote_side, remote.as_slice()));
            agent.make_request(operation.into(), local, remote, &message, &backends)
        })
    }

    /// Makes a transfer of two lists, and returns its handle.
    #[pyo3(name = "createXferReq", signature = (operation, local_descs, remote_descs, remote_agent, notif_msg=Blob(Vec::new()), backend=None))]
    fn create_request(
        &self,
        py: Python<'_>,
        operation: Operation,
        local_descs: &XferDList,
        remote_descs: &XferDList,
        remote_agent: Name,
        notif_msg: Blob,
        backend: Option<Backends>,
    ) -> PyResult<Handle> {
        let (local, remote): (&XferList, &XferList) = (&local_descs.list, &remote_descs.list);
        let Backends(backends) = backend.unwrap_or(Backends(Vec::new()));
        let Blob(message) = notif_msg;
        self.call(py, |agent| {
            agent.create_request(operation.into(), local, remote, &remote_agent.0, &message, &backends)
        })
    }

    /// What a transfer is expected to take: (microseconds, margin in microseconds, method).
    #[pyo3(name = "estimateXferCost")]
    fn estimate(&self, py: Python<'_>, req_handle: Handle) -> PyResult<(u64, u64, i32)> {
        let cost = self.call(py, |agent| agent.estimate(req_handle))?;
        let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Ok((micros(cost.duration), micros(cost.margin), 0))
    }

    /// Posts a transfer. A message that is given replaces the transfer's own from now on.
    #[pyo3(name = "postXferReq", signature = (reqh, notif_msg=Blob(Vec::new())))]
    fn post(&self, py: Python<'_>, reqh: Handle, notif_msg: Blob) -> PyResult<Outcome> {
        // An empty message is none: the transfer keeps its own.
        let message = Some(notif_msg.0).filter(|message| !message.is_empty());
        self.call(py, |agent| agent.post(reqh, message)).map(Outcome::done)
    }

    /// How far a transfer is: success or in progress; how it ended badly is raised.
    #[pyo3(name = "getXferStatus")]
    fn status(&self, py: Python<'_>, reqh: Handle) -> PyResult<Outcome> {
        self.call(py, |agent| agent.status(reqh)).map(Outcome::done)
    }

    /// Times and sizes of a transfer.
    #[pyo3(name = "getXferTelemetry")]
    fn telemetry(&self, py: Python<'_>, reqh: Handle) -> PyResult<XferTelemetry> {
        let told = self.call(py, |agent| agent.telemetry(reqh))?;
        Ok(told.map_or_else(XferTelemetry::default, |told| XferTelemetry {
            started_us: told.timing.started_us,
            post_us: told.timing.post_us,
            total_us: told.timing.total_us,
            bytes: told.bytes,
            descriptors: told.descriptors,
        }))
    }

    /// The handle of the backend that carries a transfer.
    #[pyo3(name = "queryXferBackend")]
    fn backend_of(&self, py: Python<'_>, reqh: Handle) -> PyResult<Handle> {
        self.quick(py, |agent| agent.backend_of(reqh))
    }

    /// Releases a transfer; one that is in flight is cancelled and drained first.
    #[pyo3(name = "releaseXferReq")]
    fn release(&self, py: Python<'_>, reqh: Handle) -> PyResult<Outcome> {
        self.call(py, |agent| agent.release(reqh))?;
        Ok(Outcome::Success)
    }

    /// Releases a prepared list.
    #[pyo3(name = "releasedDlistH")]
    fn release_prepared(&self, py: Python<'_>, handle: Handle) -> PyResult<Outcome> {
        self.call(py, |agent| agent.release_prepared(handle))?;
        Ok(Outcome::Success)
    }

    /// `notif_map` with what has come since, by agent.
    #[pyo3(name = "getNotifs", signature = (notif_map, backends=None))]
    fn notifications<'py>(
        &self,
        py: Python<'py>,
        notif_map: &Bound<'py, PyDict>,
        backends: Option<Backends>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let Backends(backends) = backends.unwrap_or(Backends(Vec::new()));
        let new = self.quick(py, |agent| agent.notifications(&backends))?;
        let all = PyDict::new(py);
        for (agent, messages) in notif_map.iter() {
            all.set_item(agent, PyList::new(py, messages.try_iter()?.collect::<PyResult<Vec<_>>>()?)?)?;
        }
        for (agent, message) in new {
            let message = PyBytes::new(py, &message);
            match all.get_item(&agent)? {
                Some(messages) => messages.cast::<PyList>()?.append(message)?,
                None => all.set_item(agent, PyList::new(py, [message])?)?,
            }
        }
        Ok(all)
    }

    /// Sends a message.
    #[pyo3(name = "genNotif", signature = (remote_agent, msg, backends=None))]
    fn notify(
        &self,
        py: Python<'_>,
        remote_agent: Name,
        msg: Blob,
        backends: Option<Backends>,
    ) -> PyResult<Outcome> {
        let Backends(backends) = backends.unwrap_or(Backends(Vec::new()));
        self.call(py, |agent| agent.notify(&remote_agent.0, &msg.0, &backends))?;
        Ok(Outcome::Success)
    }

    /// This agent's metadata.
    #[pyo3(name = "getLocalMD")]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let metadata = self.call(py, |agent| agent.metadata())?;
        Ok(PyBytes::new(py, &metadata))
    }

    /// Metadata of some of what is registered.
    #[pyo3(name = "getLocalPartialMD", signature = (descs, inc_conn_info=false, backends=None))]
    fn partial_metadata<'py>(
        &self,
        py: Python<'py>,
        descs: &RegDList,
        inc_conn_info: bool,
        backends: Option<Backends>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let list: &RegList = &descs.list;
        let Backends(backends) = backends.unwrap_or(Backends(Vec::new()));
        let metadata = self.call(py, |agent| agent.partial_metadata(list, inc_conn_info, &backends))?;
        Ok(PyBytes::new(py, &metadata))
    }

    /// Imports another agent's metadata and returns its name.
    #[pyo3(name = "loadRemoteMD")]
    fn load<'py>(&self, py: Python<'py>, remote_metadata: Blob) -> PyResult<Bound<'py, PyBytes>> {
        let name = self.call(py, |agent| agent.load(&remote_metadata.0))?;
        Ok(PyBytes::new(py, name.as_bytes()))
    }

    /// Forgets another agent. What went wrong is returned, not raised, as NIXL does.
    #[pyo3(name = "invalidateRemoteMD")]
    fn forget(&self, py: Python<'_>, remote_agent: Name) -> PyResult<Outcome> {
        let agent = self.agent.get()?;
        match py.detach(|| agent.forget(&remote_agent.0)) {
            Ok(()) => Ok(Outcome::Success),
            Err(Error { status: Status::NotFound, .. }) => Ok(Outcome::NotFound),
            Err(Error { status: Status::InvalidParam, .. }) => Ok(Outcome::InvalidParam),
            Err(error) => Err(raised(py, &error)),
        }
    }

    /// Sends this agent's metadata to another agent's listener, or to the store.
    #[pyo3(name = "sendLocalMD", signature = (ip_addr=String::new(), port=0))]
    fn send_metadata(&self, py: Python<'_>, ip_addr: String, port: i64) -> PyResult<()> {
        let to = destination(ip_addr, port, String::new())?;
        self.call(py, |agent| agent.send_metadata(&to))
    }

    /// Sends metadata of some of what is registered.
    #[pyo3(name = "sendLocalPartialMD", signature = (
        descs, inc_conn_info=false, backends=None, ip_addr=String::new(), port=0, label=String::new()
    ))]
    fn send_partial_metadata(
        &self,
        py: Python<'_>,
        descs: &RegDList,
        inc_conn_info: bool,
        backends: Option<Backends>,
        ip_addr: String,
        port: i64,
        label: String,
    ) -> PyResult<()> {
        let list: &RegList = &descs.list;
        let Backends(backends) = backends.unwrap_or(Backends(Vec::new()));
        let to = destination(ip_addr, port, label)?;
        self.call(py, |agent| agent.send_partial_metadata(list, inc_conn_info, &backends, &to))
    }

    /// Asks for another agent's metadata; it is imported when it comes.
    #[pyo3(name = "fetchRemoteMD", signature = (remote_agent, ip_addr=String::new(), port=0, label=String::new()))]
    fn fetch_metadata(
        &self,
        py: Python<'_>,
        remote_agent: Name,
        ip_addr: String,
        port: i64,
        label: String,
    ) -> PyResult<()> {
        let from = destination(ip_addr, port, label)?;
        self.call(py, |agent| agent.fetch_metadata(&remote_agent.0, &from))
    }

    /// Takes this agent's metadata back from another agent, or from the store.
    #[pyo3(name = "invalidateLocalMD", signature = (ip_addr=String::new(), port=0))]
    fn invalidate_metadata(&self, py: Python<'_>, ip_addr: String, port: i64) -> PyResult<()> {
        let at = destination(ip_addr, port, String::new())?;
        self.call(py, |agent| agent.invalidate_metadata(&at))
    }

    /// Whether another agent's metadata is known and covers `descs`.
    #[pyo3(name = "checkRemoteMD")]
    fn check(&self, py: Python<'_>, remote_name: Name, descs: &XferDList) -> PyResult<Outcome> {
        let list: &XferList = &descs.list;
        let known = self.call(py, |agent| Ok(agent.knows(&remote_name.0, list)))?;
        Ok(if known == Known::Yes { Outcome::Success } else { Outcome::NotFound })
    }

    /// Views of GPU memory for kernels: kvrail's transports have none.
    #[pyo3(name = "prepMemView", signature = (dlist, backends=None))]
    fn prepare_view(
        &self,
        py: Python<'_>,
        dlist: &Bound<'_, PyAny>,
        backends: Option<Backends>,
    ) -> PyResult<Handle> {
        let _ = backends;
        if !dlist.is_instance_of::<XferDList>() && !dlist.is_instance_of::<RemoteDList>() {
            return Err(PyTypeError::new_err("dlist is a nixlXferDList or a nixlRemoteDList"));
        }
        let error =
            Error::new(Status::Backend, "no transport of kvrail has views of memory for a GPU's kernels")
                .hint("HAVE_UCX_GPU_DEVICE_API is False");
        Err(raised(py, &error))
    }

    /// Releases a view: there are none, and an unknown one is ignored as NIXL does.
    #[pyo3(name = "releaseMemView")]
    fn release_view(&self, mvh: &Bound<'_, PyAny>) {
        let _ = mvh;
    }

    /// The port of the listener; None without one. Beyond NIXL's surface.
    #[getter]
    fn listen_port(&self) -> PyResult<Option<u16>> {
        Ok(self.agent.get()?.port())
    }

    /// Which transports the network backends have, and which one reaches each peer and why. Beyond NIXL's surface.
    fn transports(&self) -> PyResult<Vec<String>> {
        let Some(network) = self.agent.get()?.network() else { return Ok(Vec::new()) };
        let mut lines: Vec<String> = network.facts().transports.iter().map(ToString::to_string).collect();
        lines.extend(
            network.peers().iter().map(|peer| format!("{}: {}", peer.name(), peer.transport_choice())),
        );
        Ok(lines)
    }
}
