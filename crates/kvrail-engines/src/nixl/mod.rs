//! The real NIXL, through its C API, over any of its backends.
//!
//! A process that opens it should have been started with what [`Options::surroundings`] says, and must end by [`leave`]. Both because
//! of how NIXL's wheels are made: their plugins leave libraries to the host, and an ordinary exit crashes in libraries that come twice.
//!
//! What it really uses (KR-13) NIXL tells nobody but its log. So the engine listens to standard error while it is set up and during the
//! first posting of each direction, and switches NIXL's log off before anything is timed. What is not heard is reported as unknown.
//!
//! NIXL blocks in calls as long as it likes: creating a backend and posting have no deadline here. Whoever runs the process ends it then;
//! it leaves nothing behind.

mod ear;
mod envelope;
mod open;
mod options;
mod posting;
mod said;
mod used;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use kvrail::Memory;
use kvrail_sys::nixl::{Agent, Backend, Library, LogLevel, NixlError, Operation, Registration, Surroundings};

pub use kvrail_sys::nixl::leave;
pub use options::{Options, Requests};

use crate::engine::{Blocks, Direction, Engine, Name, PeerId, Posting, Registration as Again};
use crate::error::{EngineError, Kind};
use crate::used::Used;
use ear::Ear;
use envelope::Envelope;
use posting::{Held, Lists, Making};
use said::Said;

/// NIXL as an engine.
pub struct Nixl {
    options: Options,
    shared: Arc<Shared>,
    registered: Option<Arc<Registered>>,
    peers: Vec<Peer>,
}

/// What every posting needs of its engine, for as long as it is there.
struct Shared {
    backend: Backend,
    agent: Agent,
    library: Arc<Library>,
    /// The backend's name in NIXL's own case.
    name: String,
    requests: Requests,
    said: Mutex<Said>,
    /// Directions that have been posted once: bits of [`Operation`].
    heard: AtomicU64,
    /// Notifications that came and were not asked for yet.
    inbox: AtomicU64,
    /// Metadata of peers that will post to this side, not taken in yet.
    admitted: Mutex<Vec<Envelope>>,
    /// Whether there are any, for who drives.
    is_admitting: AtomicBool,
}

/// Registered memory: the registration ends before the share of the memory is let go of (KR-7).
struct Registered {
    _registration: Registration,
    memory: Memory,
}

/// Blocks that are registered once more.
struct RegisteredAgain {
    _blocks: Vec<Registered>,
}

impl Again for RegisteredAgain {}

struct Peer {
    name: String,
    base: u64,
    len: u64,
}

impl Shared {
    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        // Facts, each whole by itself.
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(&self, text: &str) {
        self.said().take_in(text);
    }

    /// Does something and hears what NIXL says of it.
    fn listened<T>(&self, act: impl FnOnce() -> T) -> T {
        let (done, heard) = listened(&self.library, act);
        self.take_in(&heard);
        done
    }

    /// Whether nothing has been posted that way yet; from now on something has.
    fn is_unheard(&self, operation: Operation) -> bool {
        let bit = match operation {
            Operation::Read => 1,
            Operation::Write => 2,
        };
        // Looked at first: it is written once, and read with every posting of every thread.
        self.heard.load(Ordering::Relaxed) & bit == 0
            && self.heard.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// A failure of NIXL's, with what it said last of its own accord.
    fn failed(&self, what: &str, error: &NixlError) -> EngineError {
        let said = self.said();
        failed(&self.name, what, error, &said)
    }
}

/// Does something with NIXL's log switched on, and hears what is said meanwhile.
fn listened<T>(library: &Library, act: impl FnOnce() -> T) -> (T, String) {
    let ear = Ear::open();
    let is_ours = std::env::var_os(Surroundings::HEARD).is_some();
    if is_ours {
        library.set_log_level(LogLevel::All);
    }
    let done = act();
    if is_ours {
        library.set_log_level(LogLevel::Warnings);
    }
    (done, ear.hear())
}

fn failed(backend: &str, what: &str, error: &NixlError, said: &Said) -> EngineError {
    let said = said.last_words().map_or(String::new(), |words| format!("; its log says: {words}"));
    EngineError::new(Kind::Engine, format!("NIXL over {backend}: {what}: {error}{said}"))
}

impl Engine for Nixl {
    fn name(&self) -> Name {
        Name::Nixl
    }

