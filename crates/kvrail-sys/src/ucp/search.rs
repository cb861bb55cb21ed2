//! Where a UCX is looked for, in which order.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// Environment variable: the UCX to use, `libucp.so.0` or its directory.
pub const VARIABLE: &str = "KVRAIL_UCX";
/// Name under which programs load it.
pub const SONAME: &str = "libucp.so.0";
/// Variables that name the prefix of the active Python environment.
const PREFIXES: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];
/// Directories of wheels with a UCX, below `site-packages`, best first: UCX's own wheel, then what NIXL's bring along.
const WHEELS: [&str; 4] = ["libucx/lib", "libucx", "nixl_cu12.libs", "nixl_cu13.libs"];
/// Where the `mpich` wheel puts it, below the prefix.
const MPICH: &str = "lib/mpich";

/// Who led to a UCX.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Origin {
    /// The configuration names it.
    Config,
    /// The variable [`VARIABLE`] names it.
    Variable,
    /// A wheel of a Python environment has it.
    Wheel,
    /// The loader knows it: `LD_LIBRARY_PATH`, its cache, its default directories, or the process has it already.
    Loader,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "the configuration",
            Self::Variable => VARIABLE,
            Self::Wheel => "a wheel",
            Self::Loader => "the loader",
        })
    }
}

/// A place that may have a UCX.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// A file, or [`SONAME`] alone, which the loader resolves.
    pub(super) library: PathBuf,
    pub(super) origin: Origin,
}

/// What is known before the search: taken once, so that a search does not depend on when it happens.
#[derive(Clone, Debug, Default)]
pub struct Search {
    named: Option<(PathBuf, Origin)>,
    prefixes: Vec<PathBuf>,
}

impl Search {
    /// A search that begins with the configuration's path, if it has one, and else follows the environment.
    ///
    /// A path, or a variable [`VARIABLE`] that is set and not empty, is the only place looked at: a file, or a directory with
    /// `libucp.so.0` or a wheel's `libucp-….so…` in it. Without either: the wheels `libucx`, `nixl-cu12`, `nixl-cu13` and `mpich` of
    /// the active Python environment (`VIRTUAL_ENV`, `CONDA_PREFIX`, and the one that `python3` on `PATH` is in), then the loader's
    /// [`SONAME`].
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
        let mut prefixes: Vec<PathBuf> = PREFIXES.into_iter().filter_map(set).map(PathBuf::from).collect();
        let python = set("PATH").and_then(|path| {
            env::split_paths(&path).find(|at| at.is_absolute() && at.join("python3").is_file())
        });
        // The link is not followed: a virtual environment's python3 is a link to the system's.
        if let Some(prefix) = python.as_deref().and_then(Path::parent)
            && !prefixes.iter().any(|known| known == prefix)
        {
            prefixes.push(prefix.to_path_buf());
        }
        Self { named, prefixes }
    }

    /// The path that was named, with who named it.
    #[must_use]
    pub fn named(&self) -> Option<(&Path, Origin)> {
        self.named.as_ref().map(|(path, origin)| (path.as_path(), *origin))
    }

    /// The places, in order. A named one is the only one, whether it is there or not; of the others the files that exist.
    pub(super) fn places(&self) -> Vec<Place> {
        if let Some((path, origin)) = &self.named {
            let library = if path.is_dir() { in_directory(path) } else { None };
            // A name without a directory would be searched for by the loader: that is not what was named.
            let library =
                library.unwrap_or_else(|| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
            return vec![Place { library, origin: *origin }];
        }
        let wheels = self.directories().into_iter().filter_map(|at| in_directory(&at));
        let wheels = wheels.map(|library| Place { library, origin: Origin::Wheel });
        wheels.chain([Place { library: SONAME.into(), origin: Origin::Loader }]).collect()
    }

    /// Directories in which wheels may have put one.
    fn directories(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for prefix in &self.prefixes {
            for packages in packages(prefix) {
                all.extend(WHEELS.iter().map(|wheel| packages.join(wheel)));
            }
            all.push(prefix.join(MPICH));
        }
        all
    }

    /// Everywhere that [`places`](Self::places) looks, in words.
    pub(super) fn looked(&self) -> Vec<String> {
        let wheels = self
            .prefixes
            .iter()
            .map(|prefix| format!("{} (wheels libucx-cu12, nixl-cu12, nixl-cu13, mpich)", prefix.display()));
        let loader = format!("the loader's {SONAME} (LD_LIBRARY_PATH, cache, default directories)");
        wheels.chain([loader]).collect()
    }
}

