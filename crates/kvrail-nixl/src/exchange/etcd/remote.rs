//! Other agents' keys: waited for, loaded, and watched so that an agent is forgotten when its key goes.
//!
//! One watch sees all deletions below the namespace, from a revision on that is not after the first read of any key here: no
//! deletion falls between a read and the watch. What was loaded at a revision is forgotten by later deletions only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, GetOptions, KeyValue, WatchFilterType, WatchOptions, WatchStream};
use parking_lot::Mutex as SyncMutex;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::super::context::Context;
use super::super::frame::METADATA_BYTES_MAX;
use super::link::{ANSWER_BYTES_MAX, Failure, Link, REQUEST_MAX, RETRY};
use kvrail_rendezvous::EtcdConnection;

/// Keys that are watched at one time.
const WATCHED_MAX: usize = 16 << 10;
/// Longest pause before a watch that broke is set up again.
const REWATCH_MAX: Duration = Duration::from_secs(2);

pub(super) struct Remotes {
    link: Arc<Link>,
    prefix: String,
    timeout: Duration,
    /// Held while an agent is loaded or forgotten: both are done in the order of etcd's revisions.
    watched: Mutex<HashMap<String, Watched>>,
    watcher: SyncMutex<Option<AbortHandle>>,
}

/// A key that somebody asked for.
#[derive(Default)]
struct Watched {
    /// Who was loaded from it.
    name: String,
    /// The revision of the value that was loaded, 0 for none yet.
    loaded: i64,
    /// The revision of its last deletion that was seen.
    deleted: i64,
}

/// A value, and the revision that it came with.
struct Found {
    metadata: Vec<u8>,
    revision: i64,
}

impl Remotes {
    pub(super) fn new(link: Arc<Link>, prefix: String, timeout: Duration) -> Self {
        Self { link, prefix, timeout, watched: Mutex::default(), watcher: SyncMutex::new(None) }
    }

    pub(super) async fn fetch(self: &Arc<Self>, context: &Arc<Context>, remote: &str, label: &str) {
        let key = format!("{}{remote}/{label}", self.prefix);
        {
            let mut watched = self.watched.lock().await;
            if watched.len() >= WATCHED_MAX && !watched.contains_key(&key) {
                return context.complain(format_args!(
                    "metadata of {} is not fetched: {WATCHED_MAX} keys of the store are watched already",
                    remote.escape_debug()
                ));
            }
            watched.entry(key.clone()).or_default();
        }
        if let Err(why) = self.fetch_key(context, remote, &key).await {
            context.complain(format_args!(
                "fetching metadata of {} from the store: {why}",
                remote.escape_debug()
            ));
            let mut watched = self.watched.lock().await;
            // An earlier fetch may have loaded it: then it is watched on.
            if watched.get(&key).is_some_and(|key| key.loaded == 0) {
                watched.remove(&key);
            }
        }
    }

    async fn fetch_key(
        self: &Arc<Self>,
        context: &Arc<Context>,
        remote: &str,
        key: &str,
    ) -> Result<(), String> {
        let until = Instant::now() + self.timeout;
        loop {
            let Found { metadata, revision } = self.find(context, key, until).await?;
            let len = metadata.len();
            if len > METADATA_BYTES_MAX {
                return Err(format!("{key} has {len} bytes; metadata has at most {METADATA_BYTES_MAX}"));
            }
            let mut watched = self.watched.lock().await;
            let entry = watched.entry(key.into()).or_default();
            if entry.deleted > revision {
                continue;
            }
            let name =
                context.ask(move |host| host.load(&metadata)).await.map_err(|error| error.to_string())?;
            let mismatch = name != remote;
            (entry.name, entry.loaded) = (name.clone(), revision);
            if mismatch {
                return Err(format!("{key} has the metadata of {}", name.escape_debug()));
            }
            tracing::debug!("agent {}: loaded {key}", context.agent);
            return Ok(());
        }
    }

