//! UCX's UCP as an engine: puts and gets, as `ucx_perftest -t ucp_put_bw` and `ucp_get` do them.
//!
//! * A write is a put per block and one flush of the endpoint behind them, which ends when all of them are complete at the peer; a read is
//!   a get per block. At most [`Config::window`] operations of a posting are in flight, 32 unless told otherwise, as `ucx_perftest`
//!   has it.
//! * Each posting thread has a worker of its own, and so has the target for each. A target makes progress when it is driven, because UCX
//!   emulates gets over tcp, and puts and gets over shared memory, by messages.
//! * The buffers are the benchmark's, registered, the same ones as every engine's. `ucx_perftest` lets UCX allocate them, so that over
//!   `posix` and `sysv` it copies straight into the peer's memory, which UCX cannot do with memory that somebody else allocated: on one host
//!   it then uses `cma`, or messages where it may not.
//! * What it used is asked of UCX ([`Engine::used`]): transports and devices of the endpoint's lanes, and how it moves each size of block.

mod lane;
mod metadata;
mod posting;
mod used;
mod words;

use std::cell::Cell;
use std::env;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvrail::Memory;
pub use kvrail_sys::ucp::ErrorHandling;
use kvrail_sys::ucp::abi::{UCP_FEATURE_AM, UCP_FEATURE_RMA};
use kvrail_sys::ucp::{Context, Library, MappedMemory, Search, Tally, Transport};

use crate::engine::{Blocks, Engine, Name, PeerId, Posting};
use crate::error::{EngineError, Kind};
use crate::used::Used;
use lane::{Lane, lock};
use metadata::{Metadata, WORKERS_MAX};
use posting::Transfer;
use used::Said;

/// Operations of one posting in flight: `ucx_perftest`'s window for puts and gets.
pub const WINDOW: u32 = 32;
/// Longest notification, bytes: short enough to go as one message over every transport.
pub const NOTIFICATION_BYTES_MAX: usize = 1024;
/// Bytes of the memory that first reads go into: one page.
const SCRATCH_BYTES: usize = 4096;

/// How to open UCX. Everything else is set by its own `UCX_…` variables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// `libucp.so.0` or its directory; none = [`KVRAIL_UCX`](kvrail_sys::ucp::VARIABLE), else searched for.
    pub library: Option<PathBuf>,
    /// Transports to choose from (`UCX_TLS`): `tcp`, `cma,posix`, `rc`… None = the environment's, else UCX's choice.
    pub tls: Option<String>,
    /// Devices to choose from (`UCX_NET_DEVICES`): `eth0`, `mlx5_0:1`… None = the environment's, else all.
    pub devices: Option<String>,
    /// Whether UCX watches over peers. None = as it is best for each: [`ErrorHandling::Peer`], but on one host, where UCX could then not use
    /// `cma`, [`ErrorHandling::None`], with which `ucx_perftest` runs; a dead peer is then noticed by the deadline. Both sides the same:
    /// release 1.13 is known to end a process whose peers watch and that does not.
    pub error_handling: Option<ErrorHandling>,
    /// Operations of one posting in flight, at least 1.
    pub window: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { library: None, tls: None, devices: None, error_handling: None, window: WINDOW }
    }
}

/// What a process that will hold a UCX should have in its environment before it starts, as far as nobody has set it: UCX's log goes
/// to standard error, because standard output is data.
#[must_use]
pub fn surroundings() -> Vec<(&'static str, &'static str)> {
    [("UCX_LOG_FILE", "stderr"), ("UCX_WARN_UNUSED_ENV_VARS", "n")]
        .into_iter()
        .filter(|(name, _)| env::var_os(name).is_none())
        .collect()
}

/// UCX.
pub struct Ucx {
    config: Config,
    lanes: Vec<Arc<Mutex<Lane>>>,
    lane_count: usize,
    registered: Option<Registered>,
    scratch: Registered,
    peers: Vec<Metadata>,
    /// Of the last peer's first lane.
    transports: Vec<Transport>,
    /// How the last peer is watched.
    handling: ErrorHandling,
    said: Arc<Said>,
    notifications_taken: AtomicU64,
    context: Context,
}

/// Memory that is registered. Drop order: the registration, then the memory.
struct Registered {
    mapped: MappedMemory,
    memory: Memory,
}

