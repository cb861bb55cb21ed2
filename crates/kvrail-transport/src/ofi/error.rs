//! Why the transport did not come up: facts in the error, advice in its hints.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use super::facts::PassedOver;

/// Why there is no transport.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// A knob is outside its range.
    Knob {
        /// Its name in [`super::Config`].
        name: &'static str,
        /// What it was set to.
        value: String,
        /// What it can be.
        range: String,
    },
    /// No libfabric could be loaded.
    Library(LibraryError),
    /// The library has no provider of that name.
    NoSuchProvider {
        /// What was asked for.
        name: String,
        /// The library's file and release.
        library: String,
        /// The providers that it has.
        has: Vec<String>,
    },
    /// Providers were asked and none of them can be used here.
    NoProvider {
        /// The library's file and release.
        library: String,
        /// Each with its reason, in the order of asking.
        passed: Vec<PassedOver>,
    },
    /// A NIC of that name is not there, or the provider does not offer it.
    NoSuchDevice {
        /// What was asked for.
        name: String,
        /// The provider.
        provider: String,
        /// The NICs that it offers.
        has: Vec<String>,
    },
    /// Every NIC that could be used is down.
    AllDown {
        /// The provider.
        provider: String,
        /// The NICs.
        nics: Vec<String>,
    },
    /// More rails than an agent can have, or than fit one address.
    TooManyRails {
        /// How many there would be.
        found: usize,
        /// The limit, and what bounds it.
        limit: String,
    },
    /// The provider would carry out one-sided operations by messages that the target has to answer, in which a bad
    /// key is nobody's error.
    Emulated {
        /// The provider.
        provider: String,
        /// The NIC.
        nic: String,
        /// `read`, `write`.
        what: &'static str,
        /// The API version that was asked for, `1.22`.
        api: String,
    },
    /// A call into the library failed while a rail was opened.
    Call {
        /// What was called, and for what: `fi_endpoint of rdmap79s0`.
        what: String,
        /// libfabric's error number, positive.
        errno: i32,
        /// libfabric's own words.
        words: String,
    },
    /// The operating system refused something that sleeping needs.
    System {
        /// What: `epoll_create1`.
        what: &'static str,
        /// An errno.
        errno: i32,
    },
}

/// An error of the loader, which any clone of an [`OpenError`] shares.
#[derive(Clone, Debug)]
pub struct LibraryError {
    source: Arc<dyn StdError + Send + Sync>,
    hints: Vec<String>,
}

impl LibraryError {
    /// Wraps the loader's own error and its advice.
    pub fn new(source: impl StdError + Send + Sync + 'static, hints: Vec<String>) -> Self {
        Self { source: Arc::new(source), hints }
    }
}

impl fmt::Display for LibraryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl PartialEq for OpenError {
    /// Errors are compared by what they say.
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for OpenError {}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Knob { name, value, range } => write!(f, "{name} is {value}; it can be {range}"),
            Self::Library(error) => error.fmt(f),
            Self::NoSuchProvider { name, library, has } => {
                write!(f, "{library} has no provider {name}; it has {}", listed(has))
            }
            Self::NoProvider { library, passed } => {
                write!(f, "no provider of {library} can be used here")?;
                let mut before = ": ";
                for passed in passed {
                    write!(f, "{before}{passed}")?;
                    before = "; ";
                }
                Ok(())
            }
            Self::NoSuchDevice { name, provider, has } => {
                write!(f, "provider {provider} offers no device {name}; it offers {}", listed(has))
            }
            Self::AllDown { provider, nics } => {
                write!(f, "every device that provider {provider} could use is down: {}", listed(nics))
            }
            Self::TooManyRails { found, limit } => write!(f, "{found} rails are too many; {limit}"),
            Self::Emulated { provider, nic, what, api } => write!(
                f,
                "provider {provider} on {nic} would emulate RDMA {what} by messages (API {api}); kvrail does not \
                 move data that way"
            ),
            Self::Call { what, errno, words } => write!(f, "{what} failed: {words} (error {errno})"),
            Self::System { what, errno } => {
                write!(f, "{what} failed: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl StdError for OpenError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Library(error) => error.source.source(),
            _ => None,
        }
    }
}

