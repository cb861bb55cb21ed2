//! Why no libfabric, or not this one, can be used.

use std::fmt;
use std::path::PathBuf;

use kvrail_sys::elf::{HOST, Unreadable, machine_name};
use kvrail_sys::libfabric::Release;

/// What is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// There is none in any of these places.
    NotFound {
        /// Where it was looked for.
        looked: Vec<String>,
    },
    /// The place that was named has none.
    NotThere {
        /// The file or directory.
        path: PathBuf,
        /// Who named it: an option or a variable.
        named_by: &'static str,
    },
    /// The file cannot be read, or is no library.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It is another machine's.
    Machine {
        /// The file.
        path: PathBuf,
        /// Its ELF machine number.
        machine: u16,
    },
    /// It has no `efa` provider, neither inside nor beside it.
    NoProvider {
        /// The library.
        path: PathBuf,
        /// Its release.
        release: Option<Release>,
    },
    /// Its provider does not load `libibverbs.so.1` and `libefa.so.1` by these names, so that ours are never loaded.
    Bundled {
        /// The file with the provider.
        path: PathBuf,
        /// The names under which it wants them.
        names: Vec<String>,
    },
    /// Its provider puts its own directory before `LD_LIBRARY_PATH`, and another libibverbs or libefa lies there.
    Shadowed {
        /// The file with the provider.
        path: PathBuf,
        /// What lies there.
        by: PathBuf,
    },
    /// Its provider needs what the device library does not have.
    Unprovided {
        /// The file with the provider.
        path: PathBuf,
        /// Versions that are not defined at all, which the loader refuses.
        versions: Vec<String>,
        /// Symbols, with their versions.
        symbols: Vec<String>,
    },
    /// A child that loaded it did not get as far as `fi_getinfo`.
    Proof {
        /// What it said.
        why: String,
    },
}

impl Error {
    /// What to do, one line each.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let get = [
            "get one without compiling: `pip install mpich` brings libfabric with its efa provider",
            "or install AWS's EFA software, which brings one in /opt/amazon/efa",
            "or name one: --libfabric PATH, or SOFTEFA_LIBFABRIC",
        ];
        let hints: Vec<&str> = match self {
            Self::NotFound { .. } | Self::NoProvider { .. } => get.to_vec(),
            Self::NotThere { .. } => vec!["name libfabric.so.1, or the directory that it is in"],
            Self::Machine { .. } => {
                vec!["use one for this machine, or `--libfabric none` for commands without libfabric"]
            }
            Self::Bundled { .. } => {
                vec!["use a libfabric that links the system's rdma-core: the one of `pip install mpich` does"]
            }
            Self::Shadowed { .. } => vec!["move that file away, or use another libfabric"],
            Self::Unprovided { .. } => {
                vec!["use a libfabric of a release that `kvrail softefa check` accepts, or a newer kvrail"]
            }
            _ => Vec::new(),
        };
        hints.into_iter().map(String::from).collect()
    }
}

/// Most names that a message lists.
const NAMES_MAX: usize = 6;

/// Names, the first few.
fn some(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let listed = names[..names.len() - more].join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { looked } => write!(f, "no libfabric found; looked in {}", looked.join(", ")),
            Self::NotThere { path, named_by } => {
                write!(f, "{} holds no libfabric.so.1; it was named by {named_by}", path.display())
            }
            Self::Unreadable { path, why } => {
                write!(f, "{} is no library that can be read: {why}", path.display())
            }
            Self::Machine { path, machine } => {
                let (is, host) = (machine_name(*machine), machine_name(HOST));
                write!(f, "{} is for {is}, this machine is {host}", path.display())
            }
            Self::NoProvider { path, release } => {
                let release = release.map(|r| format!(" ({r})")).unwrap_or_default();
                write!(f, "{}{release} has no efa provider", path.display())
            }
            Self::Bundled { path, names } if names.is_empty() => {
                write!(
                    f,
                    "{} does not load libibverbs.so.1 and libefa.so.1: it has its own inside",
                    path.display()
                )
            }
            Self::Bundled { path, names } => {
                write!(
                    f,
                    "{} loads {} instead of libibverbs.so.1 and libefa.so.1",
                    path.display(),
                    names.join(", ")
                )
            }
            Self::Shadowed { path, by } => {
                write!(f, "{} loads {} before anything else", path.display(), by.display())
            }
            Self::Unprovided { path, versions, symbols } => {
                write!(f, "{} needs", path.display())?;
                if !versions.is_empty() {
                    write!(f, " symbol version {}", some(versions))?;
                }
                if !symbols.is_empty() {
                    let and = if versions.is_empty() { "" } else { " and" };
                    write!(f, "{and} {}", some(symbols))?;
                }
                f.write_str(", which the emulated device does not provide")
            }
            Self::Proof { why } => write!(f, "libfabric does not come up on an emulated device: {why}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Unreadable> for Error {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unreadable { path: unreadable.path, why: unreadable.why }
    }
}
