//! Why no UCX is loaded, and why a call of it failed.

use std::path::PathBuf;

use super::library::RELEASE_MIN;
use super::search::{Origin, VARIABLE};
use super::status::Status;
use crate::elf::{HOST, machine_name};

/// Why no UCX can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is none in any of these places.
    #[error("no UCX found; looked at {}", looked.join(", "))]
    NotFound {
        /// Where it was looked for.
        looked: Vec<String>,
    },
    /// The path that was named has none.
    #[error("no UCX at {}, which {origin} names", path.display())]
    NotThere {
        /// The file or directory.
        path: PathBuf,
        /// Who named it.
        origin: Origin,
    },
    /// The file cannot be read or is no library, or the loader does not take it.
    #[error("cannot load UCX {}: {dlerror}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What the loader, or whoever read the file, says.
        dlerror: String,
    },
    /// It is another machine's.
    #[error("UCX {} is for {}, this machine is {}", path.display(), machine_name(*machine), machine_name(HOST))]
    Machine {
        /// The file.
        path: PathBuf,
        /// Its ELF machine number.
        machine: u16,
    },
    /// It is no UCP at all.
    #[error("{} is no UCP: it is {}, without ucp_init_version", path.display(), soname.as_deref().unwrap_or("a library without a name"))]
    NoUcp {
        /// The file.
        path: PathBuf,
        /// What it calls itself.
        soname: Option<String>,
    },
    /// It is older than what kvrail can work with.
    #[error("UCX {} is release {found}; {}.{} or newer is needed", path.display(), RELEASE_MIN.0, RELEASE_MIN.1)]
    TooOld {
        /// The file.
        path: PathBuf,
        /// Its release, as in `1.10.1`.
        found: String,
    },
    /// It lacks functions that every UCP of the oldest supported release has.
    #[error(
        "UCX {} has no {}, which release {}.{} and newer have",
        path.display(), symbols.join(", "), RELEASE_MIN.0, RELEASE_MIN.1
    )]
    MissingSymbols {
        /// The file.
        path: PathBuf,
        /// The functions.
        symbols: Vec<&'static str>,
    },
}

impl LoadError {
    /// What to do, most promising first.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let name = format!("name another: the path in the configuration, or {VARIABLE}");
        let get = [
            "install one: Debian's `libucx0` has tcp, shared memory and verbs".to_owned(),
            "without root: `pip install libucx-cu12` (or the one inside `nixl-cu12`); activate that environment"
                .to_owned(),
        ];
        match self {
            Self::NotFound { .. } => get.into_iter().chain([name]).collect(),
            Self::NotThere { .. } => vec![
                "name libucp.so.0, or the directory that it is in; nothing else is tried once a path is named"
                    .into(),
            ],
            Self::Refused { .. } => vec![
                "see what it needs with `ldd` on that file: libuct, libucs and libucm must be of the same UCX"
                    .into(),
                name,
            ],
            Self::Machine { .. } | Self::NoUcp { .. } => vec![name],
            Self::TooOld { .. } | Self::MissingSymbols { .. } => {
                let newer = format!("install UCX {}.{} or newer", RELEASE_MIN.0, RELEASE_MIN.1);
                [newer].into_iter().chain(get).chain([name]).collect()
            }
        }
    }

    /// Whether there is simply none.
    #[must_use]
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// A call of UCP that failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{call}: {status}")]
pub struct UcpError {
    /// The function, with what it was about where that says more.
    pub call: &'static str,
    /// Why.
    pub status: Status,
}

impl UcpError {
    pub(super) fn check(call: &'static str, result: super::abi::ucs_status_t) -> Result<(), Self> {
        Status::check(result).map_err(|status| Self { call, status })
    }
}
