//! The trait, and what goes through it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use kvrail::Memory;

use crate::error::{EngineError, Kind};
use crate::used::Used;

/// Which engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Name {
    /// This project's own: agents over shm, ofi, tcp.
    Kvrail,
    /// The real NIXL, through its C API.
    Nixl,
    /// UCX's UCP: put and get.
    Ucx,
    /// Plain `fi_write` and `fi_read`: the ceiling of software on a provider.
    Libfabric,
    /// Plain copies: the machine's own ceiling, on one host.
    Memcpy,
}

impl Name {
    /// All of them, in the order in which tables name them.
    pub const ALL: [Self; 5] = [Self::Kvrail, Self::Nixl, Self::Ucx, Self::Libfabric, Self::Memcpy];

    /// As it is typed and printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvrail => "kvrail",
            Self::Nixl => "nixl",
            Self::Ucx => "ucx",
            Self::Libfabric => "libfabric",
            Self::Memcpy => "memcpy",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|name| name.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|name| name.as_str()).collect();
            format!("there is no engine `{text}`; there are {}", names.join(", "))
        })
    }
}

/// Which way bytes go, seen from who posts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From local memory into the peer's.
    Write,
    /// From the peer's memory into local memory.
    Read,
}

/// A peer that an engine has met, numbered from 0 in the order of meeting.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerId(pub u32);

/// One transfer: block `i` of `local` with block `i` of `remote`, all of one length.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    /// Which way.
    pub direction: Direction,
    /// Whose memory the remote blocks are in.
    pub peer: PeerId,
    /// Which posting thread will post it, from 0: an engine may keep something for each. Less than what
    /// [`Engine::lanes`] was told.
    pub lane: u32,
    /// Offsets in the registered memory here, bytes.
    pub local: &'a [u64],
    /// Offsets in the peer's registered memory, bytes.
    pub remote: &'a [u64],
    /// Length of each block, bytes.
    pub block_bytes: u64,
    /// What the peer is told once every byte is there; none for nothing.
    pub notification: Option<&'a [u8]>,
    /// How long a posting may take before the engine itself gives it up, if it can.
    pub timeout: Duration,
}

/// One side of a measurement.
///
/// The order of calls: [`lanes`](Self::lanes), [`register`](Self::register) once, [`metadata`](Self::metadata), then per peer
/// [`admit`](Self::admit) at who is posted to and [`connect`](Self::connect) at who posts, then postings. Everything but those
/// is called on one thread; [`drive`](Self::drive) may be called on another at the same time.
///
/// Dropping an engine ends what is in flight before the memory is let go of (KR-7).
pub trait Engine: Send + Sync {
    /// Which one it is.
    fn name(&self) -> Name;

    /// What it really runs on, as far as it is known by now: one entry per transport that could carry something before a peer
    /// is met, those that do afterwards.
    fn used(&self) -> Vec<Used>;

    /// How many threads will post. One if nobody says.
    ///
    /// # Errors
    /// When the engine cannot serve so many.
    fn lanes(&mut self, count: u32) -> Result<(), EngineError> {
        let _ = count;
        Ok(())
    }

    /// Registers the memory that all blocks of this side are in. It holds a share of it for as long as it may be touched.
    ///
    /// # Errors
    /// When the fabric refuses it.
    fn register(&mut self, memory: &Memory) -> Result<(), EngineError>;

    /// Registers blocks of the memory that is registered already once more, for as long as the answer lives: what an application pays
    /// that registers around every transfer. Transfers go on using the first registration.
    ///
    /// # Errors
    /// When the engine cannot, or nothing is registered.
    fn register_again(
        &self,
        offsets: &[u64],
        block_bytes: u64,
    ) -> Result<Box<dyn Registration>, EngineError> {
        let _ = (offsets, block_bytes);
        Err(EngineError::new(Kind::Usage, format!("the engine {} registers memory only once", self.name())))
    }

    /// What the other side needs to reach this one and its memory. Bytes from outside for whoever gets them.
    ///
    /// # Errors
    /// When nothing is registered, or the engine is gone.
    fn metadata(&mut self) -> Result<Vec<u8>, EngineError>;

    /// Learns of a peer that will post to this side. Most engines need not know.
    ///
    /// # Errors
    /// When the metadata is none, or of another engine or version.
    fn admit(&mut self, metadata: &[u8]) -> Result<(), EngineError> {
        let _ = metadata;
        Ok(())
    }

    /// Meets a peer to post to. The peer is driven meanwhile.
    ///
    /// # Errors
    /// When the metadata is none, or of another engine or version, or the peer cannot be reached or does not answer in time.
    fn connect(&mut self, metadata: &[u8], within: Duration) -> Result<PeerId, EngineError>;

    /// Prepares a transfer that can be posted as often as one likes, one posting at a time.
    ///
    /// # Errors
    /// When a block is outside of the memory of its side, or the peer is gone.
    fn prepare(&self, blocks: &Blocks<'_>) -> Result<Box<dyn Posting>, EngineError>;

    /// Whether a write that has ended is visible at its target. Where it is not, only a notification tells, and whoever looks at the
    /// target's memory may have to wait.
    fn completes_visible(&self) -> bool {
        true
    }

    /// Whether somebody must call [`drive`](Self::drive) for peers to get on: false when the engine has threads of its own or the
    /// hardware does it.
    fn needs_driving(&self) -> bool;

    /// Makes progress once, without waiting; whether there was any.
    fn drive(&self) -> bool;

    /// Takes notifications that have come, at most `awaited` and as soon as those are there; how many.
    ///
    /// # Errors
    /// When the engine has none, or is gone.
    fn notifications(&self, awaited: u64, within: Duration) -> Result<u64, EngineError>;
}

/// Blocks that are registered until this is dropped.
pub trait Registration: Send {}

/// A prepared transfer.
pub trait Posting: Send {
    /// Posts it, after the last posting has ended.
    ///
    /// # Errors
    /// When the engine refuses; nothing is in flight then.
    fn post(&mut self) -> Result<(), EngineError>;

    /// Looks once, makes progress, and does not wait: how the posting ended, if it has. A write has ended when its bytes are visible at
    /// the peer, as far as the engine can promise that at all; what it can is in [`Used::evidence`].
    fn poll(&mut self) -> Option<Result<(), EngineError>>;

    /// Waits at most so long for the end. Sleeps where the engine can.
    fn wait(&mut self, within: Duration) -> Option<Result<(), EngineError>> {
        spin(within, || self.poll())
    }

    /// Gives the posting in flight up, if there is one: [`poll`](Self::poll) says so when nothing touches memory any more.
    fn cancel(&mut self);
}

/// Polls until there is an end, at most so long.
pub(crate) fn spin<T>(within: Duration, mut poll: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        let ended = poll();
        if ended.is_some() || Instant::now() >= deadline {
            return ended;
        }
        std::hint::spin_loop();
    }
}
