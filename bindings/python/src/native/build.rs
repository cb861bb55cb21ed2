//! Building an agent from Python's keyword arguments.

use std::time::Duration;

use kvrail::ofi::{Affinity, Provider};
use kvrail::{Agent, Progress, TransportConfig};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::error::{Failure, raised};
use super::foreign::name_of;
use super::wait;

/// What `kvrail.Agent(…)` takes beside the name.
#[derive(Default)]
pub(crate) struct Options<'py> {
    pub(crate) transports: Option<Bound<'py, PyAny>>,
    pub(crate) progress: Option<String>,
    pub(crate) timeout: Option<f64>,
    pub(crate) peer_timeout: Option<f64>,
    pub(crate) close_timeout: Option<f64>,
    pub(crate) spin: Option<f64>,
    pub(crate) inline_bytes_max: Option<u64>,
    pub(crate) stripe_bytes_min: Option<u32>,
    pub(crate) inbox_messages_max: Option<usize>,
    pub(crate) transfers_max: Option<usize>,
    pub(crate) ignore_environment: bool,
}

/// The agent, opened without the GIL.
pub(crate) fn build(py: Python<'_>, name: String, options: Options<'_>) -> PyResult<Agent> {
    let mut builder = Agent::builder(name);
    if let Some(transports) = &options.transports {
        if transports.is_instance_of::<PyString>() {
            return Err(PyTypeError::new_err("transports is a list: [\"shm\", \"tcp\"]"));
        }
        let list: Vec<TransportConfig> =
            transports.try_iter()?.map(|transport| read(&transport?)).collect::<PyResult<_>>()?;
        builder = builder.transports(list);
    }
    builder = builder.progress(match options.progress.as_deref() {
        None | Some("thread") => Progress::Thread,
        Some("inline") => Progress::Inline,
        Some(other) => {
            let message = format!("progress is \"thread\" or \"inline\", not \"{other}\"");
            return Err(PyValueError::new_err(message));
        }
    });
    let seconds = |value: Option<f64>| -> PyResult<Option<Duration>> { value.map(wait::timeout).transpose() };
    if let Some(timeout) = seconds(options.timeout)? {
        builder = builder.timeout(timeout);
    }
    if let Some(timeout) = seconds(options.peer_timeout)? {
        builder = builder.peer_timeout(timeout);
    }
    if let Some(timeout) = seconds(options.close_timeout)? {
        builder = builder.close_timeout(timeout);
    }
    if let Some(spin) = seconds(options.spin)? {
        builder = builder.spin(spin);
    }
    if let Some(bytes) = options.inline_bytes_max {
        builder = builder.inline_bytes_max(bytes);
    }
    if let Some(bytes) = options.stripe_bytes_min {
        builder = builder.stripe_bytes_min(bytes);
    }
    if let Some(messages) = options.inbox_messages_max {
        builder = builder.inbox_messages_max(messages);
    }
    if let Some(transfers) = options.transfers_max {
        builder = builder.transfers_max(transfers);
    }
    if options.ignore_environment {
        builder = builder.ignore_environment();
    }
    py.detach(|| builder.build()).map_err(raised)
}

/// A transport: a name with an optional detail, or one of `kvrail.Shm`, `kvrail.Tcp`, `kvrail.Ofi`.
fn read(transport: &Bound<'_, PyAny>) -> PyResult<TransportConfig> {
    if let Ok(text) = transport.extract::<String>() {
        return named(&text);
    }
    let kind = transport.getattr_opt("kind")?.and_then(|kind| kind.extract::<String>().ok());
    let config = match kind.as_deref() {
        Some("shm") => TransportConfig::shm().cooperate(transport.getattr("cooperate")?.extract()?),
        Some("tcp") => {
            let config = TransportConfig::tcp(transport.getattr("listen")?.extract::<String>()?);
            match transport.getattr("connections")?.extract::<Option<u16>>()? {
                Some(connections) => config.connections(connections),
                None => config,
            }
        }
        Some("ofi") => ofi(transport)?,
        _ => {
            let message = format!(
                "a transport is \"shm\", \"tcp\", \"ofi\" or kvrail.Shm, .Tcp, .Ofi, not a {}",
                name_of(transport)
            );
            return Err(PyTypeError::new_err(message));
        }
    };
    match transport.getattr("if_possible")?.extract()? {
        true => Ok(config.if_possible()),
        false => Ok(config),
    }
}

/// `shm`, `tcp`, `tcp:HOST:PORT`, `ofi`, `ofi:PROVIDER`.
fn named(text: &str) -> PyResult<TransportConfig> {
    let (name, detail) = match text.split_once(':') {
        Some((name, detail)) => (name, Some(detail)),
        None => (text, None),
    };
    match (name, detail) {
        ("shm", None) => Ok(TransportConfig::shm()),
        ("tcp", None) => Ok(TransportConfig::tcp("127.0.0.1:0")),
        ("tcp", Some(listen)) => Ok(TransportConfig::tcp(listen)),
        ("ofi", None) => Ok(TransportConfig::ofi()),
        ("ofi", Some(name)) => Ok(TransportConfig::ofi().provider(provider(name)?)),
        _ => Err(Failure::new("BuildError", format!("transport \"{text}\" is unknown"))
            .hint("write \"shm\", \"tcp\", \"tcp:HOST:PORT\", \"ofi\" or \"ofi:PROVIDER\"")
            .into()),
    }
}

fn provider(name: &str) -> PyResult<Provider> {
    name.parse().map_err(|error| PyErr::from(Failure::new("BuildError", format!("{error}"))))
}

fn ofi(transport: &Bound<'_, PyAny>) -> PyResult<TransportConfig> {
    let mut config = TransportConfig::ofi();
    if let Some(name) = transport.getattr("provider")?.extract::<Option<String>>()? {
        config = config.provider(provider(&name)?);
    }
    if let Some(devices) = transport.getattr("devices")?.extract::<Option<Vec<String>>>()? {
        config = config.devices(devices);
    }
    if let Some(rails) = transport.getattr("rails")?.extract::<Option<u16>>()? {
        config = config.rails(rails);
    }
    if let Some(affinity) = transport.getattr("affinity")?.extract::<Option<String>>()? {
        let affinity: Affinity =
            affinity.parse().map_err(|error| PyErr::from(Failure::new("BuildError", format!("{error}"))))?;
        config = config.affinity(affinity);
    }
    if let Some(path) = transport.getattr("libfabric")?.extract::<Option<String>>()? {
        config = config.libfabric(path);
    }
    if let Some(timeout) = transport.getattr("stall_timeout")?.extract::<Option<f64>>()? {
        config = config.stall_timeout(wait::timeout(timeout)?);
    }
    Ok(config)
}
