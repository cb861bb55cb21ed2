//! The Pythonic API of kvrail: what `import kvrail` shows.
//!
//! Each class is a thin handle to its twin in Rust. Three rules hold throughout:
//! * Whatever waits, copies, or takes a lock that another thread may hold does so without the GIL; and the rails' owner never waits for
//!   the GIL: event loops are woken by an eventfd (`wake`), memory of other libraries is given back by whichever thread next has it.
//! * A registration holds the object whose memory it is, and lasts until it is ended or its agent is (KR-7).
//! * A handle that a fork brought into another process is an error there, and its end there is to be forgotten (`crate::own`).

mod agent;
mod build;
mod dlpack;
pub(crate) mod error;
mod facts;
pub(crate) mod foreign;
mod inbox;
mod integers;
mod memory;
mod peer;
mod region;
mod slices;
mod transfer;
mod value;
mod wait;
mod wake;

use pyo3::prelude::*;

/// The module `_kvrail.native`.
pub(crate) fn module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    let module = PyModule::new(py, "native")?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("NOTIFICATION_BYTES_MAX", kvrail_core::limits::NOTIFICATION_BYTES_MAX)?;
    module.add_class::<agent::Agent>()?;
    module.add_class::<memory::Allocation>()?;
    module.add_class::<inbox::Notification>()?;
    module.add_class::<peer::Peer>()?;
    module.add_class::<peer::Server>()?;
    module.add_class::<region::Region>()?;
    module.add_class::<region::RemoteRegion>()?;
    module.add_class::<slices::Slices>()?;
    module.add_class::<transfer::Plan>()?;
    module.add_class::<transfer::Report>()?;
    module.add_class::<transfer::Transfer>()?;
    module.add_class::<wake::Wakeups>()?;
    module.add_function(wrap_pyfunction!(slices::concat, &module)?)?;
    let close_all = wrap_pyfunction!(agent::close_all, &module)?;
    py.import("atexit")?.call_method1("register", (close_all,))?;
    Ok(module)
}
