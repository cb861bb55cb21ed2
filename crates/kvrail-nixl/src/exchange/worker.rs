//! The thread of an exchange: takes errands from a queue, keeps their order per destination, and ends in time.

use std::collections::{HashMap, VecDeque};
use std::net::TcpListener as StdListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::context::{self, Context};
use super::etcd::Store;
use super::peer::{self, Address};
use super::{Host, listener};
use crate::error::{Error, Result, Status};

/// Errands at one time, queued and under way.
const ERRANDS_MAX: usize = 16 << 10;
/// Bytes of metadata in them.
const ERRAND_BYTES_MAX: usize = 256 << 20;
/// Destinations that are seen to at one time.
const LANES_MAX: usize = 256;
/// Threads that look names up and ask the agent.
const BLOCKING_THREADS_MAX: usize = 8;
/// Time that what was queued before the end has to be done.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Time to take keys back from the store.
const WITHDRAW_MAX: Duration = Duration::from_secs(1);
/// Time for calls of the system that cannot be stopped, such as looking a name up.
const LINGER_MAX: Duration = Duration::from_millis(500);

/// What is to be done.
pub(super) enum Task {
    /// Send metadata.
    Send { metadata: Vec<u8>, label: String },
    /// Fetch an agent's metadata and load it.
    Fetch { remote: String, label: String },
    /// Have this agent forgotten.
    Forget,
    /// Do not care any more what becomes of an agent's keys.
    Unwatch { remote: String },
}

/// What keeps its order: errands of one lane are done one after the other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Lane {
    /// With an address.
    Peer(Address),
    /// This agent's own keys.
    Store,
    /// Another agent's keys.
    Remote(String),
}

struct Errand {
    task: Task,
    lane: Lane,
    _ticket: Ticket,
    /// Dropped when the errand has ended, by whatever end.
    _done: Option<SyncSender<()>>,
}

/// How much is queued and under way.
#[derive(Default)]
pub(super) struct Load {
    errands: AtomicUsize,
    bytes: AtomicUsize,
}

struct Ticket {
    load: Arc<Load>,
    bytes: usize,
}

impl Load {
    fn take(self: &Arc<Self>, bytes: usize) -> Result<Ticket> {
        // The ticket gives both back, also when it is refused.
        let ticket = Ticket { load: self.clone(), bytes };
        let errands = self.errands.fetch_add(1, Ordering::Relaxed) + 1;
        let queued = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if errands > ERRANDS_MAX || queued > ERRAND_BYTES_MAX {
            let what = format!(
                "the queue of the metadata exchange is full: {errands} errands of at most {ERRANDS_MAX}, {queued} bytes of at most {ERRAND_BYTES_MAX}"
            );
            return Err(Error::new(Status::NotAllowed, what).hint("call again once some are done"));
        }
        Ok(ticket)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.load.errands.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The thread, as its exchange has it.
pub(super) struct Worker {
    load: Arc<Load>,
    /// Dropped to end the thread.
    errands: Option<mpsc::UnboundedSender<Errand>>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(
        agent: String,
        host: Weak<dyn Host>,
        listener: Option<StdListener>,
        store: Option<Store>,
    ) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(Status::Backend, format!("agent {agent}: the metadata exchange cannot start: {error}"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("kvrail-md-ask")
            .build()
            .map_err(failed)?;
        let listener = {
            let _entered = runtime.enter();
            listener.map(TcpListener::from_std).transpose().map_err(failed)?
        };
        let (errands, queue) = mpsc::unbounded_channel();
        let (end, ended) = sync_channel(1);
        let (stop, stopping) = watch::channel(false);
        let context = Arc::new(Context::new(agent.clone(), host, stopping));
        let thread = std::thread::Builder::new()
            .name("kvrail-md".into())
            .spawn(move || {
                context::mark_thread();
                runtime.block_on(run(context, listener, store, queue, stop));
                runtime.shutdown_timeout(LINGER_MAX);
                drop(end);
            })
            .map_err(failed)?;
        Ok(Self { load: Arc::default(), errands: Some(errands), ended, thread: Some(thread) })
    }

    /// Queues an errand. What comes back says when it has ended: it is disconnected then.
    pub(super) fn submit(&self, lane: Lane, task: Task, bytes: usize) -> Result<Receiver<()>> {
        let ticket = self.load.take(bytes)?;
        let (done, waits) = sync_channel(1);
        let errand = Errand { task, lane, _ticket: ticket, _done: Some(done) };
        let sent = self.errands.as_ref().is_some_and(|errands| errands.send(errand).is_ok());
        if sent {
            Ok(waits)
        } else {
            Err(Error::new(Status::Unknown, "the thread of the metadata exchange has ended"))
        }
    }

    /// Leaves everything as it is: in a process that was forked off there is no such thread, and what it has belongs to the
    /// parent.
    pub(super) fn abandon(mut self) {
        std::mem::forget(self.errands.take());
        std::mem::forget(self.thread.take());
        std::mem::forget(self);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.errands.take());
        let Some(thread) = self.thread.take() else { return };
        // An agent whose last owner was one of these threads: it ends by itself.
        if context::is_own_thread() {
            return;
        }
        let longest = DRAIN_MAX + WITHDRAW_MAX + 2 * LINGER_MAX;
        match self.ended.recv_timeout(longest) {
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                tracing::error!("the thread of a metadata exchange did not end within {longest:?}");
            }
            // It has nothing left to do but to return.
            Ok(()) | Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => drop(thread.join()),
        }
    }
}

async fn run(
    context: Arc<Context>,
    port: Option<TcpListener>,
    store: Option<Store>,
    mut queue: mpsc::UnboundedReceiver<Errand>,
    stop: watch::Sender<bool>,
) {
    let listening = port.map(|listener| {
        let listener = Arc::new(listener);
        (tokio::spawn(listener::serve(context.clone(), listener.clone())), listener)
    });
    let store = store.map(Arc::new);
    if let Some(store) = store.clone() {
        let context = context.clone();
        tokio::spawn(async move { store.greet(&context).await });
    }
    let mut lanes = Lanes::new(context, store.clone());
    loop {
        tokio::select! {
            errand = queue.recv() => match errand {
                Some(errand) => lanes.take(errand),
                None => break,
            },
            Some(ended) = lanes.running.join_next_with_id() => lanes.ended(ended),
        }
    }
    // From here on nobody comes in, fetches end, and what was to be told before is told in the time that is left.
    stop.send_replace(true);
    if let Some((serving, listener)) = listening {
        serving.abort();
        // Forked processes may still have the port: it is closed for them as well.
        let _ = rustix::net::shutdown(&*listener, rustix::net::Shutdown::Both);
    }
    let until = Instant::now() + DRAIN_MAX;
    while let Ok(Some(ended)) = timeout_at(until, lanes.running.join_next_with_id()).await {
        lanes.ended(ended);
    }
    lanes.running.shutdown().await;
    if let Some(store) = store {
        let _ = tokio::time::timeout(WITHDRAW_MAX, store.close()).await;
    }
}

/// Errands by destination.
struct Lanes {
    context: Arc<Context>,
    store: Option<Arc<Store>>,
    /// A lane is here for as long as it has an errand under way, or is to have.
    queued: HashMap<Lane, VecDeque<Errand>>,
    /// Those that wait for others to end.
    ready: VecDeque<Lane>,
    running: JoinSet<()>,
    lane_of: HashMap<tokio::task::Id, Lane>,
}

impl Lanes {
    fn new(context: Arc<Context>, store: Option<Arc<Store>>) -> Self {
        Self {
            context,
            store,
            queued: HashMap::new(),
            ready: VecDeque::new(),
            running: JoinSet::new(),
            lane_of: HashMap::new(),
        }
    }

