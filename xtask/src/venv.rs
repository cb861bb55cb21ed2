//! Python environments of packages from PyPI, made under the target directory when absent.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::process;

const INSTALL_DEADLINE: Duration = Duration::from_secs(600);
/// Written last, so that an interrupted installation is not taken for a whole one.
const WHOLE: &str = ".whole";

/// Makes the environment unless it is whole already; its Python. Of several that ask at once one makes it.
pub(crate) fn install(root: &Path, packages: &[&str]) -> Result<PathBuf, String> {
    let python = root.join("bin/python");
    let whole = root.join(WHOLE);
    let wanted = packages.join(" ");
    let is_whole = || fs::read_to_string(&whole).is_ok_and(|installed| installed == wanted);
    if is_whole() {
        return Ok(python);
    }
    let _turn = lock(&root.with_extension("lock"))?;
    if is_whole() {
        return Ok(python);
    }
    eprintln!("making {} with {wanted}", root.display());
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(root))?;
    succeed(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--no-deps"]).args(packages))?;
    fs::write(&whole, wanted).map_err(|error| format!("{}: {error}", whole.display()))?;
    Ok(python)
}

/// Where an environment's packages lie.
pub(crate) fn site_packages(root: &Path) -> Result<PathBuf, String> {
    let lib = root.join("lib");
    let entries = fs::read_dir(&lib).map_err(|error| format!("{}: {error}", lib.display()))?;
    let mut candidates = entries.flatten().map(|entry| entry.path().join("site-packages"));
    candidates.find(|path| path.is_dir()).ok_or_else(|| format!("{} has no site-packages", lib.display()))
}

/// Runs a step of an installation; what it said last when it fails.
pub(crate) fn succeed(command: &mut Command) -> Result<(), String> {
    let finished = process::run(command, INSTALL_DEADLINE)?;
    if finished.status.success() {
        return Ok(());
    }
    Err(format!("{} failed: {}", command.get_program().to_string_lossy(), finished.last_words()))
}

/// Waits for the file's lock, which ends with the handle.
fn lock(path: &Path) -> Result<File, String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(wrong)?;
    }
    let file = File::create(path).map_err(wrong)?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| wrong(error.into()))?;
    Ok(file)
}
