//! Libraries that a step may need, found without loading more than has to be.

use kvrail_sys::libfabric::{Library, Search};

/// The libfabric that `bench` would use.
pub(super) fn libfabric() -> Result<String, String> {
    let library = Library::load(&Search::new(None)).map_err(|e| e.to_string())?;
    let release =
        library.release().map_or_else(|| "of unknown release".into(), |release| release.to_string());
    Ok(format!("{release} in {}", library.path().display()))
}

/// The NIXL that `--engine nixl` would use.
pub(super) fn nixl() -> Result<String, String> {
    Err("not looked for".into())
}

/// The UCX that `--engine ucx` would use.
pub(super) fn ucx() -> Result<String, String> {
    Err("not looked for".into())
}
