//! The service itself: a small store of keys that live with their connections.
//!
//! Every connection sees every change in one order: changes are made, and queued for all, under one lock. What a
//! connection may hold here is bounded, and so is what may be queued for it; who does not keep up is let go.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};

use super::wire::{FrameError, HEADER_BYTES, Header, Message, Outcome, Refusal};
use crate::key::Key;
use crate::limits::{
    KEYS_PER_MEMBER_MAX, LEASE_MAX, LEASE_MIN, MEMBER_BYTES_MAX, RECORD_BYTES_MAX, RUN_BYTES_MAX,
    RUN_KEYS_MAX, VALUE_BYTES_MAX, WORLD_SIZE_MAX,
};
use crate::name::RunId;

/// Most connections at one time: members, and as many that only try.
const CONNECTIONS_MAX: usize = 2 * WORLD_SIZE_MAX as usize;
/// Time for a connection to say who it is.
const HELLO: Duration = Duration::from_secs(5);
/// Most bytes that wait for one connection: all that there is, and a member's share of changes.
const QUEUE_BYTES_MAX: usize = RUN_BYTES_MAX + MEMBER_BYTES_MAX;
/// Keys of a connection besides its values: a seat, what it agreed to, challenges and answers.
const OWN_KEYS_MAX: usize = 2 + 2 * WORLD_SIZE_MAX as usize;
/// What is in them: a record and a number.
const OWN_BYTES_MAX: usize = RECORD_BYTES_MAX + 16;

pub(super) struct Server {
    run_id: RunId,
    /// The life of the member that hosts it; 0 for none.
    host: u64,
    address: SocketAddr,
    state: Mutex<State>,
    went: Notify,
}

#[derive(Default)]
struct State {
    keys: BTreeMap<String, Entry>,
    bytes: usize,
    connections: HashMap<u64, Connection>,
    /// Accepted, and not yet members.
    strangers: usize,
    last_id: u64,
    ending: bool,
}

struct Entry {
    owner: u64,
    value: Arc<[u8]>,
}

struct Connection {
    frames: mpsc::UnboundedSender<Arc<[u8]>>,
    queued: Arc<AtomicUsize>,
    keys: usize,
    bytes: usize,
    /// Dropped with the connection; its reader then ends.
    _end: oneshot::Sender<()>,
}

