//! Which transports an agent may have, and how each is opened.

pub(crate) mod choice;
pub(crate) mod ofi;

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use kvrail_transport::Fabric;
use kvrail_transport::ofi::{Affinity, OpenError as OfiError, Provider};
use kvrail_transport::shm::{self, Shm};
use kvrail_transport::tcp::{self, Tcp};

use crate::config::{Config, ConfigError};
use crate::hints::Hints;

/// The transports of this build, in the default order of preference.
pub(crate) const NAMES: &[&str] = &["shm", "ofi", "tcp"];

/// A transport that an agent is to have, and its settings.
pub struct TransportConfig {
    kind: Kind,
    /// An agent goes without it where it is not possible.
    if_possible: bool,
}

enum Kind {
    Shm { cooperate: bool },
    Ofi(Box<kvrail_transport::ofi::Config>),
    Tcp { listen: String, connections: Option<u16> },
    Custom(Box<dyn Fabric>),
}

impl From<Kind> for TransportConfig {
    fn from(kind: Kind) -> Self {
        Self { kind, if_possible: false }
    }
}

impl TransportConfig {
    /// Shared memory: processes of one user on one host.
    #[must_use]
    pub fn shm() -> Self {
        Kind::Shm { cooperate: true }.into()
    }

    /// TCP, listening on `listen` (`HOST:PORT`, port 0 for any). Peers connect to that address, so that one that is
    /// bound to loopback reaches this host only.
    #[must_use]
    pub fn tcp(listen: impl Into<String>) -> Self {
        Kind::Tcp { listen: listen.into(), connections: None }.into()
    }

    /// A transport made elsewhere. It must keep the promises of [`kvrail_core::transport`].
    #[must_use]
    pub fn custom(fabric: Box<dyn Fabric>) -> Self {
        Kind::Custom(fabric).into()
    }

    /// Many rails over libfabric: one per NIC of the best fabric that this host has (EFA, Slingshot, InfiniBand, RoCE).
    /// Loads libfabric when the agent is built; never falls back to a provider without an RDMA NIC unless that is
    /// named.
    #[must_use]
    pub fn ofi() -> Self {
        Kind::Ofi(Box::default()).into()
    }

    /// Which provider; default: the best of those that drive an RDMA NIC. For ofi only, ignored elsewhere, and so are
    /// the other settings of ofi; `KVRAIL_OFI_PROVIDER` overrides it.
    #[must_use]
    pub fn provider(self, provider: Provider) -> Self {
        self.ofi_setting(|config| config.provider = provider)
    }

    /// Which NICs (libfabric's domains); default: all. `KVRAIL_OFI_DEVICES` overrides it.
    #[must_use]
    pub fn devices<S: Into<String>>(self, devices: impl IntoIterator<Item = S>) -> Self {
        self.ofi_setting(|config| config.devices = devices.into_iter().map(Into::into).collect())
    }

    /// How many rails, 1 to 64; default: one per NIC. `KVRAIL_OFI_RAILS` overrides it.
    #[must_use]
    pub fn rails(self, count: u16) -> Self {
        self.ofi_setting(|config| config.rails = Some(count))
    }

    /// Which rails memory is registered on; default: the near ones. `KVRAIL_OFI_AFFINITY` overrides it.
    #[must_use]
    pub fn affinity(self, affinity: Affinity) -> Self {
        self.ofi_setting(|config| config.affinity = affinity)
    }

    /// The libfabric to load, a file or its directory; default: searched for. `KVRAIL_LIBFABRIC` overrides it.
    #[must_use]
    pub fn libfabric(self, path: impl Into<PathBuf>) -> Self {
        self.ofi_setting(|config| config.library = Some(path.into()))
    }

    /// How long ops may be in flight on a route without any progress before the route is given up, 10 ms to 10 min;
    /// default: 3 s. For ofi.
    #[must_use]
    pub fn stall_timeout(self, timeout: Duration) -> Self {
        self.ofi_setting(|config| config.stall_timeout = timeout)
    }

    fn ofi_setting(mut self, set: impl FnOnce(&mut kvrail_transport::ofi::Config)) -> Self {
        if let Kind::Ofi(config) = &mut self.kind {
            set(config);
        }
        self
    }

    /// The agent goes without this transport where it is not possible, and says why: once in the log when it starts (as
    /// a warning if there is an RDMA NIC that cannot be used), in [`crate::Agent::facts`], and in the choice for each peer. Without
    /// this, a transport that is not possible fails the agent.
    #[must_use]
    pub fn if_possible(mut self) -> Self {
        self.if_possible = true;
        self
    }

    /// Connections per peer, each a rail; for tcp only, ignored elsewhere.
    #[must_use]
    pub fn connections(mut self, count: u16) -> Self {
        if let Kind::Tcp { connections, .. } = &mut self.kind {
            *connections = Some(count);
        }
        self
    }

