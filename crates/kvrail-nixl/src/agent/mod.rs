//! Agents as NIXL knows them: backends are created on them, memory is registered by address, peers are known by name, transfers by handle.
//!
//! Handles are numbers that are never used twice in a process, so that one that was released, or is another agent's, is an error and
//! never somebody else's transfer.

mod memory;
pub(crate) mod notifications;
mod peers;
mod transfers;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::backend::{self, BackendKind, BackendSet, Params};
use crate::error::{Error, Result, Status};
use crate::exchange::{Exchange, ExchangeConfig, Host};
use crate::files::Files;
use crate::list::MemoryKind;
use crate::long::Assembly;
use crate::prepared::Prepared;
use crate::request::Request;
use crate::telemetry::Telemetry;

pub use peers::Known;
pub use transfers::{Cost, XferTelemetry};

/// Port of the listener when nothing is said.
pub const DEFAULT_PORT: u16 = 8888;
/// The name that stands for the local side of a transfer.
pub const LOCAL_SIDE: &str = "";

/// A handle: of a backend, a prepared list or a request. Never zero, never used twice.
pub type Handle = u64;

static NEXT_HANDLE: AtomicU64 = AtomicU64::new(1);

fn new_handle() -> Handle {
    NEXT_HANDLE.fetch_add(1, Ordering::Relaxed)
}

/// How an agent is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentConfig {
    /// Where a listener accepts other agents' metadata; port 0 takes a free one. None: no listener.
    pub listen: Option<u16>,
    /// Whether telemetry is collected when the environment does not say.
    pub capture_telemetry: bool,
    /// How long a fetch waits for a key of etcd.
    pub watch_timeout: Duration,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self { listen: None, capture_telemetry: false, watch_timeout: Duration::from_secs(5) }
    }
}

/// A backend that was created.
#[derive(Clone, Debug)]
struct Backend {
    kind: BackendKind,
    handle: Handle,
    params: Params,
}

/// The backends of an agent, in the order of their creation.
#[derive(Default)]
struct Backends {
    created: Vec<Backend>,
    /// Below the network backends.
    network: Option<kvrail::Agent>,
    files: Option<Arc<Files>>,
}

impl Backends {
    fn all(&self) -> BackendSet {
        self.created.iter().map(|backend| backend.kind).collect()
    }
}

/// What the exchange's threads and the agent share.
struct Inner {
    name: Arc<str>,
    backends: RwLock<Backends>,
    local: Mutex<memory::Local>,
    remotes: RwLock<HashMap<Arc<str>, Arc<peers::Remote>>>,
    prepared: RwLock<HashMap<Handle, Arc<Prepared>>>,
    requests: RwLock<HashMap<Handle, Arc<Request>>>,
    /// Notifications of this agent to itself.
    own: Mutex<VecDeque<Vec<u8>>>,
    /// Messages of peers that come in parts.
    assembly: Mutex<Assembly>,
    /// Peers that were forgotten, and may still move and say what they know this agent by.
    forgotten: Mutex<VecDeque<kvrail::Peer>>,
    telemetry: Option<Telemetry>,
}

/// An agent.
pub struct Agent {
    // Before what it works for: its threads end first. None once the agent was closed.
    exchange: RwLock<Option<Exchange>>,
    inner: Arc<Inner>,
}

