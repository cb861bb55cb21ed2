//! A libfabric that has the `efa` provider.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::venv;

/// Brings libfabric 2.5 with `efa` as a loadable provider; the programs in it are of no interest here.
const WHEEL: &[&str] = &["mpich==5.0.2"];
/// Environment variable: a directory with another `libfabric.so.1` to test on.
const DIRECTORY: &str = "SOFTEFA_TEST_LIBFABRIC";

/// A directory with `libfabric.so.1` in it.
#[derive(Clone, Debug)]
pub(crate) struct Libfabric {
    pub(crate) directory: PathBuf,
}

impl Libfabric {
    /// The one that was named, or the wheel's, fetched once.
    pub(crate) fn find() -> Result<Self, String> {
        static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            if let Some(named) = env::var_os(DIRECTORY) {
                return with_library(Path::new(&named));
            }
            let root = super::target().join("libfabric-of-mpich");
            venv::install(&root, WHEEL)?;
            with_library(&root.join("lib/mpich"))
        });
        found.clone().map(|directory| Self { directory })
    }

    /// Where loadable providers lie, if they do.
    pub(crate) fn providers(&self) -> Option<PathBuf> {
        Some(self.directory.join("libfabric")).filter(|path| path.is_dir())
    }
}

fn with_library(directory: &Path) -> Result<PathBuf, String> {
    if directory.join("libfabric.so.1").exists() {
        return Ok(directory.to_owned());
    }
    Err(format!("{} has no libfabric.so.1", directory.display()))
}
