//! Where a NIXL is looked for, in which order, and what lies beside it. Nothing is loaded here.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::abi::Functions;
use super::error::LoadError;
use crate::elf::{Elf, HOST};

/// Environment variable: the NIXL to use, a file, its directory or the root of a Python environment.
pub const VARIABLE: &str = "KVRAIL_NIXL";
/// The library of the C API.
pub const LIBRARY: &str = "libnixl_capi.so";
/// Variables that name the prefix of the active Python environment.
const PREFIXES: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];
/// Where a NIXL built from source goes: its own default, and NVIDIA's containers.
const SYSTEM: [&str; 3] = ["/usr/local/nixl/lib", "/opt/nvidia/nvda_nixl/lib", "/usr/local/lib"];
/// Debian's directory of this machine's libraries, below a `lib`.
const MULTIARCH: &str = if cfg!(target_arch = "aarch64") { "aarch64-linux-gnu" } else { "x86_64-linux-gnu" };

/// Who led to a NIXL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Origin {
    /// The configuration names it.
    Config,
    /// The variable [`VARIABLE`] names it.
    Variable,
    /// A wheel in the active Python environment.
    Environment,
    /// A wheel beside a `python3` of `PATH`.
    Python,
    /// A NIXL built from source, in one of its default places.
    System,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "the configuration",
            Self::Variable => VARIABLE,
            Self::Environment => "the active Python environment",
            Self::Python => "the Python of PATH",
            Self::System => "the system",
        })
    }
}

/// What is known before the search: taken once, so that a search does not depend on when it happens.
#[derive(Clone, Debug, Default)]
pub struct Search {
    named: Option<(PathBuf, Origin)>,
    /// Roots of Python environments, in order.
    roots: Vec<(PathBuf, Origin)>,
    plugins: Option<PathBuf>,
}

impl Search {
    /// A search that begins with the configuration's path, if it has one, and else follows the environment.
    ///
    /// A path, or a variable [`VARIABLE`] that is set and not empty, is the only place looked at. Without either: wheels in the
    /// environments of `VIRTUAL_ENV` and `CONDA_PREFIX`, wheels of each `python3` in `PATH`, `~/.local`, default places of a NIXL that
    /// was built from source.
    #[must_use]
    pub fn new(config: Option<&Path>) -> Self {
        Self::of(config, |name| env::var_os(name))
    }

    /// The same, with an environment of the caller's.
    #[must_use]
    pub fn of(config: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let named = config
            .map(|path| (path.to_path_buf(), Origin::Config))
            .or_else(|| set(VARIABLE).map(|path| (path.into(), Origin::Variable)));
        let active = PREFIXES.into_iter().filter_map(set).map(|root| (root.into(), Origin::Environment));
        let path = set("PATH").unwrap_or_default();
        let pythons = env::split_paths(&path).filter(|bin| bin.join("python3").is_file());
        let pythons = pythons.filter_map(|bin| Some((bin.parent()?.to_path_buf(), Origin::Python)));
        let home = set("HOME").map(|home| (Path::new(&home).join(".local"), Origin::Python));
        let mut roots: Vec<(PathBuf, Origin)> = Vec::new();
        for (root, origin) in active.chain(pythons).chain(home) {
            if !roots.iter().any(|(known, _)| *known == root) {
                roots.push((root, origin));
            }
        }
        Self { named, roots, plugins: set("NIXL_PLUGIN_DIR").map(PathBuf::from) }
    }

    fn looked(&self) -> Vec<String> {
        let wheels = self.roots.iter().map(|(root, origin)| format!("{} ({origin})", root.display()));
        wheels.chain(SYSTEM.map(String::from)).collect()
    }
}

/// A NIXL on this machine, not loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Installation {
    library: PathBuf,
    origin: Origin,
    version: Option<String>,
    plugins: Option<PathBuf>,
    packages: Option<PathBuf>,
}

impl Installation {
    /// Finds one and looks at its file.
    ///
    /// # Errors
    /// That there is none, or why the first one that is there cannot be used.
    pub fn find(search: &Search) -> Result<Self, LoadError> {
        if let Some((path, origin)) = &search.named {
            let not_there = || LoadError::NotThere { path: path.clone(), origin: *origin };
            // A name without a directory would be searched for by the loader: that is not what was named.
            let path = std::path::absolute(path).map_err(|_| not_there())?;
            let library = if path.is_dir() { below(&path) } else { Some(path).filter(|path| path.is_file()) };
            return Self::of(library.ok_or_else(not_there)?, *origin, search);
        }
        let wheels = search.roots.iter().filter_map(|(root, origin)| Some((in_environment(root)?, *origin)));
        let system = SYSTEM.iter().filter_map(|lib| Some((in_lib(Path::new(lib))?, Origin::System)));
        match wheels.chain(system).next() {
            Some((library, origin)) => Self::of(library, origin, search),
            None => Err(LoadError::NotFound { looked: search.looked() }),
        }
    }

