//! The private thread that speaks with the service, and how the group's threads ask things of it.

use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::config::{Config, Service};
use crate::error::ServiceError;
use crate::limits::LEAVE;
use crate::member::{Incarnation, Member};
use crate::name::RunId;
use crate::view::Shared;

/// Commands that may wait for the thread. Each caller waits for its own answer, so there are few.
const COMMANDS_MAX: usize = 64;

/// An answer that is sent once. Capacity one: sending never blocks.
pub(crate) struct Reply<T>(SyncSender<T>);

impl<T> Reply<T> {
    pub(crate) fn send(self, answer: T) {
        // Who asked may have given up meanwhile.
        let _ = self.0.try_send(answer);
    }
}

/// What can be asked of the service. Keys are below the run's prefix; all that is put lives with this member.
pub(crate) enum Command {
    /// Puts a key if it does not exist; answers whether it did put.
    Create { key: String, value: Arc<[u8]>, reply: Reply<Result<bool, ServiceError>> },
    /// Puts a key and deletes another one, in one step.
    Put { key: String, value: Arc<[u8]>, delete: Option<String>, reply: Reply<Result<(), ServiceError>> },
    /// Takes everything away from one who has not answered a challenge.
    Evict { key: String, owner: u64, reply: Reply<Result<(), ServiceError>> },
    /// Takes this member's keys away, after putting a last one, and ends the thread.
    Close { parting: Option<(String, Arc<[u8]>)>, linger: Duration, reply: Reply<Result<(), ServiceError>> },
}

/// What is known once the service has been reached.
#[derive(Clone, Debug)]
pub(crate) struct Started {
    pub(crate) run_id: RunId,
    /// For people: `etcd 3.5.9 at http://a:2379`.
    pub(crate) service: String,
    /// Who hosts an embedded service, where a member does.
    pub(crate) host: Option<Incarnation>,
}

/// What the thread needs to begin.
pub(crate) struct Start {
    pub(crate) config: Config,
    /// Who this is; the rank is not known yet.
    pub(crate) me: Member,
    pub(crate) shared: Arc<Shared>,
    pub(crate) until: Instant,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) started: Reply<Result<Started, ServiceError>>,
}

pub(crate) struct Driver {
    endpoint: String,
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Starts the thread and waits until the service is reached.
    pub(crate) fn start(
        config: &Config,
        me: &Member,
        shared: &Arc<Shared>,
        until: Instant,
    ) -> Result<(Self, Started), ServiceError> {
        let endpoint = config.service.to_string();
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (started, answer) = sync_channel(1);
        let start = Start {
            config: config.clone(),
            me: me.clone(),
            shared: shared.clone(),
            until,
            commands,
            started: Reply(started),
        };
        let local = |doing, detail: std::io::Error| ServiceError::Local { doing, detail: detail.to_string() };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| local("make an event loop", error))?;
        let name = endpoint.clone();
        let thread = std::thread::Builder::new()
            .name("kvrail-rdv".into())
            .spawn(move || {
                // Whatever ends the thread, nobody waits on for what it will no longer tell.
                let _ended = Ended { shared: start.shared.clone(), endpoint: name };
                runtime.block_on(run(start));
                // Names may still be looked up on a thread of the runtime's: not waited for.
                runtime.shutdown_background();
            })
            .map_err(|error| local("start a thread", error))?;
        let driver = Self { endpoint, commands: Some(sender), thread: Some(thread) };
        let began = Instant::now();
        // The thread keeps the deadline itself and knows better what is missing: it is given a little more.
        let known = driver.answer(&answer, until + LEAVE, "start", began)??;
        Ok((driver, known))
    }

    pub(crate) fn create(&self, key: String, value: Arc<[u8]>, until: Instant) -> Result<bool, ServiceError> {
        self.ask(until, "write a key", |reply| Command::Create { key, value, reply })
    }

    pub(crate) fn put(
        &self,
        key: String,
        value: Arc<[u8]>,
        delete: Option<String>,
        until: Instant,
    ) -> Result<(), ServiceError> {
        self.ask(until, "write a key", |reply| Command::Put { key, value, delete, reply })
    }

    pub(crate) fn evict(&self, key: String, owner: u64, until: Instant) -> Result<(), ServiceError> {
        self.ask(until, "free a seat", |reply| Command::Evict { key, owner, reply })
    }

    /// Leaves, after `parting` was put; an embedded service that this thread hosts goes on for others until `linger` is over.
    pub(crate) fn close(
        &mut self,
        parting: Option<(String, Arc<[u8]>)>,
        linger: Duration,
    ) -> Result<(), ServiceError> {
        let until = Instant::now() + LEAVE + linger;
        let left = self.ask(until, "leave", |reply| Command::Close { parting, linger, reply });
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // After its answer the thread has nothing left to wait for; without one it is left alone.
            if left.is_ok() {
                let _ = thread.join();
            }
        }
        left
    }

    fn ask<T>(
        &self,
        until: Instant,
        doing: &'static str,
        command: impl FnOnce(Reply<Result<T, ServiceError>>) -> Command,
    ) -> Result<T, ServiceError> {
        let began = Instant::now();
        let (reply, answer) = sync_channel(1);
        let Some(commands) = &self.commands else { return Err(self.gone()) };
        commands.try_send(command(Reply(reply))).map_err(|refused| match refused {
            mpsc::error::TrySendError::Closed(_) => self.gone(),
            mpsc::error::TrySendError::Full(_) => ServiceError::Refused {
                endpoint: self.endpoint.clone(),
                detail: format!("{COMMANDS_MAX} requests of this member are waiting already"),
            },
        })?;
        self.answer(&answer, until, doing, began)?
    }

    fn answer<T>(
        &self,
        answer: &Receiver<T>,
        until: Instant,
        doing: &'static str,
        began: Instant,
    ) -> Result<T, ServiceError> {
        answer.recv_timeout(until.saturating_duration_since(Instant::now())).map_err(|why| match why {
            RecvTimeoutError::Timeout => {
                ServiceError::Deadline { endpoint: self.endpoint.clone(), doing, waited: began.elapsed() }
            }
            RecvTimeoutError::Disconnected => self.gone(),
        })
    }

    fn gone(&self) -> ServiceError {
        ServiceError::Lost {
            endpoint: self.endpoint.clone(),
            detail: "this member's connection has ended".into(),
        }
    }
}

struct Ended {
    shared: Arc<Shared>,
    endpoint: String,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let detail = "this member's connection has ended".into();
        self.shared.fail(ServiceError::Lost { endpoint: self.endpoint.clone(), detail });
    }
}

async fn run(start: Start) {
    match start.config.service.clone() {
        #[cfg(feature = "etcd")]
        Service::Etcd(etcd) => crate::etcd::run(etcd, start).await,
        // No configuration with it passes its check.
        #[cfg(not(feature = "etcd"))]
        Service::Etcd(_) => {}
        Service::Embedded(embedded) => crate::embedded::run(embedded, start).await,
    }
}

/// Waits for a future until a point in time; none when it has come.
pub(crate) async fn until<T>(deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout_at(deadline.into(), future).await.ok()
}
