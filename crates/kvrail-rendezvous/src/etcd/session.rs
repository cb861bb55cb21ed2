//! One member's client, lease and prefix; what etcd's errors mean.

use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, GetResponse, PutOptions, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};

use super::RETRY;
use super::connection::Connection;
use crate::config::{Config, EtcdConfig};
use crate::error::ServiceError;
use crate::view::Event;

/// Keys that one page of the run's present state has: with the longest values still below what a client takes.
const PAGE_KEYS: i64 = 32;
const PAGE_BYTES_MAX: usize = 64 << 20;

const _: () = assert!(
    PAGE_KEYS as usize * (crate::limits::VALUE_BYTES_MAX + (4 << 10)) < PAGE_BYTES_MAX,
    "any page is taken"
);

pub(super) struct Session {
    client: Client,
    connection: Connection,
    prefix: String,
    lease_id: i64,
    lease: Duration,
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
        let connection = Connection::open(etcd, &prefix, config.lease / 3, until).await?;

        // Whole seconds are all that etcd counts; a little less is what this member trusts in.
        let lease_s = i64::try_from(config.lease.as_secs_f64().ceil() as u64).unwrap_or(i64::MAX);
        let mut client = connection.client();
        let granted = client.lease_grant(lease_s, None).await.map_err(|error| connection.explain(&error))?;
        let urls = connection.urls().join(",");
        let version = match client.status().await {
            Ok(status) => format!("etcd {} at {urls}", status.version()),
            Err(_) => format!("etcd at {urls}"),
        };
        let session = Self {
            client,
            connection,
            prefix,
            lease_id: granted.id(),
            lease: Duration::from_secs(granted.ttl().clamp(1, lease_s.max(2)).unsigned_abs()),
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
        self.connection.endpoint()
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
                Err(error) if Connection::is_transient(&error) && Instant::now() < until => {
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    pub(super) fn expired(&self) -> ServiceError {
        ServiceError::Expired { endpoint: self.endpoint().into() }
    }

    pub(super) fn explain(&self, error: Error) -> ServiceError {
        self.connection.explain(&error)
    }
}

/// A lease as the view knows owners.
pub(super) fn owner(lease: i64) -> u64 {
    u64::from_ne_bytes(lease.to_ne_bytes())
}

/// The first key after all that begin with `prefix`: its last byte, which is `/`, is one more.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
