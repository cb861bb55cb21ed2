//! One client of an etcd cluster: health first, TLS, users; what etcd's errors mean.

use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Error};

use super::{health, tls};
use crate::config::{EtcdConfig, Service};
use crate::error::ServiceError;

/// Longest time that setting up one connection may take, so that a dead endpoint does not hide a living one.
const CONNECT_MAX: Duration = Duration::from_secs(2);

// gRPC's numbers of the statuses that matter here.
const UNKNOWN: i32 = 2;
const DEADLINE_EXCEEDED: i32 = 4;
const UNAVAILABLE: i32 = 14;

/// A client of an etcd cluster of which at least one endpoint is healthy. Connections that break are set up again by the
/// client itself.
pub struct Connection {
    client: Client,
    endpoint: String,
    prefix: String,
    urls: Vec<String>,
    user: Option<String>,
    authenticated: bool,
}

impl Connection {
    /// Checks the endpoints' health and signs in. `prefix` is where the keys are that will be asked for, for messages;
    /// a connection that says nothing for `keep_alive` is asked whether it is there. Needs a runtime of tokio's.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn open(
        etcd: &EtcdConfig,
        prefix: &str,
        keep_alive: Duration,
        until: Instant,
    ) -> Result<Self, ServiceError> {
        let endpoint = Service::Etcd(etcd.clone()).to_string();
        let tls = tls::Material::load(etcd)?;
        let healthy = health::check(etcd, tls.as_ref(), until).await?;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_MAX)
            .with_keep_alive(keep_alive, keep_alive)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(tls) = &tls {
            options = options.with_tls(tls.for_grpc(etcd));
        }
        let signed = etcd.user.as_ref().map(|(name, password)| {
            options.clone().with_user(name, password.reveal()).with_auto_token_refresh(true)
        });
        let urls: Vec<String> = healthy.iter().map(ToString::to_string).collect();
        let authenticated = signed.is_some();
        let (client, authenticated) = match Client::connect(&urls, Some(signed.unwrap_or(options.clone())))
            .await
        {
            Err(Error::GRpcStatus(status)) if status.message().contains("authentication is not enabled") => {
                tracing::warn!("{endpoint} has no authentication; the user and password are not used");
                (Client::connect(&urls, Some(options)).await, false)
            }
            connected => (connected, authenticated),
        };
        let user = etcd.user.as_ref().map(|(name, _)| name.clone());
        match client {
            Ok(client) => Ok(Self { client, endpoint, prefix: prefix.into(), urls, user, authenticated }),
            Err(error) => Err(explain(&endpoint, prefix, user.as_deref(), authenticated, &error)),
        }
    }

    /// The client; its clones share the connection.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The cluster as it was given, for people.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn urls(&self) -> &[String] {
        &self.urls
    }

    /// What an error of the client means here.
    #[must_use]
    pub fn explain(&self, error: &Error) -> ServiceError {
        explain(&self.endpoint, &self.prefix, self.user.as_deref(), self.authenticated, error)
    }

    /// Whether the same request may succeed over another connection or a moment later.
    #[must_use]
    pub fn is_transient(error: &Error) -> bool {
        is_transient(error)
    }
}

fn is_transient(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => match i32::from(status.code()) {
            UNAVAILABLE | DEADLINE_EXCEEDED => true,
            // What tonic makes of a broken connection; etcd's own errors have a text of theirs.
            UNKNOWN => !status.message().contains("etcdserver"),
            _ => {
                status.message().contains("h2 protocol error") || status.message().contains("transport error")
            }
        },
        Error::TransportError(_) | Error::IoError(_) | Error::LeaseKeepAliveError(_) => true,
        _ => false,
    }
}

/// An error's own words.
pub(super) fn text(error: &Error) -> String {
    let text = match error {
        Error::GRpcStatus(status) => status.message().to_string(),
        other => other.to_string(),
    };
    crate::member::tame(&text, 512)
}

fn explain(
    endpoint: &str,
    prefix: &str,
    user: Option<&str>,
    authenticated: bool,
    error: &Error,
) -> ServiceError {
    let endpoint = endpoint.to_string();
    let detail = text(error);
    let says = |words: &str| detail.contains(words);
    if says("user name is empty") {
        return ServiceError::AuthenticationNeeded { endpoint };
    }
    if says("authentication failed") {
        return ServiceError::AuthenticationDenied { endpoint, user: user.unwrap_or_default().into() };
    }
    if says("permission denied") || says("PermissionDenied") {
        let user = user.filter(|_| authenticated).map(Into::into);
        return ServiceError::PermissionDenied { endpoint, user, prefix: prefix.into() };
    }
    if says("lease not found") {
        return ServiceError::Expired { endpoint };
    }
    if says("database space exceeded") || says("no leader") {
        return ServiceError::Unhealthy { endpoint, detail };
    }
    if is_transient(error) {
        return ServiceError::Lost { endpoint, detail };
    }
    ServiceError::Refused { endpoint, detail }
}