    fn used(&self) -> Vec<Used> {
        vec![used::used(&self.shared, &self.options)]
    }

    fn lanes(&mut self, count: u32) -> Result<(), EngineError> {
        if count <= 1 {
            return Ok(());
        }
        if self.registered.is_some() {
            let what = "the number of posting threads is told after memory was registered";
            return Err(EngineError::new(Kind::Usage, what));
        }
        // How NIXL locks is decided when the agent is made; nothing stands on this one yet.
        let said = self.shared.said().clone();
        self.shared = open::shared(&self.shared.library, &self.options, count, said)?;
        Ok(())
    }

    fn register(&mut self, memory: &Memory) -> Result<(), EngineError> {
        if self.registered.is_some() {
            return Err(EngineError::new(Kind::Usage, "memory is registered already"));
        }
        if memory.device() != kvrail::Device::Host {
            let what = format!("the engine nixl moves host memory only; this is on {}", memory.device());
            return Err(EngineError::new(Kind::Usage, what));
        }
        let (base, len) = (usize::try_from(memory.base()), memory.len());
        let Ok(base) = base else {
            return Err(EngineError::new(Kind::Usage, "memory beyond this machine's addresses"));
        };
        let backend = &self.shared.backend;
        let registration = self.shared.listened(|| {
            // SAFETY: the memory is alive as long as the share of it that is kept beside the registration, which is dropped first. It
            // is only ever touched by copies that allow for others writing to it; postings hold a share of both.
            unsafe { backend.register(base, len) }
        });
        let registration = registration
            .map_err(|error| self.shared.failed(&format!("cannot register {len} bytes"), &error))?;
        self.registered = Some(Arc::new(Registered { _registration: registration, memory: memory.clone() }));
        Ok(())
    }

    fn register_again(&self, offsets: &[u64], block_bytes: u64) -> Result<Box<dyn Again>, EngineError> {
        let usage = |what: String| EngineError::new(Kind::Usage, what);
        let registered = self.registered.as_ref().ok_or_else(|| usage("no memory is registered".into()))?;
        let beyond =
            |offset: u64| usage(format!("{block_bytes} bytes at offset {offset} are outside of the memory"));
        let mut blocks = Vec::with_capacity(offsets.len());
        for &offset in offsets {
            let range = usize::try_from(offset).ok().zip(usize::try_from(block_bytes).ok());
            let memory = range.and_then(|(offset, len)| registered.memory.slice(offset, len).ok());
            let memory = memory.ok_or_else(|| beyond(offset))?;
            let base = usize::try_from(memory.base()).map_err(|_| beyond(offset))?;
            // SAFETY: as for the first registration: the share of the memory is kept beside this one. No request is made of it: those
            // that move these bytes use the first registration, which their postings hold.
            let registration = unsafe { self.shared.backend.register(base, memory.len()) };
            let registration = registration.map_err(|error| {
                self.shared.failed(&format!("cannot register {block_bytes} bytes"), &error)
            })?;
            blocks.push(Registered { _registration: registration, memory });
        }
        Ok(Box::new(RegisteredAgain { _blocks: blocks }))
    }

    fn metadata(&mut self) -> Result<Vec<u8>, EngineError> {
        let registered = self.registered()?;
        let metadata = self.shared.agent.metadata();
        let metadata = metadata.map_err(|error| self.shared.failed("has no metadata", &error))?;
        let (base, len) = (registered.memory.base(), registered.memory.len() as u64);
        Envelope { backend: self.shared.name.clone(), base, len, metadata }.write()
    }

