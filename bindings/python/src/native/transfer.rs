//! Plans, and the transfers that post them.

use std::ffi::CString;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use kvrail::TransferError;
use pyo3::exceptions::{PyResourceWarning, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString};

use super::error::{Failure, raised};
use super::foreign::name_of;
use super::peer::Peer;
use super::region::RegionCell;
use super::value::{Value, dict};
use super::wait;
use super::wake::{Subscribers, Wakeups};
use crate::own::Own;

/// Local slices paired with a peer's: prepared once, posted as often as wanted.
#[pyclass(frozen, weakref, module = "kvrail")]
pub(crate) struct Plan {
    held: Own<Arc<Held>>,
}

/// A plan, and the registrations that it needs as long as somebody may post it.
struct Held {
    plan: kvrail::Plan,
    _regions: Vec<Arc<RegionCell>>,
}

impl Plan {
    pub(crate) fn new(plan: kvrail::Plan, regions: Vec<Arc<RegionCell>>) -> Self {
        Self { held: Own::new(Arc::new(Held { plan, _regions: regions })) }
    }
}

/// A message from Python: bytes, or text as UTF-8.
pub(crate) fn message(object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    if let Ok(text) = object.cast::<PyString>() {
        return Ok(text.to_cow()?.as_bytes().to_vec());
    }
    Err(PyTypeError::new_err(format!("a message is bytes or str, not a {}", name_of(object))))
}

#[derive(Clone, Copy)]
enum Direction {
    Write,
    Read,
}

impl Plan {
    fn post(
        &self,
        py: Python<'_>,
        direction: Direction,
        notify: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Transfer> {
        let held = self.held.get()?;
        let notify = notify.map(message).transpose()?;
        let timeout = timeout.map(wait::timeout).transpose()?;
        let posted = py.detach(|| {
            let mut post = match direction {
                Direction::Write => held.plan.write(),
                Direction::Read => held.plan.read(),
            };
            if let Some(message) = notify {
                post = post.notify(message);
            }
            if let Some(timeout) = timeout {
                post = post.timeout(timeout);
            }
            post.post()
        });
        let transfer = posted.map_err(raised)?;
        let flight = Flight { transfer, held: held.clone(), subscribers: Arc::default() };
        Ok(Transfer { flight: Own::new(flight) })
    }
}

#[pymethods]
impl Plan {
    /// Moves bytes from the local slices to the remote ones.
    ///
    /// `notify` is delivered at the peer once every byte is visible there. A transfer that has not
    /// ended within `timeout` fails; default: the agent's.
    #[pyo3(signature = (*, notify=None, timeout=None))]
    fn write(
        &self,
        py: Python<'_>,
        notify: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Transfer> {
        self.post(py, Direction::Write, notify, timeout)
    }

    /// Moves bytes from the remote slices to the local ones.
    ///
    /// `notify` tells the peer that they have left.
    #[pyo3(signature = (*, notify=None, timeout=None))]
    fn read(
        &self,
        py: Python<'_>,
        notify: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Transfer> {
        self.post(py, Direction::Read, notify, timeout)
    }

    /// Bytes that one posting moves.
    #[getter]
    fn nbytes(&self) -> PyResult<u64> {
        Ok(self.held.get()?.plan.bytes())
    }

    /// Fabric ops of one posting, after coalescing and striping.
    #[getter]
    fn ops(&self) -> PyResult<usize> {
        Ok(self.held.get()?.plan.ops())
    }

    /// Whom it concerns.
    #[getter]
    fn peer(&self) -> PyResult<Peer> {
        Ok(Peer::new(self.held.get()?.plan.peer()))
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(usize::try_from(self.held.get()?.plan.descriptors()).unwrap_or(usize::MAX))
    }

    fn __repr__(&self) -> String {
        match self.held.peek() {
            Some(held) => format!(
                "<kvrail.Plan with {}: {} slices, {} bytes, {} ops>",
                held.plan.peer().name(),
                held.plan.descriptors(),
                held.plan.bytes(),
                held.plan.ops()
            ),
            None => "<kvrail.Plan of another process>".into(),
        }
    }
}

/// One posting of a plan. `await` it or `wait` for it; dropping it in flight cancels it.
#[pyclass(frozen, weakref, module = "kvrail")]
pub(crate) struct Transfer {
    flight: Own<Flight>,
}

struct Flight {
    /// Dropped first: that cancels it.
    transfer: kvrail::Transfer,
    held: Arc<Held>,
    subscribers: Arc<Subscribers>,
}

impl Transfer {
    /// The result, if there is one.
    fn ended(&self, py: Python<'_>) -> PyResult<Option<Result<kvrail::Report, TransferError>>> {
        let flight = self.flight.get()?;
        // A transfer that has ended is read without a lock; with inline progress the look drives.
        Ok(if flight.transfer.is_ended() {
            flight.transfer.poll()
        } else {
            py.detach(|| flight.transfer.poll())
        })
    }
}

#[pymethods]
impl Transfer {
    /// Whether it has ended, well or badly.
    #[getter]
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.ended(py)?.is_some())
    }

    /// The report, if it has ended; raises if it ended badly.
    fn poll(&self, py: Python<'_>) -> PyResult<Option<Report>> {
        self.ended(py)?.map(|result| result.map(Report).map_err(raised)).transpose()
    }

