//! The connection: made when it is first needed, made anew when it fails for good, every request with a deadline.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Error};
use kvrail_rendezvous::{EtcdConfig, EtcdConnection, ServiceError};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::super::frame::METADATA_BYTES_MAX;

/// Time for one request, with what is tried again.
pub(super) const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Pause before what failed for want of a connection is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(100);
/// Longest answer that is taken: a value of the longest metadata, or a part of a watch's answer.
pub(super) const ANSWER_BYTES_MAX: usize = METADATA_BYTES_MAX + (1 << 20);

/// Why etcd did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("{endpoint} did not answer in time")]
    Deadline { endpoint: String },
    /// etcd no longer knows the lease.
    #[error("the lease is gone")]
    LeaseGone,
}

pub(super) struct Link {
    etcd: EtcdConfig,
    prefix: String,
    keep_alive: Duration,
    connection: Mutex<Option<Arc<EtcdConnection>>>,
}

impl Link {
    pub(super) fn new(etcd: EtcdConfig, prefix: String, keep_alive: Duration) -> Self {
        Self { etcd, prefix, keep_alive, connection: Mutex::new(None) }
    }

    pub(super) async fn connection(&self) -> Result<Arc<EtcdConnection>, Failure> {
        let until = Instant::now() + REQUEST_MAX;
        let late = |_| Failure::Deadline { endpoint: self.endpoint() };
        // Whoever waits for the lock waits for somebody else's attempt, and then has its result or makes one of its own.
        let mut connection = timeout_at(until, self.connection.lock()).await.map_err(late)?;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let opened = EtcdConnection::open(&self.etcd, &self.prefix, self.keep_alive, until.into_std());
        let opened = Arc::new(timeout_at(until + RETRY, opened).await.map_err(late)??);
        *connection = Some(opened.clone());
        Ok(opened)
    }

    /// Asks, and asks again for as long as the connection is what is missing. What is asked may be asked twice.
    pub(super) async fn request<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let until = Instant::now() + REQUEST_MAX;
        let connection = self.connection().await?;
        loop {
            let error = match timeout_at(until, ask(connection.client())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => {
                    self.give_up(&connection).await;
                    return Err(Failure::Deadline { endpoint: connection.endpoint().into() });
                }
            };
            if EtcdConnection::is_transient(&error) && Instant::now() + RETRY < until {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            let explained = connection.explain(&error);
            if matches!(explained, ServiceError::Expired { .. }) {
                return Err(Failure::LeaseGone);
            }
            self.give_up(&connection).await;
            return Err(explained.into());
        }
    }

    /// The next request looks for endpoints that are healthy, and signs in again.
    pub(super) async fn give_up(&self, failed: &Arc<EtcdConnection>) {
        let mut connection = self.connection.lock().await;
        if connection.as_ref().is_some_and(|current| Arc::ptr_eq(current, failed)) {
            *connection = None;
        }
    }

    fn endpoint(&self) -> String {
        kvrail_rendezvous::Service::Etcd(self.etcd.clone()).to_string()
    }
}