    fn of(library: PathBuf, origin: Origin, search: &Search) -> Result<Self, LoadError> {
        let elf = Elf::read(&library).map_err(|error| LoadError::Refused {
            path: library.clone(),
            dlerror: format!("no library: {}", error.why),
        })?;
        if elf.machine != HOST {
            return Err(LoadError::Machine { path: library, machine: elf.machine });
        }
        let has = |name: &&str| elf.exports.iter().any(|(export, _)| export == name);
        let missing: Vec<_> = Functions::NAMES.iter().filter(|name| !has(name)).copied().collect();
        if !missing.is_empty() {
            return Err(LoadError::MissingSymbols { path: library, missing });
        }
        let directory = library.parent().unwrap_or(Path::new("/"));
        let stem = directory.file_name().and_then(|name| name.to_str()).and_then(wheel_of);
        let packages = stem.and_then(|_| directory.parent()).map(Path::to_path_buf);
        let beside = stem.map(|stem| format!("../{stem}.libs/nixl"));
        let plugins = std::iter::once("plugins".to_owned()).chain(beside).map(|part| directory.join(part));
        let plugins = search.plugins.clone().into_iter().chain(plugins).find(|place| place.is_dir());
        let version = packages.as_deref().zip(stem).and_then(|(packages, stem)| version_of(packages, stem));
        Ok(Self { library, origin, version, plugins, packages })
    }

    /// The library of the C API.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Who led to it.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// Its release, as in `1.5.1`, where it came in a wheel. The library itself says it only in its log.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Where its plugins are.
    #[must_use]
    pub fn plugins(&self) -> Option<&Path> {
        self.plugins.as_deref()
    }

    /// The directory of Python packages that its wheel is in.
    #[must_use]
    pub fn packages(&self) -> Option<&Path> {
        self.packages.as_deref()
    }

    /// The file of a backend's plugin, by the backend's name in NIXL's own case.
    #[must_use]
    pub fn plugin(&self, backend: &str) -> Option<PathBuf> {
        let file = self.plugins.as_ref()?.join(format!("libplugin_{backend}.so"));
        file.is_file().then_some(file)
    }

    /// The backends that it has plugins for, as far as files say: sorted, in NIXL's own case.
    #[must_use]
    pub fn backends(&self) -> Vec<String> {
        let entries =
            self.plugins.as_ref().and_then(|place| place.read_dir().ok()).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names
            .filter_map(|name| Some(name.strip_prefix("libplugin_")?.strip_suffix(".so")?.to_owned()))
            .collect();
        names.sort();
        names
    }

    /// A backend's name in NIXL's own case, from one in any case; as it was given where there is no such plugin.
    #[must_use]
    pub fn backend(&self, name: &str) -> String {
        let own = self.backends().into_iter().find(|own| own.eq_ignore_ascii_case(name));
        own.unwrap_or_else(|| name.to_owned())
    }
}

/// The library in a directory that was named: itself, a `site-packages`, the root of an environment, a prefix.
fn below(directory: &Path) -> Option<PathBuf> {
    let itself = Some(directory.join(LIBRARY)).filter(|file| file.is_file());
    itself
        .or_else(|| in_packages(directory))
        .or_else(|| in_environment(directory))
        .or_else(|| in_lib(&directory.join("lib")))
}

fn in_lib(lib: &Path) -> Option<PathBuf> {
    [lib.join(MULTIARCH), lib.into()].iter().map(|place| place.join(LIBRARY)).find(|file| file.is_file())
}

/// The wheel in an environment: `lib*/python3*/{site,dist}-packages` below its root.
fn in_environment(root: &Path) -> Option<PathBuf> {
    let libs = ["lib", "lib64", "local/lib"].map(|lib| root.join(lib));
    let pythons = libs.iter().flat_map(|lib| entries(lib, |name| name.starts_with("python3")));
    pythons
        .flat_map(|python| ["site-packages", "dist-packages"].map(|packages| python.join(packages)))
        .find_map(|packages| in_packages(&packages))
}

