//! NIXL's exceptions: one class per status, all of them plain `Exception`s as in NIXL. They carry `status` (the name), and `hints` (what to do).

#![allow(non_camel_case_types, reason = "the names are NIXL's")]

use kvrail_nixl::{Error, Status};
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

macro_rules! exceptions {
    ($($status:ident $class:ident,)+) => {
        $(create_exception!(kvrail.nixl._bindings, $class, PyException, concat!("A call ended with the status ", stringify!($status), "."));)+

        /// The exception for an error.
        pub(super) fn raised(py: Python<'_>, error: &Error) -> PyErr {
            let message = error.to_string();
            let raised = match error.status {
                $(Status::$status => $class::new_err(message),)+
                _ => PyException::new_err(message),
            };
            let value = raised.value(py);
            // An exception without its attributes is still the exception.
            let _ = value.setattr("status", error.status.name());
            let _ = value.setattr("hints", error.hints.clone());
            raised
        }

        pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
            let py = module.py();
            $(module.add(stringify!($class), py.get_type::<$class>())?;)+
            Ok(())
        }
    };
}

exceptions! {
    NotPosted nixlNotPostedError,
    InvalidParam nixlInvalidParamError,
    Backend nixlBackendError,
    NotFound nixlNotFoundError,
    Mismatch nixlMismatchError,
    NotAllowed nixlNotAllowedError,
    RepostActive nixlRepostActiveError,
    Unknown nixlUnknownError,
    NotSupported nixlNotSupportedError,
    RemoteDisconnect nixlRemoteDisconnectError,
    Cancelled nixlCancelledError,
    NoTelemetry nixlNoTelemetryError,
}

/// Results whose errors are raised as NIXL's exceptions.
pub(super) trait OrRaise<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for kvrail_nixl::Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| raised(py, &error))
    }
}
