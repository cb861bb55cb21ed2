//! Looks at a libfabric without loading it: its release, where its `efa` provider is, and whether everything that the
//! provider needs is in our device library.

use std::path::{Path, PathBuf};

use kvrail_sys::elf::{Elf, HOST, Import};
use kvrail_sys::libfabric::Release;

use super::error::Error;
use super::find::{Candidate, Origin};
use crate::library;
use crate::run::Loading;

/// Directory of provider libraries, beside the library.
const PROVIDERS: &str = "libfabric";
/// File name of the `efa` provider as a library of its own.
const PROVIDER: &str = "libefa-fi.so";
/// What the device library replaces.
const REPLACED: [&str; 2] = ["libibverbs.so.1", "libefa.so.1"];
/// Every `efa` provider asks the device for its properties with this.
const MARK: &str = "efadv_query_device";

/// Where the `efa` provider is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Provider {
    /// Inside libfabric itself.
    BuiltIn,
    /// A library of its own.
    Library(PathBuf),
}

/// A libfabric that can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// The library.
    pub library: PathBuf,
    /// Who led to it.
    pub origin: Origin,
    /// Its release, as far as it can be told.
    pub release: Option<Release>,
    /// Where its `efa` provider is.
    pub provider: Provider,
    /// What the provider takes from libibverbs and libefa: all of it is provided.
    pub imports: Vec<Import>,
}

impl Inspection {
    /// How commands are led to it.
    #[must_use]
    pub fn loading(&self) -> Loading {
        let directory = self.library.parent().map(Path::to_path_buf);
        let providers = match &self.provider {
            Provider::Library(path) => path.parent().map(Path::to_path_buf),
            Provider::BuiltIn => None,
        };
        let search = directory.filter(|_| !self.origin.is_found_by_loader());
        Loading { library: self.library.clone(), search, providers }
    }
}

/// Looks at a libfabric.
///
/// # Errors
/// The first reason why it cannot be used.
pub fn inspect(candidate: &Candidate) -> Result<Inspection, Error> {
    let path = &candidate.library;
    let elf = Elf::read(path)?;
    check_machine(path, &elf)?;
    let release = Release::of(path, elf.versions.iter().map(String::as_str));
    let imports_mark = |elf: &Elf| elf.imports.iter().any(|import| import.symbol == MARK);
    let (provider, elf, file) = if imports_mark(&elf) {
        (Provider::BuiltIn, elf, path.clone())
    } else if let Some(beside) = provider_library(path) {
        let elf = Elf::read(&beside)?;
        check_machine(&beside, &elf)?;
        (Provider::Library(beside.clone()), elf, beside)
    } else {
        return Err(Error::NoProvider { path: path.clone(), release });
    };
    check_names(&file, &elf)?;
    let imports = from_replaced(&elf);
    check_provided(&file, &imports, device())?;
    Ok(Inspection { library: path.clone(), origin: candidate.origin, release, provider, imports })
}

fn check_machine(path: &Path, elf: &Elf) -> Result<(), Error> {
    if elf.machine == HOST { Ok(()) } else { Err(Error::Machine { path: path.into(), machine: elf.machine }) }
}

/// The provider as a library of its own: beside the library as it is named, or as it really lies.
fn provider_library(library: &Path) -> Option<PathBuf> {
    let real = library.canonicalize().ok();
    let beside =
        |library: &Path| Some(library.parent()?.join(PROVIDERS).join(PROVIDER)).filter(|p| p.is_file());
    beside(library).or_else(|| beside(&real?))
}

/// Whether ours are what the loader loads for it.
fn check_names(path: &Path, elf: &Elf) -> Result<(), Error> {
    if REPLACED.iter().any(|name| !elf.needed.iter().any(|needed| needed == name)) {
        let alike = |name: &&String| name.starts_with("libibverbs") || name.starts_with("libefa");
        let names = elf.needed.iter().filter(alike).cloned().collect();
        return Err(Error::Bundled { path: path.into(), names });
    }
    // With a DT_RUNPATH, which every linker writes by default, LD_LIBRARY_PATH comes first; with a DT_RPATH alone,
    // its directories do.
    let Some(rpath) = elf.rpath.as_ref().filter(|_| elf.runpath.is_none()) else { return Ok(()) };
    let origin = path.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    for directory in rpath.split(':').map(|d| d.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin)) {
        for name in REPLACED {
            let by = Path::new(&directory).join(name);
            if by.exists() {
                return Err(Error::Shadowed { path: path.into(), by });
            }
        }
    }
    Ok(())
}

