//! Metadata by name, over etcd: an agent's own keys, which live with a lease, and those of others, which are waited for
//! and watched.

mod keys;
mod link;
mod remote;

use std::sync::Arc;
use std::time::Duration;

use super::config::StoreConfig;
use super::context::Context;
use keys::Keys;
use link::Link;
use remote::Remotes;

/// An etcd, as one agent uses it.
pub(super) struct Store {
    link: Arc<Link>,
    keys: Arc<Keys>,
    remotes: Arc<Remotes>,
}

impl Store {
    pub(super) fn new(config: StoreConfig, agent: &str, watch_timeout: Duration) -> Self {
        let StoreConfig { etcd, namespace, lease } = config;
        // NIXL's keys, slash for slash: its own namespace ends with one and another one follows.
        let prefix = format!("{namespace}/");
        let link = Arc::new(Link::new(etcd, prefix.clone(), lease / 3));
        let keys = Arc::new(Keys::new(link.clone(), format!("{prefix}{agent}/"), lease));
        let remotes = Arc::new(Remotes::new(link.clone(), prefix, watch_timeout));
        Self { link, keys, remotes }
    }

    /// Finds out whether etcd can be used, before anything needs it.
    pub(super) async fn greet(&self, context: &Context) {
        if let Err(error) = self.link.connection().await {
            context.complain(format_args!("the store of metadata cannot be used yet: {error}"));
        }
    }

    /// Puts metadata under a label of this agent's, and keeps it there.
    pub(super) async fn publish(&self, context: &Arc<Context>, label: &str, metadata: &[u8]) {
        self.keys.publish(context, label, metadata).await;
    }

    /// Takes all of this agent's keys away.
    pub(super) async fn withdraw(&self, context: &Context) {
        if let Err(error) = self.keys.withdraw().await {
            context.complain(format_args!(
                "taking this agent's metadata out of the store: {error}; it goes with its lease"
            ));
        }
    }

    /// Fetches an agent's metadata, waiting for it if need be, loads it, and forgets the agent when the key goes.
    pub(super) async fn fetch(&self, context: &Arc<Context>, remote: &str, label: &str) {
        self.remotes.fetch(context, remote, label).await;
    }

    pub(super) async fn unwatch(&self, remote: &str) {
        self.remotes.unwatch(remote).await;
    }

    /// Ends what goes on in the background, and takes the keys away.
    pub(super) async fn close(&self) {
        self.remotes.close();
        self.keys.close();
        if let Err(error) = self.keys.withdraw().await {
            tracing::debug!("taking metadata out of the store at the end: {error}");
        }
    }
}
