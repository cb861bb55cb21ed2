//! What a Python object holds of the library, given up without the GIL and never in a forked child.
//!
//! A child of `fork` has the parent's memory and none of its threads: a lock that one of them held stays locked for ever, and the
//! rails are the parent's. So a handle answers in the process that made it, is an error in any other, and its end there is to be forgotten.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

/// A share of the library that ends with its Python object.
pub(crate) struct Own<T: Send> {
    /// The process that made it.
    process: u32,
    /// Present until dropped.
    value: Option<T>,
}

impl<T: Send> Own<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { process: std::process::id(), value: Some(value) }
    }

    /// It, in the process that made it.
    #[inline]
    pub(crate) fn get(&self) -> PyResult<&T> {
        match &self.value {
            Some(value) if self.process == std::process::id() => Ok(value),
            _ => Err(forked(self.process)),
        }
    }

    /// The same where an answer is optional: in a `repr`.
    pub(crate) fn peek(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.process == std::process::id())
    }
}

impl<T: Send> Drop for Own<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        if self.process != std::process::id() {
            std::mem::forget(value);
            return;
        }
        // The end may wait for rails to drain; other threads run meanwhile. While the interpreter ends, nobody else runs.
        let mut value = Some(value);
        Python::try_attach(|py| py.detach(|| drop(value.take())));
        drop(value);
    }
}

/// The error for a handle that another process made.
fn forked(process: u32) -> PyErr {
    let message = format!(
        "made in process {process} and used in its fork {}: rails and threads do not survive a fork; \
         make the agent in the process that uses it, or start processes by multiprocessing's \"spawn\"",
        std::process::id()
    );
    PyRuntimeError::new_err(message)
}
