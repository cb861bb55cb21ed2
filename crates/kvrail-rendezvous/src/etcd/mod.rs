//! Groups over etcd: all of a member's keys live with one lease; a watch brings what others write.
//!
//! No key without a lease, no deletion but of this run's own keys: what a killed run leaves behind is gone with its
//! leases, and does no harm before.

mod connection;
mod health;
mod session;
mod tls;

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Error, EventType, WatchOptions};

use crate::config::EtcdConfig;
use crate::driver::{Command, Start, Started};
use crate::error::ServiceError;
use crate::key::Key;
use crate::member::Incarnation;
use crate::view::{Event, Shared};
use session::Session;

pub use connection::Connection;

/// Pause before what failed for want of a connection is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// Longest answer of a watch, bytes: etcd cuts longer ones to pieces when asked to.
const WATCH_BYTES_MAX: usize = 16 << 20;

pub(crate) async fn run(etcd: EtcdConfig, start: Start) {
    let Start { config, me, shared, until, mut commands, started } = start;
    // The health check ends at the deadline itself, and says more.
    let opened = match crate::driver::until(until + RETRY, open(&etcd, &config, &shared, until)).await {
        Some(opened) => opened,
        None => Err(ServiceError::Deadline {
            endpoint: config.service.to_string(),
            doing: "answer",
            waited: config.deadline,
        }),
    };
    let (session, revision, service) = match opened {
        Ok(opened) => opened,
        Err(error) => return started.send(Err(error)),
    };
    let Some(run_id) = config.run_id.clone() else { return };
    started.send(Ok(Started { run_id, service, host: None }));

    let watch = tokio::spawn(watch(session.clone(), shared.clone(), me.incarnation, revision));
    let keep_alive = tokio::spawn(keep_alive(session.clone(), shared.clone()));
    let closed = loop {
        match commands.recv().await {
            // Callers wait for their answers, so that what must be in order is; the rest may overtake.
            Some(Command::Create { key, value, reply }) => {
                let session = session.clone();
                tokio::spawn(async move { reply.send(session.create(&key, &value).await) });
            }
            Some(Command::Put { key, value, delete, reply }) => {
                let session = session.clone();
                tokio::spawn(async move { reply.send(session.put(&key, &value, delete.as_deref()).await) });
            }
            Some(Command::Evict { key, owner, reply }) => {
                let session = session.clone();
                tokio::spawn(async move { reply.send(session.evict(&key, owner).await) });
            }
            Some(Command::Close { parting, reply, .. }) => break Some((parting, reply)),
            None => break None,
        }
    };
    keep_alive.abort();
    let (parting, reply) = closed.unzip();
    let parting = parting.flatten();
    let bounded = crate::driver::until(
        Instant::now() + crate::limits::LEAVE,
        session.close(parting.as_ref().map(|(key, value)| (key.as_str(), &**value))),
    );
    let result = bounded.await.unwrap_or_else(|| {
        Err(ServiceError::Deadline {
            endpoint: session.endpoint().into(),
            doing: "take the lease back",
            waited: crate::limits::LEAVE,
        })
    });
    watch.abort();
    if let Some(reply) = reply {
        reply.send(result);
    }
}

/// Reaches etcd, takes a lease and learns what is there; the revision from which to watch comes with it.
async fn open(
    etcd: &EtcdConfig,
    config: &crate::config::Config,
    shared: &Shared,
    until: Instant,
) -> Result<(Arc<Session>, i64, String), ServiceError> {
    let (session, service) = Session::open(etcd, config, until).await?;
    let (events, revision) = session.snapshot().await?;
    // Nobody can know this life yet, let alone challenge it.
    let _ = shared.replace(events);
    Ok((Arc::new(session), revision + 1, service))
}

