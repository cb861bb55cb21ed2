//! Environments of packages from PyPI below `target/python`, made once and whole.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::process::succeed;
use super::{lock, told, under_target};

/// What the suites are written with.
const OF_TESTS: &[&str] =
    &["pytest==9.2.0", "pytest-timeout==2.4.0", "hypothesis==6.170.15", "mypy==2.4.1", NUMPY, NUMPY_FOR_3_10];
const NUMPY: &str = "numpy==2.4.6; python_version >= '3.11'";
const NUMPY_FOR_3_10: &str = "numpy==2.2.6; python_version < '3.11'";
/// The real NIXL without what it would bring for GPUs (torch): the meta package, its CPU and UCX half, and NumPy.
const OF_NIXL: &[&str] = &["nixl==1.5.1", "nixl-cu12==1.5.1", NUMPY, NUMPY_FOR_3_10];
const INSTALL_DEADLINE: Duration = Duration::from_secs(600);

/// The Python with what the suites need.
pub(crate) fn of_tests() -> Result<PathBuf, String> {
    install("venv", &[], OF_TESTS)
}

/// The Python with the real NIXL.
pub(crate) fn of_nixl() -> Result<PathBuf, String> {
    install("nixl-venv", &["--no-deps"], OF_NIXL)
}

/// A new environment with nothing but pip, which replaces the one of that name.
pub(crate) fn bare(name: &str) -> Result<PathBuf, String> {
    let root = under_target().join(name);
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&root), INSTALL_DEADLINE)?;
    Ok(root.join("bin/python"))
}

/// Makes an environment unless it is whole already; of several that ask at once one makes it.
fn install(name: &str, options: &[&str], packages: &[&str]) -> Result<PathBuf, String> {
    let root = under_target().join(name);
    let python = root.join("bin/python");
    // Written last: an installation that was interrupted is not taken for a whole one.
    let (whole, wanted) = (root.join(".whole"), packages.join(" "));
    let _turn = lock(name)?;
    if fs::read_to_string(&whole).is_ok_and(|is| is == wanted) {
        return Ok(python);
    }
    let python = bare(name)?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]);
    succeed(pip.args(options).args(packages), INSTALL_DEADLINE)?;
    fs::write(&whole, wanted).map_err(|error| told(&whole, &error))?;
    Ok(python)
}
