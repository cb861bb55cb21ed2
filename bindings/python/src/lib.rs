//! The native half of the Python package `kvrail`.
//!
//! `_kvrail.native` has the classes that `kvrail` shows; `_kvrail.nixl` is what `kvrail.nixl._bindings` shows. Nothing here decides
//! anything: arguments become Rust's, results and errors become Python's, and the GIL is given away wherever something waits, copies, or
//! takes a lock that another thread may hold.
#![deny(unsafe_code)]

mod native;
mod nixl;
mod own;

use pyo3::prelude::*;

/// The native half of the package `kvrail`; use `kvrail` and `kvrail.nixl`.
#[pymodule]
fn _kvrail(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    own::watch_forks()?;
    add(module, pyo3::wrap_pymodule!(nixl::nixl)(py).bind(py), "nixl")?;
    add(module, native::module(py)?.as_any(), "native")?;
    let close = wrap_pyfunction!(nixl::close_all, module)?;
    py.import("atexit")?.call_method1("register", (close,))?;
    Ok(())
}

/// Adds a module so that it can be imported by its full name.
fn add(module: &Bound<'_, PyModule>, child: &Bound<'_, PyAny>, name: &str) -> PyResult<()> {
    module.add(name, child)?;
    let modules = module.py().import("sys")?.getattr("modules")?;
    modules.set_item(format!("kvrail._kvrail.{name}"), child)
}