/// The wheel in a directory of packages. Its folder is `.nixl_cu12.mesonpy.libs`, or another CUDA's.
fn in_packages(packages: &Path) -> Option<PathBuf> {
    let wheels = entries(packages, |name| wheel_of(name).is_some());
    wheels.into_iter().map(|wheel| wheel.join(LIBRARY)).find(|file| file.is_file())
}

/// `nixl_cu12` of `.nixl_cu12.mesonpy.libs`.
fn wheel_of(folder: &str) -> Option<&str> {
    let stem = folder.strip_prefix('.')?.strip_suffix(".mesonpy.libs")?;
    stem.starts_with("nixl").then_some(stem)
}

/// `1.5.1` of `nixl_cu12-1.5.1.dist-info`.
fn version_of(packages: &Path, stem: &str) -> Option<String> {
    let info =
        |name: &str| Some(name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".dist-info")?.to_owned());
    let folders = entries(packages, |name| info(name).is_some());
    folders.first()?.file_name()?.to_str().and_then(info)
}

/// What in a directory has such a name, sorted; nothing where there is no directory.
fn entries(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let all = directory.read_dir().into_iter().flatten().flatten();
    let mut found: Vec<_> = all
        .filter(|entry| entry.file_name().to_str().is_some_and(&is_wanted))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: fn(&str) -> Option<OsString> = |_| None;

    /// A file laid out as in a wheel; what is in it does not matter to the search.
    fn wheel(root: &Path, python: &str) -> PathBuf {
        let packages = root.join("lib").join(python).join("site-packages");
        std::fs::create_dir_all(packages.join(".nixl_cu12.mesonpy.libs/plugins")).unwrap();
        std::fs::create_dir_all(packages.join("nixl_cu12-1.5.1.dist-info")).unwrap();
        let library = packages.join(".nixl_cu12.mesonpy.libs").join(LIBRARY);
        std::fs::write(&library, b"").unwrap();
        library
    }

    #[test]
    fn a_named_place_is_the_only_one_whatever_form_it_has() {
        let root = tempfile::tempdir().unwrap();
        let library = wheel(root.path(), "python3.11");
        let packages = library.parent().unwrap().parent().unwrap();
        for named in [root.path(), packages, library.parent().unwrap(), &library] {
            // An empty file is found, and refused as such.
            let error = Installation::find(&Search::of(Some(named), NOTHING)).unwrap_err();
            assert!(matches!(&error, LoadError::Refused { path, .. } if *path == library), "{error}");
        }
        let variable = |name: &str| match name {
            VARIABLE => Some("/nowhere".into()),
            "VIRTUAL_ENV" => Some(root.path().into()),
            _ => None,
        };
        let error = Installation::find(&Search::of(None, variable)).unwrap_err();
        assert_eq!(error, LoadError::NotThere { path: "/nowhere".into(), origin: Origin::Variable });
    }

    #[test]
    fn the_active_environment_comes_before_the_python_of_path() {
        let (active, path) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (wheel(active.path(), "python3.12"), wheel(path.path(), "python3.9"));
        std::fs::create_dir(path.path().join("bin")).unwrap();
        std::fs::write(path.path().join("bin/python3"), b"").unwrap();
        let bin = path.path().join("bin").into_os_string();
        let found = |set: &[(&str, OsString)]| {
            let search = Search::of(None, |name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())
            });
            match Installation::find(&search) {
                Err(LoadError::Refused { path, .. }) => path,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(found(&[("PATH", bin.clone())]), second);
        assert_eq!(found(&[("PATH", bin), ("VIRTUAL_ENV", active.path().into())]), first);
    }

    #[test]
    fn the_version_is_the_wheels() {
        let root = tempfile::tempdir().unwrap();
        let library = wheel(root.path(), "python3.11");
        let packages = library.parent().unwrap().parent().unwrap();
        assert_eq!(version_of(packages, "nixl_cu12").as_deref(), Some("1.5.1"));
        assert_eq!(version_of(packages, "nixl_cu13"), None);
        assert_eq!(wheel_of(".nixl_cu13.mesonpy.libs"), Some("nixl_cu13"));
        assert_eq!(wheel_of("numpy.libs"), None);
    }

    #[test]
    fn nothing_found_says_where_it_was_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let search = Search::of(None, |name| (name == "VIRTUAL_ENV").then(|| root.path().into()));
        let looked = search.looked();
        assert!(
            looked[0].contains("active Python environment") && looked.len() == 1 + SYSTEM.len(),
            "{looked:?}"
        );
    }
}
