//! The Python environments with the real NIXL in them, made under the target directory when absent.
//!
//! Two of them, because NIXL's LIBFABRIC plugin finds a libfabric it can use only beside an older NIXL: the one
//! that PyPI's mpich brings. Either may be impossible on a given machine; the comparison then skips it by name.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process;

const NIXL: &[&str] = &["nixl==1.5.1", "nixl-cu12==1.5.1", "numpy"];
const NIXL_LIBFABRIC: &[&str] =
    &["nixl==1.4.0", "nixl-cu12==1.4.0", "numpy", "mpich==5.0.2", "nvidia-cuda-runtime-cu12"];
const INSTALL_DEADLINE: Duration = Duration::from_secs(600);
/// Written last, so that an interrupted installation is not taken for a whole one.
const WHOLE: &str = ".whole";

/// A Python that can import NIXL.
#[derive(Clone, Debug)]
pub(crate) struct Venv {
    pub(crate) python: PathBuf,
    /// Set for everything that runs in it.
    pub(crate) environment: Vec<(&'static str, OsString)>,
}

/// NIXL as a user installs it today.
pub(crate) fn nixl(under: &Path) -> Result<Venv, String> {
    let python = install(&under.join("nixl"), NIXL)?;
    Ok(Venv { python, environment: Vec::new() })
}

/// NIXL with a libfabric beside it. `no_cuda_source` stands in for the CUDA driver, which the plugin links to.
pub(crate) fn nixl_libfabric(under: &Path, no_cuda_source: &Path) -> Result<Venv, String> {
    let root = under.join("nixl-libfabric");
    let python = install(&root, NIXL_LIBFABRIC)?;
    let stand_ins = root.join("stand-ins");
    let driver = stand_ins.join("libcuda.so.1");
    if !driver.exists() {
        fs::create_dir_all(&stand_ins).map_err(|error| format!("{}: {error}", stand_ins.display()))?;
        succeed(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&driver).arg(no_cuda_source))?;
    }
    let packages = site_packages(&root)?;
    let paths = [
        stand_ins,
        root.join("lib/mpich"),
        packages.join("nvidia/cuda_runtime/lib"),
        packages.join("nixl_cu12.libs"),
        packages.join(".nixl_cu12.mesonpy.libs"),
    ];
    let paths = env::join_paths(paths).map_err(|error| error.to_string())?;
    Ok(Venv { python, environment: vec![("LD_LIBRARY_PATH", paths), ("FI_PROVIDER", "tcp".into())] })
}

/// Makes the environment unless it is whole already; its Python.
fn install(root: &Path, packages: &[&str]) -> Result<PathBuf, String> {
    let python = root.join("bin/python");
    let whole = root.join(WHOLE);
    let wanted = packages.join(" ");
    if fs::read_to_string(&whole).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    eprintln!("making {} with {wanted}", root.display());
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(root))?;
    succeed(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--no-deps"]).args(packages))?;
    fs::write(&whole, wanted).map_err(|error| format!("{}: {error}", whole.display()))?;
    Ok(python)
}

fn site_packages(root: &Path) -> Result<PathBuf, String> {
    let lib = root.join("lib");
    let entries = fs::read_dir(&lib).map_err(|error| format!("{}: {error}", lib.display()))?;
    let mut candidates = entries.flatten().map(|entry| entry.path().join("site-packages"));
    candidates.find(|path| path.is_dir()).ok_or_else(|| format!("{} has no site-packages", lib.display()))
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let finished = process::run(command, INSTALL_DEADLINE)?;
    if finished.status.success() {
        return Ok(());
    }
    Err(format!("{} failed: {}", command.get_program().to_string_lossy(), finished.last_words()))
}
