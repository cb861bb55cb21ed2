//! A wheel as auditwheel and meson-python leave it, small, made with the host's C compiler.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const COPY: &str = "libfabric-0a1b2c3d.so.1.29.0";

/// A virtual environment with a wheel of NIXL that brings its own libfabric, and EFA's software beside it.
pub(crate) struct Made {
    _directory: tempfile::TempDir,
    directory: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) site: PathBuf,
    pub(crate) efa: PathBuf,
    needs: String,
    has: String,
}

impl Made {
    /// The plugin needs one level of libfabric's symbols, and the EFA software has another one.
    pub(crate) fn new(needs: &str, has: &str) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().canonicalize().unwrap();
        let root = directory.join("venv");
        let (well, said) = run("python3", &["-m", "venv", "--without-pip", root.to_str().unwrap()]);
        assert!(well, "{said}");
        let (well, said) = run(
            root.join("bin/python3").to_str().unwrap(),
            &["-c", "import sysconfig; print(sysconfig.get_path('platlib'))"],
        );
        assert!(well, "{said}");
        let site = PathBuf::from(said.trim()).canonicalize().unwrap();
        let efa = directory.join("efa");
        for made in ["nixl.libs/nixl", ".nixl.mesonpy.libs", "nixl"] {
            fs::create_dir_all(site.join(made)).unwrap();
        }
        fs::create_dir_all(efa.join("lib")).unwrap();
        let made =
            Self { _directory: temporary, directory, root, site, efa, needs: needs.into(), has: has.into() };
        made.library(&made.copy(), COPY, needs, "the wheel's", "");
        made.library(&made.efa.join("lib/libfabric.so.1"), "libfabric.so.1", has, "the system's", "");
        let common = made.site.join(".nixl.mesonpy.libs/libnixl_common.so");
        made.library(&common, "libnixl_common.so", "NIXL_1", "common", "");
        made.plugin(&[&made.copy()]);
        let bindings = made.c("bindings.c", "int bindings;");
        made.cc(&[bindings.as_str(), "-o", made.site.join("nixl/_bindings.cpython-so.so").to_str().unwrap()]);
        fs::write(made.site.join("nixl/__init__.py"), "").unwrap();
        fs::write(made.site.join("nixl/_bindings.py"), "").unwrap();
        let api = "class nixl_agent_config:\n    def __init__(\n        self,\n        backends: list[str] = [\"UCX\"],\n    ):\n        self.backends = backends\n\n\nclass nixl_agent:\n    pass\n";
        fs::write(made.site.join("nixl/_api.py"), api).unwrap();
        made
    }

    /// The EFA software's libfabric has the right tables, and crashes when it is loaded.
    pub(crate) fn with_system_that_crashes(self) -> Self {
        let bad = "__attribute__((constructor)) static void begin(void) { __builtin_trap(); }";
        let path = self.efa.join("lib/libfabric.so.1");
        self.library(&path, "libfabric.so.1", &self.has, "the system's", bad);
        self
    }

    /// The plugin is linked to a libfabric that the wheel does not bring, and to a library that is not where it looks.
    pub(crate) fn with_unbundled_plugin(self) -> Self {
        fs::remove_file(self.copy()).unwrap();
        let like = self.directory.join("like");
        fs::create_dir_all(&like).unwrap();
        let fabric = like.join("libfabric.so.1");
        self.library(&fabric, "libfabric.so.1", &self.needs, "never loaded", "");
        let common = self.site.join(".nixl.mesonpy.libs/libnixl_common.so");
        self.plugin(&[&fabric, &common]);
        self
    }

    /// The wheel's copy of libfabric.
    pub(crate) fn copy(&self) -> PathBuf {
        self.site.join("nixl.libs").join(COPY)
    }

    /// Whose libfabric the plugin gets, or why it gets none.
    pub(crate) fn which(&self) -> String {
        let script = "import ctypes, sys\nplugin = ctypes.CDLL(sys.argv[1])\nplugin.which.restype = ctypes.c_char_p\nprint(plugin.which().decode())";
        let plugin = self.site.join("nixl.libs/nixl/libplugin_LIBFABRIC.so");
        self.python(&["-B", "-c", script, plugin.to_str().unwrap()]).1.trim().to_owned()
    }

    /// Why the plugin cannot be loaded; nothing where it can.
    pub(crate) fn load(&self) -> String {
        let plugin = self.site.join("nixl.libs/nixl/libplugin_LIBFABRIC.so");
        let (well, said) = self.python(&[
            "-B",
            "-c",
            "import ctypes, sys; ctypes.CDLL(sys.argv[1])",
            plugin.to_str().unwrap(),
        ]);
        if well { String::new() } else { said }
    }

    /// What an agent's configuration says that names no backend.
    pub(crate) fn backends(&self) -> String {
        let script = "from nixl._api import nixl_agent_config; print(nixl_agent_config().backends)";
        self.python(&["-B", "-c", script]).1.trim().to_owned()
    }

    pub(crate) fn python(&self, arguments: &[&str]) -> (bool, String) {
        run(self.root.join("bin/python3").to_str().unwrap(), arguments)
    }

    fn plugin(&self, linked: &[&Path]) {
        let uses_common = linked.len() > 1;
        let common = if uses_common {
            "const char *common_which(void); const char *other(void) { return common_which(); }"
        } else {
            ""
        };
        let source = self.c("plugin.c", &format!("const char *fabric_which(void); const char *which(void) {{ return fabric_which(); }}\n{common}"));
        let path = self.site.join("nixl.libs/nixl/libplugin_LIBFABRIC.so");
        let mut arguments = vec![
            source.as_str(),
            "-o",
            path.to_str().unwrap(),
            "-Wl,-rpath,$ORIGIN/..:$ORIGIN",
            "-Wl,--enable-new-dtags",
        ];
        arguments.extend(linked.iter().map(|path| path.to_str().unwrap()));
        self.cc(&arguments);
    }

    /// A library with one symbol of one version, and those before it.
    fn library(&self, path: &Path, soname: &str, version: &str, says: &str, more: &str) {
        let prefix = if soname.starts_with("libnixl") { "common" } else { "fabric" };
        let source = self
            .c("library.c", &format!("const char *{prefix}_which(void) {{ return \"{says}\"; }}\n{more}"));
        // Levels are cumulative: one that has 1.9 has 1.8 too, and a plugin is linked to its own.
        let level: u32 = version.rsplit('.').next().and_then(|level| level.parse().ok()).unwrap_or(0);
        let mut script = String::new();
        match version.strip_prefix("FABRIC_") {
            Some(_) => {
                let bound = level
                    .min(self.needs.rsplit('.').next().and_then(|level| level.parse().ok()).unwrap_or(level));
                for at in 0..=level {
                    let symbols =
                        if at == bound { format!("global: {prefix}_which; ") } else { String::new() };
                    let local = if at == 0 { "local: *; " } else { "" };
                    script += &format!("FABRIC_1.{at} {{ {symbols}{local}}};\n");
                }
            }
            None => script += &format!("{version} {{ global: {prefix}_which; local: *; }};\n"),
        }
        let versions = self.directory.join("versions");
        fs::write(&versions, script).unwrap();
        let _ = fs::remove_file(path);
        let (script, name) =
            (format!("-Wl,--version-script={}", versions.display()), format!("-Wl,-soname,{soname}"));
        self.cc(&[source.as_str(), "-o", path.to_str().unwrap(), &script, &name]);
    }

    fn c(&self, name: &str, text: &str) -> String {
        let path = self.directory.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn cc(&self, arguments: &[&str]) {
        let all: Vec<&str> =
            ["-shared", "-fPIC", "-Wl,--no-as-needed"].iter().chain(arguments).copied().collect();
        let (well, said) = run("cc", &all);
        assert!(well, "{said}");
    }
}

