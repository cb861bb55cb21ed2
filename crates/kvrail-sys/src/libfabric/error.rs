//! Why no libfabric is loaded, and why a call of it failed.

use std::ffi::c_int;
use std::path::PathBuf;

use super::library::{RELEASE_MIN, SYMBOLS_MIN};
use super::search::{Origin, VARIABLE};
use crate::elf::{HOST, machine_name};

/// Why no libfabric can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is none in any of these places.
    #[error("no libfabric found; looked at {}", looked.join(", "))]
    NotFound {
        /// Where it was looked for.
        looked: Vec<String>,
    },
    /// The path that was named has none.
    #[error("no libfabric at {}, which {origin} names", path.display())]
    NotThere {
        /// The file.
        path: PathBuf,
        /// Who named it.
        origin: Origin,
    },
    /// The file cannot be read or is no library, or the loader does not take it.
    #[error("cannot load libfabric {}: {dlerror}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What the loader, or whoever read the file, says.
        dlerror: String,
    },
    /// It is another machine's.
    #[error("libfabric {} is for {}, this machine is {}", path.display(), machine_name(*machine), machine_name(HOST))]
    Machine {
        /// The file.
        path: PathBuf,
        /// Its ELF machine number.
        machine: u16,
    },
    /// It is older than what kvrail can work with.
    #[error(
        "libfabric {} is release {release} (symbols up to {found}); release {}.{} ({needed}) or newer is needed",
        path.display(), RELEASE_MIN.0, RELEASE_MIN.1
    )]
    TooOld {
        /// The file.
        path: PathBuf,
        /// The version in its name, as in `1.16.0`; none when the name has none.
        file_version: Option<String>,
        /// Its release, as in `1.13`.
        release: String,
        /// The lowest symbol version that is enough.
        needed: String,
        /// The highest that it defines.
        found: String,
    },
    /// It lacks a function that every libfabric of its symbol version has.
    #[error("libfabric {} has no {symbol}@{version} ({found})", path.display())]
    MissingSymbol {
        /// The file.
        path: PathBuf,
        /// The function.
        symbol: &'static str,
        /// The version of it that is needed.
        version: &'static str,
        /// What it has, as in `symbols up to FABRIC_1.6`.
        found: String,
    },
}

impl LoadError {
    /// What to do, most promising first.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let name = format!("name another: the path in the configuration, or {VARIABLE}");
        let get = [
            "install one: Debian's `libfabric1` has tcp, shm and verbs; AWS's EFA software has efa"
                .to_string(),
            "without root: `pip install mpich` brings one with efa; activate that environment".into(),
        ];
        match self {
            Self::NotFound { .. } => get.into_iter().chain([name]).collect(),
            Self::NotThere { .. } => {
                vec!["name libfabric.so.1, or the directory that it is in; nothing else is tried once a path is named".into()]
            }
            Self::Refused { .. } => {
                vec!["see what it needs with `ldd` on that file".into(), name]
            }
            Self::Machine { .. } => vec![name],
            Self::TooOld { .. } => {
                let newer = format!("install libfabric {}.{} or newer", RELEASE_MIN.0, RELEASE_MIN.1);
                [newer].into_iter().chain(get.into_iter().skip(1)).chain([name]).collect()
            }
            Self::MissingSymbol { .. } => {
                vec!["that file is no libfabric, or was built without symbol versions".into(), name]
            }
        }
    }

    /// Whether there is simply none, which is ordinary on a machine without RDMA.
    #[must_use]
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub(super) fn symbols_needed() -> String {
        format!("FABRIC_1.{SYMBOLS_MIN}")
    }
}

/// A call of libfabric that failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{call}: {text} ({code})")]
pub struct FabricError {
    /// The function.
    pub call: &'static str,
    /// `FI_E…`, positive.
    pub code: c_int,
    /// libfabric's words for the code.
    pub text: String,
}

impl FabricError {
    /// Whether the code is this one, positive.
    #[must_use]
    pub const fn is(&self, code: c_int) -> bool {
        self.code == code
    }
}
