//! What is installed of NIXL, UCX and libfabric, and in which Python environments, from files alone.

use std::sync::Arc;

use super::loader::{base, directory, normal};
use crate::host::{EntryKind, Host};

/// Where a NIXL built from source goes: its own default, and NVIDIA's containers.
const NIXL_PREFIXES: [&str; 3] = ["/usr/local/nixl", "/opt/nvidia/nvda_nixl", "/usr/local"];
/// Directories of libraries below a prefix.
const LIBS: [&str; 4] = ["lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib64"];
/// Where AWS's EFA installer puts its libfabric.
pub(crate) const AMAZON: [&str; 2] = ["/opt/amazon/efa/lib", "/opt/amazon/efa/lib64"];
/// What programs load of libfabric and of UCX.
pub(crate) const LIBFABRIC: &str = "libfabric.so.1";
const UCP: &str = "libucp.so.0";
/// Packages with NIXL's Python API: the old single one, and those by platform.
const MODULES: [&str; 4] = ["nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm"];
/// Packages of programs that use NIXL, as their folders are called.
const ENGINES: [&str; 5] = ["vllm", "sglang", "dynamo", "tensorrt_llm", "lmcache"];
/// Most environments that are looked at.
const ENVIRONMENTS_MAX: usize = 16;

/// What is installed.
#[derive(Debug, Default)]
pub(crate) struct Installations {
    /// Python environments, in the order in which a program would meet them.
    pub(crate) environments: Vec<Environment>,
    /// Copies of NIXL.
    pub(crate) nixl: Vec<Nixl>,
    /// Copies of UCX that are not part of a NIXL.
    pub(crate) ucx: Vec<Library>,
    /// Copies of libfabric that are not part of a NIXL.
    pub(crate) libfabric: Vec<Library>,
}

/// A Python environment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Environment {
    /// Its root, as in `/opt/venv`, with all links followed.
    pub root: String,
    /// Whether it is one of its own (venv, conda), not the system's.
    pub own: bool,
    /// Its interpreter, where there is one.
    pub python: Option<String>,
    /// Its directories of packages, with all links followed.
    pub packages: Vec<String>,
    /// Packages that use NIXL, as in `vllm`.
    pub engines: Vec<&'static str>,
    /// What led to it.
    pub by: By,
    /// The module `nixl` is there, which picks one of the wheels.
    pub has_front: bool,
    /// The major version of CUDA that its torch was built for.
    pub torch_cuda: Option<u32>,
}

/// What leads to an environment, most telling first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum By {
    /// The user named it.
    Name,
    /// It is the active one.
    Activation,
    /// Its interpreter is on `PATH`, or it is the user's own.
    Path,
}

/// A copy of NIXL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nixl {
    /// The module, as in `nixl_cu12`; `nixl` for one that was built from source.
    pub module: String,
    /// Its release, as in `1.4.0`, where it came in a wheel.
    pub version: Option<String>,
    /// The environment that it is in, as an index.
    pub environment: Option<usize>,
    /// Where its wheel was unpacked, or the prefix that it was installed to.
    pub root: String,
    /// Where its core libraries belong, whether they are there or not.
    pub core: String,
    /// The module's native part.
    pub bindings: Option<String>,
    /// The wheel's directory of libraries that came along.
    pub libraries: Option<String>,
    /// The directory in which it looks for plugins.
    pub plugin_directory: String,
    /// Plugins that it lists, whether they can be loaded or not.
    pub plugins: Vec<Plugin>,
    /// The Python file with the class of its configuration.
    pub api: Option<String>,
}

/// A plugin that NIXL lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plugin {
    /// `LIBFABRIC`, `UCX`.
    pub backend: String,
    /// Its file.
    pub path: String,
}

/// A library that programs load by its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Library {
    /// Where it is.
    pub(crate) path: String,
    /// The file that it really is.
    pub(crate) real: String,
    /// The environment that it is in, as an index; none for the system's.
    pub(crate) environment: Option<usize>,
}

