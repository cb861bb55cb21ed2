//! The Python environments with the real NIXL in them, made under the target directory when absent.
//!
//! Two of them, because NIXL's LIBFABRIC plugin finds a libfabric it can use only beside an older NIXL: the one
//! that PyPI's mpich brings. Either may be impossible on a given machine; the comparison then skips it by name.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::venv::{install, site_packages, succeed};

const NIXL: &[&str] = &["nixl==1.5.1", "nixl-cu12==1.5.1", "numpy"];
/// The last NIXL whose plugin loads with the libfabric that mpich brings.
const NIXL_LIBFABRIC: &str = "1.4.0";

/// A Python that can import NIXL.
#[derive(Clone, Debug)]
pub(crate) struct Venv {
    pub(crate) python: PathBuf,
    /// Set for everything that runs in it.
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// The libfabric that it uses, where it brings one.
    pub(crate) libfabric: Option<PathBuf>,
}

/// NIXL as a user installs it today.
pub(crate) fn nixl(under: &Path) -> Result<Venv, String> {
    let python = install(&under.join("nixl"), NIXL)?;
    Ok(Venv { python, environment: Vec::new(), libfabric: None })
}

/// NIXL over libfabric's TCP.
pub(crate) fn nixl_libfabric(under: &Path, no_cuda_source: &Path) -> Result<Venv, String> {
    let mut venv = nixl_on_libfabric(under, NIXL_LIBFABRIC, no_cuda_source)?;
    venv.environment.push(("FI_PROVIDER", "tcp".into()));
    Ok(venv)
}

/// NIXL with a libfabric beside it. `no_cuda_source` stands in for the CUDA driver, which the plugin links to.
pub(crate) fn nixl_on_libfabric(under: &Path, version: &str, no_cuda_source: &Path) -> Result<Venv, String> {
    let root = under.join(format!("nixl-{version}-libfabric"));
    let packages = [format!("nixl=={version}"), format!("nixl-cu12=={version}")];
    let packages = packages.iter().map(String::as_str);
    let packages: Vec<_> = packages.chain(["numpy", "mpich==5.0.2", "nvidia-cuda-runtime-cu12"]).collect();
    let python = install(&root, &packages)?;
    let stand_ins = root.join("stand-ins");
    let driver = stand_ins.join("libcuda.so.1");
    if !driver.exists() {
        fs::create_dir_all(&stand_ins).map_err(|error| format!("{}: {error}", stand_ins.display()))?;
        succeed(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&driver).arg(no_cuda_source))?;
    }
    let packages = site_packages(&root)?;
    let libfabric = root.join("lib/mpich");
    let paths = [
        stand_ins,
        libfabric.clone(),
        packages.join("nvidia/cuda_runtime/lib"),
        packages.join("nixl_cu12.libs"),
        packages.join(".nixl_cu12.mesonpy.libs"),
    ];
    let paths = env::join_paths(paths).map_err(|error| error.to_string())?;
    Ok(Venv { python, environment: vec![("LD_LIBRARY_PATH", paths)], libfabric: Some(libfabric) })
}

impl Venv {
    /// NIXL's LIBFABRIC plugin.
    pub(crate) fn plugin(&self) -> Result<PathBuf, String> {
        let root = self.python.parent().and_then(Path::parent).ok_or("the environment has no root")?;
        let packages = site_packages(root)?;
        let candidates = [".nixl_cu12.mesonpy.libs/plugins", "nixl_cu12.libs/nixl", "nixl_cu12.libs"];
        let mut candidates = candidates.iter().map(|part| packages.join(part).join("libplugin_LIBFABRIC.so"));
        candidates.find(|path| path.exists()).ok_or_else(|| "this NIXL has no LIBFABRIC plugin".into())
    }
}
