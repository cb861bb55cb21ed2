//! Where a libfabric is looked for, in which order.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// Environment variable: the libfabric to use, a file or its directory.
pub const VARIABLE: &str = "KVRAIL_LIBFABRIC";
/// Name under which programs load it.
pub const SONAME: &str = "libfabric.so.1";
/// Where AWS's EFA installer puts it.
const AMAZON: [&str; 2] = ["/opt/amazon/efa/lib", "/opt/amazon/efa/lib64"];
/// Variables that name the prefix of the active Python environment.
const PREFIXES: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];
/// Where the `mpich` wheel puts it, below that prefix.
const WHEEL: &str = "lib/mpich";

/// Who led to a libfabric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Origin {
    /// The configuration names it.
    Config,
    /// The variable [`VARIABLE`] names it.
    Variable,
    /// The loader knows it: `LD_LIBRARY_PATH`, its cache, its default directories, or the process has it already.
    Loader,
    /// AWS's EFA installer.
    Amazon,
    /// The wheel `mpich` in the active Python environment.
    Wheel,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "the configuration",
            Self::Variable => VARIABLE,
            Self::Loader => "the loader",
            Self::Amazon => "/opt/amazon/efa",
            Self::Wheel => "the wheel mpich",
        })
    }
}

/// A place that may have a libfabric.
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
    /// A path, or a variable [`VARIABLE`] that is set and not empty, is the only place looked at. Without either: the loader's
    /// [`SONAME`], `/opt/amazon/efa/lib` and `lib64`, `lib/mpich` below `VIRTUAL_ENV` and `CONDA_PREFIX`.
    #[must_use]
    pub fn new(config: Option<&Path>) -> Self {
        Self::of(config, |name| env::var_os(name))
    }

    /// The same, with an environment of the caller's.
    #[must_use]
    pub fn of(config: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let named = config
            .map(|path| (path.to_path_buf(), Origin::Config))
            .or_else(|| set(VARIABLE).map(|path| (path, Origin::Variable)));
        Self { named, prefixes: PREFIXES.into_iter().filter_map(set).collect() }
    }

    /// The path that was named, with who named it.
    #[must_use]
    pub fn named(&self) -> Option<(&Path, Origin)> {
        self.named.as_ref().map(|(path, origin)| (path.as_path(), *origin))
    }

    /// The places, in order. A named one is the only one, whether it is there or not; of the others the files that exist.
    pub(super) fn places(&self) -> Vec<Place> {
        if let Some((path, origin)) = &self.named {
            let library = if path.is_dir() { path.join(SONAME) } else { path.clone() };
            // A name without a directory would be searched for by the loader: that is not what was named.
            let library = std::path::absolute(&library).unwrap_or(library);
            return vec![Place { library, origin: *origin }];
        }
        let amazon = AMAZON.into_iter().map(|at| (PathBuf::from(at), Origin::Amazon));
        let wheel = self.prefixes.iter().map(|prefix| (prefix.join(WHEEL), Origin::Wheel));
        let files = amazon.chain(wheel).map(|(at, origin)| Place { library: at.join(SONAME), origin });
        let loader = Place { library: SONAME.into(), origin: Origin::Loader };
        std::iter::once(loader).chain(files.filter(|place| place.library.is_file())).collect()
    }

    /// The directories outside of the loader's that a search without a named path looks at, in order, whether they have a libfabric or not.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        let wheels = self.prefixes.iter().map(|prefix| prefix.join(WHEEL));
        AMAZON.into_iter().map(PathBuf::from).chain(wheels).collect()
    }

    /// Everywhere that [`places`](Self::places) looks, in words.
    pub(super) fn looked(&self) -> Vec<String> {
        let loader = [format!("the loader's {SONAME} (LD_LIBRARY_PATH, cache, default directories)")];
        let amazon = AMAZON.map(String::from);
        let wheel = self.prefixes.iter().map(|prefix| prefix.join(WHEEL).display().to_string());
        loader.into_iter().chain(amazon).chain(wheel).collect()
    }
}

/// Whether a place leaves it to the loader where the file is.
pub(super) fn is_loaders(library: &Path) -> bool {
    library.as_os_str() == OsStr::new(SONAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let pairs: Vec<(String, OsString)> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        move |name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn a_named_path_is_the_only_place() {
        let variable = environment(&[(VARIABLE, "/v/libfabric.so.1"), ("VIRTUAL_ENV", "/venv")]);
        let by_config = Search::of(Some(Path::new("/c/lib.so")), &variable);
        assert_eq!(by_config.places(), [Place { library: "/c/lib.so".into(), origin: Origin::Config }]);
        let by_variable = Search::of(None, &variable);
        let place = Place { library: "/v/libfabric.so.1".into(), origin: Origin::Variable };
        assert_eq!(by_variable.places(), [place]);
    }

    #[test]
    fn a_named_directory_means_the_library_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let places = Search::of(Some(directory.path()), |_| None).places();
        assert_eq!(places[0].library, directory.path().join(SONAME));
    }

    #[test]
    fn a_bare_name_is_a_file_here_not_a_question_to_the_loader() {
        let places = Search::of(Some(Path::new(SONAME)), |_| None).places();
        assert!(places[0].library.is_absolute() && !is_loaders(&places[0].library), "{places:?}");
    }

    #[test]
    fn the_loader_comes_before_the_wheel_and_an_empty_variable_names_nothing() {
        let prefix = tempfile::tempdir().unwrap();
        let at = prefix.path().join(WHEEL);
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(at.join(SONAME), b"").unwrap();
        let search = Search::of(
            None,
            environment(&[(VARIABLE, ""), ("CONDA_PREFIX", prefix.path().to_str().unwrap())]),
        );
        let places = search.places();
        assert!(is_loaders(&places[0].library));
        assert_eq!(places.last().unwrap(), &Place { library: at.join(SONAME), origin: Origin::Wheel });
        assert!(search.looked().iter().any(|place| place.ends_with(WHEEL)), "{:?}", search.looked());
    }
}
