//! Configuration of an agent, with NIXL's field names.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::enums::ThreadSync;

/// Configuration of an agent.
#[pyclass(name = "nixlAgentConfig", module = "kvrail.nixl._bindings")]
#[derive(Clone, Debug)]
pub(crate) struct AgentConfig {
    /// Accepted for compatibility: a thread always makes progress, and callers need not poll for peers to advance.
    #[pyo3(get, set, name = "useProgThread")]
    progress_thread: bool,
    /// Whether a thread accepts other agents' metadata.
    #[pyo3(get, set, name = "useListenThread")]
    listen_thread: bool,
    /// Its port; 0 takes a free one.
    #[pyo3(get, set, name = "listenPort")]
    port: i32,
    /// Accepted for compatibility: agents may be called from any thread.
    #[pyo3(get, set, name = "syncMode")]
    sync: ThreadSync,
    /// Whether telemetry is collected when the environment does not say.
    #[pyo3(get, set, name = "captureTelemetry")]
    telemetry: bool,
    /// Accepted for compatibility: the thread sleeps until something comes.
    #[pyo3(get, set, name = "pthrDelay")]
    progress_delay_us: u64,
    /// Accepted for compatibility, as above.
    #[pyo3(get, set, name = "lthrDelay")]
    listen_delay_us: u64,
    /// How long a fetch waits for a key of etcd.
    #[pyo3(get, set, name = "etcdWatchTimeout")]
    watch_timeout: Duration,
}

#[pymethods]
impl AgentConfig {
    #[new]
    #[pyo3(signature = (
        use_prog_thread=false, use_listen_thread=false, port=i32::from(kvrail_nixl::DEFAULT_PORT), sync_mode=ThreadSync::None,
        num_workers=1, pthr_delay_us=0, lthr_delay_us=100_000, capture_telemetry=false, /
    ))]
    fn new(
        use_prog_thread: bool,
        use_listen_thread: bool,
        port: i32,
        sync_mode: ThreadSync,
        num_workers: i32,
        pthr_delay_us: u64,
        lthr_delay_us: u64,
        capture_telemetry: bool,
    ) -> Self {
        let _ = num_workers;
        Self {
            progress_thread: use_prog_thread,
            listen_thread: use_listen_thread,
            port,
            sync: sync_mode,
            telemetry: capture_telemetry,
            progress_delay_us: pthr_delay_us,
            listen_delay_us: lthr_delay_us,
            watch_timeout: Duration::from_secs(5),
        }
    }
}

impl AgentConfig {
    pub(super) fn resolve(&self) -> PyResult<kvrail_nixl::AgentConfig> {
        let port = u16::try_from(self.port).map_err(|_| {
            PyValueError::new_err(format!("listenPort is {}; ports go from 0 to 65535", self.port))
        });
        Ok(kvrail_nixl::AgentConfig {
            listen: if self.listen_thread { Some(port?) } else { None },
            capture_telemetry: self.telemetry,
            watch_timeout: self.watch_timeout,
        })
    }
}
