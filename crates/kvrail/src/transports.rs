//! Which transports an agent may have, and how each is opened.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use kvrail_transport::Fabric;
use kvrail_transport::shm::{self, Shm};
use kvrail_transport::tcp::{self, Tcp};

use crate::hints::Hints;

/// The transports of this build, in the default order of preference.
pub(crate) const NAMES: &[&str] = &["shm", "tcp"];

/// A transport that an agent is to have, and its settings.
pub struct TransportConfig {
    kind: Kind,
}

enum Kind {
    Shm { cooperate: bool },
    Tcp { listen: String, connections: Option<u16> },
    Custom(Box<dyn Fabric>),
}

impl TransportConfig {
    /// Shared memory: processes of one user on one host.
    #[must_use]
    pub fn shm() -> Self {
        Self { kind: Kind::Shm { cooperate: true } }
    }

    /// TCP, listening on `listen` (`HOST:PORT`, port 0 for any). Peers connect to that address, so that one that is
    /// bound to loopback reaches this host only.
    #[must_use]
    pub fn tcp(listen: impl Into<String>) -> Self {
        Self { kind: Kind::Tcp { listen: listen.into(), connections: None } }
    }

    /// A transport made elsewhere. It must keep the promises of [`kvrail_core::transport`].
    #[must_use]
    pub fn custom(fabric: Box<dyn Fabric>) -> Self {
        Self { kind: Kind::Custom(fabric) }
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
            Kind::Tcp { .. } => "tcp",
            Kind::Custom(fabric) => fabric.caps().name,
        }
    }

    /// All transports of this build with their default settings.
    pub(crate) fn auto() -> Vec<Self> {
        NAMES.iter().filter_map(|name| Self::named(name)).collect()
    }

    /// The transport of that name, in any case, with its default settings.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "shm" => Some(Self::shm()),
            "tcp" => Some(Self::tcp("127.0.0.1:0")),
            _ => None,
        }
    }

    pub(crate) fn open(self) -> Result<Box<dyn Fabric>, OpenError> {
        match self.kind {
            Kind::Custom(fabric) => Ok(fabric),
            Kind::Shm { cooperate } => {
                Ok(Box::new(Shm::open(shm::Config { cooperate, ..shm::Config::default() })?))
            }
            Kind::Tcp { listen, connections } => open_tcp(&listen, connections),
        }
    }
}

impl fmt::Debug for TransportConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Shm { cooperate: true } => f.write_str("shm"),
            Kind::Shm { cooperate: false } => f.write_str("shm without help of the peer's cores"),
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
    /// TCP cannot be set up: the port is taken, the address is not this host's, a setting is out of range.
    #[error("{0}")]
    Tcp(io::Error),
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
