//! What a libfabric's file says, before its code is mapped.

use std::path::{Path, PathBuf};

use super::error::LoadError;
use super::library::{RELEASE_MIN, SYMBOLS_MIN, SYMBOLS_USED};
use super::release::Release;
use crate::elf::{Elf, HOST};

/// What a file says about itself.
pub(super) struct File {
    pub(super) path: PathBuf,
    machine: u16,
    /// Highest `n` of the `FABRIC_1.n` that it defines; 0 without any.
    pub(super) symbols: u32,
    /// Whether it has `fi_getinfo`, with whatever version.
    is_libfabric: bool,
    pub(super) release: Option<Release>,
}

impl File {
    pub(super) fn inspect(path: &Path) -> Result<Self, LoadError> {
        let real = path.canonicalize().unwrap_or_else(|_| path.into());
        let elf = Elf::read(&real).map_err(|e| LoadError::Refused {
            path: real.clone(),
            dlerror: format!("no library: {}", e.why),
        })?;
        let level = |version: &String| version.strip_prefix("FABRIC_1.")?.parse::<u32>().ok();
        Ok(Self {
            machine: elf.machine,
            symbols: elf.versions.iter().filter_map(level).max().unwrap_or(0),
            is_libfabric: elf.exports.iter().any(|(name, _)| name == "fi_getinfo"),
            release: Release::of(&real, elf.versions.iter().map(String::as_str)),
            path: real,
        })
    }

    /// What it has, in words.
    pub(super) fn symbols_found(&self) -> String {
        match self.symbols {
            0 => "no FABRIC symbols".into(),
            highest => format!("symbols up to FABRIC_1.{highest}"),
        }
    }

    /// Whether it is one for this machine and new enough, also by what its `fi_version` says once it is loaded.
    pub(super) fn check(&self, version: Option<u32>) -> Result<(), LoadError> {
        let found = format!("FABRIC_1.{}", self.symbols);
        if self.machine != HOST {
            return Err(LoadError::Machine { path: self.path.clone(), machine: self.machine });
        }
        if !self.is_libfabric || self.symbols == 0 {
            let (symbol, version) = ("fi_getinfo", SYMBOLS_USED);
            return Err(LoadError::MissingSymbol {
                path: self.path.clone(),
                symbol,
                version,
                found: self.symbols_found(),
            });
        }
        let of_file = match self.release {
            Some(Release::Exact { major, minor }) => Some((major, minor)),
            _ => None,
        };
        let said = version.map(|v| (v >> 16, v & 0xffff));
        if self.symbols >= SYMBOLS_MIN && said.or(of_file).is_none_or(|release| release >= RELEASE_MIN) {
            return Ok(());
        }
        let release = match said.or(of_file) {
            Some((major, minor)) => format!("{major}.{minor}"),
            None => self.release.map_or_else(|| "unknown".into(), |r| r.to_string()),
        };
        Err(LoadError::TooOld {
            path: self.path.clone(),
            file_version: file_version(&self.path),
            release,
            needed: LoadError::symbols_needed(),
            found,
        })
    }
}

/// `1.31.0` of `libfabric.so.1.31.0`.
pub(super) fn file_version(path: &Path) -> Option<String> {
    let version = path.file_name()?.to_str()?.strip_prefix("libfabric.so.")?;
    version.contains('.').then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libfabric::abi;

    fn file(name: &str, symbols: u32) -> File {
        let path = PathBuf::from("/usr/lib/x86_64-linux-gnu").join(name);
        let release = Release::of_name(name);
        File { path, machine: HOST, symbols, is_libfabric: true, release }
    }

    #[test]
    fn an_old_one_is_refused_with_file_release_needed_and_found() {
        let error = file("libfabric.so.1.17.0", 5).check(None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "libfabric /usr/lib/x86_64-linux-gnu/libfabric.so.1.17.0 is release 1.14 (symbols up to FABRIC_1.5); \
             release 1.17 (FABRIC_1.6) or newer is needed"
        );
        assert!(matches!(&error, LoadError::TooOld { file_version: Some(v), .. } if v == "1.17.0"));
        assert!(error.hints().iter().any(|hint| hint.contains("KVRAIL_LIBFABRIC")), "{:?}", error.hints());
    }

    #[test]
    fn the_release_counts_even_where_the_symbols_suffice() {
        assert!(file("libfabric.so.1.19.0", 6).check(None).is_err());
        assert!(file("libfabric.so.1.20.0", 6).check(None).is_ok());
        // What the library says of itself weighs more than its name.
        assert!(file("libfabric.so.1.20.0", 6).check(Some(abi::fi_version_of(1, 16))).is_err());
        assert!(file("libfabric.so.1", 9).check(Some(abi::fi_version_of(2, 5))).is_ok());
    }

    #[test]
    fn another_machine_s_library_is_named_as_such() {
        let mut other = file("libfabric.so.1.31.0", 9);
        other.machine = object::elf::EM_PPC64;
        assert!(other.check(None).unwrap_err().to_string().contains("is for ppc64, this machine is"));
    }

    #[test]
    fn the_version_in_a_file_name_is_told_apart_from_the_release() {
        assert_eq!(file_version(Path::new("/x/libfabric.so.1.31.0")).as_deref(), Some("1.31.0"));
        assert_eq!(file_version(Path::new("/x/libfabric.so.1")), None);
        assert_eq!(file_version(Path::new("/x/libother.so.1.2")), None);
    }
}