impl Ucx {
    /// Loads a UCX and opens it.
    ///
    /// # Errors
    /// No UCX, or none that can be used; no transport left of those that are allowed; a window of 0.
    pub fn open(config: Config) -> Result<Self, EngineError> {
        if config.window == 0 {
            return Err(EngineError::new(Kind::Usage, "ucx: a window of 0 operations moves nothing"));
        }
        let library =
            Library::load(&Search::new(config.library.as_deref())).map_err(|error| words::load(&error))?;
        let mut settings = Vec::new();
        settings.extend(config.tls.as_deref().map(|tls| ("TLS", tls)));
        settings.extend(config.devices.as_deref().map(|devices| ("NET_DEVICES", devices)));
        if config.error_handling == Some(ErrorHandling::Peer)
            && env::var_os("UCX_MM_ERROR_HANDLING").is_none()
        {
            // UCX leaves posix and sysv out where peers are watched, unless it is told that they may take part.
            settings.push(("MM_ERROR_HANDLING", "y"));
        }
        let context = Context::open(&library, UCP_FEATURE_RMA | UCP_FEATURE_AM, &settings)
            .map_err(|error| words::call("opening UCX", &error))?;
        let scratch = Memory::private(SCRATCH_BYTES)
            .map_err(|error| EngineError::new(Kind::Environment, format!("ucx: {error}")))?;
        let scratch = Registered::new(&context, &scratch)?;
        Ok(Self {
            lanes: Vec::new(),
            lane_count: 1,
            registered: None,
            scratch,
            peers: Vec::new(),
            transports: Vec::new(),
            handling: config.error_handling.unwrap_or(ErrorHandling::Peer),
            said: Arc::default(),
            notifications_taken: AtomicU64::new(0),
            context,
            config,
        })
    }

    /// Opens the lanes that are still missing.
    fn open_lanes(&mut self) -> Result<(), EngineError> {
        while self.lanes.len() < self.lane_count {
            let lane = Lane::open(&self.context).map_err(|error| words::call("a worker", &error))?;
            self.lanes.push(Arc::new(Mutex::new(lane)));
        }
        Ok(())
    }

    fn registered(&self) -> Result<&Registered, EngineError> {
        self.registered.as_ref().ok_or_else(|| EngineError::new(Kind::Usage, "ucx: no memory is registered"))
    }

    /// Whether UCX shall watch over a peer.
    fn handling_of(&self, peer: &Metadata) -> ErrorHandling {
        let allowed = self.config.tls.clone().or_else(|| env::var("UCX_TLS").ok());
        let shares = peer.host == host() && allowed.is_none_or(|tls| may_share_memory(&tls));
        let best = if shares { ErrorHandling::None } else { ErrorHandling::Peer };
        self.config.error_handling.unwrap_or(best)
    }

    fn messages(&self) -> u64 {
        self.lanes.iter().map(|lane| lock(lane).messages()).sum()
    }
}

impl Registered {
    fn new(context: &Context, memory: &Memory) -> Result<Self, EngineError> {
        let address = std::ptr::with_exposed_provenance_mut(memory.base() as usize);
        // SAFETY: a share of the memory is kept until the registration has ended; that peers read and write it is what a benchmark is for.
        let mapped = unsafe { context.map(address, memory.len()) };
        let mapped =
            mapped.map_err(|error| words::call(&format!("registering {} bytes", memory.len()), &error))?;
        Ok(Self { mapped, memory: memory.clone() })
    }
}

/// This host, until it boots again; empty where it does not say.
fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Whether a list of transports leaves room for those that reach into a process of the same host.
fn may_share_memory(tls: &str) -> bool {
    const OF_ONE_HOST: [&str; 10] =
        ["all", "sm", "shm", "mm", "posix", "sysv", "cma", "knem", "xpmem", "self"];
    // What begins with ^ lists what is left out.
    tls.starts_with('^') || tls.split(',').any(|name| OF_ONE_HOST.contains(&name.trim_matches('\\')))
}

/// `Ok` when all blocks lie inside a memory.
fn check(whose: &str, offsets: &[u64], block_bytes: u64, len: u64) -> Result<(), EngineError> {
    let outside = offsets.iter().find(|offset| offset.checked_add(block_bytes).is_none_or(|end| end > len));
    outside.map_or(Ok(()), |offset| {
        let what = format!(
            "a block of {block_bytes} bytes at offset {offset} ends outside {whose} memory of {len} bytes"
        );
        Err(EngineError::new(Kind::Usage, format!("ucx: {what}")))
    })
}

impl Engine for Ucx {
    fn name(&self) -> Name {
        Name::Ucx
    }

    fn used(&self) -> Vec<Used> {
        vec![used::report(self.context.library(), self.handling, &self.transports, &self.said)]
    }

    fn lanes(&mut self, count: u32) -> Result<(), EngineError> {
        let count = count as usize;
        if count == 0 || count > WORKERS_MAX || !self.peers.is_empty() {
            let what =
                format!("ucx: {count} posting threads: 1 to {WORKERS_MAX}, before the first peer is met");
            return Err(EngineError::new(Kind::Usage, what));
        }
        self.lane_count = count;
        Ok(())
    }

    fn register(&mut self, memory: &Memory) -> Result<(), EngineError> {
        if memory.device() != kvrail::Device::Host {
            let what = format!("ucx: memory on {} is not supported yet", memory.device());
            return Err(EngineError::new(Kind::Usage, what).hint("use memory of the host"));
        }
        self.open_lanes()?;
        self.registered = Some(Registered::new(&self.context, memory)?);
        Ok(())
    }