/// `lib/python3.*/site-packages` and Debian's `dist-packages` below a prefix, sorted, so that a search ends the same way each time.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for lib in [prefix.join("lib"), prefix.join("local/lib")] {
        let pythons = std::fs::read_dir(lib).into_iter().flatten().flatten();
        for python in pythons.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"python3")) {
            found.extend(["site-packages", "dist-packages"].map(|name| python.path().join(name)));
        }
    }
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

/// The library of a directory: [`SONAME`], or `libucp-<hash>.so…` as wheels rename it.
fn in_directory(directory: &Path) -> Option<PathBuf> {
    let plain = directory.join(SONAME);
    if plain.is_file() {
        return Some(plain);
    }
    let renamed = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("libucp-") && name.contains(".so")
    });
    renamed.min()
}

/// Whether a place leaves it to the loader where the file is.
pub(super) fn is_loaders(library: &Path) -> bool {
    library.as_os_str() == OsStr::new(SONAME)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn environment(pairs: &[(&str, &Path)]) -> impl Fn(&str) -> Option<OsString> + use<> {
        let pairs: Vec<(String, OsString)> =
            pairs.iter().map(|(k, v)| ((*k).into(), v.as_os_str().into())).collect();
        move |name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    fn touch(path: PathBuf) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"").unwrap();
        path
    }

    #[test]
    fn a_named_path_is_the_only_place() {
        let variable = environment(&[(VARIABLE, Path::new("/v/libucp.so.0"))]);
        let by_config = Search::of(Some(Path::new("/c/lib.so")), &variable);
        assert_eq!(by_config.places(), [Place { library: "/c/lib.so".into(), origin: Origin::Config }]);
        let by_variable = Search::of(None, &variable);
        let place = Place { library: "/v/libucp.so.0".into(), origin: Origin::Variable };
        assert_eq!(by_variable.places(), [place]);
        let bare = Search::of(Some(Path::new(SONAME)), |_| None).places();
        assert!(bare[0].library.is_absolute() && !is_loaders(&bare[0].library), "{bare:?}");
    }

    #[test]
    fn a_named_directory_means_the_library_in_it_whatever_a_wheel_calls_it() {
        let directory = tempfile::tempdir().unwrap();
        let renamed = touch(directory.path().join("libucp-b39b3ed9.so.0.0.0"));
        let places = || Search::of(Some(directory.path()), |_| None).places();
        assert_eq!(places()[0].library, renamed);
        let plain = touch(directory.path().join(SONAME));
        assert_eq!(places()[0].library, plain);
    }

    #[test]
    fn wheels_of_the_active_environment_come_before_the_loader_and_ucx_s_own_before_nixl_s() {
        let prefix = tempfile::tempdir().unwrap();
        let packages = prefix.path().join("lib/python3.11/site-packages");
        let nixl = touch(packages.join("nixl_cu12.libs/libucp-00c0ffee.so.0.0.0"));
        let own = touch(packages.join("libucx/lib").join(SONAME));
        let mpich = touch(prefix.path().join(MPICH).join(SONAME));
        let search = Search::of(None, environment(&[("VIRTUAL_ENV", prefix.path())]));
        let places: Vec<PathBuf> = search.places().into_iter().map(|place| place.library).collect();
        assert_eq!(places, [own, nixl, mpich, PathBuf::from(SONAME)]);
    }

    #[test]
    fn python_on_the_path_leads_to_its_environment() {
        let prefix = tempfile::tempdir().unwrap();
        touch(prefix.path().join("bin/python3"));
        let own = touch(prefix.path().join("lib/python3.12/site-packages/libucx/lib").join(SONAME));
        let search = Search::of(None, environment(&[("PATH", &prefix.path().join("bin"))]));
        assert_eq!(search.places()[0], Place { library: own, origin: Origin::Wheel });
        assert!(search.looked()[0].starts_with(prefix.path().to_str().unwrap()), "{:?}", search.looked());
    }
}
