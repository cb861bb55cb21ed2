//! The library's errors as Python exceptions that keep the facts and the advice.
//!
//! The classes are Python's own (`kvrail._errors`), so that they can be pickled, subclassed and read; here each error is given
//! its class, its facts by name, its hints and whether the same call may succeed later.

use std::time::Duration;

use kvrail::engine_error as engine;
use kvrail::memory::{AccessError, AllocateError};
use kvrail::rendezvous::{AcceptError, ConnectToError, ServeError};
use kvrail::{
    BuildError, CloseError, ConnectError, DeregisterError, Hints, MetadataError, PeerLostCause, PostError,
    PrepareError, RegisterError, SendError, Silence, TransferError, WaitNotificationError, WaitReadyError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::value::{Value, dict};

/// An exception that is about to be raised.
#[derive(Debug)]
pub(crate) struct Failure {
    class: &'static str,
    message: String,
    hints: Vec<String>,
    retryable: bool,
    facts: Vec<(&'static str, Value)>,
}

impl Failure {
    /// Of that class of `kvrail._errors`.
    pub(crate) fn new(class: &'static str, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), hints: Vec::new(), retryable: false, facts: Vec::new() }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(crate) fn hints(mut self, hints: Vec<String>) -> Self {
        self.hints = hints;
        self
    }

    pub(crate) fn retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    pub(crate) fn fact(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.facts.push((name, value.into()));
        self
    }

    fn silence(self, silence: &Silence) -> Self {
        let rails = silence.rails.iter().map(|rail| {
            Value::Map(vec![
                ("name", rail.name.as_str().into()),
                ("posted", rail.counters.posted.into()),
                ("completed", rail.counters.completed.into()),
                ("failed", rail.counters.failed.into()),
                ("received", rail.counters.received.into()),
            ])
        });
        let entries = vec![
            ("transport", silence.transport.into()),
            ("lasted", silence.lasted.into()),
            ("cause", silence.cause.to_string().into()),
            ("rails", rails.collect()),
        ];
        self.fact("silence", Value::Map(entries))
    }

    fn raise(&self, py: Python<'_>) -> PyResult<PyErr> {
        static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
        let module = MODULE.get_or_try_init(py, || py.import("kvrail._errors").map(Bound::unbind))?;
        let class = module.bind(py).getattr(self.class)?;
        let arguments = PyDict::new(py);
        arguments.set_item("hints", &self.hints)?;
        arguments.set_item("retryable", self.retryable)?;
        arguments.set_item("facts", dict(py, &self.facts)?)?;
        Ok(PyErr::from_value(class.call((self.message.as_str(),), Some(&arguments))?))
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        Python::attach(|py| failure.raise(py).unwrap_or_else(|error| error))
    }
}

/// Any error of the library as a Python exception.
pub(crate) fn raised(error: impl Into<Failure>) -> PyErr {
    error.into().into()
}

/// The agent was closed.
pub(crate) fn closed() -> Failure {
    Failure::new("Closed", "the agent is closed")
}

fn cause(cause: PeerLostCause) -> &'static str {
    match cause {
        PeerLostCause::Closed => "closed",
        PeerLostCause::Gone => "gone",
        PeerLostCause::Restarted => "restarted",
        PeerLostCause::Reconnected => "reconnected",
        PeerLostCause::Silent => "silent",
        PeerLostCause::Removed => "removed",
        _ => "unknown",
    }
}

macro_rules! plain {
    ($($error:ident => $class:literal),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new($class, error.to_string()).hints(error.hints()).retryable(error.is_retryable())
            }
        }
    )*};
}

plain! { BuildError => "BuildError", ServeError => "ServeError" }

/// Errors of which one variant says that the agent is closed.
macro_rules! unless_closed {
    ($($error:ident => $class:literal, $facts:expr;)*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                if matches!(error, $error::AgentClosed) {
                    return closed();
                }
                let failure = Self::new($class, error.to_string())
                    .hints(error.hints())
                    .retryable(error.is_retryable());
                let facts: fn(Self, &$error) -> Self = $facts;
                facts(failure, &error)
            }
        }
    )*};
}