    fn metadata(&mut self) -> Result<Vec<u8>, EngineError> {
        self.open_lanes()?;
        let registered = self.registered()?;
        let key = registered.mapped.packed_key();
        let metadata = Metadata {
            release: self.context.library().version().to_owned(),
            host: host(),
            base: registered.memory.base(),
            len: registered.memory.len() as u64,
            key: key.map_err(|error| words::call("the memory's key", &error))?,
            workers: self.lanes.iter().map(|lane| lock(lane).address()).collect::<Result<_, _>>()?,
        };
        metadata.seal()
    }

    fn connect(&mut self, metadata: &[u8], within: Duration) -> Result<PeerId, EngineError> {
        let deadline = Instant::now() + within;
        let peer = Metadata::open(metadata)?;
        self.open_lanes()?;
        let own = self.context.library().version();
        if peer.release != own {
            log::warn!(
                "ucx: release {own} here, {} at the peer: UCX promises little between releases",
                peer.release
            );
        }
        self.handling = self.handling_of(&peer);
        let scratch = (&self.scratch.mapped, self.scratch.memory.base());
        for (index, lane) in self.lanes.iter().enumerate() {
            let worker = &peer.workers[index % peer.workers.len()];
            let left = deadline.saturating_duration_since(Instant::now());
            let transports = lock(lane).connect(&peer, worker, self.handling, scratch, &self.said, left)?;
            if index == 0 {
                self.transports = transports;
            }
        }
        let id = PeerId(self.peers.len() as u32);
        self.peers.push(peer);
        Ok(id)
    }

    fn prepare(&self, blocks: &Blocks<'_>) -> Result<Box<dyn Posting>, EngineError> {
        let usage = |what: String| EngineError::new(Kind::Usage, format!("ucx: {what}"));
        let peer = blocks.peer.0 as usize;
        let remote = self.peers.get(peer).ok_or_else(|| usage(format!("peer {peer} was never met")))?;
        let lane = self.lanes.get(blocks.lane as usize);
        let lane = lane.ok_or_else(|| usage(format!("there is no lane {}", blocks.lane)))?;
        let registered = self.registered()?;
        let (len, bytes) = (registered.memory.len() as u64, blocks.block_bytes);
        if bytes == 0 || blocks.local.is_empty() || blocks.local.len() != blocks.remote.len() {
            let (local, remote) = (blocks.local.len(), blocks.remote.len());
            return Err(usage(format!(
                "{local} blocks here and {remote} at the peer, of {bytes} bytes: both as many, none empty"
            )));
        }
        if blocks.notification.is_some_and(|bytes| bytes.len() > NOTIFICATION_BYTES_MAX) {
            return Err(usage(format!("a notification of more than {NOTIFICATION_BYTES_MAX} bytes")));
        }
        check("this side's", blocks.local, bytes, len)?;
        check("the peer's", blocks.remote, bytes, remote.len)?;
        let base = registered.memory.base();
        let pairs = blocks.local.iter().zip(blocks.remote);
        Ok(Box::new(Transfer {
            lane: Arc::clone(lane),
            peer,
            direction: blocks.direction,
            blocks: pairs.map(|(local, at)| (base + local, remote.base + at)).collect(),
            block_bytes: usize::try_from(bytes).map_err(|_| usage(format!("a block of {bytes} bytes")))?,
            notification: blocks.notification.map(Box::from),
            window: u64::from(self.config.window),
            timeout: blocks.timeout,
            tally: Tally::new(&registered.mapped, self.context.library()),
            memory: ManuallyDrop::new(registered.memory.clone()),
            said: Arc::clone(&self.said),
            is_described: Cell::new(false),
            flight: None,
        }))
    }

    fn needs_driving(&self) -> bool {
        true
    }

    fn drive(&self) -> bool {
        // A lane that is locked is being driven.
        let lanes = self.lanes.iter().filter_map(|lane| lane.try_lock().ok());
        lanes.fold(false, |moved, lane| lane.progress() | moved)
    }

    fn notifications(&self, awaited: u64, within: Duration) -> Result<u64, EngineError> {
        let deadline = Instant::now() + within;
        let taken = self.notifications_taken.load(Ordering::Relaxed);
        loop {
            let moved = self.drive();
            let come = self.messages().saturating_sub(taken).min(awaited);
            if come == awaited || Instant::now() >= deadline {
                self.notifications_taken.store(taken + come, Ordering::Relaxed);
                return Ok(come);
            }
            if !moved {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Ucx {
    /// Ends the workers, here and in postings that live longer, before the registrations: peers may still write.
    fn drop(&mut self) {
        for lane in &self.lanes {
            lock(lane).end();
        }
    }
}
