//! An agent's own keys. What is to be there is kept here; a lease keeps it there, and brings it back if etcd lost it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Error, PutOptions};
use parking_lot::Mutex as SyncMutex;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

use super::super::context::Context;
use super::link::{Failure, Link};

/// Labels that an agent may have, and what their values may take together, bytes.
const LABELS_MAX: usize = 1024;
const VALUES_BYTES_MAX: usize = 128 << 20;
/// Leases that may be lost while keys are put: each needs a new one and all keys again.
const LEASES_MAX: usize = 3;

pub(super) struct Keys {
    link: Arc<Link>,
    prefix: String,
    lease: Duration,
    state: Mutex<State>,
    keeper: SyncMutex<Option<AbortHandle>>,
}

#[derive(Default)]
struct State {
    /// All that is put lives with it; it is taken with the first key.
    lease: Option<i64>,
    /// What is to be there, by label.
    values: BTreeMap<String, Arc<[u8]>>,
}

impl Keys {
    pub(super) fn new(link: Arc<Link>, prefix: String, lease: Duration) -> Self {
        Self { link, prefix, lease, state: Mutex::default(), keeper: SyncMutex::new(None) }
    }

    pub(super) async fn publish(self: &Arc<Self>, context: &Arc<Context>, label: &str, metadata: &[u8]) {
        let mut state = self.state.lock().await;
        let others = || state.values.iter().filter(|(known, _)| *known != label);
        let bytes: usize = others().map(|(_, value)| value.len()).sum();
        if others().count() >= LABELS_MAX || bytes + metadata.len() > VALUES_BYTES_MAX {
            return context.complain(format_args!(
                "metadata with label {} is not put into the store: an agent has at most {LABELS_MAX} labels and {VALUES_BYTES_MAX} bytes there",
                label.escape_debug()
            ));
        }
        state.values.insert(label.into(), metadata.into());
        if let Err(error) = self.put(&mut state, Some(label)).await {
            context.complain(format_args!(
                "putting metadata with label {} into the store: {error}; it is tried again",
                label.escape_debug()
            ));
        }
        drop(state);
        self.keeper
            .lock()
            .get_or_insert_with(|| tokio::spawn(keep(self.clone(), context.clone())).abort_handle());
    }

    /// Makes etcd have one value, or all of them.
    async fn put(&self, state: &mut State, only: Option<&str>) -> Result<(), Failure> {
        let mut outcome = Err(Failure::LeaseGone);
        let mut only = only;
        for _ in 0..LEASES_MAX {
            outcome = self.put_once(state, only).await;
            if !matches!(outcome, Err(Failure::LeaseGone)) {
                break;
            }
            (state.lease, only) = (None, None);
        }
        outcome
    }

    async fn put_once(&self, state: &mut State, only: Option<&str>) -> Result<(), Failure> {
        let (lease, only) = match state.lease {
            Some(lease) => (lease, only),
            None => {
                // etcd counts whole seconds.
                let ttl = i64::try_from(self.lease.as_secs_f64().ceil() as u64).unwrap_or(i64::MAX);
                let granted =
                    self.link.request(|mut client| async move { client.lease_grant(ttl, None).await });
                let id = granted.await?.id();
                state.lease = Some(id);
                (id, None)
            }
        };
        for (label, value) in &state.values {
            if only.is_some_and(|only| only != label) {
                continue;
            }
            let key = format!("{}{label}", self.prefix);
            let put = |mut client: etcd_client::Client| {
                let (key, value) = (key.clone(), value.to_vec());
                async move { client.put(key, value, Some(PutOptions::new().with_lease(lease))).await }
            };
            self.link.request(put).await?;
        }
        Ok(())
    }

    /// Takes the lease back, and all keys with it: exactly this life's, not those of another agent that has the name now.
    pub(super) async fn withdraw(&self) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        state.values.clear();
        // Where this fails nobody renews it any more.
        let Some(lease) = state.lease.take() else { return Ok(()) };
        match self.link.request(|mut client| async move { client.lease_revoke(lease).await }).await {
            Ok(_) | Err(Failure::LeaseGone) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends the renewing.
    pub(super) fn close(&self) {
        if let Some(keeper) = self.keeper.lock().take() {
            keeper.abort();
        }
    }

    /// Renews the lease; brings the keys back where it is gone.
    async fn renew(&self) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        if state.values.is_empty() {
            return Ok(());
        }
        let Some(lease) = state.lease else { return self.put(&mut state, None).await };
        let renew = |mut client: etcd_client::Client| async move {
            match client.lease_keep_alive(lease).await {
                Ok((mut keeper, mut answers)) => {
                    keeper.keep_alive().await?;
                    let answer = answers.message().await?;
                    Ok(answer.is_some_and(|answer| answer.ttl() > 0))
                }
                Err(Error::LeaseKeepAliveError(why)) if why.contains("not found") => Ok(false),
                Err(error) => Err(error),
            }
        };
        match self.link.request(renew).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(Failure::LeaseGone) => {
                state.lease = None;
                tracing::info!(
                    "the lease of {} ran out; its metadata is put into the store again",
                    self.prefix
                );
                self.put(&mut state, None).await
            }
            Err(error) => Err(error),
        }
    }
}

/// Renews the lease three times in its life.
async fn keep(keys: Arc<Keys>, context: Arc<Context>) {
    let mut failing = false;
    loop {
        tokio::time::sleep(keys.lease / 3).await;
        match keys.renew().await {
            Ok(()) => failing = false,
            // Once for each time that etcd is away.
            Err(error) if !failing => {
                failing = true;
                context.complain(format_args!(
                    "keeping this agent's metadata in the store: {error}; it is gone from there after {:?}",
                    keys.lease
                ));
            }
            Err(error) => tracing::debug!("still not: {error}"),
        }
    }
}
