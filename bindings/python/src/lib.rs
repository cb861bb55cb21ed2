//! The native half of the Python package `kvrail`.
#![deny(unsafe_code)]

mod native;

use pyo3::prelude::*;

/// The native half of the package `kvrail`; use `kvrail` and `kvrail.nixl`.
#[pymodule]
fn _kvrail(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("native", native::module(module.py())?)?;
    Ok(())
}