unless_closed! {
    RegisterError => "RegisterError", |failure, error| match error {
        RegisterError::Region { index, .. } => failure.fact("index", *index),
        RegisterError::Transport { transport, .. } => failure.fact("transport", *transport),
        _ => failure,
    };
    MetadataError => "MetadataError", |failure, _| failure;
    ConnectError => "ConnectError", |failure, error| match error {
        ConnectError::NoTransport { peer_name, tried } => {
            let tried = tried.iter().map(|passed| {
                Value::Map(vec![
                    ("transport", passed.transport.into()),
                    ("reason", passed.reason.to_string().into()),
                ])
            });
            failure.fact("peer_name", peer_name.as_str()).fact("tried", tried.collect::<Value>())
        }
        ConnectError::Import { peer_name, transport, .. } => {
            failure.fact("peer_name", peer_name.as_str()).fact("transport", *transport)
        }
        _ => failure,
    };
    PrepareError => "PrepareError", |failure, error| match error {
        PrepareError::Plan { peer_name, error } => plan(failure.fact("peer_name", &**peer_name), error),
        PrepareError::ForeignPeer { peer_name } => failure.fact("peer_name", &**peer_name),
        _ => failure,
    };
    PostError => "PostError", |failure, error| match error {
        PostError::Refused { peer_name, .. } => failure.fact("peer_name", &**peer_name),
        _ => failure,
    };
    SendError => "SendError", |failure, error| match error {
        SendError::Refused { peer_name, .. } | SendError::ForeignPeer { peer_name } => {
            failure.fact("peer_name", &**peer_name)
        }
        _ => failure,
    };
}

/// Which slice is at fault, and how.
fn plan(failure: Failure, error: &engine::PlanError) -> Failure {
    use engine::PlanError as E;
    match error {
        E::CountMismatch { local, remote } => failure.fact("local", *local).fact("remote", *remote),
        E::LengthMismatch { index, local, remote } => {
            failure.fact("index", *index).fact("local", *local).fact("remote", *remote)
        }
        E::EmptySlice { index } => failure.fact("index", *index),
        E::UnknownRegion { side, index, region } => {
            failure.fact("side", side.to_string()).fact("index", *index).fact("region", region.0)
        }
        E::OutOfBounds { side, index, region, offset, len, region_len } => failure
            .fact("side", side.to_string())
            .fact("index", *index)
            .fact("region", region.0)
            .fact("offset", *offset)
            .fact("length", *len)
            .fact("region_nbytes", *region_len),
        _ => failure,
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        let TransferError::Failed { peer_name, error: what, silence } = &error else { return closed() };
        let class = match what {
            engine::TransferError::Cancelled => "TransferCancelled",
            engine::TransferError::DeadlineExceeded { .. } => "TransferTimeout",
            engine::TransferError::PeerLost(_) => "TransferPeerLost",
            _ => "TransferError",
        };
        let mut failure = Self::new(class, error.to_string())
            .hints(error.hints())
            .retryable(error.is_retryable())
            .fact("peer_name", &**peer_name);
        failure = match what {
            engine::TransferError::DeadlineExceeded { awaited, ops_done, ops } => {
                failure.fact("awaited", awaited.to_string()).fact("ops_done", *ops_done).fact("ops", *ops)
            }
            engine::TransferError::PeerLost(why) => failure.fact("cause", cause(*why)),
            engine::TransferError::Op { op, remote_region, remote_offset, len, error } => failure
                .fact("op", *op)
                .fact("region", remote_region.0)
                .fact("offset", *remote_offset)
                .fact("length", *len)
                .fact("error", error.to_string()),
            engine::TransferError::StaleRemoteRegion(region) => failure.fact("region", region.0),
            _ => failure,
        };
        match silence.as_deref() {
            Some(silence) => failure.silence(silence),
            None => failure,
        }
    }
}

