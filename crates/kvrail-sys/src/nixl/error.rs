//! Why no NIXL is loaded, and why a call of it failed.

use std::ffi::c_int;
use std::fmt;
use std::path::PathBuf;

use super::install::{LIBRARY, Origin, VARIABLE};
use super::library::VERSION_MIN;
use crate::elf::{HOST, machine_name};

/// Why no NIXL can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is none in any of these places.
    #[error("no NIXL found ({LIBRARY}); looked at {}", looked.join(", "))]
    NotFound {
        /// Where it was looked for.
        looked: Vec<String>,
    },
    /// The path that was named has none.
    #[error("no NIXL at {}, which {origin} names", path.display())]
    NotThere {
        /// The path.
        path: PathBuf,
        /// Who named it.
        origin: Origin,
    },
    /// The file cannot be read or is no library, or the loader does not take it.
    #[error("cannot load NIXL {}: {dlerror}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What the loader, or whoever read the file, says.
        dlerror: String,
    },
    /// It is another machine's.
    #[error("NIXL {} is for {}, this machine is {}", path.display(), machine_name(*machine), machine_name(HOST))]
    Machine {
        /// The file.
        path: PathBuf,
        /// Its ELF machine number.
        machine: u16,
    },
    /// It lacks functions that are used: it is older than 1.0, or no NIXL.
    #[error(
        "{} has no {} ({} of the functions that NIXL has since {VERSION_MIN})",
        path.display(), missing.first().copied().unwrap_or("functions"), count(missing)
    )]
    MissingSymbols {
        /// The file.
        path: PathBuf,
        /// The functions.
        missing: Vec<&'static str>,
    },
}

fn count(missing: &[&str]) -> String {
    match missing.len() {
        1 => "one".into(),
        several => format!("with {} others: {several}", several - 1),
    }
}

impl LoadError {
    /// What to do, most promising first.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let name = format!(
            "name another: {LIBRARY}, its directory or a Python environment with NIXL, in {VARIABLE}"
        );
        let get =
            "install one: `pip install --no-deps nixl-cu12` in a Python environment; activate it".to_string();
        match self {
            Self::NotFound { .. } => vec![get, name],
            Self::NotThere { .. } => vec![format!(
                "name {LIBRARY}, the directory that it is in, or the root of a Python environment with NIXL; nothing else is \
                 tried once a path is named"
            )],
            Self::Refused { .. } => vec!["see what it needs with `ldd` on that file".into(), name],
            Self::Machine { .. } => vec![name],
            Self::MissingSymbols { missing, .. } => vec![
                format!("that file is no NIXL or older than {VERSION_MIN}; it lacks {}", missing.join(", ")),
                get,
                name,
            ],
        }
    }

    /// Whether there is simply none.
    #[must_use]
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// What a call answered. The C API has fewer words than NIXL itself: most of NIXL's own errors arrive as [`Status::Backend`], and
/// only its log says more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Status {
    /// Done.
    Success,
    /// Posted, not done yet.
    InProgress,
    /// A parameter is refused: a descriptor outside of registered memory, a null handle.
    InvalidParam,
    /// The backend, or anything else in NIXL, failed: not supported, not posted, still active, mismatch, remote disconnected.
    Backend,
    /// A request that is not released yet.
    InvalidState,
    /// An exception in C++.
    Exception,
    /// Telemetry is off.
    NoTelemetry,
    /// The remote agent's metadata is not loaded, or no backend serves the request. Since 1.5; before it is [`Status::Backend`].
    NotFound,
    /// A code that no release known here gives.
    Unknown(i32),
}

impl Status {
    pub(super) const fn of(code: c_int) -> Self {
        match code {
            0 => Self::Success,
            1 => Self::InProgress,
            -1 => Self::InvalidParam,
            -2 => Self::Backend,
            -3 => Self::InvalidState,
            -4 => Self::Exception,
            -5 => Self::NoTelemetry,
            -6 => Self::NotFound,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "success",
            Self::InProgress => "in progress",
            Self::InvalidParam => "invalid parameter",
            Self::Backend => "backend error",
            Self::InvalidState => "invalid state",
            Self::Exception => "C++ exception",
            Self::NoTelemetry => "no telemetry",
            Self::NotFound => "not found",
            Self::Unknown(code) => return write!(f, "unknown status {code}"),
        })
    }
}

/// A call of NIXL that failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("nixl_capi_{call}: {status}")]
pub struct NixlError {
    /// The function, without `nixl_capi_`.
    pub call: &'static str,
    /// What it answered.
    pub status: Status,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_word_and_an_unknown_one_keeps_its_number() {
        let words: Vec<_> = (-6..=1).map(|code| Status::of(code).to_string()).collect();
        assert!(words.iter().all(|word| !word.contains("unknown")), "{words:?}");
        assert_eq!(Status::of(-77).to_string(), "unknown status -77");
        let error = NixlError { call: "create_backend", status: Status::of(-2) };
        assert_eq!(error.to_string(), "nixl_capi_create_backend: backend error");
    }

    #[test]
    fn missing_functions_are_named() {
        let path = PathBuf::from("/x/libnixl_capi.so");
        let missing = vec!["nixl_capi_make_xfer_req", "nixl_capi_prep_xfer_dlist"];
        let error = LoadError::MissingSymbols { path, missing };
        assert!(error.to_string().contains("has no nixl_capi_make_xfer_req"), "{error}");
        assert!(error.hints()[0].contains("nixl_capi_prep_xfer_dlist"), "{:?}", error.hints());
    }
}