/// Brings what changes into the view, for as long as it takes; a broken watch is taken up where it ended.
async fn watch(session: Arc<Session>, shared: Arc<Shared>, me: Incarnation, mut from: i64) {
    loop {
        match watch_once(&session, &shared, me, &mut from).await {
            Ok(()) => {}
            // The keep-alive knows whether the connection is coming back.
            Err(error) if Connection::is_transient(&error) => {
                tracing::debug!("watch of {} broke: {error}", session.prefix());
            }
            Err(error) => return shared.fail(session.explain(error)),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn watch_once(
    session: &Arc<Session>,
    shared: &Shared,
    me: Incarnation,
    from: &mut i64,
) -> Result<(), Error> {
    let options = WatchOptions::new().with_prefix().with_fragment().with_start_revision(*from);
    let mut client = session.client().watch_client().max_decoding_message_size(WATCH_BYTES_MAX);
    let mut stream = client.watch(session.prefix(), Some(options)).await?;
    while let Some(response) = stream.message().await? {
        if response.canceled() {
            if response.compact_revision() > 0 {
                // What happened meanwhile is gone from the history: what is there now counts.
                let (events, revision) = session.snapshot_raw().await?;
                answer(session, me, shared.replace(events));
                *from = revision + 1;
                return Ok(());
            }
            return Err(Error::WatchError(response.cancel_reason().into()));
        }
        let mut events = Vec::with_capacity(response.events().len());
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            // Not the revision after it: a response may end in the middle of one. To see changes twice is harmless.
            *from = (*from).max(kv.mod_revision());
            let Some(key) = session.below_prefix(kv.key()) else { continue };
            events.push(match event.event_type() {
                EventType::Put => {
                    Event::Put { key, value: kv.value().into(), owner: session::owner(kv.lease()) }
                }
                EventType::Delete => Event::Delete { key },
            });
        }
        answer(session, me, shared.apply(events));
    }
    Ok(())
}

/// Tells those who ask that this member is alive.
fn answer(session: &Arc<Session>, me: Incarnation, askers: Vec<Incarnation>) {
    for from in askers {
        let session = session.clone();
        tokio::spawn(async move {
            let key = Key::Answer { holder: me, from }.to_string();
            if let Err(error) = session.put(&key, &[], None).await {
                tracing::debug!("could not answer a challenge: {error}");
            }
        });
    }
}

/// Renews the lease three times in its life; when it could not be for one whole life, the store is lost.
async fn keep_alive(session: Arc<Session>, shared: Arc<Shared>) {
    let mut renewed = Instant::now();
    loop {
        let error = match renew(&session, &mut renewed).await {
            Ok(Gone) => return shared.fail(session.expired()),
            Err(error) => error,
        };
        tracing::debug!("keeping the lease alive: {error}");
        if renewed.elapsed() >= session.lease() {
            let (endpoint, detail) = (session.endpoint().into(), connection::text(&error));
            return shared.fail(ServiceError::Lost { endpoint, detail });
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// etcd no longer knows the lease.
struct Gone;

/// Renews the lease until that fails; notes when it last did not.
async fn renew(session: &Session, renewed: &mut Instant) -> Result<Gone, Error> {
    let period = session.lease() / 3;
    let silent = |_| Error::LeaseKeepAliveError("no answer".into());
    let mut client = session.client().lease_client();
    let opened = tokio::time::timeout(period, client.keep_alive(session.lease_id())).await.map_err(silent)?;
    let (mut keeper, mut stream) = match opened {
        Ok(opened) => opened,
        Err(Error::LeaseKeepAliveError(why)) if why.contains("not found") => return Ok(Gone),
        Err(error) => return Err(error),
    };
    *renewed = Instant::now();
    loop {
        tokio::time::sleep(period).await;
        keeper.keep_alive().await?;
        match tokio::time::timeout(period, stream.message()).await.map_err(silent)?? {
            Some(answer) if answer.ttl() > 0 => *renewed = Instant::now(),
            Some(_) => return Ok(Gone),
            None => return Err(Error::LeaseKeepAliveError("etcd ended the stream".into())),
        }
    }
}
