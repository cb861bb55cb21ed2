//! The real wheels from PyPI, in environments below the target directory that are made once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvrail_doctor::fix::{Applied, Remedy};

use super::made::{image, run, twin};
use super::wheel::{had, install, skip};
use super::{asked, carry_out, undo};

/// The release whose wheel brings libfabric, libefa and libibverbs.
const BUNDLED: &[&str] = &["nixl==0.6.1", "numpy", "mpich==5.0.2", "nvidia-cuda-runtime-cu12==12.9.79"];
/// The newest release whose LIBFABRIC plugin can use the libfabric that mpich brings.
const NOW: &[&str] = &["nixl-cu12==1.4.0", "numpy", "mpich==5.0.2", "nvidia-cuda-runtime-cu12==12.9.79"];

/// An environment of the same files in a directory of its own, and a prefix like that of the EFA installer with mpich's libfabric.
struct Real {
    directory: tempfile::TempDir,
    root: PathBuf,
    efa: PathBuf,
}

impl Real {
    fn new(test: &str, name: &str, packages: &[&str]) -> Option<Self> {
        let installed = had(test, install(name, packages))?;
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let root = directory.path().join("venv");
        twin(&installed, &root);
        let efa = directory.path().join("efa");
        fs::create_dir_all(efa.join("lib")).unwrap();
        fs::copy(root.join("lib/mpich/libfabric.so.1"), efa.join("lib/libfabric.so.1")).unwrap();
        Some(Self { directory, root, efa })
    }

    /// Runs Python there, with a stand-in for CUDA's driver.
    fn python(&self, script: &str) -> (Option<i32>, String) {
        let stand_in = self.directory.path().join("stand-in");
        if !stand_in.exists() {
            fs::create_dir(&stand_in).unwrap();
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benchsuite/no_cuda.c");
            let library = stand_in.join("libcuda.so.1");
            let (well, said) = run("cc", &["-shared", "-fPIC", "-o", library.to_str().unwrap(), source]);
            assert!(well, "{said}");
        }
        let mut command = Command::new("timeout");
        command.arg("120").arg(self.root.join("bin/python3")).args(["-B", "-c", script]);
        command.env("LD_LIBRARY_PATH", &stand_in).env("NIXL_LOG_LEVEL", "error").env_remove("PYTHONPATH");
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }
}

#[test]
fn the_real_wheel_that_brings_libfabric_uses_the_efa_softwares_after_it() {
    let Some(real) = Real::new("the wheel that brings libfabric", "nixl-fix-bundled", BUNDLED) else {
        return;
    };
    let before = image(&real.root);
    let maps = "\
import ctypes, glob, os, sys
from nixl import _bindings
plugin = glob.glob(os.path.join(os.path.dirname(_bindings.__file__), '../nixl.libs/nixl/libplugin_LIBFABRIC.so'))[0]
ctypes.CDLL(glob.glob(sys.prefix + '/lib/python3*/site-packages/nvidia/cuda_runtime/lib/libcudart.so.12')[0], ctypes.RTLD_GLOBAL)
ctypes.CDLL(plugin)
print(sorted({line.split()[-1] for line in open('/proc/self/maps') if '/libfabric' in line}), flush=True)
os._exit(0)";
    let (status, said) = real.python(maps);
    assert!(status == Some(0) && said.contains("nixl.libs/libfabric-"), "{said}");
    let request = asked(&real.efa, false);
    let Applied::Changed(journal) = carry_out(&real.root, &[Remedy::BundledLibraries], &request).unwrap()
    else {
        panic!()
    };
    assert!(journal.entries.iter().any(|entry| entry.path.contains("nixl.libs/libfabric-")), "{journal:?}");
    let (status, said) = real.python(maps);
    assert!(
        status == Some(0)
            && said.contains("/efa/lib/libfabric.so.1")
            && !said.contains("nixl.libs/libfabric-"),
        "{said}"
    );
    assert_eq!(carry_out(&real.root, &[Remedy::BundledLibraries], &request).unwrap(), Applied::Nothing);
    undo(&real.root);
    assert!(image(&real.root) == before, "the undo left something");
}

#[test]
fn libfabric_becomes_the_default_of_the_real_wheel_and_ucx_again() {
    let Some(real) = Real::new("the default backend", "nixl-fix", NOW) else { return };
    let before = image(&real.root);
    let backends = "from nixl_cu12._api import nixl_agent_config as c; print(c().backends, flush=True); import os; os._exit(0)";
    assert_eq!(real.python(backends).1.trim(), "['UCX']");
    let remedies = [Remedy::LoaderPath, Remedy::Libfabric, Remedy::DefaultBackend];
    if !Path::new("/usr/lib/x86_64-linux-gnu/libhwloc.so.15").exists() {
        skip(
            "the default backend of the real wheel: libhwloc.so.15 is not installed, which its plugin needs",
        );
        return;
    }
    let Applied::Changed(journal) = carry_out(&real.root, &remedies, &asked(&real.efa, true)).unwrap() else {
        panic!()
    };
    assert_eq!(journal.remedies, remedies);
    assert_eq!(real.python(backends).1.trim(), "['LIBFABRIC']");
    // The plugin can be loaded by itself now, with the EFA software's libfabric, and carries an agent.
    let agent = "\
from nixl_cu12._api import nixl_agent
agent = nixl_agent('a')
print(list(agent.backends), sorted({l.split()[-1] for l in open('/proc/self/maps') if '/libfabric' in l}), flush=True)
import os; os._exit(0)";
    let (status, said) = real.python(agent);
    assert!(
        status == Some(0) && said.contains("['LIBFABRIC'] ") && said.contains("/efa/lib/libfabric.so.1"),
        "{said}"
    );
    assert_eq!(carry_out(&real.root, &remedies, &asked(&real.efa, true)).unwrap(), Applied::Nothing);
    undo(&real.root);
    assert_eq!(real.python(backends).1.trim(), "['UCX']");
    assert!(image(&real.root) == before, "the undo left something");
}

#[test]
fn the_real_wheel_crashes_at_exit_no_more_where_the_system_has_rdma_libraries_too() {
    let Some(real) = Real::new("the crash at exit", "nixl-fix", NOW) else { return };
    let agent = "from nixl_cu12._api import nixl_agent, nixl_agent_config as c; a = nixl_agent('a', c(backends=['UCX'])); print('made')";
    let (status, said) = real.python(agent);
    assert!(said.contains("made"), "{said}");
    if status == Some(0) {
        skip("the crash at exit: this host has no second copy of libnl (Debian: ibverbs-providers)");
        return;
    }
    carry_out(&real.root, &[Remedy::BundledLibraries], &asked(Path::new("/nonexistent"), false)).unwrap();
    assert_eq!(real.python(agent).0, Some(0));
    undo(&real.root);
    assert_ne!(real.python(agent).0, Some(0), "the condition was real");
}