/// What an error number of a call at open usually comes from.
fn hint_of_errno(errno: i32) -> Option<&'static str> {
    match errno {
        libc::ENOMEM => Some(
            "locked memory may be limited: `ulimit -l` should say unlimited (in a container: the runtime's memlock)",
        ),
        libc::EACCES | libc::EPERM => {
            Some("the process may not open the device: in a container, pass /dev/infiniband through")
        }
        libc::EMFILE | libc::ENFILE => Some("raise the limit on open files: `ulimit -n`"),
        libc::EBUSY | libc::ENOSPC => {
            Some("another process may hold the device's queue pairs; `rdma resource show` counts them")
        }
        _ => None,
    }
}

impl OpenError {
    /// What to do, one line each.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        let lines: Vec<&str> = match self {
            Self::Knob { .. } | Self::System { .. } => Vec::new(),
            Self::Library(error) => return error.hints.clone(),
            Self::NoSuchProvider { .. } => vec![
                "name another provider, or a libfabric that has it",
                "providers may be libraries of their own: FI_PROVIDER_PATH says where they lie",
            ],
            Self::NoProvider { passed, .. } => {
                let mut lines =
                    vec!["`fi_info` of the same libfabric, with FI_LOG_LEVEL=info, says what it saw"];
                if passed.iter().any(|p| p.name.starts_with("efa")) {
                    lines.push("EFA needs its kernel driver: `lsmod | grep efa`, and devices under /sys/class/infiniband");
                    lines.push("in a container, /dev/infiniband has to be passed through");
                }
                lines.push("without a fabric, use the tcp transport, or the provider tcp by name");
                lines
            }
            Self::NoSuchDevice { .. } => {
                vec!["names are those of /sys/class/infiniband, or of interfaces for tcp"]
            }
            Self::AllDown { .. } => {
                vec!["/sys/class/infiniband/DEVICE/ports/1/state says whether a port is up"]
            }
            Self::TooManyRails { .. } => vec!["name fewer devices, or set the number of rails"],
            Self::Emulated { .. } => vec![
                "FI_EFA_USE_DEVICE_RDMA=0 switches the device's RDMA off: unset it",
                "use a libfabric of release 1.18 or later, and devices that can write (not P4d's first generation)",
            ],
            Self::Call { errno, .. } => hint_of_errno(*errno).into_iter().collect(),
        };
        lines.into_iter().map(String::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_asked_what_is_there_and_what_to_do() {
        let error = OpenError::NoSuchProvider {
            name: "opx".into(),
            library: "/usr/lib/libfabric.so.1 (v1.17)".into(),
            has: vec!["tcp".into(), "shm".into()],
        };
        assert_eq!(error.to_string(), "/usr/lib/libfabric.so.1 (v1.17) has no provider opx; it has tcp, shm");
        assert!(!error.hints().is_empty());
        let error = OpenError::NoProvider {
            library: "libfabric v2.5".into(),
            passed: vec![
                PassedOver { name: "efa-direct".into(), why: "no device".into() },
                PassedOver { name: "cxi".into(), why: "not in this library".into() },
            ],
        };
        assert_eq!(
            error.to_string(),
            "no provider of libfabric v2.5 can be used here: efa-direct: no device; cxi: not in this library"
        );
        assert!(error.hints().iter().any(|hint| hint.contains("/dev/infiniband")));
        let error =
            OpenError::Call { what: "fi_domain of x".into(), errno: libc::ENOMEM, words: "no memory".into() };
        assert!(error.hints()[0].contains("ulimit -l"));
    }
}