    /// LIBFABRIC sends the peer a greeting while it takes in the metadata, and waits until that is gone: which it is when the peer
    /// connects. So this is left to who drives this side meanwhile.
    fn admit(&mut self, metadata: &[u8]) -> Result<(), EngineError> {
        let envelope = self.shared.read(metadata)?;
        if !self.needs_driving() {
            return self.shared.import(envelope).map(|_| ());
        }
        self.shared.admitted().push(envelope);
        self.shared.is_admitting.store(true, Ordering::Release);
        Ok(())
    }

    /// NIXL may never come back from connecting. It is asked on a thread of its own, which is then left to its fate, with the memory.
    fn connect(&mut self, metadata: &[u8], within: Duration) -> Result<PeerId, EngineError> {
        let envelope = self.shared.read(metadata)?;
        let id =
            u32::try_from(self.peers.len()).map_err(|_| EngineError::new(Kind::Usage, "too many peers"))?;
        let (shared, (answer, answered)) = (Arc::clone(&self.shared), mpsc::sync_channel(1));
        let asking = move || {
            // Nobody waits for it any more: then the answer is nobody's.
            let _ = answer.send(shared.meet(envelope));
        };
        let thread = thread::Builder::new().name("nixl-connect".into()).spawn(asking);
        thread.map_err(|error| {
            EngineError::new(Kind::Environment, format!("cannot start a thread: {error}"))
        })?;
        match answered.recv_timeout(within) {
            Ok(peer) => self.peers.push(peer?),
            Err(_) => {
                std::mem::forget(self.registered.clone());
                // It would listen for ever, and nobody would see what else is said.
                self.shared.take_in(&ear::end());
                let what = format!(
                    "NIXL over {} does not come back from connecting within {within:?}",
                    self.shared.name
                );
                let error = EngineError::new(Kind::Peer, what);
                return Err(error.hint(
                    "the peer must be driven meanwhile; end this process: NIXL is still in that call",
                ));
            }
        }
        Ok(PeerId(id))
    }

    fn prepare(&self, blocks: &Blocks<'_>) -> Result<Box<dyn Posting>, EngineError> {
        let registered = self.registered()?;
        let usage = |what: String| EngineError::new(Kind::Usage, what);
        let peer = self.peers.get(blocks.peer.0 as usize);
        let peer = peer.ok_or_else(|| usage(format!("there is no peer {}", blocks.peer.0)))?;
        if blocks.local.is_empty() || blocks.local.len() != blocks.remote.len() || blocks.block_bytes == 0 {
            let (local, remote) = (blocks.local.len(), blocks.remote.len());
            let what = format!(
                "{local} local and {remote} remote blocks of {} bytes are no transfer",
                blocks.block_bytes
            );
            return Err(usage(what));
        }
        let local = (registered.memory.base(), registered.memory.len() as u64);
        let local = self.list("local", local, blocks.local, blocks.block_bytes)?;
        let remote = self.list("remote", (peer.base, peer.len), blocks.remote, blocks.block_bytes)?;
        let lists = if self.options.prepared_lists {
            let prepare = |owner, list| self.shared.backend.prepare(owner, list);
            let failed = |error| self.shared.failed("cannot prepare a list of blocks", &error);
            let local = prepare(None, &local).map_err(failed)?;
            let remote = prepare(Some(peer.name.as_str()), &remote).map_err(failed)?;
            let count = i32::try_from(blocks.local.len())
                .map_err(|_| usage("more blocks than NIXL can count".into()))?;
            Lists::Prepared { local, remote, indices: (0..count).collect() }
        } else {
            Lists::Plain { local, remote }
        };
        let operation = match blocks.direction {
            Direction::Read => Operation::Read,
            Direction::Write => Operation::Write,
        };
        let notification = blocks.notification.map(<[u8]>::to_vec);
        let making = Making { operation, peer: peer.name.clone(), lists, notification };
        Ok(Box::new(Held::new(making, Arc::clone(registered), Arc::clone(&self.shared))?))
    }

    fn completes_visible(&self) -> bool {
        used::evidence(&self.shared.name) == used::FLUSHED
    }

    fn needs_driving(&self) -> bool {
        !self.options.progress_thread
    }

