//! How an agent's metadata goes to others: what is asked for in its configuration and in the environment.

use std::fmt;
use std::time::Duration;

use kvrail_rendezvous::{EtcdConfig, Secret};

use crate::error::{Error, Result, Status};

/// The label of an agent's full metadata in etcd, and of a fetch that names none.
pub const LABEL_DEFAULT: &str = "metadata";
/// What keys in etcd begin with where `NIXL_ETCD_NAMESPACE` says nothing.
pub const NAMESPACE_DEFAULT: &str = "/nixl/agents/";
/// How long a fetch waits for a key of etcd that is not there yet, where nothing else is asked for.
pub const WATCH_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// How long keys in etcd outlive a process that was killed, where nothing else is asked for: long enough that a busy
/// machine is not taken for a dead one.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(15);

const LEASE_S: std::ops::RangeInclusive<u64> = 2..=3600;
const NAMESPACE_BYTES_MAX: usize = 1024;

/// The variables of the environment that the exchange reads. Those of `NIXL_` are NIXL's own; it has none for users and
/// certificates.
const ENDPOINTS: &str = "NIXL_ETCD_ENDPOINTS";
const NAMESPACE: &str = "NIXL_ETCD_NAMESPACE";
const TCP_STORE: &str = "NIXL_TCPSTORE_ENDPOINT";
const USER: &str = "KVRAIL_ETCD_USER";
const PASSWORD: &str = "KVRAIL_ETCD_PASSWORD";
const CA: &str = "KVRAIL_ETCD_CACERT";
const CERT: &str = "KVRAIL_ETCD_CERT";
const KEY: &str = "KVRAIL_ETCD_KEY";
const SERVER_NAME: &str = "KVRAIL_ETCD_SERVER_NAME";
const LEASE: &str = "KVRAIL_ETCD_LEASE_S";

/// How an agent exchanges metadata.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExchangeConfig {
    /// The agent's name: its keys in etcd have it, and peers are told it when they are to forget the agent.
    pub agent: String,
    /// The port to listen on for peers, on every address of the host; 0 for any free one. Without it peers cannot send
    /// here nor fetch from here.
    pub listen: Option<u16>,
    /// How long a fetch waits for a key of etcd that is not there yet.
    pub watch_timeout: Duration,
    /// The store for what is sent and fetched by name.
    pub store: Option<StoreConfig>,
}

/// An etcd that agents exchange their metadata over.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoreConfig {
    /// Where it is and how to come in.
    pub etcd: EtcdConfig,
    /// What keys begin with: `NAMESPACE/AGENT/LABEL`.
    pub namespace: String,
    /// How long this agent's keys outlive it when it is killed. Whole seconds; a part of one is taken for one.
    pub lease: Duration,
}

impl StoreConfig {
    /// The etcd at `endpoints`, with NIXL's namespace.
    ///
    /// # Errors
    /// [`Status::InvalidParam`]: they are no endpoints, or this program was built without etcd.
    pub fn new(endpoints: &str) -> Result<Self> {
        let etcd = EtcdConfig::new(endpoints).map_err(|error| invalid(format!("{ENDPOINTS}: {error}")))?;
        if cfg!(not(feature = "etcd")) {
            return Err(invalid(format!("{ENDPOINTS} is set, and this program was built without etcd"))
                .hint("build it with the feature `etcd`, or give the peers' addresses"));
        }
        Ok(Self { etcd, namespace: NAMESPACE_DEFAULT.into(), lease: LEASE_DEFAULT })
    }
}

impl ExchangeConfig {
    /// An agent that neither listens nor knows a store: it can send to addresses and fetch from them.
    #[must_use]
    pub fn new(agent: impl Into<String>) -> Self {
        Self { agent: agent.into(), listen: None, watch_timeout: WATCH_TIMEOUT_DEFAULT, store: None }
    }

    /// The same, with the store that the environment names:
    ///
    /// | variable | |
    /// |---|---|
    /// | `NIXL_ETCD_ENDPOINTS` | etcd's addresses, commas between; `https://` for TLS |
    /// | `NIXL_ETCD_NAMESPACE` | what keys begin with, `/nixl/agents/` without it |
    /// | `KVRAIL_ETCD_USER`, `KVRAIL_ETCD_PASSWORD` | where etcd requires them |
    /// | `KVRAIL_ETCD_CACERT` | the authorities' certificates, PEM; the system's without it |
    /// | `KVRAIL_ETCD_CERT`, `KVRAIL_ETCD_KEY` | a client certificate and its key, PEM |
    /// | `KVRAIL_ETCD_SERVER_NAME` | the name in etcd's certificates, where it is not the endpoint's host |
    /// | `KVRAIL_ETCD_LEASE_S` | seconds that keys outlive a killed process, 2 to 3600, 15 without it |
    ///
    /// # Errors
    /// [`Status::InvalidParam`]: a variable has a value that cannot be used. Passwords are not repeated.
    pub fn from_environment(agent: impl Into<String>) -> Result<Self> {
        Self::from_variables(agent, |name| std::env::var_os(name))
    }