impl Agent {
    /// Creates an agent without backends.
    ///
    /// # Errors
    /// [`Status::InvalidParam`] for an empty or overlong name or a telemetry setting that cannot be; another one when the listener, telemetry or the store that the
    /// environment names cannot be had.
    pub fn create(name: &str, config: &AgentConfig) -> Result<Self> {
        let limit = kvrail_core::limits::NAME_BYTES_MAX;
        if name.is_empty() || name.len() > limit {
            return Err(Error::new(
                Status::InvalidParam,
                format!("an agent's name has 1 to {limit} bytes, this one has {}", name.len()),
            ));
        }
        let inner = Arc::new(Inner {
            name: name.into(),
            backends: RwLock::default(),
            local: Mutex::default(),
            remotes: RwLock::default(),
            prepared: RwLock::default(),
            requests: RwLock::default(),
            own: Mutex::default(),
            assembly: Mutex::default(),
            forgotten: Mutex::default(),
            telemetry: Telemetry::for_agent(name, config.capture_telemetry)?,
        });
        if let Some(telemetry) = &inner.telemetry {
            let of = Arc::downgrade(&inner);
            telemetry.below(move || Some(of.upgrade()?.backends.read().network.as_ref()?.stats()));
        }
        let host: Weak<dyn Host> = Arc::<Inner>::downgrade(&inner);
        let mut exchange = ExchangeConfig::from_environment(name)
            .map_err(|error| Error { status: Status::Backend, ..error })?;
        exchange.listen = config.listen;
        exchange.watch_timeout = config.watch_timeout;
        let exchange = RwLock::new(Some(Exchange::start(host, exchange)?));
        Ok(Self { exchange, inner })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The agent below its network backends, once there is one: facts, statistics, configuration.
    #[must_use]
    pub fn network(&self) -> Option<kvrail::Agent> {
        self.inner.backends.read().network.clone()
    }

    /// Creates a backend and tells its handle.
    ///
    /// # Errors
    /// [`Status::NotFound`] for a name that there is not, [`Status::InvalidParam`] when it was created before or a parameter cannot be,
    /// [`Status::Backend`] when it is not to be had here.
    pub fn create_backend(&self, name: &str, params: &Params) -> Result<Handle> {
        let kind = BackendKind::named(name)?;
        let mut backends = self.inner.backends.write();
        if backends.all().has(kind) {
            return Err(Error::new(Status::InvalidParam, format!("backend {kind} was created before")));
        }
        match (kind, &backends.network) {
            (BackendKind::Posix, _) => {
                backends.files = Some(Arc::new(Files::create(params).map_err(Error::from)?))
            }
            (_, None) => backends.network = Some(backend::build(&self.inner.name, kind, params)?),
            (_, Some(_)) => {
                let other = backends.created.iter().find(|other| other.kind.is_network());
                if let Some(other) = other.filter(|other| other.params != *params && !params.is_empty()) {
                    tracing::warn!(
                        agent = %self.inner.name,
                        "backend {kind} shares the transports of {}, which was created first; its parameters have no effect", other.kind
                    );
                }
            }
        }
        let handle = new_handle();
        backends.created.push(Backend { kind, handle, params: params.clone() });
        Ok(handle)
    }

    /// The parameters of a backend as it runs, and the kinds of memory that it moves.
    ///
    /// # Errors
    /// [`Status::InvalidParam`] for a handle of no backend of this agent.
    pub fn backend_params(&self, handle: Handle) -> Result<(Params, &'static [MemoryKind])> {
        let backends = self.inner.backends.read();
        let backend = backends.created.iter().find(|backend| backend.handle == handle);
        let backend = backend.ok_or_else(|| unknown_backend(handle))?;
        let mut params = backend.kind.params();
        params.extend(backend.params.clone());
        Ok((params, backend.kind.kinds()))
    }

    /// Calls the exchange.
    fn exchange<T>(&self, body: impl FnOnce(&Exchange) -> Result<T>) -> Result<T> {
        match &*self.exchange.read() {
            Some(exchange) => body(exchange),
            None => Err(Error::new(Status::NotAllowed, format!("agent {} is closed", self.inner.name))),
        }
    }

    /// Ends the agent below: transfers are cancelled and drain, peers are told. What is asked of the agent afterwards is an error.
    pub fn close(&self) {
        drop(self.exchange.write().take());
        let network = self.inner.backends.read().network.clone();
        if let Some(agent) = network
            && let Err(error) = agent.close()
        {
            tracing::warn!(agent = %self.inner.name, "{error}");
        }
    }
}

#[cold]
fn unknown_backend(handle: Handle) -> Error {
    Error::new(Status::InvalidParam, format!("{handle:#x} is the handle of no backend of this agent"))
}

impl Inner {
    /// The backends of those handles.
    fn asked(&self, handles: &[Handle]) -> Result<Vec<BackendKind>> {
        if handles.is_empty() {
            return Ok(Vec::new());
        }
        let backends = self.backends.read();
        let kind = |handle: &Handle| {
            let backend = backends.created.iter().find(|backend| backend.handle == *handle);
            backend.map(|backend| backend.kind).ok_or_else(|| unknown_backend(*handle))
        };
        handles.iter().map(kind).collect()
    }

    /// The agent below.
    fn network(&self) -> Result<kvrail::Agent> {
        self.backends.read().network.clone().ok_or_else(|| {
            Error::new(
                Status::Backend,
                format!("agent {} has no backend that reaches other agents", self.name),
            )
            .hint("create backend UCX or LIBFABRIC first")
        })
    }

    fn failed(&self, error: &Error) {
        if let Some(telemetry) = &self.telemetry {
            telemetry.failed(error.status);
        }
    }

    /// Counts a call's error.
    fn counted<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| self.failed(error))
    }
}