/// What a library takes from those that ours replaces.
fn from_replaced(elf: &Elf) -> Vec<Import> {
    let ours = |import: &&Import| match &import.library {
        Some(library) => REPLACED.contains(&library.as_str()),
        None => import.symbol.starts_with("ibv_") || import.symbol.starts_with("efadv_"),
    };
    elf.imports.iter().filter(ours).cloned().collect()
}

/// The tables of the device library that is embedded in this program.
fn device() -> &'static Elf {
    static DEVICE: std::sync::OnceLock<Elf> = std::sync::OnceLock::new();
    // A library that cannot be read provides nothing, and says so symbol by symbol.
    DEVICE.get_or_init(|| Elf::parse(library::DEVICE).unwrap_or_default())
}

fn check_provided(path: &Path, imports: &[Import], device: &Elf) -> Result<(), Error> {
    let mut versions: Vec<String> = imports.iter().filter_map(|import| import.version.clone()).collect();
    versions.sort();
    versions.dedup();
    versions.retain(|version| !device.versions.contains(version));
    let given = |import: &Import| match &import.version {
        Some(_) => device.exports.contains(&(import.symbol.clone(), import.version.clone())),
        None => device.exports.iter().any(|(name, _)| *name == import.symbol),
    };
    // Without its version no symbol is given: naming the version says it all.
    let told = |import: &&Import| import.version.as_ref().is_some_and(|version| versions.contains(version));
    let missing = imports.iter().filter(|import| !import.weak && !given(import) && !told(import));
    let symbols: Vec<String> = missing.map(ToString::to_string).collect();
    if versions.is_empty() && symbols.is_empty() {
        Ok(())
    } else {
        Err(Error::Unprovided { path: path.into(), versions, symbols })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(symbol: &str, version: &str, weak: bool) -> Import {
        Import {
            symbol: symbol.into(),
            version: Some(version.into()),
            library: Some("libibverbs.so.1".into()),
            weak,
        }
    }

    #[test]
    fn what_is_not_provided_is_named_with_its_version() {
        let mut device = Elf::default();
        device.exports.insert(("ibv_open_device".into(), Some("IBVERBS_1.1".into())));
        device.versions.insert("IBVERBS_1.1".into());
        let has = import("ibv_open_device", "IBVERBS_1.1", false);
        assert_eq!(check_provided(Path::new("x"), std::slice::from_ref(&has), &device), Ok(()));
        let optional = import("ibv_extra", "IBVERBS_1.1", true);
        assert_eq!(check_provided(Path::new("x"), &[has.clone(), optional], &device), Ok(()));
        let later = import("ibv_open_device", "IBVERBS_9.9", false);
        let absent = import("ibv_absent", "IBVERBS_1.1", false);
        let error = check_provided(Path::new("x"), &[has, later, absent], &device).unwrap_err();
        assert!(error.to_string().contains("IBVERBS_9.9 and ibv_absent@IBVERBS_1.1, which"), "{error}");
    }

    #[test]
    fn a_provider_with_renamed_libraries_would_never_load_ours() {
        let needed = vec!["libibverbs-1f2e.so.1.14.39".to_string(), "libc.so.6".into()];
        let elf = Elf { needed, ..Elf::default() };
        let Err(Error::Bundled { names, .. }) = check_names(Path::new("/x/libefa-fi.so"), &elf) else {
            panic!()
        };
        assert_eq!(names, ["libibverbs-1f2e.so.1.14.39"]);
    }

    #[test]
    fn only_an_rpath_comes_before_our_directory() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(REPLACED[0]), b"").unwrap();
        let provider = directory.path().join("libefa-fi.so");
        let needed = REPLACED.map(String::from).to_vec();
        let mut elf = Elf { needed, runpath: Some("$ORIGIN".into()), ..Elf::default() };
        assert_eq!(check_names(&provider, &elf), Ok(()));
        elf.rpath = elf.runpath.take();
        assert!(matches!(check_names(&provider, &elf), Err(Error::Shadowed { .. })));
    }
}
