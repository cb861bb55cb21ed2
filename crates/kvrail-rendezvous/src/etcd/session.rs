//! One member's client, lease and prefix; what etcd's errors mean.

use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, GetResponse, PutOptions, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};

use super::{RETRY, health, tls};
use crate::config::{Config, EtcdConfig};
use crate::error::ServiceError;
use crate::view::Event;

/// Longest time that setting up one connection may take, so that a dead endpoint does not hide a living one.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Keys that one page of the run's present state has: with the longest values still below what a client takes.
const PAGE_KEYS: i64 = 32;
const PAGE_BYTES_MAX: usize = 64 << 20;

const _: () = assert!(
    PAGE_KEYS as usize * (crate::limits::VALUE_BYTES_MAX + (4 << 10)) < PAGE_BYTES_MAX,
    "any page is taken"
);

// gRPC's numbers of the statuses that matter here.
const UNKNOWN: i32 = 2;
const DEADLINE_EXCEEDED: i32 = 4;
const UNAVAILABLE: i32 = 14;

pub(super) struct Session {
    client: Client,
    prefix: String,
    lease_id: i64,
    lease: Duration,
    endpoint: String,
    user: Option<String>,
    authenticated: bool,
}

impl Session {
    /// Checks the endpoints' health, signs in, takes a lease; says what was found for people.
    pub(super) async fn open(
        etcd: &EtcdConfig,
        config: &Config,
        until: Instant,
    ) -> Result<(Self, String), ServiceError> {
        let endpoint = config.service.to_string();
        let local = |detail: String| ServiceError::Refused { endpoint: endpoint.clone(), detail };
        let run_id = config.run_id.as_ref().ok_or_else(|| local("no run id was given".into()))?;
        let prefix = etcd.prefix(run_id).map_err(|error| local(error.to_string()))?;
        let tls = tls::Material::load(etcd)?;
        let healthy = health::check(etcd, tls.as_ref(), until).await?;

        // Whole seconds are all that etcd counts; a little less is what this member trusts in.
        let lease_s = i64::try_from(config.lease.as_secs_f64().ceil() as u64).unwrap_or(i64::MAX);
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_MAX)
            .with_keep_alive(config.lease / 3, config.lease / 3)
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
        let explain = |error| explain(&endpoint, &prefix, user.as_deref(), authenticated, error);
        let mut client = client.map_err(explain)?;
        let granted = client.lease_grant(lease_s, None).await.map_err(explain)?;
        let version = match client.status().await {
            Ok(status) => format!("etcd {} at {}", status.version(), urls.join(",")),
            Err(_) => format!("etcd at {}", urls.join(",")),
        };
        let session = Self {
            client,
            prefix,
            lease_id: granted.id(),
            lease: Duration::from_secs(granted.ttl().clamp(1, lease_s.max(2)).unsigned_abs()),
            endpoint,
            user,
            authenticated,
        };
        Ok((session, version))
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(super) fn lease(&self) -> Duration {
        self.lease
    }

    pub(super) fn lease_id(&self) -> i64 {
        self.lease_id
    }

    /// The part of a key that the view knows.
    pub(super) fn below_prefix(&self, key: &[u8]) -> Option<String> {
        let text = std::str::from_utf8(key).ok()?;
        text.strip_prefix(&self.prefix).map(Into::into)
    }

    fn key(&self, below: &str) -> String {
        format!("{}{below}", self.prefix)
    }

    /// What is below the prefix, and at which revision.
    pub(super) async fn snapshot(&self) -> Result<(Vec<Event>, i64), ServiceError> {
        self.snapshot_raw().await.map_err(|error| self.explain(error))
    }

