//! What arrives without being asked for: notifications, and news of peers.

use kvrail::PeerEvent;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::value::Value;

/// A peer's message. When it came with a transfer, every byte of that is visible here.
#[pyclass(frozen, module = "kvrail")]
pub(crate) struct Notification {
    notification: kvrail::Notification,
}

impl Notification {
    pub(crate) fn new(notification: kvrail::Notification) -> Self {
        Self { notification }
    }
}

#[pymethods]
impl Notification {
    #[classattr]
    fn __match_args__() -> (&'static str, &'static str) {
        ("peer_name", "message")
    }

    /// Who sent it.
    #[getter]
    fn peer_name(&self) -> &str {
        &self.notification.peer_name
    }

    /// What it said: input from outside.
    #[getter]
    fn message<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.notification.message)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<kvrail.Notification from {}: {}>", self.peer_name(), self.message(py).repr()?))
    }
}

/// News of a peer as a plain value.
pub(crate) fn event(event: PeerEvent) -> Vec<(&'static str, Value)> {
    let named = |kind: &str, peer_name: &str| vec![("event", kind.into()), ("peer_name", peer_name.into())];
    match event {
        PeerEvent::Ready { peer_name } => named("ready", &peer_name),
        PeerEvent::Lost { peer_name, cause } => {
            let mut entries = named("lost", &peer_name);
            entries.push(("cause", cause.to_string().into()));
            entries
        }
        PeerEvent::TransferFailed { peer_name, message } => {
            let mut entries = named("transfer_failed", &peer_name);
            entries.push(("message", String::from_utf8_lossy(&message).into_owned().into()));
            entries
        }
        PeerEvent::RouteDown { peer_name, rail, route, error } => {
            let mut entries = named("route_down", &peer_name);
            entries.push(("rail", (&*rail).into()));
            entries.push(("route", route.to_string().into()));
            entries.push(("error", error.to_string().into()));
            entries
        }
        PeerEvent::RouteUp { peer_name, rail, route } => {
            let mut entries = named("route_up", &peer_name);
            entries.push(("rail", (&*rail).into()));
            entries.push(("route", route.to_string().into()));
            entries
        }
        _ => vec![("event", "unknown".into())],
    }
}
