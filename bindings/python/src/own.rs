//! What a Python object holds of the library, given up without the GIL and never in a forked child.
//!
//! A child of `fork` has the parent's memory and none of its threads: a lock that one of them held stays locked for ever, and the
//! rails are the parent's. So a handle answers in the process that made it, is an error in any other, and its end there is to be forgotten.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::prelude::*;

use crate::native::error::Failure;

/// This process, as of the last fork: asking the system takes longer than most calls.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// This process.
#[inline]
pub(crate) fn process() -> u32 {
    PROCESS.load(Ordering::Relaxed)
}

extern "C" fn forked_child() {
    PROCESS.store(std::process::id(), Ordering::Relaxed);
}

/// Begins to watch for forks. Called once, before anything is made.
pub(crate) fn watch_forks() -> PyResult<()> {
    PROCESS.store(std::process::id(), Ordering::Relaxed);
    // SAFETY: the handler is a function that lives as long as the program (Python never unloads an extension), does nothing but ask for the process and
    // store a number, and may therefore run between `fork` and whatever the child does next.
    match unsafe { libc::pthread_atfork(None, None, Some(forked_child)) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error).into()),
    }
}

/// A share of the library that ends with its Python object.
pub(crate) struct Own<T: Send> {
    /// The process that made it.
    process: u32,
    /// Present until dropped.
    value: Option<T>,
}

impl<T: Send> Own<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { process: process(), value: Some(value) }
    }

    /// It, in the process that made it.
    #[inline]
    pub(crate) fn get(&self) -> PyResult<&T> {
        match &self.value {
            Some(value) if self.process == process() => Ok(value),
            _ => Err(forked(self.process)),
        }
    }

    /// The same where an answer is optional: in a `repr`.
    pub(crate) fn peek(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.process == process())
    }
}

impl<T: Send> Drop for Own<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        if self.process != process() {
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
        "made in process {process} and used in its fork {}: rails and threads do not survive a fork",
        std::process::id()
    );
    Failure::new("Forked", message)
        .hint("make the agent in the process that uses it")
        .hint("start processes by multiprocessing's \"spawn\" or \"forkserver\"")
        .into()
}