impl Server {
    /// Opens the port and serves on the runtime that this is called on.
    pub(super) fn start(listener: std::net::TcpListener, run_id: RunId, host: u64) -> io::Result<Arc<Self>> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let server = Arc::new(Self { run_id, host, address, state: Mutex::default(), went: Notify::new() });
        tokio::spawn(server.clone().accept(listener));
        Ok(server)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes nobody in any more, and waits until all have gone or `until`.
    pub(super) async fn end(&self, until: Instant) {
        self.state.lock().ending = true;
        loop {
            let went = self.went.notified();
            if self.state.lock().connections.is_empty() {
                return;
            }
            if crate::driver::until(until, went).await.is_none() {
                return;
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let mut state = self.state.lock();
                    if state.connections.len() + state.strangers < CONNECTIONS_MAX {
                        state.strangers += 1;
                        tokio::spawn(self.clone().serve(stream));
                    }
                }
                // Out of descriptors, most likely: it passes.
                Err(error) => {
                    tracing::warn!("rendezvous at {}: {error}", self.address);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let (mut read, mut write) = stream.into_split();
        let hello = crate::driver::until(Instant::now() + HELLO, receive(&mut read)).await;
        let entered = match hello {
            Some(Ok(Message::Hello { run_id, lease_ms, .. })) => self.enter(&run_id, lease_ms),
            Some(Err(ReceiveError::Frame(error))) => Err((Refusal::Nonsense, error.to_string())),
            Some(Ok(_)) => Err((Refusal::Nonsense, "a member first says hello".into())),
            Some(Err(ReceiveError::Io(_))) | None => Err((Refusal::Nonsense, "nothing was said".into())),
        };
        self.state.lock().strangers -= 1;
        match entered {
            Ok(entered) => self.attend(read, write, entered).await,
            Err((why, reason)) => {
                let frame = Message::Refused { why, reason }.encode();
                let _ = crate::driver::until(Instant::now() + HELLO, write.write_all(&frame)).await;
            }
        }
    }

    /// Makes a connection a member, with all that is there queued for it.
    fn enter(&self, run_id: &str, lease_ms: u32) -> Result<Entered, (Refusal, String)> {
        let mut state = self.state.lock();
        if !run_id.is_empty() && run_id != self.run_id.as_str() {
            return Err((Refusal::AnotherRun, format!("it is for run {}", self.run_id)));
        }
        if state.ending {
            return Err((Refusal::Ending, format!("run {} is over", self.run_id)));
        }
        if state.connections.len() >= CONNECTIONS_MAX {
            return Err((Refusal::Full, format!("it has {CONNECTIONS_MAX} members")));
        }
        let (frames, queue) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let connection = Connection { frames, queued: queued.clone(), keys: 0, bytes: 0, _end: end };
        let welcome = Message::Welcome { run_id: self.run_id.as_str().into(), host: self.host };
        connection.push(&welcome.encode().into());
        for (key, Entry { owner, value }) in &state.keys {
            let put = Message::Put { owner: *owner, key: key.clone(), value: value.clone() };
            connection.push(&put.encode().into());
        }
        connection.push(&Message::Current.encode().into());
        state.last_id += 1;
        let id = state.last_id;
        state.connections.insert(id, connection);
        let lease = Duration::from_millis(lease_ms.into()).clamp(LEASE_MIN, LEASE_MAX);
        Ok(Entered { id, queue, queued, ended, lease })
    }

    async fn attend(self: Arc<Self>, mut read: OwnedReadHalf, write: OwnedWriteHalf, entered: Entered) {
        let Entered { id, queue, queued, mut ended, lease } = entered;
        tokio::spawn(deliver(write, queue, queued, lease));
        loop {
            let message = tokio::select! {
                message = crate::driver::until(Instant::now() + lease, receive(&mut read)) => message,
                _ = &mut ended => break,
            };
            match message {
                Some(Ok(message)) => self.handle(id, message),
                // Silent for a lease, gone, or talking nonsense: it is no member any more.
                Some(Err(_)) | None => break,
            }
        }
        self.state.lock().let_go(id, None);
        self.went.notify_waiters();
    }

    fn handle(&self, id: u64, message: Message) {
        let mut state = self.state.lock();
        let (seq, outcome) = match message {
            Message::Create { seq, key, .. } if state.keys.contains_key(&key) => (seq, Ok(Outcome::Existed)),
            Message::Create { seq, key, value } => (seq, state.put(id, key, value).map(|()| Outcome::Did)),
            Message::Write { seq, key, delete, value } => {
                let written = state.may_delete(id, &delete).and_then(|()| state.put(id, key, value));
                if written.is_ok() {
                    state.delete(&delete);
                }
                (seq, written.map(|()| Outcome::Did))
            }
            Message::Evict { seq, owner, key } => {
                if owner != id && state.keys.get(&key).is_some_and(|entry| entry.owner == owner) {
                    let reason = "another process has the seat now".into();
                    state.let_go(owner, Some(Message::Refused { why: Refusal::Evicted, reason }));
                }
                (seq, Ok(Outcome::Did))
            }
            Message::Ping => return state.send(id, &Message::Pong),
            _ => {
                let reason = "not a member's message".into();
                return state.let_go(id, Some(Message::Refused { why: Refusal::Nonsense, reason }));
            }
        };
        let (outcome, reason) =
            outcome.map_or_else(|reason| (Outcome::Refused, reason), |o| (o, String::new()));
        state.send(id, &Message::Done { seq, outcome, reason });
    }
}

struct Entered {
    id: u64,
    queue: mpsc::UnboundedReceiver<Arc<[u8]>>,
    queued: Arc<AtomicUsize>,
    ended: oneshot::Receiver<()>,
    lease: Duration,
}

impl Connection {
    /// Queues a frame; false when too much waits already.
    fn push(&self, frame: &Arc<[u8]>) -> bool {
        let waiting = self.queued.fetch_add(frame.len(), Ordering::Relaxed) + frame.len();
        waiting <= QUEUE_BYTES_MAX && self.frames.send(frame.clone()).is_ok()
    }
}

impl State {
    fn put(&mut self, id: u64, key: String, value: Arc<[u8]>) -> Result<(), String> {
        let Some(parsed) = Key::parse(&key) else { return Err(format!("{key:?} is no key of a run")) };
        let old = match self.keys.get(&key) {
            Some(entry) if entry.owner != id => return Err(format!("{key} is another member's")),
            Some(entry) => Some(entry.value.len()),
            None => None,
        };
        let keys_total = self.keys.len();
        let Some(connection) = self.connections.get_mut(&id) else { return Err("no member any more".into()) };
        let keys = connection.keys + usize::from(old.is_none());
        let bytes = connection.bytes - old.unwrap_or(0) + value.len();
        let total = self.bytes - old.unwrap_or(0) + value.len();
        let keys_max =
            OWN_KEYS_MAX + if matches!(parsed, Key::Value { .. }) { KEYS_PER_MEMBER_MAX } else { 0 };
        if keys > keys_max || bytes > MEMBER_BYTES_MAX + OWN_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(format!("a member has at most {keys_max} keys of {MEMBER_BYTES_MAX} bytes"));
        }
        if total > RUN_BYTES_MAX || keys_total >= RUN_KEYS_MAX {
            return Err(format!("a run has at most {RUN_KEYS_MAX} keys of {RUN_BYTES_MAX} bytes"));
        }
        (connection.keys, connection.bytes, self.bytes) = (keys, bytes, total);
        let put = Message::Put { owner: id, key: key.clone(), value: value.clone() };
        self.keys.insert(key, Entry { owner: id, value });
        // Last: who is let go because of it takes its keys away, and that may be this one.
        self.tell_all(&put);
        Ok(())
    }

    /// A member deletes only its own.
    fn may_delete(&self, id: u64, key: &str) -> Result<(), String> {
        match self.keys.get(key) {
            Some(entry) if entry.owner != id => Err(format!("{key} is another member's")),
            _ => Ok(()),
        }
    }

    fn delete(&mut self, key: &str) {
        let Some(entry) = self.keys.remove(key) else { return };
        self.bytes -= entry.value.len();
        if let Some(connection) = self.connections.get_mut(&entry.owner) {
            connection.keys -= 1;
            connection.bytes -= entry.value.len();
        }
        self.tell_all(&Message::Delete { key: key.into() });
    }

    /// Ends a connection and all that lives with it.
    fn let_go(&mut self, id: u64, last_word: Option<Message>) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(word) = last_word {
            connection.push(&word.encode().into());
        }
        let keys: Vec<String> =
            self.keys.iter().filter(|(_, entry)| entry.owner == id).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.delete(&key);
        }
    }

    fn send(&mut self, id: u64, message: &Message) {
        let frame = message.encode().into();
        if self.connections.get(&id).is_some_and(|connection| !connection.push(&frame)) {
            self.let_go(id, None);
        }
    }

    fn tell_all(&mut self, message: &Message) {
        let frame: Arc<[u8]> = message.encode().into();
        let slow: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| !connection.push(&frame))
            .map(|(&id, _)| id)
            .collect();
        // To let one go tells the others; there are fewer each time.
        for id in slow {
            self.let_go(id, None);
        }
    }
}

/// Writes what is queued, until there is nobody left to queue anything or the other end takes nothing for a lease.
async fn deliver(
    mut write: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Arc<[u8]>>,
    queued: Arc<AtomicUsize>,
    lease: Duration,
) {
    while let Some(frame) = queue.recv().await {
        match crate::driver::until(Instant::now() + lease, write.write_all(&frame)).await {
            Some(Ok(())) => queued.fetch_sub(frame.len(), Ordering::Relaxed),
            _ => return,
        };
    }
    let _ = write.shutdown().await;
}

pub(super) enum ReceiveError {
    Io(io::Error),
    Frame(FrameError),
}

/// Reads one message. Not to be abandoned half-way, unless the connection is.
pub(super) async fn receive(read: &mut (impl AsyncRead + Unpin)) -> Result<Message, ReceiveError> {
    let mut header = [0; HEADER_BYTES];
    read.read_exact(&mut header).await.map_err(ReceiveError::Io)?;
    let header = Header::decode(&header).map_err(ReceiveError::Frame)?;
    let mut body = vec![0; header.body_len()];
    read.read_exact(&mut body).await.map_err(ReceiveError::Io)?;
    Message::decode(header, &body).map_err(ReceiveError::Frame)
}
