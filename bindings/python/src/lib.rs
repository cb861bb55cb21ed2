//! The native half of the Python package `kvrail`.
#![forbid(unsafe_code)]

use pyo3::prelude::*;

/// The native half of the package `kvrail`; use `kvrail` and `kvrail.nixl`.
#[pymodule]
fn _kvrail(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