    fn from_variables(
        agent: impl Into<String>,
        variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<Self> {
        let text = |name: &str| {
            let value = variable(name).map(std::ffi::OsString::into_string).transpose();
            value.map_err(|_| invalid(format!("{name} is not UTF-8")))
        };
        let mut config = Self::new(agent);
        let tcp_store = variable(TCP_STORE).is_some();
        let Some(endpoints) = text(ENDPOINTS)? else {
            if tcp_store {
                tracing::warn!(
                    "{TCP_STORE} is set, and kvrail has no TCP store: metadata goes by name over etcd ({ENDPOINTS}) only"
                );
            }
            return Ok(config);
        };
        if tcp_store {
            return Err(invalid(format!("{ENDPOINTS} and {TCP_STORE} are both set: one store can be used")));
        }
        if endpoints.trim().is_empty() {
            return Err(invalid(format!("{ENDPOINTS} is set and empty"))
                .hint("give etcd's addresses, or unset it to exchange metadata by address only"));
        }
        let mut store = StoreConfig::new(&endpoints)?;
        if let Some(namespace) = text(NAMESPACE)? {
            if namespace.len() > NAMESPACE_BYTES_MAX {
                return Err(invalid(format!(
                    "{NAMESPACE} has {} bytes; it may have {NAMESPACE_BYTES_MAX}",
                    namespace.len()
                )));
            }
            store.namespace = namespace;
        }
        store.etcd.user = match (text(USER)?, text(PASSWORD)?) {
            (Some(user), password) => Some((user, Secret::new(password.unwrap_or_default()))),
            (None, _) => None,
        };
        store.etcd.tls.ca = variable(CA).map(Into::into);
        store.etcd.tls.cert = variable(CERT).map(Into::into);
        store.etcd.tls.key = variable(KEY).map(Into::into);
        store.etcd.tls.server_name = text(SERVER_NAME)?;
        if let Some(lease) = text(LEASE)? {
            let seconds = lease.trim().parse().ok().filter(|seconds| LEASE_S.contains(seconds));
            let seconds = seconds.ok_or_else(|| {
                invalid(format!(
                    "{LEASE} is \"{}\"; it is a number from {} to {}",
                    lease.escape_debug(),
                    LEASE_S.start(),
                    LEASE_S.end()
                ))
            })?;
            store.lease = Duration::from_secs(seconds);
        }
        config.store = Some(store);
        Ok(config)
    }
}

/// Where metadata is sent to, or fetched from.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Destination {
    /// A peer's host (a name or an address) and the port that it listens on. Without it the store is meant.
    pub address: Option<(String, u16)>,
    /// Which of an agent's values in the store; empty for [`LABEL_DEFAULT`].
    pub label: String,
}

impl Destination {
    /// A peer that listens.
    #[must_use]
    pub fn at(host: impl Into<String>, port: u16) -> Self {
        Self { address: Some((host.into(), port)), label: String::new() }
    }

    /// A value in the store.
    #[must_use]
    pub fn label(label: impl Into<String>) -> Self {
        Self { address: None, label: label.into() }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some((host, port)) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Some((host, port)) => write!(f, "{host}:{port}"),
            None if self.label.is_empty() => write!(f, "the store, label {LABEL_DEFAULT}"),
            None => write!(f, "the store, label {}", self.label),
        }
    }
}

/// What a call without an address is told where there is no store.
pub(super) fn no_store() -> Error {
    invalid("no peer address was given, and no store is configured")
        .hint(format!("give the peer's address and port, or set {ENDPOINTS}"))
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(Status::InvalidParam, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<ExchangeConfig> {
        ExchangeConfig::from_variables("a", |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn without_endpoints_there_is_no_store() {
        assert!(read(&[(NAMESPACE, "/x"), (USER, "root")]).expect("nothing is wrong").store.is_none());
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn the_namespace_is_nixls_where_none_is_given() {
        let store = |more: &[(&str, &str)]| {
            let variables = [&[(ENDPOINTS, "http://a:1,https://b")], more].concat();
            read(&variables).expect("all is well").store.expect("a store")
        };
        assert_eq!(store(&[]).namespace, "/nixl/agents/");
        assert_eq!(store(&[]).lease, LEASE_DEFAULT);
        let full = store(&[(NAMESPACE, "/mine"), (USER, "root"), (PASSWORD, "hunter2"), (LEASE, "3")]);
        assert_eq!((full.namespace.as_str(), full.lease), ("/mine", Duration::from_secs(3)));
        assert!(full.etcd.user.is_some());
        assert!(!format!("{full:?}").contains("hunter2"));
    }

    #[test]
    fn what_cannot_be_used_is_an_error_that_names_the_variable_and_no_password() {
        for (variables, word) in [
            (&[(ENDPOINTS, "")][..], ENDPOINTS),
            (&[(ENDPOINTS, "http://root:hunter2@a:1")], ENDPOINTS),
            (&[(ENDPOINTS, "garbage!!")], ENDPOINTS),
            #[cfg(feature = "etcd")]
            (&[(ENDPOINTS, "a"), (LEASE, "1")], LEASE),
            (&[(ENDPOINTS, "a"), (TCP_STORE, "b:1")], TCP_STORE),
        ] {
            let error = read(variables).expect_err("it cannot be used");
            assert_eq!(error.status, Status::InvalidParam);
            assert!(error.what.contains(word), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
}