    /// Whether this agent's cores help its peers with large batches of private memory, and ask for their help (the
    /// default); for shm only, ignored elsewhere. Off, such a batch is copied by one core.
    #[must_use]
    pub fn cooperate(mut self, on: bool) -> Self {
        if let Kind::Shm { cooperate } = &mut self.kind {
            *cooperate = on;
        }
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match &self.kind {
            Kind::Shm { .. } => "shm",
            Kind::Ofi(_) => "ofi",
            Kind::Tcp { .. } => "tcp",
            Kind::Custom(fabric) => fabric.caps().name,
        }
    }

    /// All transports of this build with their default settings.
    pub(crate) fn auto() -> Vec<Self> {
        let all = NAMES.iter().filter_map(|name| Self::named(name));
        all.map(|transport| if transport.name() == "ofi" { transport.if_possible() } else { transport })
            .collect()
    }

    /// The transport of that name, in any case, with its default settings.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "shm" => Some(Self::shm()),
            "ofi" => Some(Self::ofi()),
            "tcp" => Some(Self::tcp("127.0.0.1:0")),
            _ => None,
        }
    }

    /// Whether a provider was asked for by name: then it is not for this host's NICs to say that there is none.
    pub(crate) fn names_a_provider(&self) -> bool {
        matches!(&self.kind, Kind::Ofi(config) if config.provider != Provider::Auto)
    }

    /// What of it the textual knobs stand for, for the program's part of the configuration.
    pub(crate) fn tell(&self, settings: &mut crate::config::Settings) {
        if let Kind::Ofi(config) = &self.kind {
            ofi::tell(config, settings);
        }
    }

    /// Takes over what the environment says otherwise.
    pub(crate) fn configure(&mut self, config: &Config) -> Result<(), ConfigError> {
        match &mut self.kind {
            Kind::Ofi(own) => ofi::configure(own, config),
            _ => Ok(()),
        }
    }

    pub(crate) fn open(self) -> Result<Box<dyn Fabric>, OpenError> {
        match self.kind {
            Kind::Custom(fabric) => Ok(fabric),
            Kind::Shm { cooperate } => {
                Ok(Box::new(Shm::open(shm::Config { cooperate, ..shm::Config::default() })?))
            }
            Kind::Ofi(config) => Ok(ofi::open(*config)?),
            Kind::Tcp { listen, connections } => open_tcp(&listen, connections),
        }
    }
}

impl fmt::Debug for TransportConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Shm { cooperate: true } => f.write_str("shm"),
            Kind::Shm { cooperate: false } => f.write_str("shm without help of the peer's cores"),
            Kind::Ofi(config) => write!(f, "ofi over provider {}", config.provider),
            Kind::Tcp { listen, connections } => {
                write!(f, "tcp listening on {listen}")?;
                connections.map_or(Ok(()), |n| write!(f, " with {n} connections"))
            }
            Kind::Custom(fabric) => write!(f, "{} (custom)", fabric.caps().name),
        }
    }
}

/// Why a transport could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The address to listen on is none.
    #[error("\"{address}\" is not an address to listen on: {source}")]
    Address {
        /// As it was given.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Shared memory cannot be set up.
    #[error(transparent)]
    Shm(#[from] shm::OpenError),
    /// libfabric, its provider or its devices cannot be used.
    #[error(transparent)]
    Ofi(Box<OfiError>),
    /// TCP cannot be set up: the port is taken, the address is not this host's, a setting is out of range.
    #[error("{0}")]
    Tcp(io::Error),
}

impl From<OfiError> for OpenError {
    fn from(error: OfiError) -> Self {
        Self::Ofi(Box::new(error))
    }
}

impl OpenError {
    /// Whether the same call may succeed later: another process may give the port back.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Tcp(source) if source.kind() == io::ErrorKind::AddrInUse)
    }
}

impl Hints for OpenError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Address { .. } => vec!["write HOST:PORT, for instance 0.0.0.0:5556".into()],
            Self::Tcp(source) => match source.kind() {
                io::ErrorKind::AddrInUse => {
                    vec!["another process has the port; choose another, or 0 for any".into()]
                }
                io::ErrorKind::AddrNotAvailable => {
                    vec!["the address is none of this host's; 0.0.0.0 stands for all of them".into()]
                }
                _ => Vec::new(),
            },
            Self::Ofi(error) => error.hints(),
            Self::Shm(_) => vec!["use tcp where the kernel or the container forbids shared memory".into()],
        }
    }
}

fn open_tcp(listen: &str, connections: Option<u16>) -> Result<Box<dyn Fabric>, OpenError> {
    let addresses: Result<Vec<SocketAddr>, _> = listen.to_socket_addrs().map(Iterator::collect);
    let mut config = tcp::Config {
        listen: addresses.map_err(|source| OpenError::Address { address: listen.into(), source })?,
        ..tcp::Config::default()
    };
    if let Some(connections) = connections {
        config.connections = connections;
    }
    Ok(Box::new(Tcp::new(config).map_err(OpenError::Tcp)?))
}