    /// Reads a key, and waits for it where it is not there.
    async fn find(
        self: &Arc<Self>,
        context: &Arc<Context>,
        key: &str,
        until: Instant,
    ) -> Result<Found, String> {
        let absent = || format!("{key} did not come within {:?}", self.timeout);
        loop {
            let (value, revision) = self.read(key).await.map_err(|error| error.to_string())?;
            self.watch_deletions(context, revision);
            if let Some(found) = value.and_then(found) {
                return Ok(found);
            }
            match timeout_at(until, self.await_put(key, revision)).await {
                Err(_) => return Err(absent()),
                Ok(Ok(Some(found))) => return Ok(found),
                // The watch broke: what is there now counts.
                Ok(Ok(None)) if Instant::now() + RETRY < until => tokio::time::sleep(RETRY).await,
                Ok(Ok(None)) => return Err(absent()),
                Ok(Err(error)) => return Err(error.to_string()),
            }
        }
    }

    /// A key's value, and the revision as of which.
    async fn read(&self, key: &str) -> Result<(Option<KeyValue>, i64), Failure> {
        self.read_with(key, None).await
    }

    async fn read_with(
        &self,
        key: &str,
        options: Option<GetOptions>,
    ) -> Result<(Option<KeyValue>, i64), Failure> {
        let get = |client: etcd_client::Client| {
            let options = options.clone();
            async move { client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX).get(key, options).await }
        };
        let mut answer = self.link.request(get).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok((answer.take_kvs().into_iter().next(), revision))
    }

    /// The next value of a key after a revision; nothing when the watch broke.
    async fn await_put(&self, key: &str, revision: i64) -> Result<Option<Found>, Failure> {
        let options = WatchOptions::new()
            .with_start_revision(revision + 1)
            .with_filters(vec![WatchFilterType::NoDelete]);
        let (connection, mut stream) = self.watch(key, options).await?;
        loop {
            match stream.message().await {
                Ok(Some(response)) if response.canceled() => {
                    if response.compact_revision() > 0 {
                        return Ok(None);
                    }
                    let error = etcd_client::Error::WatchError(response.cancel_reason().into());
                    return Err(connection.explain(&error).into());
                }
                Ok(Some(response)) => {
                    let last =
                        response.events().iter().rev().find_map(|event| event.kv().cloned().and_then(found));
                    if last.is_some() {
                        return Ok(last);
                    }
                }
                Ok(None) => return Ok(None),
                Err(error) if EtcdConnection::is_transient(&error) => return Ok(None),
                Err(error) => return Err(connection.explain(&error).into()),
            }
        }
    }

    async fn watch(
        &self,
        key: &str,
        options: WatchOptions,
    ) -> Result<(Arc<EtcdConnection>, WatchStream), Failure> {
        let connection = self.link.connection().await?;
        let mut client = connection.client().watch_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        let failure = match tokio::time::timeout(REQUEST_MAX, client.watch(key, Some(options))).await {
            Ok(Ok(stream)) => return Ok((connection, stream)),
            Ok(Err(error)) => connection.explain(&error).into(),
            Err(_) => Failure::Deadline { endpoint: connection.endpoint().into() },
        };
        self.link.give_up(&connection).await;
        Err(failure)
    }

    /// Watches from after `revision` on, unless that is done already.
    fn watch_deletions(self: &Arc<Self>, context: &Arc<Context>, revision: i64) {
        self.watcher.lock().get_or_insert_with(|| {
            tokio::spawn(watch_on(self.clone(), context.clone(), revision + 1)).abort_handle()
        });
    }

    /// Follows deletions until the watch breaks.
    async fn follow(&self, context: &Context, from: i64) -> Result<(), Failure> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_fragment()
            .with_start_revision(from)
            .with_filters(vec![WatchFilterType::NoPut]);
        let (connection, mut stream) = self.watch(&self.prefix, options).await?;
        while let Some(response) = stream.message().await.map_err(|error| connection.explain(&error))? {
            if response.canceled() {
                if response.compact_revision() > 0 {
                    return Ok(());
                }
                let error = etcd_client::Error::WatchError(response.cancel_reason().into());
                return Err(connection.explain(&error).into());
            }
            for event in response.events() {
                let Some(kv) = event.kv().filter(|_| event.event_type() == EventType::Delete) else {
                    continue;
                };
                if let Ok(key) = kv.key_str() {
                    self.deleted(context, key, kv.mod_revision()).await;
                }
            }
        }
        Ok(())
    }

    async fn deleted(&self, context: &Context, key: &str, revision: i64) {
        let mut watched = self.watched.lock().await;
        let Some(entry) = watched.get_mut(key) else { return };
        entry.deleted = entry.deleted.max(revision);
        if entry.loaded == 0 || entry.loaded >= revision {
            return;
        }
        let Some(Watched { name, .. }) = watched.remove(key) else { return };
        tracing::debug!(
            "agent {}: {key} is gone from the store; forgets {}",
            context.agent,
            name.escape_debug()
        );
        // An agent that is ending forgets everybody anyway.
        let _ = context.forget(name).await;
    }

    /// After a watch broke: what is gone, or was made anew, is forgotten. The revision from which to watch on comes back.
    async fn resync(&self, context: &Context) -> Result<Option<i64>, Failure> {
        let loaded: Vec<(String, i64)> = {
            let watched = self.watched.lock().await;
            watched
                .iter()
                .filter(|(_, entry)| entry.loaded > 0)
                .map(|(key, entry)| (key.clone(), entry.loaded))
                .collect()
        };
        let mut from = None;
        for (key, loaded) in loaded {
            let (value, revision) = self.read_with(&key, Some(GetOptions::new().with_keys_only())).await?;
            from = from.or(Some(revision + 1));
            // A store that was made anew counts from 1 again; else a fetch that went on meanwhile has a later revision.
            match value {
                None => self.deleted(context, &key, revision.max(loaded + 1)).await,
                Some(kv) if kv.create_revision() > loaded => {
                    self.deleted(context, &key, kv.create_revision() - 1).await;
                }
                Some(_) => {}
            }
        }
        Ok(from)
    }

    pub(super) async fn unwatch(&self, remote: &str) {
        self.watched.lock().await.retain(|_, entry| entry.loaded == 0 || entry.name != remote);
    }

    /// Ends the watch.
    pub(super) fn close(&self) {
        if let Some(watcher) = self.watcher.lock().take() {
            watcher.abort();
        }
    }
}

/// Watches for as long as the exchange lives.
async fn watch_on(remotes: Arc<Remotes>, context: Arc<Context>, mut from: i64) {
    let (mut pause, mut failing) = (RETRY, false);
    loop {
        let began = Instant::now();
        let failure = remotes.follow(&context, from).await.err();
        if began.elapsed() > REWATCH_MAX {
            (pause, failing) = (RETRY, false);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REWATCH_MAX);
        let failure = match (failure, remotes.resync(&context).await) {
            (failure, Ok(revision)) => {
                from = revision.unwrap_or(from);
                failure
            }
            (_, Err(failure)) => Some(failure),
        };
        match failure {
            Some(failure) if !failing => {
                failing = true;
                context.complain(format_args!(
                    "watching the store for agents that go: {failure}; it is tried again"
                ));
            }
            Some(failure) => tracing::debug!("still not: {failure}"),
            None => {}
        }
    }
}

/// Metadata is never empty: an empty value is somebody's mark.
fn found(kv: KeyValue) -> Option<Found> {
    let revision = kv.mod_revision();
    let (_, metadata) = kv.into_key_value();
    (!metadata.is_empty()).then_some(Found { metadata, revision })
}