    /// NIXL does not say whether there was progress, only whether there are notifications: it is taken for granted.
    fn drive(&self) -> bool {
        self.shared.take_notifications().is_ok()
    }

    fn notifications(&self, awaited: u64, within: Duration) -> Result<u64, EngineError> {
        let inbox = &self.shared.inbox;
        self.shared.progress_until(within, |shared| {
            shared.take_notifications()?;
            Ok(inbox.load(Ordering::Acquire) >= awaited)
        })?;
        let mut taken = 0;
        let _ = inbox.fetch_update(Ordering::AcqRel, Ordering::Acquire, |came| {
            taken = came.min(awaited);
            Some(came - taken)
        });
        Ok(taken)
    }
}

impl Shared {
    fn admitted(&self) -> std::sync::MutexGuard<'_, Vec<Envelope>> {
        // Whole at any time.
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Metadata of a peer, if they are such that this engine can use.
    fn read(&self, metadata: &[u8]) -> Result<Envelope, EngineError> {
        let envelope = Envelope::read(metadata)?;
        if envelope.backend != self.name {
            let what = format!("the peer uses NIXL's backend {}, this side {}", envelope.backend, self.name);
            return Err(EngineError::new(Kind::Peer, what).hint("both sides must use the same backend"));
        }
        Ok(envelope)
    }

    fn import(&self, envelope: Envelope) -> Result<Peer, EngineError> {
        let name = self.listened(|| self.agent.import(&envelope.metadata)).map_err(|error| {
            let error = self.failed("does not take the peer's metadata", &error);
            EngineError { kind: Kind::Peer, ..error }
        })?;
        Ok(Peer { name, base: envelope.base, len: envelope.len })
    }

    /// Takes in a peer's metadata and connects to it.
    fn meet(&self, envelope: Envelope) -> Result<Peer, EngineError> {
        let peer = self.import(envelope)?;
        let connected = self.listened(|| self.backend.connect(&peer.name));
        connected.map_err(|error| {
            let error = self.failed(&format!("cannot connect to {}", peer.name), &error);
            EngineError { kind: Kind::Peer, ..error }
        })?;
        Ok(peer)
    }

    /// Makes progress, and counts the notifications that came.
    fn take_notifications(&self) -> Result<(), EngineError> {
        if self.is_admitting.load(Ordering::Relaxed) && self.is_admitting.swap(false, Ordering::AcqRel) {
            let admitted = std::mem::take(&mut *self.admitted());
            for envelope in admitted {
                self.import(envelope).inspect_err(|error| log::error!("{error}"))?;
            }
        }
        let mut came = 0;
        let taken = self.agent.notifications(|_| came += 1);
        if came > 0 {
            self.inbox.fetch_add(came, Ordering::AcqRel);
        }
        taken.map(|_| ()).map_err(|error| self.failed("cannot look for notifications", &error))
    }
}

impl Nixl {
    fn registered(&self) -> Result<&Arc<Registered>, EngineError> {
        self.registered.as_ref().ok_or_else(|| EngineError::new(Kind::Usage, "no memory is registered"))
    }

    /// The blocks of one side as NIXL takes them, each checked against the memory that it must be in (KR-9).
    fn list(
        &self,
        side: &str,
        (base, len): (u64, u64),
        offsets: &[u64],
        block_bytes: u64,
    ) -> Result<kvrail_sys::nixl::DescriptorList, EngineError> {
        let failed = |error: NixlError| self.shared.failed("cannot make a list of blocks", &error);
        let mut list = self.shared.agent.blocks().map_err(failed)?;
        for (index, &offset) in offsets.iter().enumerate() {
            if offset.checked_add(block_bytes).is_none_or(|end| end > len) {
                let what = format!(
                    "{side} block {index}, {block_bytes} bytes at offset {offset}, ends outside the {len} bytes of its memory"
                );
                return Err(EngineError::new(Kind::Usage, what));
            }
            // Inside memory that has an address: neither the sum nor the length is beyond this machine's.
            list.push((base + offset) as usize, block_bytes as usize).map_err(failed)?;
        }
        Ok(list)
    }
}
