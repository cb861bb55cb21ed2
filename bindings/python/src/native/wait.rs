//! Waiting from Python: without the GIL, with a deadline, and interruptible by Ctrl-C.
//!
//! A signal's handler runs in Python's main thread between two bytecodes, so that a wait returns a few times per second to let it.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// How long a wait goes on without looking for signals.
const SLICE: Duration = Duration::from_millis(200);
/// Beyond this a timeout is none: 30 years.
const LIMIT: Duration = Duration::from_secs(30 * 365 * 86_400);

/// A timeout in seconds, as Python gives it; infinity stands for a very long one.
pub(crate) fn timeout(seconds: f64) -> PyResult<Duration> {
    if seconds.is_nan() || seconds < 0.0 {
        return Err(PyValueError::new_err(format!("a timeout is a number of seconds, not {seconds}")));
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(LIMIT).min(LIMIT))
}

/// Waits in slices: `step` waits for as long as it is told and answers `None` when nothing came. `None` at the deadline.
pub(crate) fn until<T: Send>(
    py: Python<'_>,
    timeout: Duration,
    mut step: impl FnMut(Duration) -> Option<T> + Send,
) -> PyResult<Option<T>> {
    let started = Instant::now();
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        if let Some(value) = py.detach(|| step(left.min(SLICE))) {
            return Ok(Some(value));
        }
        if left <= SLICE && started.elapsed() >= timeout {
            return Ok(None);
        }
        py.check_signals()?;
    }
}

/// Runs what cannot be waited for in slices on a thread of its own. After a Ctrl-C it goes on there, to its own deadline, and its
/// result is dropped.
pub(crate) fn aside<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    let (sender, mut receiver) = mpsc::sync_channel(1);
    let work = move || {
        // Nobody listens after a Ctrl-C.
        let _ = sender.send(work());
    };
    std::thread::Builder::new().name("kvrail-aside".into()).spawn(work)?;
    loop {
        // A receiver is one thread's at a time: it moves in and out.
        let (back, received) = py.detach(move || {
            let received = receiver.recv_timeout(SLICE);
            (receiver, received)
        });
        receiver = back;
        match received {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("the thread of this call ended without a result"));
            }
        }
    }
}
