//! Peers, and the server at which they meet this agent.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use kvrail::rendezvous::{self, AcceptError};
use kvrail::{PeerState, WaitReadyError};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::error::{Failure, raised};
use super::region::{RemoteRegion, read_key};
use super::wait;
use crate::own::Own;

/// A remote agent in one of its lives: a restarted process is another peer.
#[pyclass(frozen, module = "kvrail")]
pub(crate) struct Peer {
    peer: Own<kvrail::Peer>,
    name: Arc<str>,
}

impl Peer {
    pub(crate) fn new(peer: kvrail::Peer) -> Self {
        let name = peer.name().into();
        Self { peer: Own::new(peer), name }
    }

    pub(crate) fn peer(&self) -> PyResult<&kvrail::Peer> {
        self.peer.get()
    }
}

#[pymethods]
impl Peer {
    /// The name that it gave itself.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// Its life.
    #[getter]
    fn incarnation(&self) -> PyResult<String> {
        Ok(self.peer()?.incarnation().to_string())
    }

    /// The transport that reaches it.
    #[getter]
    fn transport(&self) -> PyResult<&'static str> {
        Ok(self.peer()?.transport())
    }

    /// The same with what was preferred and passed over, and why.
    #[getter]
    fn transport_choice(&self) -> PyResult<String> {
        Ok(self.peer()?.transport_choice().to_string())
    }

    /// How far the acquaintance goes.
    #[getter]
    fn state(&self, py: Python<'_>) -> PyResult<&'static str> {
        let peer = self.peer()?;
        Ok(match py.detach(|| peer.state()) {
            PeerState::Connecting => "connecting",
            PeerState::Ready => "ready",
            _ => "lost",
        })
    }

    /// Waits until both agents know each other.
    ///
    /// Nobody has to: what is posted earlier begins then.
    #[pyo3(signature = (timeout=30.0))]
    fn wait_ready(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let peer = self.peer()?;
        let timeout = wait::timeout(timeout)?;
        let ready = wait::until(py, timeout, |slice| match peer.wait_ready(slice) {
            Err(WaitReadyError::Deadline { .. }) => None,
            result => Some(result),
        })?;
        match ready {
            Some(result) => result.map_err(raised),
            None => {
                let silence = py.detach(|| peer.silence());
                Err(Failure::silent_peer(peer.name(), timeout, &silence).into())
            }
        }
    }

    /// Its regions that were imported, by number.
    #[getter]
    fn regions(&self, py: Python<'_>) -> PyResult<Vec<RemoteRegion>> {
        let peer = self.peer()?;
        let regions = py.detach(|| peer.regions());
        Ok(regions.iter().map(|region| RemoteRegion::new(peer, region)).collect())
    }

    /// Its region of that number, or of that `key`, which tells tenants of one number apart.
    fn region(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<RemoteRegion> {
        let peer = self.peer()?;
        let (id, generation) = read_key(key)?;
        match py.detach(|| peer.region(id)) {
            Some(region) if generation.is_none_or(|wanted| wanted == region.generation) => {
                Ok(RemoteRegion::new(peer, &region))
            }
            found => {
                let what = if found.is_some() { "has replaced" } else { "has not named" };
                Err(Failure::new("AccessError", format!("{} {what} {id}", self.name))
                    .hint("import the peer's current metadata: it names the regions that it has registered")
                    .fact("peer_name", &*self.name)
                    .fact("region", id.0)
                    .into())
            }
        }
    }

    /// Forgets it: its transfers drain and fail, its plans become errors.
    fn disconnect(&self, py: Python<'_>) -> PyResult<()> {
        let peer = self.peer()?;
        py.detach(|| peer.disconnect());
        Ok(())
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> PyResult<bool> {
        match other.cast::<Self>() {
            Ok(other) => Ok(self.peer()? == other.get().peer()?),
            Err(_) => Ok(false),
        }
    }

    fn __hash__(&self) -> PyResult<u64> {
        let mut hasher = DefaultHasher::new();
        self.peer()?.incarnation().hash(&mut hasher);
        Ok(hasher.finish())
    }

    fn __repr__(&self) -> String {
        match self.peer.peek() {
            Some(peer) => {
                format!("<kvrail.Peer {} {} over {}>", self.name, peer.incarnation(), peer.transport())
            }
            None => format!("<kvrail.Peer {} of another process>", self.name),
        }
    }
}

/// Where peers meet an agent, until it is closed.
///
/// Peers that came stay connected. A context manager.
#[pyclass(frozen, module = "kvrail")]
pub(crate) struct Server {
    server: Own<Mutex<Option<Arc<rendezvous::Server>>>>,
    host: String,
    port: u16,
}

impl Server {
    pub(crate) fn new(server: rendezvous::Server) -> Self {
        let address = server.local_addr();
        let server = Own::new(Mutex::new(Some(Arc::new(server))));
        Self { server, host: address.ip().to_string(), port: address.port() }
    }
}

#[pymethods]
impl Server {
    /// Where it listens.
    #[getter]
    fn host(&self) -> &str {
        &self.host
    }

    /// The port; the one that the system chose when 0 was asked for.
    #[getter]
    fn port(&self) -> u16 {
        self.port
    }

    /// Both, as `Agent.connect` takes it.
    #[getter]
    fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The next peer that came; `WaitTimeout` when none comes in time.
    #[pyo3(signature = (timeout=30.0))]
    fn accept(&self, py: Python<'_>, timeout: f64) -> PyResult<Peer> {
        let timeout = wait::timeout(timeout)?;
        let server = self.server.get()?.lock().clone();
        let Some(server) = server else { return Err(Failure::new("Closed", "the server is closed").into()) };
        let mut seen = 0;
        let came = wait::until(py, timeout, |slice| match server.accept(slice) {
            Err(AcceptError::Deadline { failed, .. }) => {
                seen = failed;
                None
            }
            result => Some(result),
        })?;
        match came {
            Some(result) => result.map(Peer::new).map_err(raised),
            None => {
                let address = server.local_addr();
                Err(raised(AcceptError::Deadline { address, waited: timeout, failed: seen }))
            }
        }
    }

    /// Stops listening.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let server = self.server.get()?;
        py.detach(|| drop(server.lock().take()));
        Ok(())
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        format!("<kvrail.Server at {}>", self.address())
    }
}