/// Runs a program: whether it ended well, and what it wrote.
pub(crate) fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    match Command::new(program)
        .args(arguments)
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("PYTHONPATH")
        .output()
    {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&said).into_owned())
        }
        Err(error) => (false, format!("{program}: {error}")),
    }
}

/// All that a tree is, times included.
pub(crate) fn image(root: &Path) -> BTreeMap<PathBuf, (String, u32, i64, i64)> {
    fn walk(at: &Path, image: &mut BTreeMap<PathBuf, (String, u32, i64, i64)>) {
        let metadata = at.symlink_metadata().unwrap();
        let what = if metadata.is_symlink() {
            format!("link {}", fs::read_link(at).unwrap().display())
        } else if metadata.is_dir() {
            for entry in fs::read_dir(at).unwrap() {
                walk(&entry.unwrap().path(), image);
            }
            "directory".into()
        } else {
            sum(&fs::read(at).unwrap())
        };
        image.insert(at.into(), (what, metadata.mode(), metadata.mtime(), metadata.mtime_nsec()));
    }
    let mut all = BTreeMap::new();
    walk(root, &mut all);
    all
}

/// A fingerprint of a content (FNV-1a and the length): what is compared here was not made to deceive.
fn sum(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{} bytes {hash:x}", bytes.len())
}

/// A tree of the same files under other names: what never writes into a file does no harm to the original.
pub(crate) fn twin(of: &Path, at: &Path) {
    fs::create_dir(at).unwrap();
    for entry in fs::read_dir(of).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), at.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            twin(&from, &to);
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from).unwrap(), &to).unwrap();
        } else {
            fs::hard_link(&from, &to).unwrap();
        }
    }
}
