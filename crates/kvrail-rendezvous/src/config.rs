//! Where a group meets, and how long its members wait.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::limits::{
    DEADLINE_DEFAULT, LEASE_DEFAULT, LEASE_MAX, LEASE_MIN, NAMESPACE_BYTES_MAX, WORLD_SIZE_MAX,
};
use crate::name::RunId;

/// Most endpoints of one etcd cluster.
const ENDPOINTS_MAX: usize = 32;
/// Keys of runs are below this, followed by the run id.
const NAMESPACE_DEFAULT: &str = "/kvrail/rendezvous";
const ETCD_PORT: u16 = 2379;

/// What one member needs to know to join a group.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Where the group meets.
    pub service: Service,
    /// Which run this is. Over etcd it is needed. Over an embedded service the one who hosts makes one up where none
    /// is given, and the others take whatever run they find.
    pub run_id: Option<RunId>,
    /// This member's rank; without one the lowest free seat is taken, first come, first served.
    pub rank: Option<u32>,
    /// Members of the group, 1 to [`WORLD_SIZE_MAX`].
    pub world_size: u32,
    /// Time for everyone to come together, from this member's start.
    pub deadline: Duration,
    /// How long after its last sign of life a member is taken for dead, [`LEASE_MIN`] to [`LEASE_MAX`]. etcd counts
    /// whole seconds; a part of one is taken for one.
    pub lease: Duration,
    /// This host's name, for messages to people.
    pub host: String,
}

impl Config {
    /// A group of `world_size` that meets at `service`, with everything else as most want it: no rank and no run id
    /// asked for, 60 s to come together, a lease of 5 s, the host's own name.
    #[must_use]
    pub fn new(service: Service, world_size: u32) -> Self {
        Self {
            service,
            run_id: None,
            rank: None,
            world_size,
            deadline: DEADLINE_DEFAULT,
            lease: LEASE_DEFAULT,
            host: crate::member::this_host(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let Self { world_size, rank, lease, .. } = *self;
        if world_size == 0 || world_size > WORLD_SIZE_MAX {
            return Err(ConfigError::WorldSize { world_size });
        }
        if let Some(rank) = rank.filter(|&rank| rank >= world_size) {
            return Err(ConfigError::Rank { rank, world_size });
        }
        if lease < LEASE_MIN || lease > LEASE_MAX {
            return Err(ConfigError::Lease { lease });
        }
        match (&self.service, &self.run_id) {
            (Service::Etcd(_), _) if cfg!(not(feature = "etcd")) => return Err(ConfigError::NoEtcd),
            (Service::Etcd(_), None) => return Err(ConfigError::RunIdNeeded),
            _ => {}
        }
        Ok(())
    }
}

/// Where a group meets.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Service {
    /// An etcd cluster.
    Etcd(EtcdConfig),
    /// A TCP port that one of the members opens.
    Embedded(EmbeddedConfig),
}

impl Service {
    /// Reads `tcp://HOST:PORT` as an embedded service, anything else as a list of etcd's endpoints.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.trim().starts_with("tcp://") {
            return EmbeddedConfig::new(text).map(Self::Embedded);
        }
        EtcdConfig::new(text).map(Self::Etcd)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd(etcd) => {
                f.write_str("etcd at ")?;
                for (i, endpoint) in etcd.endpoints.iter().enumerate() {
                    write!(f, "{}{endpoint}", if i == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Self::Embedded(embedded) => write!(f, "tcp://{}", authority(&embedded.host, embedded.port)),
        }
    }
}

/// An embedded service: where, and who opens the port.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct EmbeddedConfig {
    /// A name or an address that all members reach.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Who opens it.
    pub hosting: Hosting,
}