    /// The same, with etcd's own error.
    pub(super) async fn snapshot_raw(&self) -> Result<(Vec<Event>, i64), Error> {
        let mut client = self.client.kv_client().max_decoding_message_size(PAGE_BYTES_MAX);
        let end = prefix_end(&self.prefix);
        let mut events = Vec::new();
        let (mut from, mut revision) = (self.prefix.clone().into_bytes(), 0);
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE_KEYS);
            let options = if revision > 0 { options.with_revision(revision) } else { options };
            let page: GetResponse = client.get(from, Some(options)).await?;
            if revision == 0 {
                revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            for kv in page.kvs() {
                if let Some(key) = self.below_prefix(kv.key()) {
                    events.push(Event::Put { key, value: kv.value().into(), owner: owner(kv.lease()) });
                }
            }
            let Some(last) = page.kvs().last().filter(|_| page.more()) else {
                return Ok((events, revision));
            };
            from = last.key().to_vec();
            from.push(0);
        }
    }

    pub(super) async fn create(&self, below: &str, value: &[u8]) -> Result<bool, ServiceError> {
        let key = self.key(below);
        let txn = Txn::new()
            .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.as_str(), value, Some(self.with_lease()))])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let created = self.persist(txn).await?;
        // An attempt of this very member may have gone through although its answer was lost.
        let mine = |response: &TxnOpResponse| match response {
            TxnOpResponse::Get(get) => get.kvs().iter().any(|kv| kv.lease() == self.lease_id),
            _ => false,
        };
        Ok(created.succeeded() || created.op_responses().iter().any(mine))
    }

    pub(super) async fn put(
        &self,
        below: &str,
        value: &[u8],
        delete: Option<&str>,
    ) -> Result<(), ServiceError> {
        let mut ops = vec![TxnOp::put(self.key(below), value, Some(self.with_lease()))];
        ops.extend(delete.map(|below| TxnOp::delete(self.key(below), None)));
        self.persist(Txn::new().and_then(ops)).await.map(|_| ())
    }

    /// Revokes the lease of one who does not answer. A seat without a lease was not made by a member, and goes alone.
    pub(super) async fn evict(&self, below: &str, owner: u64) -> Result<(), ServiceError> {
        let lease = i64::from_ne_bytes(owner.to_ne_bytes());
        if lease == 0 {
            let key = self.key(below);
            let txn = Txn::new()
                .when([Compare::lease(key.as_str(), CompareOp::Equal, 0)])
                .and_then([TxnOp::delete(key.as_str(), None)]);
            return self.persist(txn).await.map(|_| ());
        }
        match self.client.lease_client().revoke(lease).await.map_err(|error| self.explain(error)) {
            // It ended by itself.
            Ok(_) | Err(ServiceError::Expired { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Puts a last word and revokes this member's lease, and with it all its keys.
    pub(super) async fn close(&self, parting: Option<(&str, &[u8])>) -> Result<(), ServiceError> {
        let said = match parting {
            Some((key, value)) => self.put(key, value, None).await,
            None => Ok(()),
        };
        let revoked = self.client.lease_client().revoke(self.lease_id).await;
        said.and(revoked.map(|_| ()).map_err(|error| self.explain(error)))
    }

    fn with_lease(&self) -> PutOptions {
        PutOptions::new().with_lease(self.lease_id)
    }

    /// Repeats a transaction while the connection is away, for as long as the lease may last. Those here may be repeated:
    /// a second time they change nothing.
    async fn persist(&self, txn: Txn) -> Result<TxnResponse, ServiceError> {
        let until = Instant::now() + self.lease;
        let mut client = self.client.kv_client();
        loop {
            match client.txn(txn.clone()).await {
                Ok(done) => return Ok(done),
                Err(error) if is_transient(&error) && Instant::now() < until => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    pub(super) fn expired(&self) -> ServiceError {
        ServiceError::Expired { endpoint: self.endpoint.clone() }
    }

    pub(super) fn explain(&self, error: Error) -> ServiceError {
        explain(&self.endpoint, &self.prefix, self.user.as_deref(), self.authenticated, error)
    }
}

/// A lease as the view knows owners.
pub(super) fn owner(lease: i64) -> u64 {
    u64::from_ne_bytes(lease.to_ne_bytes())
}

/// Whether the same request may succeed over another connection or a moment later.
pub(super) fn is_transient(error: &Error) -> bool {
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
    error: Error,
) -> ServiceError {
    let endpoint = endpoint.to_string();
    let detail = text(&error);
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
    if is_transient(&error) {
        return ServiceError::Lost { endpoint, detail };
    }
    ServiceError::Refused { endpoint, detail }
}

/// The first key after all that begin with `prefix`: its last byte, which is `/`, is one more.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
