//! What the Python suites need before Python runs: the staged package, environments, and processes that end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

pub(crate) mod nixl_source;
pub(crate) mod process;
pub(crate) mod pytest;
pub(crate) mod site;
pub(crate) mod venv;

/// `target/python`, whatever the target directory is.
pub(crate) fn under_target() -> PathBuf {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    temporary.parent().unwrap_or(temporary).join("python")
}

/// `bindings`, where both distributions have their sources.
pub(crate) fn bindings() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Waits for the lock `name` of `target/python`, against other processes and other tests; it ends with the handle.
pub(crate) fn lock(name: &str) -> Result<File, String> {
    let path = under_target().join(name).with_extension("lock");
    fs::create_dir_all(under_target()).map_err(|error| told(&path, &error))?;
    let file = File::create(&path).map_err(|error| told(&path, &error))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| told(&path, &error.into()))?;
    Ok(file)
}

/// An error with the path that it is about.
pub(crate) fn told(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Under CI what can be had must be had; elsewhere it is left out by name.
pub(crate) fn in_ci() -> bool {
    std::env::var_os("CI").is_some()
}