impl EmbeddedConfig {
    /// Reads `tcp://HOST:PORT`; `tcp://` may be left out.
    ///
    /// # Errors
    /// [`ConfigError::Address`].
    pub fn new(address: &str) -> Result<Self, ConfigError> {
        let address = address.trim();
        let (host, port) = split(address.strip_prefix("tcp://").unwrap_or(address), None)
            .map_err(|detail| ConfigError::Address { address: address.into(), detail })?;
        Ok(Self { host, port, hosting: Hosting::Auto })
    }
}

/// Who opens the port of an embedded service.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub enum Hosting {
    /// The first member that can: one on the host that the address belongs to, while nobody has the port.
    #[default]
    Auto,
    /// This member does, or fails to join.
    Always,
    /// This member does not.
    Never,
}

/// An etcd cluster and how to come in.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct EtcdConfig {
    /// Its endpoints; one that answers is enough.
    pub endpoints: Vec<Endpoint>,
    /// What the keys of all runs begin with, `/kvrail/rendezvous` by default. Begins with `/`, does not end with one.
    pub namespace: String,
    /// Certificates, for endpoints of `https://`.
    pub tls: TlsConfig,
    /// User and password, where etcd requires them.
    pub user: Option<(String, Secret)>,
}

impl EtcdConfig {
    /// Reads endpoints, with commas or spaces between: `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT`, which
    /// is `http://`. The port is 2379 where none is given.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(endpoints: &str) -> Result<Self, ConfigError> {
        let list = endpoints.split([',', ' ', '\t', '\n']).filter(|part| !part.is_empty());
        let endpoints = list.map(Endpoint::parse).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() || endpoints.len() > ENDPOINTS_MAX {
            return Err(ConfigError::Endpoints { count: endpoints.len() });
        }
        Ok(Self { endpoints, namespace: NAMESPACE_DEFAULT.into(), tls: TlsConfig::default(), user: None })
    }

    #[cfg(feature = "etcd")]
    pub(crate) fn prefix(&self, run_id: &RunId) -> Result<String, ConfigError> {
        let namespace = &self.namespace;
        let well = namespace.starts_with('/')
            && !namespace.ends_with('/')
            && namespace.len() <= NAMESPACE_BYTES_MAX
            && namespace.bytes().all(|b| b.is_ascii_graphic());
        if !well {
            return Err(ConfigError::Namespace { namespace: namespace.clone() });
        }
        Ok(format!("{namespace}/{run_id}/"))
    }
}

/// One endpoint of an etcd cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Endpoint {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Its host's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Endpoint {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => (false, text),
        };
        // The text is not repeated where it may contain a password.
        if rest.contains('@') {
            return Err(ConfigError::Address {
                address: "an endpoint".into(),
                detail: "it contains a user or password; give them apart from the address",
            });
        }
        let (host, port) = split(rest.strip_suffix('/').unwrap_or(rest), Some(ETCD_PORT))
            .map_err(|detail| ConfigError::Address { address: text.into(), detail })?;
        Ok(Self { tls, host, port })
    }

    /// `host:port`, with brackets around an IPv6 address.
    #[cfg(feature = "etcd")]
    pub(crate) fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, authority(&self.host, self.port))
    }
}

/// Certificates for TLS.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TlsConfig {
    /// Certificates of the authorities that servers are believed from, PEM. The system's without it.
    pub ca: Option<PathBuf>,
    /// This client's certificate chain, PEM, where the server wants one.
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// The name in the servers' certificates, where it is not the endpoint's host.
    pub server_name: Option<String>,
}

