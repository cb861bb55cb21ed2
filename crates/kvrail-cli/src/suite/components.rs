//! Libraries that a step may need: whether they are here, without running anything of them.

use kvrail_sys::{libfabric, nixl as nixl_sys, ucp};

/// The libfabric that `bench` would use.
pub(super) fn libfabric() -> Result<String, String> {
    let library = libfabric::Library::load(&libfabric::Search::new(None)).map_err(|e| e.to_string())?;
    let release =
        library.release().map_or_else(|| "of unknown release".into(), |release| release.to_string());
    Ok(format!("{release} in {}", library.path().display()))
}

/// The NIXL that `--engine nixl` would use. It is not loaded: its plugins may crash who does.
pub(super) fn nixl() -> Result<String, String> {
    let found = nixl_sys::Installation::find(&nixl_sys::Search::new(None)).map_err(|e| e.to_string())?;
    let version = found.version().unwrap_or("of unknown version");
    Ok(format!("{version} in {}; backends {}", found.library().display(), found.backends().join(", ")))
}

/// The UCX that `--engine ucx` would use.
pub(super) fn ucx() -> Result<String, String> {
    let library = ucp::Library::load(&ucp::Search::new(None)).map_err(|e| e.to_string())?;
    Ok(format!("{} in {}", library.version(), library.path().display()))
}