impl Environment {
    /// One of which nothing is known but its root.
    pub(crate) fn bare(root: &str, by: By) -> Self {
        Self {
            root: root.into(),
            own: false,
            python: None,
            packages: Vec::new(),
            engines: Vec::new(),
            by,
            has_front: false,
            torch_cuda: None,
        }
    }
}

impl Nixl {
    /// One of which nothing is known but its module and where it is.
    pub(crate) fn bare(module: &str, root: &str) -> Self {
        Self {
            module: module.into(),
            version: None,
            environment: None,
            root: root.into(),
            core: root.into(),
            bindings: None,
            libraries: None,
            plugin_directory: root.into(),
            plugins: Vec::new(),
            api: None,
        }
    }

    /// What to call it in its environment: `nixl-cu12 1.4.0`.
    #[must_use]
    pub fn release(&self) -> String {
        let version = self.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        format!("{}{version}", self.module.replace('_', "-"))
    }

    /// What to call it: `nixl-cu12 1.4.0 in /opt/venv`.
    pub(crate) fn name(&self, all: &Installations) -> String {
        format!("{} in {}", self.release(), self.home(all).map_or(self.root.as_str(), |home| &home.root))
    }

    /// The environment that it is in.
    pub(crate) fn home<'a>(&self, all: &'a Installations) -> Option<&'a Environment> {
        all.environments.get(self.environment?)
    }

    /// The plugin of a backend.
    pub(crate) fn plugin(&self, backend: &str) -> Option<&Plugin> {
        self.plugins.iter().find(|plugin| plugin.backend == backend)
    }

    /// The major version of CUDA that it was built for, where its name says it.
    pub(crate) fn cuda(&self) -> Option<u32> {
        self.module.strip_prefix("nixl_cu")?.parse().ok()
    }

    /// What to type to get this very release again.
    pub(crate) fn reinstall(&self, all: &Installations) -> Option<String> {
        let python = self.home(all)?.python.as_deref()?;
        let wheel = self.module.replace('_', "-");
        let version = self.version.as_ref().map(|version| format!("=={version}")).unwrap_or_default();
        Some(format!("{python} -m pip install --force-reinstall --no-deps {wheel}{version}"))
    }
}

/// What is installed on a host; looked for once.
pub(crate) fn installations(host: &Host) -> Arc<Installations> {
    host.once(look)
}

fn look(host: &Host) -> Installations {
    let mut all = Installations { environments: environments(host), ..Installations::default() };
    for (index, environment) in all.environments.iter().enumerate() {
        for packages in &environment.packages {
            wheels(host, index, packages, &mut all.nixl);
        }
        let near = environment
            .packages
            .iter()
            .flat_map(|packages| [format!("{packages}/libucx/lib"), format!("{packages}/libucx")]);
        let mpich = format!("{}/lib/mpich", environment.root);
        all.ucx.extend(near.chain([mpich.clone()]).filter_map(|at| library(host, &at, UCP, Some(index))));
        all.libfabric.extend(library(host, &mpich, LIBFABRIC, Some(index)));
    }
    for prefix in NIXL_PREFIXES {
        for lib in LIBS.map(|lib| format!("{prefix}/{lib}")) {
            if all.nixl.iter().any(|known| known.core == lib)
                || !host.exists_file(&format!("{lib}/libnixl.so"))
            {
                continue;
            }
            all.nixl.push(of(host, "nixl", None, None, prefix, lib, None));
        }
    }
    let loader = super::loader::Loader::new(host);
    let system = |name: &str| {
        loader.find(name).map(|(path, _)| Library { real: real(host, &path), path, environment: None })
    };
    let mut libfabric: Vec<Library> = system(LIBFABRIC).into_iter().collect();
    libfabric.extend(AMAZON.iter().filter_map(|at| library(host, at, LIBFABRIC, None)));
    libfabric.append(&mut all.libfabric);
    all.libfabric = distinct(libfabric);
    all.ucx.extend(system(UCP));
    all.ucx = distinct(std::mem::take(&mut all.ucx));
    all
}