    /// Waits for the end, at the latest soon after the transfer's own timeout.
    ///
    /// With a timeout, `WaitTimeout` means that it goes on; other errors mean that it ended badly.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Report> {
        let flight = self.flight.get()?;
        let timeout = timeout.map(wait::timeout).transpose()?;
        // Without one the transfer's own deadline ends the wait.
        let limit = timeout.unwrap_or(Duration::MAX);
        match wait::until(py, limit, |slice| flight.transfer.wait_timeout(slice))? {
            Some(result) => result.map(Report).map_err(raised),
            None => {
                let peer = flight.held.plan.peer();
                let message =
                    format!("the transfer with {} has not ended within {limit:?}; it goes on", peer.name());
                Err(Failure::new("WaitTimeout", message)
                    .retryable(true)
                    .fact("peer_name", peer.name())
                    .fact("waited", limit)
                    .into())
            }
        }
    }

    /// Asks for an early end and returns at once.
    ///
    /// The transfer drains and then ends as cancelled.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let flight = self.flight.get()?;
        py.detach(|| flight.transfer.cancel());
        Ok(())
    }

    /// How far it is; `None` when it has ended.
    #[getter]
    fn progress<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let flight = self.flight.get()?;
        let Some(progress) = py.detach(|| flight.transfer.progress()) else { return Ok(None) };
        let entries = [
            ("phase", Value::Text(format!("{:?}", progress.phase).to_lowercase())),
            ("ops", progress.ops.into()),
            ("ops_done", progress.ops_done.into()),
            ("ops_in_flight", progress.ops_in_flight.into()),
        ];
        dict(py, &entries).map(Some)
    }

    /// What was posted.
    #[getter]
    fn plan(&self) -> PyResult<Plan> {
        Ok(Plan { held: Own::new(self.flight.get()?.held.clone()) })
    }

    fn __await__<'py>(this: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        static WAIT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = this.py();
        let wait = WAIT.get_or_try_init(py, || {
            py.import("kvrail._aio")?.getattr("wait_for_transfer").map(Bound::unbind)
        })?;
        wait.bind(py).call1((this,))?.call_method0("__await__")
    }

    /// Has `wakeups` tell of the end under this number. False: it has ended, or nobody would tell.
    fn _watch(&self, py: Python<'_>, wakeups: &Bound<'_, Wakeups>, number: u64) -> PyResult<bool> {
        let flight = self.flight.get()?;
        let due = wakeups.get().due()?;
        flight.subscribers.add(due, number);
        let waker = flight.subscribers.waker();
        let ended =
            py.detach(|| Pin::new(&mut &flight.transfer).poll(&mut Context::from_waker(&waker)).is_ready());
        if ended {
            flight.subscribers.remove(due, number);
        }
        Ok(!ended)
    }

    /// Nobody waits under this number any more.
    fn _unwatch(&self, wakeups: &Bound<'_, Wakeups>, number: u64) -> PyResult<()> {
        self.flight.get()?.subscribers.remove(wakeups.get().due()?, number);
        Ok(())
    }

    fn __repr__(&self) -> String {
        let Some(flight) = self.flight.peek() else { return "<kvrail.Transfer of another process>".into() };
        let state = match flight.transfer.is_ended().then(|| flight.transfer.poll()).flatten() {
            None => "in flight".into(),
            Some(Ok(_)) => "done".into(),
            Some(Err(error)) => error.to_string(),
        };
        let plan = &flight.held.plan;
        format!("<kvrail.Transfer of {} bytes with {}: {state}>", plan.bytes(), plan.peer().name())
    }
}

impl Drop for Transfer {
    /// Says that a transfer which nobody waits for is cancelled: the drop of its handle would do it in silence.
    fn drop(&mut self) {
        let Some(flight) = self.flight.peek().filter(|flight| !flight.transfer.is_ended()) else { return };
        let peer = flight.held.plan.peer();
        let message = format!(
            "a transfer with {} was dropped in flight and is cancelled: keep it, and wait for it",
            peer.name()
        );
        let Ok(message) = CString::new(message) else { return };
        Python::try_attach(|py| {
            // An exception may be on its way through the frame that drops this.
            let underway = PyErr::take(py);
            if let Err(error) = PyErr::warn(py, &py.get_type::<PyResourceWarning>(), &message, 1) {
                error.write_unraisable(py, None);
            }
            if let Some(underway) = underway {
                underway.restore(py);
            }
        });
    }
}

/// How a transfer ended well.
#[pyclass(frozen, eq, module = "kvrail")]
#[derive(PartialEq)]
pub(crate) struct Report(kvrail::Report);

#[pymethods]
impl Report {
    /// Bytes moved.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.bytes
    }

    /// Fabric ops that moved them.
    #[getter]
    fn ops(&self) -> u32 {
        self.0.ops
    }

    /// Ops that were posted again, on another route or after a failure.
    #[getter]
    fn retried_ops(&self) -> u32 {
        self.0.retried_ops
    }

    /// Seconds from the posting to its first op on the fabric.
    #[getter]
    fn queued(&self) -> f64 {
        self.0.queued.as_secs_f64()
    }

    /// Seconds from its first op to the end, as this agent saw it.
    #[getter]
    fn wire(&self) -> f64 {
        self.0.wire.as_secs_f64()
    }

    /// Seconds from the posting to the end.
    #[getter]
    fn total(&self) -> f64 {
        self.0.total().as_secs_f64()
    }

    fn __repr__(&self) -> String {
        let kvrail::Report { bytes, ops, retried_ops, .. } = self.0;
        let total = self.0.total();
        let rate = bytes as f64 / total.as_secs_f64().max(1e-9) / 1e9;
        let retried =
            if retried_ops > 0 { format!(", {retried_ops} of them repeated") } else { String::new() };
        format!("<kvrail.Report: {bytes} bytes in {ops} ops{retried}, {total:.3?}, {rate:.2} GB/s>")
    }
}