impl Failure {
    /// A peer that did not answer; the wait may have been made in parts.
    pub(crate) fn silent_peer(peer_name: &str, waited: Duration, silence: &Silence) -> Self {
        Self::new("WaitTimeout", format!("{peer_name} did not answer within {waited:?}: {silence}"))
            .hints(silence.hints())
            .retryable(true)
            .fact("peer_name", peer_name)
            .fact("waited", waited)
            .silence(silence)
    }
}

impl From<WaitReadyError> for Failure {
    fn from(error: WaitReadyError) -> Self {
        let (text, hints) = (error.to_string(), error.hints());
        match error {
            WaitReadyError::Deadline { peer_name, waited, silence } => {
                Self::silent_peer(&peer_name, waited, &silence)
            }
            WaitReadyError::Lost { peer_name, cause: why } => Self::new("PeerLost", text)
                .hints(hints)
                .fact("peer_name", &*peer_name)
                .fact("cause", cause(why)),
            _ => Self::new("Error", text),
        }
    }
}

impl From<WaitNotificationError> for Failure {
    fn from(error: WaitNotificationError) -> Self {
        match error {
            WaitNotificationError::Deadline { waited, peers } => Self::new("WaitTimeout", error.to_string())
                .retryable(true)
                .fact("waited", waited)
                .fact("peers", peers),
            _ => closed(),
        }
    }
}

impl From<DeregisterError> for Failure {
    fn from(error: DeregisterError) -> Self {
        Self::new("WaitTimeout", error.to_string())
            .hints(error.hints())
            .retryable(true)
            .fact("region", error.region.0)
            .fact("waited", error.waited)
            .fact("reason", error.reason.to_string())
    }
}

impl From<ConnectToError> for Failure {
    fn from(error: ConnectToError) -> Self {
        let (text, hints, retryable) = (error.to_string(), error.hints(), error.is_retryable());
        match error {
            ConnectToError::Deadline { address, waited, attempts, .. } => Self::new("ConnectTimeout", text)
                .fact("address", address)
                .fact("waited", waited)
                .fact("attempts", attempts),
            ConnectToError::Connect { source: ConnectError::AgentClosed, .. }
            | ConnectToError::Metadata(MetadataError::AgentClosed) => return closed(),
            ConnectToError::Address { address, .. } => {
                Self::new("ConnectError", text).fact("address", address)
            }
            ConnectToError::Exchange { address, .. } | ConnectToError::Connect { address, .. } => {
                Self::new("ConnectError", text).fact("address", address.to_string())
            }
            _ => Self::new("ConnectError", text),
        }
        .hints(hints)
        .retryable(retryable)
    }
}

impl From<AcceptError> for Failure {
    fn from(error: AcceptError) -> Self {
        let (text, retryable) = (error.to_string(), error.is_retryable());
        match error {
            AcceptError::Deadline { address, waited, failed } => Self::new("WaitTimeout", text)
                .fact("address", address.to_string())
                .fact("waited", waited)
                .fact("failed", failed),
            AcceptError::Exchange { address, .. } | AcceptError::Listener { address, .. } => {
                Self::new("ServeError", text).fact("address", address.to_string())
            }
            _ => Self::new("ServeError", text),
        }
        .retryable(retryable)
    }
}

impl From<CloseError> for Failure {
    fn from(error: CloseError) -> Self {
        Self::new("CloseError", error.to_string()).fact("transfers", error.transfers)
    }
}

impl From<AccessError> for Failure {
    fn from(error: AccessError) -> Self {
        let failure = Self::new("AccessError", error.to_string());
        match error {
            AccessError::OutOfRange { offset, len, memory_len } => {
                failure.fact("offset", offset).fact("length", len).fact("nbytes", memory_len)
            }
            _ => failure,
        }
    }
}

impl From<AllocateError> for Failure {
    fn from(error: AllocateError) -> Self {
        Self::new("AllocateError", error.to_string())
    }
}