fn distinct(libraries: Vec<Library>) -> Vec<Library> {
    let mut kept: Vec<Library> = Vec::new();
    for library in libraries {
        if !kept.iter().any(|known| known.real == library.real) {
            kept.push(library);
        }
    }
    kept
}

fn library(host: &Host, at: &str, name: &str, environment: Option<usize>) -> Option<Library> {
    let path = format!("{at}/{name}");
    host.elf(&path).ok()?;
    Some(Library { real: real(host, &path), path, environment })
}

fn real(host: &Host, path: &str) -> String {
    host.entry(path).map_or_else(|_| path.to_owned(), |entry| entry.real)
}

/// The environments: those that were named, the active one, those of `python3` on `PATH`, the user's own.
fn environments(host: &Host) -> Vec<Environment> {
    let mut roots: Vec<(String, By)> =
        host.scope().python.iter().map(|root| (root_of(root), By::Name)).collect();
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| host.variable(name));
    roots.extend(active.map(|root| (normal(root), By::Activation)));
    for bin in host.variable("PATH").unwrap_or_default().split(':').filter(|part| part.starts_with('/')) {
        if !host.exists(&format!("{bin}/python3")) {
            continue;
        }
        if base(bin) == "shims" {
            // What is there only leads to an interpreter, which knows where it is.
            let prefix = host.run(&["python3", "-c", "import sys; print(sys.prefix)"]);
            let prefix = prefix.ok().filter(|ran| ran.is_success());
            roots.extend(prefix.map(|ran| (normal(ran.stdout.trim()), By::Path)));
        } else {
            roots.push((normal(directory(bin)), By::Path));
        }
    }
    let home = host.variable("HOME");
    roots.extend(home.map(|home| (format!("{}/.local", home.trim_end_matches('/')), By::Path)));
    let mut found: Vec<Environment> = Vec::new();
    for (root, by) in roots {
        let root = real(host, &root);
        if found.len() == ENVIRONMENTS_MAX || found.iter().any(|known| known.root == root) {
            continue;
        }
        let mut environment = environment(host, root, by);
        // `/bin/python3` and `/usr/bin/python3` are one on most hosts.
        environment.packages.retain(|at| !found.iter().any(|known| known.packages.contains(at)));
        if by < By::Path || !environment.packages.is_empty() {
            found.push(environment);
        }
    }
    found
}

/// `/opt/venv` of `/opt/venv/bin/python3` and of `/opt/venv`.
fn root_of(named: &str) -> String {
    let named = normal(named);
    let at = directory(&named);
    if base(&named).starts_with("python") && base(at) == "bin" { directory(at).to_owned() } else { named }
}

fn environment(host: &Host, root: String, by: By) -> Environment {
    let mut packages: Vec<String> = Vec::new();
    let mut add = |path: &str| {
        // `lib64` of a virtual environment is a link to its `lib`.
        if let Ok(entry) = host.entry(path)
            && entry.kind == EntryKind::Directory
            && !packages.contains(&entry.real)
        {
            packages.push(entry.real);
        }
    };
    let top = if root == "/" { "" } else { root.as_str() };
    for lib in ["lib", "lib64", "local/lib"].map(|lib| format!("{top}/{lib}")) {
        for python in host.names(&lib).unwrap_or_default().iter().filter(|name| name.starts_with("python3")) {
            add(&format!("{lib}/{python}/site-packages"));
            add(&format!("{lib}/{python}/dist-packages"));
        }
    }
    // `pip install --target` makes a directory that is one of packages itself.
    let is_target =
        packages.is_empty() && MODULES.iter().any(|module| host.exists(&format!("{top}/{module}")));
    if is_target {
        packages.push(root.clone());
    }
    let has = |name: &str| packages.iter().any(|at| host.exists(&format!("{at}/{name}/__init__.py")));
    let python = ["python3", "python"].map(|name| format!("{top}/bin/{name}"));
    let torch = packages.iter().find_map(|at| host.read(&format!("{at}/torch/version.py")).ok());
    Environment {
        own: is_target
            || ["pyvenv.cfg", "conda-meta"].iter().any(|name| host.exists(&format!("{top}/{name}"))),
        python: python.into_iter().find(|path| host.exists(path)),
        engines: ENGINES.into_iter().filter(|engine| has(engine)).collect(),
        has_front: has("nixl"),
        torch_cuda: torch.and_then(|text| cuda_of_torch(&text)),
        root,
        packages,
        by,
    }
}

