//! Text as NIXL's callers pass it: `str` or `bytes`.

use pyo3::Borrowed;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyString};

/// Bytes of a `str` (UTF-8), `bytes` or `bytearray`.
pub(super) struct Blob(pub(super) Vec<u8>);

impl<'a, 'py> FromPyObject<'a, 'py> for Blob {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Self(bytes.as_bytes().to_vec()));
        }
        if let Ok(text) = object.cast::<PyString>() {
            return Ok(Self(text.to_cow()?.as_bytes().to_vec()));
        }
        if let Ok(bytes) = object.cast::<PyByteArray>() {
            return Ok(Self(bytes.to_vec()));
        }
        Err(PyTypeError::new_err(format!("str or bytes expected, not {}", object.get_type().name()?)))
    }
}

/// A name: a `str`, or `bytes` of UTF-8.
pub(super) struct Name(pub(super) String);

impl<'a, 'py> FromPyObject<'a, 'py> for Name {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let Blob(bytes) = object.extract()?;
        String::from_utf8(bytes)
            .map(Self)
            .map_err(|error| PyValueError::new_err(format!("a name is UTF-8: {error}")))
    }
}