    fn take(&mut self, errand: Errand) {
        match self.queued.get_mut(&errand.lane) {
            Some(lane) => lane.push_back(errand),
            None => {
                let lane = errand.lane.clone();
                self.queued.insert(lane.clone(), VecDeque::from([errand]));
                self.ready.push_back(lane);
            }
        }
        self.fill();
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => {
                self.context.complain(format_args!("an errand of the metadata exchange broke off: {error}"));
                error.id()
            }
        };
        if let Some(lane) = self.lane_of.remove(&id) {
            if self.queued.get(&lane).is_some_and(|queue| !queue.is_empty()) {
                self.ready.push_back(lane);
            } else {
                self.queued.remove(&lane);
            }
        }
        self.fill();
    }

    /// Begins what may be begun.
    fn fill(&mut self) {
        while self.running.len() < LANES_MAX {
            let Some(lane) = self.ready.pop_front() else { return };
            let Some(errand) = self.queued.get_mut(&lane).and_then(VecDeque::pop_front) else { continue };
            let (context, store) = (self.context.clone(), self.store.clone());
            let id = self.running.spawn(async move { perform(&context, store, errand).await }).id();
            self.lane_of.insert(id, lane);
        }
    }
}

/// Does one errand; what fails is said here, and only here.
async fn perform(context: &Arc<Context>, store: Option<Arc<Store>>, errand: Errand) {
    let agent = &context.agent;
    match (&errand.lane, &errand.task, store) {
        (Lane::Peer(address @ (host, port)), task, _) => {
            let (doing, outcome) = match task {
                Task::Send { metadata, .. } => {
                    ("sending metadata to", peer::send(context, address, metadata).await)
                }
                Task::Forget => ("having this agent forgotten at", peer::forget(context, address).await),
                Task::Fetch { remote, .. } => {
                    let fetched = tokio::select! {
                        fetched = peer::fetch(context, address) => fetched,
                        () = context.stopped() => return,
                    };
                    let outcome = fetched.map(|name| {
                        if name != *remote && !remote.is_empty() {
                            context.complain(format_args!(
                                "metadata was fetched as that of {} from {host} port {port}, where {} is; it was loaded under that name",
                                remote.escape_debug(),
                                name.escape_debug()
                            ));
                        }
                    });
                    ("fetching metadata from", outcome)
                }
                Task::Unwatch { .. } => return,
            };
            match outcome {
                Ok(()) => tracing::debug!("agent {agent}: {doing} {host} port {port}: done"),
                Err(trouble) => context.complain(format_args!("{doing} {host} port {port}: {trouble}")),
            }
        }
        (_, task, Some(store)) => match task {
            Task::Send { metadata, label } => store.publish(context, label, metadata).await,
            Task::Forget => store.withdraw(context).await,
            Task::Fetch { remote, label } => {
                tokio::select! {
                    () = store.fetch(context, remote, label) => {}
                    () = context.stopped() => {}
                }
            }
            Task::Unwatch { remote } => store.unwatch(remote).await,
        },
        // A call without an address and without a store was refused.
        (_, _, None) => {}
    }
}