/// A text that is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text in.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    #[cfg(feature = "etcd")]
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// etcd is asked for, and this program was built without the feature `etcd`.
    #[error(
        "this program was built without etcd (feature `etcd`); meet at tcp://HOST:PORT, or build it with: cargo build --release --features etcd"
    )]
    NoEtcd,
    /// Not `HOST:PORT`.
    #[error("\"{}\" is not an address: {detail}", .address.escape_debug())]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// No endpoint, or too many.
    #[error("{count} etcd endpoints given; 1 to {ENDPOINTS_MAX} are needed")]
    Endpoints {
        /// How many were given.
        count: usize,
    },
    /// The namespace is no prefix of keys.
    #[error("the namespace \"{}\" must begin with / and not end with one, and have at most {NAMESPACE_BYTES_MAX} printable characters", .namespace.escape_debug())]
    Namespace {
        /// As it was given.
        namespace: String,
    },
    /// No group has this size.
    #[error("a group has 1 to {WORLD_SIZE_MAX} members, not {world_size}")]
    WorldSize {
        /// As it was given.
        world_size: u32,
    },
    /// The rank is not below the group's size.
    #[error("rank {rank} is not one of a group of {world_size}: ranks are 0 to {}", .world_size.saturating_sub(1))]
    Rank {
        /// As it was given.
        rank: u32,
        /// As it was given.
        world_size: u32,
    },
    /// Members that live too short or too long without a sign of life.
    #[error("a lease has {LEASE_MIN:?} to {LEASE_MAX:?}, not {lease:?}")]
    Lease {
        /// As it was given.
        lease: Duration,
    },
    /// Over etcd nothing but the run id tells one run from another.
    #[error("a run id is needed to meet over etcd: the same for all members")]
    RunIdNeeded,
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn split(text: &str, default_port: Option<u16>) -> Result<(String, u16), &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("an IPv6 address ends with ]")?;
        (
            host,
            if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or("after ] comes :PORT")?) },
        )
    } else {
        match text.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err("write an IPv6 address in brackets: [::1]:PORT");
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = match port {
        Some(port) => port.parse().map_err(|_| "the port is a number from 0 to 65535")?,
        None => default_port.ok_or("write HOST:PORT")?,
    };
    let plain = !host.is_empty()
        && host.len() <= 255
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:%".contains(&b));
    if plain { Ok((host.into(), port)) } else { Err("the host is a name or an address") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "etcd")]
    #[test]
    fn endpoints_are_read_with_commas_or_spaces_between() {
        let etcd = EtcdConfig::new("http://a:1, https://[::1]:2 c,https://d/").unwrap();
        let texts: Vec<String> = etcd.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["http://a:1", "https://[::1]:2", "http://c:2379", "https://d:2379"]);
        assert!(EtcdConfig::new(" , ").is_err());
        assert!(EtcdConfig::new("http://a:70000").is_err());
        assert!(EtcdConfig::new("::1").is_err());
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn no_password_is_ever_repeated() {
        let error = EtcdConfig::new("http://root:hunter2@a:1").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let mut etcd = EtcdConfig::new("a").unwrap();
        etcd.user = Some(("root".into(), Secret::new("hunter2")));
        assert!(!format!("{etcd:?}").contains("hunter2"));
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn a_run_id_is_needed_over_etcd_only() {
        let etcd = Config::new(Service::parse("a:1").unwrap(), 2);
        assert_eq!(etcd.check(), Err(ConfigError::RunIdNeeded));
        assert_eq!(Config::new(Service::parse("tcp://a:1").unwrap(), 2).check(), Ok(()));
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_started() {
        let base = Config::new(Service::parse("tcp://a:1").unwrap(), 2);
        let with = |change: fn(&mut Config)| {
            let mut config = base.clone();
            change(&mut config);
            config.check()
        };
        assert!(with(|c| c.world_size = 0).is_err());
        assert!(with(|c| c.world_size = WORLD_SIZE_MAX + 1).is_err());
        assert_eq!(
            with(|c| c.rank = Some(2)).unwrap_err().to_string(),
            "rank 2 is not one of a group of 2: ranks are 0 to 1"
        );
        assert!(with(|c| c.lease = Duration::ZERO).is_err());
        assert!(EmbeddedConfig::new("tcp://a").is_err());
        assert!(EmbeddedConfig::new("tcp://:1").is_err());
    }
}