/// `12` of `cuda: Optional[str] = '12.8'`.
fn cuda_of_torch(version: &str) -> Option<u32> {
    let line = version.lines().find(|line| line.starts_with("cuda"))?;
    let value = line.split('=').nth(1)?.trim().trim_matches(['\'', '"']);
    value.split('.').next()?.parse().ok()
}

/// The wheels of NIXL in a directory of packages: those with a native part, whatever else of them is still there.
fn wheels(host: &Host, environment: usize, packages: &str, into: &mut Vec<Nixl>) {
    let names = host.names(packages).unwrap_or_default();
    for module in MODULES {
        let folder = format!("{packages}/{module}");
        if !names.iter().any(|name| name == module) {
            continue;
        }
        let parts = host.names(&folder).unwrap_or_default();
        let Some(bindings) = parts.iter().find(|name| name.starts_with("_bindings") && name.ends_with(".so"))
        else {
            continue;
        };
        let version = names.iter().find_map(|name| {
            let version = name.strip_prefix(module)?.strip_prefix('-')?.strip_suffix(".dist-info")?;
            Some(version.to_owned())
        });
        let core = format!("{packages}/.{module}.mesonpy.libs");
        let libraries = format!("{module}.libs");
        let libraries = names.contains(&libraries).then(|| format!("{packages}/{libraries}"));
        let mut nixl = of(host, module, version, Some(environment), packages, core, libraries);
        nixl.bindings = Some(format!("{folder}/{bindings}"));
        nixl.api = parts.iter().any(|name| name == "_api.py").then(|| format!("{folder}/_api.py"));
        into.push(nixl);
    }
}

fn of(
    host: &Host,
    module: &str,
    version: Option<String>,
    environment: Option<usize>,
    root: &str,
    core: String,
    libraries: Option<String>,
) -> Nixl {
    // NIXL takes what the variable names, else what is beside its own library.
    let own = format!("{core}/plugins");
    let beside = libraries.as_ref().map(|libraries| format!("{libraries}/nixl"));
    let named = host.variable("NIXL_PLUGIN_DIR").map(normal);
    let plugin_directory = match (named, beside) {
        (Some(named), _) => named,
        (None, Some(beside)) if host.names(&own).is_err() => beside,
        _ => own,
    };
    let files = host.names(&plugin_directory).unwrap_or_default();
    let plugins = files.iter().filter_map(|file| {
        let backend = file.strip_prefix("libplugin_")?.strip_suffix(".so")?.to_owned();
        Some(Plugin { backend, path: format!("{plugin_directory}/{file}") })
    });
    Nixl {
        version,
        environment,
        core,
        libraries,
        plugins: plugins.collect(),
        plugin_directory,
        ..Nixl::bare(module, root)
    }
}

impl Host {
    fn exists_file(&self, path: &str) -> bool {
        self.entry(path).is_ok_and(|entry| entry.kind == EntryKind::File)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_named_by_its_root_or_its_interpreter() {
        assert_eq!(root_of("/opt/venv/"), "/opt/venv");
        assert_eq!(root_of("/opt/venv/bin/python3.12"), "/opt/venv");
        assert_eq!(root_of("/home/x/python"), "/home/x/python");
        assert_eq!(cuda_of_torch("debug = False\ncuda: Optional[str] = '12.8'\n"), Some(12));
        assert_eq!(cuda_of_torch("cuda = None\n"), None);
    }
}
