//! What a plugin of NIXL needs and this process does not give it: NIXL itself only says that there is no such backend.

use std::ffi::{CString, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use super::library::map;
use crate::elf::{Elf, Import};

/// The library that NIXL's LIBFABRIC plugin is linked to.
pub(super) const LIBFABRIC: &str = "libfabric.so.1";

/// Something that a plugin needs and the loader does not find.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Lack {
    /// A library.
    Library(String),
    /// A version of a library's symbols, which the one that is found does not have.
    Version {
        /// The library.
        library: String,
        /// The version, as in `FABRIC_1.10`.
        version: String,
    },
    /// Something else, in the loader's words.
    Other(String),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(name) => write!(f, "{name}, which is not found"),
            Self::Version { library, version } => {
                write!(f, "{version} of {library}, and the one that is found is older")
            }
            Self::Other(dlerror) => f.write_str(dlerror),
        }
    }
}

impl Lack {
    /// How to get it.
    #[must_use]
    pub fn hint(&self) -> String {
        let path = "name its directory in LD_LIBRARY_PATH, before the process starts";
        match self {
            Self::Library(name) if name == "libcuda.so.1" => format!(
                "libcuda.so.1 comes with NVIDIA's driver. On a host without a GPU, host memory needs no more than that the functions \
                 exist which the plugin takes from it: build a library that answers each with CUDA_ERROR_NO_DEVICE, and {path}"
            ),
            Self::Library(name) if name.starts_with("libcudart.so.") => {
                let major = name.trim_start_matches("libcudart.so.").split('.').next().unwrap_or_default();
                format!(
                    "{name} comes with `pip install nvidia-cuda-runtime-cu{major}` in the environment that has NIXL"
                )
            }
            Self::Library(name) if name.starts_with("libhwloc.so.15") => {
                "install hwloc: Debian's and Ubuntu's package is `libhwloc15`".into()
            }
            Self::Library(name) if name == LIBFABRIC => {
                format!(
                    "install libfabric: AWS's EFA software, or `pip install mpich` without root; or {path}"
                )
            }
            Self::Version { library, .. } if library == LIBFABRIC => {
                "install a newer libfabric and name its directory in KVRAIL_LIBFABRIC (the newest of AWS's EFA software, or built from \
                 source); an older NIXL needs less: 1.4 works with the libfabric of `pip install mpich`"
                    .into()
            }
            Self::Library(name) => format!("install {name}; or {path}"),
            Self::Version { library, .. } => format!("install a newer {library}; or {path}"),
            Self::Other(_) => "see what it needs with `ldd -v` on that file".into(),
        }
    }
}

/// What keeps a plugin from being loaded into this process; nothing when it can be.
///
/// It asks the loader itself, so that what it says holds for `LD_LIBRARY_PATH` as the process was started with. What can be loaded
/// stays loaded.
#[must_use]
pub fn lacks(plugin: &Path) -> Vec<Lack> {
    let Err(dlerror) = map(plugin) else { return Vec::new() };
    let Ok(elf) = Elf::read(plugin) else { return vec![Lack::Other(dlerror)] };
    let mut lacks = Vec::new();
    for name in &elf.needed {
        // What the plugin's own search path has needs no look: it comes in the same wheel.
        if own_directories(&elf, plugin).iter().any(|directory| directory.join(name).exists()) {
            continue;
        }
        match map(Path::new(name)) {
            Ok(handle) => lacks.extend(missing_version(handle, name, &elf.imports)),
            Err(_) => lacks.push(Lack::Library(name.clone())),
        }
    }
    if lacks.is_empty() { vec![Lack::Other(dlerror)] } else { lacks }
}

/// The newest version of a library's symbols that a file needs, by the number behind the last dot.
pub(super) fn newest_version<'a>(imports: &'a [Import], library: &str) -> Option<(u32, &'a str)> {
    let of_it = imports.iter().filter(|import| import.library.as_deref() == Some(library) && !import.weak);
    let versions = of_it.filter_map(|import| import.version.as_deref());
    versions.filter_map(|version| Some((version.rsplit('.').next()?.parse().ok()?, version))).max()
}

fn missing_version(handle: NonNull<c_void>, library: &str, imports: &[Import]) -> Option<Lack> {
    let of_it = imports.iter().filter(|import| import.library.as_deref() == Some(library) && !import.weak);
    let lacks = |import: &&Import| {
        let (symbol, version) =
            (CString::new(import.symbol.as_str()), import.version.as_deref().map(CString::new));
        let (Ok(symbol), Some(Ok(version))) = (symbol, version) else { return false };
        // SAFETY: the handle is open for good; both are C strings.
        let at = unsafe { libc::dlvsym(handle.as_ptr(), symbol.as_ptr(), version.as_ptr()) };
        at.is_null()
    };
    let missing: Vec<Import> = of_it.filter(lacks).cloned().collect();
    let (_, version) = newest_version(&missing, library)?;
    Some(Lack::Version { library: library.into(), version: version.into() })
}

/// The directories that a file itself puts into the search for what it needs.
fn own_directories(elf: &Elf, file: &Path) -> Vec<PathBuf> {
    let origin = file.parent().unwrap_or(Path::new("/"));
    let paths = elf.rpath.iter().chain(&elf.runpath).flat_map(|path| path.split(':'));
    paths.map(|path| PathBuf::from(path.replace("$ORIGIN", &origin.to_string_lossy()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(symbol: &str, version: &str, library: &str) -> Import {
        let (symbol, version, library) = (symbol.into(), Some(version.into()), Some(library.into()));
        Import { symbol, version, library, weak: false }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let imports = [
            import("fi_getinfo", "FABRIC_1.9", LIBFABRIC),
            import("fi_fabric", "FABRIC_1.10", LIBFABRIC),
            import("malloc", "GLIBC_2.34", "libc.so.6"),
        ];
        assert_eq!(newest_version(&imports, LIBFABRIC), Some((10, "FABRIC_1.10")));
        assert_eq!(newest_version(&imports, "libother.so"), None);
    }

    #[test]
    fn what_is_missing_is_named_with_how_to_get_it() {
        let cuda = Lack::Library("libcuda.so.1".into());
        assert!(cuda.to_string().contains("not found") && cuda.hint().contains("NVIDIA's driver"));
        assert!(Lack::Library("libcudart.so.12".into()).hint().contains("nvidia-cuda-runtime-cu12"));
        let old = Lack::Version { library: LIBFABRIC.into(), version: "FABRIC_1.10".into() };
        assert!(old.to_string().starts_with("FABRIC_1.10") && old.hint().contains("KVRAIL_LIBFABRIC"));
    }

    #[test]
    fn a_file_that_is_no_library_lacks_what_the_loader_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lacks = lacks(file.path());
        assert!(matches!(&lacks[..], [Lack::Other(said)] if said.contains("short")), "{lacks:?}");
    }
}
