//! Groups without etcd: one member, or a program of its own, opens a TCP port and keeps the run's keys in its memory.
//!
//! A key lives as long as the connection of its member. The kernel ends the connections of a process that dies at
//! once; those of a host that vanishes end after a lease without a sign of life.

mod host;
mod server;
pub mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;

pub use host::{Host, HostError};

use crate::config::{Config, EmbeddedConfig};
use crate::driver::{Command, Reply, Start, Started};
use crate::error::ServiceError;
use crate::key::Key;
use crate::limits::LEAVE;
use crate::member::Incarnation;
use crate::name::RunId;
use crate::view::{Event, Shared};
use host::Found;
use server::{ReceiveError, Server};
use wire::{Message, Outcome, Refusal};

/// Messages that were read and not yet taken in.
const READ_AHEAD: usize = 64;
/// Pause between attempts to connect: short at first, for members that start together.
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(200);
/// Longest single attempt.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);

pub(crate) async fn run(embedded: EmbeddedConfig, start: Start) {
    let Start { config, me, shared, until, commands, started } = start;
    let mut server = None;
    let reached = reach(&embedded, &config, me.incarnation, until, &mut server).await;
    let mut client = match reached {
        Ok((run_id, host, stream)) => {
            let mut client =
                Client::new(config.service.to_string(), config.lease, shared, me.incarnation, stream);
            if let Err(error) = client.catch_up(until).await {
                return started.send(Err(error));
            }
            let service = match &server {
                Some(server) => format!("{}, hosted here at {}", config.service, server.address()),
                None => config.service.to_string(),
            };
            started.send(Ok(Started { run_id, service, host: (host != 0).then_some(Incarnation(host)) }));
            client
        }
        Err(error) => return started.send(Err(error)),
    };
    match client.attend(commands).await {
        Ok(Some((linger, reply, parted))) => {
            drop(client);
            if let Some(server) = server {
                server.end(Instant::now() + linger).await;
            }
            reply.send(parted);
        }
        // The group was dropped without a word.
        Ok(None) => {}
        Err(error) => client.shared.fail(error),
    }
}

