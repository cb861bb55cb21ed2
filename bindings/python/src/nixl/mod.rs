//! What `kvrail.nixl._bindings` shows: NIXL's classes, enums, exceptions and constants, over [`kvrail_nixl`].

mod agent;
mod arrays;
mod config;
mod enums;
mod errors;
mod lists;
mod text;

pub(crate) use agent::close_all;
use pyo3::prelude::*;

/// NIXL's bindings; import `kvrail.nixl._bindings`.
#[pymodule]
pub(crate) fn nixl(module: &Bound<'_, PyModule>) -> PyResult<()> {
    enums::add(module)?;
    errors::add(module)?;
    lists::add(module)?;
    module.add_class::<config::AgentConfig>()?;
    module.add_class::<agent::Agent>()?;
    module.add_class::<agent::XferTelemetry>()?;
    module.add("NIXL_INIT_AGENT", kvrail_nixl::LOCAL_SIDE)?;
    module.add("DEFAULT_COMM_PORT", kvrail_nixl::DEFAULT_PORT)?;
    // Views of GPU memory for kernels: kvrail's transports have none.
    module.add("HAVE_UCX_GPU_DEVICE_API", false)
}