/// Opens the port where that is this member's part, connects, and is taken in; until the deadline.
async fn reach(
    embedded: &EmbeddedConfig,
    config: &Config,
    me: Incarnation,
    until: Instant,
    server: &mut Option<Arc<Server>>,
) -> Result<(RunId, u64, TcpStream), ServiceError> {
    let endpoint = config.service.to_string();
    let began = Instant::now();
    let (mut pause, mut attempts) = (RETRY_MIN, 0_u32);
    let mut last = ServiceError::Unreachable { endpoint: endpoint.clone(), detail: "no answer".into() };
    loop {
        attempts += 1;
        let attempt = attempt(embedded, config, me, &endpoint, server);
        match crate::driver::until(until.min(Instant::now() + ATTEMPT_MAX), attempt).await {
            Some(Ok(reached)) => return Ok(reached),
            Some(Err(Attempt::Final(error))) => return Err(error),
            Some(Err(Attempt::Again(error))) => last = error,
            // Cut short, the last attempt knows less than the one before it.
            None => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(match last {
                ServiceError::Unreachable { endpoint, detail } => ServiceError::Unreachable {
                    endpoint,
                    detail: format!("{detail} ({attempts} attempts in {:.1?})", began.elapsed()),
                },
                other => other,
            });
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

enum Attempt {
    /// There may be a service, or another one, a moment later.
    Again(ServiceError),
    Final(ServiceError),
}

async fn attempt(
    embedded: &EmbeddedConfig,
    config: &Config,
    me: Incarnation,
    endpoint: &str,
    server: &mut Option<Arc<Server>>,
) -> Result<(RunId, u64, TcpStream), Attempt> {
    let unreachable = |error: std::io::Error| {
        Attempt::Again(ServiceError::Unreachable { endpoint: endpoint.into(), detail: error.to_string() })
    };
    let found = host::find(embedded, server.as_ref().map(|server| server.address())).await;
    let addresses = match found.map_err(unreachable)? {
        Found::Open(listener) => {
            let run_id = config.run_id.clone().unwrap_or_else(RunId::generate);
            let opened = Server::start(listener, run_id, me.0).map_err(|error| {
                Attempt::Final(ServiceError::Local {
                    doing: "serve the rendezvous",
                    detail: error.to_string(),
                })
            })?;
            let address = opened.address();
            *server = Some(opened);
            vec![host::reachable(address)]
        }
        Found::Elsewhere(addresses) => addresses,
        Found::Taken(detail) => {
            let doing = "open the rendezvous' port";
            return Err(Attempt::Final(ServiceError::Local { doing, detail }));
        }
    };
    let mut stream = connect(&addresses).await.map_err(unreachable)?;
    let _ = stream.set_nodelay(true);
    let hello = Message::Hello {
        run_id: config.run_id.as_ref().map_or_else(String::new, |id| id.as_str().into()),
        incarnation: me.0,
        host: config.host.clone(),
        pid: std::process::id(),
        lease_ms: u32::try_from(config.lease.as_millis()).unwrap_or(u32::MAX),
    };
    stream.write_all(&hello.encode()).await.map_err(unreachable)?;
    match server::receive(&mut stream).await {
        Ok(Message::Welcome { run_id, host }) => match RunId::new(run_id) {
            Ok(run_id) => Ok((run_id, host, stream)),
            Err(error) => Err(Attempt::Final(other_service(endpoint, error.to_string()))),
        },
        Ok(Message::Refused { why, reason }) => {
            let refused = ServiceError::Refused { endpoint: endpoint.into(), detail: reason };
            // Those end: the run after them comes to the same place.
            let passing = matches!(why, Refusal::AnotherRun | Refusal::Ending | Refusal::Full);
            Err(if passing { Attempt::Again(refused) } else { Attempt::Final(refused) })
        }
        Ok(_) => Err(Attempt::Final(other_service(endpoint, "it did not answer a hello".into()))),
        Err(ReceiveError::Frame(error)) => Err(Attempt::Final(other_service(endpoint, error.to_string()))),
        // A listener that is about to end.
        Err(ReceiveError::Io(error)) => Err(unreachable(error)),
    }
}

fn other_service(endpoint: &str, detail: String) -> ServiceError {
    ServiceError::NotTheService { endpoint: endpoint.into(), expected: "a kvrail rendezvous", detail }
}

async fn connect(addresses: &[std::net::SocketAddr]) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            // With no listener on an ephemeral port, the kernel may connect a socket to itself.
            Ok(stream) if stream.local_addr().ok() == stream.peer_addr().ok() => {
                last = std::io::ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A member's connection.
struct Client {
    endpoint: String,
    lease: Duration,
    shared: Arc<Shared>,
    me: Incarnation,
    write: OwnedWriteHalf,
    incoming: mpsc::Receiver<Result<Message, ReceiveError>>,
    heard: Instant,
    last_seq: u32,
    creates: HashMap<u32, Reply<Result<bool, ServiceError>>>,
    writes: HashMap<u32, Reply<Result<(), ServiceError>>>,
}

type Leaving = (Duration, Reply<Result<(), ServiceError>>, Result<(), ServiceError>);

impl Client {
    fn new(
        endpoint: String,
        lease: Duration,
        shared: Arc<Shared>,
        me: Incarnation,
        stream: TcpStream,
    ) -> Self {
        let (mut read, write) = stream.into_split();
        let (sender, incoming) = mpsc::channel(READ_AHEAD);
        tokio::spawn(async move {
            loop {
                let message = server::receive(&mut read).await;
                let last = message.is_err();
                if sender.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        Self {
            endpoint,
            lease,
            shared,
            me,
            write,
            incoming,
            heard: Instant::now(),
            last_seq: 0,
            creates: HashMap::new(),
            writes: HashMap::new(),
        }
    }

    /// Takes in what was there when this member came.
    async fn catch_up(&mut self, until: Instant) -> Result<(), ServiceError> {
        let mut events = Vec::new();
        loop {
            let message = crate::driver::until(until, self.incoming.recv()).await;
            match message.flatten() {
                Some(Ok(Message::Put { owner, key, value })) => events.push(Event::Put { key, value, owner }),
                Some(Ok(Message::Delete { key })) => events.push(Event::Delete { key }),
                Some(Ok(Message::Current)) => break,
                Some(other) => return Err(self.unexpected(other)),
                None => return Err(self.lost("it did not say what is there")),
            }
        }
        // Nobody can know this life yet, let alone challenge it.
        let _ = self.shared.replace(events);
        self.heard = Instant::now();
        Ok(())
    }

    /// Serves the group's threads until they leave, which is `Some`, or forget this thread.
    async fn attend(
        &mut self,
        mut commands: mpsc::Receiver<Command>,
    ) -> Result<Option<Leaving>, ServiceError> {
        let mut tick = tokio::time::interval(self.lease / 3);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = self.incoming.recv() => match message {
                    Some(message) => self.take_in(message).await?,
                    None => return Err(self.lost("the connection ended")),
                },
                command = commands.recv() => match command {
                    Some(Command::Close { parting, linger, reply }) => {
                        let parted = self.part(parting).await;
                        return Ok(Some((linger, reply, parted)));
                    }
                    Some(command) => self.carry_out(command).await?,
                    None => return Ok(None),
                },
                _ = tick.tick() => {
                    if self.heard.elapsed() >= self.lease {
                        return Err(self.lost(&format!("nothing was heard for {:.1?}", self.heard.elapsed())));
                    }
                    self.send(&Message::Ping).await?;
                }
            }
        }
    }

    async fn carry_out(&mut self, command: Command) -> Result<(), ServiceError> {
        let seq = self.next_seq();
        let message = match command {
            Command::Create { key, value, reply } => {
                self.creates.insert(seq, reply);
                Message::Create { seq, key, value }
            }
            Command::Put { key, value, delete, reply } => {
                self.writes.insert(seq, reply);
                Message::Write { seq, key, delete: delete.unwrap_or_default(), value }
            }
            Command::Evict { key, owner, reply } => {
                self.writes.insert(seq, reply);
                Message::Evict { seq, owner, key }
            }
            Command::Close { .. } => return Ok(()),
        };
        self.send(&message).await
    }

    async fn take_in(&mut self, message: Result<Message, ReceiveError>) -> Result<(), ServiceError> {
        self.heard = Instant::now();
        let askers = match message {
            Ok(Message::Put { owner, key, value }) => self.shared.apply([Event::Put { key, value, owner }]),
            Ok(Message::Delete { key }) => self.shared.apply([Event::Delete { key }]),
            Ok(Message::Done { seq, outcome, reason }) => {
                let refused = || ServiceError::Refused {
                    endpoint: self.endpoint.clone(),
                    detail: crate::member::tame(&reason, 512),
                };
                if let Some(reply) = self.creates.remove(&seq) {
                    reply.send(match outcome {
                        Outcome::Did => Ok(true),
                        Outcome::Existed => Ok(false),
                        Outcome::Refused => Err(refused()),
                    });
                } else if let Some(reply) = self.writes.remove(&seq) {
                    reply.send(if outcome == Outcome::Did { Ok(()) } else { Err(refused()) });
                }
                return Ok(());
            }
            Ok(Message::Pong) => return Ok(()),
            other => return Err(self.unexpected(other)),
        };
        for from in askers {
            let key = Key::Answer { holder: self.me, from }.to_string();
            let seq = self.next_seq();
            self.send(&Message::Write { seq, key, delete: String::new(), value: Arc::default() }).await?;
        }
        Ok(())
    }

    /// Puts a last word, waits until it is written, and closes this end.
    async fn part(&mut self, parting: Option<(String, Arc<[u8]>)>) -> Result<(), ServiceError> {
        let until = Instant::now() + LEAVE;
        if let Some((key, value)) = parting {
            let last = self.next_seq();
            self.send(&Message::Write { seq: last, key, delete: String::new(), value }).await?;
            loop {
                match crate::driver::until(until, self.incoming.recv()).await.flatten() {
                    Some(Ok(Message::Done { seq, .. })) if seq == last => break,
                    Some(message) => self.take_in(message).await?,
                    None => return Err(self.lost("it did not take the last word")),
                }
            }
        }
        crate::driver::until(until, self.write.shutdown()).await;
        Ok(())
    }

    async fn send(&mut self, message: &Message) -> Result<(), ServiceError> {
        let frame = message.encode();
        match crate::driver::until(Instant::now() + self.lease, self.write.write_all(&frame)).await {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => {
                // What the service said last tells more than a broken pipe.
                while let Some(Some(message)) =
                    crate::driver::until(Instant::now() + RETRY_MAX, self.incoming.recv()).await
                {
                    match message {
                        Ok(Message::Refused { .. }) | Err(_) => return Err(self.unexpected(message)),
                        Ok(_) => {}
                    }
                }
                Err(self.lost(&error.to_string()))
            }
            None => Err(self.lost("it takes nothing in")),
        }
    }

    fn next_seq(&mut self) -> u32 {
        self.last_seq = self.last_seq.wrapping_add(1);
        self.last_seq
    }

    fn lost(&self, detail: &str) -> ServiceError {
        ServiceError::Lost { endpoint: self.endpoint.clone(), detail: detail.into() }
    }

    fn unexpected(&self, message: Result<Message, ReceiveError>) -> ServiceError {
        let endpoint = self.endpoint.clone();
        match message {
            Ok(Message::Refused { why: Refusal::Evicted, .. }) => ServiceError::Expired { endpoint },
            Ok(Message::Refused { reason, .. }) => {
                ServiceError::Refused { endpoint, detail: crate::member::tame(&reason, 512) }
            }
            Ok(_) => other_service(&endpoint, "it sent what only members send".into()),
            Err(ReceiveError::Frame(error)) => other_service(&endpoint, error.to_string()),
            Err(ReceiveError::Io(error)) => self.lost(&format!("the connection ended: {error}")),
        }
    }
}
